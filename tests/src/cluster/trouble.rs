//! What may happen to a cluster: processes, containers and nodes end or stand still, links go, disks fill, the API server
//! is away. Everything here is done from outside, as the world does it; nothing in the product helps.

use super::node::{Node, address};
use super::{API, Cluster, cgroup, wait};
use crate::shell;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a node's volumes keep when it goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// As when only the processes die: the kernel still writes everything out.
    Everything,
    /// As when the power goes: what no fsync has asked for is gone.
    OnlySynced,
}

impl Node {
    /// Ends everything in the node at one instant: containers, runtime, kubelet, proxy, link and mounts.
    pub fn kill(&self, keeps: Keeps) -> Result<()> {
        let group = self.group();
        // Nobody may see the others go: all stand still before the first one ends.
        cgroup::freeze(&group, true)?;
        cgroup::wait_frozen(&group, Duration::from_millis(300));
        self.set_link(false)?;
        let stopped = if keeps == Keeps::OnlySynced { self.stop_file_systems() } else { Ok(()) };
        cgroup::kill(&group, Duration::from_secs(20))?;
        stopped?;
        cgroup::remove(&group);
        wait(Duration::from_secs(20), "the node's volumes to be let go", || {
            shell::sh("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]).is_ok_and(|text| {
                self.volumes().is_ok_and(|names| !names.iter().any(|name| text.contains(&format!("/{name}.img"))))
            })
        })
    }

    fn stop_file_systems(&self) -> Result<()> {
        for volume in self.volumes()? {
            stop_file_system(&self.path(&format!("/mnt/{volume}"))?)?;
        }
        Ok(())
    }

    /// Takes the node's link down or up; its processes go on.
    pub fn set_link(&self, up: bool) -> Result<()> {
        shell::sh("ip", &["link", "set", &self.link(), if up { "up" } else { "down" }]).map(drop)
    }

    /// Lets the node send only so many megabits in a second, or as much as it can.
    pub fn slow_link(&self, megabits: Option<u32>) -> Result<()> {
        let rate = megabits.map(|megabits| format!("{megabits}mbit"));
        match &rate {
            Some(rate) => {
                let mut command = self.command("tc")?;
                command.args([
                    "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64kb", "latency", "200ms",
                ]);
                shell::run(&mut command).map(drop)
            }
            None => {
                let there = shell::run(self.command("tc")?.args(["qdisc", "show", "dev", "eth0"]))?.contains("tbf");
                if there {
                    shell::run(self.command("tc")?.args(["qdisc", "delete", "dev", "eth0", "root"])).map(drop)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// The processes of one container, whose id is the `containerID` of the pod's status.
    pub fn container_processes(&self, container: &str) -> Result<Vec<Pid>> {
        let found = cgroup::processes(&self.container_group(container)?);
        if found.is_empty() {
            bail!("container {container} has no process");
        }
        Ok(found)
    }

    /// Ends every process of a container at once.
    pub fn kill_container(&self, container: &str) -> Result<()> {
        for process in self.container_processes(container)? {
            kill_process(process, Signal::KILL).ok();
        }
        Ok(())
    }

    /// Sends a signal to the processes of a container whose command line contains a text; says how many there were.
    pub fn signal(&self, container: &str, text: &str, signal: Signal) -> Result<usize> {
        let mut count = 0;
        for process in self.container_processes(container)? {
            if command_line(process).contains(text) {
                kill_process(process, signal).with_context(|| format!("send a signal to `{text}`"))?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Ends, at one instant, everything of a pod, its sandbox included.
    pub fn kill_pod(&self, uid: &str) -> Result<()> {
        let group = self.pod_group(uid)?;
        for process in cgroup::processes(&group) {
            kill_process(process, Signal::KILL).ok();
        }
        Ok(())
    }

    /// Stops or continues everything of a pod where it is.
    pub fn freeze_pod(&self, uid: &str, frozen: bool) -> Result<()> {
        cgroup::freeze(&self.pod_group(uid)?, frozen)
    }

    /// Stops or continues the whole node.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        cgroup::freeze(&self.group(), frozen)
    }

    /// The network of the pod that one of its running containers is in; it can be held beyond that container's end.
    pub fn network_of(&self, any_container: &str) -> Result<PodNetwork> {
        let processes = self.container_processes(any_container)?;
        let process = processes.first().context("a process of the pod")?.as_raw_nonzero();
        let file = File::open(format!("/proc/{process}/ns/net")).context("open the pod's network")?;
        Ok(PodNetwork { file })
    }

    /// Drops packets in the network of a pod, until `heal`. `any_container` is the id of one of its running containers.
    pub fn cut(&self, any_container: &str, cut: &Cut) -> Result<()> {
        self.network_of(any_container)?.cut(cut)
    }

    /// Ends what `cut` began.
    pub fn heal(&self, any_container: &str) -> Result<()> {
        self.network_of(any_container)?.heal()
    }

    /// The device under a volume dies: every call that needs it fails from now on, and what was not synced is gone.
    pub fn fail_volume(&self, volume: &str) -> Result<()> {
        stop_file_system(&self.path(&format!("/mnt/{volume}"))?)
    }

    /// Another device with what the dead one kept. Pods that have the volume go on with the dead one until they end.
    pub fn replace_device(&self, volume: &str) -> Result<()> {
        shell::run(self.command("umount")?.args(["--lazy", &format!("/mnt/{volume}")]))?;
        // The dead file system writes nothing any more, so a second device on the same file is no second writer.
        self.attach_volume(&self.volume_file(volume))
    }

    /// Fills a volume up to the last bytes, in a folder that no application looks into; `free_volume` ends it.
    pub fn fill_volume(&self, volume: &str) -> Result<()> {
        let file = self.filler(volume)?;
        let folder = file.parent().context("a file is in a folder")?;
        let status = rustix::fs::statvfs(folder).context("ask for the free space")?;
        let mut bytes = status.f_bavail * status.f_frsize;
        let filler = File::create(&file).context("create the file that fills the volume")?;
        // The file's own blocks need room too: take what fits, then less and less.
        let mut offset = 0;
        while bytes >= 4096 {
            match rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), offset, bytes) {
                Ok(()) => offset += bytes,
                Err(_) => bytes /= 2,
            }
        }
        Ok(())
    }

    pub fn free_volume(&self, volume: &str) -> Result<()> {
        fs::remove_file(self.filler(volume)?).context("remove the file that fills the volume")
    }

    fn filler(&self, volume: &str) -> Result<PathBuf> {
        self.path(&format!("/mnt/{volume}/lost+found/filler"))
    }

    /// The names of this node's volumes.
    pub fn volumes(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.cluster.folder.join("volumes")).context("list the volumes")? {
            let path = entry.context("list the volumes")?.path();
            if path.extension().is_some_and(|kind| kind == "node")
                && fs::read_to_string(&path).unwrap_or_default() == self.name
            {
                names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        Ok(names)
    }

    fn container_group(&self, container: &str) -> Result<String> {
        let id = container.trim_start_matches("containerd://");
        self.find_group(id).with_context(|| format!("container {id} does not run on {}", self.name))
    }

    fn pod_group(&self, uid: &str) -> Result<String> {
        self.find_group(&format!("pod{uid}")).with_context(|| format!("pod {uid} does not run on {}", self.name))
    }

    fn find_group(&self, name: &str) -> Option<String> {
        let mut open = vec![format!("{}/kubepods", self.group())];
        while let Some(group) = open.pop() {
            for entry in fs::read_dir(cgroup::place(&group)).into_iter().flatten().flatten() {
                let inner = format!("{group}/{}", entry.file_name().to_string_lossy());
                if entry.file_name().to_string_lossy() == name {
                    return Some(inner);
                }
                if entry.path().is_dir() {
                    open.push(inner);
                }
            }
        }
        None
    }
}

/// The network of a pod, as long as somebody holds it.
#[derive(Debug)]
pub struct PodNetwork {
    file: File,
}

impl PodNetwork {
    /// Drops packets until `heal`, or until the pod's network goes.
    pub fn cut(&self, cut: &Cut) -> Result<()> {
        let mut rules = String::from("table inet trouble {\n");
        for (hook, side, wanted) in [("input", "saddr", cut.receiving), ("output", "daddr", cut.sending)] {
            if !wanted {
                continue;
            }
            rules += &format!("chain {hook} {{ type filter hook {hook} priority -300; policy accept;\n");
            let interface = if hook == "input" { "iif" } else { "oif" };
            match &cut.from {
                From::Everybody => rules += &format!("{interface} != \"lo\" drop\n"),
                From::Addresses(addresses) => {
                    for address in addresses {
                        rules += &format!("ip {side} {address} drop\n");
                    }
                }
                From::Api => {
                    for (address, port) in [(API, 6443), ("10.96.0.1", 443)] {
                        let end = if hook == "input" { "sport" } else { "dport" };
                        rules += &format!("ip {side} {address} tcp {end} {port} drop\n");
                    }
                }
                From::Port(port) => {
                    rules += &format!(
                        "{interface} != \"lo\" tcp dport {port} drop\n{interface} != \"lo\" tcp sport {port} drop\n"
                    )
                }
            }
            rules += "}\n";
        }
        rules += "}\n";
        shell::run_with_input(self.command().args(["nft", "-f", "-"]), &rules).map(drop)
    }

    /// Ends what `cut` began.
    pub fn heal(&self) -> Result<()> {
        shell::run(self.command().args(["nft", "delete", "table", "inet", "trouble"])).map(drop)
    }

    /// Moves the calling thread, and no other, into the pod's network.
    pub fn enter(&self) -> Result<()> {
        rustix::thread::move_into_link_name_space(self.file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
            .context("enter the pod's network")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        // By way of this process: the pod's own may have ended.
        let file = format!("--net=/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        command.args([&file, "--"]);
        command
    }
}

/// Which packets of a pod are dropped.
#[derive(Clone, Debug)]
pub struct Cut {
    pub from: From,
    pub sending: bool,
    pub receiving: bool,
}

#[derive(Clone, Debug)]
pub enum From {
    Everybody,
    Addresses(Vec<String>),
    /// The API server, by its own address and by that of its Service. Not all of the former: the tests' own clients and the
    /// name server have it too.
    Api,
    /// A TCP port, on either side.
    Port(u16),
}

impl Cut {
    pub fn both(from: From) -> Cut {
        Cut { from, sending: true, receiving: true }
    }

    /// A node's address; its pods have others.
    pub fn node(node: &Node) -> From {
        From::Addresses(vec![address(node.number), format!("10.244.{}.0/24", node.number)])
    }
}

impl Cluster {
    /// Ends all trouble: the API server runs, nodes are booted, thawed, linked, ready and take pods.
    pub fn restore(&self) -> Result<()> {
        if self.process("apiserver").is_err() && !self.nodes()?.is_empty() {
            self.resume_api_server()?;
        } else if self.process("apiserver").is_ok() {
            self.freeze_api_server(false)?;
        }
        for node in self.nodes()? {
            if node.is_up() {
                cgroup::thaw_all(&node.group());
                node.set_link(true)?;
                node.slow_link(None)?;
            } else {
                node.start()?;
            }
            self.kubectl(&["uncordon", &node.name])?;
        }
        self.wait_for_nodes()
    }

    pub fn stop_api_server(&self) -> Result<()> {
        let id = self.process("apiserver")?;
        let id = i32::try_from(id).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(id, Signal::KILL).context("end the API server")?;
        wait(Duration::from_secs(10), "the API server to end", || self.process("apiserver").is_err())
    }

    /// Lets the API server stand still, or go on: what it was asked meanwhile it does late.
    pub fn freeze_api_server(&self, frozen: bool) -> Result<()> {
        let id = self.process("apiserver")?;
        let id = i32::try_from(id).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(id, if frozen { Signal::STOP } else { Signal::CONT }).context("freeze or thaw the API server")
    }

    /// Waits until pods are made again where they are wanted and Services lead to them. Each of Kubernetes' own controllers
    /// pauses for up to half a minute after the API server was away, and until then a failover looks as if nobody served.
    pub fn wait_for_routes(&self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?.as_micros();
        let name = format!("canary-{now}");
        self.apply(&format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: tandem-system}}
spec:
  selector: {{canary: {name}}}
  publishNotReadyAddresses: true
  ports: [{{port: 7}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {name}, namespace: tandem-system}}
spec:
  selector: {{matchLabels: {{canary: {name}}}}}
  serviceName: {name}
  template:
    metadata: {{labels: {{canary: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      # What it runs does not matter: its pod has an address.
      containers: [{{name: any, image: localhost/tandem-operator:test, args: [--help]}}]
"
        ))?;
        let nodes = self.nodes()?;
        let routed = wait(Duration::from_secs(120), "Services to be routed again", || {
            let leads = |node: &Node| -> Result<bool> {
                let rules = shell::run(node.command("nft")?.args(["list", "ruleset"]))?;
                // One that leads nowhere has no chain.
                Ok(rules.lines().any(|line| line.contains("chain service-") && line.contains(&name)))
            };
            nodes.iter().all(|node| leads(node).unwrap_or(false))
        });
        let deleted = self.kubectl(&["-n", "tandem-system", "delete", "service,statefulset", &name]);
        routed.and(deleted.map(drop))
    }

    pub fn resume_api_server(&self) -> Result<()> {
        self.start_api_server()?;
        wait(Duration::from_secs(60), "the API server", || self.kubectl(&["get", "--raw", "/readyz"]).is_ok())?;
        // Both end by themselves when they find that they have missed too much, or lost their lease, and are started again;
        // here by us. What missed little would go on with pauses of half a minute.
        for name in ["controllers", "scheduler"] {
            if let Some(old) = self.process(name).ok().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
                kill_process(old, Signal::KILL).with_context(|| format!("end the {name}"))?;
                wait(Duration::from_secs(10), "a manager to end", || self.process(name).is_err())?;
            }
        }
        self.start_managers()
    }
}

fn command_line(process: Pid) -> String {
    let bytes = fs::read(format!("/proc/{}/cmdline", process.as_raw_nonzero())).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Lets a file system write nothing any more, not even its journal: its device then holds what a power failure would leave.
fn stop_file_system(mount: &Path) -> Result<()> {
    /// EXT4_IOC_SHUTDOWN, and the flag that leaves the journal as it is.
    const SHUTDOWN: libc::Ioctl = 0x8004_587d;
    const WITHOUT_FLUSH: u32 = 2;
    let folder = File::open(mount).with_context(|| format!("open {}", mount.display()))?;
    // The request reads one integer through the pointer and keeps nothing.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::ioctl(folder.as_raw_fd(), SHUTDOWN, std::ptr::from_ref(&WITHOUT_FLUSH)) };
    if answer != 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("stop the file system at {}", mount.display()));
    }
    Ok(())
}
