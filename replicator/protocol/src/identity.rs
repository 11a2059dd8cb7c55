//! What a member knows about itself after a restart: its identity, kept on its volume and written durably *before* it is
//! relied upon. Data only; the rules are in `member`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Position;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberName {
    /// `<pair>-a`.
    A,
    /// `<pair>-b`.
    B,
}

impl MemberName {
    /// The other one.
    pub fn peer(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The letter used in names of objects, hosts and certificates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is neither `a` nor `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a member is called a or b")]
pub struct NotAMember;

impl FromStr for MemberName {
    type Err = NotAMember;
    fn from_str(text: &str) -> Result<Self, NotAMember> {
        match text {
            "a" => Ok(Self::A),
            "b" => Ok(Self::B),
            _ => Err(NotAMember),
        }
    }
}

/// Text that is not a number of up to 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected up to 32 hexadecimal digits")]
pub struct NotHexadecimal;

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = NotHexadecimal;
            fn from_str(text: &str) -> Result<Self, NotHexadecimal> {
                // `from_str_radix` alone would take a sign.
                if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(NotHexadecimal);
                }
                u128::from_str_radix(text, 16).map(Self).map_err(|_| NotHexadecimal)
            }
        }

        // As text for humans and for JSON, whose numbers end at 53 bits; as a number in binary formats.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    u128::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

random_id! {
    /// Minted once at the founding of a pair; in the record and on both volumes. A clone of the volumes elsewhere meets
    /// another id and knows that it is foreign.
    PairId
}
random_id! {
    /// Random per claim: equal epoch numbers of two histories are told apart by it.
    Nonce
}
random_id! {
    /// Random per set of data: a volume that was emptied and filled again is another one.
    DataUuid
}

/// Which copy of the data: the volume it lies on and the random number that was written on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DataId {
    /// Unique id of the volume (of the claim). A snapshot restored into a new claim has another one.
    pub volume: String,
    /// Minted when the copy began its life.
    pub uuid: DataUuid,
}

/// One reign: the epoch's number and the nonce of the claim that began it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// Counted up by one at every claim.
    pub epoch: u64,
    /// Of that claim.
    pub nonce: Nonce,
}

/// Where in the history a generation began. In one generation only one member issues operations, and it never issues two
/// at one number; so two journals that share a span agree as far as both reach in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    /// Who issued these operations.
    pub generation: Generation,
    /// The last position before its first operation.
    pub after: Position,
}

/// How many spans are remembered. A peer that is further behind than so many reigns is compared instead of resumed.
pub const SPANS_MAX: usize = 32;

/// The newest record ever seen, to notice an API server that was restored from a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seen {
    /// Of the record.
    pub epoch: u64,
    /// Of the record.
    pub nonce: Nonce,
    /// Of the record.
    pub wseq: u64,
}

/// The mount of this pod served its application, in this epoch first. The application must not see a later reign of this
/// member through the same mount when the peer ruled in between: it would go on with a memory of files that have changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Served {
    /// Unique id of the pod.
    pub pod: String,
    /// In which it served first. Every reign from here on was this pod's: it serves none after one of the peer's.
    pub since: u64,
}

/// Why a member touches nothing until a human decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Quarantine {
    /// The volume holds files that this pair did not write.
    ForeignData,
    /// The volume belongs to another pair.
    OtherPair,
    /// The volume belongs to the other member of this pair.
    OtherMember,
    /// The journal has a hole or a false checksum before its durable end.
    JournalCorrupt,
    /// The volume is older than what this member promised or reported: restored from a snapshot in place.
    VolumeRolledBack,
    /// The record is older than one this member has seen: the API server was restored from a backup.
    RecordRolledBack,
    /// One epoch, two nonces: two histories of this pair exist.
    TwoHistories,
    /// A diverged tail cannot be saved aside for lack of room.
    NeedsSpace,
}

/// The durable member state `D` of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The pair this volume belongs to.
    pub pair: PairId,
    /// Which of the two.
    pub member: MemberName,
    /// Which copy of the data.
    pub data_id: DataId,
    /// Counted up at each start of the replicator.
    pub boot: u64,
    /// The kernel's boot id at the last start: if it changed, un-fsynced data may be gone.
    pub node_boot: String,
    /// The highest generation accepted. Nothing older is ever accepted again.
    pub promised: Generation,
    /// The highest epoch that this member tried to claim, unless it is certain that it never will have it.
    pub intent: u64,
    /// The last epoch this member led.
    pub led: u64,
    /// Opened for writing since it last followed somebody: the volume holds everything in the journal, committed or not.
    pub leading: bool,
    /// Closed in order since it was last opened for writing: the volume holds nothing that the journal lost.
    pub clean: bool,
    /// Acknowledgements were given for data in memory only.
    pub volatile_acks: bool,
    /// Data that was acknowledged in memory only may be lost: not to be promoted until the master says it has all again.
    pub dirty: bool,
    /// A netcopy has begun and has not been completed: never served, never promoted.
    pub inconsistent: bool,
    /// The volume may hold writes that its journal lost in a power failure: to be compared before two copies are called equal.
    pub unverified: bool,
    /// A human decides.
    pub quarantine: Option<Quarantine>,
    /// The newest record ever seen.
    pub seen: Seen,
    /// The reigns this journal knows, oldest first, at most [`SPANS_MAX`].
    pub history: Vec<Span>,
    /// What this pod's application has seen.
    pub served: Option<Served>,
    /// The record was gone, and this was promised for a new one: nothing is served or accepted until it is there.
    pub testified: Option<Generation>,
    /// The volume is a new one, or another one than before, and no copy from a master has begun on it: what the former one
    /// held it cannot testify.
    pub unwitnessed: bool,
}

impl Identity {
    /// The highest epoch that this member ever heard of, promised, or may have claimed.
    pub fn highest_epoch(&self) -> u64 {
        self.promised.epoch.max(self.intent).max(self.seen.epoch)
    }

    /// The volume shows everything in the journal, committed or not: this member leads or led, and followed nobody since; or
    /// its claim was successful, and it began to show everything before it could open.
    pub fn shows_everything(&self) -> bool {
        self.leading || (self.led > 0 && self.led == self.promised.epoch)
    }
}
