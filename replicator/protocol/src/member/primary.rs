//! A member with the lead: with its peer, without it, taking it in, handing over.

use super::{Draining, Exit, FailoverMode, Joining, Link, Member, Mutation, Settings, State};
use crate::handshake::Refusal;
use crate::identity::Generation;
use crate::member::settings::{AckPolicy, Protection};
use crate::member::{Control, Effect};
use crate::record::{Certificate, Request};
use crate::{AckRule, Position};

impl Member {
    /// The rule that the present state allows.
    pub(super) fn rule_now(&self) -> AckRule {
        match &self.state {
            State::Uncertain { .. } => self.rule_with(None),
            State::Joining(Joining::Recording) if self.naive(Mutation::RecordBeforeRule) => self.rule_alone(),
            State::Joining(_) | State::Active { .. } | State::Draining(_) => {
                self.rule_with(self.link.as_ref().filter(|link| link.following).map(|link| link.session))
            }
            State::Alone => self.rule_alone(),
            State::Offline
            | State::Starting
            | State::Secondary { .. }
            | State::Opening
            | State::Fenced
            | State::Quarantined(_)
            | State::Stopped => AckRule::Nothing,
        }
    }

    fn rule_alone(&self) -> AckRule {
        if self.settings.alone_without_api {
            AckRule::Alone { entitled_until: None }
        } else {
            AckRule::Alone { entitled_until: Some(self.entitled_until()) }
        }
    }

    fn rule_with(&self, session: Option<u64>) -> AckRule {
        match self.settings.protection {
            Protection::Async => AckRule::WithinLag {
                session,
                max_lag_bytes: self.settings.max_lag_bytes,
                entitled_until: self.entitled_until(),
            },
            Protection::MaxProtection | Protection::MaxAvailability => {
                AckRule::WithPeer { session, received: self.settings.ack_policy == AckPolicy::Received }
            }
        }
    }

    /// Counted from the moment the renewal was sent: the answer may have been long under way.
    fn entitled_until(&self) -> u64 {
        self.times.entitled.map_or(0, |sent| sent.saturating_add(self.settings.entitlement))
    }

    /// Silent for longer than a peer may be, or lost by its own word.
    pub(super) fn peer_is_lost(&self) -> bool {
        let said = match &self.state {
            // A peer that is back but far behind does not end the wait either.
            State::Uncertain { since, lost, .. } => *lost || self.since(*since) >= self.settings.peer_timeout(),
            State::Offline
            | State::Starting
            | State::Secondary { .. }
            | State::Opening
            | State::Alone
            | State::Joining(_)
            | State::Active { .. }
            | State::Draining(_)
            | State::Fenced
            | State::Quarantined(_)
            | State::Stopped => false,
        };
        said || self.since(self.times.peer_heard) >= self.settings.peer_timeout()
    }

    /// The peer's mark that counts for an acknowledgement.
    fn peer_mark(&self) -> u64 {
        let Some(link) = self.link.as_ref().filter(|link| link.following) else { return 0 };
        match self.settings.ack_policy {
            AckPolicy::Durable => link.durable,
            AckPolicy::Received => link.received.max(link.durable),
        }
    }

    pub(super) fn peer_mark_durable(&self) -> u64 {
        self.link.as_ref().filter(|link| link.following).map_or(0, |link| link.durable)
    }

    pub(super) fn peer_certificate(&self) -> Option<Certificate> {
        let hello = self.link.as_ref().filter(|link| link.following)?.hello.as_ref()?;
        Some(Certificate { data_id: hello.data_id.clone(), boot: hello.boot })
    }

    pub(super) fn peer_ack(&mut self, session: u64, received: u64, durable: u64) {
        if let Some(link) = self.link.as_mut().filter(|link| link.session == session && link.hello.is_some()) {
            if link.answered.is_some() && (received > link.received || durable > link.durable) {
                // It has what was sent lately; its heartbeats may lie behind much else on a slow link.
                link.answered = Some(self.times.now);
            }
            link.received = link.received.max(received);
            link.durable = link.durable.max(durable);
            self.times.peer_heard = self.times.now;
        }
    }

    pub(super) fn asked_to_ship(&mut self, generation: Generation, from: Position, out: &mut Vec<Effect>) {
        if self.leads() != Some(generation) || self.state == State::Opening {
            self.say(Control::Refused(Refusal::NotMaster), out);
            return;
        }
        let Some(link) = &mut self.link else { return };
        (link.following, link.answered) = (true, None);
        let session = link.session;
        let copied = std::mem::take(&mut link.copying);
        // A copy that was begun and not completed says so, on every connection.
        let peer = link.hello.as_ref().filter(|hello| !hello.inconsistent).map(|hello| &hello.data_id);
        if copied || (peer.is_some() && peer == self.compares.as_ref()) {
            self.compares = None;
            // Two equal copies exist again: what the journal lost is on neither.
            self.amend(out, |identity| identity.unverified = false);
        }
        out.push(Effect::StartShipping { session, from });
    }

    pub(super) fn asked_to_copy(&mut self, generation: Generation, out: &mut Vec<Effect>) {
        if self.leads() != Some(generation) || self.state == State::Opening {
            self.say(Control::Refused(Refusal::NotMaster), out);
            return;
        }
        let Some(link) = &mut self.link else { return };
        let (session, following) = (link.session, link.following);
        (link.copying, link.following) = (true, false);
        // What it acknowledged over this connection it gives up.
        (link.received, link.durable) = (0, 0);
        self.compares = link.hello.as_ref().map(|hello| hello.data_id.clone());
        if following {
            out.push(Effect::StopShipping);
            self.lose_peer(true, out);
        }
        out.push(Effect::StartNetcopyAsSource { session });
    }

    pub(super) fn shipping_impossible(&mut self, session: u64, out: &mut Vec<Effect>) {
        if self.leads().is_none() {
            return;
        }
        let Some(link) = self.link.as_mut().filter(|link| link.session == session) else { return };
        link.following = false;
        self.say(Control::CopyNeeded, out);
        self.lose_peer(true, out);
    }

    /// The peer's own word: it takes nothing more on this connection.
    pub(super) fn peer_stops_following(&mut self, out: &mut Vec<Effect>) {
        if self.leads().is_none() {
            return;
        }
        if let Some(link) = &mut self.link {
            link.following = false;
        }
        out.push(Effect::StopShipping);
        self.lose_peer(true, out);
    }

    /// The peer no longer follows. `said`: there is no doubt, so no need to wait for its silence.
    pub(super) fn lose_peer(&mut self, said: bool, out: &mut Vec<Effect>) {
        let now = self.times.now;
        let active_since = match &self.state {
            State::Active { since } => Some(*since),
            State::Draining(draining) => Some(draining.active_since),
            State::Joining(_) => None,
            State::Uncertain { .. } => {
                if let State::Uncertain { lost, .. } = &mut self.state {
                    *lost |= said;
                }
                return;
            }
            State::Alone
            | State::Offline
            | State::Starting
            | State::Secondary { .. }
            | State::Opening
            | State::Fenced
            | State::Quarantined(_)
            | State::Stopped => return,
        };
        if let Some(since) = active_since
            && self.since(since) < self.settings.active_minimum
        {
            // It flaps: not again before the connection has shown to be stable.
            self.times.join_not_before = now.saturating_add(self.settings.stable);
        }
        self.state = State::Uncertain { since: now, lost: said, failed: false };
        self.set_rule(self.rule_now(), out);
        out.push(Effect::HoldRequests);
    }

    pub(super) fn pursue_primary(&mut self, out: &mut Vec<Effect>) {
        let timeout = self.settings.peer_timeout();
        let silent = self.since(self.times.peer_heard) >= timeout;
        // It may be heard and not hear us. An answer takes up to a heartbeat longer than a sign of life.
        let answered = self.link.as_ref().filter(|link| link.following).and_then(|link| link.answered);
        let deaf = answered.is_some_and(|sent| self.since(sent) >= timeout.saturating_add(self.settings.heartbeat()));
        if let Some(link) = &self.link
            && link.hello.is_some()
            && (silent || deaf)
            && self.since(link.since) >= timeout
        {
            let session = link.session;
            out.push(Effect::DropPeer { session });
            self.peer_down(Some(session), super::Evidence::Timeout, out);
        }
        if let State::Uncertain { since, failed, .. } = &self.state
            && !failed
            && self.since(*since) >= self.settings.hold
        {
            out.push(Effect::FailHeld);
            if let State::Uncertain { failed, .. } = &mut self.state {
                *failed = true;
            }
        }
        self.pursue_joining(out);
        self.pursue_draining(out);
        let handed_over_to_nobody = match &self.state {
            State::Alone => true,
            // Nor can that be recorded.
            State::Uncertain { since, .. } => self.since(*since) >= self.settings.release,
            State::Offline
            | State::Starting
            | State::Secondary { .. }
            | State::Opening
            | State::Joining(_)
            | State::Active { .. }
            | State::Draining(_)
            | State::Fenced
            | State::Quarantined(_)
            | State::Stopped => false,
        };
        if self.terminating && handed_over_to_nobody {
            // It lost its peer while it handed over, and takes none in any more: waiting longer would hand over nothing.
            self.end_alone(out);
            return;
        }
        // Grants and renewals move the entitlement.
        let rule = self.rule_now();
        self.set_rule(rule, out);
    }

    fn pursue_joining(&mut self, out: &mut Vec<Effect>) {
        match &self.state {
            State::Uncertain { lost, .. } => {
                let recorded = self
                    .known
                    .as_ref()
                    .is_some_and(|known| !self.api.unsettled && known.record.certified.is_only(self.name));
                let may_be_alone = self.settings.protection != Protection::MaxProtection;
                let writing = self.api.asked.is_some();
                // A peer that was lost by its own word may be back before the record can be written: it ends the wait too,
                // unless it flaps.
                let may_join = !lost || !may_be_alone || self.times.now >= self.times.join_not_before;
                if may_join && self.peer_is_near() && !writing {
                    self.require_peer(out);
                } else if may_be_alone
                    && self.peer_is_lost()
                    && !writing
                    && (recorded || self.naive(Mutation::AloneBeforeRecord))
                {
                    self.go_alone(out);
                }
            }
            State::Alone => {
                if self.peer_is_near() && self.times.now >= self.times.join_not_before && !self.terminating {
                    self.require_peer(out);
                }
            }
            State::Joining(Joining::Waiting { acknowledged }) => {
                if self.peer_mark() >= *acknowledged {
                    self.caught_up(out);
                }
            }
            State::Joining(Joining::Enforcing | Joining::Recording)
            | State::Offline
            | State::Starting
            | State::Secondary { .. }
            | State::Opening
            | State::Active { .. }
            | State::Draining(_)
            | State::Fenced
            | State::Quarantined(_)
            | State::Stopped => {}
        }
    }

    /// Near enough that requiring its acknowledgements costs no noticeable wait.
    fn peer_is_near(&self) -> bool {
        let following = self.link.as_ref().is_some_and(|link: &Link| link.following && link.hello.is_some());
        following && self.peer_mark().saturating_add(self.settings.join_within) >= self.durable.seq
    }

    /// First enforce: from now on acknowledgements need the peer. The data path answers with what it had acknowledged
    /// before; only when the peer has that too may the record call it certified.
    fn require_peer(&mut self, out: &mut Vec<Effect>) {
        if self.naive(Mutation::RecordBeforeRule) && self.peer_mark() >= self.durable.seq {
            self.state = State::Joining(Joining::Recording);
            return;
        }
        self.state = State::Joining(Joining::Enforcing);
        self.rule = self.rule_now();
        out.push(Effect::SetAckRule(self.rule));
    }

    pub(super) fn rule_set(&mut self, rule: AckRule, acknowledged: u64, out: &mut Vec<Effect>) {
        // An answer to an earlier rule says too little: more may have been acknowledged since.
        if rule != self.rule || self.state != State::Joining(Joining::Enforcing) {
            return;
        }
        self.state = State::Joining(Joining::Waiting { acknowledged });
        // Requests that were held wait for the peer now, and it is there.
        self.open(out);
    }

    /// Then publish.
    fn caught_up(&mut self, out: &mut Vec<Effect>) {
        let recorded = self.known.as_ref().is_some_and(|known| {
            known.record.certified.get(self.name.peer()) == self.peer_certificate().as_ref()
                && known.record.certified.is_both()
        });
        if recorded && !self.api.unsettled {
            self.go_active(out);
        } else {
            self.state = State::Joining(Joining::Recording);
        }
    }

    pub(super) fn both_recorded(&mut self, out: &mut Vec<Effect>) {
        if self.state == State::Joining(Joining::Recording) {
            // The answer may be to a write about the peer's life before this one: then it is written again.
            self.caught_up(out);
        }
    }

    fn go_active(&mut self, out: &mut Vec<Effect>) {
        self.state = State::Active { since: self.times.now };
        let rule = self.rule_now();
        self.set_rule(rule, out);
        self.reason = None;
        if let Some(generation) = self.leads() {
            self.say(Control::Certified { generation }, out);
        }
        self.open(out);
        if self.terminating {
            self.drain(None, out);
        }
    }

    pub(super) fn alone_recorded(&mut self, out: &mut Vec<Effect>) {
        if let State::Uncertain { .. } = self.state {
            self.go_alone(out);
        }
    }

    /// The record says that nobody else holds everything: acknowledge what is durable here.
    pub(super) fn go_alone(&mut self, out: &mut Vec<Effect>) {
        if self.settings.protection == Protection::MaxProtection {
            return;
        }
        self.state = State::Alone;
        let rule = self.rule_now();
        self.set_rule(rule, out);
        self.open(out);
    }

    fn open(&mut self, out: &mut Vec<Effect>) {
        let Some(Generation { epoch, .. }) = self.leads() else { return };
        out.push(Effect::OpenWrites { epoch });
        if !self.opened {
            self.opened = true;
            out.push(Effect::OpenGate { epoch });
            out.push(Effect::ClaimService { epoch });
        }
    }

    pub(super) fn asked_to_hand_over(&mut self, request: Request, out: &mut Vec<Effect>) {
        let done = self.known.as_ref().is_some_and(|known| known.record.last_request.as_ref() == Some(&request.id));
        match &self.state {
            State::Active { .. } if !done && request.to == self.name.peer() => self.drain(Some(request), out),
            State::Draining(draining) if draining.request.as_ref() == Some(&request) => {}
            State::Active { .. }
            | State::Draining(_)
            | State::Offline
            | State::Starting
            | State::Secondary { .. }
            | State::Opening
            | State::Uncertain { .. }
            | State::Alone
            | State::Joining(_)
            | State::Fenced
            | State::Quarantined(_)
            | State::Stopped => self.say(Control::Declined { request }, out),
        }
    }

    fn drain(&mut self, request: Option<Request>, out: &mut Vec<Effect>) {
        let State::Active { since: active_since } = self.state else { return };
        self.state = State::Draining(Draining { request, since: self.times.now, active_since, end: None });
        out.push(Effect::HoldRequests);
    }

    pub(super) fn all_held(&mut self, held: u64, out: &mut Vec<Effect>) {
        if let State::Draining(Draining { end: end @ None, .. }) = &mut self.state {
            *end = Some(held);
            out.push(Effect::SyncJournal);
        }
    }

    fn pursue_draining(&mut self, out: &mut Vec<Effect>) {
        let State::Draining(draining) = &self.state else { return };
        let drained = draining.end.is_some_and(|end| self.durable.seq >= end && self.peer_mark_durable() >= end);
        if self.terminating && self.settings.failover == FailoverMode::Manual && drained {
            self.fence_data_path(out);
            self.amend(out, |identity| identity.clean = true);
            self.exit(Exit::Terminated, out);
            return;
        }
        if self.since(draining.since) < self.settings.release {
            return;
        }
        // Given up. Serving on is safe at once, for acknowledgements still need the peer; going alone is not before a write
        // has succeeded, for the release may still take effect.
        let (request, since) = (draining.request.clone(), draining.active_since);
        if self.terminating {
            self.fence_data_path(out);
            out.push(Effect::SyncJournal);
            self.exit(Exit::Terminated, out);
            return;
        }
        self.state = State::Active { since };
        self.open(out);
        if let Some(request) = request {
            self.say(Control::Declined { request }, out);
        }
    }

    pub(super) fn terminate(&mut self, out: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.terminating, true) {
            return;
        }
        match &self.state {
            State::Active { .. } => self.drain(None, out),
            // A hand-over that is under way ends the process when it is done.
            State::Draining(_) => {}
            State::Uncertain { .. } | State::Alone | State::Joining(_) | State::Opening => self.end_alone(out),
            State::Secondary { .. } | State::Fenced | State::Starting => {
                if self.leads().is_none() && self.link.as_ref().is_some_and(|link| link.following) {
                    // Else the master would find out by silence, and writes would wait for as long.
                    self.say(Control::Leaving, out);
                }
                out.push(Effect::SyncJournal);
                self.exit(Exit::Terminated, out);
            }
            State::Offline | State::Quarantined(_) | State::Stopped => self.exit(Exit::Terminated, out),
        }
    }

    /// Nobody to hand over to: the record says what is true, and the next start claims at once.
    fn end_alone(&mut self, out: &mut Vec<Effect>) {
        self.fence_data_path(out);
        out.push(Effect::SyncJournal);
        self.amend(out, |identity| identity.clean = true);
        self.exit(Exit::Terminated, out);
    }

    pub(super) fn settings_changed(&mut self, settings: Settings, out: &mut Vec<Effect>) {
        self.settings = settings;
        if self.state == State::Alone && self.settings.protection == Protection::MaxProtection {
            // Two copies or none, from now on.
            self.state = State::Uncertain { since: self.times.now, lost: false, failed: false };
            let rule = self.rule_now();
            self.set_rule(rule, out);
            out.push(Effect::HoldRequests);
        }
    }
}
