//! Which threads look for requests, and for how long before they sleep: to be woken costs more than most requests do.

use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// A thread looks so long for the next request before it sleeps, at most, and at least if it looks at all.
const LOOK_MAX: Duration = Duration::from_micros(100);
const LOOK_MIN: Duration = Duration::from_micros(10);
/// So many requests in a row that had been waiting already are more than one thread can serve.
const CROWD: u32 = 4;
/// A request that takes longer does not keep others waiting: somebody looks so often whether anybody looks for requests.
const GUARD_EVERY: Duration = Duration::from_millis(5);
/// After so many looks in vain the guard sleeps until something comes.
const GUARD_LOOKS: u32 = 20;

/// How long a thread looks for the next request: for as long as it was worth while lately.
#[derive(Default)]
pub(super) struct Patience {
    look: Duration,
    /// Whoever made the last request waits for disks and a peer, and will not make another one soon.
    hopeless: bool,
    /// Requests that were there as soon as the one before was answered.
    in_a_row: u32,
}

impl Patience {
    /// How long to look now.
    pub(super) fn limit(&self) -> Duration {
        if self.hopeless { Duration::ZERO } else { self.look }
    }

    /// Whether the next request will not come soon.
    pub(super) fn set_hopeless(&mut self, hopeless: bool) {
        self.hopeless = hopeless;
    }

    /// A request had been waiting already.
    pub(super) fn found_at_once(&mut self) {
        self.in_a_row += 1;
    }

    pub(super) fn found_nothing(&mut self) {
        self.in_a_row = 0;
    }

    /// A request came while the thread slept, so long after it had begun to look.
    pub(super) fn came_after(&mut self, waited: Duration) {
        if waited < LOOK_MAX {
            self.look_longer();
        } else if !self.hopeless {
            self.look_shorter();
        }
        self.hopeless = false;
    }

    pub(super) fn look_longer(&mut self) {
        self.look = (self.look * 2).clamp(LOOK_MIN, LOOK_MAX);
    }

    fn look_shorter(&mut self) {
        self.look = if self.look >= LOOK_MIN * 2 { self.look / 2 } else { Duration::ZERO };
    }

    pub(super) fn is_crowd(&mut self) -> bool {
        let crowd = self.in_a_row >= CROWD;
        if crowd {
            self.in_a_row = 0;
        }
        crowd
    }
}

/// Which threads look for requests. The kernel wakes a thread for each request if one sleeps in `read`, also when another
/// one is about to take it; so threads that are not needed rest here, where it does not see them.
///
/// What must always hold: while requests may come, somebody looks for them, or all who looked are busy and will be back
/// soon, or a guard takes their place after a while. A thread that takes something long calls another one at once.
#[derive(Default)]
pub(super) struct Watch {
    state: Mutex<Watching>,
    /// Where threads rest.
    bench: Condvar,
    /// Where the one rests that looks after the others.
    post: Condvar,
}

#[derive(Default)]
struct Watching {
    /// Threads that look for requests, those that were called included. Whoever answers one is not among them.
    looking: usize,
    /// Threads that rest, the guard and those that were called and have not heard it yet included.
    resting: usize,
    /// How many of those that rest have been called.
    called: usize,
    guarded: bool,
    /// The guard sleeps.
    quiet: bool,
    /// Requests that were taken, so that the guard sees whether anything moves.
    taken: u64,
    ended: bool,
}

pub(super) enum Rest {
    /// Nobody else looks.
    Alone,
    /// Somebody wants this thread to look.
    Called,
    /// The connection is over.
    Over,
}

impl Watch {
    /// A thread looks for requests again.
    pub(super) fn back(&self) {
        self.state.lock().looking += 1;
    }

    /// A thread has taken a request and will be `back`. `replaced`: somebody has to look meanwhile.
    pub(super) fn took(&self, replaced: bool) {
        let mut state = self.state.lock();
        state.taken += 1;
        state.looking -= 1;
        let calls = replaced && state.looking == 0 && state.called < state.resting;
        // The guard is called last, so that it need not hand its duty over.
        let calls_guard = calls && state.resting - usize::from(state.guarded) <= state.called;
        let wakes_guard = std::mem::take(&mut state.quiet);
        if calls {
            state.called += 1;
            state.looking += 1;
        }
        drop(state);
        if calls && !calls_guard {
            self.bench.notify_one();
        }
        if calls_guard || wakes_guard {
            self.post.notify_one();
        }
    }

    /// Rests until it is called, unless nobody else looks.
    pub(super) fn rest(&self) -> Rest {
        let mut state = self.state.lock();
        if state.ended {
            return Rest::Over;
        }
        if state.looking <= 1 {
            return Rest::Alone;
        }
        state.looking -= 1;
        state.resting += 1;
        loop {
            if state.ended {
                return Rest::Over;
            }
            if state.called > 0 {
                state.called -= 1;
                break;
            }
            if state.guarded {
                self.bench.wait(&mut state);
                continue;
            }
            state.guarded = true;
            let is_missed = self.stand_guard(&mut state);
            state.guarded = false;
            if is_missed {
                state.looking += 1;
                break;
            }
        }
        state.resting -= 1;
        let wants_guard = !state.guarded && state.resting > 0;
        drop(state);
        if wants_guard {
            self.bench.notify_one();
        }
        Rest::Called
    }

    /// Looks every now and then whether anybody looks for requests. True: nobody does, and whoever took the last one was not
    /// back for a while.
    fn stand_guard(&self, state: &mut MutexGuard<'_, Watching>) -> bool {
        let (mut seen, mut in_vain) = (state.taken, 0);
        loop {
            if in_vain < GUARD_LOOKS {
                self.post.wait_for(state, GUARD_EVERY);
            } else {
                state.quiet = true;
                self.post.wait(state);
                state.quiet = false;
                in_vain = 0;
            }
            if state.ended || state.called > 0 {
                return false;
            }
            if state.taken != seen {
                (seen, in_vain) = (state.taken, 0);
            } else if state.looking == 0 {
                return true;
            } else {
                in_vain += 1;
            }
        }
    }

    /// Nobody needs to look any more.
    pub(super) fn end(&self) {
        self.state.lock().ended = true;
        self.bench.notify_all();
        self.post.notify_all();
    }
}
