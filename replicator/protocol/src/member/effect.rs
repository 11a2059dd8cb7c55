//! What a member wants done.
//!
//! Effects are carried out in the order given, each completed before the next begins. When a durable step fails, the rest of
//! its batch is not carried out and `Event::DiskFailed` (or the answer that the effect names) follows.

use serde::{Deserialize, Serialize};

use super::event::Control;
use crate::handshake::Refusal;
use crate::identity::{Generation, Identity, Quarantine};
use crate::record::{Record, Version};
use crate::{AckRule, Position};

/// What a member wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Write the identity durably. Everything after it in the batch relies on it.
    PersistIdentity(Box<Identity>),
    /// Quorum read. Answered by `RecordRead`, `RecordMissing` or `RecordUnknown`.
    ReadRecord,
    /// Replace the record of this version. At most one API request is under way. Answered by `RecordWritten`,
    /// `RecordConflict` or `RecordUnknown`; an answer that comes after `RecordUnknown` was reported is dropped.
    WriteRecord {
        /// The version it replaces.
        expected: Version,
        /// The new content.
        record: Box<Record>,
    },
    /// The rule for every reply from now on. Answered by `RuleSet`.
    SetAckRule(AckRule),
    /// New requests wait. Answered by `Held` when those under way are in the journal.
    HoldRequests,
    /// Requests are served; the first operation of a new epoch is its `Begin`.
    OpenWrites {
        /// Of every operation from now on.
        epoch: u64,
    },
    /// Every mutation and sync is answered EIO at once, also those that waited.
    RefuseWrites,
    /// Requests that wait for an acknowledgement fail with EIO, new ones too, until `OpenWrites`.
    FailHeld,
    /// Make the own journal durable to its end.
    SyncJournal,
    /// Show the whole journal on the volume. Answered by `AppliedAll`.
    ApplyAll,
    /// Accept operations of this generation on this connection, beginning after `from`, and nothing else. The stage checks
    /// that the chain continues.
    Follow {
        /// The connection.
        session: u64,
        /// The only one accepted.
        generation: Generation,
        /// The end of the own journal.
        from: Position,
        /// Operations may be acknowledged before they are durable.
        memory_acks: bool,
    },
    /// Operations are acknowledged only when they are durable, from now on.
    EndMemoryAcks,
    /// Accept no operations any more.
    StopFollowing,
    /// Ask the peer where it durably stands, send the operations after `from`, and go on. Refused with `ShippingImpossible` if the journal does not hold exactly
    /// that position.
    StartShipping {
        /// The connection.
        session: u64,
        /// Where the peer's journal ends.
        from: Position,
    },
    /// Send no operations any more.
    StopShipping,
    /// The application may start: this member serves this epoch.
    OpenGate {
        /// Which.
        epoch: u64,
    },
    /// The application may not start.
    CloseGate,
    /// Point the Service here, by compare-and-swap, unless it points to a higher epoch.
    ClaimService {
        /// This one.
        epoch: u64,
    },
    /// Say something to the peer.
    SendPeer {
        /// On this connection; void if it is gone.
        session: u64,
        /// What.
        message: Control,
    },
    /// End this connection; another may be made at once.
    DropPeer {
        /// Which.
        session: u64,
    },
    /// Copy the volume to the peer while serving.
    StartNetcopyAsSource {
        /// The connection.
        session: u64,
    },
    /// Take a copy of the master's volume. Answered by `NetcopyDone` or `NetcopyFailed`.
    StartNetcopyAsTarget {
        /// The connection.
        session: u64,
        /// The only one accepted.
        generation: Generation,
    },
    /// End a copy that is under way, on either side.
    StopNetcopy,
    /// Save the operations after this position, and what the paths they touch hold now, aside. `NoRoomAside` if it cannot.
    SaveTail {
        /// The last position that is common with the master.
        after: Position,
    },
    /// Remove the operations after this position from the journal, provided that the journal holds exactly that position;
    /// otherwise `CutImpossible`.
    CutJournal {
        /// The last position that stays.
        after: Position,
    },
    /// Move everything on the volume aside and begin an empty journal.
    SetVolumeAside,
    /// Nothing is under way any more: make the journal durable and say where it ends. Answered by `Testified`.
    Testify,
    /// End the process.
    Exit {
        /// Why.
        why: Exit,
    },
    /// Publish what this member is now.
    Report(Box<Snapshot>),
}

/// Why a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Exit {
    /// Asked to; the record says that nobody leads.
    Released,
    /// Asked to; nothing had to be handed over, or it did not succeed in time.
    Terminated,
    /// A durable step failed. Start again later than the peer needs to take over.
    DiskFailed,
}

/// The states by name, as status, metrics and logs show them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StateName {
    /// Not started.
    #[default]
    Offline,
    /// Started; has not read the record yet.
    Starting,
    /// Claimed; shows its journal on the volume before it serves.
    PrimaryOpening,
    /// Serves; every acknowledgement is also the peer's.
    PrimaryActive,
    /// Has no peer and has not recorded it: holds.
    PrimaryUncertain,
    /// Serves alone; the record says so.
    PrimaryAlone,
    /// Requires the peer again; the record does not say so yet.
    PrimaryJoining,
    /// Hands over.
    PrimaryDraining,
    /// Follows, certified.
    SecondaryActive,
    /// Has no master.
    SecondaryAlone,
    /// Follows, not certified yet.
    SecondaryCatchUp,
    /// Takes a copy, or needs one.
    SecondaryNetcopy,
    /// Was deposed or has released.
    Fenced,
    /// A human decides.
    Quarantined,
    /// Ended.
    Stopped,
}

/// Why a member that could do more does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// A human decides.
    Quarantined(Quarantine),
    /// The peer is not spoken to.
    PeerRefused(Refusal),
    /// The record does not exist.
    RecordMissing,
    /// The API server does not answer.
    RecordUnreachable,
    /// The requests that waited for the peer have failed: two failures at once.
    HeldTooLong,
    /// Nominated, but not certified: something acknowledged could be lost.
    NominatedUncertified,
    /// Nominated, but the master declined.
    NominationDeclined,
    /// The certified copy of this member's data is gone.
    CertificateOfOtherData,
    /// May have lost what it acknowledged from memory.
    Dirty,
    /// A copy from the master was begun and not completed.
    CopyIncomplete,
    /// Needs a copy, and does not begin one before it is certain that the record will not name it as the only one to lead.
    CopyWaits,
}

/// What a member is now, for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Snapshot {
    /// By name.
    pub state: StateName,
    /// The highest generation accepted.
    pub generation: Generation,
    /// The epoch that is served to the application, once it is.
    pub serving: Option<u64>,
    /// The newest record certifies this copy.
    pub certified: bool,
    /// The peer is connected and speaks.
    pub linked: bool,
    /// The pod must be replaced before this member may lead again: its application saw an earlier reign.
    pub pod_spent: bool,
    /// What holds it back.
    pub reason: Option<Reason>,
    /// The highest epoch it ever heard of; none if it has nothing to testify.
    pub highest_epoch: Option<u64>,
    /// What it testifies while the record is gone.
    pub testimony: Option<Testimony>,
}

/// What a member swears when the record is gone: it acknowledges and accepts nothing older than `generation`, and all that
/// it ever acknowledged up to then is in its journal. Both members' testimonies make a new record
/// ([`rebuilt`](crate::record::rebuilt)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Testimony {
    /// What the new record will begin with.
    pub generation: Generation,
    /// The journal's durable end.
    pub position: Position,
    /// The copy is complete and lacks nothing that was acknowledged from memory.
    pub whole: bool,
}
