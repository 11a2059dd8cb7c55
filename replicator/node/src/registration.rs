//! Tells kubelet that this driver exists: the two calls kubelet makes on the registration socket.

use crate::grpc::{Service, Status, code};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PluginInfo {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(string, tag = "3")]
    pub(crate) endpoint: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) supported_versions: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    plugin_registered: bool,
    #[prost(string, tag = "2")]
    error: String,
}

/// Answers on the registration socket.
pub struct Registration {
    /// Name of the driver.
    pub driver: String,
    /// Path of the CSI socket, as kubelet sees it.
    pub endpoint: String,
}

impl Service for Registration {
    async fn call(&self, path: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
        match path {
            "/pluginregistration.Registration/GetInfo" => Ok(PluginInfo {
                kind: "CSIPlugin".to_owned(),
                name: self.driver.clone(),
                endpoint: self.endpoint.clone(),
                supported_versions: vec!["1.0.0".to_owned()],
            }
            .encode_to_vec()),
            "/pluginregistration.Registration/NotifyRegistrationStatus" => {
                let status = RegistrationStatus::decode(message)
                    .map_err(|error| Status::new(code::INVALID_ARGUMENT, format!("read request: {error}")))?;
                if status.plugin_registered {
                    tracing::info!("kubelet registered the driver");
                } else {
                    // Kubelet tries again by itself, at growing intervals.
                    tracing::error!(error = status.error, "kubelet did not register the driver");
                }
                Ok(Vec::new())
            }
            _ => Err(Status::new(code::UNIMPLEMENTED, format!("{path} is not offered"))),
        }
    }
}
