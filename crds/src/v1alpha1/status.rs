//! What the operator says about a pair. Kept small: numbers that move all the time live in metrics.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::member::{Exposure, MemberState, Netcopy};
use super::spec::MemberName;

/// The operator's account of a pair; derived from the record, the members' reports and the pods.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationPairStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The member that leads, according to the record; absent while nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<MemberName>,
    /// The pair's epoch: rises by one whenever leadership begins anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// What is going on, or what to do, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
    /// The two members.
    #[schemars(length(max = 2))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default)]
    pub members: Vec<MemberSummary>,
    /// The last or running copy to the replicant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netcopy: Option<Netcopy>,
    /// What would be lost by failing over now; absent when unknown, 0 when in sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure: Option<Exposure>,
    /// The last requests by annotation and what became of them, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub handled_requests: Vec<HandledRequest>,
    /// The last things that happened, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub history: Vec<HistoryEntry>,
    /// Facts with reasons; `Ready` is always there.
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// One member, in short.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MemberSummary {
    /// `a` or `b`.
    pub name: MemberName,
    /// State by its own last report, or Offline.
    pub state: MemberState,
    /// The node its pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Whether the record says that it holds every acknowledged write.
    pub certified: bool,
    /// Why it is not what one would wish, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
    /// Names of what its volume keeps aside, because it had to give it up; tandem.dev/discard throws it away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub saved_aside: Vec<String>,
}

/// A request by annotation and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HandledRequest {
    /// The verb, as in `tandem.dev/<verb>`.
    #[schemars(length(max = 63))]
    pub verb: String,
    /// The user's token; each is handled once.
    #[schemars(length(max = 128))]
    pub token: String,
    /// `Accepted` (under way), `Completed` or `Refused`.
    pub result: RequestResult,
    /// Why, as one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Why, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub message: Option<String>,
    /// Phase of a failback: Restoring, Restored, Draining, Switching or Completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<FailbackPhase>,
    /// Epoch when it was accepted: a change of leadership after it answers the request.
    pub epoch: i64,
    /// The member it moves leadership to, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<MemberName>,
    /// What a `discard` throws away: the names that stood in the status when it was accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub names: Vec<String>,
    /// When the result last changed.
    pub at: Time,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub enum RequestResult {
    Accepted,
    Completed,
    Refused,
}

/// The way home, step by step.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailbackPhase {
    Restoring,
    Restored,
    Draining,
    Switching,
    Completed,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// When.
    pub at: Time,
    /// What, as one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What, as a sentence.
    #[schemars(length(max = 256))]
    pub message: String,
    /// The epoch at that time.
    pub epoch: i64,
}
