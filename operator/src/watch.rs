//! Which changes wake which pair. Each kind has a watch with a patience of its own: one that fails (a missing right, a
//! missing kind) must not slow the others down.

use crate::context::{Context, Stores};
use crate::desired::Sidecar;
use crate::events::Events;
use crate::health::Health;
use crate::pair::PAIR;
use crate::reconcile::{after_failure, reconcile};
use backon::ExponentialBuilder;
use futures::stream::{BoxStream, select_all};
use futures::{Stream, StreamExt};
use kube::runtime::controller::{Config, applier};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::ExponentialBackoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use tandem_crds::v1alpha1::ReplicationPair;

/// A watch that died silently is noticed after this and five seconds.
const WATCH_SECONDS: u32 = 25;
/// Between two tries of a watch; up to the same again is added by chance.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(2);
const TURNS_AT_ONCE: u16 = 8;

type Wakes = BoxStream<'static, ObjectRef<ReplicationPair>>;

/// Keeps pairs until the process ends.
pub async fn run(client: Client, sidecar: Sidecar, instance: String, health: Arc<Health>) {
    let ours = || watcher::Config::default().timeout(WATCH_SECONDS).labels(PAIR);
    let all = || watcher::Config::default().timeout(WATCH_SECONDS);
    let (pairs, pair_changes) =
        follow(client.clone(), "pairs", all(), Arc::clone(&health), |pair: &ReplicationPair| {
            Some(ObjectRef::from_obj(pair))
        });
    let (members, member_changes) = follow(client.clone(), "members", ours(), Arc::clone(&health), of_pair);
    let (records, record_changes) = follow(client.clone(), "records", ours(), Arc::clone(&health), of_pair);
    let (pods, pod_changes) = follow(client.clone(), "pods", ours(), Arc::clone(&health), of_pair);
    let (workloads, workload_changes) = follow(client.clone(), "workloads", ours(), Arc::clone(&health), of_pair);
    let (services, service_changes) = follow(client.clone(), "services", ours(), Arc::clone(&health), of_pair);
    let (claims, claim_changes) = follow(client.clone(), "claims", ours(), Arc::clone(&health), of_pair);
    let context = Arc::new(Context {
        client: client.clone(),
        sidecar,
        events: Events::new(client, instance),
        health,
        stores: Stores { pairs: pairs.clone(), members, records, pods, workloads, services, claims },
        applied: parking_lot::Mutex::default(),
        written: parking_lot::Mutex::default(),
        failures: parking_lot::Mutex::default(),
    });
    let wakes = select_all([
        pair_changes,
        member_changes,
        record_changes,
        pod_changes,
        workload_changes,
        service_changes,
        claim_changes,
    ])
    .map(Ok::<_, Infallible>);
    applier(
        |object, context| Box::pin(reconcile(object, context)),
        after_failure_boxed,
        context,
        pairs,
        wakes,
        Config::default().concurrency(TURNS_AT_ONCE),
    )
    .for_each(|turn| async move {
        if let Err(error) = turn {
            // A pair that went away between its change and its turn; failures of a turn are told where they are handled.
            tracing::debug!(%error, "turn");
        }
    })
    .await;
}

fn after_failure_boxed(
    object: Arc<ReplicationPair>,
    error: &crate::reconcile::ReconcileError,
    context: Arc<Context>,
) -> kube::runtime::controller::Action {
    after_failure(object, error, context)
}

/// The pair that an object belongs to, by its label.
fn of_pair<K: ResourceExt>(object: &K) -> Option<ObjectRef<ReplicationPair>> {
    Some(ObjectRef::new(object.labels().get(PAIR)?).within(&object.namespace()?))
}

/// Keeps one kind in a store and says whom each change concerns. Errors are logged and end nothing.
fn follow<K>(
    client: Client,
    name: &'static str,
    config: watcher::Config,
    health: Arc<Health>,
    concerns: impl Fn(&K) -> Option<ObjectRef<ReplicationPair>> + Send + Sync + 'static,
) -> (Store<K>, Wakes)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash,
{
    let (store, writer) = reflector::store();
    // kube's own pauses grow to 30 s: for so long no Service would follow a failover after an outage of the API server.
    let pauses = ExponentialBuilder::default().with_jitter().without_max_times();
    let pause: ExponentialBackoff = pauses.with_min_delay(PAUSE_MIN).with_max_delay(PAUSE_MAX).into();
    let changes = watcher(Api::<K>::all(client), config)
        .backoff(pause)
        .modify(|object: &mut K| object.managed_fields_mut().clear())
        .reflect(writer)
        .touched_objects();
    (store, wakes(changes, name, health, concerns).boxed())
}

fn wakes<K>(
    changes: impl Stream<Item = watcher::Result<K>>,
    name: &'static str,
    health: Arc<Health>,
    concerns: impl Fn(&K) -> Option<ObjectRef<ReplicationPair>>,
) -> impl Stream<Item = ObjectRef<ReplicationPair>> {
    changes.filter_map(move |change| {
        let concerned = match change {
            Ok(object) => {
                health.heard(name);
                concerns(&object)
            }
            Err(error) => {
                tracing::warn!(%error, watch = name, "watch");
                None
            }
        };
        std::future::ready(concerned)
    })
}
