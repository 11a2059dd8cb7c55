//! How a connection between the members comes about: TCP and TLS, both sides proven. The simulation has a road of its own;
//! what travels on it is the same.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::frame::FrameError;
use super::tls::{self, TlsError};
use super::{Evidence, HANDSHAKE_TIMEOUT, LinkSettings};

/// Where connections come from.
pub(crate) trait Road: Send + Sync + 'static {
    /// Somebody who has not proven anything yet.
    type Knock: Send;
    /// A connection to somebody who proved to be the peer.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next who knocks, and from where.
    fn knock(&self) -> impl Future<Output = io::Result<(Self::Knock, SocketAddr)>> + Send;

    /// Lets in who proves to be the peer.
    fn admit(&self, knock: Self::Knock) -> impl Future<Output = Result<Self::Stream, Unproven>> + Send;

    /// Connects to the peer.
    fn dial(&self) -> impl Future<Output = Result<Self::Stream, Unproven>> + Send;

    /// What the peer's host says to a connection right now.
    fn probe(&self) -> impl Future<Output = (Evidence, String)> + Send;
}

/// TLS takes what has arrived in pieces of 4 KiB. The buffer beneath it asks the kernel once for all of them.
pub(crate) type Secured = tokio_rustls::TlsStream<BufReader<TcpStream>>;

/// Bytes that are taken from the socket at once.
const ARRIVED_BYTES: usize = 128 << 10;

/// TCP, and TLS on it.
pub(super) struct Tcp {
    listener: TcpListener,
    settings: LinkSettings,
}

impl Tcp {
    pub(super) fn new(listener: TcpListener, settings: LinkSettings) -> Self {
        Self { listener, settings }
    }
}

impl Road for Tcp {
    type Knock = TcpStream;
    type Stream = Secured;

    async fn knock(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.listener.accept().await
    }

    async fn admit(&self, knock: TcpStream) -> Result<Self::Stream, Unproven> {
        admit(&self.settings, knock).await
    }

    async fn dial(&self) -> Result<Self::Stream, Unproven> {
        dial(&self.settings).await
    }

    async fn probe(&self) -> (Evidence, String) {
        probe(&self.settings).await
    }
}

async fn admit(settings: &LinkSettings, stream: TcpStream) -> Result<Secured, Unproven> {
    prepare(&stream, settings).map_err(Unproven::Connect)?;
    let acceptor = tls::acceptor(&settings.tls)?;
    let stream = acceptor.accept(BufReader::with_capacity(ARRIVED_BYTES, stream)).await.map_err(TlsError::Handshake)?;
    tls::check_identity(stream.get_ref().1.peer_certificates(), &settings.tls.peer_name)?;
    Ok(stream.into())
}

pub(super) async fn dial(settings: &LinkSettings) -> Result<Secured, Unproven> {
    let (connector, name) = tls::connector(&settings.tls)?;
    let stream = timeout(settings.interval.max(Duration::from_millis(500)), TcpStream::connect(&settings.peer))
        .await
        .map_err(|_| Unproven::Timeout)?
        .map_err(Unproven::Connect)?;
    prepare(&stream, settings).map_err(Unproven::Connect)?;
    let stream =
        connector.connect(name, BufReader::with_capacity(ARRIVED_BYTES, stream)).await.map_err(TlsError::Handshake)?;
    tls::check_identity(stream.get_ref().1.peer_certificates(), &settings.tls.peer_name)?;
    Ok(stream.into())
}

/// Small frames leave at once; a peer whose host is gone is noticed by the kernel too.
fn prepare(stream: &TcpStream, settings: &LinkSettings) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, settings.silence.max(Duration::from_secs(1)))?;
    sockopt::set_tcp_user_timeout(stream, settings.silence.as_millis() as u32)?;
    Ok(())
}

/// Tries to connect and hangs up at once.
pub(super) async fn probe(settings: &LinkSettings) -> (Evidence, String) {
    let patience = settings.interval;
    match timeout(patience, TcpStream::connect(&settings.peer)).await {
        Ok(Ok(_)) => (Evidence::Answers, "peer's host accepts connections".into()),
        Ok(Err(error)) => (evidence_of(&error), format!("connect: {error}")),
        Err(_) => (Evidence::Silent, format!("no answer within {} ms", patience.as_millis())),
    }
}

/// Why no proven connection came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unproven {
    #[error("connect: {0}")]
    Connect(io::Error),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("no answer within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
}

impl Unproven {
    pub(super) fn evidence(&self) -> Evidence {
        match self {
            Unproven::Connect(error) => evidence_of(error),
            Unproven::Tls(TlsError::Handshake(error)) => evidence_of(error),
            Unproven::Tls(_) | Unproven::Frame(_) => Evidence::Answers,
            Unproven::Timeout => Evidence::Silent,
        }
    }
}

pub(crate) fn evidence_of(error: &io::Error) -> Evidence {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};
    let kind = error.kind();
    if kind == ConnectionRefused {
        Evidence::Refused
    } else if matches!(kind, ConnectionReset | BrokenPipe | UnexpectedEof) {
        // The end of the bytes without TLS's farewell: the process is gone, its kernel closed the socket.
        Evidence::Reset
    } else {
        Evidence::Silent
    }
}
