//! The condition types of a pair. Reasons are chosen where the facts are known; the types have their one home here.

/// Types of conditions on a `ReplicationPair`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionType {
    /// A member serves the application at the record's epoch, and the Service leads to it.
    Ready,
    /// The operator is still bringing things about.
    Reconciling,
    /// Nothing will go on until the user acts.
    Stalled,
    /// Both members have been in sync at least once.
    Bootstrapped,
    /// Both members hold every acknowledged write.
    InSync,
    /// If the active member died now, the other one would take over without losing an acknowledged write.
    FailoverReady,
    /// The active member is not the preferred one.
    FailedOver,
    /// The active member's replicator has a connection to its peer.
    PeerReachable,
    /// The active member has lost its peer and has not yet recorded that it is alone.
    Uncertain,
    /// Both members hold writes the other does not have.
    Diverged,
    /// A human must do something; the reason names what.
    ManualActionRequired,
    /// On hold: no member takes over or moves leadership by itself.
    Paused,
}

impl ConditionType {
    /// The name, as in `status.conditions[].type`.
    pub fn name(self) -> &'static str {
        match self {
            ConditionType::Ready => "Ready",
            ConditionType::Reconciling => "Reconciling",
            ConditionType::Stalled => "Stalled",
            ConditionType::Bootstrapped => "Bootstrapped",
            ConditionType::InSync => "InSync",
            ConditionType::FailoverReady => "FailoverReady",
            ConditionType::FailedOver => "FailedOver",
            ConditionType::PeerReachable => "PeerReachable",
            ConditionType::Uncertain => "Uncertain",
            ConditionType::Diverged => "Diverged",
            ConditionType::ManualActionRequired => "ManualActionRequired",
            ConditionType::Paused => "Paused",
        }
    }
}
