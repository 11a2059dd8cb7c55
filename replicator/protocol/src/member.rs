//! The member: what this side of the pair is, and whether it may acknowledge. One pure function, `Member::step`: an event
//! and the present in, effects out. It never waits, never reads a clock, never throws dice; what it wants is carried out by
//! the conductor, and what came of it comes back as an event. The model checks this very code.
//!
//! ```text
//!              Offline
//!                 | Started: boot counted up, record read
//!                 v                      identity, rollback, clone, hole in the journal
//!             Starting ------------------------------------------------------> Quarantined
//!                 |                                                                |
//!                 v                                        Order(Discard): aside, begin anew
//!   +--> Secondary (one state; its names follow from link, copy and marker) <------+
//!   |      Alone     no master           CatchUp  follows, not certified
//!   |      Netcopy   copy not complete   Active   follows, certified
//!   |       |
//!   |       | claim: journal synced, intent persisted, CAS epoch+1 certified={me}
//!   |       v
//!   |   PrimaryOpening        applies its journal to the end
//!   |       |
//!   |       v                 peer caught up: rule first
//!   |   PrimaryAlone --------------------------------> PrimaryJoining
//!   |       ^   \                                      |    ^    |
//!   |       |    (MaxProtection: PrimaryUncertain)     |    |    | CAS certified={me,peer}
//!   |       |                           peer lost      |    |    v
//!   |       | CAS certified={me}   +-------------------+    |  PrimaryActive --> PrimaryDraining
//!   |       |                      v                        |    |    ^ given up     |  |
//!   |       +--------------- PrimaryUncertain --------------+    |    +-------------+  |
//!   |                              ^        peer back: rule first|                     |
//!   |                              +-----------------------------+ peer lost           | CAS master=none
//!   |  follows the new epoch                                                           v
//!   +------------------------------------ Fenced <----- any primary that sees a newer epoch, or has released
//! ```
//!
//! Two orders carry the safety. The rule for acknowledgements is tightened *before* the record says so (Joining), and
//! relaxed only *after* the record says so (Uncertain to Alone). And after a write without an answer only a later
//! successful write settles what happened, never a read.

pub mod effect;
pub mod event;
pub mod settings;

mod primary;
mod secondary;
mod start;
mod store;
mod testify;

#[cfg(test)]
mod tests;

pub use effect::{Effect, Exit, Reason, Snapshot, StateName, Testimony};
pub use event::{Control, Event, Evidence, Facts, JournalFacts, Now, Order};
pub use settings::{AckPolicy, FailoverMode, Protection, Settings};

use crate::handshake::{Hello, PROTOCOL};
use crate::identity::{DataId, Generation, Identity, MemberName, Quarantine};
use crate::record::{Record, Request, Version};
use crate::{AckRule, Position};

/// A rule of the protocol that can be left out, to show that the model finds what it guards against. Without the feature
/// `mutations` nothing can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// N1: claim when the heartbeats stop, whatever the marker says.
    ClaimWithoutMarker,
    /// N2: acknowledge alone before it is recorded.
    AloneBeforeRecord,
    /// N3: publish the peer as certified before its acknowledgement is required.
    RecordBeforeRule,
    /// N4: trust a read after a write without an answer.
    TrustRead,
    /// N5: write the same content again without counting.
    IdenticalWrite,
    /// N6: write without naming the version that is replaced.
    UnconditionalWrite,
    /// N8: a restarted master goes on in its epoch.
    KeepEpoch,
    /// N9: accept operations of an epoch that is over.
    AcceptOldEpoch,
    /// N10, N11: identity is the member's name; the copy of the data is not compared.
    IdentityByName,
    /// N12: memory that was lost does not matter.
    IgnoreDirty,
    /// N13: a diverged tail is cut without saving it.
    DiscardTail,
    /// N16, N17: a volume that went back is not noticed from the record's positions.
    IgnorePositions,
    /// G5: claim before the journal is durable.
    ClaimBeforeSync,
    /// G6: begin a copy although a claim of this member may still take effect.
    CopyDespiteClaim,
}

/// The states that are more than what link and copy say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Offline,
    Starting,
    Secondary {
        claim: Option<Claim>,
    },
    Opening,
    /// `lost`: the peer said itself that it cannot follow; no need to wait for silence.
    Uncertain {
        since: u64,
        lost: bool,
        failed: bool,
    },
    Alone,
    Joining(Joining),
    Active {
        since: u64,
    },
    Draining(Draining),
    Fenced,
    Quarantined(Quarantine),
    Stopped,
}

/// How far a claim is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Claim {
    /// The record is read first, so that the marker is not an old one.
    Reading,
    /// The write is under way.
    Writing,
}

/// How far a peer is being taken in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Joining {
    /// The rule was given to the data path; until it says what it had acknowledged before, more may be acknowledged alone.
    Enforcing,
    /// Everything acknowledged before must reach the peer.
    Waiting { acknowledged: u64 },
    /// The record is being written.
    Recording,
}

/// A hand-over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Draining {
    request: Option<Request>,
    since: u64,
    active_since: u64,
    /// The last operation, once nothing is under way.
    end: Option<u64>,
}

/// The one connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Link {
    session: u64,
    /// When it came up.
    since: u64,
    greeted: bool,
    hello: Option<Box<Hello>>,
    /// Operations flow, in the direction that the roles say.
    following: bool,
    /// A copy was made over it.
    copying: bool,
    /// A copy is needed but must not begin yet; when it may, a new connection does.
    copy_waits: bool,
    received: u64,
    durable: u64,
    /// Newest `sent` of the peer.
    peer_sent: Option<u64>,
    /// When the newest of our heartbeats was sent that the peer has answered; a peer that follows answers each.
    answered: Option<u64>,
    position: Option<Position>,
}

/// The record as last learnt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Known {
    record: Box<Record>,
    version: Version,
}

/// Requests to the API server: one at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Api {
    asked: Option<Asked>,
    /// When it was sent: entitlement counts from here, not from the answer.
    asked_at: u64,
    /// A write had no answer, and no later write has succeeded.
    unsettled: bool,
    /// The known version is not the stored one any more: read before writing.
    stale: bool,
    /// Not before.
    retry_at: u64,
    unreachable: bool,
    missing: bool,
    /// Something was said that the known record does not show yet.
    look: bool,
}

/// What was asked of the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Asked {
    Read,
    Write(Purpose, Box<Record>),
}

/// What a write of the record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Purpose {
    /// A new epoch.
    Claim,
    /// `certified = {me}`.
    Alone,
    /// `certified = {me, peer}`.
    Both,
    /// `master = none`.
    Release,
    /// Nothing but the proof that it could be written, and the positions.
    Renew,
    /// Nothing at all: a claim without an answer cannot take effect any more.
    Settle,
}

/// Times, all of `Now::millis`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Times {
    now: u64,
    started: u64,
    /// The peer said anything; once the connection is gone, no later than it is known to have heard us.
    peer_heard: u64,
    /// The peer said anything as master of the newest generation known.
    master_heard: Option<u64>,
    /// Positive evidence that the master's process is gone, since it was heard last.
    gone: bool,
    beat: u64,
    record_changed: u64,
    /// Last promise to the master not to claim for a while.
    granted: u64,
    /// Send time of the last renewal that was confirmed, or of the newest heartbeat that the peer granted.
    entitled: Option<u64>,
    renewed: u64,
    /// Not before, a pair that flaps is joined again.
    join_not_before: u64,
    claim_not_before: u64,
    copy_not_before: u64,
}

/// A nomination that has not been carried out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Nomination {
    request: Request,
    /// Of the record that it was made for: a later reign ends it.
    epoch: u64,
    /// The master was asked on this connection.
    asked: Option<u64>,
}

/// One side of the pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    name: MemberName,
    settings: Settings,
    #[cfg(feature = "mutations")]
    mutation: Option<Mutation>,
    state: State,
    identity: Option<Identity>,
    volume: String,
    has_files: bool,
    node_boot: String,
    pod: String,
    journal: JournalFacts,
    /// Of the own journal.
    durable: Position,
    known: Option<Known>,
    api: Api,
    link: Option<Link>,
    times: Times,
    /// The rule that the data path was given last.
    rule: AckRule,
    nomination: Option<Nomination>,
    memory_acks: bool,
    /// The gate was opened in this epoch.
    opened: bool,
    /// This pod's application saw an earlier reign: no other one through the same mount.
    spent: bool,
    /// What a volume that was discarded in this process knew of its pod.
    served: Option<crate::identity::Served>,
    /// The reign in which this copy was last compared with its master's, in this life.
    compared: Option<Generation>,
    /// The copy that asked to be compared with ours, in this life.
    compares: Option<DataId>,
    held: bool,
    terminating: bool,
    reason: Option<Reason>,
    /// Asked for by the operator; given once a reading has shown that the record is gone.
    testimony_for: Option<Generation>,
}

impl Member {
    /// A member that has not started yet.
    pub fn new(name: MemberName, settings: Settings) -> Self {
        Self {
            name,
            settings,
            #[cfg(feature = "mutations")]
            mutation: None,
            state: State::Offline,
            identity: None,
            volume: String::new(),
            has_files: false,
            node_boot: String::new(),
            pod: String::new(),
            journal: JournalFacts::default(),
            durable: Position::default(),
            known: None,
            api: Api::default(),
            link: None,
            times: Times::default(),
            rule: AckRule::Nothing,
            nomination: None,
            memory_acks: false,
            opened: false,
            spent: false,
            served: None,
            compared: None,
            compares: None,
            held: false,
            terminating: false,
            reason: None,
            testimony_for: None,
        }
    }

    /// A member that leaves a rule out. For the model only.
    #[cfg(feature = "mutations")]
    pub fn mutated(name: MemberName, settings: Settings, mutation: Option<Mutation>) -> Self {
        Self { mutation, ..Self::new(name, settings) }
    }

    /// From here on this member leaves another rule out, or none. For the model only.
    #[cfg(feature = "mutations")]
    pub fn leave_out(&mut self, mutation: Option<Mutation>) {
        self.mutation = mutation;
    }

    /// For the model: makes states equal that differ only in when something happened, or in what is told about it.
    #[cfg(feature = "mutations")]
    pub fn forget_times(&mut self) {
        let heard = self.times.master_heard.map(|_| 0);
        let entitled = self.times.entitled.map(|_| 0);
        // 0 means that no heartbeat was sent on this connection: that one is due at once.
        let beat = self.times.beat.min(1);
        // A claim that got no answer is not made again before time passes: until then this member may be met.
        let claim_not_before = self.times.claim_not_before.min(1);
        let gone = self.times.gone;
        self.times = Times { gone, master_heard: heard, entitled, beat, claim_not_before, ..Times::default() };
        self.reason = None;
        self.api.unreachable = false;
        self.api.asked_at = 0;
        self.api.retry_at = 0;
        if let Some(link) = &mut self.link {
            link.since = 0;
            link.peer_sent = link.peer_sent.map(|_| 0);
            link.answered = link.answered.map(|_| 0);
        }
        match &mut self.state {
            State::Uncertain { since, .. } | State::Active { since } => *since = 0,
            State::Draining(draining) => (draining.since, draining.active_since) = (0, 0),
            State::Offline
            | State::Starting
            | State::Secondary { .. }
            | State::Opening
            | State::Alone
            | State::Joining(_)
            | State::Fenced
            | State::Quarantined(_)
            | State::Stopped => {}
        }
    }

    /// Whether a rule is left out. Never in the product.
    #[cfg(feature = "mutations")]
    fn naive(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Whether a rule is left out. Never in the product.
    #[cfg(not(feature = "mutations"))]
    fn naive(&self, _mutation: Mutation) -> bool {
        false
    }

    /// Takes one event and says what is to be done.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let before = self.snapshot();
        // A clock that went back would stretch every wait; treat it as standing still.
        self.times.now = self.times.now.max(now.millis);
        let mut out = Vec::new();
        self.take(event, now, &mut out);
        self.pursue(now, &mut out);
        let after = self.snapshot();
        if after != before {
            out.push(Effect::Report(Box::new(after)));
        }
        out
    }

    fn take(&mut self, event: Event, now: Now, out: &mut Vec<Effect>) {
        if self.state == State::Stopped {
            if matches!(event, Event::DiskFailed) {
                // One of its last steps failed, and what came after it, the end itself, was not carried out.
                out.push(Effect::Exit { why: Exit::DiskFailed });
            }
            return;
        }
        match event {
            Event::Started(facts) => self.started(*facts, out),
            Event::SettingsChanged(settings) => self.settings_changed(*settings, out),
            Event::Tick => {}
            Event::RecordRead { record, version } => self.record_read(record, version, now, out),
            Event::RecordMissing => self.record_missing(out),
            Event::RecordSeen { record, version } => {
                self.learn(record, version, out);
            }
            Event::RecordWritten { version } => self.record_written(version, out),
            Event::RecordConflict => self.record_refused(false),
            Event::RecordUnknown => self.record_refused(true),
            Event::PeerUp { session, journal } => self.peer_up(session, journal, out),
            Event::PeerDown { session, evidence } => self.peer_down(session, evidence, out),
            Event::PeerMessage { session, message } => self.peer_message(session, message, out),
            Event::PeerAck { session, received, durable } => self.peer_ack(session, received, durable),
            Event::LocalDurable(position) => {
                if position.seq > self.durable.seq {
                    self.durable = position;
                }
            }
            Event::RuleSet { rule, acknowledged } => self.rule_set(rule, acknowledged, out),
            Event::Held { end } => self.all_held(end, out),
            Event::AppliedAll { end } => self.applied_all(end, out),
            Event::ShippingImpossible { session } => self.shipping_impossible(session, out),
            Event::CutImpossible => self.copy_from_master(out),
            Event::NoRoomAside => self.quarantine(Quarantine::NeedsSpace, out),
            Event::NetcopyDone { end } => self.netcopy_done(end, out),
            Event::NetcopyFailed => self.netcopy_failed(),
            Event::Nominated { request, epoch_seen } => self.nominated(request, epoch_seen),
            Event::Testify(generation) => self.asked_to_testify(generation),
            Event::Testified(journal) => self.testified(journal, out),
            Event::Order(order) => self.ordered(order, out),
            Event::Terminate => self.terminate(out),
            Event::DiskFailed => self.disk_failed(out),
        }
    }

    /// What follows from the present state and time alone: greetings, heartbeats, timeouts, and at most one API request.
    fn pursue(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.greet(out);
        match self.state {
            State::Secondary { .. } | State::Fenced => self.pursue_secondary(out),
            State::Uncertain { .. } | State::Alone | State::Joining(_) | State::Active { .. } | State::Draining(_) => {
                self.pursue_primary(out);
            }
            State::Offline | State::Starting | State::Opening | State::Quarantined(_) | State::Stopped => {}
        }
        self.beat(out);
        self.ask(now, out);
    }

    /// What this member is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: self.state_name(),
            generation: self.identity.as_ref().map(|identity| identity.promised).unwrap_or_default(),
            serving: self.serving(),
            certified: self.is_certified(),
            linked: self.link.as_ref().is_some_and(|link| link.hello.is_some()),
            pod_spent: self.spent,
            reason: self.current_reason(),
            highest_epoch: self.identity.as_ref().filter(|_| self.can_testify()).map(Identity::highest_epoch),
            testimony: self.testimony(),
        }
    }

    /// The state by its published name.
    pub fn state_name(&self) -> StateName {
        match &self.state {
            State::Offline => StateName::Offline,
            State::Starting => StateName::Starting,
            State::Secondary { .. } => {
                let following = self.link.as_ref().is_some_and(|link| link.following);
                if self.identity.as_ref().is_some_and(|identity| identity.inconsistent) {
                    StateName::SecondaryNetcopy
                } else if !following {
                    StateName::SecondaryAlone
                } else if self.is_certified() {
                    StateName::SecondaryActive
                } else {
                    StateName::SecondaryCatchUp
                }
            }
            State::Opening => StateName::PrimaryOpening,
            State::Uncertain { .. } => StateName::PrimaryUncertain,
            State::Alone => StateName::PrimaryAlone,
            State::Joining(_) => StateName::PrimaryJoining,
            State::Active { .. } => StateName::PrimaryActive,
            State::Draining(_) => StateName::PrimaryDraining,
            State::Fenced => StateName::Fenced,
            State::Quarantined(_) => StateName::Quarantined,
            State::Stopped => StateName::Stopped,
        }
    }

    /// The durable identity, once there is one.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The record as last learnt.
    pub fn record(&self) -> Option<&Record> {
        self.known.as_ref().map(|known| &*known.record)
    }

    /// A nomination that was neither carried out nor given up yet.
    pub fn nomination(&self) -> Option<&Request> {
        self.nomination.as_ref().map(|nomination| &nomination.request)
    }

    /// The rule that the data path was given last.
    pub fn ack_rule(&self) -> AckRule {
        self.rule
    }

    fn current_reason(&self) -> Option<Reason> {
        if let State::Quarantined(why) = self.state {
            Some(Reason::Quarantined(why))
        } else if let State::Uncertain { failed: true, .. } = self.state {
            Some(Reason::HeldTooLong)
        } else if self.api.missing {
            Some(Reason::RecordMissing)
        } else if self.api.unreachable {
            Some(Reason::RecordUnreachable)
        } else if self.identity.as_ref().is_some_and(|identity| identity.dirty) {
            Some(Reason::Dirty)
        } else if self.link.is_none() && self.identity.as_ref().is_some_and(|identity| identity.inconsistent) {
            Some(Reason::CopyIncomplete)
        } else if self.certificate_of_other_data() {
            Some(Reason::CertificateOfOtherData)
        } else if self.link.as_ref().is_some_and(|link| link.copy_waits) {
            Some(Reason::CopyWaits)
        } else {
            self.reason
        }
    }

    /// The record certifies a copy under this member's name that is not this one.
    fn certificate_of_other_data(&self) -> bool {
        let (Some(known), Some(identity)) = (&self.known, &self.identity) else { return false };
        known.record.certified.get(self.name).is_some_and(|certificate| certificate.data_id != identity.data_id)
    }

    fn is_certified(&self) -> bool {
        let (Some(known), Some(identity)) = (&self.known, &self.identity) else { return false };
        known.record.certifies(self.name, &identity.data_id)
    }

    /// This member leads its promised generation, whether it serves already or not.
    fn leads(&self) -> Option<Generation> {
        match self.state {
            State::Opening
            | State::Uncertain { .. }
            | State::Alone
            | State::Joining(_)
            | State::Active { .. }
            | State::Draining(_) => self.identity.as_ref().map(|identity| identity.promised),
            State::Offline
            | State::Starting
            | State::Secondary { .. }
            | State::Fenced
            | State::Quarantined(_)
            | State::Stopped => None,
        }
    }

    fn serving(&self) -> Option<u64> {
        if self.opened { self.leads().map(|generation| generation.epoch) } else { None }
    }

    fn since(&self, then: u64) -> u64 {
        self.times.now.saturating_sub(then)
    }

    fn persist(&self, out: &mut Vec<Effect>) {
        if let Some(identity) = &self.identity {
            out.push(Effect::PersistIdentity(Box::new(identity.clone())));
        }
    }

    /// Changes the identity and, if that changed anything, writes it durably.
    fn amend(&mut self, out: &mut Vec<Effect>, change: impl FnOnce(&mut Identity)) {
        if let Some(identity) = &mut self.identity {
            let before = identity.clone();
            change(identity);
            if *identity != before {
                out.push(Effect::PersistIdentity(Box::new(identity.clone())));
            }
        }
    }

    fn set_rule(&mut self, rule: AckRule, out: &mut Vec<Effect>) {
        if self.rule != rule {
            self.rule = rule;
            out.push(Effect::SetAckRule(rule));
        }
    }

    fn say(&self, message: Control, out: &mut Vec<Effect>) {
        if let Some(link) = &self.link {
            out.push(Effect::SendPeer { session: link.session, message });
        }
    }

    fn drop_peer(&mut self, out: &mut Vec<Effect>) {
        if let Some(link) = self.link.take() {
            out.push(Effect::DropPeer { session: link.session });
        }
    }

    fn hello(&self) -> Option<Hello> {
        let identity = self.identity.as_ref()?;
        Some(Hello {
            protocol: PROTOCOL,
            pair: identity.pair,
            member: self.name,
            data_id: identity.data_id.clone(),
            boot: identity.boot,
            promised: identity.promised,
            leads: self.leads(),
            first: self.journal.first,
            end: self.journal.end,
            history: identity.history.clone(),
            inconsistent: identity.inconsistent,
            unverified: identity.unverified,
        })
    }

    /// Says hello on a connection that has not heard it. Not before the record was read, and not while opening: a hello
    /// tells where the journal ends, and that moves until the journal is applied.
    fn greet(&mut self, out: &mut Vec<Effect>) {
        let ready = match self.state {
            State::Secondary { .. }
            | State::Uncertain { .. }
            | State::Alone
            | State::Joining(_)
            | State::Active { .. }
            | State::Draining(_)
            | State::Fenced => true,
            State::Offline | State::Starting | State::Opening | State::Quarantined(_) | State::Stopped => false,
        };
        let Some(hello) = self.hello() else { return };
        let Some(link) = &mut self.link else { return };
        if ready && !link.greeted {
            link.greeted = true;
            out.push(Effect::SendPeer { session: link.session, message: Control::Hello(Box::new(hello)) });
            // The peer's hello may have come first.
            if let Some(theirs) = link.hello.clone() {
                self.meet(&theirs, out);
            }
        }
    }

    fn beat(&mut self, out: &mut Vec<Effect>) {
        if self.since(self.times.beat) < self.settings.heartbeat() && self.times.beat != 0 {
            return;
        }
        let Some(identity) = &self.identity else { return };
        let Some(link) = &self.link else { return };
        if !link.greeted || link.hello.is_none() {
            return;
        }
        // The echo promises the master of Async not to claim for a while: only one that follows may promise it.
        // And not one that may come to lead by a claim made before: it would not wait for its promise to run out.
        let may_lead = self.settings.protection == Protection::Async && self.must_stay_fit_to_lead();
        let grants = link.following && self.leads().is_none() && !may_lead;
        let echo = if grants { link.peer_sent } else { None };
        out.push(Effect::SendPeer {
            session: link.session,
            message: Control::Heartbeat {
                generation: identity.promised,
                sent: self.times.now,
                echo,
                position: self.durable,
            },
        });
        self.times.beat = self.times.now.max(1);
        if echo.is_some() {
            self.times.granted = self.times.now;
        }
    }
}
