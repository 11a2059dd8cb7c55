//! What a member may be told.

use serde::{Deserialize, Serialize};

use super::Settings;
use crate::handshake::{Hello, Refusal};
use crate::identity::{Generation, Identity};
use crate::record::{Record, Request, Version};
use crate::{AckRule, Position};

/// The present, as an argument: the machine reads no clock and throws no dice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Now {
    /// Monotonic, from any beginning, never back within one process. Of the same clock as the data path's checks.
    pub millis: u64,
    /// Fresh from the system's random source at each call.
    pub random: u128,
}

/// What is known about the own journal and volume at an instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct JournalFacts {
    /// The first number the journal still holds (its end + 1 when it holds none).
    pub first: u64,
    /// Where it ends.
    pub end: Position,
    /// The highest operation that may show on the volume.
    pub applied: u64,
}

/// What a start finds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// The identity on the volume, if it has one.
    pub identity: Option<Identity>,
    /// Unique id of the volume.
    pub volume: String,
    /// The volume holds files of whatever origin.
    pub has_files: bool,
    /// The journal after its verification.
    pub journal: JournalFacts,
    /// The journal has a hole or a false checksum before its durable end.
    pub corrupt: bool,
    /// The kernel's boot id.
    pub node_boot: String,
    /// Unique id of the pod.
    pub pod: String,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Evidence {
    /// The peer's host answers and refuses: its process is gone.
    Refused,
    /// The peer's host reset the connection: its process is gone.
    Reset,
    /// The API says that the peer's container has terminated.
    Terminated,
    /// Silence: nothing is known.
    Timeout,
}

impl Evidence {
    /// The peer's process is positively gone.
    pub fn process_gone(self) -> bool {
        match self {
            Self::Refused | Self::Reset | Self::Terminated => true,
            Self::Timeout => false,
        }
    }
}

/// What the members say to each other beside the stream of operations.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Control {
    /// First on every connection.
    Hello(Box<Hello>),
    /// I am there. `sent` is the sender's clock; `echo` the newest `sent` of the other, and with it the promise not to
    /// claim for a while (Async).
    Heartbeat {
        /// The reign the sender leads or follows.
        generation: Generation,
        /// When this was sent, by the sender's own clock.
        sent: u64,
        /// The newest `sent` that came from the other side.
        echo: Option<u64>,
        /// Where the sender's journal ends durably.
        position: Position,
    },
    /// Replicant: send me the operations after this position.
    Follow {
        /// The reign that is followed.
        generation: Generation,
        /// The end of the replicant's journal.
        from: Position,
    },
    /// Replicant: copy your volume to me.
    CopyMe {
        /// The reign that is followed.
        generation: Generation,
    },
    /// Master: the journal no longer holds that, or holds something else: ask for a copy.
    CopyNeeded,
    /// Master: the record certifies you. Everything acknowledged so far is in your journal.
    Certified {
        /// In this reign.
        generation: Generation,
    },
    /// Replicant: cannot take more (disk full, checksum): go on without me.
    CannotFollow,
    /// Nominee: hand over to me.
    Nominate {
        /// The switchover that was asked for.
        request: Request,
    },
    /// Master: not now.
    Declined {
        /// Which one.
        request: Request,
    },
    /// Master: released; the record has no master now.
    Released {
        /// The reign that ended.
        generation: Generation,
    },
    /// Not spoken to, and why.
    Refused(Refusal),
    /// Replicant: this process ends in order: go on without me until I am back.
    Leaving,
}

/// What a human or the operator asks of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Claim nothing and move nothing by yourself until told otherwise.
    Hold(bool),
    /// Give up what this volume holds: move it aside and begin anew as replicant.
    Discard,
    /// Replicant: compare everything with the master again.
    Resync,
}

/// What a member may be told. Answers to effects are marked with the effect they answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// First, once per process.
    Started(Box<Facts>),
    /// Settings were read or have changed.
    SettingsChanged(Box<Settings>),
    /// Time passed. At least four times per `interval`.
    Tick,

    /// Answers `ReadRecord`: a quorum read.
    RecordRead {
        /// The content.
        record: Box<Record>,
        /// Its version.
        version: Version,
    },
    /// Answers `ReadRecord`: there is none.
    RecordMissing,
    /// The watch showed the record: may be old.
    RecordSeen {
        /// The content.
        record: Box<Record>,
        /// Its version.
        version: Version,
    },
    /// Answers `WriteRecord`: done, and this is the new version.
    RecordWritten {
        /// Of what was written.
        version: Version,
    },
    /// Answers `WriteRecord`: the API server refused it for its version or its rules. It will never take effect.
    RecordConflict,
    /// Answers `ReadRecord` and `WriteRecord`: no answer in time. A write may still take effect, much later.
    RecordUnknown,

    /// A connection to the authenticated peer stands.
    PeerUp {
        /// Counts connections of this process.
        session: u64,
        /// The journal as it is now.
        journal: JournalFacts,
    },
    /// The connection, or an attempt to make one (`session: None`), failed.
    PeerDown {
        /// Which.
        session: Option<u64>,
        /// How.
        evidence: Evidence,
    },
    /// The peer said something.
    PeerMessage {
        /// On which connection.
        session: u64,
        /// What.
        message: Control,
    },
    /// The peer acknowledged operations (to the master).
    PeerAck {
        /// On which connection.
        session: u64,
        /// In its memory up to here.
        received: u64,
        /// On its disk up to here.
        durable: u64,
    },

    /// The own journal is durable up to here.
    LocalDurable(Position),
    /// Answers `SetAckRule`: in force, and this is the highest operation acknowledged before.
    RuleSet {
        /// The rule that is in force now.
        rule: AckRule,
        /// As the data path knows it.
        acknowledged: u64,
    },
    /// Answers `HoldRequests`: nothing is under way any more, and this is the journal's end.
    Held {
        /// Number of the last operation.
        end: u64,
    },
    /// Answers `ApplyAll`: the volume shows the whole journal.
    AppliedAll {
        /// The journal's end.
        end: Position,
    },
    /// Answers `StartShipping`: the journal does not hold that position, or holds another content there.
    ShippingImpossible {
        /// On which connection.
        session: u64,
    },
    /// Answers `CutJournal`, in place of silence: the journal holds another content there. Nothing was cut.
    CutImpossible,
    /// Answers `SaveTail`, in place of silence: no room. Nothing was saved; the rest of the batch was not carried out.
    NoRoomAside,
    /// Answers `StartNetcopyAsTarget`: complete, digests agree, redone past the last position read, and durable.
    NetcopyDone {
        /// Where the journal goes on.
        end: Position,
    },
    /// Answers `StartNetcopyAsTarget`: broke off.
    NetcopyFailed,

    /// The operator nominates this member.
    Nominated {
        /// The switchover.
        request: Request,
        /// The epoch the operator saw: a nomination for an epoch that is over is void.
        epoch_seen: u64,
    },
    /// The operator asks for a testimony, because it finds no record: to promise this generation, and to say where the
    /// journal ends. Void unless the record is found to be gone here too.
    Testify(Generation),
    /// Answers `Testify`: nothing is appended any more that will ever be acknowledged, and this is durable.
    Testified(JournalFacts),
    /// An order.
    Order(Order),
    /// SIGTERM: the application has ended.
    Terminate,
    /// A durable step failed. It is never tried again in this process.
    DiskFailed,
}
