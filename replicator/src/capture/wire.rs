//! The FUSE protocol's bytes: what the kernel sends as a typed [`Request`], what it wants back as bytes. No descriptors
//! and no decisions here. Kernel data is read by explicit little readers: a message that is too short is an error, never
//! a panic. Times are nanoseconds since 1970, as in `op.rs`.

use std::fmt;

/// Major version of the protocol; it has been 7 for as long as FUSE has been in Linux.
pub const MAJOR: u32 = 7;
/// The minor version whose structures this file knows (Linux 6.18).
pub const MINOR: u32 = 45;
/// The oldest minor version that is served: from it on every structure below has the layout used here.
pub const MINOR_MIN: u32 = 36;
/// Bytes before the operation's own structure.
pub const IN_HEADER_LENGTH: usize = 40;
/// Bytes before a reply's own structure.
pub const OUT_HEADER_LENGTH: usize = 16;
/// What one WRITE and one READ carry at most.
pub const IO_BYTES_MAX: usize = 1 << 20;
/// Header and structure of a WRITE: its data begins after them.
pub const WRITE_PREFIX: usize = IN_HEADER_LENGTH + 40;

/// What is written by one such request is journaled and on the volume before another thread would have woken up.
const SHORT_WRITE: usize = 32 << 10;
/// Flag of an open file: what is written is to be durable before the answer. `O_SYNC` contains it.
const O_DSYNC: u32 = 0o10_000;

/// Set in `unique` by the kernel when a request is sent again after `NOTIFY_RESEND`.
pub(super) const UNIQUE_RESEND: u64 = 1 << 63;

/// Features of a connection, agreed in INIT.
pub mod feature {
    /// Several reads of one file may be under way.
    pub const ASYNC_READ: u64 = 1 << 0;
    /// LOOKUP knows "." and "..": files are found again by handles (`open_by_handle_at`, NFS) that the kernel has forgotten.
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    /// Writes larger than one page.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// The kernel leaves the umask to us; needed for default ACLs.
    pub const DONT_MASK: u64 = 1 << 6;
    /// READDIRPLUS exists.
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    /// The kernel decides when READDIRPLUS pays.
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    /// OPEN may be answered `ENOSYS` once and for ever.
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    /// Lookups and reads of one directory in parallel.
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    /// ACLs are kept and enforced.
    pub const POSIX_ACL: u64 = 1 << 20;
    /// `max_pages` in INIT counts.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// Targets of symbolic links are cached.
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// OPENDIR may be answered `ENOSYS` once and for ever.
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    /// Cached data goes only when we say so: nobody else changes the volume.
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    /// We clear setuid and setgid where the kernel marks it, so it need not ask for attributes before every write.
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// SETXATTR carries flags.
    pub const SETXATTR_EXT: u64 = 1 << 29;
    /// INIT has a second word of flags.
    pub const INIT_EXT: u64 = 1 << 30;
    /// The kernel sends unanswered requests again when asked.
    pub const HAS_RESEND: u64 = 1 << 39;
    /// The mount may be mapped to other ids (`hostUsers: false`). Then `uid` and `gid` of a request mean something only
    /// where something is created.
    pub const ALLOW_IDMAP: u64 = 1 << 40;

    /// What we ask for. Not WRITEBACK_CACHE: it would reorder the application's writes. Not POSIX_LOCKS or FLOCK_LOCKS:
    /// locks are local. Not ATOMIC_O_TRUNC: without OPEN the truncation would be lost. Not SPLICE: payloads are read once.
    /// Not ASYNC_DIO: what a read puts into the cache while a direct write is under way goes again only if whoever writes
    /// waits, and we let the kernel keep its cache for ever (found by xfstests' generic/451).
    pub const WANTED: u64 = ASYNC_READ
        | EXPORT_SUPPORT
        | BIG_WRITES
        | DONT_MASK
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | NO_OPEN_SUPPORT
        | PARALLEL_DIROPS
        | POSIX_ACL
        | MAX_PAGES
        | CACHE_SYMLINKS
        | NO_OPENDIR_SUPPORT
        | EXPLICIT_INVAL_DATA
        | HANDLE_KILLPRIV_V2
        | SETXATTR_EXT
        | INIT_EXT
        | HAS_RESEND
        | ALLOW_IDMAP;
}

/// Operation codes.
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const SETXATTR: u32 = 21;
    pub(super) const GETXATTR: u32 = 22;
    pub(super) const LISTXATTR: u32 = 23;
    pub(super) const REMOVEXATTR: u32 = 24;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const FSYNCDIR: u32 = 30;
    pub(super) const ACCESS: u32 = 34;
    pub(super) const CREATE: u32 = 35;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const READDIRPLUS: u32 = 44;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const LSEEK: u32 = 46;
    pub(super) const COPY_FILE_RANGE: u32 = 47;
    pub(super) const SYNCFS: u32 = 50;
    pub(super) const TMPFILE: u32 = 51;
}

/// A message of the kernel that does not have the form its code promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message of the kernel is malformed: operation {opcode}, {length} bytes")]
pub struct Malformed {
    /// Code of the operation (0: not even a header).
    pub opcode: u32,
    /// Length of the message.
    pub length: usize,
}

/// One request of the kernel, borrowed from the buffer it was read into.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Identifies the request among all of this connection; the same when it is sent again.
    pub unique: u64,
    /// The file or directory concerned (0 where the operation has none).
    pub nodeid: u64,
    /// Who asks. With a mapped mount, valid only where something is created (`u32::MAX` elsewhere).
    pub uid: u32,
    /// Group of who asks; see `uid`.
    pub gid: u32,
    /// Process that asks (0: outside the process namespace of whoever opened the connection).
    pub pid: u32,
    /// Sent before, to a daemon that is gone: it may have been performed and answered nowhere.
    pub resent: bool,
    /// What is asked.
    pub operation: Operation<'a>,
    /// The bytes of all this, for whoever must keep the request.
    pub message: &'a [u8],
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The clock of whoever serves.
    Now,
    /// Nanoseconds since 1970.
    At(i64),
}

/// Attributes to be changed; `None` leaves one alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// Kind and permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of the file.
    pub size: Option<u64>,
    /// Time of access.
    pub atime: Option<SetTime>,
    /// Time of modification.
    pub mtime: Option<SetTime>,
    /// Setuid and setgid go (a truncation, or a change of owner, by somebody without the right to keep them).
    pub kill_suidgid: bool,
}

/// Flag of a WRITE: it comes from the page cache (mmap); who wrote is not known.
pub const WRITE_CACHE: u32 = 1 << 0;
/// Flag of a WRITE: setuid and setgid go.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// Flag of an OPEN or CREATE: setuid and setgid go (it truncates).
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// Flag of a SETXATTR: setting the access ACL clears setgid.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;

/// What is asked. Flags are those of the system call unless said otherwise. Everything else the kernel may ask arrives as
/// `Unsupported`, to be answered `ENOSYS`: the kernel then stops asking.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "fields are named as in fuse.h")]
pub enum Operation<'a> {
    Lookup {
        name: &'a [u8],
    },
    /// No answer is expected.
    Forget(Forgets<'a>),
    GetAttributes {
        handle: Option<u64>,
    },
    SetAttributes(SetAttributes),
    ReadLink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    /// `mode` before the umask.
    MakeNode {
        name: &'a [u8],
        mode: u32,
        device: u32,
        umask: u32,
    },
    /// `mode` before the umask.
    MakeDirectory {
        name: &'a [u8],
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    RemoveDirectory {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_parent: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    /// `nodeid` of the request is the directory of the new name.
    Link {
        file: u64,
        name: &'a [u8],
    },
    Open {
        flags: u32,
        open_flags: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
        flags: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        data: &'a [u8],
        /// `WRITE_CACHE`, `WRITE_KILL_SUIDGID`.
        write_flags: u32,
        /// Of the open file: `O_SYNC`, `O_DSYNC`, `O_DIRECT`, `O_APPEND`.
        flags: u32,
    },
    StatFs,
    Release {
        handle: u64,
        flags: u32,
    },
    Fsync {
        handle: u64,
        data_only: bool,
    },
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
        setxattr_flags: u32,
    },
    /// Size 0 asks for the length.
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    /// Size 0 asks for the length.
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    Flush {
        handle: u64,
    },
    /// Answered by the transport; a handler never sees it.
    Init(InitIn),
    OpenDirectory {
        flags: u32,
    },
    ReadDirectory {
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    },
    ReleaseDirectory {
        handle: u64,
    },
    FsyncDirectory {
        handle: u64,
        data_only: bool,
    },
    Access {
        mask: u32,
    },
    /// `mode` before the umask.
    Create {
        name: &'a [u8],
        flags: u32,
        mode: u32,
        umask: u32,
        open_flags: u32,
    },
    /// The process that waits for request `unique` got a signal: that request may be answered `EINTR` early. No answer
    /// is expected to this one.
    Interrupt {
        unique: u64,
    },
    Destroy,
    Fallocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Seek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyFileRange {
        handle: u64,
        offset: u64,
        to: u64,
        to_handle: u64,
        to_offset: u64,
        length: u64,
        flags: u64,
    },
    SyncFs,
    /// `mode` before the umask.
    TemporaryFile {
        flags: u32,
        mode: u32,
        umask: u32,
    },
    Unsupported {
        opcode: u32,
    },
}

impl Operation<'_> {
    /// Whether the kernel waits for an answer.
    #[must_use]
    pub fn wants_answer(&self) -> bool {
        !matches!(self, Operation::Forget(_) | Operation::Interrupt { .. })
    }

    /// Whether answering may well take long, because content comes from the disk or much of it is moved.
    pub(super) fn may_take_long(&self) -> bool {
        matches!(
            self,
            Operation::Read { .. }
                | Operation::ReadDirectory { .. }
                | Operation::Seek { .. }
                | Operation::Fallocate { .. }
                | Operation::TemporaryFile { .. }
                | Operation::Init(_)
                | Operation::SetAttributes(SetAttributes { size: Some(_), .. })
        ) || matches!(self, Operation::Write { data, .. } if data.len() > SHORT_WRITE)
    }

    /// Whether the answer waits for disks and the peer.
    pub(super) fn waits_for_peer(&self) -> bool {
        matches!(self, Operation::Fsync { .. } | Operation::FsyncDirectory { .. } | Operation::SyncFs)
            || matches!(self, Operation::Write { flags, .. } if flags & O_DSYNC != 0)
    }
}

/// References that the kernel gives back: (file, count).
#[derive(Clone)]
pub struct Forgets<'a> {
    single: Option<(u64, u64)>,
    many: &'a [u8],
}

impl fmt::Debug for Forgets<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.clone()).finish()
    }
}

impl Iterator for Forgets<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        if let Some(single) = self.single.take() {
            return Some(single);
        }
        let (one, rest) = self.many.split_at_checked(16)?;
        self.many = rest;
        let mut one = Reader { rest: one };
        Some((one.u64()?, one.u64()?))
    }
}

/// The kernel's offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are named as in fuse.h")]
pub struct InitIn {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub features: u64,
}

/// What both sides agreed on for the life of a connection. It outlives the daemon: a successor gets it as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Minor version both know.
    pub minor: u32,
    /// Readahead of the kernel in bytes.
    pub max_readahead: u32,
    /// See [`feature`].
    pub features: u64,
}

impl Negotiated {
    /// The answer to an offer; `None` if the kernel is too old to be served.
    #[must_use]
    pub fn from_offer(offer: &InitIn) -> Option<Self> {
        (offer.major == MAJOR && offer.minor >= MINOR_MIN).then(|| Self {
            minor: offer.minor.min(MINOR),
            max_readahead: offer.max_readahead,
            features: offer.features & feature::WANTED,
        })
    }

    /// Whether a daemon that dies can be replaced without an error for the application.
    #[must_use]
    pub fn can_resend(&self) -> bool {
        self.features & feature::HAS_RESEND != 0
    }

    /// For the successor: version, minor, readahead, features.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[0..4].copy_from_slice(&1_u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.minor.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.max_readahead.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.features.to_le_bytes());
        bytes
    }

    /// What a predecessor wrote; `None` if it is not of a form known here.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader { rest: bytes };
        let version = reader.u32()?;
        let negotiated = Self { minor: reader.u32()?, max_readahead: reader.u32()?, features: reader.u64()? };
        (version == 1 && reader.rest.is_empty()).then_some(negotiated)
    }

    /// The body of the answer to INIT.
    #[must_use]
    pub fn to_init_out(self) -> [u8; 64] {
        let mut out = Writer::<64>::new();
        out.u32(MAJOR);
        out.u32(MINOR);
        out.u32(self.max_readahead);
        out.u32(self.features as u32);
        out.u16(64); // max_background: readahead and direct I/O under way at once
        out.u16(48); // congestion_threshold
        out.u32(IO_BYTES_MAX as u32);
        out.u32(1); // time_gran: nanoseconds
        out.u16((IO_BYTES_MAX / 4096) as u16);
        out.u16(0);
        out.u32((self.features >> 32) as u32);
        out.bytes
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    /// A name ends with a zero byte. An empty one, or one with a slash, never comes from the kernel's own path walk and
    /// would only do harm further down.
    fn name(&mut self) -> Option<&'a [u8]> {
        let name = self.text()?;
        (!name.is_empty() && !name.contains(&b'/')).then_some(name)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|&byte| byte == 0)?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest.get(1..)?;
        Some(text)
    }

    fn data(&mut self, length: u32) -> Option<&'a [u8]> {
        let (data, rest) = self.rest.split_at_checked(length as usize)?;
        self.rest = rest;
        Some(data)
    }
}

struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn put(&mut self, bytes: &[u8]) {
        // Every caller writes a fixed structure into an array of that structure's length.
        if let Some(place) = self.bytes.get_mut(self.at..self.at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        self.at += bytes.len();
    }

    fn u16(&mut self, value: u16) {
        self.put(&value.to_ne_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_ne_bytes());
    }
}

/// A parsed request with the `unique` exactly as the kernel sent it: the answer must carry that one.
pub struct Parsed<'a> {
    /// As sent.
    pub raw_unique: u64,
    /// The request.
    pub request: Request<'a>,
}

/// What is known of a message whose body may be malformed.
pub fn raw_unique(message: &[u8]) -> Option<u64> {
    message.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes)
}

/// Reads one message.
pub fn parse(message: &[u8]) -> Result<Parsed<'_>, Malformed> {
    let mut opcode = 0;
    parse_inner(message, &mut opcode).ok_or(Malformed { opcode, length: message.len() })
}

fn parse_inner<'a>(message: &'a [u8], opcode_seen: &mut u32) -> Option<Parsed<'a>> {
    let mut reader = Reader { rest: message };
    let length = reader.u32()?;
    let opcode = reader.u32()?;
    *opcode_seen = opcode;
    let raw_unique = reader.u64()?;
    let nodeid = reader.u64()?;
    let uid = reader.u32()?;
    let gid = reader.u32()?;
    let pid = reader.u32()?;
    let extensions = usize::from(reader.u16()?) * 8;
    reader.u16()?;
    if length as usize != message.len() {
        return None;
    }
    // Extensions stand at the end; nothing here asks for any.
    reader.rest = reader.rest.get(..reader.rest.len().checked_sub(extensions)?)?;
    let operation = operation(opcode, nodeid, &mut reader)?;
    Some(Parsed {
        raw_unique,
        request: Request {
            unique: raw_unique & !UNIQUE_RESEND,
            nodeid,
            uid,
            gid,
            pid,
            resent: raw_unique & UNIQUE_RESEND != 0,
            operation,
            message,
        },
    })
}

fn operation<'a>(opcode: u32, nodeid: u64, reader: &mut Reader<'a>) -> Option<Operation<'a>> {
    Some(match opcode {
        opcode::LOOKUP => Operation::Lookup { name: reader.name()? },
        opcode::FORGET => Operation::Forget(Forgets { single: Some((nodeid, reader.u64()?)), many: &[] }),
        opcode::BATCH_FORGET => {
            let count = reader.u32()?;
            reader.u32()?;
            let many = reader.rest.get(..(count as usize).checked_mul(16)?)?;
            Operation::Forget(Forgets { single: None, many })
        }
        opcode::GETATTR => {
            let flags = reader.u32()?;
            reader.u32()?;
            let handle = reader.u64()?;
            Operation::GetAttributes { handle: (flags & 1 != 0).then_some(handle) }
        }
        opcode::SETATTR => Operation::SetAttributes(set_attributes(reader)?),
        opcode::READLINK => Operation::ReadLink,
        opcode::SYMLINK => Operation::Symlink { name: reader.name()?, target: reader.text()? },
        opcode::MKNOD => {
            let (mode, device, umask) = (reader.u32()?, reader.u32()?, reader.u32()?);
            reader.u32()?;
            Operation::MakeNode { name: reader.name()?, mode, device, umask }
        }
        opcode::MKDIR => {
            let (mode, umask) = (reader.u32()?, reader.u32()?);
            Operation::MakeDirectory { name: reader.name()?, mode, umask }
        }
        opcode::UNLINK => Operation::Unlink { name: reader.name()? },
        opcode::RMDIR => Operation::RemoveDirectory { name: reader.name()? },
        opcode::RENAME => {
            let new_parent = reader.u64()?;
            Operation::Rename { name: reader.name()?, new_parent, new_name: reader.name()?, flags: 0 }
        }
        opcode::RENAME2 => {
            let (new_parent, flags) = (reader.u64()?, reader.u32()?);
            reader.u32()?;
            Operation::Rename { name: reader.name()?, new_parent, new_name: reader.name()?, flags }
        }
        opcode::LINK => Operation::Link { file: reader.u64()?, name: reader.name()? },
        opcode::OPEN => Operation::Open { flags: reader.u32()?, open_flags: reader.u32()? },
        opcode::OPENDIR => Operation::OpenDirectory { flags: reader.u32()? },
        opcode::READ => {
            let (handle, offset, size, flags) = read_in(reader)?;
            Operation::Read { handle, offset, size, flags }
        }
        opcode::READDIR | opcode::READDIRPLUS => {
            let (handle, offset, size, _) = read_in(reader)?;
            Operation::ReadDirectory { handle, offset, size, plus: opcode == opcode::READDIRPLUS }
        }
        opcode::WRITE => {
            let (handle, offset, size, write_flags) = (reader.u64()?, reader.u64()?, reader.u32()?, reader.u32()?);
            reader.u64()?;
            let flags = reader.u32()?;
            reader.u32()?;
            Operation::Write { handle, offset, data: reader.data(size)?, write_flags, flags }
        }
        opcode::STATFS => Operation::StatFs,
        opcode::RELEASE => Operation::Release { handle: reader.u64()?, flags: reader.u32()? },
        opcode::RELEASEDIR => Operation::ReleaseDirectory { handle: reader.u64()? },
        opcode::FSYNC => Operation::Fsync { handle: reader.u64()?, data_only: reader.u32()? & 1 != 0 },
        opcode::FSYNCDIR => Operation::FsyncDirectory { handle: reader.u64()?, data_only: reader.u32()? & 1 != 0 },
        opcode::SETXATTR => {
            let (size, flags, setxattr_flags) = (reader.u32()?, reader.u32()?, reader.u32()?);
            reader.u32()?;
            Operation::SetXattr { name: reader.text()?, value: reader.data(size)?, flags, setxattr_flags }
        }
        opcode::GETXATTR => {
            let size = reader.u32()?;
            reader.u32()?;
            Operation::GetXattr { name: reader.text()?, size }
        }
        opcode::LISTXATTR => Operation::ListXattr { size: reader.u32()? },
        opcode::REMOVEXATTR => Operation::RemoveXattr { name: reader.text()? },
        opcode::FLUSH => Operation::Flush { handle: reader.u64()? },
        opcode::INIT => {
            let (major, minor, max_readahead, flags) = (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
            let more = if u64::from(flags) & feature::INIT_EXT != 0 { reader.u32()? } else { 0 };
            Operation::Init(InitIn {
                major,
                minor,
                max_readahead,
                features: u64::from(flags) | (u64::from(more) << 32),
            })
        }
        opcode::ACCESS => Operation::Access { mask: reader.u32()? },
        opcode::CREATE => {
            let (flags, mode, umask, open_flags) = (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
            Operation::Create { name: reader.name()?, flags, mode, umask, open_flags }
        }
        opcode::TMPFILE => {
            let (flags, mode, umask) = (reader.u32()?, reader.u32()?, reader.u32()?);
            Operation::TemporaryFile { flags, mode, umask }
        }
        opcode::INTERRUPT => Operation::Interrupt { unique: reader.u64()? & !UNIQUE_RESEND },
        opcode::DESTROY => Operation::Destroy,
        opcode::FALLOCATE => Operation::Fallocate {
            handle: reader.u64()?,
            offset: reader.u64()?,
            length: reader.u64()?,
            mode: reader.u32()?,
        },
        opcode::LSEEK => Operation::Seek { handle: reader.u64()?, offset: reader.u64()?, whence: reader.u32()? },
        opcode::COPY_FILE_RANGE => Operation::CopyFileRange {
            handle: reader.u64()?,
            offset: reader.u64()?,
            to: reader.u64()?,
            to_handle: reader.u64()?,
            to_offset: reader.u64()?,
            length: reader.u64()?,
            flags: reader.u64()?,
        },
        opcode::SYNCFS => Operation::SyncFs,
        opcode => Operation::Unsupported { opcode },
    })
}

fn read_in(reader: &mut Reader<'_>) -> Option<(u64, u64, u32, u32)> {
    let (handle, offset, size, _read_flags) = (reader.u64()?, reader.u64()?, reader.u32()?, reader.u32()?);
    let _lock_owner = reader.u64()?;
    Some((handle, offset, size, reader.u32()?))
}

fn set_attributes(reader: &mut Reader<'_>) -> Option<SetAttributes> {
    let valid = reader.u32()?;
    reader.u32()?;
    let _handle = reader.u64()?;
    let size = reader.u64()?;
    let _lock_owner = reader.u64()?;
    let (atime, mtime, _ctime) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let (atime_nanoseconds, mtime_nanoseconds, _) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let mode = reader.u32()?;
    reader.u32()?;
    let (uid, gid) = (reader.u32()?, reader.u32()?);
    let has = |bit: u32| valid & (1 << bit) != 0;
    let time = |set: bool, now: bool, seconds: u64, nanoseconds: u32| {
        set.then(|| if now { SetTime::Now } else { SetTime::At(join_time(seconds as i64, nanoseconds)) })
    };
    Some(SetAttributes {
        mode: has(0).then_some(mode),
        uid: has(1).then_some(uid),
        gid: has(2).then_some(gid),
        size: has(3).then_some(size),
        atime: time(has(4), has(7), atime, atime_nanoseconds),
        mtime: time(has(5), has(8), mtime, mtime_nanoseconds),
        kill_suidgid: has(11),
    })
}

/// Seconds and nanoseconds as one number; beyond the years 1677 to 2262 it stays at the edge.
#[must_use]
pub fn join_time(seconds: i64, nanoseconds: u32) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanoseconds))
}

/// Nanoseconds since 1970 as (seconds, nanoseconds below a second).
#[must_use]
pub fn split_time(time: i64) -> (i64, u32) {
    (time.div_euclid(1_000_000_000), time.rem_euclid(1_000_000_000) as u32)
}

/// Attributes as the kernel wants them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are named as in stat(2); times in nanoseconds since 1970")]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    /// Of 512 bytes.
    pub blocks: u64,
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// As `new_encode_dev` of the kernel writes it.
    pub rdev: u32,
    pub blksize: u32,
}

impl Attr {
    fn write<const N: usize>(&self, out: &mut Writer<N>) {
        let ((atime, atime_ns), (mtime, mtime_ns), (ctime, ctime_ns)) =
            (split_time(self.atime), split_time(self.mtime), split_time(self.ctime));
        for value in [self.ino, self.size, self.blocks, atime as u64, mtime as u64, ctime as u64] {
            out.u64(value);
        }
        for value in [
            atime_ns,
            mtime_ns,
            ctime_ns,
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev,
            self.blksize,
            0, // flags
        ] {
            out.u32(value);
        }
    }
}

/// How long the kernel may keep what it was told: nobody else changes the volume, so as long as it likes.
pub const KEEP_SECONDS: u64 = 365 * 24 * 3600;

/// A name that was found or made. `nodeid` 0 says that there is no such name, and that this too may be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file.
    pub nodeid: u64,
    /// Seconds the name may be cached.
    pub entry_valid: u64,
    /// Seconds the attributes may be cached.
    pub attr_valid: u64,
    /// Its attributes.
    pub attr: Attr,
}

impl Entry {
    /// A name with its file, to be kept.
    #[must_use]
    pub fn found(attr: Attr) -> Self {
        Self { nodeid: attr.ino, entry_valid: KEEP_SECONDS, attr_valid: KEEP_SECONDS, attr }
    }

    /// No such name, to be kept.
    #[must_use]
    pub fn absent() -> Self {
        Self { nodeid: 0, entry_valid: KEEP_SECONDS, attr_valid: 0, attr: Attr::default() }
    }

    pub(super) fn to_bytes(self) -> [u8; 128] {
        let mut out = Writer::<128>::new();
        out.u64(self.nodeid);
        out.u64(0); // generation: ids are never used again
        out.u64(self.entry_valid);
        out.u64(self.attr_valid);
        out.u32(0);
        out.u32(0);
        self.attr.write(&mut out);
        out.bytes
    }
}

pub(super) fn attr_out(attr: &Attr, valid_seconds: u64) -> [u8; 104] {
    let mut out = Writer::<104>::new();
    out.u64(valid_seconds);
    out.u32(0);
    out.u32(0);
    attr.write(&mut out);
    out.bytes
}

pub(super) fn open_out(handle: u64, open_flags: u32) -> [u8; 16] {
    let mut out = Writer::<16>::new();
    out.u64(handle);
    out.u32(open_flags);
    out.bytes
}

/// Flag of an answer to OPEN: reads and writes bypass the page cache.
pub const FOPEN_DIRECT_IO: u32 = 1 << 0;
/// Flag of an answer to OPEN: what is cached stays.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// Flag of an answer to OPENDIR: entries may be cached.
pub const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// Flag of an answer to OPEN: closing need not ask.
pub const FOPEN_NOFLUSH: u32 = 1 << 5;
/// Flag of an answer to OPEN: direct writes to one file may run in parallel.
pub const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// What `statfs` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are named as in statfs(2)")]
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

impl StatFs {
    pub(super) fn to_bytes(self) -> [u8; 80] {
        let mut out = Writer::<80>::new();
        for value in [self.blocks, self.bfree, self.bavail, self.files, self.ffree] {
            out.u64(value);
        }
        for value in [self.bsize, self.namelen, self.frsize] {
            out.u32(value);
        }
        out.bytes
    }
}

/// The answer to a READDIR or READDIRPLUS while it is filled.
#[derive(Debug)]
pub struct Listing {
    bytes: Vec<u8>,
    limit: usize,
}

impl Listing {
    /// Takes at most the `size` the request named.
    #[must_use]
    pub fn new(size: u32) -> Self {
        let limit = (size as usize).min(IO_BYTES_MAX);
        Self { bytes: Vec::with_capacity(limit.min(64 << 10)), limit }
    }

    /// One name; false: full, it was not taken. `next` is the offset from which the listing goes on after it; `kind` is
    /// the file type of `mode` (`mode >> 12`).
    pub fn push(&mut self, ino: u64, next: u64, kind: u32, name: &[u8]) -> bool {
        self.fits(0, name) && {
            self.dirent(ino, next, kind, name);
            true
        }
    }

    /// One name with its attributes; each one taken counts as one lookup of the file, `nodeid` 0 excepted.
    pub fn push_plus(&mut self, entry: &Entry, next: u64, name: &[u8]) -> bool {
        self.fits(128, name) && {
            self.bytes.extend_from_slice(&entry.to_bytes());
            self.dirent(entry.attr.ino, next, entry.attr.mode >> 12, name);
            true
        }
    }

    fn fits(&self, before: usize, name: &[u8]) -> bool {
        self.bytes.len() + before + (24 + name.len()).next_multiple_of(8) <= self.limit
    }

    fn dirent(&mut self, ino: u64, next: u64, kind: u32, name: &[u8]) {
        self.bytes.extend_from_slice(&ino.to_ne_bytes());
        self.bytes.extend_from_slice(&next.to_ne_bytes());
        self.bytes.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        self.bytes.extend_from_slice(&(kind & 0xf).to_ne_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// Whether nothing was taken: the end of the directory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What the kernel gets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Header of an answer: `error` is 0 or the negative of a number of errno.
pub(super) fn out_header(body_length: usize, error: i32, raw_unique: u64) -> [u8; OUT_HEADER_LENGTH] {
    let mut out = Writer::<OUT_HEADER_LENGTH>::new();
    out.u32((OUT_HEADER_LENGTH + body_length) as u32);
    out.put(&error.to_ne_bytes());
    out.u64(raw_unique);
    out.bytes
}

/// Notification: forget cached data of a file. Offset -1: attributes only.
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;
/// Notification: forget a name.
pub(super) const NOTIFY_INVAL_ENTRY: i32 = 3;
/// Notification: send again what has not been answered.
pub(super) const NOTIFY_RESEND: i32 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend_from_slice(&((IN_HEADER_LENGTH + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&opcode.to_ne_bytes());
        message.extend_from_slice(&unique.to_ne_bytes());
        message.extend_from_slice(&7_u64.to_ne_bytes());
        message.extend_from_slice(&[0; 16]);
        message.extend_from_slice(body);
        message
    }

    #[test]
    fn a_request_that_is_sent_again_keeps_its_identity() {
        let bytes = message(opcode::LOOKUP, 42 | UNIQUE_RESEND, b"name\0");
        let parsed = parse(&bytes).unwrap();
        assert_eq!((parsed.request.unique, parsed.request.resent), (42, true));
        assert_eq!(parsed.raw_unique, 42 | UNIQUE_RESEND);
        assert!(matches!(parsed.request.operation, Operation::Lookup { name: b"name" }));
    }

    #[test]
    fn names_that_no_path_walk_makes_are_refused() {
        for name in [&b"a/b\0"[..], b"\0", b"unterminated"] {
            assert!(parse(&message(opcode::LOOKUP, 1, name)).is_err());
        }
    }

    #[test]
    fn no_message_panics_however_short_or_odd() {
        for opcode in 0..64 {
            for length in 0..160 {
                for fill in [0_u8, 1, 0x7f, 0xff] {
                    let whole = message(opcode, 1, &vec![fill; length]);
                    for cut in [0, 1, IN_HEADER_LENGTH, whole.len()] {
                        if let Ok(parsed) = parse(&whole[..cut.min(whole.len())])
                            && let Operation::Forget(forgets) = parsed.request.operation
                        {
                            assert!(forgets.count() <= length);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn extensions_at_the_end_are_not_taken_for_the_body() {
        let mut bytes = message(opcode::LOOKUP, 1, b"name\0\0\0\0extension of 16!");
        bytes[36..38].copy_from_slice(&2_u16.to_ne_bytes());
        assert!(parse(&bytes).is_ok());
        bytes[36..38].copy_from_slice(&200_u16.to_ne_bytes());
        assert!(parse(&bytes).is_err());
    }

    #[test]
    fn a_write_larger_than_its_message_is_malformed() {
        let mut body = [0; 40];
        body[16..20].copy_from_slice(&100_u32.to_ne_bytes());
        assert!(parse(&message(opcode::WRITE, 1, &body)).is_err());
    }

    #[test]
    fn what_was_agreed_survives_as_bytes() {
        let negotiated = Negotiated { minor: 41, max_readahead: 7, features: feature::WANTED };
        assert_eq!(Negotiated::from_bytes(&negotiated.to_bytes()), Some(negotiated));
        assert_eq!(Negotiated::from_bytes(&[2; 20]), None);
        assert_eq!(Negotiated::from_bytes(&[]), None);
    }

    #[test]
    fn a_listing_never_exceeds_what_was_asked() {
        let mut listing = Listing::new(100);
        assert!(listing.push(1, 1, 8, b"first"));
        assert!(listing.push(2, 2, 8, b"second"));
        assert!(listing.push(3, 3, 8, b"third"));
        assert!(!listing.push(4, 4, 8, b"fourth"));
        assert_eq!(listing.as_bytes().len(), 96);
    }

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        assert_eq!(split_time(-1), (-1, 999_999_999));
        assert_eq!(join_time(-1, 999_999_999), -1);
    }
}
