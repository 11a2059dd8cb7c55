//! Clients that write without pause and remember every answer, and the judge who holds what they remember against what is
//! there in the end.
//!
//! A record is *acknowledged* when `ok` came back, *refused* when `error` did, and *unknown* when nothing came: refused and
//! unknown records may be there or not, acknowledged ones must be there exactly once and in their client's order.

use crate::workload::PORT;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One conversation with the application.
pub struct Conversation {
    reader: BufReader<TcpStream>,
}

impl Conversation {
    /// Connects to an address of the cluster; both connecting and each answer may take `limit`.
    pub fn open(address: &str, limit: Duration) -> Result<Self> {
        let address: SocketAddr = format!("{address}:{PORT}").parse().context("an address")?;
        let stream = TcpStream::connect_timeout(&address, limit).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// From now on an answer may take so long.
    pub fn be_patient(&self, limit: Duration) -> Result<()> {
        self.reader.get_ref().set_read_timeout(Some(limit))?;
        self.reader.get_ref().set_write_timeout(Some(limit)).context("set how long an answer may take")
    }

    /// One line there, one line back.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes()).context("send")?;
        self.line()
    }

    /// One line there, lines back until `end`.
    pub fn ask_all(&mut self, line: &str) -> Result<Vec<String>> {
        let mut lines = vec![self.ask(line)?];
        while lines.last().is_some_and(|last| last != "end") {
            if lines.last().is_some_and(|last| last.starts_with("error")) {
                bail!("{line}: {}", lines.last().map_or("", String::as_str));
            }
            lines.push(self.line()?);
        }
        lines.pop();
        Ok(lines)
    }

    fn line(&mut self) -> Result<String> {
        let mut answer = String::new();
        match self.reader.read_line(&mut answer) {
            Ok(0) => bail!("the connection was closed"),
            Ok(_) => Ok(answer.trim_end().to_string()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let limit = self.reader.get_ref().read_timeout()?.unwrap_or_default();
                bail!("waited {} s for an answer", limit.as_secs());
            }
            Err(error) => Err(error).context("receive"),
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `ok`, and the pod that said so.
    Acknowledged(String),
    Refused(String),
    Unknown(String),
}

/// One request of one client.
#[derive(Clone, Debug)]
pub struct Event {
    pub client: usize,
    pub k: u64,
    pub asked: Instant,
    pub answered: Instant,
    pub outcome: Outcome,
}

/// Which clients work, and how.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Their numbers begin here.
    pub first: usize,
    pub count: usize,
    /// At most so many requests of each in a second; 0: no limit.
    pub per_second: u64,
    /// A client that was not answered for so long connects anew.
    pub patience: Duration,
    pub what: Task,
}

/// Clients of one table share its numbers.
pub const ROWS_OF_A_CLIENT: u64 = 1_000_000;

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// A record at the end of the client's own file.
    Append,
    /// A row of an SQLite database with this journal mode.
    Insert(&'static str),
}

impl Task {
    fn request(self, client: usize, k: u64) -> String {
        match self {
            Task::Append => format!("append {client} {k}"),
            Task::Insert(mode) => format!("insert {mode} {}", client as u64 * ROWS_OF_A_CLIENT + k),
        }
    }
}

/// Clients at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    history: Arc<Mutex<Vec<Event>>>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// `clients` threads append records through `address`, each as fast as it is answered, but at most `per_second` (0: no
    /// limit). A client that was not answered within two seconds connects anew.
    pub fn start(address: &str, clients: usize, per_second: u64) -> Self {
        let patience = Duration::from_secs(2);
        Self::of(address, &Clients { first: 0, count: clients, per_second, patience, what: Task::Append })
    }

    /// The same, with everything said.
    pub fn of(address: &str, clients: &Clients) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let history = Arc::new(Mutex::new(Vec::new()));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let threads = (clients.first..clients.first + clients.count)
            .map(|client| {
                let (stop, history, acknowledged) =
                    (Arc::clone(&stop), Arc::clone(&history), Arc::clone(&acknowledged));
                let (address, clients) = (address.to_string(), clients.clone());
                std::thread::spawn(move || run_client(client, &address, &clients, &stop, &history, &acknowledged))
            })
            .collect();
        Self { stop, history, acknowledged, threads }
    }

    /// How many records were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// What was answered since a moment, in the order of the answers.
    pub fn since(&self, from: Instant) -> Vec<Event> {
        let history = self.history.lock().unwrap();
        let mut found: Vec<Event> = history.iter().rev().take_while(|event| event.answered >= from).cloned().collect();
        found.reverse();
        found
    }

    /// Waits until this many more records were acknowledged.
    pub fn progress(&self, more: u64, limit: Duration) -> Result<()> {
        let goal = self.acknowledged() + more;
        crate::cluster::wait(limit, &format!("{more} more acknowledged writes"), || self.acknowledged() >= goal)
            .with_context(|| self.last_words())
    }

    fn last_words(&self) -> String {
        let history = self.history.lock().unwrap();
        let last = history.iter().rev().find(|event| !matches!(event.outcome, Outcome::Acknowledged(_)));
        last.map_or_else(|| "no failure so far".into(), |event| format!("the last failure: {:?}", event.outcome))
    }

    /// Ends the clients and returns what they remember.
    pub fn finish(self) -> History {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let mut events = std::mem::take(&mut *self.history.lock().unwrap());
        events.sort_by_key(|event| event.answered);
        History { events }
    }
}

fn run_client(
    client: usize,
    address: &str,
    clients: &Clients,
    stop: &AtomicBool,
    history: &Mutex<Vec<Event>>,
    acknowledged: &AtomicU64,
) {
    let limit = clients.patience;
    let mut conversation = None;
    let mut k = 0;
    while !stop.load(Ordering::Acquire) {
        let asked = Instant::now();
        let open = match conversation.take() {
            Some(open) => Ok(open),
            None => Conversation::open(address, limit),
        };
        let Ok(mut open) = open else {
            // Nothing was asked for: nothing to remember.
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let outcome = match open.ask(&clients.what.request(client, k)) {
            Ok(line) if line.starts_with("ok ") => {
                let pod = line.split_whitespace().nth(3).unwrap_or_default().to_string();
                acknowledged.fetch_add(1, Ordering::AcqRel);
                conversation = Some(open);
                Outcome::Acknowledged(pod)
            }
            // The application's file system refused: like everybody's program, this one connects anew.
            Ok(line) => Outcome::Refused(line),
            Err(error) => Outcome::Unknown(format!("{error:#}")),
        };
        let refused = !matches!(outcome, Outcome::Acknowledged(_));
        // Before anything is waited for: the order of the answers is the order of these.
        let answered = Instant::now();
        history.lock().unwrap().push(Event { client, k, asked, answered, outcome });
        k += 1;
        if refused {
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(pause) = Duration::from_secs(1).checked_div(u32::try_from(clients.per_second).unwrap_or(0)) {
            std::thread::sleep(pause.saturating_sub(asked.elapsed()));
        }
    }
}

/// What clients remember, in the order of the answers.
pub struct History {
    pub events: Vec<Event>,
}

/// What the judge found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub acknowledged: usize,
    pub unknown: usize,
    pub refused: usize,
    /// Acknowledged, and not there.
    pub lost: Vec<(usize, u64)>,
    /// There more than once, out of order, or never asked for.
    pub wrong: Vec<String>,
}

impl History {
    /// The acknowledged records, in the order of their answers, with the pod that acknowledged.
    pub fn acknowledged(&self) -> impl Iterator<Item = (&Event, &str)> {
        self.events.iter().filter_map(|event| match &event.outcome {
            Outcome::Acknowledged(pod) => Some((event, pod.as_str())),
            Outcome::Refused(_) | Outcome::Unknown(_) => None,
        })
    }

    /// Holds the history against the records that `read` returned.
    pub fn judge(&self, records: &[String]) -> Verdict {
        let mut verdict = Verdict::default();
        let mut there: HashMap<(usize, u64), usize> = HashMap::new();
        let mut last: BTreeMap<usize, u64> = BTreeMap::new();
        let asked: HashSet<_> = self.events.iter().map(|event| (event.client, event.k)).collect();
        let known: HashSet<_> = self.acknowledged().map(|(event, _)| (event.client, event.k)).collect();
        for line in records {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(client), Some(k)) =
                (words.get(1).and_then(|word| word.parse().ok()), words.get(2).and_then(|word| word.parse().ok()))
            else {
                verdict.wrong.push(format!("not a record: {line}"));
                continue;
            };
            let count = there.entry((client, k)).or_default();
            *count += 1;
            if *count > 1 {
                verdict.wrong.push(format!("client {client}: {k} is doubled"));
            }
            // A write that was never answered may take effect at any time, also after later ones.
            if known.contains(&(client, k)) && last.insert(client, k).is_some_and(|before| before > k) {
                verdict.wrong.push(format!("client {client}: {k} is out of order"));
            }
            if !asked.contains(&(client, k)) {
                verdict.wrong.push(format!("client {client}: {k} was never written"));
            }
        }
        for event in &self.events {
            match &event.outcome {
                Outcome::Acknowledged(_) => {
                    verdict.acknowledged += 1;
                    if !there.contains_key(&(event.client, event.k)) {
                        verdict.lost.push((event.client, event.k));
                    }
                }
                Outcome::Refused(_) => verdict.refused += 1,
                Outcome::Unknown(_) => verdict.unknown += 1,
            }
        }
        verdict
    }

    /// Two members that acknowledge must do so one after the other, never in turn: returns the pods in the order in which
    /// they acknowledged, and fails if one came back after another had begun.
    pub fn reigns(&self) -> Vec<String> {
        let mut reigns: Vec<String> = Vec::new();
        for (_, pod) in self.acknowledged() {
            if reigns.last().is_none_or(|last| last != pod) {
                reigns.push(pod.to_string());
            }
        }
        reigns
    }

    /// The longest time without an acknowledgement that began after `from`.
    pub fn outage(&self, from: Instant) -> Duration {
        let times: Vec<Instant> = self.acknowledged().map(|(event, _)| event.answered).collect();
        let gaps = times.windows(2).filter(|pair| pair[1] >= from).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }
}

impl Verdict {
    /// Fails unless nothing acknowledged is lost and nothing is wrong.
    pub fn clean(&self) -> Result<()> {
        if !self.lost.is_empty() || !self.wrong.is_empty() {
            bail!(
                "{} acknowledged, {} lost (first {:?}), {} wrong (first {:?})",
                self.acknowledged,
                self.lost.len(),
                self.lost.first(),
                self.wrong.len(),
                self.wrong.first()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(k: u64, outcome: Outcome) -> Event {
        let now = Instant::now();
        Event { client: 0, k, asked: now, answered: now, outcome }
    }

    #[test]
    fn an_acknowledged_record_that_is_not_there_is_lost() {
        let history = History {
            events: vec![
                event(0, Outcome::Acknowledged("a".into())),
                event(1, Outcome::Unknown(String::new())),
                event(2, Outcome::Acknowledged("b".into())),
            ],
        };
        let verdict = history.judge(&["record 0 0".into()]);
        assert_eq!(verdict.lost, [(0, 2)]);
        assert!(verdict.clean().is_err());
        assert!(history.judge(&["record 0 0".into(), "record 0 2".into()]).clean().is_ok());
        assert_eq!(history.reigns(), ["a", "b"]);
    }

    #[test]
    fn only_what_was_acknowledged_has_its_place() {
        let answers =
            [Outcome::Acknowledged("a".into()), Outcome::Unknown(String::new()), Outcome::Acknowledged("a".into())];
        let history = History { events: (0..).zip(answers).map(|(k, outcome)| event(k, outcome)).collect() };
        let judge =
            |records: &[&str]| history.judge(&records.iter().map(|k| format!("record 0 {k}")).collect::<Vec<_>>());
        assert!(judge(&["0", "2", "1"]).clean().is_ok());
        assert!(judge(&["2", "0"]).clean().is_err());
    }

    #[test]
    fn a_record_twice_out_of_order_or_from_nowhere_is_wrong() {
        let history = History { events: vec![event(0, Outcome::Acknowledged("a".into()))] };
        for records in [vec!["record 0 0", "record 0 0"], vec!["record 0 0", "record 0 7"], vec!["record 0"]] {
            let records: Vec<String> = records.into_iter().map(String::from).collect();
            assert!(history.judge(&records).clean().is_err(), "{records:?}");
        }
    }
}
