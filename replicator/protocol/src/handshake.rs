//! Two members meet. Each sends one hello; from the two follows who may speak to whom, and what the one that follows must
//! do first: resume, cut an unapplied tail and resume, rewind an applied tail, or take a copy.

use serde::{Deserialize, Serialize};

use crate::Position;
use crate::identity::{DataId, Generation, MemberName, PairId, Span};

/// Version of the control messages and of the replication frames.
pub const PROTOCOL: u16 = 1;

/// What a member says first on every connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// Identity of the pair.
    pub pair: PairId,
    /// Who speaks.
    pub member: MemberName,
    /// Which copy of the data.
    pub data_id: DataId,
    /// In which life.
    pub boot: u64,
    /// The highest generation accepted.
    pub promised: Generation,
    /// The generation this member leads, if it does.
    pub leads: Option<Generation>,
    /// Where its journal begins: the first number it still holds.
    pub first: u64,
    /// Where its journal ends.
    pub end: Position,
    /// The reigns in its journal.
    pub history: Vec<Span>,
    /// A copy that was never completed.
    pub inconsistent: bool,
    /// The volume may hold what the journal lost.
    pub unverified: bool,
}

/// Why a peer is not spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Another version of the protocol.
    #[error("the peer speaks another version of the protocol")]
    Protocol,
    /// The peer belongs to another pair.
    #[error("the peer belongs to another pair")]
    OtherPair,
    /// Both claim to be the same member.
    #[error("the peer claims to be this very member")]
    SameMember,
    /// The peer leads a generation older than one that was promised.
    #[error("the peer leads an epoch that is over")]
    OldEpoch,
    /// One epoch, two nonces.
    #[error("one epoch, two histories: the record was rolled back or cloned")]
    TwoHistories,
    /// Asked for something that only the master does.
    #[error("this member does not lead that generation")]
    NotMaster,
}

/// What the peer is to the one that reads its hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Meeting {
    /// It leads, and nothing newer was promised: follow it.
    Follow(Generation),
    /// It knows of a newer generation than the one led here: whoever led is deposed.
    Deposed,
    /// It may follow; it will ask.
    Await,
    /// Not spoken to.
    Refuse(Refusal),
}

/// Who the peer is to us.
pub fn meet(mine: &Hello, theirs: &Hello) -> Meeting {
    if theirs.protocol != mine.protocol {
        return Meeting::Refuse(Refusal::Protocol);
    }
    if theirs.pair != mine.pair {
        return Meeting::Refuse(Refusal::OtherPair);
    }
    if theirs.member == mine.member {
        return Meeting::Refuse(Refusal::SameMember);
    }
    if theirs.promised.epoch == mine.promised.epoch && theirs.promised.nonce != mine.promised.nonce {
        return Meeting::Refuse(Refusal::TwoHistories);
    }
    if let Some(led) = mine.leads
        && theirs.promised.epoch > led.epoch
    {
        return Meeting::Deposed;
    }
    match theirs.leads {
        None => Meeting::Await,
        Some(led) => match follows(mine.promised, led) {
            Ok(()) if mine.leads.is_some() => Meeting::Await,
            Ok(()) => Meeting::Follow(led),
            Err(refusal) => Meeting::Refuse(refusal),
        },
    }
}

/// Whether somebody who promised `promised` may accept operations of `led`.
pub fn follows(promised: Generation, led: Generation) -> Result<(), Refusal> {
    if led.epoch < promised.epoch {
        Err(Refusal::OldEpoch)
    } else if led.epoch == promised.epoch && led.nonce != promised.nonce {
        Err(Refusal::TwoHistories)
    } else {
        Ok(())
    }
}

/// What the one that follows does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plan {
    /// Its journal is a prefix of the master's: go on from its end.
    Resume {
        /// Its end.
        from: Position,
    },
    /// It has operations that the master has not, and never applied them: save them aside, cut, go on from there.
    CutThenResume {
        /// The last common position.
        after: Position,
    },
    /// It has operations that the master has not and its volume shows them: save them aside, then compare and fetch.
    Rewind {
        /// The last common position.
        after: Position,
    },
    /// No common history that the master still holds, or a copy that was never completed: compare and fetch everything.
    Netcopy,
}

/// What `mine` must do to follow `theirs`; `applied` is the highest operation that may show on the own volume.
pub fn plan(mine: &Hello, theirs: &Hello, applied: u64) -> Plan {
    // What an unfinished copy replaces was saved when it began.
    if mine.inconsistent {
        return Plan::Netcopy;
    }
    let Some(common) = common(&mine.history, mine.end, &theirs.history, theirs.end) else {
        return if mine.end.seq > 0 { Plan::Rewind { after: Position::default() } } else { Plan::Netcopy };
    };
    let tail = mine.end.seq > common.seq;
    let forgotten = theirs.first > common.seq.saturating_add(1);
    let doubtful = mine.unverified || theirs.unverified;
    if tail && (applied > common.seq || forgotten || doubtful) {
        return Plan::Rewind { after: common };
    }
    if forgotten || doubtful {
        return Plan::Netcopy;
    }
    if tail { Plan::CutThenResume { after: common } } else { Plan::Resume { from: mine.end } }
}

/// The last position that two journals have in common, as far as their spans tell.
///
/// The newest span that both know decides: within it both hold a prefix of one sequence, so they agree up to the shorter.
/// The chain hash of that position is known from the shorter one; the longer one checks it before it cuts or sends.
pub fn common(a: &[Span], a_end: Position, b: &[Span], b_end: Position) -> Option<Position> {
    for (index, span) in a.iter().enumerate().rev() {
        if span.after.seq > a_end.seq || span.after.seq > b_end.seq {
            continue;
        }
        let Some(other) = b.iter().rposition(|candidate| candidate == span) else { continue };
        let a_last = last_of(a, index, a_end);
        let b_last = last_of(b, other, b_end);
        return Some(match a_last.seq.cmp(&b_last.seq) {
            std::cmp::Ordering::Less => a_last,
            std::cmp::Ordering::Greater => b_last,
            std::cmp::Ordering::Equal if a_last == b_last => a_last,
            // One generation, two contents: a volume was rolled back and went on. Only what came before is common.
            std::cmp::Ordering::Equal => span.after,
        });
    }
    None
}

/// Where span `index` ends in a journal that ends at `end`.
fn last_of(history: &[Span], index: usize, end: Position) -> Position {
    match history.get(index + 1) {
        Some(next) if next.after.seq <= end.seq => next.after,
        Some(_) | None => end,
    }
}
