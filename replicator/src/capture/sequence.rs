//! The sequencer: gives every mutation its place. While what it concerns is locked, it is checked, goes into the journal,
//! and is performed on the volume; so the journal's order is the order of effect.
//!
//! An operation that was journaled and then fails on the volume (no room, quota) is made undone by further operations, so
//! that journal and volume stay equal. Where that is impossible the member must not go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::io::Errno;

use super::gate::{Gate, Word};
use super::requests::Waiting;
use super::resend::{Done, RESUMED};
use crate::clock;
use crate::journal::{Journal, JournalError};
use crate::op::{FileId, Op, Stamp, UNDONE};
use crate::space::{For, Space};
use crate::volume::{FileKind, Volume};

const STRIPES: usize = 64;

/// Orders mutations.
pub(crate) struct Sequencer {
    volume: Arc<Volume>,
    journal: Arc<Journal>,
    gate: Gate<Waiting>,
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

/// A mutation that passed the gate. While it lives, nobody who held the gate believes that all stands still. A thread has
/// one at a time: a second would wait for whoever waits for the first.
pub(crate) struct Passage<'a> {
    sequencer: &'a Sequencer,
    epoch: u64,
    unique: u64,
    done: Option<Done>,
    _under_way: RwLockReadGuard<'a, ()>,
}

/// Why a mutation did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The gate is held: put the request down there.
    Held,
    /// Answer this.
    Refused(Errno),
}

/// A mutation's turn: its locks are held.
pub(crate) struct Turn<'a> {
    sequencer: &'a Sequencer,
    epoch: u64,
    stamp: Stamp,
    done: Option<Done>,
    last: u64,
}

impl Sequencer {
    pub(crate) fn new(volume: Arc<Volume>, journal: Arc<Journal>, on_failure: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            volume,
            journal,
            gate: Gate::default(),
            barrier: RwLock::new(()),
            names: Mutex::new(()),
            files: std::array::from_fn(|_| Mutex::new(())),
            space: Space::new(For::Capture),
            failed: AtomicBool::new(false),
            on_failure,
        }
    }

    pub(crate) fn gate(&self) -> &Gate<Waiting> {
        &self.gate
    }

    /// The way of every mutation.
    pub(crate) fn enter(&self, unique: u64) -> Result<Passage<'_>, Stopped> {
        let under_way = self.barrier.read();
        // Asked behind the barrier: whoever held the gate and then the barrier knows that nobody is under way.
        match self.gate.ask() {
            Word::Pass(epoch) => Ok(Passage { sequencer: self, epoch, unique, done: None, _under_way: under_way }),
            Word::Wait => Err(Stopped::Held),
            Word::Refuse(errno) => Err(Stopped::Refused(errno)),
        }
    }

    /// Opens the gate in a new epoch, whose first record this is. Gives back what waited there.
    pub(crate) fn begin(&self, epoch: u64, member: &str, resumed: bool) -> Result<Vec<Waiting>, Errno> {
        let _still = self.barrier.write();
        let stamp = Stamp { time: clock::wall_nanoseconds(), unique: if resumed { RESUMED } else { 0 } };
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
        if let JournalError::Full(source) = error {
            return Errno::from_io_error(source).unwrap_or(Errno::NOSPC);
        }
        tracing::error!(%error, "an operation could not be journaled");
        self.give_up();
        Errno::IO
    }

    /// Journal and volume may differ from here on: this process changes nothing more.
    fn give_up(&self) {
        for one in self.gate.refuse() {
            one.refuse(Errno::IO);
        }
        if !self.failed.swap(true, Ordering::AcqRel) {
            (self.on_failure)();
        }
    }
}

impl Passage<'_> {
    /// The request was sent before: a predecessor performed this of it.
    pub(crate) fn after(self, done: Option<Done>) -> Self {
        Self { done, ..self }
    }

    /// What a predecessor performed of the same request.
    pub(crate) fn done(&self) -> Option<Done> {
        self.done
    }

    /// Takes a turn at the names of all files.
    pub(crate) fn names<T>(self, work: impl FnOnce(&mut Turn<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
        let order = self.sequencer.names.lock();
        self.turn(&order, work).map(|(result, _)| result)
    }

    /// Takes a turn at the content and attributes of one file. Also tells the number of the last operation.
    pub(crate) fn file<T>(
        self,
        id: FileId,
        work: impl FnOnce(&mut Turn<'_>) -> Result<T, Errno>,
    ) -> Result<(T, u64), Errno> {
        let order = self.sequencer.files[(id.0 % STRIPES as u64) as usize].lock();
        self.turn(&order, work)
    }

    fn turn<T>(
        &self,
        _order: &MutexGuard<'_, ()>,
        work: impl FnOnce(&mut Turn<'_>) -> Result<T, Errno>,
    ) -> Result<(T, u64), Errno> {
        // Behind the lock, so that times never go against the order of effect.
        let stamp = Stamp { time: clock::wall_nanoseconds(), unique: self.unique };
        let mut turn = Turn { sequencer: self.sequencer, epoch: self.epoch, stamp, done: self.done, last: 0 };
        let result = work(&mut turn)?;
        Ok((result, turn.last))
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

    /// What a predecessor performed of the same request.
    pub(crate) fn done(&self) -> Option<Done> {
        self.done
    }

    /// Checks, journals, performs; but not what a predecessor performed for the same request.
    pub(crate) fn perform(&mut self, op: &Op<'_>) -> Result<(), Errno> {
        if self.done.is_some_and(|done| done.has(op)) {
            return Ok(());
        }
        let sequencer = self.sequencer;
        sequencer.volume.check(op)?;
        sequencer.space.check(&sequencer.volume, &sequencer.journal, op)?;
        self.journal(op)?;
        let Err(errno) = sequencer.volume.perform(op, self.stamp) else { return Ok(()) };
        let undone = if errno == Errno::IO { Err(errno) } else { self.undo(op) };
        if let Err(why) = undone {
            tracing::error!(%errno, %why, "an operation that is in the journal failed on the volume, and cannot be undone");
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

    /// The name of a file that this very turn made goes again, because something else of the same request failed.
    pub(crate) fn take_name_back(&mut self, id: FileId, parent: FileId, name: &[u8]) -> Result<(), Errno> {
        self.mark_undone();
        self.perform(&Op::Unlink { id, parent, name })
    }

    /// The request fails: if it is sent again, it is performed anew.
    fn mark_undone(&mut self) {
        if self.stamp.unique != 0 {
            self.stamp.unique |= UNDONE;
        }
    }

    /// Journals a part of what makes the failed operation undone. Whoever performs the journal performs it; here only the
    /// times are left to be as they are there.
    fn restore(&mut self, op: &Op<'_>) -> Result<(), Errno> {
        self.journal(op)?;
        self.sequencer.volume.show_times(op, self.stamp);
        Ok(())
    }

    /// Journals what makes the failed operation undone; the volume already is as if it had not been (or, for content, is as
    /// it is, which is then what gets journaled).
    fn undo(&mut self, op: &Op<'_>) -> Result<(), Errno> {
        let volume = Arc::clone(&self.sequencer.volume);
        self.mark_undone();
        match op {
            Op::Create { id, parent, name, .. } => {
                if volume.lookup(*parent, name).is_some() {
                    return Err(Errno::EXIST);
                }
                self.restore(&Op::Unlink { id: *id, parent: *parent, name })?;
                self.restore(&Op::Drop { id: *id })
            }
            Op::CreateUnnamed { id, .. } => self.restore(&Op::Drop { id: *id }),
            Op::Link { id, parent, name } => {
                if volume.lookup(*parent, name).is_some() {
                    return Err(Errno::EXIST);
                }
                self.restore(&Op::Unlink { id: *id, parent: *parent, name })
            }
            Op::Write { id, offset, data } => self.restate(*id, *offset, data.len() as u64),
            // Whoever performed it has cut off what is still here.
            Op::Truncate { id, size } => self.restate(*id, *size, u64::MAX),
            // What is reserved reads as before.
            Op::Allocate { id, .. } => self.restate(*id, 0, 0),
            Op::Zero { id, offset, length, .. } | Op::Punch { id, offset, length } => {
                self.restate(*id, *offset, *length)
            }
            Op::SetXattr { id, name, .. } => {
                match volume.get_xattr(*id, name) {
                    Ok(value) => self.restore(&Op::SetXattr { id: *id, name, value: &value })?,
                    Err(Errno::NODATA) => self.restore(&Op::RemoveXattr { id: *id, name })?,
                    Err(errno) => return Err(errno),
                }
                // Access rules carry rights along, and leave them behind when they go.
                self.restore(&Op::SetMode { id: *id, mode: volume.attributes(*id)?.mode })
            }
            // A quota may forbid a change of owner.
            Op::SetOwner { id, .. } => {
                let now = volume.attributes(*id)?;
                self.restore(&Op::SetOwner { id: *id, uid: now.uid, gid: now.gid })?;
                // A link has no rights of its own.
                if volume.kind(*id)? == FileKind::Symlink {
                    return Ok(());
                }
                self.restore(&Op::SetMode { id: *id, mode: now.mode })
            }
            // A file without names goes into a folder of ours, which may need room for its entry.
            Op::Unlink { id, parent, name } => {
                if volume.kind(*id)? == FileKind::Directory || volume.lookup(*parent, name) != Some(*id) {
                    return Err(Errno::IO);
                }
                self.restore(&Op::Link { id: *id, parent: *parent, name })
            }
            Op::Rename { id, parent, name, new_parent, new_name, replaced } => {
                if volume.lookup(*parent, name) != Some(*id) || volume.lookup(*new_parent, new_name) != *replaced {
                    return Err(Errno::IO);
                }
                if let Some(replaced) = replaced
                    && volume.kind(*replaced)? == FileKind::Directory
                {
                    return Err(Errno::IO);
                }
                self.restore(&Op::Rename {
                    id: *id,
                    parent: *new_parent,
                    name: new_name,
                    new_parent: *parent,
                    new_name: name,
                    replaced: None,
                })?;
                match replaced {
                    Some(replaced) => self.restore(&Op::Link { id: *replaced, parent: *new_parent, name: new_name }),
                    None => Ok(()),
                }
            }
            // These need no room. If they fail all the same, nobody knows what the volume holds.
            Op::Exchange { .. }
            | Op::Drop { .. }
            | Op::SetMode { .. }
            | Op::SetTimes { .. }
            | Op::RemoveXattr { .. }
            | Op::Begin { .. } => Err(Errno::IO),
        }
    }

    /// Journals the size and a range of a file as they are.
    fn restate(&mut self, id: FileId, offset: u64, length: u64) -> Result<(), Errno> {
        let volume = Arc::clone(&self.sequencer.volume);
        let size = volume.attributes(id)?.size;
        self.restore(&Op::Truncate { id, size })?;
        let mut at = offset;
        let end = offset.saturating_add(length).min(size);
        let mut buffer = vec![0; 1 << 20];
        while at < end {
            let (content, upto) = volume.extent(id, at, end)?;
            if !content {
                self.restore(&Op::Punch { id, offset: at, length: upto - at })?;
                at = upto;
                continue;
            }
            let wanted = usize::try_from(upto - at).unwrap_or(usize::MAX).min(buffer.len());
            let got = volume.read(id, at, &mut buffer[..wanted])?;
            if got == 0 {
                break;
            }
            self.restore(&Op::Write { id, offset: at, data: &buffer[..got] })?;
            at += got as u64;
        }
        Ok(())
    }
}
