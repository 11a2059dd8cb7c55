//! What the ordinary judge does not know: reigns. Each acknowledgement belongs to a pod, and so to a member; it must fall
//! into a reign of that member. What Async loses must be the end of a reign, and short.

use super::moments;
use super::timeline::Reign;
use crate::judge::{Event, History};
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, HashSet};

/// How exactly the times of two processes of one machine are known.
const BLUR: f64 = 0.002;

/// The member that a pod belongs to.
pub fn member_of(pod: &str) -> &str {
    pod.strip_suffix("-0").and_then(|name| name.rsplit('-').next()).unwrap_or(pod)
}

/// Acknowledgements by a member that was deposed before they were asked for, or that had not claimed when they were given.
/// A reign ends at the moment at which the next one knows that its claim was written.
pub fn late(history: &History, reigns: &[Reign]) -> Vec<String> {
    let mut found = Vec::new();
    for (event, pod) in history.acknowledged() {
        let (asked, answered) = (moments::seconds(event.asked), moments::seconds(event.answered));
        if reign_of(reigns, member_of(pod), asked, answered).is_none() {
            found.push(format!(
                "{pod} acknowledged client {} record {}, asked at {asked:.4}, answered at {answered:.4}",
                event.client, event.k
            ));
        }
    }
    found
}

/// The last reign of a member that has a moment in common with this time.
fn reign_of(reigns: &[Reign], member: &str, asked: f64, answered: f64) -> Option<u64> {
    let ends = |index: usize| reigns.get(index + 1).map_or(f64::INFINITY, |next| next.claimed);
    let mut fitting = reigns.iter().enumerate().rev().filter(|(index, reign)| {
        reign.member == member && reign.claimed <= answered + BLUR && ends(*index) >= asked - BLUR
    });
    fitting.next().map(|(_, reign)| reign.epoch)
}

/// Lost records are, for each client, the last ones of a reign that another member ended; together no more than `allowed`.
pub fn only_a_suffix(history: &History, lost: &[(usize, u64)], reigns: &[Reign], allowed: u64) -> Result<()> {
    let lost: HashSet<(usize, u64)> = lost.iter().copied().collect();
    let mut by_reign: BTreeMap<(u64, usize), Vec<&Event>> = BTreeMap::new();
    for (event, pod) in history.acknowledged() {
        let (asked, answered) = (moments::seconds(event.asked), moments::seconds(event.answered));
        let reign = reign_of(reigns, member_of(pod), asked, answered).unwrap_or_default();
        by_reign.entry((reign, event.client)).or_default().push(event);
    }
    let mut bytes: BTreeMap<u64, u64> = BTreeMap::new();
    for ((reign, client), events) in &by_reign {
        let first = events.iter().position(|event| lost.contains(&(event.client, event.k)));
        let Some(first) = first else { continue };
        let later = events[first..].iter().find(|event| !lost.contains(&(event.client, event.k)));
        ensure!(
            later.is_none(),
            "client {client} lost record {} of epoch {reign}, but not its later record {}",
            events[first].k,
            later.map_or(0, |event| event.k)
        );
        let own: usize = events[first..].iter().map(|event| event.k.to_string().len() + 1).sum();
        *bytes.entry(*reign).or_default() += own as u64;
    }
    for (reign, bytes) in bytes {
        ensure!(bytes <= allowed, "{bytes} bytes of epoch {reign} are lost, {allowed} are allowed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Outcome;
    use std::time::{Duration, Instant};

    fn at(base: Instant, milliseconds: u64, k: u64, pod: &str) -> Event {
        let asked = base + Duration::from_millis(milliseconds);
        let answered = asked + Duration::from_millis(3);
        Event { client: 0, k, asked, answered, outcome: Outcome::Acknowledged(pod.into()) }
    }

    fn reigns(base: Instant) -> Vec<Reign> {
        let claimed = |milliseconds| moments::seconds(base + Duration::from_millis(milliseconds));
        vec![
            Reign { epoch: 1, member: "a".into(), claimed: claimed(0) },
            Reign { epoch: 2, member: "b".into(), claimed: claimed(1000) },
            Reign { epoch: 3, member: "a".into(), claimed: claimed(2000) },
        ]
    }

    #[test]
    fn an_acknowledgement_after_the_others_claim_is_late() {
        let base = Instant::now();
        let good = vec![
            at(base, 10, 0, "orders-a-0"),
            // Asked before the claim, answered after it: it may have been given before.
            at(base, 999, 1, "orders-a-0"),
            at(base, 1500, 2, "orders-b-0"),
            at(base, 2500, 3, "orders-a-0"),
        ];
        assert!(late(&History { events: good }, &reigns(base)).is_empty());
        for bad in [at(base, 1100, 0, "orders-a-0"), at(base, 500, 0, "orders-b-0"), at(base, 2500, 0, "orders-b-0")] {
            assert_eq!(late(&History { events: vec![bad] }, &reigns(base)).len(), 1);
        }
    }

    #[test]
    fn only_the_end_of_a_reign_may_be_lost() {
        let base = Instant::now();
        let events = vec![
            at(base, 10, 0, "orders-a-0"),
            at(base, 20, 1, "orders-a-0"),
            at(base, 30, 2, "orders-a-0"),
            at(base, 1100, 3, "orders-b-0"),
        ];
        let history = History { events };
        assert!(only_a_suffix(&history, &[(0, 1), (0, 2)], &reigns(base), 100).is_ok());
        assert!(only_a_suffix(&history, &[(0, 1), (0, 2)], &reigns(base), 3).is_err());
        assert!(only_a_suffix(&history, &[(0, 1)], &reigns(base), 100).is_err());
    }
}
