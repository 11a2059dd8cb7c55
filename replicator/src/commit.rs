//! Who waits for which operation, and when it may be told that its data is safe. Keeps the upper half of the ladder of
//! positions (durable, received, committed); the rule comes from the member, the marks from the journal and the peer.
//!
//! What must always hold: the rule is asked immediately before each reply, with the marks of that instant; a flush that
//! failed is never tried again; nobody is told before the rule allows it, and everybody is told in the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use tandem_protocol::ack::{AckRule, Marks, acknowledged};
use tokio::sync::watch;

use crate::bisect::last_that;
use crate::clock;
use crate::crew::{self, Bell, Turn};
use crate::journal::Journal;
use crate::metrics::Metrics;

/// Operations nobody asked to flush are flushed after this time, so that the committed mark goes on without them.
const LAZY_FLUSH: Duration = Duration::from_millis(200);

/// Whoever writes further ahead of what is acknowledged is held up: a sync waits for all of it, and a peer that falls behind for
/// good would have to be compared anew.
const AHEAD_MAX_BYTES: u64 = 128 << 20;
/// For so long a write is held up at most. It was promised nothing, so it is never told of an error, and whoever writes gets
/// on, slowly, where nothing is acknowledged for long; and a signal that breaks a wait off (after five seconds) never meets it:
/// it would say that nothing was written.
const PACED_MAX: Duration = Duration::from_secs(2);
/// No record is larger: a request of a mebibyte, and what stands before it.
const RECORD_MAX_BYTES: u64 = (1 << 20) + 4096;

/// Called once, when the journal cannot be made durable any more.
pub type OnFailure = Box<dyn Fn() + Send + Sync>;

type Waiter = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// Hears at once what happens here, from whoever makes it happen: it must not wait, and not call back.
pub trait Follower: Send + Sync {
    /// Somebody waits for everything up to this operation: the peer is to flush up to it.
    fn asked(&self, seq: u64);
    /// Up to here nothing will be taken back: what the replicant may apply.
    fn committed(&self, seq: u64);
}

/// The ladder's upper half, and the replies that wait for it. Share it by `Arc`.
pub struct Commit {
    journal: Arc<Journal>,
    state: Mutex<State>,
    /// Wakes the worker that flushes.
    wanted: Bell,
    durable: watch::Sender<u64>,
    committed: AtomicU64,
    /// `Marks::acknowledged`, for whoever only wants to look.
    acknowledged: AtomicU64,
    /// Up to here no write needs to be held up, whatever is acknowledged meanwhile.
    unpaced: AtomicU64,
    follower: Mutex<Option<Weak<dyn Follower>>>,
    on_failure: OnFailure,
    /// Where answers are counted, once that is known.
    metrics: OnceLock<Arc<Metrics>>,
}

/// A write that is answered once an operation is acknowledged, or when its time is over.
struct Paced {
    behind: u64,
    /// On the monotonic clock.
    until: Duration,
    reply: Box<dyn FnOnce() + Send>,
}

#[derive(Default)]
struct State {
    rule: AckRule,
    marks: Marks,
    /// Replies by the operation they wait for.
    waiting: BTreeMap<u64, Vec<Waiter>>,
    /// Writes that are held up.
    paced: Vec<Paced>,
    /// The highest operation that somebody waits for.
    asked: u64,
    /// Replies fail instead of waiting.
    failing: bool,
    ended: bool,
}

impl Commit {
    /// Starts the worker that flushes the journal.
    pub fn start(journal: Arc<Journal>, on_failure: OnFailure) -> std::io::Result<Arc<Self>> {
        let durable = journal.durable();
        let commit = Arc::new(Self {
            journal,
            state: Mutex::new(State { marks: Marks { durable, ..Marks::default() }, ..State::default() }),
            wanted: Bell::default(),
            durable: watch::Sender::new(durable),
            committed: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            unpaced: AtomicU64::new(0),
            follower: Mutex::new(None),
            on_failure,
            metrics: OnceLock::new(),
        });
        let flusher = Arc::clone(&commit);
        crew::hire("commit", &commit.wanted, move |due| flusher.flush(due))?;
        Ok(commit)
    }

    /// Counts answers from now on.
    pub fn count_into(&self, metrics: Arc<Metrics>) {
        // A second place would count the same answers twice.
        self.metrics.get_or_init(|| metrics);
    }

    /// The rule for every reply from now on. Returns the highest operation acknowledged before.
    pub fn set_rule(&self, rule: AckRule) -> u64 {
        let mut state = self.state.lock();
        let before = self.refresh(&mut state);
        state.rule = rule;
        self.settle(state);
        before
    }

    /// The peer holds everything up to these marks, as it said over this connection.
    pub fn peer_ack(&self, session: u64, received: u64, durable: u64) {
        let mut state = self.state.lock();
        let marks = &mut state.marks;
        if marks.session == Some(session) || mistake!(MarksOfOldSession) {
            marks.peer_received = marks.peer_received.max(received);
            marks.peer_durable = marks.peer_durable.max(durable);
        } else {
            marks.session = Some(session);
            (marks.peer_received, marks.peer_durable) = (received, durable);
        }
        self.settle(state);
    }

    /// Looks again at what waits: entitlement may have been renewed or have run out.
    pub fn tick(&self) {
        self.settle(self.state.lock());
    }

    /// The highest operation that was, or may at once be, acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.refresh(&mut self.state.lock())
    }

    /// Who hears of everything from now on, in place of whoever did before; and of what happened already.
    pub fn follow(&self, follower: Weak<dyn Follower>) {
        *self.follower.lock() = Some(follower);
        let asked = self.state.lock().asked;
        self.tell(|follower| {
            follower.asked(asked);
            follower.committed(self.committed.load(Ordering::Acquire));
        });
    }

    fn tell(&self, news: impl FnOnce(&dyn Follower)) {
        let follower = self.follower.lock().as_ref().and_then(Weak::upgrade);
        if let Some(follower) = follower {
            news(&*follower);
        }
    }

    /// Tells the highest durable operation after each flush.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.durable.subscribe()
    }

    /// The marks as they are.
    pub fn marks(&self) -> Marks {
        self.state.lock().marks
    }

    /// Calls `reply` once everything up to `seq` may be acknowledged, perhaps at once, perhaps from another thread.
    pub fn when_acknowledged(&self, seq: u64, reply: Waiter) {
        let reply = match self.metrics.get() {
            Some(metrics) => {
                let (metrics, since) = (Arc::clone(metrics), clock::monotonic());
                Box::new(move |told: Result<(), Errno>| {
                    metrics.synced(clock::monotonic().saturating_sub(since), told.is_ok());
                    reply(told);
                })
            }
            None => reply,
        };
        let mut state = self.state.lock();
        if state.failing || state.ended {
            drop(state);
            return reply(Err(Errno::IO));
        }
        if self.refresh(&mut state) >= seq {
            drop(state);
            return reply(Ok(()));
        }
        state.waiting.entry(seq).or_default().push(reply);
        self.ask(seq, state);
    }

    /// Sees to it that an operation becomes durable, here and at the peer.
    fn ask(&self, seq: u64, mut state: MutexGuard<'_, State>) {
        let is_news = seq > state.asked;
        state.asked = state.asked.max(seq);
        drop(state);
        if is_news {
            // The peer first: its way is the longer one.
            self.tell(|follower| follower.asked(seq));
            self.wanted.ring();
        }
    }

    /// Whether a write that nobody wants to be safe yet is to be answered later, and after which earlier operation: one that
    /// went far ahead of what is acknowledged goes on at the pace of whoever is slowest.
    pub fn pace(&self, seq: u64) -> Option<u64> {
        if seq <= self.unpaced.load(Ordering::Acquire) {
            return None;
        }
        let acknowledged = self.acknowledged.load(Ordering::Acquire);
        let ahead = |from| self.journal.bytes_between(from, seq);
        if let Some(room) = AHEAD_MAX_BYTES.checked_sub(ahead(acknowledged)) {
            // So many more cannot be too much: to ask for each (4 KiB at random) costs a tenth of what it takes to write.
            self.unpaced.fetch_max(seq + room / RECORD_MAX_BYTES, Ordering::AcqRel);
            return None;
        }
        Some(last_that(acknowledged, seq, |from| ahead(from) > AHEAD_MAX_BYTES) + 1)
    }

    /// Calls `reply` once an operation is acknowledged, or a moment later if it is not: for a write that `pace` holds up.
    pub fn when_paced(&self, behind: u64, reply: Box<dyn FnOnce() + Send>) {
        if let Some(metrics) = self.metrics.get() {
            metrics.paced.inc();
        }
        let mut state = self.state.lock();
        if state.failing || state.ended || self.refresh(&mut state) >= behind {
            drop(state);
            return reply();
        }
        state.paced.push(Paced { behind, until: clock::monotonic() + PACED_MAX, reply });
        self.ask(behind, state);
    }

    /// Everybody who waits is told EIO, and so is everybody who comes, until `recover`.
    pub fn fail(&self) {
        let mut state = self.state.lock();
        state.failing = true;
        let waiting = std::mem::take(&mut state.waiting);
        let paced = std::mem::take(&mut state.paced);
        drop(state);
        waiting.into_values().flatten().for_each(|reply| reply(Err(Errno::IO)));
        paced.into_iter().for_each(|write| (write.reply)());
    }

    /// Replies wait again.
    pub fn recover(&self) {
        self.state.lock().failing = false;
    }

    /// Ends the flushing; whoever still waits is told EIO.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.wanted.ring();
        self.fail();
    }

    /// Brings the marks up to date and returns what may be acknowledged.
    fn refresh(&self, state: &mut State) -> u64 {
        let now = u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX);
        if let AckRule::WithinLag { max_lag_bytes, .. } = state.rule {
            state.marks.within_lag = self.within(state.marks.peer_durable, state.marks.durable, max_lag_bytes);
        }
        let before = state.marks.acknowledged;
        state.marks.acknowledged = acknowledged(state.rule, &state.marks, now);
        if mistake!(AckBeforePeer) {
            state.marks.acknowledged = state.marks.durable;
        }
        if let Some(metrics) = self.metrics.get()
            && state.marks.acknowledged > before
        {
            metrics.acknowledged.inc_by(state.marks.acknowledged - before);
        }
        self.acknowledged.store(state.marks.acknowledged, Ordering::Release);
        state.marks.acknowledged
    }

    /// The highest operation such that the records after `from` up to it take no more than this many bytes.
    fn within(&self, from: u64, durable: u64, bytes: u64) -> u64 {
        if self.journal.bytes_between(from, durable) <= bytes {
            return durable;
        }
        last_that(from, durable, |to| self.journal.bytes_between(from, to) <= bytes)
    }

    /// Answers everybody whose time has come, outside of the lock.
    fn settle(&self, mut state: MutexGuard<'_, State>) {
        let reached = self.refresh(&mut state);
        // Without a peer's word (Async), what is durable here will not be taken back by this member: its peer may show it.
        let committed = match state.rule {
            AckRule::WithinLag { .. } => state.marks.durable,
            AckRule::Nothing | AckRule::WithPeer { .. } | AckRule::Alone { .. } => reached,
        };
        let later = state.waiting.split_off(&(reached + 1));
        let ready = std::mem::replace(&mut state.waiting, later);
        let paced = if state.paced.is_empty() {
            Vec::new()
        } else {
            let now = clock::monotonic();
            state.paced.extract_if(.., |write| write.behind <= reached || write.until <= now).collect()
        };
        drop(state);
        if self.committed.fetch_max(committed, Ordering::AcqRel) < committed {
            self.tell(|follower| follower.committed(committed));
        }
        ready.into_values().flatten().for_each(|reply| reply(Ok(())));
        paced.into_iter().for_each(|write| (write.reply)());
    }

    /// One turn of the worker that flushes. `due`: nobody asked for a while.
    fn flush(&self, due: bool) -> Turn {
        let state = self.state.lock();
        if state.ended {
            return Turn::Done;
        }
        if state.asked <= state.marks.durable && !(due && self.journal.end().seq > state.marks.durable) {
            drop(state);
            if due {
                // Entitlement runs out by time alone.
                self.tick();
            }
            return Turn::Wait(Some(LAZY_FLUSH));
        }
        drop(state);
        match self.journal.sync() {
            Ok(durable) => {
                let mut state = self.state.lock();
                state.marks.durable = state.marks.durable.max(durable);
                self.settle(state);
                self.durable.send_replace(durable);
                Turn::Again
            }
            Err(error) => {
                tracing::error!(%error, "the journal cannot be made durable; this process acknowledges nothing more");
                self.state.lock().ended = true;
                self.fail();
                (self.on_failure)();
                Turn::Done
            }
        }
    }
}
