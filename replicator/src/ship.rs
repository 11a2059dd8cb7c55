//! Sends the master's journal to the peer, from wherever the peer stands. Reads the journal and nothing else: a peer that
//! was away for a second and one that was away for a day are served by the same loop.
//!
//! Records nobody waits for leave after at most some milliseconds, so that small writes travel together; records that somebody
//! waits for leave at once, with the wish that the peer makes them durable. What is on its way and not yet received is
//! limited by a window.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::clock;
use crate::commit::Follower;
use crate::journal::{Journal, ReadError};
use crate::link::{Ack, Gone, LinkHandle, RECORDS_WINDOW_BYTES, RecordsHeader};

/// How long a record that nobody waits for may be held back for company.
const COMPANY: Duration = Duration::from_millis(5);
/// This many bytes go without waiting for more.
const ENOUGH_BYTES: u64 = 64 << 10;
/// Bytes of records in one frame: small enough that control messages are not held up, large enough to be cheap.
const FRAME_BYTES: usize = 256 << 10;
/// How long the peer may stay without knowing what is committed when nothing else is sent.
const NEWS: Duration = Duration::from_millis(50);

/// What is shipped, to whom, as whom.
#[derive(Clone, Copy, Debug)]
pub struct Shipping {
    /// The connection.
    pub session: u64,
    /// The generation this member leads.
    pub epoch: u64,
    /// Its nonce.
    pub nonce: u128,
    /// The first record that the peer lacks.
    pub from: u64,
    /// Whether to ask for an acknowledgement of receipt (`ackPolicy: Received`).
    pub receipts: bool,
}

/// Why shipping ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It was asked to.
    #[error("stopped")]
    Stopped,
    /// The connection is gone.
    #[error("connection is gone")]
    Gone,
    /// The journal no longer holds what the peer lacks.
    #[error("journal begins at {first}, the peer lacks earlier records")]
    LeftBehind {
        /// The first record held.
        first: u64,
    },
    /// What the journal holds for the peer is damaged; the peer can have it from the volume.
    #[error("{0}")]
    Damaged(String),
    /// The disk does not answer: nothing on it is to be had, by a copy least of all.
    #[error("{0}")]
    DiskFailed(String),
    /// The peer acknowledged what was never sent.
    #[error("peer acknowledged {acknowledged}, but only {shipped} was sent")]
    FalseAck {
        /// What it said.
        acknowledged: u64,
        /// What it can have.
        shipped: u64,
    },
}

/// A running shipment.
pub struct Shipper {
    state: Arc<State>,
    ended: watch::Receiver<Option<Ended>>,
}

struct State {
    /// Somebody waits until the peer has everything up to here durably.
    wanted: AtomicU64,
    committed: AtomicU64,
    shipped: AtomicU64,
    taken: AtomicU64,
    received: AtomicU64,
    durable: AtomicU64,
    stop: AtomicBool,
    false_ack: Mutex<Option<Ended>>,
    in_flight: Mutex<InFlight>,
    wake: Notify,
}

#[derive(Default)]
struct InFlight {
    bytes: usize,
    frames: VecDeque<(u64, usize)>,
}

impl State {
    /// Takes an acknowledgement in; says whether it can be true.
    fn hear(&self, ack: Ack) -> bool {
        let shipped = self.shipped.load(Ordering::Acquire);
        if ack.taken > shipped {
            *self.false_ack.lock() = Some(Ended::FalseAck { acknowledged: ack.taken, shipped });
            self.wake.notify_one();
            return false;
        }
        self.taken.fetch_max(ack.taken, Ordering::AcqRel);
        self.received.fetch_max(ack.received, Ordering::AcqRel);
        self.durable.fetch_max(ack.durable, Ordering::AcqRel);
        let mut flight = self.in_flight.lock();
        let was_full = flight.bytes >= RECORDS_WINDOW_BYTES;
        while let Some((_, bytes)) = flight.frames.front().copied().filter(|(last, _)| *last <= ack.taken) {
            flight.frames.pop_front();
            flight.bytes -= bytes;
        }
        if was_full {
            self.wake.notify_one();
        }
        true
    }

    fn window_is_full(&self) -> bool {
        self.in_flight.lock().bytes >= RECORDS_WINDOW_BYTES
    }
}

/// Starts to ship. `heard` is called with every acknowledgement that can be true, from the task that reads the link.
pub fn ship(
    journal: Arc<Journal>,
    link: LinkHandle,
    shipping: Shipping,
    heard: impl Fn(Ack) + Send + Sync + 'static,
) -> Shipper {
    let had = shipping.from.saturating_sub(1);
    let state = Arc::new(State {
        wanted: AtomicU64::new(0),
        committed: AtomicU64::new(0),
        shipped: AtomicU64::new(had),
        taken: AtomicU64::new(0),
        received: AtomicU64::new(0),
        durable: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        false_ack: Mutex::new(None),
        in_flight: Mutex::default(),
        wake: Notify::new(),
    });
    let hearing = state.clone();
    link.on_ack(Arc::new(move |session, ack| {
        if session == shipping.session && !hearing.stop.load(Ordering::Acquire) && hearing.hear(ack) {
            heard(ack);
        }
    }));
    let (end, ended) = watch::channel(None);
    let running = state.clone();
    tokio::spawn(async move {
        let why = match run(&journal, &link, shipping, &running).await {
            Ok(()) => Ended::Stopped,
            Err(why) => why,
        };
        running.stop.store(true, Ordering::Release);
        if let Ended::FalseAck { .. } = &why {
            link.close(shipping.session, &why.to_string());
        }
        end.send_replace(Some(why));
    });
    Shipper { state, ended }
}

impl Shipper {
    /// Somebody waits for `seq`: whatever of it is not yet sent goes now, and the peer is asked to make it durable.
    pub fn want_durable(&self, seq: u64) {
        if self.state.wanted.fetch_max(seq, Ordering::AcqRel) < seq {
            self.state.wake.notify_one();
        }
    }

    /// Everything up to `seq` is committed; the peer hears it with the next frame, or soon. Wakes nobody: most often the next
    /// frame is sooner.
    pub fn committed(&self, seq: u64) {
        self.state.committed.fetch_max(seq, Ordering::AcqRel);
    }

    /// The last record that was handed to the connection.
    pub fn shipped(&self) -> u64 {
        self.state.shipped.load(Ordering::Acquire)
    }

    /// What the peer has acknowledged on this connection.
    pub fn acknowledged(&self) -> Ack {
        Ack {
            taken: self.state.taken.load(Ordering::Acquire),
            received: self.state.received.load(Ordering::Acquire),
            durable: self.state.durable.load(Ordering::Acquire),
        }
    }

    /// Why it ended, once it has.
    pub fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.ended.clone()
    }

    /// Ends it: no acknowledgement is passed on after this.
    pub fn stop(&self) {
        self.state.stop.store(true, Ordering::Release);
        self.state.wake.notify_one();
    }
}

impl Follower for Shipper {
    fn asked(&self, seq: u64) {
        self.want_durable(seq);
    }

    fn committed(&self, seq: u64) {
        Shipper::committed(self, seq);
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn run(journal: &Journal, link: &LinkHandle, shipping: Shipping, state: &State) -> Result<(), Ended> {
    let mut appended = journal.appended();
    let mut next = shipping.from;
    let (mut asked, mut told) = (0, 0);
    let mut sent = clock::monotonic();
    let gone = link.gone(shipping.session);
    tokio::pin!(gone);
    // A peer that lacks nothing is asked too: a master that may not write without it waits for its word.
    let first = RecordsHeader {
        epoch: shipping.epoch,
        nonce: shipping.nonce,
        committed: 0,
        sync: true,
        receipt: shipping.receipts,
    };
    link.send_records(shipping.session, first, Vec::new()).await.map_err(|Gone| Ended::Gone)?;
    while !state.stop.load(Ordering::Acquire) {
        if let Some(why) = state.false_ack.lock().take() {
            return Err(why);
        }
        let end = *appended.borrow_and_update();
        let wanted = state.wanted.load(Ordering::Acquire);
        let committed = state.committed.load(Ordering::Acquire);
        let header = RecordsHeader {
            epoch: shipping.epoch,
            nonce: shipping.nonce,
            committed,
            sync: false,
            receipt: shipping.receipts,
        };

        if next <= end && !state.window_is_full() {
            // Also a wish for what has left already: the next frame takes it along.
            let waited_for = wanted > asked || shipping.receipts;
            if !waited_for && journal.bytes_between(next - 1, end) < ENOUGH_BYTES {
                // Nobody waits: give others the chance to come along, unless somebody begins to wait.
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(COMPANY) => {}
                    () = wanted_beyond(state, asked) => {}
                }
            }
            let mut records = Vec::new();
            let batch = journal.read(next, FRAME_BYTES, &mut records).map_err(|error| match error {
                ReadError::Trimmed { first } => Ended::LeftBehind { first },
                ReadError::Broken(_) => Ended::Damaged(error.to_string()),
                ReadError::Io(_) => Ended::DiskFailed(error.to_string()),
            })?;
            let wanted = state.wanted.load(Ordering::Acquire);
            // Asked for on the frame that completes what is wanted; one flush there serves all before.
            let sync = wanted > asked && wanted <= batch.last.seq;
            let bytes = records.len();
            {
                let mut flight = state.in_flight.lock();
                flight.bytes += bytes;
                flight.frames.push_back((batch.last.seq, bytes));
            }
            // Before it is sent: the acknowledgement may be faster than what follows here.
            state.shipped.store(batch.last.seq, Ordering::Release);
            let header = RecordsHeader { sync, committed: state.committed.load(Ordering::Acquire), ..header };
            told = header.committed;
            if sync {
                asked = batch.last.seq;
            }
            link.send_records(shipping.session, header, records).await.map_err(|Gone| Ended::Gone)?;
            next = batch.last.seq + 1;
            sent = clock::monotonic();
            continue;
        }

        if wanted > asked && wanted < next {
            asked = next - 1;
            told = committed;
            let header = RecordsHeader { sync: true, ..header };
            link.send_records(shipping.session, header, Vec::new()).await.map_err(|Gone| Ended::Gone)?;
            continue;
        }

        let quiet = clock::monotonic().saturating_sub(sent) >= NEWS;
        let news = quiet && told + 1 < next && !state.window_is_full();
        if news && committed > told {
            told = committed;
            link.send_records(shipping.session, header, Vec::new()).await.map_err(|Gone| Ended::Gone)?;
            continue;
        }
        // While records come now and then they are looked for now and then: whoever journals one wakes nobody. Where a receipt
        // is all that is waited for, each is on its way before anybody waits.
        let listens = quiet || shipping.receipts;
        tokio::select! {
            biased;
            changed = appended.changed(), if listens => if changed.is_err() { return Ok(()) },
            () = state.wake.notified() => {}
            () = &mut gone => return Err(Ended::Gone),
            () = tokio::time::sleep(COMPANY), if !quiet => {}
            () = tokio::time::sleep(NEWS), if news => {}
        }
    }
    Ok(())
}

/// Ends when somebody waits for more than the peer was asked for, or the shipment is stopped.
async fn wanted_beyond(state: &State, asked: u64) {
    while state.wanted.load(Ordering::Acquire) <= asked && !state.stop.load(Ordering::Acquire) {
        state.wake.notified().await;
    }
}

#[cfg(test)]
mod tests;
