//! What the pair's owner chose, as far as the machine is concerned. Durations in milliseconds.

use serde::{Deserialize, Serialize};

/// `replication.protection`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protection {
    /// Two copies or none: writes wait while the peer is away.
    MaxProtection,
    /// Two copies while both are there; the master may go on alone once the record says so.
    #[default]
    MaxAvailability,
    /// One copy at once, the other within a bound of bytes.
    Async,
}

/// `replication.ackPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AckPolicy {
    /// On the peer's disk.
    #[default]
    Durable,
    /// In the peer's memory.
    Received,
}

/// `failover.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailoverMode {
    /// A replicant claims by itself when the master is gone.
    #[default]
    Automatic,
    /// Only when nominated. Who released the lead to a member that did not take it may have it back.
    Manual,
}

/// Settings of one member.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settings {
    /// Who must have what before the application is told.
    pub protection: Protection,
    /// What the peer's acknowledgement means.
    pub ack_policy: AckPolicy,
    /// Async: how far the application may run ahead of the peer.
    pub max_lag_bytes: u64,
    /// `health.intervalMilliseconds`.
    pub interval: u64,
    /// `health.missedLimit`: so many silent intervals make a replicant suspect its master.
    pub missed_limit: u64,
    /// How long requests are held before they fail.
    pub hold: u64,
    /// A master that is alone goes on while the API server is away.
    pub alone_without_api: bool,
    /// Who may start a failover.
    pub failover: FailoverMode,
    /// This member may lead.
    pub electable: bool,
    /// How long a member that has just started leaves the lead to the one that had it.
    pub restart_grace: u64,
    /// How long a switchover or a stop may wait for the peer before it is given up.
    pub release: u64,
    /// For how long a renewal or a peer's grant entitles (Async, or alone without `alone_without_api`).
    pub entitlement: u64,
    /// How often the record is renewed while entitlement is needed.
    pub renewal: u64,
    /// Async: how long a taker waits since it saw the record change and since its own last grant.
    pub taker_wait: u64,
    /// A pair whose ACTIVE time was shorter than this is flapping,
    pub active_minimum: u64,
    /// and must show a stable connection for so long before it is joined again.
    pub stable: u64,
    /// So many operations behind, a peer counts as caught up enough to require its acknowledgements.
    pub join_within: u64,
    /// How often the members' positions are noted in the record, at most.
    pub note_positions: u64,
    /// Pause after an API request without answer.
    pub retry: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            protection: Protection::MaxAvailability,
            ack_policy: AckPolicy::Durable,
            max_lag_bytes: 64 << 20,
            interval: 1_000,
            missed_limit: 5,
            hold: 30_000,
            alone_without_api: true,
            failover: FailoverMode::Automatic,
            electable: true,
            restart_grace: 10_000,
            release: 10_000,
            entitlement: 10_000,
            renewal: 3_000,
            taker_wait: 12_000,
            active_minimum: 60_000,
            stable: 30_000,
            join_within: 4_096,
            note_positions: 30_000,
            retry: 500,
        }
    }
}

impl Settings {
    /// Silence after which a master treats its peer as lost: shorter than [`Settings::suspicion`], so that the incumbent
    /// reaches the record first when only the link is cut.
    pub fn peer_timeout(&self) -> u64 {
        self.interval.saturating_mul(2)
    }

    /// Silence after which a replicant tries to claim.
    pub fn suspicion(&self) -> u64 {
        self.interval.saturating_mul(self.missed_limit).max(self.peer_timeout().saturating_add(self.interval))
    }

    /// Silence alone after which a replicant overrules its master. With [`Protection::MaxProtection`] nobody writes while the
    /// two do not hear each other, whoever leads: a takeover brings nothing as long as the master still holds its requests
    /// (half a minute at most, they may be held for longer), and costs its application a restart.
    pub fn overrules_after(&self) -> u64 {
        match self.protection {
            Protection::MaxProtection => {
                self.suspicion().max(self.hold.min(30_000).saturating_add(self.peer_timeout()))
            }
            Protection::MaxAvailability | Protection::Async => self.suspicion(),
        }
    }

    /// Pause between two heartbeats.
    pub fn heartbeat(&self) -> u64 {
        (self.interval / 2).max(1)
    }
}
