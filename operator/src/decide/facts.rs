//! What there is to say about a pair: conditions with a reason each, and one sentence. Unknown is an answer.

use super::{Situation, force, lost_record, rebuild};
use crate::plan::{Account, Fact, Holds};
use tandem_crds::v1alpha1::{ConditionType, FailoverMode, MemberName, MemberState, NetcopyPhase, RequestResult};
use tandem_protocol::record::NotRebuilt;

fn fact(kind: ConditionType, holds: impl Into<Holds>, reason: &'static str, message: impl Into<String>) -> Fact {
    Fact { kind, holds: holds.into(), reason, message: message.into() }
}

/// All conditions of a pair that can be made.
pub fn facts(situation: &Situation<'_>, account: &Account) -> Vec<Fact> {
    let manual = manual_action(situation);
    let ready = ready(situation);
    let bootstrapped = bootstrapped(situation, account);
    let stalled = manual.holds == Holds::True && ready.holds != Holds::True;
    let busy =
        ready.holds != Holds::True || !situation.in_sync() || account.requests.iter().any(super::requests::under_way);
    let mut facts = vec![
        ready,
        if stalled {
            fact(ConditionType::Stalled, true, manual.reason, manual.message.clone())
        } else {
            fact(ConditionType::Stalled, false, "NotStalled", "")
        },
        if busy && !stalled {
            fact(ConditionType::Reconciling, true, "Progressing", "members are being brought to where they should be")
        } else {
            fact(ConditionType::Reconciling, false, "AtRest", "")
        },
        bootstrapped,
        in_sync(situation),
        failover_ready(situation),
        failed_over(situation),
        manual,
    ];
    facts.extend(reachable(situation));
    let holding = account.requests.iter().any(|r| r.verb == "hold" && r.result == RequestResult::Accepted);
    facts.push(if holding {
        fact(
            ConditionType::Paused,
            true,
            "HoldRequested",
            "no member takes over by itself until the annotation tandem.dev/hold is removed",
        )
    } else {
        fact(ConditionType::Paused, false, "NotAsked", "")
    });
    facts
}

fn ready(situation: &Situation<'_>) -> Fact {
    let kind = ConditionType::Ready;
    if lost_record(situation) {
        let message = "the safety record is gone; it is made anew when both members are there to say what they hold";
        return fact(kind, false, "RecordMissing", message);
    }
    let Some(active) = situation.active() else {
        return fact(kind, false, "NobodyLeads", "no member leads at the moment");
    };
    if !situation.serves(active) {
        let why = situation.member(active).pod.as_ref().and_then(|pod| pod.waiting.clone());
        let message = why.unwrap_or_else(|| format!("member {active} leads but does not serve yet"));
        return fact(kind, false, "NotServing", message);
    }
    let routed = situation
        .seen
        .service
        .as_ref()
        .is_some_and(|service| service.member == Some(active) && service.epoch >= situation.epoch());
    if !routed {
        return fact(kind, false, "NotRouted", format!("the Service does not lead to member {active} yet"));
    }
    match &situation.member(active).pod {
        Some(pod) if pod.ready => fact(kind, true, "Serving", format!("member {active} serves")),
        Some(pod) => {
            let why = pod.waiting.clone().unwrap_or_else(|| "the application is not ready".into());
            fact(kind, false, "ApplicationNotReady", why)
        }
        None => fact(kind, false, "NoPod", format!("the pod of member {active} is gone")),
    }
}

fn bootstrapped(situation: &Situation<'_>, account: &Account) -> Fact {
    let kind = ConditionType::Bootstrapped;
    let before = situation.seen.status.conditions.iter().any(|c| c.type_ == kind.name() && c.status == "True");
    if before || situation.in_sync() {
        return fact(kind, true, "InSyncOnce", "both members have been in sync");
    }
    let Some(active) = situation.active().filter(|active| situation.serves(*active)) else {
        let founder = situation.seen.record.as_ref().map_or(situation.pair.founder, |record| record.founder);
        return fact(kind, false, "WaitingForMaster", format!("member {founder} has not begun yet"));
    };
    match account.netcopy.as_ref().map(|netcopy| netcopy.phase) {
        Some(NetcopyPhase::Failed) => {
            let why = account.netcopy.as_ref().and_then(|netcopy| netcopy.message.clone()).unwrap_or_default();
            fact(kind, false, "NetcopyFailed", format!("the copy to member {} failed: {why}", active.other()))
        }
        Some(NetcopyPhase::Copying | NetcopyPhase::Replaying | NetcopyPhase::Pending) => {
            fact(kind, false, "NetcopyRunning", format!("everything is being copied to member {}", active.other()))
        }
        Some(NetcopyPhase::Completed) | None => {
            fact(kind, false, "WaitingForReplicant", format!("member {} has not joined yet", active.other()))
        }
    }
}

fn in_sync(situation: &Situation<'_>) -> Fact {
    let kind = ConditionType::InSync;
    if situation.in_sync() {
        return fact(kind, true, "BothHoldEverything", "both members hold every acknowledged write");
    }
    match situation.active() {
        Some(active) if situation.serves(active) => fact(
            kind,
            false,
            "ReplicantBehind",
            format!("only member {active} holds every acknowledged write for certain"),
        ),
        Some(active) => {
            fact(kind, Holds::Unknown, "NoReport", format!("member {active} leads and has not reported from its pod"))
        }
        None => fact(kind, false, "NobodyLeads", "no member leads at the moment"),
    }
}

fn failover_ready(situation: &Situation<'_>) -> Fact {
    let kind = ConditionType::FailoverReady;
    let Some(active) = situation.active() else {
        return fact(kind, false, "NobodyLeads", "no member leads at the moment");
    };
    let target = active.other();
    if !situation.pair.electable(target) {
        return fact(kind, false, "NotElectable", format!("member {target} has electable: false and never leads"));
    }
    if !situation.certified(target) {
        return match situation.state(target) {
            MemberState::Offline => fact(kind, false, "TargetOffline", format!("member {target} is not there")),
            MemberState::SecondaryCatchUp => fact(kind, false, "TargetBehind", format!("member {target} catches up")),
            MemberState::PrimaryActive
            | MemberState::PrimaryUncertain
            | MemberState::PrimaryAlone
            | MemberState::PrimaryDraining
            | MemberState::SecondaryActive
            | MemberState::SecondaryAlone
            | MemberState::SecondaryNetcopy
            | MemberState::Fenced
            | MemberState::Quarantined => fact(
                kind,
                false,
                "TargetDataIncomplete",
                format!("member {target} does not hold every acknowledged write"),
            ),
        };
    }
    if situation.state(target) == MemberState::Offline {
        return fact(kind, false, "TargetOffline", format!("member {target} holds everything but is not there"));
    }
    match situation.pair.spec.failover.mode {
        FailoverMode::Automatic => fact(kind, true, "TargetHoldsEverything", format!("member {target} can take over")),
        FailoverMode::Manual => fact(
            kind,
            true,
            "TargetHoldsEverything",
            format!("member {target} can take over when tandem.dev/failover asks for it"),
        ),
    }
}

fn failed_over(situation: &Situation<'_>) -> Fact {
    let kind = ConditionType::FailedOver;
    let home = situation.pair.spec.preferred_master;
    match situation.active() {
        Some(active) if active == home => fact(kind, false, "AtHome", format!("member {home} leads, as preferred")),
        Some(active) => {
            let message = format!("member {active} leads instead of {home}; tandem.dev/failback brings it home");
            fact(kind, true, "OtherMemberLeads", message)
        }
        None => fact(kind, Holds::Unknown, "NobodyLeads", "no member leads at the moment"),
    }
}

fn manual_action(situation: &Situation<'_>) -> Fact {
    let kind = ConditionType::ManualActionRequired;
    if lost_record(situation)
        && let Some(missing) = without_record(situation)
    {
        return fact(kind, true, "RecordMissing", missing);
    }
    for member in MemberName::BOTH {
        if situation.state(member) == MemberState::Quarantined {
            let said = situation.member(member).report.as_ref().and_then(|report| report.message.clone());
            let message = said.unwrap_or_else(|| format!("member {member} waits for a human"));
            return fact(kind, true, word(situation.held_back(member)), message);
        }
    }
    let waits = |member: MemberName| {
        situation.state(member) == MemberState::SecondaryAlone
            && situation.certified(member)
            && situation.pair.electable(member)
            && situation.member(member.other()).report.as_ref().is_none_or(|other| other.serving_epoch.is_none())
    };
    if situation.pair.spec.failover.mode == FailoverMode::Manual
        && situation.epoch() > 0
        && let Some(member) = MemberName::BOTH.into_iter().find(|member| waits(*member))
    {
        let message = format!("member {member} holds everything and waits for the annotation tandem.dev/failover");
        return fact(kind, true, "FailoverPending", message);
    }
    if let Some(member) = force::candidate(situation) {
        let (other, epoch) = (member.other(), situation.epoch());
        let message = format!(
            "only member {other} holds every acknowledged write, and it is not there: bring it back, or give up {} with \
             tandem.dev/force={member}@{epoch}/<token>",
            force::loss(situation, member)
        );
        return fact(kind, true, "CertifiedCopyAway", message);
    }
    fact(kind, false, "NothingToDo", "")
}

/// What only a human can do about a record that is gone.
fn without_record(situation: &Situation<'_>) -> Option<String> {
    let pair = &situation.pair.name;
    if let Some(away) = rebuild::absent(situation) {
        let (there, epoch) = (away.other(), rebuild::last_epoch(situation));
        let last_word = rebuild::refusal(situation, there, epoch).is_none();
        let or = if last_word {
            format!(", or give up what only it holds with tandem.dev/force={there}@{epoch}/<token>")
        } else {
            String::new()
        };
        let report = situation.member(away).report.as_ref();
        let why = if situation.state(away) == MemberState::Quarantined {
            format!(
                "member {away} is quarantined: {}",
                report.and_then(|said| said.message.clone()).unwrap_or_default()
            )
        } else if report.is_some_and(|report| report.highest_epoch.is_none()) {
            format!("the volume of member {away} is a new one, which cannot say what the former one held")
        } else {
            format!("member {away} is not there to say what it holds")
        };
        return Some(format!("the PairRecord {pair} is gone, and {why}: bring it back{or}"));
    }
    match rebuild::record(situation, &[], &super::identity(situation)) {
        Err(why @ (NotRebuilt::NoneWhole | NotRebuilt::Contradiction)) => Some(format!(
            "the PairRecord {pair} is gone and cannot be made anew: {why}; tandem.dev/force names the member that shall lead"
        )),
        // It is being made.
        Err(NotRebuilt::NotBoth) | Ok(_) => None,
    }
}

/// Reasons of quarantine are words of ours already; a word from a newer replicator is shown as what it is in the message.
fn word(said: Option<&str>) -> &'static str {
    const KNOWN: [&str; 9] = [
        "ForeignData",
        "OtherPair",
        "OtherMember",
        "Corrupt",
        "RolledBack",
        "RecordRolledBack",
        "Diverged",
        "NeedsSpace",
        "RecordMissing",
    ];
    KNOWN.into_iter().find(|known| Some(*known) == said).unwrap_or("Quarantined")
}

fn reachable(situation: &Situation<'_>) -> [Fact; 3] {
    let report = situation.active().and_then(|active| situation.member(active).report.as_ref());
    let peer = match report.and_then(|report| report.peer_reachable) {
        Some(true) => fact(ConditionType::PeerReachable, true, "Connected", "the members are connected"),
        Some(false) => fact(ConditionType::PeerReachable, false, "Disconnected", "the members are not connected"),
        None => fact(ConditionType::PeerReachable, Holds::Unknown, "NoReport", "the active member has not reported"),
    };
    let uncertain = situation.active().is_some_and(|active| situation.state(active) == MemberState::PrimaryUncertain);
    let uncertain = if uncertain {
        let message = "the active member has lost its peer and holds writes until the record says that it is alone";
        fact(ConditionType::Uncertain, true, "PeerLost", message)
    } else {
        fact(ConditionType::Uncertain, false, "Certain", "")
    };
    let diverged = MemberName::BOTH.iter().any(|member| situation.held_back(*member) == Some("Diverged"));
    let diverged = if diverged {
        fact(ConditionType::Diverged, true, "BothWrote", "both members hold writes that the other does not have")
    } else {
        fact(ConditionType::Diverged, false, "OneHistory", "")
    };
    [peer, uncertain, diverged]
}

/// The sentence that `kubectl get pairs` shows: what asks for attention first.
pub fn message(account: &Account) -> String {
    let holds = |kind: ConditionType| account.facts.iter().find(|fact| fact.kind == kind);
    let manual = holds(ConditionType::ManualActionRequired).filter(|fact| fact.holds == Holds::True);
    let unready = holds(ConditionType::Ready).filter(|fact| fact.holds != Holds::True);
    let behind = holds(ConditionType::InSync).filter(|fact| fact.holds != Holds::True);
    let begun = holds(ConditionType::Bootstrapped).filter(|fact| fact.holds != Holds::True);
    let away = holds(ConditionType::FailedOver).filter(|fact| fact.holds == Holds::True);
    let first = [manual, unready, begun, behind, away].into_iter().flatten().next();
    first.or_else(|| holds(ConditionType::InSync)).map(|fact| fact.message.clone()).unwrap_or_default()
}
