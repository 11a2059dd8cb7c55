//! The programs a cluster is made of: Kubernetes, containerd, etcd, helm and CoreDNS built from their Go modules into a
//! cache, and the few Debian packages beside them. Nothing is downloaded ready-made.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const KUBERNETES: &str = "v1.36.4";
const STAGING: &str = "v0.36.4";
const CONTAINERD: &str = "v2.2.1";
const RUNC: &str = "v1.3.3";
const ETCD: &str = "v3.6.8";
const HELM: &str = "v4.3.1";
const COREDNS: &str = "v1.15.0";

/// A Debian package, and a file that is there once it is installed.
const PACKAGES: &[(&str, &str)] = &[
    // What runc is built with.
    ("gcc", "/usr/bin/gcc"),
    ("pkg-config", "/usr/bin/pkg-config"),
    ("libseccomp-dev", "/usr/include/seccomp.h"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("nftables", "/usr/sbin/nft"),
    ("iproute2", "/usr/sbin/ip"),
    ("util-linux", "/usr/bin/nsenter"),
    ("mount", "/usr/sbin/losetup"),
    ("e2fsprogs", "/usr/sbin/mkfs.ext4"),
    // The applications that the scenarios run; they end up in an image.
    ("busybox-static", "/usr/share/doc/busybox-static"),
    ("sqlite3", "/usr/bin/sqlite3"),
    ("postgresql-15", "/usr/lib/postgresql/15/bin/postgres"),
];

/// Programs that are played on a pair as they are.
const PROGRAMS: &[(&str, &str)] = &[
    ("mariadb-server", "/usr/sbin/mariadbd"),
    ("redis-server", "/usr/bin/redis-server"),
    ("redis-tools", "/usr/bin/redis-check-aof"),
    ("etcd-server", "/usr/bin/etcd"),
    ("etcd-client", "/usr/bin/etcdctl"),
    ("git", "/usr/bin/git"),
    ("rsync", "/usr/bin/rsync"),
    ("make", "/usr/bin/make"),
];

/// What other people test file systems with, and file systems other than the machine's own.
const STRESSORS: &[(&str, &str)] =
    &[("stress-ng", "/usr/bin/stress-ng"), ("xfsprogs", "/usr/sbin/mkfs.xfs"), ("btrfs-progs", "/usr/sbin/mkfs.btrfs")];

/// What the engine of the fuzz targets is built with.
const ENGINE: &[(&str, &str)] = &[("g++", "/usr/bin/g++")];

/// One Go module tree: programs that must share their dependencies' versions, and nothing else with them.
struct Module {
    name: &'static str,
    /// What `go get` brings in; Kubernetes itself needs more, see `kubernetes_module`.
    requires: String,
    programs: Vec<(&'static str, String)>,
    flags: String,
}

/// Installs the Debian packages that the cluster and the workloads need.
pub fn packages() -> Result<()> {
    install(PACKAGES)
}

/// Installs the programs that are played on a pair.
pub fn programs() -> Result<()> {
    install(PROGRAMS)
}

/// Installs what the file system is stressed with.
pub fn stressors() -> Result<()> {
    install(STRESSORS)
}

/// Installs what the engine of the fuzz targets is built with.
pub fn engine() -> Result<()> {
    install(ENGINE)
}

/// Builds and installs whatever is missing; a second call takes no time.
pub fn prepare(cache: &Path) -> Result<()> {
    packages()?;
    fs::create_dir_all(cache.join("bin")).context("create the cache")?;
    for module in modules() {
        forget_others(cache, &module)?;
        let missing: Vec<_> =
            module.programs.iter().filter(|(name, _)| !cache.join("bin").join(name).exists()).collect();
        if missing.is_empty() {
            continue;
        }
        need_go()?;
        let source = module_folder(cache, &module)?;
        for (name, package) in missing {
            build(cache, &source, &module, name, package)?;
        }
    }
    Ok(())
}

/// Removes what was built of another version: the cache outlives the version that filled it.
fn forget_others(cache: &Path, module: &Module) -> Result<()> {
    let source = cache.join("src").join(module.name);
    let (stamp, wanted) = (source.join("built-of"), format!("{}{}", module.requires, module.flags));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let old = module.programs.iter().map(|(name, _)| cache.join("bin").join(name)).filter(|program| program.exists());
    for program in old {
        fs::remove_file(&program).with_context(|| format!("remove {} of another version", program.display()))?;
    }
    if source.exists() {
        fs::remove_dir_all(&source).with_context(|| format!("remove {}", source.display()))?;
    }
    fs::create_dir_all(&source).with_context(|| format!("create {}", source.display()))?;
    fs::write(&stamp, wanted).with_context(|| format!("write {}", stamp.display()))
}

/// Installs the Debian packages whose file is missing.
fn install(packages: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get update && apt-get install --no-install-recommends {}", missing.join(" "));
    let started = Instant::now();
    eprintln!("installing {} (apt-get)", missing.join(", "));
    shell::run(Command::new("apt-get").args(["update", "-qq"]))
        .with_context(|| format!("install it by hand: {by_hand}"))?;
    let mut command = Command::new("apt-get");
    command
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive");
    shell::run(&mut command).with_context(|| format!("install it by hand: {by_hand}"))?;
    if let Some((name, file)) = packages.iter().find(|(_, file)| !Path::new(file).exists()) {
        bail!("package {name} was installed, but {file} is not there");
    }
    eprintln!("  installed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn need_go() -> Result<()> {
    if shell::succeeds(Command::new("go").arg("version")) {
        return Ok(());
    }
    bail!(
        "Go 1.26 or newer is needed to build Kubernetes from source: install it so that `go version` works (Debian: apt-get install golang-go)"
    )
}

fn modules() -> Vec<Module> {
    let cmd = |name: &'static str| (name, format!("k8s.io/kubernetes/cmd/{name}"));
    let containerd = |name: &'static str| (name, format!("github.com/containerd/containerd/v2/cmd/{name}"));
    vec![
        Module {
            name: "kubernetes",
            requires: String::new(),
            programs: [
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
                "kubectl",
            ]
            .map(cmd)
            .to_vec(),
            flags: kubernetes_flags(),
        },
        Module {
            name: "containerd",
            requires: format!("github.com/containerd/containerd/v2@{CONTAINERD}"),
            programs: ["containerd", "ctr", "containerd-shim-runc-v2"].map(containerd).to_vec(),
            flags: format!(" -X github.com/containerd/containerd/v2/version.Version={CONTAINERD}"),
        },
        Module {
            // Debian's is too old for pods with users of their own.
            name: "runc",
            requires: format!("github.com/opencontainers/runc@{RUNC}"),
            programs: vec![("runc", "github.com/opencontainers/runc".into())],
            flags: format!(" -X main.version={RUNC}"),
        },
        Module {
            name: "etcd",
            requires: format!("go.etcd.io/etcd/server/v3@{ETCD}"),
            programs: vec![("etcd", "go.etcd.io/etcd/server/v3".into())],
            flags: String::new(),
        },
        Module {
            name: "helm",
            requires: format!("helm.sh/helm/v4@{HELM}"),
            programs: vec![("helm", "helm.sh/helm/v4/cmd/helm".into())],
            flags: String::new(),
        },
        Module {
            name: "coredns",
            requires: format!("github.com/coredns/coredns@{COREDNS}"),
            programs: vec![("coredns", "github.com/coredns/coredns".into())],
            flags: String::new(),
        },
    ]
}

/// Without these the server calls itself v0.0.0-master, which kubectl and helm cannot parse.
fn kubernetes_flags() -> String {
    let values = [
        format!("gitVersion={KUBERNETES}"),
        "gitMajor=1".into(),
        "gitMinor=36".into(),
        "gitTreeState=clean".into(),
        format!("gitCommit={}", "0".repeat(40)),
        "buildDate=2026-11-01T00:00:00Z".into(),
    ];
    let mut flags = String::new();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for value in &values {
            flags += &format!(" -X {package}.{value}");
        }
    }
    flags
}

fn go(source: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(source).env("GOFLAGS", "-mod=mod").env("CGO_ENABLED", "0");
    command
}

fn module_folder(cache: &Path, module: &Module) -> Result<PathBuf> {
    let source = cache.join("src").join(module.name);
    fs::create_dir_all(&source).with_context(|| format!("create {}", source.display()))?;
    let manifest = source.join("go.mod");
    if !manifest.exists() {
        fs::write(&manifest, format!("module testbed.invalid/{}\n\ngo 1.26.0\n", module.name))
            .context("write go.mod")?;
    }
    if module.requires.is_empty() {
        kubernetes_module(&source, &manifest)?;
    } else {
        eprintln!("fetching {}", module.requires);
        shell::run(go(&source).args(["get", &module.requires]))?;
    }
    Ok(source)
}

/// k8s.io/kubernetes requires its staging modules at v0.0.0 and replaces them by folders that its module zip does not
/// hold, so every one of them is replaced by its published twin.
fn kubernetes_module(source: &Path, manifest: &Path) -> Result<()> {
    let text = fs::read_to_string(manifest).context("read go.mod")?;
    if text.contains("=>") {
        return Ok(());
    }
    let answer = shell::run(go(source).args(["mod", "download", "-json", &format!("k8s.io/kubernetes@{KUBERNETES}")]))?;
    let answer: serde_json::Value = serde_json::from_str(&answer).context("read the answer of go mod download")?;
    let upstream = answer["GoMod"].as_str().context("go mod download names no go.mod")?;
    let upstream = fs::read_to_string(upstream).context("read the go.mod of Kubernetes")?;
    let mut replaces = String::new();
    for line in upstream.lines().filter(|line| line.contains("=> ./staging")) {
        let name =
            line.split_whitespace().find(|word| word.starts_with("k8s.io/")).context("a replace without a module")?;
        replaces += &format!("\t{name} => {name} {STAGING}\n");
    }
    fs::write(manifest, format!("{text}require k8s.io/kubernetes {KUBERNETES}\nreplace (\n{replaces})\n"))
        .context("write go.mod")
}

fn build(cache: &Path, source: &Path, module: &Module, name: &str, package: &str) -> Result<()> {
    let started = Instant::now();
    eprintln!("building {name} (the first time takes minutes)");
    // Built beside its place and renamed, so that an interrupted build is not taken for a finished one.
    let unfinished = cache.join("bin").join(format!(".{name}"));
    let mut command = go(source);
    command.arg("build").arg("-trimpath").arg("-o").arg(&unfinished);
    command.arg("-ldflags").arg(format!("-s -w {}", module.flags));
    if module.name == "runc" {
        // The only one with parts in C: it enters namespaces before Go's threads start, and filters system calls.
        command.env("CGO_ENABLED", "1").args(["-tags", "seccomp"]);
    }
    command.arg(package);
    shell::run(&mut command)?;
    fs::rename(&unfinished, cache.join("bin").join(name)).with_context(|| format!("place {name}"))?;
    eprintln!("  {name} built in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
