//! The replicant's side of a netcopy. Before the first change on the volume `prepare` is called, which makes the member's
//! inconsistency durable and saves aside what only this volume has; nothing is removed before that succeeded.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::Errno;

use super::differences::{CHUNK_BYTES, DIGEST_BYTES, Digest, FileDigest, digest, read_full};
use super::walk::{is_special, order};
use super::{Ask, Blob, Item, Looks, MANIFEST_BYTES_MAX, NetcopyError, Progress, Reply, Special, Step, VERSION, on};
use crate::checkpoint;
use crate::disk;
use crate::manifest::Manifest;
use crate::op::codec::check_target;
use crate::op::{FileId, ROOT};
use crate::redo::{Arrangement, Born, Scope, arrange};
use crate::volume::attributes::xattrs_of;
use crate::volume::open::{backing_of, stat_of};
use crate::volume::perform::{erase_xattr, write_all, write_mode, write_owner, write_times, write_xattr};
use crate::volume::tree::{Backing, FileKind, Node, Tree, check_xattr};
use crate::volume::{FOLDER, Options, Volume, open_root};
use tandem_protocol::Position;

/// So much of a file is given to the disk at a time.
const FLUSH_BYTES: u64 = 8 << 20;
/// Questions that may wait for an answer.
const ASKS_MAX: usize = 4096;
/// Chunks of which digests are remembered until their files come; a source asks for less ahead.
const CHUNKS_TOLD_MAX: u64 = 1 << 20;
/// Targets of links, in bytes, that wait for their names.
const SPECIALS_BYTES_MAX: usize = 256 << 20;
/// Chunks of one answer.
const CHUNKS_PER_REPLY: u64 = 4096;
/// Bytes of one piece of `Holding`.
const HOLDING_BYTES: usize = 256 << 10;

/// A complete copy.
#[derive(Debug)]
pub struct Copied {
    /// The volume, ready for the journal.
    pub volume: Volume,
    /// Where the journal goes on.
    pub position: Position,
    /// The volume is inconsistent until the journal has been applied up to here.
    pub through: u64,
    /// What it took.
    pub progress: Progress,
}

/// What was told about a range of chunks.
struct Told {
    first: u64,
    digests: Vec<Digest>,
}

/// The regular file that is being received.
struct Receiving {
    id: FileId,
    file: OwnedFd,
    /// How long it is here.
    length: u64,
    /// Room is taken beyond its end, which may have been given back at the source.
    roomy: bool,
    /// Its rights, when they are such as a change of content takes away from it.
    privileged: Option<u32>,
    offset: u64,
    /// The disk began with everything before this offset.
    begun: u64,
    /// Bytes written since.
    unbegun: u64,
    digest: FileDigest,
    told: VecDeque<Told>,
}

enum Phase {
    /// Nothing came yet.
    Idle,
    /// The list comes.
    List { position: Position, length: u64, bytes: Vec<u8> },
    /// Links and devices come.
    Specials { manifest: Manifest, specials: HashMap<FileId, Special>, bytes: usize },
    /// Files come.
    Files(Box<Files>),
    /// All is there and durable.
    Complete(Box<Copied>),
    /// Something failed, or the result was taken.
    Over,
}

/// The file of a question, and the digests that were told so far.
type Answering = (OwnedFd, Vec<Digest>);

struct Files {
    position: Position,
    volume: Volume,
    order: Vec<(FileId, FileKind)>,
    /// Files of which the content is compared, not sent whole.
    held: HashSet<FileId>,
    at: usize,
    receiving: Option<Receiving>,
    asks: VecDeque<(Ask, Option<Answering>)>,
    told: HashMap<FileId, VecDeque<Told>>,
    overall: blake3::Hasher,
    progress: Progress,
}

/// Called once, before the first change on the volume.
pub type Prepare = Box<dyn FnMut(Position) -> io::Result<()> + Send>;
/// Called once, when all files are durable: begins the journal anew at the position.
pub type Settle = Box<dyn FnMut(Position) -> io::Result<()> + Send>;

/// The receiving side of one netcopy.
pub struct Target {
    path: PathBuf,
    options: Options,
    held: Option<Manifest>,
    prepare: Prepare,
    settle: Settle,
    phase: Phase,
    replies: VecDeque<Reply>,
}

impl Target {
    /// A target on a volume that nobody uses any more. `held` lists what lies on it, when that is known better than from
    /// the last checkpoint or the last attempt of a copy.
    pub fn new(path: &Path, options: Options, held: Option<Manifest>, prepare: Prepare, settle: Settle) -> Target {
        let path = path.to_path_buf();
        Target { path, options, held, prepare, settle, phase: Phase::Idle, replies: VecDeque::new() }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        match &self.phase {
            Phase::Files(files) => files.progress,
            Phase::Complete(copied) => copied.progress,
            Phase::Idle | Phase::List { .. } | Phase::Specials { .. } | Phase::Over => Progress::default(),
        }
    }

    /// Whether the volume was, or may have been, changed.
    pub fn has_begun(&self) -> bool {
        !matches!(self.phase, Phase::Idle)
    }

    /// The copy, when it is complete.
    pub fn into_copied(self) -> Option<Copied> {
        match self.phase {
            Phase::Complete(copied) => Some(*copied),
            Phase::Idle | Phase::List { .. } | Phase::Specials { .. } | Phase::Files(_) | Phase::Over => None,
        }
    }

    /// What to answer next.
    pub fn step(&mut self) -> Result<Step<Reply>, NetcopyError> {
        if let Some(reply) = self.replies.pop_front() {
            return Ok(Step::Send(reply));
        }
        match &mut self.phase {
            Phase::Files(files) => match files.answer()? {
                Some(reply) => Ok(Step::Send(reply)),
                None => Ok(Step::Wait),
            },
            Phase::Complete(_) => Ok(Step::Finished),
            Phase::Idle | Phase::List { .. } | Phase::Specials { .. } | Phase::Over => Ok(Step::Wait),
        }
    }

    /// Takes one message. After an error the copy is over, and another one must be made.
    pub fn accept(&mut self, items: Vec<Item>) -> Result<(), NetcopyError> {
        for item in items {
            let phase = std::mem::replace(&mut self.phase, Phase::Over);
            self.phase = self.take(phase, item)?;
        }
        Ok(())
    }

    fn take(&mut self, phase: Phase, item: Item) -> Result<Phase, NetcopyError> {
        match (phase, item) {
            (Phase::Idle, Item::Begin { version, position, manifest_bytes }) => {
                if version != VERSION {
                    return Err(NetcopyError::Peer("another version of netcopy"));
                }
                if manifest_bytes > MANIFEST_BYTES_MAX {
                    return Err(NetcopyError::Peer("a list of files beyond all measure"));
                }
                Ok(Phase::List { position, length: manifest_bytes, bytes: Vec::new() })
            }
            (Phase::List { position, length, mut bytes }, Item::Manifest(piece)) => {
                if (bytes.len() + piece.0.len()) as u64 > length {
                    return Err(NetcopyError::Peer("a list of files longer than it says"));
                }
                bytes.extend_from_slice(&piece.0);
                if (bytes.len() as u64) < length {
                    return Ok(Phase::List { position, length, bytes });
                }
                let manifest = Manifest::from_bytes(bytes)?;
                if manifest.position()? != position {
                    return Err(NetcopyError::Peer("a list of files of another position"));
                }
                Ok(Phase::Specials { manifest, specials: HashMap::new(), bytes: 0 })
            }
            (Phase::Specials { manifest, mut specials, mut bytes }, Item::Specials(more)) => {
                if (specials.len() + more.len()) as u64 > manifest.files() {
                    return Err(NetcopyError::Peer("more links than files"));
                }
                for (_, special) in &more {
                    if let Special::Symlink(Blob(target)) = special {
                        check_target(target).map_err(|_| NetcopyError::Peer("a link to what cannot be"))?;
                        bytes += target.len();
                    }
                }
                if bytes > SPECIALS_BYTES_MAX {
                    return Err(NetcopyError::Peer("links beyond all measure"));
                }
                specials.extend(more);
                Ok(Phase::Specials { manifest, specials, bytes })
            }
            (Phase::Specials { manifest, specials, .. }, Item::Arrange) => {
                let files = self.arrange(&manifest, &specials)?;
                self.tell_holding(&files);
                Ok(Phase::Files(Box::new(files)))
            }
            (Phase::Files(mut files), Item::End { files: count, digest, through }) => {
                files.check_end(count, digest)?;
                let Files { position, volume, progress, .. } = *files;
                self.finish(position, &volume)?;
                self.replies.push_back(Reply::Complete);
                let through = through.max(position.seq);
                Ok(Phase::Complete(Box::new(Copied { volume, position, through, progress })))
            }
            (Phase::Files(mut files), item) => {
                files.take(item)?;
                Ok(Phase::Files(files))
            }
            _ => Err(NetcopyError::Peer("a step of the copy out of its order")),
        }
    }

    /// The last step: everything becomes durable, in the order in which each leans on the one before. The member
    /// stays inconsistent until the journal has been applied, so a crash in between costs another comparison, no data.
    fn finish(&mut self, position: Position, volume: &Volume) -> Result<(), NetcopyError> {
        let io = |doing| move |reason| NetcopyError::Io { doing, reason };
        if let Err(error) = volume.flush_all() {
            // What did not reach the disk may still be read from memory, as if it had: no later attempt may find it equal.
            checkpoint::forget(&volume.folder()).map_err(io("forget the list of files"))?;
            return Err(io("flush the copy")(error));
        }
        (self.settle)(position).map_err(io("begin the journal anew"))?;
        checkpoint::write(&volume.folder(), &volume.snapshot(position)).map_err(io("write the list of files"))
    }

    /// What lies on the volume, as far as it is known; only the root when nothing is.
    fn held_tree(&mut self, root: Backing) -> Result<Tree, NetcopyError> {
        let held = match self.held.take() {
            Some(held) => Some(held),
            None => match checkpoint::read(&self.path.join(FOLDER)) {
                Ok(held) => held,
                Err(error) => {
                    tracing::warn!(%error, "what lies on the volume is not known: all is copied");
                    None
                }
            },
        };
        if let Some(tree) = held.and_then(|held| held.tree().ok())
            && tree.node(ROOT).is_some_and(|node| node.backing == root)
        {
            return Ok(tree);
        }
        Ok(Tree::new(Node::new(FileKind::Directory, root, 0, 0)))
    }

    fn arrange(&mut self, manifest: &Manifest, specials: &HashMap<FileId, Special>) -> Result<Files, NetcopyError> {
        let position = manifest.position()?;
        let mut names = manifest.tree()?;
        let order = order(&names);
        if !self.options.devices && order.iter().any(|(_, kind)| matches!(kind, FileKind::Character | FileKind::Block))
        {
            return Err(NetcopyError::Peer("device files, which this pair does not allow"));
        }
        (self.prepare)(position).map_err(|reason| NetcopyError::Io { doing: "prepare the volume", reason })?;
        let root = open_root(&self.path).and_then(|root| stat_of(root.as_fd())).map_err(on("open the volume"))?;
        let old = self.held_tree(backing_of(&root))?;
        let mut born = HashMap::new();
        for (id, kind) in &order {
            let kept = old.node(*id).filter(|node| node.kind == *kind && !is_special(*kind));
            if let Some(node) = names.node_mut(*id) {
                node.backing = kept.map(|node| node.backing).unwrap_or_default();
            }
            if kept.is_none() {
                let mut empty = Born::empty(*kind);
                match specials.get(id) {
                    Some(Special::Symlink(target)) if *kind == FileKind::Symlink => empty.target.clone_from(&target.0),
                    Some(Special::Device(device)) => empty.device = *device,
                    Some(Special::Symlink(_)) | None => {}
                }
                born.insert(*id, empty);
            }
        }
        let plan =
            Arrangement { old, names, born, touched: HashSet::new(), scope: Scope::Everything, rebuild_missing: true };
        let (volume, born) = arrange(&self.path, self.options.clone(), plan)?;
        // From here on another attempt finds by this list what is there already.
        checkpoint::write(&volume.folder(), &volume.snapshot(position))
            .map_err(|reason| NetcopyError::Io { doing: "write the list of files", reason })?;
        let held = order
            .iter()
            .filter(|(id, kind)| *kind == FileKind::File && !born.contains_key(id))
            .map(|(id, _)| *id)
            .collect();
        let space = volume.statfs().map_err(on("ask for the volume's space"))?;
        let progress = Progress { files: order.len() as u64, bytes: space.total_bytes(), ..Progress::default() };
        Ok(Files {
            position,
            volume,
            order,
            held,
            at: 0,
            receiving: None,
            asks: VecDeque::new(),
            told: HashMap::new(),
            overall: blake3::Hasher::new(),
            progress,
        })
    }

    fn tell_holding(&mut self, files: &Files) {
        let regular: Vec<FileId> =
            files.order.iter().filter(|(_, kind)| *kind == FileKind::File).map(|(id, _)| *id).collect();
        let bits: Vec<u8> = regular
            .chunks(8)
            .map(|eight| {
                eight.iter().enumerate().fold(0, |byte, (bit, id)| byte | u8::from(files.held.contains(id)) << bit)
            })
            .collect();
        let mut pieces = bits.chunks(HOLDING_BYTES).peekable();
        if pieces.peek().is_none() {
            self.replies.push_back(Reply::Holding { bits: Blob::default(), last: true });
        }
        while let Some(piece) = pieces.next() {
            let last = pieces.peek().is_none();
            self.replies.push_back(Reply::Holding { bits: Blob(piece.to_vec()), last });
        }
    }
}

impl Files {
    fn take(&mut self, item: Item) -> Result<(), NetcopyError> {
        match item {
            Item::Compare(asks) => {
                let answered: usize = self.told.values().flatten().map(|told| told.digests.len()).sum();
                // A file may have more chunks than there is memory for their digests: what is asked for counts, too.
                let asked: u64 =
                    self.asks.iter().map(|(ask, _)| ask).chain(&asks).map(|ask| u64::from(ask.count)).sum();
                if self.asks.len() + asks.len() > ASKS_MAX || answered as u64 + asked > CHUNKS_TOLD_MAX {
                    return Err(NetcopyError::Peer("more questions than can be answered"));
                }
                for ask in asks {
                    if !self.held.contains(&ask.id) {
                        return Err(NetcopyError::Peer("a question about a file that is not held"));
                    }
                    self.asks.push_back((ask, None));
                }
                Ok(())
            }
            Item::Gone(id) => {
                self.expect(id)?;
                self.told.remove(&id);
                self.at += 1;
                self.progress.files_done += 1;
                Ok(())
            }
            Item::Looks(looks) => self.looks(&looks),
            Item::Data { offset, data } => self.data(offset, &data.0),
            Item::Hole { offset, length } => self.hole(offset, length),
            Item::Finish { size, digest } => self.finish_file(size, digest),
            Item::Begin { .. } | Item::Manifest(_) | Item::Specials(_) | Item::Arrange | Item::End { .. } => {
                Err(NetcopyError::Peer("a step of the copy out of its order"))
            }
        }
    }

    /// Files come in their order, each once.
    fn expect(&self, id: FileId) -> Result<FileKind, NetcopyError> {
        match self.order.get(self.at) {
            Some((expected, kind)) if *expected == id && self.receiving.is_none() => Ok(*kind),
            Some(_) | None => Err(NetcopyError::Peer("a file out of its order")),
        }
    }

    fn looks(&mut self, looks: &Looks) -> Result<(), NetcopyError> {
        let kind = self.expect(looks.id)?;
        let file = self.volume.open_apart(looks.id).map_err(on("open a file of the copy"))?;
        let stat = stat_of(file.as_fd()).map_err(on("look at a file of the copy"))?;
        let has_owner = (stat.stx_uid, stat.stx_gid) == (looks.uid, looks.gid);
        if !has_owner {
            write_owner(file.as_fd(), kind, looks.uid, looks.gid).map_err(on("give a file its owner"))?;
        }
        // A change of owner may have taken setuid and setgid away.
        let mode = looks.mode & 0o7777;
        if kind != FileKind::Symlink && !(has_owner && u32::from(stat.stx_mode) & 0o7777 == mode) {
            write_mode(file.as_fd(), kind, mode).map_err(on("give a file its rights"))?;
        }
        let mut wanted = HashSet::new();
        for (name, value) in &looks.xattrs {
            check_xattr(kind, &name.0).map_err(on("accept an attribute"))?;
            write_xattr(file.as_fd(), kind, &name.0, &value.0).map_err(on("give a file an attribute"))?;
            wanted.insert(name.0.as_slice());
        }
        for name in xattrs_of(file.as_fd(), kind).map_err(on("list a file's attributes"))? {
            if !wanted.contains(name.as_slice()) {
                match erase_xattr(file.as_fd(), kind, &name) {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(error) => return Err(on("take an attribute from a file")(error)),
                }
            }
        }
        if kind == FileKind::Directory {
            self.volume.set_default_acl(looks.id, wanted.contains(b"system.posix_acl_default".as_slice()));
        }
        if kind == FileKind::File {
            let told = self.told.remove(&looks.id).unwrap_or_default();
            let digest = FileDigest::default();
            let room = stat.stx_blocks.saturating_mul(512);
            self.receiving = Some(Receiving {
                id: looks.id,
                file,
                length: stat.stx_size,
                roomy: room > stat.stx_size.saturating_add(u64::from(stat.stx_blksize)),
                privileged: (mode & 0o6000 != 0).then_some(mode),
                offset: 0,
                begun: 0,
                unbegun: 0,
                digest,
                told,
            });
            return Ok(());
        }
        self.end_file(looks.id, &file)
    }

    fn end_file(&mut self, id: FileId, file: &OwnedFd) -> Result<(), NetcopyError> {
        let mtime = self.volume.tree().node(id).map(Node::mtime);
        write_times(file.as_fd(), None, mtime).map_err(on("give a file its time"))?;
        self.at += 1;
        self.progress.files_done += 1;
        Ok(())
    }

    fn data(&mut self, offset: u64, data: &[u8]) -> Result<(), NetcopyError> {
        let receiving = self.receiving.as_mut().ok_or(NetcopyError::Peer("content of no file"))?;
        receiving.pass(offset)?;
        if data.is_empty() {
            return Err(NetcopyError::Peer("content of no length"));
        }
        if i64::try_from(offset.saturating_add(data.len() as u64)).is_err() {
            return Err(NetcopyError::Peer("content beyond any file's end"));
        }
        write_all(receiving.file.as_fd(), offset, data).map_err(on("write a file of the copy"))?;
        for chunk in data.chunks(CHUNK_BYTES) {
            receiving.digest.add(&digest(chunk));
        }
        receiving.offset = offset + data.len() as u64;
        receiving.length = receiving.length.max(receiving.offset);
        // The disk writes while more arrives: 480 MiB/s became 560.
        receiving.unbegun += data.len() as u64;
        if let Some(length) =
            NonZeroU64::new(receiving.offset - receiving.begun).filter(|_| receiving.unbegun >= FLUSH_BYTES)
        {
            disk::begin_flush(&receiving.file, receiving.begun, length);
            (receiving.begun, receiving.unbegun) = (receiving.offset, 0);
        }
        self.progress.bytes_done += data.len() as u64;
        self.progress.bytes_sent += data.len() as u64;
        Ok(())
    }

    fn hole(&mut self, offset: u64, length: u64) -> Result<(), NetcopyError> {
        let receiving = self.receiving.as_mut().ok_or(NetcopyError::Peer("a hole in no file"))?;
        receiving.pass(offset)?;
        let end = offset.saturating_add(length);
        if length == 0 || i64::try_from(end).is_err() {
            return Err(NetcopyError::Peer("a hole beyond any file's end"));
        }
        if offset < receiving.length {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&receiving.file, flags, offset, length) {
                // A file system without holes: what is cut off and added again reads as zero too, and what comes
                // after the hole is not told to be equal any more.
                Err(Errno::OPNOTSUPP) => {
                    ftruncate(&receiving.file, offset).map_err(on("cut a file of the copy"))?;
                    receiving.length = offset;
                    receiving.told.clear();
                }
                other => other.map_err(on("make a hole in a file of the copy"))?,
            }
        }
        receiving.digest.add_hole(length);
        receiving.offset = end;
        self.progress.bytes_done += length;
        Ok(())
    }

    fn finish_file(&mut self, size: u64, digest: [u8; 32]) -> Result<(), NetcopyError> {
        let mut receiving = self.receiving.take().ok_or(NetcopyError::Peer("the end of no file"))?;
        if size < receiving.offset || i64::try_from(size).is_err() {
            return Err(NetcopyError::Peer("a file shorter than its content"));
        }
        receiving.pass(size)?;
        if receiving.length != size || receiving.roomy {
            ftruncate(&receiving.file, size).map_err(on("give a file its size"))?;
        }
        // Whoever writes without a right of the whole machine (in a user namespace) takes them away by it.
        if let Some(mode) = receiving.privileged {
            write_mode(receiving.file.as_fd(), FileKind::File, mode).map_err(on("give a file its rights back"))?;
        }
        if receiving.digest.finish(size) != digest {
            return Err(NetcopyError::Digest(receiving.id));
        }
        self.overall.update(&digest);
        self.told.remove(&receiving.id);
        self.end_file(receiving.id, &receiving.file)
    }

    fn check_end(&mut self, count: u64, digest: [u8; 32]) -> Result<(), NetcopyError> {
        let expected = self.order.len() as u64;
        if self.at as u64 != expected || count != expected || self.receiving.is_some() {
            return Err(NetcopyError::Count { expected, found: self.at as u64 });
        }
        if *self.overall.finalize().as_bytes() != digest {
            return Err(NetcopyError::Digest(ROOT));
        }
        Ok(())
    }

    /// The next piece of the first open question.
    fn answer(&mut self) -> Result<Option<Reply>, NetcopyError> {
        let Some((ask, begun)) = self.asks.front_mut() else { return Ok(None) };
        let id = ask.id;
        if begun.is_none() {
            let file = self.volume.open_apart(id).map_err(on("open a file to compare it"))?;
            *begun = Some((file, Vec::new()));
        }
        let Some((file, all)) = begun else { return Ok(None) };
        let mut piece = Vec::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut ended = false;
        for _ in 0..CHUNKS_PER_REPLY.min(u64::from(ask.count).saturating_sub(all.len() as u64)) {
            let offset = ask.first.saturating_add(all.len() as u64).saturating_mul(CHUNK_BYTES as u64);
            if i64::try_from(offset.saturating_add(CHUNK_BYTES as u64)).is_err() {
                return Err(NetcopyError::Peer("a question beyond any file's end"));
            }
            let read = read_full(file.as_fd(), offset, &mut buffer).map_err(on("read a file to compare it"))?;
            if read > 0 {
                let digest = digest(buffer.get(..read).unwrap_or_default());
                all.push(digest);
                piece.extend_from_slice(&digest);
            }
            if read < CHUNK_BYTES {
                ended = true;
                break;
            }
        }
        let last = ended || all.len() as u64 >= u64::from(ask.count);
        if last && let Some((ask, Some((_, digests)))) = self.asks.pop_front() {
            let told = Told { first: ask.first, digests };
            match &mut self.receiving {
                Some(receiving) if receiving.id == id => receiving.told.push_back(told),
                // Answered after its file was finished or gone: nobody will need it.
                _ if self.order.get(self.at).is_none_or(|(next, _)| id < *next) => {}
                Some(_) | None => self.told.entry(id).or_default().push_back(told),
            }
        }
        Ok(Some(Reply::Digests { id, digests: Blob(piece), last }))
    }
}

impl Receiving {
    /// Up to here everything that was not sent is equal to what was told about it.
    fn pass(&mut self, offset: u64) -> Result<(), NetcopyError> {
        if offset < self.offset {
            return Err(NetcopyError::Peer("content that goes back"));
        }
        while self.offset < offset {
            if !self.offset.is_multiple_of(CHUNK_BYTES as u64) {
                return Err(NetcopyError::Digest(self.id));
            }
            let chunk = self.offset / CHUNK_BYTES as u64;
            while self.told.front().is_some_and(|told| told.first + told.digests.len() as u64 <= chunk) {
                self.told.pop_front();
            }
            let told = self.told.front().and_then(|told| told.digests.get(chunk.checked_sub(told.first)? as usize));
            self.digest.add(told.ok_or(NetcopyError::Digest(self.id))?);
            self.offset = offset.min(self.offset + CHUNK_BYTES as u64);
        }
        Ok(())
    }
}

const _: () = assert!(DIGEST_BYTES * (CHUNKS_PER_REPLY as usize) < super::MESSAGE_BYTES_MAX / 2);
