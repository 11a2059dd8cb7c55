//! Netcopy: a whole volume from the master to the replicant, while the master serves.
//!
//! ```text
//! source                                       target
//! Begin, list of files at position S     ->    marks itself inconsistent, saves aside what only it has
//! links and devices, Arrange             ->    gives every name its file: its own of the same id, or a new empty one
//!                                        <-    Holding: which files it has content of
//! Compare: some of these                 ->
//!                                        <-    Digests of their chunks
//! per file: attributes, chunks that differ, Finish with size and digest
//! End: counts, digest, last position read ->   checks all of it, flushes, begins its journal at S
//!                                        <-    Complete
//! ```
//!
//! The files are read while they are written to, so the target holds a mixture of states since S. The journal, replayed
//! from S, makes it one state again, at the latest at the last position read; the target is inconsistent until then.
//! Interrupted at any point it begins again, and finds by digests what it has already.
//!
//! Here are the messages; `send` and `receive` are the two sides, without any network: they take messages and
//! give messages. A peer is believed nothing: every length is bounded before memory is taken.

pub mod differences;
pub mod receive;
pub mod send;
pub mod walk;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::receive::{Copied, Target};
pub use self::send::Source;

use crate::op::FileId;
use tandem_protocol::Position;

/// Version of the messages.
pub const VERSION: u32 = 1;
/// No message is larger; none is parsed before its size is known to be within.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// About how much content goes into one message.
pub const BATCH_BYTES: usize = 256 << 10;
/// A list of files is not longer.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// Bytes that are written in one piece, not one by one.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Vec<u8>);

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// What a link or device is made from; it cannot be changed later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Special {
    /// Target of a symbolic link.
    Symlink(Blob),
    /// Number of a device.
    Device(u64),
}

/// Everything about a file but its names and content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looks {
    /// The file.
    pub id: FileId,
    /// Permission bits with setuid, setgid, sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes.
    pub xattrs: Vec<(Blob, Blob)>,
}

/// A range of chunks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The file.
    pub id: FileId,
    /// First chunk.
    pub first: u64,
    /// How many.
    pub count: u32,
}

/// The steps of a netcopy, in messages of as many as fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// A copy begins.
    Begin {
        /// `VERSION` of the source.
        version: u32,
        /// Where the list of files stands, and where the journal goes on.
        position: Position,
        /// Length of the list.
        manifest_bytes: u64,
    },
    /// A piece of the list.
    Manifest(Blob),
    /// Links and devices of the list.
    Specials(Vec<(FileId, Special)>),
    /// The list is complete: give every name its file.
    Arrange,
    /// Send the digests of these.
    Compare(Vec<Ask>),
    /// The file is not there any more; the journal takes its names away.
    Gone(FileId),
    /// Attributes; the content of a regular file follows.
    Looks(Looks),
    /// Content of the last file named, where it differs.
    Data {
        /// Where.
        offset: u64,
        /// What.
        data: Blob,
    },
    /// No content there.
    Hole {
        /// From.
        offset: u64,
        /// So many bytes.
        length: u64,
    },
    /// The last regular file is complete.
    Finish {
        /// Its size.
        size: u64,
        /// Digest over the digests of all of its chunks.
        digest: [u8; 32],
    },
    /// Everything was sent.
    End {
        /// Files whose attributes were sent, and such as were gone.
        files: u64,
        /// Digest over the digests of all files in their order.
        digest: [u8; 32],
        /// The copy is one state when the journal has been replayed up to here.
        through: u64,
    },
}

/// What the target answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Of the list's regular files, sorted by id, one bit for each that the target has content of; in pieces.
    Holding {
        /// Bits, lowest first.
        bits: Blob,
        /// No more pieces follow.
        last: bool,
    },
    /// Digests of the chunks of a file that was asked for, in the order of asking; in pieces.
    Digests {
        /// The file.
        id: FileId,
        /// Sixteen bytes for each chunk; fewer than asked for when the file is shorter.
        digests: Blob,
        /// No more pieces follow for this question.
        last: bool,
    },
    /// All is there, checked and durable.
    Complete,
}

/// What ends a copy before its time.
#[derive(Debug, thiserror::Error)]
pub enum NetcopyError {
    /// The other side broke the rules.
    #[error("the peer sent what cannot be: {0}")]
    Peer(&'static str),
    /// A message that cannot be read.
    #[error("read a message: {0}")]
    Message(#[from] postcard::Error),
    /// The list of files cannot be used.
    #[error("list of files: {0}")]
    Manifest(#[from] crate::manifest::ManifestError),
    /// Files could not be brought to their names.
    #[error("arrange the files: {0}")]
    Arrange(#[from] crate::redo::RedoError),
    /// A call on the volume failed.
    #[error("{doing}: {reason}")]
    Volume {
        /// What was being attempted.
        doing: &'static str,
        /// How it failed.
        reason: rustix::io::Errno,
    },
    /// Something durable failed.
    #[error("{doing}: {reason}")]
    Io {
        /// What was being attempted.
        doing: &'static str,
        /// How it failed.
        reason: std::io::Error,
    },
    /// What arrived is not what was sent.
    #[error("file {} arrived with another digest than it was sent with", .0.0)]
    Digest(FileId),
    /// Something is missing at the end.
    #[error("the copy ended with {found} of {expected} files")]
    Count {
        /// What the list says.
        expected: u64,
        /// What came.
        found: u64,
    },
}

pub(crate) fn on(doing: &'static str) -> impl Fn(rustix::io::Errno) -> NetcopyError {
    move |reason| NetcopyError::Volume { doing, reason }
}

/// What a side does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<M> {
    /// Send this.
    Send(M),
    /// Nothing until a message comes.
    Wait,
    /// Nothing until this time has passed.
    Pause(std::time::Duration),
    /// All is done.
    Finished,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files that are done.
    pub files_done: u64,
    /// All files.
    pub files: u64,
    /// Content that was read or compared, in bytes.
    pub bytes_done: u64,
    /// About how much content there is, in bytes.
    pub bytes: u64,
    /// Content that went over the wire, in bytes.
    pub bytes_sent: u64,
}

/// Bytes of a message.
pub fn to_bytes<M: Serialize>(message: &M) -> Result<Vec<u8>, NetcopyError> {
    // Asked first: what grows while it is written is moved each time.
    let length = postcard::serialize_with_flavor(message, postcard::ser_flavors::Size::default())?;
    Ok(postcard::to_extend(message, Vec::with_capacity(length))?)
}

/// A message from bytes.
pub fn from_bytes<M: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<M, NetcopyError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(NetcopyError::Peer("a message beyond all measure"));
    }
    Ok(postcard::from_bytes(bytes)?)
}

#[cfg(test)]
mod tests;
