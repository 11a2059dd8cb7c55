//! How members are reached: the Services, who may connect to the replication port, and when a pod may be evicted.

use super::{Kind, Object, object};
use crate::pair::{MEMBER, PAIR, ValidPair};
use serde_json::{Value, json};
use tandem_crds::v1alpha1::MemberName;

/// Port of the members' connection.
pub const REPLICATION: i32 = 7470;
/// Port of probes, gate and metrics.
pub const HEALTH: i32 = 7471;

/// The Services and the NetworkPolicy.
pub fn objects(pair: &ValidPair) -> Vec<Object> {
    let mut made = vec![read_write(pair)];
    made.extend(MemberName::BOTH.iter().map(|member| headless(pair, *member)));
    made.push(policy(pair));
    made
}

/// The Service that follows the active member. Its selector is not ours alone (a new master sets it too), so it is written
/// elsewhere, by compare-and-swap.
fn read_write(pair: &ValidPair) -> Object {
    let ports: Vec<Value> = pair
        .ports
        .iter()
        .map(|port| {
            json!({
                "name": port.name, "port": port.port, "targetPort": port.target_port.unwrap_or(port.port),
                "protocol": port.protocol.as_deref().unwrap_or("TCP"),
            })
        })
        .collect();
    // A Service without ports exists only without an address of its own.
    let spec =
        if ports.is_empty() { json!({"clusterIP": "None"}) } else { json!({"type": "ClusterIP", "ports": ports}) };
    object(pair, Kind::Service, pair.name.clone(), None, json!({"spec": spec}))
}

/// A name for a member's pod, whatever its state: the members find each other by it.
fn headless(pair: &ValidPair, member: MemberName) -> Object {
    let spec = json!({
        "clusterIP": "None", "publishNotReadyAddresses": true,
        "selector": {PAIR: pair.name, MEMBER: member.letter()},
        "ports": [
            {"name": "replication", "port": REPLICATION, "targetPort": REPLICATION, "protocol": "TCP"},
            {"name": "tandem-http", "port": HEALTH, "targetPort": HEALTH, "protocol": "TCP"},
        ],
    });
    object(pair, Kind::Service, pair.member_object(member), Some(member), json!({"spec": spec}))
}

/// The replication port is for the two members only; all other ports are the application's business.
fn policy(pair: &ValidPair) -> Object {
    let members = json!({"matchLabels": {PAIR: pair.name}});
    let spec = json!({
        "podSelector": members,
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": members}], "ports": [{"protocol": "TCP", "port": REPLICATION}]},
            {"ports": [
                {"protocol": "TCP", "port": 1, "endPort": REPLICATION - 1},
                {"protocol": "TCP", "port": HEALTH, "endPort": 65535},
                {"protocol": "UDP", "port": 1, "endPort": 65535},
                {"protocol": "SCTP", "port": 1, "endPort": 65535},
            ]},
        ],
    });
    object(pair, Kind::NetworkPolicy, pair.name.clone(), None, json!({"spec": spec}))
}

/// The active member's pod may be evicted (a switchover) only while the other one can take over. The other one's pod is never
/// ready, its application waits: it may always go.
pub fn disruption(pair: &ValidPair, may_evict: bool) -> Object {
    let spec = json!({
        "minAvailable": i32::from(!may_evict),
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": {PAIR: pair.name}},
    });
    object(pair, Kind::PodDisruptionBudget, pair.name.clone(), None, json!({"spec": spec}))
}
