//! The redo log of a member: append, sync, read from a position, forget.
//!
//! One history of records without holes, in segments of fixed size. `append` puts a record into the page cache with one
//! system call: from then on it survives the death of this process. `sync` makes everything appended so far survive the
//! death of the machine, with one flush for all who wait. A flush that failed is never tried again: what the kernel still
//! holds in memory after a failed write says nothing about the disk, so the journal refuses everything from then on.
//!
//! Readers never stop the writer: they read what was published, through the page cache.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};
use tandem_protocol::Position;
use tokio::sync::watch;

use crate::disk;
use crate::op::codec::{self, CodecError};
use crate::op::{Op, Stamp};

pub mod entry;
mod recover;
pub mod retention;
mod segment;

pub use entry::{Broken, Record, Records, records, records_after};

use entry::{HEADER_BYTES, Header, NUMBER_MAX};
use segment::{Place, Room, Segment};

/// How a journal is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Size of each segment; also the bound of one record.
    pub segment_bytes: u64,
    /// Identity of the pair: a journal of another pair is refused.
    pub pair: [u8; 16],
}

impl Options {
    /// The usual layout for a pair.
    pub fn new(pair: [u8; 16]) -> Options {
        Options { segment_bytes: 32 << 20, pair }
    }
}

/// What was found when a journal was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The last record that holds.
    pub end: Position,
    /// The highest sequence number that this member knew as committed; records up to it may have been applied.
    pub committed_mark: u64,
    /// Bytes of records after the end that did not hold and were cut: writes that a crash interrupted.
    pub torn_bytes: u64,
}

/// Why the journal could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// No room. Nothing that counts was written; the same append may succeed later.
    #[error("journal has no room")]
    Full(#[source] io::Error),
    /// An earlier write or flush failed; this process must not use the journal any more.
    #[error("journal is unusable after a failure: {0}")]
    Poisoned(String),
    /// A record that this member said was durable is gone.
    #[error("journal holds records up to {end}, but {durable} was durable ({segment})")]
    Corrupt {
        /// The last record that holds.
        end: u64,
        /// What had been durable.
        durable: u64,
        /// Where the hole is.
        segment: String,
    },
    /// The folder holds another pair's journal.
    #[error("journal belongs to another pair ({0})")]
    Foreign(String),
    /// The folder holds a journal of a version this program cannot read.
    #[error("journal has unknown version {0}")]
    Version(u32),
    /// Records from a peer that do not go on where this journal ends, or do not hold.
    #[error("records do not continue the journal: {0}")]
    Broken(#[from] Broken),
    /// An operation outside its limits.
    #[error("{0}")]
    Codec(#[from] CodecError),
    /// A record longer than a segment.
    #[error("record of {0} bytes is longer than a segment")]
    TooLong(usize),
    /// An epoch below the one of the last record.
    #[error("epoch {got} after epoch {last}")]
    EpochBack {
        /// Epoch of the last record.
        last: u64,
        /// Epoch that was asked for.
        got: u64,
    },
    /// The position asked for lies outside the journal.
    #[error("journal holds {first} to {end}, not {seq}")]
    Outside {
        /// What was asked for.
        seq: u64,
        /// The first record held.
        first: u64,
        /// The last record held.
        end: u64,
    },
    /// A step on files failed.
    #[error("{step}: {source}")]
    Io {
        /// What was being attempted.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why records could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The journal begins later: whoever needs this record needs more than the journal.
    #[error("journal begins at {first}")]
    Trimmed {
        /// The first record held.
        first: u64,
    },
    /// What was read does not hold.
    #[error("journal damaged: {0}")]
    Broken(#[from] Broken),
    /// The file could not be read.
    #[error("read journal: {0}")]
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        // The disk answers: the file is shorter than what was written to it.
        if error.kind() == io::ErrorKind::UnexpectedEof { Broken::Short.into() } else { Self::Io(error) }
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => error,
            other @ (ReadError::Trimmed { .. } | ReadError::Broken(_)) => Self::other(other),
        }
    }
}

/// What one read gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Where the history stands before the first record read.
    pub before: Position,
    /// ... and with the last one; equals `before` when nothing was there to read.
    pub last: Position,
    /// How many records.
    pub count: u64,
}

/// The journal of a member. Shared by reference; every call may come from any thread.
pub struct Journal {
    folder: PathBuf,
    options: Options,
    writer: Mutex<Writer>,
    segments: RwLock<Vec<Arc<Segment>>>,
    end: RwLock<Position>,
    flush: Mutex<Flush>,
    flushed: Condvar,
    appended: watch::Sender<u64>,
    room: Room,
    /// What the next checkpoint will make needless: records below this one.
    foreseen: AtomicU64,
    /// Where readers stopped, by the segment's tag.
    hints: Mutex<[(u64, Place); 4]>,
}

/// What only one thread at a time may move.
struct Writer {
    current: Arc<Segment>,
    /// Where the next entry goes in `current`.
    offset: u64,
    end: Position,
    committed: u64,
    /// Entries written since the journal was opened, marks included: what a flush must cover.
    written: u64,
    /// Segments with entries that no flush has covered, oldest first.
    unflushed: Vec<Arc<Segment>>,
}

struct Flush {
    running: bool,
    /// Entries covered by a flush.
    covered: u64,
    durable: u64,
    failed: Option<String>,
}

impl Journal {
    /// Opens the journal in `folder`, or founds one: verifies every record, cuts a torn tail, and makes what is left durable.
    pub fn open(folder: &Path, options: Options) -> Result<(Journal, Recovered), JournalError> {
        disk::create_folder(folder).map_err(io_error("create journal folder"))?;
        disk::write_in_place(folder).map_err(io_error("prepare journal folder"))?;
        let room = Room::open(folder, options.segment_bytes)?;
        let found = recover::recover(folder, options, &room)?;
        let recovered = Recovered {
            end: found.end,
            committed_mark: found.committed.min(found.end.seq),
            torn_bytes: found.torn_bytes,
        };
        let Some(current) = found.segments.last().cloned() else {
            return Err(JournalError::Corrupt { end: 0, durable: 0, segment: "none".into() });
        };
        let journal = Journal {
            folder: folder.to_path_buf(),
            options,
            writer: Mutex::new(Writer {
                offset: current.end_offset(),
                current,
                end: found.end,
                committed: recovered.committed_mark,
                written: 0,
                unflushed: Vec::new(),
            }),
            segments: RwLock::new(found.segments),
            end: RwLock::new(found.end),
            flush: Mutex::new(Flush { running: false, covered: 0, durable: found.end.seq, failed: None }),
            flushed: Condvar::new(),
            appended: watch::Sender::new(found.end.seq),
            room,
            foreseen: AtomicU64::new(0),
            hints: Mutex::default(),
        };
        Ok((journal, recovered))
    }

    /// The master's way in: one more operation. It is in the page cache when this returns, and not yet durable.
    pub fn append(&self, epoch: u64, stamp: Stamp, op: &Op<'_>) -> Result<Position, JournalError> {
        let encoded = codec::encode(op)?;
        let (head, payload) = (encoded.head(), encoded.payload);
        let digest = entry::digest(head, payload);
        let length = head.len() + payload.len();
        let mut writer = self.writer.lock();
        self.check_usable()?;
        if epoch < writer.end.epoch {
            return Err(JournalError::EpochBack { last: writer.end.epoch, got: epoch });
        }
        if writer.end.seq >= NUMBER_MAX || epoch > NUMBER_MAX {
            return Err(CodecError::Number.into());
        }
        self.make_room(&mut writer, entry::size(length))?;
        let header = Header::following(writer.end, epoch, stamp, head.len(), length, digest);
        let padding = &[0; 8][..header.size() - HEADER_BYTES - length];
        self.write(&mut writer, &[&header.bytes(), head, payload, padding])?;
        let before = writer.end;
        #[cfg(test)]
        crate::simulated::journaled(before, header.position(), stamp, op);
        self.publish(&mut writer, before, header.position(), header.size() as u64);
        Ok(header.position())
    }

    /// The replicant's way in: records as another journal holds them. Each is verified, down to the operation, and must go on
    /// exactly here; if one does not, none of them is written.
    pub fn append_raw(&self, records: &[u8]) -> Result<Position, JournalError> {
        let mut writer = self.writer.lock();
        self.check_usable()?;
        for record in records_after(writer.end, records) {
            record?.op()?;
        }
        let mut rest = records;
        while !rest.is_empty() {
            let first = Header::parse(rest)?.size();
            self.make_room(&mut writer, first)?;
            // As many whole records as the segment takes, in one write.
            let room = (writer.current.capacity - writer.offset) as usize;
            let mut run = 0;
            while let Some(next) = rest.get(run..).filter(|next| !next.is_empty()) {
                let size = Header::parse(next)?.size();
                if run + size > room {
                    break;
                }
                run += size;
            }
            let (now, later) = rest.split_at(run);
            self.write(&mut writer, &[now])?;
            let mut at = 0;
            while at < now.len() {
                let header = Header::parse(&now[at..])?;
                let before = writer.end;
                #[cfg(test)]
                for record in records_after(before, &now[at..at + header.size()]) {
                    let record = record?;
                    crate::simulated::journaled(before, record.position, record.stamp, &record.op()?);
                }
                self.publish(&mut writer, before, header.position(), header.size() as u64);
                at += header.size();
            }
            rest = later;
        }
        Ok(writer.end)
    }

    /// Notes that everything up to `seq` is committed. The note is durable with the next sync, and only then may a replicant
    /// apply up to it: after a crash the journal itself says what may have been applied.
    pub fn mark_committed(&self, seq: u64) -> Result<(), JournalError> {
        let mut writer = self.writer.lock();
        self.check_usable()?;
        let committed = seq.min(writer.end.seq);
        if committed <= writer.committed {
            return Ok(());
        }
        self.make_room(&mut writer, HEADER_BYTES)?;
        let mark = Header::mark(writer.current.tag, writer.end.seq, committed, self.durable());
        self.write(&mut writer, &[&mark.bytes()])?;
        writer.committed = committed;
        writer.offset += HEADER_BYTES as u64;
        writer.current.publish(None, writer.offset);
        Ok(())
    }

    /// Makes everything appended before this call durable and returns the highest durable sequence number. Whoever comes
    /// while a flush runs waits for the next one, together with all others: one flush for everybody.
    pub fn sync(&self) -> Result<u64, JournalError> {
        let wanted = self.writer.lock().written;
        let mut flush = self.flush.lock();
        loop {
            if let Some(why) = &flush.failed {
                return Err(JournalError::Poisoned(why.clone()));
            }
            if flush.covered >= wanted {
                return Ok(flush.durable);
            }
            if !flush.running {
                break;
            }
            #[cfg(test)]
            crate::simulated::waits_for_a_thread();
            self.flushed.wait(&mut flush);
        }
        flush.running = true;
        drop(flush);

        let (covers, seq, segments) = {
            let mut writer = self.writer.lock();
            (writer.written, writer.end.seq, std::mem::take(&mut writer.unflushed))
        };
        let result = self.flush_segments(&segments);

        let mut flush = self.flush.lock();
        flush.running = false;
        let outcome = match result {
            Ok(()) => {
                flush.covered = covers;
                flush.durable = flush.durable.max(seq);
                Ok(flush.durable)
            }
            Err(error) => {
                let why = format!("sync journal: {error}");
                flush.failed = Some(why.clone());
                Err(JournalError::Poisoned(why))
            }
        };
        drop(flush);
        self.flushed.notify_all();
        outcome
    }

    fn flush_segments(&self, segments: &[Arc<Segment>]) -> io::Result<()> {
        for segment in segments {
            // Oldest first: a later segment must never be durable while an earlier one has a hole.
            if segment.sync()? {
                disk::sync_folder(&self.folder)?;
            }
        }
        Ok(())
    }

    /// The last record appended.
    pub fn end(&self) -> Position {
        *self.end.read()
    }

    /// The highest sequence number that a power failure cannot take.
    pub fn durable(&self) -> u64 {
        self.flush.lock().durable
    }

    /// The highest sequence number noted as committed.
    pub fn committed(&self) -> u64 {
        self.writer.lock().committed
    }

    /// The oldest record held; `end().seq + 1` when there is none.
    pub fn first(&self) -> u64 {
        self.segments.read().first().map_or(1, |segment| segment.previous.seq + 1)
    }

    /// Tells the highest sequence number after each append.
    pub fn appended(&self) -> watch::Receiver<u64> {
        self.appended.subscribe()
    }

    /// Bytes the journal takes on its volume, room prepared ahead included.
    pub fn bytes_on_disk(&self) -> u64 {
        (self.segments.read().len() as u64 + self.room.prepared()) * self.options.segment_bytes
    }

    /// The owner's estimate: after a checkpoint now, nothing below `seq` would be needed any more.
    pub fn foresee(&self, seq: u64) {
        self.foreseen.store(seq, Ordering::Release);
    }

    /// Whether there is a segment that holds nothing from `seq` on.
    pub fn trims(&self, seq: u64) -> bool {
        self.segments.read().get(1).is_some_and(|second| second.previous.seq < seq)
    }

    /// Bytes that the journal will need before long to go on: none while a segment is prepared, or while one will be with the
    /// next checkpoint.
    pub fn room_wanted(&self) -> u64 {
        let is_provided = self.room.prepared() > 0 || self.trims(self.foreseen.load(Ordering::Acquire));
        if is_provided { 0 } else { self.options.segment_bytes }
    }

    /// Whether a checkpoint would give the journal the segment that it has no room to prepare.
    pub fn waits_for_checkpoint(&self) -> bool {
        !self.room.has_plenty() && self.room.prepared() == 0 && self.trims(self.foreseen.load(Ordering::Acquire))
    }

    /// Where the history stands with record `seq`, if the journal still knows: from one before its first record to its end.
    /// An error: the journal holds the record and cannot read it.
    pub fn position_at(&self, seq: u64) -> Result<Option<Position>, ReadError> {
        let end = self.end();
        if seq >= end.seq {
            return Ok((seq == end.seq).then_some(end));
        }
        match self.seek(seq + 1) {
            Ok((_, place)) => Ok(Some(place.before)),
            Err(ReadError::Trimmed { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// About how many bytes of records lie after `from` up to and with `to`: never less than there are, at most a little more.
    pub fn bytes_between(&self, from: u64, to: u64) -> u64 {
        if from >= to {
            return 0;
        }
        let segments = self.segments.read();
        let mut bytes = 0;
        for (at, segment) in segments.iter().enumerate() {
            let last = segments.get(at + 1).map_or(u64::MAX, |next| next.previous.seq);
            if last > from && segment.previous.seq < to {
                bytes += segment.span(from, to);
            }
        }
        bytes
    }

    /// Reads records from `from` on into `out` (appended), as they lie on disk, at least one if there is one and otherwise at
    /// most `max_bytes`. Only headers are checked here; who uses the contents verifies them with [`records_after`].
    pub fn read(&self, from: u64, max_bytes: usize, out: &mut Vec<u8>) -> Result<Batch, ReadError> {
        let end = self.end();
        if from > end.seq {
            return Ok(Batch { before: end, last: end, count: 0 });
        }
        let (segment, mut place) = self.seek(from)?;
        let limit = segment.end_offset();
        let mut batch = Batch { before: place.before, last: place.before, count: 0 };
        while batch.count == 0 && place.offset < limit {
            let want = max_bytes.max(HEADER_BYTES).min((limit - place.offset) as usize);
            gather(&segment, &mut place, want, end.seq, out, &mut batch)?;
        }
        if batch.count == 0 {
            return Err(Broken::Sequence { expected: from, got: place.before.seq }.into());
        }
        // Readers go on where they stopped: the next read finds its place without a search.
        let mut hints = self.hints.lock();
        hints.rotate_right(1);
        hints[0] = (segment.tag, place);
        Ok(batch)
    }

    /// The segment that holds `from`, and exactly where.
    fn seek(&self, from: u64) -> Result<(Arc<Segment>, Place), ReadError> {
        let segment = {
            let segments = self.segments.read();
            let after = segments.partition_point(|segment| segment.previous.seq < from);
            match after.checked_sub(1).and_then(|at| segments.get(at)) {
                Some(segment) => segment.clone(),
                None => {
                    return Err(ReadError::Trimmed {
                        first: segments.first().map_or(1, |first| first.previous.seq + 1),
                    });
                }
            }
        };
        let mut near = segment.nearest(from);
        for (tag, place) in self.hints.lock().iter() {
            if *tag == segment.tag && place.before.seq < from && place.before.seq > near.before.seq {
                near = *place;
            }
        }
        let place = segment.seek(near, from)?;
        Ok((segment, place))
    }

    /// Gives up every record after `seq`: a tail that never became part of the pair's history. Save it first.
    pub fn cut_after(&self, seq: u64) -> Result<Position, JournalError> {
        let mut writer = self.writer.lock();
        self.check_usable()?;
        if seq >= writer.end.seq {
            return Ok(writer.end);
        }
        let Some(position) = self.position_at(seq).map_err(read_error("find where to cut"))? else {
            return Err(JournalError::Outside { seq, first: self.first(), end: writer.end.seq });
        };
        let committed = writer.committed.min(seq);
        let mut segments = self.segments.write();
        // Newest first, so that a crash in between leaves a shorter tail and never a hole.
        while segments.len() > 1 && segments.last().is_some_and(|segment| segment.previous.seq >= seq) {
            if let Some(segment) = segments.pop() {
                disk::remove_durably(&segment.path).map_err(io_error("remove segment"))?;
            }
        }
        let Some(last) = segments.last().cloned() else {
            return Err(JournalError::Outside { seq, first: 0, end: 0 });
        };
        let cut = last
            .seek(last.nearest(seq + 1), seq + 1)
            .map_err(|error| JournalError::Io { step: "find the cut", source: io::Error::other(error) })?
            .offset;
        disk::write_zeros(&last.file, cut, last.capacity).map_err(io_error("cut journal"))?;
        last.cut(cut);
        drop(segments);
        self.foresee(0);
        *self.hints.lock() = Default::default();
        *self.end.write() = position;
        writer.current = last.clone();
        writer.offset = cut;
        writer.end = position;
        writer.committed = 0;
        writer.written += 1;
        writer.unflushed = vec![last];
        let mut flush = self.flush.lock();
        flush.durable = flush.durable.min(seq);
        drop(flush);
        drop(writer);
        self.appended.send_replace(position.seq);
        // The marks after the cut are gone with it; what was committed before stays known.
        self.mark_committed(committed)?;
        self.sync()?;
        Ok(position)
    }

    /// The last record before those after `after` that are still held.
    pub fn held_after(&self, after: u64) -> u64 {
        after.max(self.first().saturating_sub(1))
    }

    /// Saves every record after `after` as a journal of its own in the folder `into`, durably. Returns where it begins and
    /// how many there are. Records that the journal has forgotten are nobody's only copy: the peer had them durably.
    pub fn save_tail(&self, after: u64, into: &Path) -> Result<(Position, u64), JournalError> {
        let after = self.held_after(after);
        let Some(previous) = self.position_at(after).map_err(read_error("find the tail"))? else {
            return Err(JournalError::Outside { seq: after, first: self.first(), end: self.end().seq });
        };
        disk::create_folder(into).map_err(io_error("create folder for the tail"))?;
        let mut saved = segment::Saved::create(into, previous, self.options.pair).map_err(io_error("save tail"))?;
        let (mut bytes, mut count) = (Vec::new(), 0);
        let end = self.end().seq;
        while previous.seq + count < end {
            bytes.clear();
            let batch = self.read(previous.seq + count + 1, 1 << 20, &mut bytes).map_err(read_error("read tail"))?;
            for record in records_after(batch.before, &bytes) {
                record?;
            }
            saved.write(&bytes).map_err(io_error("save tail"))?;
            count += batch.count;
        }
        saved.finish().map_err(io_error("save tail"))?;
        Ok((previous, count))
    }

    /// Forgets whole segments that hold nothing from `seq` on. Their room is used again.
    pub fn trim_below(&self, seq: u64) -> Result<(), JournalError> {
        let most = self.room.look().map_err(io_error("look at the volume's room"))?;
        let forgotten: Vec<_> = {
            let mut segments = self.segments.write();
            let keep_from = segments.partition_point(|segment| segment.previous.seq < seq).saturating_sub(1);
            segments.drain(..keep_from).collect()
        };
        let is_any = !forgotten.is_empty();
        for segment in forgotten {
            self.room.recycle(segment, most).map_err(io_error("recycle segment"))?;
        }
        if is_any {
            // Before their room is used again they must be gone for good: a segment that came back would look like a hole.
            disk::sync_folder(&self.folder).map_err(io_error("forget segments"))?;
        }
        self.room.give_back(most).map_err(io_error("remove prepared segment"))
    }

    /// Forgets everything and goes on at `at`: after a netcopy the history before it is in the volume.
    pub fn reset(&self, at: Position) -> Result<(), JournalError> {
        self.check_usable()?;
        // It may come from the peer.
        if at.seq >= NUMBER_MAX || at.epoch > NUMBER_MAX {
            return Err(CodecError::Number.into());
        }
        let begun = self.begin_anew(at);
        if let Err(error) = &begun {
            // Half of the old is gone and the new is not there: this process must not go on with either.
            self.flush.lock().failed.get_or_insert_with(|| format!("begin the journal anew: {error}"));
        }
        begun
    }

    fn begin_anew(&self, at: Position) -> Result<(), JournalError> {
        let mut writer = self.writer.lock();
        let mut segments = self.segments.write();
        while let Some(segment) = segments.pop() {
            disk::remove_durably(&segment.path).map_err(io_error("remove segment"))?;
        }
        let segment = self.room.segment(segment::Beginning {
            previous: at,
            pair: self.options.pair,
            committed: at.seq,
            durable: at.seq,
        })?;
        segments.push(segment.clone());
        drop(segments);
        self.foresee(0);
        *self.hints.lock() = Default::default();
        *self.end.write() = at;
        writer.offset = segment.end_offset();
        writer.current = segment.clone();
        writer.end = at;
        writer.committed = at.seq;
        writer.written += 1;
        writer.unflushed = vec![segment];
        self.flush.lock().durable = 0;
        drop(writer);
        self.appended.send_replace(at.seq);
        self.sync()?;
        Ok(())
    }

    /// No write and no flush has failed.
    pub fn is_usable(&self) -> bool {
        self.check_usable().is_ok()
    }

    fn check_usable(&self) -> Result<(), JournalError> {
        match &self.flush.lock().failed {
            None => Ok(()),
            Some(why) => Err(JournalError::Poisoned(why.clone())),
        }
    }

    /// Goes on to the next segment when this one cannot take `size` more bytes; prepares that one in time. Also when this one
    /// was begun for nobody who waits, and now somebody does: the next is as good as half the price of his syncs (two members
    /// on one disk: 290 us each, then 175). Not on a volume that is nearly full: what is left half used takes room, too.
    fn make_room(&self, writer: &mut Writer, size: usize) -> Result<(), JournalError> {
        let capacity = writer.current.capacity;
        // One that holds nothing is not left: the next would have the same name.
        let is_slow =
            writer.current.is_slow() && self.room.has_plenty() && writer.end.seq > writer.current.previous.seq;
        if is_slow || writer.offset > capacity / 2 {
            self.room.prepare_one(writer.current.is_synced_often());
        }
        let fits = writer.offset + size as u64 <= capacity;
        if fits && !(is_slow && self.room.has_written()) {
            return Ok(());
        }
        if size as u64 + segment::HEADER_BYTES > self.options.segment_bytes {
            return Err(JournalError::TooLong(size));
        }
        let begun = self.room.segment(segment::Beginning {
            previous: writer.end,
            pair: self.options.pair,
            committed: writer.committed,
            durable: self.durable(),
        });
        let segment = match begun {
            Err(error) if fits => {
                tracing::warn!(%error, "the journal stays in a segment whose syncs take longer");
                return Ok(());
            }
            begun => begun?,
        };
        self.segments.write().push(segment.clone());
        writer.offset = segment.end_offset();
        writer.current = segment;
        Ok(())
    }

    /// Puts an entry at the writer's place. What a failed write left behind is behind the end and never counts; one that
    /// failed for want of room (where room cannot be taken before) may be tried again.
    fn write(&self, writer: &mut Writer, parts: &[&[u8]]) -> Result<(), JournalError> {
        if let Err(source) = disk::write_entry(&writer.current.file, writer.offset, parts) {
            if segment::is_want_of_room(&source) {
                return Err(JournalError::Full(source));
            }
            self.flush.lock().failed = Some(format!("write journal: {source}"));
            return Err(JournalError::Io { step: "write journal", source });
        }
        writer.written += 1;
        if !writer.unflushed.last().is_some_and(|last| Arc::ptr_eq(last, &writer.current)) {
            writer.unflushed.push(writer.current.clone());
        }
        Ok(())
    }

    /// Lets readers see a record.
    fn publish(&self, writer: &mut Writer, before: Position, position: Position, size: u64) {
        let offset = writer.offset;
        writer.offset += size;
        writer.end = position;
        writer.current.publish(Some((offset, before)), writer.offset);
        *self.end.write() = position;
        self.appended.send_replace(position.seq);
    }
}

fn io_error(step: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Io { step, source }
}

fn read_error(step: &'static str) -> impl Fn(ReadError) -> JournalError {
    move |error| JournalError::Io { step, source: error.into() }
}

/// One step of a read: the records in the next `want` bytes of a segment, marks left out.
fn gather(
    segment: &Segment,
    place: &mut Place,
    want: usize,
    end: u64,
    out: &mut Vec<u8>,
    batch: &mut Batch,
) -> Result<(), ReadError> {
    let start = out.len();
    out.resize(start + want, 0);
    segment.file.read_exact_at(&mut out[start..], place.offset)?;
    let (mut at, mut keep) = (start, start);
    while out.len() - at >= HEADER_BYTES {
        let header = Header::parse(&out[at..])?;
        let size = header.size();
        if header.kind == entry::Kind::Record {
            if header.seq > end {
                break;
            }
            if header.seq != place.before.seq + 1 {
                return Err(Broken::Sequence { expected: place.before.seq + 1, got: header.seq }.into());
            }
            let have = out.len() - at;
            if size > have {
                if batch.count > 0 {
                    break;
                }
                // The first record is longer than what was asked for: it is given whole.
                out.resize(at + size, 0);
                segment.file.read_exact_at(&mut out[at + have..], place.offset + have as u64)?;
            }
            if at != keep {
                out.copy_within(at..at + size, keep);
            }
            keep += size;
            place.before = header.position();
            batch.last = header.position();
            batch.count += 1;
        }
        at += size;
        place.offset += size as u64;
    }
    out.truncate(keep);
    Ok(())
}

#[cfg(test)]
mod tests;
