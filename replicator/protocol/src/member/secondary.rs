//! A member without the lead: follows a master, takes a copy, or tries to claim.

use super::{Claim, FailoverMode, Link, Member, Mutation, Nomination, Purpose, Reason, State};
use crate::Position;
use crate::handshake::{self, Hello, Meeting, Plan, Refusal};
use crate::identity::{Generation, Quarantine, SPANS_MAX, Served, Span};
use crate::member::event::{Evidence, JournalFacts, Now};
use crate::member::settings::{AckPolicy, Protection};
use crate::member::{Control, Effect};
use crate::record::Request;

impl Member {
    pub(super) fn peer_up(&mut self, session: u64, journal: JournalFacts, out: &mut Vec<Effect>) {
        if let Some(link) = &self.link {
            if link.session >= session {
                return;
            }
            // One connection replaced another without a word.
            let old = link.session;
            self.peer_down(Some(old), Evidence::Timeout, out);
        }
        let leading = self.identity.as_ref().is_some_and(|identity| identity.leading);
        let applied = if leading { journal.applied.max(journal.end.seq) } else { journal.applied };
        self.journal = JournalFacts { applied, ..journal };
        self.link = Some(Link {
            session,
            since: self.times.now,
            greeted: false,
            hello: None,
            following: false,
            copying: false,
            copy_waits: false,
            received: 0,
            durable: 0,
            peer_sent: None,
            answered: None,
            position: None,
        });
        self.times.beat = 0;
    }

    pub(super) fn peer_down(&mut self, session: Option<u64>, evidence: Evidence, out: &mut Vec<Effect>) {
        match (session, &self.link) {
            (None, None) => {}
            (Some(ended), Some(link)) if link.session == ended => {}
            // Of an earlier connection, or an attempt while one stands.
            (None | Some(_), None | Some(_)) => return,
        }
        if evidence.process_gone() {
            self.times.gone = true;
        }
        let Some(link) = self.link.take() else { return };
        if let Some(answered) = link.answered {
            // Where only one direction is cut the peer has been silent since it heard nothing more: it takes us for silent,
            // and who has the lead must not wait longer than that before it records that it goes on alone.
            self.times.peer_heard = self.times.peer_heard.min(answered);
        }
        if let Some(nomination) = &mut self.nomination {
            nomination.asked = None;
        }
        if self.leads().is_some() {
            out.push(Effect::StopShipping);
            if link.copying {
                out.push(Effect::StopNetcopy);
            }
            self.lose_peer(false, out);
        } else if link.following {
            out.push(Effect::StopFollowing);
        } else if link.copying {
            out.push(Effect::StopNetcopy);
        }
    }

    pub(super) fn peer_message(&mut self, session: u64, message: Control, out: &mut Vec<Effect>) {
        let Some(link) = &mut self.link else { return };
        if link.session != session {
            return;
        }
        self.times.peer_heard = self.times.now;
        if link.hello.is_none() && !matches!(message, Control::Hello(_) | Control::Refused(_)) {
            return;
        }
        // The peer leads what we promised, or newer: it is not silent.
        let master = link.hello.as_ref().and_then(|hello| hello.leads);
        if let (Some(master), Some(identity)) = (master, &self.identity)
            && master.epoch >= identity.promised.epoch
        {
            self.times.master_heard = Some(self.times.now);
            self.times.gone = false;
        }
        match message {
            Control::Hello(hello) => {
                link.hello = Some(hello.clone());
                if link.greeted {
                    self.meet(&hello, out);
                }
            }
            Control::Heartbeat { generation, sent, echo, position } => {
                link.peer_sent = Some(sent);
                link.answered = link.answered.max(echo.map(|echo| echo.min(self.times.now)));
                link.position = Some(position);
                let following = link.following;
                if let Some(mine) = self.leads() {
                    if generation.epoch > mine.epoch {
                        self.fence(out);
                    } else if let Some(echo) = echo.filter(|_| following && generation == mine) {
                        let renewed = self.times.entitled.unwrap_or_default().max(echo.min(self.times.now));
                        self.times.entitled = Some(renewed);
                    }
                }
            }
            Control::Follow { generation, from } => self.asked_to_ship(generation, from, out),
            Control::CopyMe { generation } => self.asked_to_copy(generation, out),
            Control::CopyNeeded => {
                if self.leads().is_none() {
                    self.copy_from_master(out);
                }
            }
            Control::Certified { generation } => {
                let follows = link.following;
                self.amend(out, |identity| {
                    if follows && identity.promised == generation {
                        identity.dirty = false;
                    }
                });
                self.api.look = !self.is_certified();
            }
            Control::CannotFollow => self.peer_stops_following(out),
            Control::Leaving => {
                // Who says so is no flapping peer: when it is back it is taken in at once.
                let join_not_before = self.times.join_not_before;
                self.peer_stops_following(out);
                self.times.join_not_before = join_not_before;
            }
            Control::Nominate { request } => self.asked_to_hand_over(request, out),
            Control::Declined { request } => {
                if self.nomination.as_ref().is_some_and(|nomination| nomination.request == request) {
                    self.nomination = None;
                    self.reason = Some(Reason::NominationDeclined);
                }
            }
            Control::Released { generation } => {
                let promised = self.identity.as_ref().map(|identity| identity.promised);
                if self.leads().is_none() && promised == Some(generation) && self.may_take_a_release() {
                    self.begin_claim();
                }
            }
            Control::Refused(refusal) => self.reason = Some(Reason::PeerRefused(refusal)),
        }
    }

    /// Both have said hello.
    pub(super) fn meet(&mut self, theirs: &Hello, out: &mut Vec<Effect>) {
        let Some(mine) = self.hello() else { return };
        let mut meeting = handshake::meet(&mine, theirs);
        if meeting == Meeting::Refuse(Refusal::OldEpoch)
            && self.naive(Mutation::AcceptOldEpoch)
            && let Some(led) = theirs.leads
        {
            meeting = Meeting::Follow(led);
        }
        // A hello alone would stop the old master too: the rule is left out on both sides.
        if meeting == Meeting::Deposed && self.naive(Mutation::AcceptOldEpoch) {
            meeting = Meeting::Await;
        }
        match meeting {
            Meeting::Follow(generation) => {
                self.reason = None;
                if let State::Secondary { claim: claim @ Some(Claim::Reading) } = &mut self.state {
                    // Nothing was written yet, and the one that was taken for silent speaks: it is not overruled.
                    *claim = None;
                }
                if self.is_claiming() {
                    // The claim decides first; whoever loses it follows on the next connection.
                    self.drop_peer(out);
                } else {
                    self.times.master_heard = Some(self.times.now);
                    self.times.gone = false;
                    self.accept(generation, theirs, out);
                }
            }
            Meeting::Deposed => self.fence(out),
            Meeting::Await => self.reason = None,
            Meeting::Refuse(refusal) => {
                self.reason = Some(Reason::PeerRefused(refusal));
                self.say(Control::Refused(refusal), out);
                // An old master learns from our hello that it is deposed; it needs the connection for that.
                if refusal != Refusal::OldEpoch {
                    self.drop_peer(out);
                }
            }
        }
    }

    /// Begins to follow a master.
    fn accept(&mut self, generation: Generation, theirs: &Hello, out: &mut Vec<Effect>) {
        match self.state {
            State::Secondary { .. } | State::Fenced => self.state = State::Secondary { claim: None },
            State::Offline
            | State::Starting
            | State::Opening
            | State::Uncertain { .. }
            | State::Alone
            | State::Joining(_)
            | State::Active { .. }
            | State::Draining(_)
            | State::Quarantined(_)
            | State::Stopped => return,
        }
        // Durable before anything of it is accepted: nothing older will be, ever again.
        self.amend(out, |identity| identity.promised = generation);
        let Some(mine) = self.hello() else { return };
        // What the master's volume may hold beyond its journal it held before it began this reign: a copy taken since has it.
        let theirs = &Hello { unverified: theirs.unverified && self.compared != Some(generation), ..theirs.clone() };
        let plan = handshake::plan(&mine, theirs, self.journal.applied);
        if matches!(plan, Plan::Rewind { .. } | Plan::Netcopy) && self.must_stay_fit_to_lead() {
            return self.put_off_the_copy();
        }
        match plan {
            Plan::Resume { from } => self.follow(generation, from, theirs, out),
            Plan::CutThenResume { after } => {
                if !self.naive(Mutation::DiscardTail) {
                    out.push(Effect::SaveTail { after });
                }
                out.push(Effect::CutJournal { after });
                self.journal.end = after;
                self.durable = after;
                self.follow(generation, after, theirs, out);
            }
            Plan::Rewind { after } => {
                if !self.naive(Mutation::DiscardTail) {
                    out.push(Effect::SaveTail { after });
                }
                self.copy(generation, out);
            }
            Plan::Netcopy => self.copy(generation, out),
        }
    }

    fn follow(&mut self, generation: Generation, from: Position, theirs: &Hello, out: &mut Vec<Effect>) {
        let Some(session) = self.link.as_ref().map(|link| link.session) else { return };
        let memory_acks =
            self.memory_acks && self.settings.ack_policy == AckPolicy::Received && !self.must_stay_fit_to_lead();
        let history = theirs.history.clone();
        self.amend(out, |identity| {
            identity.history = history;
            identity.leading = false;
            // Once per session, before the first acknowledgement of something that is not durable.
            identity.volatile_acks |= memory_acks;
        });
        out.push(Effect::Follow { session, generation, from, memory_acks });
        self.say(Control::Follow { generation, from }, out);
        if let Some(link) = &mut self.link {
            link.following = true;
        }
    }

    /// The master cannot send what is missing, or the histories differ: compare and fetch everything.
    pub(super) fn copy_from_master(&mut self, out: &mut Vec<Effect>) {
        let promised = self.identity.as_ref().map(|identity| identity.promised);
        // Once a claim is under way nothing may make this copy unfit to lead: the claim may succeed.
        if let (Some(generation), State::Secondary { claim: None }) =
            (self.master().filter(|master| Some(*master) == promised), &self.state)
        {
            let following = self.link.as_mut().is_some_and(|link| std::mem::take(&mut link.following));
            if following {
                out.push(Effect::StopFollowing);
            }
            if self.must_stay_fit_to_lead() {
                if following {
                    // It must not wait for what this member no longer takes.
                    self.say(Control::CannotFollow, out);
                }
                return self.put_off_the_copy();
            }
            self.copy(generation, out);
        }
    }

    fn put_off_the_copy(&mut self) {
        if let Some(link) = &mut self.link {
            link.copy_waits = true;
        }
        // The record that is known may be an old one.
        self.api.look = true;
    }

    fn copy(&mut self, generation: Generation, out: &mut Vec<Effect>) {
        self.state = State::Secondary { claim: None };
        let Some(link) = &mut self.link else { return };
        link.copying = true;
        let session = link.session;
        // Before the first byte is replaced.
        self.amend(out, |identity| (identity.inconsistent, identity.unwitnessed) = (true, false));
        out.push(Effect::StartNetcopyAsTarget { session, generation });
        self.say(Control::CopyMe { generation }, out);
    }

    /// A claim of this copy, perhaps of an earlier life, was not seen to succeed or to be overtaken: it may take effect at any
    /// time.
    pub(super) fn claim_may_take_effect(&self) -> bool {
        let (Some(known), Some(identity)) = (&self.known, &self.identity) else { return false };
        identity.intent > known.record.epoch.max(identity.promised.epoch) && !identity.inconsistent
    }

    /// The record names this copy, or may soon name it, as the only one that may lead. If it became one that cannot, by the
    /// beginning of a copy from the peer, nobody could.
    pub fn must_stay_fit_to_lead(&self) -> bool {
        let (Some(known), Some(identity)) = (&self.known, &self.identity) else { return false };
        let is_newest = known.record.epoch >= identity.promised.epoch;
        let is_the_only = is_newest && known.record.certified.is_only(self.name) && self.is_certified();
        !self.naive(Mutation::CopyDespiteClaim)
            && !identity.inconsistent
            && (is_the_only || self.claim_may_take_effect())
    }

    /// What the peer said on this connection that it leads.
    pub(super) fn master(&self) -> Option<Generation> {
        self.link.as_ref()?.hello.as_ref()?.leads
    }

    pub(super) fn netcopy_done(&mut self, end: Position, out: &mut Vec<Effect>) {
        let State::Secondary { .. } = self.state else { return };
        let Some(hello) = self.link.as_ref().filter(|link| link.copying).and_then(|link| link.hello.clone()) else {
            return;
        };
        let Some(generation) = hello.leads else { return };
        self.journal = JournalFacts { first: end.seq.saturating_add(1), end, applied: end.seq };
        self.durable = end;
        self.compared = Some(generation);
        self.amend(out, |identity| {
            identity.inconsistent = false;
            identity.unverified = false;
            identity.leading = false;
        });
        if let Some(link) = &mut self.link {
            link.copying = false;
        }
        self.follow(generation, end, &hello, out);
    }

    pub(super) fn netcopy_failed(&mut self) {
        if let Some(link) = &mut self.link {
            link.copying = false;
        }
        self.times.copy_not_before = self.times.now.saturating_add(self.settings.interval);
    }

    pub(super) fn pursue_secondary(&mut self, out: &mut Vec<Effect>) {
        let promised = self.identity.as_ref().map(|identity| identity.promised);
        let idle = self.link.as_ref().is_some_and(|link| link.greeted && !link.following && !link.copying);
        let incomplete = self.identity.as_ref().is_some_and(|identity| identity.inconsistent);
        if let Some(generation) = self.master().filter(|master| Some(*master) == promised)
            && idle
            && incomplete
            && self.times.now >= self.times.copy_not_before
        {
            self.copy(generation, out);
        }
        if let State::Secondary { claim: None } = self.state {
            if self.link.as_ref().is_some_and(|link| link.copy_waits) && !self.must_stay_fit_to_lead() {
                // What both are by now decides what is copied.
                self.drop_peer(out);
            }
            self.ask_for_the_lead(out);
            if self.times.now >= self.times.claim_not_before && self.tries_to_claim() {
                self.begin_claim();
            }
        }
    }

    pub(super) fn begin_claim(&mut self) {
        if let State::Secondary { claim: claim @ None } = &mut self.state {
            *claim = Some(Claim::Reading);
        }
    }

    /// A living master hands over without losing a request; only a silent one is overruled.
    fn ask_for_the_lead(&mut self, out: &mut Vec<Effect>) {
        let Some(link) = &self.link else { return };
        let leads = link.hello.as_ref().is_some_and(|hello| hello.leads.is_some());
        let session = link.session;
        // Who could not take the lead must not ask a living master to give it up: nobody would have it then.
        let may = self.is_certified() && self.eligible();
        let Some(nomination) = &mut self.nomination else { return };
        if may && link.following && leads && nomination.asked != Some(session) {
            nomination.asked = Some(session);
            let request = nomination.request.clone();
            self.say(Control::Nominate { request }, out);
        }
    }

    pub(super) fn nominated(&mut self, request: Request, epoch_seen: u64) {
        let Some(known) = &self.known else { return };
        let record = &known.record;
        let done = record.last_request.as_ref() == Some(&request.id);
        let repeated = self.nomination.as_ref().is_some_and(|nomination| nomination.request == request);
        if request.to != self.name || epoch_seen < record.epoch || done || repeated || self.leads().is_some() {
            return;
        }
        self.reason = None;
        self.nomination = Some(Nomination { request, epoch: epoch_seen, asked: None });
        // The operator may know a newer record. The reading decides whether this member can be meant.
        self.api.look = true;
    }

    /// This copy may lead, if the record agrees.
    fn eligible(&self) -> bool {
        let Some(identity) = &self.identity else { return false };
        let dirty = identity.dirty && !self.naive(Mutation::IgnoreDirty);
        !identity.inconsistent && !dirty && identity.quarantine.is_none() && !self.spent && !self.terminating
    }

    fn may_take_a_release(&self) -> bool {
        self.eligible()
            && !self.held
            && (self.nomination.is_some()
                || (self.settings.electable && self.settings.failover == FailoverMode::Automatic))
    }

    /// When to try. Except with Async this is never a question of safety: the compare-and-swap on the marker is.
    fn tries_to_claim(&self) -> bool {
        let (Some(known), Some(identity)) = (&self.known, &self.identity) else { return false };
        let record = &known.record;
        if !self.eligible() {
            return false;
        }
        if record.epoch == 0 {
            return record.founder == self.name;
        }
        // Every start of a master begins a new epoch.
        if record.led_by(self.name) {
            return record.certifies(self.name, &identity.data_id) || self.naive(Mutation::IdentityByName);
        }
        if self.held {
            return false;
        }
        let settings = &self.settings;
        let heard = self.times.master_heard;
        let silent = self.since(heard.unwrap_or(self.times.started));
        let async_wait = settings.protection != Protection::Async
            || self.since(self.times.granted.max(self.times.record_changed).max(self.times.started))
                >= settings.taker_wait;
        let named = record.request.as_ref().is_some_and(|request| request.to == self.name);
        if self.nomination.is_some() {
            return record.master.is_none() || (silent >= settings.peer_timeout() && async_wait);
        }
        // Whoever released leaves the lead to the other for two intervals; then nobody else is there.
        let released = identity.led == record.epoch;
        let waited = self.since(self.times.started.max(self.times.record_changed)) >= settings.peer_timeout();
        if settings.failover == FailoverMode::Manual {
            // To take back what the other did not take is no failover. (By a new pod: the one that released has seen its reign.)
            return record.master.is_none() && (named || (released && waited && settings.electable));
        }
        if !settings.electable {
            return false;
        }
        if record.master.is_none() {
            return named || !released || waited;
        }
        let suspected = match heard {
            Some(_) => silent >= settings.overrules_after() || (self.times.gone && silent >= settings.peer_timeout()),
            // Just started, as the master perhaps did: after a power failure it is preferred.
            None if self.times.gone => silent >= settings.suspicion().max(settings.restart_grace),
            None => silent >= settings.overrules_after().max(settings.restart_grace),
        };
        suspected && async_wait
    }

    /// The record was read for a claim.
    pub(super) fn claim(&mut self, now: Now, out: &mut Vec<Effect>) {
        let (Some(known), Some(identity)) = (&self.known, &self.identity) else { return };
        let record = &known.record;
        let founding = record.epoch == 0 && record.founder == self.name;
        let certified = record.certifies(self.name, &identity.data_id)
            || self.naive(Mutation::ClaimWithoutMarker)
            || (self.naive(Mutation::IdentityByName) && record.certified.get(self.name).is_some());
        // The situation may have changed while the record was read.
        let wanted = self.eligible() && (self.tries_to_claim() || record.master.is_none());
        if !(founding || certified) || !wanted {
            if self.nomination.take().is_some() && !certified {
                self.reason = Some(Reason::NominatedUncertified);
            }
            self.state = State::Secondary { claim: None };
            self.times.claim_not_before = self.times.now.saturating_add(self.settings.interval);
            return;
        }
        let intent = record.epoch.saturating_add(1);
        self.state = State::Secondary { claim: Some(Claim::Writing) };
        // Nothing may be promised from memory any more, and what was promised must be on disk before it is claimed.
        self.memory_acks = false;
        out.push(Effect::EndMemoryAcks);
        if !self.naive(Mutation::ClaimBeforeSync) {
            out.push(Effect::SyncJournal);
        }
        let synced = !self.naive(Mutation::ClaimBeforeSync);
        self.amend(out, |identity| {
            identity.intent = identity.intent.max(intent);
            identity.volatile_acks &= !synced;
        });
        self.write(Purpose::Claim, now, out);
        if self.api.asked.is_none() {
            self.state = State::Secondary { claim: None };
        }
    }

    /// The claim took effect. Nothing of the former master is accepted from here on; the journal is applied to its end
    /// before the first request is served.
    pub(super) fn claimed(&mut self, out: &mut Vec<Effect>) {
        // Otherwise it is met in the next reading as "I lead", and made again.
        if self.state != (State::Secondary { claim: Some(Claim::Writing) }) {
            return;
        }
        let Some(generation) = self.known.as_ref().map(|known| known.record.generation()) else { return };
        let following = self.link.as_ref().is_some_and(|link| link.following);
        if following {
            out.push(Effect::StopFollowing);
        }
        self.amend(out, |identity| {
            identity.promised = generation;
            identity.led = generation.epoch;
        });
        // A new connection begins with new hellos: the former master learns that it is deposed.
        self.drop_peer(out);
        self.nomination = None;
        self.reason = None;
        self.opened = false;
        self.state = State::Opening;
        out.push(Effect::ApplyAll);
    }

    pub(super) fn applied_all(&mut self, end: Position, out: &mut Vec<Effect>) {
        if self.state != State::Opening {
            return;
        }
        self.journal.end = end;
        self.journal.applied = end.seq;
        self.durable = end;
        let pod = self.pod.clone();
        let alone = self.settings.protection != Protection::MaxProtection && !self.naive(Mutation::KeepEpoch);
        self.amend(out, |identity| {
            let generation = identity.promised;
            identity.leading = true;
            identity.clean = false;
            let before = identity.served.take().filter(|served| served.pod == pod);
            let since = before.map_or(generation.epoch, |served| served.since);
            identity.served = Some(Served { pod, since });
            // A reign without operations in this journal leaves no trace.
            identity.history.retain(|span| span.after.seq < end.seq && span.generation != generation);
            identity.history.push(Span { generation, after: end });
            let excess = identity.history.len().saturating_sub(SPANS_MAX);
            identity.history.drain(..excess);
        });
        if alone {
            self.go_alone(out);
        } else {
            self.state = State::Uncertain { since: self.times.now, lost: false, failed: false };
            self.set_rule(self.rule_now(), out);
            out.push(Effect::HoldRequests);
        }
    }

    /// Ends the right to write, at once. Nothing that is journaled is dropped.
    pub(super) fn fence(&mut self, out: &mut Vec<Effect>) {
        let served = self.opened;
        self.fence_data_path(out);
        self.spent |= served;
        if let Some(link) = &mut self.link {
            if link.following {
                out.push(Effect::StopShipping);
            }
            if link.copying {
                out.push(Effect::StopNetcopy);
            }
            (link.following, link.copying) = (false, false);
        }
        self.api.stale = true;
        self.state = State::Fenced;
        if self.terminating {
            self.exit(super::Exit::Terminated, out);
            return;
        }
        // The peer's hello may already say whom to follow; otherwise the next connection will.
        if self.master().is_some() {
            self.drop_peer(out);
        }
    }

    pub(super) fn fence_data_path(&mut self, out: &mut Vec<Effect>) {
        if self.leads().is_some() {
            self.set_rule(crate::AckRule::Nothing, out);
            out.push(Effect::RefuseWrites);
            out.push(Effect::CloseGate);
        }
        self.opened = false;
    }

    pub(super) fn disk_failed(&mut self, out: &mut Vec<Effect>) {
        if let State::Quarantined(Quarantine::JournalCorrupt) = self.state {
            return;
        }
        if self.leads().is_none() && self.link.as_ref().is_some_and(|link| link.following) {
            self.say(Control::CannotFollow, out);
        }
        self.fence_data_path(out);
        self.exit(super::Exit::DiskFailed, out);
    }

    pub(super) fn exit(&mut self, why: super::Exit, out: &mut Vec<Effect>) {
        self.state = State::Stopped;
        out.push(Effect::Exit { why });
    }
}
