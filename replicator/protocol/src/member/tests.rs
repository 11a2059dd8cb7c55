//! Random histories of two members, a record and a bad world, one seed each. Judged after every step by what the protocol
//! promises, and at the end by whether the pair came to rest.

use std::collections::{BTreeMap, VecDeque};

use super::{
    Control, Effect, Event, Evidence, Facts, FailoverMode, JournalFacts, Member, Mutation, Now, Order, Reason,
    StateName,
};
use crate::Position;
use crate::ack::{AckRule, Marks, acknowledged};
use crate::identity::{Generation, Identity, MemberName, PairId, Span};
use crate::member::settings::{AckPolicy, Protection, Settings};
use crate::record::{Record, Request, Version, check};

/// splitmix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Op {
    at: Position,
}

fn next(end: Position, epoch: u64, salt: u64) -> Op {
    let seq = end.seq + 1;
    let chain = Dice(end.chain ^ epoch.wrapping_mul(31) ^ seq.wrapping_mul(1_000_003) ^ salt).roll();
    Op { at: Position { epoch, seq, chain } }
}

#[derive(Default)]
struct Disk {
    identity: Option<Identity>,
    journal: Vec<Op>,
    durable: usize,
    applied: u64,
    aside: Vec<Op>,
}

impl Disk {
    fn end(&self) -> Position {
        self.journal.last().map(|op| op.at).unwrap_or_default()
    }
    fn holds(&self, op: &Op) -> bool {
        usize::try_from(op.at.seq).ok().and_then(|seq| self.journal.get(seq - 1)) == Some(op)
    }
    fn facts(&self) -> JournalFacts {
        JournalFacts { first: 1, end: self.end(), applied: self.applied }
    }
}

enum Word {
    Control(Control),
    Op { op: Op, committed: u64 },
    Ack { received: u64, durable: u64 },
}

enum Call {
    Read,
    Write { expected: Version, record: Box<Record> },
}

struct Node {
    member: Member,
    alive: bool,
    disk: Disk,
    boots: u64,
    pod: u64,
    /// The pod and the epoch that its application saw last.
    shown: Option<(u64, u64)>,
    rule: AckRule,
    marks: Marks,
    open: Option<u64>,
    held: bool,
    follow: Option<(u64, Generation, bool)>,
    ship: Option<(u64, u64)>,
    copy_from: Option<u64>,
    copy_to: Option<u64>,
    answers: VecDeque<Event>,
    call: Option<Call>,
    acked_told: u64,
}

struct Conn {
    session: u64,
    /// To a, to b.
    words: [VecDeque<Word>; 2],
    frozen: bool,
}

struct World {
    dice: Dice,
    settings: Settings,
    mutation: Option<Mutation>,
    now: u64,
    nodes: [Node; 2],
    conn: Option<Conn>,
    sessions: u64,
    cut: bool,
    record: Record,
    version: u64,
    late: Vec<(Version, Box<Record>)>,
    api_down: bool,
    acked: Vec<Op>,
    ackers: BTreeMap<u64, usize>,
    /// Who led which epoch.
    reigns: BTreeMap<u64, usize>,
    token: u64,
    story: Vec<String>,
    calm: bool,
    reached: [u64; 4],
}

fn name(of: usize) -> MemberName {
    if of == 0 { MemberName::A } else { MemberName::B }
}

impl World {
    fn new(seed: u64, settings: Settings, mutation: Option<Mutation>) -> Self {
        let node = |of| Node {
            member: member(name(of), &settings, mutation),
            alive: false,
            disk: Disk::default(),
            boots: 1,
            pod: 1,
            shown: None,
            rule: AckRule::Nothing,
            marks: Marks::default(),
            open: None,
            held: false,
            follow: None,
            ship: None,
            copy_from: None,
            copy_to: None,
            answers: VecDeque::new(),
            call: None,
            acked_told: 0,
        };
        Self {
            dice: Dice(seed),
            nodes: [node(0), node(1)],
            settings,
            mutation,
            now: 1_000,
            conn: None,
            sessions: 0,
            cut: false,
            record: Record::founded(PairId(7), MemberName::A),
            version: 1,
            late: Vec::new(),
            api_down: false,
            acked: Vec::new(),
            ackers: BTreeMap::new(),
            reigns: BTreeMap::new(),
            token: 0,
            story: Vec::new(),
            calm: false,
            reached: [0; 4],
        }
    }

    fn start(&mut self, of: usize) {
        let fresh = member(name(of), &self.settings, self.mutation);
        let node = &mut self.nodes[of];
        node.member = fresh;
        node.alive = true;
        (node.rule, node.open, node.held, node.follow, node.ship) = (AckRule::Nothing, None, false, None, None);
        (node.copy_from, node.copy_to, node.call) = (None, None, None);
        node.answers.clear();
        // What a restarted process reads back it makes durable first.
        node.disk.durable = node.disk.journal.len();
        node.marks = Marks { durable: node.disk.durable as u64, ..Marks::default() };
        let facts = Facts {
            identity: node.disk.identity.clone(),
            volume: format!("volume-{of}"),
            has_files: false,
            journal: node.disk.facts(),
            corrupt: false,
            node_boot: format!("boot-{}", node.boots),
            pod: format!("pod-{}", node.pod),
        };
        self.tell(of, Event::Started(Box::new(facts)));
    }

    fn kill(&mut self, of: usize, power: bool) {
        self.story.push(format!("{} kill {} power={power}", self.now, name(of)));
        let lost = self.dice.roll();
        let node = &mut self.nodes[of];
        node.alive = false;
        node.call = None;
        if power {
            node.boots += 1;
            let tail = (node.disk.journal.len() - node.disk.durable) as u64;
            let kept = node.disk.durable + if tail > 0 { (lost % (tail + 1)) as usize } else { 0 };
            node.disk.journal.truncate(kept);
            // The volume may show more than the journal kept: `unverified` covers that.
        }
        self.disconnect(if power { Evidence::Timeout } else { Evidence::Reset }, Some(of));
    }

    fn disconnect(&mut self, evidence: Evidence, dead: Option<usize>) {
        let Some(conn) = self.conn.take() else { return };
        for of in 0..2 {
            if Some(of) != dead {
                self.tell(of, Event::PeerDown { session: Some(conn.session), evidence });
            }
        }
    }

    fn tell(&mut self, of: usize, event: Event) {
        if !self.nodes[of].alive {
            return;
        }
        let random = u128::from(self.dice.roll());
        let before = self.nodes[of].member.state_name();
        let dull = matches!(
            &event,
            Event::Tick
                | Event::PeerAck { .. }
                | Event::LocalDurable(_)
                | Event::PeerMessage { message: Control::Heartbeat { .. }, .. }
        );
        let told = if dull { String::new() } else { format!("{event:?}") };
        let effects = self.nodes[of].member.step(event, Now { millis: self.now, random });
        let after = self.nodes[of].member.state_name();
        if before != after || !told.is_empty() {
            let told: String = told.chars().take(180).collect();
            self.story.push(format!("{} {} {before:?} -> {after:?} {told}", self.now, name(of)));
        }
        if after == StateName::PrimaryActive && before != after {
            self.reached[0] += 1;
        }
        for effect in effects {
            if !self.perform(of, effect) {
                break;
            }
        }
    }

    fn perform(&mut self, of: usize, effect: Effect) -> bool {
        let session = self.conn.as_ref().map(|conn| conn.session);
        let node = &mut self.nodes[of];
        match effect {
            Effect::PersistIdentity(identity) => node.disk.identity = Some(*identity),
            Effect::Testify => node.answers.push_back(Event::Testified(node.disk.facts())),
            Effect::ReadRecord => {
                assert!(node.call.is_none(), "one request at a time");
                node.call = Some(Call::Read);
            }
            Effect::WriteRecord { expected, record } => {
                assert!(node.call.is_none(), "one request at a time");
                node.call = Some(Call::Write { expected, record });
            }
            Effect::SetAckRule(rule) => {
                self.acknowledge(of);
                let node = &mut self.nodes[of];
                if let AckRule::Alone { .. } = rule {
                    let only = self.record.certified.is_only(name(of)) || self.record.epoch > node.open.unwrap_or(0);
                    assert!(only || self.mutation.is_some(), "{}", self.tell_story("alone without a record"));
                }
                let node = &mut self.nodes[of];
                node.rule = rule;
                node.answers.push_back(Event::RuleSet { rule, acknowledged: node.marks.acknowledged });
            }
            Effect::HoldRequests => {
                node.held = true;
                let end = node.disk.journal.len() as u64;
                node.answers.push_back(Event::Held { end });
            }
            Effect::OpenWrites { epoch } => {
                (node.open, node.held) = (Some(epoch), false);
                let before = node.shown.replace((node.pod, epoch));
                if let Some((_, last)) = before.filter(|(pod, _)| *pod == node.pod) {
                    let others = self.reigns.range(last..epoch).any(|(_, leader)| *leader != of);
                    assert!(!others, "{}", self.tell_story("an application goes on after a reign that it did not see"));
                }
            }
            Effect::RefuseWrites => node.open = None,
            Effect::SyncJournal => {
                node.disk.durable = node.disk.journal.len();
                node.marks.durable = node.disk.durable as u64;
                let end = node.disk.end();
                node.answers.push_back(Event::LocalDurable(end));
            }
            Effect::ApplyAll => {
                node.disk.durable = node.disk.journal.len();
                node.disk.applied = node.disk.journal.len() as u64;
                node.marks.durable = node.disk.applied;
                let end = node.disk.end();
                node.answers.push_back(Event::AppliedAll { end });
            }
            Effect::Follow { session, generation, from, memory_acks } => {
                assert_eq!(from, node.disk.end(), "follows from its end");
                node.follow = Some((session, generation, memory_acks));
            }
            Effect::EndMemoryAcks => {
                if let Some(follow) = &mut node.follow {
                    follow.2 = false;
                }
            }
            Effect::StopFollowing => node.follow = None,
            Effect::StartShipping { session, from } => {
                let held =
                    from.seq == 0 || node.disk.journal.get(from.seq as usize - 1).is_some_and(|op| op.at == from);
                if held {
                    node.ship = Some((session, from.seq));
                    node.marks.session = Some(session);
                    (node.marks.peer_received, node.marks.peer_durable) = (from.seq, 0);
                } else {
                    node.answers.push_back(Event::ShippingImpossible { session });
                }
            }
            Effect::StopShipping => node.ship = None,
            Effect::SendPeer { session: on, message } => {
                if session == Some(on)
                    && let Some(conn) = &mut self.conn
                {
                    conn.words[1 - of].push_back(Word::Control(message));
                }
            }
            Effect::DropPeer { session: on } => {
                if session == Some(on) {
                    let conn = self.conn.take();
                    drop(conn);
                    self.tell(1 - of, Event::PeerDown { session: Some(on), evidence: Evidence::Reset });
                }
            }
            Effect::StartNetcopyAsSource { session } => node.copy_to = Some(session),
            Effect::StartNetcopyAsTarget { session, .. } => {
                node.copy_from = Some(session);
                // As soon as something comes of it.
                if self.dice.one_in(2) {
                    node.disk.journal.clear();
                    (node.disk.durable, node.disk.applied) = (0, 0);
                }
            }
            Effect::StopNetcopy => (node.copy_to, node.copy_from) = (None, None),
            Effect::SaveTail { after } => {
                let tail: Vec<Op> = node.disk.journal.iter().skip(after.seq as usize).copied().collect();
                node.disk.aside.extend(tail);
                self.reached[1] += 1;
            }
            Effect::CutJournal { after } => {
                let held =
                    after.seq == 0 || node.disk.journal.get(after.seq as usize - 1).is_some_and(|op| op.at == after);
                if !held {
                    node.answers.push_back(Event::CutImpossible);
                    return false;
                }
                assert!(node.disk.applied <= after.seq, "{}", self.tell_story("what was applied is never cut"));
                let node = &mut self.nodes[of];
                node.disk.journal.truncate(after.seq as usize);
                node.disk.durable = node.disk.journal.len();
            }
            Effect::SetVolumeAside => {}
            Effect::Exit { .. } => {
                node.alive = false;
                node.call = None;
                // The pod goes, the application with it.
                node.pod += 1;
                // Its last words may arrive.
                let said = self.conn.as_ref().map_or(0, |conn| conn.words[1 - of].len());
                if self.calm || self.dice.one_in(2) {
                    (0..said).for_each(|_| self.deliver(1 - of));
                }
                self.disconnect(Evidence::Reset, Some(of));
                return false;
            }
            Effect::Report(_)
            | Effect::OpenGate { .. }
            | Effect::CloseGate
            | Effect::ClaimService { .. }
            | Effect::FailHeld => {}
        }
        true
    }

    /// Replies what the rule allows at this instant, and judges each reply.
    fn acknowledge(&mut self, of: usize) {
        let node = &mut self.nodes[of];
        let Some(epoch) = node.open else { return };
        node.marks.within_lag = node.marks.peer_durable + 3;
        let upto = acknowledged(node.rule, &node.marks, self.now);
        if upto <= node.marks.acknowledged {
            return;
        }
        let fresh: Vec<Op> = node.disk.journal[node.marks.acknowledged as usize..upto as usize].to_vec();
        node.marks.acknowledged = upto;
        let fresh: Vec<Op> = fresh.into_iter().filter(|op| op.at.epoch == epoch).collect();
        if fresh.is_empty() {
            return;
        }
        node.acked_told += fresh.len() as u64;
        let acker = *self.ackers.entry(epoch).or_insert(of);
        assert_eq!(acker, of, "{}", self.tell_story("I1: two members acknowledge in one epoch"));
        self.acked.extend(fresh);
    }

    fn judge(&mut self) {
        if self.settings.protection == Protection::Async {
            return;
        }
        for of in 0..2 {
            let Some(identity) = &self.nodes[of].disk.identity else { continue };
            let rebooted = !self.nodes[of].alive && identity.volatile_acks;
            if !self.record.certifies(name(of), &identity.data_id) || identity.dirty || rebooted {
                continue;
            }
            if identity.inconsistent {
                continue;
            }
            if let Some(missing) = self.acked.iter().rev().find(|op| !self.nodes[of].disk.holds(op)) {
                let missing = *missing;
                let story = self.tell_story(&format!("I2: {} is certified without {missing:?}", name(of)));
                unreachable!("{story}");
            }
        }
    }

    fn judge_aside(&self) {
        for op in &self.acked {
            let kept = self.nodes.iter().any(|node| node.disk.holds(op) || node.disk.aside.contains(op));
            assert!(kept, "{}", self.tell_story(&format!("I6: {op:?} is nowhere")));
        }
    }

    fn tell_story(&self, broken: &str) -> String {
        let from = self.story.len().saturating_sub(80);
        format!("{broken}\n{}\nrecord {:?}", self.story[from..].join("\n"), self.record)
    }

    fn write_record(&mut self, expected: &Version, record: &Record) -> bool {
        let unconditional = expected.0.is_empty();
        if !unconditional && *expected != Version(self.version.to_string()) {
            return false;
        }
        if self.mutation.is_none() {
            assert_eq!(check(&self.record, record), Ok(()), "{}", self.tell_story("an illegal change of the record"));
        }
        if self.record != *record {
            self.version += 1;
            if let Some(master) = record.master {
                self.reigns.insert(record.epoch, usize::from(master.member == MemberName::B));
            }
            if record.epoch > self.record.epoch {
                self.reached[2] += 1;
            }
            self.record = record.clone();
        }
        true
    }

    fn api(&mut self, of: usize) {
        let Some(call) = self.nodes[of].call.take() else { return };
        let trouble = if self.calm { 99 } else { self.dice.below(12) };
        match call {
            Call::Read => {
                let event = if self.api_down || trouble == 0 {
                    Event::RecordUnknown
                } else {
                    Event::RecordRead {
                        record: Box::new(self.record.clone()),
                        version: Version(self.version.to_string()),
                    }
                };
                self.tell(of, event);
            }
            Call::Write { expected, record } => {
                if self.api_down || trouble == 0 {
                    // It reaches the server later, or never.
                    if !self.calm {
                        self.late.push((expected, record));
                    }
                    self.tell(of, Event::RecordUnknown);
                    return;
                }
                let done = self.write_record(&expected, &record);
                let event = if trouble == 1 {
                    Event::RecordUnknown
                } else if done {
                    Event::RecordWritten { version: Version(self.version.to_string()) }
                } else {
                    Event::RecordConflict
                };
                self.tell(of, event);
            }
        }
    }

    fn deliver(&mut self, to: usize) {
        let Some(conn) = &mut self.conn else { return };
        if conn.frozen {
            return;
        }
        let session = conn.session;
        let Some(word) = conn.words[to].pop_front() else { return };
        if !self.nodes[to].alive {
            return;
        }
        match word {
            Word::Control(message) => self.tell(to, Event::PeerMessage { session, message }),
            Word::Op { op, committed } => {
                let node = &mut self.nodes[to];
                let Some((on, generation, memory_acks)) = node.follow else { return };
                if on != session || op.at.seq != node.disk.end().seq + 1 {
                    return;
                }
                assert!(op.at.epoch <= generation.epoch);
                node.disk.journal.push(op);
                let received = node.disk.journal.len() as u64;
                if !memory_acks {
                    node.disk.durable = node.disk.journal.len();
                }
                node.marks.durable = node.disk.durable as u64;
                node.disk.applied = node.disk.applied.max(committed.min(node.disk.durable as u64));
                let durable = node.disk.durable as u64;
                let received = if memory_acks { received } else { durable };
                if let Some(conn) = &mut self.conn {
                    conn.words[1 - to].push_back(Word::Ack { received, durable });
                }
            }
            Word::Ack { received, durable } => {
                let node = &mut self.nodes[to];
                if node.marks.session == Some(session) {
                    node.marks.peer_received = node.marks.peer_received.max(received);
                    node.marks.peer_durable = node.marks.peer_durable.max(durable);
                    self.tell(to, Event::PeerAck { session, received, durable });
                }
            }
        }
    }

    fn work(&mut self, of: usize) {
        // Requests of the application.
        let salt = self.dice.roll();
        let node = &mut self.nodes[of];
        if !node.alive {
            return;
        }
        if let Some(epoch) = node.open
            && !node.held
            && salt.is_multiple_of(3)
        {
            let op = next(node.disk.end(), epoch, salt);
            node.disk.journal.push(op);
            node.disk.applied = node.disk.journal.len() as u64;
        }
        if salt.is_multiple_of(2) {
            node.disk.durable = node.disk.journal.len();
            node.marks.durable = node.disk.durable as u64;
            let end = node.disk.end();
            // A replicant that made its journal durable says so.
            if let (Some((session, ..)), Some(conn)) = (node.follow, &mut self.conn)
                && conn.session == session
            {
                let durable = node.disk.durable as u64;
                conn.words[1 - of].push_back(Word::Ack { received: durable, durable });
            }
            self.tell(of, Event::LocalDurable(end));
        }
        let node = &mut self.nodes[of];
        if let (Some((session, sent)), Some(conn)) = (node.ship, &mut self.conn)
            && conn.session == session
            && let Some(op) = node.disk.journal.get(sent as usize)
        {
            conn.words[1 - of].push_back(Word::Op { op: *op, committed: node.disk.durable as u64 });
            node.ship = Some((session, sent + 1));
        }
        if let Some(answer) = self.nodes[of].answers.pop_front() {
            self.tell(of, answer);
        }
        self.acknowledge(of);
    }

    fn copy(&mut self) {
        let Some(session) = self.conn.as_ref().filter(|conn| !conn.frozen).map(|conn| conn.session) else { return };
        for from in 0..2 {
            let to = 1 - from;
            if self.nodes[from].copy_to == Some(session) && self.nodes[to].copy_from == Some(session) {
                let upto = self.nodes[from].disk.durable;
                let journal = self.nodes[from].disk.journal[..upto].to_vec();
                (self.nodes[from].copy_to, self.nodes[to].copy_from) = (None, None);
                let disk = &mut self.nodes[to].disk;
                disk.journal = journal;
                (disk.durable, disk.applied) = (upto, upto as u64);
                self.nodes[to].marks.durable = upto as u64;
                let end = self.nodes[to].disk.end();
                self.reached[3] += 1;
                self.tell(to, Event::NetcopyDone { end });
                // The product ends the connection that a copy came over: what is on its way there belongs to the copy.
                self.disconnect(Evidence::Timeout, None);
                return;
            }
        }
    }

    fn connect(&mut self) {
        if self.conn.is_none() && !self.cut && self.nodes[0].alive && self.nodes[1].alive {
            self.sessions += 1;
            let session = self.sessions;
            self.conn = Some(Conn { session, words: [VecDeque::new(), VecDeque::new()], frozen: false });
            for of in 0..2 {
                let journal = self.nodes[of].disk.facts();
                self.tell(of, Event::PeerUp { session, journal });
            }
        }
    }

    fn trouble(&mut self) {
        match self.dice.below(400) {
            0 => self.kill(0, false),
            1 => self.kill(1, false),
            2 => self.kill(0, true),
            3 => self.kill(1, true),
            4 => self.cut = true,
            5..=8 => self.cut = false,
            9 => {
                if let Some(conn) = &mut self.conn {
                    conn.frozen = true;
                }
            }
            10 => self.disconnect(Evidence::Timeout, None),
            11 => self.api_down = true,
            12..=15 => self.api_down = false,
            16..=19 => {
                let of = self.dice.below(2) as usize;
                self.token += 1;
                let request = Request { id: self.token.to_string(), to: name(of) };
                let epoch_seen = self.record.epoch;
                self.tell(of, Event::Nominated { request, epoch_seen });
            }
            20 => {
                let of = self.dice.below(2) as usize;
                self.tell(of, Event::Terminate);
            }
            31 => {
                let of = self.dice.below(2) as usize;
                self.tell(of, Event::Order(Order::Resync));
            }
            21..=26 if !self.late.is_empty() => {
                let which = self.dice.below(self.late.len() as u64) as usize;
                let (expected, record) = self.late.swap_remove(which);
                let done = self.write_record(&expected, &record);
                self.story.push(format!("{} late write took effect: {done}", self.now));
            }
            27..=30 => {
                // The watch.
                let of = self.dice.below(2) as usize;
                let (record, version) = (Box::new(self.record.clone()), Version(self.version.to_string()));
                self.tell(of, Event::RecordSeen { record, version });
            }
            _ => {}
        }
    }

    fn round(&mut self) {
        self.now += 50;
        if !self.calm {
            self.trouble();
        }
        for of in 0..2 {
            let patience = if self.calm { 5 } else { 60 };
            if !self.nodes[of].alive && self.dice.one_in(patience) {
                self.start(of);
            }
            // The operator replaces a pod whose application saw an earlier reign.
            if self.nodes[of].alive && self.nodes[of].member.snapshot().pod_spent && self.dice.one_in(patience) {
                self.nodes[of].pod += 1;
                self.kill(of, false);
            }
        }
        if let Some(conn) = &mut self.conn
            && (self.cut || conn.frozen)
        {
            // A cut connection is silent; after a while TCP or the link gives up.
            conn.frozen = true;
            if self.dice.one_in(60) {
                self.disconnect(Evidence::Timeout, None);
            }
        }
        if self.dice.one_in(3) {
            self.connect();
        }
        for _ in 0..4 {
            let of = self.dice.below(2) as usize;
            self.work(of);
            self.work(1 - of);
            for _ in 0..3 {
                self.deliver(of);
                self.deliver(1 - of);
            }
            if self.dice.one_in(2) {
                self.api(of);
            }
            self.judge();
        }
        if self.dice.one_in(20) {
            self.copy();
        }
        self.tell(0, Event::Tick);
        self.tell(1, Event::Tick);
        if self.now.is_multiple_of(1_000) {
            self.judge_aside();
        }
    }

    fn run(&mut self, rounds: u64) {
        self.start(0);
        self.start(1);
        for _ in 0..rounds {
            self.round();
        }
        self.calm = true;
        (self.cut, self.api_down) = (false, false);
        self.late.clear();
        self.disconnect(Evidence::Timeout, None);
        // Flapping pairs wait for a stable connection.
        for _ in 0..3_000 {
            self.round();
        }
        let names = [self.nodes[0].member.state_name(), self.nodes[1].member.state_name()];
        let rested = names == [StateName::PrimaryActive, StateName::SecondaryActive]
            || names == [StateName::SecondaryActive, StateName::PrimaryActive];
        assert!(
            rested,
            "{}",
            self.tell_story(&format!(
                "did not come to rest: {names:?} {:?} {:?}",
                self.nodes[0].member, self.nodes[1].member
            ))
        );
        self.judge();
        self.judge_aside();
    }
}

#[cfg(feature = "mutations")]
fn member(name: MemberName, settings: &Settings, mutation: Option<Mutation>) -> Member {
    Member::mutated(name, settings.clone(), mutation)
}

#[cfg(not(feature = "mutations"))]
fn member(name: MemberName, settings: &Settings, _mutation: Option<Mutation>) -> Member {
    Member::new(name, settings.clone())
}

fn check_seeds(settings: &Settings, seeds: std::ops::Range<u64>) -> [u64; 5] {
    let mut sum = [0; 5];
    for seed in seeds {
        let mut world = World::new(seed, settings.clone(), None);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run(1_500)));
        assert!(outcome.is_ok(), "seed {seed}");
        for (sum, reached) in sum.iter_mut().zip(world.reached) {
            *sum += reached;
        }
        sum[4] += world.acked.len() as u64;
    }
    sum
}

#[test]
fn nothing_acknowledged_is_lost_and_the_pair_comes_to_rest() {
    let [active, aside, epochs, copies, acked] =
        check_seeds(&Settings { join_within: 4, ..Settings::default() }, 0..60);
    // The runs must have met what they are about.
    assert!(
        active > 200 && aside > 5 && epochs > 300 && copies > 30 && acked > 10_000,
        "{active} {aside} {epochs} {copies} {acked}"
    );
}

#[test]
fn acknowledgements_from_memory_survive_too() {
    let settings = Settings { ack_policy: AckPolicy::Received, join_within: 4, ..Settings::default() };
    check_seeds(&settings, 0..40);
}

#[test]
fn two_copies_or_none() {
    let settings = Settings { protection: Protection::MaxProtection, join_within: 4, ..Settings::default() };
    check_seeds(&settings, 0..30);
}

#[test]
fn async_comes_to_rest() {
    let settings = Settings { protection: Protection::Async, join_within: 4, ..Settings::default() };
    check_seeds(&settings, 0..30);
}

#[test]
fn manual_failover_comes_to_rest() {
    let settings = Settings { failover: FailoverMode::Manual, join_within: 4, ..Settings::default() };
    check_seeds(&settings, 0..30);
}

/// A pair in sync, and which member leads it.
fn founded(settings: Settings) -> (World, usize) {
    let mut world = World::new(1, settings, None);
    world.calm = true;
    world.start(0);
    world.start(1);
    let master = (0..3_000)
        .find_map(|_| {
            world.round();
            (0..2).find(|&of| world.nodes[of].member.state_name() == StateName::PrimaryActive)
        })
        .expect("the pair is founded");
    (world, master)
}

#[test]
fn a_peer_that_had_to_begin_anew_ends_the_wait_of_two_copies_or_none() {
    let (mut world, master) =
        founded(Settings { protection: Protection::MaxProtection, join_within: 4, ..Settings::default() });
    world.kill(1 - master, false);
    assert_eq!(world.nodes[master].member.state_name(), StateName::PrimaryUncertain);
    let session = (0..3_000)
        .find_map(|_| {
            world.round();
            let (session, _) = world.nodes[master].ship?;
            Some(session)
        })
        .expect("the peer comes back");
    world.tell(master, Event::ShippingImpossible { session });
    for _ in 0..3_000 {
        world.round();
    }
    assert_eq!(world.nodes[master].member.state_name(), StateName::PrimaryActive, "{:?}", world.nodes[master].member);
}

#[test]
fn a_replicant_that_leaves_in_order_is_not_waited_for_and_taken_in_at_once() {
    // Silence and flapping alike would take longer than this test.
    let (mut world, master) = founded(Settings {
        interval: 1_000_000,
        active_minimum: 1_000_000,
        stable: 1_000_000,
        join_within: 4,
        ..Settings::default()
    });
    world.tell(1 - master, Event::Terminate);
    assert!(!world.nodes[1 - master].alive);
    let reaches = |world: &mut World, state| {
        (0..400).any(|_| {
            world.round();
            world.nodes[master].member.state_name() == state
        })
    };
    assert!(reaches(&mut world, StateName::PrimaryAlone), "{:?}", world.nodes[master].member);
    assert!(reaches(&mut world, StateName::PrimaryActive), "{:?}", world.nodes[master].member);
}

#[test]
fn a_copy_that_was_not_completed_is_begun_anew_although_more_was_noted_of_it() {
    let (mut world, master) = founded(Settings {
        protection: Protection::MaxProtection,
        note_positions: 0,
        join_within: 4,
        ..Settings::default()
    });
    let replicant = 1 - master;
    let noted = |world: &World| world.record.positions.get(name(replicant)).is_some_and(|noted| noted.seq > 0);
    assert!((0..4_000).any(|_| {
        world.round();
        noted(&world)
    }));
    world.tell(replicant, Event::Order(Order::Resync));
    let disk = &mut world.nodes[replicant].disk;
    assert!(disk.identity.as_ref().is_some_and(|identity| identity.inconsistent));
    disk.journal.clear();
    (disk.durable, disk.applied) = (0, 0);
    world.kill(replicant, false);
    for _ in 0..3_000 {
        world.round();
    }
    assert_eq!(
        world.nodes[master].member.state_name(),
        StateName::PrimaryActive,
        "{:?}",
        world.nodes[replicant].member
    );
}

#[test]
fn a_note_of_a_tail_that_was_cut_off_says_nothing_and_one_of_the_history_does() {
    for cut_off in [false, true] {
        let (mut world, master) = founded(Settings { join_within: 4, ..Settings::default() });
        let replicant = 1 - master;
        world.kill(replicant, false);
        let (end, epoch) = (world.nodes[replicant].disk.end(), world.record.epoch);
        let noted = Position { epoch, seq: end.seq + 10, chain: 1 };
        world.record.positions.set(name(replicant), Some(noted));
        if cut_off {
            let identity = world.nodes[replicant].disk.identity.as_mut().unwrap();
            let generation = Generation { epoch: epoch + 1, ..identity.promised };
            identity.history.push(Span { generation, after: end });
        }
        world.start(replicant);
        let is_quarantined = (0..2_000).any(|_| {
            world.now += 50;
            world.tell(replicant, Event::Tick);
            world.api(replicant);
            world.nodes[replicant].member.state_name() == StateName::Quarantined
        });
        assert_eq!(is_quarantined, !cut_off, "{:?}", world.nodes[replicant].member);
    }
}

/// A pair in sync of which the replicant claimed without an answer, met its master again and follows it; the claim may
/// still take effect.
fn with_a_late_claim(settings: Settings) -> (World, usize) {
    let (mut world, master) = founded(settings);
    let replicant = 1 - master;
    world.cut = true;
    world.disconnect(Evidence::Timeout, None);
    let claim = (0..2_000)
        .find_map(|_| {
            world.now += 50;
            world.tell(replicant, Event::Tick);
            match world.nodes[replicant].call.take() {
                Some(Call::Write { expected, record }) => return Some((expected, record)),
                read => world.nodes[replicant].call = read,
            }
            world.api(replicant);
            None
        })
        .expect("it claims");
    world.late.push(claim);
    world.tell(replicant, Event::RecordUnknown);
    world.cut = false;
    world.connect();
    let follows = (0..20).any(|_| {
        world.deliver(master);
        world.deliver(replicant);
        world.nodes[replicant].member.state_name() == StateName::SecondaryActive
    });
    assert!(follows, "{:?}", world.nodes[replicant].member);
    (world, replicant)
}

fn is_fit(world: &World, of: usize) -> bool {
    world.nodes[of].disk.identity.as_ref().is_some_and(|identity| !identity.inconsistent)
}

#[test]
fn a_copy_that_may_come_to_lead_by_a_late_claim_is_not_given_up() {
    let (mut world, replicant) = with_a_late_claim(Settings { join_within: 4, ..Settings::default() });
    world.tell(replicant, Event::Order(Order::Resync));
    assert!(is_fit(&world, replicant));
    // The master cannot ship what is missing: that, too, has to wait.
    let session = world.conn.as_ref().map(|conn| conn.session).unwrap();
    world.tell(replicant, Event::PeerMessage { session, message: Control::CopyNeeded });
    assert!(is_fit(&world, replicant));
    let (expected, record) = world.late.pop().unwrap();
    assert!(world.write_record(&expected, &record));
    // Made again once, and then it leads: no other trouble is needed for that.
    let leads = (0..400).any(|_| {
        world.now += 50;
        world.tell(replicant, Event::Tick);
        world.work(replicant);
        world.api(replicant);
        world.nodes[replicant].open.is_some()
    });
    assert!(leads && world.record.epoch == record.epoch + 1, "{:?}", world.nodes[replicant].member);
    for _ in 0..3_000 {
        world.round();
    }
    assert!(world.record.led_by(name(replicant)));
    assert_eq!(world.nodes[replicant].member.state_name(), StateName::PrimaryActive);
}

#[test]
fn a_claim_without_answer_is_settled_by_a_write_and_a_copy_begins_then() {
    let (mut world, replicant) = with_a_late_claim(Settings { join_within: 4, ..Settings::default() });
    let session = world.conn.as_ref().map(|conn| conn.session).unwrap();
    world.tell(replicant, Event::PeerMessage { session, message: Control::CopyNeeded });
    let mut is_told = false;
    let ends = (0..400).any(|_| {
        world.now += 50;
        world.tell(replicant, Event::Tick);
        is_told |= world.nodes[replicant].member.snapshot().reason == Some(Reason::CopyWaits);
        assert!(is_fit(&world, replicant));
        world.api(replicant);
        world.conn.is_none()
    });
    assert!(ends && is_told, "{:?}", world.nodes[replicant].member);
    let (expected, record) = world.late.pop().unwrap();
    assert!(!world.write_record(&expected, &record), "it could still take effect");
    for _ in 0..3_000 {
        world.round();
    }
    assert!(!world.record.led_by(name(replicant)));
    assert_eq!(world.nodes[1 - replicant].member.state_name(), StateName::PrimaryActive);
}

#[test]
fn a_lead_that_was_released_and_not_taken_goes_back_although_failover_is_manual() {
    let settings = Settings { failover: FailoverMode::Manual, join_within: 4, ..Settings::default() };
    let (mut world, master) = founded(settings);
    let replicant = 1 - master;
    let request = Request { id: "over".into(), to: name(replicant) };
    let epoch_seen = world.record.epoch;
    world.tell(replicant, Event::Nominated { request, epoch_seen });
    // Once it is handed over to, the replicant gets no answer of the API server any more; then it dies.
    let released = (0..2_000).any(|_| {
        world.now += 50;
        for of in [master, replicant] {
            world.tell(of, Event::Tick);
            (0..4).for_each(|_| world.work(of));
            (0..8).for_each(|_| world.deliver(of));
        }
        world.api(master);
        if world.nodes[master].member.state_name() == StateName::PrimaryActive {
            world.api(replicant);
        }
        world.record.master.is_none()
    });
    assert!(released, "{:?}", world.nodes[master].member);
    world.kill(replicant, false);
    // The application of the one that released has seen that: another pod.
    world.kill(master, false);
    world.nodes[master].pod += 1;
    world.start(master);
    let taken_back = (0..2_000).any(|_| {
        world.now += 50;
        world.tell(master, Event::Tick);
        world.work(master);
        world.api(master);
        world.record.led_by(name(master))
    });
    assert!(taken_back, "{:?}", world.nodes[master].member);
}

#[test]
fn whoever_may_come_to_lead_by_a_late_claim_promises_nothing() {
    let (mut world, replicant) =
        with_a_late_claim(Settings { protection: Protection::Async, join_within: 4, ..Settings::default() });
    for _ in 0..40 {
        world.now += 50;
        world.tell(replicant, Event::Tick);
        let said = &world.conn.as_ref().unwrap().words[1 - replicant];
        assert!(!said.iter().any(|word| matches!(word, Word::Control(Control::Heartbeat { echo: Some(_), .. }))));
    }
}

/// What shows of a journal decides what a restart makes true: also if the process dies before the member could open.
#[test]
fn whoever_claimed_shows_its_whole_journal_until_it_follows_again() {
    let (mut world, master) = founded(Settings { join_within: 4, ..Settings::default() });
    let shows = |world: &World, of: usize| world.nodes[of].disk.identity.as_ref().unwrap().shows_everything();
    assert_eq!([shows(&world, master), shows(&world, 1 - master)], [true, false]);
    let replicant = 1 - master;
    world.kill(master, false);
    world.calm = false;
    let mut between = 0;
    let claimed = (0..3_000).any(|_| {
        world.now += 50;
        world.tell(replicant, Event::Tick);
        world.work(replicant);
        world.api(replicant);
        let identity = world.nodes[replicant].disk.identity.as_ref().unwrap();
        if identity.led == world.record.epoch && !identity.leading {
            between += 1;
            assert!(identity.shows_everything());
        }
        identity.leading
    });
    assert!(claimed && between > 0 && shows(&world, replicant));
    world.calm = true;
    let follows = (0..3_000).any(|_| {
        world.round();
        world.nodes[master].member.state_name() == StateName::SecondaryActive
    });
    assert!(follows && !shows(&world, master));
}

#[test]
fn a_stop_that_loses_its_peer_ends() {
    let (mut world, master) = founded(Settings { join_within: 4, ..Settings::default() });
    world.tell(master, Event::Terminate);
    world.kill(1 - master, false);
    for _ in 0..400 {
        world.now += 50;
        world.tell(master, Event::Tick);
        world.work(master);
        world.api(master);
    }
    assert!(!world.nodes[master].alive, "{:?}", world.nodes[master].member.state_name());
}

#[test]
fn with_max_protection_a_link_that_is_cut_shorter_than_requests_are_held_costs_no_takeover() {
    let (mut world, _) =
        founded(Settings { protection: Protection::MaxProtection, join_within: 4, ..Settings::default() });
    let epoch = world.record.epoch;
    world.cut = true;
    world.disconnect(Evidence::Timeout, None);
    for _ in 0..Settings::default().hold / 50 - 40 {
        world.round();
    }
    assert_eq!(world.record.epoch, epoch, "{}", world.tell_story("a living master was overruled"));
    for _ in 0..160 {
        world.round();
    }
    assert!(world.record.epoch > epoch, "{}", world.tell_story("a lost master is waited for without end"));
}

#[test]
fn a_master_that_is_heard_again_before_the_claim_is_written_is_not_overruled() {
    let (mut world, master) =
        founded(Settings { protection: Protection::MaxProtection, join_within: 4, hold: 5_000, ..Settings::default() });
    let (epoch, replicant) = (world.record.epoch, 1 - master);
    world.cut = true;
    world.disconnect(Evidence::Timeout, None);
    // Neither hears of the other, nor of the record, until the replicant has suspected and asked.
    for _ in 0..400 {
        world.now += 50;
        world.tell(0, Event::Tick);
        world.tell(1, Event::Tick);
    }
    assert!(matches!(world.nodes[replicant].call, Some(Call::Read)), "{:?}", world.nodes[replicant].member);
    world.cut = false;
    world.connect();
    for _ in 0..20 {
        world.deliver(0);
        world.deliver(1);
    }
    world.api(replicant);
    for _ in 0..400 {
        world.round();
    }
    assert_eq!(world.record.epoch, epoch, "{}", world.tell_story("a living master was overruled"));
    assert_eq!(world.nodes[master].member.state_name(), StateName::PrimaryActive);
}

#[test]
fn a_master_that_is_not_heard_goes_on_alone_before_it_is_overruled() {
    let (mut world, master) = founded(Settings { missed_limit: 3, join_within: 4, ..Settings::default() });
    let (epoch, replicant) = (world.record.epoch, 1 - master);
    // From here on only what the replicant says arrives.
    for _ in 0..400 {
        world.now += 50;
        for of in [master, replicant] {
            world.tell(of, Event::Tick);
            world.work(of);
            world.api(of);
        }
        if let Some(conn) = &mut world.conn {
            conn.words[replicant].clear();
        }
        while world.conn.as_ref().is_some_and(|conn| !conn.words[master].is_empty()) {
            world.deliver(master);
        }
    }
    assert_eq!(world.record.epoch, epoch, "{}", world.tell_story("a living master was overruled"));
    assert_eq!(world.nodes[master].member.state_name(), StateName::PrimaryAlone);
}
