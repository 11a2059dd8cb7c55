//! The record: what is learnt from it, and the one request to the API server that may be under way.
//!
//! Each write names the version it replaces. A write without an answer may take effect much later, as long as that version
//! stands; so `unsettled` stays until a later write has succeeded, which moves the version. A read never clears it.

use super::{Asked, Claim, Joining, Known, Member, Mutation, Now, Purpose, State};
use crate::Position;
use crate::identity::Quarantine;
use crate::identity::Seen;
use crate::member::settings::Protection;
use crate::member::{Control, Effect};
use crate::record::{self, Certificate, Incarnation, PerMember, Record, Version};

impl Member {
    /// Sends the request that the present state calls for, if none is under way.
    pub(super) fn ask(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.api.asked.is_some() || self.times.now < self.api.retry_at {
            return;
        }
        let looks = self.api.look && matches!(self.state, State::Secondary { claim: None });
        if looks
            || self.testimony_for.is_some()
            || matches!(self.state, State::Starting | State::Secondary { claim: Some(Claim::Reading) })
        {
            self.read(out);
            return;
        }
        let Some(purpose) = self.wanted() else { return };
        if self.api.stale || self.known.is_none() {
            self.read(out);
        } else {
            self.write(purpose, now, out);
        }
    }

    fn read(&mut self, out: &mut Vec<Effect>) {
        self.api.asked = Some(Asked::Read);
        self.api.asked_at = self.times.now;
        out.push(Effect::ReadRecord);
    }

    /// What this state needs to write, if anything.
    fn wanted(&self) -> Option<Purpose> {
        let known = self.known.as_ref()?;
        match &self.state {
            State::Uncertain { .. } => {
                let needed = self.api.unsettled || !known.record.certified.is_only(self.name);
                (needed && self.peer_is_lost() && self.settings.protection != Protection::MaxProtection)
                    .then_some(Purpose::Alone)
            }
            State::Joining(Joining::Recording) => Some(Purpose::Both),
            State::Draining(draining) => {
                let drained =
                    draining.end.is_some_and(|end| self.durable.seq >= end && self.peer_mark_durable() >= end);
                (drained && !self.keeps_the_lead()).then_some(Purpose::Release)
            }
            State::Active { .. } => {
                if self.settings.protection == Protection::Async && self.renewal_due() {
                    return Some(Purpose::Renew);
                }
                let due = self.since(self.times.renewed) >= self.settings.note_positions;
                (due && self.positions() != known.record.positions).then_some(Purpose::Renew)
            }
            State::Alone if self.naive(Mutation::AloneBeforeRecord) => {
                (!known.record.certified.is_only(self.name)).then_some(Purpose::Alone)
            }
            State::Alone => (!self.settings.alone_without_api && self.renewal_due()).then_some(Purpose::Renew),
            State::Secondary { claim: None } => {
                (self.master().is_some() && self.claim_may_take_effect()).then_some(Purpose::Settle)
            }
            State::Joining(Joining::Enforcing | Joining::Waiting { .. })
            | State::Offline
            | State::Starting
            | State::Secondary { claim: Some(_) }
            | State::Opening
            | State::Fenced
            | State::Quarantined(_)
            | State::Stopped => None,
        }
    }

    /// A stop in Manual mode hands the data over and keeps the lead: nobody else may take it without being nominated.
    fn keeps_the_lead(&self) -> bool {
        self.terminating && self.settings.failover == super::FailoverMode::Manual
    }

    fn renewal_due(&self) -> bool {
        self.since(self.times.renewed) >= self.settings.renewal
    }

    /// Where both stand. The peer's is what it said last.
    fn positions(&self) -> PerMember<Position> {
        let mut positions = self.known.as_ref().map(|known| known.record.positions).unwrap_or_default();
        positions.set(self.name, Some(self.durable));
        if let Some(position) = self.link.as_ref().filter(|link| link.following).and_then(|link| link.position) {
            positions.set(self.name.peer(), Some(position));
        }
        positions
    }

    pub(super) fn write(&mut self, purpose: Purpose, now: Now, out: &mut Vec<Effect>) {
        let Some(known) = &self.known else { return };
        let Some(identity) = &self.identity else { return };
        let own = Certificate { data_id: identity.data_id.clone(), boot: identity.boot };
        let old = &known.record;
        let mut record = Record::clone(old);
        if !self.naive(Mutation::IdenticalWrite) {
            record.wseq = old.wseq.saturating_add(1);
        }
        match purpose {
            Purpose::Claim => {
                record.epoch = old.epoch.saturating_add(1);
                record.nonce = crate::identity::Nonce(now.random);
                record.master = Some(Incarnation { member: self.name, boot: identity.boot });
                record.certified = PerMember::only(self.name, own);
                if let Some(request) = record.request.take()
                    && request.to == self.name
                {
                    record.last_request = Some(request.id);
                }
                if let Some(nomination) = &self.nomination {
                    record.last_request = Some(nomination.request.id.clone());
                }
            }
            Purpose::Alone => {
                let kept = old.certified.get(self.name).cloned().unwrap_or(own);
                record.certified = PerMember::only(self.name, kept);
            }
            Purpose::Both => {
                let kept = old.certified.get(self.name).cloned().unwrap_or(own);
                let Some(peer) = self.peer_certificate() else { return };
                record.certified = PerMember::only(self.name, kept).with(self.name.peer(), peer);
            }
            Purpose::Release => {
                record.master = None;
                let request = match &self.state {
                    State::Draining(draining) => draining.request.clone(),
                    State::Offline
                    | State::Starting
                    | State::Secondary { .. }
                    | State::Opening
                    | State::Uncertain { .. }
                    | State::Alone
                    | State::Joining(_)
                    | State::Active { .. }
                    | State::Fenced
                    | State::Quarantined(_)
                    | State::Stopped => None,
                };
                record.request = request;
            }
            Purpose::Renew => record.positions = self.positions(),
            Purpose::Settle => {}
        }
        if let Err(_violation) = record::check(old, &record)
            && !self.naive(Mutation::ClaimWithoutMarker)
            && !self.naive(Mutation::IdenticalWrite)
            && !self.naive(Mutation::IdentityByName)
        {
            // The state does not fit the record: look again rather than write what must not be.
            self.api.stale = true;
            self.api.retry_at = self.times.now.saturating_add(self.settings.retry);
            return;
        }
        let expected =
            if self.naive(Mutation::UnconditionalWrite) { Version::default() } else { known.version.clone() };
        self.api.asked = Some(Asked::Write(purpose, Box::new(record.clone())));
        self.api.asked_at = self.times.now;
        self.times.renewed = self.times.now;
        out.push(Effect::WriteRecord { expected, record: Box::new(record) });
    }

    pub(super) fn record_read(&mut self, record: Box<Record>, version: Version, now: Now, out: &mut Vec<Effect>) {
        if self.api.asked != Some(Asked::Read) {
            return;
        }
        self.api.asked = None;
        (self.api.missing, self.api.unreachable) = (false, false);
        // There is one: nothing has to be made anew.
        self.testimony_for = None;
        if self.state == State::Starting {
            self.begin(record, version, now, out);
            return;
        }
        if !self.learn(record, version, out) {
            // Older than what is known: a quorum read should not be, so ask again, later.
            self.api.retry_at = self.times.now.saturating_add(self.settings.retry);
            return;
        }
        self.api.stale = false;
        self.api.look = false;
        if self.nomination.is_some() && !self.is_certified() {
            self.nomination = None;
            self.reason = Some(super::Reason::NominatedUncertified);
        }
        if self.naive(Mutation::TrustRead) {
            self.api.unsettled = false;
        }
        if let State::Secondary { claim: Some(Claim::Reading) } = self.state {
            self.claim(now, out);
        }
    }

    pub(super) fn record_missing(&mut self, out: &mut Vec<Effect>) {
        self.api.asked = None;
        self.api.unreachable = false;
        self.api.missing = true;
        self.api.stale = true;
        self.api.retry_at = self.times.now.saturating_add(self.settings.retry);
        if let State::Secondary { claim } = &mut self.state {
            *claim = None;
        }
        self.testify(out);
    }

    /// Takes in a reading of the record. False if it is older than what is known.
    pub(super) fn learn(&mut self, record: Box<Record>, version: Version, out: &mut Vec<Effect>) -> bool {
        let (Some(known), Some(identity)) = (&self.known, &self.identity) else { return false };
        if record.pair != identity.pair {
            return false;
        }
        let older = (record.epoch, record.wseq) < (known.record.epoch, known.record.wseq);
        // Without the counter nothing tells which of two readings is newer.
        if older && !self.naive(Mutation::IdenticalWrite) && !self.naive(Mutation::UnconditionalWrite) {
            return false;
        }
        if record.epoch == identity.promised.epoch && record.epoch > 0 && record.nonce != identity.promised.nonce {
            self.quarantine(Quarantine::TwoHistories, out);
            return true;
        }
        if known.record != record {
            self.times.record_changed = self.times.now;
        }
        self.see(&record, out);
        self.notice_reign(&record);
        // Whoever wished for it was answered that another reign came before it.
        self.nomination.take_if(|nomination| nomination.epoch < record.epoch);
        let leads = self.leads();
        let (generation, led_by_me) = (record.generation(), record.led_by(self.name));
        self.known = Some(Known { record, version });
        if let Some(mine) = leads
            && (generation.epoch > mine.epoch || (generation.epoch == mine.epoch && !led_by_me))
        {
            // A newer epoch, or our own release that took effect after all.
            self.fence(out);
        }
        true
    }

    /// Once this pod's application saw this member lead and somebody else may have led since, what it remembers of the files
    /// is old: it must not see another reign.
    pub(super) fn notice_reign(&mut self, record: &Record) {
        let served = self.identity.as_ref().and_then(|identity| identity.served.as_ref());
        let served_here = served.is_some_and(|served| served.pod == self.pod);
        self.spent |= served_here && !record.led_by(self.name);
    }

    /// Remembers durably the newest record seen, when it says something new about who leads.
    pub(super) fn see(&mut self, record: &Record, out: &mut Vec<Effect>) {
        let seen = Seen { epoch: record.epoch, nonce: record.nonce, wseq: record.wseq };
        // Positions and renewals change nothing that a restored API server could undo to anybody's harm.
        let matters = self
            .known
            .as_ref()
            .is_none_or(|known| known.record.certified != record.certified || known.record.master != record.master);
        self.amend(out, |identity| {
            if (matters || identity.seen.epoch != seen.epoch)
                && (seen.epoch, seen.wseq) > (identity.seen.epoch, identity.seen.wseq)
            {
                identity.seen = seen;
            }
        });
    }

    /// The write under way took effect.
    pub(super) fn record_written(&mut self, version: Version, out: &mut Vec<Effect>) {
        let Some(Asked::Write(purpose, record)) = self.api.asked.take() else { return };
        (self.api.unsettled, self.api.stale, self.api.unreachable) = (false, false, false);
        if purpose != Purpose::Settle {
            self.times.entitled = Some(self.api.asked_at.max(self.times.entitled.unwrap_or_default()));
        }
        self.times.record_changed = self.times.now;
        if !matches!(purpose, Purpose::Renew | Purpose::Settle) {
            self.see(&record, out);
        }
        let epoch = record.epoch;
        let newest = self.known.as_ref().map(|known| (known.record.epoch, known.record.wseq)).unwrap_or_default();
        if newest > (record.epoch, record.wseq) && !self.naive(Mutation::IdenticalWrite) {
            // The watch was faster than the answer and showed something newer.
            self.api.stale = true;
        } else {
            self.known = Some(Known { record, version });
        }
        match purpose {
            Purpose::Claim => self.claimed(out),
            Purpose::Alone => self.alone_recorded(out),
            Purpose::Both => self.both_recorded(out),
            Purpose::Release => self.released(out),
            Purpose::Settle => self.amend(out, |identity| identity.intent = identity.intent.min(epoch)),
            Purpose::Renew => {}
        }
    }

    /// The request under way failed; `unknown`: it may still take effect.
    pub(super) fn record_refused(&mut self, unknown: bool) {
        let asked = self.api.asked.take();
        self.api.stale = true;
        self.api.unreachable = unknown;
        self.api.unsettled |= unknown && matches!(asked, Some(Asked::Write(..)));
        if unknown || matches!(asked, Some(Asked::Write(Purpose::Settle, _))) {
            self.api.retry_at = self.times.now.saturating_add(self.settings.retry);
        }
        if let State::Secondary { claim: claim @ Some(_) } = &mut self.state {
            // What became of it shows in the next reading: a claim that took effect late is met as "I lead" and made again.
            *claim = None;
            self.times.claim_not_before = if unknown { self.times.now.saturating_add(self.settings.retry) } else { 0 };
        }
    }

    /// A release that took effect.
    fn released(&mut self, out: &mut Vec<Effect>) {
        let generation = self.identity.as_ref().map(|identity| identity.promised);
        self.fence(out);
        if let Some(generation) = generation {
            self.say(Control::Released { generation }, out);
        }
        // Everything is journaled and durable on both sides.
        self.amend(out, |identity| identity.clean = true);
        if self.terminating {
            self.exit(super::Exit::Released, out);
        }
    }
}
