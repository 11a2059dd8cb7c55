//! Points the read/write Service at the member that leads: by compare-and-swap, together with the epoch, and never to a
//! lower one. A new master does the same for itself; whoever is first.

use super::{ActError, doing};
use crate::context::Context;
use crate::pair::{EPOCH, MEMBER, PAIR, ValidPair};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::PostParams;
use tandem_crds::v1alpha1::MemberName;

const TRIES: usize = 4;

/// Points the Service at a member.
pub async fn point(context: &Context, pair: &ValidPair, member: MemberName, epoch: i64) -> Result<(), ActError> {
    let services = Api::<Service>::namespaced(context.client.clone(), &pair.namespace);
    let mut tries = 0;
    loop {
        let mut service = services.get(&pair.name).await.map_err(doing("read the Service"))?;
        let annotations = service.metadata.annotations.get_or_insert_default();
        let there = annotations.get(EPOCH).and_then(|text| text.parse::<i64>().ok()).unwrap_or_default();
        let selector = service.spec.get_or_insert_default().selector.get_or_insert_default();
        let same = there == epoch && selector.get(MEMBER).is_some_and(|now| now == member.letter());
        if there > epoch || same {
            return Ok(());
        }
        annotations.insert(EPOCH.into(), epoch.to_string());
        selector.insert(PAIR.into(), pair.name.clone());
        selector.insert(MEMBER.into(), member.letter().into());
        match services.replace(&pair.name, &PostParams::default(), &service).await {
            Ok(_) => {
                tracing::info!(pair = pair.name, namespace = pair.namespace, %member, epoch, "the Service was pointed");
                return Ok(());
            }
            // Somebody else wrote it meanwhile: what they wrote is looked at.
            Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => tries += 1,
            Err(error) => return Err(doing("point the Service")(error)),
        }
    }
}
