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
use crate::link::{Ack, Gone, LinkHandle, RECORDS_NOW_BYTES, RECORDS_WINDOW_BYTES, RecordsHeader};

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
    /// A peer that owes an answer and says nothing new for so long cannot follow, however alive it is otherwise.
    pub patience: Duration,
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
    /// The peer was asked to make records durable, and is not heard of any more: its disk hangs, most likely.
    #[error("peer lives, but has made nothing durable for {} s", .0.as_secs())]
    Stuck(Duration),
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
    journal: Arc<Journal>,
    link: LinkHandle,
    shipping: Shipping,
    /// Held by whoever sends; the task does not hold it while it only waits.
    cursor: tokio::sync::Mutex<Cursor>,
    /// Somebody waits until the peer has everything up to here durably.
    wanted: AtomicU64,
    committed: AtomicU64,
    shipped: AtomicU64,
    taken: AtomicU64,
    received: AtomicU64,
    durable: AtomicU64,
    stop: AtomicBool,
    false_ack: Mutex<Option<Ended>>,
    /// When the peer last acknowledged more than before.
    heard: Mutex<Duration>,
    in_flight: Mutex<InFlight>,
    wake: Notify,
}

/// How far the journal was sent, and what was said with it.
struct Cursor {
    next: u64,
    /// The peer was asked to make everything up to here durable.
    asked: u64,
    /// It was told that everything up to here is committed.
    told: u64,
    /// When records were sent last.
    sent: Duration,
    /// Since when the peer owes an answer to what it was asked, if it does.
    owed: Duration,
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
        let takes_more = self.taken.fetch_max(ack.taken, Ordering::AcqRel) < ack.taken;
        self.received.fetch_max(ack.received, Ordering::AcqRel);
        if self.durable.fetch_max(ack.durable, Ordering::AcqRel) < ack.durable || takes_more {
            *self.heard.lock() = clock::monotonic();
        }
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

    fn header(&self, sync: bool) -> RecordsHeader {
        RecordsHeader {
            epoch: self.shipping.epoch,
            nonce: self.shipping.nonce,
            committed: self.committed.load(Ordering::Acquire),
            sync,
            receipt: self.shipping.receipts,
        }
    }

    /// The next records, about so many bytes of them, and the last one's number.
    fn read(&self, cursor: &Cursor, bytes: usize) -> Result<(u64, Vec<u8>), ReadError> {
        let mut records = Vec::new();
        let batch = self.journal.read(cursor.next, bytes, &mut records)?;
        Ok((batch.last.seq, records))
    }

    /// Counts records as sent; with what is returned they are sent before anybody else sends.
    fn sent(&self, cursor: &mut Cursor, last: u64, bytes: usize) -> RecordsHeader {
        let wanted = self.wanted.load(Ordering::Acquire);
        // Asked for on the frame that completes what is wanted; one flush there serves all before.
        let sync = wanted > cursor.asked && wanted <= last;
        {
            let mut flight = self.in_flight.lock();
            flight.bytes += bytes;
            flight.frames.push_back((last, bytes));
        }
        // Before it is sent: the acknowledgement may be faster than what follows here.
        self.shipped.store(last, Ordering::Release);
        let header = self.header(sync);
        cursor.told = header.committed;
        if sync {
            self.ask(cursor, last);
        }
        cursor.next = last + 1;
        cursor.sent = clock::monotonic();
        header
    }

    fn ask(&self, cursor: &mut Cursor, last: u64) {
        if cursor.asked <= self.durable.load(Ordering::Acquire) {
            cursor.owed = clock::monotonic();
        }
        cursor.asked = last;
    }

    /// For how long a peer that owes an answer has said nothing new: one that was asked, or that has taken nothing of a whole
    /// window. One that is only slow, or behind a slow line, is heard of after each mebibyte.
    fn silent(&self, cursor: &Cursor) -> Duration {
        let since = if cursor.asked > self.durable.load(Ordering::Acquire) {
            cursor.owed
        } else if self.window_is_full() {
            cursor.sent
        } else {
            return Duration::ZERO;
        };
        clock::monotonic().saturating_sub(since.max(*self.heard.lock()))
    }

    /// The wish that everything that was sent becomes durable.
    fn wish(&self, cursor: &mut Cursor) -> RecordsHeader {
        let header = self.header(true);
        self.ask(cursor, cursor.next - 1);
        cursor.told = header.committed;
        header
    }

    /// Sends what somebody waits for from the calling thread, unless it is much, or others are sending. False: it is to be
    /// done by the task, which also meets whatever stands in the way again.
    fn send_now(&self) -> bool {
        let Ok(mut cursor) = self.cursor.try_lock() else { return false };
        if cursor.asked >= self.wanted.load(Ordering::Acquire) {
            return true;
        }
        let end = self.journal.end().seq;
        if self.stop.load(Ordering::Acquire)
            || self.window_is_full()
            || self.journal.bytes_between(cursor.next - 1, end) > RECORDS_NOW_BYTES as u64
        {
            return false;
        }
        let session = self.shipping.session;
        let sent = if cursor.next > end {
            self.link.send_records_now(session, || self.wish(&mut cursor), &[])
        } else {
            // Before anything is held that heartbeats wait for: the disk may be slow.
            let Ok((last, records)) = self.read(&cursor, RECORDS_NOW_BYTES) else { return false };
            self.link.send_records_now(session, || self.sent(&mut cursor, last, records.len()), &records)
        };
        // Not if a segment ended before all of it.
        sent.unwrap_or(false) && cursor.asked >= self.wanted.load(Ordering::Acquire)
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
    let now = clock::monotonic();
    let cursor = Cursor { next: shipping.from, asked: 0, told: 0, sent: now, owed: now };
    let state = Arc::new(State {
        journal,
        link,
        shipping,
        cursor: tokio::sync::Mutex::new(cursor),
        wanted: AtomicU64::new(0),
        committed: AtomicU64::new(0),
        shipped: AtomicU64::new(had),
        taken: AtomicU64::new(0),
        received: AtomicU64::new(0),
        durable: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        false_ack: Mutex::new(None),
        heard: Mutex::new(now),
        in_flight: Mutex::default(),
        wake: Notify::new(),
    });
    // The link outlives what is shipped over it.
    let hearing = Arc::downgrade(&state);
    state.link.on_ack(Arc::new(move |session, ack| {
        let Some(state) = hearing.upgrade() else { return };
        if session == shipping.session && !state.stop.load(Ordering::Acquire) && state.hear(ack) {
            heard(ack);
        }
    }));
    let (end, ended) = watch::channel(None);
    let running = state.clone();
    tokio::spawn(async move {
        let why = match run(&running).await {
            Ok(()) => Ended::Stopped,
            Err(why) => why,
        };
        running.stop.store(true, Ordering::Release);
        if let Ended::FalseAck { .. } | Ended::Stuck(_) = &why {
            running.link.close(shipping.session, &why.to_string());
        }
        end.send_replace(Some(why));
    });
    Shipper { state, ended }
}

impl Shipper {
    /// Somebody waits for `seq`: whatever of it is not yet sent goes now, and the peer is asked to make it durable.
    pub fn want_durable(&self, seq: u64) {
        if self.state.wanted.fetch_max(seq, Ordering::AcqRel) < seq && !self.state.send_now() {
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

async fn run(state: &State) -> Result<(), Ended> {
    let State { journal, link, shipping, .. } = state;
    let send = |header, records| async move {
        link.send_records(shipping.session, header, records).await.map_err(|Gone| Ended::Gone)
    };
    let mut appended = journal.appended();
    let mut had_company = false;
    let gone = link.gone(shipping.session);
    tokio::pin!(gone);
    // A peer that lacks nothing is asked too: a master that may not write without it waits for its word.
    let first = RecordsHeader { committed: 0, ..state.header(true) };
    send(first, Vec::new()).await?;
    while !state.stop.load(Ordering::Acquire) {
        if let Some(why) = state.false_ack.lock().take() {
            return Err(why);
        }
        let mut cursor = state.cursor.lock().await;
        let silent = state.silent(&cursor);
        if silent >= shipping.patience {
            return Err(Ended::Stuck(silent));
        }
        let end = *appended.borrow_and_update();
        let wanted = state.wanted.load(Ordering::Acquire);

        if cursor.next <= end && !state.window_is_full() {
            // Also a wish for what has left already: the next frame takes it along.
            let waited_for = wanted > cursor.asked || shipping.receipts || had_company;
            if !waited_for && journal.bytes_between(cursor.next - 1, end) < ENOUGH_BYTES {
                // Nobody waits: give others the chance to come along, unless somebody begins to wait.
                let asked = cursor.asked;
                drop(cursor);
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(COMPANY) => {}
                    () = wanted_beyond(state, asked) => {}
                }
                had_company = true;
                continue;
            }
            had_company = false;
            let (last, records) = state.read(&cursor, FRAME_BYTES).map_err(|error| match error {
                ReadError::Trimmed { first } => Ended::LeftBehind { first },
                ReadError::Broken(_) => Ended::Damaged(error.to_string()),
                ReadError::Io(_) => Ended::DiskFailed(error.to_string()),
            })?;
            let header = state.sent(&mut cursor, last, records.len());
            send(header, records).await?;
            continue;
        }
        had_company = false;

        if wanted > cursor.asked && wanted < cursor.next {
            let header = state.wish(&mut cursor);
            send(header, Vec::new()).await?;
            continue;
        }

        let quiet = clock::monotonic().saturating_sub(cursor.sent) >= NEWS;
        let news = quiet && cursor.told + 1 < cursor.next && !state.window_is_full();
        let header = state.header(false);
        if news && header.committed > cursor.told {
            cursor.told = header.committed;
            send(header, Vec::new()).await?;
            continue;
        }
        drop(cursor);
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
            // Others ask the peer without a word to this task.
            () = tokio::time::sleep(shipping.patience / 4) => {}
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
