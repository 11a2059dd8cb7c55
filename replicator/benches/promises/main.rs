//! What the design promises in figures, measured with the alternatives beside it: `cargo bench-tandem` (Debian, root).
//! Every round plays every contestant, one after the other, so that a noisy machine is noisy for all; the table shows medians,
//! their spread, and ratios to the bare volume. Words choose rows by their names, `--rounds=N` (5) how often, `--of=Durable`
//! one contestant (may be repeated). `--growth` plays what has a size twice, the second time ten times as much. `--keep`
//! writes table, figures and plot beside this file, after each round. What each row cost the processors of master and replicant is
//! told on the way.
//!
//! Everything runs on this machine and writes to the same disk as the bare volume: both members, with TLS between them; both
//! servers of GlusterFS, and both nodes of LiteFS, without.

#![allow(clippy::unwrap_used, clippy::panic)] // a measurement that cannot be made ends the run

mod copies;
mod databases;
mod files;
#[path = "../../tests/harness/mod.rs"]
mod harness;
mod plot;
mod rivals;
mod table;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use copies::Copies;
use harness::{Pair, wait};
use rivals::Rival;
use serde_json::json;
use table::Table;

/// Something that offers a folder.
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) folder: PathBuf,
    pair: Option<Pair>,
    _bare: Option<tempfile::TempDir>,
    rival: Option<Rival>,
}

impl Contestant {
    fn bare() -> Self {
        let bare = tempfile::tempdir().unwrap();
        open_to_all(bare.path());
        Self { name: BARE, folder: bare.path().to_path_buf(), pair: None, _bare: Some(bare), rival: None }
    }

    fn tandem(name: &'static str, settings: &serde_json::Value) -> Self {
        let pair = Pair::quiet();
        for member in ["a", "b"] {
            pair.wish(member, json!({"settings": settings}));
        }
        Self { name, folder: pair.mount("a"), pair: Some(pair), _bare: None, rival: None }
    }

    fn rival(name: &'static str, rival: Rival) -> Self {
        let folder = rival.folder();
        open_to_all(&folder);
        Self { name, folder, pair: None, _bare: None, rival: Some(rival) }
    }

    /// Whether it can do what a row asks for.
    pub(crate) fn plays(&self, row: &str) -> bool {
        self.rival.as_ref().is_none_or(|rival| row.contains(rival.only))
    }

    /// Does something with it. A pair runs only meanwhile: its checkpoints flush the whole disk, and with it what others
    /// have just written.
    fn turn(&mut self, act: impl FnOnce(&mut Self)) {
        if let Some(pair) = &mut self.pair {
            pair.start("a");
            pair.start("b");
            pair.wait_in_sync("a");
            open_to_all(&self.folder);
        }
        act(self);
        if let Some(pair) = &mut self.pair {
            pair.stop("b");
            wait("the master to go on alone", || pair.shown("a")["state"] == "PrimaryAlone");
            pair.stop("a");
        }
    }

    /// Seconds of processor that the replicators have used: the master's and the replicant's.
    fn processor(&mut self) -> Option<[f64; 2]> {
        let pair = self.pair.as_mut()?;
        Some(["a", "b"].map(|member| {
            let id = pair.child(member).as_ref().unwrap().id();
            let mut nanoseconds = 0.0;
            for task in std::fs::read_dir(format!("/proc/{id}/task")).unwrap() {
                let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
                nanoseconds += text.split(' ').next().and_then(|number| number.parse::<f64>().ok()).unwrap_or_default();
            }
            nanoseconds / 1e9
        }))
    }

    /// What was used since then, also told to whoever watches.
    fn processor_since(&mut self, before: Option<[f64; 2]>) -> Option<[f64; 2]> {
        let (before, after) = (before?, self.processor()?);
        let [master, replicant] = [after[0] - before[0], after[1] - before[1]];
        eprintln!("    processor: {master:.3} s master, {replicant:.3} s replicant");
        Some([master, replicant])
    }

    /// Resident memory of the replicators at its highest, MiB: the master's and the replicant's.
    fn memory(&mut self) -> Option<[f64; 2]> {
        let pair = self.pair.as_mut()?;
        Some(["a", "b"].map(|member| {
            let id = pair.child(member).as_ref().unwrap().id();
            let text = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
            let line = text.lines().find(|line| line.starts_with("VmHWM")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
        }))
    }
}

pub(crate) const BARE: &str = "bare volume";

/// How much of everything.
static TIMES: AtomicU64 = AtomicU64::new(1);
const GROWN: &str = ", 10 x";

pub(crate) fn times() -> u64 {
    TIMES.load(Ordering::Relaxed)
}

/// A row's name, and how much of it.
pub(crate) fn sized(name: &str) -> String {
    if times() > 1 { format!("{name}{GROWN}") } else { name.to_string() }
}

/// Databases run as a user of their own.
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut above = folder.parent();
    while let Some(path) = above.filter(|path| path.starts_with(std::env::temp_dir()) && *path != std::env::temp_dir())
    {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        above = path.parent();
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let rounds = words.iter().find_map(|word| word.strip_prefix("--rounds=")).map_or(5, |text| text.parse().unwrap());
    let of: Vec<&str> = words.iter().filter_map(|word| word.strip_prefix("--of=")).collect();
    let names: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.starts_with("--")).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|word| name.contains(word));

    let mut table = Table::default();
    let pairs = [
        ("Durable", json!({})),
        ("Received", json!({"ack_policy": "Received"})),
        ("Async", json!({"protection": "Async"})),
    ];
    let takes_part = |name: &str| of.is_empty() || of.contains(&name);
    let mut contestants = vec![Contestant::bare()];
    for (name, settings) in &pairs {
        if takes_part(name) {
            contestants.push(Contestant::tandem(name, settings));
        }
    }
    let rivals = [
        ("bindfs", Rival::bindfs as fn() -> Rival),
        ("GlusterFS, replica 2", Rival::gluster),
        ("LiteFS", Rival::litefs),
    ];
    for (name, start) in rivals.into_iter().filter(|(name, _)| takes_part(name)) {
        contestants.push(Contestant::rival(name, start()));
    }
    let growth = words.iter().any(|word| word == "--growth");
    let sizes: &[u64] = if growth { &[1, 10] } else { &[1] };
    let is_kept = words.iter().any(|word| word == "--keep");
    let mut copies = Copies::default();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for size in sizes {
            TIMES.store(*size, Ordering::Relaxed);
            play(round, &mut contestants, &mut copies, &mut table, &|name| wanted(name) && (!growth || grows(name)));
        }
        // A disk that was written to much is slow for a while: nobody is always the one after.
        contestants.rotate_left(1);
        copies.rotate();
        if is_kept {
            keep(&table, round + 1, growth);
        }
    }
    for contestant in &mut contestants {
        contestant.turn(|contestant| remove(rounds, sizes, contestant, &mut table, &wanted));
    }
    print!("{}", table.markdown());
    if is_kept {
        keep(&table, rounds, growth);
    }
}

/// Whether a row is about an amount.
fn grows(name: &str) -> bool {
    ["small files", "sequential", "copy", "catch-up"].iter().any(|word| name.contains(word))
}

/// One round, of one size.
fn play(
    round: u32,
    contestants: &mut [Contestant],
    copies: &mut Copies,
    table: &mut Table,
    wanted: &dyn Fn(&str) -> bool,
) {
    for contestant in &mut *contestants {
        contestant.turn(|contestant| {
            rows(round, contestant, table, wanted);
            if wanted("pgbench") && contestant.plays("pgbench") {
                databases::pgbench(contestant, table);
            }
            if let Some([master, replicant]) = contestant.memory() {
                table.note("memory of the master, highest (less is better)", "MiB", contestant.name, master);
                table.note("memory of the replicant, highest (less is better)", "MiB", contestant.name, replicant);
            }
        });
    }
    if wanted("pgbench") {
        let bare = contestants.iter().find(|contestant| contestant.name == BARE).unwrap();
        databases::streaming(&bare.folder, table);
    }
    copies::rows(copies, table, wanted);
}

/// The rows about files, and those about databases but PostgreSQL.
fn rows(round: u32, contestant: &mut Contestant, table: &mut Table, wanted: &dyn Fn(&str) -> bool) {
    let small = files::SMALL.iter().any(|name| wanted(name)) || wanted(files::LAST[0].0);
    if small && contestant.plays(files::SMALL[0]) {
        let before = contestant.processor();
        let figures = files::small_files(&contestant.folder, round);
        for (name, figure) in files::SMALL.iter().zip(figures) {
            table.note(&sized(name), "files/s", contestant.name, figure);
        }
        contestant.processor_since(before);
    }
    for (name, unit, measure) in files::ROWS.iter().chain(databases::SMALL) {
        if !wanted(name) || !contestant.plays(name) {
            continue;
        }
        let before = contestant.processor();
        table.note(&sized(name), unit, contestant.name, measure(&contestant.folder));
        let used = contestant.processor_since(before);
        if let Some(used) = used.filter(|_| *name == files::SEQUENTIAL_WRITE) {
            let per_gibibyte = used.map(|seconds| seconds * f64::from(1 << 30) / files::large_bytes() as f64);
            for (member, figure) in ["master", "replicant"].iter().zip(per_gibibyte) {
                let name = format!("processor of the {member}, 1 GiB written (less is better)");
                table.note(&sized(&name), "s", contestant.name, figure);
            }
        }
    }
}

/// What comes when all rounds are over.
fn remove(rounds: u32, sizes: &[u64], contestant: &Contestant, table: &mut Table, wanted: &dyn Fn(&str) -> bool) {
    for (name, measure) in files::LAST.iter().filter(|(name, _)| wanted(name) && contestant.plays(name)) {
        for (round, size) in (0..rounds).flat_map(|round| sizes.iter().map(move |size| (round, *size))) {
            TIMES.store(size, Ordering::Relaxed);
            if let Some(rate) = measure(&contestant.folder, round) {
                table.note(&sized(name), "files/s", contestant.name, rate);
            }
        }
    }
}

/// Table, figures and plot, in the repository.
fn keep(table: &Table, rounds: u32, growth: bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let (name, how, ratios) = if growth {
        ("growth", "ten times as much against once: 1 is as fast", table.growth(GROWN))
    } else {
        ("results", "ratios to the bare volume", table.ratios())
    };
    let text = format!(
        "# {}\n\nWritten by `cargo bench-tandem{} --keep`: {rounds} rounds, every contestant in each; medians, and \
         ratios to the bare volume (without it: to the first). Both copies are written to one disk by one machine with {} \
         processors, so figures compare within this table only.\n\n![{how}]({name}.svg)\n\n{}",
        if growth { "What grows with the amount" } else { "Measured side by side" },
        if growth { " --growth" } else { "" },
        std::thread::available_parallelism().unwrap(),
        table.markdown()
    );
    std::fs::write(folder.join(format!("{}.md", name.to_uppercase())), text).unwrap();
    std::fs::write(folder.join(format!("{name}.json")), table.json()).unwrap();
    std::fs::write(folder.join(format!("{name}.svg")), plot::svg(&ratios)).unwrap();
}
