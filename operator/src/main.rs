//! The door of the operator: settings, election, signals.

use clap::Parser;
use std::process::ExitCode;
use std::sync::Arc;
use tandem_operator::desired::Sidecar;
use tandem_operator::health::{self, Health};
use tandem_operator::lease::Candidate;
use tandem_operator::settings::Settings;
use tandem_operator::watch;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: std::io::Error },
    #[error("configure the Kubernetes client: {0}")]
    Client(String),
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Settings::parse()).await {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(%error, "the operator cannot run");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<ExitCode, Failure> {
    let io = |doing| move |source| Failure::Io { doing, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(io("handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io("handle SIGINT"))?;
    let health = Arc::new(Health::default());
    health::serve(settings.health, Arc::clone(&health)).await.map_err(io("listen for probes"))?;
    let client = kube::Client::try_default().await.map_err(|error| Failure::Client(error.to_string()))?;
    let mut candidate = Candidate::new(client.clone(), &settings.namespace, &settings.pod);
    let sidecar = Sidecar { image: settings.image.clone(), pull_policy: settings.pull_policy.clone() };

    let waiting = async {
        loop {
            match client.apiserver_version().await {
                Ok(version) => break tracing::info!(version = version.git_version, "the API server answers"),
                Err(error) => tracing::warn!(%error, "the API server does not answer"),
            }
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        }
        health.is_ready();
        candidate.elected().await;
    };
    tokio::select! {
        () = waiting => {}
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    }
    tracing::info!(name = settings.pod, "this replica acts");
    health.leads(true);
    let ended = tokio::select! {
        () = watch::run(client, sidecar, settings.pod, Arc::clone(&health)) => false,
        // Another replica may act by now: this one begins anew, as one that waits.
        () = candidate.keep() => false,
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
    };
    health.leads(false);
    if ended {
        candidate.release().await;
        return Ok(ExitCode::SUCCESS);
    }
    tracing::warn!("the lease is lost; beginning anew");
    Ok(ExitCode::FAILURE)
}
