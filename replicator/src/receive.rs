//! Follows the master: verifies its records, appends them to the own journal, makes them durable when the master waits for
//! it or after a fifth of a second, and acknowledges. One worker, so that a flush delays nothing but the next record.
//!
//! What the master reports committed is noted in the journal before the flush, and only what such a note covers durably is
//! passed on to be applied: after any crash the journal itself says what may already show on the volume.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::clock;
use crate::crew::{self, Turn};
use crate::journal::{Broken, Journal, JournalError};
use crate::link::{Ack, LinkHandle, Nack, NackReason, RecordsFrame, RecordsLane};

/// What arrived is durable after at most so long, also when nobody asks.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);
/// So much is received before it is acknowledged although nobody asked: the sender's window must not run dry.
const RECEIPT_BYTES: usize = 1 << 20;
/// Frames taken together before one flush.
const FRAMES_MAX: usize = 64;

/// Whom to follow: frames of anything else are not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Following {
    /// The connection.
    pub session: u64,
    /// The generation that was promised.
    pub epoch: u64,
    /// Its nonce.
    pub nonce: u128,
    /// Records may be acknowledged before they are durable. The member has noted durably that it does so.
    pub memory_acks: bool,
}

/// What the conductor hears.
#[derive(Debug)]
pub enum ReceiveEvent {
    /// Following ended: the master was told why, and nothing more is accepted on this connection.
    Stopped {
        /// The connection.
        session: u64,
        /// What the master was told.
        reason: NackReason,
        /// The same for people.
        why: String,
    },
}

/// Called with the highest record that may be applied, from the worker that receives.
pub type OnCommitted = Box<dyn Fn(u64) + Send>;

/// The worker that follows; it lives as long as the link's lane.
pub struct Receiver {
    shared: Arc<Shared>,
}

struct Shared {
    link: LinkHandle,
    /// Held while frames are taken in: who changes it knows that nothing is appended any more. The journal is given with
    /// it, because a member that begins anew has another one.
    following: Mutex<Option<(Following, Arc<Journal>)>>,
    events: mpsc::UnboundedSender<ReceiveEvent>,
}

/// Starts the worker. It follows nobody until told to.
pub fn receive(
    link: LinkHandle,
    lane: RecordsLane,
    on_committed: OnCommitted,
) -> io::Result<(Receiver, mpsc::UnboundedReceiver<ReceiveEvent>)> {
    let (events, events_out) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared { link, following: Mutex::new(None), events });
    let bell = lane.bell.clone();
    let mut intake = Intake {
        shared: Arc::clone(&shared),
        lane,
        late: None,
        on_committed,
        session: 0,
        committed: 0,
        unacknowledged: 0,
        unflushed_since: None,
    };
    crew::hire("receive", &bell, move |due| intake.turn(due))?;
    Ok((Receiver { shared }, events_out))
}

impl Receiver {
    /// Accepts records of this generation on this connection, into this journal, from now on.
    pub fn follow(&self, following: Following, journal: Arc<Journal>) {
        *self.shared.following.lock() = Some((following, journal));
    }

    /// From now on `received` is said only of what is durable. When this returns, nothing else will be said.
    pub fn end_memory_acks(&self) {
        if let Some((following, _)) = &mut *self.shared.following.lock() {
            following.memory_acks = false;
        }
    }

    /// Accepts nothing any more. When this returns, what was accepted before is in the journal and nothing will follow.
    pub fn stop(&self) {
        *self.shared.following.lock() = None;
    }
}

struct Intake {
    shared: Arc<Shared>,
    lane: RecordsLane,
    /// The first frame that was too many for the last turn.
    late: Option<RecordsFrame>,
    on_committed: OnCommitted,
    /// The connection that the rest is about.
    session: u64,
    /// What the master last reported.
    committed: u64,
    /// Bytes received since the last acknowledgement.
    unacknowledged: usize,
    /// When the oldest record that no flush has covered arrived.
    unflushed_since: Option<Duration>,
}

impl Intake {
    fn turn(&mut self, due: bool) -> Turn {
        let next = self.late.take().map_or_else(|| self.lane.frames.try_recv(), Ok);
        match next {
            Ok(first) => {
                self.late = self.take(first);
                Turn::Again
            }
            Err(TryRecvError::Empty) => {
                if due {
                    self.flush_when_due();
                }
                let patience = |since| FLUSH_INTERVAL.saturating_sub(clock::monotonic().saturating_sub(since));
                Turn::Wait(self.unflushed_since.map(patience))
            }
            Err(TryRecvError::Disconnected) => Turn::Done,
        }
    }

    /// Takes in a frame and those that wait behind it, then flushes once for all of them if one asks for it. Returns the
    /// first that was too many for this round.
    fn take(&mut self, first: RecordsFrame) -> Option<RecordsFrame> {
        let shared = Arc::clone(&self.shared);
        let mut following = shared.following.lock();
        let (mut sync, mut receipt) = (false, false);
        let mut frame = Some(first);
        for _ in 0..FRAMES_MAX {
            let Some(current) = frame.take() else { break };
            let followed = following.as_ref().filter(|(following, _)| following.session == current.session);
            let Some((accepted, journal)) = followed else {
                // Of a connection that is over, or sent before anybody agreed to follow.
                frame = self.lane.frames.try_recv().ok();
                continue;
            };
            if self.session != accepted.session {
                // What another master called committed says nothing about this one's history.
                (self.session, self.committed, self.unacknowledged) = (accepted.session, 0, 0);
            }
            if (accepted.epoch, accepted.nonce) != (current.header.epoch, current.header.nonce) {
                self.refuse(&mut following, NackReason::OtherGeneration, "records of another generation".into());
                return None;
            }
            if !current.records().is_empty() {
                if let Err(error) = journal.append_raw(current.records()) {
                    self.refuse(&mut following, reason(&error), error.to_string());
                    return None;
                }
                self.unacknowledged += current.records().len();
                self.unflushed_since.get_or_insert_with(clock::monotonic);
            }
            if current.header.committed > self.committed {
                self.committed = current.header.committed;
                self.unflushed_since.get_or_insert_with(clock::monotonic);
            }
            sync |= current.header.sync;
            receipt |= current.header.receipt;
            drop(current);
            frame = self.lane.frames.try_recv().ok();
        }
        // Whoever waits for the receipt waits for the disk, where memory does not count.
        let from_memory = following.as_ref().is_some_and(|(following, _)| following.memory_acks);
        drop(following);
        self.finish(sync || (receipt && !from_memory), receipt);
        frame
    }

    fn finish(&mut self, sync: bool, receipt: bool) {
        if receipt || self.unacknowledged >= RECEIPT_BYTES || mistake!(AckBeforeFlush) {
            self.acknowledge();
        }
        if mistake!(CommittedBeforeFlush) {
            (self.on_committed)(self.committed);
        }
        if sync && !mistake!(AckBeforeFlush) {
            self.flush();
        } else {
            self.flush_when_due();
        }
    }

    fn flush_when_due(&mut self) {
        let now = clock::monotonic();
        if self.unflushed_since.is_some_and(|since| now.saturating_sub(since) >= FLUSH_INTERVAL) {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut following = shared.following.lock();
        let Some((accepted, journal)) = &*following else {
            self.unflushed_since = None;
            return;
        };
        let flushed = journal.mark_committed(self.committed).and_then(|()| {
            let noted = journal.committed();
            journal.sync().map(|_| noted)
        });
        match flushed {
            Ok(noted) => {
                self.unflushed_since = None;
                self.acknowledge_as(accepted, journal);
                // Still held: nothing is allowed to be applied after somebody stopped this.
                (self.on_committed)(noted);
            }
            Err(error) => self.refuse(&mut following, reason(&error), error.to_string()),
        }
    }

    fn acknowledge(&mut self) {
        let shared = Arc::clone(&self.shared);
        // Held while it is said: whoever ends acknowledgements from memory knows that none follows.
        if let Some((following, journal)) = &*shared.following.lock() {
            self.acknowledge_as(following, journal);
        }
    }

    fn acknowledge_as(&mut self, following: &Following, journal: &Journal) {
        self.unacknowledged = 0;
        let durable = journal.durable();
        let taken = journal.end().seq.max(durable);
        let durable = if mistake!(AckBeforeFlush) { taken } else { durable };
        let received = if following.memory_acks { taken } else { durable };
        // A connection that is gone needs no acknowledgement; the next hello says where this journal ends.
        if self.shared.link.send_ack(following.session, Ack { taken, received, durable }).is_err() {
            tracing::debug!(session = following.session, "nobody to acknowledge to");
        }
    }

    /// Tells the master that it cannot go on, and accepts nothing more on this connection.
    fn refuse(&mut self, following: &mut Option<(Following, Arc<Journal>)>, reason: NackReason, why: String) {
        let Some((accepted, journal)) = following.take() else { return };
        self.unflushed_since = None;
        let nack = Nack { reason, end: journal.end().seq };
        if self.shared.link.send_nack(accepted.session, nack).is_err() {
            tracing::debug!(session = accepted.session, "nobody to refuse");
        }
        let event = ReceiveEvent::Stopped { session: accepted.session, reason, why };
        if self.shared.events.send(event).is_err() {
            tracing::debug!("nobody listens to the receiver");
        }
    }
}

fn reason(error: &JournalError) -> NackReason {
    match error {
        JournalError::Full(_) => NackReason::Full,
        JournalError::Broken(Broken::Sequence { .. } | Broken::Chain { .. }) => NackReason::Discontinuous,
        JournalError::Broken(Broken::Short | Broken::Checksum | Broken::Lengths) | JournalError::Codec(_) => {
            NackReason::Damaged
        }
        JournalError::Poisoned(_)
        | JournalError::Corrupt { .. }
        | JournalError::Foreign(_)
        | JournalError::Version(_)
        | JournalError::TooLong(_)
        | JournalError::EpochBack { .. }
        | JournalError::Outside { .. }
        | JournalError::Io { .. } => NackReason::Failed,
    }
}
