//! Who may do what: an account per member, with the rights of one member to its own objects, by name.

use super::{Kind, Object, object};
use crate::pair::ValidPair;
use serde_json::{Value, json};
use tandem_crds::v1alpha1::MemberName;

/// Accounts, roles, bindings.
pub fn objects(pair: &ValidPair) -> Vec<Object> {
    MemberName::BOTH.iter().flat_map(|member| of(pair, *member)).collect()
}

/// The account that a member's pod runs under: the user's, if the template names one.
pub fn account(pair: &ValidPair, member: MemberName) -> String {
    let named = ["serviceAccountName", "serviceAccount"].iter().find_map(|field| pair.pod_spec.get(*field));
    named.and_then(Value::as_str).map_or_else(|| pair.member_object(member), str::to_string)
}

fn of(pair: &ValidPair, member: MemberName) -> Vec<Object> {
    let name = pair.member_object(member);
    let rules = json!([
        // The record is decided by compare-and-swap, among the members alone.
        {"apiGroups": ["tandem.dev"], "resources": ["pairrecords"], "resourceNames": [pair.name], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": ["tandem.dev"], "resources": ["replicationmembers"], "resourceNames": [name], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["tandem.dev"], "resources": ["replicationmembers/status"], "resourceNames": [name], "verbs": ["get", "patch", "update"]},
        // A failover completes while no operator runs: the new master points the Service at itself.
        {"apiGroups": [""], "resources": ["services"], "resourceNames": [pair.name], "verbs": ["get", "update"]},
    ]);
    let account = account(pair, member);
    let mut made = Vec::new();
    if account == name {
        made.push(object(
            pair,
            Kind::ServiceAccount,
            name.clone(),
            Some(member),
            json!({"automountServiceAccountToken": false}),
        ));
    }
    made.push(object(pair, Kind::Role, name.clone(), Some(member), json!({"rules": rules})));
    made.push(object(
        pair,
        Kind::RoleBinding,
        name.clone(),
        Some(member),
        json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": pair.namespace}],
        }),
    ));
    made
}
