//! Points the pair's Service at this member after a takeover, so that a failover completes while every operator is down.
//! By compare-and-swap, together with the epoch as an annotation, and never to a lower epoch.

use crate::api::{Clients, within};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::PostParams;
use std::time::Duration;

const EPOCH: &str = "tandem.dev/epoch";
const MEMBER: &str = "tandem.dev/member";
const PAIR: &str = "tandem.dev/pair";
const AGAIN: Duration = Duration::from_millis(500);
const TRIES_MAX: u32 = 240;

/// Tries until the Service points here or to somebody newer. An operator does the same: whoever is first.
pub async fn claim(clients: Clients, namespace: String, pair: String, member: &'static str, epoch: u64) {
    let api = Api::<Service>::namespaced(clients.fencing, &namespace);
    for _ in 0..TRIES_MAX {
        match once(&api, &pair, member, epoch).await {
            Ok(true) => {
                tracing::info!(epoch, member, "the Service points here");
                return;
            }
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(error, epoch, "point the Service here");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn once(api: &Api<Service>, pair: &str, member: &str, epoch: u64) -> Result<bool, String> {
    let mut service = within(api.get(pair)).await.map_err(|error| error.to_string())?;
    let annotations = service.metadata.annotations.get_or_insert_default();
    let there = annotations.get(EPOCH).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let spec = service.spec.get_or_insert_default();
    let selector = spec.selector.get_or_insert_default();
    if there > epoch || (there == epoch && selector.get(MEMBER).is_some_and(|now| now == member)) {
        return Ok(false);
    }
    annotations.insert(EPOCH.into(), epoch.to_string());
    selector.insert(PAIR.into(), pair.into());
    selector.insert(MEMBER.into(), member.into());
    // `service` carries the resourceVersion that was read: a conflict is read again.
    within(api.replace(pair, &PostParams::default(), &service)).await.map_err(|error| error.to_string())?;
    Ok(true)
}
