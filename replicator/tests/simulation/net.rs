//! The road between two simulated members: connections that deliver late, not at all for a while, or in one direction
//! only; hosts that refuse, reset, or say nothing. Bytes are never lost or reordered within a connection: that is TCP's
//! promise, and what TCP cannot promise is that they ever arrive.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::link::{Evidence, Road, Unproven, evidence_of};
use crate::volume::random::Dice;

/// Never, unless the way is opened again.
const BLOCKED: u64 = u64::MAX;
/// What a connection holds that was not read yet.
const WINDOW_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Farewell,
    Reset,
}

#[derive(Default)]
struct Pipe {
    from: usize,
    queue: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    taken: usize,
    end: Option<(u64, End)>,
    /// The reading side is gone.
    deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Default)]
struct Host {
    /// The node has power and its kernel answers.
    up: bool,
    /// A process listens.
    listening: bool,
    knocks: VecDeque<Stream>,
    waiting: Option<Waker>,
    /// What it sends does not arrive.
    blocked: bool,
}

struct State {
    now: u64,
    dice: Dice,
    hosts: [Host; 2],
    pipes: Vec<Weak<Mutex<Pipe>>>,
    latency: u64,
}

/// The network, in nanoseconds since the simulation began.
pub(crate) struct Net {
    state: Mutex<State>,
}

impl Net {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let state =
            State { now: 0, dice: Dice::new(seed), hosts: Default::default(), pipes: Vec::new(), latency: 1_000_000 };
        Arc::new(Self { state: Mutex::new(state) })
    }

    pub(crate) fn now(&self) -> u64 {
        self.state.lock().now
    }

    /// How long a message takes at most.
    pub(crate) fn set_latency(&self, nanoseconds: u64) {
        self.state.lock().latency = nanoseconds.max(2);
    }

    /// Whether what a host sends arrives.
    pub(crate) fn block(&self, from: usize, blocked: bool) {
        let mut state = self.state.lock();
        state.hosts[from].blocked = blocked;
        let due = if blocked { BLOCKED } else { state.now + state.latency };
        let now = state.now;
        for pipe in state.pipes.iter().filter_map(Weak::upgrade) {
            let mut pipe = pipe.lock();
            if pipe.from != from {
                continue;
            }
            let changes = |at: &u64| if blocked { *at > now } else { *at == BLOCKED };
            for (at, _) in pipe.queue.iter_mut().filter(|(at, _)| changes(at)) {
                *at = due;
            }
            if let Some((at, _)) = pipe.end.as_mut().filter(|(at, _)| changes(at)) {
                *at = due;
            }
        }
    }

    /// The node has power.
    pub(crate) fn power(&self, host: usize, up: bool) {
        let mut state = self.state.lock();
        state.hosts[host].up = up;
        if !up {
            // It says nothing any more; its peer finds out when it has something to say.
            for pipe in state.pipes.iter().filter_map(Weak::upgrade) {
                let mut pipe = pipe.lock();
                if pipe.from == host {
                    pipe.end = Some((BLOCKED - 1, End::Reset));
                    pipe.queue.clear();
                    pipe.bytes = 0;
                }
            }
        }
    }

    /// The process is gone: nobody listens, and what waited is refused.
    pub(crate) fn ended(&self, host: usize) {
        let knocks = {
            let mut state = self.state.lock();
            state.hosts[host].listening = false;
            state.hosts[host].waiting = None;
            std::mem::take(&mut state.hosts[host].knocks)
        };
        drop(knocks);
    }

    /// Time goes on: whoever waited for what has arrived is woken.
    pub(crate) fn advance(&self, by: u64) {
        let mut wakers = Vec::new();
        {
            let mut state = self.state.lock();
            state.now += by;
            let now = state.now;
            state.pipes.retain(|pipe| pipe.strong_count() > 0);
            for pipe in state.pipes.iter().filter_map(Weak::upgrade) {
                let mut pipe = pipe.lock();
                let arrived = pipe.queue.front().is_some_and(|(at, _)| *at <= now)
                    || (pipe.queue.is_empty() && pipe.end.is_some_and(|(at, _)| at <= now));
                if arrived {
                    wakers.extend(pipe.reader.take());
                }
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    fn delay(state: &mut State) -> u64 {
        let latency = state.latency;
        latency / 2 + state.dice.below(latency / 2 + 1)
    }
}

/// One side of a connection.
pub(crate) struct Stream {
    net: Arc<Net>,
    host: usize,
    reads: Arc<Mutex<Pipe>>,
    writes: Arc<Mutex<Pipe>>,
    said_farewell: bool,
}

impl Stream {
    fn pair(net: &Arc<Net>, from: usize) -> (Stream, Stream) {
        let to = 1 - from;
        let there = Arc::new(Mutex::new(Pipe { from, ..Pipe::default() }));
        let back = Arc::new(Mutex::new(Pipe { from: to, ..Pipe::default() }));
        let mut state = net.state.lock();
        state.pipes.push(Arc::downgrade(&there));
        state.pipes.push(Arc::downgrade(&back));
        drop(state);
        let stream = |host, reads: &Arc<Mutex<Pipe>>, writes: &Arc<Mutex<Pipe>>| Stream {
            net: Arc::clone(net),
            host,
            reads: Arc::clone(reads),
            writes: Arc::clone(writes),
            said_farewell: false,
        };
        (stream(from, &back, &there), stream(to, &there, &back))
    }

    fn end(&self, how: End) {
        let mut state = self.net.state.lock();
        if !state.hosts[self.host].up {
            return;
        }
        let due = if state.hosts[self.host].blocked { BLOCKED } else { state.now + Net::delay(&mut state) };
        let mut pipe = self.writes.lock();
        let last = pipe.queue.back().map_or(0, |(at, _)| *at);
        pipe.end.get_or_insert((due.max(last), how));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.said_farewell {
            // The kernel closes what a process leaves behind.
            self.end(End::Reset);
        }
        let mut pipe = self.reads.lock();
        pipe.deaf = true;
        let writer = pipe.writer.take();
        drop(pipe);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let now = self.net.now();
        let mut pipe = self.reads.lock();
        if pipe.queue.front().is_none_or(|(at, _)| *at > now) {
            if pipe.queue.is_empty()
                && let Some((_, how)) = pipe.end.filter(|(at, _)| *at <= now)
            {
                return Poll::Ready(match how {
                    End::Farewell => Ok(()),
                    End::Reset => Err(io::ErrorKind::ConnectionReset.into()),
                });
            }
            pipe.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let taken = pipe.taken;
        let mut used = 0;
        let mut whole = false;
        if let Some((_, piece)) = pipe.queue.front() {
            let rest = &piece[taken..];
            used = rest.len().min(into.remaining());
            into.put_slice(&rest[..used]);
            whole = used == rest.len();
        }
        pipe.bytes = pipe.bytes.saturating_sub(used);
        pipe.taken = if whole { 0 } else { taken + used };
        if whole {
            pipe.queue.pop_front();
        }
        if let Some(writer) = pipe.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.net.state.lock();
        let due = if state.hosts[self.host].blocked { BLOCKED } else { state.now + Net::delay(&mut state) };
        let reachable = !state.hosts[self.host].blocked && !state.hosts[1 - self.host].blocked;
        let other_up = state.hosts[1 - self.host].up;
        drop(state);
        let mut pipe = self.writes.lock();
        if pipe.deaf && reachable && other_up {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if pipe.bytes >= WINDOW_BYTES {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let last = pipe.queue.back().map_or(0, |(at, _)| *at);
        pipe.bytes += from.len();
        pipe.queue.push_back((due.max(last), from.to_vec()));
        Poll::Ready(Ok(from.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.said_farewell = true;
        self.end(End::Farewell);
        Poll::Ready(Ok(()))
    }
}

/// The way from one host.
pub(crate) struct SimulatedRoad {
    net: Arc<Net>,
    host: usize,
}

impl SimulatedRoad {
    pub(crate) fn new(net: Arc<Net>, host: usize) -> Self {
        net.state.lock().hosts[host].listening = true;
        Self { net, host }
    }

    /// What the other host says, after the time it takes to say it.
    async fn answer(&self, patience: Duration) -> io::Result<()> {
        let wait = {
            let mut state = self.net.state.lock();
            Net::delay(&mut state) + Net::delay(&mut state)
        };
        tokio::time::sleep(Duration::from_nanos(wait)).await;
        let (blocked, up, listening) = {
            let state = self.net.state.lock();
            let other = &state.hosts[1 - self.host];
            (state.hosts[self.host].blocked || other.blocked, other.up, other.listening)
        };
        if blocked || !up {
            tokio::time::sleep(patience).await;
            return Err(io::ErrorKind::TimedOut.into());
        }
        if listening { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
    }
}

const PATIENCE: Duration = Duration::from_millis(500);

impl Road for SimulatedRoad {
    type Knock = Stream;
    type Stream = Stream;

    fn knock(&self) -> impl Future<Output = io::Result<(Stream, SocketAddr)>> + Send {
        std::future::poll_fn(|context| {
            let mut state = self.net.state.lock();
            let host = &mut state.hosts[self.host];
            match host.knocks.pop_front() {
                Some(stream) => Poll::Ready(Ok((stream, SocketAddr::from(([127, 0, 0, 1], 1))))),
                None => {
                    host.waiting = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
    }

    async fn admit(&self, knock: Stream) -> Result<Stream, Unproven> {
        Ok(knock)
    }

    async fn dial(&self) -> Result<Stream, Unproven> {
        self.answer(PATIENCE).await.map_err(Unproven::Connect)?;
        let (mine, theirs) = Stream::pair(&self.net, self.host);
        let waiting = {
            let mut state = self.net.state.lock();
            let other = &mut state.hosts[1 - self.host];
            other.knocks.push_back(theirs);
            other.waiting.take()
        };
        if let Some(waiting) = waiting {
            waiting.wake();
        }
        Ok(mine)
    }

    async fn probe(&self) -> (Evidence, String) {
        match self.answer(PATIENCE).await {
            Ok(()) => (Evidence::Answers, "it answers".into()),
            Err(error) => (evidence_of(&error), error.to_string()),
        }
    }
}
