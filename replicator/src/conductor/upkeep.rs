//! What has to be done now and then: checkpoints, so that a start has little to redo and the journal may forget; and the
//! numbers that are shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tandem_protocol::member::effect::StateName;

use super::{Conductor, leads};
use crate::checkpoint;
use crate::clock;
use crate::crew::blocking;
use crate::journal::Journal;
use crate::journal::retention::{Known, Verdict, retain};
use crate::volume::Volume;

/// While a record has no room, a checkpoint is taken after this time.
const NO_ROOM_AGE: Duration = Duration::from_secs(1);
/// While the journal has no room for its next segment, and a checkpoint would give it one: somebody may fill the last one in a
/// second.
const NO_SEGMENT_AGE: Duration = Duration::from_millis(100);

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

/// What is known of a journal's checkpoints. Another journal, or the same begun anew, has others.
#[derive(Default)]
pub(super) struct Upkeep {
    running: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
    /// Where the last one was taken.
    checkpoint: Arc<AtomicU64>,
    /// The last attempt failed.
    failed: Arc<AtomicBool>,
    /// When the last attempt began.
    taken: Duration,
}

impl Upkeep {
    fn is_running(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.is_finished())
    }

    /// Ends when nothing of it works on any more.
    pub(super) async fn finish(self) {
        if let Some(running) = self.running
            && let Err(error) = running.await
        {
            tracing::error!(%error, "upkeep ended early");
        }
    }
}

/// What of the journal the peer may still need: it has all up to `shared`, and gets at most `bytes_max`.
#[derive(Clone, Copy)]
struct Keeping {
    shared: u64,
    bytes_max: u64,
}

impl Keeping {
    /// What may go of a journal when the volume itself holds everything up to `checkpoint`.
    fn verdict(self, journal: &Journal, checkpoint: u64) -> Verdict {
        let Keeping { shared, bytes_max } = self;
        let mut verdict = retain(Known { checkpoint, shared, bytes: journal.bytes_on_disk(), bytes_max });
        if mistake!(TrimsTooEarly) {
            verdict.trim_below = journal.end().seq;
        }
        verdict
    }
}

/// Lets the journal forget what is behind the checkpoint and needed by nobody.
fn forget(journal: &Journal, checkpoint: u64, keeping: Keeping) {
    let verdict = keeping.verdict(journal, checkpoint);
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
        let (Some(journal), Some(volume)) = (self.stages.journal.clone(), self.stages.volume.clone()) else { return };
        // A copy needs all that follows its beginning.
        if self.stages.copy.is_some() {
            return journal.foresee(0);
        }
        // How far a checkpoint would reach.
        let (reach, is_blocked) = match (&self.stages.capture, &self.stages.applier) {
            (Some(_), _) if leads(self.state) => (journal.end().seq, false),
            // The volume stands where this member's reign ended, and shows nothing of what it follows: the journal keeps it
            // for the process that comes next.
            (Some(_), _) | (None, None) => return,
            (None, Some(applier)) => {
                let applied = applier.applied();
                let applied = applied.borrow();
                (applied.seq, applied.no_room)
            }
        };
        let since = self.upkeep.checkpoint.load(Ordering::Acquire);
        let keeping = self.keeping(&volume);
        // While none succeeds, none is to be counted on.
        let next = if self.upkeep.failed.load(Ordering::Acquire) { since } else { reach.max(since) };
        journal.foresee(keeping.verdict(&journal, next).trim_below);
        if self.upkeep.is_running() {
            return;
        }
        let age = clock::monotonic().saturating_sub(self.upkeep.taken);
        if reach <= since {
            let is_due = is_blocked && age > NO_ROOM_AGE;
            if is_due || journal.trims(keeping.verdict(&journal, since).trim_below) {
                self.upkeep.taken = clock::monotonic();
                self.in_background(move || {
                    // The file system commits what was removed: some give its room back only then.
                    if is_due && let Err(error) = volume.flush_all() {
                        tracing::error!(%error, "the volume could not be flushed");
                    }
                    forget(&journal, since, keeping);
                });
            }
            return;
        }
        let rhythm = self.given.upkeep;
        // A checkpoint lets the journal give room back, or go on in a segment of its own.
        let is_due = age > rhythm.checkpoint_age
            || (is_blocked && age > NO_ROOM_AGE)
            || (journal.waits_for_checkpoint() && age > NO_SEGMENT_AGE)
            || (!is_blocked && journal.bytes_between(since, journal.end().seq) > rhythm.checkpoint_bytes);
        if !is_due {
            return;
        }
        let manifest = match (&self.stages.capture, &self.stages.applier) {
            (Some(capture), _) => {
                let _still = capture.stand_still();
                volume.snapshot(journal.end())
            }
            (None, Some(applier)) => applier.at_rest(|position| volume.snapshot(position)),
            (None, None) => return,
        };
        let Ok(position) = manifest.position() else { return };
        if position.seq <= since {
            return;
        }
        self.upkeep.taken = clock::monotonic();
        let (taken, failed) = (Arc::clone(&self.upkeep.checkpoint), Arc::clone(&self.upkeep.failed));
        self.in_background(move || {
            let attempt = checkpoint::take(&volume, &manifest, &journal);
            failed.store(attempt.is_err(), Ordering::Release);
            match attempt {
                Ok(()) => {
                    taken.store(position.seq, Ordering::Release);
                    forget(&journal, position.seq, keeping);
                }
                // The last one still holds; the journal grows meanwhile.
                Err(error) => tracing::error!(%error, "no checkpoint could be taken"),
            }
        });
    }

    fn keeping(&self, volume: &Volume) -> Keeping {
        // A journal whose end is not known to be the pair's history may have a tail that must be saved before it goes.
        let shared = match &self.stages.commit {
            Some(commit) => commit.marks().peer_durable,
            None => self.confirmed.load(Ordering::Acquire),
        };
        // Only where the record says so: what a master keeps that is not certain to lead may be a tail to be saved.
        let alone =
            matches!(self.state, StateName::PrimaryAlone | StateName::PrimaryJoining) && self.stages.shipper.is_none();
        // What the peer lacks is kept for it up to a tenth of the volume; but not when the application has no room any more,
        // and needs a place in the journal even to remove something.
        let bytes_max = volume.statfs().map_or(u64::MAX, |space| {
            let is_full = alone && space.available_bytes() < 2 * self.given.upkeep.segment_bytes;
            if is_full { 0 } else { space.total_bytes() / 10 }
        });
        Keeping { shared, bytes_max }
    }

    /// Does one thing at a time, while the conductor goes on.
    fn in_background(&mut self, work: impl FnOnce() + Send + 'static) {
        self.upkeep.running = Some(tokio::spawn(blocking(move || {
            work();
            Ok(())
        })));
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
