//! `ReplicationMember`: what one replicator is told, and what it reports. The operator writes `spec`, that member's replicator writes `status`; nobody else
//! writes either, so no message needs an answer and both may restart at any point.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::{AckPolicy, FailoverMode, MemberName, Protection};

/// Settings and orders of one member; made by the operator from its ReplicationPair.
#[derive(CustomResource, KubeSchema, Clone, Debug, Serialize, Deserialize, PartialEq)]
#[kube(
    group = "tandem.dev",
    version = "v1alpha1",
    kind = "ReplicationMember",
    plural = "replicationmembers",
    singular = "replicationmember",
    shortname = "pairmember",
    namespaced,
    status = "MemberReport",
    derive = "PartialEq",
    doc = "One member of a ReplicationPair: settings and orders from the operator, report from its replicator. Made by the operator.",
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.servingEpoch"),
    printcolumn(name = "Seq", type_ = "integer", json_path = ".status.position.seq"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MemberSettings {
    /// Name of the pair.
    #[schemars(length(min = 1, max = 40))]
    pub pair: String,
    /// Which member this is.
    pub member: MemberName,
    /// Whether this member may ever lead.
    pub electable: bool,
    /// As in the pair.
    pub protection: Protection,
    /// As in the pair.
    pub ack_policy: AckPolicy,
    /// As in the pair, bytes.
    #[schemars(range(min = 0))]
    pub max_lag_bytes: i64,
    /// As in the pair, seconds.
    #[schemars(range(min = 1))]
    pub hold_seconds: i64,
    /// As in the pair.
    pub alone_without_api: bool,
    /// As in the pair, milliseconds.
    #[schemars(range(min = 1))]
    pub interval_milliseconds: i64,
    /// As in the pair.
    #[schemars(range(min = 1))]
    pub missed_limit: i64,
    /// As in the pair.
    pub failover_mode: FailoverMode,
    /// As in the pair, seconds.
    #[schemars(range(min = 1))]
    pub stall_timeout_seconds: i64,
    /// Who should lead, if the operator wishes a change. Never a permission: the record decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nomination: Option<Nomination>,
    /// What the user ordered; each token is carried out once and answered in `status.handledOrders`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub orders: Vec<Order>,
    /// While the pair's record is gone: what the member is asked to promise for a new one, answered in `status.testimony`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub testify: Option<Promise>,
}

/// What a new record will begin with; nothing older is acknowledged or accepted any more by whoever promises it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Promise {
    /// Above every epoch that either member ever heard of.
    #[schemars(range(min = 1))]
    pub epoch: i64,
    /// Another one for each loss of the record: 32 hexadecimal digits.
    #[schemars(regex(pattern = "^[0-9a-f]{32}$"), length(max = 32))]
    pub nonce: String,
}

/// What a member swears while the pair's record is gone.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Testimony {
    /// What it promised.
    pub promise: Promise,
    /// Where its journal ends, for good.
    pub position: PositionReport,
    /// The copy is complete and lacks nothing that this member acknowledged.
    pub whole: bool,
}

/// A wish that leadership should go to `to`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Nomination {
    /// Each is carried out once.
    #[schemars(length(min = 1, max = 192))]
    pub request_id: String,
    /// The wish is void as soon as the record's epoch is above this.
    #[schemars(range(min = 0))]
    pub epoch_seen: i64,
    /// Who should lead.
    pub to: MemberName,
}

/// Something to do once.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// The user's token.
    #[schemars(length(min = 1, max = 128))]
    pub token: String,
    /// `Resync`: copy everything that differs from the active member again. `Discard`: move foreign files aside, then copy; or throw away what is kept aside under `names`. `Hold`: claim nothing and move nothing by itself until the order is withdrawn.
    pub verb: OrderVerb,
    /// `Discard`: of what is kept aside, these are thrown away: what the user saw when it was ordered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub names: Vec<String>,
}

/// What a member can be told to do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub enum OrderVerb {
    Resync,
    Discard,
    Hold,
}

/// What became of an order.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct OrderOutcome {
    /// The user's token.
    #[schemars(length(max = 128))]
    pub token: String,
    /// True once it is done; false: refused.
    pub done: bool,
    /// Why, as one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Why, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub message: Option<String>,
}

/// What a replicator says of itself, on change and otherwise at most every 30 seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MemberReport {
    /// Generation of the settings in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// State of the member.
    #[serde(default)]
    pub state: MemberState,
    /// The epoch for which this member serves writes; absent when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub serving_epoch: Option<i64>,
    /// End of its journal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<PositionReport>,
    /// What only this member holds of acknowledged or unacknowledged operations; by the leading member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure: Option<Exposure>,
    /// The last or running copy; by the leading member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netcopy: Option<Netcopy>,
    /// Identity of the data on the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub data_id: Option<String>,
    /// Start counter of this member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub boot: Option<i64>,
    /// The pod that reports; a report of a former pod is not believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_uid: Option<String>,
    /// Whether the peer's replicator answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_reachable: Option<bool>,
    /// One word for what holds it back: ForeignData, OtherPair, WaitingForMaster, Corrupt, RolledBack, Diverged, NotElectable, PortBlocked, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// The same as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
    /// What this member's volume keeps beside the pair's data, in `.tandem/aside`, until tandem.dev/discard throws it away; the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub saved_aside: Vec<SavedAside>,
    /// Tokens of carried out or refused orders, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub handled_orders: Vec<OrderOutcome>,
    /// The last nomination that this member carried out or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 192))]
    pub handled_nomination: Option<String>,
    /// The highest epoch that this member ever heard of; absent if its volume is a new one, which has nothing to testify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub highest_epoch: Option<i64>,
    /// What it promised last; nothing older is accepted any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<Promise>,
    /// What it swears while the pair's record is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub testimony: Option<Testimony>,
    /// When this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_at: Option<Time>,
}

/// Something that a member had to give up and kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SavedAside {
    /// Name of its folder.
    #[schemars(length(max = 64))]
    pub name: String,
    /// Why it was given up.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// Operations that are in it.
    #[schemars(range(min = 0))]
    pub operations: i64,
    /// Files whose content is in it, as far as they are known one by one.
    #[schemars(range(min = 0))]
    pub files: i64,
}

/// States of a member, named after solidDB HotStandby.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum MemberState {
    PrimaryActive,
    PrimaryUncertain,
    PrimaryAlone,
    PrimaryDraining,
    SecondaryActive,
    SecondaryAlone,
    SecondaryCatchUp,
    SecondaryNetcopy,
    Fenced,
    Quarantined,
    #[default]
    Offline,
}

/// A position, as people compare it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PositionReport {
    /// Epoch of the operation at `seq`.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Sequence number, counted over all epochs.
    #[schemars(range(min = 0))]
    pub seq: i64,
    /// Hash over everything up to here, 16 hexadecimal digits.
    #[schemars(regex(pattern = "^[0-9a-f]{16}$"), length(max = 16))]
    pub chain: String,
}

/// What would be lost by failing over now.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Exposure {
    /// Bytes of journal that only the active member holds.
    #[schemars(range(min = 0))]
    pub bytes: i64,
    /// Operations that only the active member holds.
    #[schemars(range(min = 0))]
    pub operations: i64,
}

/// A copy of everything, or of everything that differs, to the replicant.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Netcopy {
    /// Tells copies apart.
    #[schemars(length(max = 64))]
    pub id: String,
    /// How far it is.
    pub phase: NetcopyPhase,
    /// Bytes looked at or sent so far.
    #[schemars(range(min = 0))]
    pub bytes_done: i64,
    /// Bytes in all.
    #[schemars(range(min = 0))]
    pub bytes_total: i64,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended, in whatever way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Why it failed, or what it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub message: Option<String>,
    /// How many in a row failed.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failures: i64,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub enum NetcopyPhase {
    #[default]
    Pending,
    Copying,
    Replaying,
    Completed,
    Failed,
}
