//! The ReplicationMember: settings and orders come in, the report goes out. A report is written when something changed that
//! somebody waits for, otherwise at most every thirty seconds, and never because nothing happened.

use crate::api::{Clients, follow, within};
use crate::clock;
use crate::conductor::Wishes;
use crate::health::{Shown, Snapshot};
use crate::settings::ServeSettings;
use kube::Api;
use kube::api::{Patch, PatchParams};
use std::sync::Arc;
use std::time::Duration;
use tandem_crds::translation::{generation, member, position_report, promise, signed};
use tandem_crds::v1alpha1 as words;
use tandem_protocol::Settings;
use tandem_protocol::identity::Generation;
use tandem_protocol::member::Testimony;
use tandem_protocol::member::event::Order;
use tandem_protocol::member::settings::{AckPolicy, FailoverMode, Protection};
use tandem_protocol::record::Request;
use tokio::sync::watch;

/// Numbers that only grow are reported no more often than this.
const QUIET: Duration = Duration::from_secs(30);
/// Changes that come in a flurry are told together.
const FLURRY: Duration = Duration::from_millis(20);
/// While a copy moves, somebody looks at how far it is.
const COPYING: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(1);
const MANAGER: &str = "tandem-replicator";

/// What only the report says, beside the snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Identity of the data on the volume.
    pub data_id: Option<String>,
    /// Start counter.
    pub boot: u64,
    /// Where the journal ends.
    pub position: tandem_protocol::Position,
    /// Generation of the settings in force.
    pub generation: Option<i64>,
    /// What is kept aside, the newest last.
    pub saved_aside: Vec<words::SavedAside>,
    /// The highest epoch ever heard of; none if there is nothing to testify.
    pub highest_epoch: Option<u64>,
    /// The highest generation accepted.
    pub promised: Generation,
    /// What is sworn while the record is gone.
    pub testimony: Option<Testimony>,
}

/// Follows the wishes of the member's object.
pub fn wishes(clients: &Clients, settings: &ServeSettings) -> watch::Receiver<Wishes> {
    let api = Api::<words::ReplicationMember>::namespaced(clients.watching.clone(), &settings.namespace);
    let mut objects = follow(api, &settings.member_object());
    let (sender, receiver) = watch::channel(Wishes::default());
    tokio::spawn(async move {
        while objects.changed().await.is_ok() {
            let wished = objects.borrow_and_update().as_ref().map(wished).unwrap_or_default();
            if sender.send(wished).is_err() {
                return;
            }
        }
    });
    receiver
}

fn wished(object: &words::ReplicationMember) -> Wishes {
    let told = &object.spec;
    let positive = |value: i64| u64::try_from(value).unwrap_or_default();
    let settings = Settings {
        protection: match told.protection {
            words::Protection::MaxProtection => Protection::MaxProtection,
            words::Protection::MaxAvailability => Protection::MaxAvailability,
            words::Protection::Async => Protection::Async,
        },
        ack_policy: match told.ack_policy {
            words::AckPolicy::Durable => AckPolicy::Durable,
            words::AckPolicy::Received => AckPolicy::Received,
        },
        max_lag_bytes: positive(told.max_lag_bytes),
        interval: positive(told.interval_milliseconds).max(1),
        missed_limit: positive(told.missed_limit).max(1),
        hold: positive(told.hold_seconds).saturating_mul(1000),
        alone_without_api: told.alone_without_api,
        failover: match told.failover_mode {
            words::FailoverMode::Automatic => FailoverMode::Automatic,
            words::FailoverMode::Manual => FailoverMode::Manual,
        },
        electable: told.electable,
        ..Settings::default()
    };
    let nomination = told
        .nomination
        .as_ref()
        .filter(|wish| wish.to == told.member)
        .map(|wish| (Request { id: wish.request_id.clone(), to: member(wish.to) }, positive(wish.epoch_seen)));
    let orders = told
        .orders
        .iter()
        .map(|order| {
            let what = match order.verb {
                words::OrderVerb::Resync => Order::Resync,
                words::OrderVerb::Discard => Order::Discard,
                words::OrderVerb::Hold => Order::Hold(true),
            };
            (order.token.clone(), what)
        })
        .collect();
    Wishes {
        settings: Some(settings),
        nomination,
        given_up: told.orders.iter().map(|order| (order.token.clone(), order.names.clone())).collect(),
        orders,
        testify: told.testify.as_ref().and_then(|asked| generation(asked).ok()),
        stall_timeout: Some(Duration::from_secs(positive(told.stall_timeout_seconds).max(1))),
        generation: object.metadata.generation,
    }
}

/// What people and the operator wait for: a difference here is told at once.
fn pressing(now: &Snapshot, account: &Account) -> impl PartialEq + use<> {
    (
        now.state.clone(),
        now.reason.clone(),
        (now.epoch, now.serving, now.peer_connected),
        now.netcopy.as_ref().map(|copy| (copy.id.clone(), copy.phase, copy.failures)),
        (now.handled_orders.clone(), now.handled_nomination.clone()),
        (account.data_id.clone(), account.boot, account.generation, account.saved_aside.clone()),
        (account.highest_epoch, account.promised, account.testimony),
    )
}

/// Writes reports until the process ends.
pub async fn tell(
    clients: Clients,
    settings: ServeSettings,
    shown: Arc<Shown>,
    mut accounts: watch::Receiver<Account>,
) {
    let api = Api::<words::ReplicationMember>::namespaced(clients.fencing, &settings.namespace);
    let name = settings.member_object();
    let mut changes = shown.subscribe();
    let mut told = None;
    let mut told_whole = None;
    loop {
        let (now, account) = (shown.snapshot(), accounts.borrow_and_update().clone());
        let first = pressing(&now, &account);
        let is_pressing = told.as_ref() != Some(&first);
        let whole = report_of(&now, &account, &settings.pod_uid);
        if told_whole.as_ref() != Some(&whole) && !now.state.is_empty() {
            match write(&api, &name, &whole).await {
                Ok(()) => (told, told_whole) = (Some(first), Some(whole)),
                Err(error) => {
                    tracing::warn!(error, "report");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
        }
        let quiet = tokio::time::sleep(match (is_pressing, now.netcopying) {
            (true, _) => FLURRY,
            (false, true) => COPYING,
            (false, false) => QUIET,
        });
        tokio::pin!(quiet);
        loop {
            tokio::select! {
                () = &mut quiet => break,
                changed = changes.changed() => if changed.is_err() { return },
                changed = accounts.changed() => if changed.is_err() { return },
            }
            if told.as_ref() != Some(&pressing(&shown.snapshot(), &accounts.borrow())) {
                break;
            }
        }
    }
}

async fn write(api: &Api<words::ReplicationMember>, name: &str, report: &words::MemberReport) -> Result<(), String> {
    let mut status = serde_json::to_value(report).map_err(|error| error.to_string())?;
    if let (Some(fields), Ok(now)) = (status.as_object_mut(), serde_json::to_value(clock::stamp())) {
        fields.insert("reportedAt".into(), now);
    }
    let whole = serde_json::json!({
        "apiVersion": "tandem.dev/v1alpha1", "kind": "ReplicationMember", "metadata": {"name": name}, "status": status,
    });
    let manager = PatchParams::apply(MANAGER).force();
    let written = within(api.patch_status(name, &manager, &Patch::Apply(&whole))).await;
    written.map(drop).map_err(|error| error.to_string())
}

fn report_of(now: &Snapshot, account: &Account, pod_uid: &str) -> words::MemberReport {
    let state = match now.state.as_str() {
        "PrimaryActive" => words::MemberState::PrimaryActive,
        "PrimaryUncertain" | "PrimaryOpening" => words::MemberState::PrimaryUncertain,
        "PrimaryAlone" | "PrimaryJoining" => words::MemberState::PrimaryAlone,
        "PrimaryDraining" => words::MemberState::PrimaryDraining,
        "SecondaryActive" => words::MemberState::SecondaryActive,
        "SecondaryAlone" => words::MemberState::SecondaryAlone,
        "SecondaryCatchUp" => words::MemberState::SecondaryCatchUp,
        "SecondaryNetcopy" => words::MemberState::SecondaryNetcopy,
        "Fenced" => words::MemberState::Fenced,
        "Quarantined" => words::MemberState::Quarantined,
        _ => words::MemberState::Offline,
    };
    let leads = now.state.starts_with("Primary");
    words::MemberReport {
        observed_generation: account.generation,
        state,
        serving_epoch: now.serving.then_some(signed(now.epoch)),
        position: Some(position_report(&account.position)),
        exposure: leads.then(|| words::Exposure {
            bytes: signed(now.lag_bytes),
            operations: signed(account.position.seq.saturating_sub(now.peer_durable)),
        }),
        netcopy: now.netcopy.clone(),
        data_id: account.data_id.clone(),
        boot: Some(signed(account.boot)),
        pod_uid: (!pod_uid.is_empty()).then(|| pod_uid.to_owned()),
        peer_reachable: Some(now.peer_connected),
        reason: (!now.reason.is_empty()).then(|| now.reason.clone()),
        message: (!now.message.is_empty()).then(|| now.message.clone()),
        saved_aside: account.saved_aside.clone(),
        handled_orders: now.handled_orders.clone(),
        handled_nomination: now.handled_nomination.clone(),
        highest_epoch: account.highest_epoch.map(signed),
        promised: (account.promised.epoch > 0).then(|| promise(&account.promised)),
        testimony: account.testimony.map(|sworn| words::Testimony {
            promise: promise(&sworn.generation),
            position: position_report(&sworn.position),
            whole: sworn.whole,
        }),
        reported_at: None,
    }
}
