//! The sidecar's door: which of its three parts to be.

use clap::Parser;
use std::process::ExitCode;
use tandem_replicator::settings::{Command, CommandLine};
use tandem_replicator::{doorkeeper, serve, supervise, telemetry};

fn main() -> ExitCode {
    let command = CommandLine::parse().command;
    telemetry::start();
    keep_buffers();
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

/// Frames of records are buffers of some hundred kilobytes that come and go. The C library would give each back to the kernel
/// and have its pages made anew for the next: on a virtual machine that costs more than everything else that is done with
/// them. So what is freed is kept, up to a bound.
fn keep_buffers() {
    const KEPT_BYTES: libc::c_int = 32 << 20;
    #[allow(unsafe_code, reason = "nobody wraps mallopt")]
    // SAFETY: sets two numbers of the allocator, before there is a second thread.
    let set = unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES) + libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES)
    };
    if set != 2 {
        tracing::debug!("the allocator keeps its own bounds");
    }
}

/// Threads for what waits for the network and for time. A worker that finds something to do wakes another to look for more:
/// with four of them most of that looking was in vain. Not one, so that hashing for a copy delays no heartbeat.
const WORKERS: usize = 2;

fn run<T>(several_threads: bool, work: impl Future<Output = T>) -> std::io::Result<T> {
    let mut runtime = if several_threads {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = runtime.enable_all().worker_threads(WORKERS).build()?;
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
