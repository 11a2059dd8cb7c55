//! Version v1alpha1, the stored one. Reading order: the pair, its parts, the member, the record.

// KubeSchema derives a hidden twin of each struct with the same visibility inside a function, which this lint then finds unreachable.
#![allow(unreachable_pub)]
// Several printed columns are one attribute each, which this lint takes for a repetition.
#![allow(clippy::duplicated_attributes)]

mod condition;
mod member;
mod record;
mod spec;
mod status;
mod template;

pub use condition::ConditionType;
pub use member::{
    Exposure, MemberReport, MemberSettings, MemberState, Netcopy, NetcopyPhase, Nomination, Order, OrderOutcome,
    OrderVerb, PositionReport, Promise, ReplicationMember, SavedAside, Testimony,
};

pub use record::{Certified, DataId, DataIdentity, Master, PairRecord, PerMember, RecordContent, Switch};
pub use spec::{
    AckPolicy, Bootstrap, DeletionPolicy, Failback, FailbackMode, Failover, FailoverMode, Health, ManagementState,
    MemberName, MemberSpec, Members, Protection, Replication, ReplicationPair, ReplicationPairSpec, Service,
    ServicePort,
};
pub use status::{FailbackPhase, HandledRequest, HistoryEntry, MemberSummary, ReplicationPairStatus, RequestResult};
pub use template::{PodTemplate, VolumeClaim};
