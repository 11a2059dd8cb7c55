//! The house rules that a compiler cannot see, checked on the source text; no cluster, no network.
//! `house_rules` fails with the file, the line and what to do instead.

use std::fs;
use std::path::{Path, PathBuf};

use tandem_tests::cluster::repository;

/// Rust sources below a folder of the workspace, tests and benches excepted, and what only the simulation is told.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![repository().join(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("folder of the workspace").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && !["tests", "benches", "testdata", "model", "target"].contains(&name.as_str()) {
                open.push(path);
            } else if name.ends_with(".rs") && !["tests.rs", "simulated.rs"].contains(&name.as_str()) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The lines of a file that ship: without comments, and without what follows the first module or macro that is for tests.
fn shipped(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).expect("a source file");
    let mut lines = Vec::new();
    let mut after_test = false;
    for (number, line) in text.lines().enumerate() {
        if after_test && line.contains("mod ") && line.trim_end().ends_with('{') {
            break;
        }
        after_test = line.trim() == "#[cfg(test)]" || (after_test && line.trim().starts_with("#["));
        let code = line.split("//").next().unwrap_or_default();
        if !code.trim().is_empty() {
            lines.push((number + 1, code.to_string()));
        }
    }
    lines
}

/// Fails when one of `words` stands in shipped code of a file that is not among `rooms`.
fn only_in(folder: &str, words: &[&str], rooms: &[&str], why: &str) {
    let mut broken = Vec::new();
    for path in sources(folder) {
        let relative = path.strip_prefix(repository()).expect("below the root").display().to_string();
        if rooms.iter().any(|room| relative.ends_with(room)) {
            continue;
        }
        for (number, line) in shipped(&path) {
            if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                broken.push(format!("{relative}:{number}: `{word}`: {why}"));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

const CLOCKS: &[&str] = &["Instant::now(", "SystemTime::now(", "Timestamp::now("];

#[test]
fn the_protocol_has_no_io_no_clock_and_no_async() {
    let words = [CLOCKS, &[".await", "async fn", "std::fs", "std::net", "tokio::", "kube::", "rand::"]].concat();
    only_in("replicator/protocol/src", &words, &[], "safety is a pure function: what it needs comes in as an event");
}

#[test]
fn the_protocol_is_a_leaf() {
    let manifest = fs::read_to_string(repository().join("replicator/protocol/Cargo.toml")).expect("manifest");
    let dependencies = manifest.split("[dev-dependencies]").next().unwrap_or_default();
    for name in ["tokio", "kube", "rustix", "libc", "tandem-crds", "futures"] {
        assert!(!dependencies.contains(&format!("\n{name}")), "the protocol crate must not depend on {name}");
    }
}

#[test]
fn the_node_plugin_knows_nothing_of_ours() {
    let manifest = fs::read_to_string(repository().join("replicator/node/Cargo.toml")).expect("manifest");
    assert!(
        !manifest.contains("tandem-crds")
            && !manifest.contains("tandem-protocol")
            && !manifest.contains("tandem-replicator"),
        "the privileged part stands alone, so that it can be read in one sitting"
    );
}

#[test]
fn the_operators_rules_are_pure() {
    let rooms = ["validate.rs", "decide.rs", "desired.rs"];
    let there: Vec<_> =
        rooms.iter().map(|room| repository().join("operator/src").join(room)).filter(|path| path.exists()).collect();
    for path in there {
        let words = [CLOCKS, &[".await", "Client", "Api<"]].concat();
        for (number, line) in shipped(&path) {
            for word in &words {
                assert!(
                    !line.contains(word),
                    "{}:{number}: `{word}`: rules are functions from values to values; hand in what they need",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn clocks_are_read_in_one_room() {
    only_in(
        "replicator/src",
        CLOCKS,
        &["src/clock.rs"],
        "read the clock through clock.rs, so that a rule can be tested at any time",
    );
    only_in(
        "operator/src",
        CLOCKS,
        &["src/clock.rs"],
        "read the clock through clock.rs, so that a rule can be tested at any time",
    );
}

#[test]
fn durable_steps_are_named_in_one_room() {
    let words = ["fs::rename(", "sync_all(", "sync_data(", "fdatasync(", "fsync(", "syncfs("];
    only_in(
        "replicator/src",
        &words,
        &["src/disk.rs"],
        "durable steps go through disk.rs, each named by what would be lost without it",
    );
}

#[test]
fn every_source_file_says_what_it_is() {
    let folders =
        ["crds/src", "operator/src", "replicator/src", "replicator/protocol/src", "replicator/node/src", "tests/src"];
    for path in folders.iter().flat_map(|folder| sources(folder)) {
        let text = fs::read_to_string(&path).expect("a source file");
        assert!(
            text.trim_start().starts_with("//!"),
            "{}: begins without a `//!` paragraph that says what lives here",
            path.display()
        );
    }
}

#[test]
fn the_top_level_is_what_was_asked_for() {
    let allowed = ["operator", "replicator", "charts", "crds", "tests", "target"];
    for entry in fs::read_dir(repository()).expect("the workspace").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        assert!(
            !is_folder || name.starts_with('.') || allowed.contains(&name.as_str()),
            "{name}: no other folders at the top level"
        );
    }
}
