//! Rows about copying a whole volume, netcopy with TLS against rsync and tar without; and about a replicant that was away.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use crate::databases::run;
use crate::files::shown;
use crate::harness::{Pair, wait};
use crate::table::Table;

fn large_mebibytes() -> usize {
    400 * crate::times() as usize
}

fn small_files() -> usize {
    5_000 * crate::times() as usize
}

/// Who copies, and how: seconds until everything is there and flushed, and where.
type Copier = (&'static str, fn(fn(&Path)) -> (f64, TempDir));

pub(crate) struct Copies {
    copiers: [Copier; 3],
    /// Small files that were copied stay until all is over, for the reason given at `small_files`.
    kept: Vec<TempDir>,
}

impl Default for Copies {
    fn default() -> Self {
        let copiers: [Copier; 3] =
            [("rsync daemon, no TLS", rsync), ("tar over a socket, no TLS", tar), ("netcopy, TLS", netcopy)];
        Self { copiers, kept: Vec::new() }
    }
}

impl Copies {
    /// Somebody else begins.
    pub(crate) fn rotate(&mut self) {
        self.copiers.rotate_left(1);
    }
}

/// One round.
pub(crate) fn rows(copies: &mut Copies, table: &mut Table, wanted: &dyn Fn(&str) -> bool) {
    for (name, unit, amount, make) in [
        ("copy of one large file", "MiB/s", large_mebibytes(), large as fn(&Path)),
        ("copy of small files", "files/s", small_files(), small as fn(&Path)),
    ] {
        if !wanted(name) {
            continue;
        }
        let name = &crate::sized(name);
        for (contestant, measure) in copies.copiers {
            let (seconds, copied) = measure(make);
            table.note(name, unit, contestant, amount as f64 / seconds);
            // Ten times the large one, from everybody in every round, is more than most disks have room for.
            if unit == "files/s" {
                copies.kept.push(copied);
            }
        }
    }
    let name = "catch-up of a replicant that was away";
    if wanted(name) {
        let absence = absence(|_| {}, large);
        table.note(&crate::sized(name), "MiB/s", "Durable", large_mebibytes() as f64 / absence.seconds);
    }
    let name = "rejoin after 1 % changed: sent per byte (less is better)";
    if wanted(name) {
        let absence = absence(large, change_a_little);
        table.note(&crate::sized(name), "bytes", "Durable", absence.sent as f64 / changed_bytes() as f64);
    }
}

/// What it cost a replicant to come back.
struct Absence {
    /// From its start until it has everything.
    seconds: f64,
    /// To it, in bytes, headers and encryption included.
    sent: u64,
}

/// A replicant is away while something is done, and comes back.
fn absence(before: fn(&Path), meanwhile: fn(&Path)) -> Absence {
    let mut pair = Pair::quiet();
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    wait("the founding copy to be told", || pair.shown("a")["netcopy"]["id"].is_string());
    let founding = pair.shown("a")["netcopy"]["id"].clone();
    before(&pair.mount("a"));
    pair.stop("b");
    meanwhile(&pair.mount("a"));
    let began = Instant::now();
    pair.start("b");
    wait("the replicant to be connected", || pair.shown("a")["state"] != "PrimaryAlone");
    pair.wait_in_sync("a");
    let seconds = began.elapsed().as_secs_f64();
    let sent = sent(&pair);
    assert_eq!(pair.shown("a")["netcopy"]["id"], founding, "it was copied: the journal did not suffice");
    Absence { seconds, sent }
}

/// Bytes that arrived at the replicant over the connection that is open, as the kernel counts them, whoever called whom.
fn sent(pair: &Pair) -> u64 {
    let [master, replicant] = ["a", "b"].map(|member| pair.address(member, 7470));
    let told = run("ss", &["-tinH", &format!("dst {master} or src {replicant}")]);
    let counts = told.split_whitespace().filter_map(|word| word.strip_prefix("bytes_received:"));
    counts.map(|number| number.parse::<u64>().unwrap()).sum()
}

/// How much of the large file changes: a page of a hundred.
fn changed_bytes() -> usize {
    (large_mebibytes() << 20) / 100 / 4096 * 4096
}

fn change_a_little(folder: &Path) {
    let file = fs::File::options().write(true).open(folder.join("large")).unwrap();
    for number in 0..changed_bytes() / 4096 {
        file.write_all_at(&[number as u8; 4096], number as u64 * 100 * 4096).unwrap();
    }
    file.sync_all().unwrap();
}

fn large(folder: &Path) {
    let mut file = fs::File::create(folder.join("large")).unwrap();
    let mut piece = vec![0; 1 << 20];
    for number in 0..large_mebibytes() {
        for (at, byte) in piece.iter_mut().enumerate() {
            *byte = (at * 31 + number * 7 + at / 255) as u8;
        }
        file.write_all(&piece).unwrap();
    }
    file.sync_all().unwrap();
}

fn small(folder: &Path) {
    for number in 0..small_files() {
        let inner = folder.join(format!("{}", number % 100));
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join(format!("file-{number}")), vec![number as u8; 1_000 + number % 7_000]).unwrap();
    }
    rustix::fs::sync();
}

/// Two folders, and something in the first.
fn folders(make: fn(&Path)) -> (TempDir, [PathBuf; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let both = ["from", "to"].map(|name| folder.path().join(name));
    both.iter().for_each(|path| fs::create_dir(path).unwrap());
    make(&both[0]);
    (folder, both)
}

fn tar(make: fn(&Path)) -> (f64, TempDir) {
    let (folder, [from, to]) = folders(make);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let began = Instant::now();
    let sends = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (receives, _) = listener.accept().unwrap();
    let start = |words: [&str; 4], wire: TcpStream, reads: bool| {
        let (mut tar, wire) = (Command::new("tar"), Stdio::from(OwnedFd::from(wire)));
        if reads {
            tar.stdin(wire)
        } else {
            tar.stdout(wire)
        };
        tar.args(words).spawn().unwrap()
    };
    let sender = start(["-C", &shown(&from), "-cf-", "."], sends, false);
    let receiver = start(["-C", &shown(&to), "-xf-", "."], receives, true);
    for mut tar in [sender, receiver] {
        assert!(tar.wait().unwrap().success());
    }
    run("sync", &["-f", &shown(&to)]);
    (began.elapsed().as_secs_f64(), folder)
}

fn rsync(make: fn(&Path)) -> (f64, TempDir) {
    let (folder, [from, to]) = folders(make);
    let settings = folder.path().join("rsyncd.conf");
    let text = format!("use chroot = no\nuid = root\ngid = root\n[from]\npath = {}\n", shown(&from));
    fs::write(&settings, text).unwrap();
    let mut daemon = Command::new("rsync")
        .args([
            "--daemon",
            "--no-detach",
            "--address=127.0.0.1",
            "--port=8730",
            &format!("--config={}", shown(&settings)),
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("rsync: {error}: apt-get install rsync"));
    wait("rsync to listen", || TcpStream::connect("127.0.0.1:8730").is_ok());
    let began = Instant::now();
    run("rsync", &["-aHAX", "rsync://127.0.0.1:8730/from/", &shown(&to)]);
    // Quicker than its own `--fsync`, file by file.
    run("sync", &["-f", &shown(&to)]);
    let seconds = began.elapsed().as_secs_f64();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    (seconds, folder)
}

/// Seconds from the start of the replicant's process until the pair is in sync.
fn netcopy(make: fn(&Path)) -> (f64, TempDir) {
    let mut pair = Pair::quiet();
    make(&pair.volume("a"));
    pair.start("a");
    pair.wait_serving("a");
    let began = Instant::now();
    pair.start("b");
    pair.wait_in_sync("a");
    (began.elapsed().as_secs_f64(), pair.end())
}
