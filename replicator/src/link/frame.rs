//! The bytes between two members: a fixed header, then a payload whose length is limited before anything is allocated. Pure.
//!
//! ```text
//! 0 magic "TNDM"   4 version   5 type   6 zero u16   8 length u32   12 crc32c over bytes 0..12
//! ```
//!
//! TLS keeps the bytes whole and secret. The header's own checksum only tells a peer that lost its place, or that is no
//! peer at all, from one that speaks another version.

use crate::journal::entry::ENTRY_BYTES_MAX;

/// Bytes of every frame's header.
pub const HEADER_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"TNDM";
const VERSION: u8 = 1;
/// Bytes before the records in a frame of records.
pub const RECORDS_HEADER_BYTES: usize = 40;
/// Most bytes of records in one frame: one record of any size, or many small ones.
pub const RECORDS_BYTES_MAX: usize = ENTRY_BYTES_MAX;
/// Longest control message.
pub const CONTROL_BYTES_MAX: usize = 256 << 10;
/// Longest piece of a copy.
pub const BULK_BYTES_MAX: usize = 4 << 20;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// First on a connection.
    Preface = 1,
    /// A sign of life.
    Heartbeat = 2,
    /// A control message.
    Control = 3,
    /// Records of the journal.
    Records = 4,
    /// How far the peer is.
    Ack = 5,
    /// It cannot follow.
    Nack = 6,
    /// A piece of a copy.
    Bulk = 7,
    /// Room for more of a copy.
    Credit = 8,
}

impl Type {
    fn limits(self) -> (usize, usize) {
        match self {
            Type::Preface => (8, 8),
            Type::Heartbeat => (24, 24),
            Type::Control => (0, CONTROL_BYTES_MAX),
            Type::Records => (RECORDS_HEADER_BYTES, RECORDS_HEADER_BYTES + RECORDS_BYTES_MAX),
            Type::Ack => (24, 24),
            Type::Nack => (16, 16),
            Type::Bulk => (0, BULK_BYTES_MAX),
            Type::Credit => (8, 8),
        }
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our magic, or a broken header.
    #[error("peer does not speak the replication protocol")]
    Garbage,
    /// Another version.
    #[error("peer speaks version {0} of the replication protocol, this is version 1")]
    Version(u8),
    /// A type this version does not know.
    #[error("peer sent a frame of unknown type {0}")]
    Type(u8),
    /// A length beyond what the type may have.
    #[error("peer sent a frame of {0} bytes, beyond its limit")]
    Length(usize),
    /// A payload that contradicts itself.
    #[error("peer sent a frame with impossible contents")]
    Contents,
}

/// The header of a frame.
pub fn header(kind: Type, length: usize) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[0..4].copy_from_slice(&MAGIC);
    bytes[4] = VERSION;
    bytes[5] = kind as u8;
    bytes[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..12]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Type and length that a header announces, both within their limits.
pub fn parse_header(bytes: &[u8; HEADER_BYTES]) -> Result<(Type, usize), FrameError> {
    if bytes[0..4] != MAGIC || crc32c::crc32c(&bytes[..12]).to_le_bytes() != bytes[12..16] {
        return Err(FrameError::Garbage);
    }
    if bytes[4] != VERSION {
        return Err(FrameError::Version(bytes[4]));
    }
    let kind = match bytes[5] {
        1 => Type::Preface,
        2 => Type::Heartbeat,
        3 => Type::Control,
        4 => Type::Records,
        5 => Type::Ack,
        6 => Type::Nack,
        7 => Type::Bulk,
        8 => Type::Credit,
        unknown => return Err(FrameError::Type(unknown)),
    };
    let length = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
    let (least, most) = kind.limits();
    if (least..=most).contains(&length) { Ok((kind, length)) } else { Err(FrameError::Length(length)) }
}

/// What a frame of records says about them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordsHeader {
    /// Epoch of the master that sends.
    pub epoch: u64,
    /// Nonce of that epoch: two histories of equal numbers are told apart.
    pub nonce: u128,
    /// Everything up to here is committed.
    pub committed: u64,
    /// The master waits for these, and all before, to be durable.
    pub sync: bool,
    /// The master waits to hear that they were received.
    pub receipt: bool,
}

impl RecordsHeader {
    /// As it goes over the wire.
    pub fn bytes(&self) -> [u8; RECORDS_HEADER_BYTES] {
        let mut bytes = [0; RECORDS_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.committed.to_le_bytes());
        bytes[32] = u8::from(self.sync) | u8::from(self.receipt) << 1;
        bytes
    }

    /// From a payload of at least its length.
    pub fn parse(payload: &[u8]) -> Result<RecordsHeader, FrameError> {
        let bytes: &[u8; RECORDS_HEADER_BYTES] = payload.first_chunk().ok_or(FrameError::Contents)?;
        if bytes[32] > 3 || bytes[33..] != [0; 7] {
            return Err(FrameError::Contents);
        }
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&bytes[8..24]);
        Ok(RecordsHeader {
            epoch: number(payload, 0)?,
            nonce: u128::from_le_bytes(nonce),
            committed: number(payload, 24)?,
            sync: bytes[32] & 1 != 0,
            receipt: bytes[32] & 2 != 0,
        })
    }
}

/// How far the peer's journal is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// It has taken in everything up to here: there is room for more. Promises nothing.
    pub taken: u64,
    /// Promises that it holds everything up to here, in memory at least, and would say so after a crash.
    pub received: u64,
    /// A power failure cannot take what is up to here.
    pub durable: u64,
}

/// Why the peer cannot follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NackReason {
    /// Its volume has no room for more journal.
    Full,
    /// What it received does not continue its journal.
    Discontinuous,
    /// The records do not hold: damaged on the way out of the master's journal.
    Damaged,
    /// Its journal failed.
    Failed,
    /// The frame belongs to a generation it does not follow.
    OtherGeneration,
}

/// The peer cannot follow beyond a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nack {
    /// Why.
    pub reason: NackReason,
    /// The end of its journal.
    pub end: u64,
}

/// Sign of life: `sent` is the sender's own clock, `echo` the newest `sent` it got from the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// When it was sent, by the sender's clock.
    pub sent: u64,
    /// The newest that came from the other side.
    pub echo: u64,
    /// The sender grants entitlement, counted from `echo`.
    pub grant: bool,
}

impl Ack {
    /// As it goes over the wire.
    pub fn bytes(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        for (place, number) in bytes.chunks_exact_mut(8).zip([self.taken, self.received, self.durable]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// From a payload of at least its length.
    pub fn parse(payload: &[u8]) -> Result<Ack, FrameError> {
        let ack = Ack { taken: number(payload, 0)?, received: number(payload, 8)?, durable: number(payload, 16)? };
        if ack.durable <= ack.received && ack.received <= ack.taken { Ok(ack) } else { Err(FrameError::Contents) }
    }
}

impl Nack {
    /// As it goes over the wire.
    pub fn bytes(&self) -> [u8; 16] {
        let reason = match self.reason {
            NackReason::Full => 1,
            NackReason::Discontinuous => 2,
            NackReason::Damaged => 3,
            NackReason::Failed => 4,
            NackReason::OtherGeneration => 5,
        };
        pair(reason, self.end)
    }

    /// From a payload of at least its length.
    pub fn parse(payload: &[u8]) -> Result<Nack, FrameError> {
        let reason = match number(payload, 0)? {
            1 => NackReason::Full,
            2 => NackReason::Discontinuous,
            3 => NackReason::Damaged,
            4 => NackReason::Failed,
            5 => NackReason::OtherGeneration,
            _ => return Err(FrameError::Contents),
        };
        Ok(Nack { reason, end: number(payload, 8)? })
    }
}

impl Heartbeat {
    /// As it goes over the wire.
    pub fn bytes(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[0..16].copy_from_slice(&pair(self.sent, self.echo));
        bytes[16] = self.grant.into();
        bytes
    }

    /// From a payload of at least its length.
    pub fn parse(payload: &[u8]) -> Result<Heartbeat, FrameError> {
        let grant = number(payload, 16)?;
        if grant > 1 {
            return Err(FrameError::Contents);
        }
        Ok(Heartbeat { sent: number(payload, 0)?, echo: number(payload, 8)?, grant: grant == 1 })
    }
}

fn pair(first: u64, second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..16].copy_from_slice(&second.to_le_bytes());
    bytes
}

/// The number at `at`, if it is there.
pub(super) fn number(payload: &[u8], at: usize) -> Result<u64, FrameError> {
    payload
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|bytes| u64::from_le_bytes(*bytes))
        .ok_or(FrameError::Contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_and_limits_hold() {
        assert_eq!(parse_header(&header(Type::Ack, 24)), Ok((Type::Ack, 24)));
        assert_eq!(parse_header(&header(Type::Ack, 25)), Err(FrameError::Length(25)));
        assert_eq!(parse_header(&header(Type::Control, usize::from(u16::MAX))), Ok((Type::Control, 65535)));
        let large = RECORDS_HEADER_BYTES + RECORDS_BYTES_MAX;
        assert!(parse_header(&header(Type::Records, large)).is_ok());
        assert_eq!(parse_header(&header(Type::Records, large + 1)), Err(FrameError::Length(large + 1)));
        assert_eq!(parse_header(b"GET / HTTP/1.1\r\n"), Err(FrameError::Garbage));
    }

    #[test]
    fn payloads_survive() {
        let records = RecordsHeader { epoch: 3, nonce: u128::MAX - 5, committed: 9, sync: true, receipt: false };
        assert_eq!(RecordsHeader::parse(&records.bytes()), Ok(records));
        let ack = Ack { taken: 11, received: 9, durable: 7 };
        assert_eq!(Ack::parse(&ack.bytes()), Ok(ack));
        assert!(Ack::parse(&Ack { taken: 9, received: 7, durable: 9 }.bytes()).is_err());
        assert!(Ack::parse(&Ack { taken: 7, received: 9, durable: 7 }.bytes()).is_err());
        let nack = Nack { reason: NackReason::Full, end: 5 };
        assert_eq!(Nack::parse(&nack.bytes()), Ok(nack));
        let heartbeat = Heartbeat { sent: 4, echo: 2, grant: true };
        assert_eq!(Heartbeat::parse(&heartbeat.bytes()), Ok(heartbeat));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 16..80)) {
            let mut header = [0; HEADER_BYTES];
            header.copy_from_slice(&bytes[..16]);
            assert!(parse_header(&header).is_err());
            RecordsHeader::parse(&bytes).ok();
            Ack::parse(&bytes).ok();
            Nack::parse(&bytes).ok();
            Heartbeat::parse(&bytes).ok();
        }
    }
}
