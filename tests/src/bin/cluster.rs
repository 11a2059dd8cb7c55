//! The test cluster by hand: `cargo run -p tandem-tests --bin cluster -- up`.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::os::unix::process::CommandExt;
use tandem_tests::cluster::Cluster;
use tandem_tests::cluster::trouble::Keeps;
use tandem_tests::images;

#[derive(Parser)]
#[command(about = "The test cluster by hand")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Starts the cluster, or says that it runs.
    Up {
        #[arg(long, default_value_t = 2)]
        nodes: usize,
    },
    /// Ends everything of it.
    Down,
    /// Builds the product's programs (or takes them from a folder), makes images and loads them on every node.
    Images {
        /// A folder that holds tandem-operator, replicator and tandem-node.
        #[arg(long)]
        from: Option<std::path::PathBuf>,
        /// Only these: operator, replicator, node.
        only: Vec<String>,
    },
    /// Loads the image with the applications: localhost/tandem-workload:test.
    Workload,
    /// Everything that the scenarios need: the cluster, all images, the chart.
    Ready,
    /// Builds and loads all images, and installs the chart as a user would.
    Install,
    /// Runs kubectl on it.
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs helm on it.
    #[command(disable_help_flag = true)]
    Helm {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs a program in the cluster's network (curl a pod, for example).
    #[command(disable_help_flag = true)]
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs a program inside a node (its mounts and its network).
    #[command(disable_help_flag = true)]
    Node {
        name: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Makes a volume on a node and its PersistentVolume (storage class tandem-local).
    Volume {
        name: String,
        node: String,
        #[arg(default_value_t = 256)]
        mebibytes: u64,
    },
    /// Puts a volume away, with everything in it.
    DeleteVolume { name: String, node: String },
    /// Kills a node, as a power failure does (or, with --keep-data, as when only its processes die).
    Kill {
        node: String,
        #[arg(long)]
        keep_data: bool,
    },
    /// Boots a node that was killed.
    Boot { node: String },
    /// Takes a node's link down or up.
    Link { node: String, state: String },
    /// Prints where the logs of the cluster's own programs are.
    Logs,
}

fn main() -> Result<()> {
    let cluster = Cluster::here();
    let arguments = Arguments::parse().what;
    if !matches!(arguments, What::Up { .. } | What::Ready | What::Down | What::Logs) {
        if !cluster.is_up() {
            bail!("no cluster runs: start one with `cluster up`");
        }
        cluster.enter()?;
    }
    match arguments {
        What::Up { nodes } => {
            cluster.up(nodes)?;
            println!(
                "KUBECONFIG={} (reachable inside: cluster run CMD, cluster kubectl)",
                cluster.kubeconfig().display()
            );
            Ok(())
        }
        What::Down => cluster.down(),
        What::Images { from, only } => images::load_product(&cluster, from.as_deref(), &only),
        What::Workload => images::load_workload(&cluster),
        What::Ready => {
            cluster.up(2)?;
            images::install(&cluster)
        }
        What::Install => images::install(&cluster),
        What::Kubectl { arguments } => Err(cluster.kubectl_command().args(arguments).exec()).context("run kubectl"),
        What::Helm { arguments } => Err(cluster.helm_command().args(arguments).exec()).context("run helm"),
        What::Run { arguments } => {
            let (program, rest) = arguments.split_first().context("run what?")?;
            Err(std::process::Command::new(program).args(rest).env("KUBECONFIG", cluster.kubeconfig()).exec())
                .context("run it")
        }
        What::Node { name, arguments } => {
            let (program, rest) = arguments.split_first().context("run what?")?;
            Err(cluster.node(&name)?.command(program)?.args(rest).exec()).context("run it")
        }
        What::Volume { name, node, mebibytes } => cluster.node(&node)?.create_volume(&name, mebibytes, ""),
        What::DeleteVolume { name, node } => cluster.node(&node)?.delete_volume(&name),
        What::Kill { node, keep_data } => {
            cluster.node(&node)?.kill(if keep_data { Keeps::Everything } else { Keeps::OnlySynced })
        }
        What::Boot { node } => cluster.node(&node)?.start(),
        What::Link { node, state } => cluster.node(&node)?.set_link(state == "up"),
        What::Logs => {
            println!("{}", cluster.log_folder().display());
            Ok(())
        }
    }
}
