//! What every step may use: clients, what the watches hold, and the memory of what was applied.

use crate::desired::Sidecar;
use crate::events::Events;
use crate::health::Health;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use kube::Client;
use kube::runtime::reflector::Store;
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
    /// Failures in a row, by namespace and name of the pair.
    pub failures: Mutex<HashMap<(String, String), u32>>,
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
