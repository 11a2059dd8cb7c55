//! Gathers what is known about one pair. Reads what the watches hold; the record alone is asked for when it seems to be
//! missing, because to found a pair twice would be worse than a request.

use crate::context::Context;
use crate::observed::{ClaimSeen, MemberSeen, Observed, PodSeen, ServiceSeen, WorkloadSeen};
use crate::pair::{EPOCH, MEMBER, PAIR_ID, PerMember, ValidPair};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use kube::runtime::reflector::{Lookup, ObjectRef, Store};
use kube::{Api, Resource, ResourceExt};
use std::hash::Hash;
use std::sync::Arc;
use tandem_crds::v1alpha1::{MemberName, MemberReport, PairRecord, ReplicationMember, ReplicationPair};

fn find<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<Arc<K>>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    store.get(&ObjectRef::new(name).within(namespace))
}

/// Looks at everything that concerns a pair.
pub async fn observe(context: &Context, object: &ReplicationPair, pair: &ValidPair) -> Result<Observed, kube::Error> {
    let stores = &context.stores;
    let mut record = find(&stores.records, &pair.namespace, &pair.name).map(|record| (*record).clone());
    if record.is_none() {
        record = Api::<PairRecord>::namespaced(context.client.clone(), &pair.namespace).get_opt(&pair.name).await?;
    }
    let members = PerMember::make(|member| {
        let name = pair.member_object(member);
        let pod = find(&stores.pods, &pair.namespace, &pair.pod(member));
        let object = find(&stores.members, &pair.namespace, &name);
        MemberSeen {
            claim: find(&stores.claims, &pair.namespace, &pair.claim(member)).map(|found| claim(&found)),
            workload: find(&stores.workloads, &pair.namespace, &name).map(|found| workload(&found)),
            pod: pod.as_deref().map(pod_seen),
            report: object.as_ref().and_then(|object| believed(object, pod.as_deref())),
            asked: object.and_then(|object| object.spec.testify.clone()),
        }
    });
    Ok(Observed {
        record_owners: record.as_ref().map(owners).unwrap_or_default(),
        record_version: record.as_ref().and_then(ResourceExt::resource_version),
        record: record.map(|record| record.spec),
        members,
        service: find(&stores.services, &pair.namespace, &pair.name).map(|found| service(&found)),
        status: object.status.clone().unwrap_or_default(),
    })
}

/// A report counts only if the pod that wrote it is the one that is there.
fn believed(member: &ReplicationMember, pod: Option<&Pod>) -> Option<MemberReport> {
    let report = member.status.clone()?;
    (report.pod_uid.is_some() && report.pod_uid == pod?.metadata.uid).then_some(report)
}

fn owners<K: Resource>(object: &K) -> Vec<String> {
    object.meta().owner_references.iter().flatten().map(|owner| owner.uid.clone()).collect()
}

fn claim(found: &PersistentVolumeClaim) -> ClaimSeen {
    ClaimSeen {
        uid: found.metadata.uid.clone().unwrap_or_default(),
        pair_id: found.annotations().get(PAIR_ID).cloned(),
        owners: owners(found),
    }
}

fn workload(found: &StatefulSet) -> WorkloadSeen {
    let newest = found.status.as_ref().filter(|status| status.observed_generation == found.metadata.generation);
    WorkloadSeen { revision: newest.and_then(|status| status.update_revision.clone()) }
}

fn pod_seen(found: &Pod) -> PodSeen {
    let status = found.status.as_ref();
    let conditions = || status.iter().flat_map(|status| status.conditions.iter().flatten());
    PodSeen {
        uid: found.metadata.uid.clone().unwrap_or_default(),
        node: found.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        ready: conditions().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        deleting: found.metadata.deletion_timestamp.is_some(),
        revision: found.labels().get("controller-revision-hash").cloned(),
        waiting: waiting(found),
    }
}

/// The first thing that keeps a pod from running, in its own words. The gate is no trouble: it waits on purpose.
fn waiting(found: &Pod) -> Option<String> {
    let status = found.status.as_ref()?;
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
        .map(|condition| format!("its pod is not scheduled: {}", condition.message.clone().unwrap_or_default()));
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let stuck = containers
        .filter_map(|container| Some((&container.name, container.state.as_ref()?.waiting.as_ref()?)))
        .find(|(_, waiting)| waiting.reason.as_deref() != Some("PodInitializing"))
        .map(|(name, waiting)| {
            let words = [waiting.reason.clone(), waiting.message.clone()].into_iter().flatten().collect::<Vec<_>>();
            format!("container {name}: {}", words.join(": "))
        });
    let text = unscheduled.or(stuck)?;
    Some(text.chars().take(400).collect())
}

fn service(found: &Service) -> ServiceSeen {
    let selected = found.spec.as_ref().and_then(|spec| spec.selector.as_ref()?.get(MEMBER)?.parse::<MemberName>().ok());
    ServiceSeen {
        epoch: found.annotations().get(EPOCH).and_then(|text| text.parse().ok()).unwrap_or_default(),
        member: selected,
    }
}
