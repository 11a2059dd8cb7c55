//! The pair's record behind an API server that is late, away, or takes effect after it was given up. Writes are
//! compare-and-swap and checked by the rules that the real one enforces.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tandem_protocol::Record;
use tandem_protocol::record;
use tokio::sync::{oneshot, watch};

use super::net::Net;
use crate::record::{Kept, RecordError, RecordKeeper};
use crate::volume::random::Dice;

/// How long a client waits.
const PATIENCE: Duration = Duration::from_millis(1500);

type Answer = Result<Kept, RecordError>;

enum Request {
    Read,
    Write { version: String, record: Box<Record> },
}

enum Due {
    Execute { host: usize, request: Request, reply: oneshot::Sender<Answer> },
    Reply { host: usize, answer: Answer, reply: oneshot::Sender<Answer> },
    Show { host: usize, kept: Kept },
}

struct State {
    record: Record,
    version: u64,
    /// Somebody deleted the record; what it said last is kept for the judge.
    missing_since: Option<u64>,
    due: BTreeMap<(u64, u64), Due>,
    count: u64,
    dice: Dice,
    watches: [watch::Sender<Option<Kept>>; 2],
    /// The server, or a member's way to it, is away.
    down: bool,
    cut: [bool; 2],
    /// Out of this many requests one is slow enough to be given up.
    slow_one_in: u64,
    violations: Vec<String>,
}

/// The API server.
pub(crate) struct Api {
    net: Arc<Net>,
    state: Mutex<State>,
}

impl Api {
    pub(crate) fn new(net: Arc<Net>, seed: u64, record: Record) -> Arc<Self> {
        let state = State {
            record,
            version: 1,
            missing_since: None,
            due: BTreeMap::new(),
            count: 0,
            dice: Dice::new(seed),
            watches: [watch::Sender::new(None), watch::Sender::new(None)],
            down: false,
            cut: [false; 2],
            slow_one_in: 20,
            violations: Vec::new(),
        };
        Arc::new(Self { net, state: Mutex::new(state) })
    }

    pub(crate) fn record(&self) -> Record {
        self.state.lock().record.clone()
    }

    /// Somebody deletes the record.
    pub(crate) fn delete(&self) {
        let mut state = self.state.lock();
        state.missing_since = Some(self.net.now());
        state.version += 1;
    }

    /// Since when there is no record.
    pub(crate) fn missing_since(&self) -> Option<u64> {
        self.state.lock().missing_since
    }

    /// The operator makes a new record.
    pub(crate) fn make(&self, record: Record) {
        let mut state = self.state.lock();
        state.record = record;
        state.version += 1;
        state.missing_since = None;
        for host in 0..2 {
            state.show(host, self.net.now());
        }
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.state.lock().down = down;
    }

    pub(crate) fn cut(&self, host: usize, cut: bool) {
        self.state.lock().cut[host] = cut;
    }

    pub(crate) fn set_slow(&self, one_in: u64) {
        self.state.lock().slow_one_in = one_in;
    }

    pub(crate) fn heal(&self) {
        let mut state = self.state.lock();
        (state.down, state.cut, state.slow_one_in) = (false, [false; 2], u64::MAX);
        // Whoever watches again sees the newest.
        for host in 0..2 {
            if state.missing_since.is_none() {
                state.show(host, self.net.now());
            }
        }
    }

    /// What this member asked for and was not carried out never will be: the whole host is gone for good.
    pub(crate) fn forget(&self, gone: usize) {
        self.state.lock().due.retain(|_, due| !matches!(due, Due::Execute { host, .. } if *host == gone));
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.state.lock().violations.clone()
    }

    /// Does what is due.
    pub(crate) fn advance(&self) {
        let now = self.net.now();
        loop {
            let mut state = self.state.lock();
            let Some(entry) = state.due.first_entry().filter(|entry| entry.key().0 <= now) else { return };
            match entry.remove() {
                Due::Execute { host, request, reply } => state.execute(host, request, reply, now),
                Due::Reply { host, answer, reply } => {
                    let reaches = !state.down && !state.cut[host];
                    drop(state);
                    if reaches {
                        // Nobody waits any more: it was given up.
                        reply.send(answer).ok();
                    }
                }
                Due::Show { host, kept } => {
                    if !state.down && !state.cut[host] {
                        let sender = state.watches[host].clone();
                        drop(state);
                        sender.send_replace(Some(kept));
                    }
                }
            }
        }
    }
}

impl State {
    fn push(&mut self, at: u64, due: Due) {
        self.count += 1;
        self.due.insert((at, self.count), due);
    }

    fn delay(&mut self) -> u64 {
        let millis =
            if self.dice.below(self.slow_one_in) == 0 { 500 + self.dice.below(6_000) } else { 1 + self.dice.below(20) };
        millis * 1_000_000
    }

    fn kept(&self) -> Kept {
        Kept { record: self.record.clone(), version: self.version.to_string() }
    }

    fn show(&mut self, host: usize, now: u64) {
        let (kept, late) = (self.kept(), self.delay());
        self.push(now + late, Due::Show { host, kept });
    }

    fn execute(&mut self, host: usize, request: Request, reply: oneshot::Sender<Answer>, now: u64) {
        if self.down {
            return;
        }
        let answer = match request {
            Request::Read if self.missing_since.is_some() => Err(RecordError::Absent),
            Request::Read => Ok(self.kept()),
            Request::Write { .. } if self.missing_since.is_some() => Err(RecordError::Conflict("it is gone".into())),
            Request::Write { version, record } => {
                if version != self.version.to_string() {
                    Err(RecordError::Conflict("somebody wrote first".into()))
                } else if let Err(violation) = record::check(&self.record, &record) {
                    self.violations.push(format!("{violation}: {:?} -> {record:?}", self.record));
                    Err(RecordError::Conflict(violation.to_string()))
                } else {
                    self.record = *record;
                    self.version += 1;
                    for host in 0..2 {
                        self.show(host, now);
                    }
                    Ok(self.kept())
                }
            }
        };
        let late = self.delay();
        self.push(now + late, Due::Reply { host, answer, reply });
    }
}

/// A member's way to the record.
pub(crate) struct Keeper {
    pub(crate) api: Arc<Api>,
    pub(crate) host: usize,
}

impl Keeper {
    fn ask(&self, request: Request, silence: fn(String) -> RecordError) -> BoxFuture<'static, Answer> {
        let (reply, answer) = oneshot::channel();
        let mut state = self.api.state.lock();
        if !state.down && !state.cut[self.host] {
            let at = self.api.net.now() + state.delay();
            state.push(at, Due::Execute { host: self.host, request, reply });
        }
        drop(state);
        async move {
            match tokio::time::timeout(PATIENCE, answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => {
                    // Lost on the way: the client only notices that nothing comes.
                    tokio::time::sleep(PATIENCE).await;
                    Err(silence("no answer".into()))
                }
                Err(_) => Err(silence("no answer in time".into())),
            }
        }
        .boxed()
    }
}

impl RecordKeeper for Keeper {
    fn read(&self) -> BoxFuture<'static, Answer> {
        self.ask(Request::Read, RecordError::Unreadable)
    }

    fn write(&self, version: String, record: Record) -> BoxFuture<'static, Answer> {
        self.ask(Request::Write { version, record: Box::new(record) }, RecordError::Unknown)
    }

    fn watch(&self) -> watch::Receiver<Option<Kept>> {
        self.api.state.lock().watches[self.host].subscribe()
    }
}
