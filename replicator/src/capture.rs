//! Serves the application's file system: every request is answered from the volume, every mutation is journaled first.
//!
//! ```text
//! request -> gate -> locks -> check -> journal -> volume -> answer        (a sync waits in `commit` instead)
//! ```
//!
//! What must always hold: the order in the journal is the order of effect; what is not in the journal did not happen on the
//! volume; a mutation is refused or waits as soon as the gate says so, also one that is already on its way.

pub mod acl;
pub mod gate;
pub(crate) mod parking;
pub mod requests;
mod resend;
mod sequence;
pub mod transport;
mod watch;
pub mod wire;

use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use crate::commit::Commit;
use crate::journal::Journal;
use crate::op::{FileId, Op};
use crate::volume::Volume;

use requests::Waiting;
use resend::{Answered, Done};
use sequence::{Sequencer, Stopped};

/// The application's file system, to be run by a [`transport::Session`].
pub struct Capture {
    pub(crate) volume: Arc<Volume>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) commit: Arc<Commit>,
    pub(crate) sequencer: Sequencer,
    since: Option<u64>,
    /// What a predecessor performed and may not have answered: known from the moment the gate opens.
    answered: OnceLock<Answered>,
}

impl Capture {
    /// A file system whose gate is held: requests that change something wait until `open`, `show_only` or `refuse`.
    /// `since`: the first epoch in which a predecessor served this pod, if one did; then requests may come a second time, and
    /// files may be open that nobody here has heard of. `on_failure` is called once, when journal and volume can no longer be kept equal.
    pub fn new(
        volume: Arc<Volume>,
        journal: Arc<Journal>,
        commit: Arc<Commit>,
        since: Option<u64>,
        on_failure: Box<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        let sequencer = Sequencer::new(Arc::clone(&volume), Arc::clone(&journal), on_failure);
        Arc::new(Self { volume, journal, commit, sequencer, since, answered: OnceLock::new() })
    }

    /// Mutations are performed from now on, in this epoch, whose first record this writes. Files without names are removed
    /// if no application can hold them any more, because nobody has served this one before.
    pub fn open(self: &Arc<Self>, epoch: u64, member: &str) -> Result<(), Errno> {
        // Before the first record of the new reign, behind which the predecessor's would not be found.
        if let Some(since) = self.since {
            self.answered.get_or_init(|| Answered::read(&self.journal, since));
        }
        self.volume.begin_epoch(epoch);
        let waiting = self.sequencer.begin(epoch, member, self.since.is_some())?;
        self.commit.recover();
        self.take_up_all(waiting);
        if self.since.is_none() {
            for id in self.volume.orphans() {
                self.drop_file(id);
            }
        }
        Ok(())
    }

    /// New mutations wait; returns the number of the last operation once none is under way.
    pub fn hold(&self) -> u64 {
        self.sequencer.hold()
    }

    /// Mutations that wait go on.
    pub fn resume(self: &Arc<Self>) {
        let waiting = self.sequencer.gate().resume();
        self.commit.recover();
        self.take_up_all(waiting);
    }

    /// They waited long enough: what waits, for the gate or for an acknowledgement, is answered EIO, and so is what comes,
    /// until `open` or `resume`.
    pub fn fail_waiting(&self) {
        refuse_all(self.sequencer.gate().fail_waiting(), Errno::IO);
        self.commit.fail();
    }

    /// Every mutation is answered EROFS until `open`: the other member writes.
    pub fn show_only(&self) {
        refuse_all(self.sequencer.gate().show_only(), Errno::ROFS);
    }

    /// Every mutation and sync is answered EIO, for ever in this process.
    pub fn refuse(&self) {
        refuse_all(self.sequencer.gate().refuse(), Errno::IO);
        self.commit.fail();
    }

    /// The volume that is served.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Nothing is performed while the guard lives: a snapshot of names taken meanwhile is true at the journal's end.
    pub fn stand_still(&self) -> parking_lot::RwLockWriteGuard<'_, ()> {
        self.sequencer.stand_still()
    }

    /// What a predecessor performed of a request that is sent again.
    pub(crate) fn performed_of(&self, unique: u64) -> Option<Done> {
        self.answered.get()?.of(unique)
    }

    /// Removes a file without names, now or when the gate opens. At any other gate it stays: whoever opens one for a new
    /// application removes it.
    pub(crate) fn drop_file(&self, id: FileId) {
        let passage = match self.sequencer.enter(0) {
            Ok(passage) => passage,
            Err(Stopped::Refused(_)) => return,
            Err(Stopped::Held) => {
                if let Some(Waiting::Drop(id)) = self.sequencer.gate().put_down(Waiting::Drop(id)) {
                    self.drop_file(id);
                }
                return;
            }
        };
        let dropped = passage.names(|turn| {
            // Somebody may have found it again meanwhile, or given it a name, or dropped it.
            let volume = turn.volume();
            let is_gone = volume.attributes(id).map_or(true, |found| found.links > 0);
            if is_gone || volume.is_held(id) { Ok(()) } else { turn.perform(&Op::Drop { id }) }
        });
        if let Err(errno) = dropped {
            tracing::warn!(id = id.0, %errno, "a file without names stays for now");
        }
    }

    /// On a thread of its own: whoever opened the gate decides, and must not wait for a disk.
    pub(crate) fn take_up_all(self: &Arc<Self>, waiting: Vec<Waiting>) {
        if waiting.is_empty() {
            return;
        }
        let capture = Arc::clone(self);
        let shared = Arc::new(parking_lot::Mutex::new(waiting));
        let theirs = Arc::clone(&shared);
        let started = std::thread::Builder::new().name("capture-waited".into()).spawn(move || {
            let waiting = std::mem::take(&mut *theirs.lock());
            waiting.into_iter().for_each(|one| capture.take_up(one));
        });
        if let Err(error) = started {
            tracing::warn!(%error, "what waited goes on without a thread of its own");
            let waiting = std::mem::take(&mut *shared.lock());
            waiting.into_iter().for_each(|one| self.take_up(one));
        }
    }
}

fn refuse_all(waiting: Vec<Waiting>, errno: Errno) {
    waiting.into_iter().for_each(|one| one.refuse(errno));
}
