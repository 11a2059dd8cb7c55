//! The names of a volume in memory: which file has which names, and where it lies on the backing volume. Knows no system
//! call. `change` carries one operation out on the names and times alone; the same code computes, at recovery, the names
//! that the volume must have after the journal's last record, so both always agree.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use rustix::io::Errno;

use crate::op::{FileId, Kind, Op, ROOT};

/// The longest name Linux file systems take.
pub const NAME_BYTES_MAX: usize = 255;

/// Cookies of a directory's entries begin here; 1 and 2 are the caller's for `.` and `..`.
pub const FIRST_COOKIE: u64 = 3;

/// What a file is; never changes during its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    Character,
    /// Block device.
    Block,
}

impl FileKind {
    /// The `S_IFMT` bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            FileKind::File => 0o100_000,
            FileKind::Directory => 0o040_000,
            FileKind::Symlink => 0o120_000,
            FileKind::Fifo => 0o010_000,
            FileKind::Socket => 0o140_000,
            FileKind::Character => 0o020_000,
            FileKind::Block => 0o060_000,
        }
    }

    /// From `st_mode`.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        [
            FileKind::File,
            FileKind::Directory,
            FileKind::Symlink,
            FileKind::Fifo,
            FileKind::Socket,
            FileKind::Character,
            FileKind::Block,
        ]
        .into_iter()
        .find(|kind| kind.mode_bits() == mode & 0o170_000)
    }

    /// What `Kind` (with its payload) makes.
    pub fn of(kind: &Kind<'_>) -> FileKind {
        match kind {
            Kind::File => FileKind::File,
            Kind::Directory => FileKind::Directory,
            Kind::Symlink(_) => FileKind::Symlink,
            Kind::Fifo => FileKind::Fifo,
            Kind::Socket => FileKind::Socket,
            Kind::Character(_) => FileKind::Character,
            Kind::Block(_) => FileKind::Block,
        }
    }
}

/// Which inode of the backing volume holds a file. The birth time tells a reused inode number from the old file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Backing {
    /// Inode number; 0: not yet on the volume.
    pub ino: u64,
    /// Birth time in nanoseconds since 1970, 0 where the file system has none.
    pub btime: i64,
}

/// A name of a file: its directory, and which of the directory's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Directory.
    pub parent: FileId,
    /// Entry of the directory.
    pub cookie: u64,
}

/// The names of one file. Nearly every file has one, and a hundred thousand files shall not cost a vector each.
#[derive(Debug, Default)]
enum Links {
    #[default]
    None,
    One(Link),
    Many(Vec<Link>),
}

impl Links {
    fn as_slice(&self) -> &[Link] {
        match self {
            Links::None => &[],
            Links::One(link) => std::slice::from_ref(link),
            Links::Many(links) => links,
        }
    }

    fn add(&mut self, link: Link) {
        *self = match std::mem::take(self) {
            Links::None => Links::One(link),
            Links::One(first) => Links::Many(vec![first, link]),
            Links::Many(mut links) => {
                links.push(link);
                Links::Many(links)
            }
        };
    }

    fn remove(&mut self, link: Link) {
        *self = match std::mem::take(self) {
            Links::None => Links::None,
            Links::One(first) if first == link => Links::None,
            Links::One(first) => Links::One(first),
            Links::Many(mut links) => {
                links.retain(|other| *other != link);
                match links.as_slice() {
                    [] => Links::None,
                    [one] => Links::One(*one),
                    _ => Links::Many(links),
                }
            }
        };
    }
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: Arc<[u8]>,
    /// What it names.
    pub id: FileId,
}

/// The entries of a directory by name, and in order of insertion. A name keeps its cookie as long as it stays, also
/// when a rename puts another file under it; so a reader that stops and goes on misses nothing and sees nothing twice. A
/// file that only gets another name in the same directory takes its cookie along: who renames what he reads comes to an end.
#[derive(Debug)]
pub struct Directory {
    names: HashMap<Arc<[u8]>, u64>,
    entries: BTreeMap<u64, Entry>,
    next_cookie: u64,
    subdirectories: u32,
    /// Files born here would inherit access rules from the volume; they must get them from operations only.
    pub has_default_acl: bool,
}

impl Default for Directory {
    fn default() -> Directory {
        Directory {
            names: HashMap::new(),
            entries: BTreeMap::new(),
            next_cookie: FIRST_COOKIE,
            subdirectories: 0,
            has_default_acl: false,
        }
    }
}

impl Directory {
    /// Entries after a cookie, in the order of their insertion.
    pub fn after(&self, cookie: u64) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.range(cookie.saturating_add(1)..).map(|(cookie, entry)| (*cookie, entry))
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The cookie the next new name gets.
    pub fn next_cookie(&self) -> u64 {
        self.next_cookie
    }

    /// No entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What a name names.
    pub fn get(&self, name: &[u8]) -> Option<FileId> {
        self.entry(name).map(|(_, id)| id)
    }

    /// The cookie of a name, and what it names.
    pub fn entry(&self, name: &[u8]) -> Option<(u64, FileId)> {
        let cookie = *self.names.get(name)?;
        self.entries.get(&cookie).map(|entry| (cookie, entry.id))
    }
}

/// One file.
#[derive(Debug)]
pub struct Node {
    /// Where it lies.
    pub backing: Backing,
    /// What it is.
    pub kind: FileKind,
    links: Links,
    directory: Option<Box<Directory>>,
    mtime: AtomicI64,
    ctime: AtomicI64,
    times_changed: AtomicBool,
}

impl Node {
    /// A file without names.
    pub fn new(kind: FileKind, backing: Backing, mtime: i64, ctime: i64) -> Node {
        Node {
            backing,
            kind,
            links: Links::None,
            directory: (kind == FileKind::Directory).then(Box::default),
            mtime: AtomicI64::new(mtime),
            ctime: AtomicI64::new(ctime),
            times_changed: AtomicBool::new(false),
        }
    }

    /// Its names.
    pub fn links(&self) -> &[Link] {
        self.links.as_slice()
    }

    /// Its entries, when it is a directory.
    pub fn directory(&self) -> Option<&Directory> {
        self.directory.as_deref()
    }

    /// Its entries, when it is a directory.
    pub fn directory_mut(&mut self) -> Option<&mut Directory> {
        self.directory.as_deref_mut()
    }

    /// Time of the last change of the content, in nanoseconds since 1970.
    pub fn mtime(&self) -> i64 {
        self.mtime.load(Ordering::Relaxed)
    }

    /// Time of the last change of anything, in nanoseconds since 1970.
    pub fn ctime(&self) -> i64 {
        self.ctime.load(Ordering::Relaxed)
    }

    /// As `st_nlink` counts.
    pub fn link_count(&self) -> u32 {
        match &self.directory {
            Some(directory) => 2 + directory.subdirectories,
            None => u32::try_from(self.links().len()).unwrap_or(u32::MAX),
        }
    }

    /// Whether the volume's own time differs from `mtime` since the last call.
    pub fn take_times_changed(&self) -> bool {
        self.times_changed.swap(false, Ordering::AcqRel)
    }

    /// The content changed. True when the file was not yet known as one whose time must be written to the volume.
    pub fn touch_content(&self, time: i64) -> bool {
        self.mtime.store(time, Ordering::Relaxed);
        self.ctime.store(time, Ordering::Relaxed);
        !self.times_changed.swap(true, Ordering::AcqRel)
    }

    /// Anything else changed.
    pub fn touch(&self, time: i64) {
        self.ctime.store(time, Ordering::Relaxed);
    }

    /// The application set the time. True as for `touch_content`.
    pub fn set_mtime(&self, mtime: i64) -> bool {
        self.mtime.store(mtime, Ordering::Relaxed);
        !self.times_changed.swap(true, Ordering::AcqRel)
    }
}

/// Spreads ids, which are counted up and chosen by nobody, over the table at the cost of one multiplication.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let spread = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = spread ^ spread >> 32;
    }
}

/// All files of a volume.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<FileId, Node, BuildHasherDefault<IdHasher>>,
    last_id: u64,
    times_changed: parking_lot::Mutex<Vec<FileId>>,
}

/// Refuses what cannot be a name, and what belongs to Tandem.
pub fn check_name(parent: FileId, name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| *byte == b'/' || *byte == 0) {
        return Err(Errno::INVAL);
    }
    if is_hidden(parent, name) {
        return Err(Errno::PERM);
    }
    Ok(())
}

/// Names of the volume's root that no application sees: Tandem's own folder, and the file system's.
pub fn is_hidden(parent: FileId, name: &[u8]) -> bool {
    parent == ROOT && (name == b".tandem" || name == b"lost+found")
}

impl Tree {
    /// Only a root.
    pub fn new(root: Node) -> Tree {
        Tree {
            nodes: HashMap::from_iter([(ROOT, root)]),
            last_id: ROOT.0,
            times_changed: parking_lot::Mutex::new(Vec::new()),
        }
    }

    /// A file.
    pub fn node(&self, id: FileId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// A file.
    pub fn node_mut(&mut self, id: FileId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    /// All files, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (FileId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// The highest id ever used here.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// Ids up to this one are used.
    pub fn raise_last_id(&mut self, id: u64) {
        self.last_id = self.last_id.max(id);
    }

    /// What a name names.
    pub fn lookup(&self, parent: FileId, name: &[u8]) -> Option<FileId> {
        self.nodes.get(&parent)?.directory()?.get(name)
    }

    /// The name that a link stands for.
    pub fn name(&self, link: Link) -> Option<&Arc<[u8]>> {
        self.nodes.get(&link.parent)?.directory()?.entries.get(&link.cookie).map(|entry| &entry.name)
    }

    /// The directory above a directory.
    pub fn parent(&self, id: FileId) -> Option<FileId> {
        self.nodes.get(&id)?.links().first().map(|link| link.parent)
    }

    /// Files whose time must be written to the volume; each is given out once until it changes again.
    pub fn take_times_changed(&self) -> Vec<FileId> {
        std::mem::take(&mut *self.times_changed.lock())
    }

    /// Puts a file back among those whose time must be written.
    pub fn note_times_changed(&self, id: FileId) {
        self.times_changed.lock().push(id);
    }

    /// Adds a file without names.
    pub fn add(&mut self, id: FileId, node: Node) -> Result<(), Errno> {
        if self.nodes.contains_key(&id) {
            return Err(Errno::EXIST);
        }
        self.last_id = self.last_id.max(id.0);
        self.nodes.insert(id, node);
        Ok(())
    }

    /// Forgets a file that has no names.
    pub fn remove(&mut self, id: FileId) -> Option<Node> {
        self.nodes.remove(&id)
    }

    /// Gives a file a name; `cookie` is given when an earlier life of the tree chose it.
    pub fn link(&mut self, id: FileId, parent: FileId, name: &[u8], cookie: Option<u64>) -> Result<(), Errno> {
        let is_directory = self.nodes.get(&id).ok_or(Errno::STALE)?.kind == FileKind::Directory;
        let directory = self.nodes.get_mut(&parent).ok_or(Errno::STALE)?.directory_mut().ok_or(Errno::NOTDIR)?;
        let cookie = cookie.unwrap_or(directory.next_cookie);
        if directory.names.contains_key(name) || directory.entries.contains_key(&cookie) {
            return Err(Errno::EXIST);
        }
        let name: Arc<[u8]> = Arc::from(name);
        directory.names.insert(Arc::clone(&name), cookie);
        directory.entries.insert(cookie, Entry { name, id });
        directory.next_cookie = directory.next_cookie.max(cookie.saturating_add(1));
        directory.subdirectories += u32::from(is_directory);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.links.add(Link { parent, cookie });
        }
        Ok(())
    }

    /// Sets the cookie that the next new name of a directory gets, from an earlier life of the tree.
    pub fn set_next_cookie(&mut self, id: FileId, next_cookie: u64) {
        if let Some(directory) = self.nodes.get_mut(&id).and_then(Node::directory_mut) {
            directory.next_cookie = directory.next_cookie.max(next_cookie);
        }
    }

    /// Takes a name away; says which cookie it had.
    pub fn unlink(&mut self, id: FileId, parent: FileId, name: &[u8]) -> Result<u64, Errno> {
        let is_directory = self.nodes.get(&id).ok_or(Errno::STALE)?.kind == FileKind::Directory;
        let directory = self.nodes.get_mut(&parent).ok_or(Errno::STALE)?.directory_mut().ok_or(Errno::NOTDIR)?;
        let cookie = *directory.names.get(name).ok_or(Errno::NOENT)?;
        if directory.entries.get(&cookie).map(|entry| entry.id) != Some(id) {
            return Err(Errno::STALE);
        }
        directory.names.remove(name);
        directory.entries.remove(&cookie);
        directory.subdirectories -= u32::from(is_directory);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.links.remove(Link { parent, cookie });
        }
        Ok(cookie)
    }

    fn directory(&self, id: FileId) -> Result<&Directory, Errno> {
        let node = self.nodes.get(&id).ok_or(Errno::STALE)?;
        let directory = node.directory().ok_or(Errno::NOTDIR)?;
        if id != ROOT && node.links().is_empty() {
            // A removed directory that somebody still stands in takes no new names.
            return Err(Errno::NOENT);
        }
        Ok(directory)
    }

    fn named(&self, id: FileId, parent: FileId, name: &[u8]) -> Result<&Node, Errno> {
        check_name(parent, name)?;
        match self.directory(parent)?.get(name) {
            None => Err(Errno::NOENT),
            Some(found) if found != id => Err(Errno::STALE),
            Some(found) => self.nodes.get(&found).ok_or(Errno::STALE),
        }
    }

    fn free(&self, parent: FileId, name: &[u8]) -> Result<(), Errno> {
        check_name(parent, name)?;
        if self.directory(parent)?.get(name).is_some() { Err(Errno::EXIST) } else { Ok(()) }
    }

    /// Whether `below` is `id` or lies in it.
    fn is_within(&self, below: FileId, id: FileId) -> bool {
        let mut at = Some(below);
        while let Some(here) = at {
            if here == id {
                return true;
            }
            at = self.parent(here);
        }
        false
    }

    fn regular(&self, id: FileId) -> Result<(), Errno> {
        match self.nodes.get(&id).ok_or(Errno::STALE)?.kind {
            FileKind::File => Ok(()),
            FileKind::Directory => Err(Errno::ISDIR),
            FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::Character | FileKind::Block => {
                Err(Errno::INVAL)
            }
        }
    }

    /// What would forbid an operation, as far as names and kinds decide it. The rest of its limits are the volume's.
    pub fn check(&self, op: &Op<'_>) -> Result<(), Errno> {
        match op {
            Op::Begin { .. } => Ok(()),
            Op::Create { id, parent, name, kind, .. } => {
                if self.nodes.contains_key(id) || id.0 <= ROOT.0 {
                    return Err(Errno::EXIST);
                }
                if let Kind::Symlink(target) = kind
                    && (target.is_empty() || target.len() > 4095 || target.contains(&0))
                {
                    return Err(Errno::INVAL);
                }
                self.free(*parent, name)
            }
            Op::CreateUnnamed { id, .. } => {
                if self.nodes.contains_key(id) || id.0 <= ROOT.0 {
                    Err(Errno::EXIST)
                } else {
                    Ok(())
                }
            }
            Op::Link { id, parent, name } => {
                if self.nodes.get(id).ok_or(Errno::STALE)?.kind == FileKind::Directory {
                    return Err(Errno::PERM);
                }
                self.free(*parent, name)
            }
            Op::Unlink { id, parent, name } => {
                let node = self.named(*id, *parent, name)?;
                if node.directory().is_some_and(|directory| !directory.is_empty()) {
                    return Err(Errno::NOTEMPTY);
                }
                Ok(())
            }
            Op::Rename { id, parent, name, new_parent, new_name, replaced } => {
                let node = self.named(*id, *parent, name)?;
                match replaced {
                    None => self.free(*new_parent, new_name)?,
                    Some(replaced) if replaced == id => return Err(Errno::INVAL),
                    Some(replaced) => {
                        let replaced = self.named(*replaced, *new_parent, new_name)?;
                        match (node.kind == FileKind::Directory, replaced.directory()) {
                            (true, None) => return Err(Errno::NOTDIR),
                            (false, Some(_)) => return Err(Errno::ISDIR),
                            (true, Some(directory)) if !directory.is_empty() => return Err(Errno::NOTEMPTY),
                            (true, Some(_)) | (false, None) => {}
                        }
                    }
                }
                if node.kind == FileKind::Directory && self.is_within(*new_parent, *id) {
                    return Err(Errno::INVAL);
                }
                Ok(())
            }
            Op::Exchange { id, parent, name, other, other_parent, other_name } => {
                let one = self.named(*id, *parent, name)?;
                let two = self.named(*other, *other_parent, other_name)?;
                if id == other
                    || (one.kind == FileKind::Directory && self.is_within(*other_parent, *id))
                    || (two.kind == FileKind::Directory && self.is_within(*parent, *other))
                {
                    return Err(Errno::INVAL);
                }
                Ok(())
            }
            Op::Drop { id } => {
                let node = self.nodes.get(id).ok_or(Errno::STALE)?;
                if *id == ROOT || !node.links().is_empty() { Err(Errno::BUSY) } else { Ok(()) }
            }
            Op::Write { id, offset, data } => {
                self.regular(*id)?;
                range(*offset, data.len() as u64)
            }
            Op::Truncate { id, size } => {
                self.regular(*id)?;
                range(*size, 0)
            }
            Op::Allocate { id, offset, length, .. }
            | Op::Punch { id, offset, length }
            | Op::Zero { id, offset, length, .. } => {
                self.regular(*id)?;
                if *length == 0 { Err(Errno::INVAL) } else { range(*offset, *length) }
            }
            Op::SetMode { id, .. } => match self.nodes.get(id).ok_or(Errno::STALE)?.kind {
                FileKind::Symlink => Err(Errno::OPNOTSUPP),
                FileKind::File
                | FileKind::Directory
                | FileKind::Fifo
                | FileKind::Socket
                | FileKind::Character
                | FileKind::Block => Ok(()),
            },
            Op::SetOwner { id, .. } | Op::SetTimes { id, .. } => self.nodes.get(id).map(|_| ()).ok_or(Errno::STALE),
            Op::SetXattr { id, name, .. } | Op::RemoveXattr { id, name } => {
                check_xattr(self.nodes.get(id).ok_or(Errno::STALE)?.kind, name)
            }
        }
    }

    /// Carries an operation out on names and times. `backing` is where a file that is born lies.
    pub fn change(&mut self, op: &Op<'_>, time: i64, backing: Backing) -> Result<(), Errno> {
        self.check(op)?;
        match op {
            Op::Create { id, parent, name, kind, .. } => {
                self.add(*id, Node::new(FileKind::of(kind), backing, time, time))?;
                self.note_born(*id);
                self.link(*id, *parent, name, None)?;
                self.touch_content_of(*parent, time);
            }
            Op::CreateUnnamed { id, .. } => {
                self.add(*id, Node::new(FileKind::File, backing, time, time))?;
                self.note_born(*id);
            }
            Op::Link { id, parent, name } => {
                self.link(*id, *parent, name, None)?;
                self.touch(*id, time);
                self.touch_content_of(*parent, time);
            }
            Op::Unlink { id, parent, name } => {
                self.unlink(*id, *parent, name)?;
                self.touch(*id, time);
                self.touch_content_of(*parent, time);
            }
            Op::Rename { id, parent, name, new_parent, new_name, replaced } => {
                let cookie = match replaced {
                    Some(replaced) => {
                        let cookie = self.unlink(*replaced, *new_parent, new_name)?;
                        self.touch(*replaced, time);
                        Some(cookie)
                    }
                    None => None,
                };
                let left = self.unlink(*id, *parent, name)?;
                let cookie = cookie.or((parent == new_parent).then_some(left));
                self.link(*id, *new_parent, new_name, cookie)?;
                self.touch(*id, time);
                self.touch_content_of(*parent, time);
                self.touch_content_of(*new_parent, time);
            }
            Op::Exchange { id, parent, name, other, other_parent, other_name } => {
                let one = self.unlink(*id, *parent, name)?;
                let two = self.unlink(*other, *other_parent, other_name)?;
                self.link(*id, *other_parent, other_name, Some(two))?;
                self.link(*other, *parent, name, Some(one))?;
                self.touch(*id, time);
                self.touch(*other, time);
                self.touch_content_of(*parent, time);
                self.touch_content_of(*other_parent, time);
            }
            Op::Drop { id } => {
                self.nodes.remove(id);
            }
            Op::SetXattr { id, name: b"system.posix_acl_default", .. } => self.set_default_acl(*id, true, time),
            Op::RemoveXattr { id, name: b"system.posix_acl_default" } => self.set_default_acl(*id, false, time),
            Op::Write { .. }
            | Op::Truncate { .. }
            | Op::Allocate { .. }
            | Op::Punch { .. }
            | Op::Zero { .. }
            | Op::SetMode { .. }
            | Op::SetOwner { .. }
            | Op::SetTimes { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::Begin { .. } => self.change_times(op, time),
        }
        Ok(())
    }

    /// The times that an operation leaves behind, and nothing else of it.
    pub fn show_times(&self, op: &Op<'_>, time: i64) {
        if let Op::Unlink { id, parent, .. } | Op::Link { id, parent, .. } = op {
            self.touch(*id, time);
            self.touch_content_of(*parent, time);
        } else if let Op::Rename { id, parent, new_parent, .. } = op {
            self.touch(*id, time);
            self.touch_content_of(*parent, time);
            self.touch_content_of(*new_parent, time);
        } else {
            self.change_times(op, time);
        }
    }

    /// The part of `change` that needs no exclusive access: operations that leave names alone.
    pub fn change_times(&self, op: &Op<'_>, time: i64) {
        match op {
            Op::Write { id, .. }
            | Op::Truncate { id, .. }
            | Op::Allocate { id, .. }
            | Op::Punch { id, .. }
            | Op::Zero { id, .. } => self.touch_content_of(*id, time),
            Op::SetMode { id, .. } | Op::SetOwner { id, .. } | Op::SetXattr { id, .. } | Op::RemoveXattr { id, .. } => {
                self.touch(*id, time)
            }
            Op::SetTimes { id, mtime, .. } => {
                if let Some(node) = self.nodes.get(id) {
                    if let Some(mtime) = mtime
                        && node.set_mtime(*mtime)
                    {
                        self.note_times_changed(*id);
                    }
                    node.touch(time);
                }
            }
            Op::Create { .. }
            | Op::CreateUnnamed { .. }
            | Op::Link { .. }
            | Op::Unlink { .. }
            | Op::Rename { .. }
            | Op::Exchange { .. }
            | Op::Drop { .. }
            | Op::Begin { .. } => {}
        }
    }

    fn set_default_acl(&mut self, id: FileId, present: bool, time: i64) {
        self.touch(id, time);
        if let Some(directory) = self.nodes.get_mut(&id).and_then(Node::directory_mut) {
            directory.has_default_acl = present;
        }
    }

    fn note_born(&self, id: FileId) {
        if let Some(node) = self.nodes.get(&id)
            && node.set_mtime(node.mtime())
        {
            self.note_times_changed(id);
        }
    }

    fn touch(&self, id: FileId, time: i64) {
        if let Some(node) = self.nodes.get(&id) {
            node.touch(time);
        }
    }

    /// The content of a file, or the entries of a directory, changed.
    fn touch_content_of(&self, id: FileId, time: i64) {
        if let Some(node) = self.nodes.get(&id)
            && node.touch_content(time)
        {
            self.note_times_changed(id);
        }
    }
}

/// Offsets beyond what a file can have are refused before anything is done.
fn range(offset: u64, length: u64) -> Result<(), Errno> {
    match offset.checked_add(length) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        Some(_) | None => Err(Errno::FBIG),
    }
}

/// The attributes that are replicated: the users' own and access rules. The others need rights that the sidecar does
/// not have, or would hand rights to files that came over a network.
pub fn check_xattr(kind: FileKind, name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::RANGE);
    }
    if name.contains(&0) {
        return Err(Errno::INVAL);
    }
    let has_content = matches!(kind, FileKind::File | FileKind::Directory);
    if name.starts_with(b"user.") && name.len() > 5 {
        return if has_content { Ok(()) } else { Err(Errno::PERM) };
    }
    match name {
        b"system.posix_acl_access" if kind != FileKind::Symlink => Ok(()),
        b"system.posix_acl_default" if kind == FileKind::Directory => Ok(()),
        b"system.posix_acl_default" if kind != FileKind::Symlink => Err(Errno::ACCESS),
        _ => Err(Errno::OPNOTSUPP),
    }
}
