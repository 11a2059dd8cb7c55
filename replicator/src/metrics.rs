//! Numbers for Prometheus, in the words of the ladder of positions. Gauges are taken from the snapshot when somebody asks;
//! only what happens in between (latencies, counts) is recorded here.

use crate::health::Snapshot;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Rung {
    rung: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: String,
}

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    positions: Family<Rung, Gauge>,
    state: Family<State, Gauge>,
    epoch: Gauge,
    lag_bytes: Gauge,
    serving: Gauge,
    peer_connected: Gauge,
    netcopy_bytes: Gauge,
    /// From the arrival of an fsync to its answer.
    pub sync_seconds: Histogram,
    /// Times that this process began an epoch.
    pub claims: Counter,
    /// Times that this process lost its right to write.
    pub fences: Counter,
    /// Connections to the peer that came up.
    pub sessions: Counter,
    /// Writes of the record that failed or whose outcome is unknown.
    pub record_failures: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("tandem"),
            positions: Family::default(),
            state: Family::default(),
            epoch: Gauge::default(),
            lag_bytes: Gauge::default(),
            serving: Gauge::default(),
            peer_connected: Gauge::default(),
            netcopy_bytes: Gauge::default(),
            sync_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 20)),
            claims: Counter::default(),
            fences: Counter::default(),
            sessions: Counter::default(),
            record_failures: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("position", "Sequence number on each rung of the ladder", metrics.positions.clone());
        registry.register("state", "1 for the state that the member is in", metrics.state.clone());
        registry.register("epoch", "Epoch that the member serves or follows", metrics.epoch.clone());
        registry.register_with_unit("lag", "What the peer lacks", Unit::Bytes, metrics.lag_bytes.clone());
        registry.register("serving", "1 while the member is master and serves its epoch", metrics.serving.clone());
        registry.register("peer_connected", "1 while the peer follows", metrics.peer_connected.clone());
        registry.register_with_unit("netcopy", "Copied so far", Unit::Bytes, metrics.netcopy_bytes.clone());
        registry.register_with_unit("sync", "Duration of fsync", Unit::Seconds, metrics.sync_seconds.clone());
        registry.register("claims", "Epochs begun by this process", metrics.claims.clone());
        registry.register("fences", "Losses of the right to write", metrics.fences.clone());
        registry.register("sessions", "Connections to the peer", metrics.sessions.clone());
        registry.register("record_failures", "Failed writes of the record", metrics.record_failures.clone());
        metrics
    }
}

impl Metrics {
    /// An fsync was answered.
    pub fn synced(&self, took: Duration) {
        self.sync_seconds.observe(took.as_secs_f64());
    }

    /// The page that Prometheus reads.
    pub fn text(&self, now: &Snapshot) -> Result<String, fmt::Error> {
        let rungs = [
            ("trimmed", now.trimmed),
            ("applied", now.applied),
            ("committed", now.committed),
            ("durable", now.durable),
            ("received", now.received),
            ("shipped", now.shipped),
            ("journaled", now.journaled),
            ("peer_durable", now.peer_durable),
        ];
        for (rung, seq) in rungs {
            self.positions.get_or_create(&Rung { rung }).set(signed(seq));
        }
        self.state.clear();
        self.state.get_or_create(&State { state: now.state.clone() }).set(1);
        self.epoch.set(signed(now.epoch));
        self.lag_bytes.set(signed(now.lag_bytes));
        self.serving.set(now.serving.into());
        self.peer_connected.set(now.peer_connected.into());
        self.netcopy_bytes.set(signed(now.netcopy_bytes));
        let mut page = String::new();
        encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_uses_the_words_of_the_ladder() {
        let metrics = Metrics::default();
        let now = Snapshot { state: "PrimaryActive".into(), committed: 7, ..Snapshot::default() };
        metrics.synced(Duration::from_millis(1));
        let page = metrics.text(&now).unwrap();
        assert!(page.contains("tandem_position{rung=\"committed\"} 7"), "{page}");
        assert!(page.contains("tandem_state{state=\"PrimaryActive\"} 1"), "{page}");
        assert!(page.contains("tandem_sync_seconds_count 1"), "{page}");
    }
}
