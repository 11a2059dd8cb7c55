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
pub mod requests;
pub mod resend;
pub mod sequence;
pub mod transport;
pub mod wire;

use std::sync::Arc;

use crate::commit::Commit;
use crate::journal::Journal;
use crate::op::{FileId, Op};
use crate::volume::Volume;

use gate::Gate;
use resend::Answered;
use sequence::Sequencer;

/// The application's file system, to be run by a [`transport::Session`].
pub struct Capture {
    pub(crate) volume: Arc<Volume>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) commit: Arc<Commit>,
    pub(crate) sequencer: Sequencer,
    /// What a predecessor performed and may not have answered.
    pub(crate) answered: Answered,
}

impl Capture {
    /// A file system whose gate is held: requests that change something wait until `open` or `refuse`. `resumed`: the
    /// connection was served before, so requests may come a second time. `on_failure` is called once, when journal and
    /// volume can no longer be kept equal.
    pub fn new(
        volume: Arc<Volume>,
        journal: Arc<Journal>,
        commit: Arc<Commit>,
        resumed: bool,
        on_failure: Box<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        let answered = if resumed { Answered::read(&journal) } else { Answered::default() };
        let sequencer = Sequencer::new(Arc::clone(&volume), Arc::clone(&journal), Gate::default(), on_failure);
        Arc::new(Self { volume, journal, commit, sequencer, answered })
    }

    /// Mutations are performed from now on, in this epoch, whose first record this writes. `dropping`: files without names
    /// that nobody can hold any more are removed, because the application that held them is gone.
    pub fn open(&self, epoch: u64, member: &str, dropping: bool) -> Result<(), rustix::io::Errno> {
        self.volume.begin_epoch(epoch);
        self.sequencer.begin(epoch, member)?;
        if dropping {
            for id in self.volume.orphans() {
                self.drop_file(id);
            }
        }
        self.commit.recover();
        Ok(())
    }

    /// New mutations wait; returns the number of the last operation once none is under way.
    pub fn hold(&self) -> u64 {
        self.sequencer.hold()
    }

    /// Mutations that wait go on.
    pub fn resume(&self) {
        self.sequencer.gate().resume();
        self.commit.recover();
    }

    /// Every mutation and sync is answered EIO, for ever in this process.
    pub fn refuse(&self) {
        self.sequencer.gate().refuse();
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

    /// Removes a file without names. Outside of an open gate it stays: whoever opens next removes it.
    pub(crate) fn drop_file(&self, id: FileId) {
        if !self.sequencer.gate().is_open() {
            return;
        }
        let dropped = self.sequencer.names(0, |turn| {
            // Somebody may have found it again meanwhile, or given it a name.
            if turn.volume().is_held(id) { Ok(()) } else { turn.perform(&Op::Drop { id }) }
        });
        if let Err(errno) = dropped {
            tracing::warn!(id = id.0, %errno, "a file without names stays for now");
        }
    }
}
