//! One file of the journal, and the room kept ready for the next one.
//!
//! A segment begins with a page that says whose it is and which position it follows; entries come after it. Files that are
//! no longer needed are kept under another name and used again: their blocks are already written, so a sync of new records
//! has nothing to log but the data. What such a file still holds from its earlier use cannot be taken for new records,
//! because neither sequence number nor chain fit; its old marks carry the tag of the earlier use.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tandem_protocol::Position;

use super::entry::{self, Broken, Header, Kind};
use super::{JournalError, ReadError, io_error};
use crate::crew::{self, Bell, Hired, Turn};
use crate::{chance, disk};

/// Bytes before the first entry.
pub(super) const HEADER_BYTES: u64 = 4096;
const MAGIC: &[u8; 8] = b"TANDEMJN";
const VERSION: u32 = 1;
/// Every so many bytes a segment remembers a place, so that a read need not begin at its start.
pub(super) const POINT_BYTES: u64 = 16 << 10;
/// A segment that was synced so often belongs to somebody who waits for syncs: the next one is worth its zeros.
pub(super) const SYNCED_OFTEN: u32 = 16;
/// Prepared files that are kept; more are given back to the volume.
const PREPARED_MAX: usize = 4;
/// With room for fewer segments the volume is nearly full: files are kept and made only for what comes next.
const PLENTY: u64 = 8;
/// After a file could not be prepared nobody asks for another one for so long: on a full volume every append would.
const PAUSE: Duration = Duration::from_secs(1);

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    pub(super) previous: Position,
    pub(super) pair: [u8; 16],
    pub(super) committed: u64,
    pub(super) durable: u64,
}

/// A place between two records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) before: Position,
}

/// One file of the journal.
pub(super) struct Segment {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) previous: Position,
    pub(super) tag: u64,
    pub(super) capacity: u64,
    /// Its blocks have been written before, so that a sync has nothing to log but data.
    is_written: bool,
    /// Its name is not yet synced.
    unnamed: AtomicBool,
    syncs: AtomicU32,
    extent: Mutex<Extent>,
}

struct Extent {
    end: u64,
    points: Vec<Place>,
}

impl Segment {
    /// A segment as recovery found it. Most have been used before, or were made for somebody who waits for syncs.
    pub(super) fn found(
        file: File,
        path: PathBuf,
        beginning: &Beginning,
        tag: u64,
        capacity: u64,
        points: Vec<Place>,
        end: u64,
    ) -> Segment {
        Segment {
            file,
            path,
            previous: beginning.previous,
            tag,
            capacity,
            is_written: true,
            unnamed: AtomicBool::new(false),
            syncs: AtomicU32::new(0),
            extent: Mutex::new(Extent { end, points }),
        }
    }

    pub(super) fn end_offset(&self) -> u64 {
        self.extent.lock().end
    }

    /// Lets readers go up to `end`; `record` is where the newest record begins and what it follows.
    pub(super) fn publish(&self, record: Option<(u64, Position)>, end: u64) {
        let mut extent = self.extent.lock();
        if let Some((offset, before)) = record
            && extent.points.last().is_none_or(|last| offset - last.offset >= POINT_BYTES)
        {
            extent.points.push(Place { offset, before });
        }
        extent.end = end;
    }

    /// The nearest remembered place at or before record `from`.
    pub(super) fn nearest(&self, from: u64) -> Place {
        let extent = self.extent.lock();
        let after = extent.points.partition_point(|point| point.before.seq < from);
        let start = Place { offset: HEADER_BYTES, before: self.previous };
        after.checked_sub(1).and_then(|at| extent.points.get(at)).copied().unwrap_or(start)
    }

    /// Exactly the place where record `from` begins, walking from `near`.
    pub(super) fn seek(&self, near: Place, from: u64) -> Result<Place, ReadError> {
        let (mut place, limit) = (near, self.end_offset());
        let mut bytes = [0; entry::HEADER_BYTES];
        while place.before.seq + 1 < from {
            if place.offset >= limit {
                return Err(Broken::Sequence { expected: from, got: place.before.seq }.into());
            }
            self.file.read_exact_at(&mut bytes, place.offset)?;
            let header = Header::parse(&bytes)?;
            if header.kind == Kind::Record {
                place.before = header.position();
            }
            place.offset += header.size() as u64;
        }
        Ok(place)
    }

    /// About the bytes of the records after `from` up to `to` in this segment, rounded up to remembered places.
    pub(super) fn span(&self, from: u64, to: u64) -> u64 {
        let begin = self.nearest(from + 1).offset;
        let extent = self.extent.lock();
        let after = extent.points.partition_point(|point| point.before.seq < to);
        let end = extent.points.get(after).map_or(extent.end, |point| point.offset);
        end.saturating_sub(begin)
    }

    /// Forgets what lay behind `offset`.
    pub(super) fn cut(&self, offset: u64) {
        let mut extent = self.extent.lock();
        extent.points.retain(|point| point.offset <= offset);
        extent.end = offset;
    }

    /// Makes its records durable; says whether its name has to be synced too, once.
    pub(super) fn sync(&self) -> io::Result<bool> {
        disk::sync_journal(&self.file)?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(self.unnamed.swap(false, Ordering::AcqRel))
    }

    /// Whether somebody waits for what is written to it, again and again.
    pub(super) fn is_synced_often(&self) -> bool {
        self.syncs.load(Ordering::Relaxed) >= SYNCED_OFTEN
    }

    /// Whether somebody waits longer than with another segment: each of his syncs logs the conversion of blocks, too.
    pub(super) fn is_slow(&self) -> bool {
        !self.is_written && self.is_synced_often()
    }

    /// Whether hardly a block of it was left out.
    fn is_used_up(&self) -> bool {
        self.is_written || self.end_offset() >= self.capacity - self.capacity / 16
    }
}

/// The name of the segment whose first record is `first`.
fn name(first: u64) -> String {
    format!("{first:020}.seg")
}

/// The first record that a file name promises.
pub(super) fn first_of(name: &str) -> Option<u64> {
    name.strip_suffix(".seg").filter(|digits| digits.len() == 20)?.parse().ok()
}

fn page(beginning: &Beginning, tag: u64) -> Vec<u8> {
    let mut page = vec![0; HEADER_BYTES as usize];
    page[0..8].copy_from_slice(MAGIC);
    page[8..12].copy_from_slice(&VERSION.to_le_bytes());
    page[16..32].copy_from_slice(&beginning.pair);
    let numbers = [
        beginning.previous.epoch,
        beginning.previous.seq,
        beginning.previous.chain,
        beginning.committed,
        beginning.durable,
        tag,
    ];
    for (at, number) in numbers.iter().enumerate() {
        page[32 + at * 8..40 + at * 8].copy_from_slice(&number.to_le_bytes());
    }
    let crc = crc32c::crc32c(&page[16..]);
    page[12..16].copy_from_slice(&crc.to_le_bytes());
    page
}

/// What a file says about itself; nothing if its first page was never written whole.
pub(super) fn read_page(page: &[u8]) -> Result<Option<(Beginning, u64)>, JournalError> {
    let Some(page) = page.get(..HEADER_BYTES as usize).filter(|page| page.starts_with(MAGIC)) else { return Ok(None) };
    let small = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    let number = |at: usize| u64::from(small(32 + at * 8)) | u64::from(small(36 + at * 8)) << 32;
    if crc32c::crc32c(&page[16..]) != small(12) {
        return Ok(None);
    }
    if small(8) != VERSION {
        return Err(JournalError::Version(small(8)));
    }
    let mut pair = [0; 16];
    pair.copy_from_slice(&page[16..32]);
    let previous = Position { epoch: number(0), seq: number(1), chain: number(2) };
    Ok(Some((Beginning { previous, pair, committed: number(3), durable: number(4) }, number(5))))
}

/// A number that no earlier use of a file had.
fn fresh_tag() -> u64 {
    chance::number() as u64
}

/// Files kept ready for the next segments, and the worker that prepares them.
pub(super) struct Room {
    folder: PathBuf,
    bytes: u64,
    shared: Arc<Prepared>,
    bell: Bell,
    worker: Hired,
}

/// When a journal is gone nothing of it works on in its folder: the next one there names its files alike, and would find a
/// file of zeros in the place of the one that it writes to.
impl Drop for Room {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.bell.ring();
        self.worker.wait();
    }
}

/// A file that waits for its use.
struct Ready {
    path: PathBuf,
    /// Its blocks have been written before.
    is_written: bool,
}

struct Prepared {
    ready: Mutex<Vec<Ready>>,
    /// How many they are, for those who must not wait for a disk: they are renamed and removed under the lock.
    count: AtomicU64,
    asked: AtomicBool,
    /// With zeros, not only with room.
    zeros: AtomicBool,
    /// When last looked at, the volume had so much room that one file more does not matter.
    plenty: AtomicBool,
    /// Nobody needs room any more.
    ended: AtomicBool,
    names: AtomicU64,
}

/// Nothing is broken: when there is room again, it works.
pub(super) fn is_want_of_room(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

impl Room {
    /// Takes over the prepared files that lie in `folder`.
    pub(super) fn open(folder: &Path, bytes: u64) -> Result<Room, JournalError> {
        let mut ready = Vec::new();
        let mut names = 0;
        for file in std::fs::read_dir(folder).map_err(io_error("list journal"))? {
            let file = file.map_err(io_error("list journal"))?;
            let name = file.file_name().to_string_lossy().into_owned();
            let Some(number) = name.strip_prefix("spare-") else { continue };
            let whole = file.metadata().map_err(io_error("look at prepared segment"))?.len() == bytes;
            match number.parse::<u64>() {
                Ok(number) if whole && ready.len() < PREPARED_MAX => {
                    names = names.max(number + 1);
                    ready.push(Ready { path: file.path(), is_written: true });
                }
                // Half prepared, of another size, or one too many.
                Ok(_) | Err(_) => std::fs::remove_file(file.path()).map_err(io_error("remove prepared segment"))?,
            }
        }
        let shared = Arc::new(Prepared {
            count: AtomicU64::new(ready.len() as u64),
            ready: Mutex::new(ready),
            asked: AtomicBool::new(false),
            zeros: AtomicBool::new(false),
            plenty: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            names: AtomicU64::new(names),
        });
        shared.look(folder, bytes).map_err(io_error("look at the volume's room"))?;
        let bell = Bell::default();
        let (worker, place) = (shared.clone(), folder.to_path_buf());
        let prepare = move |is_pause_over: bool| {
            if worker.ended.load(Ordering::Acquire) {
                return Turn::Done;
            }
            if worker.asked.load(Ordering::Acquire)
                && !is_pause_over
                && let Err(error) = worker.prepare(&place, bytes)
            {
                // Not final: the append that needs the room tries again and reports it.
                tracing::warn!(%error, "prepare journal segment");
                return Turn::Wait(Some(PAUSE));
            }
            worker.asked.store(false, Ordering::Release);
            Turn::Wait(None)
        };
        let worker = crew::hire("journal-room", &bell, prepare).map_err(io_error("start the journal's worker"))?;
        Ok(Room { folder: folder.to_path_buf(), bytes, shared, bell, worker })
    }

    /// How many files are ready.
    pub(super) fn prepared(&self) -> u64 {
        self.shared.count.load(Ordering::Acquire)
    }

    /// Whether a file is ready whose blocks have been written before.
    pub(super) fn has_written(&self) -> bool {
        self.shared.is_ready(true)
    }

    /// Whether the volume has so much room that a segment may be left for a better one.
    pub(super) fn has_plenty(&self) -> bool {
        self.shared.plenty.load(Ordering::Acquire)
    }

    /// Sees to it, without waiting, that a file is ready soon. Zeros are for those who wait for syncs: for a stream they are as
    /// much to write again as the stream itself (2.5 GiB on a Durable pair: 370 to 440 MiB/s).
    pub(super) fn prepare_one(&self, zeros: bool) {
        if !self.shared.is_ready(zeros && self.has_plenty()) && !self.shared.asked.swap(true, Ordering::AcqRel) {
            self.shared.zeros.store(zeros, Ordering::Release);
            // If the worker died, `segment` makes the room itself.
            self.bell.ring();
        }
    }

    /// A segment that begins as told, in a prepared file if one is ready. Nothing is left behind when there is no room.
    pub(super) fn segment(&self, beginning: Beginning) -> Result<Arc<Segment>, JournalError> {
        let full = |source: io::Error| match source {
            source if is_want_of_room(&source) => JournalError::Full(source),
            source => JournalError::Io { step: "prepare journal segment", source },
        };
        let Ready { path: prepared, is_written } = match self.shared.take() {
            Some(ready) => ready,
            // Faster than the preparing worker: room without zeros will do, for its syncs are slower but nobody waits now.
            None => {
                let path = self.shared.name(&self.folder);
                disk::create_with_room(&path, self.bytes).map_err(full)?;
                Ready { path, is_written: false }
            }
        };
        let file =
            OpenOptions::new().read(true).write(true).open(&prepared).map_err(io_error("open prepared segment"))?;
        let tag = fresh_tag();
        disk::write_entry(&file, 0, &[&page(&beginning, tag)]).map_err(io_error("begin segment"))?;
        let path = self.folder.join(name(beginning.previous.seq + 1));
        disk::name_segment(&prepared, &path).map_err(io_error("name segment"))?;
        let start = Place { offset: HEADER_BYTES, before: beginning.previous };
        let mut segment = Segment::found(file, path, &beginning, tag, self.bytes, vec![start], HEADER_BYTES);
        segment.is_written = is_written;
        segment.unnamed.store(true, Ordering::Release);
        Ok(Arc::new(segment))
    }

    /// Looks how much room the volume has. Returns how many prepared files are kept: on one that is nearly full a single one.
    /// One stays: on a full volume what removes something must find a place in the journal, too.
    pub(super) fn look(&self) -> io::Result<usize> {
        self.shared.look(&self.folder, self.bytes)
    }

    /// Puts a segment's file among the prepared ones, unless there are enough, or somebody still reads it. One that is no better
    /// than a new one is kept where there is none: on a volume that fills up meanwhile it is the only room that is left.
    pub(super) fn recycle(&self, segment: Arc<Segment>, most: usize) -> io::Result<()> {
        let mut ready = self.shared.ready.lock();
        let is_written = segment.is_used_up();
        let is_of_use = Arc::strong_count(&segment) == 1 && segment.capacity == self.bytes;
        if ready.len() >= most || !is_of_use || !(is_written || ready.is_empty()) {
            return std::fs::remove_file(&segment.path);
        }
        let path = self.shared.name(&self.folder);
        disk::name_segment(&segment.path, &path)?;
        ready.push(Ready { path, is_written });
        self.shared.counted(&ready);
        Ok(())
    }

    /// As when nothing had been prepared. Waits for what is being prepared.
    #[cfg(test)]
    pub(super) fn forget_prepared(&self) {
        while self.shared.asked.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        self.give_back(0).unwrap();
    }

    /// Gives back what is prepared beyond so many.
    pub(super) fn give_back(&self, most: usize) -> io::Result<()> {
        let mut ready = self.shared.ready.lock();
        while ready.len() > most {
            let worst = ready.iter().position(|ready| !ready.is_written).unwrap_or(0);
            let removed = ready.swap_remove(worst);
            self.shared.counted(&ready);
            std::fs::remove_file(&removed.path)?;
        }
        Ok(())
    }
}

impl Prepared {
    fn name(&self, folder: &Path) -> PathBuf {
        folder.join(format!("spare-{}", self.names.fetch_add(1, Ordering::Relaxed)))
    }

    /// Looks how much room the volume has. Returns how many files are kept.
    fn look(&self, folder: &Path, bytes: u64) -> io::Result<usize> {
        let plenty = disk::available_bytes(folder)? >= PLENTY * bytes;
        self.plenty.store(plenty, Ordering::Release);
        Ok(if plenty { PREPARED_MAX } else { 1 })
    }

    /// Whether there is a file ready, or, if that is wanted, one whose blocks have been written.
    fn is_ready(&self, written: bool) -> bool {
        self.ready.lock().iter().any(|ready| ready.is_written || !written)
    }

    /// The best of what is ready.
    fn take(&self) -> Option<Ready> {
        let mut ready = self.ready.lock();
        let best = ready.iter().rposition(|ready| ready.is_written).or(ready.len().checked_sub(1))?;
        let taken = ready.swap_remove(best);
        self.counted(&ready);
        Some(taken)
    }

    /// Makes a file ready if none is.
    fn prepare(&self, folder: &Path, bytes: u64) -> io::Result<()> {
        let zeros = self.zeros.load(Ordering::Acquire);
        if self.is_ready(zeros && self.look(folder, bytes)? > 1) {
            return Ok(());
        }
        let path = self.name(folder);
        let half = path.with_extension("half");
        if zeros {
            disk::create_with_zeros(&half, bytes)?;
        } else {
            disk::create_with_room(&half, bytes)?;
        }
        disk::name_segment(&half, &path)?;
        let mut ready = self.ready.lock();
        ready.push(Ready { path, is_written: zeros });
        self.counted(&ready);
        Ok(())
    }

    fn counted(&self, ready: &[Ready]) {
        self.count.store(ready.len() as u64, Ordering::Release);
    }
}

/// A segment that only holds a saved tail: as long as its records, never written again.
pub(super) struct Saved {
    file: File,
    folder: PathBuf,
    end: u64,
}

impl Saved {
    pub(super) fn create(folder: &Path, previous: Position, pair: [u8; 16]) -> io::Result<Saved> {
        let path = folder.join(name(previous.seq + 1));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        let beginning = Beginning { previous, pair, committed: 0, durable: 0 };
        disk::write_entry(&file, 0, &[&page(&beginning, fresh_tag())])?;
        Ok(Saved { file, folder: folder.to_path_buf(), end: HEADER_BYTES })
    }

    pub(super) fn write(&mut self, records: &[u8]) -> io::Result<()> {
        disk::write_entry(&self.file, self.end, &[records])?;
        self.end += records.len() as u64;
        Ok(())
    }

    pub(super) fn finish(self) -> io::Result<()> {
        disk::sync_file(&self.file)?;
        disk::sync_folder(&self.folder)
    }
}
