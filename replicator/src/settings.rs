//! The command line and the environment of the sidecar, read once. What the user may change while a pair runs is not here:
//! it comes with the orders (`report.rs`).

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The sidecar of a member of a replicated pair.
#[derive(Debug, Parser)]
#[command(name = "replicator", version, about)]
pub struct CommandLine {
    /// What to be.
    #[command(subcommand)]
    pub command: Command,
}

/// What to be.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pid 1 of the sidecar: keeps the descriptors of the application's mount, starts `serve` again when it dies
    Supervise(SuperviseSettings),
    /// The member itself: captures, journals, ships, applies, fences itself
    Serve(Box<ServeSettings>),
    /// Waits until this pod's member is master and serves, then ends, so that the application starts
    Gate(GateSettings),
}

/// Which member this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Member {
    /// The first.
    A,
    /// The second.
    B,
}

impl Member {
    /// `a` or `b`.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Where this member lives and whom it talks to.
#[derive(Clone, Debug, Args)]
pub struct ServeSettings {
    /// Namespace of the pair
    #[arg(long, env = "TANDEM_NAMESPACE")]
    pub namespace: String,
    /// Name of the pair
    #[arg(long, env = "TANDEM_PAIR")]
    pub pair: String,
    /// Which member this is
    #[arg(long, env = "TANDEM_MEMBER")]
    pub member: Member,
    /// Name of this pod
    #[arg(long, env = "TANDEM_POD", default_value = "")]
    pub pod: String,
    /// Uid of this pod
    #[arg(long, env = "TANDEM_POD_UID", default_value = "")]
    pub pod_uid: String,
    /// Name of this node
    #[arg(long, env = "TANDEM_NODE", default_value = "")]
    pub node: String,
    /// What tells this member's claim from a later one of the same name
    #[arg(long, env = "TANDEM_VOLUME_UID", default_value = "")]
    pub volume_uid: String,
    /// The member's volume: plain files at its root, our own in `.tandem`
    #[arg(long, env = "TANDEM_VOLUME", default_value = "/volume")]
    pub volume: PathBuf,
    /// A folder of this pod's memory, gone when the node loses power; without it only a new kernel tells a power loss
    #[arg(long, env = "TANDEM_RUN", default_value = "/run/tandem")]
    pub run: PathBuf,
    /// Folder with ca.crt, tls.crt and tls.key
    #[arg(long, env = "TANDEM_TLS", default_value = "/tls")]
    pub tls: PathBuf,
    /// Host of the other member, with a port if it is not the usual one
    #[arg(long, env = "TANDEM_PEER_HOST")]
    pub peer_host: String,
    /// Where the other member may connect
    #[arg(long, env = "TANDEM_LISTEN", default_value = "0.0.0.0:7470")]
    pub listen: SocketAddr,
    /// Where probes, the gate and metrics are answered
    #[arg(long, env = "TANDEM_HEALTH", default_value = "0.0.0.0:7471")]
    pub health: SocketAddr,
    /// Development only: mount the application's view here instead of taking descriptors from the supervisor
    #[arg(long, hide = true)]
    pub mount: Option<PathBuf>,
    /// Development only: keep the record and the orders in this folder instead of the Kubernetes API
    #[arg(long, hide = true)]
    pub record_folder: Option<PathBuf>,
}

impl ServeSettings {
    /// Name that the other member's certificate must carry.
    pub fn peer_name(&self) -> String {
        self.certificate_name(self.member.other())
    }

    /// Name that a member's certificate carries.
    pub fn certificate_name(&self, member: Member) -> String {
        format!("{}.{}.{}.pair.tandem.dev", member.name(), self.pair, self.namespace)
    }

    /// Host and port of the other member.
    pub fn peer_address(&self) -> String {
        if self.peer_host.contains(':') { self.peer_host.clone() } else { format!("{}:7470", self.peer_host) }
    }

    /// Name of this member's ReplicationMember, StatefulSet and headless Service.
    pub fn member_object(&self) -> String {
        format!("{}-{}", self.pair, self.member.name())
    }
}

/// What the supervisor keeps alive.
#[derive(Clone, Debug, Args)]
pub struct SuperviseSettings {
    /// The node plugin's socket
    #[arg(long, env = "TANDEM_PLUGIN_SOCKET", default_value = "/control/plugin.sock")]
    pub socket: PathBuf,
    /// What to run as the daemon, in the words of this command line
    #[arg(last = true, default_value = "serve")]
    pub daemon: Vec<String>,
}

/// Whom the gate asks.
#[derive(Clone, Debug, Args)]
pub struct GateSettings {
    /// The sidecar's health port
    #[arg(long, env = "TANDEM_GATE", default_value = "127.0.0.1:7471")]
    pub sidecar: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_peer_without_a_port_has_the_usual_one() {
        let parse = |peer: &str| {
            let words = [
                "replicator",
                "serve",
                "--namespace",
                "shop",
                "--pair",
                "orders",
                "--member",
                "a",
                "--peer-host",
                peer,
            ];
            match CommandLine::try_parse_from(words).unwrap().command {
                Command::Serve(settings) => settings,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(parse("orders-b.shop.svc").peer_address(), "orders-b.shop.svc:7470");
        assert_eq!(parse("127.0.0.2:9").peer_address(), "127.0.0.2:9");
        assert_eq!(parse("x").peer_name(), "b.orders.shop.pair.tandem.dev");
    }
}
