//! Clients of PostgreSQL: each adds rows to a ledger, one after the other, and remembers what the server said and which pod
//! it was; pgbench works beside them, so that there is something to break.

use crate::judge::{Event, Outcome};
use crate::pair::Pair;
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Clients at work.
pub(crate) struct Ledger {
    stop: Arc<AtomicBool>,
    history: Arc<Mutex<Vec<Event>>>,
    threads: Vec<JoinHandle<()>>,
}

/// Makes the ledger and pgbench's tables.
pub(crate) fn prepare(pair: &Pair) -> Result<()> {
    pair.wait_sql()?;
    pair.sql("create table ledger (client int, k bigint, primary key (client, k))")?;
    pair.sql("create extension if not exists amcheck")?;
    pair.run("pgbench", &["-h", &pair.address()?, "-U", "postgres", "-i", "-q", "-s", "1", "postgres"]).map(drop)
}

impl Ledger {
    /// Clients `first` and the ones after it.
    pub(crate) fn start(pair: &Pair, first: usize, count: usize, per_second: u64) -> Result<Self> {
        let (stop, history) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let address = pair.address()?;
        let mut threads = Vec::new();
        for client in first..first + count {
            let (stop, history) = (Arc::clone(&stop), Arc::clone(&history));
            let mut psql = pair.command("psql");
            psql.args(["-h", &address, "-U", "postgres", "-qAt"]);
            threads.push(std::thread::spawn(move || run_client(client, psql, per_second, &stop, &history)));
        }
        let told = Arc::clone(&stop);
        let mut bench = pair.command("pgbench");
        bench.args(["-h", &address, "-U", "postgres", "-n", "-c", "2", "-R", "20", "-T", "3600", "postgres"]);
        threads.push(std::thread::spawn(move || keep_running(&mut bench, &told)));
        Ok(Self { stop, history, threads })
    }

    /// What was answered since a moment, in the order of the answers.
    pub(crate) fn since(&self, from: Instant) -> Vec<Event> {
        let history = self.history.lock().unwrap();
        let mut found: Vec<Event> = history.iter().rev().take_while(|event| event.answered >= from).cloned().collect();
        found.reverse();
        found
    }

    /// Ends the clients and returns what they remember.
    pub(crate) fn finish(self) -> Vec<Event> {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.history.lock().unwrap())
    }
}

/// The rows of these clients, as the judge reads records.
pub(crate) fn records(pair: &Pair, clients: &std::ops::Range<usize>) -> Result<Vec<String>> {
    let ask = format!(
        "select client, k from ledger where client >= {} and client < {} order by client, k",
        clients.start, clients.end
    );
    Ok(pair.sql(&ask)?.lines().map(|line| format!("record {}", line.replace('|', " "))).collect())
}

/// PostgreSQL's own view of its files, and the sums that pgbench keeps equal.
pub(crate) fn sound(pair: &Pair) -> Result<()> {
    let sums = pair.sql(
        "select (select sum(abalance) from pgbench_accounts) = coalesce((select sum(delta) from pgbench_history), 0) and \
         (select sum(bbalance) from pgbench_branches) = coalesce((select sum(delta) from pgbench_history), 0)",
    )?;
    ensure!(sums.trim() == "t", "the sums of pgbench do not agree");
    let words = ["-h", &pair.address()?, "-U", "postgres", "--heapallindexed", "postgres"];
    pair.run("pg_amcheck", &words).map(drop).context("pg_amcheck")
}

fn keep_running(command: &mut Command, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        let Ok(mut child) = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
            return;
        };
        while !stop.load(Ordering::Acquire) && child.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(Duration::from_millis(200));
        }
        // It has ended, or is no longer wanted.
        child.kill().ok();
        child.wait().ok();
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// A conversation with psql.
struct Talk {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Talk {
    fn open(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let (input, output) =
            (child.stdin.take().context("a pipe to psql")?, child.stdout.take().context("a pipe from psql")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut talk = Self { child, input, lines };
        // Nothing was asked for yet, so this may fail and mean nothing.
        match talk.ask("select 'open'", Duration::from_secs(2))? {
            Some(open) if open == "open" => Ok(talk),
            _ => bail!("no session"),
        }
    }

    /// One statement; its one row, or none if it was refused.
    fn ask(&mut self, statement: &str, limit: Duration) -> Result<Option<String>> {
        writeln!(self.input, "{statement};\n\\echo end").context("send to psql")?;
        let (began, mut row) = (Instant::now(), None);
        loop {
            match self.lines.recv_timeout(limit.saturating_sub(began.elapsed())) {
                Ok(line) if line == "end" => return Ok(row),
                Ok(line) => row = Some(line),
                Err(RecvTimeoutError::Timeout) => bail!("no answer in time"),
                Err(RecvTimeoutError::Disconnected) => bail!("psql has ended"),
            }
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn run_client(client: usize, mut psql: Command, per_second: u64, stop: &AtomicBool, history: &Mutex<Vec<Event>>) {
    let mut talk: Option<Talk> = None;
    let mut k = 0;
    while !stop.load(Ordering::Acquire) {
        let mut open = match talk.take().map_or_else(|| Talk::open(&mut psql), Ok) {
            Ok(open) => open,
            Err(_) => {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        let asked = Instant::now();
        let statement = format!("insert into ledger values ({client}, {k}) returning current_setting('cluster_name')");
        let outcome = match open.ask(&statement, Duration::from_secs(1)) {
            Ok(Some(pod)) => {
                talk = Some(open);
                Outcome::Acknowledged(pod)
            }
            Ok(None) => Outcome::Refused("refused".into()),
            Err(error) => Outcome::Unknown(format!("{error:#}")),
        };
        history.lock().unwrap().push(Event { client, k, asked, answered: Instant::now(), outcome });
        k += 1;
        if let Some(pause) = Duration::from_secs(1).checked_div(u32::try_from(per_second).unwrap_or(0)) {
            std::thread::sleep(pause.saturating_sub(asked.elapsed()));
        }
    }
}
