//! Two members, their nodes, the road between them, the record, an application, somebody who breaks things and somebody who
//! replaces pods: all on one thread, in an order that a seed decides.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tandem_protocol::identity::{DataId, Identity, MemberName, Nonce, PairId};
use tandem_protocol::member::effect::Exit;
use tandem_protocol::member::event::Order;
use tandem_protocol::member::settings::{AckPolicy, Protection};
use tandem_protocol::record::{Certificate, PerMember, Request, rebuilt, to_promise};
use tandem_protocol::{Position, Record, Settings};
use tokio::runtime::{Builder, RngSeed, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::api::{Api, Keeper};
use super::net::Net;
use super::power;
use crate::conductor::door::Door;
use crate::conductor::{self, ConductorError, Given, Rhythm, Wishes};
use crate::health::Shown;
use crate::identity::IdentityFile;
use crate::metrics::Metrics;
use crate::report::Account;
use crate::settings::{Member, ServeSettings};
use crate::simulated::{self, Crash, Disk, Histories, Mistake, Node, key};
use crate::volume::random::{Dice, operation};

const MILLI: u64 = 1_000_000;
const TICK: u64 = 2 * MILLI;
/// How long things go wrong, at most.
const TROUBLE: u64 = 24_000 * MILLI;
/// How long a pair may take to be whole again when nothing goes wrong any more.
const REST: u64 = 60_000 * MILLI;

/// What the application was told.
#[derive(Clone, Debug)]
pub(super) struct Acked {
    pub(super) position: Position,
    pub(super) member: usize,
}

/// One machine with one member on it.
struct Host {
    index: usize,
    folder: PathBuf,
    node: Rc<Node>,
    running: Option<Running>,
    wishes: watch::Sender<Wishes>,
    pod: u64,
    volume: u64,
    /// The application lives: requests of an earlier process may come again.
    application: bool,
    /// When the next process starts.
    start_at: Option<u64>,
    /// That process begins a new pod.
    new_pod: bool,
    frozen: Option<u64>,
    /// Thousandths of the true speed at which its clock runs, and what it is owed.
    rate: u64,
    owed: u64,
    powerless: bool,
    spent_since: Option<u64>,
    act_at: u64,
    disk_lost: bool,
    /// A master lost its power: what it had written and never flushed may be there all the same.
    blurred: bool,
}

struct Running {
    runtime: Runtime,
    main: JoinHandle<Result<Exit, ConductorError>>,
    door: Arc<Door>,
    shown: Arc<Shown>,
    account: watch::Receiver<Account>,
    terminate: Option<oneshot::Sender<()>>,
}

/// Counts for people.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) operations: u64,
    pub(super) acknowledged: u64,
    pub(super) faults: u64,
    pub(super) epochs: u64,
    pub(super) starts: u64,
    pub(super) lost_sectors: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.acknowledged += other.acknowledged;
        self.faults += other.faults;
        self.epochs += other.epochs;
        self.starts += other.starts;
        self.lost_sectors += other.lost_sectors;
    }
}

/// The world of one seed.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) settings: Settings,
    net: Arc<Net>,
    api: Arc<Api>,
    hosts: [Host; 2],
    dice: Dice,
    pub(super) histories: Rc<RefCell<Histories>>,
    pub(super) acked: Arc<Mutex<Vec<Acked>>>,
    pub(super) story: Vec<String>,
    pub(super) tally: Tally,
    heal: Vec<(u64, Healing)>,
    tokens: u64,
    rhythm: Rhythm,
    quiet: bool,
    _folder: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug)]
enum Healing {
    Link(usize),
    ApiUp,
    ApiWay(usize),
    ApiQuick,
    Latency,
    Disk(usize),
    Power(usize),
}

impl World {
    pub(super) fn new(seed: u64, mistake: Option<Mistake>, mistaken: &Rc<Cell<u64>>) -> Self {
        let mut dice = Dice::new(seed.wrapping_add(1));
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            protection: [Protection::MaxAvailability, Protection::MaxProtection, Protection::Async]
                [[0, 0, 0, 1, 2][dice.below(5) as usize]],
            ack_policy: if dice.below(3) == 0 { AckPolicy::Received } else { AckPolicy::Durable },
            max_lag_bytes: 20_000,
            interval: 300,
            stable: 500,
            active_minimum: [0, 5_000][dice.below(2) as usize],
            restart_grace: 1_000,
            hold: 5_000,
            release: 3_000,
            entitlement: 2_000,
            renewal: 600,
            taker_wait: 2_500,
            note_positions: 3_000,
            retry: 200,
            join_within: [3, 4_096][dice.below(2) as usize],
            ..Settings::default()
        };
        let net = Net::new(seed ^ 0x6e65_7400);
        let founder = if dice.below(2) == 0 { MemberName::A } else { MemberName::B };
        let api = Api::new(Arc::clone(&net), seed ^ 0x6170_6900, Record::founded(PairId(77), founder));
        let histories = Rc::new(RefCell::new(Histories::new()));
        let hosts = [0, 1].map(|index| {
            let home = folder.path().join(["a", "b"][index]);
            for part in ["volume", "run"] {
                std::fs::create_dir_all(home.join(part)).unwrap();
            }
            net.power(index, true);
            let wished = Wishes { settings: Some(settings.clone()), ..Wishes::default() };
            Host {
                index,
                folder: home,
                node: Rc::new(Node {
                    index,
                    dice: RefCell::new(Dice::new(seed.wrapping_mul(31) + index as u64)),
                    disk: RefCell::default(),
                    dead: Cell::new(false),
                    wall: Cell::new(0),
                    born: Cell::new(None),
                    volume: RefCell::new(Weak::new()),
                    journal: RefCell::new(Weak::new()),
                    histories: Rc::clone(&histories),
                    net: Arc::clone(&net),
                    mistake,
                    mistaken: Rc::clone(mistaken),
                }),
                running: None,
                wishes: watch::Sender::new(wished),
                pod: 0,
                volume: 0,
                application: false,
                start_at: Some(dice.below(500) * MILLI),
                new_pod: true,
                frozen: None,
                rate: 900 + dice.below(201),
                owed: 0,
                powerless: false,
                spent_since: None,
                act_at: 0,
                disk_lost: false,
                blurred: false,
            }
        });
        let rhythm = Rhythm {
            checkpoint_age: Duration::from_millis(500 + dice.below(4_000)),
            checkpoint_bytes: 20_000 + dice.below(200_000),
            segment_bytes: 64 << 10,
        };
        Self {
            seed,
            settings,
            net,
            api,
            hosts,
            dice,
            histories,
            acked: Arc::default(),
            story: Vec::new(),
            tally: Tally::default(),
            heal: Vec::new(),
            tokens: 0,
            rhythm,
            quiet: false,
            _folder: folder,
        }
    }

    fn now(&self) -> u64 {
        self.net.now()
    }

    pub(super) fn tell(&mut self, what: String) {
        let now = self.now() / MILLI;
        tracing::warn!(now, "{what}");
        self.story.push(format!("{now:>6} ms  {what}"));
    }

    /// Trouble, and then rest. What went wrong.
    pub(super) fn play(&mut self) -> Result<(), String> {
        let mut next = 1_500 * MILLI;
        while self.now() < TROUBLE {
            self.turn();
            if self.now() >= next {
                next = self.now() + (50 + self.dice.below(3_000)) * MILLI;
                self.trouble();
            }
        }
        self.end_trouble();
        let deadline = self.now() + REST;
        let mut whole_since = None;
        loop {
            self.turn();
            if !self.is_whole() {
                whole_since = None;
            } else if self.now() - *whole_since.get_or_insert(self.now()) > 500 * MILLI {
                break;
            }
            if self.now() > deadline {
                return Err(format!("it never comes to rest: {}", self.told()));
            }
        }
        // The application's last words, and no more.
        self.quiet = true;
        let deadline = self.now() + REST;
        while self.ends().is_none() {
            self.turn();
            if self.now() > deadline {
                return Err(format!("the replicant never shows everything: {}", self.told()));
            }
        }
        self.tally.epochs = self.api.record().epoch;
        let violations = self.api.violations();
        if let Some(violation) = violations.first() {
            return Err(format!("a member tried to break the record's rules: {violation}"));
        }
        Ok(())
    }

    /// Both members' last record, once they are equal and all is applied.
    fn ends(&self) -> Option<Position> {
        let journal = |host: &Host| host.node.journal.borrow().upgrade();
        let (one, two) = (journal(&self.hosts[0])?, journal(&self.hosts[1])?);
        let end = one.end();
        let shows = |host: &Host| {
            let running = host.running.as_ref()?;
            Some(running.shown.snapshot().applied >= end.seq)
        };
        (self.is_whole() && two.end() == end && shows(&self.hosts[0])? && shows(&self.hosts[1])?).then_some(end)
    }

    /// The end of the history, and what both members show.
    pub(super) fn pictures(&self) -> Option<(Position, [Vec<String>; 2])> {
        let end = self.ends()?;
        let picture = |host: &Host| {
            let _here = simulated::enter(&host.node);
            let volume = host.node.volume.borrow().upgrade()?;
            Some(crate::volume::random::picture(&volume))
        };
        Some((end, [picture(&self.hosts[0])?, picture(&self.hosts[1])?]))
    }

    /// Whether a member's disk was lost: what was only there is gone.
    pub(super) fn lost_disk(&self, index: usize) -> bool {
        self.hosts[index].disk_lost
    }

    /// Whether the content of files may be younger than the history.
    pub(super) fn is_blurred(&self) -> bool {
        self.hosts.iter().any(|host| host.blurred)
    }

    pub(super) fn volume_path(&self, index: usize) -> PathBuf {
        self.hosts[index].folder.join("volume")
    }

    fn told(&self) -> String {
        let member = |host: &Host| match &host.running {
            Some(running) => {
                let shown = running.shown.snapshot();
                format!(
                    "{} epoch {} journaled {} applied {} {} {}",
                    shown.state, shown.epoch, shown.journaled, shown.applied, shown.reason, shown.message
                )
            }
            None => "not running".into(),
        };
        format!("a: {}; b: {}; {:?}", member(&self.hosts[0]), member(&self.hosts[1]), self.api.record())
    }

    fn is_whole(&self) -> bool {
        let state = |host: &Host| host.running.as_ref().map(|running| running.shown.snapshot().state);
        let both = [state(&self.hosts[0]), state(&self.hosts[1])];
        let count = |name: &str| both.iter().flatten().filter(|state| *state == name).count();
        self.api.missing_since().is_none()
            && count("PrimaryActive") == 1
            && count("SecondaryActive") == 1
            && self.api.record().certified.is_both()
    }

    /// One tick of time for everybody.
    fn turn(&mut self) {
        self.net.advance(TICK);
        self.api.advance();
        self.heal_what_is_due();
        self.keep_record();
        let first = self.dice.below(2) as usize;
        for index in [first, 1 - first] {
            self.start_if_due(index);
            self.step(index);
            self.see_what_ended(index);
            self.keep_pod(index);
            self.act(index);
        }
    }

    fn start_if_due(&mut self, index: usize) {
        let now = self.now();
        let host = &mut self.hosts[index];
        if host.powerless || host.running.is_some() || host.start_at.is_none_or(|at| at > now) {
            return;
        }
        host.start_at = None;
        if std::mem::take(&mut host.new_pod) {
            host.pod += 1;
            host.application = false;
        }
        let resumed = host.application;
        self.tally.starts += 1;
        host.node.dead.set(false);
        let slow = host.node.disk.borrow().slow;
        {
            let mut disk = host.node.disk.borrow_mut();
            disk.broken = None;
            disk.crash_at = None;
            disk.slow = slow;
        }
        let seed = RngSeed::from_bytes(&(self.seed ^ self.tally.starts << 32).to_le_bytes());
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).rng_seed(seed).build().unwrap();
        let (door, shown) = (Arc::new(Door::default()), Arc::new(Shown::default()));
        let (accounts, account) = watch::channel(Account::default());
        let (terminate, terminated) = oneshot::channel::<()>();
        let given = Given {
            settings: settings(host),
            keeper: Arc::new(Keeper { api: Arc::clone(&self.api), host: index }),
            wishes: host.wishes.subscribe(),
            metrics: Arc::new(Metrics::default()),
            shown: Arc::clone(&shown),
            account: accounts,
            claim_service: Arc::new(|_| {}),
            door: Arc::clone(&door),
            resumed,
            terminated: Box::pin(async move {
                if terminated.await.is_err() {
                    std::future::pending::<()>().await;
                }
            }),
            upkeep: self.rhythm,
        };
        let node = Rc::clone(&host.node);
        let _here = simulated::enter(&node);
        node.born.set(Some(runtime.block_on(async { tokio::time::Instant::now() })));
        let main = runtime.spawn(conductor::run(given));
        host.running = Some(Running { runtime, main, door, shown, account, terminate: Some(terminate) });
        let what = if resumed { "starts again beside its application" } else { "starts in a new pod" };
        self.tell(format!("{} {what}", name(index)));
    }

    fn step(&mut self, index: usize) {
        let now = self.now();
        let host = &mut self.hosts[index];
        let Some(running) = &host.running else { return };
        let mut time = 0;
        if let Some(until) = host.frozen {
            host.owed += TICK * host.rate / 1_000;
            if until > now {
                return;
            }
            host.frozen = None;
            time = host.owed / MILLI;
            host.owed %= MILLI;
        }
        host.owed += TICK * host.rate / 1_000;
        let span = host.owed / MILLI;
        host.owed %= MILLI;
        let _here = simulated::enter(&host.node);
        let _named = tracing::info_span!("", member = name(index), now = now / MILLI).entered();
        running.runtime.block_on(async {
            if time > 0 {
                // The clock went on while the process stood still.
                tokio::time::advance(Duration::from_millis(time)).await;
            }
            if span > 0 {
                tokio::time::sleep(Duration::from_millis(span)).await;
            } else {
                tokio::task::yield_now().await;
            }
        });
    }

    fn see_what_ended(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(running) = &mut host.running else { return };
        if host.node.dead.get() {
            self.tell(format!("{} is killed in the middle of a step", name(index)));
            self.kill(index);
            let later = 100 + self.dice.below(1_000);
            self.hosts[index].start_at = Some(self.now() + later * MILLI);
            return;
        }
        if !running.main.is_finished() {
            return;
        }
        let ended = {
            let _here = simulated::enter(&host.node);
            running.runtime.block_on(&mut running.main)
        };
        let (told, later) = match ended {
            Ok(Ok(Exit::DiskFailed)) => ("ends: its disk failed".to_owned(), 3_000),
            Ok(Ok(exit)) => (format!("ends: {exit:?}"), 100),
            Ok(Err(error)) => (format!("ends: {error}"), 1_000),
            Err(error) => {
                // A panic of the product; the hook has noted it.
                (format!("ends: {error}"), 1_000)
            }
        };
        if told.contains("Released") || told.contains("Terminated") {
            host.new_pod = true;
        }
        self.tell(format!("{} {told}", name(index)));
        self.kill(index);
        let later = later + self.dice.below(500);
        self.hosts[index].start_at = Some(self.now() + later * MILLI);
    }

    /// The process is gone, with everything in its memory.
    fn kill(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(running) = host.running.take() else { return };
        self.net.ended(index);
        let _here = simulated::enter(&host.node);
        let Running { runtime, main, door, shown, account, terminate } = running;
        drop(main);
        drop(runtime);
        drop((door, shown, account, terminate));
        host.frozen = None;
        host.node.dead.set(false);
    }

    /// The operator makes a record anew that is gone, of what both members swear.
    fn keep_record(&mut self) {
        let Some(since) = self.api.missing_since() else { return };
        if self.now() < since + 500 * MILLI {
            return;
        }
        let accounts = [0, 1].map(|index| {
            let host = &self.hosts[index];
            let account = host.running.as_ref().map(|running| running.account.borrow().clone())?;
            let uuid = account.data_id.as_ref()?.parse().ok()?;
            let data_id = DataId { volume: settings(host).volume_uid, uuid };
            Some((
                account.highest_epoch?,
                account.promised,
                account.testimony,
                Certificate { data_id, boot: account.boot },
            ))
        });
        let [Some(one), Some(two)] = accounts else { return };
        let both = [one, two];
        let asked = self.hosts.iter().filter_map(|host| host.wishes.borrow().testify).max_by_key(|asked| asked.epoch);
        let heard = both.each_ref().map(|(highest, promised, ..)| (*highest, *promised));
        let asked = to_promise(asked, &heard, 0, |_| Nonce(u128::from(self.now())));
        for host in &self.hosts {
            host.wishes.send_if_modified(|wishes| wishes.testify.replace(asked) != Some(asked));
        }
        let [a, b] = both.map(|(_, _, testimony, certificate)| {
            testimony.filter(|testimony| testimony.generation == asked).map(|testimony| (testimony, certificate))
        });
        let old = self.api.record();
        if let Ok(record) = rebuilt(old.pair, old.founder, &PerMember { a, b }) {
            self.tell(format!("the record is made anew: {record:?}"));
            self.api.make(record);
            for host in &self.hosts {
                host.wishes.send_modify(|wishes| wishes.testify = None);
            }
        }
    }

    /// The operator replaces a pod whose application has outlived its reign.
    fn keep_pod(&mut self, index: usize) {
        let now = self.now();
        let host = &mut self.hosts[index];
        let Some(running) = &mut host.running else { return };
        let shown = running.shown.snapshot();
        if shown.gate {
            host.application = true;
        }
        if shown.reason != "PodSpent" && shown.state != "Fenced" {
            host.spent_since = None;
            return;
        }
        if now - *host.spent_since.get_or_insert(now) > 400 * MILLI
            && host.frozen.is_none()
            && let Some(terminate) = running.terminate.take()
        {
            host.application = false;
            terminate.send(()).ok();
            host.new_pod = true;
            self.tell(format!("{}'s pod is replaced", name(index)));
        }
    }

    /// The application does something.
    fn act(&mut self, index: usize) {
        let now = self.now();
        let pause = (5 + self.dice.below(150)) * MILLI;
        let quiet = self.quiet;
        let host = &mut self.hosts[index];
        if !host.application || host.act_at > now || host.frozen.is_some() || quiet {
            return;
        }
        host.act_at = now + pause;
        let Some(running) = &host.running else { return };
        let Some(capture) = running.door.capture() else { return };
        let _here = simulated::enter(&host.node);
        let _runtime = running.runtime.enter();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // None: it only waits for what it did before.
            for _ in 0..self.dice.below(5) {
                let Ok(passage) = capture.sequencer.enter(0) else { break };
                let op = operation(capture.volume(), &mut self.dice);
                if passage.file(crate::op::ROOT, |turn| turn.perform(&op)).is_ok() {
                    self.tally.operations += 1;
                }
            }
            if self.dice.below(3) > 0 {
                let position = capture.journal.end();
                let acked = Arc::clone(&self.acked);
                let told = Box::new(move |outcome: Result<(), rustix::io::Errno>| {
                    if outcome.is_ok() {
                        acked.lock().push(Acked { position, member: index });
                    }
                });
                capture.commit.when_acknowledged(position.seq, told);
            }
        }));
        drop(capture);
        if let Err(panic) = caught
            && !panic.is::<Crash>()
        {
            std::panic::resume_unwind(panic);
        }
    }

    fn heal_what_is_due(&mut self) {
        let now = self.now();
        let due: Vec<Healing> = self.heal.extract_if(.., |(at, _)| *at <= now).map(|(_, what)| what).collect();
        for what in due {
            self.do_heal(what);
        }
    }

    fn do_heal(&mut self, what: Healing) {
        self.tell(format!("over: {what:?}"));
        match what {
            Healing::Link(from) => self.net.block(from, false),
            Healing::ApiUp => self.api.set_down(false),
            Healing::ApiWay(host) => self.api.cut(host, false),
            Healing::ApiQuick => self.api.set_slow(20),
            Healing::Latency => self.net.set_latency(MILLI),
            Healing::Disk(host) => {
                let mut disk = self.hosts[host].node.disk.borrow_mut();
                disk.slow = 0;
                disk.broken = disk.broken.filter(|(_, errno)| *errno != libc::ENOSPC);
            }
            Healing::Power(host) => {
                self.net.power(host, true);
                self.hosts[host].powerless = false;
                self.hosts[host].start_at = Some(self.now() + (100 + self.dice.below(1_000)) * MILLI);
            }
        }
    }

    fn end_trouble(&mut self) {
        let all: Vec<Healing> = std::mem::take(&mut self.heal).into_iter().map(|(_, what)| what).collect();
        for what in all {
            self.do_heal(what);
        }
        self.api.heal();
        for index in 0..2 {
            self.net.block(index, false);
            let host = &mut self.hosts[index];
            host.node.disk.borrow_mut().slow = 0;
            host.node.disk.borrow_mut().crash_at = None;
            host.frozen = host.frozen.map(|_| 0);
            host.wishes.send_modify(|wishes| wishes.nomination = None);
            host.node.wall.set(0);
        }
        self.tell("nothing goes wrong any more".into());
    }

    fn later(&mut self, most_millis: u64) -> u64 {
        self.now() + (50 + self.dice.below(most_millis)) * MILLI
    }

    /// Breaks something.
    fn trouble(&mut self) {
        let index = self.dice.below(2) as usize;
        let other = 1 - index;
        self.tally.faults += 1;
        match self.dice.below(25) {
            0 | 1 => {
                self.tell(format!("{}'s process is killed", name(index)));
                self.kill_and_restart(index, false);
            }
            2 => {
                let steps = 1 + self.dice.below(30);
                let mut disk = self.hosts[index].node.disk.borrow_mut();
                disk.crash_at = Some(disk.steps() + steps);
                drop(disk);
                self.tell(format!("{} will be killed {steps} steps on its disk from now", name(index)));
            }
            3 | 4 => {
                self.tell(format!("{}'s pod is killed", name(index)));
                self.kill_and_restart(index, true);
            }
            5..=7 => {
                self.cut_power(index, 6_000);
            }
            8 => {
                // Memory is two copies only while one of the two has power.
                if self.settings.ack_policy == AckPolicy::Durable {
                    self.cut_power(index, 3_000);
                    self.cut_power(other, 3_000);
                }
            }
            9 | 10 => {
                if let Some(running) = &mut self.hosts[index].running
                    && let Some(terminate) = running.terminate.take()
                {
                    self.hosts[index].application = false;
                    terminate.send(()).ok();
                    self.tell(format!("{}'s pod is deleted", name(index)));
                }
            }
            11 | 12 => {
                for from in 0..2 {
                    self.net.block(from, true);
                    let at = self.later(8_000);
                    self.heal.push((at, Healing::Link(from)));
                }
                self.tell("the link is cut".into());
            }
            13 => {
                self.net.block(index, true);
                let at = self.later(6_000);
                self.heal.push((at, Healing::Link(index)));
                self.tell(format!("nothing that {} says arrives", name(index)));
            }
            14 => {
                self.api.set_down(true);
                let at = self.later(8_000);
                self.heal.push((at, Healing::ApiUp));
                self.tell("the API server is away".into());
            }
            15 => {
                self.api.cut(index, true);
                let at = self.later(8_000);
                self.heal.push((at, Healing::ApiWay(index)));
                self.tell(format!("{} cannot reach the API server", name(index)));
            }
            16 => {
                for from in 0..2 {
                    self.net.block(from, true);
                }
                self.api.cut(index, true);
                let at = self.later(9_000);
                self.heal.extend([(at, Healing::Link(0)), (at, Healing::Link(1)), (at, Healing::ApiWay(index))]);
                self.tell(format!("{} is cut from everything", name(index)));
            }
            17 => {
                let until = self.later(9_000);
                self.hosts[index].frozen = Some(until);
                self.tell(format!("{} stands still", name(index)));
            }
            18 => {
                self.tokens += 1;
                let request = Request { id: format!("t{}", self.tokens), to: [MemberName::A, MemberName::B][index] };
                let epoch = self.api.record().epoch;
                self.hosts[index].wishes.send_modify(|wishes| wishes.nomination = Some((request, epoch)));
                self.tell(format!("{} is nominated", name(index)));
            }
            19 => {
                let jump = self.dice.below(7_200_000) as i64 - 3_600_000;
                self.hosts[index].node.wall.set(jump * MILLI as i64);
                self.tell(format!("{}'s clock jumps by {jump} ms", name(index)));
            }
            20 => {
                self.hosts[index].node.disk.borrow_mut().slow = 1_000 + self.dice.below(300_000);
                self.net.set_latency((1 + self.dice.below(80)) * MILLI);
                self.api.set_slow(3);
                let at = self.later(5_000);
                self.heal.extend([(at, Healing::Disk(index)), (at, Healing::Latency), (at, Healing::ApiQuick)]);
                self.tell(format!("{}'s disk, the link and the API server are slow", name(index)));
            }
            21 => {
                let broken = match self.dice.below(4) {
                    0 => ("sync_journal", libc::EIO),
                    1 => ("write_entry", libc::EIO),
                    2 => ("write_durably", libc::EIO),
                    _ => ("create_with_room", libc::ENOSPC),
                };
                self.hosts[index].node.disk.borrow_mut().broken = Some(broken);
                let at = self.later(5_000);
                self.heal.push((at, Healing::Disk(index)));
                self.tell(format!("{}'s disk: {broken:?}", name(index)));
            }
            22 => self.lose_disk(index),
            23 => {
                // A volume that holds nothing yet cannot testify: what a former one held only a human knows.
                let both = self.hosts.iter().all(|host| {
                    let running = host.running.as_ref();
                    running.is_some_and(|running| running.account.borrow().highest_epoch.is_some()) && !host.disk_lost
                });
                if self.api.record().epoch > 0 && both {
                    self.api.delete();
                    self.tell("the record is deleted".into());
                }
            }
            _ => {
                self.tokens += 1;
                let order = (format!("r{}", self.tokens), Order::Resync);
                self.hosts[index].wishes.send_modify(|wishes| wishes.orders = vec![order]);
                self.tell(format!("{} is to compare everything", name(index)));
            }
        }
    }

    fn kill_and_restart(&mut self, index: usize, pod: bool) {
        self.kill(index);
        let at = self.later(1_500);
        let host = &mut self.hosts[index];
        if !host.powerless {
            host.new_pod |= pod;
            host.start_at = Some(at);
        }
    }

    fn cut_power(&mut self, index: usize, most_millis: u64) {
        if self.hosts[index].powerless {
            return;
        }
        self.net.power(index, false);
        let host = &mut self.hosts[index];
        let volume = host.node.volume.borrow().upgrade();
        let end = host.node.journal.borrow().upgrade().map(|journal| journal.end());
        let applied = host.running.as_ref().map_or(0, |running| {
            // Who leads shows what it has journaled. Who led before and follows now has all of that on disk, and performs nothing.
            let kept: Option<Identity> = IdentityFile::peek(&host.folder.join("volume/.tandem"));
            let leads = kept.is_none_or(|identity| identity.leading);
            if running.door.capture().is_some() && leads { u64::MAX } else { running.shown.snapshot().applied }
        });
        let was_running = host.running.is_some();
        self.kill(index);
        if let (Some(volume), Some(end)) = (volume, end)
            && was_running
        {
            self.hosts[index].blurred |= applied == u64::MAX;
            power::cut(&volume, &self.histories.borrow(), end, applied, &mut self.dice);
        }
        let host = &mut self.hosts[index];
        let journal = host.folder.join("volume/.tandem/journal");
        let lost = host.node.disk.borrow_mut().cut_power(&journal, &mut self.dice);
        self.tally.lost_sectors += lost;
        // Also of a process that had ended already.
        host.blurred |= lost > 0;
        let run = host.folder.join("run");
        std::fs::remove_dir_all(&run).unwrap();
        std::fs::create_dir(&run).unwrap();
        host.powerless = true;
        host.new_pod = true;
        host.start_at = None;
        let at = self.later(most_millis);
        self.heal.push((at, Healing::Power(index)));
        self.tell(format!("{}'s node loses its power; {lost} sectors of its journal are lost", name(index)));
    }

    /// A disk is lost, but never the only complete one: that is for a human to decide about.
    fn lose_disk(&mut self, index: usize) {
        let other = [MemberName::A, MemberName::B][1 - index];
        let memory_only = self.settings.ack_policy == AckPolicy::Received;
        let no_record = self.api.missing_since().is_some();
        let kept: Option<Identity> = IdentityFile::peek(&self.hosts[1 - index].folder.join("volume/.tandem"));
        let copying = kept.is_none_or(|identity| identity.inconsistent);
        if memory_only
            || no_record
            || copying
            || self.api.record().certified.get(other).is_none()
            || self.hosts[1 - index].disk_lost
        {
            return;
        }
        self.api.forget(index);
        self.kill(index);
        let at = self.later(3_000);
        let host = &mut self.hosts[index];
        *host.node.disk.borrow_mut() = Disk::default();
        let volume = host.folder.join("volume");
        std::fs::remove_dir_all(&volume).unwrap();
        std::fs::create_dir(&volume).unwrap();
        host.volume += 1;
        host.new_pod = true;
        host.disk_lost = true;
        if !host.powerless {
            host.start_at = Some(at);
        }
        self.tell(format!("{}'s disk is lost", name(index)));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for index in 0..2 {
            self.kill(index);
        }
    }
}

fn name(index: usize) -> &'static str {
    ["a", "b"][index]
}

fn settings(host: &Host) -> ServeSettings {
    let member = [Member::A, Member::B][host.index];
    let nowhere = "127.0.0.1:1".parse().unwrap();
    ServeSettings {
        namespace: "shop".into(),
        pair: "orders".into(),
        member,
        pod: name(host.index).into(),
        pod_uid: format!("{}-{}", name(host.index), host.pod),
        node: String::new(),
        volume_uid: format!("volume-{}-{}", name(host.index), host.volume),
        volume: host.folder.join("volume"),
        run: host.folder.join("run"),
        tls: Path::new("/nowhere").into(),
        peer_host: String::new(),
        listen: nowhere,
        health: nowhere,
        mount: None,
        record_folder: None,
    }
}

/// Whether a position lies on the way to `end`.
pub(super) fn path_to(histories: &Histories, end: Position) -> Vec<Position> {
    let mut path = vec![end];
    let mut at = end;
    while let Some(found) = histories.get(&key(at)) {
        at = found.before;
        path.push(at);
    }
    path.reverse();
    path
}
