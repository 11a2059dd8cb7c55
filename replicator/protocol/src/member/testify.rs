//! The record is gone: deleted by mistake, or with the API server's storage. Nobody knows any more who was certified, so
//! nobody may lead by himself: a member that was left behind would begin anew with less than was acknowledged. But the two
//! together know enough. Each promises to accept nothing older than a new epoch, stops for good whatever it did in an older
//! one, and says where its journal ends; whoever has the fuller journal holds everything that was acknowledged, for each
//! reign began with a journal that did, and only its own operations came after that.

use super::{Effect, Member, State, Testimony};
use crate::Position;
use crate::identity::{Generation, Seen};
use crate::member::event::JournalFacts;

impl Member {
    /// The operator finds no record. Whether there is one shows in a reading of our own.
    pub(super) fn asked_to_testify(&mut self, generation: Generation) {
        let newer = self.identity.as_ref().is_some_and(|identity| {
            // Promised, and ended before it could say where its journal ends.
            let again = identity.promised == generation && identity.testified != Some(generation);
            generation.epoch > identity.highest_epoch() || again
        });
        let able = match self.state {
            State::Starting
            | State::Secondary { .. }
            | State::Uncertain { .. }
            | State::Alone
            | State::Joining(_)
            | State::Active { .. }
            | State::Draining(_)
            | State::Fenced => true,
            // While it opens it acknowledges nothing, and soon it does something else.
            State::Opening | State::Offline | State::Quarantined(_) | State::Stopped => false,
        };
        if newer && able && self.can_testify() && !self.terminating {
            self.testimony_for = Some(generation);
        }
    }

    /// Whether this volume is the one that this member's copy has always been on.
    pub(super) fn can_testify(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| !identity.unwitnessed && identity.data_id.volume == self.volume)
    }

    /// The record is gone for certain: ends everything that rests on it, promises, and then looks where the journal ends.
    pub(super) fn testify(&mut self, out: &mut Vec<Effect>) {
        let Some(generation) = self.testimony_for.take() else { return };
        let unable = matches!(self.state, State::Opening | State::Quarantined(_) | State::Stopped);
        // Whoever ends testifies in the next life.
        if self.identity.is_none() || unable || self.terminating {
            return;
        }
        let led = self.leads().is_some();
        self.spent |= self.opened;
        self.fence_data_path(out);
        if let Some(link) = &self.link {
            if led {
                out.push(Effect::StopShipping);
            } else if link.following {
                out.push(Effect::StopFollowing);
            }
            if link.copying {
                out.push(Effect::StopNetcopy);
            }
        }
        self.drop_peer(out);
        self.memory_acks = false;
        out.push(Effect::EndMemoryAcks);
        // What was acknowledged from memory counts only if it is there after any crash.
        out.push(Effect::SyncJournal);
        self.amend(out, |identity| {
            identity.promised = generation;
            // An older record that somebody puts back is recognised as one.
            identity.seen = Seen { epoch: generation.epoch, nonce: generation.nonce, wseq: 0 };
            identity.volatile_acks = false;
        });
        out.push(Effect::Testify);
        self.nomination = None;
        self.known = None;
        // What is there when the new record comes is judged as at any start.
        self.state = State::Starting;
    }

    /// Nothing comes after this that anybody will be told is safe.
    pub(super) fn testified(&mut self, journal: JournalFacts, out: &mut Vec<Effect>) {
        if self.state != State::Starting || self.known.is_some() {
            return;
        }
        self.journal = journal;
        self.durable = journal.end;
        self.amend(out, |identity| identity.testified = Some(identity.promised));
    }

    /// What is sworn, for as long as there is no record.
    pub(super) fn testimony(&self) -> Option<Testimony> {
        let identity = self.identity.as_ref().filter(|_| self.state == State::Starting && self.can_testify())?;
        let generation = identity.testified?;
        let position: Position = self.journal.end;
        Some(Testimony { generation, position, whole: !identity.inconsistent && !identity.dirty })
    }
}
