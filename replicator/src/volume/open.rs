//! Reaching a file of the backing volume by its id: from the volume's root, one name at a time, each relative to the
//! directory above and never through a link, so that nothing which somebody puts on the volume leads out of it. What was
//! reached is proved to be the file that the tree means. Descriptors are kept for the next use, within a bound.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags, StatxTimestamp, openat, openat2, statx};
use rustix::io::Errno;

use super::tree::{Backing, FileKind, Tree};
use super::{FOLDER, ORPHANS, STAGING, Volume};
use crate::op::{FileId, ROOT};

/// Descriptors kept open, in two generations: when the young one is half of what is allowed it becomes the old one, and
/// the old one's unused descriptors are closed. Finding, keeping and forgetting are one look-up each.
#[derive(Debug)]
pub(crate) struct Descriptors {
    young: HashMap<FileId, Arc<OwnedFd>>,
    old: HashMap<FileId, Arc<OwnedFd>>,
    limit: usize,
}

impl Descriptors {
    pub(crate) fn new(limit: usize) -> Descriptors {
        Descriptors { young: HashMap::new(), old: HashMap::new(), limit: limit.max(8) }
    }

    pub(crate) fn get(&mut self, id: FileId) -> Option<Arc<OwnedFd>> {
        if let Some(found) = self.young.get(&id) {
            return Some(Arc::clone(found));
        }
        let found = self.old.remove(&id)?;
        self.keep(id, Arc::clone(&found));
        Some(found)
    }

    pub(crate) fn keep(&mut self, id: FileId, descriptor: Arc<OwnedFd>) {
        if self.young.len() >= self.limit / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, descriptor);
    }

    pub(crate) fn forget(&mut self, id: FileId) {
        self.young.remove(&id);
        self.old.remove(&id);
    }
}

/// Everything a kernel tells about a file.
pub(crate) const EVERYTHING: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Nanoseconds since 1970. Times outside of 1677..2262 are brought to the nearest that fits.
pub(crate) fn nanoseconds(time: StatxTimestamp) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec))
}

/// Which inode this is.
pub(crate) fn backing_of(stat: &Statx) -> Backing {
    let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    Backing { ino: stat.stx_ino, btime: if has_birth { nanoseconds(stat.stx_btime) } else { 0 } }
}

/// What the descriptor's file is.
pub(crate) fn stat_of(file: BorrowedFd<'_>) -> Result<Statx, Errno> {
    statx(file, "", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, EVERYTHING)
}

/// What lies under a name; a link is described, not followed.
pub(crate) fn stat_at(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Statx, Errno> {
    statx(parent, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, EVERYTHING)
}

/// Opens one name of a directory: never through a link, never onto another file system.
pub(crate) fn open_at(parent: BorrowedFd<'_>, name: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        match openat2(parent, name, flags, mode, resolve) {
            // A rename elsewhere on the file system disturbed the walk: the kernel asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A seccomp profile older than the call. One plain name with NOFOLLOW cannot leave the directory either.
            Err(Errno::NOSYS) => return openat(parent, name, flags, mode),
            other => return other,
        }
    }
}

/// How a file of this kind is opened: for reading and writing where it has content, as a mere place otherwise (opening a
/// pipe would wait for its other end, opening a device would touch the device).
pub(crate) fn flags_for(kind: FileKind) -> OFlags {
    match kind {
        FileKind::File => OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY,
        FileKind::Directory => OFlags::RDONLY | OFlags::DIRECTORY,
        FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::Character | FileKind::Block => OFlags::PATH,
    }
}

/// Opens a name that is known to be of a kind.
pub(crate) fn open_kind(parent: BorrowedFd<'_>, name: &[u8], kind: FileKind) -> Result<OwnedFd, Errno> {
    match open_at(parent, name, flags_for(kind), Mode::empty()) {
        // An immutable or append-only file can still be read.
        Err(Errno::PERM | Errno::ACCESS | Errno::TXTBSY) if kind == FileKind::File => {
            open_at(parent, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())
        }
        other => other,
    }
}

/// Opens a folder, which is made when it is missing.
pub(crate) fn folder(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    open_at(parent, name.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

/// The folders of Tandem on a volume.
#[derive(Debug)]
pub(crate) struct Folders {
    pub(super) root: Arc<OwnedFd>,
    pub(super) orphans: Arc<OwnedFd>,
}

impl Folders {
    pub(crate) fn open(root: OwnedFd) -> Result<Folders, Errno> {
        let own = folder(root.as_fd(), FOLDER)?;
        let orphans = Arc::new(folder(own.as_fd(), ORPHANS)?);
        let staging = folder(own.as_fd(), STAGING)?;
        // The volume's root may hand access rules down: files that are made in here must not inherit any.
        for folder in [own.as_fd(), orphans.as_fd(), staging.as_fd()] {
            match rustix::fs::fremovexattr(folder, "system.posix_acl_default") {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ROFS) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Folders { root: Arc::new(root), orphans })
    }
}

/// The name of a file without names, in the folder of orphans.
pub(crate) fn orphan_name(id: FileId) -> Vec<u8> {
    id.0.to_string().into_bytes()
}

/// Whether what was found is the file that the tree means.
fn proved(id: FileId, backing: Backing, found: Backing) -> Result<(), Errno> {
    if found == backing {
        return Ok(());
    }
    tracing::error!(
        id = id.0,
        ?backing,
        ?found,
        "another file lies where this one should: the volume was changed from outside"
    );
    Err(Errno::UCLEAN)
}

impl Volume {
    /// A descriptor of a file. Directories and regular files can be used with every call, the others only as a place.
    pub fn descriptor(&self, id: FileId) -> Result<Arc<OwnedFd>, Errno> {
        if id == ROOT {
            return Ok(Arc::clone(&self.folders.root));
        }
        if let Some(found) = self.descriptors.lock().get(id) {
            return Ok(found);
        }
        let _names = self.names.read();
        self.reach(id)
    }

    /// As `descriptor`, for callers that hold `names` already.
    pub(super) fn reach(&self, id: FileId) -> Result<Arc<OwnedFd>, Errno> {
        let mut way = Vec::new();
        let mut at = id;
        let mut here = loop {
            if at == ROOT {
                break Arc::clone(&self.folders.root);
            }
            if let Some(found) = self.descriptors.lock().get(at) {
                break found;
            }
            let tree = self.tree.read();
            let node = tree.node(at).ok_or(Errno::STALE)?;
            match node.links().first() {
                Some(link) => {
                    let name = Arc::clone(tree.name(*link).ok_or(Errno::STALE)?);
                    way.push((at, name, node.kind, node.backing));
                    at = link.parent;
                }
                None => {
                    way.push((at, Arc::from(orphan_name(at)), node.kind, node.backing));
                    break Arc::clone(&self.folders.orphans);
                }
            }
        };
        while let Some((id, name, kind, backing)) = way.pop() {
            let next = open_kind(here.as_fd(), &name, kind)?;
            proved(id, backing, backing_of(&stat_of(next.as_fd())?))?;
            here = Arc::new(next);
            self.descriptors.lock().keep(id, Arc::clone(&here));
        }
        Ok(here)
    }

    /// What the volume tells about a file. One that is not open is not opened for this: that would take three calls more, and
    /// push out of the kept descriptors what is read and written.
    pub(super) fn stat(&self, id: FileId) -> Result<Statx, Errno> {
        if id == ROOT {
            return stat_of(self.folders.root.as_fd());
        }
        let open = self.descriptors.lock().get(id);
        if let Some(open) = open {
            return stat_of(open.as_fd());
        }
        let _names = self.names.read();
        let backing = self.tree.read().node(id).ok_or(Errno::STALE)?.backing;
        let (folder, name) = self.place(id)?;
        let stat = stat_at(folder.as_fd(), &name)?;
        proved(id, backing, backing_of(&stat))?;
        Ok(stat)
    }

    /// A descriptor of its own, kept by the caller only: reading a whole volume shall not push out what the application
    /// uses.
    pub fn open_apart(&self, id: FileId) -> Result<OwnedFd, Errno> {
        let _names = self.names.read();
        if id == ROOT {
            return open_at(self.folders.root.as_fd(), b".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        }
        let (kind, backing) = {
            let tree = self.tree.read();
            let node = tree.node(id).ok_or(Errno::STALE)?;
            (node.kind, node.backing)
        };
        let (folder, name) = self.place(id)?;
        let file = open_kind(folder.as_fd(), &name, kind)?;
        if backing_of(&stat_of(file.as_fd())?) != backing { Err(Errno::UCLEAN) } else { Ok(file) }
    }

    /// Where a file lies: a directory and a name in it.
    pub(super) fn place(&self, id: FileId) -> Result<(Arc<OwnedFd>, Arc<[u8]>), Errno> {
        let found = {
            let tree: &Tree = &self.tree.read();
            match tree.node(id).ok_or(Errno::STALE)?.links().first() {
                Some(link) => Some((link.parent, Arc::clone(tree.name(*link).ok_or(Errno::STALE)?))),
                None => None,
            }
        };
        match found {
            Some((parent, name)) => Ok((self.reach(parent)?, name)),
            None => Ok((Arc::clone(&self.folders.orphans), Arc::from(orphan_name(id)))),
        }
    }
}
