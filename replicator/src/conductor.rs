//! Waits for one event, asks the member, carries out the effects, in their order. Decides nothing, and touches no payload
//! bytes: stages move those. What is slow runs beside the loop and comes back as an event, so that a slow disk or a slow
//! API server never delays a fencing decision; only durable steps that everything after them relies on are waited for.
//!
//! ```text
//! link, record, orders, marks, clock, signals -> event -> Member::step -> effects -> stages
//! ```

mod chosen;
mod copies;
pub mod copy;
pub mod door;
mod obey;
mod upkeep;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tandem_crds::v1alpha1::{NetcopyPhase, SavedAside};
use tandem_protocol::ack::AckRule;
use tandem_protocol::identity::{Generation, Identity, MemberName};
use tandem_protocol::member::effect::{Effect, Exit, Snapshot, StateName};
use tandem_protocol::member::event::{Control, Event, Evidence, Facts, JournalFacts, Now, Order};
use tandem_protocol::member::settings::AckPolicy;
use tandem_protocol::record::{Request, Version};
use tandem_protocol::{Member, Position, Settings};
use tokio::sync::{mpsc, watch};

use crate::apply::{self, Applier, Deed};
use crate::aside::AsideError;
use crate::capture::Capture;
use crate::commit::Commit;
use crate::crew::blocking;
use crate::health::Shown;
use crate::identity::IdentityFile;
use crate::journal::{Journal, JournalError, Options, ReadError};
use crate::link::{self, LinkEvent, LinkHandle, Nack};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::netcopy::Copied;
use crate::receive::{self, Following, ReceiveEvent, Receiver};
use crate::record::{RecordError, RecordKeeper};
use crate::redo::{self, RedoError, Scope};
use crate::report::Account;
use crate::settings::ServeSettings;
use crate::ship::{self, Shipper, Shipping};
use crate::space::{For, Space};
use crate::volume::{self, Volume};
use crate::{aside, boot, chance, checkpoint, clock, plain};

use chosen::Chosen;
use copies::Copies;
use door::Door;
use obey::{Act, Orders};
pub use upkeep::Rhythm;

/// How often time passes for the member.
const TICK: Duration = Duration::from_millis(100);
/// So much of what is kept aside is told, the newest.
const SAVED_SHOWN_MAX: usize = 16;
/// The member hears at most so often how far the journals are durable: for its decisions the latest word is enough, and each
/// wakes this room. Whoever waits for an acknowledgement does not wait for this.
const MARKS_INTERVAL: Duration = Duration::from_millis(5);
/// How long the end of this process waits for the peer to take its last words.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// A disk that takes longer hangs; one that is busy, or full, may take ten seconds and more.
const HANG_MIN: Duration = Duration::from_secs(30);
/// A testimony that is not given yet is asked for again.
const TESTIFY_AGAIN: Duration = Duration::from_secs(1);

/// Why a member could not begin, or had to end.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ConductorError {
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: io::Error },
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    #[error("the volume cannot be read: {0}")]
    Volume(rustix::io::Errno),
}

/// Why an effect was not carried out; the rest of its batch is not either.
enum Undone {
    /// A durable step failed.
    Failed(io::Error),
    /// The member was told what stands in the way.
    Answered,
}

impl From<io::Error> for Undone {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

fn on(doing: &'static str) -> impl FnOnce(io::Error) -> ConductorError {
    move |source| ConductorError::Io { doing, source }
}

/// What a person or the operator wants of this member, as `report` or a file hands it in.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Settings in force.
    pub settings: Option<Settings>,
    /// The newest nomination of this member, with the epoch it was made for.
    pub nomination: Option<(Request, u64)>,
    /// Orders by their tokens.
    pub orders: Vec<(String, Order)>,
    /// By the token of a `Discard`: what it throws away of what is kept aside.
    pub given_up: Vec<(String, Vec<String>)>,
    /// The record is gone, and this is to be promised for a new one.
    pub testify: Option<Generation>,
    /// A copy of which not a byte moves for so long is given up; `None`: the default.
    pub stall_timeout: Option<Duration>,
    /// Generation of the object that says so.
    pub generation: Option<i64>,
}

/// Called with an epoch: the read/write Service is to lead here.
pub type ClaimService = Arc<dyn Fn(u64) + Send + Sync>;

/// Lets the applier of the moment go on up to a record.
type Allow = Box<dyn Fn(u64) + Send + Sync>;

/// What the conductor is given.
pub struct Given {
    /// The command line.
    pub settings: ServeSettings,
    /// The record.
    pub keeper: Arc<dyn RecordKeeper>,
    /// What is wished for, as it changes.
    pub wishes: watch::Receiver<Wishes>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is shown to the outside.
    pub shown: Arc<Shown>,
    /// What only the report says.
    pub account: watch::Sender<Account>,
    /// Points the read/write Service here for an epoch.
    pub claim_service: ClaimService,
    /// The application's mount.
    pub door: Arc<Door>,
    /// The mount was served before by a process that is gone.
    pub resumed: bool,
    /// Ends when this process is asked to end.
    pub terminated: BoxFuture<'static, ()>,
    /// How the journal and its checkpoints are laid out.
    pub upkeep: Rhythm,
}

/// What comes back from whatever runs beside the loop.
enum Note {
    /// For the member.
    Event(Event),
    /// The peer has all files of a copy.
    CopySent { session: u64, position: Position },
    /// A copy to the peer broke off.
    CopyBroke { session: u64, why: String },
    /// All files of a copy are here.
    CopyTaken { session: u64, generation: Generation, copied: Box<Copied> },
    /// A copy is one state, or never will be.
    CopyComplete { session: u64, complete: bool },
    /// A record can never be performed.
    CannotApply { why: String },
}

/// The stages, as far as they exist at the moment.
struct Stages {
    journal: Option<Arc<Journal>>,
    volume: Option<Arc<Volume>>,
    applier: Option<Applier>,
    /// Of the applier.
    space: Option<Arc<Space>>,
    commit: Option<Arc<Commit>>,
    capture: Option<Arc<Capture>>,
    shipper: Option<(u64, Arc<Shipper>)>,
    receiver: Option<Receiver>,
    copy: Option<copy::Copy>,
    /// The first epoch in which an earlier process served this pod's application.
    served_since: Option<u64>,
    /// What is on the volume cannot be used, and is not to be opened until it was set aside.
    damaged: bool,
}

struct Conductor {
    given: Given,
    file: Arc<IdentityFile>,
    member: Member,
    link: LinkHandle,
    lanes: Option<link::Lanes>,
    bulk: Arc<tokio::sync::Mutex<Option<mpsc::UnboundedReceiver<link::Bulk>>>>,
    stages: Stages,
    rule: AckRule,
    /// The highest record that a master called committed while this process followed: what is beyond may have to go.
    confirmed: Arc<AtomicU64>,
    /// The highest record that may be applied, also while no applier runs.
    allowed: Arc<AtomicU64>,
    allow: Arc<Mutex<Option<Allow>>>,
    notes: mpsc::UnboundedSender<Note>,
    epoch: u64,
    /// Counts requests to the record: an answer that comes after it was given up is dropped.
    asked: Arc<AtomicU64>,
    orders: Orders,
    /// The last nomination given to the member,
    /// The last one, and whether this copy was certified when the member was told.
    nominated: Option<(String, bool)>,
    /// When the member was last asked to testify.
    asked_to_testify: Duration,
    /// What is kept aside.
    saved: Vec<SavedAside>,
    /// and the last of which it wants nothing more.
    nomination_handled: Option<String>,
    chosen: Chosen,
    chosen_kept: Option<Chosen>,
    upkeep: upkeep::Upkeep,
    memory: Memory,
    copies: Copies,
    /// What of the last copy is remembered durably.
    copy_kept: Option<(String, NetcopyPhase)>,
    state: StateName,
    /// The identity on disk says that the volume shows the whole journal.
    led: bool,
    /// Where the journal stood when this process lost the lead: its volume shows nothing that came later.
    reign_ended: Option<u64>,
    ended: Option<Exit>,
}

/// Runs a member until it ends.
pub async fn run(mut given: Given) -> Result<Exit, ConductorError> {
    let mut terminated = std::mem::replace(&mut given.terminated, Box::pin(std::future::pending()));
    let folder = given.settings.volume.join(volume::FOLDER);
    let file = Arc::new(IdentityFile::lock(&folder)?);
    let identity: Option<Identity> = file.load()?;
    let led = identity.as_ref().is_some_and(Identity::shows_everything);
    let memory = Memory::new(&folder);
    let (notes, mut noted) = mpsc::unbounded_channel();
    let member = member_name(&given.settings);

    let mut stages = Stages {
        journal: None,
        volume: None,
        applier: None,
        space: None,
        commit: None,
        capture: None,
        shipper: None,
        receiver: None,
        copy: None,
        served_since: None,
        damaged: false,
    };
    let facts = begin(&given.settings, &given.upkeep, identity, &mut stages)?;
    // What redo has performed shows already: a member that led has no mark of that in its journal.
    let performed = facts.journal.applied;

    let mut wishes = given.wishes.clone();
    let chosen = chosen::first(&mut wishes, &memory, chosen::PATIENCE).await?;
    wishes.mark_unchanged();
    let timing = chosen.settings.clone();
    let interval = Duration::from_millis(timing.interval);
    let (link, mut peer, lanes) = link::start::<Control>(link::LinkSettings {
        listen: given.settings.listen,
        peer: given.settings.peer_address(),
        dials: member == MemberName::B,
        tls: link::TlsSettings { folder: given.settings.tls.clone(), peer_name: given.settings.peer_name() },
        interval,
        silence: Duration::from_millis(timing.peer_timeout()),
    })
    .await
    .map_err(on("listen for the peer"))?;

    let mut conductor = Conductor {
        file,
        member: Member::new(member, timing.clone()),
        link,
        lanes: Some(lanes),
        bulk: Arc::default(),
        stages,
        rule: AckRule::default(),
        confirmed: Arc::default(),
        allowed: Arc::new(AtomicU64::new(performed)),
        allow: Arc::default(),
        notes,
        epoch: 0,
        asked: Arc::default(),
        orders: Orders::recalled(memory.recall(obey::MEMORY)),
        nominated: None,
        asked_to_testify: Duration::ZERO,
        saved: Vec::new(),
        nomination_handled: None,
        chosen_kept: None,
        upkeep: upkeep::Upkeep::default(),
        copies: Copies::recalled(recall(&memory, copy::MEMORY), clock::stamp()),
        copy_kept: None,
        memory,
        chosen,
        state: StateName::Offline,
        led,
        reign_ended: None,
        ended: None,
        given,
    };
    if let Some(lanes) = conductor.lanes.take() {
        *conductor.bulk.lock().await = Some(lanes.bulk);
        conductor.lanes = Some(link::Lanes { records: lanes.records, bulk: mpsc::unbounded_channel().1 });
    }
    conductor.start_receiving()?;
    conductor.look_aside().await;
    conductor.sweep();
    conductor.step(Event::SettingsChanged(Box::new(timing))).await;
    if conductor.chosen.held {
        // Before anything could be claimed.
        conductor.step(Event::Order(Order::Hold(true))).await;
    }
    conductor.step(Event::Started(Box::new(facts))).await;

    let mut record = conductor.given.keeper.watch();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while conductor.ended.is_none() {
        conductor.given.shown.turn();
        let event = tokio::select! {
            biased;
            Some(note) = noted.recv() => Some(conductor.noted(note)).flatten(),
            Some(event) = peer.recv() => conductor.heard(event),
            () = &mut terminated => {
                // Said once; what is polled again must not be at its end.
                terminated = Box::pin(std::future::pending());
                Some(Event::Terminate)
            }
            Ok(()) = record.changed() => {
                let seen = record.borrow_and_update().clone();
                seen.map(|kept| Event::RecordSeen { record: Box::new(kept.record), version: Version(kept.version) })
            }
            Ok(()) = wishes.changed() => {
                wishes.mark_unchanged();
                conductor.wished().await;
                None
            }
            _ = tick.tick() => {
                conductor.obey().await;
                conductor.keep_up();
                Some(Event::Tick)
            }
        };
        if let Some(event) = event {
            conductor.step(event).await;
        }
        conductor.remember_copy().await;
    }
    conductor.close();
    conductor.link.finish(LAST_WORDS).await;
    Ok(conductor.ended.unwrap_or(Exit::Terminated))
}

/// What this member remembers under a name. What cannot be read is said and forgotten: nothing durable depends on it.
fn recall<T: serde::de::DeserializeOwned>(memory: &Memory, name: &str) -> Option<T> {
    memory.recall(name).unwrap_or_else(|error| {
        tracing::warn!(%error, name, "what was remembered cannot be read");
        None
    })
}

fn member_name(settings: &ServeSettings) -> MemberName {
    match settings.member {
        crate::settings::Member::A => MemberName::A,
        crate::settings::Member::B => MemberName::B,
    }
}

/// What a start finds: verifies the journal and makes the volume true.
fn begin(
    settings: &ServeSettings,
    rhythm: &Rhythm,
    identity: Option<Identity>,
    stages: &mut Stages,
) -> Result<Facts, ConductorError> {
    let node_boot = boot::node_boot(&settings.run).map_err(on("tell this life of the node from the last"))?;
    let mut facts = Facts {
        identity,
        volume: settings.volume_uid.clone(),
        has_files: has_files(&settings.volume)?,
        journal: JournalFacts::default(),
        corrupt: false,
        // A pod whose node lost its power is the same object with another application in it.
        pod: format!("{}/{node_boot}", settings.pod_uid),
        node_boot,
    };
    let Some(identity) = &facts.identity else { return Ok(facts) };
    let served = identity.served.as_ref().filter(|served| served.pod == facts.pod);
    stages.served_since = served.map(|served| served.since);
    let (journal, recovered) = match Journal::open(&journal_folder(settings), options(identity, rhythm)) {
        Ok(opened) => opened,
        Err(error @ (JournalError::Corrupt { .. } | JournalError::Foreign(_) | JournalError::Version(_))) => {
            tracing::error!(%error, "the journal cannot be used");
            (facts.corrupt, stages.damaged) = (true, true);
            return Ok(facts);
        }
        Err(error) => return Err(error.into()),
    };
    tracing::info!(
        end = recovered.end.seq,
        committed = recovered.committed_mark,
        torn = recovered.torn_bytes,
        "journal"
    );
    let journal = Arc::new(journal);
    let upto = if identity.shows_everything() { journal.end().seq } else { recovered.committed_mark };
    let lost_power = identity.node_boot != facts.node_boot;
    // Files that were copied or restored here from another volume are not what their list says; the member decides what
    // they are good for.
    let moved = identity.data_id.volume != facts.volume;
    if !identity.inconsistent && !moved {
        let scope = if identity.leading && lost_power { Scope::Everything } else { Scope::Touched };
        let volume = match redo::recover(&settings.volume, volume::Options::default(), &journal, upto, scope) {
            // The first start ended before its first checkpoint: nothing has happened yet, so it is made again.
            Err(RedoError::NoCheckpoint) if journal.end() == Position::default() => adopt(settings, &journal),
            recovered => recovered,
        };
        match volume {
            Ok(volume) => {
                if scope == Scope::Everything {
                    // What was made true now is no longer what the last checkpoint says: the next start begins from here.
                    checkpoint::take(&volume, &volume.snapshot(journal.end()), &journal)
                        .map_err(|error| on("take a checkpoint")(io::Error::other(error)))?;
                }
                stages.volume = Some(Arc::new(volume));
            }
            Err(error) => {
                tracing::error!(%error, "the volume cannot be made true from its journal");
                facts.corrupt = true;
            }
        }
    }
    #[cfg(test)]
    crate::simulated::stages(Some(&journal), stages.volume.as_ref());
    facts.journal = JournalFacts { first: journal.first(), end: journal.end(), applied: upto };
    stages.journal = Some(journal);
    Ok(facts)
}

/// Gives the files of a volume their first ids.
fn adopt(settings: &ServeSettings, journal: &Journal) -> Result<Volume, RedoError> {
    let failed = |doing| move |reason| RedoError::Volume { doing, reason };
    let volume = Volume::adopt(&settings.volume, volume::Options::default()).map_err(failed("adopt the volume"))?;
    checkpoint::take(&volume, &volume.snapshot(journal.end()), journal)?;
    Ok(volume)
}

fn shown_aside(saved: aside::Aside) -> SavedAside {
    SavedAside {
        name: saved.name,
        reason: saved.reason,
        operations: i64::try_from(saved.records).unwrap_or(i64::MAX),
        files: i64::try_from(saved.files.len()).unwrap_or(i64::MAX),
    }
}

fn journal_folder(settings: &ServeSettings) -> PathBuf {
    settings.volume.join(volume::FOLDER).join("journal")
}

fn options(identity: &Identity, rhythm: &Rhythm) -> Options {
    Options { segment_bytes: rhythm.segment_bytes, pair: identity.pair.0.to_be_bytes() }
}

/// Whether an application's files lie on the volume.
fn has_files(volume: &std::path::Path) -> Result<bool, ConductorError> {
    for entry in std::fs::read_dir(volume).map_err(on("list the volume"))? {
        let name = entry.map_err(on("list the volume"))?.file_name();
        if name != volume::FOLDER && name != "lost+found" {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Conductor {
    async fn step(&mut self, event: Event) {
        if !matches!(event, Event::Tick | Event::PeerAck { .. } | Event::LocalDurable(_)) {
            tracing::debug!(event = format!("{event:?}").chars().take(200).collect::<String>(), "event");
        }
        let now = Now { millis: milliseconds(), random: chance::number() };
        for effect in self.member.step(event, now) {
            let named = format!("{effect:?}").chars().take(160).collect::<String>();
            tracing::debug!(effect = named, "effect");
            match self.perform(effect).await {
                Ok(()) => {}
                Err(Undone::Answered) => break,
                Err(Undone::Failed(error)) => {
                    tracing::error!(effect = named, %error, "a durable step failed; this process does no more");
                    self.tell(Event::DiskFailed);
                    break;
                }
            }
        }
    }

    fn tell(&self, event: Event) {
        // Fails only after the loop has ended, when nobody needs it.
        self.notes.send(Note::Event(event)).ok();
    }

    /// Carries out one effect.
    async fn perform(&mut self, effect: Effect) -> Result<(), Undone> {
        match effect {
            Effect::PersistIdentity(identity) => self.persist(*identity).await?,
            Effect::ReadRecord => self.read_record(),
            Effect::WriteRecord { expected, record } => self.write_record(expected, *record),
            Effect::SetAckRule(rule) => {
                self.rule = rule;
                let acknowledged = self.stages.commit.as_ref().map_or(0, |commit| commit.set_rule(rule));
                self.tell(Event::RuleSet { rule, acknowledged });
            }
            Effect::HoldRequests => {
                let end = match &self.stages.capture {
                    Some(_) if mistake!(NotHeld) => self.journal_facts().end.seq,
                    Some(capture) => capture.hold(),
                    None => self.journal_facts().end.seq,
                };
                self.tell(Event::Held { end });
            }
            Effect::OpenWrites { epoch } => self.open_writes(epoch)?,
            Effect::RefuseWrites => {
                if mistake!(NotRefused) {
                    return Ok(());
                }
                self.given.door.refuse();
                if let Some(capture) = &self.stages.capture {
                    capture.refuse();
                    self.reign_ended.get_or_insert(self.journal_facts().end.seq);
                }
            }
            Effect::FailHeld => {
                if let Some(capture) = &self.stages.capture {
                    capture.fail_waiting();
                }
            }
            Effect::SyncJournal => {
                if let Some(journal) = self.stages.journal.clone() {
                    let position = blocking(move || {
                        let end = journal.end();
                        journal.sync().map_err(io::Error::other)?;
                        Ok(end)
                    })
                    .await?;
                    self.tell(Event::LocalDurable(position));
                }
            }
            Effect::ApplyAll => self.apply_all(),
            Effect::Follow { session, generation, from: _, memory_acks } => {
                self.end_reign();
                if let (Some(receiver), Some(journal)) = (&self.stages.receiver, &self.stages.journal) {
                    let (epoch, nonce) = (generation.epoch, generation.nonce.0);
                    let following = Following { session, epoch, nonce, memory_acks };
                    receiver.follow(following, Arc::clone(journal));
                }
                // It failed while nobody was there to copy from.
                let failure =
                    self.stages.applier.as_ref().and_then(|applier| applier.applied().borrow().failure.clone());
                if let Some(why) = failure {
                    self.notes.send(Note::CannotApply { why }).ok();
                }
            }
            Effect::EndMemoryAcks => {
                if let Some(receiver) = &self.stages.receiver {
                    receiver.end_memory_acks();
                }
            }
            Effect::StopFollowing => {
                if let Some(receiver) = &self.stages.receiver {
                    receiver.stop();
                }
            }
            Effect::StartShipping { session, from } => {
                // Whoever may follow is complete.
                self.copies.completed(clock::stamp());
                if let Some(copy) = self.stages.copy.take() {
                    copy.stop();
                }
                self.start_shipping(session, from);
            }
            Effect::StopShipping => {
                if let Some((_, shipper)) = self.stages.shipper.take() {
                    shipper.stop();
                }
            }
            Effect::OpenGate { epoch } => {
                tracing::info!(epoch, "the application may start");
                self.given.shown.update(|shown| (shown.gate, shown.serving) = (true, true));
            }
            Effect::CloseGate => self.given.shown.update(|shown| (shown.gate, shown.serving) = (false, false)),
            Effect::ClaimService { epoch } => (self.given.claim_service)(epoch),
            Effect::SendPeer { session, message } => {
                if self.link.send(session, &message).is_err() {
                    tracing::debug!(session, "the connection is gone");
                }
            }
            Effect::DropPeer { session } => self.link.close(session, "the member wants a new one"),
            Effect::StartNetcopyAsSource { session } => self.start_source(session),
            Effect::StartNetcopyAsTarget { session, generation } => {
                self.end_reign();
                self.start_target(session, generation);
            }
            Effect::StopNetcopy => {
                if let Some(copy) = self.stages.copy.take() {
                    self.copies.progress(copy.moved(), clock::monotonic());
                    copy.stop();
                }
                self.copies.interrupted("the connection to the replicant broke", clock::stamp());
            }
            Effect::SaveTail { after } => self.save_tail(after).await?,
            Effect::CutJournal { after } => self.cut_journal(after).await?,
            Effect::SetVolumeAside => self.set_volume_aside().await?,
            Effect::Testify => self.testimony().await?,
            Effect::Exit { why } => self.ended = Some(why),
            Effect::Report(snapshot) => self.report(*snapshot),
        }
        Ok(())
    }

    /// Where the journal ends for good: after whatever was under way when requests began to be refused.
    async fn testimony(&mut self) -> io::Result<()> {
        if let Some(capture) = &self.stages.capture {
            drop(capture.stand_still());
        }
        if let Some(journal) = self.stages.journal.clone() {
            blocking(move || journal.sync().map(drop).map_err(io::Error::other)).await?;
        }
        self.tell(Event::Testified(self.journal_facts()));
        Ok(())
    }

    fn noted(&mut self, note: Note) -> Option<Event> {
        match note {
            Note::Event(event) => Some(event),
            Note::CopySent { session, position } => {
                self.copy_sent(session, position);
                None
            }
            Note::CopyBroke { session, why } => {
                self.copy_broke(session, &why);
                None
            }
            Note::CopyTaken { session, generation, copied } => {
                self.copy_taken(session, generation, *copied);
                None
            }
            Note::CopyComplete { session, complete } => Some(self.copy_complete(session, complete)),
            Note::CannotApply { why } => {
                tracing::error!(why, "a record cannot be performed: everything is compared with the master anew");
                let session = self.link.current()?;
                Some(Event::PeerMessage { session, message: Control::CopyNeeded })
            }
        }
    }

    fn heard(&mut self, event: LinkEvent<Control>) -> Option<Event> {
        match event {
            LinkEvent::Up { session } => {
                tracing::info!(session, "the peer is connected");
                self.copies.connected(true, clock::monotonic());
                self.given.metrics.sessions.inc();
                Some(Event::PeerUp { session, journal: self.journal_facts() })
            }
            LinkEvent::Down { session, evidence, why } => {
                tracing::info!(session, ?evidence, why, "the peer is disconnected");
                self.copies.connected(false, clock::monotonic());
                Some(Event::PeerDown { session: Some(session), evidence: judged(evidence) })
            }
            LinkEvent::Attempt { evidence, why } => {
                tracing::debug!(?evidence, why, "the peer cannot be reached");
                Some(Event::PeerDown { session: None, evidence: judged(evidence) })
            }
            LinkEvent::Stranger { from, why } => {
                tracing::warn!(%from, why, "somebody else knocked and was refused");
                None
            }
            // The member's own heartbeats say the same, and by whom.
            LinkEvent::Heard { .. } => None,
            LinkEvent::Message { session, message, .. } => Some(Event::PeerMessage { session, message }),
            LinkEvent::Nack { session, nack: Nack { reason, end }, .. } => {
                tracing::warn!(?reason, end, "the peer cannot follow");
                Some(Event::PeerMessage { session, message: Control::CannotFollow })
            }
        }
    }

    /// What is wished for has changed.
    async fn wished(&mut self) {
        let Some(chosen) = Chosen::of(&self.given.wishes.borrow()) else { return };
        let before = std::mem::replace(&mut self.chosen, chosen.clone());
        self.step(Event::SettingsChanged(Box::new(chosen.settings))).await;
        if before.held != chosen.held {
            self.step(Event::Order(Order::Hold(chosen.held))).await;
        }
        self.obey().await;
    }

    /// Carries out what is ordered and has not been, and sees what became of it.
    async fn obey(&mut self) {
        let wished = self.given.wishes.borrow().clone();
        let Some(chosen) = Chosen::of(&wished) else { return };
        if self.chosen_kept.as_ref() != Some(&chosen) {
            if let Err(error) = self.remember(chosen::MEMORY, chosen.clone()).await {
                tracing::warn!(%error, "the settings cannot be remembered: a start without the API server would wait");
            }
            self.chosen_kept = Some(chosen);
        }
        self.obey_orders(&wished).await;
        self.obey_nomination(wished.nomination).await;
        self.testify(wished.testify).await;
    }

    /// Asks the member to testify, as long as it is wished and has not been done: whether the record is gone may show later.
    async fn testify(&mut self, wished: Option<Generation>) {
        let Some(generation) = wished else { return };
        let sworn = self.member.snapshot().testimony.is_some_and(|testimony| testimony.generation == generation);
        let now = clock::monotonic();
        if !sworn && now.saturating_sub(self.asked_to_testify) >= TESTIFY_AGAIN {
            self.asked_to_testify = now;
            self.step(Event::Testify(generation)).await;
        }
    }

    async fn obey_orders(&mut self, wished: &Wishes) {
        while let Some(act) = self.orders.next(&wished.orders, self.state, &wished.given_up) {
            if act == Act::Obey(Order::Resync) && self.member.must_stay_fit_to_lead() {
                // Soon it need not, or leads.
                self.orders.not_begun(Order::Resync);
                break;
            }
            // A token never acts twice: that it acts must be known after any crash before it does.
            if let Err(error) = self.remember(obey::MEMORY, self.orders.remembered()).await {
                tracing::error!(%error, "an order cannot be remembered and is not carried out");
                return self.tell(Event::DiskFailed);
            }
            match act {
                Act::Obey(order) => {
                    tracing::info!(?order, "an order is carried out");
                    self.step(Event::Order(order)).await;
                    if order == Order::Resync && self.state != StateName::SecondaryNetcopy {
                        self.orders.not_begun(order);
                        break;
                    }
                }
                Act::ThrowAway(names) => self.throw_away(names).await,
                Act::Noted => {}
            }
        }
        if self.orders.settle(self.state)
            && let Err(error) = self.remember(obey::MEMORY, self.orders.remembered()).await
        {
            tracing::warn!(%error, "the outcome of an order cannot be remembered");
        }
    }

    async fn throw_away(&mut self, names: Vec<String>) {
        let root = self.given.settings.volume.clone();
        tracing::warn!(?names, "what was kept aside is thrown away, as ordered");
        let thrown = blocking(move || aside::throw_away(&root, &names).map_err(io::Error::other)).await;
        self.sweep();
        self.orders.thrown_away(thrown.map_err(|error| error.to_string()));
        self.look_aside().await;
        if let Err(error) = self.remember(obey::MEMORY, self.orders.remembered()).await {
            tracing::warn!(%error, "the outcome of an order cannot be remembered");
        }
    }

    /// Frees the room of what was thrown away. It may be much, and nobody waits for it.
    fn sweep(&self) {
        let root = self.given.settings.volume.clone();
        tokio::spawn(async move {
            if let Err(error) = blocking(move || aside::sweep(&root).map_err(io::Error::other)).await {
                tracing::warn!(%error, "what was thrown away still takes room");
            }
        });
    }

    /// What is kept aside goes into the report.
    async fn look_aside(&mut self) {
        let root = self.given.settings.volume.clone();
        match blocking(move || aside::list(&root)).await {
            Ok(saved) => {
                let newest = saved.len().saturating_sub(SAVED_SHOWN_MAX);
                self.saved = saved.into_iter().skip(newest).map(shown_aside).collect();
                self.account();
            }
            Err(error) => tracing::warn!(%error, "what is kept aside cannot be listed"),
        }
    }

    async fn obey_nomination(&mut self, nomination: Option<(Request, u64)>) {
        let Some((request, epoch_seen)) = nomination else { return };
        let id = request.id.clone();
        match self.state {
            // Who has not read the record cannot judge it.
            StateName::Offline | StateName::Starting | StateName::Stopped => return,
            StateName::PrimaryOpening
            | StateName::PrimaryActive
            | StateName::PrimaryUncertain
            | StateName::PrimaryAlone
            | StateName::PrimaryJoining
            | StateName::PrimaryDraining
            | StateName::SecondaryActive
            | StateName::SecondaryAlone
            | StateName::SecondaryCatchUp
            | StateName::SecondaryNetcopy
            | StateName::Fenced
            | StateName::Quarantined => {}
        }
        let certified = self.member.snapshot().certified;
        // One that came before this copy could be meant was declined; what was wished for still is.
        let again = |told: bool| !told && certified && self.member.nomination().is_none();
        if self.nominated.as_ref().is_none_or(|(known, told)| *known != id || again(*told)) {
            self.nominated = Some((id.clone(), certified));
            self.step(Event::Nominated { request, epoch_seen }).await;
        }
        if self.member.nomination().is_none_or(|pending| pending.id != id) {
            self.nomination_handled = Some(id);
        }
    }

    /// Keeps something durably; when this returns it survives a power failure.
    fn remember<T: serde::Serialize + Send + 'static>(
        &self,
        name: &'static str,
        content: T,
    ) -> impl Future<Output = io::Result<()>> + Send + use<T> {
        let memory = self.memory.clone();
        blocking(move || memory.keep(name, &content))
    }

    fn journal_facts(&self) -> JournalFacts {
        let Some(journal) = &self.stages.journal else { return JournalFacts::default() };
        let applied = match (&self.stages.applier, self.reign_ended) {
            (Some(applier), _) => applier.applied().borrow().seq,
            (None, Some(end)) => end,
            (None, None) => journal.end().seq,
        };
        JournalFacts { first: journal.first(), end: journal.end(), applied }
    }

    /// The first identity of a volume founds its journal and gives its files ids.
    async fn persist(&mut self, identity: Identity) -> io::Result<()> {
        if let Some(journal) = self.stages.journal.clone().filter(|_| self.led && !identity.shows_everything()) {
            // A master's journal has no marks of what shows on its volume: all of it does. The next start of a member that
            // leads no more would otherwise take the last mark of its time before for where its volume stands.
            blocking(move || {
                journal.mark_committed(journal.end().seq).map_err(io::Error::other)?;
                journal.sync().map(drop).map_err(io::Error::other)
            })
            .await?;
        }
        self.led = identity.shows_everything();
        let file = Arc::clone(&self.file);
        let kept = identity.clone();
        if mistake!(IdentityNotKept) && self.stages.journal.is_some() {
            return Ok(());
        }
        blocking(move || file.keep(&kept).map_err(io::Error::other)).await?;
        if self.stages.journal.is_some() || self.stages.damaged || identity.quarantine.is_some() {
            return Ok(());
        }
        let (settings, rhythm) = (self.given.settings.clone(), self.given.upkeep);
        let (journal, volume) = blocking(move || {
            let (journal, _) =
                Journal::open(&journal_folder(&settings), options(&identity, &rhythm)).map_err(io::Error::other)?;
            let volume = adopt(&settings, &journal).map_err(io::Error::other)?;
            Ok((Arc::new(journal), Arc::new(volume)))
        })
        .await?;
        #[cfg(test)]
        crate::simulated::stages(Some(&journal), Some(&volume));
        self.stages.journal = Some(journal);
        self.stages.volume = Some(volume);
        self.start_receiving().map_err(io::Error::other)
    }

    /// Starts the thread that follows, and the one that applies, once there is a journal.
    fn start_receiving(&mut self) -> Result<(), ConductorError> {
        let Some(journal) = self.stages.journal.clone() else { return Ok(()) };
        if let Some(volume) = self.stages.volume.clone()
            && self.stages.applier.is_none()
        {
            let applied = journal.committed().max(self.allowed.load(Ordering::Acquire)).min(journal.end().seq);
            self.start_applying(&journal, &volume, applied)?;
        }
        let Some(lanes) = self.lanes.take() else { return Ok(()) };
        let (allowed, allow) = (Arc::clone(&self.allowed), Arc::clone(&self.allow));
        let confirmed = Arc::clone(&self.confirmed);
        let on_committed = Box::new(move |seq| {
            confirmed.fetch_max(seq, Ordering::AcqRel);
            allowed.fetch_max(seq, Ordering::AcqRel);
            if let Some(allow) = &*allow.lock() {
                allow(seq);
            }
        });
        let (receiver, mut stopped) =
            receive::receive(self.link.clone(), lanes.records, on_committed).map_err(on("start to receive"))?;
        self.stages.receiver = Some(receiver);
        let (link, inbox) = (self.link.clone(), self.notes.clone());
        tokio::spawn(async move {
            while let Some(ReceiveEvent::Stopped { session, reason, why }) = stopped.recv().await {
                tracing::warn!(session, ?reason, why, "following ended");
                if reason == link::NackReason::Failed {
                    inbox.send(Note::Event(Event::DiskFailed)).ok();
                }
                // A new connection begins with a new agreement about where to go on.
                tokio::time::sleep(Duration::from_secs(1)).await;
                link.close(session, "following ended");
            }
        });
        Ok(())
    }

    fn start_applying(
        &mut self,
        journal: &Arc<Journal>,
        volume: &Arc<Volume>,
        applied: u64,
    ) -> Result<(), ConductorError> {
        let known = journal.position_at(applied).map_err(io::Error::from);
        let found = known.and_then(|known| known.ok_or_else(|| io::ErrorKind::NotFound.into()));
        let position = found.map_err(on("find the applied record"))?;
        let space = Arc::new(Space::new(For::Apply));
        let (performing, keeping, left) = (Arc::clone(volume), Arc::clone(journal), Arc::clone(&space));
        let perform: apply::Perform = Box::new(move |deed, op, stamp| match deed {
            Deed::Perform => {
                left.check(&performing, &keeping, op)?;
                performing.perform(op, stamp).map_err(|error| performing.refused(op, error))
            }
            Deed::ShowTimes => {
                performing.show_times(op, stamp);
                Ok(())
            }
        });
        let applier = apply::apply(Arc::clone(journal), position, perform).map_err(on("start to apply"))?;
        applier.allow(self.allowed.load(Ordering::Acquire).max(applied));
        *self.allow.lock() = Some(Box::new(applier.allowance()));
        // Whoever follows without performing acknowledges what it could never show.
        let (mut applied, notes) = (applier.applied(), self.notes.clone());
        tokio::spawn(async move {
            // An error: it was stopped before anything failed.
            let failure = applied.wait_for(|applied| applied.failure.is_some()).await;
            if let Ok(Some(why)) = failure.map(|applied| applied.failure.clone()) {
                notes.send(Note::CannotApply { why }).ok();
            }
        });
        self.stages.applier = Some(applier);
        self.stages.space = Some(space);
        Ok(())
    }

    /// Shows the whole journal on the volume; comes back as an event.
    fn apply_all(&mut self) {
        let (Some(journal), inbox) = (self.stages.journal.clone(), self.notes.clone()) else { return };
        let end = journal.end();
        let Some(applier) = &self.stages.applier else {
            // Redo has performed everything already.
            self.tell(Event::AppliedAll { end });
            return;
        };
        if mistake!(OpensTooEarly) {
            return self.tell(Event::AppliedAll { end });
        }
        if let Some(space) = &self.stages.space {
            space.use_everything();
        }
        applier.allow(end.seq);
        let mut applied = applier.applied();
        tokio::spawn(async move {
            let done = applied.wait_for(|applied| applied.seq >= end.seq || applied.failure.is_some()).await;
            let event = match done.map(|applied| applied.failure.clone()) {
                Ok(None) => Event::AppliedAll { end },
                Ok(Some(failure)) => {
                    tracing::error!(failure, "the journal cannot be applied");
                    Event::DiskFailed
                }
                Err(_) => return,
            };
            inbox.send(Note::Event(event)).ok();
        });
    }

    /// Opens the application's file system for writing.
    fn open_writes(&mut self, epoch: u64) -> io::Result<()> {
        self.epoch = epoch;
        if let Some(capture) = &self.stages.capture {
            capture.resume();
            return Ok(());
        }
        let (Some(journal), Some(volume)) = (self.stages.journal.clone(), self.stages.volume.clone()) else {
            return Err(io::Error::other("there is no volume to serve"));
        };
        *self.allow.lock() = None;
        if let Some(applier) = self.stages.applier.take() {
            applier.stop();
        }
        let commit = self.commit(&journal)?;
        let since = self.stages.served_since.filter(|_| self.given.resumed);
        let capture = Capture::new(volume, journal, commit, since, self.on_failure());
        capture.open(epoch, self.given.settings.member.name()).map_err(io::Error::from)?;
        self.given.door.open(Arc::clone(&capture));
        self.stages.capture = Some(capture);
        Ok(())
    }

    /// The replies that wait and their rule, which begin with the lead: a peer may follow before requests are served.
    fn commit(&mut self, journal: &Arc<Journal>) -> io::Result<Arc<Commit>> {
        if let Some(commit) = &self.stages.commit {
            return Ok(Arc::clone(commit));
        }
        let journal = Arc::clone(journal);
        let commit = Commit::start(Arc::clone(&journal), self.on_failure())?;
        commit.set_rule(self.rule);
        // After the rule: what an earlier process acknowledged is no news.
        commit.count_into(Arc::clone(&self.given.metrics));
        self.stages.commit = Some(Arc::clone(&commit));
        let (mut durable, inbox) = (commit.durable(), self.notes.clone());
        tokio::spawn(async move {
            while durable.changed().await.is_ok() {
                let seq = *durable.borrow_and_update();
                // Between the flush and now the journal may have been trimmed; then newer news follow. A disk that fails is
                // noticed by whoever writes.
                if let Ok(Some(position)) = journal.position_at(seq)
                    && inbox.send(Note::Event(Event::LocalDurable(position))).is_err()
                {
                    return;
                }
                tokio::time::sleep(MARKS_INTERVAL).await;
            }
        });
        Ok(commit)
    }

    /// Somebody else is followed from now on. What was ready for a reign that never opened knows marks of a journal that
    /// may be cut; one that opened is refused for ever, and this process leads no more.
    fn end_reign(&mut self) {
        self.copies.forget();
        if let Some(space) = &self.stages.space {
            space.leave_some();
        }
        if self.stages.capture.is_none()
            && let Some(commit) = self.stages.commit.take()
        {
            commit.end();
        }
    }

    fn on_failure(&self) -> Box<dyn Fn() + Send + Sync> {
        let inbox = self.notes.clone();
        Box::new(move || {
            // Fails only after the loop has ended.
            inbox.send(Note::Event(Event::DiskFailed)).ok();
        })
    }

    fn read_record(&self) {
        let (request, asked, inbox) = self.record_request();
        let answer = self.given.keeper.read();
        tokio::spawn(async move {
            let event = match answer.await {
                Ok(kept) => Event::RecordRead { record: Box::new(kept.record), version: Version(kept.version) },
                Err(RecordError::Absent) => Event::RecordMissing,
                Err(error) => {
                    tracing::warn!(%error, "read of the record");
                    Event::RecordUnknown
                }
            };
            if asked.load(Ordering::Acquire) == request {
                inbox.send(Note::Event(event)).ok();
            }
        });
    }

    fn write_record(&self, expected: Version, record: tandem_protocol::Record) {
        tracing::info!(epoch = record.epoch, wseq = record.wseq, certified = ?record.certified, "write of the record");
        let (request, asked, inbox) = self.record_request();
        let answer = self.given.keeper.write(expected.0, record);
        let metrics = Arc::clone(&self.given.metrics);
        tokio::spawn(async move {
            let event = match answer.await {
                Ok(kept) => Event::RecordWritten { version: Version(kept.version) },
                Err(RecordError::Conflict(why)) => {
                    metrics.record_failures.inc();
                    tracing::info!(why, "the record was not written");
                    Event::RecordConflict
                }
                Err(error) => {
                    metrics.record_failures.inc();
                    tracing::warn!(%error, "write of the record");
                    Event::RecordUnknown
                }
            };
            if asked.load(Ordering::Acquire) == request {
                inbox.send(Note::Event(event)).ok();
            }
        });
    }

    fn record_request(&self) -> (u64, Arc<AtomicU64>, mpsc::UnboundedSender<Note>) {
        let request = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        (request, Arc::clone(&self.asked), self.notes.clone())
    }

    fn start_shipping(&mut self, session: u64, from: Position) {
        let Some(journal) = self.stages.journal.clone() else {
            return self.tell(Event::ShippingImpossible { session });
        };
        let commit = match self.commit(&journal) {
            Ok(commit) => commit,
            Err(error) => {
                tracing::error!(%error, "nothing can be shipped");
                return self.tell(Event::ShippingImpossible { session });
            }
        };
        match journal.position_at(from.seq) {
            Ok(Some(known)) if known == from => {}
            Err(ReadError::Io(error)) => {
                tracing::error!(%error, "the journal cannot be read");
                return self.tell(Event::DiskFailed);
            }
            Ok(_) | Err(ReadError::Trimmed { .. } | ReadError::Broken(_)) => {
                return self.tell(Event::ShippingImpossible { session });
            }
        }
        if let Some((_, shipper)) = self.stages.shipper.take() {
            shipper.stop();
        }
        let generation = self.member.snapshot().generation;
        let shipping = Shipping {
            session,
            epoch: generation.epoch,
            nonce: generation.nonce.0,
            from: from.seq + 1,
            // Also before the peer is required: what it has in memory decides when it can be.
            receipts: self.chosen.settings.ack_policy == AckPolicy::Received,
            // Whoever waits for it is held as long as for a peer that is lost, but no disk is given up for a hiccup.
            patience: Duration::from_millis(self.chosen.settings.hold).max(HANG_MIN),
        };
        let heard = Arc::clone(&commit);
        let (latest, mut acks) = watch::channel((0, 0));
        let shipper = Arc::new(ship::ship(journal, self.link.clone(), shipping, move |ack| {
            heard.peer_ack(session, ack.received, ack.durable);
            latest.send_replace((ack.received, ack.durable));
        }));
        let inbox = self.notes.clone();
        tokio::spawn(async move {
            while acks.changed().await.is_ok() {
                let (received, durable) = *acks.borrow_and_update();
                if inbox.send(Note::Event(Event::PeerAck { session, received, durable })).is_err() {
                    return;
                }
                tokio::time::sleep(MARKS_INTERVAL).await;
            }
        });
        let follower = Arc::downgrade(&shipper);
        commit.follow(follower);
        // Kept until it has ended: then it can say why.
        let (mut ended, kept, inbox) = (shipper.ended(), Arc::clone(&shipper), self.notes.clone());
        tokio::spawn(async move {
            let why = ended.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
            drop(kept);
            match why {
                Some(ship::Ended::Stopped | ship::Ended::Gone) | None => {}
                // The connection is closed: the peer is lost.
                Some(why @ ship::Ended::Stuck(_)) => tracing::warn!(%why, "shipping ended"),
                // A copy would not come from this disk either, and who takes one cannot lead until it is complete.
                Some(why @ ship::Ended::DiskFailed(_)) => {
                    tracing::error!(%why, "shipping ended");
                    inbox.send(Note::Event(Event::DiskFailed)).ok();
                }
                Some(why) => {
                    tracing::warn!(%why, "shipping ended");
                    inbox.send(Note::Event(Event::ShippingImpossible { session })).ok();
                }
            }
        });
        self.stages.shipper = Some((session, shipper));
    }

    async fn save_tail(&mut self, after: Position) -> Result<(), Undone> {
        let Some(journal) = self.stages.journal.clone().filter(|_| !mistake!(TailNotSaved)) else { return Ok(()) };
        if journal.first() > journal.end().seq {
            tracing::info!("nothing is saved aside: the journal holds no record");
            return Ok(());
        }
        let (root, volume) = (self.given.settings.volume.clone(), self.stages.volume.clone());
        let name = format!("tail-{}-{}", after.epoch, after.seq);
        let saved = blocking(move || {
            let reason = "operations that never became part of the pair's history";
            match aside::save(&root, &name, reason, &journal, after, volume.as_deref()) {
                Err(AsideError::NoRoom { needed, free }) => Ok(Err((needed, free))),
                saved => saved.map(Ok).map_err(io::Error::other),
            }
        })
        .await?;
        match saved {
            Ok(aside) => {
                tracing::warn!(name = aside.name, records = aside.records, "a diverged tail was saved aside");
                self.look_aside().await;
                Ok(())
            }
            Err((needed, free)) => {
                tracing::error!(needed, free, "there is no room to save a diverged tail aside");
                self.tell(Event::NoRoomAside);
                Err(Undone::Answered)
            }
        }
    }

    async fn cut_journal(&mut self, after: Position) -> io::Result<()> {
        let Some(journal) = self.stages.journal.clone() else { return Ok(()) };
        match journal.position_at(after.seq) {
            Ok(Some(known)) if known == after => {}
            Err(ReadError::Io(error)) => return Err(error),
            Ok(_) | Err(ReadError::Trimmed { .. } | ReadError::Broken(_)) => {
                self.tell(Event::CutImpossible);
                return Ok(());
            }
        }
        blocking(move || journal.cut_after(after.seq).map(drop).map_err(io::Error::other)).await
    }

    async fn set_volume_aside(&mut self) -> io::Result<()> {
        self.drop_stages();
        let root = self.given.settings.volume.clone();
        let name = format!("volume-{}", clock::wall_nanoseconds() / 1_000_000_000);
        let settings = self.given.settings.clone();
        blocking(move || {
            aside::keep_files(&root, &name, "given up by the pair's owner").map_err(io::Error::other)?;
            crate::disk::remove_tree(&journal_folder(&settings))
        })
        .await?;
        self.look_aside().await;
        Ok(())
    }

    /// Nothing that was known of the journal is true of the next one.
    fn drop_stages(&mut self) {
        *self.allow.lock() = None;
        self.allowed.store(0, Ordering::Release);
        self.confirmed.store(0, Ordering::Release);
        self.upkeep = upkeep::Upkeep::default();
        self.stages.applier = None;
        self.stages.volume = None;
        self.stages.journal = None;
        self.stages.damaged = false;
    }

    fn report(&mut self, snapshot: Snapshot) {
        let before = std::mem::replace(&mut self.state, snapshot.state);
        if before != snapshot.state {
            if snapshot.state == StateName::PrimaryOpening {
                self.given.metrics.claims.inc();
            } else if snapshot.state == StateName::Fenced {
                self.given.metrics.fences.inc();
            }
            let end = self.journal_facts().end;
            tracing::info!(from = ?before, to = ?snapshot.state, epoch = snapshot.generation.epoch, end = end.seq, "state");
        }
        if snapshot.pod_spent {
            // Its application outlived the reign: what waits at the door must not wait for a reign that never comes.
            self.given.door.refuse();
        }
        self.given.shown.update(|shown| {
            shown.member = self.given.settings.member.name().to_string();
            shown.state = state_text(snapshot.state).to_string();
            let said = plain::held_back(&snapshot);
            shown.reason = said.map_or_else(String::new, |said| said.reason.to_string());
            shown.message = said.map_or_else(String::new, |said| said.message.to_string());
            shown.epoch = snapshot.generation.epoch;
            shown.peer_connected = snapshot.linked;
        });
        self.account();
    }

    /// Brings up to date what only the report says.
    fn account(&self) {
        let (generation, identity) = (self.given.wishes.borrow().generation, self.member.identity());
        let snapshot = self.member.snapshot();
        let account = Account {
            data_id: identity.map(|identity| identity.data_id.uuid.to_string()),
            boot: identity.map_or(0, |identity| identity.boot),
            position: self.journal_facts().end,
            generation,
            saved_aside: self.saved.clone(),
            highest_epoch: snapshot.highest_epoch,
            testimony: snapshot.testimony,
            promised: identity.map(|identity| identity.promised).unwrap_or_default(),
        };
        self.given.account.send_if_modified(|last| {
            let differs = *last != account;
            *last = account;
            differs
        });
    }

    /// Ends the stages in order: what is on the volume and in the journal stays as it is.
    fn close(&mut self) {
        if let Some((_, shipper)) = self.stages.shipper.take() {
            shipper.stop();
        }
        if let Some(receiver) = &self.stages.receiver {
            receiver.stop();
        }
        if let Some(commit) = &self.stages.commit {
            commit.end();
        }
        if let Some(applier) = self.stages.applier.take() {
            applier.stop();
        }
    }
}

/// A state as reports and metrics name it.
pub fn state_text(state: StateName) -> &'static str {
    match state {
        StateName::Offline | StateName::Starting | StateName::Stopped => "Offline",
        StateName::PrimaryOpening | StateName::PrimaryUncertain => "PrimaryUncertain",
        StateName::PrimaryActive => "PrimaryActive",
        StateName::PrimaryAlone | StateName::PrimaryJoining => "PrimaryAlone",
        StateName::PrimaryDraining => "PrimaryDraining",
        StateName::SecondaryActive => "SecondaryActive",
        StateName::SecondaryAlone => "SecondaryAlone",
        StateName::SecondaryCatchUp => "SecondaryCatchUp",
        StateName::SecondaryNetcopy => "SecondaryNetcopy",
        StateName::Fenced => "Fenced",
        StateName::Quarantined => "Quarantined",
    }
}

fn leads(state: StateName) -> bool {
    match state {
        StateName::PrimaryOpening
        | StateName::PrimaryActive
        | StateName::PrimaryUncertain
        | StateName::PrimaryAlone
        | StateName::PrimaryJoining
        | StateName::PrimaryDraining => true,
        StateName::Offline
        | StateName::Starting
        | StateName::SecondaryActive
        | StateName::SecondaryAlone
        | StateName::SecondaryCatchUp
        | StateName::SecondaryNetcopy
        | StateName::Fenced
        | StateName::Quarantined
        | StateName::Stopped => false,
    }
}

fn judged(evidence: link::Evidence) -> Evidence {
    match evidence {
        link::Evidence::Refused => Evidence::Refused,
        link::Evidence::Reset => Evidence::Reset,
        // The living say farewell too.
        link::Evidence::Closed | link::Evidence::Silent | link::Evidence::Answers | link::Evidence::Misbehaved => {
            Evidence::Timeout
        }
    }
}

fn milliseconds() -> u64 {
    u64::try_from(clock::monotonic().as_millis()).unwrap_or(u64::MAX)
}
