//! The bytes of one journal entry, the same on disk and on the wire. Pure.
//!
//! ```text
//!  0 crc      u32  crc32c over bytes 4..64          32 epoch   u64
//!  4 zero     u32                                   40 time    i64
//!  8 chain    u64  history up to and with this      48 unique  u64
//! 16 kind     u8   1 record, 2 mark                 56 digest  u64  over head and payload
//! 17 zero     u8                                    64 head, payload, zeros up to a multiple of 8
//! 18 head     u16  bytes of the operation's head
//! 20 length   u32  bytes of head and payload
//! 24 seq      u64
//! ```
//!
//! Everything little-endian. `kind` 0 is space that was never written. The digest depends on nothing but the operation, so
//! it is computed before the journal is locked; the chain is one hash over 48 bytes, seeded by the chain before it, and
//! covers the contents through the digest. A mark is not part of the history: each member writes its own, and it is not sent.

use tandem_protocol::Position;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::op::codec::{self, CodecError, DATA_BYTES_MAX, HEAD_BYTES_MAX};
use crate::op::{Op, Stamp};

/// Bytes before the operation.
pub const HEADER_BYTES: usize = 64;
/// The longest entry there can be.
pub const ENTRY_BYTES_MAX: usize = HEADER_BYTES + HEAD_BYTES_MAX + DATA_BYTES_MAX + 8;
/// The highest sequence number and epoch. Both are counted up by one, and the API shows them as signed numbers; only
/// somebody who means harm comes near, and what follows the last number of all must not be computed.
pub const NUMBER_MAX: u64 = i64::MAX as u64;
const RECORD: u8 = 1;
const MARK: u8 = 2;

/// One record of the history, borrowed from the bytes it was read from; its checksums have been verified.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Where the history stands with this record.
    pub position: Position,
    /// When and why the operation was captured.
    pub stamp: Stamp,
    head: &'a [u8],
    payload: &'a [u8],
    /// The whole entry, as it lies on disk.
    pub bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The operation.
    pub fn op(&self) -> Result<Op<'a>, CodecError> {
        codec::decode(self.head, self.payload)
    }
}

/// Why bytes are not the records that should follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The bytes end within a record.
    #[error("record is cut short")]
    Short,
    /// The header's checksum or the content's digest is wrong.
    #[error("record does not match its checksum")]
    Checksum,
    /// Lengths that contradict each other, or numbers beyond their limits.
    #[error("record has impossible lengths or numbers")]
    Lengths,
    /// The record is genuine but belongs elsewhere.
    #[error("record {got} where {expected} should follow")]
    Sequence {
        /// The sequence number that was due.
        expected: u64,
        /// The one that was found.
        got: u64,
    },
    /// Right number, other history.
    #[error("record {seq} belongs to another history")]
    Chain {
        /// Its sequence number.
        seq: u64,
    },
}

/// The fixed part of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub(super) kind: Kind,
    pub(super) chain: u64,
    pub(super) head: u16,
    pub(super) length: u32,
    pub(super) seq: u64,
    pub(super) epoch: u64,
    pub(super) stamp: Stamp,
    pub(super) digest: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Record,
    /// `seq` = end of the journal, `epoch` = committed, `digest` = durable, `chain` = tag of the segment it was written for.
    Mark,
}

impl Header {
    /// The header of the record that follows `before`.
    pub fn following(before: Position, epoch: u64, stamp: Stamp, head: usize, length: usize, digest: u64) -> Header {
        let mut header = Header {
            kind: Kind::Record,
            chain: 0,
            head: head as u16,
            length: length as u32,
            seq: before.seq + 1,
            epoch,
            stamp,
            digest,
        };
        header.chain = chain(before.chain, &header.bytes());
        header
    }

    /// A mark: what is committed and durable here, in a segment with this tag.
    pub(super) fn mark(tag: u64, seq: u64, committed: u64, durable: u64) -> Header {
        Header {
            kind: Kind::Mark,
            chain: tag,
            head: 0,
            length: 0,
            seq,
            epoch: committed,
            stamp: Stamp::default(),
            digest: durable,
        }
    }

    /// Where the history stands with it.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.seq, chain: self.chain }
    }

    /// Bytes of the whole entry.
    pub(super) fn size(&self) -> usize {
        size(self.length as usize)
    }

    /// As it lies on disk.
    pub fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[8..16].copy_from_slice(&self.chain.to_le_bytes());
        bytes[16] = match self.kind {
            Kind::Record => RECORD,
            Kind::Mark => MARK,
        };
        bytes[18..20].copy_from_slice(&self.head.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.length.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.seq.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.stamp.time.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.stamp.unique.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.digest.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`; its own checksum holds and its lengths are possible.
    pub(super) fn parse(bytes: &[u8]) -> Result<Header, Broken> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(Broken::Short)?;
        let kind = match bytes[16] {
            RECORD => Kind::Record,
            MARK => Kind::Mark,
            _ => return Err(Broken::Checksum),
        };
        if crc32c::crc32c(&bytes[4..]) != number32(bytes, 0) || number32(bytes, 4) != 0 || bytes[17] != 0 {
            return Err(Broken::Checksum);
        }
        let head = u16::from_le_bytes([bytes[18], bytes[19]]);
        let length = number32(bytes, 20);
        let (head_bytes, body_bytes) = (usize::from(head), length as usize);
        if head_bytes > HEAD_BYTES_MAX || head_bytes > body_bytes || body_bytes - head_bytes > DATA_BYTES_MAX {
            return Err(Broken::Lengths);
        }
        if (kind == Kind::Record) != (head > 0) || (kind == Kind::Mark && length > 0) {
            return Err(Broken::Lengths);
        }
        if kind == Kind::Record && (number64(bytes, 24) > NUMBER_MAX || number64(bytes, 32) > NUMBER_MAX) {
            return Err(Broken::Lengths);
        }
        Ok(Header {
            kind,
            chain: number64(bytes, 8),
            head,
            length,
            seq: number64(bytes, 24),
            epoch: number64(bytes, 32),
            stamp: Stamp { time: number64(bytes, 40) as i64, unique: number64(bytes, 48) },
            digest: number64(bytes, 56),
        })
    }

    /// Whether this is the record that follows `before`.
    pub(super) fn check_follows(&self, before: Position) -> Result<(), Broken> {
        let due = before.seq.saturating_add(1);
        if self.seq != due || self.epoch < before.epoch {
            return Err(Broken::Sequence { expected: due, got: self.seq });
        }
        if chain(before.chain, &self.bytes()) != self.chain {
            return Err(Broken::Chain { seq: self.seq });
        }
        Ok(())
    }
}

/// The digest of an operation's bytes.
pub fn digest(head: &[u8], payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, xxh3_64(head))
}

/// Bytes of an entry whose operation has `length` bytes.
pub fn size(length: usize) -> usize {
    HEADER_BYTES + length.next_multiple_of(8)
}

fn chain(before: u64, header: &[u8; HEADER_BYTES]) -> u64 {
    xxh3_64_with_seed(&header[16..], before)
}

/// The first record of `bytes`, verified by itself.
pub(super) fn first_record(bytes: &[u8]) -> Result<(Header, Record<'_>), Broken> {
    let header = Header::parse(bytes)?;
    if header.kind == Kind::Mark {
        return Err(Broken::Lengths);
    }
    let entry = bytes.get(..header.size()).ok_or(Broken::Short)?;
    let body_end = HEADER_BYTES + header.length as usize;
    let (head, payload) = entry[HEADER_BYTES..body_end].split_at(header.head.into());
    // The padding is part of what is hashed nowhere: it must be zero, so that one history has one sequence of bytes.
    let holds = digest(head, payload) == header.digest && entry[body_end..].iter().all(|byte| *byte == 0);
    if !holds && !mistake!(TornRecordCounts) {
        return Err(Broken::Checksum);
    }
    Ok((header, Record { position: header.position(), stamp: header.stamp, head, payload, bytes: entry }))
}

/// The records in `bytes`, each verified by itself and against the one before it; the first one against nothing.
pub fn records(bytes: &[u8]) -> Records<'_> {
    Records { rest: bytes, before: None }
}

/// The records in `bytes`, which must go on exactly at `before`.
pub fn records_after(before: Position, bytes: &[u8]) -> Records<'_> {
    Records { rest: bytes, before: Some(before) }
}

/// Iterates over records; ends after the first error.
pub struct Records<'a> {
    rest: &'a [u8],
    before: Option<Position>,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = first_record(self.rest).and_then(|(header, record)| {
            if let Some(before) = self.before {
                header.check_follows(before)?;
            }
            Ok(record)
        });
        match item {
            Ok(record) => {
                self.before = Some(record.position);
                self.rest = &self.rest[record.bytes.len()..];
            }
            Err(_) => self.rest = &[],
        }
        Some(item)
    }
}

fn number32(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn number64(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(number32(bytes, at)) | u64::from(number32(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::FileId;

    fn entry(before: Position, seq_data: &[u8]) -> (Vec<u8>, Position) {
        let op = Op::Write { id: FileId(2), offset: 5, data: seq_data };
        let encoded = codec::encode(&op).unwrap();
        let length = encoded.head().len() + encoded.payload.len();
        let digest = digest(encoded.head(), encoded.payload);
        let header = Header::following(before, 1, Stamp::default(), encoded.head().len(), length, digest);
        let mut bytes = header.bytes().to_vec();
        bytes.extend_from_slice(encoded.head());
        bytes.extend_from_slice(encoded.payload);
        bytes.resize(header.size(), 0);
        (bytes, header.position())
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let (bytes, _) = entry(Position::default(), b"hello");
        records_after(Position::default(), &bytes).next().unwrap().unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert!(records_after(Position::default(), &changed).next().unwrap().is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_record_of_another_history_is_refused() {
        let (first, after_first) = entry(Position::default(), b"one");
        let (_, after_other) = entry(Position::default(), b"two");
        let (second, _) = entry(after_other, b"three");
        let mut both = first.clone();
        both.extend_from_slice(&second);
        let read: Vec<_> = records(&both).collect();
        assert!(read[0].is_ok());
        assert_eq!(read[1].unwrap_err(), Broken::Chain { seq: 2 });
        let (gap, _) = entry(Position { seq: 7, ..after_first }, b"x");
        assert_eq!(
            records_after(after_first, &gap).next().unwrap().unwrap_err(),
            Broken::Sequence { expected: 2, got: 8 }
        );
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            for record in records(&bytes).flatten() {
                drop(record.op());
            }
        }
    }
}
