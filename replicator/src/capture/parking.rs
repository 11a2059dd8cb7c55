//! Answers that wait for something which may take long: a peer, a record, a gate. The kernel says when a process that waits
//! was signalled; one that was killed must be able to die, so its request is answered EINTR.
//!
//! The kernel does not say which signal it was, and programs that treat any failure of fsync as the end exist. So an
//! interrupted request goes on waiting for a while: a hold that ends soon shows to nobody.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::transport::Reply;
use crate::clock;

/// So long an interrupted request goes on waiting: longer than it takes to notice that a peer is gone and to record it.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Interrupts that overtook their request, so many at most: another thread has read it and not put it down yet.
const EARLY_MAX: usize = 256;

/// The answers of one connection that wait.
#[derive(Default)]
pub(crate) struct Parking {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    parked: HashMap<u64, Parked>,
    early: VecDeque<u64>,
    /// A thread looks after those that were interrupted.
    looking: bool,
}

struct Parked {
    reply: Reply,
    interrupted: Option<Instant>,
}

/// Gives the answer back, once, unless it was withdrawn meanwhile. Dropped, it drops the answer.
#[must_use]
pub(crate) struct Ticket {
    parking: Arc<Parking>,
    unique: u64,
}

impl Parking {
    /// Puts an answer down. `unique` is the request's number.
    pub(super) fn park(self: &Arc<Self>, unique: u64, reply: Reply) -> Ticket {
        let mut state = self.state.lock();
        let interrupted = match state.early.iter().position(|early| *early == unique) {
            Some(at) => state.early.remove(at).map(|_| clock::instant()),
            None => None,
        };
        state.parked.insert(unique, Parked { reply, interrupted });
        if interrupted.is_some() {
            self.look(state);
        }
        Ticket { parking: Arc::clone(self), unique }
    }

    /// Whoever waits for this request was signalled.
    pub(super) fn interrupt(self: &Arc<Self>, unique: u64) {
        let mut state = self.state.lock();
        match state.parked.get_mut(&unique) {
            Some(parked) => {
                parked.interrupted.get_or_insert_with(clock::instant);
                self.look(state);
            }
            None => {
                // Most of these are being answered at this moment and never come here.
                state.early.push_back(unique);
                if state.early.len() > EARLY_MAX {
                    state.early.pop_front();
                }
            }
        }
    }

    /// Sees to it that somebody looks after those that were interrupted, for as long as there are any.
    fn look(self: &Arc<Self>, mut state: parking_lot::MutexGuard<'_, State>) {
        if std::mem::replace(&mut state.looking, true) {
            return;
        }
        drop(state);
        let parking = Arc::clone(self);
        let started = std::thread::Builder::new().name("capture-interrupted".into()).spawn(move || {
            while parking.withdraw_due(PATIENCE) {
                std::thread::sleep(LOOK_EVERY);
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "interrupted requests are withdrawn at once");
            self.withdraw_due(Duration::ZERO);
            self.state.lock().looking = false;
        }
    }

    /// Answers those that have waited long enough; whether any are left.
    fn withdraw_due(&self, patience: Duration) -> bool {
        let mut state = self.state.lock();
        let due = |parked: &Parked| parked.interrupted.is_some_and(|since| since.elapsed() >= patience);
        let uniques: Vec<u64> =
            state.parked.iter().filter(|(_, parked)| due(parked)).map(|(unique, _)| *unique).collect();
        let withdrawn: Vec<Parked> = uniques.iter().filter_map(|unique| state.parked.remove(unique)).collect();
        let some_left = state.parked.values().any(|parked| parked.interrupted.is_some());
        state.looking = some_left;
        drop(state);
        for parked in withdrawn {
            parked.reply.error(Errno::INTR);
        }
        some_left
    }
}

impl Ticket {
    /// The answer; `None`: it was withdrawn, and nobody waits.
    pub(crate) fn take(self) -> Option<Reply> {
        self.parking.state.lock().parked.remove(&self.unique).map(|parked| parked.reply)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let parked = self.parking.state.lock().parked.remove(&self.unique);
        // Outside of the lock: a reply that is dropped is answered.
        drop(parked);
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Ticket({:#x})", self.unique)
    }
}
