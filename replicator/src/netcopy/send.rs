//! The master's side of a netcopy. Reads the files while they are written to; holds no lock while it reads.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, readlinkat, seek};
use rustix::io::Errno;

use super::differences::{CHUNK_BYTES, DIGEST_BYTES, Digest, FileDigest, digest, read_on};
use super::walk::{is_special, order};
use super::{Ask, BATCH_BYTES, Blob, Item, Looks, NetcopyError, Progress, Reply, Special, Step, VERSION, on};
use crate::manifest::Manifest;
use crate::op::FileId;
use crate::volume::Volume;
use crate::volume::attributes::{xattr_of, xattrs_of};
use crate::volume::open::stat_of;
use crate::volume::tree::FileKind;
use tandem_protocol::Position;

/// Chunks of which digests may be on their way: bounds the memory of both sides.
const CHUNKS_ASKED_MAX: u64 = 128 << 10;
/// Chunks in one question.
const CHUNKS_PER_ASK: u64 = 16 << 10;
/// Items in one message, whatever their size.
const ITEMS_MAX: usize = 1024;
/// How many questions go ahead of the reading.
const ASKS_MAX: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Begin,
    List { sent: usize },
    Specials { at: usize },
    Holding,
    Files,
    End,
    Complete,
    Finished,
}

/// A range of chunks that was asked for, and what came.
struct Asked {
    id: FileId,
    first: u64,
    count: u64,
    digests: Vec<Digest>,
    answered: bool,
}

impl Asked {
    fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// The file that is being sent.
struct Current {
    id: FileId,
    file: OwnedFd,
    /// Its size when it was opened; what is added later is in the journal.
    limit: u64,
    offset: u64,
    /// Everything before this offset is known to be content.
    data_until: u64,
    digest: FileDigest,
}

/// Where the questions are ahead of the reading.
#[derive(Default)]
struct Ahead {
    at: usize,
    chunk: u64,
    file: Option<(OwnedFd, u64)>,
}

/// The sending side of one netcopy.
pub struct Source {
    volume: Arc<Volume>,
    position: Position,
    manifest: Manifest,
    files: Vec<(FileId, FileKind)>,
    /// How far the journal is: asked at the end of reading.
    journal_end: Box<dyn Fn() -> u64 + Send>,
    phase: Phase,
    at: usize,
    /// Bit per regular file in the order of copying: the target has content of it.
    holding: Vec<u8>,
    ordinals: HashMap<FileId, usize>,
    ahead: Ahead,
    asked: VecDeque<Asked>,
    current: Option<Current>,
    overall: blake3::Hasher,
    progress: Progress,
    rate: Option<u64>,
    debt: f64,
    last: Option<Instant>,
}

impl Source {
    /// A copy of the volume at the manifest's position. The manifest was made while nothing was performed, and the
    /// journal keeps everything after it until the target says otherwise.
    pub fn new(
        volume: Arc<Volume>,
        manifest: Manifest,
        journal_end: impl Fn() -> u64 + Send + 'static,
    ) -> Result<Source, NetcopyError> {
        let files = order(&manifest.tree()?);
        let progress = Progress { files: files.len() as u64, ..Progress::default() };
        let regular = files.iter().filter(|(_, kind)| *kind == FileKind::File);
        Ok(Source {
            position: manifest.position()?,
            ordinals: regular.enumerate().map(|(ordinal, (id, _))| (*id, ordinal)).collect(),
            volume,
            manifest,
            files,
            journal_end: Box::new(journal_end),
            phase: Phase::Begin,
            at: 0,
            holding: Vec::new(),
            ahead: Ahead::default(),
            asked: VecDeque::new(),
            current: None,
            overall: blake3::Hasher::new(),
            progress,
            rate: None,
            debt: 0.0,
            last: None,
        })
    }

    /// Where the target's journal goes on.
    pub fn position(&self) -> Position {
        self.position
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Looks at every file's size, so that it is known how much there is. Takes a system call for each.
    pub fn measure(&mut self) {
        let regular = self.files.iter().filter(|(_, kind)| *kind == FileKind::File);
        // A file that is gone meanwhile has nothing to copy.
        let sizes = regular.filter_map(|(id, _)| self.volume.attributes(*id).ok()).map(|found| found.size);
        self.progress.bytes = sizes.sum();
    }

    /// Nothing can come before the peer has done something long: arranged its files, or flushed all of them.
    pub fn waits_for_work(&self) -> bool {
        match self.phase {
            Phase::Holding | Phase::Complete => true,
            Phase::Begin
            | Phase::List { .. }
            | Phase::Specials { .. }
            | Phase::Files
            | Phase::End
            | Phase::Finished => false,
        }
    }

    /// At most so many bytes per second from now on; so the application keeps its share of disk and network.
    pub fn limit(&mut self, bytes_per_second: Option<u64>) {
        self.rate = bytes_per_second;
    }

    /// Takes an answer of the target.
    pub fn accept(&mut self, reply: Reply) -> Result<(), NetcopyError> {
        match (reply, self.phase) {
            (Reply::Holding { bits, last }, Phase::Holding) => {
                if self.holding.len() + bits.0.len() > self.ordinals.len().div_ceil(8) {
                    return Err(NetcopyError::Peer("it holds more files than there are"));
                }
                self.holding.extend_from_slice(&bits.0);
                if last {
                    self.phase = Phase::Files;
                }
                Ok(())
            }
            (Reply::Digests { id, digests, last }, Phase::Files | Phase::End | Phase::Complete) => {
                self.take_digests(id, &digests.0, last)
            }
            (Reply::Complete, Phase::Complete) => {
                self.phase = Phase::Finished;
                Ok(())
            }
            (Reply::Holding { .. } | Reply::Digests { .. } | Reply::Complete, _) => {
                Err(NetcopyError::Peer("an answer to nothing that was asked"))
            }
        }
    }

    fn take_digests(&mut self, id: FileId, digests: &[u8], last: bool) -> Result<(), NetcopyError> {
        let asked = self.asked.iter_mut().find(|asked| !asked.answered);
        let asked = asked.filter(|asked| asked.id == id).ok_or(NetcopyError::Peer("digests that nobody asked for"))?;
        let (pieces, rest) = digests.as_chunks::<DIGEST_BYTES>();
        if !rest.is_empty() || (asked.digests.len() + pieces.len()) as u64 > asked.count {
            return Err(NetcopyError::Peer("more digests than were asked for"));
        }
        asked.digests.extend(pieces);
        asked.answered = last;
        Ok(())
    }

    /// What to do next.
    pub fn step(&mut self, now: Instant) -> Result<Step<Vec<Item>>, NetcopyError> {
        if let Some(pause) = self.pause(now) {
            return Ok(Step::Pause(pause));
        }
        let items = match self.phase {
            Phase::Begin => {
                self.phase = Phase::List { sent: 0 };
                let manifest_bytes = self.manifest.bytes().len() as u64;
                vec![Item::Begin { version: VERSION, position: self.position, manifest_bytes }]
            }
            Phase::List { sent } => {
                let end = self.manifest.bytes().len().min(sent + BATCH_BYTES);
                let piece = self.manifest.bytes().get(sent..end).unwrap_or_default().to_vec();
                self.phase = if end == self.manifest.bytes().len() {
                    Phase::Specials { at: 0 }
                } else {
                    Phase::List { sent: end }
                };
                vec![Item::Manifest(Blob(piece))]
            }
            Phase::Specials { at } => self.specials(at),
            Phase::Holding | Phase::Complete => return Ok(Step::Wait),
            Phase::Files => self.files()?,
            Phase::End => self.end(),
            Phase::Finished => return Ok(Step::Finished),
        };
        if items.is_empty() { Ok(Step::Wait) } else { Ok(Step::Send(items)) }
    }

    fn pause(&mut self, now: Instant) -> Option<Duration> {
        let passed = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else {
            self.debt = 0.0;
            return None;
        };
        self.debt = (self.debt - passed.as_secs_f64() * rate as f64).max(0.0);
        // A quarter of a second ahead is allowed, so that the wire never runs dry between two calls.
        let over = self.debt - rate as f64 / 4.0;
        (over > 0.0).then(|| Duration::from_secs_f64((over / rate as f64).clamp(0.001, 1.0)))
    }

    fn specials(&mut self, from: usize) -> Vec<Item> {
        let mut specials = Vec::new();
        let mut bytes = 0;
        let mut at = from;
        while let Some((id, kind)) = self.files.get(at)
            && bytes < BATCH_BYTES
        {
            at += 1;
            if !is_special(*kind) {
                continue;
            }
            // One that is gone by now gets a name from nowhere; the journal takes it away again.
            let Ok(file) = self.volume.open_apart(*id) else { continue };
            if *kind == FileKind::Symlink {
                let Ok(target) = readlinkat(&file, "", Vec::new()) else { continue };
                bytes += target.as_bytes().len() + 16;
                specials.push((*id, Special::Symlink(Blob(target.into_bytes()))));
            } else if let Ok(stat) = stat_of(file.as_fd()) {
                bytes += 32;
                let device = rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
                specials.push((*id, Special::Device(device)));
            }
        }
        let mut items = Vec::new();
        if !specials.is_empty() {
            items.push(Item::Specials(specials));
        }
        if at == self.files.len() {
            items.push(Item::Arrange);
            self.phase = Phase::Holding;
        } else {
            self.phase = Phase::Specials { at };
        }
        items
    }

    fn is_held(&self, id: FileId) -> bool {
        let Some(ordinal) = self.ordinals.get(&id) else { return false };
        self.holding.get(ordinal / 8).is_some_and(|byte| byte >> (ordinal % 8) & 1 == 1)
    }

    fn files(&mut self) -> Result<Vec<Item>, NetcopyError> {
        let mut items = Vec::new();
        self.ask_ahead(&mut items)?;
        let mut bytes = 0;
        while bytes < BATCH_BYTES && items.len() < ITEMS_MAX {
            if let Some(current) = self.current.take() {
                let (sent, goes_on) = self.content(current, &mut items)?;
                bytes += sent;
                match goes_on {
                    Content::Done => {
                        self.at += 1;
                        self.progress.files_done += 1;
                    }
                    Content::More(current) => self.current = Some(current),
                    Content::Unanswered(current) => {
                        self.current = Some(current);
                        break;
                    }
                }
                continue;
            }
            let Some((id, kind)) = self.files.get(self.at).copied() else {
                self.phase = Phase::End;
                break;
            };
            if self.is_held(id) && self.ahead.at <= self.at && self.ahead.file.is_none() {
                self.ask_ahead(&mut items)?;
                if self.ahead.at <= self.at && self.ahead.file.is_none() {
                    // Enough questions are open; they are answered first.
                    break;
                }
            }
            bytes += 64;
            match self.begin_file(id, kind)? {
                None => items.push(Item::Gone(id)),
                Some((looks, current)) => {
                    bytes += looks.xattrs.iter().map(|(name, value)| name.0.len() + value.0.len()).sum::<usize>();
                    items.push(Item::Looks(looks));
                    self.current = current;
                }
            }
            if self.current.is_none() {
                self.at += 1;
                self.progress.files_done += 1;
            }
        }
        self.debt += bytes as f64;
        self.progress.bytes_sent += bytes as u64;
        Ok(if items.is_empty() && self.phase == Phase::End { self.end() } else { items })
    }

    fn end(&mut self) -> Vec<Item> {
        self.phase = Phase::Complete;
        vec![Item::End {
            files: self.files.len() as u64,
            digest: *self.overall.finalize().as_bytes(),
            through: (self.journal_end)().max(self.position.seq),
        }]
    }

    /// Opens a file and tells how it looks; none when it is gone.
    fn begin_file(&self, id: FileId, kind: FileKind) -> Result<Option<(Looks, Option<Current>)>, NetcopyError> {
        let file = match self.volume.open_apart(id) {
            Ok(file) => file,
            // Dropped since the list was made.
            Err(Errno::STALE | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(on("open a file to copy it")(error)),
        };
        let stat = stat_of(file.as_fd()).map_err(on("look at a file to copy it"))?;
        let mut xattrs = Vec::new();
        for name in xattrs_of(file.as_fd(), kind).map_err(on("list a file's attributes"))? {
            match xattr_of(file.as_fd(), kind, &name) {
                Ok(value) => xattrs.push((Blob(name), Blob(value))),
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(on("read a file's attribute")(error)),
            }
        }
        let looks = Looks { id, mode: u32::from(stat.stx_mode) & 0o7777, uid: stat.stx_uid, gid: stat.stx_gid, xattrs };
        let current = (kind == FileKind::File).then(|| Current {
            id,
            file,
            limit: stat.stx_size,
            offset: 0,
            data_until: 0,
            digest: FileDigest::default(),
        });
        Ok(Some((looks, current)))
    }

    /// Sends the next of a file's content: a run of chunks that differ, or a hole.
    fn content(&mut self, mut current: Current, items: &mut Vec<Item>) -> Result<(usize, Content), NetcopyError> {
        let mut run = Vec::new();
        let mut run_offset = current.offset;
        let mut passed = 0;
        // Runs that ended before this one are in the same message.
        let mut sent = 0;
        let goes_on = loop {
            if sent + run.len() >= BATCH_BYTES || passed >= BATCH_BYTES * 16 {
                break Content::More(current);
            }
            if current.offset >= current.data_until && current.offset < current.limit {
                let data = next_data(&current.file, current.offset, current.limit)?;
                if data > current.offset {
                    sent += flush(&mut run, run_offset, items);
                    let length = data - current.offset;
                    items.push(Item::Hole { offset: current.offset, length });
                    current.digest.add_hole(length);
                    self.progress.bytes_done += length;
                    current.offset = data;
                    run_offset = data;
                }
                current.data_until = next_hole(&current.file, current.offset, current.limit)?;
            }
            let chunk = current.offset / CHUNK_BYTES as u64;
            let theirs = match self.theirs(current.id, chunk) {
                Their::Unanswered => break Content::Unanswered(current),
                Their::Nothing => None,
                Their::Digest(digest) => Some(digest),
            };
            let wanted = (current.limit - current.offset).min(CHUNK_BYTES as u64) as usize;
            if run.capacity() == 0 {
                // Grown piece by piece it would be moved as often.
                run.reserve_exact((current.limit - current.offset).min((BATCH_BYTES + CHUNK_BYTES) as u64) as usize);
            }
            let before = run.len();
            let read = read_on(current.file.as_fd(), current.offset, wanted, &mut run)
                .map_err(on("read a file to copy it"))?;
            if read > 0 {
                let ours = digest(run.get(before..).unwrap_or_default());
                current.digest.add(&ours);
                if theirs == Some(ours) {
                    run.truncate(before);
                    sent += flush(&mut run, run_offset, items);
                    run_offset = current.offset + read as u64;
                }
            }
            current.offset += read as u64;
            passed += read;
            self.progress.bytes_done += read as u64;
            if read < CHUNK_BYTES {
                sent += flush(&mut run, run_offset, items);
                let digest = current.digest.finish(current.offset);
                self.overall.update(&digest);
                items.push(Item::Finish { size: current.offset, digest });
                self.asked.retain(|asked| asked.id != current.id || !asked.answered);
                break Content::Done;
            }
        };
        sent += flush(&mut run, run_offset, items);
        Ok((sent.max(64), goes_on))
    }

    /// What the target has of a chunk.
    fn theirs(&mut self, id: FileId, chunk: u64) -> Their {
        while self.asked.front().is_some_and(|asked| asked.id == id && asked.answered && asked.end() <= chunk) {
            self.asked.pop_front();
        }
        if let Some(asked) = self.asked.iter().find(|asked| asked.id == id && asked.end() > chunk) {
            let Some(at) = chunk.checked_sub(asked.first) else { return Their::Nothing };
            return match asked.digests.get(at as usize) {
                Some(digest) => Their::Digest(*digest),
                None if asked.answered => Their::Nothing,
                None => Their::Unanswered,
            };
        }
        let is_being_asked = self.ahead.at == self.at && self.ahead.file.is_some();
        if is_being_asked && chunk >= self.ahead.chunk { Their::Unanswered } else { Their::Nothing }
    }

    /// Asks for the digests of what will be read soon.
    fn ask_ahead(&mut self, items: &mut Vec<Item>) -> Result<(), NetcopyError> {
        let mut chunks: u64 = self.asked.iter().map(|asked| asked.count).sum();
        let mut asks = Vec::new();
        // A file that finished or was gone before all of its digests came.
        while self.asked.front().is_some_and(|asked| asked.answered && self.is_behind(asked.id)) {
            self.asked.pop_front();
        }
        if self.ahead.at < self.at {
            self.ahead = Ahead { at: self.at, ..Ahead::default() };
        }
        while chunks < CHUNKS_ASKED_MAX && self.asked.len() < ASKS_MAX && self.ahead.at < self.files.len() {
            let Some((id, kind)) = self.files.get(self.ahead.at).copied() else { break };
            if kind != FileKind::File || !self.is_held(id) {
                self.ahead = Ahead { at: self.ahead.at + 1, ..Ahead::default() };
                continue;
            }
            if self.ahead.file.is_none() {
                let opened = self.volume.open_apart(id).and_then(|file| Ok((stat_of(file.as_fd())?.stx_size, file)));
                match opened {
                    Ok((size, file)) => self.ahead.file = Some((file, size)),
                    Err(_) => {
                        // Gone, or a trouble that reading it will name.
                        self.ahead = Ahead { at: self.ahead.at + 1, ..Ahead::default() };
                        continue;
                    }
                }
            }
            let Some((file, size)) = &self.ahead.file else { break };
            let data = next_data(file, self.ahead.chunk * CHUNK_BYTES as u64, *size)?;
            if data >= *size {
                self.ahead = Ahead { at: self.ahead.at + 1, ..Ahead::default() };
                continue;
            }
            let first = data / CHUNK_BYTES as u64;
            let end = next_hole(file, data, *size)?.div_ceil(CHUNK_BYTES as u64);
            let count = (end - first).min(CHUNKS_PER_ASK);
            asks.push(Ask { id, first, count: count as u32 });
            self.asked.push_back(Asked { id, first, count, digests: Vec::new(), answered: false });
            self.ahead.chunk = first + count;
            chunks += count;
        }
        if !asks.is_empty() {
            items.push(Item::Compare(asks));
        }
        Ok(())
    }

    fn is_behind(&self, id: FileId) -> bool {
        self.files.get(self.at).is_none_or(|(next, _)| id < *next)
    }
}

enum Their {
    Unanswered,
    Nothing,
    Digest(Digest),
}

enum Content {
    Done,
    More(Current),
    Unanswered(Current),
}

/// Ends a run of content; its length.
fn flush(run: &mut Vec<u8>, offset: u64, items: &mut Vec<Item>) -> usize {
    let length = run.len();
    if length > 0 {
        items.push(Item::Data { offset, data: Blob(std::mem::take(run)) });
    }
    length
}

/// The beginning of the chunk that holds the next content at or after an offset; the limit when there is none.
fn next_data(file: &OwnedFd, offset: u64, limit: u64) -> Result<u64, NetcopyError> {
    if offset >= limit {
        return Ok(limit);
    }
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => {
            let chunk = data / CHUNK_BYTES as u64 * CHUNK_BYTES as u64;
            Ok(chunk.max(offset).min(limit))
        }
        Err(Errno::NXIO) => Ok(limit),
        // A file system that cannot tell: everything is content.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(offset),
        Err(error) => Err(on("look for content")(error)),
    }
}

/// The end of the chunk that holds the end of the content at an offset.
fn next_hole(file: &OwnedFd, offset: u64, limit: u64) -> Result<u64, NetcopyError> {
    if offset >= limit {
        return Ok(limit);
    }
    match seek(file, SeekFrom::Hole(offset)) {
        Ok(hole) => {
            Ok((hole.div_ceil(CHUNK_BYTES as u64).saturating_mul(CHUNK_BYTES as u64)).max(offset + 1).min(limit))
        }
        Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(limit),
        Err(error) => Err(on("look for the end of content")(error)),
    }
}
