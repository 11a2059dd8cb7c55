//! What the outside may ask over HTTP: the probes of Kubernetes, the gate, metrics, and a snapshot for people. No request
//! changes anything, and none waits for the conductor.

use crate::clock;
use crate::metrics::Metrics;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A conductor that has not gone round for so long is stuck.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: usize = 64;

/// What a member shows of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// a or b.
    pub member: String,
    /// State of the protocol's machine, in its words.
    pub state: String,
    /// What holds it back, as one word; empty: nothing does.
    pub reason: String,
    /// The same as a sentence that says what to do.
    pub message: String,
    /// Epoch that this member serves or follows.
    pub epoch: u64,
    /// The application's mount is answered (requests may still wait).
    pub started: bool,
    /// Master, and serving its epoch.
    pub serving: bool,
    /// Applications may start.
    pub gate: bool,
    /// The peer is connected and follows.
    pub peer_connected: bool,
    /// The ladder, in sequence numbers.
    pub trimmed: u64,
    /// See `trimmed`.
    pub applied: u64,
    /// See `trimmed`.
    pub committed: u64,
    /// See `trimmed`.
    pub durable: u64,
    /// What the peer has received.
    pub received: u64,
    /// What was sent to the peer.
    pub shipped: u64,
    /// See `trimmed`.
    pub journaled: u64,
    /// Highest position the peer holds durably.
    pub peer_durable: u64,
    /// Bytes that the peer lacks.
    pub lag_bytes: u64,
    /// Copied so far of a netcopy under way.
    pub netcopy_bytes: u64,
    /// Netcopy under way.
    pub netcopying: bool,
    /// Orders that were carried out or refused, newest last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub handled_orders: Vec<tandem_crds::v1alpha1::OrderOutcome>,
    /// The last nomination that was carried out or refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handled_nomination: Option<String>,
    /// The last or running copy to the peer; by the leading member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netcopy: Option<tandem_crds::v1alpha1::Netcopy>,
}

/// The rooms' common view: the conductor writes, the endpoints read.
pub struct Shown {
    snapshot: watch::Sender<Snapshot>,
    turned: AtomicU64,
}

impl Default for Shown {
    fn default() -> Self {
        Self {
            snapshot: watch::Sender::new(Snapshot::default()),
            turned: AtomicU64::new(milliseconds(clock::monotonic())),
        }
    }
}

impl Shown {
    /// The conductor went round.
    pub fn turn(&self) {
        self.turned.store(milliseconds(clock::monotonic()), Ordering::Relaxed);
    }

    /// Changes what is shown; readers are woken only by a difference.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.snapshot.send_if_modified(|shown| {
            let mut next = shown.clone();
            change(&mut next);
            let differs = next != *shown;
            *shown = next;
            differs
        });
    }

    /// What is shown now.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// Wakes at each difference.
    pub fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.subscribe()
    }

    fn alive(&self) -> bool {
        let silence = milliseconds(clock::monotonic()).saturating_sub(self.turned.load(Ordering::Relaxed));
        Duration::from_millis(silence) < SILENCE_MAX
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Answers until the process ends.
pub async fn serve(address: SocketAddr, shown: Arc<Shown>, metrics: Arc<Metrics>) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(%address, "health and metrics are served");
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    tokio::spawn(async move {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: probes fail meanwhile, data does not.
                    tracing::warn!(%error, "accept on the health port");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (shown, metrics) = (Arc::clone(&shown), Arc::clone(&metrics));
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let response = respond(&request, &shown, &metrics);
                    async move { Ok::<_, Infallible>(response) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(10))
                    .serve_connection(TokioIo::new(stream), answer);
                // A client that goes away in the middle is its own business.
                if let Err(error) = served.await {
                    tracing::debug!(%error, "health connection");
                }
                drop(place);
            });
        }
    });
    Ok(())
}

fn respond(request: &Request<Incoming>, shown: &Shown, metrics: &Metrics) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n".into());
    }
    answer(request.uri().path(), shown, metrics)
}

fn answer(path: &str, shown: &Shown, metrics: &Metrics) -> Response<Full<Bytes>> {
    let now = shown.snapshot();
    let yes_or_no = |yes: bool, why: &str| {
        let status = if yes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        text(status, format!("{why}: {} in epoch {}\n", now.state, now.epoch))
    };
    match path {
        "/started" => yes_or_no(now.started, "the application's mount is answered"),
        "/live" => yes_or_no(shown.alive(), "the conductor goes round"),
        "/gate" => yes_or_no(now.gate, "applications may start"),
        "/metrics" => match metrics.text(&now) {
            Ok(body) => typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/member" => match serde_json::to_string_pretty(&now) {
            Ok(body) => typed(StatusCode::OK, "application/json", body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "/started /live /gate /metrics /member\n".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_closed_until_somebody_opens_it() {
        let (shown, metrics) = (Shown::default(), Metrics::default());
        assert_eq!(answer("/gate", &shown, &metrics).status(), StatusCode::SERVICE_UNAVAILABLE);
        shown.update(|snapshot| snapshot.gate = true);
        assert_eq!(answer("/gate", &shown, &metrics).status(), StatusCode::OK);
        assert_eq!(answer("/started", &shown, &metrics).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer("/live", &shown, &metrics).status(), StatusCode::OK);
        assert_eq!(answer("/metrics", &shown, &metrics).status(), StatusCode::OK);
        assert_eq!(answer("/elsewhere", &shown, &metrics).status(), StatusCode::NOT_FOUND);
    }
}
