//! The pair's record: the one object that decides who may write. What it holds, and which changes of it are legal.
//! The API server checks the same rules (CEL on the PairRecord); here they are for the members and the model.

use serde::{Deserialize, Serialize};

use crate::Position;
use crate::identity::{DataId, Generation, MemberName, Nonce, PairId};
use crate::member::Testimony;

/// The opaque version of the stored object. A write names the version it replaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub String);

/// One value per member, either may be missing. In JSON `{"a": ..., "b": ...}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PerMember<T> {
    /// Of member a.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub a: Option<T>,
    /// Of member b.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub b: Option<T>,
}

fn none<T>() -> Option<T> {
    None
}

impl<T> Default for PerMember<T> {
    fn default() -> Self {
        Self { a: None, b: None }
    }
}

impl<T> PerMember<T> {
    /// One member's value only.
    pub fn only(member: MemberName, value: T) -> Self {
        Self::default().with(member, value)
    }

    /// This, with one member's value.
    pub fn with(mut self, member: MemberName, value: T) -> Self {
        self.set(member, Some(value));
        self
    }

    /// One member's value.
    pub fn get(&self, member: MemberName) -> Option<&T> {
        match member {
            MemberName::A => self.a.as_ref(),
            MemberName::B => self.b.as_ref(),
        }
    }

    /// Replaces one member's value.
    pub fn set(&mut self, member: MemberName, value: Option<T>) {
        match member {
            MemberName::A => self.a = value,
            MemberName::B => self.b = value,
        }
    }

    /// Neither has one.
    pub fn is_empty(&self) -> bool {
        self.a.is_none() && self.b.is_none()
    }

    /// Exactly this member has one.
    pub fn is_only(&self, member: MemberName) -> bool {
        self.get(member).is_some() && self.get(member.peer()).is_none()
    }

    /// Both have one.
    pub fn is_both(&self) -> bool {
        self.a.is_some() && self.b.is_some()
    }
}

/// A member in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// Which one.
    pub member: MemberName,
    /// Its boot counter.
    pub boot: u64,
}

/// A copy that holds every operation acknowledged so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// Which copy of the data: another copy under the same member's name is not meant.
    pub data_id: DataId,
    /// In which life of the replicator.
    pub boot: u64,
}

/// A switchover that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Request {
    /// The user's token: executed once.
    pub id: String,
    /// Who shall lead.
    pub to: MemberName,
}

/// How the ids of requests begin that are a human's last word (`tandem.dev/force`); the record's rules know it too.
pub const FORCED: &str = "force-";

/// Content of the PairRecord.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Whose record.
    pub pair: PairId,
    /// Counted up by one at each claim; 0 = founded, never led.
    pub epoch: u64,
    /// Of the claim that began the epoch.
    pub nonce: Nonce,
    /// Who leads; none after a release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<Incarnation>,
    /// The in-sync marker: every operation acknowledged to the application is in the journal of each of these.
    #[serde(default)]
    pub certified: PerMember<Certificate>,
    /// Counted up in every write: an identical PUT would not move the object's version, and a late write would still fit.
    pub wseq: u64,
    /// Where the members stood lately; lets a volume that was rolled back be noticed.
    #[serde(default)]
    pub positions: PerMember<Position>,
    /// The switchover in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Request>,
    /// Id of the last switchover that was carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_request: Option<String>,
    /// Who may claim epoch 1.
    pub founder: MemberName,
}

impl Record {
    /// The member that a human ordered to lead and that has not claimed yet.
    pub fn forced_to(&self) -> Option<MemberName> {
        let request = self.request.as_ref().filter(|request| request.id.starts_with(FORCED))?;
        self.master.is_none().then_some(request.to)
    }

    /// The record of a new pair.
    pub fn founded(pair: PairId, founder: MemberName) -> Self {
        Self {
            pair,
            epoch: 0,
            nonce: Nonce::default(),
            master: None,
            certified: PerMember::default(),
            wseq: 0,
            positions: PerMember::default(),
            request: None,
            last_request: None,
            founder,
        }
    }

    /// The reign it names.
    pub fn generation(&self) -> Generation {
        Generation { epoch: self.epoch, nonce: self.nonce }
    }

    /// `member` leads.
    pub fn led_by(&self, member: MemberName) -> bool {
        self.master.is_some_and(|master| master.member == member)
    }

    /// `member`, with exactly this copy of the data, holds everything acknowledged.
    pub fn certifies(&self, member: MemberName, data_id: &DataId) -> bool {
        self.certified.get(member).is_some_and(|certificate| certificate.data_id == *data_id)
    }
}

/// What is wrong with a change of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Violation {
    /// Identity changed.
    #[error("the pair's id and founder never change")]
    Identity,
    /// `wseq` did not grow by one.
    #[error("wseq grows by one in every write")]
    Wseq,
    /// The epoch went back or jumped.
    #[error("an epoch follows the one before it")]
    Epoch,
    /// Same epoch, other nonce, or new epoch, same nonce.
    #[error("the nonce changes with the epoch and only then")]
    Nonce,
    /// A claim by somebody who is not certified, or who does not become the only certified one.
    #[error("only a certified member may claim, and is then the only certified one")]
    Claim,
    /// The first claim by another than the founder.
    #[error("only the founder may claim the first epoch")]
    Founding,
    /// Within an epoch another took the lead.
    #[error("within an epoch the master stays or releases")]
    Master,
    /// Within an epoch the marker lost its master, or a record without master changed its marker.
    #[error("within an epoch the marker names the master, alone or with its peer")]
    Certified,
}

/// Whether a member may replace `old` by `new`.
pub fn check(old: &Record, new: &Record) -> Result<(), Violation> {
    common(old, new)?;
    if new.epoch == old.epoch { within_epoch(old, new) } else { claim(old, new) }
}

/// Whether the operator may replace `old` by `new` on a human's word: a new epoch without a master whose only certified
/// member is the one the human named. That member then claims like any other.
pub fn check_forced(old: &Record, new: &Record) -> Result<(), Violation> {
    common(old, new)?;
    if new.epoch == old.epoch {
        return Err(Violation::Epoch);
    }
    if new.master.is_some() {
        return Err(Violation::Master);
    }
    if new.certified.is_only(MemberName::A) || new.certified.is_only(MemberName::B) {
        Ok(())
    } else {
        Err(Violation::Certified)
    }
}

/// Why two testimonies make no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NotRebuilt {
    /// One of them is missing, or they promise different generations.
    #[error("both members have to testify for one and the same generation")]
    NotBoth,
    /// No copy may lead.
    #[error("neither copy is whole")]
    NoneWhole,
    /// Both end at the same operation of the same epoch, with other contents before it.
    #[error("the members' journals contradict each other")]
    Contradiction,
}

/// What the members of a pair without a record are asked to promise: what they were asked already, unless somebody has heard
/// of a later epoch meanwhile; else the epoch after every one that anybody has heard of, with a nonce never used before.
///
/// `heard`: of each witness the highest epoch and what it promised last; `later_than`: another epoch known to be over.
pub fn to_promise(
    asked: Option<Generation>,
    heard: &[(u64, Generation)],
    later_than: u64,
    nonce: impl FnOnce(u64) -> Nonce,
) -> Generation {
    let fits = |asked: &Generation| heard.iter().all(|(highest, promised)| *highest < asked.epoch || promised == asked);
    asked.filter(fits).unwrap_or_else(|| {
        let last = heard.iter().map(|(highest, _)| *highest).max().unwrap_or_default().max(later_than);
        let epoch = last.saturating_add(1);
        Generation { epoch, nonce: nonce(epoch) }
    })
}

/// The record of a pair whose record is gone, from what both members swear: a new epoch that nobody leads yet, with the
/// fuller copy as the only certified one, and the one that shall claim. A copy that is not whole was following the other when
/// it became so, and was never certified since: the other one counts then, whatever stands in the journals. (A copy that is
/// not whole because its volume is a new one does not testify.)
pub fn rebuilt(
    pair: PairId,
    founder: MemberName,
    sworn: &PerMember<(Testimony, Certificate)>,
) -> Result<Record, NotRebuilt> {
    let (Some(a), Some(b)) = (&sworn.a, &sworn.b) else { return Err(NotRebuilt::NotBoth) };
    if a.0.generation != b.0.generation {
        return Err(NotRebuilt::NotBoth);
    }
    let order = |(testimony, _): &(Testimony, Certificate)| (testimony.position.epoch, testimony.position.seq);
    let fuller = match (a.0.whole, b.0.whole) {
        (false, false) => return Err(NotRebuilt::NoneWhole),
        (true, false) => MemberName::A,
        (false, true) => MemberName::B,
        (true, true) => match order(a).cmp(&order(b)) {
            std::cmp::Ordering::Greater => MemberName::A,
            std::cmp::Ordering::Less => MemberName::B,
            std::cmp::Ordering::Equal if a.0.position == b.0.position => founder,
            std::cmp::Ordering::Equal => return Err(NotRebuilt::Contradiction),
        },
    };
    let (testimony, certificate) = if fuller == MemberName::A { a } else { b };
    Ok(Record {
        epoch: testimony.generation.epoch,
        nonce: testimony.generation.nonce,
        certified: PerMember::only(fuller, certificate.clone()),
        positions: PerMember { a: Some(a.0.position), b: Some(b.0.position) },
        wseq: 1,
        request: Some(Request { id: format!("rebuilt-{}", testimony.generation.nonce), to: fuller }),
        ..Record::founded(pair, founder)
    })
}

fn common(old: &Record, new: &Record) -> Result<(), Violation> {
    if new.pair != old.pair || new.founder != old.founder {
        return Err(Violation::Identity);
    }
    if Some(new.wseq) != old.wseq.checked_add(1) {
        return Err(Violation::Wseq);
    }
    if new.epoch != old.epoch && Some(new.epoch) != old.epoch.checked_add(1) {
        return Err(Violation::Epoch);
    }
    if (new.epoch == old.epoch) != (new.nonce == old.nonce) {
        return Err(Violation::Nonce);
    }
    Ok(())
}

fn claim(old: &Record, new: &Record) -> Result<(), Violation> {
    let Some(master) = new.master else { return Err(Violation::Claim) };
    if !new.certified.is_only(master.member) {
        return Err(Violation::Claim);
    }
    if old.epoch == 0 {
        return if master.member == old.founder { Ok(()) } else { Err(Violation::Founding) };
    }
    match (old.certified.get(master.member), new.certified.get(master.member)) {
        (Some(before), Some(after)) if before.data_id == after.data_id => Ok(()),
        (Some(_) | None, Some(_) | None) => Err(Violation::Claim),
    }
}

fn within_epoch(old: &Record, new: &Record) -> Result<(), Violation> {
    match (old.master, new.master) {
        (Some(before), Some(after)) if before == after => {
            let before_own = old.certified.get(before.member);
            let after_own = new.certified.get(before.member);
            if after_own.is_some() && before_own == after_own { Ok(()) } else { Err(Violation::Certified) }
        }
        // A release leaves the marker as it is.
        (Some(_) | None, None) if old.certified == new.certified => Ok(()),
        (Some(_) | None, None) => Err(Violation::Certified),
        (Some(_) | None, Some(_)) => Err(Violation::Master),
    }
}
