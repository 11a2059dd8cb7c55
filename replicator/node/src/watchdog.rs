//! Ends connections that nobody will ever serve again. The plugin holds duplicates of every descriptor, so the death of a
//! replicator does not end its connection: that is what lets a successor take over. But a process that waits in a mount
//! nobody serves cannot even be killed, kubelet unpublishes only after every container has ended, and so a pod would stay
//! in `Terminating` for ever. Hence, once a pod is going:
//!
//! | case | seen by | ended after |
//! | --- | --- | --- |
//! | no replicator ever came | no connection to the pod's socket | 3 s |
//! | the replicator is gone | its connection has ended | 3 s |
//! | the replicator hangs | requests wait although every container should have been killed | grace period + 5 s |
//!
//! | no successor comes, requests wait | its connection has ended, the pod is not going | 20 s |
//!
//! The last row: kubelet restarts a replicator within seconds. When the whole pod was killed it first wants every process of
//! it dead, and one that waits in the mount cannot die. Without requests that wait a pod that is not going is left alone.
//! Nothing here touches a mount.

use crate::mounts::Connections;
use crate::volumes::{Presence, Seen, Volumes};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(500);
const GONE: Duration = Duration::from_secs(3);
/// Longer than kubelet takes to start a replicator again, twice in a row: the second time it pauses for 10 to 15 s. When the
/// whole pod was killed, this is for how long its application is away beside the time that it takes to start.
const NO_SUCCESSOR: Duration = Duration::from_secs(20);
/// After this long the kills of kubelet and the runtime have long happened.
const AFTER_GRACE: Duration = Duration::from_secs(5);
/// The watch may learn of a pod later than kubelet does; one that is not listed after this long does not exist.
const UNHEARD_OF: Duration = Duration::from_secs(30);
/// Kubelet unpublishes what it knows. What is still there this long after its pod vanished, it has forgotten.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// A pod that is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Going {
    since: Instant,
    /// How long its containers may still run.
    grace: Duration,
    /// Whether the API has forgotten it altogether.
    vanished: bool,
}

/// What is known of this node's pods.
#[derive(Default)]
pub struct Pods {
    inner: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Whether there has been a complete list: without one, absence means nothing.
    listed: bool,
    present: HashMap<String, Option<Going>>,
    /// What a list under way has brought so far.
    listing: HashMap<String, Option<Going>>,
    vanished: HashMap<String, Instant>,
}

impl Known {
    fn read(&self, pod: &PartialObjectMeta<Pod>, now: Instant) -> Option<(String, Option<Going>)> {
        let uid = pod.metadata.uid.clone()?;
        let earlier = self.present.get(&uid).copied().flatten();
        // Our own clock counts from when we heard of it: that of the API server may differ.
        let going = pod.metadata.deletion_timestamp.as_ref().map(|_| {
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
            Going {
                since: earlier.map_or(now, |going| going.since),
                grace: Duration::from_secs(grace.clamp(0, 1 << 20) as u64),
                vanished: false,
            }
        });
        Some((uid, going))
    }

    fn hear(&mut self, event: watcher::Event<PartialObjectMeta<Pod>>, now: Instant) {
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(pod) => {
                if let Some((uid, going)) = self.read(&pod, now) {
                    self.listing.insert(uid, going);
                }
            }
            watcher::Event::InitDone => {
                let listing = std::mem::take(&mut self.listing);
                for uid in self.present.keys().filter(|uid| !listing.contains_key(*uid)) {
                    self.vanished.entry(uid.clone()).or_insert(now);
                }
                self.present = listing;
                self.listed = true;
            }
            watcher::Event::Apply(pod) => {
                if let Some((uid, going)) = self.read(&pod, now) {
                    self.present.insert(uid, going);
                }
            }
            watcher::Event::Delete(pod) => {
                if let Some(uid) = pod.metadata.uid {
                    self.present.remove(&uid);
                    self.vanished.insert(uid, now);
                }
            }
        }
        self.vanished.retain(|_, since| now.duration_since(*since) < 10 * FORGOTTEN);
    }

    fn going(&self, seen: &Seen, known_since: Instant, now: Instant) -> Option<Going> {
        if let Some(going) = self.present.get(&seen.pod.uid) {
            return *going;
        }
        let vanished = |since| Going { since, grace: Duration::ZERO, vanished: true };
        if let Some(&since) = self.vanished.get(&seen.pod.uid) {
            return Some(vanished(since));
        }
        (self.listed && now.duration_since(known_since) > UNHEARD_OF).then(|| vanished(known_since + UNHEARD_OF))
    }
}

/// What to do about one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Leave,
    /// End the connection, for this reason.
    Abort(&'static str),
    /// End it and take the volume away.
    Clear,
}

fn judge(presence: Presence, going: Option<Going>, waiting: u64, now: Instant) -> Verdict {
    let Some(going) = going else {
        return match presence {
            Presence::Gone(since) if waiting > 0 && now.duration_since(since) >= NO_SUCCESSOR => {
                Verdict::Abort("the replicator is gone, nobody came in its place, and requests wait")
            }
            Presence::Gone(_) | Presence::Here(_) | Presence::Never(_) => Verdict::Leave,
        };
    };
    let gone_for = now.duration_since(going.since);
    let absent = match presence {
        Presence::Here(_) => None,
        Presence::Never(since) => Some(("no replicator came and the pod is going", now.duration_since(since))),
        Presence::Gone(since) => Some(("the replicator is gone and the pod is going", now.duration_since(since))),
    };
    match absent {
        Some((_, absent_for)) if going.vanished && gone_for >= FORGOTTEN && absent_for >= GONE => Verdict::Clear,
        Some((why, absent_for)) if absent_for >= GONE && gone_for >= GONE => Verdict::Abort(why),
        None if waiting > 0 && gone_for >= going.grace + AFTER_GRACE => {
            Verdict::Abort("requests wait although the pod's time is over")
        }
        Some(_) | None => Verdict::Leave,
    }
}

/// Watches until the process ends. Without a client nothing is ever known to be going.
pub async fn watch(volumes: Arc<Volumes>, connections: Connections, pods: Arc<Pods>) {
    let mut first_seen: HashMap<String, Instant> = HashMap::new();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let all = volumes.seen();
        first_seen.retain(|volume, _| all.iter().any(|seen| seen.volume == *volume));
        for seen in all {
            let known_since = *first_seen.entry(seen.volume.clone()).or_insert(now);
            let going = pods.inner.lock().going(&seen, known_since, now);
            if going.is_none() && matches!(seen.presence, Presence::Here(_)) {
                continue;
            }
            let waiting = match connections.waiting(seen.minor) {
                Ok(waiting) => waiting.unwrap_or(0),
                Err(error) => {
                    tracing::error!(%error, minor = seen.minor, "requests that wait cannot be counted");
                    0
                }
            };
            match judge(seen.presence, going, waiting, now) {
                Verdict::Leave => {}
                Verdict::Abort(why) if !seen.ended => {
                    tracing::warn!(
                        volume = seen.volume,
                        namespace = seen.pod.namespace,
                        pod = seen.pod.name,
                        waiting,
                        why,
                        "connection aborted"
                    );
                    abort(&connections, &volumes, &seen);
                }
                Verdict::Abort(_) => {}
                Verdict::Clear => {
                    tracing::warn!(
                        namespace = seen.pod.namespace,
                        pod = seen.pod.name,
                        "a pod that is no more left volumes behind"
                    );
                    abort(&connections, &volumes, &seen);
                    let (volumes, uid) = (Arc::clone(&volumes), seen.pod.uid);
                    // Unmounting has a thread of its own: whatever happens to it, the watch goes on.
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = volumes.clear_pod(&uid) {
                            tracing::warn!(error = crate::chain(&error), "they could not be taken away");
                        }
                    });
                }
            }
        }
    }
}

fn abort(connections: &Connections, volumes: &Volumes, seen: &Seen) {
    if let Err(error) = connections.abort(seen.minor) {
        tracing::error!(%error, minor = seen.minor, "the connection could not be aborted");
    }
    volumes.let_go(&seen.volume, seen.minor);
}

/// Listens to what the API says of this node's pods, for ever.
pub async fn listen(client: kube::Client, node: String, pods: Arc<Pods>) {
    let api = kube::Api::<PartialObjectMeta<Pod>>::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => pods.inner.lock().hear(event, Instant::now()),
            // The watch goes on by itself, with growing pauses. What was known stays known.
            Err(error) => tracing::warn!(error = crate::chain(&error), "pods cannot be watched"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_ended_only_when_its_pod_goes_and_nobody_serves() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let going = |grace| Some(Going { since: start, grace: Duration::from_secs(grace), vanished: false });
        let vanished = Some(Going { since: start, grace: Duration::ZERO, vanished: true });
        let (here, gone, never) = (Presence::Here(1), Presence::Gone(start), Presence::Never(start));
        // presence, going, requests waiting, after seconds -> what
        let table = [
            (gone, None, 9, 19, "leave"),
            (gone, None, 9, 21, "abort"),
            (gone, None, 0, 100_000, "leave"),
            (never, None, 9, 100_000, "leave"),
            (here, None, 9, 100_000, "leave"),
            (never, going(30), 0, 2, "leave"),
            (never, going(30), 0, 4, "abort"),
            (gone, going(30), 1, 2, "leave"),
            (gone, going(30), 1, 4, "abort"),
            (here, going(30), 9, 34, "leave"),
            (here, going(30), 9, 36, "abort"),
            (here, going(30), 0, 100_000, "leave"),
            (here, going(0), 1, 6, "abort"),
            (Presence::Gone(at(9)), going(0), 1, 10, "leave"),
            (here, vanished, 0, 100_000, "leave"),
            (here, vanished, 1, 6, "abort"),
            (gone, vanished, 0, 4, "abort"),
            (gone, vanished, 0, 61, "clear"),
        ];
        for (number, (presence, going, waiting, seconds, expected)) in table.into_iter().enumerate() {
            let verdict = match judge(presence, going, waiting, at(seconds)) {
                Verdict::Leave => "leave",
                Verdict::Abort(_) => "abort",
                Verdict::Clear => "clear",
            };
            assert_eq!(verdict, expected, "row {number}");
        }
    }

    fn pod(uid: &str, deleted: bool) -> PartialObjectMeta<Pod> {
        let mut pod = PartialObjectMeta::<Pod>::default();
        pod.metadata.uid = Some(uid.to_owned());
        if deleted {
            pod.metadata.deletion_timestamp =
                Some(serde_json::from_value(serde_json::json!("2026-01-01T00:00:00Z")).unwrap());
            pod.metadata.deletion_grace_period_seconds = Some(7);
        }
        pod
    }

    #[test]
    fn a_pod_is_missing_only_after_a_complete_list() {
        use watcher::Event;
        let now = Instant::now();
        let late = now + 2 * UNHEARD_OF;
        let seen = |uid: &str| Seen {
            volume: "v".to_owned(),
            pod: crate::volumes::Pod { namespace: String::new(), name: String::new(), uid: uid.to_owned() },
            minor: 1,
            presence: Presence::Never(now),
            ended: false,
        };
        let mut known = Known::default();
        assert_eq!(known.going(&seen("a"), now, late), None);
        known.hear(Event::Init, now);
        known.hear(Event::InitApply(pod("a", false)), now);
        assert_eq!(known.going(&seen("b"), now, late), None, "the list is not complete");
        known.hear(Event::InitDone, now);
        assert_eq!(known.going(&seen("a"), now, late), None);
        assert_eq!(known.going(&seen("b"), now, now), None, "kubelet may know it before we do");
        assert!(known.going(&seen("b"), now, late).unwrap().vanished);
        known.hear(Event::Apply(pod("a", true)), now);
        let going = known.going(&seen("a"), now, late).unwrap();
        assert_eq!((going.grace, going.vanished), (Duration::from_secs(7), false));
        known.hear(Event::Init, late);
        known.hear(Event::InitDone, late);
        assert!(known.going(&seen("a"), now, late).unwrap().vanished);
    }
}
