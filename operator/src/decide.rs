//! From what is wanted and what was found to what is to be done: a function, so that every situation can be asked on paper.
//! Nothing in here grants anybody the right to write: members take that from the record. What is decided is whom to
//! nominate, which pod to replace, where the Service leads, and what to say.

pub mod facts;
pub mod force;
pub mod rebuild;
pub mod requests;

use crate::observed::{MemberSeen, Observed};
use crate::pair::{PerMember, ValidPair};
use crate::plan::{Account, Plan, Replacement};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;
use tandem_crds::v1alpha1::{
    Certified, FailbackMode, HandledRequest, MemberName, MemberSettings, MemberState, MemberSummary, Nomination,
    PerMember as Positions, RecordContent, SavedAside,
};

/// A pair at rest is looked at so often anyway.
const AT_REST: Duration = Duration::from_secs(300);
/// While something is under way.
const SOON: Duration = Duration::from_secs(5);
/// `PreferMaster` goes home when the pair has been in sync for so long.
const SETTLED_SECONDS: i64 = 10;

/// The pair as it stands, in the words of its questions.
pub struct Situation<'a> {
    /// What is wanted.
    pub pair: &'a ValidPair,
    /// What was found.
    pub seen: &'a Observed,
    /// The wall clock, for the age of requests.
    pub now: Timestamp,
}

impl Situation<'_> {
    /// Who leads by the record.
    pub fn active(&self) -> Option<MemberName> {
        self.seen.record.as_ref()?.master.as_ref().map(|master| master.member)
    }

    /// The record's epoch.
    pub fn epoch(&self) -> i64 {
        self.seen.record.as_ref().map_or(0, |record| record.epoch)
    }

    /// Whether the record says that a member holds everything acknowledged.
    pub fn certified(&self, member: MemberName) -> bool {
        self.seen.record.as_ref().is_some_and(|record| record.certified.get(member).is_some())
    }

    /// One member.
    pub fn member(&self, member: MemberName) -> &MemberSeen {
        self.seen.members.get(member)
    }

    /// A member serves the application, for the record's epoch.
    pub fn serves(&self, member: MemberName) -> bool {
        self.active() == Some(member)
            && self.member(member).report.as_ref().is_some_and(|report| report.serving_epoch == Some(self.epoch()))
    }

    /// There is no record that could say who leads, and a member says that it does.
    pub fn serves_by_its_own_word(&self, member: MemberName) -> bool {
        self.seen.record.is_none()
            && self.member(member).report.as_ref().is_some_and(|report| report.serving_epoch.is_some())
    }

    /// Both members hold every acknowledged write, and the leading one waits for the other.
    pub fn in_sync(&self) -> bool {
        self.active().is_some_and(|active| self.serves(active) && self.state(active) == MemberState::PrimaryActive)
            && MemberName::BOTH.iter().all(|member| self.certified(*member))
    }

    /// A member's state: by its own report, unless somebody who must know better contradicts it.
    pub fn state(&self, member: MemberName) -> MemberState {
        let Some(report) = &self.member(member).report else { return MemberState::Offline };
        let leads = matches!(
            report.state,
            MemberState::PrimaryActive
                | MemberState::PrimaryAlone
                | MemberState::PrimaryUncertain
                | MemberState::PrimaryDraining
        );
        // A report is as old as the last change: of a member that is gone it still says what once was.
        if leads && report.serving_epoch.is_some_and(|served| served < self.epoch()) {
            return MemberState::Offline;
        }
        let follows = matches!(
            report.state,
            MemberState::SecondaryActive | MemberState::SecondaryCatchUp | MemberState::SecondaryNetcopy
        );
        let other_serves = self.serves(member.other()) || self.serves_by_its_own_word(member.other());
        let missed = other_serves
            && self.member(member.other()).report.as_ref().is_some_and(|other| other.peer_reachable == Some(false));
        if follows && missed { MemberState::Offline } else { report.state }
    }

    /// What a member keeps beside the pair's data.
    pub fn saved_aside(&self, member: MemberName) -> &[SavedAside] {
        self.member(member).report.as_ref().map_or(&[], |report| &report.saved_aside)
    }

    /// One word for what holds a member back.
    pub fn held_back(&self, member: MemberName) -> Option<&str> {
        self.member(member).report.as_ref()?.reason.as_deref()
    }
}

/// What to do about a pair. Cannot fail: what is missing is part of the situation.
pub fn decide(pair: &ValidPair, seen: &Observed, now: Timestamp) -> Plan {
    let situation = Situation { pair, seen, now };
    let pair_id = identity(&situation);
    let requests = requests::judge(&situation);
    let found = founding(&situation, &requests, &pair_id);
    let nomination = requests::nomination(&requests).or_else(|| homecoming(&situation));
    let members = PerMember::make(|member| settings(&situation, member, nomination.as_ref(), &requests));
    let route = situation.active().filter(|active| situation.serves(*active)).and_then(|active| {
        let there = seen.service.clone().unwrap_or_default();
        let epoch = situation.epoch();
        (there.epoch < epoch || (there.epoch == epoch && there.member != Some(active))).then_some((active, epoch))
    });
    let replace = replacements(&situation);
    let forced = force::record(&situation, &requests);
    let mut account = Account {
        active: situation.active().or(if seen.record.is_none() { seen.status.active } else { None }),
        // Of a record that is gone, what it said last.
        epoch: seen.record.as_ref().map(|record| record.epoch).or(seen.status.epoch),
        members: MemberName::BOTH.iter().map(|member| summary(&situation, *member)).collect(),
        requests,
        ..Account::default()
    };
    if let Some(report) = situation.active().and_then(|active| situation.member(active).report.as_ref()) {
        account.netcopy = report.netcopy.clone();
        account.exposure = report.exposure.clone();
    }
    // What the last leader said of the last copy stays true until somebody says otherwise.
    if account.netcopy.is_none() {
        account.netcopy = seen.status.netcopy.clone();
    }
    account.facts = facts::facts(&situation, &account);
    account.message = facts::message(&account);
    let at_rest = situation.in_sync()
        && replace.is_empty()
        && route.is_none()
        && !account.requests.iter().any(requests::under_way);
    Plan {
        pair_id,
        found,
        forced,
        members,
        route,
        replace,
        may_evict: situation.in_sync() && situation.active().is_some_and(|active| pair.electable(active.other())),
        account,
        look_again: if at_rest { AT_REST } else { SOON },
    }
}

/// Kept in the record; before there is one, on the claims (a pair that is made again over kept volumes); else the object's own id.
fn identity(situation: &Situation<'_>) -> String {
    let seen = situation.seen;
    let on_claims = || {
        seen.members
            .each()
            .into_iter()
            .find_map(|(_, member)| member.claim.as_ref().and_then(|claim| claim.pair_id.clone()))
    };
    let own = || {
        let digits: String = situation.pair.uid.chars().filter(char::is_ascii_hexdigit).collect();
        format!("{:0>32}", digits.to_lowercase().chars().take(32).collect::<String>())
    };
    seen.record.as_ref().map(|record| record.pair.clone()).or_else(on_claims).unwrap_or_else(own)
}

/// A pair that was never founded gets its record. One that was, and has none any more, does not get an empty one: that would
/// let a member begin anew that holds less than was acknowledged.
fn founding(situation: &Situation<'_>, requests: &[HandledRequest], pair_id: &str) -> Option<RecordContent> {
    if situation.seen.record.is_some() {
        return None;
    }
    if lost_record(situation) {
        return rebuild::record(situation, requests, pair_id).ok();
    }
    Some(RecordContent {
        pair: pair_id.to_string(),
        founder: situation.pair.founder,
        epoch: 0,
        nonce: "0".repeat(32),
        master: None,
        certified: Certified::default(),
        wseq: 0,
        positions: Positions::default(),
        request: None,
        last_request: None,
    })
}

/// The pair has lived, and its record is gone.
pub fn lost_record(situation: &Situation<'_>) -> bool {
    let seen = situation.seen;
    let lived = seen.status.epoch.unwrap_or_default() > 0
        || seen
            .members
            .each()
            .iter()
            .any(|(_, member)| member.claim.as_ref().is_some_and(|claim| claim.pair_id.is_some()));
    seen.record.is_none() && lived
}

/// `PreferMaster`: leadership goes home once the pair has been in sync for a while and nothing else is wanted.
fn homecoming(situation: &Situation<'_>) -> Option<Nomination> {
    let pair = situation.pair;
    let home = pair.spec.preferred_master;
    let settled = situation.seen.status.conditions.iter().any(|condition| {
        condition.type_ == "InSync"
            && condition.status == "True"
            && situation.now.as_second() - condition.last_transition_time.0.as_second() >= SETTLED_SECONDS
    });
    let due = pair.spec.failback.mode == FailbackMode::PreferMaster
        && situation.active() == Some(home.other())
        && pair.electable(home)
        && situation.in_sync()
        && settled;
    due.then(|| Nomination {
        request_id: format!("prefer-{}", situation.epoch()),
        epoch_seen: situation.epoch(),
        to: home,
    })
}

fn settings(
    situation: &Situation<'_>,
    member: MemberName,
    nomination: Option<&Nomination>,
    requests: &[HandledRequest],
) -> MemberSettings {
    let (pair, spec) = (situation.pair, &situation.pair.spec);
    MemberSettings {
        pair: pair.name.clone(),
        member,
        electable: pair.electable(member),
        protection: spec.replication.protection,
        ack_policy: spec.replication.ack_policy,
        max_lag_bytes: spec.replication.max_lag_bytes,
        hold_seconds: spec.replication.hold_seconds,
        alone_without_api: spec.replication.alone_without_api,
        interval_milliseconds: spec.health.interval_milliseconds,
        missed_limit: spec.health.missed_limit,
        failover_mode: spec.failover.mode,
        stall_timeout_seconds: spec.bootstrap.stall_timeout_seconds,
        nomination: nomination.filter(|wish| wish.to == member).cloned(),
        orders: requests::orders(member, requests),
        testify: rebuild::promise(situation, requests, member),
    }
}

/// Pods that must go so that new ones come: those whose replicator gave up its right to write, and those of an older template.
/// An active member's pod goes only when the other one can take its place, or when it does not serve anyway.
fn replacements(situation: &Situation<'_>) -> Vec<Replacement> {
    let mut wanted = Vec::new();
    for (member, seen) in situation.seen.members.each() {
        let Some(pod) = seen.pod.as_ref().filter(|pod| !pod.deleting) else { continue };
        let mut want = |reason, message: String| {
            wanted.push(Replacement { member, uid: pod.uid.clone(), reason, message });
        };
        // Not only when it says so itself: one whose process was killed, or that nobody reaches, cannot.
        let deposed = seen
            .report
            .as_ref()
            .and_then(|report| report.serving_epoch)
            .is_some_and(|served| served < situation.epoch() && situation.active() == Some(member.other()));
        let spent = situation.held_back(member) == Some("PodSpent");
        if deposed || spent || situation.state(member) == MemberState::Fenced {
            want("LeadershipLost", format!("member {member} no longer leads: its pod is made anew and follows"));
            continue;
        }
        let newest = seen.workload.as_ref().and_then(|workload| workload.revision.clone());
        let outdated = newest.is_some() && pod.revision.is_some() && newest != pod.revision;
        if !outdated {
            continue;
        }
        let other = situation.member(member.other());
        let other_is_new = other.workload.as_ref().is_some_and(|workload| workload.revision.is_some())
            && other.pod.as_ref().is_some_and(|pod| {
                !pod.deleting && pod.revision == other.workload.as_ref().and_then(|workload| workload.revision.clone())
            });
        // Without a record nobody else could serve instead.
        let serves = situation.serves(member) || situation.serves_by_its_own_word(member);
        if !serves || (situation.in_sync() && other_is_new) {
            want("Outdated", format!("the pod of member {member} is of an older template"));
        }
    }
    // Never both at once: one of them may be the only one that can lead.
    wanted.truncate(1);
    wanted
}

fn summary(situation: &Situation<'_>, member: MemberName) -> MemberSummary {
    let seen = situation.member(member);
    let said = seen.report.as_ref().and_then(|report| report.message.clone().or_else(|| report.reason.clone()));
    let waiting = match &seen.pod {
        None => Some("its pod does not exist".to_string()),
        Some(pod) if pod.deleting => Some("its pod is ending".to_string()),
        Some(pod) => pod.waiting.clone(),
    };
    MemberSummary {
        name: member,
        state: situation.state(member),
        node: seen.pod.as_ref().and_then(|pod| pod.node.clone()),
        certified: situation.certified(member),
        message: said.or(if seen.report.is_none() { waiting } else { None }),
        saved_aside: situation.saved_aside(member).iter().map(|saved| saved.name.clone()).collect(),
    }
}

#[cfg(test)]
mod tests;
