//! The record as an object of the Kubernetes API.

use super::{Kept, RecordError, RecordKeeper};
use crate::api::{Clients, Failed, follow, within};
use crate::settings::ServeSettings;
use futures::FutureExt;
use futures::future::BoxFuture;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::json;
use tandem_crds::translation::{Unreadable, content, record};
use tandem_crds::v1alpha1 as words;
use tandem_protocol::Record;
use tokio::sync::watch;

/// One pair's record.
pub struct KubernetesKeeper {
    api: Api<words::PairRecord>,
    name: String,
    seen: watch::Receiver<Option<Kept>>,
}

impl KubernetesKeeper {
    /// Begins to watch.
    pub fn new(clients: &Clients, settings: &ServeSettings) -> Self {
        let (namespace, pair) = (settings.namespace.as_str(), settings.pair.as_str());
        let mut objects = follow(Api::<words::PairRecord>::namespaced(clients.watching.clone(), namespace), pair);
        let (sender, seen) = watch::channel(None);
        tokio::spawn(async move {
            while objects.changed().await.is_ok() {
                let object = objects.borrow_and_update().clone();
                if let Some(Ok(kept)) = object.map(kept)
                    && sender.send(Some(kept)).is_err()
                {
                    return;
                }
            }
        });
        Self { api: Api::namespaced(clients.fencing.clone(), namespace), name: pair.to_owned(), seen }
    }
}

impl RecordKeeper for KubernetesKeeper {
    fn read(&self) -> BoxFuture<'static, Result<Kept, RecordError>> {
        let (api, name) = (self.api.clone(), self.name.clone());
        async move {
            // Without a resourceVersion: a quorum read.
            match within(api.get(&name)).await {
                Ok(object) => kept(object).map_err(|error| RecordError::Unknown(error.to_string())),
                Err(Failed { code: Some(404), .. }) => Err(RecordError::Absent),
                Err(failed) => Err(RecordError::Unknown(failed.to_string())),
            }
        }
        .boxed()
    }

    fn write(&self, version: String, record: Record) -> BoxFuture<'static, Result<Kept, RecordError>> {
        let (api, name) = (self.api.clone(), self.name.clone());
        async move {
            let change = replacement(&version, &record).map_err(|error| RecordError::Conflict(error.to_string()))?;
            match within(api.patch(&name, &PatchParams::default(), &Patch::Json::<()>(change))).await {
                Ok(object) => kept(object).map_err(|error| RecordError::Unknown(error.to_string())),
                Err(failed) if failed.certainly_not_done() => Err(RecordError::Conflict(failed.to_string())),
                Err(failed) => Err(RecordError::Unknown(failed.to_string())),
            }
        }
        .boxed()
    }

    fn watch(&self) -> watch::Receiver<Option<Kept>> {
        self.seen.clone()
    }
}

fn kept(object: words::PairRecord) -> Result<Kept, Unreadable> {
    let version = object.metadata.resource_version.ok_or(Unreadable("version"))?;
    Ok(Kept { record: record(&object.spec)?, version })
}

/// All of the record's content, over exactly the object that was seen: naming its version makes the patch a
/// compare-and-swap. The object's owners and labels are not the members' to write; a PUT would take them away, and
/// whoever puts them back would come between two writes of a claim.
fn replacement<T: DeserializeOwned>(version: &str, record: &Record) -> serde_json::Result<T> {
    serde_json::from_value(json!([
        {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
        {"op": "replace", "path": "/spec", "value": content(record)},
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_protocol::MemberName;
    use tandem_protocol::identity::PairId;

    #[test]
    fn a_write_names_the_version_it_replaces_and_leaves_owners_alone() {
        let record = Record::founded(PairId(1), MemberName::A);
        let change: serde_json::Value = replacement("17", &record).unwrap();
        let written: Vec<_> = change.as_array().unwrap().iter().map(|step| step["path"].as_str().unwrap()).collect();
        assert_eq!(written, ["/metadata/resourceVersion", "/spec"]);
        assert_eq!(change[0]["value"], "17");
    }
}
