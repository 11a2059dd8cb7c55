//! Performs the journal's records on the volume, in order, up to what is known to be committed. One worker.
//!
//! A record that finds no room waits until there is some, unless it changes the content of a file that is to be removed or
//! cut: what would make room lies behind it, and it need not be performed. Any other failure stops the applying for good,
//! because what follows would be performed on something else than the master has. Unless it failed on the master too, for
//! the same reason: then the journal says so soon after, and what it says instead is performed.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use tandem_protocol::Position;
use tokio::sync::watch;

use crate::clock;
use crate::crew::{self, Bell, Hired, Turn};
use crate::journal::{Journal, Record, records_after};
use crate::op::{FileId, Op, Stamp, UNDONE};
use crate::volume::perform::{file_of, writes_from};

/// Bytes of records read at once.
const BATCH_BYTES: usize = 1 << 20;
/// How long to wait before a record that found no room is tried again.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// After some work the worker rests, so that records which become committed one by one are performed together: nobody waits
/// for them, and whoever waits for an acknowledgement needs the processor.
const REST: Duration = Duration::from_millis(5);

/// How long to wait before a record that cannot be performed is given up: by then the journal would say that it could not
/// be performed on the master either.
const UNDONE_WITHIN: Duration = Duration::from_secs(10);
const TRY_INTERVAL: Duration = Duration::from_millis(50);
/// What a volume may have against an operation that is otherwise in order, however much room there is.
const OF_A_VOLUME: [Errno; 3] = [Errno::FBIG, Errno::MLINK, Errno::TOOBIG];

/// What to do with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Carry it out.
    Perform,
    /// Only let the times be as after it: what it undoes was never done here.
    ShowTimes,
}

/// Carries out one operation.
pub type Perform = Box<dyn Fn(Deed, &Op<'_>, Stamp) -> Result<(), Errno> + Send>;

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
    /// How far the journal was searched for what undoes the record that cannot be performed.
    looked: Mutex<Option<Looked>>,
    /// What is going to make room.
    ahead: Mutex<Ahead>,
}

/// Which files the journal is going to remove or cut, as far as it was searched.
#[derive(Default)]
struct Ahead {
    /// From here on it was not searched yet.
    next: u64,
    /// Where each file is removed (0) or cut to a size.
    cuts: HashMap<FileId, Vec<(u64, u64)>>,
}

/// How far the journal was searched.
#[derive(Clone, Copy)]
struct Looked {
    /// For what undoes this record,
    at: u64,
    /// from here on it was not searched yet.
    next: u64,
    /// When the record failed first.
    since: Duration,
    /// What is certain.
    verdict: Option<bool>,
}

/// What became of a record.
enum Done {
    Performed,
    NoRoom,
    /// It may turn out that it failed on the master too.
    Later,
}

struct Progress {
    allowed: u64,
    stop: bool,
    /// The worker looks by itself when it has rested.
    resting: bool,
}

/// Starts to apply after `applied`, as far as it will be allowed.
pub fn apply(journal: Arc<Journal>, applied: Position, perform: Perform) -> io::Result<Applier> {
    let shared = Arc::new(Shared {
        journal,
        progress: Mutex::new(Progress { allowed: applied.seq, stop: false, resting: false }),
        changed: Bell::default(),
        at_work: Mutex::new(applied),
        looked: Mutex::new(None),
        ahead: Mutex::default(),
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
    /// Everything up to `seq` may be applied: it is committed, and the journal says so durably. Somebody waits for it.
    pub fn allow(&self, seq: u64) {
        allow(&self.shared, seq);
        self.shared.changed.ring();
    }

    /// The same as a function that can be handed on; nobody waits.
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

/// How names answer that are not, or not any more, as an operation expects them.
fn is_not_there(error: Errno) -> bool {
    [Errno::NOENT, Errno::STALE, Errno::EXIST, Errno::BUSY].contains(&error)
}

fn allow(shared: &Shared, seq: u64) {
    let mut progress = shared.progress.lock();
    let is_news = seq > progress.allowed;
    progress.allowed = progress.allowed.max(seq);
    let is_resting = progress.resting;
    drop(progress);
    if is_news && !is_resting {
        shared.changed.ring();
    }
}

impl Shared {
    /// One turn: as many records as are allowed and read at once.
    fn work(&self, perform: &Perform, told: &watch::Sender<Applied>, bytes: &mut Vec<u8>) -> Result<Turn, String> {
        let done = *self.at_work.lock();
        let allowed = {
            let mut progress = self.progress.lock();
            if progress.stop {
                return Ok(Turn::Done);
            }
            progress.resting = false;
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
        let mut stopped = None;
        for record in records_after(done, bytes) {
            let record = record.map_err(|error| error.to_string())?;
            if record.position.seq > allowed && !mistake!(AppliesTooMuch) {
                break;
            }
            let op = record.op().map_err(|error| error.to_string())?;
            match self.perform_one(perform, &op, record.stamp, record.position)? {
                Done::Performed => {}
                Done::NoRoom => stopped = Some(ROOM_INTERVAL),
                Done::Later => stopped = Some(TRY_INTERVAL),
            }
            if stopped.is_some() {
                break;
            }
            if self.progress.lock().stop {
                return Ok(Turn::Done);
            }
        }
        let seq = self.at_work.lock().seq;
        let no_room = stopped == Some(ROOM_INTERVAL);
        if no_room && !told.borrow().no_room {
            tracing::warn!(seq = seq + 1, "no room on the volume for a record: it waits until there is some");
        }
        told.send_modify(|applied| *applied = Applied { seq, no_room, failure: None });
        if stopped.is_none() && seq >= allowed {
            *self.ahead.lock() = Ahead::default();
            self.progress.lock().resting = true;
            return Ok(Turn::Wait(Some(REST)));
        }
        Ok(stopped.map_or(Turn::Again, |pause| Turn::Wait(Some(pause))))
    }

    fn perform_one(&self, perform: &Perform, op: &Op<'_>, stamp: Stamp, position: Position) -> Result<Done, String> {
        let mut at_work = self.at_work.lock();
        let failed = |error: Errno| format!("apply record {}: {error}", position.seq);
        let done = match perform(Deed::Perform, op, stamp) {
            Ok(()) => Done::Performed,
            Err(Errno::IO) => return Err(failed(Errno::IO)),
            // Nothing is there to be undone: what it undoes could not be performed here either.
            Err(error) if stamp.unique & UNDONE != 0 && file_of(op).is_none() && is_not_there(error) => {
                perform(Deed::ShowTimes, op, stamp).map_err(failed)?;
                Done::Performed
            }
            // The file whose making failed here is gone already.
            Err(Errno::NOENT | Errno::STALE) if matches!(op, Op::Drop { .. }) => Done::Performed,
            // Asked first: what undoes a record is searched for anew for each.
            Err(Errno::NOSPC | Errno::DQUOT) if self.is_in_vain(position, op)? => Done::Performed,
            Err(error) if self.is_undone(position, stamp)? => {
                tracing::info!(seq = position.seq, %error, "a record failed here as it did on the master");
                Done::Performed
            }
            Err(Errno::NOSPC | Errno::DQUOT) => Done::NoRoom,
            Err(error)
                if OF_A_VOLUME.contains(&error)
                    && self.waited_for(position).is_some_and(|waited| waited < UNDONE_WITHIN) =>
            {
                Done::Later
            }
            Err(error) => return Err(failed(error)),
        };
        if matches!(done, Done::Performed) {
            *at_work = position;
        }
        Ok(done)
    }

    /// For how long what undoes a record was looked for.
    fn waited_for(&self, at: Position) -> Option<Duration> {
        let looked = self.looked.lock().filter(|looked| looked.at == at.seq)?;
        Some(clock::monotonic().saturating_sub(looked.since))
    }

    /// Whether what a record writes is removed or cut off by a later one that is known to be committed.
    fn is_in_vain(&self, at: Position, op: &Op<'_>) -> Result<bool, String> {
        let Some((id, offset)) = writes_from(op) else { return Ok(false) };
        let mut ahead = self.ahead.lock();
        if ahead.next <= at.seq {
            *ahead = Ahead { next: at.seq + 1, cuts: HashMap::new() };
        }
        let Ahead { next, cuts } = &mut *ahead;
        // Each record is looked at once, however many find no room.
        self.look_ahead(next, |record| {
            let op = record.op().map_err(|error| error.to_string())?;
            if let Op::Drop { id } = op {
                cuts.entry(id).or_default().push((record.position.seq, 0));
            } else if let Op::Truncate { id, size } = op {
                cuts.entry(id).or_default().push((record.position.seq, size));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let cuts = cuts.get(&id).map_or(&[][..], Vec::as_slice);
        let is_in_vain = cuts.iter().any(|(seq, size)| *seq > at.seq && *size <= offset);
        if is_in_vain {
            tracing::debug!(seq = at.seq, "no room for what is removed later: left out");
        }
        Ok(is_in_vain)
    }

    /// Whether the journal says that a record could not be performed on the master: the next that it says of the same request
    /// makes it undone.
    fn is_undone(&self, at: Position, stamp: Stamp) -> Result<bool, String> {
        if stamp.unique == 0 || stamp.unique & UNDONE != 0 {
            return Ok(false);
        }
        let mut looked = self.looked.lock();
        let fresh = Looked { at: at.seq, next: at.seq + 1, since: clock::monotonic(), verdict: None };
        let looked = looked.get_or_insert(fresh);
        if looked.at != at.seq {
            *looked = fresh;
        }
        let Looked { next, verdict, .. } = looked;
        if verdict.is_none() {
            // Each record is looked at once, however often this is asked.
            self.look_ahead(next, |record| {
                // Requests of a later reign may have the same numbers.
                if record.position.epoch != at.epoch {
                    *verdict = Some(false);
                } else if record.stamp.unique & !UNDONE == stamp.unique {
                    *verdict = Some(record.stamp.unique & UNDONE != 0);
                } else {
                    return Ok(ControlFlow::Continue(()));
                }
                Ok(ControlFlow::Break(()))
            })?;
        }
        Ok(verdict.unwrap_or(false))
    }

    /// Shows the committed records from `next` on, until that is enough; if it is not, `next` is behind them.
    fn look_ahead(
        &self,
        next: &mut u64,
        mut show: impl FnMut(&Record<'_>) -> Result<ControlFlow<()>, String>,
    ) -> Result<(), String> {
        // What is not committed may yet be cut.
        let allowed = self.progress.lock().allowed;
        let mut bytes = Vec::new();
        while *next <= allowed {
            bytes.clear();
            let batch = self.journal.read(*next, BATCH_BYTES, &mut bytes).map_err(|error| error.to_string())?;
            for record in records_after(batch.before, &bytes) {
                let record = record.map_err(|error| error.to_string())?;
                if record.position.seq > allowed {
                    break;
                }
                if show(&record)?.is_break() {
                    return Ok(());
                }
            }
            if batch.count == 0 {
                break;
            }
            *next = allowed.min(batch.last.seq) + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::journal::Options;

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
        let perform: Perform = Box::new(move |_, op, _| {
            log.lock().push(format!("{op:?}"));
            Ok(())
        });
        let begin = journal.position_at(10).unwrap().unwrap();
        let applier = apply(journal.clone(), begin, perform).unwrap();
        applier.allow(60);
        wait(&applier, |applied| applied.seq == 60);
        assert_eq!(applier.at_rest(|position| position), journal.position_at(60).unwrap().unwrap());
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
        let perform: Perform = Box::new(move |_, op, _| {
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

    #[test]
    fn what_failed_on_the_master_too_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(folder.path(), Options { segment_bytes: 64 << 10, pair: [1; 16] }).unwrap();
        let (file, parent) = (FileId(9), FileId(1));
        let request = |unique| Stamp { time: 7, unique };
        let large = Op::SetXattr { id: file, name: b"user.large", value: b"x" };
        let gone = Op::RemoveXattr { id: file, name: b"user.large" };
        let link = Op::Link { id: file, parent, name: b"one too many" };
        let unlink = Op::Unlink { id: file, parent, name: b"one too many" };
        let records = [(4, &gone), (4, &large), (6, &link), (4 | UNDONE, &gone), (6 | UNDONE, &unlink), (8, &large)];
        for (unique, op) in records {
            journal.append(1, request(unique), op).unwrap();
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let perform: Perform = Box::new(move |deed, op, stamp| {
            match (deed, op) {
                (Deed::Perform, Op::SetXattr { .. }) if stamp.unique == 4 => return Err(Errno::NOSPC),
                (Deed::Perform, Op::Link { .. }) => return Err(Errno::MLINK),
                (Deed::Perform, Op::Unlink { .. }) => return Err(Errno::NOENT),
                _ => log.lock().push((deed, stamp.unique)),
            }
            Ok(())
        });
        let applier = apply(Arc::new(journal), Position::default(), perform).unwrap();
        applier.allow(6);
        wait(&applier, |applied| applied.seq == 6);
        let performed = Deed::Perform;
        assert_eq!(
            *seen.lock(),
            [(performed, 4), (performed, 4 | UNDONE), (Deed::ShowTimes, 6 | UNDONE), (performed, 8)]
        );
    }

    #[test]
    fn what_is_removed_or_cut_later_needs_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(folder.path(), Options { segment_bytes: 64 << 10, pair: [1; 16] }).unwrap();
        let (removed, cut) = (FileId(8), FileId(9));
        let write = |id, offset| Op::Write { id, offset, data: b"much" };
        let records = [
            write(removed, 0),
            write(cut, 100),
            Op::Drop { id: removed },
            Op::Truncate { id: cut, size: 100 },
            // Nothing takes this away,
            write(cut, 99),
            // for that goes not so far,
            Op::Truncate { id: cut, size: 100 },
            // and this is not committed yet.
            Op::Truncate { id: cut, size: 0 },
        ];
        for op in &records {
            journal.append(1, Stamp::default(), op).unwrap();
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let perform: Perform = Box::new(move |_, op, _| {
            if matches!(op, Op::Write { .. }) {
                return Err(Errno::NOSPC);
            }
            log.lock().push(format!("{op:?}"));
            Ok(())
        });
        let applier = apply(Arc::new(journal), Position::default(), perform).unwrap();
        applier.allow(2);
        wait(&applier, |applied| applied.no_room);
        assert_eq!(applier.applied().borrow().seq, 0, "what removes it is not committed yet");
        applier.allow(6);
        wait(&applier, |applied| applied.seq == 4 && applied.no_room);
        applier.allow(7);
        wait(&applier, |applied| applied.seq == 7 && !applied.no_room);
        let expected: Vec<_> = [2, 3, 5, 6].map(|at: usize| format!("{:?}", records[at])).into();
        assert_eq!(*seen.lock(), expected);
    }

    #[test]
    fn another_operation_of_a_failed_request_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(folder.path(), Options { segment_bytes: 64 << 10, pair: [1; 16] }).unwrap();
        let file = FileId(9);
        let (first, second) =
            (Op::Truncate { id: file, size: 7 }, Op::SetXattr { id: file, name: b"user.x", value: b"" });
        for (unique, op) in [(4, &first), (4, &second), (4 | UNDONE, &second)] {
            journal.append(1, Stamp { time: 7, unique }, op).unwrap();
        }
        let perform: Perform = Box::new(|_, op, _| match op {
            Op::Truncate { .. } => Err(Errno::NOSPC),
            _ => Ok(()),
        });
        let applier = apply(Arc::new(journal), Position::default(), perform).unwrap();
        applier.allow(3);
        wait(&applier, |applied| applied.no_room);
        assert_eq!(applier.stop().seq, 0);
    }
}
