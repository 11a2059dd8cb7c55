//! A pair that has lived and whose record is gone: deleted by mistake, or lost with the API server's storage. An empty record
//! would let a member begin anew that holds less than was acknowledged. So both members are asked to promise a new epoch and
//! to say where their journals end; from the two follows who holds everything (the rule is the protocol's). While one of
//! them is away nobody is asked: whoever serves goes on serving, until the other is back or a human speaks the last word.

use super::{Situation, force, lost_record};
use sha2::{Digest as _, Sha256};
use tandem_crds::translation;
use tandem_crds::v1alpha1::{
    HandledRequest, MemberName, MemberReport, MemberState, Promise, RecordContent, RequestResult,
};
use tandem_protocol::identity::{Generation, Nonce};
use tandem_protocol::member::Testimony;
use tandem_protocol::record::{self, Certificate, PerMember};

/// Who has to testify: both; or the one whom a human named because the other cannot.
fn witnesses(situation: &Situation<'_>, requests: &[HandledRequest]) -> Vec<MemberName> {
    let forced = requests.iter().find(|request| request.verb == "force" && request.result == RequestResult::Accepted);
    match forced.and_then(|request| request.to) {
        Some(member) if absent(situation) == Some(member.other()) || hopeless(situation) => vec![member],
        Some(_) | None => MemberName::BOTH.to_vec(),
    }
}

/// The first member that cannot testify: it is not there, or has nothing to say.
pub fn absent(situation: &Situation<'_>) -> Option<MemberName> {
    MemberName::BOTH.into_iter().find(|member| able(situation, *member).is_none())
}

/// Both have sworn, and it does not say who holds everything.
fn hopeless(situation: &Situation<'_>) -> bool {
    match of(situation, &MemberName::BOTH, &super::identity(situation)) {
        Err(record::NotRebuilt::NoneWhole | record::NotRebuilt::Contradiction) => true,
        Err(record::NotRebuilt::NotBoth) | Ok(_) => false,
    }
}

fn able<'a>(situation: &'a Situation<'_>, member: MemberName) -> Option<&'a MemberReport> {
    let seen = situation.member(member);
    let report = seen.report.as_ref().filter(|report| report.state != MemberState::Quarantined)?;
    let (heard, _) = (report.highest_epoch?, report.data_id.as_ref()?);
    if report.testimony.is_some() {
        return Some(report);
    }
    // Of a node that is gone the pod and its last report stay for a while.
    let ready =
        |member: MemberName| situation.member(member).pod.as_ref().is_some_and(|pod| pod.ready && !pod.deleting);
    let ending = seen.pod.as_ref().is_none_or(|pod| pod.deleting);
    if ending || (report.serving_epoch.is_some() && !ready(member)) {
        return None;
    }
    // Whoever serves knows better, unless the other has found the record gone since, and waits.
    let missed = situation.member(member.other()).report.as_ref().is_some_and(|other| {
        other.serving_epoch.is_some_and(|served| served >= heard)
            && other.peer_reachable == Some(false)
            && ready(member.other())
    });
    (!missed || report.reason.as_deref() == Some("RecordMissing")).then_some(report)
}

/// What each member is asked to promise now.
pub fn promise(situation: &Situation<'_>, requests: &[HandledRequest], of: MemberName) -> Option<Promise> {
    let witnesses = witnesses(situation, requests);
    if !lost_record(situation) || !witnesses.contains(&of) {
        return None;
    }
    let on_hold = requests.iter().any(|request| request.verb == "hold" && request.result == RequestResult::Accepted);
    if on_hold {
        // Nobody would claim: whoever serves goes on.
        return situation.member(of).asked.clone();
    }
    let reports: Vec<&MemberReport> = witnesses.iter().filter_map(|member| able(situation, *member)).collect();
    if reports.len() < witnesses.len() {
        // What was promised before stays promised.
        return situation.member(of).asked.clone();
    }
    let promise = wanted(situation, &reports);
    let sworn = |member: &MemberName| swears(situation, *member, &promise).is_some();
    // Whoever serves stops last, when nothing else is missing.
    let last = situation.serves_by_its_own_word(of) && witnesses.iter().any(|member| *member != of && !sworn(member));
    (!last).then_some(promise)
}

/// The promise to ask for, in the words of objects. Another one for each loss of the record: what was sworn at an earlier one
/// must not count.
fn wanted(situation: &Situation<'_>, reports: &[&MemberReport]) -> Promise {
    let read = |promise: &Promise| translation::generation(promise).ok();
    let asked = MemberName::BOTH.into_iter().filter_map(|member| read(situation.member(member).asked.as_ref()?));
    let heard: Vec<(u64, Generation)> = reports
        .iter()
        .map(|report| (epoch(report.highest_epoch), report.promised.as_ref().and_then(read).unwrap_or_default()))
        .collect();
    let fresh = |epoch: u64| {
        let digest = Sha256::digest(format!("{}/{epoch}/{}", situation.pair.uid, situation.now.as_nanosecond()));
        Nonce(digest.iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte)))
    };
    let latest = asked.max_by_key(|promise| promise.epoch);
    translation::promise(&record::to_promise(latest, &heard, epoch(situation.seen.status.epoch), fresh))
}

/// An epoch that an object shows; none counts as before the first.
fn epoch(shown: Option<i64>) -> u64 {
    shown.and_then(|epoch| u64::try_from(epoch).ok()).unwrap_or_default()
}

/// What a member swears about this promise.
fn swears(situation: &Situation<'_>, member: MemberName, promise: &Promise) -> Option<(Testimony, Certificate)> {
    let report = able(situation, member)?;
    let testimony = report.testimony.as_ref().filter(|testimony| testimony.promise == *promise)?;
    let certificate = Certificate {
        data_id: translation::data_id(&force::identity(situation, member)?.data_id).ok()?,
        boot: translation::unsigned(report.boot?, "start counter").ok()?,
    };
    let testimony = Testimony {
        generation: translation::generation(promise).ok()?,
        position: translation::position(&testimony.position).ok()?,
        whole: testimony.whole,
    };
    Some((testimony, certificate))
}

/// The new record, or why there is none yet.
pub fn record(
    situation: &Situation<'_>,
    requests: &[HandledRequest],
    pair_id: &str,
) -> Result<RecordContent, record::NotRebuilt> {
    of(situation, &witnesses(situation, requests), pair_id)
}

fn of(situation: &Situation<'_>, witnesses: &[MemberName], pair_id: &str) -> Result<RecordContent, record::NotRebuilt> {
    let asked = |member: &MemberName| situation.member(*member).asked.clone();
    let promise = witnesses.iter().find_map(asked).ok_or(record::NotRebuilt::NotBoth)?;
    let mut sworn = PerMember::default();
    for member in MemberName::BOTH {
        // On a human's word one swears for both.
        let witness = if witnesses.contains(&member) { member } else { member.other() };
        sworn.set(translation::member(member), swears(situation, witness, &promise));
    }
    let founder = witnesses.first().filter(|_| witnesses.len() == 1).copied().unwrap_or(situation.pair.founder);
    let pair = pair_id.parse().map_err(|_| record::NotRebuilt::NotBoth)?;
    record::rebuilt(pair, translation::member(founder), &sworn).map(|record| translation::content(&record))
}

/// The last epoch that anybody has heard of.
pub fn last_epoch(situation: &Situation<'_>) -> i64 {
    let heard =
        MemberName::BOTH.into_iter().filter_map(|member| situation.member(member).report.as_ref()?.highest_epoch);
    situation.seen.status.epoch.filter(|epoch| *epoch > 0).or(heard.max()).unwrap_or_default()
}

/// Why nobody can be made to lead on a human's word while the record is gone.
pub fn refusal(situation: &Situation<'_>, to: MemberName, epoch: i64) -> Option<(&'static str, String)> {
    let last = last_epoch(situation);
    if epoch != last {
        return Some(("OtherEpoch", format!("the pair was in epoch {last} when its record was lost, not in {epoch}")));
    }
    if !situation.pair.electable(to) {
        return Some(("NotElectable", format!("member {to} has electable: false")));
    }
    let Some(report) = able(situation, to) else {
        return Some(("TargetOffline", format!("member {to} is not there, or its volume is a new one")));
    };
    if report.state == MemberState::SecondaryNetcopy || report.testimony.as_ref().is_some_and(|sworn| !sworn.whole) {
        let message = format!("the copy of member {to} is not whole: nothing can lead from it");
        return Some(("TargetDataIncomplete", message));
    }
    if able(situation, to.other()).is_some() && !hopeless(situation) {
        let message = "both members are there: the record is made anew by itself, and nothing is lost".to_string();
        return Some(("NotNeeded", message));
    }
    None
}
