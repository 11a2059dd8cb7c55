//! Answers unary gRPC calls on a unix socket: as much of HTTP/2 as kubelet needs, and no more. The privileged program
//! stays small enough to be read, and kubelet's registration call is understood: kubelet dials that socket without naming
//! an authority, its library then sends the percent-encoded path of the socket as one, and the usual HTTP/2 crates refuse
//! such a request.
//!
//! Requests and answers are one message each, of a few kilobytes. Every limit is checked before anything is kept.

use crate::hpack::Decoder;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};

/// A call that failed, in gRPC's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// One of [`code`].
    pub code: u8,
    /// For kubelet's log and the pod's events.
    pub message: String,
}

/// The codes of gRPC that are used here.
pub mod code {
    /// The request itself is wrong.
    pub const INVALID_ARGUMENT: u8 = 3;
    /// Something has to change first.
    pub const FAILED_PRECONDITION: u8 = 9;
    /// No such call.
    pub const UNIMPLEMENTED: u8 = 12;
    /// It went wrong here; kubelet tries again.
    pub const INTERNAL: u8 = 13;
}

impl Status {
    /// A failure with its reason.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// What answers calls.
pub trait Service: Send + Sync + 'static {
    /// `path` is `/package.Service/Method`, `message` the request as sent.
    fn call(&self, path: &str, message: &[u8]) -> impl Future<Output = Result<Vec<u8>, Status>> + Send;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_BYTES_MAX: usize = 16_384;
const HEADER_BLOCK_BYTES_MAX: usize = 32 << 10;
const MESSAGE_BYTES_MAX: usize = 256 << 10;
const STREAMS_MAX: usize = 64;
const CONNECTIONS_MAX: usize = 64;
/// Kubelet keeps its connections open while it uses them, and opens a new one after that.
const IDLE: Duration = Duration::from_secs(3600);

mod frame {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;

    pub(super) const ACK: u8 = 1;
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
    pub(super) const PRIORITY: u8 = 32;
}

/// Serves a socket until it fails. Connections beyond a bound wait in the backlog.
pub async fn serve<S: Service>(listener: UnixListener, service: Arc<S>) -> io::Error {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return io::Error::other("the bound on connections was closed");
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => return error,
        };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            if let Err(error) = connection(stream, service).await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
}

struct Stream {
    path: Option<String>,
    body: Vec<u8>,
}

/// One connection, from preface to end.
pub async fn connection<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    service: Arc<S>,
) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    let (answers, mut queue) = mpsc::channel::<Vec<u8>>(STREAMS_MAX);
    let writer = tokio::spawn(async move {
        while let Some(bytes) = queue.recv().await {
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    });
    let read = read_frames(&mut from, &answers, &service).await;
    if let Err(error) = &read
        && error.kind() == io::ErrorKind::InvalidData
    {
        // GOAWAY, PROTOCOL_ERROR: the peer learns that it is its fault. If it does not listen, it has gone.
        let goaway = encode(frame::GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 1]);
        if answers.send(goaway).await.is_err() {
            tracing::debug!("the peer had gone");
        }
    }
    drop(answers);
    let written = writer.await.map_err(io::Error::other)?;
    read.and(written)
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn read_frames<S: Service>(
    from: &mut (impl AsyncRead + Unpin),
    answers: &mpsc::Sender<Vec<u8>>,
    service: &Arc<S>,
) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let mut preface = [0; PREFACE.len()];
    tokio::time::timeout(Duration::from_secs(10), from.read_exact(&mut preface)).await??;
    if preface != PREFACE {
        return Err(malformed("this is not HTTP/2"));
    }
    // MAX_CONCURRENT_STREAMS (3).
    let mut settings = vec![0, 3];
    settings.extend_from_slice(&(STREAMS_MAX as u32).to_be_bytes());
    answers.send(encode(frame::SETTINGS, 0, 0, &settings)).await.map_err(gone)?;

    let mut decoder = Decoder::default();
    let mut streams: HashMap<u32, Stream> = HashMap::new();
    // A block of headers that CONTINUATION frames must complete: stream, whether it also ends the stream, bytes.
    let mut unfinished: Option<(u32, bool, Vec<u8>)> = None;
    let mut payload = Vec::new();
    loop {
        let mut header = [0; 9];
        match tokio::time::timeout(IDLE, from.read_exact(&mut header)).await? {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = header;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        let id = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        if length > FRAME_BYTES_MAX {
            return Err(malformed("frame too long"));
        }
        payload.resize(length, 0);
        from.read_exact(&mut payload).await?;
        if unfinished.is_some() && kind != frame::CONTINUATION {
            return Err(malformed("headers interrupted"));
        }
        let ended = match kind {
            frame::SETTINGS if flags & frame::ACK == 0 => {
                // Nothing the peer may set matters for answers that fit into one frame of the smallest size.
                answers.send(encode(frame::SETTINGS, frame::ACK, 0, &[])).await.map_err(gone)?;
                None
            }
            frame::PING if flags & frame::ACK == 0 => {
                if length != 8 {
                    return Err(malformed("ping"));
                }
                answers.send(encode(frame::PING, frame::ACK, 0, &payload)).await.map_err(gone)?;
                None
            }
            frame::HEADERS => {
                if id % 2 == 0 || (streams.len() >= STREAMS_MAX && !streams.contains_key(&id)) {
                    return Err(malformed("stream"));
                }
                let mut block = unpad(&payload, flags)?;
                if flags & frame::PRIORITY != 0 {
                    block = block.get(5..).ok_or_else(|| malformed("priority"))?;
                }
                unfinished = Some((id, flags & frame::END_STREAM != 0, block.to_vec()));
                headers_done(flags, &mut unfinished, &mut decoder, &mut streams)?
            }
            frame::CONTINUATION => {
                match &mut unfinished {
                    Some((expected, _, block)) if *expected == id && block.len() + length <= HEADER_BLOCK_BYTES_MAX => {
                        block.extend_from_slice(&payload);
                    }
                    _ => return Err(malformed("continuation")),
                }
                headers_done(flags, &mut unfinished, &mut decoder, &mut streams)?
            }
            frame::DATA => {
                let data = unpad(&payload, flags)?;
                if length > 0 {
                    // Whatever came in is consumed at once: give the window back, of the connection and the stream.
                    let mut windows = encode(frame::WINDOW_UPDATE, 0, 0, &(length as u32).to_be_bytes());
                    windows.extend(encode(frame::WINDOW_UPDATE, 0, id, &(length as u32).to_be_bytes()));
                    answers.send(windows).await.map_err(gone)?;
                }
                // A stream that is not known was reset or answered already.
                match streams.get_mut(&id) {
                    Some(stream) if stream.body.len() + data.len() <= MESSAGE_BYTES_MAX => {
                        stream.body.extend_from_slice(data);
                        (flags & frame::END_STREAM != 0).then_some(id)
                    }
                    Some(_) => return Err(malformed("message too long")),
                    None => None,
                }
            }
            frame::RST_STREAM => {
                streams.remove(&id);
                None
            }
            frame::PUSH_PROMISE => return Err(malformed("clients do not push")),
            // GOAWAY, WINDOW_UPDATE, PRIORITY, and kinds that are not known must be ignored.
            _ => None,
        };
        let Some((id, stream)) = ended.and_then(|id| streams.remove_entry(&id)) else { continue };
        let (answers, service) = (answers.clone(), Arc::clone(service));
        tokio::spawn(async move {
            let answer = answer(id, stream, service.as_ref()).await;
            if answers.send(answer).await.is_err() {
                tracing::debug!("a caller had gone before its answer");
            }
        });
    }
}

fn unpad(payload: &[u8], flags: u8) -> io::Result<&[u8]> {
    if flags & frame::PADDED == 0 {
        return Ok(payload);
    }
    let unpadded = payload.split_first().and_then(|(&padding, rest)| {
        let length = rest.len().checked_sub(usize::from(padding))?;
        rest.get(..length)
    });
    unpadded.ok_or_else(|| malformed("padding"))
}

/// Takes a complete block of headers in; returns the stream if the request ends with it.
fn headers_done(
    flags: u8,
    unfinished: &mut Option<(u32, bool, Vec<u8>)>,
    decoder: &mut Decoder,
    streams: &mut HashMap<u32, Stream>,
) -> io::Result<Option<u32>> {
    if flags & frame::END_HEADERS == 0 {
        return Ok(None);
    }
    let Some((id, ends, block)) = unfinished.take() else { return Ok(None) };
    let fields = decoder.decode(&block).map_err(|_| malformed("headers"))?;
    let path = fields.into_iter().find(|(name, _)| name == b":path").and_then(|(_, path)| String::from_utf8(path).ok());
    // A second block on a stream is trailers: it changes nothing.
    let stream = streams.entry(id).or_insert(Stream { path: None, body: Vec::new() });
    stream.path = stream.path.take().or(path);
    Ok(ends.then_some(id))
}

async fn answer<S: Service>(id: u32, stream: Stream, service: &S) -> Vec<u8> {
    let result = match (&stream.path, message(&stream.body)) {
        (Some(path), Some(message)) => service.call(path, message).await,
        (None, _) => Err(Status::new(code::INVALID_ARGUMENT, "the request names no path")),
        (_, None) => Err(Status::new(code::INVALID_ARGUMENT, "the request is not one uncompressed message")),
    };
    match result {
        Ok(body) => {
            let mut data = vec![0];
            data.extend_from_slice(&(body.len() as u32).to_be_bytes());
            data.extend_from_slice(&body);
            let mut bytes = encode(frame::HEADERS, frame::END_HEADERS, id, &begin());
            bytes.extend(encode(frame::DATA, 0, id, &data));
            let mut trailers = Vec::new();
            literal(&mut trailers, "grpc-status", "0");
            bytes.extend(encode(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, id, &trailers));
            bytes
        }
        Err(status) => {
            let mut headers = begin();
            literal(&mut headers, "grpc-status", &status.code.to_string());
            literal(&mut headers, "grpc-message", &percent_encoded(&status.message));
            encode(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, id, &headers)
        }
    }
}

/// The one message of a request: a flag (compressed), its length, its bytes.
fn message(body: &[u8]) -> Option<&[u8]> {
    let (&[compressed, l0, l1, l2, l3], message) = body.split_first_chunk::<5>()?;
    (compressed == 0 && u32::from_be_bytes([l0, l1, l2, l3]) as usize == message.len()).then_some(message)
}

fn begin() -> Vec<u8> {
    let mut headers = vec![0x88]; // :status 200
    literal(&mut headers, "content-type", "application/grpc");
    headers
}

/// A field neither indexed nor compressed.
fn literal(headers: &mut Vec<u8>, name: &str, value: &str) {
    headers.push(0);
    for text in [name, value] {
        // Lengths of seven bits and more are continued in groups of seven.
        let mut length = text.len();
        if length < 127 {
            headers.push(length as u8);
        } else {
            headers.push(127);
            length -= 127;
            while length >= 128 {
                headers.push((length % 128) as u8 | 128);
                length /= 128;
            }
            headers.push(length as u8);
        }
        headers.extend_from_slice(text.as_bytes());
    }
}

/// As gRPC wants messages: what is not printable ASCII, and the percent sign itself, as `%XX`. Cut so that headers stay
/// within one frame.
fn percent_encoded(message: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::new();
    for byte in message.bytes().take(2048) {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else if write!(encoded, "%{byte:02X}").is_err() {
            break;
        }
    }
    encoded
}

fn encode(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + payload.len());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
