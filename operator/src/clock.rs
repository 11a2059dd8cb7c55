//! The only room that reads a clock.

use k8s_openapi::jiff::Timestamp;
use std::time::Instant;

/// Now, for people and for ages of facts that people wrote; never for a decision about who leads.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Now by the clock that never goes back.
pub fn monotonic() -> Instant {
    Instant::now()
}
