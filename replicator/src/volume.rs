//! The member's volume: ordinary files in ordinary folders, named by ids from here on. Answers what capture is asked, and
//! performs operations. It decides nothing about order or durability: whoever performs has journaled before, and excludes
//! others from the file (content) or from all names (names).
//!
//! On the volume lie the application's files as they are, and Tandem's own folder `.tandem`, which no application sees.

pub mod attributes;
pub mod digest;
pub mod open;
pub mod perform;
pub mod tree;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rustix::fs::{Dir, Mode, OFlags, SeekFrom, fgetxattr};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

pub use self::attributes::{Attributes, Listed, Space};
pub use self::tree::{Backing, FileKind};

use self::open::{Descriptors, Folders, backing_of, nanoseconds, stat_at, stat_of};
use self::tree::{Node, Tree, is_hidden};
use crate::bisect::last_that;
use crate::manifest::Manifest;
use crate::op::codec::ID_MAX;
use crate::op::{FileId, Op, ROOT};
use tandem_protocol::position::Position;

/// Tandem's folder on the volume.
pub const FOLDER: &str = ".tandem";
/// In it: files that lost their last name and may still be open, each under its id.
pub const ORPHANS: &str = "orphans";
/// In it: where redo and netcopy put files that are on their way.
pub const STAGING: &str = "staging";

/// What may be on a volume, and what it may use.
#[derive(Clone, Debug)]
pub struct Options {
    /// Character and block devices may be made.
    pub devices: bool,
    /// How many files are kept open.
    pub descriptors: usize,
}

impl Default for Options {
    fn default() -> Options {
        // As many as are worth their memory, and a quarter of what the process may have.
        let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Options { devices: false, descriptors: (allowed / 4).clamp(64, 4096) as usize }
    }
}

/// A volume in use. Share it by `Arc`.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    options: Options,
    folders: Folders,
    tree: RwLock<Tree>,
    /// Held exclusively while names change on the volume and in the tree, so that whoever walks from name to name finds
    /// both in agreement.
    names: RwLock<()>,
    descriptors: Mutex<Descriptors>,
    holds: Mutex<HashMap<FileId, u64>>,
    file_bytes_max: OnceLock<u64>,
}

/// Opens the folder that a volume is mounted on.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The names in a folder, without `.` and `..`.
pub(crate) fn names_in(folder: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn has_default_acl(folder: impl AsFd) -> bool {
    let mut nothing: [u8; 0] = [];
    matches!(fgetxattr(folder, "system.posix_acl_default", &mut nothing), Ok(length) if length > 0)
}

impl Volume {
    /// The first start on a volume, empty or with files of before: every file there gets an id.
    pub fn adopt(path: &Path, options: Options) -> Result<Volume, Errno> {
        let folders = Folders::open(open_root(path)?)?;
        let stat = stat_of(folders.root.as_fd())?;
        let mut tree = Tree::new(Node::new(
            FileKind::Directory,
            backing_of(&stat),
            nanoseconds(stat.stx_mtime),
            nanoseconds(stat.stx_ctime),
        ));
        if let Some(root) = tree.node_mut(ROOT).and_then(Node::directory_mut) {
            root.has_default_acl = has_default_acl(&folders.root);
        }
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let mut known: HashMap<Backing, FileId> = HashMap::new();
        let mut ahead = vec![ROOT];
        let volume = Volume::with(path, options, folders, tree);
        while let Some(parent) = ahead.pop() {
            let folder = volume.descriptor(parent)?;
            let mut names = names_in(&folder)?;
            // Two members that adopt copies of the same files should agree where they can.
            names.sort();
            for name in names.iter().filter(|name| !is_hidden(parent, name)) {
                let stat = stat_at(folder.as_fd(), name)?;
                let kind = FileKind::from_mode(u32::from(stat.stx_mode)).ok_or(Errno::INVAL)?;
                if (stat.stx_dev_major, stat.stx_dev_minor) != device {
                    tracing::warn!(name = %name.escape_ascii(), "another file system is mounted inside of the volume: left out");
                    continue;
                }
                let backing = backing_of(&stat);
                let mut tree = volume.tree.write();
                if let Some(id) = known.get(&backing).copied() {
                    tree.link(id, parent, name, None)?;
                    continue;
                }
                let id = FileId(tree.last_id().saturating_add(1));
                tree.add(id, Node::new(kind, backing, nanoseconds(stat.stx_mtime), nanoseconds(stat.stx_ctime)))?;
                tree.link(id, parent, name, None)?;
                drop(tree);
                if kind == FileKind::Directory {
                    ahead.push(id);
                    let below = volume.descriptor(id)?;
                    if has_default_acl(&below)
                        && let Some(directory) = volume.tree.write().node_mut(id).and_then(Node::directory_mut)
                    {
                        directory.has_default_acl = true;
                    }
                } else if stat.stx_nlink > 1 {
                    known.insert(backing, id);
                }
            }
        }
        Ok(volume)
    }

    /// A volume whose tree is known and true. After a crash, or when unsure, `redo::recover` makes it true.
    pub(crate) fn with(path: &Path, options: Options, folders: Folders, tree: Tree) -> Volume {
        let descriptors = Mutex::new(Descriptors::new(options.descriptors));
        Volume {
            path: path.to_path_buf(),
            options,
            folders,
            tree: RwLock::new(tree),
            names: RwLock::new(()),
            descriptors,
            holds: Mutex::new(HashMap::new()),
            file_bytes_max: OnceLock::new(),
        }
    }

    /// The names, for rooms that put a volume in order before anybody uses it.
    pub(crate) fn tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read()
    }

    /// Where a file was put that is not on the volume yet.
    pub(crate) fn set_backing(&self, id: FileId, backing: Backing) {
        if let Some(node) = self.tree.write().node_mut(id) {
            node.backing = backing;
        }
    }

    /// Notes whether a folder would hand down access rules.
    pub(crate) fn set_default_acl(&self, id: FileId, present: bool) {
        if let Some(directory) = self.tree.write().node_mut(id).and_then(Node::directory_mut) {
            directory.has_default_acl = present;
        }
    }

    /// The folder of files without names.
    pub(crate) fn orphans_folder(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.folders.orphans)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tandem's folder on it.
    pub fn folder(&self) -> PathBuf {
        self.path.join(FOLDER)
    }

    /// An id that was never used. Ids of different epochs differ, so two histories never name two files alike.
    pub fn next_id(&self) -> FileId {
        let mut tree = self.tree.write();
        // Beyond the last there is none: the operation that names it is refused.
        let id = tree.last_id().saturating_add(1);
        tree.raise_last_id(id);
        FileId(id)
    }

    /// Ids given from now on belong to this epoch.
    pub fn begin_epoch(&self, epoch: u64) {
        self.tree.write().raise_last_id(epoch.min(ID_MAX >> 40) << 40);
    }

    /// The kernel knows the file once more (it counts every answer that named it).
    pub fn hold(&self, id: FileId) {
        *self.holds.lock().entry(id).or_insert(0) += 1;
    }

    /// The kernel forgets `count` of them. True when nobody holds the file any more and it has no name: time for `Drop`.
    pub fn release(&self, id: FileId, count: u64) -> bool {
        let mut holds = self.holds.lock();
        if let Some(held) = holds.get_mut(&id) {
            *held = held.saturating_sub(count);
            if *held > 0 {
                return false;
            }
            holds.remove(&id);
        }
        drop(holds);
        id != ROOT && self.tree.read().node(id).is_some_and(|node| node.links().is_empty())
    }

    /// Whether the kernel knows the file.
    pub fn is_held(&self, id: FileId) -> bool {
        self.holds.lock().contains_key(&id)
    }

    /// Files without names that nobody holds: what a new master, or one whose application ended, drops.
    pub fn orphans(&self) -> Vec<FileId> {
        let holds = self.holds.lock();
        let tree = self.tree.read();
        let mut orphans: Vec<FileId> = tree
            .nodes()
            .filter(|(id, node)| *id != ROOT && node.links().is_empty() && !holds.contains_key(id))
            .map(|(id, _)| id)
            .collect();
        orphans.sort();
        orphans
    }

    /// How many files there are, the root included.
    pub fn files(&self) -> usize {
        self.tree.read().count()
    }

    /// Every file with its names and place, as of now. The caller holds the barrier: nothing is performed meanwhile.
    pub fn snapshot(&self, position: Position) -> Manifest {
        Manifest::of(&self.tree.read(), position)
    }

    /// Flushes all that was performed before the call to the disk, times included.
    pub fn flush_all(&self) -> io::Result<()> {
        self.flush_times()?;
        crate::disk::sync_volume(&self.folders.root)
    }

    /// Whether a write lies in what the file has already, so that it needs no room (on a file system that writes in place).
    pub fn overwrites(&self, op: &Op<'_>) -> bool {
        let Op::Write { id, offset, data } = op else { return false };
        let end = offset.saturating_add(data.len() as u64);
        if self.extent(*id, *offset, end) == Ok((true, end)) {
            return true;
        }
        // What is reserved and was never written looks like a hole.
        self.attributes(*id).is_ok_and(|found| end <= found.size && found.blocks.saturating_mul(512) >= found.size)
    }

    /// Whether there is content at a place of a file, and up to where that is so, at most to `end`.
    pub fn extent(&self, id: FileId, at: u64, end: u64) -> Result<(bool, u64), Errno> {
        let file = self.descriptor(id)?;
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => end,
            // A file system that cannot tell: everything is content.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((true, end)),
            Err(error) => return Err(error),
        };
        if data > at {
            return Ok((false, data.min(end)));
        }
        rustix::fs::seek(&file, SeekFrom::Hole(at)).map(|hole| (true, hole.min(end)))
    }

    /// Why an operation failed, said more exactly: attributes have a place of their own, which may be full on an empty volume.
    pub fn refused(&self, op: &Op<'_>, error: Errno) -> Errno {
        const ROOM_BYTES: u64 = 1 << 20;
        let has_room = || self.statfs().is_ok_and(|space| space.available_bytes() > ROOM_BYTES);
        if error == Errno::NOSPC && matches!(op, Op::SetXattr { .. }) && has_room() { Errno::TOOBIG } else { error }
    }

    /// The largest size that a file may have on this volume.
    pub(crate) fn file_bytes_max(&self) -> u64 {
        *self.file_bytes_max.get_or_init(|| {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let Ok(file) = rustix::fs::openat(&self.folders.orphans, ".", flags, Mode::RUSR) else {
                // A file system without nameless files: it refuses by itself what is too much.
                return i64::MAX as u64;
            };
            let fits = |size| rustix::fs::seek(&file, SeekFrom::Start(size)).is_ok();
            let most = i64::MAX as u64;
            if fits(most) { most } else { last_that(0, most, fits) }
        })
    }

    /// What an operation needs of space at most, so that capture refuses before it journals.
    pub fn space_needed(op: &Op<'_>) -> u64 {
        match op {
            Op::Write { data, .. } => data.len() as u64,
            Op::Allocate { length, .. } | Op::Zero { length, .. } => *length,
            Op::Create { .. } | Op::CreateUnnamed { .. } | Op::Link { .. } | Op::SetXattr { .. } => 4096,
            Op::Unlink { .. }
            | Op::Rename { .. }
            | Op::Exchange { .. }
            | Op::Drop { .. }
            | Op::Truncate { .. }
            | Op::Punch { .. }
            | Op::SetMode { .. }
            | Op::SetOwner { .. }
            | Op::SetTimes { .. }
            | Op::RemoveXattr { .. }
            | Op::Begin { .. } => 0,
        }
    }
}

#[cfg(test)]
pub(crate) mod random;
#[cfg(test)]
mod tests;
