//! What has to be done now and then: checkpoints, so that a start has little to redo and the journal may forget; and the
//! numbers that are shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::{Conductor, leads};
use crate::checkpoint;
use crate::clock;
use crate::crew::blocking;
use crate::journal::Journal;
use crate::journal::retention::{Known, retain};
use crate::volume::Volume;

/// While a record or the journal has no room, a checkpoint is taken after this time.
const NO_ROOM_AGE: Duration = Duration::from_secs(1);

/// How often something is done for later.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// A checkpoint is taken after this time,
    pub checkpoint_age: Duration,
    /// or after so many bytes of journal.
    pub checkpoint_bytes: u64,
    /// Size of a segment of the journal, in bytes.
    pub segment_bytes: u64,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self { checkpoint_age: Duration::from_secs(30), checkpoint_bytes: 64 << 20, segment_bytes: 32 << 20 }
    }
}

/// When the last checkpoint was taken.
#[derive(Default)]
pub(super) struct Upkeep {
    running: Arc<AtomicBool>,
    checkpoint: Arc<AtomicU64>,
    taken: Duration,
}

/// What of the journal the peer may still need: it has all up to `shared`, and gets at most `bytes_max`.
#[derive(Clone, Copy)]
struct Keeping {
    shared: u64,
    bytes_max: u64,
}

/// Lets the journal forget what is behind the checkpoint and needed by nobody.
fn forget(journal: &Journal, checkpoint: u64, Keeping { shared, bytes_max }: Keeping) {
    let known = Known { checkpoint, shared, bytes: journal.bytes_on_disk(), bytes_max };
    let mut verdict = retain(known);
    if mistake!(TrimsTooEarly) {
        verdict.trim_below = journal.end().seq;
    }
    if verdict.peer_left_behind {
        tracing::warn!("the journal has reached its limit: the peer will have to be compared");
    }
    if let Err(error) = journal.trim_below(verdict.trim_below) {
        tracing::error!(%error, "the journal cannot forget");
    }
}

impl Conductor {
    /// Looks whether something is due.
    pub(super) fn keep_up(&mut self) {
        if let Some(commit) = &self.stages.commit {
            commit.tick();
        }
        self.watch_copy();
        self.show();
        self.account();
        let Some(journal) = self.stages.journal.clone() else { return };
        let end = journal.end();
        let rhythm = self.given.upkeep;
        let since = self.upkeep.checkpoint.load(Ordering::Acquire);
        let blocked = self.stages.applier.as_ref().and_then(|applier| {
            let applied = applier.applied();
            let applied = applied.borrow();
            applied.no_room.then_some(applied.seq)
        });
        let age = clock::monotonic().saturating_sub(self.upkeep.taken);
        // A checkpoint lets the journal give room back, or go on in a segment of its own.
        let is_short = blocked.is_some() || journal.waits_for_checkpoint();
        let due = age > if is_short { NO_ROOM_AGE } else { rhythm.checkpoint_age }
            || (blocked.is_none() && journal.bytes_between(since, end.seq) > rhythm.checkpoint_bytes);
        if !due || end.seq <= since || self.stages.copy.is_some() || self.upkeep.running.load(Ordering::Acquire) {
            return;
        }
        let Some(volume) = self.stages.volume.clone() else { return };
        if blocked.is_some_and(|applied| applied <= since) {
            self.upkeep.taken = clock::monotonic();
            let keeping = self.keeping(&volume);
            // The file system commits what was removed: some give its room back only then. And the journal forgets what it
            // could not when the last checkpoint was taken.
            return self.in_background(move || {
                if let Err(error) = volume.flush_all() {
                    tracing::error!(%error, "the volume could not be flushed");
                }
                forget(&journal, since, keeping);
            });
        }
        let manifest = match (&self.stages.capture, &self.stages.applier) {
            (Some(capture), _) if leads(self.state) => {
                let _still = capture.stand_still();
                volume.snapshot(journal.end())
            }
            // The volume stands where this member's reign ended, and shows nothing of what it follows: the journal keeps it
            // for the process that comes next.
            (Some(_), _) => return,
            (None, Some(applier)) => applier.at_rest(|position| volume.snapshot(position)),
            (None, None) => return,
        };
        let Ok(position) = manifest.position() else { return };
        if position.seq <= since {
            return;
        }
        self.upkeep.taken = clock::monotonic();
        let keeping = self.keeping(&volume);
        let taken = Arc::clone(&self.upkeep.checkpoint);
        self.in_background(move || match checkpoint::take(&volume, &manifest, &journal) {
            Ok(()) => {
                taken.store(position.seq, Ordering::Release);
                forget(&journal, position.seq, keeping);
            }
            // The last one still holds; the journal grows meanwhile.
            Err(error) => tracing::error!(%error, "no checkpoint could be taken"),
        });
    }

    fn keeping(&self, volume: &Volume) -> Keeping {
        // A journal whose end is not known to be the pair's history may have a tail that must be saved before it goes.
        let shared = match &self.stages.commit {
            Some(commit) => commit.marks().peer_durable,
            None => self.confirmed.load(Ordering::Acquire),
        };
        let alone = leads(self.state) && self.stages.shipper.is_none();
        // What the peer lacks is kept for it up to a tenth of the volume; but not when the application has no room any more,
        // and needs a place in the journal even to remove something.
        let bytes_max = volume.statfs().map_or(u64::MAX, |space| {
            let is_full = alone && space.available_bytes() < 2 * self.given.upkeep.segment_bytes;
            if is_full { 0 } else { space.total_bytes() / 10 }
        });
        Keeping { shared, bytes_max }
    }

    /// Does one thing at a time, while the conductor goes on.
    fn in_background(&self, work: impl FnOnce() + Send + 'static) {
        let running = Arc::clone(&self.upkeep.running);
        running.store(true, Ordering::Release);
        tokio::spawn(blocking(move || {
            work();
            running.store(false, Ordering::Release);
            Ok(())
        }));
    }

    fn show(&self) {
        let facts = self.journal_facts();
        let marks = self.stages.commit.as_ref().map(|commit| commit.marks());
        let lag = match (&self.stages.journal, &marks) {
            (Some(journal), Some(marks)) => journal.bytes_between(marks.peer_durable, facts.end.seq),
            (Some(_) | None, Some(_) | None) => 0,
        };
        self.given.shown.update(|shown| {
            shown.journaled = facts.end.seq;
            shown.applied = facts.applied;
            shown.trimmed = facts.first.saturating_sub(1);
            shown.lag_bytes = lag;
            if let Some(marks) = marks.as_ref().filter(|_| leads(self.state)) {
                shown.durable = marks.durable;
                shown.received = marks.peer_received;
                shown.peer_durable = marks.peer_durable;
                shown.committed = marks.acknowledged;
                shown.shipped = self.stages.shipper.as_ref().map_or(shown.shipped, |(_, shipper)| shipper.shipped());
            } else if let Some(journal) = &self.stages.journal {
                (shown.durable, shown.committed) = (journal.durable(), journal.committed());
                (shown.received, shown.peer_durable, shown.shipped, shown.lag_bytes) = (0, 0, 0, 0);
            }
            let moved = self.stages.copy.as_ref().map(super::copy::Copy::moved);
            shown.netcopying = moved.is_some();
            shown.netcopy_bytes = moved.map_or(shown.netcopy_bytes, |moved| moved.progress.bytes_done);
            shown.handled_orders = self.orders.told();
            shown.handled_nomination = self.nomination_handled.clone();
            shown.netcopy = self.copies.told().filter(|_| leads(self.state)).cloned();
        });
    }
}
