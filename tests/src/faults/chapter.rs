//! A chapter of a pair's life: clients write from its beginning to its end, through whatever happens; then nobody writes,
//! and everything is compared: what the clients remember with what is there, one member's files with the other's.

use super::ledger::{self, Ledger};
use super::timeline::Reign;
use super::verdict;
use crate::judge::{Clients, Event, History, Load, ROWS_OF_A_CLIENT, Task};
use crate::pair::Pair;
use anyhow::{Context, Result, bail, ensure};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Numbers of clients in one chapter; the next one has the next hundred.
const NUMBERS: usize = 100;
const APPENDS: usize = 2;
/// The client that sits in the master's own pod.
pub const INSIDE: usize = 50;
const ROWS: usize = 60;

/// What the pair's application is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Application {
    /// The test program: records in files, and by chapter a database of SQLite.
    Records,
    PostgreSql,
}

/// Who writes now.
pub struct Chapter {
    number: usize,
    first: usize,
    records: Option<Load>,
    rows: Option<(&'static str, Load)>,
    ledger: Option<Ledger>,
    inside: Mutex<Vec<Event>>,
}

impl Chapter {
    pub fn begin(pair: &Pair, application: Application, number: usize) -> Result<Self> {
        let first = number * NUMBERS;
        let mut chapter = Self { number, first, records: None, rows: None, ledger: None, inside: Mutex::default() };
        if application == Application::PostgreSql {
            chapter.ledger = Some(Ledger::start(pair, first, APPENDS, 30)?);
            return Ok(chapter);
        }
        let address = pair.address()?;
        let clients = |first, count, per_second, what| {
            Load::of(&address, &Clients { first, count, per_second, patience: Duration::from_secs(1), what })
        };
        chapter.records = Some(clients(first, APPENDS, 40, Task::Append));
        let mode = match number % 3 {
            0 => None,
            1 => Some("wal"),
            _ => Some("delete"),
        };
        chapter.rows = mode.map(|mode| (mode, clients(first + ROWS, 1, 5, Task::Insert(mode))));
        Ok(chapter)
    }

    /// What was answered since a moment, in the order of the answers.
    pub fn since(&self, from: Instant) -> Vec<Event> {
        let mut found = Vec::new();
        found.extend(self.records.iter().flat_map(|load| load.since(from)));
        found.extend(self.rows.iter().flat_map(|(_, load)| load.since(from)));
        found.extend(self.ledger.iter().flat_map(|load| load.since(from)));
        found.extend(self.inside.lock().unwrap().iter().filter(|event| event.answered >= from).cloned());
        found.sort_by_key(|event| event.answered);
        found
    }

    /// Takes in what a client remembers that wrote from inside the master's pod; its number is the chapter's.
    pub fn inside(&self, events: Vec<Event>) {
        self.inside.lock().unwrap().extend(events);
    }

    /// The number for such a client: it writes its own file, never again used.
    pub fn inside_client(&self, number: usize) -> usize {
        self.first + INSIDE + number % (ROWS - INSIDE)
    }

    /// Ends the clients.
    pub fn end(self) -> Ended {
        let mut events = self.inside.into_inner().unwrap();
        events.extend(self.records.into_iter().flat_map(|load| load.finish().events));
        events.extend(self.ledger.into_iter().flat_map(Ledger::finish));
        let mode = self.rows.as_ref().map(|(mode, _)| *mode);
        events.extend(self.rows.into_iter().flat_map(|(_, load)| load.finish().events));
        events.sort_by_key(|event| event.answered);
        Ended { number: self.number, first: self.first, mode, history: History { events } }
    }
}

/// What the clients of a chapter remember.
pub struct Ended {
    pub number: usize,
    first: usize,
    mode: Option<&'static str>,
    pub history: History,
}

/// What the judges of a chapter found.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    pub acknowledged: usize,
    pub unknown: usize,
    pub refused: usize,
    /// Acknowledged and not there, as Async allows.
    pub lost: usize,
    /// Acknowledged by a member that the record no longer named (Async only: elsewhere that is a failure).
    pub late: usize,
}

impl Ended {
    /// What is there of this chapter's writes.
    pub fn read(&self, pair: &Pair, application: Application) -> Result<Vec<String>> {
        if application == Application::PostgreSql {
            return ledger::records(pair, &(self.first..self.first + NUMBERS));
        }
        let mut records = Vec::new();
        let mut clients: Vec<usize> = self.history.events.iter().map(|event| event.client).collect();
        clients.sort_unstable();
        clients.dedup();
        for client in clients.into_iter().filter(|client| client - self.first < ROWS) {
            records.extend(patiently(pair, &format!("read {client}"))?);
        }
        let Some(mode) = self.mode else { return Ok(records) };
        let lowest = (self.first + ROWS) as u64 * ROWS_OF_A_CLIENT;
        for row in patiently(pair, &format!("rows {mode}"))? {
            let k: u64 = row.strip_prefix("row ").and_then(|k| k.parse().ok()).context("a row")?;
            if (lowest..lowest + ROWS_OF_A_CLIENT).contains(&k) {
                records.push(format!("record {} {}", k / ROWS_OF_A_CLIENT, k % ROWS_OF_A_CLIENT));
            }
        }
        Ok(records)
    }

    /// Holds everything against what is there: `allowed` bytes may be lost at each change of reign, none if it is zero.
    pub fn judge(&self, records: &[String], reigns: &[Reign], allowed: u64) -> Result<Judged> {
        let verdict = self.history.judge(records);
        ensure!(verdict.wrong.is_empty(), "{} records are wrong, the first: {}", verdict.wrong.len(), verdict.wrong[0]);
        let late = verdict::late(&self.history, reigns);
        if allowed == 0 {
            verdict.clean()?;
            if let Some(first) = late.first() {
                bail!("acknowledged by a deposed member, {} times, the first: {first}; reigns: {reigns:?}", late.len());
            }
        } else {
            verdict::only_a_suffix(&self.history, &verdict.lost, reigns, allowed)?;
        }
        Ok(Judged {
            acknowledged: verdict.acknowledged,
            unknown: verdict.unknown,
            refused: verdict.refused,
            lost: verdict.lost.len(),
            late: late.len(),
        })
    }

    /// Whether a database of SQLite was written, and so checked.
    pub fn used_sqlite(&self) -> bool {
        self.mode.is_some()
    }
}

fn patiently(pair: &Pair, ask: &str) -> Result<Vec<String>> {
    let mut talk = crate::judge::Conversation::open(&pair.address()?, Duration::from_secs(20))?;
    talk.ask_all(ask)
}
