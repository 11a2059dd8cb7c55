//! Two members as two processes of the real program on this machine: real mounts, journals, TLS, and a record in a folder.
//! No Kubernetes. Needs root and /dev/fuse. Everything waits for conditions, with patience for a busy machine.

#![allow(clippy::unwrap_used, clippy::panic)] // a test says what it expects by panicking

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tandem_protocol::Record;
use tandem_protocol::identity::{MemberName, PairId};
use tandem_replicator::record::file::FileKeeper;

const PATIENCE: Duration = Duration::from_secs(60);

struct Pair {
    folder: tempfile::TempDir,
    number: u8,
    a: Option<Child>,
    b: Option<Child>,
}

impl Pair {
    /// Makes folders, certificates and the founding record; starts nobody.
    fn new(number: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("record")).unwrap();
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = authority.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        for member in ["a", "b"] {
            for kind in ["volume", "mount", "tls", "run"] {
                fs::create_dir_all(root.join(member).join(kind)).unwrap();
            }
            let key = KeyPair::generate().unwrap();
            let mut leaf = CertificateParams::new(vec![format!("{member}.orders.shop.pair.tandem.dev")]).unwrap();
            leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let signed = leaf.signed_by(&key, &issuer).unwrap();
            let tls = root.join(member).join("tls");
            fs::write(tls.join("ca.crt"), certificate.pem()).unwrap();
            fs::write(tls.join("tls.crt"), signed.pem()).unwrap();
            fs::write(tls.join("tls.key"), key.serialize_pem()).unwrap();
        }
        FileKeeper::found(&root.join("record"), Record::founded(PairId(u128::from(number) + 7), MemberName::A))
            .unwrap();
        let pair = Self { folder, number, a: None, b: None };
        pair.wish("a", json!({}));
        pair.wish("b", json!({}));
        pair
    }

    /// Settings faster than the usual ones, and what is wished beside them.
    fn wish(&self, member: &str, more: Value) {
        let mut settings = serde_json::to_value(tandem_protocol::Settings {
            interval: 300,
            stable: 500,
            active_minimum: 0,
            restart_grace: 1_000,
            hold: 5_000,
            ..tandem_protocol::Settings::default()
        })
        .unwrap();
        for (key, value) in more["settings"].as_object().cloned().unwrap_or_default() {
            settings[key] = value;
        }
        let mut wishes = more;
        wishes["settings"] = settings;
        let path = self.folder.path().join(format!("record/wishes-{member}.json"));
        fs::write(path.with_extension("new"), wishes.to_string()).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }

    fn address(&self, member: &str, port: u16) -> String {
        format!("127.0.{}.{}:{port}", self.number, if member == "a" { 1 } else { 2 })
    }

    fn start(&mut self, member: &str) {
        let home = self.folder.path().join(member);
        let other = if member == "a" { "b" } else { "a" };
        let log = fs::File::options().create(true).append(true).open(home.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_replicator"))
            .args(["serve", "--namespace", "shop", "--pair", "orders", "--member", member])
            .args(["--pod", member, "--pod-uid", &format!("{member}-{:?}", Instant::now())])
            .args(["--volume-uid", &format!("volume-{member}")])
            .arg("--volume")
            .arg(home.join("volume"))
            .arg("--run")
            .arg(home.join("run"))
            .arg("--tls")
            .arg(home.join("tls"))
            .arg("--mount")
            .arg(home.join("mount"))
            .arg("--record-folder")
            .arg(self.folder.path().join("record"))
            .args(["--peer-host", &self.address(other, 7470)])
            .args(["--listen", &self.address(member, 7470), "--health", &self.address(member, 7471)])
            .env("RUST_LOG", "debug")
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        *self.child(member) = Some(child);
    }

    fn child(&mut self, member: &str) -> &mut Option<Child> {
        if member == "a" { &mut self.a } else { &mut self.b }
    }

    /// Ends a member as a crash does, its mount included: the application's node is gone too.
    fn kill(&mut self, member: &str) {
        if let Some(mut child) = self.child(member).take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        self.unmount(member);
    }

    /// Ends a member in order, as SIGTERM does.
    fn stop(&mut self, member: &str) {
        if let Some(mut child) = self.child(member).take() {
            Command::new("kill").arg(child.id().to_string()).status().unwrap();
            wait("the member to end", || child.try_wait().unwrap().is_some());
        }
        self.unmount(member);
    }

    fn signal(&mut self, member: &str, signal: &str) {
        let id = self.child(member).as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    fn unmount(&self, member: &str) {
        Command::new("umount").args(["-l", "-f"]).arg(self.mount(member)).stderr(Stdio::null()).status().unwrap();
    }

    fn mount(&self, member: &str) -> PathBuf {
        self.folder.path().join(member).join("mount")
    }

    fn volume(&self, member: &str) -> PathBuf {
        self.folder.path().join(member).join("volume")
    }

    fn record(&self) -> Record {
        let text = fs::read(self.folder.path().join("record/record.json")).unwrap();
        let stored: Value = serde_json::from_slice(&text).unwrap();
        serde_json::from_value(stored["record"].clone()).unwrap()
    }

    /// What a member shows of itself over HTTP.
    fn shown(&self, member: &str) -> Value {
        use std::io::Read;
        let Ok(mut stream) = std::net::TcpStream::connect(self.address(member, 7471)) else { return Value::Null };
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        if write!(stream, "GET /member HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").is_err() {
            return Value::Null;
        }
        let mut text = String::new();
        if stream.read_to_string(&mut text).is_err() {
            return Value::Null;
        }
        text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok()).unwrap_or(Value::Null)
    }

    fn wait_serving(&self, member: &str) {
        self.wait(&format!("{member} to serve"), || self.shown(member)["serving"] == true);
    }

    fn wait_in_sync(&self, master: &str) {
        let other = if master == "a" { "b" } else { "a" };
        self.wait(&format!("{master} to lead a pair in sync"), || {
            self.shown(master)["state"] == "PrimaryActive"
                && self.shown(other)["state"] == "SecondaryActive"
                && self.record().certified.is_both()
        });
    }

    fn wait(&self, what: &str, holds: impl FnMut() -> bool) {
        if !waited(holds) {
            let mut told = format!("waited for {what}; record {:?}\n", self.record());
            for member in ["a", "b"] {
                let log = fs::read_to_string(self.folder.path().join(member).join("log")).unwrap_or_default();
                let lines: Vec<&str> =
                    log.lines().filter(|line| !line.contains("\"Report") && !line.contains("Heartbeat")).collect();
                let tail = lines[lines.len().saturating_sub(60)..].join("\n");
                told += &format!("---- {member}: {}\n{tail}\n", self.shown(member));
            }
            panic!("{told}");
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.kill("a");
        self.kill("b");
    }
}

fn wait(what: &str, holds: impl FnMut() -> bool) {
    assert!(waited(holds), "waited for {what}");
}

fn waited(mut holds: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// Appends numbered lines, each fsynced, until one fails; returns how many were acknowledged.
fn append(file: &Path, from: u64, count: u64) -> u64 {
    let mut file = fs::File::options().create(true).append(true).open(file).unwrap();
    for number in from..from + count {
        if file.write_all(format!("{number}\n").as_bytes()).is_err() || file.sync_data().is_err() {
            return number;
        }
    }
    from + count
}

/// Fails unless the file holds the numbers from 0 without a hole, at least `acknowledged` of them.
fn judge(file: &Path, acknowledged: u64) {
    let text = fs::read_to_string(file).unwrap();
    let numbers: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "a hole or a double");
    assert!(numbers.len() as u64 >= acknowledged, "{} of {acknowledged} acknowledged records are there", numbers.len());
}

#[test]
fn a_pair_is_founded_copied_and_taken_over() {
    let mut pair = Pair::new(11);
    pair.start("a");
    pair.wait_serving("a");
    let log = pair.mount("a").join("log");
    let mut acknowledged = append(&log, 0, 50);
    pair.start("b");
    pair.wait_in_sync("a");
    acknowledged = append(&log, acknowledged, 200);
    assert_eq!(acknowledged, 250);

    // The master dies: the other has every acknowledged write.
    pair.kill("a");
    pair.wait_serving("b");
    let log = pair.mount("b").join("log");
    judge(&log, acknowledged);
    acknowledged = append(&log, acknowledged, 100);
    assert_eq!(acknowledged, 350);

    // The first returns as replicant, and is brought home.
    pair.start("a");
    pair.wait_in_sync("b");
    acknowledged = append(&log, acknowledged, 50);
    pair.stop("b");
    pair.wait_serving("a");
    judge(&pair.mount("a").join("log"), acknowledged);
    pair.start("b");
    pair.wait_in_sync("a");
    pair.stop("a");
    pair.stop("b");
    // Plain files, on both volumes.
    for member in ["a", "b"] {
        judge(&pair.volume(member).join("log"), acknowledged);
    }
}

#[test]
fn a_replicant_that_was_away_catches_up() {
    let mut pair = Pair::new(12);
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    let log = pair.mount("a").join("log");
    let acknowledged = append(&log, 0, 20);
    pair.kill("b");
    // The master goes on alone once the record says so.
    let acknowledged = append(&log, acknowledged, 100);
    assert_eq!(acknowledged, 120);
    assert!(pair.record().certified.is_only(MemberName::A));
    pair.start("b");
    pair.wait_in_sync("a");
    pair.kill("a");
    pair.wait_serving("b");
    judge(&pair.mount("b").join("log"), acknowledged);
}

#[test]
fn a_copy_is_told_and_what_is_caught_up_later_is_none() {
    let mut pair = Pair::new(13);
    pair.start("a");
    pair.wait_serving("a");
    let log = pair.mount("a").join("log");
    let acknowledged = append(&log, 0, 20);
    pair.start("b");
    pair.wait_in_sync("a");
    pair.wait("the copy to be told as complete", || pair.shown("a")["netcopy"]["phase"] == "Completed");
    let copy = pair.shown("a")["netcopy"].clone();
    assert_eq!((&copy["bytesDone"], &copy["failures"]), (&copy["bytesTotal"], &json!(0)), "{copy}");
    assert!(copy["startedAt"].is_string() && copy["finishedAt"].is_string(), "{copy}");
    assert_eq!(pair.shown("b")["netcopy"], Value::Null, "a follower tells of no copy");

    pair.kill("b");
    let acknowledged = append(&log, acknowledged, 20);
    pair.start("b");
    pair.wait_in_sync("a");
    assert_eq!(pair.shown("a")["netcopy"], copy, "a catch-up is no copy");

    // Both lose their processes: the master goes on telling what it told.
    pair.kill("b");
    pair.kill("a");
    pair.start("a");
    pair.wait_serving("a");
    pair.wait("the copy to be told again", || pair.shown("a")["netcopy"] == copy);
    judge(&log, acknowledged);
}

#[test]
fn a_copy_that_does_not_move_is_given_up_and_begun_again() {
    let mut pair = Pair::new(14);
    // Silence alone would end it after four seconds.
    pair.wish("a", json!({"settings": {"interval": 2000}, "stall_timeout_milliseconds": 300}));
    let piece = vec![7; 1 << 20];
    let mut file = fs::File::create(pair.volume("a").join("large")).unwrap();
    for _ in 0..400 {
        file.write_all(&piece).unwrap();
    }
    pair.start("a");
    pair.wait_serving("a");
    pair.start("b");
    pair.wait("the copy to move", || pair.shown("a")["netcopy"]["bytesDone"].as_i64().unwrap_or(0) > 0);
    let first = pair.shown("a")["netcopy"].clone();
    assert_eq!((&first["phase"], &first["bytesTotal"]), (&json!("Copying"), &json!(400 << 20)), "{first}");
    pair.signal("b", "STOP");
    pair.wait("the copy to be given up", || pair.shown("a")["netcopy"]["phase"] == "Failed");
    let failed = pair.shown("a")["netcopy"].clone();
    assert_eq!((&failed["id"], &failed["failures"]), (&first["id"], &json!(1)));
    assert!(failed["message"].as_str().unwrap().starts_with("not a byte moved"), "{failed}");
    pair.signal("b", "CONT");
    pair.wait_in_sync("a");
    pair.wait("the next copy to be complete", || pair.shown("a")["netcopy"]["phase"] == "Completed");
    let second = pair.shown("a")["netcopy"].clone();
    assert_ne!(second["id"], first["id"]);
    assert_eq!(second["failures"], 0);
}

#[test]
fn two_copies_or_none_from_the_first_moment() {
    let mut pair = Pair::new(15);
    for member in ["a", "b"] {
        pair.wish(member, json!({"settings": {"protection": "MaxProtection"}}));
    }
    fs::write(pair.volume("a").join("old"), "there before").unwrap();
    pair.start("a");
    pair.wait("the founder to wait for its peer", || pair.shown("a")["state"] == "PrimaryUncertain");
    assert_eq!(pair.shown("a")["serving"], false);
    pair.start("b");
    pair.wait_in_sync("a");
    assert_eq!(append(&pair.mount("a").join("log"), 0, 20), 20);
    pair.kill("a");
    // Nobody serves until there are two again.
    pair.start("a");
    pair.wait("somebody to lead a pair in sync", || {
        ["a", "b"].iter().any(|member| pair.shown(member)["state"] == "PrimaryActive")
    });
}

#[test]
fn an_order_is_carried_out_once_and_answered() {
    // A volume that belongs to another pair, journal and all.
    let mut other = Pair::new(16);
    other.start("a");
    other.start("b");
    other.wait_in_sync("a");
    assert_eq!(append(&other.mount("a").join("other"), 0, 30), 30);
    other.stop("a");
    other.stop("b");
    let mut pair = Pair::new(17);
    fs::remove_dir(pair.volume("b")).unwrap();
    fs::rename(other.volume("b"), pair.volume("b")).unwrap();
    pair.start("a");
    pair.start("b");
    pair.wait("the volume to be known as another pair's", || pair.shown("b")["reason"] == "OtherPair");
    assert_eq!(pair.shown("b")["state"], "Quarantined");
    assert_eq!(append(&pair.mount("a").join("log"), 0, 20), 20);
    pair.wish("b", json!({"discard": ["one"], "resync": ["early"]}));
    pair.wait_in_sync("a");
    let outcome = |pair: &Pair, token: &str| {
        let told = pair.shown("b")["handledOrders"].as_array().cloned().unwrap_or_default();
        told.into_iter().find(|told| told["token"] == token).map(|told| (told["done"] == true, told["reason"].clone()))
    };
    pair.wait("both answers", || {
        outcome(&pair, "one") == Some((true, json!("Discarded")))
            && outcome(&pair, "early") == Some((true, json!("Copied")))
    });
    let aside: Vec<_> = fs::read_dir(pair.volume("b").join(".tandem/aside")).unwrap().collect();
    assert_eq!(aside.len(), 1, "what was given up was kept");
    assert_eq!(append(&pair.mount("a").join("log"), 20, 20), 40);

    // A comparison is a copy of its own, made once.
    let copy = pair.shown("a")["netcopy"]["id"].clone();
    pair.wish("b", json!({"discard": ["one"], "resync": ["early", "now"]}));
    pair.wait("the comparison", || outcome(&pair, "now") == Some((true, json!("Copied"))));
    pair.wait_in_sync("a");
    let second = pair.shown("a")["netcopy"]["id"].clone();
    assert_ne!(second, copy);
    pair.kill("b");
    pair.start("b");
    pair.wait_in_sync("a");
    pair.wait("the answers to be told again", || outcome(&pair, "now") == Some((true, json!("Copied"))));
    assert_eq!(pair.shown("a")["netcopy"]["id"], second, "a token acted twice");
    assert_eq!(append(&pair.mount("a").join("log"), 40, 20), 60);

    // Held, it claims nothing, over a restart too; then it has everything that was written since it began anew.
    pair.wish("b", json!({"hold": ["still"]}));
    pair.wait("the order to hold", || outcome(&pair, "still") == Some((true, json!("Held"))));
    pair.kill("b");
    pair.start("b");
    pair.wait_in_sync("a");
    pair.kill("a");
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(pair.record().epoch, 1, "it claimed although it was to hold");
    pair.wish("b", json!({}));
    pair.wait_serving("b");
    judge(&pair.mount("b").join("log"), 60);
}

#[test]
fn a_nomination_is_answered_when_it_was_carried_out_and_when_it_cannot_be() {
    let mut pair = Pair::new(18);
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    let acknowledged = append(&pair.mount("a").join("log"), 0, 20);
    pair.wish("b", json!({"nomination": [{"id": "over", "to": "b"}, 0]}));
    pair.wait("a void one to be answered", || pair.shown("b")["handledNomination"] == "over");
    assert_eq!(pair.record().epoch, 1);
    pair.wish("b", json!({"nomination": [{"id": "go", "to": "b"}, 1]}));
    pair.wait_serving("b");
    pair.wait("the other to be answered", || pair.shown("b")["handledNomination"] == "go");
    assert_eq!(pair.record().last_request.as_deref(), Some("go"));
    judge(&pair.mount("b").join("log"), acknowledged);
}

#[test]
fn a_peer_whose_memory_suffices_takes_over_with_everything() {
    let mut pair = Pair::new(19);
    for member in ["a", "b"] {
        pair.wish(member, json!({"settings": {"ack_policy": "Received"}}));
    }
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    // The next connection may acknowledge from memory: the first one began before the peer was certified.
    pair.kill("b");
    pair.start("b");
    pair.wait_in_sync("a");
    let acknowledged = append(&pair.mount("a").join("log"), 0, 300);
    assert_eq!(acknowledged, 300);
    pair.kill("a");
    pair.wait_serving("b");
    judge(&pair.mount("b").join("log"), acknowledged);
}
