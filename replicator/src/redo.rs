//! Makes a volume true again after any crash: of the process, of the machine, or of an earlier attempt at this.
//!
//! The list of files at the checkpoint and the journal's records after it say which names there must be. The volume may be
//! in any later state, or in a mixture: names from the future, names missing, files of which the content never arrived. So
//! nothing is believed but this: a file of the checkpoint is recognised by inode number and birth time, and can only be in
//! a folder that some record touches, in a folder born after the checkpoint, among the orphans or in the staging folder.
//!
//! 1. *survey*: compute the final names; note the touched folders and what was born.
//! 2. *scan* touched folders and everything below them that was born after the checkpoint.
//! 3. *clear*: what is not where it must be goes to the staging folder, what must not be at all goes away. Files
//!    born after the checkpoint go away too: the journal holds all of their content.
//! 4. *place*: make the born files, move and link the others to where they must be.
//! 5. *replay* content and attributes in the order of the journal.
//!
//! Every step leaves a state from which the whole can begin again.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, linkat, renameat, unlinkat};
use rustix::io::Errno;

use tandem_protocol::Position;

use crate::checkpoint;
use crate::journal::{Broken, Journal, ReadError, records_after};
use crate::manifest::{Manifest, ManifestError};
use crate::op::codec::CodecError;
use crate::op::{FileId, Kind, Op, ROOT, Stamp, UNDONE};
use crate::volume::open::{Descriptors, Folders, backing_of, folder, open_kind, orphan_name, stat_at, stat_of};
use crate::volume::perform::{Birth, file_of, give_birth, perform_on, writes_from};
use crate::volume::tree::{Backing, FileKind, Link, Node, Tree, is_hidden};
use crate::volume::{FOLDER, Options, STAGING, Volume, names_in, open_root};

/// Folders that have no id of their own: beyond all ids that an epoch can reach.
const ORPHANS_KEY: FileId = FileId(u64::MAX);
const STAGING_KEY: FileId = FileId(u64::MAX - 1);
const FIRST_STRAY: u64 = u64::MAX - 2;

/// Descriptors kept while the volume is put in order.
const DESCRIPTORS: usize = 256;

/// Why a volume could not be made true. The member does not try again: it needs a copy.
#[derive(Debug, thiserror::Error)]
pub enum RedoError {
    /// The list of files cannot be used.
    #[error("list of files: {0}")]
    Manifest(#[from] ManifestError),
    /// The journal and the list of files do not belong together.
    #[error("record {seq} ({op}) cannot follow what came before it: {reason}")]
    Contradiction {
        /// The record.
        seq: u64,
        /// What it says.
        op: String,
        /// What did not fit.
        reason: Errno,
    },
    /// The list of files is of another volume, or of this one before it was copied file by file.
    #[error("the volume is not the one that the list of files describes")]
    OtherVolume,
    /// Files of the checkpoint that are nowhere.
    #[error("{} files of the checkpoint are missing, first id {}", .0.len(), .0.first().map_or(0, |id| id.0))]
    Lost(Vec<FileId>),
    /// A call on the volume failed.
    #[error("{doing}: {reason}")]
    Volume {
        /// What was being attempted.
        doing: &'static str,
        /// How it failed.
        reason: Errno,
    },
    /// Nothing says what was on the volume.
    #[error("there is no checkpoint")]
    NoCheckpoint,
    /// The checkpoint cannot be read.
    #[error("{0}")]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    /// The checkpoint is not of the journal's history.
    #[error("the checkpoint at {checkpoint:?} is not in the journal, which knows {journal:?} there")]
    OtherHistory {
        /// Of the list of files.
        checkpoint: Position,
        /// At the same number.
        journal: Option<Position>,
    },
    /// The journal could not be read.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// A record does not hold.
    #[error("journal: {0}")]
    Broken(#[from] Broken),
    /// A record says what cannot be.
    #[error("journal: {0}")]
    Codec(#[from] CodecError),
    /// A test broke it.
    #[cfg(test)]
    #[error("broken by a test")]
    Test,
}

impl RedoError {
    fn may_be_undone(&self) -> bool {
        matches!(self, RedoError::Volume { reason, .. } if *reason != Errno::IO)
    }
}

fn on(doing: &'static str) -> impl Fn(Errno) -> RedoError {
    move |reason| RedoError::Volume { doing, reason }
}

/// Which folders may differ from the list of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those that the journal mentions: enough after the death of the process, and after a power failure on a member
    /// that performs only what is durable in its journal.
    Touched,
    /// All: for a master that lost power, whose volume may show what its journal lost.
    Everything,
}

/// Takes one record: its position, its stamp, what it does.
pub type Visit<'v> = dyn FnMut(Position, Stamp, &Op<'_>) -> Result<(), RedoError> + 'v;

/// Hands all records after the checkpoint to a visitor, in order. Called twice.
pub type Replay<'r> = dyn FnMut(&mut Visit<'_>) -> Result<(), RedoError> + 'r;

/// What a file that was born after the checkpoint is made from.
#[derive(Clone, Debug)]
pub(crate) struct Born {
    pub(crate) kind: FileKind,
    pub(crate) target: Vec<u8>,
    pub(crate) device: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Born {
    fn of(kind: &Kind<'_>, mode: u32, uid: u32, gid: u32) -> Born {
        let (target, device) = match kind {
            Kind::Symlink(target) => (target.to_vec(), 0),
            Kind::Character(device) | Kind::Block(device) => (Vec::new(), *device),
            Kind::File | Kind::Directory | Kind::Fifo | Kind::Socket => (Vec::new(), 0),
        };
        Born { kind: FileKind::of(kind), target, device, mode, uid, gid }
    }

    /// A file of which nothing is known yet but what it is.
    pub(crate) fn empty(kind: FileKind) -> Born {
        Born { kind, target: b"?".to_vec(), device: 0, mode: 0o600, uid: 0, gid: 0 }
    }

    fn make(&self, folder: &OwnedFd, name: &[u8], inherits: bool) -> Result<Backing, Errno> {
        let kind = match self.kind {
            FileKind::File => Kind::File,
            FileKind::Directory => Kind::Directory,
            FileKind::Symlink => Kind::Symlink(&self.target),
            FileKind::Fifo => Kind::Fifo,
            FileKind::Socket => Kind::Socket,
            FileKind::Character => Kind::Character(self.device),
            FileKind::Block => Kind::Block(self.device),
        };
        let birth = Birth { kind: &kind, mode: self.mode, uid: self.uid, gid: self.gid };
        Ok(give_birth(folder.as_fd(), name, &birth, inherits)?.1)
    }
}

/// What the journal says.
struct Survey {
    /// The names there must be.
    names: Tree,
    touched: HashSet<FileId>,
    born: HashMap<FileId, Born>,
}

/// How a volume shall be put in order.
pub(crate) struct Arrangement {
    /// The files that may be on the volume, with their inodes.
    pub(crate) old: Tree,
    /// The names there must be, with the inodes of those files that are kept.
    pub(crate) names: Tree,
    /// The files that are made anew.
    pub(crate) born: HashMap<FileId, Born>,
    /// Folders that may differ from `old`, unless all are looked at.
    pub(crate) touched: HashSet<FileId>,
    pub(crate) scope: Scope,
    /// A file that should be kept and is nowhere is made anew, empty: somebody else knows what was in it.
    pub(crate) rebuild_missing: bool,
}

fn survey(manifest: &Manifest, upto: u64, replay: &mut Replay<'_>) -> Result<Survey, RedoError> {
    let mut survey = Survey { names: manifest.tree()?, touched: HashSet::new(), born: HashMap::new() };
    replay(&mut |at, stamp, op| {
        match op {
            Op::Create { parent, .. } | Op::Link { parent, .. } | Op::Unlink { parent, .. } => {
                survey.touched.insert(*parent);
            }
            Op::Rename { parent, new_parent: other, .. } | Op::Exchange { parent, other_parent: other, .. } => {
                survey.touched.insert(*parent);
                survey.touched.insert(*other);
            }
            Op::CreateUnnamed { .. }
            | Op::Drop { .. }
            | Op::Write { .. }
            | Op::Truncate { .. }
            | Op::Allocate { .. }
            | Op::Punch { .. }
            | Op::Zero { .. }
            | Op::SetMode { .. }
            | Op::SetOwner { .. }
            | Op::SetTimes { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::Begin { .. } => {}
        }
        if at.seq > upto {
            // Not part of the final state, but its effect may be on the volume.
            return Ok(());
        }
        if let Err(reason) = survey.names.change(op, stamp.time, Backing::default()) {
            if stamp.unique & UNDONE == 0 {
                return Err(RedoError::Contradiction { seq: at.seq, op: told(op), reason });
            }
            // The list of files is of somebody who could not perform what this undoes.
            survey.names.show_times(op, stamp.time);
        }
        if let Op::Create { id, kind, mode, uid, gid, .. } = op {
            survey.born.insert(*id, Born::of(kind, *mode, *uid, *gid));
        }
        if let Op::CreateUnnamed { id, mode, uid, gid } = op {
            survey.born.insert(*id, Born::of(&Kind::File, *mode, *uid, *gid));
        }
        if let Op::Drop { id } = op {
            survey.born.remove(id);
        }
        Ok(())
    })?;
    Ok(survey)
}

/// An operation in a message, without its bulk.
fn told(op: &Op<'_>) -> String {
    let mut text = format!("{op:?}");
    text.truncate(text.char_indices().nth(160).map_or(text.len(), |(at, _)| at));
    text
}

/// What lies under a name.
#[derive(Clone, Copy, Debug)]
enum What {
    /// A file of the checkpoint.
    Known(FileId, FileKind),
    /// Anything else.
    Stray(FileKind),
}

struct Found {
    name: Vec<u8>,
    what: What,
}

/// The volume as it lies there, as far as it was looked at.
struct Scan {
    root: Arc<OwnedFd>,
    orphans: Arc<OwnedFd>,
    staging: Arc<OwnedFd>,
    /// Where a folder is now.
    places: HashMap<FileId, (FileId, Vec<u8>)>,
    descriptors: Descriptors,
    /// In the order of finding: a folder comes after the one it lies in.
    folders: Vec<(FileId, Vec<Found>)>,
}

impl Scan {
    fn folder(&mut self, key: FileId) -> Result<Arc<OwnedFd>, RedoError> {
        let mut way = Vec::new();
        let mut at = key;
        let mut here = loop {
            if at == ROOT {
                break Arc::clone(&self.root);
            } else if at == ORPHANS_KEY {
                break Arc::clone(&self.orphans);
            } else if at == STAGING_KEY {
                break Arc::clone(&self.staging);
            } else if let Some(found) = self.descriptors.get(at) {
                break found;
            }
            let (parent, name) =
                self.places.get(&at).ok_or(RedoError::Volume { doing: "find a folder", reason: Errno::STALE })?;
            way.push((at, name.clone()));
            at = *parent;
        };
        while let Some((id, name)) = way.pop() {
            here = Arc::new(open_kind(here.as_fd(), &name, FileKind::Directory).map_err(on("open a folder"))?);
            self.descriptors.keep(id, Arc::clone(&here));
        }
        Ok(here)
    }
}

fn scan(plan: &Arrangement, root: OwnedFd) -> Result<Scan, RedoError> {
    let old = &plan.old;
    let own = folder(root.as_fd(), FOLDER).map_err(on("open Tandem's folder"))?;
    let orphans = folder(own.as_fd(), crate::volume::ORPHANS).map_err(on("open the folder of orphans"))?;
    let staging = folder(own.as_fd(), STAGING).map_err(on("open the staging folder"))?;
    let device = stat_of(root.as_fd()).map_err(on("look at the volume's root"))?;
    if old.node(ROOT).map(|node| node.backing) != Some(backing_of(&device)) {
        return Err(RedoError::OtherVolume);
    }
    let mut scan = Scan {
        root: Arc::new(root),
        orphans: Arc::new(orphans),
        staging: Arc::new(staging),
        places: HashMap::new(),
        descriptors: Descriptors::new(DESCRIPTORS),
        folders: Vec::new(),
    };
    let known: HashMap<Backing, (FileId, FileKind)> = old
        .nodes()
        .filter(|(id, _)| !plan.born.contains_key(id))
        .map(|(id, node)| (node.backing, (id, node.kind)))
        .collect();
    let is_touched = |id: FileId| {
        plan.scope == Scope::Everything
            || plan.touched.contains(&id)
            // A folder that is gone in the end is emptied before it is removed.
            || plan.names.node(id).is_none()
    };
    // Folders that must be found: the touched ones, and those above them at the checkpoint.
    let mut interesting: HashSet<FileId> = HashSet::new();
    for (id, _) in old.nodes().filter(|(id, node)| node.kind == FileKind::Directory && is_touched(*id)) {
        let mut at = Some(id);
        while let Some(here) = at
            && interesting.insert(here)
        {
            at = old.parent(here);
        }
    }
    let mut ahead = std::collections::VecDeque::from([STAGING_KEY, ORPHANS_KEY, ROOT]);
    let mut next_stray = FIRST_STRAY;
    while let Some(key) = ahead.pop_front() {
        let old_folder = old.node(key).and_then(Node::directory);
        if let Some(directory) = old_folder
            && !is_touched(key)
        {
            // Nothing happened in it: what lay in it at the checkpoint lies there still.
            for entry in directory.entries().filter(|entry| interesting.contains(&entry.id)) {
                scan.places.insert(entry.id, (key, entry.name.to_vec()));
                ahead.push_back(entry.id);
            }
            continue;
        }
        let descriptor = scan.folder(key)?;
        let mut entries = Vec::new();
        for name in names_in(&descriptor).map_err(on("list a folder"))? {
            if is_hidden(key, &name) {
                continue;
            }
            let stat = stat_at(descriptor.as_fd(), &name).map_err(on("look at a file"))?;
            let kind = FileKind::from_mode(u32::from(stat.stx_mode))
                .ok_or(RedoError::Volume { doing: "look at a file", reason: Errno::INVAL })?;
            if (stat.stx_dev_major, stat.stx_dev_minor) != (device.stx_dev_major, device.stx_dev_minor) {
                return Err(RedoError::Volume { doing: "look at a file of another file system", reason: Errno::XDEV });
            }
            let what = match known.get(&backing_of(&stat)) {
                Some((id, known_kind)) if *known_kind == kind && *id != ROOT => What::Known(*id, kind),
                Some(_) | None => What::Stray(kind),
            };
            if kind == FileKind::Directory {
                let below = match what {
                    What::Known(id, _) => interesting.contains(&id).then_some(id),
                    What::Stray(_) => {
                        next_stray -= 1;
                        Some(FileId(next_stray))
                    }
                };
                if let Some(below) = below {
                    scan.places.insert(below, (key, name.clone()));
                    ahead.push_back(below);
                }
            }
            entries.push(Found { name, what });
        }
        scan.folders.push((key, entries));
    }
    Ok(scan)
}

/// What is already where it must be, and what waits in the staging folder.
#[derive(Default)]
struct Cleared {
    kept: HashSet<(FileId, u64)>,
    kept_orphans: HashSet<FileId>,
    staged: HashMap<FileId, FileKind>,
    found: HashSet<FileId>,
}

fn clear(names: &Tree, scan: &mut Scan) -> Result<Cleared, RedoError> {
    let mut cleared = Cleared::default();
    let mut folders = std::mem::take(&mut scan.folders);
    // What an earlier attempt put into the staging folder stays there; known first, so that no other name of the same
    // file is moved onto it (a rename between two names of one file does nothing at all).
    if let Some((_, entries)) = folders.iter_mut().find(|(key, _)| *key == STAGING_KEY) {
        entries.retain(|found| match found.what {
            What::Known(id, kind) if names.node(id).is_some() && found.name == orphan_name(id) => {
                cleared.staged.insert(id, kind);
                cleared.found.insert(id);
                false
            }
            What::Known(..) | What::Stray(_) => true,
        });
    }
    // Deepest first: a folder is empty when its turn to go comes.
    for (key, entries) in folders.iter().rev() {
        let descriptor = scan.folder(*key)?;
        let directory = names.node(*key).and_then(Node::directory);
        for Found { name, what } in entries {
            trouble::step()?;
            let (known, kind) = match what {
                What::Known(id, kind) => (names.node(*id).map(|node| (*id, node)), *kind),
                What::Stray(kind) => (None, *kind),
            };
            let is_directory = kind == FileKind::Directory;
            let Some((id, node)) = known else {
                let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                unlinkat(&descriptor, name.as_slice(), flags).map_err(on("remove what must not be there"))?;
                continue;
            };
            cleared.found.insert(id);
            if *key == ORPHANS_KEY && node.links().is_empty() && *name == orphan_name(id) {
                cleared.kept_orphans.insert(id);
                continue;
            }
            if let Some((cookie, entry_id)) = directory.and_then(|directory| directory.entry(name))
                && entry_id == id
            {
                cleared.kept.insert((*key, cookie));
                continue;
            }
            if cleared.staged.insert(id, kind).is_some() {
                unlinkat(&descriptor, name.as_slice(), AtFlags::empty()).map_err(on("remove a second name"))?;
            } else {
                renameat(&descriptor, name.as_slice(), &scan.staging, orphan_name(id))
                    .map_err(on("put a file aside"))?;
                if is_directory {
                    scan.places.insert(id, (STAGING_KEY, orphan_name(id)));
                }
            }
        }
    }
    Ok(cleared)
}

struct Placing<'a> {
    volume: &'a Volume,
    staging: Arc<OwnedFd>,
    touched: HashSet<FileId>,
    born: &'a HashMap<FileId, Born>,
    cleared: Cleared,
    made: HashSet<FileId>,
    lost: Vec<FileId>,
}

/// A folder and a name in it.
type Place = (Arc<OwnedFd>, Arc<[u8]>);

/// A name that must be.
struct Wanted {
    parent: FileId,
    cookie: u64,
    name: Arc<[u8]>,
    id: FileId,
}

impl Placing<'_> {
    fn place_all(&mut self) -> Result<(), RedoError> {
        let folders = self.folders_by_depth();
        // Folders first: another name of a file may lie in a folder that is still on its way.
        for only_folders in [true, false] {
            for folder in &folders {
                for wanted in self.missing_in(*folder, only_folders) {
                    self.place(&wanted)?;
                }
            }
            if !self.lost.is_empty() {
                return Err(RedoError::Lost(std::mem::take(&mut self.lost)));
            }
        }
        self.place_orphans()?;
        // What is left had other names, which are all there.
        for (id, kind) in std::mem::take(&mut self.cleared.staged) {
            if kind == FileKind::Directory {
                return Err(RedoError::Lost(vec![id]));
            }
            unlinkat(&self.staging, orphan_name(id), AtFlags::empty()).map_err(on("tidy the staging folder"))?;
        }
        if self.lost.is_empty() { Ok(()) } else { Err(RedoError::Lost(std::mem::take(&mut self.lost))) }
    }

    /// Names that must be in a folder and are not.
    fn missing_in(&self, folder: FileId, only_folders: bool) -> Vec<Wanted> {
        let tree = self.volume.tree();
        let is_folder = |id: FileId| tree.node(id).is_some_and(|node| node.kind == FileKind::Directory);
        let directory = tree.node(folder).and_then(Node::directory);
        let entries = directory.into_iter().flat_map(|directory| directory.after(0));
        entries
            .filter(|(cookie, entry)| {
                is_folder(entry.id) == only_folders && !self.cleared.kept.contains(&(folder, *cookie))
            })
            .map(|(cookie, entry)| Wanted { parent: folder, cookie, name: Arc::clone(&entry.name), id: entry.id })
            .collect()
    }

    /// Folders in which names may be missing; each after the one it lies in.
    fn folders_by_depth(&self) -> Vec<FileId> {
        let tree = self.volume.tree();
        let born = self.born.iter().filter(|(_, born)| born.kind == FileKind::Directory).map(|(id, _)| *id);
        let mut folders: Vec<(usize, FileId)> = self
            .touched
            .iter()
            .copied()
            .chain(born)
            .collect::<HashSet<FileId>>()
            .into_iter()
            .filter(|id| tree.node(*id).is_some())
            .map(|id| {
                let mut depth = 0;
                let mut at = id;
                while let Some(parent) = tree.parent(at) {
                    depth += 1;
                    at = parent;
                }
                (depth, id)
            })
            .collect();
        folders.sort_unstable();
        folders.into_iter().map(|(_, id)| id).collect()
    }

    fn place(&mut self, wanted: &Wanted) -> Result<(), RedoError> {
        trouble::step()?;
        let folder = self.volume.descriptor(wanted.parent).map_err(on("reach a folder"))?;
        let id = wanted.id;
        if let Some(born) = self.born.get(&id)
            && !self.made.contains(&id)
        {
            // The folder may hand down access rules: nobody has looked.
            let backing = born.make(&folder, &wanted.name, true).map_err(on("make a file"))?;
            self.volume.set_backing(id, backing);
            self.made.insert(id);
        } else if self.cleared.staged.remove(&id).is_some() {
            let staged = orphan_name(id);
            renameat(&self.staging, &*staged, &folder, &*wanted.name).map_err(on("put a file in its place"))?;
        } else if let Some((from, name)) = self.another_name(id)? {
            linkat(from, &*name, &folder, &*wanted.name, AtFlags::empty()).map_err(on("link a file"))?;
        } else {
            self.lost.push(id);
            return Ok(());
        }
        self.cleared.kept.insert((wanted.parent, wanted.cookie));
        Ok(())
    }

    /// A name of the file that is on the volume by now.
    fn another_name(&self, id: FileId) -> Result<Option<Place>, RedoError> {
        let found = {
            let tree = self.volume.tree();
            let Some(node) = tree.node(id) else { return Ok(None) };
            let is_there = |link: &&Link| {
                self.cleared.kept.contains(&(link.parent, link.cookie))
                    || (!self.touched.contains(&link.parent) && !self.born.contains_key(&link.parent))
            };
            let link = node.links().iter().find(is_there);
            link.and_then(|link| tree.name(*link).map(|name| (link.parent, Arc::clone(name))))
        };
        match found {
            Some((parent, name)) => Ok(Some((self.volume.descriptor(parent).map_err(on("reach a folder"))?, name))),
            None => Ok(None),
        }
    }

    fn place_orphans(&mut self) -> Result<(), RedoError> {
        let orphans = self.volume.orphans();
        let folder = self.volume.orphans_folder();
        for id in orphans.into_iter().filter(|id| !self.cleared.kept_orphans.contains(id)) {
            trouble::step()?;
            let name = orphan_name(id);
            if let Some(born) = self.born.get(&id) {
                let backing = born.make(&folder, &name, false).map_err(on("make a file without a name"))?;
                self.volume.set_backing(id, backing);
            } else if self.cleared.staged.remove(&id).is_some() {
                renameat(&self.staging, &*name, &folder, &*name).map_err(on("put an orphan in its place"))?;
            } else {
                self.lost.push(id);
            }
        }
        Ok(())
    }
}

/// Bytes of journal read at a time.
const READ_BYTES: usize = 4 << 20;

/// Makes a member's volume true at its start: from the checkpoint on it and its journal. `upto` is the journal's end on a
/// master, which performed all of it, and the committed mark on a replicant, which performed nothing beyond.
pub fn recover(path: &Path, options: Options, journal: &Journal, upto: u64, scope: Scope) -> Result<Volume, RedoError> {
    let manifest = checkpoint::read(&path.join(FOLDER))?.ok_or(RedoError::NoCheckpoint)?;
    let from = manifest.position()?;
    let known = journal.position_at(from.seq)?;
    if known != Some(from) {
        return Err(RedoError::OtherHistory { checkpoint: from, journal: known });
    }
    converge(path, options, &manifest, upto, scope, &mut |visit| {
        let end = journal.end().seq;
        let mut next = from.seq + 1 + u64::from(mistake!(RedoSkips));
        let mut bytes = Vec::new();
        while next <= end {
            bytes.clear();
            let batch = journal.read(next, READ_BYTES, &mut bytes)?;
            for record in records_after(batch.before, &bytes) {
                let record = record?;
                visit(record.position, record.stamp, &record.op()?)?;
            }
            next = batch.last.seq + 1;
        }
        Ok(())
    })
}

/// Makes a volume true: the files of `manifest` and what the records after it, up to and including `upto`, did to them.
/// Records after `upto` may have had effects on names, which are undone; their effects on content are not.
pub fn converge(
    path: &Path,
    options: Options,
    manifest: &Manifest,
    upto: u64,
    scope: Scope,
    replay: &mut Replay<'_>,
) -> Result<Volume, RedoError> {
    let survey = survey(manifest, upto, replay)?;
    let plan = Arrangement {
        old: manifest.tree()?,
        names: survey.names,
        born: survey.born,
        touched: survey.touched,
        scope,
        rebuild_missing: false,
    };
    let (volume, _) = arrange(path, options, plan)?;
    // What failed, by epoch and request. Unless it failed on the master too, when it was new: then the next that the journal
    // says of this request makes it undone. Or what it writes is cut off again: then whoever performed the journal before had
    // no room either.
    let mut failed: HashMap<(u64, u64), Failed> = HashMap::new();
    let mut late = LateAttributes::default();
    replay(&mut |at, stamp, op| {
        if let Some(failed) = failed.remove(&(at.epoch, stamp.unique & !UNDONE))
            && stamp.unique & UNDONE == 0
        {
            return Err(failed.error);
        }
        let Some(id) = file_of(op) else { return Ok(()) };
        // Of a file that is gone in the end nothing needs to be done again.
        let Ok(kind) = volume.kind(id) else { return Ok(()) };
        if at.seq > upto {
            return Ok(());
        }
        trouble::step()?;
        if let Op::Truncate { id, size } = op {
            failed.retain(|_, failed| failed.from.is_none_or(|(file, offset)| file != *id || offset < *size));
        }
        match late.pass(&volume, id, kind, op) {
            Err(error) if stamp.unique != 0 && error.may_be_undone() => {
                // Of several of one request, all would have to be cut off: too rare to be told apart.
                failed
                    .entry((at.epoch, stamp.unique))
                    .and_modify(|failed| failed.from = None)
                    .or_insert_with(|| Failed { error, from: writes_from(op) });
                Ok(())
            }
            other => other,
        }
    })?;
    if let Some(failed) = failed.into_values().next() {
        return Err(failed.error);
    }
    late.finish(&volume, scope)?;
    Ok(volume)
}

/// An operation that could not be done again.
struct Failed {
    error: RedoError,
    /// What it writes.
    from: Option<(FileId, u64)>,
}

/// Attributes that found no room when they were set again: on the volume lie those, too, that came later in the journal, and
/// there may be room for one or the other only.
#[derive(Default)]
struct LateAttributes {
    values: HashMap<(FileId, Vec<u8>), Vec<u8>>,
}

impl LateAttributes {
    fn pass(&mut self, volume: &Volume, id: FileId, kind: FileKind, op: &Op<'_>) -> Result<(), RedoError> {
        // Hardly any is ever late.
        if !self.values.is_empty()
            && let Op::SetXattr { name, .. } | Op::RemoveXattr { name, .. } = op
        {
            self.values.remove(&(id, name.to_vec()));
        }
        match (again(volume, id, kind, op), op) {
            (Err(RedoError::Volume { reason: Errno::NOSPC | Errno::DQUOT, .. }), Op::SetXattr { name, value, .. })
                // Access rules change rights, too: their order counts.
                if !name.starts_with(b"system.") =>
            {
                self.values.insert((id, name.to_vec()), value.to_vec());
                Ok(())
            }
            (other, _) => other,
        }
    }

    /// What nothing in the journal replaced or removed.
    fn finish(self, volume: &Volume, scope: Scope) -> Result<(), RedoError> {
        for ((id, name), value) in self.values {
            let Ok(kind) = volume.kind(id) else { continue };
            let op = Op::SetXattr { id, name: &name, value: &value };
            match again(volume, id, kind, &op) {
                // So it was when the record was new, and whoever made it died before it could say so. Its request was never
                // answered. (What a journal that lost its end does not know of may be what takes the room.)
                Err(RedoError::Volume { reason, .. })
                    if scope == Scope::Touched && volume.refused(&op, reason) == Errno::TOOBIG =>
                {
                    tracing::warn!(id = id.0, name = %name.escape_ascii(), "an attribute that is too large is passed over");
                }
                other => other?,
            }
        }
        Ok(())
    }
}

/// Brings every file to the names it must have, and makes those that are new; they are handed back. Content is not
/// looked at.
pub(crate) fn arrange(
    path: &Path,
    options: Options,
    mut plan: Arrangement,
) -> Result<(Volume, HashMap<FileId, Born>), RedoError> {
    let mut scan = scan(&plan, open_root(path).map_err(on("open the volume"))?)?;
    if plan.scope == Scope::Everything {
        let old = plan.old.nodes().filter(|(_, node)| node.kind == FileKind::Directory);
        plan.touched.extend(old.map(|(id, _)| id));
    }
    let forgives = plan.scope == Scope::Everything && !plan.rebuild_missing;
    drop(std::mem::replace(&mut plan.old, Tree::new(Node::new(FileKind::Directory, Backing::default(), 0, 0))));
    let cleared = clear(&plan.names, &mut scan)?;
    let staging = Arc::clone(&scan.staging);
    drop(scan);
    if plan.rebuild_missing {
        let missing: Vec<(FileId, FileKind)> = plan
            .names
            .nodes()
            .filter(|(id, _)| *id != ROOT && !cleared.found.contains(id) && !plan.born.contains_key(id))
            .map(|(id, node)| (id, node.kind))
            .collect();
        plan.born.extend(missing.into_iter().map(|(id, kind)| (id, Born::empty(kind))));
    }
    if forgives {
        forgive(&mut plan.names, &mut plan.born, &cleared.found);
    }
    let folders =
        Folders::open(open_root(path).map_err(on("open the volume"))?).map_err(on("open Tandem's folders"))?;
    let volume = Volume::with(path, options, folders, plan.names);
    let mut placing = Placing {
        volume: &volume,
        staging,
        touched: plan.touched,
        born: &plan.born,
        cleared,
        made: HashSet::new(),
        lost: Vec::new(),
    };
    placing.place_all()?;
    Ok((volume, plan.born))
}

/// A master that lost power may have removed files by operations that its journal lost: nobody was told that those are on
/// disk, and so a file of the checkpoint that is nowhere counts as removed. A folder in which something must be is made
/// anew.
fn forgive(names: &mut Tree, born: &mut HashMap<FileId, Born>, found: &HashSet<FileId>) {
    let is_missing =
        |id: FileId, born: &HashMap<FileId, Born>| id != ROOT && !found.contains(&id) && !born.contains_key(&id);
    loop {
        // Files first; a folder when nothing is left in it.
        let gone: Vec<FileId> = names
            .nodes()
            .filter(|(id, node)| {
                is_missing(*id, born) && node.directory().is_none_or(|folder| folder.after(0).next().is_none())
            })
            .map(|(id, _)| id)
            .collect();
        if gone.is_empty() {
            break;
        }
        for id in gone {
            tracing::warn!(id = id.0, "a file was removed by operations that the journal lost with the power");
            let links: Vec<_> = names.node(id).map(|node| node.links().to_vec()).unwrap_or_default();
            for link in links {
                let name = names.name(link).map(Arc::clone);
                // Both come from the same tree.
                if let Some(name) = name {
                    names.unlink(id, link.parent, &name).ok();
                }
            }
            names.remove(id);
        }
    }
    let folders: Vec<FileId> = names.nodes().map(|(id, _)| id).filter(|id| is_missing(*id, born)).collect();
    for id in folders {
        tracing::warn!(
            id = id.0,
            "a folder was removed by operations that the journal lost with the power; it is made anew"
        );
        born.insert(id, Born { mode: 0o755, ..Born::empty(FileKind::Directory) });
    }
}

fn again(volume: &Volume, id: FileId, kind: FileKind, op: &Op<'_>) -> Result<(), RedoError> {
    let file = volume.descriptor(id).map_err(on("reach a file"))?;
    match perform_on(file.as_fd(), kind, op) {
        Err(Errno::NOSPC | Errno::DQUOT) => {
            // What was removed before gives its space back only when the file system has committed the removal.
            crate::disk::sync_volume(&file)
                .map_err(|error| on("flush the volume")(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
            perform_on(file.as_fd(), kind, op).map_err(on("write to a file again"))
        }
        other => other.map_err(on("write to a file again")),
    }
}

/// Breaks redo at a chosen step, in tests.
#[cfg(test)]
mod trouble {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    }

    pub(super) fn break_after(steps: u64) {
        LEFT.set(Some(steps));
    }

    pub(super) fn heal() {
        LEFT.set(None);
    }

    pub(super) fn step() -> Result<(), super::RedoError> {
        match LEFT.get() {
            Some(0) => Err(super::RedoError::Test),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[cfg(not(test))]
mod trouble {
    #[inline(always)]
    pub(super) fn step() -> Result<(), super::RedoError> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "redo/tests/damage.rs"]
pub(crate) mod damage;
#[cfg(test)]
mod tests;
