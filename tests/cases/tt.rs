//! What TapeTrack's replication did: an empty side joins a working master, and nothing foreign is touched.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;
use tandem_tests::pair::{PATIENCE, Pair, Wishes};

pub(crate) const CASES: &[Case] = &[
    ("tt_1_enable", enable),
    ("tt_2_order_enforced", order_enforced),
    ("tt_5_refuse_two_masters", refuse_two_masters),
    ("tt_6_dirty_replicant", dirty_replicant),
    ("tt_8_not_electable", not_electable),
];

/// A volume with an application's files becomes the master's; the files stay where they are.
fn enable(stage: &Stage<'_>) -> Result<()> {
    let n1 = stage.cluster.node("n1")?;
    let volume = Pair::volume_for(stage.cluster, stage.namespace, "orders", "a", 1024)?;
    let files = n1.path(&format!("/mnt/{volume}/files"))?;
    std::fs::create_dir_all(&files)?;
    for number in 0..100 {
        std::fs::write(files.join(format!("old{number}")), vec![number; 300_000])?;
    }
    let wishes = Wishes { mebibytes: 1024, ..Wishes::spec(json!({"bootstrap": {"from": "a"}})) };
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &wishes)?;
    pair.wait_active("a")?;
    let load = pair.load(1, 50)?;
    pair.wait_in_sync("a")?;
    load.progress(20, PATIENCE)?;
    let history = load.finish();
    let before = super::sdb::sorted(pair.converse()?.ask_all("list")?);
    ensure!(before.len() == 100, "{} of 100 files are there", before.len());
    pair.annotate("switchover", "look")?;
    pair.wait_in_sync("b")?;
    ensure!(super::sdb::sorted(pair.converse()?.ask_all("list")?) == before, "the copy differs");
    history.judge(&pair.records()?).clean()
}

fn order_enforced(stage: &Stage<'_>) -> Result<()> {
    stage.cluster.kubectl(&["cordon", "n1"])?;
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait(PATIENCE, "b to wait for its master", |pair| {
        Ok(pair.condition("Bootstrapped")? == ("False".into(), "WaitingForMaster".into())
            && !pair.state("b")?.is_empty())
    })?;
    std::thread::sleep(Duration::from_secs(10));
    ensure!(!pair.state("b")?.starts_with("Primary"), "b became writable before its master was there");
    stage.cluster.kubectl(&["uncordon", "n1"])?;
    pair.wait_in_sync("a")?;
    ensure!(pair.restarts("b")? == 0, "b was restarted {} times", pair.restarts("b")?);
    Ok(())
}

fn refuse_two_masters(stage: &Stage<'_>) -> Result<()> {
    for wrong in ["both", "neither", "ab", ""] {
        let answer =
            Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::spec(json!({"preferredMaster": wrong})));
        ensure!(answer.is_err(), "preferredMaster {wrong:?} was taken");
    }
    let left =
        stage.cluster.kubectl(&["-n", stage.namespace, "get", "replicationpairs,statefulsets,pods", "-o", "name"])?;
    ensure!(left.trim().is_empty(), "something was made: {left}");
    Ok(())
}

fn dirty_replicant(stage: &Stage<'_>) -> Result<()> {
    let n2 = stage.cluster.node("n2")?;
    let volume = Pair::volume_for(stage.cluster, stage.namespace, "orders", "b", 512)?;
    let precious = n2.path(&format!("/mnt/{volume}/precious"))?;
    std::fs::write(&precious, "the only copy")?;
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait(PATIENCE, "the foreign files to be noticed", |pair| {
        Ok(pair.condition("ManualActionRequired")? == ("True".into(), "ForeignData".into()))
    })?;
    pair.wait_active("a")?;
    ensure!(std::fs::read_to_string(&precious)? == "the only copy", "foreign files were touched");
    ensure!(pair.condition("InSync")?.0 != "True", "a foreign volume counts as a copy");
    // The owner's word: the files are moved aside, never deleted, and the member joins.
    pair.annotate("discard", "t1")?;
    pair.wait_request("discard", "t1", "Completed")?;
    pair.wait_in_sync("a")?;
    ensure!(!precious.exists(), "foreign files are still in the application's sight");
    let aside = n2.path(&format!("/mnt/{volume}/.tandem/aside"))?;
    ensure!(holds(&aside, "precious", "the only copy")?, "the foreign files are not in {}", aside.display());
    Ok(())
}

/// Whether a file of this name and content lies somewhere below.
fn holds(folder: &std::path::Path, name: &str, content: &str) -> Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let found = if entry.file_type()?.is_dir() {
            holds(&entry.path(), name, content)?
        } else {
            entry.file_name() == name && std::fs::read_to_string(entry.path()).is_ok_and(|text| text == content)
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

fn not_electable(stage: &Stage<'_>) -> Result<()> {
    let wishes = Wishes::spec(json!({"members": {"b": {"electable": false}}}));
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &wishes)?;
    pair.wait_in_sync("a")?;
    ensure!(
        pair.condition("FailoverReady")? == ("False".into(), "NotElectable".into()),
        "{:?}",
        pair.condition("FailoverReady")?
    );
    stage.cluster.kubectl(&["cordon", "n1"])?;
    pair.kubectl(&["delete", "pod", "orders-a-0", "--wait=false"])?;
    std::thread::sleep(Duration::from_secs(20));
    let state = pair.state("b")?;
    ensure!(!state.starts_with("Primary"), "b was promoted: {state}");
    stage.cluster.kubectl(&["uncordon", "n1"])?;
    pair.wait_in_sync("a")
}
