//! From what a user wrote to a pair that can be made, or a refusal that says what to change. The API server has refused
//! most of what cannot work already (rules of the kind); here is what needs more than a rule can look at.

use crate::pair::{Asked, PREFIX, ValidPair};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimSpec, PodSpec};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use tandem_crds::v1alpha1::{MemberName, ReplicationPair, ServicePort};

/// Why a pair cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A part of the pod template is not what Kubernetes understands.
    #[error("template.spec is not a pod's spec: {0}")]
    Template(String),
    /// A claim template is not what Kubernetes understands.
    #[error("volumeClaimTemplate.spec is not a claim's spec: {0}")]
    Claim(String),
    /// The object came without what the API server always gives.
    #[error("the object has no {0}")]
    Incomplete(&'static str),
    /// The founder could never lead.
    #[error("member {0} is to found the pair but has electable: false")]
    Founder(MemberName),
    /// Both members were told to live on one node.
    #[error("members.a and members.b select the same node ({0}): they must not share one")]
    OneNode(String),
}

/// Checks a pair.
pub fn validate(pair: &ReplicationPair) -> Result<ValidPair, Refusal> {
    let metadata = &pair.metadata;
    let name = metadata.name.clone().ok_or(Refusal::Incomplete("name"))?;
    let spec = pair.spec.clone();
    let template = spec.template.0.as_object().cloned().unwrap_or_default();
    let pod_spec = object(template.get("spec"));
    let known: PodSpec = serde_json::from_value(Value::Object(pod_spec.clone()))
        .map_err(|error| Refusal::Template(error.to_string()))?;
    let claims =
        [Some(&spec.volume_claim_template), spec.members.a.as_ref().and_then(|a| a.volume_claim_template.as_ref())]
            .into_iter()
            .chain([spec.members.b.as_ref().and_then(|b| b.volume_claim_template.as_ref())]);
    for claim in claims.flatten() {
        let wanted = claim.0.get("spec").cloned().unwrap_or_default();
        serde_json::from_value::<PersistentVolumeClaimSpec>(wanted)
            .map_err(|error| Refusal::Claim(error.to_string()))?;
    }
    let hostname = |member: MemberName| {
        spec.members.get(member).and_then(|told| told.node_selector.get("kubernetes.io/hostname")).cloned()
    };
    if let (Some(a), Some(b)) = (hostname(MemberName::A), hostname(MemberName::B))
        && a == b
        && spec.members.get(MemberName::B).is_none_or(|told| told.affinity.is_none())
    {
        return Err(Refusal::OneNode(a));
    }
    let ports = if spec.service.ports.is_empty() { declared(&known) } else { spec.service.ports.clone() };
    let valid = ValidPair {
        name,
        namespace: metadata.namespace.clone().ok_or(Refusal::Incomplete("namespace"))?,
        uid: metadata.uid.clone().ok_or(Refusal::Incomplete("uid"))?,
        generation: metadata.generation.unwrap_or_default(),
        founder: spec.bootstrap.from.unwrap_or(spec.preferred_master),
        pod_metadata: object(template.get("metadata")),
        pod_spec,
        ports,
        requests: requests(metadata.annotations.iter().flatten()),
        spec,
    };
    if valid.electable(valid.founder) { Ok(valid) } else { Err(Refusal::Founder(valid.founder)) }
}

fn object(value: Option<&Value>) -> Map<String, Value> {
    value.and_then(Value::as_object).cloned().unwrap_or_default()
}

/// The ports that the template's containers declare, each number once.
fn declared(pod: &PodSpec) -> Vec<ServicePort> {
    let mut seen = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut ports = Vec::new();
    for port in pod.containers.iter().flat_map(|container| container.ports.iter().flatten()) {
        let protocol = port.protocol.clone().filter(|protocol| protocol != "TCP");
        if matches!(protocol.as_deref(), None | Some("UDP")) && seen.insert((port.container_port, protocol.clone())) {
            let mut name = port.name.clone().unwrap_or_else(|| format!("port-{}", port.container_port));
            if !names.insert(name.clone()) {
                name = format!("port-{}{}", port.container_port, if protocol.is_some() { "-u" } else { "" });
                names.insert(name.clone());
            }
            ports.push(ServicePort { name, port: port.container_port, target_port: None, protocol });
        }
    }
    ports
}

fn requests<'a>(annotations: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<Asked> {
    let cut = |text: &str, most: usize| text.chars().take(most).collect::<String>();
    annotations
        .filter_map(|(key, token)| Some((key.strip_prefix(PREFIX)?, token.trim())))
        .map(|(verb, token)| Asked { verb: cut(verb, 63), token: cut(token, 128) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pair(spec: Value, annotations: Value) -> ReplicationPair {
        let base = json!({
            "template": {"spec": {"containers": [{"name": "app", "image": "x",
                "ports": [{"containerPort": 80, "name": "web"}, {"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
            "volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}},
        });
        let mut whole = base.as_object().unwrap().clone();
        whole.extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "tandem.dev/v1alpha1", "kind": "ReplicationPair", "spec": whole,
            "metadata": {"name": "orders", "namespace": "shop", "uid": "u", "generation": 3, "annotations": annotations},
        }))
        .unwrap()
    }

    #[test]
    fn the_smallest_pair_is_enough() {
        let valid = validate(&pair(json!({}), json!({"tandem.dev/failback": "t1", "other": "x"}))).unwrap();
        assert_eq!(valid.founder, MemberName::A);
        assert_eq!(valid.requests, [Asked { verb: "failback".into(), token: "t1".into() }]);
        let ports: Vec<_> = valid.ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
        assert_eq!(ports, [("web", 80), ("port-53", 53)]);
        assert_eq!(valid.claim(MemberName::B), "tandem-backing-orders-b-0");
    }

    #[test]
    fn what_kubernetes_would_not_understand_is_refused_with_the_place() {
        let wrong = json!({"template": {"spec": {"containers": [{"name": "app", "image": "x", "env": "none"}]}}});
        assert!(matches!(validate(&pair(wrong, json!({}))), Err(Refusal::Template(_))));
        let wrong = json!({"volumeClaimTemplate": {"spec": {"accessModes": "all"}}});
        assert!(matches!(validate(&pair(wrong, json!({}))), Err(Refusal::Claim(_))));
    }

    #[test]
    fn members_that_select_one_node_are_refused() {
        let node = json!({"nodeSelector": {"kubernetes.io/hostname": "n1"}});
        let refused = validate(&pair(json!({"members": {"a": node, "b": node}}), json!({})));
        assert_eq!(refused, Err(Refusal::OneNode("n1".into())));
    }
}
