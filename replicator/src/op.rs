//! The mutations a file system knows. An operation names files by id, never by path, so replay does not depend on renames
//! and a hostile peer has no path to escape with. Bytes on disk and wire: `op/codec.rs`.

pub mod codec;

/// Identity of a file for its whole life, chosen by the master that creates it; also the inode number that the
/// application sees. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct FileId(pub u64);

/// The root of the volume.
pub const ROOT: FileId = FileId(1);

/// Set in the request's number on operations that make a failed one undone: the request was answered with an error, or is
/// to be tried anew.
pub const UNDONE: u64 = 1 << 62;

/// When and for which request an operation was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Wall clock of the master in nanoseconds since 1970; becomes the times of the files concerned on both members.
    pub time: i64,
    /// The FUSE request that caused this (0: none). A request that is sent again after a crash is recognised by it.
    pub unique: u64,
}

/// What a new file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link and its target.
    Symlink(&'a [u8]),
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device: refused unless the pair allows devices.
    Character(u64),
    /// Block device: refused unless the pair allows devices.
    Block(u64),
}

/// One mutation. Borrowed from the request or from the journal's bytes: nothing is copied to name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// A new file under a name. `mode` holds permission bits only, after umask and default ACL were applied.
    Create { id: FileId, parent: FileId, name: &'a [u8], kind: Kind<'a>, mode: u32, uid: u32, gid: u32 },
    /// A new regular file without a name (`O_TMPFILE`).
    CreateUnnamed { id: FileId, mode: u32, uid: u32, gid: u32 },
    /// One more name for a file.
    Link { id: FileId, parent: FileId, name: &'a [u8] },
    /// A name goes; also of an empty directory. The file itself stays until `Drop` when somebody may hold it open.
    Unlink { id: FileId, parent: FileId, name: &'a [u8] },
    /// A name moves; `replaced` is the file that had the new name.
    Rename {
        id: FileId,
        parent: FileId,
        name: &'a [u8],
        new_parent: FileId,
        new_name: &'a [u8],
        replaced: Option<FileId>,
    },
    /// Two names change places.
    Exchange { id: FileId, parent: FileId, name: &'a [u8], other: FileId, other_parent: FileId, other_name: &'a [u8] },
    /// A file without names that nobody holds any more is removed.
    Drop { id: FileId },
    /// Bytes at an offset (never "at the end": an append carries the offset it got).
    Write { id: FileId, offset: u64, data: &'a [u8] },
    /// The size changes; what is cut is gone, what is added reads as zero.
    Truncate { id: FileId, size: u64 },
    /// Space is reserved, contents unchanged.
    Allocate { id: FileId, offset: u64, length: u64, keep_size: bool },
    /// A range becomes a hole.
    Punch { id: FileId, offset: u64, length: u64 },
    /// A range reads as zero.
    Zero { id: FileId, offset: u64, length: u64, keep_size: bool },
    /// Permission bits.
    SetMode { id: FileId, mode: u32 },
    /// Owner and group.
    SetOwner { id: FileId, uid: u32, gid: u32 },
    /// Times in nanoseconds since 1970; `None` leaves one alone.
    SetTimes { id: FileId, atime: Option<i64>, mtime: Option<i64> },
    /// An extended attribute gets a value (ACLs are such attributes).
    SetXattr { id: FileId, name: &'a [u8], value: &'a [u8] },
    /// An extended attribute goes.
    RemoveXattr { id: FileId, name: &'a [u8] },
    /// The first record of every epoch: who began it.
    Begin { member: &'a str },
}
