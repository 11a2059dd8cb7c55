//! Rows about databases: SQLite by its shell, MariaDB by mysqlslap, PostgreSQL by pgbench, and beside it PostgreSQL's own
//! replication.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Contestant;
use crate::files::{Row, shown};
use crate::table::Table;

pub(crate) const SMALL: &[Row] = &[
    ("SQLite, WAL, full", "commits/s", |folder| sqlite(folder, "wal")),
    ("SQLite, rollback journal", "commits/s", |folder| sqlite(folder, "delete")),
    ("MariaDB, reads and inserts, 8 clients", "queries/s", mariadb),
];

const CLIENTS: [&str; 3] = ["1", "8", "32"];
const SECONDS: &str = "4";

pub(crate) fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: is it installed?"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Single-row transactions of one writer.
fn sqlite(folder: &Path, mode: &str) -> f64 {
    const COUNT: usize = 400;
    let file = folder.join("bench.sqlite");
    let began = Instant::now();
    let mut shell = Command::new("sqlite3")
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("sqlite3: {error}: apt-get install sqlite3"));
    let mut input = shell.stdin.take().unwrap();
    writeln!(
        input,
        "pragma journal_mode={mode}; pragma synchronous=full; create table t (k integer primary key, v text);"
    )
    .unwrap();
    for k in 0..COUNT {
        writeln!(input, "insert into t values ({k}, 'a row of some length, so that it is one of a table');").unwrap();
    }
    drop(input);
    assert!(shell.wait().unwrap().success());
    let rate = COUNT as f64 / began.elapsed().as_secs_f64();
    for end in ["", "-wal", "-shm", "-journal"] {
        fs::remove_file(folder.join(format!("bench.sqlite{end}"))).ok();
    }
    rate
}

/// Single-row inserts and reads in equal parts, each its own transaction.
fn mariadb(folder: &Path) -> f64 {
    const QUERIES: u32 = 4_000;
    let (data, place) = (folder.join("mariadb"), tempfile::tempdir().unwrap());
    let datadir = format!("--datadir={}", shown(&data));
    let socket = format!("--socket={}", shown(&place.path().join("socket")));
    let founding = ["--auth-root-authentication-method=normal", "--skip-test-db"];
    run("mariadb-install-db", &[&["--no-defaults", &datadir, "--user=root"][..], &founding].concat());
    let mut server = Command::new("/usr/sbin/mariadbd")
        .args(["--no-defaults", &datadir, &socket, "--user=root", "--skip-networking", "--innodb-log-file-size=64M"])
        .args(["--innodb-flush-log-at-trx-commit=1", &format!("--pid-file={}", shown(&place.path().join("pid")))])
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("mariadbd: {error}: apt-get install mariadb-server"));
    let ask = || Command::new("mariadb-admin").args(["--no-defaults", "-uroot", &socket, "ping"]).output().unwrap();
    crate::harness::wait("MariaDB to answer", || ask().status.success());
    let began = Instant::now();
    run(
        "mysqlslap",
        &[
            "--no-defaults",
            "-uroot",
            &socket,
            "--auto-generate-sql",
            "--auto-generate-sql-load-type=mixed",
            "--auto-generate-sql-guid-primary",
            "--engine=InnoDB",
            "--concurrency=8",
            &format!("--number-of-queries={QUERIES}"),
        ],
    );
    let rate = f64::from(QUERIES) / began.elapsed().as_secs_f64();
    server.kill().unwrap();
    server.wait().unwrap();
    put_away(&data);
    rate
}

/// Makes a folder empty of content and free for the next one. Its files stay, for the reason given at `small_files`.
fn put_away(folder: &Path) {
    run("find", &[&shown(folder), "-type", "f", "-exec", "truncate", "-s", "0", "{}", "+"]);
    let place = |number: u32| folder.with_extension(format!("before-{number}"));
    let free = (0..).map(place).find(|path| !path.exists()).unwrap();
    fs::rename(folder, free).unwrap();
}

/// A server of PostgreSQL; ended when dropped.
struct Server {
    data: PathBuf,
    port: u16,
}

/// Where Debian keeps the programs of the newest PostgreSQL.
fn program(name: &str) -> String {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .unwrap_or_else(|error| panic!("PostgreSQL: {error}: apt-get install postgresql"))
        .map(|entry| entry.unwrap().path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    shown(found.last().unwrap_or_else(|| panic!("{name}: apt-get install postgresql")))
}

/// PostgreSQL refuses to run as root.
fn as_postgres(name: &str, words: &[&str]) -> String {
    let program = program(name);
    run("setpriv", &[&["--reuid=postgres", "--regid=postgres", "--clear-groups", &program][..], words].concat())
}

impl Server {
    fn new(folder: &Path, port: u16) -> Self {
        let data = folder.join("pgdata");
        fs::create_dir(&data).unwrap();
        run("chown", &["postgres:postgres", &shown(&data)]);
        run("chmod", &["0700", &shown(&data)]);
        Self { data, port }
    }

    fn found(folder: &Path, port: u16) -> Self {
        let server = Self::new(folder, port);
        as_postgres("initdb", &["-D", &shown(&server.data), "-A", "trust", "-U", "postgres", "--no-sync"]);
        server.start("");
        server
    }

    fn start(&self, more: &str) {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=80 -c shared_buffers=128MB \
             -c checkpoint_timeout=1h -c max_wal_size=8GB {more}",
            self.port
        );
        let log = format!("/tmp/tandem-bench-{}.log", self.port);
        as_postgres("pg_ctl", &["-D", &shown(&self.data), "-w", "-l", &log, "-o", &options, "start"]);
    }

    fn pgbench(&self, words: &[&str]) -> String {
        let port = self.port.to_string();
        let to = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
        run(&program("pgbench"), &[&to[..], words, &["postgres"]].concat())
    }

    fn sql(&self, text: &str) -> String {
        let port = self.port.to_string();
        run(&program("psql"), &["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-qAtc", text])
    }

    fn measure(&self, contestant: &'static str, table: &mut Table) {
        self.pgbench(&["-i", "-q", "-s", "10"]);
        for clients in CLIENTS {
            self.sql("checkpoint");
            let threads = if clients == "1" { "1" } else { "2" };
            let told = self.pgbench(&["-c", clients, "-j", threads, "-T", SECONDS, "-n"]);
            let line = told.lines().find(|line| line.starts_with("tps = ")).unwrap();
            let rate = line.split_whitespace().nth(2).unwrap().parse().unwrap();
            table.note(&format!("pgbench, {clients} clients"), "tps", contestant, rate);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let (program, data) = (program("pg_ctl"), shown(&self.data));
        let words = ["--reuid=postgres", "--regid=postgres", "--clear-groups", &program];
        let ended = Command::new("setpriv").args(words).args(["-D", &data, "-m", "immediate", "-w", "stop"]).output();
        if !ended.is_ok_and(|output| output.status.success()) {
            eprintln!("PostgreSQL of {data} did not end");
        }
        if !std::thread::panicking() {
            put_away(&self.data);
        }
    }
}

const PORT: u16 = 5510;

/// pgbench on a contestant.
pub(crate) fn pgbench(contestant: &Contestant, table: &mut Table) {
    Server::found(&contestant.folder, PORT).measure(contestant.name, table);
}

/// pgbench on PostgreSQL's own streaming between two bare volumes.
pub(crate) fn streaming(bare: &Path, table: &mut Table) {
    let first = Server::found(bare, PORT);
    let other = bare.join("standby");
    fs::create_dir(&other).unwrap();
    {
        let second = Server::new(&other, 5511);
        let from = "host=127.0.0.1 port=5510 user=postgres application_name=second";
        as_postgres("pg_basebackup", &["-D", &shown(&second.data), "-R", "-X", "stream", "-d", from]);
        second.start("");
        first.measure("PostgreSQL's asynchronous streaming", table);
        first.sql("alter system set synchronous_standby_names = 'second'");
        first.sql("select pg_reload_conf()");
        crate::harness::wait("the standby to be synchronous", || {
            first.sql("select sync_state from pg_stat_replication").trim() == "sync"
        });
        first.measure("PostgreSQL's synchronous streaming", table);
        first.sql("alter system reset synchronous_standby_names");
        first.sql("select pg_reload_conf()");
    }
    put_away(&other);
}
