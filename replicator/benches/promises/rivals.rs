//! What people would use instead, on this machine: bindfs (FUSE without a second copy), GlusterFS with two copies, each
//! server in a network namespace of its own, because GlusterFS refuses loopback addresses, and for SQLite alone LiteFS.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::databases::run;
use crate::files::shown;
use crate::harness::wait;

/// A mounted folder and what stands behind it; gone when dropped.
pub(crate) struct Rival {
    place: tempfile::TempDir,
    servers: Vec<Child>,
    /// Network namespaces; whatever runs there ends with them.
    namespaces: Vec<String>,
    /// Only rows whose name contains this.
    pub(crate) only: &'static str,
}

const BRIDGE: &str = "tandem-bench";
/// Where the files are.
const MOUNT: &str = "mount";
/// Where a second node shows its copy.
const COPY: &str = "copy";
const LITEFS: &str = "github.com/superfly/litefs/cmd/litefs@v0.5.14";

impl Rival {
    fn new() -> Self {
        Self { place: tempfile::tempdir().unwrap(), servers: Vec::new(), namespaces: Vec::new(), only: "" }
    }

    pub(crate) fn bindfs() -> Self {
        needed(&["bindfs"], "apt-get install bindfs");
        let rival = Self::new();
        let [behind, mount] = rival.folders(["behind", MOUNT]);
        run("bindfs", &["-o", "allow_other", &shown(&behind), &shown(&mount)]);
        rival
    }

    /// GlusterFS, `replica 2`. A volume of two copies may split when they are parted; it is measured all the same, because it
    /// is what stands beside a pair.
    pub(crate) fn gluster() -> Self {
        needed(&["glusterd", "gluster", "glusterfs"], "apt-get install glusterfs-server glusterfs-client");
        let mut rival = Self::new();
        let [first, second, mount] = rival.folders(["first", "second", MOUNT]);
        // Of a measurement that was killed.
        for number in 1..=2 {
            tidy("ip", &["netns", "del", &namespace(number)]);
        }
        tidy("ip", &["link", "del", BRIDGE]);
        run("ip", &["link", "add", BRIDGE, "type", "bridge"]);
        run("ip", &["addr", "add", "10.77.0.254/24", "dev", BRIDGE]);
        run("ip", &["link", "set", BRIDGE, "up"]);
        for number in 1..=2 {
            rival.server(number);
        }
        let peers = || rival.ask(&["peer", "status"]);
        wait("GlusterFS to know its peer", || {
            rival.ask(&["peer", "probe", "10.77.0.2"]);
            peers().contains("Peer in Cluster (Connected)")
        });
        let bricks = [format!("10.77.0.1:{}", shown(&first)), format!("10.77.0.2:{}", shown(&second))];
        let create = ["volume", "create", "bench", "replica", "2", &bricks[0], &bricks[1], "force"];
        wait("GlusterFS to make a volume", || {
            rival.ask(&create);
            rival.ask(&["volume", "start", "bench"]).contains("success")
        });
        run("glusterfs", &["--volfile-server=10.77.0.1", "--volfile-id=bench", &shown(&mount)]);
        // A file that arrives at both is the sign that both bricks serve.
        wait("both copies to be written", || {
            let both = fs::write(mount.join("sign"), b"x").is_ok() && second.join("sign").exists();
            both && first.join("sign").exists()
        });
        rival
    }

    /// LiteFS, a primary and a replica. It ships transactions after they were acknowledged, as an `Async` pair does, and
    /// its folder holds nothing but databases of SQLite.
    pub(crate) fn litefs() -> Self {
        needed(&["fusermount3"], "apt-get install fuse3");
        let program = built_litefs();
        let mut rival = Self::new();
        rival.only = "SQLite";
        let [mount, copy] = rival.folders([MOUNT, COPY]);
        // Free ports: a node of a measurement that was killed must not be followed.
        let listeners = [MOUNT, COPY].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.map(|listener| listener.local_addr().unwrap().to_string());
        for (name, address) in [MOUNT, COPY].iter().zip(&addresses) {
            let beside = |end: &str| shown(&rival.place.path().join(format!("{name}.{end}")));
            let settings = json!({
                "data": {"dir": beside("data")},
                "fuse": {"dir": shown(&rival.place.path().join(name))},
                "http": {"addr": address},
                "lease": {
                    "type": "static",
                    "hostname": "primary",
                    "advertise-url": format!("http://{}", addresses[0]),
                    "candidate": *name == MOUNT,
                },
            });
            // LiteFS reads YAML, and JSON is YAML.
            let config = beside("yml");
            fs::write(&config, settings.to_string()).unwrap();
            rival.start(Command::new(&program).args(["mount", "-config", &config]));
        }
        // LiteFS shows it in every folder that it has mounted.
        wait("LiteFS to be mounted", || mount.join(".lag").exists());
        // A database that arrives is the sign that the replica follows.
        run("sqlite3", &[&shown(&mount.join("sign")), "create table sign (k)"]);
        wait("LiteFS to copy a database", || copy.join("sign").exists());
        rival
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.place.path().join(MOUNT)
    }

    fn folders<const N: usize>(&self, names: [&str; N]) -> [PathBuf; N] {
        names.map(|name| {
            let folder = self.place.path().join(name);
            fs::create_dir(&folder).unwrap();
            folder
        })
    }

    fn server(&mut self, number: u8) {
        let (namespace, wire) = (namespace(number), format!("tandem-wire-{number}"));
        self.namespaces.push(namespace.clone());
        run("ip", &["netns", "add", &namespace]);
        run("ip", &["link", "add", &wire, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        run("ip", &["link", "set", &wire, "master", BRIDGE, "up"]);
        run("ip", &["-n", &namespace, "addr", "add", &format!("10.77.0.{number}/24"), "dev", "eth0"]);
        run("ip", &["-n", &namespace, "link", "set", "eth0", "up"]);
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"]);
        // Each believes to be alone on its machine.
        let own = "for folder in /var/lib/glusterd /run /var/log/glusterfs; do mount -t tmpfs none $folder; done
            mkdir -p /run/gluster; exec glusterd -N --log-level=ERROR";
        self.start(Command::new("ip").args(["netns", "exec", &namespace, "sh", "-c", own]).process_group(0));
    }

    fn start(&mut self, command: &mut Command) {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.servers.push(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
    }

    /// The answer of the first server to a command, also a refusal.
    fn ask(&self, words: &[&str]) -> String {
        let first = self.servers[0].id().to_string();
        let output = Command::new("nsenter")
            .args(["-t", &first, "-n", "-m", "gluster", "--mode=script"])
            .args(words)
            .output()
            .unwrap_or_else(|error| panic!("gluster: {error}"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        for name in [MOUNT, COPY] {
            tidy("umount", &["-l", &shown(&self.place.path().join(name))]);
        }
        for namespace in &self.namespaces {
            for process in tidy("ip", &["netns", "pids", namespace]).lines() {
                tidy("kill", &["-9", process]);
            }
        }
        for server in &mut self.servers {
            server.kill().ok();
            server.wait().ok();
        }
        for namespace in &self.namespaces {
            tidy("ip", &["netns", "del", namespace]);
            tidy("ip", &["link", "del", BRIDGE]);
        }
    }
}

fn namespace(number: u8) -> String {
    format!("tandem-bench-{number}")
}

/// Fails at once, and says how to go on, if a program is not installed.
fn needed(programs: &[&str], remedy: &str) {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    for program in programs {
        let is_there = std::env::split_paths(&paths).any(|folder| folder.join(program).exists());
        assert!(is_there, "{program} is missing: {remedy}, or choose with --of=");
    }
}

/// LiteFS, built from its Go module where the programs of the test cluster are kept too; the next run finds it there.
fn built_litefs() -> PathBuf {
    let checkout = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache");
    let cache = std::env::var_os("TANDEM_CACHE").map_or_else(checkout, PathBuf::from);
    let program = cache.join("bin/litefs");
    if !program.exists() {
        needed(&["go"], "install Go 1.21 or newer, which builds LiteFS");
        eprintln!("building {LITEFS} (the first time takes a minute)");
        let source = cache.join("src/litefs");
        for folder in [&source, &cache.join("bin")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(source.join("go.mod"), "module testbed.invalid/litefs\n").unwrap();
        // Built beside its place and renamed, so that an interrupted build is not taken for a finished one.
        let (package, unfinished) = (LITEFS.split('@').next().unwrap(), cache.join("bin/.litefs"));
        run("go", &["-C", &shown(&source), "get", LITEFS]);
        run("go", &["-C", &shown(&source), "build", "-trimpath", "-o", &shown(&unfinished), package]);
        fs::rename(unfinished, &program).unwrap();
    }
    program
}

/// What may have ended by itself, or never have been made; nothing that could fail on the way out.
fn tidy(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
