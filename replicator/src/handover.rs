//! How the descriptors of the application's mount reach the daemon: node plugin -> supervisor -> daemon.
//!
//! ```text
//! node plugin --(/control/plugin.sock)--> supervisor, pid 1 --(inherited)--> daemon
//! ```
//!
//! Messages to the plugin are datagrams: a short text, descriptors beside it (the plugin's `handover.rs` lists them). The
//! supervisor keeps duplicates, so neither a death of the daemon nor a restart of the plugin loses the mount. This file
//! holds both ends inside the sidecar: [`PluginSocket`] for the supervisor, [`descriptors_from_env`] for the daemon.

use crate::capture::transport::{Connection, Keeper};
use crate::capture::wire::Negotiated;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Mutex;

/// The daemon's environment: numbers of the inherited descriptors.
pub(crate) const DEVICES: &str = "TANDEM_FUSE_FDS";
/// `fresh` or `resumed`.
pub(crate) const CONNECTION: &str = "TANDEM_FUSE_CONNECTION";
/// What was agreed with the kernel, in hexadecimal; absent if nothing is known.
pub(crate) const AGREED: &str = "TANDEM_FUSE_AGREED";
/// The daemon's socket to the supervisor.
pub(crate) const SUPERVISOR: &str = "TANDEM_SUPERVISOR_FD";
/// Memory that outlives the daemon.
pub(crate) const SHARED: &str = "TANDEM_SHARED_FD";

const DESCRIPTORS_MAX: usize = 16;

/// What the supervisor left for the daemon.
pub struct Inherited {
    /// Descriptors of the application's mount.
    pub devices: Vec<OwnedFd>,
    /// Whether a predecessor served them.
    pub connection: Connection,
    /// Tells the supervisor, and through it the plugin, what is agreed with the kernel.
    pub keeper: Keeper,
}

/// The descriptors that the supervisor let this process inherit. Call it once, before anything else opens descriptors.
/// `None`: not started by a supervisor.
pub fn descriptors_from_env() -> io::Result<Option<Inherited>> {
    let Some(devices) = variable(DEVICES) else { return Ok(None) };
    let devices = devices.split(',').map(inherited).collect::<io::Result<Vec<_>>>()?;
    let connection = if variable(CONNECTION).as_deref() == Some("fresh") {
        Connection::Fresh
    } else {
        Connection::Resumed(
            variable(AGREED).and_then(|hex| from_hex(&hex)).and_then(|bytes| Negotiated::from_bytes(&bytes)),
        )
    };
    let supervisor = variable(SUPERVISOR).as_deref().map(inherited).transpose()?.map(Mutex::new);
    let keeper: Keeper = Box::new(move |negotiated| {
        let Some(supervisor) = &supervisor else { return Ok(()) };
        let supervisor = supervisor.lock().map_err(|_| io::Error::other("the supervisor's socket is lost"))?;
        send(&*supervisor, &format!("agreed {}", to_hex(&negotiated.to_bytes())), &[])?;
        // Waits until it is kept: only then may INIT be answered.
        match receive(&*supervisor)? {
            Some((answer, _)) if answer == "ok" => Ok(()),
            answer => Err(io::Error::other(format!("the supervisor said {:?}", answer.map(|(text, _)| text)))),
        }
    });
    Ok(Some(Inherited { devices, connection, keeper }))
}

/// Memory that the supervisor keeps while daemons come and go: empty at first, sized and laid out by the daemon. It is
/// lost with the container, so whatever is in there must be found again from the journal and the volume. Call it once.
pub fn shared() -> io::Result<Option<OwnedFd>> {
    variable(SHARED).as_deref().map(inherited).transpose()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Takes ownership of a descriptor that was inherited under a number, and keeps it from children.
fn inherited(number: &str) -> io::Result<OwnedFd> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("{number:?} is not an inherited descriptor"));
    let number: RawFd = number.parse().map_err(|_| malformed())?;
    if number <= 2 {
        return Err(malformed());
    }
    #[allow(unsafe_code, reason = "a number from the environment becomes a descriptor here and nowhere else")]
    // SAFETY: the supervisor opened it for this process alone and names it in one variable; nobody else here owns it. If
    // it is not open, the next call says so.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

/// What the plugin gave.
pub(crate) struct Given {
    pub(crate) devices: Vec<OwnedFd>,
    pub(crate) fresh: bool,
    pub(crate) agreed: Option<String>,
}

/// The supervisor's connection to the plugin.
pub(crate) struct PluginSocket {
    socket: OwnedFd,
}

impl PluginSocket {
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let (directory, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
        // Addresses of sockets are limited to 108 bytes.
        let place = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let address =
            SocketAddrUnix::new(Path::new(&format!("/proc/self/fd/{}", place.as_raw_fd())).join(name).as_path())?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // A plugin that accepts and then says nothing must not hold the supervisor for ever.
        let patience = Some(std::time::Duration::from_secs(10));
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, patience)?;
        connect(&socket, &address)?;
        Ok(Self { socket })
    }

    /// Asks for the descriptors; `None`: there is no data volume yet.
    pub(crate) fn get(&self) -> io::Result<Option<Given>> {
        let (answer, devices) = self.ask("get", &[])?;
        match answer.split_once(' ') {
            _ if answer == "absent" => Ok(None),
            Some((kind @ ("fresh" | "resumed"), agreed)) if !devices.is_empty() => {
                Ok(Some(Given { devices, fresh: kind == "fresh", agreed: (agreed != "-").then(|| agreed.to_owned()) }))
            }
            _ => Err(io::Error::other(format!("the node plugin said {answer:?}"))),
        }
    }

    /// Gives the descriptors back to a plugin that was away.
    pub(crate) fn adopt(&self, devices: &[OwnedFd], agreed: Option<&str>) -> io::Result<()> {
        let devices: Vec<_> = devices.iter().map(AsFd::as_fd).collect();
        self.confirmed(&format!("adopt {}", agreed.unwrap_or("-")), &devices)
    }

    pub(crate) fn agreed(&self, agreed: &str) -> io::Result<()> {
        self.confirmed(&format!("agreed {agreed}"), &[])
    }

    fn confirmed(&self, text: &str, devices: &[BorrowedFd<'_>]) -> io::Result<()> {
        match self.ask(text, devices)?.0.as_str() {
            "ok" => Ok(()),
            answer => Err(io::Error::other(format!("the node plugin said {answer:?}"))),
        }
    }

    fn ask(&self, text: &str, devices: &[BorrowedFd<'_>]) -> io::Result<(String, Vec<OwnedFd>)> {
        send(&self.socket, text, devices)?;
        receive(&self.socket)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl AsFd for PluginSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One message; `None` at the end.
pub(crate) fn receive(socket: impl AsFd) -> Result<Option<(String, Vec<OwnedFd>)>, Errno> {
    let mut text = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
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

pub(crate) fn send(socket: impl AsFd, text: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Bytes as a word of a message.
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        if write!(hex, "{byte:02x}").is_err() {
            hex.clear();
        }
        hex
    })
}

/// Bytes from such a word.
pub fn from_hex(hex: &str) -> Option<Vec<u8>> {
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_the_environment_comes_out_again() {
        assert_eq!(from_hex(&to_hex(&[0, 1, 0xab, 0xff])), Some(vec![0, 1, 0xab, 0xff]));
        assert_eq!(from_hex("abc"), None);
        assert_eq!(from_hex("zz"), None);
        assert_eq!(from_hex("é1"), None);
    }
}
