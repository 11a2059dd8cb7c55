//! The socket between this plugin and the replicator of one pod. One datagram is one message: a short text, and
//! descriptors beside it. The replicator asks, the plugin answers; the open connection itself says that somebody serves.
//!
//! ```text
//! get                        -> fresh - | resumed AGREED   with descriptors; absent: no data volume (yet)
//! adopt AGREED, descriptors  -> ok | refused WHY           after a restart of the plugin
//! agreed AGREED              -> ok                         kept for a successor
//! ```
//!
//! AGREED is an opaque word, or `-` for nothing.

use crate::volumes::{Error, Volumes};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recvmsg, sendmsg, socket_with,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// Name of the socket in a pod's directory.
pub const SOCKET: &str = "plugin.sock";
const DESCRIPTORS_MAX: usize = 16;
const TEXT_BYTES_MAX: usize = 1024;
/// A replicator needs one, and one more while it replaces another.
const CONNECTIONS_MAX: usize = 4;

/// A pod's open socket. Closed when dropped, with every connection through it.
pub struct Door {
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Opens a pod's socket in its directory.
pub fn open(
    directory: &Path,
    uid: String,
    volumes: Arc<Volumes>,
    runtime: &tokio::runtime::Handle,
) -> io::Result<Door> {
    let path = directory.join(SOCKET);
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Addresses of sockets are limited to 108 bytes, and kubelet's directory may be anywhere.
    let place = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", place.as_raw_fd()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&socket, &address)?;
    listen(&socket, 8)?;
    let _in_runtime = runtime.enter();
    let socket = awaited(socket)?;
    let accepting = runtime.spawn(async move {
        if let Err(error) = accept(socket, &uid, &volumes).await {
            tracing::error!(%error, pod_uid = uid, "a pod's socket failed");
        }
    });
    Ok(Door { accepting })
}

async fn accept(socket: AsyncFd<OwnedFd>, uid: &str, volumes: &Arc<Volumes>) -> io::Result<()> {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    // Dropped with this task, and every connection with it.
    let mut serving = tokio::task::JoinSet::new();
    loop {
        while serving.try_join_next().is_some() {}
        if serving.len() >= CONNECTIONS_MAX {
            serving.join_next().await;
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connection = match socket.readable().await?.try_io(|socket| Ok(accept_with(socket.as_fd(), flags)?)) {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            // Too many open files, most likely: it passes, and who waits here must be served then.
            Ok(Err(error)) => {
                tracing::warn!(%error, pod_uid = uid, "accept a replicator");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            Err(_not_ready) => continue,
        };
        tracing::info!(pod_uid = uid, "connected");
        let (uid, volumes) = (uid.to_owned(), Arc::clone(volumes));
        serving.spawn(async move {
            let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
            let here = Here { uid: &uid, number, volumes: &volumes };
            if let Err(error) = converse(connection, &here).await {
                tracing::warn!(%error, pod_uid = uid, "a connection failed");
            }
        });
    }
}

fn awaited(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[allow(unsafe_code, reason = "tokio cannot know how long any type keeps its descriptor open")]
    // SAFETY: an `OwnedFd` is open until it is dropped, and keeps its number.
    let socket = unsafe { AsyncFd::register(socket) };
    Ok(socket?)
}

/// Says that a replicator left, also when its task is cancelled.
struct Here<'a> {
    uid: &'a str,
    number: u64,
    volumes: &'a Arc<Volumes>,
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.volumes.left(self.uid, self.number);
    }
}

async fn converse(connection: OwnedFd, here: &Here<'_>) -> io::Result<()> {
    let connection = awaited(connection)?;
    loop {
        let received = match connection.readable().await?.try_io(|connection| Ok(receive(connection.get_ref())?)) {
            Ok(received) => received,
            Err(_not_ready) => continue,
        };
        let Some((text, descriptors)) = received? else { return Ok(()) };
        let (uid, volumes, number) = (here.uid.to_owned(), Arc::clone(here.volumes), here.number);
        // Handing out may mount anew.
        let (text, descriptors) =
            tokio::task::spawn_blocking(move || respond(&text, descriptors, &uid, number, &volumes))
                .await
                .map_err(io::Error::other)?;
        loop {
            match connection.writable().await?.try_io(|connection| Ok(send(connection.get_ref(), &text, &descriptors)?))
            {
                Ok(sent) => break sent?,
                Err(_not_ready) => {}
            }
        }
    }
}

fn respond(
    text: &str,
    descriptors: Vec<OwnedFd>,
    uid: &str,
    connection: u64,
    volumes: &Volumes,
) -> (String, Vec<OwnedFd>) {
    let word = |word: &str| (word != "-").then(|| word.to_owned());
    let words: Vec<_> = text.split(' ').collect();
    let result = match words.as_slice() {
        ["get"] => volumes.descriptors(uid).map(|given| match given {
            Some((devices, false, _)) => ("fresh -".to_owned(), devices),
            Some((devices, true, agreed)) => (format!("resumed {}", agreed.as_deref().unwrap_or("-")), devices),
            None => ("absent".to_owned(), Vec::new()),
        }),
        ["adopt", agreed] => volumes.adopt(uid, descriptors, word(agreed)).map(|()| ("ok".to_owned(), Vec::new())),
        ["agreed", agreed] => volumes.agreed(uid, agreed).map(|()| ("ok".to_owned(), Vec::new())),
        _ => Err(Error::Refused("not a message known here".to_owned())),
    };
    match result {
        Ok((answer, devices)) => {
            // Only who has descriptors, or gave them back, serves.
            if answer != "absent" {
                volumes.arrived(uid, connection);
            }
            (answer, devices)
        }
        Err(error) => {
            let why = crate::chain(&error);
            tracing::warn!(pod_uid = uid, why, "refused a replicator");
            (format!("refused {}", why.chars().take(200).collect::<String>()), Vec::new())
        }
    }
}

/// One message; `None` at the end.
fn receive(socket: &OwnedFd) -> Result<Option<(String, Vec<OwnedFd>)>, Errno> {
    let mut text = [0; TEXT_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let text = text.get(..received.bytes).map(String::from_utf8_lossy).unwrap_or_default().into_owned();
    Ok(Some((text, descriptors)))
}

fn send(socket: &OwnedFd, text: &str, descriptors: &[OwnedFd]) -> Result<(), Errno> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(Errno::TOOBIG);
    }
    sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
