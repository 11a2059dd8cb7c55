//! Rows about copying a whole volume, netcopy with TLS against an rsync daemon without; and about a replicant that was away.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::files::shown;
use crate::harness::{Pair, wait};
use crate::table::Table;

fn large_mebibytes() -> usize {
    400 * crate::times() as usize
}

fn small_files() -> usize {
    5_000 * crate::times() as usize
}

pub(crate) fn rows(table: &mut Table) {
    for (name, unit, amount, make) in [
        ("copy of one large file", "MiB/s", large_mebibytes(), large as fn(&Path)),
        ("copy of small files", "files/s", small_files(), small as fn(&Path)),
    ] {
        let name = &crate::sized(name);
        table.note(name, unit, "rsync daemon, no TLS", amount as f64 / rsync(make));
        table.note(name, unit, "netcopy, TLS", amount as f64 / netcopy(make));
    }
    let name = crate::sized("catch-up of a replicant that was away");
    table.note(&name, "MiB/s", "Durable", large_mebibytes() as f64 / catch_up());
}

/// Seconds from the start of a replicant until it has everything that was written while it was away.
fn catch_up() -> f64 {
    let mut pair = Pair::quiet();
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    wait("the founding copy to be told", || pair.shown("a")["netcopy"]["id"].is_string());
    let founding = pair.shown("a")["netcopy"]["id"].clone();
    pair.stop("b");
    large(&pair.mount("a"));
    let began = Instant::now();
    pair.start("b");
    wait("the replicant to be connected", || pair.shown("a")["state"] != "PrimaryAlone");
    pair.wait_in_sync("a");
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(pair.shown("a")["netcopy"]["id"], founding, "it was copied: the journal did not suffice");
    seconds
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

/// Seconds until everything is there and flushed.
fn rsync(make: fn(&Path)) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    make(&from);
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
    wait("rsync to listen", || std::net::TcpStream::connect("127.0.0.1:8730").is_ok());
    let began = Instant::now();
    super::databases::run("rsync", &["-aHAX", "--fsync", "rsync://127.0.0.1:8730/from/", &shown(&to)]);
    let seconds = began.elapsed().as_secs_f64();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    seconds
}

/// Seconds from the start of the replicant's process until the pair is in sync.
fn netcopy(make: fn(&Path)) -> f64 {
    let mut pair = Pair::quiet();
    make(&pair.volume("a"));
    pair.start("a");
    pair.wait_serving("a");
    let began = Instant::now();
    pair.start("b");
    pair.wait_in_sync("a");
    began.elapsed().as_secs_f64()
}
