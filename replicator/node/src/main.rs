//! The door of the node plugin: settings, sockets, signals.

use clap::Parser;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tandem_node::{chain, csi, grpc, mounts, registration, volumes, watchdog};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// Mounts the data volumes of Tandem's pods on this node.
#[derive(Parser, Debug)]
#[command(version)]
struct Settings {
    /// Name of this node, as Kubernetes knows it.
    #[arg(long, env = "TANDEM_NODE")]
    node: String,
    /// Name of the driver.
    #[arg(long, env = "TANDEM_DRIVER_NAME", default_value = "tandem.dev")]
    driver_name: String,
    /// Kubelet's directory: the same path here and on the node.
    #[arg(long, env = "TANDEM_KUBELET_DIR", default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// Path of the CSI socket (default: plugins/<driver>/csi.sock of kubelet's directory). Its directory also holds the
    /// plugin's own state.
    #[arg(long, env = "TANDEM_ENDPOINT")]
    endpoint: Option<PathBuf>,
    /// Where kubelet looks for drivers (default: plugins_registry of kubelet's directory).
    #[arg(long, env = "TANDEM_REGISTRATION_DIR")]
    registration_dir: Option<PathBuf>,
    /// Without a Kubernetes API: a pod is never known to be going. For tests.
    #[arg(long)]
    without_api: bool,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{doing} {}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{doing}")]
    Start { doing: &'static str, source: io::Error },
    #[error(transparent)]
    Volumes(#[from] volumes::Error),
    #[error("connect to Kubernetes")]
    Kubernetes(#[source] Box<kube::Error>),
}

fn main() -> std::process::ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr).init();
    let settings = Settings::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return std::process::ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(settings));
    // A thread that is stuck in a system call must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(&error), "the plugin ends");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<(), Failure> {
    let start = |doing| move |source| Failure::Start { doing, source };
    // Modes of sockets and directories are those given, whatever the caller's mask.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let plain =
        |path: PathBuf| path.to_str().and_then(|text| text.strip_prefix("unix://")).map_or(path.clone(), PathBuf::from);
    let endpoint = settings
        .endpoint
        .map_or_else(|| settings.kubelet_dir.join("plugins").join(&settings.driver_name).join("csi.sock"), plain);
    let registry = settings.registration_dir.unwrap_or_else(|| settings.kubelet_dir.join("plugins_registry"));
    let directory = endpoint.parent().unwrap_or(Path::new("/")).to_owned();

    let connections = mounts::Connections::open().map_err(start("list FUSE connections"))?;
    let volumes = volumes::Volumes::open(&directory, &settings.kubelet_dir, tokio::runtime::Handle::current())?;
    let pods = Arc::new(watchdog::Pods::default());
    tokio::spawn(watchdog::watch(Arc::clone(&volumes), connections, Arc::clone(&pods)));
    if !settings.without_api {
        let client = kube::Client::try_default().await.map_err(|error| Failure::Kubernetes(Box::new(error)))?;
        tokio::spawn(watchdog::listen(client, settings.node.clone(), pods));
    }

    let csi = csi::Csi { driver: settings.driver_name.clone(), node: settings.node, volumes };
    let csi_serves = grpc::serve(listen(&endpoint)?, Arc::new(csi));
    // Last: from here on kubelet calls.
    let socket = registry.join(format!("{}-reg.sock", settings.driver_name));
    let registration =
        registration::Registration { driver: settings.driver_name, endpoint: endpoint.to_string_lossy().into_owned() };
    let registration_serves = grpc::serve(listen(&socket)?, Arc::new(registration));
    tracing::info!(endpoint = %endpoint.display(), "ready");

    let mut terminate = signal(SignalKind::terminate()).map_err(start("handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(start("handle SIGINT"))?;
    let result = tokio::select! {
        source = csi_serves => Err(Failure::Io { doing: "serve", path: endpoint, source }),
        source = registration_serves => Err(Failure::Io { doing: "serve", path: socket.clone(), source }),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    // Kubelet learns that the driver is away; mounts and replicators go on without it.
    match std::fs::remove_file(&socket) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(Failure::Io { doing: "remove", path: socket, source }),
    }
    result
}

/// Listens on a socket that an earlier run may have left.
fn listen(path: &Path) -> Result<UnixListener, Failure> {
    let failed = |doing| move |source| Failure::Io { doing, path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("remove")(error)),
    }
    UnixListener::bind(path).map_err(failed("listen on"))
}
