//! What the leading member tells about copies to its peer: which one, how far it is, how the last one ended. Values only;
//! what moves the bytes is in `copy`.
//!
//! ```text
//! Copying -> Replaying -> Completed        Copying, Replaying -> Failed -> (the peer asks again: another id)
//! ```

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tandem_crds::v1alpha1::{Netcopy, NetcopyPhase};

use crate::netcopy::Progress;
use tandem_crds::translation::signed;

/// While the peer arranges files or flushes all of them not a byte need move; it may take so many times the patience.
const OWN_WORK_FACTOR: u32 = 10;

/// What is known of a running copy at an instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) progress: Progress,
    /// Messages that came from the peer.
    pub(super) heard: u64,
    /// The peer works on its own, without saying anything.
    pub(super) peer_works: bool,
}

/// The last or running copy.
#[derive(Debug, Default)]
pub(super) struct Copies {
    told: Option<Netcopy>,
    /// Copies begun by this process.
    count: u64,
    moved: Moved,
    /// When something moved last, or when the connection of a copy that only has to be replayed ended.
    since: Duration,
    connected: bool,
}

impl Copies {
    /// Goes on where another process ended: what was under way then is not any more.
    pub(super) fn recalled(told: Option<Netcopy>, at: Time) -> Self {
        let mut copies = Self { told, ..Self::default() };
        copies.failed("the master's process ended", at);
        copies
    }

    pub(super) fn told(&self) -> Option<&Netcopy> {
        self.told.as_ref()
    }

    /// A copy begins. `life` tells this process of this member from all others, so that no id is ever used again.
    pub(super) fn begin(&mut self, epoch: u64, seq: u64, life: u64, bytes: u64, now: Duration, at: Time) {
        self.failed("the replicant asked for another copy", at.clone());
        self.count += 1;
        let failures = self.told.as_ref().map_or(0, |told| told.failures);
        self.told = Some(Netcopy {
            id: format!("{epoch}-{seq}-{life}.{}", self.count),
            phase: NetcopyPhase::Copying,
            bytes_done: 0,
            bytes_total: signed(bytes),
            started_at: Some(at),
            finished_at: None,
            message: Some("files are compared and copied".into()),
            failures,
        });
        (self.moved, self.since, self.connected) = (Moved::default(), now, true);
    }

    pub(super) fn is_copying(&self) -> bool {
        self.phase() == Some(NetcopyPhase::Copying)
    }

    /// How far it is now.
    pub(super) fn progress(&mut self, moved: Moved, now: Duration) {
        if moved != self.moved {
            self.since = now;
        }
        self.moved = moved;
        if let Some(told) = self.under_way() {
            told.bytes_done = signed(moved.progress.bytes_done);
            // The files grow while they are copied.
            told.bytes_total = signed(moved.progress.bytes.max(moved.progress.bytes_done));
        }
    }

    /// All files are there.
    pub(super) fn replaying(&mut self) {
        let done = signed(self.moved.progress.bytes_done);
        if let Some(told) = self.under_way() {
            told.phase = NetcopyPhase::Replaying;
            (told.bytes_done, told.bytes_total) = (done, done);
            told.message = Some("the files are there; what was written meanwhile follows".into());
        }
    }

    /// The peer may follow, so it is complete, whatever was seen of the way there.
    pub(super) fn completed(&mut self, at: Time) {
        if let Some(told) = self.told.as_mut().filter(|told| told.phase != NetcopyPhase::Completed) {
            told.phase = NetcopyPhase::Completed;
            told.bytes_done = told.bytes_total;
            (told.finished_at, told.message, told.failures) = (Some(at), None, 0);
        }
    }

    /// The connection ended while files were copied. When only the peer's last word is missing, its end may be that word:
    /// a peer that is complete comes back on a new one.
    pub(super) fn interrupted(&mut self, why: &str, at: Time) {
        let Moved { progress, peer_works, .. } = self.moved;
        if peer_works && progress.files_done == progress.files {
            self.replaying();
        } else if self.is_copying() {
            self.failed(why, at);
        }
    }

    /// It will not become anything.
    pub(super) fn failed(&mut self, why: &str, at: Time) {
        if let Some(told) = self.under_way() {
            told.phase = NetcopyPhase::Failed;
            told.finished_at = Some(at);
            told.message = Some(why.chars().take(256).collect());
            told.failures += 1;
        }
    }

    /// The peer's connection came up or ended. While files are copied its end fails the copy; afterwards it is how a copy
    /// ends, so only silence that lasts says something.
    pub(super) fn connected(&mut self, connected: bool, now: Duration) {
        (self.connected, self.since) = (connected, now);
    }

    /// Why a copy is to be given up, if it is.
    pub(super) fn stalled(&self, patience: Duration, now: Duration) -> Option<String> {
        let waited = now.saturating_sub(self.since);
        let seconds = waited.as_secs();
        match self.phase()? {
            NetcopyPhase::Copying => {
                let patience = if self.moved.peer_works { patience * OWN_WORK_FACTOR } else { patience };
                (waited >= patience).then(|| format!("not a byte moved for {seconds} s"))
            }
            NetcopyPhase::Replaying => (!self.connected && waited >= patience)
                .then(|| format!("the replicant has been away for {seconds} s before it was complete")),
            NetcopyPhase::Pending | NetcopyPhase::Completed | NetcopyPhase::Failed => None,
        }
    }

    /// A copy that this member gave is no news once it follows somebody itself.
    pub(super) fn forget(&mut self) {
        self.told = None;
    }

    fn phase(&self) -> Option<NetcopyPhase> {
        self.told.as_ref().map(|told| told.phase)
    }

    fn under_way(&mut self) -> Option<&mut Netcopy> {
        self.told.as_mut().filter(|told| match told.phase {
            NetcopyPhase::Pending | NetcopyPhase::Copying | NetcopyPhase::Replaying => true,
            NetcopyPhase::Completed | NetcopyPhase::Failed => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn moved(bytes_done: u64) -> Moved {
        Moved { progress: Progress { bytes_done, bytes: 100, ..Progress::default() }, ..Moved::default() }
    }

    fn begun() -> Copies {
        let mut copies = Copies::default();
        copies.begin(3, 17, 5, 100, seconds(0), at(0));
        copies
    }

    #[test]
    fn a_copy_is_told_from_its_beginning_to_its_end_and_stays() {
        let mut copies = begun();
        assert_eq!(copies.told().unwrap().id, "3-17-5.1");
        copies.progress(moved(40), seconds(1));
        assert_eq!((copies.told().unwrap().bytes_done, copies.told().unwrap().bytes_total), (40, 100));
        copies.replaying();
        copies.connected(false, seconds(2));
        copies.completed(at(3));
        let told = copies.told().unwrap().clone();
        assert_eq!((told.phase, told.finished_at.clone(), told.failures), (NetcopyPhase::Completed, Some(at(3)), 0));
        copies.completed(at(9));
        copies.failed("nothing", at(9));
        assert_eq!(copies.told(), Some(&told), "a catch-up later is not a copy");
        let recalled = Copies::recalled(Some(told.clone()), at(20));
        assert_eq!(recalled.told(), Some(&told));
    }

    #[test]
    fn what_does_not_move_is_given_up_and_counted_until_one_succeeds() {
        let mut copies = begun();
        copies.progress(moved(1), seconds(30));
        assert_eq!(copies.stalled(PATIENCE, seconds(89)), None);
        copies.progress(moved(1), seconds(90));
        let why = copies.stalled(PATIENCE, seconds(90)).unwrap();
        copies.failed(&why, at(90));
        assert_eq!(copies.stalled(PATIENCE, seconds(300)), None);
        let failed = copies.told().unwrap().clone();
        assert_eq!((failed.phase, failed.failures), (NetcopyPhase::Failed, 1));
        copies.begin(3, 18, 5, 100, seconds(91), at(91));
        let second = copies.told().unwrap();
        assert_ne!(second.id, failed.id);
        assert_eq!((second.phase, second.failures), (NetcopyPhase::Copying, 1));
        copies.replaying();
        copies.completed(at(95));
        assert_eq!(copies.told().unwrap().failures, 0);
    }

    #[test]
    fn a_connection_that_ends_with_the_last_file_may_have_been_the_end() {
        let files = |files_done| Progress { files: 3, files_done, ..Progress::default() };
        for (files_done, phase) in [(2, NetcopyPhase::Failed), (3, NetcopyPhase::Replaying)] {
            let mut copies = begun();
            copies.progress(Moved { progress: files(files_done), heard: 1, peer_works: files_done == 3 }, seconds(1));
            copies.interrupted("the connection broke", at(1));
            assert_eq!(copies.told().unwrap().phase, phase);
            copies.completed(at(2));
            assert_eq!(copies.told().unwrap().phase, NetcopyPhase::Completed, "who follows is complete");
        }
    }

    #[test]
    fn a_peer_that_works_on_its_own_has_more_patience() {
        let mut copies = begun();
        copies.progress(Moved { peer_works: true, ..moved(1) }, seconds(0));
        assert_eq!(copies.stalled(PATIENCE, seconds(599)), None);
        assert!(copies.stalled(PATIENCE, seconds(600)).is_some());
    }

    #[test]
    fn a_replicant_that_goes_away_before_it_is_complete_fails_the_copy_in_the_end() {
        let mut copies = begun();
        copies.replaying();
        assert_eq!(copies.stalled(PATIENCE, seconds(500)), None, "replaying takes what it takes");
        copies.connected(false, seconds(500));
        assert_eq!(copies.stalled(PATIENCE, seconds(559)), None);
        assert!(copies.stalled(PATIENCE, seconds(560)).is_some());
        let ended = Copies::recalled(copies.told().cloned(), at(600));
        assert_eq!(ended.told().unwrap().phase, NetcopyPhase::Failed);
    }
}
