//! Situations and what is decided in them.

use super::*;
use crate::observed::{ClaimSeen, PodSeen, ServiceSeen, WorkloadSeen};
use crate::pair::Asked;
use crate::plan::Holds;
use crate::validate::validate;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};
use tandem_crds::v1alpha1::{
    ConditionType, DataId, DataIdentity, FailbackPhase, Master, MemberReport, OrderOutcome, OrderVerb, PositionReport,
    RequestResult, SavedAside, Testimony,
};

const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn later(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn pair(spec: Value) -> ValidPair {
    let mut whole = json!({
        "template": {"spec": {"containers": [{"name": "app", "image": "x", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
        "volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}},
    });
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let object = serde_json::from_value(json!({
        "apiVersion": "tandem.dev/v1alpha1", "kind": "ReplicationPair", "spec": whole,
        "metadata": {"name": "orders", "namespace": "shop", "uid": "9f0C0000-1111-2222-3333-444444444444", "generation": 1},
    }));
    validate(&object.unwrap()).unwrap()
}

fn asking(verb: &str, token: &str, spec: Value) -> ValidPair {
    ValidPair { requests: vec![Asked { verb: verb.into(), token: token.into() }], ..pair(spec) }
}

/// `leader` leads in epoch 3; both hold everything.
fn whole(leader: MemberName) -> Observed {
    let data =
        |letter: &str| Some(DataIdentity { data_id: DataId { volume: letter.into(), uuid: "1".repeat(32) }, boot: 1 });
    let member = |name: MemberName| {
        let leads = name == leader;
        MemberSeen {
            claim: Some(ClaimSeen { uid: format!("claim-{name}"), pair_id: Some("7".repeat(32)), owners: Vec::new() }),
            workload: Some(WorkloadSeen { revision: Some("r1".into()) }),
            pod: Some(PodSeen {
                uid: format!("pod-{name}"),
                node: Some(format!("node-{name}")),
                ready: leads,
                deleting: false,
                revision: Some("r1".into()),
                waiting: None,
            }),
            asked: None,
            report: Some(MemberReport {
                data_id: Some("1".repeat(32)),
                boot: Some(1),
                highest_epoch: Some(3),
                position: Some(PositionReport { epoch: 3, seq: 70, chain: "0".repeat(16) }),
                state: if leads { MemberState::PrimaryActive } else { MemberState::SecondaryActive },
                serving_epoch: leads.then_some(3),
                peer_reachable: Some(true),
                ..MemberReport::default()
            }),
        }
    };
    let mut seen = Observed {
        record: Some(RecordContent {
            pair: "7".repeat(32),
            founder: MemberName::A,
            epoch: 3,
            nonce: "5".repeat(32),
            master: Some(Master { member: leader, boot: 1 }),
            certified: Certified { a: data("a"), b: data("b") },
            wseq: 9,
            positions: Positions::default(),
            request: None,
            last_request: None,
        }),
        record_owners: Vec::new(),
        members: PerMember::make(member),
        service: Some(ServiceSeen { epoch: 3, member: Some(leader) }),
        ..Observed::default()
    };
    seen.status.epoch = Some(3);
    seen.status.active = Some(leader);
    seen
}

fn lose(seen: &mut Observed, member: MemberName) {
    let lost = match member {
        MemberName::A => &mut seen.members.a,
        MemberName::B => &mut seen.members.b,
    };
    (lost.pod, lost.report) = (None, None);
}

fn uncertify(seen: &mut Observed, member: MemberName) {
    let certified = &mut seen.record.as_mut().unwrap().certified;
    match member {
        MemberName::A => certified.a = None,
        MemberName::B => certified.b = None,
    }
}

fn fact(plan: &Plan, kind: ConditionType) -> (Holds, &'static str) {
    plan.account.facts.iter().find(|fact| fact.kind == kind).map(|fact| (fact.holds, fact.reason)).unwrap()
}

fn nominated(plan: &Plan) -> Option<MemberName> {
    let members = &plan.members;
    members.each().into_iter().find_map(|(name, settings)| settings.nomination.as_ref().map(|_| name))
}

/// The next turn: what the last one said stands in the status.
fn remember(seen: &mut Observed, plan: &Plan) {
    seen.status.handled_requests = plan.account.requests.clone();
    seen.status.epoch = plan.account.epoch;
    seen.status.active = plan.account.active;
}

#[test]
fn a_new_pair_is_founded_under_its_own_id() {
    let plan = decide(&pair(json!({})), &Observed::default(), now());
    let found = plan.found.clone().unwrap();
    assert_eq!((found.pair.as_str(), found.epoch), ("9f0c0000111122223333444444444444", 0));
    assert_eq!(found.founder, MemberName::A);
    assert_eq!(fact(&plan, ConditionType::Bootstrapped), (Holds::False, "WaitingForMaster"));
}

#[test]
fn a_pair_that_lived_is_never_founded_again() {
    let mut seen = whole(MemberName::A);
    seen.record = None;
    // The node of b is gone: its pod and its last report still stand there.
    seen.members.a.report.as_mut().unwrap().peer_reachable = Some(false);
    let plan = decide(&pair(json!({})), &seen, now());
    assert!(plan.found.is_none() && plan.members.a.testify.is_none(), "whoever serves goes on until both are there");
    assert_eq!(fact(&plan, ConditionType::ManualActionRequired), (Holds::True, "RecordMissing"));
    assert_eq!(fact(&plan, ConditionType::Stalled).0, Holds::True);
    assert!(plan.account.message.contains("tandem.dev/force=a@3/"), "{}", plan.account.message);
}

/// A pair without a record whose members have heard of these epochs.
fn bereft(a: i64, b: i64) -> Observed {
    let mut seen = whole(MemberName::A);
    seen.record = None;
    for (member, highest) in [(&mut seen.members.a, a), (&mut seen.members.b, b)] {
        member.report.as_mut().unwrap().highest_epoch = Some(highest);
    }
    seen
}

/// The member does as it was asked, and stops at this operation.
fn swear(seen: &mut Observed, plan: &Plan, member: MemberName, epoch: i64, seq: i64) {
    let promise = plan.members.get(member).testify.clone().unwrap();
    let seen = match member {
        MemberName::A => &mut seen.members.a,
        MemberName::B => &mut seen.members.b,
    };
    seen.asked = Some(promise.clone());
    let report = seen.report.as_mut().unwrap();
    report.highest_epoch = Some(promise.epoch);
    report.promised = Some(promise.clone());
    report.serving_epoch = None;
    let position = PositionReport { epoch, seq, chain: format!("{:016x}", epoch * 1000 + seq) };
    report.testimony = Some(Testimony { promise, position, whole: true });
}

#[test]
fn a_lost_record_is_made_anew_of_what_both_members_swear() {
    let mut seen = bereft(3, 4);
    let pair = pair(json!({}));
    let plan = decide(&pair, &seen, now());
    let asked = plan.members.b.testify.clone().unwrap();
    assert_eq!(asked.epoch, 5, "above all that anybody has heard of");
    assert!(plan.members.a.testify.is_none(), "whoever serves stops last");
    swear(&mut seen, &plan, MemberName::B, 3, 60);
    // Who testifies hangs up.
    seen.members.a.report.as_mut().unwrap().peer_reachable = Some(false);
    let plan = decide(&pair, &seen, later(7));
    assert!(plan.found.is_none(), "one member's word is not enough");
    assert_eq!(plan.members.a.testify.as_ref(), Some(&asked), "both promise the same, however late it is");
    swear(&mut seen, &plan, MemberName::A, 3, 70);
    let found = decide(&pair, &seen, later(8)).found.unwrap();
    assert_eq!((found.epoch, found.nonce.as_str()), (5, asked.nonce.as_str()));
    assert!(found.master.is_none() && found.certified.a.is_some() && found.certified.b.is_none());
    assert_eq!(found.pair, "7".repeat(32));
}

#[test]
fn a_promise_that_somebody_has_outgrown_is_asked_for_anew() {
    let mut seen = bereft(3, 3);
    let pair = pair(json!({}));
    let plan = decide(&pair, &seen, now());
    swear(&mut seen, &plan, MemberName::B, 3, 60);
    seen.members.a.report.as_mut().unwrap().highest_epoch = Some(4);
    let plan = decide(&pair, &seen, later(1));
    let (a, b) = (plan.members.a.testify.clone(), plan.members.b.testify.clone().unwrap());
    assert!(a.is_none() && b.epoch == 5, "{a:?} {b:?}");
    assert!(plan.found.is_none());
}

#[test]
fn a_lost_record_and_a_lost_member_need_a_humans_word() {
    let mut seen = bereft(3, 3);
    lose(&mut seen, MemberName::A);
    let forced = |token: &str, seen: &Observed| decide(&asking("force", token, json!({})), seen, now());
    let answer = |plan: &Plan| (plan.account.requests[0].result, plan.account.requests[0].reason.clone());
    let refused = |reason: &str| (RequestResult::Refused, reason.to_string());
    assert_eq!(answer(&forced("b@2/t", &seen)), refused("OtherEpoch"));
    assert_eq!(answer(&forced("b@3/t", &bereft(3, 3))), refused("NotNeeded"));
    let plan = forced("b@3/t", &seen);
    assert_eq!(answer(&plan), (RequestResult::Accepted, "UnderWay".into()));
    swear(&mut seen, &plan, MemberName::B, 3, 60);
    remember(&mut seen, &plan);
    let found = forced("b@3/t", &seen).found.unwrap();
    assert!(found.certified.b.is_some() && found.certified.a.is_none() && found.epoch == 4);
}

#[test]
fn a_pair_at_rest_is_left_alone() {
    let plan = decide(&pair(json!({})), &whole(MemberName::A), now());
    assert!(plan.route.is_none() && plan.replace.is_empty() && plan.may_evict && nominated(&plan).is_none());
    for kind in [ConditionType::Ready, ConditionType::InSync, ConditionType::FailoverReady] {
        assert_eq!(fact(&plan, kind).0, Holds::True, "{kind:?}");
    }
    assert_eq!(fact(&plan, ConditionType::FailedOver).0, Holds::False);
    assert_eq!(plan.look_again, AT_REST);
    assert_eq!(plan.pair_id, "7".repeat(32));
}

#[test]
fn the_service_follows_the_epoch_and_never_goes_back() {
    let mut seen = whole(MemberName::B);
    for (epoch, member, expected) in [
        (2, MemberName::A, Some((MemberName::B, 3))),
        (3, MemberName::A, Some((MemberName::B, 3))),
        (3, MemberName::B, None),
        (4, MemberName::A, None),
    ] {
        seen.service = Some(ServiceSeen { epoch, member: Some(member) });
        assert_eq!(decide(&pair(json!({})), &seen, now()).route, expected);
    }
}

#[test]
fn what_a_deposed_member_said_is_not_believed() {
    let mut seen = whole(MemberName::B);
    // a has not noticed that epoch 3 began.
    seen.members.a.report =
        Some(MemberReport { state: MemberState::PrimaryActive, serving_epoch: Some(2), ..MemberReport::default() });
    uncertify(&mut seen, MemberName::A);
    let plan = decide(&pair(json!({})), &seen, now());
    assert_eq!(plan.account.members[0].state, MemberState::Offline);
    assert_eq!(fact(&plan, ConditionType::FailedOver).0, Holds::True);
    assert_eq!(fact(&plan, ConditionType::InSync).0, Holds::False);
    assert!(!plan.may_evict);
    // Its application saw the earlier reign, whether it can be told or not.
    assert_eq!(plan.replace.iter().map(|one| one.reason).collect::<Vec<_>>(), ["LeadershipLost"]);
}

#[test]
fn a_switchover_is_accepted_nominates_and_completes() {
    let wanted = asking("switchover", "t1", json!({}));
    let mut seen = whole(MemberName::A);
    let plan = decide(&wanted, &seen, now());
    assert_eq!(plan.account.requests[0].result, RequestResult::Accepted);
    assert_eq!(nominated(&plan), Some(MemberName::B));
    remember(&mut seen, &plan);

    let mut after = whole(MemberName::B);
    after.record.as_mut().unwrap().epoch = 4;
    after.members.b.report.as_mut().unwrap().serving_epoch = Some(4);
    after.status = seen.status.clone();
    let plan = decide(&wanted, &after, now());
    assert_eq!(plan.account.requests[0].result, RequestResult::Completed);
    assert_eq!(nominated(&plan), None);

    // The annotation stays where it is, and never acts again.
    remember(&mut after, &plan);
    let plan = decide(&wanted, &after, now());
    assert_eq!((plan.account.requests.len(), nominated(&plan)), (1, None));
}

#[test]
fn what_cannot_be_done_is_refused_with_a_reason() {
    let mut behind = whole(MemberName::A);
    uncertify(&mut behind, MemberName::B);
    let not_electable = json!({"members": {"b": {"electable": false}}});
    for (verb, spec, seen, reason) in [
        ("swichover", json!({}), whole(MemberName::A), "UnknownVerb"),
        ("switchover", json!({}), behind.clone(), "NotInSync"),
        ("switchover", not_electable, whole(MemberName::A), "NotElectable"),
        ("failback", json!({}), whole(MemberName::A), "LeadsAlready"),
        ("failover", json!({}), behind, "TargetDataIncomplete"),
        ("failover", json!({}), Observed::default(), "NobodyLeads"),
        ("discard", json!({}), whole(MemberName::A), "NothingToDiscard"),
    ] {
        let plan = decide(&asking(verb, "t", spec), &seen, now());
        let answer = &plan.account.requests[0];
        assert_eq!((answer.result, answer.reason.as_str()), (RequestResult::Refused, reason), "{verb}");
        assert!(answer.message.is_some() && plan.members.b.nomination.is_none());
    }
}

/// What only the lost leader held is given up for good, and nothing else.
#[test]
fn a_human_may_give_up_an_epoch_whose_only_certified_copy_is_away() {
    let mut lost = whole(MemberName::A);
    uncertify(&mut lost, MemberName::B);
    lost.members.a.pod.as_mut().unwrap().ready = false;
    lost.members.a.report.as_mut().unwrap().position.as_mut().unwrap().seq = 100;
    let left = lost.members.b.report.as_mut().unwrap();
    (left.state, left.peer_reachable) = (MemberState::SecondaryAlone, Some(false));
    // What it would cost is said before anybody asks.
    let plan = decide(&pair(json!({})), &lost, now());
    assert_eq!(fact(&plan, ConditionType::ManualActionRequired), (Holds::True, "CertifiedCopyAway"));
    let message = &plan.account.message;
    assert!(message.contains("at least 30 operations") && message.contains("force=b@3/"), "{message}");
    assert_eq!(plan.forced, None);

    let mut away = lost.clone();
    away.members.b.report = None;
    let mut empty = lost.clone();
    empty.members.b.report.as_mut().unwrap().position.as_mut().unwrap().seq = 0;
    let mut partial = lost.clone();
    partial.members.b.report.as_mut().unwrap().reason = Some("CopyIncomplete".into());
    let mut lives = lost.clone();
    lives.members.a.pod.as_mut().unwrap().ready = true;
    for (token, seen, reason) in [
        ("b", &lost, "Malformed"),
        ("b@3", &lost, "Malformed"),
        ("c@3/t", &lost, "Malformed"),
        ("b@2/t", &lost, "OtherEpoch"),
        ("a@3/t", &lost, "NotNeeded"),
        ("b@3/t", &lives, "ActiveServes"),
        ("b@3/t", &away, "TargetOffline"),
        ("b@3/t", &empty, "TargetDataIncomplete"),
        ("b@3/t", &partial, "TargetDataIncomplete"),
    ] {
        let plan = decide(&asking("force", token, json!({})), seen, now());
        let answer = &plan.account.requests[0];
        assert_eq!((answer.result, answer.reason.as_str()), (RequestResult::Refused, reason), "{token}");
        assert_eq!(plan.forced, None);
    }

    let wanted = asking("force", "b@3/t", json!({}));
    let plan = decide(&wanted, &lost, now());
    assert!(plan.account.requests[0].message.as_ref().unwrap().contains("at least 30 operations"));
    let forced = plan.forced.clone().unwrap();
    let before = lost.record.clone().unwrap();
    assert_eq!((forced.epoch, forced.wseq, forced.master.clone()), (before.epoch + 1, before.wseq + 1, None));
    assert!(forced.nonce != before.nonce && forced.nonce.len() == 32 && forced.certified.a.is_none());
    let data = forced.certified.b.as_ref().unwrap();
    assert_eq!((data.data_id.volume.as_str(), forced.request.as_ref().unwrap().to), ("claim-b", MemberName::B));
    let away_no_more = lost.clone();
    // Decided again it is the same record; once written it is not written again.
    assert_eq!(decide(&wanted, &lost, now()).forced.as_ref(), Some(&forced));
    remember(&mut lost, &plan);
    lost.record = Some(forced);
    let plan = decide(&wanted, &lost, now());
    assert_eq!((plan.forced.as_ref(), nominated(&plan)), (None, None));
    assert_eq!(plan.account.requests[0].result, RequestResult::Accepted);
    // The lost one comes back before the record was written: nothing is given up.
    let mut back = lives.clone();
    remember(&mut back, &decide(&wanted, &away_no_more, now()));
    let plan = decide(&wanted, &back, now());
    assert_eq!((plan.forced, plan.account.requests[0].reason.as_str()), (None, "ActiveServes"));
    // Done when the named member serves.
    let record = lost.record.as_mut().unwrap();
    (record.epoch, record.master) = (5, Some(Master { member: MemberName::B, boot: 1 }));
    lost.members.b.report.as_mut().unwrap().serving_epoch = Some(5);
    let plan = decide(&wanted, &lost, now());
    assert_eq!(plan.account.requests[0].result, RequestResult::Completed);
}

#[test]
fn what_is_kept_aside_is_listed_and_discarded_by_whom_keeps_it() {
    let mut seen = whole(MemberName::A);
    let saved = SavedAside { name: "tail-3-70".into(), ..SavedAside::default() };
    seen.members.b.report.as_mut().unwrap().saved_aside = vec![saved];
    let plan = decide(&asking("discard", "t", json!({})), &seen, now());
    assert_eq!(plan.account.members[1].saved_aside, ["tail-3-70"]);
    let members = plan.members;
    assert_eq!((members.a.orders.len(), members.b.orders[0].verb), (0, OrderVerb::Discard));
    // Only what was seen then, whatever comes later.
    let plan = decide(&asking("discard", "t", json!({})), &seen, now());
    remember(&mut seen, &plan);
    let later = SavedAside { name: "tail-4-90".into(), ..SavedAside::default() };
    seen.members.b.report.as_mut().unwrap().saved_aside.push(later);
    let plan = decide(&asking("discard", "t", json!({})), &seen, now());
    assert_eq!(plan.members.b.orders[0].names, ["tail-3-70"]);
}

#[test]
fn a_second_change_of_leadership_waits_for_the_first() {
    let mut wanted = asking("switchover", "t1", json!({}));
    wanted.requests.push(Asked { verb: "failover".into(), token: "t2".into() });
    let plan = decide(&wanted, &whole(MemberName::A), now());
    assert_eq!(plan.account.requests[1].reason, "Busy");
}

#[test]
fn a_failback_first_restores_then_switches() {
    let wanted = asking("failback", "t1", json!({}));
    let mut seen = whole(MemberName::B);
    uncertify(&mut seen, MemberName::A);
    let plan = decide(&wanted, &seen, now());
    assert_eq!(plan.account.requests[0].phase, Some(FailbackPhase::Restoring));
    assert_eq!(nominated(&plan), None);

    // b had to begin a new epoch meanwhile; then a has everything.
    let mut seen = whole(MemberName::B);
    seen.status.handled_requests = plan.account.requests;
    seen.status.handled_requests[0].epoch = 2;
    let plan = decide(&wanted, &seen, now());
    assert_eq!(plan.account.requests[0].phase, Some(FailbackPhase::Switching));
    assert_eq!(nominated(&plan), Some(MemberName::A));
    assert_eq!(plan.members.a.nomination.as_ref().unwrap().epoch_seen, 3);
}

#[test]
fn a_request_is_given_up_when_it_is_withdrawn_overtaken_or_too_old() {
    let wanted = asking("switchover", "t1", json!({}));
    let mut seen = whole(MemberName::A);
    let plan = decide(&wanted, &seen, now());
    remember(&mut seen, &plan);

    let withdrawn = decide(&pair(json!({})), &seen, now());
    assert_eq!(withdrawn.account.requests[0].reason, "Withdrawn");

    let late = Timestamp::from_second(NOW + 301).unwrap();
    assert_eq!(decide(&wanted, &seen, late).account.requests[0].reason, "TimedOut");

    let mut again = whole(MemberName::A);
    again.record.as_mut().unwrap().epoch = 4;
    again.status = seen.status.clone();
    assert_eq!(decide(&wanted, &again, now()).account.requests[0].reason, "Overtaken");
}

#[test]
fn orders_go_to_whom_they_concern_until_answered() {
    let wanted = asking("resync", "t1", json!({}));
    let mut seen = whole(MemberName::A);
    let plan = decide(&wanted, &seen, now());
    let members = plan.members.clone();
    assert_eq!(members.b.orders[0].verb, OrderVerb::Resync);
    assert!(members.a.orders.is_empty());
    remember(&mut seen, &plan);
    seen.members.b.report.as_mut().unwrap().handled_orders =
        vec![OrderOutcome { token: "t1".into(), done: true, reason: "Done".into(), message: None }];
    let plan = decide(&wanted, &seen, now());
    assert_eq!(plan.account.requests[0].result, RequestResult::Completed);
    assert!(plan.members.b.orders.is_empty());
}

#[test]
fn a_pair_is_on_hold_for_as_long_as_the_annotation_stands() {
    let wanted = asking("hold", "t1", json!({}));
    let mut seen = whole(MemberName::A);
    let plan = decide(&wanted, &seen, now());
    for (_, settings) in plan.members.each() {
        assert_eq!(settings.orders[0].verb, OrderVerb::Hold);
    }
    assert_eq!(fact(&plan, ConditionType::Paused).0, Holds::True);
    remember(&mut seen, &plan);

    let mut moving = wanted.clone();
    moving.requests.push(Asked { verb: "switchover".into(), token: "t2".into() });
    assert_eq!(decide(&moving, &seen, now()).account.requests[1].reason, "OnHold");

    let plan = decide(&pair(json!({})), &seen, now());
    assert!(plan.members.a.orders.is_empty());
    assert_eq!(fact(&plan, ConditionType::Paused).0, Holds::False);
}

#[test]
fn manual_mode_asks_the_human() {
    let manual = json!({"failover": {"mode": "Manual"}});
    let mut seen = whole(MemberName::A);
    lose(&mut seen, MemberName::A);
    seen.members.b.report.as_mut().unwrap().state = MemberState::SecondaryAlone;
    let plan = decide(&pair(manual.clone()), &seen, now());
    assert_eq!(fact(&plan, ConditionType::ManualActionRequired), (Holds::True, "FailoverPending"));
    assert_eq!(fact(&plan, ConditionType::InSync).0, Holds::Unknown);
    let plan = decide(&asking("failover", "go", manual), &seen, now());
    assert_eq!(nominated(&plan), Some(MemberName::B));
}

#[test]
fn the_reasons_why_a_failover_would_not_do() {
    for (state, reason) in [
        (MemberState::SecondaryNetcopy, "TargetDataIncomplete"),
        (MemberState::SecondaryCatchUp, "TargetBehind"),
        (MemberState::Quarantined, "TargetDataIncomplete"),
        (MemberState::Offline, "TargetOffline"),
    ] {
        let mut seen = whole(MemberName::A);
        uncertify(&mut seen, MemberName::B);
        seen.members.b.report.as_mut().unwrap().state = state;
        assert_eq!(fact(&decide(&pair(json!({})), &seen, now()), ConditionType::FailoverReady), (Holds::False, reason));
    }
    let spec = json!({"members": {"b": {"electable": false}}});
    let plan = decide(&pair(spec), &whole(MemberName::A), now());
    assert_eq!(fact(&plan, ConditionType::FailoverReady), (Holds::False, "NotElectable"));
}

#[test]
fn a_member_that_gave_up_its_right_gets_a_new_pod() {
    let mut seen = whole(MemberName::B);
    seen.members.a.report.as_mut().unwrap().state = MemberState::Fenced;
    let plan = decide(&pair(json!({})), &seen, now());
    assert_eq!(plan.replace.iter().map(|one| one.uid.as_str()).collect::<Vec<_>>(), ["pod-a"]);
    seen.members.a.pod.as_mut().unwrap().deleting = true;
    assert!(decide(&pair(json!({})), &seen, now()).replace.is_empty());
}

#[test]
fn a_new_template_reaches_the_replicant_first_and_the_master_only_when_it_can_be_replaced() {
    let mut seen = whole(MemberName::A);
    for member in [&mut seen.members.a, &mut seen.members.b] {
        member.workload = Some(WorkloadSeen { revision: Some("r2".into()) });
    }
    let first = |seen: &Observed| {
        decide(&pair(json!({})), seen, now()).replace.iter().map(|one| one.member).collect::<Vec<_>>()
    };
    assert_eq!(first(&seen), [MemberName::B]);
    seen.members.b.pod.as_mut().unwrap().revision = Some("r2".into());
    assert_eq!(first(&seen), [MemberName::A]);
    uncertify(&mut seen, MemberName::B);
    assert_eq!(first(&seen), []);
    // Nothing is lost by replacing a pod that does not serve anyway.
    seen.members.a.report = None;
    assert_eq!(first(&seen), [MemberName::A]);
}

#[test]
fn prefer_master_goes_home_once_the_pair_has_settled() {
    let prefers = pair(json!({"failback": {"mode": "PreferMaster"}}));
    let mut seen = whole(MemberName::B);
    assert_eq!(nominated(&decide(&prefers, &seen, now())), None);
    let since = |seconds| Condition {
        type_: "InSync".into(),
        status: "True".into(),
        last_transition_time: Time(Timestamp::from_second(NOW - seconds).unwrap()),
        reason: "x".into(),
        message: String::new(),
        observed_generation: None,
    };
    seen.status.conditions = vec![since(3)];
    assert_eq!(nominated(&decide(&prefers, &seen, now())), None);
    seen.status.conditions = vec![since(30)];
    assert_eq!(nominated(&decide(&prefers, &seen, now())), Some(MemberName::A));
    assert_eq!(nominated(&decide(&pair(json!({})), &seen, now())), None);
}
