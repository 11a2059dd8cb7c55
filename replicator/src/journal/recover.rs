//! What a journal's files are worth after a crash: the longest history that holds, and whether it is all that was promised.
//!
//! A crash may leave any part of what was written since the last flush: later entries without earlier ones, half entries,
//! a new segment without its first page. All that is behind the first entry that does not hold, and is cut. But a mark or a
//! segment's first page that says "durable up to n" proves that a flush had covered n: if the history ends before that, the
//! disk lost something, and the journal is not used.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tandem_protocol::Position;

use super::entry::{self, Header, Kind};
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

    for (first, path) in list(folder)? {
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io_error("open segment"))?;
        let mut bytes = vec![0; file.metadata().map_err(io_error("look at segment"))?.len() as usize];
        file.read_exact_at(&mut bytes, 0).map_err(io_error("read segment"))?;
        let Some((beginning, tag)) =
            segment::read_page(&bytes)?.filter(|(beginning, _)| beginning.previous.seq + 1 == first)
        else {
            // The crash came before the first page reached the disk: nothing in it was ever durable.
            stopped = true;
            given_up.push(path);
            continue;
        };
        if beginning.pair != options.pair {
            return Err(JournalError::Foreign(path.display().to_string()));
        }
        let walked = walk(&bytes, &beginning, tag);
        durable = durable.max(beginning.durable).max(walked.durable).max(marks(&bytes[walked.offset..], tag));
        if stopped || end.is_some_and(|end| end != beginning.previous) {
            stopped = true;
            torn_bytes += walked.offset as u64 - segment::HEADER_BYTES;
            given_up.push(path);
            continue;
        }
        committed = committed.max(beginning.committed).max(walked.committed);
        end = Some(walked.end);
        dirty_tail = bytes[walked.offset..].iter().rposition(|byte| *byte != 0).map(|last| walked.offset + last + 1);
        let (capacity, offset) = (bytes.len() as u64, walked.offset as u64);
        let segment = Segment::found(file, path, &beginning, tag, capacity, walked.points, offset);
        segments.push(Arc::new(segment));
        if let Some(torn) = torn(&bytes[walked.offset..], walked.end) {
            torn_bytes += torn;
        }
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

fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, JournalError> {
    let list = || -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for file in std::fs::read_dir(folder)? {
            let file = file?;
            if let Some(first) = segment::first_of(&file.file_name().to_string_lossy()) {
                found.push((first, file.path()));
            }
        }
        found.sort();
        Ok(found)
    };
    list().map_err(io_error("list journal"))
}

/// Follows the entries of a segment as far as they hold.
fn walk(bytes: &[u8], beginning: &Beginning, tag: u64) -> Walked {
    let mut walked = Walked {
        end: beginning.previous,
        offset: segment::HEADER_BYTES as usize,
        points: vec![Place { offset: segment::HEADER_BYTES, before: beginning.previous }],
        committed: 0,
        durable: 0,
    };
    while let Ok(header) = Header::parse(&bytes[walked.offset..]) {
        match header.kind {
            Kind::Mark => {
                if header.chain != tag || header.seq != walked.end.seq {
                    break;
                }
                walked.committed = walked.committed.max(header.epoch);
                walked.durable = walked.durable.max(header.digest);
            }
            Kind::Record => {
                let Ok((_, record)) = entry::first_record(&bytes[walked.offset..]) else { break };
                if header.check_follows(walked.end).is_err() {
                    break;
                }
                let offset = walked.offset as u64;
                if walked.points.last().is_none_or(|last| offset - last.offset >= segment::POINT_BYTES) {
                    walked.points.push(Place { offset, before: walked.end });
                }
                walked.end = record.position;
            }
        }
        walked.offset += header.size();
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
