//! One clock for everything: what clients remember is monotonic, what members log is the time of day. All run on one
//! machine, so one look at both clocks joins them.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

static BOTH: OnceLock<(Instant, f64)> = OnceLock::new();

fn both() -> (Instant, f64) {
    *BOTH.get_or_init(|| {
        let day = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (Instant::now(), day.as_secs_f64())
    })
}

/// Seconds of the time of day at which this was.
pub fn seconds(moment: Instant) -> f64 {
    let (instant, day) = both();
    match moment.checked_duration_since(instant) {
        Some(after) => day + after.as_secs_f64(),
        None => day - instant.duration_since(moment).as_secs_f64(),
    }
}

/// Seconds of the time of day now.
pub fn now() -> f64 {
    seconds(Instant::now())
}

/// A time as logs write it.
pub fn parse(text: &str) -> Option<f64> {
    let stamp: jiff::Timestamp = text.parse().ok()?;
    Some(Duration::from_nanos(u64::try_from(stamp.as_nanosecond()).ok()?).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_say_the_same() {
        let began = now();
        let text = jiff::Timestamp::now().to_string();
        let parsed = parse(&text).unwrap();
        assert!((parsed - began).abs() < 1.0, "{text}: {parsed} {began}");
        let earlier = Instant::now() - Duration::from_millis(500);
        assert!(seconds(earlier) < now());
    }
}
