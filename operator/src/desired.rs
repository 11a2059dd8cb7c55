//! From a pair to the objects that should exist for it. A function that cannot fail; applied by `act`, field by field, so
//! that what others write into the same objects stays theirs.

pub mod access;
pub mod network;
pub mod workload;

use crate::pair::{MANAGED_BY, MEMBER, PAIR, PerMember, ValidPair};
use crate::plan::Plan;
use serde_json::{Value, json};
use tandem_crds::v1alpha1::{DeletionPolicy, MemberName};

/// A kind that the operator applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// apps/v1
    StatefulSet,
    /// v1
    Service,
    /// v1
    ServiceAccount,
    /// v1
    Secret,
    /// v1
    PersistentVolumeClaim,
    /// rbac.authorization.k8s.io/v1
    Role,
    /// rbac.authorization.k8s.io/v1
    RoleBinding,
    /// networking.k8s.io/v1
    NetworkPolicy,
    /// policy/v1
    PodDisruptionBudget,
    /// tandem.dev/v1alpha1
    ReplicationMember,
    /// tandem.dev/v1alpha1
    PairRecord,
}

impl Kind {
    /// Group, version, kind, plural.
    pub fn names(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Kind::StatefulSet => ("apps", "v1", "StatefulSet", "statefulsets"),
            Kind::Service => ("", "v1", "Service", "services"),
            Kind::ServiceAccount => ("", "v1", "ServiceAccount", "serviceaccounts"),
            Kind::Secret => ("", "v1", "Secret", "secrets"),
            Kind::PersistentVolumeClaim => ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
            Kind::Role => ("rbac.authorization.k8s.io", "v1", "Role", "roles"),
            Kind::RoleBinding => ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
            Kind::NetworkPolicy => ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
            Kind::PodDisruptionBudget => ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
            Kind::ReplicationMember => ("tandem.dev", "v1alpha1", "ReplicationMember", "replicationmembers"),
            Kind::PairRecord => ("tandem.dev", "v1alpha1", "PairRecord", "pairrecords"),
        }
    }
}

/// An object as it should be: only the fields that are ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: Value,
}

/// What the sidecar is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// Its image.
    pub image: String,
    /// When the image is pulled.
    pub pull_policy: String,
}

/// The labels of everything of a pair.
pub fn labels(pair: &ValidPair, member: Option<MemberName>) -> Value {
    let mut labels = json!({MANAGED_BY.0: MANAGED_BY.1, "app.kubernetes.io/name": "tandem-pair", PAIR: pair.name});
    if let Some(member) = member {
        labels[MEMBER] = json!(member.letter());
    }
    labels
}

/// Goes with the pair.
pub fn owner(pair: &ValidPair) -> Value {
    json!([{
        "apiVersion": "tandem.dev/v1alpha1", "kind": "ReplicationPair", "name": pair.name, "uid": pair.uid,
        "controller": true, "blockOwnerDeletion": true,
    }])
}

/// An object that goes with the pair.
pub fn object(pair: &ValidPair, kind: Kind, name: String, member: Option<MemberName>, rest: Value) -> Object {
    let (group, version, word, _) = kind.names();
    let api = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    let mut content = json!({
        "apiVersion": api, "kind": word,
        "metadata": {"name": name, "namespace": pair.namespace, "labels": labels(pair, member), "ownerReferences": owner(pair)},
    });
    if let (Some(content), Some(rest)) = (content.as_object_mut(), rest.as_object()) {
        content.extend(rest.clone());
    }
    Object { kind, name, content }
}

/// The claim of a member. With `RetainData` it belongs to nobody: deleting the pair does not reach it.
pub fn claim(pair: &ValidPair, member: MemberName, pair_id: &str) -> Object {
    let own = pair.spec.members.get(member).and_then(|told| told.volume_claim_template.as_ref());
    let template = &own.unwrap_or(&pair.spec.volume_claim_template).0;
    let mut made = object(pair, Kind::PersistentVolumeClaim, pair.claim(member), Some(member), json!({}));
    let mut spec = template.get("spec").cloned().unwrap_or_default();
    let unnamed = spec.get("accessModes").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if unnamed {
        spec["accessModes"] = json!(["ReadWriteOncePod"]);
    }
    made.content["spec"] = spec;
    let metadata = &mut made.content["metadata"];
    for field in ["labels", "annotations"] {
        if let Some(told) = template.pointer(&format!("/metadata/{field}")).and_then(Value::as_object) {
            let mut all = told.clone();
            all.extend(metadata[field].as_object().cloned().unwrap_or_default());
            metadata[field] = Value::Object(all);
        }
    }
    metadata["annotations"][crate::pair::PAIR_ID] = json!(pair_id);
    if pair.spec.deletion_policy == DeletionPolicy::RetainData
        && let Some(metadata) = metadata.as_object_mut()
    {
        metadata.remove("ownerReferences");
    }
    made
}

/// The safety record, to be created once. It belongs to the claims: it lives as long as data that it speaks of.
pub fn record(pair: &ValidPair, plan: &Plan) -> Option<Object> {
    let mut made = object(pair, Kind::PairRecord, pair.name.clone(), None, json!({"spec": plan.found.as_ref()?}));
    if let Some(metadata) = made.content["metadata"].as_object_mut() {
        metadata.remove("ownerReferences");
    }
    Some(made)
}

/// The members' objects: settings, nominations, orders.
pub fn members(pair: &ValidPair, plan: &Plan) -> Vec<Object> {
    let make = |(member, spec)| {
        object(pair, Kind::ReplicationMember, pair.member_object(member), Some(member), json!({"spec": spec}))
    };
    plan.members.each().into_iter().map(make).collect()
}

/// Everything else that stands still while a pair lives: who may do what, and how members are reached.
pub fn surroundings(pair: &ValidPair, plan: &Plan) -> Vec<Object> {
    let mut made = access::objects(pair);
    made.extend(network::objects(pair));
    made.push(network::disruption(pair, plan.may_evict));
    made
}

/// The StatefulSets, as far as the volumes are known that they stand on.
pub fn workloads(pair: &ValidPair, claims: &PerMember<Option<String>>, sidecar: &Sidecar) -> Vec<Object> {
    claims
        .each()
        .into_iter()
        .filter_map(|(member, uid)| Some(workload::stateful_set(pair, member, uid.as_deref()?, sidecar)))
        .collect()
}

#[cfg(test)]
mod tests;
