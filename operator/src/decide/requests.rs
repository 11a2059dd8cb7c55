//! Requests by annotation: each (verb, token) is judged once, followed to its end, and answered. An answer stands for as
//! long as the annotation does, so that a token never acts twice.

use super::{Situation, force};
use crate::pair::Asked;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tandem_crds::v1alpha1::{
    FailbackPhase, HandledRequest, MemberName, MemberState, Nomination, Order, OrderVerb, RequestResult,
};

/// A change of leadership that has not come about after so long is given up: it should not surprise anybody later.
const GIVE_UP_SECONDS: i64 = 300;
/// Answers that are kept although their annotation is gone.
const KEPT_MAX: usize = 16;

const VERBS: [&str; 7] = ["switchover", "failback", "failover", "force", "resync", "discard", "hold"];

/// Whether a request is still being carried out.
pub fn under_way(request: &HandledRequest) -> bool {
    request.result == RequestResult::Accepted && request.verb != "hold"
}

fn moves_leadership(verb: &str) -> bool {
    matches!(verb, "switchover" | "failback" | "failover" | "force")
}

/// The answers to all requests, old and new, newest last.
pub fn judge(situation: &Situation<'_>) -> Vec<HandledRequest> {
    let asked = &situation.pair.requests;
    let stands =
        |request: &HandledRequest| asked.iter().any(|asked| asked.verb == request.verb && asked.token == request.token);
    let mut answers: Vec<HandledRequest> = Vec::new();
    for mut request in situation.seen.status.handled_requests.iter().cloned() {
        if request.result == RequestResult::Accepted {
            if stands(&request) {
                follow(situation, &mut request);
            } else if request.verb == "hold" {
                settle(situation, &mut request, RequestResult::Completed, "Withdrawn", "members decide again");
            } else {
                settle(situation, &mut request, RequestResult::Refused, "Withdrawn", "its annotation was taken away");
            }
        }
        answers.push(request);
    }
    for asked in asked {
        if asked.token.is_empty()
            || answers.iter().any(|answer| answer.verb == asked.verb && answer.token == asked.token)
        {
            continue;
        }
        let mut request = begin(situation, asked, &answers);
        if request.result == RequestResult::Accepted {
            follow(situation, &mut request);
        }
        answers.push(request);
    }
    // The oldest answers go, but never one whose annotation still stands.
    while answers.len() > KEPT_MAX {
        let Some(oldest) = answers.iter().position(|answer| !stands(answer)) else { break };
        answers.remove(oldest);
    }
    answers.truncate(KEPT_MAX);
    answers
}

fn settle(
    situation: &Situation<'_>,
    request: &mut HandledRequest,
    result: RequestResult,
    reason: &str,
    message: impl Into<String>,
) {
    request.result = result;
    request.reason = reason.to_string();
    request.message = Some(message.into().chars().take(256).collect());
    request.at = Time(situation.now);
}

fn begin(situation: &Situation<'_>, asked: &Asked, others: &[HandledRequest]) -> HandledRequest {
    let mut request = HandledRequest {
        verb: asked.verb.clone(),
        token: asked.token.clone(),
        result: RequestResult::Accepted,
        reason: "UnderWay".into(),
        message: None,
        phase: None,
        epoch: situation.epoch(),
        to: None,
        names: Vec::new(),
        at: Time(situation.now),
    };
    let refuse = |mut request: HandledRequest, reason: &str, message: String| {
        settle(situation, &mut request, RequestResult::Refused, reason, message);
        request
    };
    let verb = asked.verb.as_str();
    if !VERBS.contains(&verb) {
        let message = format!("tandem.dev/{verb} is no request; there are: {}", VERBS.join(", "));
        return refuse(request, "UnknownVerb", message);
    }
    let busy = |other: &&HandledRequest| under_way(other) && moves_leadership(&other.verb);
    let on_hold = |other: &HandledRequest| other.verb == "hold" && other.result == RequestResult::Accepted;
    if moves_leadership(verb) && others.iter().any(on_hold) {
        return refuse(request, "OnHold", "the pair is on hold: remove the annotation tandem.dev/hold first".into());
    }
    if let Some(other) = others.iter().find(busy).filter(|_| moves_leadership(verb)) {
        let message = format!("{}={} is still under way", other.verb, other.token);
        return refuse(request, "Busy", message);
    }
    if verb == "force" {
        let Some((to, epoch)) = force::parse(&asked.token) else {
            return refuse(request, "Malformed", format!("tandem.dev/force reads {}", force::SHAPE));
        };
        if let Some((reason, message)) = force::refusal(situation, to, epoch) {
            return refuse(request, reason, message);
        }
        (request.to, request.epoch) = (Some(to), epoch);
        request.message = Some(format!("gives up epoch {epoch} and {}", force::loss(situation, to)));
        return request;
    }
    let leader = situation.active().or_else(|| last_leader(situation));
    let Some(active) = leader.or_else(|| (verb == "discard").then_some(situation.pair.founder)) else {
        return refuse(request, "NobodyLeads", "nobody leads at the moment".into());
    };
    let to = match verb {
        "failback" => situation.pair.spec.preferred_master,
        "switchover" | "failover" | "resync" => active.other(),
        "discard" => {
            let quarantined = |member: &MemberName| situation.state(*member) == MemberState::Quarantined;
            let keeps = |member: &MemberName| !situation.saved_aside(*member).is_empty();
            let both = MemberName::BOTH;
            match both.into_iter().find(quarantined).or_else(|| both.into_iter().find(keeps)) {
                Some(member) => member,
                None => return refuse(request, "NothingToDiscard", "no member holds data that is kept apart".into()),
            }
        }
        _ => active,
    };
    request.to = Some(to);
    if verb == "discard" && situation.state(to) != MemberState::Quarantined {
        request.names = situation.saved_aside(to).iter().map(|saved| saved.name.clone()).collect();
    }
    if !moves_leadership(verb) {
        return request;
    }
    if situation.active() == Some(to) {
        return refuse(request, "LeadsAlready", format!("member {to} leads already"));
    }
    if !situation.pair.electable(to) {
        return refuse(request, "NotElectable", format!("member {to} has electable: false"));
    }
    match verb {
        "switchover" if !situation.in_sync() => {
            refuse(request, "NotInSync", format!("member {to} does not hold everything yet: wait for InSync"))
        }
        "failover" if !situation.certified(to) => {
            let message = format!("the record does not say that member {to} holds every acknowledged write");
            refuse(request, "TargetDataIncomplete", message)
        }
        "failback" => {
            request.phase = Some(FailbackPhase::Restoring);
            request
        }
        _ => request,
    }
}

/// While nobody leads: the one that cannot be meant by "the other one".
fn last_leader(situation: &Situation<'_>) -> Option<MemberName> {
    let before = situation.seen.status.active;
    let silent = MemberName::BOTH
        .into_iter()
        .find(|member| situation.member(*member).report.is_none() && situation.member(member.other()).report.is_some());
    (situation.epoch() > 0).then(|| silent.or(before)).flatten()
}

fn follow(situation: &Situation<'_>, request: &mut HandledRequest) {
    let Some(to) = request.to else { return };
    if request.verb == "hold" {
        let taken = MemberName::BOTH.iter().any(|member| outcome(situation, *member, &request.token).is_some());
        request.reason = if taken { "Holding" } else { "UnderWay" }.into();
        return;
    }
    if !moves_leadership(&request.verb) {
        if let Some((done, reason, message)) = outcome(situation, to, &request.token) {
            let result = if done { RequestResult::Completed } else { RequestResult::Refused };
            settle(situation, request, result, &reason, message);
        }
        return;
    }
    let moved = situation.epoch() > request.epoch;
    if request.verb == "force"
        && !moved
        && let Some((reason, message)) = force::refusal(situation, to, request.epoch)
    {
        // The lost one may be back, or the copy broken, before the record could be written: then it must not be any more.
        return settle(situation, request, RequestResult::Refused, reason, message);
    }
    let waits = request.phase == Some(FailbackPhase::Restoring);
    if situation.serves(to) && (moved || waits) {
        if request.verb == "failback" {
            request.phase = Some(FailbackPhase::Completed);
        }
        let message = format!("member {to} leads in epoch {}", situation.epoch());
        settle(situation, request, RequestResult::Completed, "Done", message);
        return;
    }
    if waits {
        // The way home begins when everything that was written meanwhile is there.
        if situation.in_sync() && situation.active() == Some(to.other()) {
            request.phase = Some(FailbackPhase::Switching);
            request.epoch = situation.epoch();
            request.at = Time(situation.now);
            request.message = None;
        } else {
            request.message = Some(format!("member {to} is brought up to date first"));
        }
        return;
    }
    if moved && situation.active().is_some_and(|active| active != to) {
        let message = format!("leadership began anew meanwhile: epoch {}", situation.epoch());
        settle(situation, request, RequestResult::Refused, "Overtaken", message);
    } else if !moved && situation.now.as_second() - request.at.0.as_second() > GIVE_UP_SECONDS {
        let message = format!("member {to} did not take over within {GIVE_UP_SECONDS} s");
        settle(situation, request, RequestResult::Refused, "TimedOut", message);
    }
}

/// What a member says about an order.
fn outcome(situation: &Situation<'_>, member: MemberName, token: &str) -> Option<(bool, String, String)> {
    let report = situation.member(member).report.as_ref()?;
    let found = report.handled_orders.iter().find(|outcome| outcome.token == token)?;
    Some((found.done, found.reason.clone(), found.message.clone().unwrap_or_default()))
}

/// By which the record and the members know a request for another leader.
pub fn id(request: &HandledRequest) -> String {
    format!("{}-{}", request.verb, request.token).chars().take(192).collect()
}

/// Whom the requests want to lead.
pub fn nomination(requests: &[HandledRequest]) -> Option<Nomination> {
    let wish = requests.iter().find(|request| {
        // Who is forced to lead is named by the record itself.
        under_way(request)
            && moves_leadership(&request.verb)
            && request.verb != "force"
            && request.phase != Some(FailbackPhase::Restoring)
    })?;
    Some(Nomination { request_id: id(wish), epoch_seen: wish.epoch, to: wish.to? })
}

/// What a member is told to do.
pub fn orders(member: MemberName, requests: &[HandledRequest]) -> Vec<Order> {
    let wanted = requests.iter().filter(|request| request.result == RequestResult::Accepted);
    wanted
        .filter_map(|request| {
            let verb = match request.verb.as_str() {
                "resync" => OrderVerb::Resync,
                "discard" => OrderVerb::Discard,
                "hold" => OrderVerb::Hold,
                _ => return None,
            };
            (verb == OrderVerb::Hold || request.to == Some(member)).then(|| Order {
                token: request.token.clone(),
                verb,
                names: request.names.clone(),
            })
        })
        .collect()
}
