//! Two members as processes of the real program on this machine: real mounts, journals, TLS, and a record in a folder.
//! No Kubernetes. Needs root and /dev/fuse. Everything waits for conditions, with patience for a busy machine.

#![allow(clippy::unwrap_used, clippy::panic, dead_code)] // a test says what it expects by panicking, and uses what it needs

pub(crate) mod disks;
pub(crate) mod plugin;
pub(crate) mod trees;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tandem_protocol::Record;
use tandem_protocol::identity::{MemberName, PairId};
use tandem_replicator::record::file::FileKeeper;

const PATIENCE: Duration = Duration::from_secs(60);

/// How many pairs this process has made. Tests run beside each other, and no two pairs may meet.
static PAIRS: AtomicU8 = AtomicU8::new(0);

pub(crate) struct Pair {
    folder: tempfile::TempDir,
    number: u8,
    log: &'static str,
    a: Option<Child>,
    b: Option<Child>,
}

impl Pair {
    /// As `new`, for measurements: the members tell no more than they do in a pod.
    pub(crate) fn quiet() -> Self {
        let mut pair = Self::new();
        pair.log = "info";
        pair
    }

    /// Makes folders, certificates and the founding record; starts nobody.
    pub(crate) fn new() -> Self {
        let number = PAIRS.fetch_add(1, Ordering::Relaxed) + 1;
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
        let pair = Self { folder, number, log: "debug", a: None, b: None };
        pair.wish("a", json!({}));
        pair.wish("b", json!({}));
        pair
    }

    /// Settings faster than the usual ones, and what is wished beside them.
    pub(crate) fn wish(&self, member: &str, more: Value) {
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

    pub(crate) fn address(&self, member: &str, port: u16) -> String {
        // Nor those of another test's process.
        let process = std::process::id() % 250 + 1;
        format!("127.{process}.{}.{}:{port}", self.number, if member == "a" { 1 } else { 2 })
    }

    /// Starts a member that mounts by itself.
    pub(crate) fn start(&mut self, member: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicator"));
        command.args(self.serving(member)).arg("--mount").arg(self.mount(member));
        self.spawn(member, &mut command);
    }

    /// Starts a member as in a pod: its supervisor asks at `socket` for the descriptors of a mount that somebody else made.
    pub(crate) fn supervise(&mut self, member: &str, socket: &Path) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicator"));
        command.arg("supervise").arg("--socket").arg(socket).arg("--").args(self.serving(member));
        self.spawn(member, &mut command);
    }

    fn serving(&self, member: &str) -> Vec<OsString> {
        let home = self.folder.path().join(member);
        let other = if member == "a" { "b" } else { "a" };
        let mut words: Vec<OsString> = vec!["serve".into()];
        let mut say = |word: &str, value: OsString| words.extend([word.into(), value]);
        say("--namespace", "shop".into());
        say("--pair", "orders".into());
        say("--member", member.into());
        say("--pod", member.into());
        say("--pod-uid", format!("{member}-{:?}", Instant::now()).into());
        say("--volume-uid", format!("volume-{member}").into());
        say("--volume", home.join("volume").into());
        say("--run", home.join("run").into());
        say("--tls", home.join("tls").into());
        say("--record-folder", self.folder.path().join("record").into());
        say("--peer-host", self.address(other, 7470).into());
        say("--listen", self.address(member, 7470).into());
        say("--health", self.address(member, 7471).into());
        words
    }

    fn spawn(&mut self, member: &str, command: &mut Command) {
        let log = self.folder.path().join(member).join("log");
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        *self.child(member) = Some(command.env("RUST_LOG", self.log).stderr(Stdio::from(log)).spawn().unwrap());
    }

    /// The processes that a member's process has started.
    pub(crate) fn children(&mut self, member: &str) -> Vec<String> {
        let Some(id) = self.child(member).as_ref().map(Child::id) else { return Vec::new() };
        let list = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        list.split_whitespace().map(str::to_owned).collect()
    }

    pub(crate) fn child(&mut self, member: &str) -> &mut Option<Child> {
        if member == "a" { &mut self.a } else { &mut self.b }
    }

    /// Ends a member as a crash does, its mount included: the application's node is gone too.
    pub(crate) fn kill(&mut self, member: &str) {
        if self.child(member).is_some() {
            // A supervisor that stands still starts nobody anew.
            self.signal(member, "STOP");
            let children = self.children(member);
            let mut child = self.child(member).take().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            for id in children {
                Command::new("kill").args(["-s", "KILL", &id]).status().unwrap();
            }
        }
        self.unmount(member);
    }

    /// Ends a member in order, as SIGTERM does.
    pub(crate) fn stop(&mut self, member: &str) {
        if let Some(mut child) = self.child(member).take() {
            Command::new("kill").arg(child.id().to_string()).status().unwrap();
            wait("the member to end", || child.try_wait().unwrap().is_some());
        }
        self.unmount(member);
    }

    /// Ends both; what they wrote stays until the folder is dropped.
    pub(crate) fn end(mut self) -> tempfile::TempDir {
        self.kill("a");
        self.kill("b");
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    pub(crate) fn signal(&mut self, member: &str, signal: &str) {
        let id = self.child(member).as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    pub(crate) fn unmount(&self, member: &str) {
        Command::new("umount").args(["-l", "-f"]).arg(self.mount(member)).stderr(Stdio::null()).status().unwrap();
    }

    /// A place for sockets and the like of a member's pod.
    pub(crate) fn home(&self, member: &str) -> PathBuf {
        self.folder.path().join(member)
    }

    pub(crate) fn mount(&self, member: &str) -> PathBuf {
        self.folder.path().join(member).join("mount")
    }

    pub(crate) fn volume(&self, member: &str) -> PathBuf {
        self.folder.path().join(member).join("volume")
    }

    pub(crate) fn record(&self) -> Record {
        let text = fs::read(self.folder.path().join("record/record.json")).unwrap();
        let stored: Value = serde_json::from_slice(&text).unwrap();
        serde_json::from_value(stored["record"].clone()).unwrap()
    }

    /// What a member shows of itself over HTTP.
    pub(crate) fn shown(&self, member: &str) -> Value {
        serde_json::from_str(&self.page(member, "/member")).unwrap_or(Value::Null)
    }

    /// A page of a member, empty if it does not answer.
    pub(crate) fn page(&self, member: &str, path: &str) -> String {
        use std::io::Read;
        let Ok(mut stream) = std::net::TcpStream::connect(self.address(member, 7471)) else { return String::new() };
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        if write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").is_err() {
            return String::new();
        }
        let mut text = String::new();
        if stream.read_to_string(&mut text).is_err() {
            return String::new();
        }
        text.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned())
    }

    /// A number of a member's metrics, by its name with labels.
    pub(crate) fn metric(&self, member: &str, name: &str) -> Option<f64> {
        let page = self.page(member, "/metrics");
        let line = page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    pub(crate) fn wait_serving(&self, member: &str) {
        self.wait(&format!("{member} to serve"), || self.shown(member)["serving"] == true);
    }

    pub(crate) fn wait_in_sync(&self, master: &str) {
        let other = if master == "a" { "b" } else { "a" };
        self.wait(&format!("{master} to lead a pair in sync"), || {
            self.shown(master)["state"] == "PrimaryActive"
                && self.shown(other)["state"] == "SecondaryActive"
                && self.record().certified.is_both()
        });
    }

    pub(crate) fn wait(&self, what: &str, holds: impl FnMut() -> bool) {
        if !waited(holds) {
            panic!("waited for {what}; {}", self.story());
        }
    }

    /// What happened, for people.
    pub(crate) fn story(&self) -> String {
        let mut told = format!("record {:?}\n", self.record());
        for member in ["a", "b"] {
            let log = fs::read_to_string(self.folder.path().join(member).join("log")).unwrap_or_default();
            let lines: Vec<&str> =
                log.lines().filter(|line| !line.contains("\"Report") && !line.contains("Heartbeat")).collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            told += &format!("---- {member}: {}\n{tail}\n", self.shown(member));
        }
        told
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.kill("a");
        self.kill("b");
    }
}

pub(crate) fn wait(what: &str, holds: impl FnMut() -> bool) {
    assert!(waited(holds), "waited for {what}");
}

pub(crate) fn waited(mut holds: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// A small generator of numbers, the same everywhere.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound.max(1)
    }
}

/// Appends numbered lines, each fsynced, until one fails; returns how many were acknowledged.
pub(crate) fn append(file: &Path, from: u64, count: u64) -> u64 {
    let mut file = fs::File::options().create(true).append(true).open(file).unwrap();
    for number in from..from + count {
        if file.write_all(format!("{number}\n").as_bytes()).is_err() || file.sync_data().is_err() {
            return number;
        }
    }
    from + count
}

/// Fails unless the file holds the numbers from 0 without a hole, at least `acknowledged` of them.
pub(crate) fn judge(file: &Path, acknowledged: u64) {
    let text = fs::read_to_string(file).unwrap();
    let numbers: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "a hole or a double");
    assert!(numbers.len() as u64 >= acknowledged, "{} of {acknowledged} acknowledged records are there", numbers.len());
}
