//! A node: a mount and a network namespace with a containerd, a kubelet and a kube-proxy in it, joined to the bridge by a
//! link of its own. The usual paths (/var/lib/kubelet, /run/containerd) are the node's own inside, so nodes are alike.
//! When its processes end, its mounts, links and loop devices go too, as in a machine that loses power.

use super::{API, Cluster, PAUSE, cgroup, wait};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Node {
    pub(crate) cluster: Cluster,
    pub name: String,
    pub(crate) number: usize,
}

/// A node's address on the bridge.
pub(crate) fn address(number: usize) -> String {
    format!("10.88.0.{}", 10 + number)
}

impl Node {
    pub(crate) fn group(&self) -> String {
        format!("{}/{}", self.cluster.group, self.name)
    }

    /// The node's link to the bridge, seen from the cluster's network.
    pub(crate) fn link(&self) -> String {
        format!("v{}", self.number)
    }

    /// What outlives a crash of the node.
    pub(crate) fn disk(&self) -> PathBuf {
        self.cluster.folder.join(&self.name)
    }

    pub fn is_up(&self) -> bool {
        self.keeper().is_ok()
    }

    /// The process that keeps the namespaces. Before its mark it is still in those of the machine.
    fn keeper(&self) -> Result<u32> {
        if !self.disk().join("booted").exists() {
            bail!("node {} has not booted", self.name);
        }
        self.cluster.process(&self.name)
    }

    /// A path inside the node, as this process can open it.
    pub fn path(&self, inside: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root{inside}", self.keeper()?)))
    }

    /// Where FUSE file systems are mounted for the node's pods. What the machine itself had mounted when the node booted is
    /// seen in the node too, and none of its business.
    pub fn fuse_mounts(&self) -> Result<Vec<String>> {
        let text =
            fs::read_to_string(format!("/proc/{}/mountinfo", self.keeper()?)).context("read the node's mounts")?;
        let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        // The kind follows a lone dash; how many words stand before it differs.
        let found = words.filter(|words| {
            let kind = words.iter().position(|word| *word == "-").and_then(|dash| words.get(dash + 1));
            kind.is_some_and(|kind| *kind == "fuse" || kind.starts_with("fuse."))
        });
        let places = found.filter_map(|words| words.get(4).map(ToString::to_string));
        Ok(places.filter(|place| place.starts_with("/var/lib/kubelet/")).collect())
    }

    /// A command that runs inside the node.
    pub fn command(&self, program: &str) -> Result<Command> {
        let keeper = self.keeper()?;
        let mut command = Command::new("nsenter");
        command.args([
            &format!("--mount=/proc/{keeper}/ns/mnt"),
            &format!("--net=/proc/{keeper}/ns/net"),
            "--",
            program,
        ]);
        Ok(command)
    }

    /// Boots the node: from nothing, or from what its disk kept.
    pub fn start(&self) -> Result<()> {
        for folder in ["containerd", "kubelet", "cni", "logs"] {
            fs::create_dir_all(self.disk().join(folder)).context("create a node's folder")?;
        }
        self.settings()?;
        self.namespaces()?;
        self.mount_volumes()?;
        self.daemon("containerd", &["containerd", "--config", "/var/lib/tandem/containerd.toml"])?;
        wait(Duration::from_secs(20), "containerd", || {
            self.path("/run/containerd/containerd.sock")
                .is_ok_and(|path| std::os::unix::net::UnixStream::connect(path).is_ok())
        })?;
        let folder = self.cluster.folder.display();
        let kubeconfig = format!("--kubeconfig={folder}/{}.kubeconfig", self.name);
        let name = format!("--hostname-override={}", self.name);
        let address = format!("--node-ip={}", address(self.number));
        self.import_all()?;
        self.daemon(
            "kubelet",
            &[
                "kubelet",
                &kubeconfig,
                "--config=/var/lib/tandem/kubelet.yaml",
                "--root-dir=/var/lib/kubelet",
                &name,
                &address,
            ],
        )?;
        self.daemon("proxy", &["kube-proxy", "--config=/var/lib/tandem/proxy.yaml"])
    }

    /// Takes an image from a file of this machine.
    pub(crate) fn import(&self, file: &Path) -> Result<()> {
        let mut command = self.command(&self.cluster.program("ctr").display().to_string())?;
        shell::run(command.args(["--namespace", "k8s.io", "images", "import", "--local"]).arg(file)).map(drop)
    }

    fn import_all(&self) -> Result<()> {
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(self.cluster.folder.join("images")).context("list the images")? {
            files.push(entry.context("list the images")?.path());
        }
        files.iter().try_for_each(|file| self.import(file))
    }

    fn daemon(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let (program, rest) = arguments.split_first().context("a daemon has a program")?;
        let mut command = self.command(program)?;
        command.args(rest);
        self.cluster.start(&format!("{}/daemons", self.name), &format!("{}-{name}", self.name), &command).map(drop)
    }

    /// The process that keeps the node's namespaces, its link, and the node's own view of the usual paths.
    fn namespaces(&self) -> Result<()> {
        cgroup::create(&self.group())?;
        cgroup::create(&format!("{}/daemons", self.group()))?;
        let disk = self.disk().display().to_string();
        let mark = self.disk().join("booted");
        if mark.exists() {
            fs::remove_file(&mark).context("forget the last boot")?;
        }
        // kubelet needs shared propagation for what the node plugin mounts.
        let script = format!(
            "set -e; mount --make-rshared /; mount -t tmpfs tmpfs /run; mkdir /run/disk; mount --bind {disk} /run/disk; \
             for place in /var/lib /var/log /mnt; do mount -t tmpfs tmpfs $place; done; \
             mkdir /var/lib/kubelet /var/lib/containerd /var/lib/tandem /var/log/pods; \
             mount --bind /run/disk/kubelet /var/lib/kubelet; mount --bind /run/disk/containerd /var/lib/containerd; \
             mount --bind /run/disk/cni /var/lib/tandem; mount --bind /run/disk/logs /var/log/pods; \
             ip link set lo up; touch {}; exec sleep infinity",
            mark.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--propagation", "private", "sh", "-c", &script]);
        let keeper = self.cluster.start(&format!("{}/daemons", self.name), &self.name, &command)?;
        wait(Duration::from_secs(10), "a node's namespaces", || mark.exists())?;
        let link = self.link();
        // The last boot's link goes with that boot's network, but not at once.
        let ends = ["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &keeper.to_string()];
        wait(Duration::from_secs(10), "the node's link", || {
            shell::sh("ip", &["link", "delete", &link]).ok();
            shell::sh("ip", &ends).is_ok()
        })?;
        shell::sh("ip", &["link", "set", &link, "master", "br0", "up"])?;
        let mut script = format!(
            "set -e; ip addr add {}/24 dev eth0; ip link set eth0 up; ip route add default via {API}; sysctl -qw net.ipv4.ip_forward=1;",
            address(self.number)
        );
        for other in self.cluster.nodes()? {
            if other.number != self.number {
                script += &format!(" ip route add 10.244.{}.0/24 via {};", other.number, address(other.number));
            }
        }
        shell::run(self.command("sh")?.args(["-c", &script])).map(drop)
    }

    fn settings(&self) -> Result<()> {
        let cluster = &self.cluster;
        let (folder, name, number) = (cluster.folder.display(), &self.name, self.number);
        let write = |file: &str, text: String| {
            fs::write(self.disk().join("cni").join(file), text).with_context(|| format!("write {file}"))
        };
        fs::create_dir_all(self.disk().join("cni/net.d")).context("create a node's folder")?;
        write(
            "net.d/10-pods.conflist",
            format!(
                r#"{{"cniVersion":"1.0.0","name":"pods","plugins":[{{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,
"ipam":{{"type":"host-local","dataDir":"/run/cni","ranges":[[{{"subnet":"10.244.{number}.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}}]}}"#
            ),
        )?;
        // Without the right to lower a process's OOM score every pod would die otherwise.
        write(
            "containerd.toml",
            format!(
                "version = 3
disabled_plugins = [\"io.containerd.nri.v1.nri\"]
[plugins.'io.containerd.cri.v1.images']
  snapshotter = \"overlayfs\"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = \"{PAUSE}\"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = [\"/usr/lib/cni\"]
  conf_dir = \"/var/lib/tandem/net.d\"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = \"io.containerd.runc.v2\"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
  BinaryName = \"{runc}\"
",
                runc = cluster.program("runc").display()
            ),
        )?;
        write("kubelet.yaml", format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: false}}, x509: {{clientCAFile: {folder}/pki/ca.crt}}}}
authorization: {{mode: AlwaysAllow}}
tlsCertFile: {folder}/pki/{name}.crt
tlsPrivateKeyFile: {folder}/pki/{name}.key
cgroupDriver: cgroupfs
cgroupRoot: /{group}
failCgroupV1: false
failSwapOn: false
evictionHard: {{}}
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
resolvConf: \"\"
clusterDNS: [{API}]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
imageMinimumGCAge: 24h
imageGCHighThresholdPercent: 100
serializeImagePulls: false
crashLoopBackOff: {{maxContainerRestartPeriod: 2s}}
", group = self.group()
        ))?;
        write(
            "proxy.yaml",
            format!(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: {name}
clientConnection: {{kubeconfig: {folder}/proxy.kubeconfig}}
clusterCIDR: 10.244.0.0/16
conntrack: {{maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"
            ),
        )
    }

    fn mount_volumes(&self) -> Result<()> {
        for entry in fs::read_dir(self.cluster.folder.join("volumes")).context("list the volumes")? {
            let file = entry.context("list the volumes")?.path();
            let owner = fs::read_to_string(file.with_extension("node")).unwrap_or_default();
            if file.extension().is_some_and(|kind| kind == "img") && owner == self.name {
                self.mount_volume(&file)?;
            }
        }
        Ok(())
    }

    /// Mounts a volume's file system at /mnt/<name>. The loop device writes around the page cache, so that its file holds
    /// exactly what the file system has sent to its disk.
    fn mount_volume(&self, file: &Path) -> Result<()> {
        let path = file.display().to_string();
        wait(Duration::from_secs(10), "a volume to be let go", || {
            shell::sh("losetup", &["--associated", &path]).is_ok_and(|text| text.trim().is_empty())
        })?;
        self.attach_volume(file)
    }

    pub(crate) fn attach_volume(&self, file: &Path) -> Result<()> {
        let name = file.file_stem().context("a volume has a name")?.to_string_lossy().into_owned();
        let path = file.display().to_string();
        let device = shell::sh("losetup", &["--find", "--show", "--direct-io=on", &path])?;
        let device = device.trim();
        let script = format!("mkdir -p /mnt/{name} && mount {device} /mnt/{name}");
        let mounted = shell::run(self.command("sh")?.args(["-c", &script]));
        // From now on the device lets go of the file when the last mount of it ends.
        shell::sh("losetup", &["--detach", device])?;
        mounted.map(drop)
    }

    /// The file that a volume is in.
    pub fn volume_file(&self, name: &str) -> PathBuf {
        self.cluster.folder.join("volumes").join(format!("{name}.img"))
    }

    /// Puts a volume away, with everything in it.
    pub fn delete_volume(&self, name: &str) -> Result<()> {
        let file = self.volume_file(name);
        if self.is_up() {
            // A pod that is still ending may hold it: it goes out of sight now, and for good with that pod.
            shell::run(self.command("umount")?.args(["--lazy", &format!("/mnt/{name}")]))?;
        }
        self.cluster.kubectl(&["delete", "pv", name, "--ignore-not-found", "--wait=false"])?;
        fs::remove_file(file.with_extension("node")).context("forget a volume")?;
        fs::remove_file(&file).context("remove a volume")
    }

    /// Makes a volume of this many MiB on this node, and the PersistentVolume that offers it.
    pub fn create_volume(&self, name: &str, mebibytes: u64, labels: &str) -> Result<()> {
        let file = self.volume_file(name);
        let path = file.display().to_string();
        fs::write(file.with_extension("node"), &self.name).context("write a volume's node")?;
        fs::File::create(&file)
            .and_then(|file| file.set_len(mebibytes << 20))
            .with_context(|| format!("create {path}"))?;
        shell::sh("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", &path])?;
        self.mount_volume(&file)?;
        self.cluster.apply(&format!(
            "apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}, labels: {{{labels}}}}}
spec:
  storageClassName: tandem-local
  capacity: {{storage: {mebibytes}Mi}}
  accessModes: [ReadWriteOncePod]
  persistentVolumeReclaimPolicy: Retain
  local: {{path: /mnt/{name}}}
  nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}]}}}}
", node = self.name
        ))
    }
}
