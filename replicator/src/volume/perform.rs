//! Carries operations out on the backing volume: capture for the application's requests, apply and redo for the journal's
//! records. What an operation does follows from the operation and the volume alone, so both members do the same:
//! owner, rights and access rules of a new file come from operations, never from the process or the directory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags, chmod, chownat, fallocate, fchmod, fchown, fremovexattr, fsetxattr, ftruncate, linkat, mkdirat,
    mknodat, removexattr, renameat, renameat_with, setxattr, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};

use super::Volume;
use super::open::{backing_of, open_at, open_kind, orphan_name, stat_of};
use super::tree::{Backing, FileKind};
use crate::op::{FileId, Kind, Op, Stamp};

/// A new file, as an operation describes it.
pub(crate) struct Birth<'a> {
    pub(crate) kind: &'a Kind<'a>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Splits nanoseconds since 1970; also for times before it.
pub(crate) fn timespec(time: i64) -> Timespec {
    Timespec { tv_sec: time.div_euclid(1_000_000_000), tv_nsec: time.rem_euclid(1_000_000_000) }
}

const OMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };

/// Writes times to a file; `None` leaves one alone.
pub(crate) fn write_times(file: BorrowedFd<'_>, atime: Option<i64>, mtime: Option<i64>) -> Result<(), Errno> {
    let times =
        Timestamps { last_access: atime.map_or(OMIT, timespec), last_modification: mtime.map_or(OMIT, timespec) };
    utimensat(file, "", &times, AtFlags::EMPTY_PATH)
}

/// The kernel's own name of a descriptor: for calls that take no descriptor of a pipe, socket, link or device. It
/// leads to exactly the descriptor's file and nowhere else.
pub(crate) fn own_path(file: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Permission bits, with setuid, setgid and sticky.
pub(crate) fn write_mode(file: BorrowedFd<'_>, kind: FileKind, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    match kind {
        FileKind::File | FileKind::Directory => fchmod(file, mode),
        FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::Character | FileKind::Block => {
            chmod(own_path(file), mode)
        }
    }
}

/// Owner and group.
pub(crate) fn write_owner(file: BorrowedFd<'_>, kind: FileKind, uid: u32, gid: u32) -> Result<(), Errno> {
    if uid == u32::MAX || gid == u32::MAX {
        // The kernel would take this for "leave it alone", and the members would differ.
        return Err(Errno::INVAL);
    }
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match kind {
        FileKind::File | FileKind::Directory => fchown(file, uid, gid),
        FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::Character | FileKind::Block => {
            chownat(file, "", uid, gid, AtFlags::EMPTY_PATH)
        }
    }
}

/// Sets an extended attribute.
pub(crate) fn write_xattr(file: BorrowedFd<'_>, kind: FileKind, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    match kind {
        FileKind::File | FileKind::Directory => fsetxattr(file, name, value, XattrFlags::empty()),
        FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::Character | FileKind::Block => {
            setxattr(own_path(file), name, value, XattrFlags::empty())
        }
    }
}

/// Removes an extended attribute.
pub(crate) fn erase_xattr(file: BorrowedFd<'_>, kind: FileKind, name: &[u8]) -> Result<(), Errno> {
    match kind {
        FileKind::File | FileKind::Directory => fremovexattr(file, name),
        FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::Character | FileKind::Block => {
            removexattr(own_path(file), name)
        }
    }
}

/// Writes all of it.
pub(crate) fn write_all(file: BorrowedFd<'_>, mut offset: u64, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match pwrite(file, data, offset) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(written) => {
                offset += written as u64;
                data = data.get(written..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes a range read as zero where the file system cannot do it by itself.
fn write_zeros(file: BorrowedFd<'_>, offset: u64, end: u64) -> Result<(), Errno> {
    static ZEROS: [u8; 65536] = [0; 65536];
    let mut at = offset;
    while at < end {
        let length = (end - at).min(ZEROS.len() as u64);
        write_all(file, at, ZEROS.get(..length as usize).unwrap_or_default())?;
        at += length;
    }
    Ok(())
}

fn size_of(file: BorrowedFd<'_>) -> Result<u64, Errno> {
    Ok(stat_of(file)?.stx_size)
}

/// A range becomes zero, inside of the file or also beyond its end. The size is what tells; whether blocks are really
/// given back depends on the file system.
fn zero(file: BorrowedFd<'_>, offset: u64, length: u64, keep_size: bool, hole: bool) -> Result<(), Errno> {
    let flags = if hole {
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
    } else if keep_size {
        FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
    } else {
        FallocateFlags::ZERO_RANGE
    };
    match fallocate(file, flags, offset, length) {
        Err(Errno::OPNOTSUPP) => {
            let size = size_of(file)?;
            let end = offset.saturating_add(length);
            write_zeros(file, offset, end.min(size))?;
            if !keep_size && !hole && end > size { ftruncate(file, end) } else { Ok(()) }
        }
        other => other,
    }
}

/// Space for a range; where the file system cannot reserve, only the size changes.
fn allocate(file: BorrowedFd<'_>, offset: u64, length: u64, keep_size: bool) -> Result<(), Errno> {
    let flags = if keep_size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
    match fallocate(file, flags, offset, length) {
        Err(Errno::OPNOTSUPP) => {
            let end = offset.saturating_add(length);
            if !keep_size && end > size_of(file)? { ftruncate(file, end) } else { Ok(()) }
        }
        other => other,
    }
}

/// Carries out an operation on the content or the attributes of one open file. Operations on names do nothing here.
pub(crate) fn perform_on(file: BorrowedFd<'_>, kind: FileKind, op: &Op<'_>) -> Result<(), Errno> {
    match op {
        Op::Write { offset, data, .. } => write_all(file, *offset, data),
        Op::Truncate { size, .. } => ftruncate(file, *size),
        Op::Allocate { offset, length, keep_size, .. } => allocate(file, *offset, *length, *keep_size),
        Op::Punch { offset, length, .. } => zero(file, *offset, *length, true, true),
        Op::Zero { offset, length, keep_size, .. } => zero(file, *offset, *length, *keep_size, false),
        Op::SetMode { mode, .. } => write_mode(file, kind, *mode),
        Op::SetOwner { uid, gid, .. } => write_owner(file, kind, *uid, *gid),
        Op::SetTimes { atime, mtime, .. } => write_times(file, *atime, *mtime),
        Op::SetXattr { name, value, .. } => write_xattr(file, kind, name, value),
        Op::RemoveXattr { name, .. } => match erase_xattr(file, kind, name) {
            // It is gone, which is all that was asked for: redo removes again what it removed before.
            Err(Errno::NODATA) => Ok(()),
            other => other,
        },
        Op::Create { .. }
        | Op::CreateUnnamed { .. }
        | Op::Link { .. }
        | Op::Unlink { .. }
        | Op::Rename { .. }
        | Op::Exchange { .. }
        | Op::Drop { .. }
        | Op::Begin { .. } => Ok(()),
    }
}

/// Which file's content or attributes an operation changes, if it does nothing else.
pub(crate) fn file_of(op: &Op<'_>) -> Option<FileId> {
    match op {
        Op::Write { id, .. }
        | Op::Truncate { id, .. }
        | Op::Allocate { id, .. }
        | Op::Punch { id, .. }
        | Op::Zero { id, .. }
        | Op::SetMode { id, .. }
        | Op::SetOwner { id, .. }
        | Op::SetTimes { id, .. }
        | Op::SetXattr { id, .. }
        | Op::RemoveXattr { id, .. } => Some(*id),
        Op::Create { .. }
        | Op::CreateUnnamed { .. }
        | Op::Link { .. }
        | Op::Unlink { .. }
        | Op::Rename { .. }
        | Op::Exchange { .. }
        | Op::Drop { .. }
        | Op::Begin { .. } => None,
    }
}

/// The file that an operation needs room for the content of, and from which offset on.
pub(crate) fn writes_from(op: &Op<'_>) -> Option<(FileId, u64)> {
    if let Op::Write { id, offset, .. } | Op::Allocate { id, offset, .. } | Op::Zero { id, offset, .. } = op {
        Some((*id, *offset))
    } else {
        None
    }
}

/// How far into its file an operation reaches.
fn end_of(op: &Op<'_>) -> Option<u64> {
    if let Op::Allocate { offset, length, .. } | Op::Punch { offset, length, .. } | Op::Zero { offset, length, .. } = op
    {
        Some(offset.saturating_add(*length))
    } else if let Op::Write { offset, data, .. } = op {
        Some(offset.saturating_add(data.len() as u64))
    } else if let Op::Truncate { size, .. } = op {
        Some(*size)
    } else {
        None
    }
}

/// Makes a file under a name, with exactly the owner and rights it shall have. `inherits`: the directory would hand
/// down access rules, which are taken away again. What cannot be finished is removed.
pub(crate) fn give_birth(
    parent: BorrowedFd<'_>,
    name: &[u8],
    birth: &Birth<'_>,
    inherits: bool,
) -> Result<(OwnedFd, Backing), Errno> {
    let kind = FileKind::of(birth.kind);
    let mode = Mode::from_raw_mode(birth.mode & 0o777);
    let opened = match birth.kind {
        Kind::File => open_at(parent, name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOCTTY, mode),
        Kind::Directory => mkdirat(parent, name, mode).and_then(|()| open_kind(parent, name, kind)),
        Kind::Symlink(target) => symlinkat(*target, parent, name).and_then(|()| open_kind(parent, name, kind)),
        Kind::Fifo => make_node(parent, name, FileType::Fifo, mode, 0),
        Kind::Socket => make_node(parent, name, FileType::Socket, mode, 0),
        Kind::Character(device) => make_node(parent, name, FileType::CharacterDevice, mode, *device),
        Kind::Block(device) => make_node(parent, name, FileType::BlockDevice, mode, *device),
    }?;
    match finish_birth(opened.as_fd(), kind, birth, inherits) {
        Ok(backing) => Ok((opened, backing)),
        Err(error) => {
            let flags = if kind == FileKind::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            if let Err(left) = unlinkat(parent, name, flags) {
                tracing::warn!(%left, "a file that could not be finished stays behind");
            }
            Err(error)
        }
    }
}

fn make_node(
    parent: BorrowedFd<'_>,
    name: &[u8],
    file_type: FileType,
    mode: Mode,
    device: u64,
) -> Result<OwnedFd, Errno> {
    mknodat(parent, name, file_type, mode, device)?;
    open_at(parent, name, OFlags::PATH, Mode::empty())
}

fn finish_birth(file: BorrowedFd<'_>, kind: FileKind, birth: &Birth<'_>, inherits: bool) -> Result<Backing, Errno> {
    if inherits && kind != FileKind::Symlink {
        for name in ["system.posix_acl_access", "system.posix_acl_default"] {
            match erase_xattr(file, kind, name.as_bytes()) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::INVAL | Errno::ACCESS) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let stat = stat_of(file)?;
    if (stat.stx_uid, stat.stx_gid) != (birth.uid, birth.gid) {
        write_owner(file, kind, birth.uid, birth.gid)?;
    }
    // After the owner: changing the owner takes setuid and setgid away.
    if kind != FileKind::Symlink && (inherits || u32::from(stat.stx_mode) & 0o7777 != birth.mode & 0o7777) {
        write_mode(file, kind, birth.mode)?;
    }
    Ok(backing_of(&stat))
}

impl Volume {
    /// What forbids an operation, as far as it can be known before it is journaled.
    pub fn check(&self, op: &Op<'_>) -> Result<(), Errno> {
        if let Op::Create { kind: Kind::Character(_) | Kind::Block(_), .. } = op
            && !self.options.devices
        {
            return Err(Errno::PERM);
        }
        if let Op::Create { uid, gid, .. } | Op::CreateUnnamed { uid, gid, .. } | Op::SetOwner { uid, gid, .. } = op
            && (*uid == u32::MAX || *gid == u32::MAX)
        {
            return Err(Errno::INVAL);
        }
        if end_of(op).is_some_and(|end| end > self.file_bytes_max()) {
            return Err(Errno::FBIG);
        }
        self.tree.read().check(op)
    }

    /// The times that an operation leaves behind, of one that is not performed here because what it undoes was not either.
    pub fn show_times(&self, op: &Op<'_>, stamp: Stamp) {
        self.tree.read().show_times(op, stamp.time);
    }

    /// Carries an operation out. The caller excludes others on the file concerned (content), or on all names (names).
    pub fn perform(&self, op: &Op<'_>, stamp: Stamp) -> Result<(), Errno> {
        self.check(op)?;
        if let Some(id) = file_of(op) {
            return self.perform_on_file(id, op, stamp);
        }
        let _names = self.names.write();
        let mut backing = Backing::default();
        match op {
            Op::Create { id, parent, name, kind, mode, uid, gid } => {
                let inherits = self.hands_down_rules(*parent);
                let directory = self.reach(*parent)?;
                let birth = Birth { kind, mode: *mode, uid: *uid, gid: *gid };
                let (file, found) = give_birth(directory.as_fd(), name, &birth, inherits)?;
                backing = found;
                self.descriptors.lock().keep(*id, Arc::new(file));
            }
            Op::CreateUnnamed { id, mode, uid, gid } => {
                let birth = Birth { kind: &Kind::File, mode: *mode, uid: *uid, gid: *gid };
                let (file, found) = give_birth(self.folders.orphans.as_fd(), &orphan_name(*id), &birth, false)?;
                backing = found;
                self.descriptors.lock().keep(*id, Arc::new(file));
            }
            Op::Link { id, parent, name } => {
                let (from, old_name) = self.place(*id)?;
                let directory = self.reach(*parent)?;
                if self.is_orphan(*id) {
                    renameat(from, &*old_name, directory, *name)?;
                } else {
                    linkat(from, &*old_name, directory, *name, AtFlags::empty())?;
                }
            }
            Op::Unlink { id, parent, name } => {
                let directory = self.reach(*parent)?;
                self.take_name(*id, directory.as_fd(), name)?;
            }
            Op::Rename { id: _, parent, name, new_parent, new_name, replaced } => {
                let from = self.reach(*parent)?;
                let to = self.reach(*new_parent)?;
                match replaced {
                    Some(replaced) if self.is_last_name(*replaced) => {
                        let orphan = orphan_name(*replaced);
                        renameat(&to, *new_name, &self.folders.orphans, &*orphan)?;
                        if let Err(error) = renameat(from, *name, &to, *new_name) {
                            // As if it had not begun.
                            renameat(&self.folders.orphans, &*orphan, &to, *new_name)?;
                            return Err(error);
                        }
                    }
                    Some(_) | None => renameat(from, *name, to, *new_name)?,
                }
            }
            Op::Exchange { parent, name, other_parent, other_name, .. } => {
                let one = self.reach(*parent)?;
                let two = self.reach(*other_parent)?;
                renameat_with(one, *name, two, *other_name, RenameFlags::EXCHANGE)?;
            }
            Op::Drop { id } => {
                let is_directory = self.kind(*id)? == FileKind::Directory;
                let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                unlinkat(&self.folders.orphans, &*orphan_name(*id), flags)?;
                self.descriptors.lock().forget(*id);
                self.holds.lock().remove(id);
            }
            Op::Begin { .. }
            | Op::Write { .. }
            | Op::Truncate { .. }
            | Op::Allocate { .. }
            | Op::Punch { .. }
            | Op::Zero { .. }
            | Op::SetMode { .. }
            | Op::SetOwner { .. }
            | Op::SetTimes { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. } => {}
        }
        self.tree.write().change(op, stamp.time, backing)
    }

    fn perform_on_file(&self, id: FileId, op: &Op<'_>, stamp: Stamp) -> Result<(), Errno> {
        let kind = self.kind(id)?;
        let file = self.descriptor(id)?;
        perform_on(file.as_fd(), kind, op)?;
        if let Op::SetXattr { name: b"system.posix_acl_default", .. }
        | Op::RemoveXattr { name: b"system.posix_acl_default", .. } = op
        {
            return self.tree.write().change(op, stamp.time, Backing::default());
        }
        self.tree.read().change_times(op, stamp.time);
        Ok(())
    }

    fn hands_down_rules(&self, parent: FileId) -> bool {
        let tree = self.tree.read();
        tree.node(parent).and_then(super::tree::Node::directory).is_some_and(|directory| directory.has_default_acl)
    }

    fn is_orphan(&self, id: FileId) -> bool {
        self.tree.read().node(id).is_some_and(|node| node.links().is_empty())
    }

    fn is_last_name(&self, id: FileId) -> bool {
        self.tree.read().node(id).is_some_and(|node| node.links().len() == 1)
    }

    /// Takes a name away. A file that loses its last name stays among the orphans: somebody may hold it open, and on the
    /// other member nobody knows. `Drop` removes it.
    fn take_name(&self, id: FileId, directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        if self.is_last_name(id) {
            renameat(directory, name, &self.folders.orphans, &*orphan_name(id))
        } else {
            unlinkat(directory, name, AtFlags::empty())
        }
    }

    /// Writes the times that the tree remembers to the volume, so that the plain files carry them.
    pub fn flush_times(&self) -> Result<(), Errno> {
        let mut changed = self.tree.read().take_times_changed().into_iter();
        while let Some(id) = changed.next() {
            let written = self.flush_time(id);
            if written.is_err() {
                let tree = self.tree.read();
                tree.note_times_changed(id);
                changed.for_each(|id| tree.note_times_changed(id));
                return written;
            }
        }
        Ok(())
    }

    fn flush_time(&self, id: FileId) -> Result<(), Errno> {
        let mtime = {
            let tree = self.tree.read();
            // Dropped meanwhile: nothing is left to carry a time.
            let Some(node) = tree.node(id) else { return Ok(()) };
            node.take_times_changed();
            node.mtime()
        };
        match self.descriptor(id).and_then(|file| write_times(file.as_fd(), None, Some(mtime))) {
            Err(Errno::STALE | Errno::NOENT) if self.tree.read().node(id).is_none() => Ok(()),
            other => other,
        }
    }
}
