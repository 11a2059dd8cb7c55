//! Reads, watches and writes the pair's record; the only room that can. Every write is a compare-and-swap, sent once: a retry
//! that the caller does not know of could undo what was decided in between. What a failed write means is the member's to
//! judge, so the answers tell apart "did not happen" and "nobody knows".

use futures::future::BoxFuture;
use tandem_protocol::Record;
use tokio::sync::watch;

pub mod file;
pub mod kubernetes;

/// The record as it was read, with what a compare-and-swap needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The record.
    pub record: Record,
    /// Version of the object; never interpreted.
    pub version: String,
}

/// How a request about the record failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Somebody else wrote first, or the rules refused it: it did not happen.
    #[error("the write did not happen: {0}")]
    Conflict(String),
    /// It may have happened, or may still happen.
    #[error("nobody knows whether the write happened: {0}")]
    Unknown(String),
    /// It could not be read.
    #[error("the record cannot be read: {0}")]
    Unreadable(String),
    /// There is no such object.
    #[error("there is no record")]
    Absent,
}

/// Keeps the record of one pair.
pub trait RecordKeeper: Send + Sync + 'static {
    /// The newest record, by a quorum.
    fn read(&self) -> BoxFuture<'static, Result<Kept, RecordError>>;

    /// Replaces the record if it is still at `version`.
    fn write(&self, version: String, record: Record) -> BoxFuture<'static, Result<Kept, RecordError>>;

    /// Changes as they are noticed: late, or never. Nothing that must happen in time depends on it.
    fn watch(&self) -> watch::Receiver<Option<Kept>>;
}
