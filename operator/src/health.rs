//! Probes and metrics of the operator.

use crate::clock;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const CONNECTIONS_MAX: usize = 32;

/// What the probes say and the metrics count.
pub struct Health {
    registry: Registry,
    turns: Family<Vec<(String, String)>, Counter>,
    leader: Gauge,
    watches: Mutex<BTreeMap<&'static str, Instant>>,
    silence: Family<Vec<(String, String)>, Gauge>,
    ready: AtomicBool,
}

impl Default for Health {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("tandem_operator");
        let (turns, leader, silence) = (Family::default(), Gauge::default(), Family::default());
        registry.register("reconciliations", "Turns for a pair, by result", turns.clone());
        registry.register("leader", "1: this replica acts", leader.clone());
        registry.register("watch_silence_seconds", "Time since a watch last brought something good", silence.clone());
        Self { registry, turns, leader, watches: Mutex::default(), silence, ready: AtomicBool::new(false) }
    }
}

impl Health {
    /// A turn ended.
    pub fn reconciled(&self, well: bool) {
        let result = if well { "ok" } else { "error" };
        self.turns.get_or_create(&vec![("result".to_string(), result.to_string())]).inc();
    }

    /// This replica acts, or does not any more.
    pub fn leads(&self, yes: bool) {
        self.leader.set(i64::from(yes));
    }

    /// The API server was reached.
    pub fn is_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// A watch brought something.
    pub fn heard(&self, watch: &'static str) {
        self.watches.lock().insert(watch, clock::monotonic());
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        let now = clock::monotonic();
        for (watch, heard) in self.watches.lock().iter() {
            let seconds = i64::try_from(now.saturating_duration_since(*heard).as_secs()).unwrap_or(i64::MAX);
            self.silence.get_or_create(&vec![("watch".to_string(), (*watch).to_string())]).set(seconds);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn answer(&self, path: &str) -> (StatusCode, String) {
        match path {
            "/live" => (StatusCode::OK, "live\n".into()),
            "/ready" if self.ready.load(Ordering::Relaxed) => (StatusCode::OK, "ready\n".into()),
            "/ready" => (StatusCode::SERVICE_UNAVAILABLE, "the API server has not answered yet\n".into()),
            "/metrics" => match self.metrics() {
                Ok(text) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            _ => (StatusCode::NOT_FOUND, "/live /ready /metrics\n".into()),
        }
    }
}

/// Answers until the process ends.
pub async fn serve(address: SocketAddr, health: Arc<Health>) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    tokio::spawn(async move {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept on the health port");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let health = Arc::clone(&health);
            tokio::spawn(async move {
                let answer = service_fn(move |request: Request<Incoming>| {
                    let (status, body) = health.answer(request.uri().path());
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = status;
                    async move { Ok::<_, Infallible>(response) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(10))
                    .serve_connection(TokioIo::new(stream), answer);
                if let Err(error) = served.await {
                    tracing::debug!(%error, "health connection");
                }
                drop(place);
            });
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_only_after_the_server_answered() {
        let health = Health::default();
        assert_eq!(health.answer("/live").0, StatusCode::OK);
        assert_eq!(health.answer("/ready").0, StatusCode::SERVICE_UNAVAILABLE);
        health.is_ready();
        health.heard("pairs");
        health.reconciled(true);
        assert_eq!(health.answer("/ready").0, StatusCode::OK);
        let (_, text) = health.answer("/metrics");
        assert!(text.contains("tandem_operator_reconciliations_total{result=\"ok\"} 1"), "{text}");
    }
}
