//! The only room that reads a clock. Rules get time as an argument, so that they can be tried at any time.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

static START: OnceLock<Instant> = OnceLock::new();

/// Time since this process first asked: never goes back, is not comparable between processes.
pub fn monotonic() -> Duration {
    #[cfg(test)]
    if let Some(now) = crate::simulated::monotonic() {
        return now;
    }
    START.get_or_init(Instant::now).elapsed()
}

/// The same clock as a value that can be added to.
pub fn instant() -> Instant {
    #[cfg(test)]
    if let Some(now) = crate::simulated::instant() {
        return now;
    }
    Instant::now()
}

/// Nanoseconds since 1970 by the node's wall clock: for the times of files and for people, never for a decision.
pub fn wall_nanoseconds() -> i64 {
    #[cfg(test)]
    if let Some(now) = crate::simulated::wall() {
        return now;
    }
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanoseconds| -nanoseconds),
    }
}

/// The same time as objects of the API carry it.
pub fn stamp() -> Time {
    Time(Timestamp::from_nanosecond(wall_nanoseconds().into()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_does_not_go_back() {
        let first = monotonic();
        assert!(monotonic() >= first);
        assert!(wall_nanoseconds() > 0);
    }
}
