//! The record as an object of the Kubernetes API.

use super::{Kept, RecordError, RecordKeeper};
use crate::api::{Clients, Failed, follow, within};
use crate::settings::ServeSettings;
use futures::FutureExt;
use futures::future::BoxFuture;
use kube::Api;
use kube::api::PostParams;
use std::str::FromStr;
use tandem_crds::v1alpha1 as words;
use tandem_protocol::identity::{DataId, DataUuid, MemberName};
use tandem_protocol::record::{Certificate, Incarnation, PerMember, Request};
use tandem_protocol::{Position, Record};
use tokio::sync::watch;

/// One pair's record.
pub struct KubernetesKeeper {
    api: Api<words::PairRecord>,
    name: String,
    seen: watch::Receiver<Option<Kept>>,
}

impl KubernetesKeeper {
    /// Begins to watch.
    pub fn new(clients: &Clients, settings: &ServeSettings) -> Self {
        let (namespace, pair) = (settings.namespace.as_str(), settings.pair.as_str());
        let mut objects = follow(Api::<words::PairRecord>::namespaced(clients.watching.clone(), namespace), pair);
        let (sender, seen) = watch::channel(None);
        tokio::spawn(async move {
            while objects.changed().await.is_ok() {
                let object = objects.borrow_and_update().clone();
                if let Some(Ok(kept)) = object.map(kept)
                    && sender.send(Some(kept)).is_err()
                {
                    return;
                }
            }
        });
        Self { api: Api::namespaced(clients.fencing.clone(), namespace), name: pair.to_owned(), seen }
    }
}

impl RecordKeeper for KubernetesKeeper {
    fn read(&self) -> BoxFuture<'static, Result<Kept, RecordError>> {
        let (api, name) = (self.api.clone(), self.name.clone());
        async move {
            // Without a resourceVersion: a quorum read.
            match within(api.get(&name)).await {
                Ok(object) => kept(object).map_err(|error| RecordError::Unknown(error.to_string())),
                Err(Failed { code: Some(404), .. }) => Err(RecordError::Absent),
                Err(failed) => Err(RecordError::Unknown(failed.to_string())),
            }
        }
        .boxed()
    }

    fn write(&self, version: String, record: Record) -> BoxFuture<'static, Result<Kept, RecordError>> {
        let (api, name) = (self.api.clone(), self.name.clone());
        async move {
            let mut object = words::PairRecord::new(&name, content(&record));
            object.metadata.resource_version = Some(version);
            match within(api.replace(&name, &PostParams::default(), &object)).await {
                Ok(object) => kept(object).map_err(|error| RecordError::Unknown(error.to_string())),
                Err(failed) if failed.certainly_not_done() => Err(RecordError::Conflict(failed.to_string())),
                Err(failed) => Err(RecordError::Unknown(failed.to_string())),
            }
        }
        .boxed()
    }

    fn watch(&self) -> watch::Receiver<Option<Kept>> {
        self.seen.clone()
    }
}

/// A record that somebody edited by hand, or of a newer version.
#[derive(Debug, thiserror::Error)]
#[error("the record's {0} cannot be read")]
pub struct Unreadable(&'static str);

fn kept(object: words::PairRecord) -> Result<Kept, Unreadable> {
    let version = object.metadata.resource_version.ok_or(Unreadable("version"))?;
    Ok(Kept { record: record(&object.spec)?, version })
}

/// The record as an object's content says it.
pub fn record(content: &words::RecordContent) -> Result<Record, Unreadable> {
    let certificate = |data: &Option<words::DataIdentity>| -> Result<Option<Certificate>, Unreadable> {
        data.as_ref()
            .map(|data| {
                Ok(Certificate { data_id: data_id(&data.data_id)?, boot: unsigned(data.boot, "start counter")? })
            })
            .transpose()
    };
    let position = |position: &Option<words::PositionReport>| -> Result<Option<Position>, Unreadable> {
        position
            .as_ref()
            .map(|position| {
                Ok(Position {
                    epoch: unsigned(position.epoch, "position")?,
                    seq: unsigned(position.seq, "position")?,
                    chain: u64::from_str_radix(&position.chain, 16).map_err(|_| Unreadable("position"))?,
                })
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
        positions: PerMember { a: position(&content.positions.a)?, b: position(&content.positions.b)? },
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

/// A position as objects show it.
pub fn position_report(position: &Position) -> words::PositionReport {
    words::PositionReport {
        epoch: signed(position.epoch),
        seq: signed(position.seq),
        chain: format!("{:016x}", position.chain),
    }
}

/// One text for a copy of the data: the volume and the random number on it.
pub fn data_text(id: &DataId) -> String {
    format!("{}/{}", id.volume, id.uuid)
}

fn data_id(id: &words::DataId) -> Result<DataId, Unreadable> {
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

fn word(name: MemberName) -> words::MemberName {
    match name {
        MemberName::A => words::MemberName::A,
        MemberName::B => words::MemberName::B,
    }
}

fn unsigned(value: i64, what: &'static str) -> Result<u64, Unreadable> {
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
