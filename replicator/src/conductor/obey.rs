//! What people order of this member: each token is carried out once, whatever restarts in between, and answered. The rules
//! are values; the conductor remembers durably before it acts.
//!
//! ```text
//! wished -> (can be judged: state known) -> remembered -> acted -> outcome
//!                      \-> refused
//! ```

use serde::{Deserialize, Serialize};
use tandem_crds::v1alpha1::OrderOutcome;
use tandem_protocol::member::effect::StateName;
use tandem_protocol::member::event::Order;

/// Where the tokens are remembered.
pub(super) const MEMORY: &str = "orders";
/// So many are remembered, and as many may be wished for at a time.
const REMEMBERED_MAX: usize = 16;

/// What an order is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Verb {
    Resync,
    Discard,
    ThrowAway,
    Hold,
}

impl Verb {
    fn of(order: Order, act: &Act) -> Self {
        match (order, act) {
            (_, Act::ThrowAway(_)) => Self::ThrowAway,
            (Order::Resync, Act::Obey(_) | Act::Noted) => Self::Resync,
            (Order::Discard, Act::Obey(_) | Act::Noted) => Self::Discard,
            (Order::Hold(_), Act::Obey(_) | Act::Noted) => Self::Hold,
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Outcome {
    done: bool,
    reason: String,
    message: String,
}

fn outcome(done: bool, reason: &str, message: &str) -> Outcome {
    Outcome { done, reason: reason.into(), message: message.into() }
}

/// An order that was, or is about to be, carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    token: String,
    verb: Verb,
    /// None while it is under way.
    outcome: Option<Outcome>,
    /// This process carried it out, or goes on with it.
    #[serde(skip)]
    begun: bool,
    /// The copy that it asks for was seen under way: what ends after this is that one.
    #[serde(skip)]
    copied: bool,
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Carry out; it is remembered already.
    Obey(Order),
    /// Throw away this of what is kept aside, and say how that ended.
    ThrowAway(Vec<String>),
    /// Nothing more: what is under way serves it, or it was refused.
    Noted,
}

/// The orders of this member.
#[derive(Debug, Default)]
pub(super) struct Orders {
    remembered: Vec<Remembered>,
    /// What was remembered could not be read: nothing that was wished for before may be done.
    distrusts: bool,
}

impl Orders {
    /// Goes on where another process ended. An error: nobody knows what it did.
    pub(super) fn recalled(remembered: Result<Option<Vec<Remembered>>, std::io::Error>) -> Self {
        match remembered {
            Ok(remembered) => Self { remembered: remembered.unwrap_or_default(), distrusts: false },
            Err(error) => {
                tracing::error!(%error, "the orders carried out before cannot be read: those that stand are refused");
                Self { remembered: Vec::new(), distrusts: true }
            }
        }
    }

    /// Takes in what is wished for: says the first thing to be done, after remembering it. To be called until it is `None`.
    /// `given_up`: by token, what is thrown away of what is kept aside.
    pub(super) fn next(
        &mut self,
        wished: &[(String, Order)],
        state: StateName,
        given_up: &[(String, Vec<String>)],
    ) -> Option<Act> {
        for (token, order) in wished {
            if self.remembered.iter().any(|known| known.token == *token && (known.begun || known.outcome.is_some())) {
                continue;
            }
            if self.remembered.iter().any(|known| known.token == *token) {
                // Of an earlier process: `settle` says how it ended.
                continue;
            }
            let verdict = if self.distrusts {
                Err(outcome(
                    false,
                    "Forgotten",
                    "it is not known whether this was carried out before: order again, with a new token",
                ))
            } else {
                match judge(*order, state, names_of(given_up, token)) {
                    Some(verdict) => verdict,
                    None => continue,
                }
            };
            let (act, outcome) = match verdict {
                Ok(act) => (act, None),
                Err(outcome) => (Act::Noted, Some(outcome)),
            };
            let verb = Verb::of(*order, &act);
            self.remember(Remembered { token: token.clone(), verb, outcome, begun: true, copied: false }, wished);
            return Some(act);
        }
        // Whatever comes later is new.
        self.distrusts = false;
        None
    }

    /// An order did not begin after all: it is taken up again later.
    pub(super) fn not_begun(&mut self, order: Order) {
        let verb = Verb::of(order, &Act::Obey(order));
        self.remembered.retain(|known| known.verb != verb || known.outcome.is_some());
    }

    /// What was kept aside was thrown away, or could not be.
    pub(super) fn thrown_away(&mut self, result: Result<(), String>) {
        let outcome = match result {
            Ok(()) => outcome(true, "Discarded", "what was kept in .tandem/aside was thrown away"),
            Err(error) => outcome(false, "Failed", &error),
        };
        let waits = |known: &&mut Remembered| known.verb == Verb::ThrowAway && known.begun && known.outcome.is_none();
        for known in self.remembered.iter_mut().filter(waits) {
            known.outcome = Some(outcome.clone());
        }
    }

    /// Sees what has become of those under way. True: something is to be remembered.
    pub(super) fn settle(&mut self, state: StateName) -> bool {
        let mut settled = false;
        for known in self.remembered.iter_mut().filter(|known| known.outcome.is_none()) {
            known.outcome = became(known.verb, known.begun, known.copied, state);
            known.copied |= known.verb == Verb::Resync && state == StateName::SecondaryNetcopy;
            known.begun |= known.copied;
            settled |= known.outcome.is_some();
        }
        settled
    }

    /// To be kept.
    pub(super) fn remembered(&self) -> Vec<Remembered> {
        self.remembered.clone()
    }

    /// For the report, newest last.
    pub(super) fn told(&self) -> Vec<OrderOutcome> {
        let told = self.remembered.iter().filter_map(|known| {
            let outcome = known.outcome.as_ref()?;
            Some(OrderOutcome {
                token: known.token.clone(),
                done: outcome.done,
                reason: outcome.reason.clone(),
                message: (!outcome.message.is_empty()).then(|| outcome.message.clone()),
            })
        });
        told.collect()
    }

    fn remember(&mut self, order: Remembered, wished: &[(String, Order)]) {
        self.remembered.push(order);
        while self.remembered.len() > REMEMBERED_MAX {
            // A token that still stands would be new again.
            let stands = |known: &Remembered| wished.iter().any(|(token, _)| *token == known.token);
            let oldest = self.remembered.iter().position(|known| !stands(known)).unwrap_or(0);
            self.remembered.remove(oldest);
        }
    }
}

fn names_of<'a>(given_up: &'a [(String, Vec<String>)], token: &str) -> &'a [String] {
    given_up.iter().find(|(given, _)| given == token).map_or(&[], |(_, names)| names)
}

/// Whether an order can be carried out; `None`: not known yet.
fn judge(order: Order, state: StateName, names: &[String]) -> Option<Result<Act, Outcome>> {
    match (order, state) {
        // Holding is done as long as the order stands, by the one that looks at all of them.
        (Order::Hold(_), _) => {
            Some(Err(outcome(true, "Held", "this member claims nothing by itself until the order is withdrawn")))
        }
        (Order::Discard | Order::Resync, StateName::Offline | StateName::Starting | StateName::Stopped) => None,
        // What was named is what was seen: a quarantine of since then is not given up with it.
        (Order::Discard, _) if !names.is_empty() => Some(Ok(Act::ThrowAway(names.to_vec()))),
        (Order::Discard, StateName::Quarantined) => Some(Ok(Act::Obey(order))),
        (Order::Discard, _) => {
            let why = "this member is not quarantined and keeps nothing aside: there is nothing to give up";
            Some(Err(outcome(false, "NothingToDiscard", why)))
        }
        (Order::Resync, StateName::SecondaryActive | StateName::SecondaryCatchUp) => Some(Ok(Act::Obey(order))),
        // The copy under way compares everything.
        (Order::Resync, StateName::SecondaryNetcopy) => Some(Ok(Act::Noted)),
        // Until there is a master to copy from.
        (Order::Resync, StateName::SecondaryAlone | StateName::Fenced) => None,
        (Order::Resync, StateName::Quarantined) => Some(Err(outcome(
            false,
            "Quarantined",
            "this member is quarantined: annotate the pair with tandem.dev/discard instead",
        ))),
        (
            Order::Resync,
            StateName::PrimaryOpening
            | StateName::PrimaryActive
            | StateName::PrimaryUncertain
            | StateName::PrimaryAlone
            | StateName::PrimaryJoining
            | StateName::PrimaryDraining,
        ) => Some(Err(outcome(
            false,
            "Leads",
            "this member leads: what it holds is what the other one is compared with",
        ))),
    }
}

/// How an order that was begun ended; `None`: not yet.
fn became(verb: Verb, begun: bool, copied: bool, state: StateName) -> Option<Outcome> {
    let interrupted = || {
        outcome(
            false,
            "Interrupted",
            "the process ended before this was done: order again, with a new token, if it is needed",
        )
    };
    match (verb, state) {
        (Verb::Hold, _) => Some(outcome(true, "Held", "")),
        (_, StateName::Offline | StateName::Starting | StateName::Stopped) => None,
        (Verb::ThrowAway, _) => (!begun).then(interrupted),
        (Verb::Discard, StateName::Quarantined) if begun => None,
        (Verb::Discard, StateName::Quarantined) => Some(interrupted()),
        (Verb::Discard, _) => Some(outcome(
            true,
            "Discarded",
            "what the volume held was moved aside, into .tandem/aside, and is copied anew",
        )),
        (Verb::Resync, StateName::SecondaryNetcopy) => None,
        (Verb::Resync, StateName::Quarantined) => {
            Some(outcome(false, "Quarantined", "this member was quarantined before it was compared"))
        }
        // Asked for, and not under way yet; or broken off, and begun again on the next connection.
        (Verb::Resync, StateName::SecondaryAlone) if begun => None,
        (Verb::Resync, StateName::SecondaryActive | StateName::SecondaryCatchUp) if begun && !copied => None,
        (Verb::Resync, _) if begun => {
            Some(outcome(true, "Copied", "everything that differed from the master was copied"))
        }
        (Verb::Resync, _) => Some(interrupted()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(token: &str, order: Order) -> Vec<(String, Order)> {
        vec![(token.to_string(), order)]
    }

    /// A process that ends and another that begins.
    fn restarted(orders: &Orders) -> Orders {
        let text = serde_json::to_string(&orders.remembered()).unwrap();
        Orders::recalled(Ok(Some(serde_json::from_str(&text).unwrap())))
    }

    fn ended(orders: &Orders) -> Vec<(String, bool, String)> {
        orders.told().into_iter().map(|told| (told.token, told.done, told.reason)).collect()
    }

    #[test]
    fn a_token_acts_once_also_over_restarts() {
        let wished = wish("t", Order::Resync);
        let mut orders = Orders::default();
        assert_eq!(orders.next(&wished, StateName::Starting, &[]), None, "the state is not known yet");
        assert_eq!(orders.next(&wished, StateName::SecondaryActive, &[]), Some(Act::Obey(Order::Resync)));
        assert_eq!(orders.next(&wished, StateName::SecondaryNetcopy, &[]), None);
        assert!(!orders.settle(StateName::SecondaryNetcopy));
        let mut orders = restarted(&orders);
        assert_eq!(orders.next(&wished, StateName::SecondaryNetcopy, &[]), None);
        assert!(!orders.settle(StateName::SecondaryNetcopy));
        assert!(orders.settle(StateName::SecondaryCatchUp));
        assert_eq!(ended(&orders), [("t".into(), true, "Copied".into())]);
        let mut orders = restarted(&orders);
        assert_eq!(orders.next(&wished, StateName::SecondaryActive, &[]), None);
        assert_eq!(ended(&orders), [("t".into(), true, "Copied".into())]);
    }

    #[test]
    fn a_copy_is_answered_for_only_after_it_was_seen_under_way() {
        let wished = wish("t", Order::Resync);
        let mut orders = Orders::default();
        orders.next(&wished, StateName::SecondaryActive, &[]);
        for state in [StateName::SecondaryActive, StateName::SecondaryAlone, StateName::SecondaryCatchUp] {
            assert!(!orders.settle(state), "not begun: {state:?}");
        }
        // Broken off, it goes on with the next connection.
        assert!(!orders.settle(StateName::SecondaryNetcopy));
        assert!(!orders.settle(StateName::SecondaryAlone));
        assert!(!orders.settle(StateName::SecondaryNetcopy));
        assert!(orders.settle(StateName::SecondaryActive));
        assert_eq!(ended(&orders), [("t".into(), true, "Copied".into())]);
    }

    #[test]
    fn what_a_process_may_have_begun_is_not_begun_again() {
        let wished = wish("t", Order::Resync);
        let mut orders = Orders::default();
        orders.next(&wished, StateName::SecondaryActive, &[]);
        let mut orders = restarted(&orders);
        assert_eq!(orders.next(&wished, StateName::SecondaryActive, &[]), None);
        assert!(orders.settle(StateName::SecondaryActive));
        assert_eq!(ended(&orders), [("t".into(), false, "Interrupted".into())]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_a_word() {
        for (order, state, word) in [
            (Order::Discard, StateName::SecondaryActive, "NothingToDiscard"),
            (Order::Resync, StateName::PrimaryAlone, "Leads"),
            (Order::Resync, StateName::Quarantined, "Quarantined"),
        ] {
            let mut orders = Orders::default();
            assert_eq!(orders.next(&wish("t", order), state, &[]), Some(Act::Noted));
            assert_eq!(ended(&orders), [("t".into(), false, word.into())]);
        }
        let mut orders = Orders::default();
        assert_eq!(orders.next(&wish("t", Order::Resync), StateName::SecondaryAlone, &[]), None, "waits for a master");
        assert_eq!(
            orders.next(&wish("t", Order::Discard), StateName::Quarantined, &[]),
            Some(Act::Obey(Order::Discard))
        );
        assert!(!orders.settle(StateName::Starting));
        assert!(orders.settle(StateName::SecondaryNetcopy));
        assert_eq!(ended(&orders), [("t".into(), true, "Discarded".into())]);
    }

    #[test]
    fn what_is_kept_aside_is_thrown_away_once_by_whoever_keeps_it() {
        let (wished, given) = (wish("t", Order::Discard), [("t".to_string(), vec!["tail".to_string()])]);
        let mut orders = Orders::default();
        assert_eq!(orders.next(&wished, StateName::Starting, &given), None);
        assert_eq!(orders.next(&wished, StateName::PrimaryActive, &given), Some(Act::ThrowAway(vec!["tail".into()])));
        assert!(!orders.settle(StateName::PrimaryActive));
        let mut successor = restarted(&orders);
        assert!(successor.settle(StateName::PrimaryActive));
        assert_eq!(ended(&successor), [("t".into(), false, "Interrupted".into())]);
        orders.thrown_away(Ok(()));
        assert_eq!(orders.next(&wished, StateName::PrimaryActive, &[]), None);
        assert_eq!(ended(&orders), [("t".into(), true, "Discarded".into())]);
        // Whoever ordered this did not know of a quarantine that came later.
        let mut orders = Orders::default();
        assert_eq!(orders.next(&wished, StateName::Quarantined, &given), Some(Act::ThrowAway(vec!["tail".into()])));
    }

    #[test]
    fn after_a_lost_memory_only_new_tokens_count() {
        let mut orders = Orders::recalled(Err(std::io::Error::other("damaged")));
        let old = wish("old", Order::Discard);
        assert_eq!(orders.next(&old, StateName::Quarantined, &[]), Some(Act::Noted));
        assert_eq!(orders.next(&old, StateName::Quarantined, &[]), None);
        assert_eq!(ended(&orders), [("old".into(), false, "Forgotten".into())]);
        let new = wish("new", Order::Discard);
        assert_eq!(orders.next(&new, StateName::Quarantined, &[]), Some(Act::Obey(Order::Discard)));
    }

    #[test]
    fn a_token_that_stands_is_not_forgotten_for_newer_ones() {
        let mut orders = Orders::default();
        let mut wished = wish("stands", Order::Discard);
        for number in 0..40 {
            wished.truncate(1);
            wished.push((format!("t{number}"), Order::Discard));
            while orders.next(&wished, StateName::SecondaryActive, &[]).is_some() {}
        }
        assert_eq!(orders.told().len(), REMEMBERED_MAX);
        assert!(orders.told().iter().any(|told| told.token == "stands"));
    }
}
