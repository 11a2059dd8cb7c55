//! Logs as JSON lines on standard error. What is logged: transitions with epoch and positions, troubles, requests of people.
//! Never: keys, tokens, contents or names of files.

use tracing_subscriber::EnvFilter;

/// Starts logging; `RUST_LOG` chooses, `info` otherwise.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).with_writer(std::io::stderr).init();
}
