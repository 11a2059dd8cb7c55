//! `ReplicationPair` and what its user writes in `spec`. Every field says its unit and its default; rules refuse what cannot work, in words.

use k8s_openapi::api::core::v1::{Affinity, Toleration};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::status::ReplicationPairStatus;
use super::template::{self, PodTemplate, VolumeClaim};

/// A file-based application that runs on one member and is replicated to the other.
#[derive(CustomResource, KubeSchema, Clone, Debug, Serialize, Deserialize, PartialEq)]
#[kube(
    group = "tandem.dev",
    version = "v1alpha1",
    kind = "ReplicationPair",
    plural = "replicationpairs",
    singular = "replicationpair",
    shortname = "pair",
    shortname = "pairs",
    category = "all",
    namespaced,
    status = "ReplicationPairStatus",
    derive = "PartialEq",
    doc = "A file-based application that runs on one member and is replicated, file by file, to the other.",
    validation = Rule::new("self.metadata.name.size() <= 40 && !self.metadata.name.contains('.')").message("the name of a pair is at most 40 characters and without dots: the names of its pods, claims and Services are made from it"),
    printcolumn(name = "Active", type_ = "string", json_path = ".status.active", description = "The member that serves."),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether the application is being served."),
    printcolumn(name = "In-Sync", type_ = "string", json_path = ".status.conditions[?(@.type==\"InSync\")].status", description = "Whether both members hold every acknowledged write."),
    printcolumn(name = "A", type_ = "string", json_path = ".status.members[?(@.name==\"a\")].state", description = "State of member a."),
    printcolumn(name = "B", type_ = "string", json_path = ".status.members[?(@.name==\"b\")].state", description = "State of member b."),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", description = "What is going on, or what to do."),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch", priority = 1, description = "How many times leadership began."),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.exposure.bytes", priority = 1, description = "Bytes that only the active member holds."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.members) || !has(self.members.a) || !has(self.members.b) || !has(self.members.a.electable) || !has(self.members.b.electable) || self.members.a.electable || self.members.b.electable").message("members.a.electable and members.b.electable cannot both be false: nobody could ever lead"),
    validation = Rule::new("!has(self.members) || (self.preferredMaster == 'a' ? (!has(self.members.a) || !has(self.members.a.electable) || self.members.a.electable) : (!has(self.members.b) || !has(self.members.b.electable) || self.members.b.electable))").message("preferredMaster names a member with electable: false, which can never lead"),
    validation = Rule::new("!has(self.bootstrap) || !has(self.bootstrap.from) || !has(self.members) || (self.bootstrap.from == 'a' ? (!has(self.members.a) || !has(self.members.a.electable) || self.members.a.electable) : (!has(self.members.b) || !has(self.members.b.electable) || self.members.b.electable))").message("bootstrap.from names a member with electable: false; the founder leads first, so it must be electable")
)]
pub struct ReplicationPairSpec {
    /// The application's pods, written as in a Deployment. At least one container mounts the volume named `data`; Tandem provides that volume.
    pub template: PodTemplate,
    /// The volume of each member, written as in a StatefulSet; access mode ReadWriteOncePod if none is given. It cannot be changed later.
    #[x_kube(validation = Rule::new("self == oldSelf").message("volumeClaimTemplate cannot be changed: enlarge the claims themselves"))]
    pub volume_claim_template: VolumeClaim,
    /// What differs between the two members; default: nothing.
    #[serde(default, skip_serializing_if = "Members::is_empty")]
    pub members: Members,
    /// The member that leads at first and to which `failback` returns: `a` (default) or `b`.
    #[serde(default)]
    pub preferred_master: MemberName,
    /// How safe an acknowledged write is.
    #[serde(default)]
    pub replication: Replication,
    /// How the pair comes into being.
    #[serde(default)]
    pub bootstrap: Bootstrap,
    /// How the loss of a member is noticed.
    #[serde(default)]
    pub health: Health,
    /// Who decides about taking over.
    #[serde(default)]
    pub failover: Failover,
    /// Who decides about returning to the preferred master.
    #[serde(default)]
    pub failback: Failback,
    /// How clients reach the active member.
    #[serde(default)]
    pub service: Service,
    /// What happens to the volumes when the pair is deleted: `RetainData` (default) keeps the claims, `Delete` deletes them.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// `Automatic` (default): the operator acts. `ObserveOnly`: it reports what it would do and changes nothing but the status.
    #[serde(default)]
    pub management_state: ManagementState,
}

/// One of the two members.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "lowercase")]
pub enum MemberName {
    #[default]
    A,
    B,
}

impl MemberName {
    /// Both, in the order in which they are always named.
    pub const BOTH: [MemberName; 2] = [MemberName::A, MemberName::B];

    /// The letter, as in names of objects.
    pub fn letter(self) -> &'static str {
        match self {
            MemberName::A => "a",
            MemberName::B => "b",
        }
    }

    /// The other one.
    pub fn other(self) -> MemberName {
        match self {
            MemberName::A => MemberName::B,
            MemberName::B => MemberName::A,
        }
    }
}

impl std::fmt::Display for MemberName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.letter())
    }
}

impl std::str::FromStr for MemberName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "a" => Ok(MemberName::A),
            "b" => Ok(MemberName::B),
            other => Err(format!("{other:?} is not a member: the members are a and b")),
        }
    }
}

/// What differs between the members.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Members {
    /// Member a.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub a: Option<MemberSpec>,
    /// Member b.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub b: Option<MemberSpec>,
}

impl Members {
    /// True when nothing was said about either.
    pub fn is_empty(&self) -> bool {
        self.a.is_none() && self.b.is_none()
    }

    /// What was said about one of them.
    pub fn get(&self, member: MemberName) -> Option<&MemberSpec> {
        match member {
            MemberName::A => self.a.as_ref(),
            MemberName::B => self.b.as_ref(),
        }
    }
}

/// Placement and volume of one member.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MemberSpec {
    /// Labels a node must have to run this member; added to those of the template.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "template::small_labels")]
    pub node_selector: BTreeMap<String, String>,
    /// Affinity of this member, in place of the template's; default: the two members never share a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "template::any_object")]
    pub affinity: Option<Affinity>,
    /// Tolerations of this member, added to those of the template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "template::any_objects")]
    pub tolerations: Vec<Toleration>,
    /// Whether this member may ever lead (default true). A member that may not still holds every acknowledged write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub electable: Option<bool>,
    /// The volume of this member, in place of the pair's. It cannot be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("volumeClaimTemplate cannot be changed: enlarge the claims themselves"))]
    pub volume_claim_template: Option<VolumeClaim>,
}

/// How safe an acknowledged write is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Replication {
    /// `MaxAvailability` (default): both members, or one that has recorded that it is alone. `MaxProtection`: always both, writes wait for the peer; a master that only falls silent is overruled after `holdSeconds` (30 s at most), because whoever leads would wait all the same. `Async`: the active member, at most `maxLagBytes` ahead.
    pub protection: Protection,
    /// When the peer acknowledges: `Durable` (default) after its fsync, `Received` once it is in its memory.
    pub ack_policy: AckPolicy,
    /// With `Async`: how many bytes of acknowledged writes may be lost with the active member (default 67108864).
    #[schemars(range(min = 65536, max = 1099511627776i64))]
    pub max_lag_bytes: i64,
    /// How long operations that cannot be acknowledged wait before they fail with EIO, in seconds (default 30); a peer that lives but makes nothing durable for so long (at least 30 s), because its disk hangs, is given up.
    #[schemars(range(min = 1, max = 3600))]
    pub hold_seconds: i64,
    /// Whether a member that has recorded that it is alone goes on without the API server (default true).
    pub alone_without_api: bool,
}

impl Default for Replication {
    fn default() -> Self {
        Replication {
            protection: Protection::default(),
            ack_policy: AckPolicy::default(),
            max_lag_bytes: 64 << 20,
            hold_seconds: 30,
            alone_without_api: true,
        }
    }
}

/// Where a write must be before the application is told so.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub enum Protection {
    #[default]
    MaxAvailability,
    MaxProtection,
    Async,
}

/// When a replicant acknowledges.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub enum AckPolicy {
    #[default]
    Durable,
    Received,
}

/// How the pair comes into being.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Bootstrap {
    /// The member whose files found the pair, `a` or `b`; default: the preferred master. The other one's volume must be empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<MemberName>,
    /// A copy that makes no progress for so many seconds is reported as failed and started again (default 60).
    #[schemars(range(min = 5, max = 3600))]
    pub stall_timeout_seconds: i64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Bootstrap { from: None, stall_timeout_seconds: 60 }
    }
}

/// How the loss of a member is noticed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// Time between two signs of life, in milliseconds (default 1000). The active member gives its peer up after two of them.
    #[schemars(range(min = 100, max = 60000))]
    pub interval_milliseconds: i64,
    /// After so many missed signs of life the replicant takes over (default 5, at least 3); with `MaxProtection` see there.
    #[schemars(range(min = 3, max = 1000))]
    pub missed_limit: i64,
}

impl Default for Health {
    fn default() -> Self {
        Health { interval_milliseconds: 1000, missed_limit: 5 }
    }
}

/// Who decides about taking over.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Failover {
    /// `Automatic` (default): the replicant takes over by itself. `Manual`: it waits for the annotation `tandem.dev/failover`.
    pub mode: FailoverMode,
}

/// Who decides about taking over.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub enum FailoverMode {
    #[default]
    Automatic,
    Manual,
}

/// Who decides about returning to the preferred master.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Failback {
    /// `OnRequest` (default): the annotation `tandem.dev/failback` returns leadership. `PreferMaster`: it returns as soon as both members are in sync again.
    pub mode: FailbackMode,
}

/// Who decides about returning to the preferred master.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub enum FailbackMode {
    #[default]
    OnRequest,
    PreferMaster,
}

/// How clients reach the active member.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Ports of the Service named as the pair; default: the ports that the template's containers declare.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(
        validation = Rule::new("self.all(p, self.filter(q, q.port == p.port && (has(q.protocol) ? q.protocol : 'TCP') == (has(p.protocol) ? p.protocol : 'TCP')).size() == 1)").message("two ports of the Service have the same number and protocol"),
        validation = Rule::new("self.all(p, self.filter(q, q.name == p.name).size() == 1)").message("two ports of the Service have the same name"),
    )]
    pub ports: Vec<ServicePort>,
}

/// One port of the Service.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name of the port, at most 15 lower case letters, digits and dashes.
    #[schemars(length(min = 1, max = 15), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Number that clients connect to, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Number that the application listens on; default: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Option<i32>,
    /// `TCP` (default) or `UDP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "template::protocol")]
    pub protocol: Option<String>,
}

/// What happens to the volumes when the pair is deleted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub enum DeletionPolicy {
    #[default]
    RetainData,
    Delete,
}

/// Whether the operator acts or only reports.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub enum ManagementState {
    #[default]
    Automatic,
    ObserveOnly,
}
