//! Netcopy over the link: the task on either side that moves its messages. What they mean is in `netcopy`.
//!
//! When the files are there the source ships its journal from the position of the list; the target follows, and is done
//! when the journal shows on the volume up to the last position that the source read. Then the connection is ended: the
//! next one begins with an ordinary agreement about where to go on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use tandem_protocol::Position;
use tandem_protocol::identity::Generation;
use tandem_protocol::member::event::Event;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::copies::Moved;
use super::{Conductor, Note};
use crate::clock;
use crate::crew::blocking;
use crate::link::{Bulk, LinkHandle};
use crate::netcopy::{Copied, NetcopyError, Source, Step, Target, from_bytes, to_bytes};
use crate::receive::Following;
use crate::volume;

/// A copy of which not a byte moves for so long is given up, where the owner has not said otherwise.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a copy that failed for a reason of this member's is not begun again.
const AGAIN: Duration = Duration::from_secs(1);
/// Where the state of the last copy is remembered.
pub(super) const MEMORY: &str = "netcopy";

/// A copy under way.
pub(super) struct Copy {
    /// The connection.
    pub(super) session: u64,
    task: JoinHandle<()>,
    moved: Arc<Mutex<Moved>>,
}

impl Copy {
    pub(super) fn stop(self) {
        self.task.abort();
    }

    pub(super) fn moved(&self) -> Moved {
        *self.moved.lock()
    }
}

impl Conductor {
    /// Copies the volume to the peer while it is served.
    pub(super) fn start_source(&mut self, session: u64) {
        if let Some(copy) = self.stages.copy.take() {
            copy.stop();
        }
        if let Err(why) = self.begin_source(session) {
            tracing::error!(why, "a copy could not begin");
            self.copies.failed(&why, clock::stamp());
            // Otherwise the peer would wait for it as long as the connection stands.
            self.link.close(session, "the copy could not begin");
        }
    }

    fn begin_source(&mut self, session: u64) -> Result<(), String> {
        let (Some(journal), Some(volume)) = (self.stages.journal.clone(), self.stages.volume.clone()) else {
            return Err("this member has no volume to copy".into());
        };
        let manifest = match (&self.stages.capture, &self.stages.applier) {
            (Some(capture), _) => {
                let _still = capture.stand_still();
                volume.snapshot(journal.end())
            }
            // A master that may not open without its peer: what it shows is its whole journal.
            (None, Some(applier)) => applier.at_rest(|position| volume.snapshot(position)),
            (None, None) => volume.snapshot(journal.end()),
        };
        let end = {
            let journal = Arc::clone(&journal);
            move || journal.end().seq
        };
        let mut source = Source::new(volume, manifest, end).map_err(|error| error.to_string())?;
        let position = source.position();
        let identity = self.member.identity();
        let life = identity.map_or(0, |identity| identity.boot);
        let epoch = self.member.snapshot().generation.epoch;
        self.copies.begin(epoch, position.seq, life, 0, clock::monotonic(), clock::stamp());
        let id = self.copies.told().map(|told| told.id.clone()).unwrap_or_default();
        tracing::info!(id, from = position.seq, "a copy begins");
        let moved = Arc::new(Mutex::new(Moved::default()));
        let (link, bulk, shown, notes) =
            (self.link.clone(), Arc::clone(&self.bulk), Arc::clone(&moved), self.notes.clone());
        let task = tokio::spawn(async move {
            let measured = blocking(move || {
                source.measure();
                Ok(source)
            });
            let mut lane = bulk.lock().await;
            let Some(lane) = lane.as_mut() else { return };
            let sent = match measured.await {
                Ok(source) => send(source, &link, session, lane, &shown).await,
                Err(reason) => Err(NetcopyError::Io { doing: "look at the files", reason }),
            };
            let note = match sent {
                Ok(()) => Note::CopySent { session, position },
                Err(error) => Note::CopyBroke { session, why: error.to_string() },
            };
            // Fails only after the loop has ended.
            notes.send(note).ok();
        });
        self.stages.copy = Some(Copy { session, task, moved });
        Ok(())
    }

    /// The copy to the peer broke off, by itself or because nothing moved.
    pub(super) fn copy_broke(&mut self, session: u64, why: &str) {
        let Some(copy) = self.stages.copy.take_if(|copy| copy.session == session) else { return };
        tracing::warn!(why, "the copy broke off");
        copy.stop();
        self.copies.interrupted(why, clock::stamp());
        // The peer asks again on the next connection, and keeps what it has.
        self.link.close(session, "the copy broke off");
    }

    /// Sees whether the copy to the peer moves.
    pub(super) fn watch_copy(&mut self) {
        let (now, copying) = (clock::monotonic(), self.copies.is_copying());
        let running = self.stages.copy.as_ref().filter(|_| copying).map(|copy| (copy.session, copy.moved()));
        if let Some((_, moved)) = running {
            self.copies.progress(moved, now);
        }
        let patience = self.chosen.stall_timeout.unwrap_or(STALL_TIMEOUT);
        match (self.copies.stalled(patience, now), running) {
            (Some(why), Some((session, _))) => {
                self.copies.failed(&why, clock::stamp());
                self.copy_broke(session, &why);
            }
            (Some(why), None) => self.copies.failed(&why, clock::stamp()),
            (None, _) => {}
        }
    }

    /// Keeps what is told about the last copy, so that a restart goes on telling it.
    pub(super) async fn remember_copy(&mut self) {
        let told = self.copies.told();
        let mark = told.map(|told| (told.id.clone(), told.phase));
        if mark == self.copy_kept {
            return;
        }
        let (memory, told) = (self.memory.clone(), told.cloned());
        let kept = blocking(move || match told {
            Some(told) => memory.keep(MEMORY, &told),
            None => memory.forget(MEMORY),
        });
        match kept.await {
            Ok(()) => self.copy_kept = mark,
            // Nothing relies on it but what people are told after a restart.
            Err(error) => {
                tracing::warn!(%error, "the state of the copy cannot be remembered");
                self.copy_kept = mark;
            }
        }
    }

    /// Takes a copy of the master's volume.
    pub(super) fn start_target(&mut self, session: u64, generation: Generation) {
        tracing::info!(epoch = generation.epoch, "a copy is taken");
        if let Some(copy) = self.stages.copy.take() {
            copy.stop();
        }
        let Some(journal) = self.stages.journal.clone() else { return self.tell(Event::NetcopyFailed) };
        *self.allow.lock() = None;
        let held = match (self.stages.applier.take(), self.stages.volume.take()) {
            (Some(applier), Some(volume)) => {
                let position = applier.stop();
                Some(volume.snapshot(position))
            }
            (None, Some(volume)) => Some(volume.snapshot(journal.end())),
            (_, None) => None,
        };
        let used = Arc::clone(&journal);
        let settle = {
            let journal = Arc::clone(&journal);
            Box::new(move |position| journal.reset(position).map_err(io::Error::other))
        };
        // The journal begins anew: what was behind a checkpoint of the old one may be ahead of it. And one that is still being
        // taken must not replace the copy's.
        let upkeep = std::mem::take(&mut self.upkeep);
        // The member has marked the volume inconsistent, and saved what only it has, before it asked for the copy.
        let target =
            Target::new(&self.given.settings.volume, volume::Options::default(), held, Box::new(|_| Ok(())), settle);
        let moved = Arc::new(Mutex::new(Moved::default()));
        let (link, bulk, shown, notes) =
            (self.link.clone(), Arc::clone(&self.bulk), Arc::clone(&moved), self.notes.clone());
        let task = tokio::spawn(async move {
            let mut lane = bulk.lock().await;
            let Some(lane) = lane.as_mut() else { return };
            upkeep.finish().await;
            let note = match take(target, &link, session, lane, &shown).await {
                Ok(copied) => Note::CopyTaken { session, generation, copied: Box::new(copied) },
                Err(error) => {
                    tracing::warn!(%error, "the copy broke off");
                    if link.current() == Some(session) {
                        // Whatever it was will not have passed at once.
                        tokio::time::sleep(AGAIN).await;
                    }
                    // What the source still sends belongs to this copy: on the same connection the next one would trip over it.
                    link.close(session, "the copy broke off");
                    // A journal that failed once is never used again by this process, nor is a disk.
                    let broken = |reason: &io::Error| reason.raw_os_error() == Some(Errno::IO.raw_os_error());
                    let failed = matches!(&error, NetcopyError::Io { reason, .. } if broken(reason));
                    Note::Event(if failed || !used.is_usable() { Event::DiskFailed } else { Event::NetcopyFailed })
                }
            };
            notes.send(note).ok();
        });
        self.stages.copy = Some(Copy { session, task, moved });
    }

    /// The peer has all files: it goes on with the journal.
    pub(super) fn copy_sent(&mut self, session: u64, position: Position) {
        if self.stages.copy.take_if(|copy| copy.session == session).is_none() {
            // The peer was faster: it follows on another connection already, or asked for another copy.
            return;
        }
        tracing::info!(from = position.seq, "the files were copied; the journal follows");
        self.copies.replaying();
        self.start_shipping(session, position);
    }

    /// All files are there: puts them in the place of what was there, and follows until they are one state.
    pub(super) fn copy_taken(&mut self, session: u64, generation: Generation, copied: Copied) {
        self.stages.copy = None;
        let Some(journal) = self.stages.journal.clone() else { return self.tell(Event::NetcopyFailed) };
        let volume = Arc::new(copied.volume);
        self.allowed.store(copied.position.seq, Ordering::Release);
        if let Err(error) = self.start_applying(&journal, &volume, copied.position.seq) {
            tracing::error!(%error, "the copy cannot be continued");
            return self.tell(Event::DiskFailed);
        }
        #[cfg(test)]
        crate::simulated::stages(None, Some(&volume));
        self.stages.volume = Some(volume);
        let (Some(applier), Some(receiver)) = (&self.stages.applier, &self.stages.receiver) else {
            return self.tell(Event::NetcopyFailed);
        };
        // A copy that is not complete promises nothing.
        let (epoch, nonce) = (generation.epoch, generation.nonce.0);
        let following = Following { session, epoch, nonce, memory_acks: false };
        receiver.follow(following, Arc::clone(&journal));
        let through = copied.through;
        let (mut applied, link, notes) = (applier.applied(), self.link.clone(), self.notes.clone());
        tracing::info!(position = copied.position.seq, through, "the files are there; the journal follows");
        tokio::spawn(async move {
            let complete = tokio::select! {
                biased;
                done = applied.wait_for(|applied| applied.seq >= through || applied.failure.is_some()) =>
                    done.is_ok_and(|applied| applied.failure.is_none()),
                () = link.gone(session) => false,
            };
            notes.send(Note::CopyComplete { session, complete }).ok();
        });
    }

    /// The copy is one state, or its connection is gone before it was.
    pub(super) fn copy_complete(&mut self, session: u64, complete: bool) -> Event {
        if let Some(receiver) = &self.stages.receiver {
            receiver.stop();
        }
        self.link.close(session, "the copy is complete");
        match (&self.stages.journal, complete) {
            (Some(journal), true) => Event::NetcopyDone { end: journal.end() },
            (Some(_) | None, _) => Event::NetcopyFailed,
        }
    }
}

async fn send(
    mut source: Source,
    link: &LinkHandle,
    session: u64,
    lane: &mut mpsc::UnboundedReceiver<Bulk>,
    shown: &Mutex<Moved>,
) -> Result<(), NetcopyError> {
    let mut heard = 0;
    loop {
        // Reading files may wait for the disk.
        let (back, step) = blocking(move || {
            let step = source.step(clock::instant());
            Ok((source, step))
        })
        .await
        .map_err(|reason| NetcopyError::Io { doing: "read the volume", reason })?;
        source = back;
        *shown.lock() = Moved { progress: source.progress(), heard, peer_works: source.waits_for_work() };
        match step? {
            Step::Send(items) => {
                let bytes = to_bytes(&items)?;
                link.send_bulk(session, bytes).await.map_err(|_| NetcopyError::Peer("it is gone"))?;
            }
            Step::Wait => {
                let bulk = next(lane, link, session).await?;
                source.accept(from_bytes(&bulk.bytes)?)?;
                heard += 1;
            }
            Step::Pause(time) => tokio::time::sleep(time).await,
            Step::Finished => return Ok(()),
        }
        // Answers are taken as they come, so that the peer never waits for room.
        while let Ok(bulk) = lane.try_recv() {
            if bulk.session == session {
                source.accept(from_bytes(&bulk.bytes)?)?;
                heard += 1;
            }
        }
    }
}

async fn take(
    mut target: Target,
    link: &LinkHandle,
    session: u64,
    lane: &mut mpsc::UnboundedReceiver<Bulk>,
    shown: &Mutex<Moved>,
) -> Result<Copied, NetcopyError> {
    loop {
        let (back, step) = blocking(move || {
            let step = target.step();
            Ok((target, step))
        })
        .await
        .map_err(|reason| NetcopyError::Io { doing: "write the volume", reason })?;
        target = back;
        shown.lock().progress = target.progress();
        match step? {
            Step::Send(reply) => {
                let bytes = to_bytes(&reply)?;
                link.send_bulk(session, bytes).await.map_err(|_| NetcopyError::Peer("it is gone"))?;
            }
            Step::Wait => {
                let bulk = next(lane, link, session).await?;
                let items = from_bytes(&bulk.bytes)?;
                drop(bulk);
                let (back, taken) = blocking(move || {
                    let taken = target.accept(items);
                    Ok((target, taken))
                })
                .await
                .map_err(|reason| NetcopyError::Io { doing: "write the volume", reason })?;
                target = back;
                taken?;
            }
            Step::Pause(time) => tokio::time::sleep(time).await,
            Step::Finished => return target.into_copied().ok_or(NetcopyError::Peer("it ended before it was complete")),
        }
    }
}

/// The next message of this connection; those of earlier ones are passed over.
async fn next(lane: &mut mpsc::UnboundedReceiver<Bulk>, link: &LinkHandle, session: u64) -> Result<Bulk, NetcopyError> {
    loop {
        tokio::select! {
            // What came before the end is heard first: the peer says that all is there and leaves.
            biased;
            bulk = lane.recv() => match bulk {
                Some(bulk) if bulk.session == session => return Ok(bulk),
                Some(_) => {}
                None => return Err(NetcopyError::Peer("it is gone")),
            },
            () = link.gone(session) => return Err(NetcopyError::Peer("it is gone")),
        }
    }
}
