//! `PairRecord`: everything that safety depends on, in one object, so that one compare-and-swap decides. The members write it; the operator only creates it.
//! The rules below are the legal transitions, enforced by the API server: even a faulty client cannot make an epoch go back.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::member::PositionReport;
use super::spec::MemberName;

/// The pair's safety record.
#[derive(CustomResource, KubeSchema, Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[kube(
    group = "tandem.dev",
    version = "v1alpha1",
    kind = "PairRecord",
    plural = "pairrecords",
    singular = "pairrecord",
    namespaced,
    derive = "PartialEq",
    doc = "The safety record of a ReplicationPair: who leads and who holds every acknowledged write. Written by its members; do not edit.",
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch"),
    printcolumn(name = "Master", type_ = "string", json_path = ".spec.master.member"),
    printcolumn(name = "Writes", type_ = "integer", json_path = ".spec.wseq"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.pair == oldSelf.pair && self.founder == oldSelf.founder").message("pair and founder never change"),
    validation = Rule::new("self.epoch == oldSelf.epoch || self.epoch == oldSelf.epoch + 1").message("the epoch rises by one or stays; it never goes back"),
    validation = Rule::new("self.wseq == oldSelf.wseq + 1 || self == oldSelf").message("each write raises wseq by exactly one"),
    validation = Rule::new("(self.epoch == oldSelf.epoch) == (self.nonce == oldSelf.nonce)").message("the nonce changes with the epoch, and only then"),
    validation = Rule::new("self.epoch != oldSelf.epoch || !has(self.master) || (has(oldSelf.master) && self.master == oldSelf.master)").message("within an epoch the master stays or releases; another master needs another epoch"),
    validation = Rule::new("self.epoch == oldSelf.epoch || (has(self.master) ? has(self.certified.a) == (self.master.member == 'a') && has(self.certified.b) == (self.master.member == 'b') : has(self.request) && self.request.id.startsWith('force-') && has(self.certified.a) == (self.request.to == 'a') && has(self.certified.b) == (self.request.to == 'b'))").message("a new epoch begins with its master as the only certified member, or on a human's word (tandem.dev/force) with the member that it names"),
    validation = Rule::new("self.epoch == oldSelf.epoch || !has(self.master) || (oldSelf.epoch == 0 ? self.master.member == oldSelf.founder : (self.master.member == 'a' ? has(oldSelf.certified.a) && oldSelf.certified.a.dataId == self.certified.a.dataId : has(oldSelf.certified.b) && oldSelf.certified.b.dataId == self.certified.b.dataId))").message("only a member that was certified, with the same data, may begin an epoch; the first one only the founder"),
    validation = Rule::new("self.epoch != oldSelf.epoch || has(oldSelf.master) || (has(self.certified.a) == has(oldSelf.certified.a) && has(self.certified.b) == has(oldSelf.certified.b))").message("while nobody leads, who is certified does not change"),
    validation = Rule::new("!has(self.master) || (self.master.member == 'a' ? has(self.certified.a) : has(self.certified.b))").message("the master is always certified"),
    validation = Rule::new("self.epoch > 0 || (!has(self.master) && !has(self.certified.a) && !has(self.certified.b))").message("before the first epoch nobody leads and nobody is certified")
)]
pub struct RecordContent {
    /// Identity of the pair, minted at founding: 32 hexadecimal digits.
    #[schemars(regex(pattern = "^[0-9a-f]{32}$"), length(max = 32))]
    pub pair: String,
    /// The member that may begin epoch 1.
    pub founder: MemberName,
    /// Rises by one whenever leadership begins anew; 0 until the founder has claimed.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Random per epoch: equal numbers of two histories are told apart by it. 32 hexadecimal digits.
    #[schemars(regex(pattern = "^[0-9a-f]{32}$"), length(max = 32))]
    pub nonce: String,
    /// Who leads; absent when released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<Master>,
    /// The in-sync marker: each of these holds every operation acknowledged so far.
    #[serde(default)]
    pub certified: Certified,
    /// Rises by one in every write: an identical write would not move the resource version.
    #[schemars(range(min = 0))]
    pub wseq: i64,
    /// Advisory, at most every 30 s: lets a volume that was rolled back be noticed.
    #[serde(default)]
    pub positions: PerMember,
    /// The switchover in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Switch>,
    /// The last switchover done; each id is carried out once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 192))]
    pub last_request: Option<String>,
}

/// Who leads.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Master {
    /// `a` or `b`.
    pub member: MemberName,
    /// Which start of it: its start counter.
    #[schemars(range(min = 0))]
    pub boot: i64,
}

/// Who holds every acknowledged operation.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub struct Certified {
    /// Data of member a, if certified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub a: Option<DataIdentity>,
    /// Data of member b, if certified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub b: Option<DataIdentity>,
}

impl Certified {
    /// The data of one member, if certified.
    pub fn get(&self, member: MemberName) -> Option<&DataIdentity> {
        match member {
            MemberName::A => self.a.as_ref(),
            MemberName::B => self.b.as_ref(),
        }
    }
}

/// Which data, and which start of its member.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DataIdentity {
    /// Which copy of the data: another copy under the same member's name is not meant.
    pub data_id: DataId,
    /// Start counter of the member.
    #[schemars(range(min = 0))]
    pub boot: i64,
}

/// The volume that a copy lies on, and the random number that was written on it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub struct DataId {
    /// Unique id of the volume; a snapshot restored into a new claim has another one.
    #[schemars(length(max = 253))]
    pub volume: String,
    /// Minted when the copy began its life: 32 hexadecimal digits.
    #[schemars(regex(pattern = "^[0-9a-f]{32}$"), length(max = 32))]
    pub uuid: String,
}

/// A position per member.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub struct PerMember {
    /// Of member a.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub a: Option<PositionReport>,
    /// Of member b.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub b: Option<PositionReport>,
}

impl PerMember {
    /// Of one member.
    pub fn get(&self, member: MemberName) -> Option<&PositionReport> {
        match member {
            MemberName::A => self.a.as_ref(),
            MemberName::B => self.b.as_ref(),
        }
    }
}

/// A switchover in progress.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub struct Switch {
    /// Carried out once.
    #[schemars(length(min = 1, max = 192))]
    pub id: String,
    /// Who should lead afterwards.
    pub to: MemberName,
}
