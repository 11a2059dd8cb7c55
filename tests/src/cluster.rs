//! A private Kubernetes on this machine: real kubelets, containerd and a control plane, in seconds.
//!
//! Everything lives in network and mount namespaces of its own and below one cgroup, so nothing of the machine is touched
//! and nothing has to be remembered to clean up: whatever is in the cgroup is ended, and the namespaces, with all mounts,
//! links and loop devices in them, go with their last process. Files are in one folder.
//!
//! A process that wants to talk to the cluster first `enter`s its network.

pub mod components;
pub mod image;
pub mod node;
mod pki;
pub mod trouble;

use crate::shell;
use anyhow::{Context, Result, bail};
use image::Image;
use node::Node;
use pki::Authority;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The API server's address on the cluster's bridge; also that of the name server.
pub(crate) const API: &str = "10.88.0.1";
const PAUSE: &str = "localhost/tandem-pause:test";

/// What is worth keeping between runs: `TANDEM_CACHE`, or `.cache` in the checkout.
pub fn cache() -> PathBuf {
    std::env::var_os("TANDEM_CACHE").map_or_else(|| repository().join(".cache"), PathBuf::from)
}

/// A place for a cluster; whether one runs there is another question.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// What is worth keeping: built components.
    cache: PathBuf,
    /// What belongs to one run.
    pub(crate) folder: PathBuf,
    /// The cgroup that holds every process of the cluster.
    pub(crate) group: String,
    /// Set when somebody else runs the cluster: it can be used, but not started, ended or broken.
    foreign: Option<PathBuf>,
}

/// What kubectl may be asked again without doing something twice. Not `exec`: what it runs may have been run.
const REPEATABLE: [&str; 7] = ["get", "annotate", "label", "cordon", "uncordon", "patch", "rollout"];
/// What it says when the API server was not reached, or could not ask its store.
const ON_THE_WAY: [&str; 5] = [
    "TLS handshake timeout",
    "etcdserver: ",
    "was refused - did you specify the right host",
    "unexpected EOF",
    "unexpected error when reading response body",
];

impl Cluster {
    /// The one cluster of this checkout: `TANDEM_CACHE` and `TANDEM_CLUSTER` say where, `.cache` otherwise. With
    /// `TEST_KUBECONFIG`, the cluster that it names; never the user's own current context.
    pub fn here() -> Cluster {
        Self::at(std::env::var_os("TANDEM_CLUSTER").map_or_else(|| cache().join("cluster"), PathBuf::from))
    }

    /// A cluster whose files are in this folder, with the components of this checkout's cache.
    pub fn at(folder: PathBuf) -> Cluster {
        let mark: String = Sha256::digest(folder.as_os_str().as_encoded_bytes())
            .iter()
            .take(4)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let foreign = std::env::var_os("TEST_KUBECONFIG").map(PathBuf::from);
        Cluster { cache: cache(), folder, group: format!("tandem-{mark}"), foreign }
    }

    pub fn is_up(&self) -> bool {
        self.foreign.is_some() || (self.folder.join("ready").exists() && self.keeper().is_ok())
    }

    /// Starts the cluster, or does nothing when it runs. What a killed run left behind is put away first. The caller is in
    /// the cluster's network afterwards, and must not have started threads yet.
    pub fn up(&self, nodes: usize) -> Result<()> {
        if self.is_up() {
            return self.enter();
        }
        components::prepare(&self.cache)?;
        self.down()?;
        let started = Instant::now();
        for folder in ["pki", "log", "pid", "images", "volumes"] {
            fs::create_dir_all(self.folder.join(folder)).context("create the cluster's folder")?;
        }
        self.pause_image()?;
        cgroup::create(&self.group)?;
        self.network()?;
        self.enter()?;
        let names: Vec<String> = (1..=nodes).map(|number| format!("n{number}")).collect();
        fs::write(self.folder.join("nodes"), names.join("\n")).context("write the list of nodes")?;
        self.certificates(&names)?;
        self.control_plane(&names)?;
        std::thread::scope(|scope| {
            let starts: Vec<_> = self.nodes()?.into_iter().map(|node| scope.spawn(move || node.start())).collect();
            starts
                .into_iter()
                .try_for_each(|start| start.join().unwrap_or_else(|_| bail!("the start of a node panicked")))
        })?;
        self.wait_for_nodes()?;
        fs::write(self.folder.join("ready"), "").context("mark the cluster as ready")?;
        eprintln!("cluster of {nodes} nodes ready in {:.1} s", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Ends everything of the cluster, whoever started it, and removes its folder.
    pub fn down(&self) -> Result<()> {
        if self.foreign.is_some() {
            return Ok(());
        }
        cgroup::kill(&self.group, Duration::from_secs(30))?;
        cgroup::remove(&self.group);
        // Loop devices let go by themselves when their mount namespace is gone; one that was never mounted does not.
        let volumes = self.folder.join("volumes");
        for line in shell::sh("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"])?.lines() {
            let (device, file) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            if Path::new(file.trim().trim_end_matches(" (deleted)")).starts_with(&volumes) {
                shell::sh("losetup", &["--detach", device])?;
            }
        }
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder).with_context(|| format!("remove {}", self.folder.display()))?;
        }
        Ok(())
    }

    /// Moves this process into the cluster's network. Only the calling thread moves, so this comes first in `main`.
    pub fn enter(&self) -> Result<()> {
        if self.foreign.is_some() {
            return Ok(());
        }
        let keeper = self.keeper()?;
        let file = File::open(format!("/proc/{keeper}/ns/net")).context("open the cluster's network namespace")?;
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
            .context("enter the cluster's network (root is needed)")
    }

    /// Where everything of one run is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.foreign.clone().unwrap_or_else(|| self.folder.join("admin.kubeconfig"))
    }

    /// What is worth keeping between runs: the built components.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// What the cluster's own programs print.
    pub fn log_folder(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The nodes that may be broken: none in a cluster that somebody else runs.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        if self.foreign.is_some() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(self.folder.join("nodes")).context("no cluster runs here")?;
        Ok(text
            .lines()
            .enumerate()
            .map(|(index, name)| Node { cluster: self.clone(), name: name.to_string(), number: index + 1 })
            .collect())
    }

    pub fn node(&self, name: &str) -> Result<Node> {
        self.nodes()?.into_iter().find(|node| node.name == name).with_context(|| match &self.foreign {
            Some(file) => format!("{} names a cluster whose nodes are not ours to break", file.display()),
            None => format!("no node {name}"),
        })
    }

    /// Whether somebody else runs it.
    pub fn is_foreign(&self) -> bool {
        self.foreign.is_some()
    }

    /// One of the built programs; for a cluster that somebody else runs, what is installed here will do.
    pub fn program(&self, name: &str) -> PathBuf {
        let built = self.cache.join("bin").join(name);
        if self.foreign.is_some() && !built.exists() { PathBuf::from(name) } else { built }
    }

    /// Runs kubectl. What failed on the way to the API server and may be said twice is tried again.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let again = arguments.iter().any(|word| REPEATABLE.contains(word));
        let mut tries = 0;
        loop {
            tries += 1;
            match shell::run(self.kubectl_command().args(arguments)) {
                Err(error)
                    if again && tries < 3 && ON_THE_WAY.iter().any(|text| format!("{error:#}").contains(text)) =>
                {
                    std::thread::sleep(Duration::from_secs(1));
                }
                result => return result,
            }
        }
    }

    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(self.program("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig()).env("KUBECACHEDIR", self.folder.join("kubectl"));
        command
    }

    pub fn helm_command(&self) -> Command {
        let mut command = Command::new(self.program("helm"));
        let home = self.folder.join("helm");
        command.env("KUBECONFIG", self.kubeconfig());
        command
            .env("HELM_CACHE_HOME", home.join("cache"))
            .env("HELM_CONFIG_HOME", home.join("config"))
            .env("HELM_DATA_HOME", home.join("data"));
        command
    }

    pub fn apply(&self, manifest: &str) -> Result<()> {
        shell::run_with_input(self.kubectl_command().args(["apply", "-f", "-"]), manifest).map(drop)
    }

    /// Puts an image on every node; a node that was started later gets it too.
    pub fn load_image(&self, name: &str, image: Image) -> Result<()> {
        if self.foreign.is_some() {
            eprintln!("not loaded: image {name} (a cluster of somebody else takes its images from its registry)");
            return Ok(());
        }
        let file = self.folder.join("images").join(format!("{name}.tar"));
        image.write(&file)?;
        std::thread::scope(|scope| {
            let imports: Vec<_> = self
                .nodes()?
                .into_iter()
                .map(|node| {
                    scope.spawn({
                        let file = file.clone();
                        move || node.import(&file)
                    })
                })
                .collect();
            imports.into_iter().try_for_each(|import| import.join().unwrap_or_else(|_| bail!("an import panicked")))
        })
    }

    /// Puts away the volumes whose names begin like this, with everything in them.
    pub fn delete_volumes(&self, prefix: &str) -> Result<()> {
        for node in self.nodes()? {
            for volume in node.volumes()?.iter().filter(|volume| volume.starts_with(prefix)) {
                node.delete_volume(volume)?;
            }
        }
        Ok(())
    }

    /// A started process that stays: in its own session, in the cluster's cgroup, its output in a file of its own.
    pub(crate) fn start(&self, group: &str, name: &str, command: &Command) -> Result<u32> {
        let log =
            File::options().create(true).append(true).open(self.folder.join("log").join(name)).context("open a log")?;
        let mut script = String::new();
        for file in cgroup::membership(&format!("{}/{group}", self.group))? {
            script += &format!("echo $$ > {} && ", file.display());
        }
        let mut starter = Command::new("sh");
        starter
            .arg("-c")
            .arg(format!("{script}exec \"$@\""))
            .arg("sh")
            .arg(command.get_program())
            .args(command.get_args());
        starter.current_dir(&self.folder).process_group(0).stdin(Stdio::null());
        starter.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.cache.join("bin").display()));
        starter.stdout(log.try_clone().context("share a log")?).stderr(log);
        let child = starter.spawn().with_context(|| format!("start {name}"))?;
        fs::write(self.folder.join("pid").join(name), child.id().to_string()).context("write a process id")?;
        Ok(child.id())
    }

    /// The id of a process that `start` started, as long as it runs.
    pub(crate) fn process(&self, name: &str) -> Result<u32> {
        let text = fs::read_to_string(self.folder.join("pid").join(name))
            .with_context(|| format!("{name} was not started"))?;
        let id: u32 = text.trim().parse().with_context(|| format!("read the process id of {name}"))?;
        // The cgroup tells whether the id still means our process: numbers are used again.
        let groups =
            fs::read_to_string(format!("/proc/{id}/cgroup")).with_context(|| format!("{name} does not run"))?;
        if !groups.contains(&format!("/{}/", self.group)) {
            bail!("{name} does not run");
        }
        Ok(id)
    }

    fn keeper(&self) -> Result<u32> {
        self.process("network")
    }

    /// The process that keeps the cluster's network namespace, with the bridge that joins the nodes.
    fn network(&self) -> Result<()> {
        let script = format!(
            "ip link set lo up && ip link add br0 type bridge && ip addr add {API}/24 dev br0 && ip link set br0 up && \
             ip route add default via {API} dev br0 && sysctl -qw net.ipv4.ip_forward=1 && touch network && exec sleep infinity"
        );
        cgroup::create(&format!("{}/control", self.group))?;
        self.start("control", "network", Command::new("unshare").args(["--net", "sh", "-c", &script]))?;
        wait(Duration::from_secs(10), "the cluster's network", || self.folder.join("network").exists())
    }

    fn pause_image(&self) -> Result<()> {
        let program = built("workload")?;
        let mut image = Image::new(PAUSE, &["/workload", "pause"])?;
        image.file(&program, "/workload")?;
        image.write(&self.folder.join("images/pause.tar"))
    }

    fn certificates(&self, nodes: &[String]) -> Result<()> {
        let authority = Authority::create(&self.folder.join("pki"))?;
        let server = format!("https://{API}:6443");
        let names = [API, "127.0.0.1", "10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        authority.leaf("api", None, "kube-apiserver", &names)?;
        authority.client("admin", Some("system:masters"), "admin", &server)?;
        authority.client("controllers", None, "system:kube-controller-manager", &server)?;
        authority.client("scheduler", None, "system:kube-scheduler", &server)?;
        authority.client("proxy", None, "system:kube-proxy", &server)?;
        for (index, node) in nodes.iter().enumerate() {
            let address = node::address(index + 1);
            authority.leaf(
                node,
                Some("system:nodes"),
                &format!("system:node:{node}"),
                &[address.as_str(), node.as_str()],
            )?;
            authority.kubeconfig(node, &server)?;
        }
        Ok(())
    }

    fn control_plane(&self, nodes: &[String]) -> Result<()> {
        let folder = self.folder.display();
        let store = "http://127.0.0.1:2379";
        let mut etcd = Command::new("etcd");
        // The store of a cluster that lives for minutes need not survive this machine.
        etcd.args([
            &format!("--data-dir={folder}/etcd"),
            "--unsafe-no-fsync",
            &format!("--listen-client-urls={store}"),
        ]);
        etcd.args([&format!("--advertise-client-urls={store}"), "--listen-peer-urls=http://127.0.0.1:2380"]);
        self.start("control", "etcd", &etcd)?;
        self.start_api_server()?;
        wait(Duration::from_secs(60), "the API server", || self.kubectl(&["get", "--raw", "/readyz"]).is_ok())?;
        self.start_managers()?;
        let zone = format!(
            "cluster.local:53 {{\n bind {API}\n kubernetes cluster.local {{\n  kubeconfig {folder}/admin.kubeconfig\n  ttl 1\n }}\n}}\n"
        );
        fs::write(self.folder.join("Corefile"), zone).context("write the name server's configuration")?;
        self.start("control", "coredns", Command::new("coredns").args(["-conf", &format!("{folder}/Corefile")]))?;
        for (index, _) in nodes.iter().enumerate() {
            let number = index + 1;
            shell::sh(
                "ip",
                &["route", "add", &format!("10.244.{number}.0/24"), "via", &node::address(number), "dev", "br0"],
            )?;
        }
        // The machine's own processes are clients of Services too: this proxy looks at them with the first node's eyes.
        let proxy = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\nhostnameOverride: n1\n\
                     clusterCIDR: 10.244.0.0/16\nconntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}\n";
        let file = self.folder.join("proxy.yaml");
        fs::write(&file, format!("{proxy}clientConnection: {{kubeconfig: {folder}/proxy.kubeconfig}}\n"))
            .context("write proxy.yaml")?;
        self.start("control", "proxy", Command::new("kube-proxy").args(["--config", &file.display().to_string()]))?;
        self.apply(STORAGE)
    }

    /// What makes pods of workloads, routes of Services, and finds nodes for pods.
    pub(crate) fn start_managers(&self) -> Result<()> {
        let folder = self.folder.display();
        let mut controllers = Command::new("kube-controller-manager");
        for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
            controllers.arg(format!("--{flag}={folder}/controllers.kubeconfig"));
        }
        controllers.args([
            format!("--service-account-private-key-file={folder}/pki/sa.key"),
            format!("--root-ca-file={folder}/pki/ca.crt"),
        ]);
        controllers.args(["--use-service-account-credentials", "--leader-elect=false"]);
        controllers.args([
            format!("--cluster-signing-cert-file={folder}/pki/ca.crt"),
            format!("--cluster-signing-key-file={folder}/pki/ca.key"),
        ]);
        self.start("control", "controllers", &controllers)?;
        let mut scheduler = Command::new("kube-scheduler");
        for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
            scheduler.arg(format!("--{flag}={folder}/scheduler.kubeconfig"));
        }
        self.start("control", "scheduler", scheduler.arg("--leader-elect=false")).map(drop)
    }

    pub(crate) fn start_api_server(&self) -> Result<()> {
        let pki = self.folder.join("pki");
        let pki = pki.display();
        let mut command = Command::new("kube-apiserver");
        command.args(["--etcd-servers=http://127.0.0.1:2379", "--secure-port=6443", "--allow-privileged=true"]);
        command.args([
            format!("--advertise-address={API}"),
            format!("--tls-cert-file={pki}/api.crt"),
            format!("--tls-private-key-file={pki}/api.key"),
        ]);
        command
            .args([format!("--client-ca-file={pki}/ca.crt"), format!("--kubelet-certificate-authority={pki}/ca.crt")]);
        command.args([
            format!("--kubelet-client-certificate={pki}/admin.crt"),
            format!("--kubelet-client-key={pki}/admin.key"),
        ]);
        command.args([
            format!("--service-account-key-file={pki}/sa.pub"),
            format!("--service-account-signing-key-file={pki}/sa.key"),
        ]);
        command.args([
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
        ]);
        command.args(["--kubelet-preferred-address-types=InternalIP", "--authorization-mode=Node,RBAC"]);
        command.args(["--enable-admission-plugins=NodeRestriction"]);
        self.start("control", "apiserver", &command).map(drop)
    }

    /// So many replicas of the operator, and no other ones: returns when that is so.
    pub fn scale_operator(&self, replicas: u32) -> Result<()> {
        let system = |arguments: &[&str]| self.kubectl(&[&["-n", "tandem-system"], arguments].concat());
        system(&["scale", "deployment", "tandem-operator", &format!("--replicas={replicas}")])?;
        if replicas == 0 {
            let all = ["wait", "pods", "-l", "app.kubernetes.io/component=operator", "--for=delete", "--timeout=180s"];
            return system(&all).map(drop);
        }
        system(&["rollout", "status", "deployment", "tandem-operator", "--timeout=300s"]).map(drop)
    }

    /// Ends every replica of the operator, and waits for the new ones.
    pub fn restart_operator(&self) -> Result<()> {
        let system = |arguments: &[&str]| self.kubectl(&[&["-n", "tandem-system"], arguments].concat());
        system(&["delete", "pods", "-l", "app.kubernetes.io/component=operator", "--wait=true"])?;
        system(&["rollout", "status", "deployment", "tandem-operator", "--timeout=300s"]).map(drop)
    }

    /// Waits until every node says that it is ready.
    pub fn wait_for_nodes(&self) -> Result<()> {
        let count = self.nodes()?.len();
        let ready = "jsonpath={range .items[*]}{.status.conditions[?(@.type=='Ready')].status}{'\\n'}{end}";
        wait(Duration::from_secs(60), "nodes to be ready", || {
            self.kubectl(&["get", "nodes", "-o", ready])
                .is_ok_and(|text| text.lines().filter(|line| *line == "True").count() == count)
        })?;
        // The first pod is refused while the account that it names by default does not exist.
        wait(Duration::from_secs(30), "the default service account", || {
            self.kubectl(&["get", "serviceaccount", "default"]).is_ok()
        })
    }
}

const STORAGE: &str = "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: tandem-local}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Retain
";

/// The workspace's folder.
pub fn repository() -> PathBuf {
    // As cargo says now: a clone that shares what another one built may run the program that was compiled there.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A program of the workspace, built when its sources are newer.
pub fn built(program: &str) -> Result<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace with its tests, always: another choice is another choice of the dependencies' features, and would
    // compile all of those again.
    let words = ["build", "--quiet", "--workspace", "--lib", "--bins", "--tests", "--message-format=json"];
    command.current_dir(repository()).args(words);
    let printed = shell::run(&mut command)?;
    let messages = printed.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let found = messages
        .filter(|message| message["target"]["name"] == program && message["profile"]["test"] == false)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back();
    found.with_context(|| format!("cargo did not say where {program} is"))
}

/// Waits until something holds, looking ten times a second.
pub fn wait(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > limit {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The kernel's groups of processes, in both versions: how everything of a node or a cluster is found and ended.
pub(crate) mod cgroup {
    use super::wait;
    use anyhow::{Context, Result};
    use rustix::process::{Pid, Signal, kill_process};
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    const ROOT: &str = "/sys/fs/cgroup";

    fn unified() -> bool {
        Path::new(ROOT).join("cgroup.controllers").exists()
    }

    /// The folders in which a group has to exist: one, or with version 1 one for each controller.
    fn hierarchies() -> Result<Vec<PathBuf>> {
        if unified() {
            return Ok(vec![PathBuf::from(ROOT)]);
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(ROOT).context("list the cgroup controllers")? {
            let path = entry.context("list the cgroup controllers")?.path();
            if path.is_dir() && !path.is_symlink() {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Where processes are counted and frozen.
    pub(crate) fn place(group: &str) -> PathBuf {
        if unified() { Path::new(ROOT).join(group) } else { Path::new(ROOT).join("freezer").join(group) }
    }

    pub(crate) fn create(group: &str) -> Result<()> {
        for hierarchy in hierarchies()? {
            let path = hierarchy.join(group);
            fs::create_dir_all(&path).with_context(|| format!("create cgroup {} (root is needed)", path.display()))?;
            // A new cpuset of version 1 has no processors: nothing could run in it or below it.
            let mut above = hierarchy.clone();
            for part in Path::new(group) {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let value = fs::read_to_string(above.join(file)).unwrap_or_default();
                    if !value.trim().is_empty() && !unified() {
                        fs::write(above.join(part).join(file), value.trim()).context("give a cpuset its processors")?;
                    }
                }
                above.push(part);
            }
        }
        Ok(())
    }

    /// The files that take a process into the group.
    pub(crate) fn membership(group: &str) -> Result<Vec<PathBuf>> {
        Ok(vec![place(group).join("cgroup.procs")])
    }

    /// Every process in the group and below it.
    pub(crate) fn processes(group: &str) -> Vec<Pid> {
        let mut found = Vec::new();
        let mut open = vec![place(group)];
        while let Some(folder) = open.pop() {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw));
            open.extend(below(&folder));
        }
        found
    }

    fn below(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    /// Stops every process of the group where it is, or lets all go on.
    pub(crate) fn freeze(group: &str, frozen: bool) -> Result<()> {
        let (file, value) = match (unified(), frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        fs::write(place(group).join(file), value).with_context(|| format!("freeze or thaw {group}"))
    }

    /// Waits until all stand still; a process that waits inside the kernel may not get there, and does nothing either.
    pub(crate) fn wait_frozen(group: &str, limit: Duration) {
        let (file, text) = if unified() { ("cgroup.events", "frozen 1") } else { ("freezer.state", "FROZEN") };
        let started = std::time::Instant::now();
        while started.elapsed() < limit
            && !fs::read_to_string(place(group).join(file)).is_ok_and(|state| state.contains(text))
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Thaws the group and everything below it: a frozen process cannot even be killed.
    pub(crate) fn thaw_all(group: &str) {
        let mut open = vec![place(group)];
        while let Some(folder) = open.pop() {
            let file = folder.join(if unified() { "cgroup.freeze" } else { "freezer.state" });
            if file.exists() {
                // A group that vanished meanwhile has nobody left to thaw.
                fs::write(file, if unified() { "0" } else { "THAWED" }).ok();
            }
            open.extend(below(&folder));
        }
    }

    /// Ends every process of the group with SIGKILL, and waits until none is left.
    pub(crate) fn kill(group: &str, limit: Duration) -> Result<()> {
        wait(limit, "processes to end", || {
            let processes = processes(group);
            for process in &processes {
                // It may have ended by itself since it was listed.
                kill_process(*process, Signal::KILL).ok();
            }
            thaw_all(group);
            processes.is_empty()
        })
    }

    /// Removes the group from every hierarchy, the innermost folders first; one that is in use stays.
    pub(crate) fn remove(group: &str) {
        for hierarchy in hierarchies().unwrap_or_default() {
            remove_folder(&hierarchy.join(group));
        }
    }

    fn remove_folder(folder: &Path) {
        for inner in below(folder) {
            remove_folder(&inner);
        }
        // Removing is tidiness: what stays is reused by the next run.
        fs::remove_dir(folder).ok();
    }
}
