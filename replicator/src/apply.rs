//! Performs the journal's records on the volume, in order, up to what is known to be committed. One worker.
//!
//! A record that finds no room waits until there is some; any other failure stops the applying for good, because what
//! follows would be performed on something else than the master has.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use tandem_protocol::Position;
use tokio::sync::watch;

use crate::crew::{self, Bell, Hired, Turn};
use crate::journal::{Journal, records_after};
use crate::op::{Op, Stamp};

/// Bytes of records read at once.
const BATCH_BYTES: usize = 1 << 20;
/// How long to wait before a record that found no room is tried again.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

/// Carries out one operation.
pub type Perform = Box<dyn Fn(&Op<'_>, Stamp) -> Result<(), Errno> + Send>;

/// How applying goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Everything up to here shows on the volume.
    pub seq: u64,
    /// The volume has no room for the next record.
    pub no_room: bool,
    /// Why nothing more will be applied.
    pub failure: Option<String>,
}

/// The worker that applies; ends when dropped.
pub struct Applier {
    shared: Arc<Shared>,
    applied: watch::Receiver<Applied>,
    worker: Hired,
}

struct Shared {
    journal: Arc<Journal>,
    progress: Mutex<Progress>,
    changed: Bell,
    /// Held while records are performed.
    at_work: Mutex<Position>,
}

struct Progress {
    allowed: u64,
    stop: bool,
}

/// Starts to apply after `applied`, as far as it will be allowed.
pub fn apply(journal: Arc<Journal>, applied: Position, perform: Perform) -> io::Result<Applier> {
    let shared = Arc::new(Shared {
        journal,
        progress: Mutex::new(Progress { allowed: applied.seq, stop: false }),
        changed: Bell::default(),
        at_work: Mutex::new(applied),
    });
    let (told, listening) = watch::channel(Applied { seq: applied.seq, ..Applied::default() });
    let working = shared.clone();
    let mut bytes = Vec::new();
    let worker = crew::hire("apply", &shared.changed, move |_| match working.work(&perform, &told, &mut bytes) {
        Ok(turn) => turn,
        Err(why) => {
            let seq = working.at_work.lock().seq;
            told.send_replace(Applied { seq, no_room: false, failure: Some(why) });
            Turn::Done
        }
    })?;
    Ok(Applier { shared, applied: listening, worker })
}

impl Applier {
    /// Everything up to `seq` may be applied: it is committed, and the journal says so durably.
    pub fn allow(&self, seq: u64) {
        allow(&self.shared, seq);
    }

    /// The same as a function that can be handed on.
    pub fn allowance(&self) -> impl Fn(u64) + Send + Sync + 'static {
        let shared = Arc::downgrade(&self.shared);
        move |seq| {
            if let Some(shared) = shared.upgrade() {
                allow(&shared, seq);
            }
        }
    }

    /// How far it is.
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.clone()
    }

    /// Does something while nothing is performed, at a known position: a checkpoint's list of files.
    pub fn at_rest<T>(&self, work: impl FnOnce(Position) -> T) -> T {
        let position = self.shared.at_work.lock();
        work(*position)
    }

    /// Ends after the record at work. Returns where the volume stands.
    pub fn stop(mut self) -> Position {
        self.end();
        *self.shared.at_work.lock()
    }

    fn end(&mut self) {
        self.shared.progress.lock().stop = true;
        self.shared.changed.ring();
        self.worker.wait();
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.end();
    }
}

fn allow(shared: &Shared, seq: u64) {
    let mut progress = shared.progress.lock();
    if seq > progress.allowed {
        progress.allowed = seq;
        shared.changed.ring();
    }
}

impl Shared {
    /// One turn: as many records as are allowed and read at once.
    fn work(&self, perform: &Perform, told: &watch::Sender<Applied>, bytes: &mut Vec<u8>) -> Result<Turn, String> {
        let done = *self.at_work.lock();
        let allowed = {
            let progress = self.progress.lock();
            if progress.stop {
                return Ok(Turn::Done);
            }
            progress.allowed
        };
        if allowed <= done.seq {
            return Ok(Turn::Wait(None));
        }
        bytes.clear();
        let batch = self.journal.read(done.seq + 1, BATCH_BYTES, bytes).map_err(|error| error.to_string())?;
        if batch.count == 0 {
            return Err(format!("journal ends at {} before {allowed}, which is committed", batch.last.seq));
        }
        let mut no_room = false;
        for record in records_after(done, bytes) {
            let record = record.map_err(|error| error.to_string())?;
            if record.position.seq > allowed && !mistake!(AppliesTooMuch) {
                break;
            }
            let op = record.op().map_err(|error| error.to_string())?;
            if !self.perform_one(perform, &op, record.stamp, record.position)? {
                no_room = true;
                break;
            }
            if self.progress.lock().stop {
                return Ok(Turn::Done);
            }
        }
        let seq = self.at_work.lock().seq;
        told.send_modify(|applied| *applied = Applied { seq, no_room, failure: None });
        Ok(if no_room { Turn::Wait(Some(ROOM_INTERVAL)) } else { Turn::Again })
    }

    /// Whether there was room for it.
    fn perform_one(&self, perform: &Perform, op: &Op<'_>, stamp: Stamp, position: Position) -> Result<bool, String> {
        let mut at_work = self.at_work.lock();
        match perform(op, stamp) {
            Ok(()) => {
                *at_work = position;
                Ok(true)
            }
            Err(Errno::NOSPC | Errno::DQUOT) => Ok(false),
            Err(error) => Err(format!("apply record {}: {error}", position.seq)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::journal::Options;
    use crate::op::FileId;

    fn journal(folder: &std::path::Path, records: u64) -> Arc<Journal> {
        let (journal, _) = Journal::open(folder, Options { segment_bytes: 64 << 10, pair: [1; 16] }).unwrap();
        for id in 1..=records {
            journal.append(1, Stamp::default(), &Op::Drop { id: FileId(id) }).unwrap();
        }
        Arc::new(journal)
    }

    fn wait(applier: &Applier, holds: impl Fn(&Applied) -> bool) {
        for _ in 0..2000 {
            if holds(&applier.applied().borrow()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("never: {:?}", applier.applied().borrow());
    }

    #[test]
    fn only_what_is_allowed_is_performed_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(folder.path(), 100);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let perform: Perform = Box::new(move |op, _| {
            log.lock().push(format!("{op:?}"));
            Ok(())
        });
        let begin = journal.position_at(10).unwrap();
        let applier = apply(journal.clone(), begin, perform).unwrap();
        applier.allow(60);
        wait(&applier, |applied| applied.seq == 60);
        assert_eq!(applier.at_rest(|position| position), journal.position_at(60).unwrap());
        (applier.allowance())(70);
        wait(&applier, |applied| applied.seq == 70);
        assert_eq!(applier.stop().seq, 70);
        let expected: Vec<_> = (11..=70).map(|id| format!("{:?}", Op::Drop { id: FileId(id) })).collect();
        assert_eq!(*seen.lock(), expected);
    }

    #[test]
    fn a_full_volume_is_waited_for_and_any_other_failure_is_final() {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(folder.path(), 10);
        let full = Arc::new(AtomicBool::new(true));
        let volume = full.clone();
        let perform: Perform = Box::new(move |op, _| {
            if *op == (Op::Drop { id: FileId(3) }) && volume.load(Ordering::Acquire) {
                return Err(Errno::NOSPC);
            }
            if *op == (Op::Drop { id: FileId(7) }) { Err(Errno::IO) } else { Ok(()) }
        });
        let applier = apply(journal, Position::default(), perform).unwrap();
        applier.allow(10);
        wait(&applier, |applied| applied.no_room);
        full.store(false, Ordering::Release);
        wait(&applier, |applied| applied.failure.is_some());
        assert_eq!(applier.stop().seq, 6);
    }
}
