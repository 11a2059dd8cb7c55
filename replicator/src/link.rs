//! One connection to the other member, proven both ways, and what travels on it.
//!
//! ```text
//!   send, send_records, send_ack, send_bulk  -->  [ session ]  -->  events (control)   records   acks   bulk
//! ```
//!
//! Member `b` dials, `a` listens; both listen, so that a refused connection is evidence that a process is gone. Everything
//! that arrives goes into its lane at once and never waits there: records and bulk are limited by windows that the sender
//! keeps, so a slow disk delays no heartbeat, and a peer that exceeds a window is cut off. Connections end in a `Down` with
//! evidence; the room dials again by itself until it is dropped.
//!
//! Whoever has a short frame to send writes it itself when nothing else is being written: to wake the task that speaks costs
//! more than to send (fdatasync of one thread on a Durable pair: 2,300 to 2,800 a second).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, BufWriter};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::timeout;

use crate::clock;
use crate::crew::Bell;

pub mod frame;
pub mod rehearse;
mod road;
pub mod tls;

pub use frame::{Ack, FrameError, Nack, NackReason, RecordsHeader};
pub use tls::{TlsError, TlsSettings};

pub(crate) use road::{Road, Unproven, evidence_of};

use frame::{Heartbeat, Type};

/// Bytes of records that may be on their way, not yet acknowledged as received.
pub const RECORDS_WINDOW_BYTES: usize = 8 << 20;
/// Bytes of a copy that may be on their way.
pub const BULK_WINDOW_BYTES: usize = 8 << 20;
/// What waits for the conductor, in bytes; a peer that says more than is listened to is cut off.
const EVENTS_WINDOW_BYTES: usize = 4 << 20;
/// What an event takes at least, however few bytes it came in.
const EVENT_BYTES_MIN: usize = 512;
/// Connections that have not proven who they are, at a time.
const STRANGERS_MAX: usize = 4;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// What is written together.
const PEN_BYTES: usize = 128 << 10;
/// Records that are short enough to be sent by whoever waits for them.
pub const RECORDS_NOW_BYTES: usize = 64 << 10;
/// Control messages that wait to be sent; a connection that is so far behind is cut.
const CONTROL_QUEUE: usize = 256;

/// How to reach the other member.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// Where this member listens.
    pub listen: SocketAddr,
    /// Host and port of the other one.
    pub peer: String,
    /// Whether this member dials (`b`) or waits (`a`).
    pub dials: bool,
    /// Certificates and the peer's name.
    pub tls: TlsSettings,
    /// `health.interval`: two signs of life are sent in that time.
    pub interval: Duration,
    /// After so long without a byte the connection is given up.
    pub silence: Duration,
}

/// What is known about a peer that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Its host answers and refuses: no process listens there.
    Refused,
    /// The connection broke without a farewell: its process ended, or something in between cut it.
    Reset,
    /// It said farewell.
    Closed,
    /// Nothing is known: it may live and be cut off.
    Silent,
    /// Somebody listens there.
    Answers,
    /// It broke the protocol and was cut off.
    Misbehaved,
}

/// What the conductor hears.
#[derive(Debug)]
pub enum LinkEvent<C> {
    /// The peer is connected and proven.
    Up {
        /// Number of this connection; what is sent under an older one is refused.
        session: u64,
    },
    /// The connection is gone.
    Down {
        /// Which one.
        session: u64,
        /// What its end says about the peer.
        evidence: Evidence,
        /// The same for people.
        why: String,
    },
    /// While no connection is there: what the last attempt to reach the peer's host said.
    Attempt {
        /// What it says about the peer.
        evidence: Evidence,
        /// The same for people.
        why: String,
    },
    /// Somebody knocked who is not the peer.
    Stranger {
        /// From where.
        from: SocketAddr,
        /// Why not.
        why: String,
    },
    /// A sign of life. With `granted`, the peer grants entitlement counted from that moment of our own clock.
    Heard {
        /// On which connection.
        session: u64,
        /// `clock::monotonic()` when the heartbeat that the peer answers was sent.
        granted: Option<Duration>,
        /// Its place among what waits.
        room: Room,
    },
    /// A control message.
    Message {
        /// On which connection.
        session: u64,
        /// What it says.
        message: C,
        /// Its place among what waits.
        room: Room,
    },
    /// The peer cannot follow.
    Nack {
        /// On which connection.
        session: u64,
        /// Why and where.
        nack: Nack,
        /// Its place among what waits.
        room: Room,
    },
}

/// What an event of the peer takes of the memory for those that wait; given back when the event is dropped.
#[derive(Debug)]
pub struct Room {
    bytes: usize,
    lane: Arc<AtomicUsize>,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.lane.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Records as they came; the receiver verifies them.
#[derive(Debug)]
pub struct RecordsFrame {
    /// On which connection.
    pub session: u64,
    /// What the master says about them.
    pub header: RecordsHeader,
    payload: Vec<u8>,
    lane: Arc<AtomicUsize>,
}

impl RecordsFrame {
    /// The records.
    pub fn records(&self) -> &[u8] {
        self.payload.get(frame::RECORDS_HEADER_BYTES..).unwrap_or_default()
    }
}

impl Drop for RecordsFrame {
    fn drop(&mut self) {
        self.lane.fetch_sub(self.payload.len(), Ordering::AcqRel);
    }
}

/// A piece of a copy. Its credit goes back to the sender when it is dropped.
#[derive(Debug)]
pub struct Bulk {
    /// On which connection.
    pub session: u64,
    /// What was sent.
    pub bytes: Vec<u8>,
    credit: Arc<Session>,
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.credit.give_back(self.bytes.len());
    }
}

/// Records as they arrive.
pub struct RecordsLane {
    /// One frame after the other.
    pub frames: std::sync::mpsc::Receiver<RecordsFrame>,
    /// Rings after each.
    pub bell: Bell,
}

/// The other end of a [`RecordsLane`].
struct RecordsInlet {
    frames: Option<std::sync::mpsc::Sender<RecordsFrame>>,
    bell: Bell,
}

impl RecordsInlet {
    fn send(&self, frame: RecordsFrame) -> Result<(), Gone> {
        self.frames.as_ref().ok_or(Gone)?.send(frame).map_err(|_| Gone)?;
        self.bell.ring();
        Ok(())
    }
}

impl Drop for RecordsInlet {
    fn drop(&mut self) {
        // Whoever follows hears that nothing comes any more.
        drop(self.frames.take());
        self.bell.ring();
    }
}

/// What arrives beside control messages.
pub struct Lanes {
    /// For the worker that follows.
    pub records: RecordsLane,
    /// For the copy.
    pub bulk: mpsc::UnboundedReceiver<Bulk>,
}

/// Called with each acknowledgement, from the task that reads: it must not wait.
pub type OnAck = Arc<dyn Fn(u64, Ack) + Send + Sync>;

/// The connection that was meant is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connection to the peer is gone")]
pub struct Gone;

/// What sends. Cheap to clone.
#[derive(Clone)]
pub struct LinkHandle {
    shared: Arc<Shared>,
}

struct Shared {
    settings: LinkSettings,
    session: Mutex<Option<Arc<Session>>>,
    numbers: AtomicU64,
    grant: AtomicBool,
    on_ack: Mutex<Option<OnAck>>,
    /// Number of the newest connection, and whether it is up.
    up: watch::Sender<(u64, bool)>,
}

/// One connection: what waits to be sent on it.
struct Session {
    number: u64,
    pen: tokio::sync::Mutex<Pen>,
    /// Control messages and records that were given to the queues and are not written yet: nothing may overtake them.
    queued: AtomicUsize,
    control: mpsc::Sender<Vec<u8>>,
    records: mpsc::Sender<(RecordsHeader, Vec<u8>)>,
    bulk: mpsc::Sender<Vec<u8>>,
    bulk_credit: Semaphore,
    bulk_outstanding: AtomicUsize,
    ack: Mutex<Outgoing>,
    wake: Notify,
    close: watch::Sender<Option<String>>,
    /// Nothing is read or written any more, our farewell included.
    over: watch::Sender<bool>,
    echo: AtomicU64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("number", &self.number).finish_non_exhaustive()
    }
}

/// What a connection is written with.
struct Pen {
    to: BufWriter<Box<dyn AsyncWrite + Send + Unpin>>,
    /// A frame is half written or not flushed, or nothing more is to be written: only the task that speaks goes on.
    busy: bool,
    /// What somebody met who wrote from another thread: the connection is over.
    broken: Option<io::Error>,
}

/// The socket ends with the conversation, however that ends, and not with the last who remembers the connection.
struct Hangup<'a>(&'a Session);

impl Drop for Hangup<'_> {
    fn drop(&mut self) {
        // Whoever holds it writes a frame, and nobody will look at it.
        if let Ok(mut pen) = self.0.pen.try_lock() {
            pen.busy = true;
            pen.to = BufWriter::new(Box::new(tokio::io::sink()));
        }
    }
}

#[derive(Debug, Default)]
struct Outgoing {
    ack: Option<Ack>,
    nack: Option<Nack>,
    credit: usize,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.ack.is_none() && self.nack.is_none() && self.credit < BULK_WINDOW_BYTES / 8
    }
}

impl Session {
    fn new(number: u64, to: Box<dyn AsyncWrite + Send + Unpin>) -> (Session, Queues) {
        let (control, control_out) = mpsc::channel(CONTROL_QUEUE);
        let (records, records_out) = mpsc::channel(4);
        let (bulk, bulk_out) = mpsc::channel(4);
        let pen = Pen { to: BufWriter::with_capacity(PEN_BYTES, to), busy: false, broken: None };
        let session = Session {
            number,
            pen: tokio::sync::Mutex::new(pen),
            queued: AtomicUsize::new(0),
            control,
            records,
            bulk,
            bulk_credit: Semaphore::new(BULK_WINDOW_BYTES),
            bulk_outstanding: AtomicUsize::new(0),
            ack: Mutex::default(),
            wake: Notify::new(),
            close: watch::Sender::new(None),
            over: watch::Sender::new(false),
            echo: AtomicU64::new(0),
        };
        (session, Queues { control: control_out, records: records_out, bulk: bulk_out })
    }

    /// Writes a short frame from the calling thread, which it does not hold up. `first` is asked for once nothing can come in
    /// between. False: nothing was written, and it was not asked.
    fn write_now<H: AsRef<[u8]>>(&self, kind: Type, first: impl FnOnce() -> H, second: &[u8]) -> bool {
        let Ok(mut pen) = self.pen.try_lock() else { return false };
        if pen.busy || self.queued.load(Ordering::Acquire) > 0 || second.len() > RECORDS_NOW_BYTES {
            return false;
        }
        pen.busy = true;
        let written = async {
            // It fits into the empty buffer, so only the flush may have to wait.
            write_frame(&mut pen.to, kind, first().as_ref(), second).await?;
            pen.to.flush().await
        };
        match written.now_or_never() {
            Some(Ok(())) => pen.busy = false,
            // The socket is full: the task that speaks goes on.
            None => self.wake.notify_one(),
            Some(Err(error)) => {
                // The kernel says it once, and it is evidence.
                pen.broken = Some(error);
                self.wake.notify_one();
            }
        }
        true
    }

    fn give_back(&self, bytes: usize) {
        self.bulk_outstanding.fetch_sub(bytes, Ordering::AcqRel);
        self.ack.lock().credit += bytes;
        self.wake.notify_one();
    }
}

/// What receives for every connection.
struct Inlets<C> {
    events: mpsc::UnboundedSender<LinkEvent<C>>,
    records: RecordsInlet,
    bulk: mpsc::UnboundedSender<Bulk>,
    records_waiting: Arc<AtomicUsize>,
    events_waiting: Arc<AtomicUsize>,
}

impl<C> Inlets<C> {
    fn room(&self, bytes: usize) -> Result<Room, End> {
        let bytes = bytes.max(EVENT_BYTES_MIN);
        let waiting = self.events_waiting.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let room = Room { bytes, lane: self.events_waiting.clone() };
        if waiting > EVENTS_WINDOW_BYTES { Err(End::Window) } else { Ok(room) }
    }
}

impl<C> Clone for Inlets<C> {
    fn clone(&self) -> Self {
        Inlets {
            events: self.events.clone(),
            records: RecordsInlet { frames: self.records.frames.clone(), bell: self.records.bell.clone() },
            bulk: self.bulk.clone(),
            records_waiting: self.records_waiting.clone(),
            events_waiting: self.events_waiting.clone(),
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("peer closed the connection")]
    Closed,
    #[error("nothing heard for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("peer sent more than its window")]
    Window,
    #[error("peer sent a control message that cannot be read")]
    Control,
    #[error("{0}")]
    Asked(String),
}

impl End {
    fn evidence(&self) -> Evidence {
        match self {
            End::Io(error) => evidence_of(error),
            End::Frame(_) | End::Window | End::Control => Evidence::Misbehaved,
            End::Closed | End::Asked(_) => Evidence::Closed,
            End::Silent(_) => Evidence::Silent,
        }
    }
}

/// A connection that has proven who it is.
struct Proven<S> {
    stream: S,
}

/// Starts to listen, and to dial if this member does. Ends when the handle and the receivers are dropped.
pub async fn start<C>(settings: LinkSettings) -> io::Result<(LinkHandle, mpsc::UnboundedReceiver<LinkEvent<C>>, Lanes)>
where
    C: Serialize + DeserializeOwned + Send + 'static,
{
    #[cfg(test)]
    if let Some(road) = crate::simulated::road() {
        return Ok(start_over(road, settings));
    }
    let listener = TcpListener::bind(settings.listen).await?;
    Ok(start_over(road::Tcp::new(listener, settings.clone()), settings))
}

fn start_over<C>(road: impl Road, settings: LinkSettings) -> (LinkHandle, mpsc::UnboundedReceiver<LinkEvent<C>>, Lanes)
where
    C: Serialize + DeserializeOwned + Send + 'static,
{
    let (events, events_out) = mpsc::unbounded_channel();
    let (records, frames) = std::sync::mpsc::channel();
    let bell = Bell::default();
    let records = RecordsInlet { frames: Some(records), bell: bell.clone() };
    let (bulk, bulk_out) = mpsc::unbounded_channel();
    let inlets = Inlets { events, records, bulk, records_waiting: Arc::default(), events_waiting: Arc::default() };
    let shared = Arc::new(Shared {
        settings,
        session: Mutex::new(None),
        numbers: AtomicU64::new(0),
        grant: AtomicBool::new(false),
        on_ack: Mutex::new(None),
        up: watch::Sender::new((0, false)),
    });
    let (proven, proven_out) = mpsc::channel(1);
    let road = Arc::new(road);
    tokio::spawn(listen(road.clone(), proven.clone(), inlets.clone()));
    tokio::spawn(reach(road, shared.clone(), proven, inlets.clone()));
    tokio::spawn(manage(shared.clone(), proven_out, inlets));
    (LinkHandle { shared }, events_out, Lanes { records: RecordsLane { frames, bell }, bulk: bulk_out })
}

impl LinkHandle {
    fn session(&self, number: u64) -> Result<Arc<Session>, Gone> {
        self.shared.session.lock().as_ref().filter(|session| session.number == number).cloned().ok_or(Gone)
    }

    /// The connection that is up.
    pub fn current(&self) -> Option<u64> {
        self.shared.session.lock().as_ref().map(|session| session.number)
    }

    /// Sends a control message.
    pub fn send<C: Serialize>(&self, session: u64, message: &C) -> Result<(), Gone> {
        let session = self.session(session)?;
        let bytes = postcard::to_stdvec(message).map_err(|_| Gone)?;
        session.queued.fetch_add(1, Ordering::AcqRel);
        if bytes.len() > frame::CONTROL_BYTES_MAX || session.control.try_send(bytes).is_err() {
            session.close.send_replace(Some("too many control messages wait to be sent".into()));
            return Err(Gone);
        }
        Ok(())
    }

    /// Sends records, or only what the header says; waits while earlier ones are on their way into the socket.
    pub async fn send_records(&self, session: u64, header: RecordsHeader, records: Vec<u8>) -> Result<(), Gone> {
        let session = self.session(session)?;
        session.queued.fetch_add(1, Ordering::AcqRel);
        session.records.send((header, records)).await.map_err(|_| Gone)
    }

    /// Sends at most [`RECORDS_NOW_BYTES`] of records from the calling thread, if nothing else is being sent; else nothing
    /// happens and it says so. `header` is asked for once they can be sent.
    pub fn send_records_now(
        &self,
        session: u64,
        header: impl FnOnce() -> RecordsHeader,
        records: &[u8],
    ) -> Result<bool, Gone> {
        Ok(self.session(session)?.write_now(Type::Records, || header().bytes(), records))
    }

    /// Acknowledges, from the calling thread if it can; a newer acknowledgement replaces one that was not sent yet.
    pub fn send_ack(&self, session: u64, ack: Ack) -> Result<(), Gone> {
        let session = self.session(session)?;
        let mut outgoing = session.ack.lock();
        if outgoing.nack.is_none() && session.write_now(Type::Ack, || ack.bytes(), &[]) {
            outgoing.ack = None;
            return Ok(());
        }
        outgoing.ack = Some(ack);
        drop(outgoing);
        session.wake.notify_one();
        Ok(())
    }

    /// Says that this member cannot follow.
    pub fn send_nack(&self, session: u64, nack: Nack) -> Result<(), Gone> {
        let session = self.session(session)?;
        session.ack.lock().nack = Some(nack);
        session.wake.notify_one();
        Ok(())
    }

    /// Sends a piece of a copy; waits for the peer's credit.
    pub async fn send_bulk(&self, session: u64, bytes: Vec<u8>) -> Result<(), Gone> {
        let session = self.session(session)?;
        if bytes.len() > frame::BULK_BYTES_MAX {
            return Err(Gone);
        }
        let mut close = session.close.subscribe();
        tokio::select! {
            biased;
            permit = session.bulk_credit.acquire_many(bytes.len() as u32) => permit.map_err(|_| Gone)?.forget(),
            _ = close.wait_for(Option::is_some) => return Err(Gone),
        }
        session.bulk.send(bytes).await.map_err(|_| Gone)
    }

    /// Whether heartbeats grant the peer its entitlement.
    pub fn grant(&self, grant: bool) {
        self.shared.grant.store(grant, Ordering::Release);
    }

    /// Who hears acknowledgements, in place of whoever did before.
    pub fn on_ack(&self, hear: OnAck) {
        *self.shared.on_ack.lock() = Some(hear);
    }

    /// Ends a connection; a new one is made at once.
    pub fn close(&self, session: u64, why: &str) {
        if let Ok(session) = self.session(session) {
            session.close.send_replace(Some(why.into()));
        }
    }

    /// Ends the connection after everything that was said on it has left: the last words of a process that ends in order.
    /// A peer that does not listen is not waited for any longer than `patience`.
    pub async fn finish(&self, patience: Duration) {
        let Some(session) = self.shared.session.lock().clone() else { return };
        let end = async {
            while session.queued.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            session.close.send_replace(Some("this member ends".into()));
            session.over.subscribe().wait_for(|over| *over).await.map(drop)
        };
        if !matches!(timeout(patience, end).await, Ok(Ok(()))) {
            tracing::info!("the peer did not take the last words in time");
        }
    }

    /// Ends when the connection does; at once if it has.
    pub async fn gone(&self, session: u64) {
        let Ok(session) = self.session(session) else { return };
        let mut close = session.close.subscribe();
        drop(session);
        while close.borrow_and_update().is_none() {
            if close.changed().await.is_err() {
                return;
            }
        }
    }

    /// What the peer's host says to a connection right now.
    #[cfg(test)]
    pub(crate) async fn probe(&self) -> (Evidence, String) {
        road::probe(&self.shared.settings).await
    }
}

/// Lets in who proves to be the peer.
async fn listen<C: Send + 'static, R: Road>(road: Arc<R>, proven: mpsc::Sender<Proven<R::Stream>>, inlets: Inlets<C>) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        let (knock, from) = tokio::select! {
            biased;
            () = inlets.events.closed() => return,
            accepted = road.knock() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors or a connection that died in the queue: neither ends the listening.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Ok(seat) = strangers.clone().try_acquire_owned() else { continue };
        let (road, proven, inlets) = (road.clone(), proven.clone(), inlets.clone());
        tokio::spawn(async move {
            let admitted = async { preface(road.admit(knock).await?).await };
            let outcome = timeout(HANDSHAKE_TIMEOUT, admitted).await;
            drop(seat);
            match outcome.unwrap_or(Err(Unproven::Timeout)) {
                Ok(connection) => drop(proven.send(connection).await),
                // Who connects and hangs up only wanted to know whether somebody is here.
                Err(error) if error.evidence() == Evidence::Reset => {}
                Err(error) => {
                    drop(inlets.events.send(LinkEvent::Stranger { from, why: error.to_string() }));
                }
            }
        });
    }
}

/// Both sides speak once before a connection counts: with TLS 1.3 the one that dials learns only from the first answer
/// whether its certificate was accepted.
async fn preface<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<Proven<S>, Unproven> {
    let mut mine = frame::header(Type::Preface, 8).to_vec();
    // Room for features to be agreed on; none yet.
    mine.extend_from_slice(&[0; 8]);
    stream.write_all(&mine).await.map_err(TlsError::Handshake)?;
    stream.flush().await.map_err(TlsError::Handshake)?;
    let mut header = [0; frame::HEADER_BYTES];
    stream.read_exact(&mut header).await.map_err(TlsError::Handshake)?;
    match frame::parse_header(&header)? {
        (Type::Preface, length) => {
            let mut features = vec![0; length];
            stream.read_exact(&mut features).await.map_err(TlsError::Handshake)?;
            Ok(Proven { stream })
        }
        _ => Err(FrameError::Contents.into()),
    }
}

/// While there is no connection: dials, or at least looks whether somebody is there.
async fn reach<C: Send + 'static, R: Road>(
    road: Arc<R>,
    shared: Arc<Shared>,
    proven: mpsc::Sender<Proven<R::Stream>>,
    inlets: Inlets<C>,
) {
    let mut up = shared.up.subscribe();
    let settings = &shared.settings;
    loop {
        tokio::select! {
            biased;
            () = inlets.events.closed() => return,
            down = up.wait_for(|(_, up)| !up) => if down.is_err() { return },
        }
        let last = up.borrow().0;
        let (evidence, why) = if settings.dials {
            let dialled = async { preface(road.dial().await?).await };
            match timeout(HANDSHAKE_TIMEOUT, dialled).await.unwrap_or(Err(Unproven::Timeout)) {
                Ok(connection) => {
                    if proven.send(connection).await.is_err() {
                        return;
                    }
                    // The next attempt is due when this connection has ended, and it has not even begun.
                    if up.wait_for(|(number, _)| *number > last).await.is_err() {
                        return;
                    }
                    continue;
                }
                Err(error) => (error.evidence(), error.to_string()),
            }
        } else {
            tokio::time::sleep(settings.interval / 2).await;
            if up.borrow().1 {
                continue;
            }
            road.probe().await
        };
        if inlets.events.send(LinkEvent::Attempt { evidence, why }).is_err() {
            return;
        }
        tokio::time::sleep((settings.interval / 4).clamp(Duration::from_millis(20), Duration::from_millis(500))).await;
    }
}

/// Keeps one connection: the newest. Whoever dials again has lost the earlier one.
async fn manage<C, S>(shared: Arc<Shared>, mut proven: mpsc::Receiver<Proven<S>>, inlets: Inlets<C>)
where
    C: DeserializeOwned + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut running: Option<(Arc<Session>, tokio::task::JoinHandle<()>)> = None;
    while let Some(connection) = proven.recv().await {
        if let Some((session, task)) = running.take() {
            session.close.send_replace(Some("peer connected again".into()));
            if let Err(error) = task.await {
                tracing::error!(%error, "connection task");
            }
        }
        let (from, to) = tokio::io::split(connection.stream);
        let (session, queues) = Session::new(shared.numbers.fetch_add(1, Ordering::Relaxed) + 1, Box::new(to));
        let session = Arc::new(session);
        *shared.session.lock() = Some(session.clone());
        shared.up.send_replace((session.number, true));
        if inlets.events.send(LinkEvent::Up { session: session.number }).is_err() {
            return;
        }
        let task = tokio::spawn(converse(shared.clone(), session.clone(), from, queues, inlets.clone()));
        running = Some((session, task));
    }
}

struct Queues {
    control: mpsc::Receiver<Vec<u8>>,
    records: mpsc::Receiver<(RecordsHeader, Vec<u8>)>,
    bulk: mpsc::Receiver<Vec<u8>>,
}

/// One connection from its first frame to its end.
async fn converse<C, S>(shared: Arc<Shared>, session: Arc<Session>, from: S, queues: Queues, inlets: Inlets<C>)
where
    C: DeserializeOwned + Send + 'static,
    S: AsyncRead + Unpin + Send + 'static,
{
    let hangup = Hangup(&session);
    let mut close = session.close.subscribe();
    let mut end = tokio::select! {
        biased;
        end = hear(&shared, &session, BufReader::with_capacity(64 << 10, from), &inlets) => end,
        end = speak(&shared, &session, queues) => end,
        asked = close.wait_for(Option::is_some) => {
            let why = asked.ok().and_then(|why| why.clone());
            End::Asked(why.unwrap_or_default())
        }
    };
    let mut pen = session.pen.lock().await;
    // For ever: whoever still has something to say is too late.
    pen.busy = true;
    let broken = pen.broken.take();
    let is_whole = broken.is_none();
    end = broken.map_or(end, End::Io);
    {
        let mut current = shared.session.lock();
        if current.as_ref().is_some_and(|current| current.number == session.number) {
            *current = None;
            shared.up.send_replace((session.number, false));
        }
    }
    session.close.send_replace(Some(end.to_string()));
    // Our own farewell, if the peer still listens: it then knows that this was no crash.
    if is_whole && timeout(Duration::from_millis(200), pen.to.shutdown()).await.is_err() {
        tracing::debug!("peer did not take the farewell");
    }
    drop(pen);
    drop(hangup);
    session.over.send_replace(true);
    let event = LinkEvent::Down { session: session.number, evidence: end.evidence(), why: end.to_string() };
    drop(inlets.events.send(event));
}

/// Reads frames until the connection ends.
async fn hear<C: DeserializeOwned>(
    shared: &Shared,
    session: &Arc<Session>,
    mut from: impl AsyncRead + Unpin,
    inlets: &Inlets<C>,
) -> End {
    loop {
        let (kind, payload) = match read_frame(&mut from, shared.settings.silence).await {
            Ok(frame) => frame,
            Err(end) => return end,
        };
        if let Err(end) = dispatch(shared, session, kind, payload, inlets) {
            return end;
        }
    }
}

async fn read_frame(from: &mut (impl AsyncRead + Unpin), silence: Duration) -> Result<(Type, Vec<u8>), End> {
    let mut header = [0; frame::HEADER_BYTES];
    let first = timeout(silence, from.read(&mut header)).await.map_err(|_| End::Silent(silence))??;
    if first == 0 {
        return Err(End::Closed);
    }
    timeout(silence, from.read_exact(&mut header[first..])).await.map_err(|_| End::Silent(silence))??;
    let (kind, length) = frame::parse_header(&header)?;
    let mut payload = vec![0; length];
    let mut read = 0;
    while read < length {
        let some = timeout(silence, from.read(&mut payload[read..])).await.map_err(|_| End::Silent(silence))??;
        if some == 0 {
            return Err(End::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        read += some;
    }
    Ok((kind, payload))
}

/// Puts what came into its lane.
fn dispatch<C: DeserializeOwned>(
    shared: &Shared,
    session: &Arc<Session>,
    kind: Type,
    payload: Vec<u8>,
    inlets: &Inlets<C>,
) -> Result<(), End> {
    let number = session.number;
    let gone = |_| End::Asked("this member stops listening".into());
    match kind {
        Type::Preface => return Err(FrameError::Contents.into()),
        Type::Heartbeat => {
            let heartbeat = Heartbeat::parse(&payload)?;
            session.echo.store(heartbeat.sent, Ordering::Release);
            let granted = heartbeat.grant.then(|| Duration::from_nanos(heartbeat.echo));
            let room = inlets.room(payload.len())?;
            inlets.events.send(LinkEvent::Heard { session: number, granted, room }).map_err(|_| gone(()))?;
        }
        Type::Control => {
            let room = inlets.room(payload.len())?;
            let message = postcard::from_bytes(&payload).map_err(|_| End::Control)?;
            inlets.events.send(LinkEvent::Message { session: number, message, room }).map_err(|_| gone(()))?;
        }
        Type::Records => {
            let header = RecordsHeader::parse(&payload)?;
            let lane = inlets.records_waiting.clone();
            let waiting = lane.fetch_add(payload.len(), Ordering::AcqRel) + payload.len();
            let frame = RecordsFrame { session: number, header, payload, lane };
            if waiting > RECORDS_WINDOW_BYTES + 2 * frame::RECORDS_BYTES_MAX {
                return Err(End::Window);
            }
            inlets.records.send(frame).map_err(|_| gone(()))?;
        }
        Type::Ack => {
            let ack = Ack::parse(&payload)?;
            let hear = shared.on_ack.lock().clone();
            if let Some(hear) = hear {
                hear(number, ack);
            }
        }
        Type::Nack => {
            let nack = Nack::parse(&payload)?;
            let room = inlets.room(payload.len())?;
            inlets.events.send(LinkEvent::Nack { session: number, nack, room }).map_err(|_| gone(()))?;
        }
        Type::Bulk => {
            let outstanding = session.bulk_outstanding.fetch_add(payload.len(), Ordering::AcqRel) + payload.len();
            let bulk = Bulk { session: number, bytes: payload, credit: session.clone() };
            if outstanding > BULK_WINDOW_BYTES {
                return Err(End::Window);
            }
            inlets.bulk.send(bulk).map_err(|_| gone(()))?;
        }
        Type::Credit => {
            let room = BULK_WINDOW_BYTES.saturating_sub(session.bulk_credit.available_permits());
            match usize::try_from(frame::number(&payload, 0)?) {
                Ok(bytes) if bytes <= room => session.bulk_credit.add_permits(bytes),
                Ok(_) | Err(_) => return Err(End::Window),
            }
        }
    }
    Ok(())
}

/// What is written next.
enum Next {
    Heartbeat,
    Control(Vec<u8>),
    Outgoing,
    Records(RecordsHeader, Vec<u8>),
    Bulk(Vec<u8>),
}

/// Writes frames until the connection ends: control and acknowledgements before records, records before copies.
async fn speak(shared: &Shared, session: &Arc<Session>, mut queues: Queues) -> End {
    let mut heartbeats = tokio::time::interval(shared.settings.interval / 2);
    heartbeats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let next = tokio::select! {
            biased;
            _ = heartbeats.tick() => Next::Heartbeat,
            Some(message) = queues.control.recv() => Next::Control(message),
            () = session.wake.notified() => Next::Outgoing,
            Some((header, records)) = queues.records.recv() => Next::Records(header, records),
            Some(bytes) = queues.bulk.recv() => Next::Bulk(bytes),
        };
        let mut pen = session.pen.lock().await;
        if let Some(error) = pen.broken.take() {
            return End::Io(error);
        }
        pen.busy = true;
        let written = write_next(shared, session, &mut pen.to, next).await;
        let idle = queues.control.is_empty()
            && queues.records.is_empty()
            && queues.bulk.is_empty()
            && session.ack.lock().is_empty();
        let flushed = match written {
            Ok(()) if idle => pen.to.flush().await.map(|()| pen.busy = false),
            other => other,
        };
        if let Err(error) = flushed {
            return End::Io(error);
        }
    }
}

async fn write_next(
    shared: &Shared,
    session: &Session,
    to: &mut (impl AsyncWrite + Unpin),
    next: Next,
) -> io::Result<()> {
    match next {
        Next::Heartbeat => {
            let heartbeat = Heartbeat {
                sent: clock::monotonic().as_nanos() as u64,
                echo: session.echo.load(Ordering::Acquire),
                grant: shared.grant.load(Ordering::Acquire),
            };
            write_frame(to, Type::Heartbeat, &heartbeat.bytes(), &[]).await
        }
        Next::Control(message) => {
            write_frame(to, Type::Control, &message, &[]).await?;
            session.queued.fetch_sub(1, Ordering::AcqRel);
            Ok(())
        }
        Next::Records(header, records) => {
            write_frame(to, Type::Records, &header.bytes(), &records).await?;
            session.queued.fetch_sub(1, Ordering::AcqRel);
            Ok(())
        }
        Next::Outgoing => write_outgoing(session, to).await,
        Next::Bulk(bytes) => write_frame(to, Type::Bulk, &bytes, &[]).await,
    }
}

async fn write_outgoing(session: &Session, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let (ack, nack, credit) = {
        let mut outgoing = session.ack.lock();
        // Small credits are saved up; the sender has a whole window.
        let credit = if outgoing.credit >= BULK_WINDOW_BYTES / 8 { std::mem::take(&mut outgoing.credit) } else { 0 };
        (outgoing.ack.take(), outgoing.nack.take(), credit)
    };
    if let Some(ack) = ack {
        write_frame(to, Type::Ack, &ack.bytes(), &[]).await?;
    }
    if let Some(nack) = nack {
        write_frame(to, Type::Nack, &nack.bytes(), &[]).await?;
    }
    if credit > 0 {
        write_frame(to, Type::Credit, &(credit as u64).to_le_bytes(), &[]).await?;
    }
    Ok(())
}

async fn write_frame(to: &mut (impl AsyncWrite + Unpin), kind: Type, first: &[u8], second: &[u8]) -> io::Result<()> {
    to.write_all(&frame::header(kind, first.len() + second.len())).await?;
    to.write_all(first).await?;
    to.write_all(second).await
}

/// A proven connection in the hands of a test.
#[cfg(test)]
pub(crate) async fn test_dial(settings: &LinkSettings) -> road::Secured {
    preface(road::dial(settings).await.expect("a connection")).await.expect("a proven connection").stream
}
