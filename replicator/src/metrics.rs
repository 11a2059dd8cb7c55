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
    netcopy_size_bytes: Gauge,
    /// From the arrival of a request that asks for durability to its answer.
    pub sync_seconds: Histogram,
    /// Such requests that were answered with an error.
    pub sync_failures: Counter,
    /// Operations that were acknowledged as safe.
    pub acknowledged: Counter,
    /// Writes that had to wait because they were far ahead of what is safe.
    pub paced: Counter,
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
            netcopy_size_bytes: Gauge::default(),
            sync_failures: Counter::default(),
            acknowledged: Counter::default(),
            paced: Counter::default(),
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
        registry.register_with_unit(
            "sync",
            "From the arrival of an fsync to its answer",
            Unit::Seconds,
            metrics.sync_seconds.clone(),
        );
        registry.register_with_unit(
            "netcopy_size",
            "Size of the copy",
            Unit::Bytes,
            metrics.netcopy_size_bytes.clone(),
        );
        registry.register("sync_failures", "fsyncs that were answered with an error", metrics.sync_failures.clone());
        registry.register("acknowledged_operations", "Operations acknowledged as safe", metrics.acknowledged.clone());
        registry.register("paced_writes", "Writes held up: far ahead of what is safe", metrics.paced.clone());
        registry.register("claims", "Epochs begun by this process", metrics.claims.clone());
        registry.register("fences", "Losses of the right to write", metrics.fences.clone());
        registry.register("sessions", "Connections to the peer", metrics.sessions.clone());
        registry.register("record_failures", "Failed writes of the record", metrics.record_failures.clone());
        metrics
    }
}

impl Metrics {
    /// An fsync was answered.
    pub fn synced(&self, took: Duration, well: bool) {
        self.sync_seconds.observe(took.as_secs_f64());
        if !well {
            self.sync_failures.inc();
        }
    }

    /// The page that Prometheus reads.
    pub fn text(&self, now: &Snapshot) -> Result<String, fmt::Error> {
        let own = [
            ("trimmed", now.trimmed),
            ("applied", now.applied),
            ("committed", now.committed),
            ("durable", now.durable),
            ("journaled", now.journaled),
        ];
        // What is known of the peer is the master's to say.
        let of_peer = [("received", now.received), ("shipped", now.shipped), ("peer_durable", now.peer_durable)];
        let of_peer = of_peer.into_iter().filter(|_| now.state.starts_with("Primary"));
        self.positions.clear();
        for (rung, seq) in own.into_iter().chain(of_peer) {
            self.positions.get_or_create(&Rung { rung }).set(signed(seq));
        }
        self.state.clear();
        self.state.get_or_create(&State { state: now.state.clone() }).set(1);
        self.epoch.set(signed(now.epoch));
        self.lag_bytes.set(signed(now.lag_bytes));
        self.serving.set(now.serving.into());
        self.peer_connected.set(now.peer_connected.into());
        self.netcopy_bytes.set(signed(now.netcopy_bytes));
        let size = now.netcopy.as_ref().map_or(0, |copy| copy.bytes_total);
        self.netcopy_size_bytes.set(size);
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
        let now = Snapshot { state: "PrimaryActive".into(), committed: 7, epoch: 3, ..Snapshot::default() };
        metrics.synced(Duration::from_millis(1), true);
        metrics.acknowledged.inc_by(7);
        metrics.paced.inc();
        let page = metrics.text(&now).unwrap();
        assert!(page.contains("tandem_position{rung=\"committed\"} 7"), "{page}");
        assert!(page.contains("tandem_state{state=\"PrimaryActive\"} 1"), "{page}");
        assert!(page.contains("tandem_sync_seconds_count 1"), "{page}");
        assert!(page.contains("tandem_acknowledged_operations_total 7"), "{page}");
        assert!(page.contains("tandem_paced_writes_total 1"), "{page}");
        assert!(page.contains("tandem_epoch 3"), "{page}");
        assert!(page.contains("rung=\"peer_durable\"") && page.ends_with("# EOF\n"), "{page}");
        let follows = metrics.text(&Snapshot { state: "SecondaryActive".into(), ..now }).unwrap();
        assert!(!follows.contains("peer_durable") && !follows.contains("PrimaryActive"), "{follows}");
    }
}
