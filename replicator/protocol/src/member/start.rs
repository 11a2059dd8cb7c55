//! From the start of a process to its first role: is this volume ours, is it as new as it should be, who was master.

use super::{Claim, Facts, Known, Member, Mutation, State};
use crate::Position;
use crate::identity::{DataId, DataUuid, Generation, Identity, Quarantine, Seen};
use crate::member::Effect;
use crate::member::event::{Now, Order};
use crate::record::{Record, Version};

impl Member {
    pub(super) fn started(&mut self, facts: Facts, out: &mut Vec<Effect>) {
        if self.state != State::Offline {
            return;
        }
        self.times.started = self.times.now;
        self.times.record_changed = self.times.now;
        self.volume = facts.volume;
        self.has_files = facts.has_files;
        self.node_boot = facts.node_boot;
        self.pod = facts.pod;
        self.journal = facts.journal;
        // What recovery read back it also made durable.
        self.durable = facts.journal.end;
        self.identity = facts.identity;
        self.state = State::Starting;
        let node_boot = self.node_boot.clone();
        let end = self.journal.end.seq;
        self.amend(out, |identity| {
            identity.boot = identity.boot.saturating_add(1);
            if identity.node_boot != node_boot {
                // The machine went down: what was not fsynced may be gone.
                identity.dirty |= identity.volatile_acks;
                identity.volatile_acks = false;
                // A master's volume may keep data whose journal record is gone.
                identity.unverified |= identity.leading && !identity.clean;
                identity.node_boot = node_boot;
            }
        });
        if let Some(identity) = &self.identity {
            if identity.leading {
                // A master performs what it journals: everything may show.
                self.journal.applied = self.journal.applied.max(end);
            }
            let stays = identity.quarantine;
            let wrong = identity.member != self.name;
            if let Some(why) = stays {
                self.state = State::Quarantined(why);
                return;
            }
            if wrong {
                self.quarantine(Quarantine::OtherMember, out);
                return;
            }
        }
        if facts.corrupt {
            self.quarantine(Quarantine::JournalCorrupt, out);
        }
    }

    /// The first reading of the record in this process: what role the volume entitles to.
    pub(super) fn begin(&mut self, record: Box<Record>, version: Version, now: Now, out: &mut Vec<Effect>) {
        if self.identity.is_none() {
            let founding = record.epoch == 0 && record.founder == self.name;
            if self.has_files && !founding {
                self.known = Some(Known { record, version });
                self.quarantine(Quarantine::ForeignData, out);
                return;
            }
            // A founder's files are the data. Everybody else begins as an empty copy that was not completed.
            self.mint(&record, !founding, now, out);
        }
        if let Some(why) = self.wrong_with(&record) {
            self.known = Some(Known { record, version });
            self.quarantine(why, out);
            return;
        }
        let moved = self.identity.as_ref().is_some_and(|identity| identity.data_id.volume != self.volume);
        if moved && !self.naive(Mutation::IdentityByName) {
            // Our files on another volume: a snapshot restored into a new claim. Of use as a base for comparison, no more.
            let data_id = DataId { volume: self.volume.clone(), uuid: DataUuid(now.random) };
            self.amend(out, |identity| {
                identity.data_id = data_id;
                identity.inconsistent = true;
                identity.unwitnessed = true;
            });
        }
        self.see(&record, out);
        self.amend(out, |identity| identity.testified = None);
        let led_by_me = record.led_by(self.name);
        self.memory_acks = !led_by_me && !record.certified.is_only(self.name);
        self.notice_reign(&record);
        let naive_master = led_by_me && self.naive(Mutation::KeepEpoch);
        self.known = Some(Known { record, version });
        self.api.stale = false;
        self.state = State::Secondary { claim: None };
        if naive_master {
            self.opened = true;
            self.state = State::Opening;
            out.push(Effect::ApplyAll);
        }
    }

    fn mint(&mut self, record: &Record, inconsistent: bool, now: Now, out: &mut Vec<Effect>) {
        self.identity = Some(Identity {
            pair: record.pair,
            member: self.name,
            data_id: DataId { volume: self.volume.clone(), uuid: DataUuid(now.random) },
            boot: 1,
            node_boot: self.node_boot.clone(),
            promised: record.generation(),
            intent: 0,
            led: 0,
            leading: false,
            clean: true,
            volatile_acks: false,
            dirty: false,
            inconsistent: inconsistent && !self.naive(Mutation::IdentityByName),
            unverified: false,
            quarantine: None,
            seen: Seen::default(),
            history: Vec::new(),
            served: self.served.take(),
            testified: None,
            unwitnessed: inconsistent,
        });
        self.persist(out);
    }

    /// What a human must decide before this volume may take part.
    fn wrong_with(&self, record: &Record) -> Option<Quarantine> {
        let identity = self.identity.as_ref()?;
        if identity.pair != record.pair {
            return Some(Quarantine::OtherPair);
        }
        let seen = identity.seen;
        if (record.epoch, record.wseq) < (seen.epoch, seen.wseq) {
            return Some(Quarantine::RecordRolledBack);
        }
        let same_epoch = |generation: Generation| generation.epoch == record.epoch && generation.epoch > 0;
        if same_epoch(Generation { epoch: seen.epoch, nonce: seen.nonce }) && seen.nonce != record.nonce {
            return Some(Quarantine::TwoHistories);
        }
        if same_epoch(identity.promised) && identity.promised.nonce != record.nonce {
            return Some(Quarantine::TwoHistories);
        }
        if record.certifies(self.name, &identity.data_id) && identity.data_id.volume == self.volume {
            // Not when a human named this copy just now: then it need not have seen the epoch that was made for it.
            if identity.promised.epoch.max(identity.intent) < record.epoch && record.forced_to() != Some(self.name) {
                return Some(Quarantine::VolumeRolledBack);
            }
            let noted = record.positions.get(self.name).copied().unwrap_or_default();
            let order = |position: Position| (position.epoch, position.seq);
            // Nothing is told by a note of a tail that was cut off since: a later epoch began before it ended. Nor about a copy
            // that was not completed: it began with an empty journal, and is no copy to lead with anyway.
            let next = identity.history.iter().find(|span| span.generation.epoch > noted.epoch);
            let of_a_tail = next.is_some_and(|span| span.after.seq < noted.seq);
            let older = order(noted) > order(self.journal.end) && !of_a_tail && !identity.inconsistent;
            if older && !self.naive(Mutation::IgnorePositions) {
                return Some(Quarantine::VolumeRolledBack);
            }
        }
        None
    }

    pub(super) fn quarantine(&mut self, why: Quarantine, out: &mut Vec<Effect>) {
        self.fence_data_path(out);
        self.amend(out, |identity| identity.quarantine = Some(why));
        self.drop_peer(out);
        self.state = State::Quarantined(why);
    }

    pub(super) fn ordered(&mut self, order: Order, out: &mut Vec<Effect>) {
        match order {
            Order::Hold(held) => self.held = held,
            Order::Discard => self.discard(out),
            Order::Resync => {
                if let State::Secondary { claim: None } = self.state
                    && !self.must_stay_fit_to_lead()
                {
                    self.copy_from_master(out);
                }
            }
        }
    }

    /// The user gives up what this volume holds. It is moved aside, not destroyed; what begins anew is an empty copy, or
    /// nothing at all until the record is read again.
    fn discard(&mut self, out: &mut Vec<Effect>) {
        let State::Quarantined(_) = self.state else { return };
        out.push(Effect::SetVolumeAside);
        // The application beside this volume does not become another one: it saw what is given up now.
        let served = self.identity.take().and_then(|identity| identity.served);
        self.served = served.filter(|served| served.pod == self.pod);
        self.spent |= self.served.is_some();
        self.has_files = false;
        self.journal = super::JournalFacts { first: 1, ..Default::default() };
        self.durable = Position::default();
        self.known = None;
        self.state = State::Starting;
    }

    /// A claim is under way.
    pub fn is_claiming(&self) -> bool {
        match &self.state {
            State::Secondary { claim: Some(Claim::Reading | Claim::Writing) } => true,
            State::Secondary { claim: None }
            | State::Offline
            | State::Starting
            | State::Opening
            | State::Uncertain { .. }
            | State::Alone
            | State::Joining(_)
            | State::Active { .. }
            | State::Draining(_)
            | State::Fenced
            | State::Quarantined(_)
            | State::Stopped => false,
        }
    }
}
