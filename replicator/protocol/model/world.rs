//! The world around two members of the product: disks, the record, one connection, and the trouble that may befall them. Each
//! action changes the world by one step; whatever a member is told goes through `Member::step`, and what it wants is carried
//! out here as the replicator's stages do it. Nothing in this file decides anything for a member.
//!
//! Time is left out: a member's clock stands still until `Silence` makes every timeout of it pass at once, whenever that may
//! be. So everything that holds here holds with clocks of any quality.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use tandem_protocol::ack::{AckRule, Marks, acknowledged};
use tandem_protocol::identity::{Generation, Identity, Nonce, PairId};
use tandem_protocol::member::{Control, Evidence, Facts, JournalFacts, Order, StateName, Testimony};
use tandem_protocol::record::{
    Certificate, PerMember, Record, Request, Version, check, check_forced, rebuilt, to_promise,
};
use tandem_protocol::{Effect, Event, Member, MemberName, Now, Position};

use crate::runs::{Flaw, Run};

/// Longer than any timeout.
const LONG: u64 = 1 << 40;
/// Longer than a hand-over may take, shorter than what makes a silent peer suspect.
const SHORT: u64 = 200;

/// The two, by number.
pub(crate) const BOTH: [usize; 2] = [0, 1];

pub(crate) fn name(of: usize) -> MemberName {
    if of == 0 { MemberName::A } else { MemberName::B }
}

/// A part of the state that most steps leave alone: copied only when it changes, hashed once.
#[derive(Clone, Debug)]
pub(crate) struct Shared<T> {
    hash: u64,
    value: Arc<T>,
}

impl<T: Clone + Hash> Shared<T> {
    fn new(value: T) -> Self {
        let mut shared = Self { hash: 0, value: Arc::new(value) };
        shared.seal();
        shared
    }
    fn edit(&mut self) -> &mut T {
        self.hash = 0;
        Arc::make_mut(&mut self.value)
    }
    fn seal(&mut self) {
        if self.hash == 0 {
            let mut hasher = DefaultHasher::new();
            self.value.hash(&mut hasher);
            self.hash = hasher.finish().max(1);
        }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.value == other.value
    }
}
impl<T: Eq> Eq for Shared<T> {}
impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// What survives a member's process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Disk {
    pub(crate) identity: Option<Identity>,
    /// Operations by position: equal positions are equal operations.
    pub(crate) journal: Vec<Position>,
    /// The first operation that the journal still has as a record; what is before came with a copy.
    pub(crate) first: u64,
    /// A copy was begun and not completed: it has a journal of its own, without a record. What was held shows in the files
    /// until it is replaced by the same.
    pub(crate) emptied: bool,
    /// So many would survive a loss of power.
    pub(crate) durable: usize,
    /// So many may show in the files.
    pub(crate) applied: usize,
    pub(crate) aside: Vec<Position>,
    /// Counts the volumes this member was given.
    pub(crate) volume: u8,
    /// The highest epoch ever promised on this volume. Nobody in the protocol reads it; it judges.
    pub(crate) promised: u64,
    /// Set back to an older content by its storage, and not noticed so far.
    pub(crate) rolled_back: bool,
}

impl Disk {
    pub(crate) fn end(&self) -> Position {
        self.journal.last().copied().unwrap_or_default()
    }
    pub(crate) fn holds(&self, op: &Position) -> bool {
        self.journal.contains(op)
    }
    fn has(&self, at: Position) -> bool {
        at.seq == 0 || self.journal.get(at.seq as usize - 1) == Some(&at)
    }
    fn facts(&self) -> JournalFacts {
        if self.emptied {
            return JournalFacts { first: 1, ..JournalFacts::default() };
        }
        JournalFacts { first: self.first.max(1), end: self.end(), applied: self.applied as u64 }
    }
}

/// A request to the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Read,
    Write {
        expected: Version,
        record: Box<Record>,
    },
    /// The server has done it; the answer is under way.
    Done(Box<Event>),
}

/// One side: the product's machine, and what its stages hold for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) member: Member,
    pub(crate) alive: bool,
    pub(crate) disk: Disk,
    /// Times the machine lost its power.
    pub(crate) outages: u8,
    pub(crate) starts: u8,
    pub(crate) rule: AckRule,
    pub(crate) marks: Marks,
    /// The epoch that requests are served in.
    pub(crate) open: Option<u64>,
    pub(crate) held: bool,
    pub(crate) follow: Option<(u64, Generation, bool)>,
    pub(crate) ship: Option<(u64, usize)>,
    pub(crate) copy_from: Option<u64>,
    pub(crate) copy_to: Option<u64>,
    pub(crate) call: Option<Call>,
    /// A process that should be gone and still believes it serves: its rule, its epoch, and what it sees as its journal.
    pub(crate) zombie: Option<(AckRule, u64, Vec<Position>)>,
    pub(crate) snapshot: Option<Box<Disk>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Word {
    Control(Control),
    Op { op: Position, committed: usize },
    Ack { received: u64, durable: u64 },
}

/// One connection. What one side sent arrives in order, or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Connection {
    session: u64,
    /// To a, to b.
    words: [VecDeque<Word>; 2],
    /// This side still has it.
    up: [bool; 2],
    /// Nothing arrives any more.
    cut: bool,
}

/// How much trouble has been made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Spent {
    pub(crate) writes: u8,
    pub(crate) crashes: u8,
    pub(crate) lost: u8,
    pub(crate) cuts: u8,
    pub(crate) nominations: u8,
    pub(crate) stops: u8,
    pub(crate) disasters: u8,
    pub(crate) forces: u8,
    pub(crate) deletions: u8,
    pub(crate) resyncs: u8,
}

/// The whole world at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) nodes: [Shared<Node>; 2],
    pub(crate) connection: Shared<Option<Connection>>,
    pub(crate) record: Shared<Record>,
    pub(crate) version: u64,
    /// Somebody deleted the record. What it said last is kept for the judge; nobody else can read it.
    pub(crate) missing: bool,
    /// What both are asked to promise for a new one, and what each has sworn.
    pub(crate) promise: Option<Generation>,
    pub(crate) sworn: [Option<(Testimony, Certificate)>; 2],
    /// Given up by their callers; may take effect as long as their version stands.
    pub(crate) late: Vec<(Version, Box<Record>)>,
    /// The marker as a second object has its own version (only with that flaw).
    pub(crate) marker_version: u64,
    pub(crate) acked: Vec<Position>,
    /// What a human gave up, or what was destroyed with the only volume that held it.
    pub(crate) given_up: Vec<Position>,
    pub(crate) destroyed: Vec<Position>,
    /// Who acknowledged in which epoch.
    pub(crate) ackers: Vec<(u64, u8)>,
    /// Everything issued on the line of the newest reign that opened.
    pub(crate) line: (u64, Vec<Position>),
    pub(crate) spent: Spent,
    pub(crate) broken: Option<&'static str>,
}

/// One thing that may happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// The application writes.
    Write(usize),
    /// What was written reaches the disk.
    Fsync(usize),
    /// The next word arrives.
    Deliver(usize),
    Connect,
    /// The connection breaks; each side learns of it later.
    Cut,
    /// This side learns that its connection is gone.
    Lost(usize),
    /// The API server carries a request out.
    Execute(usize),
    /// Its answer arrives.
    Answer(usize),
    /// The caller gives up: the request, or its answer, is late or lost.
    Timeout(usize),
    /// A request that was given up takes effect.
    Late(usize),
    /// The watch shows the record as it is now.
    Watch(usize),
    /// Every timeout of this member passes.
    Silence(usize),
    /// Only a hand-over takes too long.
    Impatience(usize),
    Start(usize),
    /// The process ends; what it wrote stays in the machine's memory.
    Kill(usize),
    /// The machine loses its power: so many operations are left.
    PowerLoss(usize, usize),
    /// As the inner action, but the process dies when so many effects of it were carried out.
    Torn(Box<Action>, usize),
    /// The operator replaces a pod whose application saw an earlier reign.
    ReplacePod(usize),
    /// A copy is complete.
    Copied(usize),
    Nominate(usize),
    Terminate(usize),
    /// A human orders a comparison with the master's files.
    Resync(usize),
    LoseVolume(usize),
    /// The snapshot as a new volume in place of the old one.
    RestoreSnapshot(usize),
    /// The storage sets the volume back in place.
    RollBack(usize),
    /// A human names the member that shall go on, whatever is lost.
    Force(usize),
    /// Somebody deletes the record.
    DeleteRecord,
    /// The operator asks a member to testify.
    AskTestimony(usize),
    /// The operator makes a new record of what was sworn.
    Rebuild,
    /// The machine is given up and another process is started on its volume.
    LeaveZombie(usize),
    /// The one that should be gone serves a write.
    ZombieWrite(usize),
}

/// A world while one action is carried out.
pub(crate) struct Step<'a> {
    pub(crate) run: &'a Run,
    pub(crate) world: World,
    answers: VecDeque<(usize, Event)>,
    /// The process that is told something next dies after so many effects.
    fuse: Option<usize>,
    burnt: bool,
}

fn fresh(of: usize, run: &Run) -> Member {
    Member::mutated(name(of), run.settings.clone(), run.mutation)
}

impl World {
    /// Nothing has started; member a founds the pair.
    pub(crate) fn new(run: &Run) -> Self {
        let node = |of| {
            Shared::new(Node {
                member: fresh(of, run),
                alive: false,
                disk: Disk::default(),
                outages: 0,
                starts: 0,
                rule: AckRule::Nothing,
                marks: Marks::default(),
                open: None,
                held: false,
                follow: None,
                ship: None,
                copy_from: None,
                copy_to: None,
                call: None,
                zombie: None,
                snapshot: None,
            })
        };
        Self {
            nodes: [node(0), node(1)],
            connection: Shared::new(None),
            record: Shared::new(Record::founded(PairId(7), MemberName::A)),
            version: 1,
            missing: false,
            promise: None,
            sworn: [None, None],
            late: Vec::new(),
            marker_version: 0,
            acked: Vec::new(),
            given_up: Vec::new(),
            destroyed: Vec::new(),
            ackers: Vec::new(),
            line: (0, Vec::new()),
            spent: Spent::default(),
            broken: None,
        }
    }

    pub(crate) fn state(&self, of: usize) -> StateName {
        self.nodes[of].member.state_name()
    }

    fn seal(&mut self) {
        for node in &mut self.nodes {
            node.seal();
        }
        self.connection.seal();
        self.record.seal();
    }

    fn version_text(&self) -> Version {
        Version(format!("{}.{}", self.version, self.marker_version))
    }

    /// What may happen now, within the bounds of the run.
    pub(crate) fn actions(&self, run: &Run, actions: &mut Vec<Action>) {
        for of in BOTH {
            self.own_actions(run, of, actions);
            self.troubles(run, of, actions);
        }
        let alive = self.nodes[0].alive && self.nodes[1].alive;
        match &*self.connection {
            None if alive => actions.push(Action::Connect),
            Some(connection) if !connection.cut && self.spent.cuts < run.cuts => actions.push(Action::Cut),
            None | Some(_) => {}
        }
        if self.missing {
            actions.extend(BOTH.into_iter().filter(|&of| self.may_be_asked(of)).map(Action::AskTestimony));
            if self.rebuilt(run).is_some_and(|record| record.epoch <= run.epochs) {
                actions.push(Action::Rebuild);
            }
        } else if self.spent.deletions < run.deletions && self.record.epoch > 0 {
            actions.push(Action::DeleteRecord);
        }
        for (index, (_, record)) in self.late.iter().enumerate() {
            if self.within(run, record) {
                actions.push(Action::Late(index));
            }
        }
    }

    fn own_actions(&self, run: &Run, of: usize, actions: &mut Vec<Action>) {
        let node = &*self.nodes[of];
        let first = actions.len();
        if let Some(connection) = &*self.connection
            && connection.up[of]
        {
            if !connection.cut && !connection.words[of].is_empty() {
                actions.push(Action::Deliver(of));
            }
            if connection.cut || !connection.up[1 - of] {
                actions.push(Action::Lost(of));
            }
        }
        if !node.alive {
            actions.push(Action::Start(of));
            return;
        }
        match &node.call {
            None => {}
            Some(Call::Read) => actions.push(Action::Execute(of)),
            Some(Call::Write { record, .. }) if !self.within(run, record) => {}
            Some(Call::Write { .. }) => actions.push(Action::Execute(of)),
            Some(Call::Done(_)) => actions.push(Action::Answer(of)),
        }
        if self.spent.cuts < run.cuts || !self.would_hang_up(of) {
            actions.push(Action::Silence(of));
        }
        if run.torn && self.spent.crashes < run.crashes {
            for index in first..actions.len() {
                for after in 1..=3 {
                    let torn = Action::Torn(Box::new(actions[index].clone()), after);
                    actions.push(torn);
                }
            }
        }
        if node.open.is_some() && !node.held && self.spent.writes < run.writes {
            actions.push(Action::Write(of));
        }
        if node.disk.durable < node.disk.journal.len() {
            actions.push(Action::Fsync(of));
        }
        let notes = run.roll_back.is_some() && node.member.state_name() == StateName::PrimaryActive;
        if node.member.state_name() == StateName::PrimaryDraining || notes {
            actions.push(Action::Impatience(of));
        }
        if node.member.snapshot().pod_spent {
            actions.push(Action::ReplacePod(of));
        }
        if self.may_copy(of) {
            actions.push(Action::Copied(of));
        }
        if run.watch && !self.missing && node.member.record().is_some_and(|known| *known != *self.record) {
            actions.push(Action::Watch(of));
        }
    }

    fn troubles(&self, run: &Run, of: usize, actions: &mut Vec<Action>) {
        let node = &*self.nodes[of];
        if node.alive {
            if self.spent.crashes < run.crashes {
                actions.push(Action::Kill(of));
                actions.extend((node.disk.durable..=node.disk.journal.len()).map(|left| Action::PowerLoss(of, left)));
            }
            if self.spent.lost < run.lost && matches!(node.call, Some(Call::Write { .. } | Call::Done(_))) {
                actions.push(Action::Timeout(of));
            }
            if self.spent.nominations < run.nominations {
                actions.push(Action::Nominate(of));
            }
            if self.spent.stops < run.stops {
                actions.push(Action::Terminate(of));
            }
            if self.spent.resyncs < run.resyncs {
                actions.push(Action::Resync(of));
            }
        }
        let disaster = self.spent.disasters < run.disasters;
        if disaster && !node.alive && run.lose_volume {
            actions.push(Action::LoseVolume(of));
        }
        if run.snapshots && disaster && !node.alive && node.snapshot.is_some() {
            actions.push(Action::RestoreSnapshot(of));
        }
        if run.roll_back.is_some() {
            let noted = self.record.positions.get(name(of)).copied().unwrap_or_default();
            let known = noted == node.disk.end() || run.roll_back == Some(false);
            if !node.alive && disaster && node.snapshot.is_some() && known {
                actions.push(Action::RollBack(of));
            }
        }
        if self.spent.forces < run.forces && self.record.epoch < run.epochs && self.record.epoch > 0 {
            actions.push(Action::Force(of));
        }
        if run.zombie {
            if node.alive && node.open.is_some() && node.zombie.is_none() && self.spent.crashes < run.crashes {
                actions.push(Action::LeaveZombie(of));
            }
            if node.zombie.is_some() && self.spent.writes < run.writes {
                actions.push(Action::ZombieWrite(of));
            }
        }
    }

    fn may_be_asked(&self, of: usize) -> bool {
        let node = &*self.nodes[of];
        let testimony = node.member.snapshot().testimony;
        node.alive
            && node.member.snapshot().highest_epoch.is_some()
            && (testimony.is_none() || testimony.map(|testimony| testimony.generation) != self.promise)
    }

    /// The new record that what was sworn allows.
    fn rebuilt(&self, run: &Run) -> Option<Record> {
        let [mut a, mut b] = self.sworn.clone();
        if run.flaw == Some(Flaw::OneTestimony) {
            // Whoever is there swears for both.
            (a, b) = (a.clone().or(b.clone()), b.or(a));
        }
        rebuilt(self.record.pair, self.record.founder, &PerMember { a, b }).ok()
    }

    /// A master that hears nothing for long ends its connection, which counts as trouble with the connection.
    fn would_hang_up(&self, of: usize) -> bool {
        let up = self.connection.as_ref().is_some_and(|connection| connection.up[of] && !connection.cut);
        up && matches!(
            self.nodes[of].member.ack_rule(),
            AckRule::WithPeer { .. } | AckRule::WithinLag { .. } | AckRule::Alone { .. }
        )
    }

    /// The bounds of the run end what would go on for ever.
    fn within(&self, run: &Run, record: &Record) -> bool {
        record.epoch <= run.epochs && record.wseq <= run.record_writes
    }

    fn may_copy(&self, to: usize) -> bool {
        let Some(connection) = &*self.connection else { return false };
        let session = Some(connection.session);
        !connection.cut
            && connection.up == [true, true]
            && self.nodes[to].copy_from == session
            && self.nodes[1 - to].copy_to == session
    }

    /// The next step of a world in which no more trouble is made: everything that can go on goes on, and time passes only
    /// when nothing else is left to do.
    pub(crate) fn calm_action(&self, idle: &mut usize) -> Action {
        for of in BOTH {
            let node = &*self.nodes[of];
            if let Some(connection) = &*self.connection
                && connection.up[of]
                && (connection.cut || !connection.up[1 - of])
            {
                return Action::Lost(of);
            }
            if !node.alive {
                return Action::Start(of);
            }
            if node.member.snapshot().pod_spent {
                return Action::ReplacePod(of);
            }
            match &node.call {
                None => {}
                Some(Call::Read | Call::Write { .. }) => return Action::Execute(of),
                Some(Call::Done(_)) => return Action::Answer(of),
            }
            if self.connection.as_ref().is_some_and(|connection| !connection.words[of].is_empty()) {
                return Action::Deliver(of);
            }
            if node.disk.durable < node.disk.journal.len() {
                return Action::Fsync(of);
            }
            if self.may_copy(of) {
                return Action::Copied(of);
            }
        }
        if self.missing {
            let asked = BOTH.into_iter().find(|&of| self.may_be_asked(of));
            return asked.map_or(Action::Rebuild, Action::AskTestimony);
        }
        if self.connection.is_none() {
            return Action::Connect;
        }
        for of in BOTH {
            if self.state(of) == StateName::PrimaryDraining {
                return Action::Impatience(of);
            }
        }
        *idle += 1;
        Action::Silence(*idle % 2)
    }

    /// One leads, the other follows, both are certified and equal.
    pub(crate) fn at_rest(&self) -> bool {
        let disks = [&self.nodes[0].disk, &self.nodes[1].disk];
        BOTH.iter().any(|&of| {
            self.state(of) == StateName::PrimaryActive
                && self.state(1 - of) == StateName::SecondaryActive
                && self.record.led_by(name(of))
        }) && self.record.certified.is_both()
            && disks[0].journal == disks[1].journal
            && disks.iter().all(|disk| disk.durable == disk.journal.len())
    }

    /// Only a human can go on, or nothing is left to go on with.
    pub(crate) fn needs_a_human(&self) -> bool {
        let whole = |of: usize| {
            let disk = &self.nodes[of].disk;
            disk.identity.as_ref().is_some_and(|identity| self.record.certifies(name(of), &identity.data_id))
        };
        let gone = self.record.epoch > 0 && !BOTH.iter().any(|&of| whole(of));
        let silent = |of: &usize| {
            self.missing && self.nodes[*of].alive && self.nodes[*of].member.snapshot().highest_epoch.is_none()
        };
        gone || BOTH.iter().any(silent)
            || BOTH.iter().any(|&of| {
                let asleep =
                    self.nodes[of].disk.identity.as_ref().is_some_and(|identity| identity.quarantine.is_some());
                asleep || self.state(of) == StateName::Quarantined
            })
    }
}

impl<'a> Step<'a> {
    pub(crate) fn new(run: &'a Run, world: &World) -> Self {
        Self { run, world: world.clone(), answers: VecDeque::new(), fuse: None, burnt: false }
    }

    /// The world after the action; none if the action changes nothing that can be told apart.
    pub(crate) fn take(mut self, action: &Action) -> Option<World> {
        if let Action::Torn(inner, after) = action {
            self.fuse = Some(*after);
            self.act(inner);
            if !self.burnt {
                return None;
            }
        } else {
            self.act(action);
        }
        self.settle();
        Some(self.world)
    }

    fn settle(&mut self) {
        let world = &mut self.world;
        let now = world.version_text();
        if self.run.flaw != Some(Flaw::TwoObjects) {
            // What names a version that is gone can never take effect.
            world.late.retain(|(expected, _)| *expected == now || expected.0.is_empty());
        }
        world.late.sort_by_key(|(_, record)| (record.epoch, record.wseq, record.nonce));
        world.late.dedup();
        world.acked.sort_by_key(|op| (op.seq, op.epoch, op.chain));
        world.seal();
        if world.broken.is_none() {
            world.broken = crate::judge::verdict(self.run, world);
        }
    }

    fn node(&mut self, of: usize) -> &mut Node {
        self.world.nodes[of].edit()
    }

    fn session(&self, of: usize) -> Option<u64> {
        self.world.connection.as_ref().filter(|connection| connection.up[of]).map(|connection| connection.session)
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Write(of) => self.write(*of),
            Action::Fsync(of) => self.fsync(*of),
            Action::Deliver(to) => self.deliver(*to),
            Action::Connect => self.connect(),
            Action::Cut => {
                self.world.spent.cuts += 1;
                if let Some(connection) = self.world.connection.edit() {
                    connection.cut = true;
                    connection.words = Default::default();
                }
            }
            Action::Lost(of) => self.lost(*of),
            Action::Execute(of) => self.execute(*of),
            Action::Answer(of) => self.answer(*of),
            Action::Timeout(of) => self.timeout(*of),
            Action::Late(index) => {
                let (expected, record) = self.world.late.remove(*index);
                self.store(&expected, &record);
            }
            Action::Watch(of) => {
                let (record, version) = (Box::new(self.world.record.clone_value()), self.world.version_text());
                self.tell(*of, Event::RecordSeen { record, version }, 0);
            }
            Action::Silence(of) => {
                self.world.spent.cuts += u8::from(self.world.would_hang_up(*of));
                self.tell(*of, Event::Tick, LONG);
            }
            Action::Impatience(of) => self.tell(*of, Event::Tick, SHORT),
            Action::Start(of) => self.start(*of),
            Action::Kill(of) => {
                self.world.spent.crashes += 1;
                self.die(*of, None);
            }
            Action::PowerLoss(of, left) => {
                self.world.spent.crashes += 1;
                self.die(*of, Some(*left));
            }
            Action::Torn(..) => {}
            Action::ReplacePod(of) => {
                self.die(*of, None);
                self.start(*of);
            }
            Action::Copied(to) => self.copied(*to),
            Action::Nominate(of) => {
                self.world.spent.nominations += 1;
                let request = Request { id: self.world.spent.nominations.to_string(), to: name(*of) };
                let epoch_seen = self.world.record.epoch;
                self.tell(*of, Event::Nominated { request, epoch_seen }, 0);
            }
            Action::Terminate(of) => {
                self.world.spent.stops += 1;
                self.tell(*of, Event::Terminate, 0);
            }
            Action::Resync(of) => {
                self.world.spent.resyncs += 1;
                self.tell(*of, Event::Order(Order::Resync), 0);
            }
            Action::LoseVolume(of) => self.replace_volume(*of, Disk::default()),
            Action::RestoreSnapshot(of) => {
                if let Some(disk) = self.node(*of).snapshot.take() {
                    self.replace_volume(*of, *disk);
                }
            }
            Action::RollBack(of) => {
                self.world.spent.disasters += 1;
                if let Some(disk) = self.node(*of).snapshot.take() {
                    self.node(*of).disk = Disk { rolled_back: true, ..*disk };
                    self.note_destroyed();
                }
            }
            Action::Force(to) => self.force(*to),
            Action::DeleteRecord => {
                self.world.spent.deletions += 1;
                self.world.version += 1;
                self.world.missing = true;
            }
            Action::AskTestimony(of) => self.ask_testimony(*of),
            Action::Rebuild => self.rebuild(),
            Action::LeaveZombie(of) => self.leave_zombie(*of),
            Action::ZombieWrite(of) => self.zombie_write(*of),
        }
    }

    /// Tells a member something, carries out what it wants, and gives it the answers of its own stages.
    fn tell(&mut self, of: usize, event: Event, millis: u64) {
        self.answers.push_back((of, event));
        let mut millis = millis;
        while let Some((of, event)) = self.answers.pop_front() {
            let millis = if self.reads_for_a_claim(of, &event) { LONG } else { std::mem::take(&mut millis) };
            let random = self.random(of);
            let node = self.node(of);
            if !node.alive {
                continue;
            }
            let effects = node.member.step(event, Now { millis, random });
            node.member.forget_times();
            let fuse = self.fuse.take();
            for (number, effect) in effects.into_iter().enumerate() {
                if fuse == Some(number) {
                    self.burnt = true;
                    self.world.spent.crashes += 1;
                    self.die(of, None);
                    break;
                }
                if !self.perform(of, effect) {
                    break;
                }
            }
            self.reply(of);
            self.ship(of);
        }
    }

    /// Whether the master is still silent when the record was read decides about trying again, never about safety: so it is.
    fn reads_for_a_claim(&self, of: usize, event: &Event) -> bool {
        matches!(event, Event::RecordRead { .. }) && self.world.nodes[of].member.is_claiming()
    }

    /// Never the same for two claims that could both be made, nor for two copies of the data.
    fn random(&self, of: usize) -> u128 {
        let node = &self.world.nodes[of];
        let parts = [of as u64 + 1, u64::from(node.starts), u64::from(node.disk.volume), self.world.version];
        parts.iter().fold(1_u128, |sum, part| sum * 1_000 + u128::from(*part))
    }

    fn perform(&mut self, of: usize, effect: Effect) -> bool {
        let session = self.session(of);
        let node = self.world.nodes[of].edit();
        match effect {
            Effect::PersistIdentity(identity) => {
                node.disk.promised = node.disk.promised.max(identity.promised.epoch);
                node.disk.identity = Some(*identity);
            }
            Effect::ReadRecord if self.run.stale_reads => node.call = Some(Call::Read),
            Effect::ReadRecord if self.world.missing => self.answers.push_back((of, Event::RecordMissing)),
            Effect::ReadRecord => {
                let (record, version) = (Box::new(self.world.record.clone_value()), self.world.version_text());
                self.answers.push_back((of, Event::RecordRead { record, version }));
            }
            Effect::WriteRecord { expected, record } => node.call = Some(Call::Write { expected, record }),
            Effect::SetAckRule(rule) => {
                node.rule = rule;
                let acknowledged = node.marks.acknowledged;
                self.answers.push_back((of, Event::RuleSet { rule, acknowledged }));
            }
            Effect::HoldRequests => {
                node.held = true;
                let end = node.disk.journal.len() as u64;
                self.answers.push_back((of, Event::Held { end }));
            }
            Effect::OpenWrites { epoch } => (node.open, node.held) = (Some(epoch), false),
            Effect::RefuseWrites => (node.open, node.held) = (None, false),
            Effect::SyncJournal => {
                let end = self.make_durable(of);
                self.answers.push_back((of, Event::LocalDurable(end)));
            }
            Effect::ApplyAll => {
                let end = self.make_durable(of);
                let node = self.node(of);
                node.disk.applied = node.disk.journal.len();
                self.opened(of);
                self.answers.push_back((of, Event::AppliedAll { end }));
            }
            Effect::Follow { session, generation, from, memory_acks } => {
                node.follow = Some((session, generation, memory_acks));
                let old = generation.epoch < node.disk.promised;
                if from != node.disk.end() {
                    self.world.broken = Some("a member follows from elsewhere than its journal's end");
                }
                if old {
                    self.world.broken = Some("I4: an epoch older than the promise is followed");
                }
            }
            Effect::EndMemoryAcks => {
                if let Some(follow) = &mut node.follow {
                    follow.2 = false;
                }
            }
            Effect::StopFollowing => node.follow = None,
            Effect::StartShipping { session, from } => {
                if from.seq + 1 >= node.disk.first && node.disk.has(from) {
                    node.ship = Some((session, from.seq as usize));
                    node.marks.session = Some(session);
                    (node.marks.peer_received, node.marks.peer_durable) = (0, 0);
                } else {
                    self.answers.push_back((of, Event::ShippingImpossible { session }));
                }
            }
            Effect::StopShipping => node.ship = None,
            Effect::SendPeer { session: on, message } => {
                if session == Some(on) {
                    self.send(of, message);
                }
            }
            Effect::DropPeer { session: on } => {
                if session == Some(on) {
                    self.hang_up(of);
                }
            }
            Effect::StartNetcopyAsSource { session } => node.copy_to = Some(session),
            Effect::StartNetcopyAsTarget { session, generation } => {
                node.copy_from = Some(session);
                node.disk.emptied = true;
                if generation.epoch < node.disk.promised {
                    self.world.broken = Some("I4: an epoch older than the promise is copied");
                }
            }
            Effect::StopNetcopy => (node.copy_to, node.copy_from) = (None, None),
            Effect::SaveTail { after } => {
                let tail: Vec<Position> = node.disk.journal.iter().skip(after.seq as usize).copied().collect();
                node.disk.aside.extend(tail);
                node.disk.aside.sort_by_key(|op| (op.seq, op.epoch, op.chain));
                node.disk.aside.dedup();
            }
            Effect::CutJournal { after } => {
                if !node.disk.has(after) {
                    self.answers.push_back((of, Event::CutImpossible));
                    return false;
                }
                if node.disk.applied > after.seq as usize {
                    self.world.broken = Some("an operation that shows on the volume was cut from the journal");
                }
                let node = self.node(of);
                node.disk.journal.truncate(after.seq as usize);
                node.disk.durable = node.disk.journal.len();
            }
            Effect::SetVolumeAside => {
                let tail = std::mem::take(&mut node.disk.journal);
                node.disk.emptied = false;
                node.disk.aside.extend(tail);
                (node.disk.first, node.disk.durable, node.disk.applied) = (1, 0, 0);
            }
            Effect::Testify => {
                self.make_durable(of);
                let facts = self.world.nodes[of].disk.facts();
                self.answers.push_back((of, Event::Testified(facts)));
            }
            Effect::Exit { .. } => {
                self.die(of, None);
                return false;
            }
            Effect::ClaimService { epoch } => {
                if epoch > self.world.record.epoch && self.run.flaw.is_none() {
                    self.world.broken = Some("I5: the Service is claimed for an epoch that was never recorded");
                }
            }
            Effect::Report(snapshot) => {
                let identity = node.disk.identity.clone();
                self.world.sworn[of] = snapshot.testimony.zip(identity).map(|(testimony, identity)| {
                    (testimony, Certificate { data_id: identity.data_id, boot: identity.boot })
                });
            }
            Effect::OpenGate { .. } | Effect::CloseGate | Effect::FailHeld => {}
        }
        true
    }

    fn send(&mut self, of: usize, message: Control) {
        let told = if let Control::Heartbeat { .. } = message {
            // Heartbeats carry time, and a newer epoch that the hello carries as well. They may always be lost.
            if !self.run.heartbeats {
                return;
            }
            None
        } else if let Control::Follow { .. } = message {
            let node = &self.world.nodes[of];
            let durable = node.disk.durable as u64;
            let memory_acks = node.follow.is_some_and(|(_, _, memory_acks)| memory_acks) || self.receipts_anyway();
            let received = if memory_acks { node.disk.journal.len() as u64 } else { durable };
            Some(Word::Ack { received, durable })
        } else {
            None
        };
        if let Some(connection) = self.world.connection.edit()
            && !connection.cut
            && connection.up[1 - of]
        {
            connection.words[1 - of].push_back(Word::Control(message));
            connection.words[1 - of].extend(told);
        }
    }

    fn make_durable(&mut self, of: usize) -> Position {
        let node = self.node(of);
        node.disk.durable = node.disk.journal.len();
        node.marks.durable = node.disk.durable as u64;
        node.disk.end()
    }

    /// A new reign begins to serve: its journal must be a beginning of what was issued before.
    fn opened(&mut self, of: usize) {
        let node = &self.world.nodes[of];
        let epoch = node.disk.identity.as_ref().map_or(0, |identity| identity.promised.epoch);
        let journal = node.disk.journal.clone();
        let world = &mut self.world;
        if epoch > world.line.0 {
            if !world.line.1.starts_with(&journal) && world.spent.disasters + world.spent.forces == 0 {
                world.broken = Some("I3: the new master's journal is no beginning of what the former one issued");
            }
            if self.run.lag.is_some() {
                crate::judge::account_for_lag(self.run, world, of);
            }
            let world = &mut self.world;
            world.line = (epoch, journal);
        }
    }

    fn write(&mut self, of: usize) {
        self.world.spent.writes += 1;
        let number = u64::from(self.world.spent.writes);
        let node = self.node(of);
        let Some(epoch) = node.open else { return };
        let last = node.disk.end();
        let op = Position { epoch, seq: last.seq + 1, chain: (last.chain * 10 + number) * 10 + epoch };
        node.disk.journal.push(op);
        node.disk.applied = node.disk.journal.len();
        if self.world.line.0 == epoch {
            self.world.line.1.push(op);
        }
        self.ship(of);
    }

    fn ship(&mut self, of: usize) {
        let session = self.session(of);
        let node = &*self.world.nodes[of];
        let Some((on, sent)) = node.ship else { return };
        if session != Some(on) || sent >= node.disk.journal.len() {
            return;
        }
        let committed = node.disk.durable;
        let ops: Vec<Position> = node.disk.journal[sent..].to_vec();
        let end = node.disk.journal.len();
        self.node(of).ship = Some((on, end));
        if let Some(connection) = self.world.connection.edit()
            && !connection.cut
            && connection.up[1 - of]
        {
            connection.words[1 - of].extend(ops.into_iter().map(|op| Word::Op { op, committed }));
        }
    }

    fn fsync(&mut self, of: usize) {
        let end = self.make_durable(of);
        let follows = self.world.nodes[of].follow;
        if let Some((session, ..)) = follows
            && self.session(of) == Some(session)
        {
            self.acknowledge_to_peer(of, end.seq, end.seq);
        }
        self.tell(of, Event::LocalDurable(end), 0);
    }

    fn acknowledge_to_peer(&mut self, of: usize, received: u64, durable: u64) {
        if let Some(connection) = self.world.connection.edit()
            && !connection.cut
            && connection.up[1 - of]
        {
            connection.words[1 - of].push_back(Word::Ack { received, durable });
        }
    }

    /// Replies to the application whatever the rule allows now.
    fn reply(&mut self, of: usize) {
        let node = &*self.world.nodes[of];
        let Some(epoch) = node.open.filter(|_| node.alive) else { return };
        let mut marks = node.marks;
        marks.within_lag = marks.peer_durable + self.run.lag.unwrap_or_default();
        let upto = acknowledged(node.rule, &marks, 0);
        if upto <= marks.acknowledged {
            return;
        }
        let fresh: Vec<Position> = node.disk.journal.iter().take(upto as usize).copied().collect();
        self.node(of).marks.acknowledged = upto;
        self.acknowledge(of, epoch, fresh);
    }

    fn acknowledge(&mut self, of: usize, epoch: u64, ops: Vec<Position>) {
        let world = &mut self.world;
        if world.spent.forces > 0 && epoch < world.record.epoch {
            // The human has given up this reign, and what it still acknowledges.
            let fresh = ops.into_iter().filter(|op| !world.acked.contains(op) && !world.given_up.contains(op));
            let fresh: Vec<Position> = fresh.collect();
            world.given_up.extend(fresh);
            return;
        }
        let fresh: Vec<Position> =
            ops.into_iter().filter(|op| !world.acked.contains(op) && !world.given_up.contains(op)).collect();
        if fresh.is_empty() {
            return;
        }
        match world.ackers.iter().find(|(known, _)| *known == epoch) {
            Some((_, by)) if usize::from(*by) != of => {
                world.broken = Some("I1: both members acknowledge in one epoch");
            }
            Some(_) => {}
            None => world.ackers.push((epoch, of as u8)),
        }
        world.acked.extend(fresh);
    }

    fn deliver(&mut self, to: usize) {
        let Some(connection) = self.world.connection.edit() else { return };
        let session = connection.session;
        let Some(word) = connection.words[to].pop_front() else { return };
        match word {
            Word::Control(message) => self.tell(to, Event::PeerMessage { session, message }, 0),
            Word::Op { op, committed } => self.receive(to, session, op, committed),
            Word::Ack { received, durable } => {
                let node = self.node(to);
                if node.marks.session == Some(session) {
                    node.marks.peer_received = node.marks.peer_received.max(received);
                    node.marks.peer_durable = node.marks.peer_durable.max(durable);
                }
                self.tell(to, Event::PeerAck { session, received, durable }, 0);
            }
        }
    }

    fn receive(&mut self, to: usize, session: u64, op: Position, committed: usize) {
        let received_anyway = self.receipts_anyway();
        let node = self.node(to);
        let Some((on, generation, memory_acks)) = node.follow else { return };
        if on != session || op.seq != node.disk.end().seq + 1 {
            return;
        }
        let memory_acks = memory_acks || received_anyway;
        let old = generation.epoch < node.disk.promised;
        node.disk.journal.push(op);
        if !memory_acks {
            node.disk.durable = node.disk.journal.len();
        }
        node.marks.durable = node.disk.durable as u64;
        node.disk.applied = node.disk.applied.max(committed.min(node.disk.durable));
        let (received, durable) = (node.disk.journal.len() as u64, node.disk.durable as u64);
        if old {
            self.world.broken = Some("I4: an operation of an epoch older than the promise was accepted");
        }
        self.acknowledge_to_peer(to, received, durable);
        if durable == received {
            let end = self.world.nodes[to].disk.end();
            self.tell(to, Event::LocalDurable(end), 0);
        }
    }

    /// The stage that receives does not care whether it may acknowledge from memory.
    fn receipts_anyway(&self) -> bool {
        self.run.flaw == Some(Flaw::ReceiptsAnyway)
    }

    fn connect(&mut self) {
        let used = |session: u64| {
            self.world.nodes.iter().any(|node| {
                let named = |rule: AckRule| match rule {
                    AckRule::WithPeer { session, .. } | AckRule::WithinLag { session, .. } => session,
                    AckRule::Nothing | AckRule::Alone { .. } => None,
                };
                node.marks.session == Some(session)
                    || named(node.rule) == Some(session)
                    || named(node.member.ack_rule()) == Some(session)
            })
        };
        let session = (1..).find(|session| !used(*session)).unwrap_or(1);
        let words = [VecDeque::new(), VecDeque::new()];
        *self.world.connection.edit() = Some(Connection { session, words, up: [true, true], cut: false });
        for of in BOTH {
            let journal = self.world.nodes[of].disk.facts();
            self.tell(of, Event::PeerUp { session, journal }, 0);
        }
    }

    /// This side ends the connection. What it sent before may still arrive.
    fn hang_up(&mut self, of: usize) {
        let Some(connection) = self.world.connection.edit() else { return };
        connection.up[of] = false;
        connection.words[of].clear();
        if connection.up == [false, false] {
            *self.world.connection.edit() = None;
        }
        let node = self.node(of);
        (node.follow, node.ship, node.copy_from, node.copy_to) = (None, None, None, None);
    }

    fn lost(&mut self, of: usize) {
        let Some(session) = self.session(of) else { return };
        self.hang_up(of);
        self.tell(of, Event::PeerDown { session: Some(session), evidence: Evidence::Timeout }, 0);
    }

    fn execute(&mut self, of: usize) {
        let Some(call) = self.node(of).call.take() else { return };
        let done = match call {
            Call::Read if self.world.missing => Event::RecordMissing,
            Call::Read => Event::RecordRead {
                record: Box::new(self.world.record.clone_value()),
                version: self.world.version_text(),
            },
            Call::Write { expected, record } => {
                if self.store(&expected, &record) {
                    Event::RecordWritten { version: self.world.version_text() }
                } else {
                    Event::RecordConflict
                }
            }
            Call::Done(event) => *event,
        };
        self.node(of).call = Some(Call::Done(Box::new(done)));
    }

    fn answer(&mut self, of: usize) {
        let Some(Call::Done(event)) = self.node(of).call.take() else { return };
        self.tell(of, *event, 0);
    }

    fn timeout(&mut self, of: usize) {
        self.world.spent.lost += 1;
        if let Some(Call::Write { expected, record }) = self.node(of).call.take() {
            self.world.late.push((expected, record));
        }
        self.tell(of, Event::RecordUnknown, 0);
    }

    /// The API server replaces the record if its version is the expected one.
    fn store(&mut self, expected: &Version, record: &Record) -> bool {
        if self.world.missing {
            return false;
        }
        if self.run.flaw == Some(Flaw::TwoObjects) {
            return self.store_in_two(expected, record);
        }
        let world = &mut self.world;
        if *expected != world.version_text() && !expected.0.is_empty() {
            return false;
        }
        if self.run.mutation.is_none() && check(&world.record, record).is_err() {
            world.broken = Some("an illegal change of the record");
        }
        // As Kubernetes does: what changes nothing does not move the version.
        if *world.record != *record {
            world.version += 1;
            *world.record.edit() = record.clone();
        }
        true
    }

    /// The marker in one object and the lead in another: a claim compares and moves only the second, everything else only
    /// the first.
    fn store_in_two(&mut self, expected: &Version, record: &Record) -> bool {
        let now = self.world.version_text();
        let (lead, marker) = expected.0.split_once('.').unwrap_or_default();
        let (lead_now, marker_now) = now.0.split_once('.').unwrap_or_default();
        let world = &mut self.world;
        if record.epoch > world.record.epoch {
            if lead != lead_now {
                return false;
            }
            world.version += 1;
            let old = world.record.edit();
            (old.epoch, old.nonce, old.master, old.wseq) = (record.epoch, record.nonce, record.master, record.wseq);
        } else {
            if marker != marker_now {
                return false;
            }
            world.marker_version += 1;
            let old = world.record.edit();
            (old.certified, old.wseq) = (record.certified.clone(), record.wseq.max(old.wseq));
        }
        true
    }

    fn start(&mut self, of: usize) {
        let run = self.run;
        let node = self.node(of);
        node.member = fresh(of, run);
        node.alive = true;
        node.starts += 1;
        // What a process reads back when it starts it makes durable first.
        node.disk.durable = node.disk.journal.len();
        node.marks = Marks { durable: node.disk.durable as u64, ..Marks::default() };
        let facts = Facts {
            identity: node.disk.identity.clone(),
            volume: format!("{}{}", name(of), node.disk.volume),
            has_files: false,
            journal: node.disk.facts(),
            corrupt: false,
            node_boot: node.outages.to_string(),
            pod: node.starts.to_string(),
        };
        self.tell(of, Event::Started(Box::new(facts)), 0);
    }

    /// The process ends. With `left` the machine does too, and only so many operations are left on its disk.
    fn die(&mut self, of: usize, left: Option<usize>) {
        let run = self.run;
        let node = self.node(of);
        node.alive = false;
        node.member = fresh(of, run);
        let call = node.call.take();
        (node.rule, node.marks, node.open, node.held) = (AckRule::Nothing, Marks::default(), None, false);
        if let Some(left) = left {
            node.outages += 1;
            node.disk.journal.truncate(left);
            node.disk.durable = left;
            node.disk.applied = node.disk.applied.min(left);
        }
        if let Some(Call::Write { expected, record }) = call {
            // It may be on its way.
            self.world.late.push((expected, record));
        }
        self.answers.retain(|(to, _)| *to != of);
        if self.session(of).is_some() {
            self.hang_up(of);
        } else {
            let node = self.node(of);
            (node.follow, node.ship, node.copy_from, node.copy_to) = (None, None, None, None);
        }
    }

    fn copied(&mut self, to: usize) {
        let source = &self.world.nodes[1 - to];
        let journal: Vec<Position> = source.disk.journal[..source.disk.durable].to_vec();
        self.node(1 - to).copy_to = None;
        let node = self.node(to);
        node.copy_from = None;
        let len = journal.len();
        node.disk.journal = journal;
        (node.disk.durable, node.disk.applied, node.disk.first) = (len, len, len as u64 + 1);
        node.disk.emptied = false;
        node.disk.rolled_back = false;
        node.marks.durable = len as u64;
        let end = node.disk.end();
        self.tell(to, Event::NetcopyDone { end }, 0);
    }

    fn replace_volume(&mut self, of: usize, disk: Disk) {
        self.world.spent.disasters += 1;
        let node = self.node(of);
        let volume = node.disk.volume + 1;
        node.disk = Disk { volume, ..disk };
        self.note_destroyed();
    }

    /// What was on no other volume is gone; nobody can keep it any more.
    fn note_destroyed(&mut self) {
        let world = &mut self.world;
        let gone = |op: &&Position| !world.nodes.iter().any(|node| node.disk.holds(op) || node.disk.aside.contains(op));
        let gone: Vec<Position> = world.acked.iter().chain(&world.given_up).filter(gone).copied().collect();
        world.destroyed.extend(gone);
        world.destroyed.sort_by_key(|op| (op.seq, op.epoch, op.chain));
        world.destroyed.dedup();
    }

    /// The human's word, as the record's own rules for it say: a new epoch that only the named member may claim.
    fn force(&mut self, to: usize) {
        self.world.spent.forces += 1;
        let old = self.world.record.clone_value();
        let disk = &self.world.nodes[to].disk;
        let Some(identity) = &disk.identity else { return };
        let certificate = Certificate { data_id: identity.data_id.clone(), boot: identity.boot };
        let mut record = old.clone();
        record.epoch += 1;
        record.nonce.0 = 900_000 + u128::from(record.epoch);
        record.master = None;
        record.certified = PerMember::only(name(to), certificate);
        record.wseq += 1;
        let journal = disk.journal[..disk.durable].to_vec();
        if check_forced(&old, &record).is_err() {
            self.world.broken = Some("the record's rules refuse the human's word");
        }
        let world = &mut self.world;
        world.version += 1;
        *world.record.edit() = record;
        let (kept, lost): (Vec<Position>, Vec<Position>) = world.acked.iter().partition(|op| journal.contains(op));
        world.acked = kept;
        world.given_up.extend(lost);
    }

    /// As the operator asks: for a generation above all that either of them has heard of, and for the same one until then.
    fn ask_testimony(&mut self, of: usize) {
        let known = BOTH.map(|of| {
            let identity = self.world.nodes[of].disk.identity.as_ref();
            identity.map(|identity| (identity.highest_epoch(), identity.promised)).unwrap_or_default()
        });
        let promise = to_promise(self.world.promise, &known, 0, |epoch| Nonce(800_000 + u128::from(epoch)));
        self.world.promise = Some(promise);
        self.tell(of, Event::Testify(promise), 0);
    }

    fn rebuild(&mut self) {
        let Some(record) = self.world.rebuilt(self.run) else { return };
        let world = &mut self.world;
        *world.record.edit() = record;
        world.version += 1;
        (world.missing, world.promise, world.sworn) = (false, None, [None, None]);
    }

    fn leave_zombie(&mut self, of: usize) {
        self.world.spent.crashes += 1;
        let node = self.node(of);
        if let Some(epoch) = node.open {
            let rule = node.rule;
            node.zombie = Some((rule, epoch, node.disk.journal.clone()));
        }
        self.die(of, None);
    }

    /// On a volume that is fenced the write fails before it is acknowledged; otherwise it lands where nobody will read it.
    fn zombie_write(&mut self, of: usize) {
        self.world.spent.writes += 1;
        let number = u64::from(self.world.spent.writes);
        let Some((rule, epoch, mut journal)) = self.world.nodes[of].zombie.clone() else { return };
        let last = journal.last().copied().unwrap_or_default();
        let op = Position { epoch, seq: last.seq + 1, chain: (last.chain * 10 + number) * 10 + epoch };
        let fenced = self.run.flaw != Some(Flaw::Zombie);
        journal.push(op);
        let durable = if fenced { 0 } else { op.seq };
        let upto = acknowledged(rule, &Marks { durable, ..Marks::default() }, 0);
        self.node(of).zombie = Some((rule, epoch, journal));
        if upto >= op.seq {
            self.acknowledge(of, epoch, vec![op]);
        }
    }
}

impl<T: Clone> Shared<T> {
    fn clone_value(&self) -> T {
        T::clone(&self.value)
    }
}

impl Shared<Node> {
    /// A snapshot of the volume as it is now is kept somewhere.
    pub(crate) fn take_snapshot(&mut self) {
        let node = self.edit();
        node.snapshot = Some(Box::new(node.disk.clone()));
        self.seal();
    }

    /// From here on this member leaves a rule out.
    pub(crate) fn leave_out(&mut self, mutation: Option<tandem_protocol::member::Mutation>) {
        self.edit().member.leave_out(mutation);
        self.seal();
    }
}

fn short(journal: &[Position]) -> String {
    let ops: Vec<String> = journal.iter().map(|op| format!("{}.{}", op.epoch, op.seq)).collect();
    ops.join(" ")
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for of in BOTH {
            let node = &*self.nodes[of];
            let promised = node.disk.identity.as_ref().map_or(0, |identity| identity.promised.epoch);
            let state = if node.alive { format!("{:?}", self.state(of)) } else { "down".to_string() };
            write!(f, "{} {state} e{promised} [{}]", name(of), short(&node.disk.journal))?;
            if node.disk.durable < node.disk.journal.len() {
                write!(f, " durable {}", node.disk.durable)?;
            }
            f.write_str("; ")?;
        }
        let master = self.record.master.map_or("none".to_string(), |master| master.member.to_string());
        if self.missing {
            f.write_str("no record; ")?;
        }
        let certified: String = BOTH
            .iter()
            .filter(|&&of| self.record.certified.get(name(of)).is_some())
            .map(|&of| name(of).to_string())
            .collect();
        write!(f, "record {} e{} master {master} certified {certified}; ", self.record.wseq, self.record.epoch)?;
        write!(f, "acknowledged [{}]", short(&self.acked))?;
        if !self.late.is_empty() {
            write!(f, "; {} late", self.late.len())?;
        }
        Ok(())
    }
}
