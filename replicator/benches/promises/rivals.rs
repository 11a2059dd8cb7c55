//! What people would use instead, on this machine: bindfs (FUSE without a second copy) and GlusterFS with two copies, each
//! server in a network namespace of its own, because GlusterFS refuses loopback addresses.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::databases::run;
use crate::files::shown;
use crate::harness::wait;

/// A mounted folder and what stands behind it; gone when dropped.
pub(crate) struct Rival {
    place: tempfile::TempDir,
    /// Network namespaces and the servers in them; whatever runs there ends with them.
    servers: Vec<(String, Child)>,
}

const BRIDGE: &str = "tandem-bench";

impl Rival {
    pub(crate) fn bindfs() -> Self {
        let rival = Self { place: tempfile::tempdir().unwrap(), servers: Vec::new() };
        let [behind, mount] = rival.folders(["behind", "mount"]);
        needed(&["bindfs"]);
        run("bindfs", &["-o", "allow_other", &shown(&behind), &shown(&mount)]);
        rival
    }

    /// GlusterFS, `replica 2`. A volume of two copies may split when they are parted; it is measured all the same, because it
    /// is what stands beside a pair.
    pub(crate) fn gluster() -> Self {
        needed(&["glusterd", "gluster", "glusterfs"]);
        let mut rival = Self { place: tempfile::tempdir().unwrap(), servers: Vec::new() };
        let [first, second, mount] = rival.folders(["first", "second", "mount"]);
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

    /// Where the files are.
    pub(crate) fn folder(&self) -> PathBuf {
        self.place.path().join("mount")
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
        run("ip", &["netns", "add", &namespace]);
        run("ip", &["link", "add", &wire, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        run("ip", &["link", "set", &wire, "master", BRIDGE, "up"]);
        run("ip", &["-n", &namespace, "addr", "add", &format!("10.77.0.{number}/24"), "dev", "eth0"]);
        run("ip", &["-n", &namespace, "link", "set", "eth0", "up"]);
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"]);
        // Each believes to be alone on its machine.
        let own = "for folder in /var/lib/glusterd /run /var/log/glusterfs; do mount -t tmpfs none $folder; done
            mkdir -p /run/gluster; exec glusterd -N --log-level=ERROR";
        let server = Command::new("ip")
            .args(["netns", "exec", &namespace, "sh", "-c", own])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("ip netns: {error}"));
        self.servers.push((namespace, server));
    }

    /// The answer of the first server to a command, also a refusal.
    fn ask(&self, words: &[&str]) -> String {
        let first = self.servers[0].1.id().to_string();
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
        tidy("umount", &["-l", &shown(&self.folder())]);
        for (namespace, server) in &mut self.servers {
            for process in tidy("ip", &["netns", "pids", namespace]).lines() {
                tidy("kill", &["-9", process]);
            }
            server.wait().ok();
            tidy("ip", &["netns", "del", namespace]);
            tidy("ip", &["link", "del", BRIDGE]);
        }
    }
}

fn namespace(number: u8) -> String {
    format!("tandem-bench-{number}")
}

/// Fails at once, and says how to go on, if a program is not installed.
fn needed(programs: &[&str]) {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    for program in programs {
        let is_there = std::env::split_paths(&paths).any(|folder| folder.join(program).exists());
        assert!(
            is_there,
            "{program} is missing: apt-get install bindfs glusterfs-server glusterfs-client, or choose with --of="
        );
    }
}

/// What may have ended by itself, or never have been made; nothing that could fail on the way out.
fn tidy(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
