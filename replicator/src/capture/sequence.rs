//! The sequencer: gives every mutation its place. While what it concerns is locked, it is checked, goes into the journal,
//! and is performed on the volume; so the journal's order is the order of effect.
//!
//! An operation that was journaled and then fails on the volume (no room, quota) is made undone by further operations, so
//! that journal and volume stay equal. Where that is impossible the member must not go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockWriteGuard};
use rustix::io::Errno;

use super::gate::Gate;
use crate::clock;
use crate::journal::{Journal, JournalError};
use crate::op::{FileId, Op, Stamp};
use crate::volume::Volume;

const STRIPES: usize = 64;
/// Free space of the volume is asked for again after this time.
const SPACE_AGE_MILLIS: u64 = 100;
/// What stays free on the volume, so that an operation that passed the check rarely fails afterwards.
const RESERVE_BYTES: u64 = 4 << 20;

/// Orders mutations.
pub struct Sequencer {
    volume: Arc<Volume>,
    journal: Arc<Journal>,
    gate: Gate,
    /// Held shared by each mutation, exclusively by whoever needs the volume to stand still.
    barrier: RwLock<()>,
    /// Held by every change of names.
    names: Mutex<()>,
    /// Held by changes of content and attributes, by file.
    files: [Mutex<()>; STRIPES],
    space: Space,
    failed: AtomicBool,
    on_failure: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Space {
    free: AtomicU64,
    /// When `free` was asked for, in milliseconds; 0: never.
    asked: AtomicU64,
}

/// A mutation's turn: its locks are held.
pub struct Turn<'a> {
    sequencer: &'a Sequencer,
    epoch: u64,
    stamp: Stamp,
    last: u64,
}

impl Sequencer {
    pub(crate) fn new(
        volume: Arc<Volume>,
        journal: Arc<Journal>,
        gate: Gate,
        on_failure: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self {
            volume,
            journal,
            gate,
            barrier: RwLock::new(()),
            names: Mutex::new(()),
            files: std::array::from_fn(|_| Mutex::new(())),
            space: Space::default(),
            failed: AtomicBool::new(false),
            on_failure,
        }
    }

    /// The gate.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Takes a turn at the names of all files.
    pub(crate) fn names<T>(
        &self,
        unique: u64,
        work: impl FnOnce(&mut Turn<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.turn(unique, || self.names.lock(), work).map(|(result, _)| result)
    }

    /// Takes a turn at the content and attributes of one file. Also tells the number of the last operation.
    pub(crate) fn file<T>(
        &self,
        unique: u64,
        id: FileId,
        work: impl FnOnce(&mut Turn<'_>) -> Result<T, Errno>,
    ) -> Result<(T, u64), Errno> {
        let stripe = &self.files[(id.0 % STRIPES as u64) as usize];
        self.turn(unique, || stripe.lock(), work)
    }

    fn turn<'a, T>(
        &'a self,
        unique: u64,
        lock: impl FnOnce() -> MutexGuard<'a, ()>,
        work: impl FnOnce(&mut Turn<'_>) -> Result<T, Errno>,
    ) -> Result<(T, u64), Errno> {
        loop {
            let passage = self.barrier.read();
            // Asked behind the barrier: whoever held the gate and then the barrier knows that nobody is under way.
            if let Some(epoch) = self.gate.pass()? {
                let _order = lock();
                let stamp = Stamp { time: clock::wall_nanoseconds(), unique };
                let mut turn = Turn { sequencer: self, epoch, stamp, last: 0 };
                let result = work(&mut turn)?;
                return Ok((result, turn.last));
            }
            drop(passage);
            self.gate.wait();
        }
    }

    /// Opens the gate in a new epoch, whose first record this is.
    pub(crate) fn begin(&self, epoch: u64, member: &str) -> Result<(), Errno> {
        let _still = self.barrier.write();
        let stamp = Stamp { time: clock::wall_nanoseconds(), unique: 0 };
        self.journal.append(epoch, stamp, &Op::Begin { member }).map_err(|error| self.journal_failed(&error))?;
        self.gate.open(epoch)
    }

    /// New mutations wait; returns the journal's last number once none is under way.
    pub(crate) fn hold(&self) -> u64 {
        self.gate.hold();
        drop(self.barrier.write());
        self.journal.end().seq
    }

    pub(crate) fn stand_still(&self) -> RwLockWriteGuard<'_, ()> {
        self.barrier.write()
    }

    fn journal_failed(&self, error: &JournalError) -> Errno {
        if let JournalError::Full(_) = error {
            return Errno::NOSPC;
        }
        tracing::error!(%error, "an operation could not be journaled");
        self.give_up();
        Errno::IO
    }

    /// Journal and volume may differ from here on: this process changes nothing more.
    fn give_up(&self) {
        self.gate.refuse();
        if !self.failed.swap(true, Ordering::AcqRel) {
            (self.on_failure)();
        }
    }

    /// Refuses what there is no room for, before it is journaled.
    fn check_space(&self, op: &Op<'_>) -> Result<(), Errno> {
        let needed = Volume::space_needed(op);
        if needed == 0 {
            return Ok(());
        }
        let now = u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX).max(1);
        let asked = self.space.asked.load(Ordering::Acquire);
        if asked == 0 || now.saturating_sub(asked) > SPACE_AGE_MILLIS {
            let space = self.volume.statfs()?;
            let reserve = RESERVE_BYTES.min(space.blocks * space.block_size / 100);
            let free = (space.blocks_available * space.block_size).saturating_sub(reserve);
            self.space.free.store(if space.files > 0 && space.files_free == 0 { 0 } else { free }, Ordering::Release);
            self.space.asked.store(now, Ordering::Release);
        }
        // Not exact when several write at once: that is what the reserve is for.
        let free = self.space.free.load(Ordering::Acquire);
        if needed > free {
            return Err(Errno::NOSPC);
        }
        self.space.free.fetch_sub(needed.min(free), Ordering::AcqRel);
        Ok(())
    }
}

impl Turn<'_> {
    /// The volume, as it is while nobody else changes what this turn holds.
    pub(crate) fn volume(&self) -> &Volume {
        &self.sequencer.volume
    }

    /// Time of this turn, nanoseconds since 1970.
    pub(crate) fn time(&self) -> i64 {
        self.stamp.time
    }

    /// Checks, journals, performs.
    pub(crate) fn perform(&mut self, op: &Op<'_>) -> Result<(), Errno> {
        let sequencer = self.sequencer;
        sequencer.volume.check(op)?;
        sequencer.check_space(op)?;
        self.journal(op)?;
        let Err(errno) = sequencer.volume.perform(op, self.stamp) else { return Ok(()) };
        if errno == Errno::IO || self.undo(op).is_err() {
            tracing::error!(?errno, "an operation that is in the journal failed on the volume");
            sequencer.give_up();
            return Err(Errno::IO);
        }
        Err(errno)
    }

    fn journal(&mut self, op: &Op<'_>) -> Result<(), Errno> {
        let sequencer = self.sequencer;
        let position =
            sequencer.journal.append(self.epoch, self.stamp, op).map_err(|error| sequencer.journal_failed(&error))?;
        self.last = position.seq;
        Ok(())
    }

    /// Journals what makes the failed operation undone; the volume already is as if it had not been (or, for content, is as
    /// it is, which is then what gets journaled).
    fn undo(&mut self, op: &Op<'_>) -> Result<(), Errno> {
        let volume = Arc::clone(&self.sequencer.volume);
        match op {
            Op::Create { id, parent, name, .. } => {
                if volume.lookup(*parent, name).is_some() {
                    return Err(Errno::EXIST);
                }
                self.journal(&Op::Unlink { id: *id, parent: *parent, name })?;
                self.journal(&Op::Drop { id: *id })
            }
            Op::CreateUnnamed { id, .. } => self.journal(&Op::Drop { id: *id }),
            Op::Link { id, parent, name } => {
                if volume.lookup(*parent, name).is_some() {
                    return Err(Errno::EXIST);
                }
                self.journal(&Op::Unlink { id: *id, parent: *parent, name })
            }
            Op::Write { id, offset, data } => self.restate(*id, *offset, data.len() as u64),
            Op::Truncate { id, .. } => self.restate(*id, 0, 0),
            Op::Allocate { id, offset, length, .. } | Op::Zero { id, offset, length, .. } => {
                self.restate(*id, *offset, *length)
            }
            Op::SetXattr { id, name, .. } => match volume.get_xattr(*id, name) {
                Ok(value) => self.journal(&Op::SetXattr { id: *id, name, value: &value }),
                Err(Errno::NODATA) => self.journal(&Op::RemoveXattr { id: *id, name }),
                Err(errno) => Err(errno),
            },
            // These need no room. If they fail all the same, nobody knows what the volume holds.
            Op::Unlink { .. }
            | Op::Rename { .. }
            | Op::Exchange { .. }
            | Op::Drop { .. }
            | Op::Punch { .. }
            | Op::SetMode { .. }
            | Op::SetOwner { .. }
            | Op::SetTimes { .. }
            | Op::RemoveXattr { .. }
            | Op::Begin { .. } => Err(Errno::IO),
        }
    }

    /// Journals the size and a range of a file as they are.
    fn restate(&mut self, id: FileId, offset: u64, length: u64) -> Result<(), Errno> {
        let volume = Arc::clone(&self.sequencer.volume);
        let size = volume.attributes(id)?.size;
        self.journal(&Op::Truncate { id, size })?;
        let mut at = offset;
        let end = offset.saturating_add(length).min(size);
        let mut buffer = vec![0; 1 << 20];
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let got = volume.read(id, at, &mut buffer[..wanted])?;
            if got == 0 {
                break;
            }
            self.journal(&Op::Write { id, offset: at, data: &buffer[..got] })?;
            at += got as u64;
        }
        Ok(())
    }
}
