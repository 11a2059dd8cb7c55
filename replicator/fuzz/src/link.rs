//! Frames and messages between the members.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tandem_protocol::Position;
use tandem_protocol::handshake::{self, Hello, Refusal};
use tandem_protocol::identity::{DataId, DataUuid, Generation, MemberName, Nonce, PairId, Span};
use tandem_protocol::member::event::Control;
use tandem_protocol::record::Request;
use tandem_replicator::link::frame::{
    Ack, HEADER_BYTES, Heartbeat, Nack, NackReason, RecordsHeader, Type, header, parse_header,
};
use tandem_replicator::link::rehearse::rehearse;
use tandem_replicator::netcopy::{self, Item, Reply};

use crate::bounded;
use crate::draw::Draw;

/// One input.
pub fn run(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    match draw.byte() % 8 {
        0 => frame(&mut draw),
        1 => payloads(draw.rest()),
        2 => meeting(draw.rest()),
        3 => message::<Vec<Item>>(draw.rest(), netcopy::from_bytes),
        4 => message::<Reply>(draw.rest(), netcopy::from_bytes),
        _ => connection(&mut draw),
    }
}

fn frame(draw: &mut Draw<'_>) {
    let mut bytes: [u8; HEADER_BYTES] = draw.array();
    if draw.flag() {
        bytes[..5].copy_from_slice(b"TNDM\x01");
        let crc = crc32c::crc32c(&bytes[..12]);
        bytes[12..].copy_from_slice(&crc.to_le_bytes());
    }
    if let Ok((kind, length)) = parse_header(&bytes) {
        assert!(length <= 5 << 20);
        // Two bytes are not used yet, and not looked at.
        (bytes[6], bytes[7]) = (0, 0);
        let crc = crc32c::crc32c(&bytes[..12]);
        bytes[12..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(header(kind, length), bytes);
    }
}

fn payloads(bytes: &[u8]) {
    if let Ok(found) = RecordsHeader::parse(bytes) {
        assert_eq!(found.bytes().as_slice(), &bytes[..40]);
    }
    if let Ok(found) = Ack::parse(bytes) {
        assert!(found.durable <= found.received && found.received <= found.taken);
        assert_eq!(found.bytes().as_slice(), &bytes[..24]);
    }
    if let Ok(found) = Nack::parse(bytes) {
        assert_eq!(found.bytes().as_slice(), &bytes[..16]);
    }
    if let Ok(found) = Heartbeat::parse(bytes) {
        assert_eq!(found.bytes().as_slice(), &bytes[..24]);
    }
}

/// What is read is the same when it is written and read again, and reading it takes memory by what is there, not by what
/// a length says.
fn message<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    read: fn(&[u8]) -> Result<M, netcopy::NetcopyError>,
) {
    let most = 4096 + bytes.len() * 256;
    if let Ok(message) = bounded(most, || read(bytes)) {
        let written = netcopy::to_bytes(&message).unwrap();
        assert_eq!(read(&written).unwrap(), message);
        assert!(!format!("{message:?}").is_empty());
    }
}

/// Two hellos: what follows from them is decided without a panic, whoever they come from.
fn meeting(bytes: &[u8]) {
    message::<Control>(bytes, |bytes| Ok(postcard::from_bytes(bytes)?));
    let mine = hello();
    let Ok(Control::Hello(theirs)) = postcard::from_bytes(bytes) else { return };
    handshake::meet(&mine, &theirs);
    handshake::meet(&theirs, &mine);
    let common = handshake::common(&mine.history, mine.end, &theirs.history, theirs.end);
    assert!(common.is_none_or(|common| common.seq <= mine.end.seq.min(theirs.end.seq)));
    for applied in [0, 5, u64::MAX] {
        handshake::plan(&mine, &theirs, applied);
        handshake::plan(&theirs, &mine, applied);
    }
}

/// A whole connection, as it comes out of TLS.
fn connection(draw: &mut Draw<'_>) {
    let mut bytes = Vec::new();
    while !draw.is_empty() && bytes.len() < 64 << 10 {
        let kind = match draw.byte() % 10 {
            0 => Type::Preface,
            1 => Type::Heartbeat,
            2 => Type::Control,
            3 => Type::Records,
            4 => Type::Ack,
            5 => Type::Nack,
            6 => Type::Bulk,
            7 => Type::Credit,
            _ => {
                bytes.extend_from_slice(draw.data());
                continue;
            }
        };
        let payload = match kind {
            Type::Preface | Type::Credit => draw.number().to_le_bytes().to_vec(),
            Type::Heartbeat | Type::Ack => {
                [draw.number(), draw.number(), draw.number()].iter().flat_map(|number| number.to_le_bytes()).collect()
            }
            Type::Nack => [draw.number(), draw.number()].iter().flat_map(|number| number.to_le_bytes()).collect(),
            Type::Records => [RecordsHeader::default().bytes().as_slice(), draw.data()].concat(),
            Type::Control | Type::Bulk => draw.data().to_vec(),
        };
        let length = if draw.byte() == 255 { draw.word() as usize } else { payload.len() };
        bytes.extend_from_slice(&header(kind, length));
        bytes.extend_from_slice(&payload);
    }
    // One frame of the longest kind may be on its way.
    let heard = bounded((8 << 20) + bytes.len() * 64, || rehearse::<Control>(&bytes));
    assert!(!heard.end.is_empty());
    assert!(heard.credit <= tandem_replicator::link::BULK_WINDOW_BYTES);
}

fn hello() -> Hello {
    let generation = Generation { epoch: 3, nonce: Nonce(7) };
    let after = Position { epoch: 2, seq: 4, chain: 9 };
    Hello {
        protocol: 1,
        pair: PairId(5),
        member: MemberName::A,
        data_id: DataId { volume: "v".into(), uuid: DataUuid(1) },
        boot: 2,
        promised: generation,
        leads: None,
        first: 1,
        end: Position { epoch: 3, seq: 8, chain: 1 },
        history: vec![
            Span { generation: Generation { epoch: 2, nonce: Nonce(1) }, after: Position::default() },
            Span { generation, after },
        ],
        inconsistent: false,
        unverified: false,
    }
}

/// Inputs that reach deep.
pub fn seeds() -> Vec<Vec<u8>> {
    let generation = Generation { epoch: 3, nonce: Nonce(7) };
    let position = Position { epoch: 3, seq: 8, chain: 1 };
    let request = || Request { id: "r".into(), to: MemberName::A };
    let other = Hello { member: MemberName::B, leads: Some(generation), ..hello() };
    let messages = [
        Control::Hello(Box::new(other)),
        Control::Heartbeat { generation, sent: 1, echo: Some(2), position },
        Control::Follow { generation, from: position },
        Control::CopyMe { generation },
        Control::Certified { generation },
        Control::Nominate { request: request() },
        Control::Refused(Refusal::OldEpoch),
        Control::Leaving,
    ];
    let mut seeds = Vec::new();
    for message in &messages {
        let bytes = postcard::to_stdvec(message).unwrap();
        seeds.push([&[2], bytes.as_slice()].concat());
        seeds.push([&[7, 2, bytes.len() as u8], bytes.as_slice()].concat());
    }
    let header = header(Type::Credit, 8);
    seeds.push([&[0], header.as_slice(), &[0]].concat());
    let nack = Nack { reason: NackReason::Full, end: 8 };
    seeds.push([&[1], nack.bytes().as_slice()].concat());
    seeds.push([&[1], RecordsHeader { epoch: 1, sync: true, ..Default::default() }.bytes().as_slice()].concat());
    // Heartbeat, acknowledgement, credit, bulk, records.
    seeds.push(vec![7, 1, 1, 2, 0, 0, 4, 9, 8, 7, 0, 7, 3, 0, 6, 2, 1, 1, 0, 3, 1, 1, 0]);
    for items in crate::netcopy::conversations() {
        seeds.push([&[3], netcopy::to_bytes(&items).unwrap().as_slice()].concat());
    }
    let reply = Reply::Holding { bits: netcopy::Blob(vec![1, 2]), last: true };
    seeds.push([&[4], netcopy::to_bytes(&reply).unwrap().as_slice()].concat());
    seeds
}
