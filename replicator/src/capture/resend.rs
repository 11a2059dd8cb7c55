//! Requests that a predecessor performed and perhaps did not answer. The kernel sends what was not answered again; the
//! journal names the request of every operation, so a second performance is recognised and only answered.

use std::collections::HashMap;

use crate::journal::{Journal, records_after};
use crate::op::{FileId, Op};

/// Requests that are in the journal already, with the file each concerned.
#[derive(Debug, Default)]
pub struct Answered {
    requests: HashMap<u64, FileId>,
}

/// How far back to look. A predecessor had no more requests under way than it had threads.
const RECORDS: u64 = 4096;

impl Answered {
    /// Reads the end of the journal, back to the predecessor's first record.
    pub(crate) fn read(journal: &Journal) -> Self {
        let end = journal.end().seq;
        let mut from = end.saturating_sub(RECORDS - 1).max(journal.first()).max(1);
        let mut requests = HashMap::new();
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
                match record.op() {
                    // Numbers of requests begin anew with each connection; those of an earlier reign mean nothing.
                    Ok(Op::Begin { .. }) => requests.clear(),
                    Ok(op) if record.stamp.unique != 0 => {
                        requests.insert(record.stamp.unique, file_of(&op));
                    }
                    Ok(_) | Err(_) => {}
                }
            }
            from = batch.last.seq + 1;
        }
        Self { requests }
    }

    /// The file that a request concerned, if it was performed.
    pub(crate) fn by(&self, unique: u64) -> Option<FileId> {
        self.requests.get(&unique).copied()
    }
}

fn file_of(op: &Op<'_>) -> FileId {
    match op {
        Op::Create { id, .. }
        | Op::CreateUnnamed { id, .. }
        | Op::Link { id, .. }
        | Op::Unlink { id, .. }
        | Op::Rename { id, .. }
        | Op::Exchange { id, .. }
        | Op::Drop { id }
        | Op::Write { id, .. }
        | Op::Truncate { id, .. }
        | Op::Allocate { id, .. }
        | Op::Punch { id, .. }
        | Op::Zero { id, .. }
        | Op::SetMode { id, .. }
        | Op::SetOwner { id, .. }
        | Op::SetTimes { id, .. }
        | Op::SetXattr { id, .. }
        | Op::RemoveXattr { id, .. } => *id,
        Op::Begin { .. } => crate::op::ROOT,
    }
}
