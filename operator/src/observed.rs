//! What was found about one pair, as plain data. What is missing is `None`: an absence is a fact, not an error.

use crate::pair::PerMember;
use tandem_crds::v1alpha1::{MemberName, MemberReport, Promise, RecordContent, ReplicationPairStatus};

/// Everything that decisions about a pair rest on.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The safety record.
    pub record: Option<RecordContent>,
    /// The version of the record that was read: a write that goes by it must meet no other.
    pub record_version: Option<String>,
    /// Unique ids of the record's owners.
    pub record_owners: Vec<String>,
    /// The two members.
    pub members: PerMember<MemberSeen>,
    /// The read/write Service.
    pub service: Option<ServiceSeen>,
    /// The status as it stands.
    pub status: ReplicationPairStatus,
}

/// One member from the outside, and by its own account.
#[derive(Clone, Debug, Default)]
pub struct MemberSeen {
    /// Its volume's claim.
    pub claim: Option<ClaimSeen>,
    /// Its StatefulSet.
    pub workload: Option<WorkloadSeen>,
    /// Its pod.
    pub pod: Option<PodSeen>,
    /// What its replicator says; only if it is this pod's.
    pub report: Option<MemberReport>,
    /// What it was asked to promise for a new record.
    pub asked: Option<Promise>,
}

/// A claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimSeen {
    /// Unique id: another claim of the same name has another one.
    pub uid: String,
    /// Whose data it holds, if it was ever used.
    pub pair_id: Option<String>,
    /// Unique ids of its owners.
    pub owners: Vec<String>,
}

/// A StatefulSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadSeen {
    /// Revision that new pods get; known once the newest spec was looked at.
    pub revision: Option<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSeen {
    /// Unique id.
    pub uid: String,
    /// Where it runs.
    pub node: Option<String>,
    /// All containers of the user are ready.
    pub ready: bool,
    /// It is on its way out.
    pub deleting: bool,
    /// Revision that it was made from.
    pub revision: Option<String>,
    /// Why it does not run yet, in one sentence.
    pub waiting: Option<String>,
}

/// The read/write Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSeen {
    /// For which epoch its selector holds.
    pub epoch: i64,
    /// Whom it leads to.
    pub member: Option<MemberName>,
}
