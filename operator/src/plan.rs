//! What is to be done about one pair, and what is to be said about it, as plain data.

use crate::pair::PerMember;
use std::time::Duration;
use tandem_crds::v1alpha1::{
    ConditionType, Exposure, HandledRequest, MemberName, MemberSettings, MemberSummary, Netcopy, RecordContent,
};

/// What `decide` wants.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Identity of the pair.
    pub pair_id: String,
    /// The record to create.
    pub found: Option<RecordContent>,
    /// What the record becomes on a human's word.
    pub forced: Option<RecordContent>,
    /// What the members are told.
    pub members: PerMember<MemberSettings>,
    /// Point the Service at this member, for this epoch.
    pub route: Option<(MemberName, i64)>,
    /// Pods to delete, so that new ones take their place.
    pub replace: Vec<Replacement>,
    /// Whether the active member's pod may be evicted now.
    pub may_evict: bool,
    /// What there is to say.
    pub account: Account,
    /// When to look again although nothing changed.
    pub look_again: Duration,
}

/// A pod to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// Whose.
    pub member: MemberName,
    /// Exactly this pod.
    pub uid: String,
    /// Why, as one word.
    pub reason: &'static str,
    /// Why, as a sentence.
    pub message: String,
}

/// What there is to say about a pair.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Who leads.
    pub active: Option<MemberName>,
    /// The record's epoch.
    pub epoch: Option<i64>,
    /// In one sentence.
    pub message: String,
    /// The members.
    pub members: Vec<MemberSummary>,
    /// The last copy.
    pub netcopy: Option<Netcopy>,
    /// What a failover would lose now.
    pub exposure: Option<Exposure>,
    /// Requests and what became of them.
    pub requests: Vec<HandledRequest>,
    /// Conditions.
    pub facts: Vec<Fact>,
}

/// A condition, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Type.
    pub kind: ConditionType,
    /// Whether it holds.
    pub holds: Holds,
    /// Why, as one word.
    pub reason: &'static str,
    /// Why, as a sentence.
    pub message: String,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody can tell.
    Unknown,
}

impl Holds {
    /// As in `status.conditions[].status`.
    pub fn word(self) -> &'static str {
        match self {
            Holds::True => "True",
            Holds::False => "False",
            Holds::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Holds::True } else { Holds::False }
    }
}
