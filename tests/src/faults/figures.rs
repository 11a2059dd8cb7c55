//! What a fault cost, seen by the clients, and which step of a takeover took how much of it.

use super::subject::{Scene, Subject};
use super::timeline::{Mark, What};
use super::{chapter::Judged, moments};
use crate::judge::{Event, Outcome};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// One fault as one pair met it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Played {
    pub pair: String,
    pub kind: String,
    pub row: u32,
    pub note: String,
    /// Seconds from its beginning until the pair was whole again, the fault's own length included.
    pub rest: f64,
    /// The longest time without an acknowledgement.
    pub outage: f64,
    /// The steps of the takeover that ended the outage, if one did.
    pub steps: Option<Steps>,
    pub failover: bool,
    /// A failover although nothing was done to whoever led.
    pub false_failover: bool,
    pub epochs: u64,
    /// Writes that were answered with an error meanwhile.
    pub refused: usize,
    /// The first of these errors.
    pub complaint: String,
    pub figures: Vec<(String, f64)>,
}

/// In seconds; together they are the outage, but for what passed between the last acknowledgement and the fault.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Steps {
    /// From the fault until the claim was sent.
    pub detection: f64,
    /// Until the claim was written.
    pub claim: f64,
    /// Until the journal was on the volume and the gate open.
    pub apply: f64,
    /// Until the application listened; nothing when it lived on.
    pub application: f64,
    /// Until the first acknowledgement: the Service's route and the client's own connection.
    pub route: f64,
}

/// A whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    pub seed: u64,
    pub minutes: f64,
    pub commit: String,
    /// Mean of the last minutes, at the end.
    #[serde(default)]
    pub load: f64,
    pub pairs: Vec<Vec<String>>,
    /// Faults injected, those that all pairs felt counted once.
    pub injected: usize,
    pub played: Vec<Played>,
    pub acknowledged: usize,
    pub unknown: usize,
    pub refused: usize,
    /// Acknowledged in a synchronous pair and not there: a failure.
    pub lost_async: usize,
    pub late_async: usize,
    pub chapters: usize,
    pub trees: usize,
    pub sqlite: usize,
    pub amcheck: usize,
    pub failures: Vec<String>,
}

impl Results {
    pub fn add(&mut self, judged: &Judged) {
        self.acknowledged += judged.acknowledged;
        self.unknown += judged.unknown;
        self.refused += judged.refused;
        self.lost_async += judged.lost;
        self.late_async += judged.late;
        self.chapters += 1;
    }

    pub fn failovers(&self) -> usize {
        self.played.iter().filter(|played| played.failover).count()
    }
}

/// What clients saw of a fault that began at `began`.
pub struct Seen {
    pub outage: f64,
    pub steps: Option<Steps>,
    pub refused: usize,
    pub complaint: String,
}

pub fn measure(subject: &Subject, began: Instant, before: &Scene, after: &Scene) -> Seen {
    let events = subject.since(began.checked_sub(Duration::from_secs(2)).unwrap_or(began));
    let complaints = events.iter().filter(|event| event.answered >= began).filter_map(|event| match &event.outcome {
        Outcome::Refused(why) => Some(why.clone()),
        Outcome::Acknowledged(_) | Outcome::Unknown(_) => None,
    });
    let complaints: Vec<String> = complaints.collect();
    let (refused, complaint) = (complaints.len(), complaints.into_iter().next().unwrap_or_default());
    let acknowledged: Vec<&Event> =
        events.iter().filter(|event| matches!(event.outcome, Outcome::Acknowledged(_))).collect();
    let gaps = acknowledged.windows(2).filter(|pair| pair[1].answered >= began);
    let longest = gaps.max_by_key(|pair| pair[1].answered - pair[0].answered);
    let Some([last, first]) = longest else { return Seen { outage: 0.0, steps: None, refused, complaint } };
    let outage = (first.answered - last.answered).as_secs_f64();
    let marks = subject.timeline.since(&subject.pair.name, moments::seconds(last.answered) - 0.5);
    let steps = (after.epoch > before.epoch)
        .then(|| steps(&marks, moments::seconds(began), moments::seconds(first.answered)))
        .flatten();
    Seen { outage, steps, refused, complaint }
}

/// The last takeover before the first acknowledgement.
fn steps(marks: &[Mark], began: f64, acknowledged: f64) -> Option<Steps> {
    let opening = marks.iter().rev().find(|mark| {
        matches!(&mark.what, What::State { to, .. } if to == "PrimaryOpening") && mark.at <= acknowledged
    })?;
    let own = |mark: &&Mark| mark.member == opening.member;
    let sent = marks
        .iter()
        .rev()
        .filter(own)
        .find(|mark| matches!(mark.what, What::Record { .. }) && mark.at <= opening.at)?;
    let may_start = marks
        .iter()
        .filter(own)
        .find(|mark| matches!(mark.what, What::MayStart { .. }) && mark.at >= opening.at && mark.at <= acknowledged)?;
    let listens = marks
        .iter()
        .filter(own)
        .find(|mark| mark.what == What::Listens && mark.at >= may_start.at && mark.at <= acknowledged)
        .map_or(may_start.at, |mark| mark.at);
    Some(Steps {
        detection: (sent.at - began).max(0.0),
        claim: opening.at - sent.at,
        apply: may_start.at - opening.at,
        application: listens - may_start.at,
        route: acknowledged - listens,
    })
}

/// The value below which so many percent lie, of values in any order.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() {
        return 0.0;
    }
    // The nearest rank: a value that was really seen.
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([50.0, 95.0, 99.0, 100.0].map(|percent| percentile(&values, percent) as u32), [50, 95, 99, 100]);
        assert_eq!(percentile(&[3.0], 50.0) as u32, 3);
    }

    #[test]
    fn a_takeover_is_split_into_its_steps() {
        let mark = |at: f64, what| Mark { at, pair: "orders".into(), member: "b".into(), what };
        let marks = [
            mark(12.0, What::Record { epoch: 2 }),
            mark(12.1, What::State { to: "PrimaryOpening".into(), epoch: 2 }),
            mark(12.3, What::MayStart { epoch: 2 }),
            mark(12.9, What::Listens),
        ];
        let steps = steps(&marks, 10.0, 13.0).unwrap();
        let all = [steps.detection, steps.claim, steps.apply, steps.application, steps.route];
        for (found, wanted) in all.into_iter().zip([2.0, 0.1, 0.2, 0.6, 0.1]) {
            assert!((found - wanted).abs() < 1e-6, "{steps:?}");
        }
    }
}
