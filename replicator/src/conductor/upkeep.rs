//! What has to be done now and then: checkpoints, so that a start has little to redo and the journal may forget; and the
//! numbers that are shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::{Conductor, leads};
use crate::checkpoint;
use crate::clock;
use crate::journal::retention::{Known, retain};

/// A checkpoint is taken after this time,
const AGE: Duration = Duration::from_secs(30);
/// or after so many bytes of journal.
const BYTES: u64 = 64 << 20;

/// When the last checkpoint was taken.
#[derive(Default)]
pub(super) struct Upkeep {
    running: Arc<AtomicBool>,
    checkpoint: Arc<AtomicU64>,
    taken: Duration,
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
        let since = self.upkeep.checkpoint.load(Ordering::Acquire);
        let due =
            clock::monotonic().saturating_sub(self.upkeep.taken) > AGE || journal.bytes_between(since, end.seq) > BYTES;
        if !due || end.seq <= since || self.stages.copy.is_some() || self.upkeep.running.load(Ordering::Acquire) {
            return;
        }
        let Some(volume) = self.stages.volume.clone() else { return };
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
        let peer_durable = self.stages.commit.as_ref().map(|commit| commit.marks().peer_durable);
        let bytes_max = volume.statfs().map_or(u64::MAX, |space| space.blocks * space.block_size / 10);
        let (running, taken) = (Arc::clone(&self.upkeep.running), Arc::clone(&self.upkeep.checkpoint));
        running.store(true, Ordering::Release);
        tokio::task::spawn_blocking(move || {
            match checkpoint::take(&volume, &manifest, &journal) {
                Ok(()) => {
                    taken.store(position.seq, Ordering::Release);
                    let known =
                        Known { checkpoint: position.seq, peer_durable, bytes: journal.bytes_on_disk(), bytes_max };
                    let verdict = retain(known);
                    if verdict.peer_left_behind {
                        tracing::warn!("the journal has reached its limit: the peer will have to be compared");
                    }
                    if let Err(error) = journal.trim_below(verdict.trim_below) {
                        tracing::error!(%error, "the journal cannot forget");
                    }
                }
                // The last one still holds; the journal grows meanwhile.
                Err(error) => tracing::error!(%error, "no checkpoint could be taken"),
            }
            running.store(false, Ordering::Release);
        });
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
