//! Whether a volume has room for an operation, beside what Tandem itself may have to write there.
//!
//! A volume that is used up to the last byte cannot be helped any more: what would remove something has to be journaled
//! first. So some of it is always left, on both members; on the replicant less, so that it is not the first to refuse.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::io::Errno;

use crate::clock;
use crate::journal::Journal;
use crate::op::Op;
use crate::volume::Volume;

/// What a master leaves free on its volume, so that an operation that passed the check rarely fails afterwards.
const RESERVE_BYTES: u64 = 16 << 20;
/// Below so many bytes beside what is kept, the applier writes out what it has performed before it believes what is free.
const NEAR_BYTES: u64 = 64 << 20;

/// Who asks for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// The application.
    Capture,
    /// The journal of somebody who was not refused: what is left is for the identity, the checkpoint, and the journal.
    Apply,
}

impl For {
    /// Free space of the volume is asked for again after this time. On the replicant only Tandem writes, and it counts.
    fn age_millis(self) -> u64 {
        match self {
            For::Capture => 100,
            For::Apply => 1000,
        }
    }

    fn reserve(self) -> u64 {
        match self {
            For::Capture => RESERVE_BYTES,
            For::Apply => RESERVE_BYTES / 2,
        }
    }
}

/// How much room there is, as last heard.
pub(crate) struct Space {
    whose: For,
    free: AtomicU64,
    /// When `free` was asked for, in milliseconds; 0: never.
    asked: AtomicU64,
    /// No file can be made any more; what is there can be written to.
    no_files: AtomicBool,
    /// Nothing is left free any more.
    to_the_end: AtomicBool,
}

impl Space {
    pub(crate) fn new(whose: For) -> Self {
        Self {
            whose,
            free: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            no_files: AtomicBool::new(false),
            to_the_end: AtomicBool::new(false),
        }
    }

    /// From now on the last byte may be used: nothing will follow, and all of it must show.
    pub(crate) fn use_everything(&self) {
        self.to_the_end.store(true, Ordering::Release);
    }

    /// Something may follow again.
    pub(crate) fn leave_some(&self) {
        self.to_the_end.store(false, Ordering::Release);
        self.asked.store(0, Ordering::Release);
    }

    /// Refuses what there is no room for.
    pub(crate) fn check(&self, volume: &Volume, journal: &Journal, op: &Op<'_>) -> Result<(), Errno> {
        let needed = Volume::space_needed(op);
        if needed == 0 || self.to_the_end.load(Ordering::Acquire) {
            return Ok(());
        }
        let now = u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX).max(1);
        let asked = self.asked.load(Ordering::Acquire);
        if asked == 0 || now.saturating_sub(asked) > self.whose.age_millis() {
            self.ask(volume, journal, now)?;
        }
        if matches!(op, Op::Create { .. } | Op::CreateUnnamed { .. }) && self.no_files.load(Ordering::Acquire) {
            self.ask(volume, journal, now)?;
            if self.no_files.load(Ordering::Acquire) {
                return Err(Errno::NOSPC);
            }
        }
        // Not exact when several write at once: that is what the reserve is for.
        let mut free = self.free.load(Ordering::Acquire);
        if needed > free {
            // Looked at first: to ask is dearer where little is left.
            if volume.overwrites(op) {
                return Ok(());
            }
            // Room may have come back since it was asked for.
            self.ask(volume, journal, now)?;
            free = self.free.load(Ordering::Acquire);
            if needed > free {
                return Err(Errno::NOSPC);
            }
        }
        let less = |free: u64| Some(free.saturating_sub(needed));
        // Fails never: it always says how much is left.
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).ok();
        Ok(())
    }

    fn ask(&self, volume: &Volume, journal: &Journal, now: u64) -> Result<(), Errno> {
        let mut space = volume.statfs()?;
        let kept = kept(self.whose, space.total_bytes(), journal.room_wanted());
        // Btrfs counts what was written only when it lies on the disk, and here nobody syncs.
        if self.whose == For::Apply && space.available_bytes() < kept + NEAR_BYTES {
            volume.flush_all().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            space = volume.statfs()?;
        }
        self.free.store(space.available_bytes().saturating_sub(kept), Ordering::Release);
        self.no_files.store(space.files > 0 && space.files_free == 0, Ordering::Release);
        self.asked.store(now, Ordering::Release);
        Ok(())
    }
}

/// How many bytes stay free on a volume of `total` bytes whose journal still wants `journal` bytes. Of a small volume only so
/// much that it can be used at all.
fn kept(whose: For, total: u64, journal: u64) -> u64 {
    whose.reserve().min(total / 32) + journal.min(total / 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replicant_leaves_less_free_than_its_master_and_a_small_volume_little() {
        const MIB: u64 = 1 << 20;
        let large = 100 << 30;
        assert_eq!(kept(For::Capture, large, 0), 16 * MIB);
        assert_eq!(kept(For::Apply, large, 0), 8 * MIB);
        assert_eq!(kept(For::Capture, large, 32 * MIB), 48 * MIB);
        assert_eq!(kept(For::Capture, 64 * MIB, 32 * MIB), 2 * MIB + 4 * MIB);
        assert_eq!(kept(For::Apply, 64 * MIB, 32 * MIB), 2 * MIB + 4 * MIB);
    }
}
