//! One connection's incoming bytes without a network: what becomes of them, for the fuzz targets. The code that reads them
//! is the one that reads from a peer.

use std::time::Duration;

use super::{
    AtomicBool, AtomicU64, Bell, Inlets, LinkEvent, LinkSettings, Mutex, Queues, RecordsFrame, RecordsInlet, Session,
    Shared, TlsSettings, hear, mpsc, watch,
};
use crate::link::Bulk;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// What the connection brought.
#[derive(Debug)]
pub struct Heard<C> {
    /// For the conductor.
    pub events: Vec<LinkEvent<C>>,
    /// For the thread that follows.
    pub records: Vec<RecordsFrame>,
    /// For a copy.
    pub bulk: Vec<Bulk>,
    /// Bytes of a copy that the peer would take.
    pub credit: usize,
    /// Why it ended.
    pub end: String,
}

/// Reads bytes as they come out of TLS, to their end or to the first that cannot be.
pub fn rehearse<C: DeserializeOwned>(bytes: &[u8]) -> Heard<C> {
    let (events, mut events_out) = mpsc::unbounded_channel();
    let (records, records_out) = std::sync::mpsc::channel();
    let records = RecordsInlet { frames: Some(records), bell: Bell::default() };
    let (bulk, mut bulk_out) = mpsc::unbounded_channel();
    let inlets = Inlets { events, records, bulk, records_waiting: Arc::default(), events_waiting: Arc::default() };
    let shared = Shared {
        settings: LinkSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            peer: String::new(),
            dials: false,
            tls: TlsSettings { folder: std::path::PathBuf::new(), peer_name: String::new() },
            interval: Duration::from_secs(1),
            silence: Duration::from_secs(1),
        },
        session: Mutex::new(None),
        numbers: AtomicU64::new(0),
        grant: AtomicBool::new(false),
        on_ack: Mutex::new(None),
        up: watch::Sender::new((0, false)),
    };
    let (session, _queues): (_, Queues) = Session::new(1, Box::new(tokio::io::sink()));
    let session = Arc::new(session);
    // Its patience with a silent peer needs a clock.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let end = match runtime {
        Ok(runtime) => runtime.block_on(hear(&shared, &session, bytes, &inlets)).to_string(),
        Err(error) => error.to_string(),
    };
    Heard {
        events: std::iter::from_fn(|| events_out.try_recv().ok()).collect(),
        records: records_out.try_iter().collect(),
        bulk: std::iter::from_fn(|| bulk_out.try_recv().ok()).collect(),
        credit: session.bulk_credit.available_permits(),
        end,
    }
}
