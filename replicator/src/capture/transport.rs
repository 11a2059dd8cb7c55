//! The FUSE transport: descriptors of one connection, threads that read requests from them, answers, notifications.
//! It decides nothing about files. It is our own because a connection must be taken over from a daemon that died, together
//! with descriptors that were cloned elsewhere (the sidecar may not open `/dev/fuse`).
//!
//! What must always hold: an answer goes to the descriptor its request was read from (the kernel looks for it there only),
//! every request is answered exactly once, and a daemon that dies leaves its requests unanswered, so that its successor gets
//! them again.
//!
//! ```text
//! fresh:   (INIT waits) -> run: INIT answered -> requests
//! resumed: NOTIFY_RESEND -> run: unanswered requests of the predecessor, marked `resent` -> requests
//! ```
//!
//! One thread at a time looks for requests, and goes on looking for a moment before it sleeps: to be woken costs more than
//! most requests do. See [`Watch`].

use super::parking::{Parking, Ticket};
use super::watch::{Patience, Rest, Watch};
use super::wire::{self, Attr, Entry, IO_BYTES_MAX, Listing, Negotiated, Operation, Request, StatFs};
use crate::clock;
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// What serves requests. Called by several threads at once.
pub trait Handler: Send + Sync {
    /// One request. `request` borrows the thread's buffer; `reply` may be kept and answered later, from any thread; one
    /// that may wait for long is to be parked. For `Forget` the reply is to be dropped. `Interrupt` does not come here.
    fn handle(&self, request: Request<'_>, reply: Reply);
}

/// How the descriptors were come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Nobody has served it: the kernel's INIT waits.
    Fresh,
    /// A predecessor served it. `None`: it died before INIT was agreed, or what was agreed is lost.
    Resumed(Option<Negotiated>),
}

/// Called once, before INIT is answered, with what is about to be agreed: whoever outlives the daemon keeps it.
pub type Keeper = Box<dyn Fn(&Negotiated) -> io::Result<()> + Send + Sync>;

/// One connection to the kernel.
pub struct Session {
    channels: Vec<Arc<Channel>>,
    negotiated: Mutex<Option<Negotiated>>,
    initialised: Condvar,
    keeper: Keeper,
    ended: AtomicBool,
    watch: Watch,
    /// With one processor, whoever looks keeps away who would make the request.
    may_look: bool,
}

struct Channel {
    device: OwnedFd,
    /// Of the whole connection: an interrupt may come over another descriptor than its request.
    parking: Arc<Parking>,
}

impl Session {
    /// Takes over descriptors of one connection. A resumed one asks the kernel to send again what was not answered.
    pub fn from_descriptors(devices: Vec<OwnedFd>, connection: Connection, keeper: Keeper) -> io::Result<Arc<Self>> {
        if devices.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no descriptor of a FUSE connection"));
        }
        let negotiated = match connection {
            Connection::Fresh => None,
            Connection::Resumed(negotiated) => negotiated,
        };
        for device in &devices {
            // Threads look for requests before they wait for one.
            let flags = rustix::fs::fcntl_getfl(device)?;
            rustix::fs::fcntl_setfl(device, flags | rustix::fs::OFlags::NONBLOCK)?;
        }
        let parking = Arc::new(Parking::default());
        let channel = |device| Arc::new(Channel { device, parking: Arc::clone(&parking) });
        let session = Arc::new(Self {
            channels: devices.into_iter().map(channel).collect(),
            negotiated: Mutex::new(negotiated),
            initialised: Condvar::new(),
            keeper,
            ended: AtomicBool::new(false),
            watch: Watch::default(),
            may_look: std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1),
        });
        if connection != Connection::Fresh {
            // A kernel that does not know this (before 6.9) says EINVAL: requests in flight stay unanswered and whoever
            // watches must abort the connection.
            session.notify(wire::NOTIFY_RESEND, &[])?;
        }
        Ok(session)
    }

    /// Starts threads that read requests and hand them to `handler`. Returns at once; [`Session::wait_served`] tells when
    /// the kernel has been greeted.
    pub fn run(self: &Arc<Self>, handler: Arc<dyn Handler>, threads: usize) -> io::Result<Running> {
        let threads = threads.max(1);
        let left = Arc::new((Mutex::new(threads), Condvar::new()));
        for (number, channel) in self.channels.iter().cycle().take(threads).enumerate() {
            let (session, channel, handler, left) =
                (Arc::clone(self), Arc::clone(channel), Arc::clone(&handler), Arc::clone(&left));
            std::thread::Builder::new().name(format!("capture-{number}")).spawn(move || {
                // A panic leaves locks and state that nobody can vouch for. Ending the process is the way to a clean
                // recovery: the supervisor starts a successor, which redoes the journal and gets the request again.
                let served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    session.serve(&channel, handler.as_ref());
                }));
                if served.is_err() {
                    tracing::error!("a capture thread panicked; the process ends");
                    std::process::abort();
                }
                *left.0.lock() -= 1;
                left.1.notify_all();
            })?;
        }
        Ok(Running { left })
    }

    /// What was agreed with the kernel; `None` before INIT.
    pub fn negotiated(&self) -> Option<Negotiated> {
        *self.negotiated.lock()
    }

    /// Waits until the kernel has been greeted (at once for a resumed connection); false if it ended before.
    pub fn wait_served(&self) -> bool {
        let mut negotiated = self.negotiated.lock();
        while negotiated.is_none() && !self.ended.load(Ordering::Acquire) {
            self.initialised.wait(&mut negotiated);
        }
        negotiated.is_some()
    }

    /// Whether the connection is over: unmounted or aborted.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The kernel forgets cached data of a file from `offset` for `length` bytes (0: to the end), and its attributes.
    /// `offset` -1: attributes only; any other is not to be used while a request about the same file is answered.
    pub fn invalidate_inode(&self, nodeid: u64, offset: i64, length: i64) -> io::Result<()> {
        self.notify_known(wire::NOTIFY_INVAL_INODE, &inval_inode(nodeid, offset, length).1)
    }

    /// The kernel forgets one name. Not to be called while answering a request about the same directory.
    pub fn invalidate_entry(&self, parent: u64, name: &[u8]) -> io::Result<()> {
        let mut body = Vec::with_capacity(17 + name.len());
        body.extend_from_slice(&parent.to_ne_bytes());
        body.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        body.extend_from_slice(&0_u32.to_ne_bytes());
        body.extend_from_slice(name);
        body.push(0);
        self.notify_known(wire::NOTIFY_INVAL_ENTRY, &body)
    }

    /// A file or name the kernel does not have needs no forgetting.
    fn notify_known(&self, code: i32, body: &[u8]) -> io::Result<()> {
        match self.notify(code, body) {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
            result => result,
        }
    }

    fn notify(&self, code: i32, body: &[u8]) -> io::Result<()> {
        let Some(channel) = self.channels.first() else { return Ok(()) };
        let header = wire::out_header(body.len(), code, 0);
        rustix::io::writev(&channel.device, &[IoSlice::new(&header), IoSlice::new(body)])?;
        Ok(())
    }

    fn serve(&self, channel: &Arc<Channel>, handler: &dyn Handler) {
        let mut buffer = RequestBuffer::new();
        let mut patience = Patience::default();
        self.watch.back();
        loop {
            let message = match self.next(channel, &mut buffer, &mut patience) {
                Ok(length) => buffer.message(length),
                // Unmounted or aborted.
                Err(Errno::NODEV | Errno::CONNABORTED | Errno::PERM) => break,
                Err(errno) => {
                    // Our own mistake with the buffer, or no memory. Others would wait for this thread, and a mount that nobody
                    // serves is worse than a successor.
                    tracing::error!(%errno, "read of the FUSE connection failed; the process ends");
                    std::process::abort();
                }
            };
            let parsed = match wire::parse(message) {
                Ok(parsed) => parsed,
                Err(malformed) => {
                    tracing::error!(%malformed, "refused");
                    if let Some(raw_unique) = wire::raw_unique(message) {
                        Reply::new(channel, raw_unique, true).error(Errno::IO);
                    }
                    continue;
                }
            };
            let operation = &parsed.request.operation;
            self.watch.took(patience.is_crowd() || operation.may_take_long());
            patience.set_hopeless(operation.waits_for_peer());
            let reply = Reply::new(channel, parsed.raw_unique, operation.wants_answer());
            if let Operation::Init(offer) = parsed.request.operation {
                self.greet(&offer, reply);
            } else if let Operation::Interrupt { unique } = parsed.request.operation {
                channel.parking.interrupt(unique);
                drop(reply);
            } else {
                handler.handle(parsed.request, reply);
            }
            self.watch.back();
        }
        self.watch.end();
        self.ended.store(true, Ordering::Release);
        // Taken so that nobody who is about to wait misses the news.
        drop(self.negotiated.lock());
        self.initialised.notify_all();
    }

    /// The next request's length: looks for one, rests while somebody else looks, sleeps when none comes.
    fn next(&self, channel: &Channel, buffer: &mut RequestBuffer, patience: &mut Patience) -> Result<usize, Errno> {
        if let Some(length) = channel.take(buffer)? {
            patience.found_at_once();
            return Ok(length);
        }
        patience.found_nothing();
        loop {
            match self.watch.rest() {
                Rest::Over => return Err(Errno::NODEV),
                Rest::Called => patience.set_hopeless(false),
                Rest::Alone => {
                    if let Some(length) = self.look(channel, buffer, patience)? {
                        return Ok(length);
                    }
                }
            }
            if let Some(length) = channel.take(buffer)? {
                return Ok(length);
            }
        }
    }

    /// Looks for a request for a while, then sleeps until there is one, which is not taken yet.
    fn look(
        &self,
        channel: &Channel,
        buffer: &mut RequestBuffer,
        patience: &mut Patience,
    ) -> Result<Option<usize>, Errno> {
        let began = clock::monotonic();
        let waited = || clock::monotonic().saturating_sub(began);
        let limit = if self.may_look { patience.limit() } else { Duration::ZERO };
        while waited() < limit {
            if let Some(length) = channel.take(buffer)? {
                patience.look_longer();
                return Ok(Some(length));
            }
            std::hint::spin_loop();
        }
        match poll(&mut [PollFd::new(&channel.device, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        patience.came_after(waited());
        Ok(None)
    }

    /// Also of a resumed connection: a predecessor may have died with INIT in its hands.
    fn greet(&self, offer: &wire::InitIn, reply: Reply) {
        let Some(negotiated) = Negotiated::from_offer(offer) else {
            tracing::error!(?offer, "this kernel speaks a FUSE protocol that is too old");
            reply.error(Errno::PROTO);
            return;
        };
        // Kept before it is answered: if this process dies in between, the successor finds INIT unanswered and what was
        // kept is replaced by the same again. The other way round it would be lost.
        if let Err(error) = (self.keeper)(&negotiated) {
            tracing::warn!(%error, "what was agreed with the kernel could not be kept for a successor");
        }
        if let Err(error) = reply.send(&negotiated.to_init_out()) {
            tracing::error!(%error, "INIT could not be answered");
            return;
        }
        tracing::info!(minor = offer.minor, features = format_args!("{:#x}", negotiated.features), "kernel greeted");
        *self.negotiated.lock() = Some(negotiated);
        self.initialised.notify_all();
    }
}

/// Header and body of a notification.
fn inval_inode(nodeid: u64, offset: i64, length: i64) -> ([u8; 16], [u8; 24]) {
    let mut body = [0; 24];
    body[..8].copy_from_slice(&nodeid.to_ne_bytes());
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..].copy_from_slice(&length.to_ne_bytes());
    (wire::out_header(body.len(), wire::NOTIFY_INVAL_INODE, 0), body)
}

/// Threads that serve a session.
pub struct Running {
    left: Arc<(Mutex<usize>, Condvar)>,
}

impl Running {
    /// Waits until the connection is over and every thread has ended.
    pub fn wait(&self) {
        let mut left = self.left.0.lock();
        while *left > 0 {
            self.left.1.wait(&mut left);
        }
    }
}

/// A thread's buffer for requests. Placed so that the data of a WRITE begins at a page.
struct RequestBuffer {
    memory: Vec<u8>,
    start: usize,
}

impl RequestBuffer {
    const PAGE: usize = 4096;

    fn new() -> Self {
        // One page to align, one for what stands before the data, one for what the kernel may add.
        //
        // Not zeros: those would be pages that are there only once they are written to. A process that is killed while the
        // kernel hands it a request gets no more pages; the kernel then answers the request itself, EIO, instead of
        // keeping it for the successor. Seen once in about forty deaths under load.
        let memory = vec![1; IO_BYTES_MAX + 3 * Self::PAGE];
        let page = memory.as_ptr().align_offset(Self::PAGE);
        let start = if page < Self::PAGE { page + Self::PAGE - wire::WRITE_PREFIX } else { 0 };
        Self { memory, start }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }

    fn message(&self, length: usize) -> &[u8] {
        &self.memory[self.start..][..length]
    }
}

/// Lends the thread's own buffer for an answer of up to 1 MiB, so that a READ allocates nothing.
pub fn with_scratch<T>(length: u32, use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let length = (length as usize).min(IO_BYTES_MAX);
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => {
            if scratch.len() < length {
                scratch.resize(length, 0);
            }
            use_it(&mut scratch[..length])
        }
        // Lent already further up this thread's stack.
        Err(_) => use_it(&mut vec![0; length]),
    })
}

/// The right, and the duty, to answer one request. Dropped without an answer it says EIO, except when the process is
/// ending in a panic: then the successor gets the request again.
#[must_use]
pub struct Reply {
    channel: Option<Arc<Channel>>,
    raw_unique: u64,
    wants_answer: bool,
}

impl Reply {
    fn new(channel: &Arc<Channel>, raw_unique: u64, wants_answer: bool) -> Self {
        Self { channel: Some(Arc::clone(channel)), raw_unique, wants_answer }
    }

    /// Puts it down until something has happened that may take long. Whoever waits may be killed meanwhile.
    pub(crate) fn park(self) -> Ticket {
        let unique = self.raw_unique & !wire::UNIQUE_RESEND;
        match &self.channel {
            Some(channel) => Arc::clone(&channel.parking).park(unique, self),
            // Answered already: a place that nobody is told of.
            None => Arc::<Parking>::default().park(unique, self),
        }
    }

    /// It failed.
    pub fn error(mut self, errno: Errno) {
        self.answer(-errno.raw_os_error(), &[]);
    }

    /// It is done and there is nothing to tell.
    pub fn ok(self) {
        self.bytes(&[]);
    }

    /// Data: of READ, READLINK, GETXATTR, LISTXATTR.
    pub fn bytes(mut self, bytes: &[u8]) {
        self.answer(0, bytes);
    }

    /// Of LOOKUP, MKNOD, MKDIR, SYMLINK, LINK.
    pub fn entry(self, entry: &Entry) {
        self.bytes(&entry.to_bytes());
    }

    /// Of CREATE and TMPFILE.
    pub fn created(self, entry: &Entry, handle: u64, open_flags: u32) {
        let mut body = [0; 144];
        body[..128].copy_from_slice(&entry.to_bytes());
        body[128..].copy_from_slice(&wire::open_out(handle, open_flags));
        self.bytes(&body);
    }

    /// Of GETATTR and SETATTR.
    pub fn attributes(self, attr: &Attr, valid_seconds: u64) {
        self.bytes(&wire::attr_out(attr, valid_seconds));
    }

    /// Of OPEN and OPENDIR.
    pub fn opened(self, handle: u64, open_flags: u32) {
        self.bytes(&wire::open_out(handle, open_flags));
    }

    /// Of WRITE and COPY_FILE_RANGE.
    pub fn written(self, length: u32) {
        self.bytes(&u64::from(length).to_ne_bytes());
    }

    /// Of STATFS.
    pub fn statfs(self, statfs: &StatFs) {
        self.bytes(&statfs.to_bytes());
    }

    /// Of GETXATTR and LISTXATTR with size 0.
    pub fn xattr_length(self, length: u32) {
        self.bytes(&u64::from(length).to_ne_bytes());
    }

    /// Of LSEEK.
    pub fn position(self, offset: u64) {
        self.bytes(&offset.to_ne_bytes());
    }

    /// Of READDIR and READDIRPLUS.
    pub fn listing(self, listing: &Listing) {
        self.bytes(listing.as_bytes());
    }

    /// The kernel forgets the attributes that it knows of a file: the request changed more of them than it expects. Also of
    /// the file that the request is about: nothing of it is locked for this.
    pub fn forget_attributes(&self, nodeid: u64) {
        let Some(channel) = &self.channel else { return };
        let (header, body) = inval_inode(nodeid, -1, 0);
        match rustix::io::writev(&channel.device, &[IoSlice::new(&header), IoSlice::new(&body)]) {
            // What it does not know it need not forget.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => tracing::error!(%errno, nodeid, "the kernel refused to forget attributes"),
        }
    }

    /// Leaves the request to a successor: it stays with the kernel until this process has ended.
    pub fn leave(mut self) {
        self.channel = None;
    }

    fn send(mut self, body: &[u8]) -> io::Result<()> {
        match self.channel.take() {
            Some(channel) => Ok(channel.answer(self.raw_unique, 0, body)?),
            None => Ok(()),
        }
    }

    fn answer(&mut self, error: i32, body: &[u8]) {
        let Some(channel) = self.channel.take() else { return };
        if !self.wants_answer {
            return;
        }
        match channel.answer(self.raw_unique, error, body) {
            // The connection is over, or the request was withdrawn: nobody waits.
            Ok(()) | Err(Errno::NODEV | Errno::NOENT) => {}
            Err(errno) => {
                tracing::error!(%errno, unique = self.raw_unique, length = body.len(), "the kernel refused an answer");
                // It refuses what it cannot use; the process that waits must still get something.
                if let Err(errno) = channel.answer(self.raw_unique, -Errno::IO.raw_os_error(), &[]) {
                    tracing::debug!(%errno, "nor did it take EIO");
                }
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.channel.is_some() && self.wants_answer && !std::thread::panicking() {
            tracing::error!(unique = self.raw_unique, "a request was dropped unanswered");
            self.answer(-Errno::IO.raw_os_error(), &[]);
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Reply({:#x})", self.raw_unique)
    }
}

impl Channel {
    /// Takes a request into the buffer, if there is one.
    fn take(&self, buffer: &mut RequestBuffer) -> Result<Option<usize>, Errno> {
        loop {
            match rustix::io::read(&self.device, buffer.as_mut()) {
                Ok(length) => return Ok(Some(length)),
                // Interrupted, or the request was withdrawn while it was being read.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
    }

    fn answer(&self, raw_unique: u64, error: i32, body: &[u8]) -> Result<(), Errno> {
        let header = wire::out_header(body.len(), error, raw_unique);
        let written = if body.is_empty() {
            rustix::io::write(&self.device, &header)
        } else {
            rustix::io::writev(&self.device, &[IoSlice::new(&header), IoSlice::new(body)])
        };
        // The kernel takes an answer whole or not at all.
        written.map(|_| ())
    }
}

/// Mounts at `path` as root, without a node plugin. For tests and measurements; in a pod the node plugin does this.
pub fn mount_here(path: &Path) -> io::Result<Arc<Session>> {
    let (devices, _) = mount_descriptors(path, 4)?;
    Session::from_descriptors(devices, Connection::Fresh, Box::new(|_| Ok(())))
}

/// Mounts at `path` and returns `count` descriptors of the connection. The number names the call, so that several mounts
/// of one test have different sources.
pub fn mount_descriptors(path: &Path, count: usize) -> io::Result<(Vec<OwnedFd>, usize)> {
    use rustix::fs::{Mode, OFlags};
    static MOUNTS: AtomicUsize = AtomicUsize::new(0);
    let number = MOUNTS.fetch_add(1, Ordering::Relaxed);
    let open = || rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let first = open()?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={IO_BYTES_MAX}",
        first.as_raw_fd()
    );
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount(
        format!("tandem-{number}"),
        path,
        "fuse.tandem",
        rustix::mount::MountFlags::NODEV,
        Some(options.as_c_str()),
    )?;
    let mut devices = vec![first];
    while devices.len() < count.max(1) {
        let clone = open()?;
        clone_connection(clone.as_fd(), devices[0].as_fd())?;
        devices.push(clone);
    }
    Ok((devices, number))
}

/// Makes a freshly opened `/dev/fuse` one more descriptor of a connection, with a queue of its own.
fn clone_connection(new: BorrowedFd<'_>, of: BorrowedFd<'_>) -> io::Result<()> {
    /// `_IOR(229, 0, u32)`
    const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;
    let source: u32 = of.as_raw_fd() as u32;
    #[allow(unsafe_code, reason = "rustix has no wrapper for this ioctl")]
    // SAFETY: both descriptors are open for the call; the kernel reads one u32 through the pointer and writes nothing.
    let result = unsafe { libc::ioctl(new.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const source) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Unmounts what [`mount_here`] mounted.
pub fn unmount_here(path: &Path) -> io::Result<()> {
    use rustix::mount::UnmountFlags;
    Ok(rustix::mount::unmount(path, UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// A root directory with one file, `word`, whose reads go to whoever listens when `park` is set.
    struct Toy {
        park: Option<Mutex<mpsc::Sender<(u64, bool, Reply)>>>,
    }

    fn attr(nodeid: u64) -> Attr {
        let mode = if nodeid == 1 { 0o40755 } else { 0o100_644 };
        Attr { ino: nodeid, size: 4, mode, nlink: 1, blksize: 4096, ..Attr::default() }
    }

    impl Handler for Toy {
        fn handle(&self, request: Request<'_>, reply: Reply) {
            match request.operation {
                Operation::Lookup { name: b"word" } => reply.entry(&Entry::found(attr(2))),
                Operation::Lookup { .. } => reply.entry(&Entry::absent()),
                Operation::GetAttributes { .. } => reply.attributes(&attr(request.nodeid), 3600),
                Operation::Read { offset: 0, .. } => match &self.park {
                    Some(park) => park.lock().send((request.unique, request.resent, reply)).unwrap(),
                    None => with_scratch(4, |scratch| {
                        scratch.copy_from_slice(b"word");
                        reply.bytes(scratch);
                    }),
                },
                Operation::Read { .. } => reply.bytes(&[]),
                Operation::ReadDirectory { offset, size, plus, .. } => {
                    let mut listing = Listing::new(size);
                    if offset == 0 {
                        let taken = if plus {
                            listing.push_plus(&Entry::found(attr(2)), 1, b"word")
                        } else {
                            listing.push(2, 1, 8, b"word")
                        };
                        assert!(taken);
                    }
                    reply.listing(&listing);
                }
                Operation::Forget(_) | Operation::Interrupt { .. } => drop(reply),
                _ => reply.error(Errno::NOSYS),
            }
        }
    }

    /// Unmounts however the test ends, so that no process is left waiting in a dead mount.
    struct Mounted(tempfile::TempDir);

    impl Drop for Mounted {
        fn drop(&mut self) {
            if let Err(error) = unmount_here(self.0.path()) {
                eprintln!("unmount: {error}");
            }
        }
    }

    #[test]
    fn a_file_is_served_and_the_end_of_the_mount_ends_the_threads() {
        let place = Mounted(tempfile::tempdir().unwrap());
        let session = mount_here(place.0.path()).unwrap();
        let running = session.run(Arc::new(Toy { park: None }), 4).unwrap();
        assert!(session.wait_served());
        assert!(session.negotiated().unwrap().can_resend());
        assert_eq!(std::fs::read(place.0.path().join("word")).unwrap(), b"word");
        assert!(!place.0.path().join("other").exists());
        let names: Vec<_> =
            std::fs::read_dir(place.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["word"]);
        session.invalidate_inode(2, 0, 0).unwrap();
        session.invalidate_entry(1, b"word").unwrap();
        session.invalidate_entry(1, b"never seen").unwrap();
        drop(place);
        running.wait();
        assert!(session.ended());
    }

    #[test]
    fn an_unanswered_request_comes_again_to_the_successor_and_the_application_sees_no_error() {
        let place = Mounted(tempfile::tempdir().unwrap());
        let (devices, _) = mount_descriptors(place.0.path(), 3).unwrap();
        let duplicates = devices.iter().map(|device| device.try_clone().unwrap()).collect();
        let kept = Arc::new(Mutex::new(None));
        let keeper = Arc::clone(&kept);
        let first = Session::from_descriptors(
            devices,
            Connection::Fresh,
            Box::new(move |negotiated| {
                *keeper.lock() = Some(*negotiated);
                Ok(())
            }),
        )
        .unwrap();
        let (park, parked) = mpsc::channel();
        first.run(Arc::new(Toy { park: Some(Mutex::new(park.clone())) }), 3).unwrap();
        let file = place.0.path().join("word");
        let application = std::thread::spawn(move || std::fs::read(file));
        let (unique, resent, reply) = parked.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(!resent);
        // As if killed: the request is neither answered nor refused.
        reply.leave();

        let second =
            Session::from_descriptors(duplicates, Connection::Resumed(*kept.lock()), Box::new(|_| Ok(()))).unwrap();
        // The first daemon's threads still read here (a real one would be gone), so either may be given the request.
        second.run(Arc::new(Toy { park: Some(Mutex::new(park)) }), 3).unwrap();
        assert!(second.wait_served());
        let (unique_again, resent, reply) = parked.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(unique_again, unique);
        assert!(resent);
        reply.bytes(b"late");
        assert_eq!(application.join().unwrap().unwrap(), b"late");
    }

    /// Hangs in every look for a name that begins with "slow", until it is let go on.
    struct Slow {
        entered: Mutex<mpsc::Sender<()>>,
        go_on: Mutex<mpsc::Receiver<()>>,
    }

    impl Handler for Slow {
        fn handle(&self, request: Request<'_>, reply: Reply) {
            match request.operation {
                Operation::Lookup { name } => {
                    if name.starts_with(b"slow") {
                        self.entered.lock().send(()).unwrap();
                        self.go_on.lock().recv().unwrap();
                    }
                    reply.entry(&Entry::absent());
                }
                Operation::GetAttributes { .. } => reply.attributes(&attr(request.nodeid), 3600),
                Operation::Forget(_) | Operation::Interrupt { .. } => drop(reply),
                _ => reply.error(Errno::NOSYS),
            }
        }
    }

    #[test]
    fn a_request_that_hangs_keeps_nobody_else_waiting() {
        let place = Mounted(tempfile::tempdir().unwrap());
        let session = mount_here(place.0.path()).unwrap();
        let ((entered, slow), (go_on, let_go)) = (mpsc::channel(), mpsc::channel());
        let handler = Slow { entered: Mutex::new(entered), go_on: Mutex::new(let_go) };
        let running = session.run(Arc::new(handler), 3).unwrap();
        assert!(session.wait_served());
        for round in 0..200 {
            let (tell, told) = mpsc::channel();
            std::thread::scope(|scope| {
                scope.spawn(|| assert!(!place.0.path().join(format!("slow-{round}")).exists()));
                slow.recv_timeout(Duration::from_secs(20)).unwrap();
                scope.spawn(|| {
                    for number in 0..10 {
                        assert!(!place.0.path().join(format!("quick-{round}-{number}")).exists());
                    }
                    tell.send(()).unwrap();
                });
                let served = told.recv_timeout(Duration::from_secs(20));
                go_on.send(()).unwrap();
                served.unwrap();
            });
        }
        drop(place);
        running.wait();
    }
}
