//! The CSI calls kubelet makes: identity and node, for ephemeral inline volumes only. Messages are written by hand, with
//! the fields that are used; kubelet's other fields are skipped when read and empty when written.

use crate::grpc::{Service, Status, code};
use crate::volumes::{Pod, Publication, Role, Volumes};
use prost::Message;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Clone, PartialEq, Message)]
struct PluginInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    vendor_version: String,
}

#[derive(Clone, PartialEq, Message)]
struct NodeInfo {
    #[prost(string, tag = "1")]
    node_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Probe {
    #[prost(message, optional, tag = "1")]
    ready: Option<BoolValue>,
}

#[derive(Clone, PartialEq, Message)]
struct BoolValue {
    #[prost(bool, tag = "1")]
    value: bool,
}

/// `NodePublishVolumeRequest`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PublishRequest {
    #[prost(string, tag = "1")]
    pub(crate) volume_id: String,
    #[prost(string, tag = "4")]
    pub(crate) target_path: String,
    #[prost(bool, tag = "6")]
    pub(crate) readonly: bool,
    #[prost(map = "string, string", tag = "8")]
    pub(crate) volume_context: HashMap<String, String>,
}

/// `NodeUnpublishVolumeRequest`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct UnpublishRequest {
    #[prost(string, tag = "1")]
    pub(crate) volume_id: String,
    #[prost(string, tag = "2")]
    pub(crate) target_path: String,
}

/// Answers on the CSI socket.
pub struct Csi {
    /// Name of the driver.
    pub driver: String,
    /// Name of the node.
    pub node: String,
    /// What is published here.
    pub volumes: Arc<Volumes>,
}

impl Service for Csi {
    async fn call(&self, path: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
        match path {
            "/csi.v1.Identity/GetPluginInfo" => {
                Ok(PluginInfo { name: self.driver.clone(), vendor_version: env!("CARGO_PKG_VERSION").to_owned() }
                    .encode_to_vec())
            }
            "/csi.v1.Identity/Probe" => Ok(Probe { ready: Some(BoolValue { value: true }) }.encode_to_vec()),
            // None: no controller, no staging; and no volume statistics, because those would make kubelet touch the
            // mount, which blocks as long as nobody serves it.
            "/csi.v1.Identity/GetPluginCapabilities" | "/csi.v1.Node/NodeGetCapabilities" => Ok(Vec::new()),
            "/csi.v1.Node/NodeGetInfo" => Ok(NodeInfo { node_id: self.node.clone() }.encode_to_vec()),
            "/csi.v1.Node/NodePublishVolume" => {
                let publication = publication_in(message)?;
                let volumes = Arc::clone(&self.volumes);
                blocking(move || volumes.publish(&publication)).await
            }
            "/csi.v1.Node/NodeUnpublishVolume" => {
                let request = read::<UnpublishRequest>(message)?;
                let volumes = Arc::clone(&self.volumes);
                blocking(move || volumes.unpublish(&request.volume_id, &PathBuf::from(&request.target_path))).await
            }
            _ => Err(Status::new(code::UNIMPLEMENTED, format!("{path} is not offered"))),
        }
    }
}

fn read<M: Message + Default>(message: &[u8]) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::new(code::INVALID_ARGUMENT, format!("read request: {error}")))
}

/// Mounting may take its time; other calls go on meanwhile.
async fn blocking(
    work: impl FnOnce() -> Result<(), crate::volumes::Error> + Send + 'static,
) -> Result<Vec<u8>, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => Ok(Vec::new()),
        Ok(Err(error)) => {
            tracing::warn!(error = crate::chain(&error), "a call failed");
            let code = if error.is_the_callers() { code::FAILED_PRECONDITION } else { code::INTERNAL };
            Err(Status::new(code, crate::chain(&error)))
        }
        Err(error) => Err(Status::new(code::INTERNAL, error.to_string())),
    }
}

/// What a request of kubelet asks for, or why not.
pub fn publication_in(message: &[u8]) -> Result<Publication, Status> {
    publication(&read::<PublishRequest>(message)?)
}

/// What kubelet asks for, in our words, or why not.
fn publication(request: &PublishRequest) -> Result<Publication, Status> {
    let context = |key: &str| request.volume_context.get(key).map(String::as_str).unwrap_or_default();
    let refuse = |why: &str| Err(Status::new(code::INVALID_ARGUMENT, why));
    if context("csi.storage.k8s.io/ephemeral") != "true" {
        return refuse("only inline volumes of a pod are served, no persistent ones");
    }
    let role = match context("role") {
        "data" => Role::Data,
        "control" => Role::Control,
        _ => return refuse("volume attribute \"role\" must be \"data\" or \"control\""),
    };
    if role == Role::Data && request.readonly {
        return refuse("the data volume cannot be read-only; make the mount of a container read-only instead");
    }
    let pod = Pod {
        namespace: context("csi.storage.k8s.io/pod.namespace").to_owned(),
        name: context("csi.storage.k8s.io/pod.name").to_owned(),
        uid: context("csi.storage.k8s.io/pod.uid").to_owned(),
    };
    Ok(Publication { volume: request.volume_id.clone(), role, pod, target: PathBuf::from(&request.target_path) })
}
