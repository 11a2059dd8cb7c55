//! The sidecar's door: which of its three parts to be.

use clap::Parser;
use std::process::ExitCode;
use tandem_replicator::settings::{Command, CommandLine};
use tandem_replicator::{doorkeeper, serve, supervise, telemetry};

fn main() -> ExitCode {
    let command = CommandLine::parse().command;
    telemetry::start();
    match command {
        // No threads: the supervisor forks.
        Command::Supervise(settings) => match supervise::run(&settings.into()) {
            Ok(code) => code,
            Err(error) => failed(&error),
        },
        Command::Serve(settings) => match run(true, serve::run(*settings)) {
            Ok(Ok(code)) => code,
            Ok(Err(error)) => failed(&error),
            Err(error) => failed(&error),
        },
        Command::Gate(settings) => match run(false, doorkeeper::wait(&settings)) {
            Ok(Ok(doorkeeper::Passed::Open)) => ExitCode::SUCCESS,
            // The pod is ending: the application must not start.
            Ok(Ok(doorkeeper::Passed::Told)) => ExitCode::FAILURE,
            Ok(Err(error)) | Err(error) => failed(&error),
        },
    }
}

fn run<T>(several_threads: bool, work: impl Future<Output = T>) -> std::io::Result<T> {
    let mut runtime = if several_threads {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = runtime.enable_all().worker_threads(4).build()?;
    let value = runtime.block_on(work);
    // What still runs in other threads has nothing to say any more.
    runtime.shutdown_background();
    Ok(value)
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    tracing::error!(error = text, "ended");
    ExitCode::FAILURE
}
