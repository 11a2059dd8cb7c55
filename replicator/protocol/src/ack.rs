//! When an operation may be acknowledged to the application. The member publishes a rule to the data path; the data path
//! applies it with the marks of that instant, immediately before each reply.

use serde::{Deserialize, Serialize};

/// Whose word counts for an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AckRule {
    /// Nothing more is acknowledged: not the master, or fenced.
    #[default]
    Nothing,
    /// Durable here and acknowledged by the peer in this session. Without a session nothing new is acknowledged.
    WithPeer {
        /// The connection whose acknowledgements count; those of earlier ones may speak of memory that is gone.
        session: Option<u64>,
        /// The peer's memory suffices (ackPolicy `Received`).
        received: bool,
    },
    /// Durable here, not further ahead of the peer than the bound, while entitled (protection `Async`).
    WithinLag {
        /// As in `WithPeer`.
        session: Option<u64>,
        /// The bound that `Marks::within_lag` was computed with.
        max_lag_bytes: u64,
        /// On the monotonic clock that `now` is taken from.
        entitled_until: u64,
    },
    /// Durable here; the record says that this member alone is certified.
    Alone {
        /// On the monotonic clock; none: for as long as nothing newer is seen.
        entitled_until: Option<u64>,
    },
}

/// The data path's marks at one instant. Sequence numbers; 0 = nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Marks {
    /// What was acknowledged before: an acknowledgement is never taken back.
    pub acknowledged: u64,
    /// Durable in the own journal.
    pub durable: u64,
    /// The connection that the peer's marks came over.
    pub session: Option<u64>,
    /// In the peer's memory.
    pub peer_received: u64,
    /// Durable in the peer's journal.
    pub peer_durable: u64,
    /// The highest number such that the journal's bytes from the peer's mark to it stay within `max_lag_bytes`.
    pub within_lag: u64,
}

/// Up to which operation the application may be told that its data is safe.
pub fn acknowledged(rule: AckRule, marks: &Marks, now: u64) -> u64 {
    let heard = |session: Option<u64>| session.is_some() && session == marks.session;
    let reached = match rule {
        AckRule::Nothing => 0,
        AckRule::WithPeer { session, received } if heard(session) => {
            marks.durable.min(if received { marks.peer_received } else { marks.peer_durable })
        }
        AckRule::WithPeer { .. } => 0,
        // The lag is counted from what the peer last said; a connection that is gone does not change what it holds.
        AckRule::WithinLag { entitled_until, .. } if now < entitled_until => marks.durable.min(marks.within_lag),
        AckRule::WithinLag { .. } => 0,
        AckRule::Alone { entitled_until } if entitled_until.is_none_or(|until| now < until) => marks.durable,
        AckRule::Alone { .. } => 0,
    };
    reached.max(marks.acknowledged)
}

/// Whether the operations up to `seq` may be acknowledged now.
pub fn may_ack(rule: AckRule, seq: u64, marks: &Marks, now: u64) -> bool {
    seq <= acknowledged(rule, marks, now)
}
