//! What a journal's files are worth after a crash: the longest history that holds, and whether it is all that was promised.
//!
//! A crash may leave any part of what was written since the last flush: later entries without earlier ones, half entries,
//! a new segment without its first page. All that is behind the first entry that does not hold, and is cut. But a mark or a
//! segment's first page that says "durable up to n" proves that a flush had covered n: if the history ends before that, the
//! disk lost something, and the journal is not used.
//!
//! Segments that were durable as a whole cannot be torn; of those only the headers and their chain are checked, so that a
//! long journal opens fast. Their contents are verified, as all contents are, when they are read to be used.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tandem_protocol::Position;

use super::entry::{self, Header, Kind, NUMBER_MAX};
use super::segment::{self, Beginning, Place, Room, Segment};
use super::{JournalError, Options, io_error};
use crate::disk;

/// The journal as it holds.
pub(super) struct Found {
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) end: Position,
    pub(super) committed: u64,
    pub(super) torn_bytes: u64,
}

/// The entries of one segment that hold.
struct Walked {
    end: Position,
    offset: usize,
    points: Vec<Place>,
    committed: u64,
    durable: u64,
}

/// Verifies every segment, cuts what does not hold, and leaves everything that is kept durable.
pub(super) fn recover(folder: &Path, options: Options, room: &Room) -> Result<Found, JournalError> {
    let mut segments: Vec<Arc<Segment>> = Vec::new();
    let mut end: Option<Position> = None;
    let mut stopped = false;
    let (mut committed, mut durable, mut torn_bytes) = (0, 0, 0);
    let mut given_up = Vec::new();
    let mut dirty_tail = None;

    let files = look(folder, options)?;
    let by_headers: Vec<Option<Walked>> = files.iter().map(SegmentFile::walk_headers).collect();
    // Only segments that go on from one another vouch for what is before them.
    let goes_on = |(walked, next): &(&Option<Walked>, &SegmentFile)| {
        let next = next.begins.as_ref().map(|(beginning, _)| beginning.previous);
        next.is_some() && next == walked.as_ref().map(|walked| walked.end)
    };
    let linked = by_headers.iter().zip(files.iter().skip(1)).take_while(goes_on).count();
    let vouching = files.iter().take(linked + 1).filter_map(|file| file.begins.as_ref());
    let proven = vouching.map(|(beginning, _)| beginning.durable).max().unwrap_or(0);

    for (at, (SegmentFile { path, file, capacity, begins }, by_headers)) in
        files.into_iter().zip(by_headers).enumerate()
    {
        let Some((beginning, tag)) = begins else {
            // The crash came before the first page reached the disk: nothing in it was ever durable.
            stopped = true;
            given_up.push(path);
            continue;
        };
        let mut bytes = Vec::new();
        let walked = match by_headers.filter(|walked| at < linked && walked.end.seq <= proven) {
            Some(walked) => walked,
            None => {
                bytes.resize(capacity as usize, 0);
                file.read_exact_at(&mut bytes, 0).map_err(io_error("read segment"))?;
                walk(&bytes, &beginning, tag)
            }
        };
        let behind = bytes.get(walked.offset..).unwrap_or_default();
        durable = durable.max(beginning.durable).max(walked.durable).max(marks(behind, tag));
        if stopped || end.is_some_and(|end| end != beginning.previous) {
            stopped = true;
            torn_bytes += walked.offset as u64 - segment::HEADER_BYTES;
            given_up.push(path);
            continue;
        }
        committed = committed.max(beginning.committed).max(walked.committed);
        end = Some(walked.end);
        dirty_tail = behind.iter().rposition(|byte| *byte != 0).map(|last| walked.offset + last + 1);
        torn_bytes += torn(behind, walked.end).unwrap_or(0);
        let offset = walked.offset as u64;
        let segment = Segment::found(file, path, &beginning, tag, capacity, walked.points, offset);
        segments.push(Arc::new(segment));
    }

    let end = end.unwrap_or_default();
    if durable > end.seq {
        let segment = segments.last().map_or_else(|| "none".into(), |segment| segment.path.display().to_string());
        return Err(JournalError::Corrupt { end: end.seq, durable, segment });
    }
    for path in given_up.iter().rev() {
        disk::remove_durably(path).map_err(io_error("remove segment behind the end"))?;
    }
    match segments.last() {
        None => {
            segments.push(room.segment(Beginning { previous: end, pair: options.pair, committed: 0, durable: 0 })?)
        }
        // What was cut must not come back as the continuation of what is written next.
        Some(last) => {
            if let Some(until) = dirty_tail {
                disk::write_zeros(&last.file, last.end_offset(), until as u64).map_err(io_error("cut torn tail"))?;
            }
        }
    }
    // What was read may be in memory only; from here on it counts as durable.
    for segment in &segments {
        disk::sync_journal(&segment.file).map_err(io_error("sync segment"))?;
    }
    disk::sync_folder(folder).map_err(io_error("sync journal folder"))?;
    Ok(Found { segments, end, committed, torn_bytes })
}

/// A file of the journal and what its first page says.
struct SegmentFile {
    path: PathBuf,
    file: File,
    capacity: u64,
    begins: Option<(Beginning, u64)>,
}

impl SegmentFile {
    /// Follows the entries by their headers and chain alone.
    fn walk_headers(&self) -> Option<Walked> {
        let (beginning, tag) = self.begins.as_ref()?;
        let mut walked = Walked::at_the_start_of(beginning);
        let mut bytes = [0; entry::HEADER_BYTES];
        while self.file.read_exact_at(&mut bytes, walked.offset as u64).is_ok() {
            let Ok(header) = Header::parse(&bytes) else { break };
            if walked.offset as u64 + header.size() as u64 > self.capacity || !walked.pass(&header, *tag) {
                break;
            }
        }
        Some(walked)
    }
}

/// Every segment of the folder, in order.
fn look(folder: &Path, options: Options) -> Result<Vec<SegmentFile>, JournalError> {
    let mut files = Vec::new();
    for (first, path) in list(folder).map_err(io_error("list journal"))? {
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io_error("open segment"))?;
        let capacity = file.metadata().map_err(io_error("look at segment"))?.len();
        let mut page = vec![0; segment::HEADER_BYTES.min(capacity) as usize];
        file.read_exact_at(&mut page, 0).map_err(io_error("read segment"))?;
        let in_range = |at: Position| at.seq < NUMBER_MAX && at.epoch <= NUMBER_MAX;
        let begins = segment::read_page(&page)?
            .filter(|(beginning, _)| in_range(beginning.previous) && beginning.previous.seq + 1 == first);
        if begins.as_ref().is_some_and(|(beginning, _)| beginning.pair != options.pair) {
            return Err(JournalError::Foreign(path.display().to_string()));
        }
        files.push(SegmentFile { path, file, capacity, begins });
    }
    Ok(files)
}

fn list(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder)? {
        let file = file?;
        if let Some(first) = segment::first_of(&file.file_name().to_string_lossy()) {
            found.push((first, file.path()));
        }
    }
    found.sort();
    Ok(found)
}

impl Walked {
    fn at_the_start_of(beginning: &Beginning) -> Walked {
        Walked {
            end: beginning.previous,
            offset: segment::HEADER_BYTES as usize,
            points: vec![Place { offset: segment::HEADER_BYTES, before: beginning.previous }],
            committed: 0,
            durable: 0,
        }
    }

    /// Goes past an entry if it belongs here.
    fn pass(&mut self, header: &Header, tag: u64) -> bool {
        match header.kind {
            Kind::Mark => {
                if header.chain != tag || header.seq != self.end.seq {
                    return false;
                }
                self.committed = self.committed.max(header.epoch);
                self.durable = self.durable.max(header.digest);
            }
            Kind::Record => {
                if header.check_follows(self.end).is_err() {
                    return false;
                }
                let offset = self.offset as u64;
                if self.points.last().is_none_or(|last| offset - last.offset >= segment::POINT_BYTES) {
                    self.points.push(Place { offset, before: self.end });
                }
                self.end = header.position();
            }
        }
        self.offset += header.size();
        true
    }
}

/// Follows the entries of a segment as far as they hold.
fn walk(bytes: &[u8], beginning: &Beginning, tag: u64) -> Walked {
    let mut walked = Walked::at_the_start_of(beginning);
    while let Some(rest) = bytes.get(walked.offset..) {
        let Ok(header) = Header::parse(rest) else { break };
        let whole = header.kind == Kind::Mark || entry::first_record(rest).is_ok();
        if !whole || !walked.pass(&header, tag) {
            break;
        }
    }
    walked
}

/// The highest "durable up to" that marks behind the end give proof of.
fn marks(bytes: &[u8], tag: u64) -> u64 {
    let starts = (0..bytes.len().saturating_sub(entry::HEADER_BYTES - 1)).step_by(8);
    starts
        .filter(|at| bytes[at + 8..at + 16] == tag.to_le_bytes())
        .filter_map(|at| Header::parse(&bytes[at..]).ok())
        .filter(|header| header.kind == Kind::Mark && header.chain == tag)
        .map(|header| header.digest)
        .max()
        .unwrap_or(0)
}

/// Bytes of a broken entry at the end; nothing where the end is clean or only an earlier use of the file follows.
fn torn(bytes: &[u8], end: Position) -> Option<u64> {
    let first = bytes.get(..entry::HEADER_BYTES)?;
    match Header::parse(first) {
        Ok(header) if header.seq <= end.seq => None,
        Ok(header) => Some(header.size().min(bytes.len()) as u64),
        Err(_) if first.iter().all(|byte| *byte == 0) => None,
        Err(_) => Some(entry::HEADER_BYTES as u64),
    }
}
