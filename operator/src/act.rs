//! Carries a plan out, in the order in which each step leaves nothing half true: the record before anybody is told to
//! begin, keys and rights before pods, settings before pods. What failed stops the rest and is tried again.

pub mod keys;
pub mod route;

use crate::clock;
use crate::context::Context;
use crate::desired::{self, Kind, Object};
use crate::observed::Observed;
use crate::pair::{PerMember, ValidPair};
use crate::plan::{Plan, Replacement};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt};
use serde_json::json;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use tandem_crds::v1alpha1::{DeletionPolicy, MemberName, PairRecord, Promise, RecordContent, ReplicationMember};

/// Field manager of everything the operator applies.
pub const MANAGER: &str = "tandem-operator";
/// What was changed by others behind the operator's back is set right after so long at the latest.
const APPLY_AGAIN: Duration = Duration::from_secs(300);

/// Why a plan was not carried out to its end.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// The API server did not do it.
    #[error("{doing}: {source}")]
    Api {
        /// What was attempted.
        doing: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// No certificate.
    #[error(transparent)]
    Certificate(#[from] crate::certificates::CertificateError),
}

/// Names what was attempted.
pub fn doing(what: impl Into<String>) -> impl FnOnce(kube::Error) -> ActError {
    let doing = what.into();
    move |source| ActError::Api { doing, source: Box::new(source) }
}

/// What was done, as far as it is news.
#[derive(Clone, Debug, Default)]
pub struct Acted {
    /// Pods that were deleted.
    pub replaced: Vec<Replacement>,
}

/// Carries a plan out.
pub async fn act(context: &Context, pair: &ValidPair, seen: &Observed, plan: &Plan) -> Result<Acted, ActError> {
    if let Some(record) = desired::record(pair, plan) {
        if !still_sworn(context, pair, plan).await? {
            // What was seen is older than what the members say now.
            return Ok(Acted::default());
        }
        create(context, pair, &record).await?;
    }
    let mut claims = PerMember::<Option<String>>::default();
    for member in MemberName::BOTH {
        let uid = claim(context, pair, seen, plan, member).await?;
        match member {
            MemberName::A => claims.a = uid,
            MemberName::B => claims.b = uid,
        }
    }
    keep_record_with_claims(context, pair, seen, &claims).await?;
    // A pod whose Secret was deleted cannot begin.
    let waits = |member: &MemberName| seen.members.get(*member).pod.as_ref().is_none_or(|pod| pod.waiting.is_some());
    keys::ensure(context, pair, MemberName::BOTH.iter().any(waits)).await?;
    for object in desired::surroundings(pair, plan) {
        apply(context, pair, &object, false).await?;
    }
    for object in desired::members(pair, plan) {
        apply(context, pair, &object, false).await?;
    }
    for object in desired::workloads(pair, &claims, &context.sidecar) {
        let missing = MemberName::BOTH
            .iter()
            .any(|m| pair.member_object(*m) == object.name && seen.members.get(*m).workload.is_none());
        apply(context, pair, &object, missing).await?;
    }
    if let Some((member, epoch)) = plan.route {
        route::point(context, pair, member, epoch).await?;
    }
    let mut acted = Acted::default();
    for replacement in &plan.replace {
        if delete_pod(context, pair, replacement).await? {
            acted.replaced.push(replacement.clone());
        }
    }
    // Last: what stands in its way holds nothing else up.
    if let (Some(forced), Some(version)) = (&plan.forced, &seen.record_version) {
        force(context, pair, forced, version).await?;
    }
    Ok(acted)
}

/// Whether the members swear now what a record that is made anew rests on. Watches may lag; a record from what was sworn once
/// and is not any more would be older than what somebody has promised since.
async fn still_sworn(context: &Context, pair: &ValidPair, plan: &Plan) -> Result<bool, ActError> {
    let Some(found) = plan.found.as_ref().filter(|found| found.epoch > 0) else { return Ok(true) };
    let promise = Promise { epoch: found.epoch, nonce: found.nonce.clone() };
    let members = Api::<ReplicationMember>::namespaced(context.client.clone(), &pair.namespace);
    for member in MemberName::BOTH {
        let what = "read what a member swears";
        let Some(object) = members.get_opt(&pair.member_object(member)).await.map_err(doing(what))? else {
            return Ok(false);
        };
        let asked = object.spec.testify.as_ref() == Some(&promise);
        let sworn = object.status.and_then(|status| status.testimony).is_some_and(|sworn| sworn.promise == promise);
        // On a human's word one of them was never asked.
        if !sworn && (asked || found.certified.get(member).is_some()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The API of a kind.
pub fn api(context: &Context, namespace: &str, kind: Kind) -> Api<DynamicObject> {
    let (group, version, word, plural) = kind.names();
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, word), plural);
    Api::namespaced_with(context.client.clone(), namespace, &resource)
}

/// Creates what must not be touched once it is there. True: it was created now.
pub async fn create(context: &Context, pair: &ValidPair, object: &Object) -> Result<bool, ActError> {
    let what = format!("create {:?} {}", object.kind, object.name);
    let value: DynamicObject = serde_json::from_value(object.content.clone())
        .map_err(|error| ActError::Api { doing: what.clone(), source: Box::new(kube::Error::SerdeError(error)) })?;
    let parameters = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    match api(context, &pair.namespace, object.kind).create(&parameters, &value).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(false),
        Err(error) => Err(doing(what)(error)),
    }
}

/// Applies an object unless the same was applied a moment ago.
pub async fn apply(context: &Context, pair: &ValidPair, object: &Object, missing: bool) -> Result<(), ActError> {
    let path = format!("{}/{:?}/{}", pair.namespace, object.kind, object.name);
    let mut hasher = DefaultHasher::new();
    (object.content.to_string(), &pair.uid).hash(&mut hasher);
    let hash = hasher.finish();
    let now = clock::monotonic();
    let fresh = context
        .applied
        .lock()
        .get(&path)
        .is_some_and(|(applied, at)| *applied == hash && now.saturating_duration_since(*at) < APPLY_AGAIN);
    if fresh && !missing {
        return Ok(());
    }
    api(context, &pair.namespace, object.kind)
        .patch(&object.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object.content))
        .await
        .map_err(doing(format!("apply {:?} {}", object.kind, object.name)))?;
    context.applied.lock().insert(path, (hash, now));
    Ok(())
}

/// Creates a member's claim; of one that is there, only says whose data it holds and to whom it belongs. Returns its unique id.
async fn claim(
    context: &Context,
    pair: &ValidPair,
    seen: &Observed,
    plan: &Plan,
    member: MemberName,
) -> Result<Option<String>, ActError> {
    let wanted = desired::claim(pair, member, &plan.pair_id);
    let Some(there) = &seen.members.get(member).claim else {
        // Seen by the watch a moment later, which leads back here.
        create(context, pair, &wanted).await?;
        return Ok(None);
    };
    let owned = there.owners.contains(&pair.uid);
    let should_be_owned = pair.spec.deletion_policy == DeletionPolicy::Delete;
    if there.pair_id.as_deref() != Some(plan.pair_id.as_str()) || owned != should_be_owned {
        let mut metadata = json!({
            "annotations": {crate::pair::PAIR_ID: plan.pair_id},
            "labels": desired::labels(pair, Some(member)),
        });
        metadata["ownerReferences"] = if should_be_owned { desired::owner(pair) } else { json!([]) };
        api(context, &pair.namespace, Kind::PersistentVolumeClaim)
            .patch(&wanted.name, &PatchParams::default(), &Patch::Merge(json!({"metadata": metadata})))
            .await
            .map_err(doing(format!("mark claim {}", wanted.name)))?;
    }
    Ok(Some(there.uid.clone()))
}

/// The record goes when the last volume goes that it speaks of, and not before.
async fn keep_record_with_claims(
    context: &Context,
    pair: &ValidPair,
    seen: &Observed,
    claims: &PerMember<Option<String>>,
) -> Result<(), ActError> {
    let (Some(a), Some(b)) = (&claims.a, &claims.b) else { return Ok(()) };
    if seen.record.is_none() || (seen.record_owners.contains(a) && seen.record_owners.contains(b)) {
        return Ok(());
    }
    let owner = |member: MemberName, uid: &String| json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": pair.claim(member), "uid": uid});
    let metadata = json!({"metadata": {"ownerReferences": [owner(MemberName::A, a), owner(MemberName::B, b)]}});
    api(context, &pair.namespace, Kind::PairRecord)
        .patch(&pair.name, &PatchParams::default(), &Patch::Merge(metadata))
        .await
        .map_err(doing("bind the record to the claims"))?;
    Ok(())
}

/// Writes the record on a human's word: only over exactly what the decision rests on.
async fn force(context: &Context, pair: &ValidPair, forced: &RecordContent, version: &str) -> Result<(), ActError> {
    let what = "write the record that a human ordered";
    let records = Api::<PairRecord>::namespaced(context.client.clone(), &pair.namespace);
    let mut whole = records.get(&pair.name).await.map_err(doing(what))?;
    if whole.resource_version().as_deref() != Some(version) {
        // It moved meanwhile: the next look decides anew.
        return Ok(());
    }
    whole.spec = forced.clone();
    let parameters = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    match records.replace(&pair.name, &parameters, &whole).await {
        Ok(_) => {
            tracing::warn!(pair = %pair.name, epoch = forced.epoch, "a human gave up an epoch");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(doing(what)(error)),
    }
}

/// Deletes exactly this pod, gracefully: its application ends first, its replicator hands over. False: it is gone already.
async fn delete_pod(context: &Context, pair: &ValidPair, which: &Replacement) -> Result<bool, ActError> {
    let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(context.client.clone(), &pair.namespace);
    let exactly = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(which.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    match pods.delete(&pair.pod(which.member), &exactly).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
        Err(error) => Err(doing(format!("delete the pod of member {}", which.member))(error)),
    }
}
