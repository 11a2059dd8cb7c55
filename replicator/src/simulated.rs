//! Where the simulation has a say in a member: its clock, its dice, its workers, the steps of its disk, its road to the
//! peer. Only in tests; the product has none of it. Which member is meant is known to the thread, because the simulation
//! runs one member at a time.

#![allow(clippy::unwrap_used)] // a simulation that cannot go on says so by panicking

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tandem_protocol::Position;

use crate::journal::Journal;
use crate::op::codec;
use crate::op::{Op, Stamp};
use crate::simulation::net;
use crate::volume::Volume;
use crate::volume::random::Dice;

/// Mistakes that a program like this one could make. The simulation must notice each of them. Those that do no harm because
/// something else stands behind them are not here: records of a connection that is over, or on a tail that was not cut off
/// (the journal takes only what continues it), an answer that was given up (one request is under way at a time), a copy that
/// counts as complete before its journal is (the record certifies nobody who lacks something).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mistake {
    /// A flush of the journal that does not happen.
    JournalNotFlushed,
    /// The replicant says that it has on disk what it has in memory.
    AckBeforeFlush,
    /// The master tells the application before the rule allows it.
    AckBeforePeer,
    /// Marks of an earlier connection count on the next.
    MarksOfOldSession,
    /// What is committed may be applied before the journal says so durably.
    CommittedBeforeFlush,
    /// The applier goes on beyond what is committed.
    AppliesTooMuch,
    /// The journal forgets what the last checkpoint does not have yet.
    TrimsTooEarly,
    /// The application is let in before the journal shows on the volume.
    OpensTooEarly,
    /// A deposed master goes on answering.
    NotRefused,
    /// Requests are not held while the lead is handed over.
    NotHeld,
    /// A tail is given up without being saved.
    TailNotSaved,
    /// Redo leaves out the first record after the checkpoint.
    RedoSkips,
    /// A torn record at the journal's end counts.
    TornRecordCounts,
    /// What the member remembers about itself does not survive.
    IdentityNotKept,
}

impl Mistake {
    /// Each of them.
    pub(crate) const ALL: [Mistake; 14] = [
        Mistake::JournalNotFlushed,
        Mistake::AckBeforeFlush,
        Mistake::AckBeforePeer,
        Mistake::MarksOfOldSession,
        Mistake::CommittedBeforeFlush,
        Mistake::AppliesTooMuch,
        Mistake::TrimsTooEarly,
        Mistake::OpensTooEarly,
        Mistake::NotRefused,
        Mistake::NotHeld,
        Mistake::TailNotSaved,
        Mistake::RedoSkips,
        Mistake::TornRecordCounts,
        Mistake::IdentityNotKept,
    ];
}

/// One operation as it was journaled.
#[derive(Clone)]
pub(crate) struct Journaled {
    pub(crate) before: Position,
    pub(crate) stamp: Stamp,
    head: Vec<u8>,
    payload: Vec<u8>,
    pub(crate) bytes: u64,
}

impl Journaled {
    /// The operation.
    pub(crate) fn op(&self) -> Op<'_> {
        codec::decode(&self.head, &self.payload).expect("what was encoded")
    }
}

/// Every operation that any member ever journaled.
pub(crate) type Histories = HashMap<(u64, u64, u64), Journaled>;

/// A position as the key of a history.
pub(crate) fn key(position: Position) -> (u64, u64, u64) {
    (position.epoch, position.seq, position.chain)
}

/// A process that ends here and now.
pub(crate) struct Crash;

/// A write to the journal that no flush has covered.
struct Unsynced {
    inode: u64,
    offset: u64,
    before: Vec<u8>,
}

/// What of the disk is not durable, and what goes wrong on it.
#[derive(Default)]
pub(crate) struct Disk {
    unsynced: Vec<Unsynced>,
    renames: Vec<(PathBuf, PathBuf)>,
    steps: u64,
    /// The process ends at this step.
    pub(crate) crash_at: Option<u64>,
    /// Steps of this kind fail from now on.
    pub(crate) broken: Option<(&'static str, i32)>,
    /// Files whose last durable replacement would be lost.
    pub(crate) slow: u64,
}

impl Disk {
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }
}

/// A member in the simulation.
pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) dice: RefCell<Dice>,
    pub(crate) disk: RefCell<Disk>,
    pub(crate) dead: Cell<bool>,
    /// Nanoseconds that the wall clock is ahead of the truth.
    pub(crate) wall: Cell<i64>,
    pub(crate) born: Cell<Option<tokio::time::Instant>>,
    pub(crate) volume: RefCell<Weak<Volume>>,
    pub(crate) journal: RefCell<Weak<Journal>>,
    pub(crate) histories: Rc<RefCell<Histories>>,
    pub(crate) net: Arc<net::Net>,
    pub(crate) mistake: Option<Mistake>,
    /// Whether the mistake could show.
    pub(crate) mistaken: Rc<Cell<u64>>,
}

thread_local! {
    static HERE: RefCell<Option<Rc<Node>>> = const { RefCell::new(None) };
}

/// This thread is `node` while the value lives.
pub(crate) struct Entered(Option<Rc<Node>>);

pub(crate) fn enter(node: &Rc<Node>) -> Entered {
    Entered(HERE.replace(Some(Rc::clone(node))))
}

impl Drop for Entered {
    fn drop(&mut self) {
        HERE.set(self.0.take());
    }
}

fn here<T>(look: impl FnOnce(&Rc<Node>) -> T) -> Option<T> {
    let node = HERE.with_borrow(Clone::clone)?;
    Some(look(&node))
}

/// A member of the simulation is running on this thread.
pub(crate) fn is_on() -> bool {
    HERE.with_borrow(Option::is_some)
}

pub(crate) fn mistake(which: Mistake) -> bool {
    here(|node| {
        let makes = node.mistake == Some(which);
        if makes {
            node.mistaken.set(node.mistaken.get() + 1);
        }
        makes
    })
    .unwrap_or(false)
}

/// How long a step waits for a thread and for the disk.
pub(crate) fn slowness() -> Duration {
    let micros = here(|node| {
        let slow = node.disk.borrow().slow;
        if slow > 0 { node.dice.borrow_mut().below(slow) } else { 0 }
    });
    Duration::from_micros(micros.unwrap_or(0))
}

pub(crate) fn chance() -> Option<u128> {
    here(|node| {
        let mut dice = node.dice.borrow_mut();
        let mut number = 0u128;
        for _ in 0..4 {
            number = number << 32 | u128::from(dice.below(1 << 32));
        }
        number
    })
}

pub(crate) fn monotonic() -> Option<Duration> {
    here(|node| node.born.get().map_or(Duration::ZERO, |born| tokio::time::Instant::now().duration_since(born)))
}

pub(crate) fn instant() -> Option<Instant> {
    is_on().then(|| tokio::time::Instant::now().into_std())
}

pub(crate) fn wall() -> Option<i64> {
    here(|node| {
        let now = i64::try_from(node.net.now()).unwrap_or(i64::MAX);
        1_700_000_000_000_000_000 + now + node.wall.get()
    })
}

/// The way to the peer.
pub(crate) fn road() -> Option<net::SimulatedRoad> {
    here(|node| net::SimulatedRoad::new(Arc::clone(&node.net), node.index))
}

/// Tells which journal and volume are in use.
pub(crate) fn stages(journal: Option<&Arc<Journal>>, volume: Option<&Arc<Volume>>) {
    here(|node| {
        if let Some(journal) = journal {
            *node.journal.borrow_mut() = Arc::downgrade(journal);
        }
        if let Some(volume) = volume {
            *node.volume.borrow_mut() = Arc::downgrade(volume);
        }
    });
}

/// An operation is in a journal.
pub(crate) fn journaled(before: Position, position: Position, stamp: Stamp, op: &Op<'_>) {
    here(|node| {
        let Ok(encoded) = codec::encode(op) else { return };
        let bytes = (encoded.head().len() + encoded.payload.len()) as u64;
        let journaled = || {
            let (head, payload) = (encoded.head().to_vec(), encoded.payload.to_vec());
            Journaled { before, stamp, head, payload, bytes }
        };
        node.histories.borrow_mut().entry(key(position)).or_insert_with(journaled);
    });
}

fn die() -> ! {
    std::panic::resume_unwind(Box::new(Crash))
}

/// Somebody waits for another thread. Here there is none: the one who was to wake it has crashed in the middle, and takes
/// this one along.
pub(crate) fn waits_for_a_thread() {
    if is_on() {
        here(|node| node.dead.set(true));
        die();
    }
}

/// A step on the disk is about to be taken.
pub(crate) fn step(name: &'static str) -> io::Result<()> {
    let ends = here(|node| {
        let mut disk = node.disk.borrow_mut();
        disk.steps += 1;
        if disk.crash_at == Some(disk.steps) {
            node.dead.set(true);
        }
        let broken = disk.broken.filter(|(broken, _)| *broken == name);
        (node.dead.get(), broken)
    });
    match ends {
        Some((true, _)) if !std::thread::panicking() => die(),
        Some((_, Some((_, errno)))) => Err(io::Error::from_raw_os_error(errno)),
        Some(_) | None => Ok(()),
    }
}

/// A flush of a file: what was written to it is durable. Whether that is all that is to be done.
pub(crate) fn synced(file: impl AsFd) -> io::Result<bool> {
    here(|node| {
        let inode = rustix::fs::fstat(file)?.st_ino;
        node.disk.borrow_mut().unsynced.retain(|write| write.inode != inode);
        Ok(true)
    })
    .unwrap_or(Ok(false))
}

/// A flush of a folder: names in it are durable.
pub(crate) fn folder_synced(folder: &Path) -> bool {
    here(|node| node.disk.borrow_mut().renames.retain(|(_, to)| to.parent() != Some(folder))).is_some()
}

/// A file is about to be written.
pub(crate) fn writing(file: &File, offset: u64, length: usize) -> io::Result<()> {
    here(|node| {
        let found = file.metadata()?;
        let mut before = vec![0; length];
        let mut read = 0;
        while read < length {
            match file.read_at(&mut before[read..], offset + read as u64)? {
                0 => break,
                some => read += some,
            }
        }
        node.disk.borrow_mut().unsynced.push(Unsynced { inode: found.ino(), offset, before });
        Ok(())
    })
    .unwrap_or(Ok(()))
}

/// A file is about to get another name.
pub(crate) fn renaming(from: &Path, to: &Path) {
    here(|node| node.disk.borrow_mut().renames.push((from.to_path_buf(), to.to_path_buf())));
}

impl Disk {
    /// What the journal's folder is after the power went: writes that no flush covered are there, or not, or in part; names
    /// likewise.
    pub(crate) fn cut_power(&mut self, folder: &Path, dice: &mut Dice) -> u64 {
        let mut paths = HashMap::new();
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Ok(found) = entry.metadata() {
                paths.insert(found.ino(), entry.path());
            }
        }
        let mut lost = 0;
        // All of it, none of it, or a mixture of sectors.
        let mood = dice.below(4);
        for write in std::mem::take(&mut self.unsynced).into_iter().rev() {
            let Some(path) = paths.get(&write.inode) else { continue };
            let Ok(file) = File::options().write(true).open(path) else { continue };
            let mut at = 0;
            while at < write.before.len() {
                let sector = 512 - (write.offset as usize + at) % 512;
                let piece = sector.min(write.before.len() - at);
                let goes = match mood {
                    0 => true,
                    1 => dice.below(8) > 0,
                    2 => dice.below(2) == 0,
                    _ => dice.below(8) == 0,
                };
                if goes {
                    lost += 1;
                    file.write_all_at(&write.before[at..at + piece], write.offset + at as u64).unwrap();
                }
                at += piece;
            }
        }
        let mut renames = std::mem::take(&mut self.renames);
        // Names are lost from the newest on: a file system keeps their order.
        let kept = dice.below(renames.len() as u64 + 1) as usize;
        for (from, to) in renames.drain(kept..).rev() {
            if to.exists() && !from.exists() {
                std::fs::rename(&to, &from).unwrap();
            }
        }
        lost
    }
}
