//! The promises to users as scenarios on a real cluster. Each is named after the scenario of the requirements that it
//! plays. `cargo test -p tandem-tests --test cases -- [NAME ...]` runs those whose names contain one of the words;
//! `--share=FOLDER` those that no other process with the same folder has taken. `--failures=FILE` gets a line for each that
//! failed.

#![allow(clippy::unwrap_used, clippy::panic)] // a scenario says what it expects by panicking

mod applications;
mod ground;
mod hp;
mod ibm;
mod outages;
mod pods;
mod refusals;
mod requests;
mod sdb;
mod tt;
mod volumes;

use anyhow::{Result, bail};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tandem_tests::cluster::{Cluster, wait};
use tandem_tests::namespace::with_namespace;

/// Where a scenario plays.
struct Stage<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
}

/// A scenario: its name, and how it is played.
type Case = (&'static str, fn(&Stage<'_>) -> Result<()>);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let path = |option: &str| std::env::args().find_map(|word| word.strip_prefix(option).map(PathBuf::from));
    let (share, failures) = (path("--share="), path("--failures="));
    let cluster = Cluster::here();
    if !cluster.is_up() {
        if std::env::var_os("REQUIRE_CLUSTER").is_some_and(|value| value == "1") {
            eprintln!(
                "no cluster runs and REQUIRE_CLUSTER=1: start one with `cargo verify` or `cargo run -p tandem-tests --bin cluster -- up`"
            );
            return ExitCode::FAILURE;
        }
        eprintln!("no cluster runs: the scenarios were not played (`cargo verify` starts one)");
        println!("0 passed, 0 failed, {} skipped", chosen(&words).len());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = cluster.enter() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let (mut passed, mut failed, mut again) = (0, Vec::new(), Vec::new());
    for (name, play) in chosen(&words) {
        match share.as_ref().map_or(Ok(true), |folder| take(folder, name)) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                eprintln!("take {name}: {error}");
                return ExitCode::FAILURE;
            }
        }
        let started = Instant::now();
        println!("{name} ...");
        let once = || {
            with_namespace(&cluster, name, |namespace| play(&Stage { cluster: &cluster, namespace }))
                .and_then(|()| whole_again(&cluster))
        };
        let mut result = once();
        if let Err(error) = &result
            && was_slow(error)
            && cluster.restore().is_ok()
        {
            println!("{name} was too slow, once more: {error:#}");
            again.push(name);
            result = once();
        }
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                passed += 1;
                println!("{name} passed ({seconds:.1} s)");
            }
            Err(error) => {
                println!("{name} FAILED ({seconds:.1} s): {error:#}");
                failed.push(name);
                if let Err(error) = failures.as_ref().map_or(Ok(()), |file| note(file, name, &error)) {
                    eprintln!("note that {name} failed: {error}");
                }
                if let Err(error) = cluster.restore() {
                    println!("the cluster could not be restored: {error:#}");
                    break;
                }
            }
        }
    }
    for name in &again {
        println!("played twice, because it was too slow at first: {name}");
    }
    for name in &failed {
        println!("failed: {name}");
    }
    println!("{passed} passed, {} failed", failed.len());
    if failed.is_empty() && (passed > 0 || share.is_some()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All scenarios, in the order in which they are played: the ground first, what takes longest last.
const ALL: [&[Case]; 11] = [
    ground::CASES,
    refusals::CASES,
    requests::CASES,
    pods::CASES,
    tt::CASES,
    sdb::CASES,
    ibm::CASES,
    hp::CASES,
    applications::CASES,
    volumes::CASES,
    outages::CASES,
];

/// The scenarios to play: all, or those that are named.
fn chosen(words: &[String]) -> Vec<Case> {
    let all = ALL.into_iter().flatten().copied();
    all.filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))).collect()
}

/// Several processes share the scenarios out among them: each plays what nobody has taken before.
fn take(folder: &Path, name: &str) -> std::io::Result<bool> {
    match std::fs::File::create_new(folder.join(name)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// One more line in the file of failures.
fn note(file: &Path, name: &str, error: &anyhow::Error) -> std::io::Result<()> {
    let line = format!("{name}: {error:#}").replace('\n', " | ");
    writeln!(OpenOptions::new().append(true).create(true).open(file)?, "{line}")
}

/// Whether a scenario only did not come to its end in time: on a shared machine that is played once more, and said. Whatever
/// was found wrong (a write lost, an answer of two leaders, a state that must not be) stands.
fn was_slow(error: &anyhow::Error) -> bool {
    error.root_cause().to_string().starts_with("waited ")
}

/// A scenario must leave the cluster as it found it.
fn whole_again(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes()? {
        if !node.is_up() {
            bail!("the scenario left node {} down", node.name);
        }
        // Every pod of the scenario is gone, so no mount of theirs may be left. The plugin clears what a pod left that it did
        // not see going once a minute.
        let clean = wait(Duration::from_secs(90), "", || node.fuse_mounts().is_ok_and(|mounts| mounts.is_empty()));
        if clean.is_err() {
            bail!("the scenario left mounts on {}: {:?}", node.name, node.fuse_mounts()?);
        }
    }
    Ok(())
}
