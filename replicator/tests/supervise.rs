//! A member as in a pod: the descriptors of its mount come from a node plugin (played here), a supervisor keeps them and
//! starts the daemon anew when it dies, and the application on the mount must not notice.

#![allow(clippy::unwrap_used, clippy::panic)] // a test says what it expects by panicking

mod harness;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::plugin::{kill_daemon, plugin};
use harness::{Pair, judge, wait};
use serde_json::json;

/// A process that appends numbered lines to a file, each fsynced and then told, until something fails.
struct Application {
    process: Child,
    acknowledged: Arc<AtomicU64>,
}

impl Application {
    fn start(file: &Path) -> Self {
        let script = "import os, sys, time
f = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
n = 0
while True:
    try:
        step = 'write'
        os.write(f, b'%d\\n' % n)
        step = 'fsync'
        os.fsync(f)
    except OSError as error:
        now = time.time()
        print(step, n, error, time.strftime('%H:%M:%S', time.gmtime(now)), now % 1, file=sys.stderr, flush=True)
        os._exit(1)
    n += 1
    print(n, flush=True)
";
        let mut process =
            Command::new("python3").args(["-c", script]).arg(file).stdout(Stdio::piped()).spawn().unwrap();
        let told = BufReader::new(process.stdout.take().unwrap());
        let acknowledged = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&acknowledged);
        std::thread::spawn(move || {
            for line in told.lines() {
                counted.store(line.unwrap().parse().unwrap(), Ordering::Release);
            }
        });
        Self { process, acknowledged }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Waits until so many more were acknowledged; says how long that took.
    fn goes_on(&mut self, pair: &Pair, more: u64) -> Duration {
        let (before, started) = (self.acknowledged(), Instant::now());
        pair.wait("the application to go on", || {
            let ended = self.process.try_wait().unwrap();
            assert_eq!(ended, None, "the application was told of an error; {}", pair.story());
            self.acknowledged() >= before + more
        });
        started.elapsed()
    }

    fn end(mut self) -> u64 {
        assert_eq!(self.process.try_wait().unwrap(), None, "the application was told of an error");
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.acknowledged()
    }
}

#[test]
fn an_application_does_not_notice_that_its_daemon_dies() {
    let mut pair = Pair::new();
    let (socket, mount) = (pair.home("a").join("plugin.sock"), pair.mount("a"));
    plugin(&socket, &mount);
    pair.supervise("a", &socket);
    pair.wait_serving("a");
    let mut application = Application::start(&mount.join("log"));
    application.goes_on(&pair, 20);
    let mut longest = Duration::ZERO;
    for _ in 0..10 {
        kill_daemon(&mut pair, "a");
        longest = longest.max(application.goes_on(&pair, 20));
    }
    let acknowledged = application.end();
    println!("{acknowledged} appends over ten deaths, the longest wait for twenty of them {longest:?}");
    assert_eq!(pair.record().epoch, 11, "each start is an epoch of its own");
    assert_eq!(pair.shown("a")["epoch"], 11);
    judge(&mount.join("log"), acknowledged);
    pair.stop("a");
    judge(&pair.volume("a").join("log"), acknowledged);
}

#[test]
fn a_pair_keeps_its_master_when_only_a_daemon_dies() {
    let mut pair = Pair::new();
    for member in ["a", "b"] {
        pair.wish(member, json!({"settings": {"interval": 1500}}));
    }
    let (socket, mount) = (pair.home("a").join("plugin.sock"), pair.mount("a"));
    plugin(&socket, &mount);
    pair.supervise("a", &socket);
    pair.start("b");
    pair.wait_in_sync("a");
    let mut application = Application::start(&mount.join("log"));
    application.goes_on(&pair, 20);
    for epoch in [2, 3] {
        kill_daemon(&mut pair, "a");
        application.goes_on(&pair, 20);
        wait("the next epoch", || pair.record().epoch == epoch);
        pair.wait_in_sync("a");
    }
    application.goes_on(&pair, 20);
    // Now all of it dies, and the other one has everything.
    let acknowledged = application.acknowledged();
    pair.kill("a");
    application.process.wait().unwrap();
    let acknowledged = acknowledged.max(application.acknowledged());
    pair.wait_serving("b");
    judge(&pair.mount("b").join("log"), acknowledged);
}
