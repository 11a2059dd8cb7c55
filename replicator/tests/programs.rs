//! Programs that keep their data in files, as they are, on a pair: each writes under load until its master dies, is started
//! again where the other member took over, passes its own consistency check, and has everything that it called durable.

#![allow(clippy::unwrap_used, clippy::panic)] // a test says what it expects by panicking

mod harness;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use harness::{Pair, wait};

/// A program that notes numbers.
trait Program: Send + Sized {
    /// Starts it on a folder that may hold what an earlier life of it left, with the process that serves, if one does.
    /// `private` lies on no pair, for sockets and the like.
    fn start(folder: &Path, private: &Path) -> (Self, Option<Child>);
    /// Notes a number. True if the program calls it durable, and false once it fails.
    fn note(&mut self, number: u64) -> bool;
    /// What it has noted.
    fn noted(&mut self) -> BTreeSet<u64>;
    /// Its own check of its data; panics if something is wrong.
    fn check(&mut self);
}

/// Numbers noted before and after the master dies.
const MANY: u64 = 40;

fn survives<P: Program>() {
    let mut pair = Pair::new();
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    let (here, there) = (pair.mount("a").join("data"), pair.mount("b").join("data"));
    fs::create_dir(&here).unwrap();
    let (mut program, server) = P::start(&here, &pair.home("a"));
    let durable = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while program.note(durable.load(Ordering::Acquire)) {
                durable.fetch_add(1, Ordering::AcqRel);
            }
        });
        wait("the program to be under load", || durable.load(Ordering::Acquire) >= MANY);
        pair.kill("a");
        // Its node went with the member.
        if let Some(mut server) = server {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    });
    drop(program);
    let durable = durable.into_inner();
    pair.wait_serving("b");
    let (mut program, server) = P::start(&there, &pair.home("b"));
    program.check();
    let noted = program.noted();
    let missing: Vec<u64> = (0..durable).filter(|number| !noted.contains(number)).collect();
    assert!(missing.is_empty(), "of {durable} numbers these are missing: {missing:?}");
    // One more may have been under way.
    assert!(noted.iter().all(|number| *number <= durable), "{noted:?}");
    for number in durable + 1..durable + 1 + MANY {
        assert!(program.note(number), "it no longer works");
    }
    assert_eq!(program.noted().len() as u64, noted.len() as u64 + MANY);
    program.check();
    end(program, server);
    println!("{durable} durable numbers survived, {} more were noted", MANY);

    // The way back: the one that died is the replicant now, and what it holds becomes the same.
    pair.start("a");
    pair.wait_in_sync("b");
    pair.stop("b");
    pair.wait_serving("a");
    let (mut program, server) = P::start(&here, &pair.home("a"));
    program.check();
    assert_eq!(program.noted().len() as u64, noted.len() as u64 + MANY);
    end(program, server);
    pair.stop("a");
}

/// Runs it to its end and hands back what it said; fails with what it complained about.
fn said(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{command:?}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

fn serving(command: &mut Command, private: &Path) -> Child {
    let log = File::options().create(true).append(true).open(private.join("program.log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// As a stop of its pod does.
fn end<P: Program>(program: P, server: Option<Child>) {
    drop(program);
    if let Some(mut server) = server {
        Command::new("kill").arg(server.id().to_string()).status().unwrap();
        wait("the program to end", || server.try_wait().unwrap().is_some());
    }
}

fn numbers(text: &str) -> BTreeSet<u64> {
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// Makes a folder and everything in it durable; false if that fails.
fn flush(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    for entry in entries {
        let Ok(entry) = entry else { return false };
        let Ok(kind) = entry.file_type() else { return false };
        let path = entry.path();
        let done = if kind.is_dir() {
            flush(&path)
        } else {
            !kind.is_file() || File::open(&path).is_ok_and(|file| file.sync_all().is_ok())
        };
        if !done {
            return false;
        }
    }
    File::open(folder).is_ok_and(|folder| folder.sync_all().is_ok())
}

/// MariaDB with its own file formats and its redo log.
struct MariaDb {
    socket: PathBuf,
    client: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl MariaDb {
    fn client(socket: &Path) -> Command {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "--user=root", "--batch", "--skip-column-names", "--unbuffered", "-n"]);
        command.arg(format!("--socket={}", socket.display()));
        command
    }
}

impl Program for MariaDb {
    fn start(folder: &Path, private: &Path) -> (Self, Option<Child>) {
        let socket = private.join("mariadb");
        let place = format!("--datadir={}", folder.display());
        let is_new = !folder.join("mysql").exists();
        if is_new {
            said(Command::new("mariadb-install-db").args([
                "--no-defaults",
                &place,
                "--user=root",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ]))
            .unwrap();
        }
        let mut command = Command::new("/usr/sbin/mariadbd");
        command.args(["--no-defaults", &place, "--user=root", "--skip-networking", "--innodb-log-file-size=16M"]);
        command.arg("--innodb-flush-log-at-trx-commit=1");
        command.arg(format!("--socket={}", socket.display())).arg(format!("--pid-file={}.pid", socket.display()));
        let server = serving(&mut command, private);
        wait("MariaDB to answer", || said(Self::client(&socket).args(["-e", "select 1"])).is_ok());
        if is_new {
            let make = "create database noted; create table noted.numbers (n bigint primary key) engine=InnoDB";
            said(Self::client(&socket).args(["-e", make])).unwrap();
        }
        let mut client =
            Self::client(&socket).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (to, from) = (client.stdin.take().unwrap(), BufReader::new(client.stdout.take().unwrap()));
        (Self { socket, client, to, from }, Some(server))
    }

    fn note(&mut self, number: u64) -> bool {
        if writeln!(self.to, "insert into noted.numbers values ({number}); select {number};").is_err() {
            return false;
        }
        let mut line = String::new();
        self.from.read_line(&mut line).is_ok() && line.trim() == number.to_string()
    }

    fn noted(&mut self) -> BTreeSet<u64> {
        numbers(&said(Self::client(&self.socket).args(["-e", "select n from noted.numbers"])).unwrap())
    }

    fn check(&mut self) {
        let told = said(Self::client(&self.socket).args(["-e", "check table noted.numbers extended"])).unwrap();
        assert!(told.trim().ends_with("OK"), "{told}");
        let socket = format!("--socket={}", self.socket.display());
        let told = said(Command::new("mariadb-check").args(["--no-defaults", "-uroot", &socket, "--all-databases"]));
        let told = told.unwrap();
        assert!(told.contains("noted.numbers") && !told.to_lowercase().contains("error"), "{told}");
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.client.kill().unwrap();
        self.client.wait().unwrap();
    }
}

#[test]
#[ignore = "needs Debian packages: cargo verify -- --only programs"]
fn mariadb() {
    survives::<MariaDb>();
}

/// Redis with an append-only file that it flushes before each answer.
struct Redis {
    folder: PathBuf,
    connection: BufReader<UnixStream>,
}

impl Redis {
    fn ask(&mut self, words: &[&str]) -> std::io::Result<Vec<String>> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.connection.get_mut().write_all(request.as_bytes())?;
        let head = self.line()?;
        let Some(count) = head.strip_prefix('*') else { return Ok(vec![head]) };
        (0..count.parse::<u64>().unwrap()).map(|_| self.line().and_then(|_length| self.line())).collect()
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.connection.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Program for Redis {
    fn start(folder: &Path, private: &Path) -> (Self, Option<Child>) {
        let socket = private.join("redis");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        command.arg("--unixsocket").arg(&socket).arg("--dir").arg(folder);
        let server = serving(&mut command, private);
        let mut redis = None;
        wait("Redis to answer", || {
            if redis.is_none() {
                redis = UnixStream::connect(&socket).ok().map(BufReader::new);
            }
            redis.is_some()
        });
        let mut redis = Self { folder: folder.to_path_buf(), connection: redis.unwrap() };
        wait("Redis to have read its file", || redis.ask(&["PING"]).is_ok_and(|answer| answer == ["+PONG"]));
        (redis, Some(server))
    }

    fn note(&mut self, number: u64) -> bool {
        self.ask(&["SADD", "numbers", &number.to_string()]).is_ok_and(|answer| answer == [":1"])
    }

    fn noted(&mut self) -> BTreeSet<u64> {
        self.ask(&["SMEMBERS", "numbers"]).unwrap().iter().map(|text| text.parse().unwrap()).collect()
    }

    fn check(&mut self) {
        let list = self.folder.join("appendonlydir/appendonly.aof.manifest");
        let told = said(Command::new("redis-check-aof").arg(list)).unwrap();
        assert!(told.contains("All AOF files and manifest are valid"), "{told}");
    }
}

#[test]
#[ignore = "needs Debian packages: cargo verify -- --only programs"]
fn redis() {
    survives::<Redis>();
}

/// etcd with its log of writes and its B+ tree.
struct Etcd {
    private: PathBuf,
}

impl Etcd {
    const CLIENTS: &str = "http://127.251.0.1:12379";
    const PEERS: &str = "http://127.251.0.1:12380";

    fn control(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", Self::CLIENTS, "--command-timeout=5s"]).args(words);
        said(&mut command)
    }
}

impl Program for Etcd {
    fn start(folder: &Path, private: &Path) -> (Self, Option<Child>) {
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(folder.join("etcd"));
        command.args(["--listen-client-urls", Self::CLIENTS, "--advertise-client-urls", Self::CLIENTS]);
        command.args(["--listen-peer-urls", Self::PEERS, "--initial-advertise-peer-urls", Self::PEERS]);
        command.args(["--initial-cluster", &format!("default={}", Self::PEERS)]);
        let (etcd, server) = (Self { private: private.to_path_buf() }, serving(&mut command, private));
        wait("etcd to answer", || etcd.control(&["endpoint", "health"]).is_ok());
        (etcd, Some(server))
    }

    fn note(&mut self, number: u64) -> bool {
        let number = number.to_string();
        self.control(&["put", &number, "noted"]).is_ok()
    }

    fn noted(&mut self) -> BTreeSet<u64> {
        numbers(&self.control(&["get", "", "--prefix", "--keys-only"]).unwrap())
    }

    fn check(&mut self) {
        let copy = self.private.join("etcd-copy");
        let copy = copy.to_str().unwrap();
        fs::remove_file(copy).ok();
        self.control(&["snapshot", "save", copy]).unwrap();
        // Reads the whole tree, and compares its digest.
        self.control(&["snapshot", "status", copy]).unwrap();
    }
}

#[test]
#[ignore = "needs Debian packages: cargo verify -- --only programs"]
fn etcd() {
    survives::<Etcd>();
}

/// A repository that is committed to. git flushes what it writes but not the folders that it renames in: who wants a
/// commit to last does that.
struct Git {
    folder: PathBuf,
}

impl Git {
    fn git(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new("git");
        command.args(["-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync", "-c", "safe.directory=*"]);
        command.args(["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "gc.autoDetach=false"]);
        said(command.arg("-C").arg(&self.folder).args(words))
    }
}

impl Program for Git {
    fn start(folder: &Path, _private: &Path) -> (Self, Option<Child>) {
        let git = Self { folder: folder.to_path_buf() };
        if !folder.join(".git").exists() {
            git.git(&["init", "-q", "-b", "main"]).unwrap();
        }
        // As git itself advises after a crash.
        for lock in ["index.lock", "HEAD.lock", "refs/heads/main.lock"] {
            fs::remove_file(folder.join(".git").join(lock)).ok();
        }
        (git, None)
    }

    fn note(&mut self, number: u64) -> bool {
        let path = self.folder.join(format!("file-{}", number % 20));
        let text = format!("{number}\n").repeat(1 + (number % 300) as usize);
        fs::write(path, text).is_ok()
            && self.git(&["add", "--all"]).is_ok()
            && self.git(&["commit", "-q", "-m", &number.to_string()]).is_ok()
            && flush(&self.folder.join(".git"))
    }

    fn noted(&mut self) -> BTreeSet<u64> {
        numbers(&self.git(&["log", "--format=%s"]).unwrap())
    }

    fn check(&mut self) {
        self.git(&["fsck", "--full", "--strict"]).unwrap();
        self.git(&["status", "--porcelain"]).unwrap();
    }
}

#[test]
#[ignore = "needs Debian packages: cargo verify -- --only programs"]
fn git() {
    survives::<Git>();
}

/// A mailbox as mail servers keep it: a file per message, written aside, flushed, and renamed into place.
struct Maildir {
    folder: PathBuf,
}

impl Maildir {
    fn text(number: u64) -> Vec<u8> {
        format!("Subject: {number}\n\n").into_bytes().repeat(1 + (number % 700) as usize)
    }
}

impl Program for Maildir {
    fn start(folder: &Path, _private: &Path) -> (Self, Option<Child>) {
        for name in ["tmp", "new", "cur"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        (Self { folder: folder.to_path_buf() }, None)
    }

    fn note(&mut self, number: u64) -> bool {
        let (aside, place) = (self.folder.join(format!("tmp/{number}")), self.folder.join(format!("new/{number}")));
        let deliver = || -> std::io::Result<()> {
            let mut file = File::create(&aside)?;
            file.write_all(&Self::text(number))?;
            file.sync_all()?;
            fs::rename(&aside, &place)?;
            File::open(self.folder.join("new"))?.sync_all()
        };
        deliver().is_ok()
    }

    fn noted(&mut self) -> BTreeSet<u64> {
        let names = fs::read_dir(self.folder.join("new")).unwrap();
        names.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    }

    /// A message that was delivered is whole.
    fn check(&mut self) {
        for number in self.noted() {
            let mut text = Vec::new();
            File::open(self.folder.join(format!("new/{number}"))).unwrap().read_to_end(&mut text).unwrap();
            assert!(text == Self::text(number), "message {number}");
        }
    }
}

#[test]
#[ignore = "needs Debian packages: cargo verify -- --only programs"]
fn maildir() {
    survives::<Maildir>();
}

/// Copies of a source tree, by tar and by rsync in turn.
struct Trees {
    folder: PathBuf,
}

impl Trees {
    fn source() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
    }

    fn is_whole(&self, number: u64) -> bool {
        let place = self.folder.join(format!("tree-{number}"));
        said(Command::new("diff").arg("-r").arg(Self::source()).arg(place)).is_ok()
    }
}

impl Program for Trees {
    fn start(folder: &Path, _private: &Path) -> (Self, Option<Child>) {
        (Self { folder: folder.to_path_buf() }, None)
    }

    fn note(&mut self, number: u64) -> bool {
        let place = self.folder.join(format!("tree-{number}"));
        if fs::create_dir_all(&place).is_err() {
            return false;
        }
        let copied = if number.is_multiple_of(2) {
            let pipe = format!("tar -C {} -cf - . | tar -C {} -xf -", Self::source().display(), place.display());
            said(Command::new("bash").args(["-o", "pipefail", "-c", &pipe]))
        } else {
            said(Command::new("rsync").args(["-aHAX", "--fsync"]).arg(Self::source().join("")).arg(&place))
        };
        copied.is_ok() && flush(&place) && File::open(&self.folder).is_ok_and(|folder| folder.sync_all().is_ok())
    }

    fn noted(&mut self) -> BTreeSet<u64> {
        let names = fs::read_dir(&self.folder).unwrap();
        let all = names.map(|entry| entry.unwrap().file_name().to_str().unwrap()[5..].parse().unwrap());
        all.filter(|number| self.is_whole(*number)).collect()
    }

    /// What was interrupted is completed, as whoever copies would do: by the command again.
    fn check(&mut self) {
        let names: Vec<String> = fs::read_dir(&self.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
            .collect();
        for name in names {
            let place = self.folder.join(&name);
            said(Command::new("rsync").args(["-aHAX", "--delete"]).arg(Self::source().join("")).arg(&place)).unwrap();
        }
    }
}

#[test]
#[ignore = "needs Debian packages: cargo verify -- --only programs"]
fn copies_of_a_tree() {
    survives::<Trees>();
}

/// A program that is built of more and more files.
struct Build {
    folder: PathBuf,
}

impl Build {
    const RULES: &str = "parts := $(patsubst %.c,%.o,$(wildcard *.c))\nall: $(parts)\n\tgcc -o all.new $(parts) && mv all.new all\n%.o: %.c\n\tgcc -O1 -c -o $@.new $< && mv $@.new $@\n";

    fn make(&self) -> Result<String, String> {
        said(Command::new("make").arg("-s").arg("-C").arg(&self.folder))
    }
}

impl Program for Build {
    fn start(folder: &Path, _private: &Path) -> (Self, Option<Child>) {
        if !folder.join("Makefile").exists() {
            fs::write(folder.join("Makefile"), Self::RULES).unwrap();
            fs::write(folder.join("main.c"), "int main(void) { return 0; }\n").unwrap();
            assert!(flush(folder));
        }
        (Self { folder: folder.to_path_buf() }, None)
    }

    fn note(&mut self, number: u64) -> bool {
        let text = format!(
            "#include <stdio.h>\n__attribute__((constructor)) static void say(void) {{ printf(\"{number}\\n\"); }}\n"
        );
        fs::write(self.folder.join(format!("part-{number}.c")), text).is_ok()
            && self.make().is_ok()
            && flush(&self.folder)
    }

    fn noted(&mut self) -> BTreeSet<u64> {
        numbers(&said(&mut Command::new(self.folder.join("all"))).unwrap())
    }

    /// What was interrupted is built, and then nothing is left to do.
    fn check(&mut self) {
        // A source that was still being written.
        for entry in fs::read_dir(&self.folder).unwrap() {
            let path = entry.unwrap().path();
            let is_source = path.extension().is_some_and(|kind| kind == "c");
            if is_source && !fs::read_to_string(&path).unwrap().ends_with("}\n") {
                fs::remove_file(&path).unwrap();
            }
        }
        self.make().unwrap();
        said(Command::new("make").arg("-q").arg("-C").arg(&self.folder)).unwrap();
    }
}

#[test]
#[ignore = "needs Debian packages: cargo verify -- --only programs"]
fn a_build() {
    survives::<Build>();
}
