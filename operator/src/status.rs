//! The status of a pair: computed from what was planned and done, also when something failed, and written here only, only
//! if it changed. What changed since the last one is told as Events.

use crate::act::{Acted, MANAGER};
use crate::clock;
use crate::context::Context;
use crate::events::Happening;
use crate::pair::ValidPair;
use crate::plan::{Account, Fact, Holds, Plan};
use crate::validate::Refusal;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tandem_crds::v1alpha1::{
    ConditionType, HistoryEntry, MemberName, NetcopyPhase, ReplicationPair, ReplicationPairStatus, RequestResult,
};

const HISTORY_MAX: usize = 16;
/// So often a status is written to a pair of which something else changes meanwhile.
const TRIES: usize = 4;

/// Why the status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write the status: {0}")]
pub struct StatusError(Box<kube::Error>);

/// Says of a pair that it cannot be made, and why. What was made before stays as it is.
pub async fn refuse(context: &Context, object: &ReplicationPair, refusal: &Refusal) -> Result<(), StatusError> {
    let before = object.status.clone().unwrap_or_default();
    let message = refusal.to_string();
    let fact = |kind, holds, reason| Fact { kind, holds, reason, message: message.clone() };
    let mut facts = vec![
        fact(ConditionType::Stalled, Holds::True, "InvalidSpec"),
        fact(ConditionType::Reconciling, Holds::False, "InvalidSpec"),
        fact(ConditionType::ManualActionRequired, Holds::True, "InvalidSpec"),
    ];
    // A pair that lives goes on with the settings it had.
    if before.conditions.is_empty() {
        facts.push(fact(ConditionType::Ready, Holds::False, "InvalidSpec"));
    }
    let mut after = before.clone();
    after.observed_generation = object.metadata.generation;
    after.message = Some(cut(&message, 512));
    let conditions = conditions(&before.conditions, &facts, object.metadata.generation, clock::now());
    after.conditions.retain(|old| !conditions.iter().any(|new| new.type_ == old.type_));
    after.conditions.extend(conditions);
    let happenings = if before.message == after.message {
        Vec::new()
    } else {
        vec![Happening { reason: "InvalidSpec".into(), message, warning: true }]
    };
    if put(context, object, &before, &after).await? {
        context.events.tell(object, &happenings).await;
    }
    Ok(())
}

/// Writes what a turn came to.
pub async fn write(
    context: &Context,
    object: &ReplicationPair,
    pair: &ValidPair,
    plan: &Plan,
    acted: Option<&Acted>,
    failed: Option<&str>,
) -> Result<(), StatusError> {
    let before = object.status.clone().unwrap_or_default();
    let now = clock::now();
    let mut happenings = happenings(&before, &plan.account, pair.spec.preferred_master);
    for replaced in acted.iter().flat_map(|acted| &acted.replaced) {
        happenings.push(Happening {
            reason: "PodReplaced".into(),
            message: format!("{} ({})", replaced.message, replaced.reason),
            warning: false,
        });
    }
    let after = status(&before, pair, &plan.account, &happenings, failed, now);
    if put(context, object, &before, &after).await? {
        context.events.tell(object, &happenings).await;
    }
    Ok(())
}

/// Whether it is what the status says now. It is not if the status is no longer the one that was looked at: the watch brings
/// the newer one, and a turn that looks again. Otherwise a request that was answered could be judged once more, by what it
/// has changed.
async fn put(
    context: &Context,
    object: &ReplicationPair,
    before: &ReplicationPairStatus,
    after: &ReplicationPairStatus,
) -> Result<bool, StatusError> {
    if before == after {
        return Ok(true);
    }
    let name = object.name_any();
    let api = Api::<ReplicationPair>::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let failed = |error| StatusError(Box::new(error));
    let mut version = object.resource_version();
    for _ in 0..TRIES {
        let whole = json!({
            "apiVersion": "tandem.dev/v1alpha1", "kind": "ReplicationPair", "status": after,
            "metadata": {"name": name, "uid": object.uid(), "resourceVersion": version},
        });
        let written = api.patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&whole)).await;
        match written {
            Ok(written) => {
                context.keep(written);
                return Ok(true);
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            // Deleted meanwhile: nobody is left to tell.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
        // Somebody annotated it, most likely. What was done is told all the same, if nobody else told anything.
        let now = api.get_opt(&name).await.map_err(failed)?;
        let same =
            |now: &ReplicationPair| now.uid() == object.uid() && now.status.clone().unwrap_or_default() == *before;
        let Some(now) = now.filter(same) else { return Ok(false) };
        version = now.resource_version();
    }
    Ok(false)
}

/// The status that follows.
fn status(
    before: &ReplicationPairStatus,
    pair: &ValidPair,
    account: &Account,
    happenings: &[Happening],
    failed: Option<&str>,
    now: Timestamp,
) -> ReplicationPairStatus {
    let mut history = before.history.clone();
    history.extend(happenings.iter().map(|happening| HistoryEntry {
        at: Time(now),
        reason: cut(&happening.reason, 64),
        message: cut(&happening.message, 256),
        epoch: account.epoch.unwrap_or_default(),
    }));
    history.drain(..history.len().saturating_sub(HISTORY_MAX));
    let mut message = account.message.clone();
    if let Some(failed) = failed {
        message = format!("{message} (not everything could be done: {failed})");
    }
    ReplicationPairStatus {
        observed_generation: Some(pair.generation),
        active: account.active,
        epoch: account.epoch,
        message: Some(cut(&message, 512)),
        members: account.members.clone(),
        netcopy: account.netcopy.clone(),
        exposure: account.exposure.clone(),
        handled_requests: account.requests.clone(),
        history,
        conditions: conditions(&before.conditions, &account.facts, Some(pair.generation), now),
    }
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

/// A condition keeps its time for as long as its status does.
fn conditions(before: &[Condition], facts: &[Fact], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    facts
        .iter()
        .map(|fact| {
            let old = before.iter().find(|old| old.type_ == fact.kind.name() && old.status == fact.holds.word());
            Condition {
                type_: fact.kind.name().to_string(),
                status: fact.holds.word().to_string(),
                reason: fact.reason.to_string(),
                message: cut(&fact.message, 1000),
                observed_generation: generation,
                last_transition_time: old.map_or(Time(now), |old| old.last_transition_time.clone()),
            }
        })
        .collect()
}

/// What happened between a status and what is to follow it.
fn happenings(before: &ReplicationPairStatus, after: &Account, home: MemberName) -> Vec<Happening> {
    let mut told = Vec::new();
    let mut tell = |reason: &str, warning: bool, message: String| {
        told.push(Happening { reason: reason.to_string(), message, warning });
    };
    let held = |kind: ConditionType| {
        before.conditions.iter().any(|condition| condition.type_ == kind.name() && condition.status == "True")
    };
    let fact = |kind: ConditionType| after.facts.iter().find(|fact| fact.kind == kind);
    let holds = |kind: ConditionType| fact(kind).is_some_and(|fact| fact.holds == Holds::True);

    if let (Some(active), Some(epoch)) = (after.active, after.epoch)
        && before.epoch != Some(epoch)
    {
        let asked = after.requests.iter().find(|request| request.to == Some(active) && request.epoch < epoch);
        let asked = asked.filter(|request| {
            before.handled_requests.iter().any(|old| {
                old.verb == request.verb && old.token == request.token && old.result == RequestResult::Accepted
            })
        });
        match (before.epoch.unwrap_or_default(), before.active, asked) {
            (0, _, _) => tell("Founded", false, format!("member {active} founded the pair, epoch {epoch}")),
            (_, _, Some(asked)) => {
                let message =
                    format!("member {active} leads in epoch {epoch}, as {}={} asked", asked.verb, asked.token);
                tell("SwitchedOver", false, message);
            }
            (_, Some(last), None) if last == active => {
                tell("LeadsAgain", false, format!("member {active} leads again, in epoch {epoch}"));
            }
            (_, _, None) => tell("FailedOver", active != home, format!("member {active} took over, epoch {epoch}")),
        }
    }
    if let Some(netcopy) = &after.netcopy {
        let old = before.netcopy.as_ref().filter(|old| old.id == netcopy.id).map(|old| old.phase);
        let words = netcopy.message.clone().unwrap_or_default();
        match netcopy.phase {
            NetcopyPhase::Failed if old != Some(NetcopyPhase::Failed) => {
                tell("NetcopyFailed", true, format!("copy {} failed: {words}", netcopy.id));
            }
            NetcopyPhase::Completed if old.is_some_and(|old| old != NetcopyPhase::Completed) => {
                tell(
                    "NetcopyCompleted",
                    false,
                    format!("copy {} is complete: {} bytes", netcopy.id, netcopy.bytes_done),
                );
            }
            NetcopyPhase::Pending | NetcopyPhase::Copying | NetcopyPhase::Replaying if old.is_none() => {
                tell("NetcopyStarted", false, format!("copy {} of {} bytes began", netcopy.id, netcopy.bytes_total));
            }
            NetcopyPhase::Pending
            | NetcopyPhase::Copying
            | NetcopyPhase::Replaying
            | NetcopyPhase::Completed
            | NetcopyPhase::Failed => {}
        }
    }
    if holds(ConditionType::InSync) != held(ConditionType::InSync)
        && let Some(fact) = fact(ConditionType::InSync)
    {
        tell(
            if fact.holds == Holds::True { "InSync" } else { "OutOfSync" },
            fact.holds != Holds::True,
            fact.message.clone(),
        );
    }
    for kind in [ConditionType::ManualActionRequired, ConditionType::Diverged] {
        if let Some(fact) = fact(kind).filter(|fact| fact.holds == Holds::True && !held(kind)) {
            tell(fact.reason, true, fact.message.clone());
        }
    }
    for request in &after.requests {
        let old = before.handled_requests.iter().find(|old| old.verb == request.verb && old.token == request.token);
        if old.is_some_and(|old| old.result == request.result) {
            continue;
        }
        let name = format!("{}={}", request.verb, request.token);
        let why = request.message.clone().unwrap_or_else(|| request.reason.clone());
        match request.result {
            RequestResult::Accepted => tell("RequestAccepted", false, name),
            RequestResult::Completed => tell("RequestCompleted", false, format!("{name}: {why}")),
            RequestResult::Refused => tell("RequestRefused", true, format!("{name}: {why}")),
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let fact = |holds| Fact { kind: ConditionType::Ready, holds, reason: "R", message: String::new() };
        let first = conditions(&[], &[fact(Holds::False)], Some(1), at(10));
        let second = conditions(&first, &[fact(Holds::False)], Some(2), at(20));
        assert_eq!(second[0].last_transition_time.0, at(10));
        let third = conditions(&second, &[fact(Holds::True)], Some(2), at(30));
        assert_eq!(third[0].last_transition_time.0, at(30));
    }

    #[test]
    fn what_happened_is_told_once() {
        let mut before = ReplicationPairStatus { epoch: Some(1), active: Some(MemberName::A), ..Default::default() };
        let after = Account { epoch: Some(2), active: Some(MemberName::B), ..Account::default() };
        let told = happenings(&before, &after, MemberName::A);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].reason.as_str(), told[0].warning), ("FailedOver", true));
        (before.epoch, before.active) = (after.epoch, after.active);
        assert_eq!(happenings(&before, &after, MemberName::A), []);
    }
}
