//! Requests that a predecessor performed and perhaps did not answer. The kernel sends what was not answered again; the
//! journal names the request of every operation, so what was done already is recognised and not done twice.

use std::collections::HashMap;

use crate::journal::{Journal, records_after};
use crate::op::{FileId, Op, UNDONE};

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
    /// Reads the end of the journal, back to where this connection began. `since`: the first epoch in which this pod served;
    /// every reign after it was this pod's too.
    pub(crate) fn read(journal: &Journal, since: u64) -> Self {
        let end = journal.end().seq;
        let mut from = end.saturating_sub(RECORDS - 1).max(journal.first()).max(1);
        let mut answered = Answered::default();
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
                if let Ok(op) = record.op()
                    && record.position.epoch >= since
                {
                    answered.take(record.stamp.unique, &op);
                }
            }
            from = batch.last.seq + 1;
        }
        answered
    }

    /// Numbers of requests mean something within one connection only, and a pod that was mounted anew has another one.
    fn take(&mut self, unique: u64, op: &Op<'_>) {
        if let Op::Begin { .. } = op {
            if unique != RESUMED {
                self.requests.clear();
            }
        } else if unique & UNDONE != 0 {
            self.requests.remove(&(unique & !UNDONE));
        } else if unique != 0 {
            let (file, kind) = parts(op);
            let done = self.requests.entry(unique).or_default();
            done.file.get_or_insert(file);
            done.kinds |= 1 << kind;
        }
    }

    /// What is in the journal of a request, if anything is.
    pub(crate) fn of(&self, unique: u64) -> Option<Done> {
        self.requests.get(&unique).copied()
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
    use crate::journal::Options;
    use crate::op::Stamp;

    const WRITE: Op<'_> = Op::Write { id: FileId(7), offset: 0, data: b"x" };
    const MODE: Op<'_> = Op::SetMode { id: FileId(7), mode: 0 };
    const BEGIN: Op<'_> = Op::Begin { member: "a" };

    /// What is found in a journal of these operations, each with its epoch and the number of its request.
    fn read(records: &[(u64, u64, Op<'_>)], since: u64) -> HashMap<u64, Done> {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { segment_bytes: 64 << 10, pair: [7; 16] };
        let (journal, _) = Journal::open(folder.path(), options).unwrap();
        for (epoch, unique, op) in records {
            journal.append(*epoch, Stamp { time: 0, unique: *unique }, op).unwrap();
        }
        Answered::read(&journal, since).requests
    }

    #[test]
    fn a_request_that_was_half_performed_is_known_by_its_half() {
        let requests = read(&[(1, 0, BEGIN), (1, 4, MODE)], 1);
        assert!(requests[&4].has(&MODE));
        assert!(!requests[&4].has(&WRITE), "the data did not get into the journal");
    }

    #[test]
    fn numbers_of_another_connection_mean_nothing() {
        // Mounted anew in one pod, and taken over.
        assert!(read(&[(1, 0, BEGIN), (1, 4, WRITE), (2, 0, BEGIN)], 1).is_empty());
        assert!(read(&[(1, 0, BEGIN), (1, 4, WRITE), (2, RESUMED, BEGIN)], 1).contains_key(&4));
        // Of the pod before, although the first process of this one left no operation.
        assert!(read(&[(1, 0, BEGIN), (1, 4, WRITE), (3, RESUMED, BEGIN)], 2).is_empty());
    }

    /// A write that was taken for done because a request of the other member's connection had the same number was never
    /// performed: a hole in the application's file.
    #[test]
    fn a_reign_whose_beginning_is_forgotten_is_this_connections_if_this_pod_served_then() {
        assert!(read(&[(5, 4, WRITE)], 6).is_empty());
        assert!(read(&[(5, 4, WRITE), (6, 0, BEGIN)], 6).is_empty());
        assert!(read(&[(5, 4, WRITE)], 5).contains_key(&4));
        assert!(read(&[(5, 4, WRITE), (6, RESUMED, BEGIN), (6, 6, WRITE)], 5).contains_key(&4));
    }

    #[test]
    fn what_was_made_undone_was_not_done() {
        assert!(read(&[(1, 0, BEGIN), (1, 4, WRITE), (1, 4 | UNDONE, WRITE)], 1).is_empty());
    }
}
