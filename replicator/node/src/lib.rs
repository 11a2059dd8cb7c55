//! The node plugin, the only privileged part: one per node. A CSI driver for ephemeral inline volumes that opens
//! `/dev/fuse`, mounts, and hands the descriptors to the replicator of that very pod. It sees no data and holds no keys.
//!
//! ```text
//! kubelet -- registration, csi (grpc) --> volumes -- mounts
//!                                            ^
//! replicator of a pod -- handover -----------+----- watchdog <-- pods of this node
//! ```

pub mod registration;

pub mod csi;
pub mod grpc;
pub mod hpack;

pub mod handover;
pub mod mounts;
pub mod volumes;
pub mod watchdog;

/// An error with everything beneath it, as one sentence.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        sentence.push_str(": ");
        sentence.push_str(&error.to_string());
        cause = error.source();
    }
    sentence
}
