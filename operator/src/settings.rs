//! The command line and the environment, read once.

use clap::Parser;
use std::net::SocketAddr;

/// Keeps ReplicationPairs as their owners asked.
#[derive(Clone, Debug, Parser)]
#[command(name = "tandem-operator", version, about)]
pub struct Settings {
    /// Image of the sidecar that is put into each member's pod
    #[arg(long, env = "TANDEM_IMAGE")]
    pub image: String,
    /// When kubelet pulls that image: Always, IfNotPresent or Never
    #[arg(long, env = "TANDEM_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub pull_policy: String,
    /// Namespace of the operator, where its lease is
    #[arg(long, env = "TANDEM_NAMESPACE")]
    pub namespace: String,
    /// Name of this pod: who holds the lease
    #[arg(long, env = "TANDEM_POD")]
    pub pod: String,
    /// Where probes and metrics are answered
    #[arg(long, env = "TANDEM_HEALTH", default_value = "0.0.0.0:8080")]
    pub health: SocketAddr,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        super::Settings::command().debug_assert();
    }
}
