//! Requests that a predecessor performed and perhaps did not answer. The kernel sends what was not answered again; the
//! journal names the request of every operation, so what was done already is recognised and not done twice.

use std::collections::HashMap;

use crate::journal::{Journal, records_after};
use crate::op::{FileId, Op};

/// Set in the request's number on operations that make a failed one undone: the request was answered with an error, or is
/// to be tried anew.
pub(crate) const UNDONE: u64 = 1 << 62;
/// The request's number on the first operation of a reign that goes on with the connection of the reign before.
pub(crate) const RESUMED: u64 = 1;

/// What of a request is in the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// The file concerned.
    file: Option<FileId>,
    kinds: u32,
}

impl Done {
    /// The file that the request concerned, or made.
    pub(crate) fn file(self) -> Option<FileId> {
        self.file
    }

    /// Whether an operation of this kind was performed for the request. No request needs two of a kind.
    pub(crate) fn has(self, op: &Op<'_>) -> bool {
        self.kinds & (1 << parts(op).1) != 0
    }
}

/// Requests that are in the journal already.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    requests: HashMap<u64, Done>,
}

/// How far back to look. A predecessor had few requests under way; but a synchronous write waits while others go on.
const RECORDS: u64 = 1 << 16;

impl Answered {
    /// Reads the end of the journal, back to where this connection began: the last reign of `member` that was not resumed.
    /// `served`: the epoch in which the connection was served last. `None`: the last reign was the other member's, so none
    /// of what is in the journal came over this connection.
    pub(crate) fn read(journal: &Journal, member: &str, served: u64) -> Option<Self> {
        let end = journal.end().seq;
        let mut from = end.saturating_sub(RECORDS - 1).max(journal.first()).max(1);
        let mut reader = Reader::default();
        while from <= end {
            let mut bytes = Vec::new();
            let batch = match journal.read(from, 1 << 20, &mut bytes) {
                Ok(batch) if batch.count > 0 => batch,
                Ok(_) => break,
                Err(error) => {
                    // Then a request may be performed twice, which differs from once only for a few of them.
                    tracing::warn!(%error, "the requests of a predecessor cannot be read");
                    break;
                }
            };
            for record in records_after(batch.before, &bytes) {
                let Ok(record) = record else { break };
                if let Ok(op) = record.op() {
                    reader.take(member, record.stamp.unique, &op);
                }
            }
            from = batch.last.seq + 1;
        }
        reader.end(journal.end().epoch, served)
    }

    /// What is in the journal of a request, if anything is.
    pub(crate) fn of(&self, unique: u64) -> Option<Done> {
        self.requests.get(&unique).copied()
    }
}

#[derive(Default)]
struct Reader {
    requests: HashMap<u64, Done>,
    /// Whether the reign being read is this member's, which its first operation says; `None`: that one is not in the journal
    /// any more. Numbers of requests mean something within one connection only.
    is_own: Option<bool>,
}

impl Reader {
    fn take(&mut self, member: &str, unique: u64, op: &Op<'_>) {
        if let Op::Begin { member: who } = op {
            let is_own = *who == member;
            // A resumed reign says that the one before was of the same connection.
            if !is_own || unique != RESUMED || self.is_own == Some(false) {
                self.requests.clear();
            }
            self.is_own = Some(is_own);
        } else if unique & UNDONE != 0 {
            self.requests.remove(&(unique & !UNDONE));
        } else if unique != 0 {
            let (file, kind) = parts(op);
            let done = self.requests.entry(unique).or_default();
            done.file.get_or_insert(file);
            done.kinds |= 1 << kind;
        }
    }
}

impl Reader {
    /// What was found, if the last reign, of the epoch `last`, was this connection's.
    fn end(self, last: u64, served: u64) -> Option<Answered> {
        self.is_own.unwrap_or(last == served).then_some(Answered { requests: self.requests })
    }
}

/// The file an operation concerns, and a number for its kind.
fn parts(op: &Op<'_>) -> (FileId, u32) {
    match op {
        Op::Create { id, .. } => (*id, 0),
        Op::CreateUnnamed { id, .. } => (*id, 1),
        Op::Link { id, .. } => (*id, 2),
        Op::Unlink { id, .. } => (*id, 3),
        Op::Rename { id, .. } => (*id, 4),
        Op::Exchange { id, .. } => (*id, 5),
        Op::Drop { id } => (*id, 6),
        Op::Write { id, .. } => (*id, 7),
        Op::Truncate { id, .. } => (*id, 8),
        Op::Allocate { id, .. } => (*id, 9),
        Op::Punch { id, .. } => (*id, 10),
        Op::Zero { id, .. } => (*id, 11),
        Op::SetMode { id, .. } => (*id, 12),
        Op::SetOwner { id, .. } => (*id, 13),
        Op::SetTimes { id, .. } => (*id, 14),
        // The two rules that a new file may inherit are of different kinds.
        Op::SetXattr { id, name: b"system.posix_acl_default", .. } => (*id, 15),
        Op::SetXattr { id, .. } => (*id, 16),
        Op::RemoveXattr { id, .. } => (*id, 17),
        Op::Begin { .. } => (crate::op::ROOT, 18),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As if the last of these were of epoch 5, in which this connection was served.
    fn read(records: &[(u64, Op<'_>)]) -> Option<HashMap<u64, Done>> {
        let mut reader = Reader::default();
        for (unique, op) in records {
            reader.take("a", *unique, op);
        }
        reader.end(5, 5).map(|answered| answered.requests)
    }

    const WRITE: Op<'_> = Op::Write { id: FileId(7), offset: 0, data: b"x" };
    const MODE: Op<'_> = Op::SetMode { id: FileId(7), mode: 0 };
    const BEGIN: Op<'_> = Op::Begin { member: "a" };

    #[test]
    fn a_request_that_was_half_performed_is_known_by_its_half() {
        let requests = read(&[(0, BEGIN), (4, MODE)]).unwrap();
        assert!(requests[&4].has(&MODE));
        assert!(!requests[&4].has(&WRITE), "the data did not get into the journal");
    }

    #[test]
    fn numbers_of_another_connection_mean_nothing() {
        assert!(read(&[(0, BEGIN), (4, WRITE), (0, BEGIN)]).unwrap().is_empty());
        assert!(read(&[(0, BEGIN), (4, WRITE), (RESUMED, BEGIN)]).unwrap().contains_key(&4));
        assert_eq!(read(&[(0, BEGIN), (4, WRITE), (RESUMED, Op::Begin { member: "b" }), (4, MODE)]), None);
        let both = [(0, BEGIN), (4, WRITE), (0, Op::Begin { member: "b" }), (6, WRITE), (RESUMED, BEGIN)];
        assert!(read(&both).unwrap().is_empty());
    }

    /// A write that was taken for done because a request of the other member's connection had the same number was never
    /// performed: a hole in the application's file.
    #[test]
    fn a_reign_whose_beginning_is_forgotten_is_this_connections_only_if_it_served_then() {
        let forgotten = |last, served| {
            let mut reader = Reader::default();
            reader.take("a", 4, &WRITE);
            reader.end(last, served).is_some()
        };
        assert!(forgotten(5, 5) && !forgotten(6, 5));
        // What went on with a connection that nobody had served before began it.
        let requests = read(&[(4, WRITE), (0, BEGIN), (6, WRITE)]).unwrap();
        assert!(!requests.contains_key(&4) && requests.contains_key(&6));
        assert!(read(&[(4, WRITE), (RESUMED, BEGIN), (6, WRITE)]).unwrap().contains_key(&4));
    }

    #[test]
    fn what_was_made_undone_was_not_done() {
        assert!(read(&[(0, BEGIN), (4, WRITE), (4 | UNDONE, WRITE)]).unwrap().is_empty());
    }
}
