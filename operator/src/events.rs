//! Tells what happened as Events. Each is an object of its own, so that each epoch's story can be read; one that cannot be
//! written is logged, never a reason to stop.

use crate::clock;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use tandem_crds::v1alpha1::ReplicationPair;

/// The operator's voice.
#[derive(Clone)]
pub struct Events {
    client: Client,
    instance: String,
}

/// Something worth an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// One word.
    pub reason: String,
    /// One sentence.
    pub message: String,
    /// Somebody should look.
    pub warning: bool,
}

impl Events {
    /// A voice with this name.
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance }
    }

    /// Tells about a pair.
    pub async fn tell(&self, pair: &ReplicationPair, happenings: &[Happening]) {
        let namespace = pair.metadata.namespace.clone().unwrap_or_default();
        let name = pair.metadata.name.clone().unwrap_or_default();
        let api = Api::<Event>::namespaced(self.client.clone(), &namespace);
        for happening in happenings {
            tracing::info!(pair = name, namespace, reason = happening.reason, message = happening.message, "event");
            let event = Event {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{name}-")),
                    namespace: Some(namespace.clone()),
                    ..ObjectMeta::default()
                },
                regarding: Some(reference(pair)),
                reason: Some(happening.reason.clone()),
                note: Some(happening.message.chars().take(1000).collect()),
                type_: Some(if happening.warning { "Warning" } else { "Normal" }.into()),
                event_time: Some(MicroTime(clock::now())),
                action: Some("Reconcile".into()),
                reporting_controller: Some("tandem.dev/operator".into()),
                reporting_instance: Some(self.instance.clone()),
                ..Event::default()
            };
            if let Err(error) = api.create(&PostParams::default(), &event).await {
                tracing::warn!(%error, reason = happening.reason, "an event was not written");
            }
        }
    }
}

fn reference(pair: &ReplicationPair) -> ObjectReference {
    pair.object_ref(&())
}
