//! The images that tests need: the product's three, and one with the applications that it is tried with.

use crate::cluster::image::Image;
use crate::cluster::{Cluster, built};
use crate::shell;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub const WORKLOAD: &str = "localhost/tandem-workload:test";

/// An image: its short name, and the program inside.
const PRODUCT: [(&str, &str); 3] =
    [("operator", "tandem-operator"), ("replicator", "replicator"), ("node", "tandem-node")];

/// Loads the product's images on every node; its programs come from a folder, or are built.
pub fn load_product(cluster: &Cluster, from: Option<&Path>, only: &[String]) -> Result<()> {
    for (name, program) in PRODUCT {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        let file = match from {
            Some(folder) => folder.join(program),
            None => built(program)?,
        };
        let entry = format!("/{program}");
        let mut image = Image::new(&format!("localhost/tandem-{name}:test"), &[&entry])?;
        image.file(&file, &entry)?;
        cluster.load_image(name, image)?;
        eprintln!("loaded localhost/tandem-{name}:test from {}", file.display());
    }
    Ok(())
}

/// The image of one of the product's programs: built here, or wherever the nodes of somebody else's cluster find it.
fn image_name(cluster: &Cluster, part: &str) -> Result<String> {
    if !cluster.is_foreign() {
        return Ok(format!("localhost/tandem-{part}:test"));
    }
    let names = std::env::var("TANDEM_IMAGES").ok().filter(|names| names.contains('*') && names.contains(':'));
    let names = names.context(
        "TANDEM_IMAGES must say where the nodes find the images, with a star for operator, replicator and node: \
         registry.example/tandem-*:v1",
    )?;
    Ok(names.replace('*', part))
}

/// Builds and loads all images, and installs the chart, as a user would.
pub fn install(cluster: &Cluster) -> Result<()> {
    if !cluster.is_foreign() {
        load_product(cluster, None, &[])?;
        load_workload(cluster)?;
    }
    let policy = if cluster.is_foreign() { "IfNotPresent" } else { "Never" };
    let chart = crate::cluster::repository().join("charts/tandem").display().to_string();
    let mut command = cluster.helm_command();
    command.args(["upgrade", "--install", "tandem", &chart, "--namespace", "tandem-system", "--create-namespace"]);
    for (name, _) in PRODUCT {
        let full = image_name(cluster, name)?;
        let (repository, tag) = full.rsplit_once(':').context("an image has a tag")?;
        let image = format!("{name}.image");
        command
            .args(["--set", &format!("{image}.repository={repository},{image}.tag={tag},{image}.pullPolicy={policy}")]);
    }
    shell::run(&mut command).context("install the chart")?;
    // The images have the same names as before: pods that run older ones are replaced.
    let parts = ["daemonset/tandem-node", "deployment/tandem-operator"];
    for part in parts {
        cluster.kubectl(&["-n", "tandem-system", "rollout", "restart", part])?;
    }
    for part in parts {
        cluster.kubectl(&["-n", "tandem-system", "rollout", "status", part, "--timeout=120s"]).with_context(|| {
            let tell = |arguments: &[&str]| cluster.kubectl(arguments).unwrap_or_else(|error| error.to_string());
            let pods = tell(&["-n", "tandem-system", "get", "pods", "-o", "wide"]);
            let log = tell(&["-n", "tandem-system", "logs", part, "--tail=40"]);
            format!("{part} does not become ready:\n{pods}\n{log}")
        })?;
    }
    Ok(())
}

/// Loads the image with the applications: the test program, a shell, SQLite and PostgreSQL.
pub fn load_workload(cluster: &Cluster) -> Result<()> {
    let mut image = Image::new(WORKLOAD, &["/workload"])?;
    image.file(&built("workload")?, "/workload")?;
    let shell_program = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find(|path| Path::new(path).exists())
        .context("busybox is not there")?;
    image.file(Path::new(shell_program), "/bin/busybox")?;
    for tool in shell::sh(shell_program, &["--list"])?.lines() {
        image.link(&format!("/bin/{tool}"), "busybox")?;
    }
    let programs = Path::new("/usr/lib/postgresql/15/bin");
    let mut files: Vec<PathBuf> = vec!["/usr/bin/sqlite3".into()];
    for name in [
        "postgres",
        "initdb",
        "pg_ctl",
        "psql",
        "pgbench",
        "pg_amcheck",
        "pg_isready",
        "pg_basebackup",
        "pg_controldata",
    ] {
        files.push(programs.join(name));
    }
    for entry in fs::read_dir("/usr/lib/postgresql/15/lib").context("list PostgreSQL's libraries")? {
        let path = entry.context("list PostgreSQL's libraries")?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // The compiler would be larger than everything else, and the server does without it.
        if name.ends_with(".so")
            && !name.starts_with("llvm")
            && !name.contains("python")
            && !name.contains("perl")
            && !name.contains("tcl")
        {
            files.push(path);
        }
    }
    let mut libraries = BTreeSet::new();
    for file in &files {
        image.file(file, &file.display().to_string())?;
        libraries.extend(needed_libraries(file)?);
    }
    for library in &libraries {
        image.file(Path::new(library), library)?;
    }
    image.tree(Path::new("/usr/share/postgresql/15"), "/usr/share/postgresql/15")?;
    for zone in ["UTC", "GMT", "Etc/UTC"] {
        let path = format!("/usr/share/zoneinfo/{zone}");
        image.file(Path::new(&path), &path)?;
    }
    image.content("/etc/passwd", b"root:x:0:0::/:/bin/sh\npostgres:x:999:999::/tmp:/bin/sh\n", 0o644)?;
    image.content("/etc/group", b"root:x:0:\npostgres:x:999:\n", 0o644)?;
    image.folder("/var/run/postgresql", 0o1777, 999)?;
    cluster.load_image("workload", image)
}

/// The libraries that a program loads, its loader included, as the loader names them.
fn needed_libraries(program: &Path) -> Result<Vec<String>> {
    let printed = shell::sh("ldd", &[&program.display().to_string()])?;
    let words = printed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(ToString::to_string).collect())
}
