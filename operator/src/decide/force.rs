//! `tandem.dev/force: "<member>@<epoch>/<token>"`: the human's last word, for when the only copy that holds everything does
//! not come back. It names the epoch that is given up and works for that epoch only: whatever happens meanwhile voids it.
//! What is lost is said before; what the given up copy still holds is saved aside when it returns, never thrown away.

use super::{Situation, lost_record, rebuild};
use sha2::{Digest as _, Sha256};
use tandem_crds::v1alpha1::{
    Certified, DataId, DataIdentity, HandledRequest, MemberName, MemberState, RecordContent, RequestResult, Switch,
};

/// How the annotation reads.
pub const SHAPE: &str = "<member>@<epoch>/<token>, for example b@3/last-word";

/// Who shall lead, and the epoch that is given up.
pub fn parse(token: &str) -> Option<(MemberName, i64)> {
    let (target, token) = token.split_once('/')?;
    let (member, epoch) = target.split_once('@')?;
    let epoch = epoch.parse().ok().filter(|epoch| *epoch > 0)?;
    (!token.is_empty()).then_some((member.parse().ok()?, epoch))
}

/// A member that nothing else can make lead although its copy is whole: the certified one is not there.
pub fn candidate(situation: &Situation<'_>) -> Option<MemberName> {
    MemberName::BOTH.into_iter().find(|member| {
        let starts =
            situation.member(member.other()).report.as_ref().is_some_and(|other| other.serving_epoch.is_none());
        situation.state(*member) == MemberState::SecondaryAlone
            && !starts
            && refusal(situation, *member, situation.epoch()).is_none()
    })
}

/// Why this member cannot be forced to lead in place of this epoch.
pub fn refusal(situation: &Situation<'_>, to: MemberName, epoch: i64) -> Option<(&'static str, String)> {
    let other = to.other();
    if lost_record(situation) {
        return rebuild::refusal(situation, to, epoch);
    }
    if situation.seen.record.is_none() || situation.epoch() == 0 {
        return Some(("NobodyLeads", "there is no reign that could be given up".into()));
    }
    if epoch != situation.epoch() {
        return Some(("OtherEpoch", format!("the pair is in epoch {}, not in {epoch}", situation.epoch())));
    }
    if situation.certified(to) {
        let message = format!("member {to} holds every acknowledged write: tandem.dev/failover loses nothing");
        return Some(("NotNeeded", message));
    }
    if !situation.pair.electable(to) {
        return Some(("NotElectable", format!("member {to} has electable: false")));
    }
    let ready = situation.member(other).pod.as_ref().is_some_and(|pod| pod.ready && !pod.deleting);
    if situation.serves(other) && ready {
        return Some(("ActiveServes", format!("member {other} leads and serves: a switchover loses nothing")));
    }
    if identity(situation, to).is_none() {
        return Some(("TargetOffline", format!("member {to} has not reported from its pod")));
    }
    if end(situation, to).is_none_or(|seq| seq == 0) {
        return Some(("TargetDataIncomplete", format!("the copy of member {to} is empty: nothing can lead from it")));
    }
    let whole = match situation.state(to) {
        MemberState::SecondaryAlone | MemberState::SecondaryActive | MemberState::SecondaryCatchUp => {
            !matches!(situation.held_back(to), Some("CopyIncomplete" | "Dirty"))
        }
        MemberState::PrimaryActive
        | MemberState::PrimaryUncertain
        | MemberState::PrimaryAlone
        | MemberState::PrimaryDraining
        | MemberState::SecondaryNetcopy
        | MemberState::Fenced
        | MemberState::Quarantined
        | MemberState::Offline => false,
    };
    (!whole)
        .then(|| ("TargetDataIncomplete", format!("the copy of member {to} is not whole: nothing can lead from it")))
}

/// What the copy of `to` lacks for all that is known. The record's note and the last report may be older than the last write.
pub fn loss(situation: &Situation<'_>, to: MemberName) -> String {
    let noted = situation.seen.record.as_ref().and_then(|record| record.positions.get(to.other()));
    let theirs = end(situation, to.other()).into_iter().chain(noted.map(|position| position.seq)).max();
    match (theirs, end(situation, to)) {
        (Some(theirs), Some(ours)) if theirs > ours => {
            format!("at least {} operations that only member {} holds", theirs - ours, to.other())
        }
        _ => format!("whatever only member {} holds", to.other()),
    }
}

/// The last operation of a member's journal, by its own report.
fn end(situation: &Situation<'_>, member: MemberName) -> Option<i64> {
    situation.member(member).report.as_ref()?.position.as_ref().map(|position| position.seq)
}

/// Which copy of the data a member reports.
pub fn identity(situation: &Situation<'_>, member: MemberName) -> Option<DataIdentity> {
    let seen = situation.member(member);
    let (claim, report) = (seen.claim.as_ref()?, seen.report.as_ref()?);
    let data_id = DataId { volume: claim.uid.clone(), uuid: report.data_id.clone()? };
    Some(DataIdentity { data_id, boot: report.boot? })
}

/// The record that carries an accepted request out: a new epoch that nobody leads yet, whose only certified copy is the one
/// that the human named. Its member claims it like any other.
pub fn record(situation: &Situation<'_>, requests: &[HandledRequest]) -> Option<RecordContent> {
    let asked = requests.iter().find(|request| request.verb == "force" && request.result == RequestResult::Accepted)?;
    let old = situation.seen.record.as_ref().filter(|record| record.epoch == asked.epoch)?;
    let to = asked.to?;
    let mut certified = Certified::default();
    match to {
        MemberName::A => certified.a = identity(situation, to),
        MemberName::B => certified.b = identity(situation, to),
    }
    certified.get(to)?;
    // Another than before, and the same however often this is decided.
    let digest = Sha256::digest(format!("{}/{}/{}", old.nonce, old.epoch, asked.token));
    let nonce: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Some(RecordContent {
        epoch: old.epoch.checked_add(1)?,
        nonce,
        master: None,
        certified,
        wseq: old.wseq.checked_add(1)?,
        request: Some(Switch { id: super::requests::id(asked), to }),
        ..old.clone()
    })
}
