//! What every step may use: clients, what the watches hold, and the memory of what was applied.

use crate::desired::Sidecar;
use crate::events::Events;
use crate::health::Health;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use kube::core::ObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tandem_crds::v1alpha1::{PairRecord, ReplicationMember, ReplicationPair};

/// Shared by all reconciliations.
pub struct Context {
    /// The API.
    pub client: Client,
    /// What members' pods are made with.
    pub sidecar: Sidecar,
    /// Tells what happened.
    pub events: Events,
    /// Probes and metrics.
    pub health: Arc<Health>,
    /// What the watches hold.
    pub stores: Stores,
    /// What was applied last, by path of the object: a hash of it, and when.
    pub applied: Mutex<HashMap<String, (u64, Instant)>>,
    /// Pairs as they were when their status was written, until the watch has brought them: by namespace and name.
    pub written: Mutex<HashMap<(String, String), Arc<ReplicationPair>>>,
    /// Failures in a row, by namespace and name of the pair.
    pub failures: Mutex<HashMap<(String, String), u32>>,
}

impl Context {
    /// The pair as the watch has it, or as this process wrote it since: what was answered must not be judged again.
    pub fn newest(&self, object: Arc<ReplicationPair>) -> Arc<ReplicationPair> {
        let key = (object.namespace().unwrap_or_default(), object.name_any());
        let mut all = self.written.lock();
        match all.get(&key) {
            Some(written) if is_newer(&written.metadata, &object.metadata) => Arc::clone(written),
            Some(_) => {
                all.remove(&key);
                object
            }
            None => object,
        }
    }

    /// Keeps a pair as it was written until the watch has it.
    pub fn keep(&self, written: ReplicationPair) {
        let mut all = self.written.lock();
        // Of pairs that were deleted before the watch had caught up.
        all.retain(|(namespace, name), _| self.stores.pairs.get(&ObjectRef::new(name).within(namespace)).is_some());
        all.insert((written.namespace().unwrap_or_default(), written.name_any()), Arc::new(written));
    }
}

/// Versions of one object are numbers that grow (Kubernetes promises it since 1.35, and always did it).
fn is_newer(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    let version = |object: &ObjectMeta| object.resource_version.as_ref().and_then(|text| text.parse::<u64>().ok());
    one.uid == other.uid && version(one) > version(other)
}

/// What the watches hold. May be a moment old: what is decided from it is checked again by whoever it concerns.
#[derive(Clone)]
pub struct Stores {
    /// Pairs.
    pub pairs: Store<ReplicationPair>,
    /// Members.
    pub members: Store<ReplicationMember>,
    /// Records.
    pub records: Store<PairRecord>,
    /// Pods.
    pub pods: Store<Pod>,
    /// StatefulSets.
    pub workloads: Store<StatefulSet>,
    /// Services.
    pub services: Store<Service>,
    /// Claims.
    pub claims: Store<PersistentVolumeClaim>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(uid: &str, version: &str) -> ObjectMeta {
        ObjectMeta { uid: Some(uid.into()), resource_version: Some(version.into()), ..ObjectMeta::default() }
    }

    #[test]
    fn what_was_written_counts_until_the_watch_has_it() {
        assert!(is_newer(&pair("one", "100"), &pair("one", "99")));
        assert!(!is_newer(&pair("one", "99"), &pair("one", "100")));
        assert!(!is_newer(&pair("one", "100"), &pair("one", "100")));
        assert!(!is_newer(&pair("another", "101"), &pair("one", "100")), "of a pair of the same name that is gone");
    }
}
