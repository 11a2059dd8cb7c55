//! The record and its parts, from the words of the objects to those of the protocol and back. One translation for both
//! programs: what one writes the other must read as the same.

use crate::v1alpha1 as words;
use std::str::FromStr;
use tandem_protocol::identity::{DataId, DataUuid, Generation};
use tandem_protocol::record::{Certificate, Incarnation, PerMember, Request};
use tandem_protocol::{MemberName, Position, Record};

/// A record that somebody edited by hand, or of a newer version.
#[derive(Debug)]
pub struct Unreadable(pub &'static str);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the record's {} cannot be read", self.0)
    }
}

impl std::error::Error for Unreadable {}

/// The record as an object's content says it.
pub fn record(content: &words::RecordContent) -> Result<Record, Unreadable> {
    let certificate = |data: &Option<words::DataIdentity>| -> Result<Option<Certificate>, Unreadable> {
        data.as_ref()
            .map(|data| {
                Ok(Certificate { data_id: data_id(&data.data_id)?, boot: unsigned(data.boot, "start counter")? })
            })
            .transpose()
    };
    Ok(Record {
        pair: content.pair.parse().map_err(|_| Unreadable("pair"))?,
        epoch: unsigned(content.epoch, "epoch")?,
        nonce: content.nonce.parse().map_err(|_| Unreadable("nonce"))?,
        master: content
            .master
            .as_ref()
            .map(|master| {
                Ok(Incarnation { member: member(master.member), boot: unsigned(master.boot, "start counter")? })
            })
            .transpose()?,
        certified: PerMember { a: certificate(&content.certified.a)?, b: certificate(&content.certified.b)? },
        wseq: unsigned(content.wseq, "wseq")?,
        positions: PerMember {
            a: content.positions.a.as_ref().map(position).transpose()?,
            b: content.positions.b.as_ref().map(position).transpose()?,
        },
        request: content.request.as_ref().map(|switch| Request { id: switch.id.clone(), to: member(switch.to) }),
        last_request: content.last_request.clone(),
        founder: member(content.founder),
    })
}

/// The object's content that says a record.
pub fn content(record: &Record) -> words::RecordContent {
    let data = |certificate: &Option<Certificate>| {
        certificate.as_ref().map(|certificate| words::DataIdentity {
            data_id: words::DataId {
                volume: certificate.data_id.volume.clone(),
                uuid: certificate.data_id.uuid.to_string(),
            },
            boot: signed(certificate.boot),
        })
    };
    words::RecordContent {
        pair: record.pair.to_string(),
        founder: word(record.founder),
        epoch: signed(record.epoch),
        nonce: record.nonce.to_string(),
        master: record.master.map(|master| words::Master { member: word(master.member), boot: signed(master.boot) }),
        certified: words::Certified { a: data(&record.certified.a), b: data(&record.certified.b) },
        wseq: signed(record.wseq),
        positions: words::PerMember {
            a: record.positions.a.as_ref().map(position_report),
            b: record.positions.b.as_ref().map(position_report),
        },
        request: record.request.as_ref().map(|request| words::Switch { id: request.id.clone(), to: word(request.to) }),
        last_request: record.last_request.clone(),
    }
}

/// What a member is asked to promise.
pub fn generation(asked: &words::Promise) -> Result<Generation, Unreadable> {
    Ok(Generation {
        epoch: unsigned(asked.epoch, "epoch")?,
        nonce: asked.nonce.parse().map_err(|_| Unreadable("nonce"))?,
    })
}

/// A promise as objects show it.
pub fn promise(generation: &Generation) -> words::Promise {
    words::Promise { epoch: signed(generation.epoch), nonce: generation.nonce.to_string() }
}

/// The position that an object shows.
pub fn position(shown: &words::PositionReport) -> Result<Position, Unreadable> {
    Ok(Position {
        epoch: unsigned(shown.epoch, "position")?,
        seq: unsigned(shown.seq, "position")?,
        chain: u64::from_str_radix(&shown.chain, 16).map_err(|_| Unreadable("position"))?,
    })
}

/// A position as objects show it.
pub fn position_report(position: &Position) -> words::PositionReport {
    words::PositionReport {
        epoch: signed(position.epoch),
        seq: signed(position.seq),
        chain: format!("{:016x}", position.chain),
    }
}

/// The copy of the data that an object names.
pub fn data_id(id: &words::DataId) -> Result<DataId, Unreadable> {
    let uuid = DataUuid::from_str(&id.uuid).map_err(|_| Unreadable("data identity"))?;
    Ok(DataId { volume: id.volume.clone(), uuid })
}

/// The other crate's word for a member.
pub fn member(name: words::MemberName) -> MemberName {
    match name {
        words::MemberName::A => MemberName::A,
        words::MemberName::B => MemberName::B,
    }
}

/// Our word for a member.
pub fn word(name: MemberName) -> words::MemberName {
    match name {
        MemberName::A => words::MemberName::A,
        MemberName::B => words::MemberName::B,
    }
}

/// What an object holds as a signed number.
pub fn unsigned(value: i64, what: &'static str) -> Result<u64, Unreadable> {
    u64::try_from(value).map_err(|_| Unreadable(what))
}

/// The API knows signed numbers only; none of ours comes near the end.
pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_protocol::identity::{Nonce, PairId};

    #[test]
    fn a_record_survives_the_way_through_the_object() {
        let certificate = Certificate { data_id: DataId { volume: "claim/uid".into(), uuid: DataUuid(5) }, boot: 3 };
        let position = Position { epoch: 4, seq: 9, chain: u64::MAX };
        let there = Record {
            epoch: 4,
            nonce: Nonce(u128::MAX),
            master: Some(Incarnation { member: MemberName::B, boot: 3 }),
            certified: PerMember::only(MemberName::B, certificate),
            wseq: 17,
            positions: PerMember::only(MemberName::A, position),
            request: Some(Request { id: "t".into(), to: MemberName::A }),
            last_request: Some("s".into()),
            ..Record::founded(PairId(1), MemberName::A)
        };
        assert_eq!(record(&content(&there)).unwrap(), there);
        let founded = Record::founded(PairId(1), MemberName::A);
        assert_eq!(record(&content(&founded)).unwrap(), founded);
    }
}
