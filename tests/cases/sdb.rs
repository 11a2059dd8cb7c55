//! What solidDB HotStandby did: netcopy, catch-up, the states of a pair, changing roles.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};
use tandem_tests::cluster::trouble::{Cut, From};
use tandem_tests::pair::{PATIENCE, Pair, Wishes};

pub(crate) const CASES: &[Case] = &[
    ("sdb_1_new_secondary", new_secondary),
    ("sdb_2_writes_go_on", writes_go_on),
    ("sdb_3_terminal_state_always", terminal_state_always),
    ("sdb_10_catch_up_not_copy", catch_up_not_copy),
    ("sdb_14_switchover", switchover),
    ("sdb_15_both_return", both_return),
];

fn new_secondary(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    // Each reports for itself.
    pair.wait(PATIENCE, "both members to say so", |pair| {
        Ok(pair.state("a")? == "PrimaryActive" && pair.state("b")? == "SecondaryActive")
    })?;
    ensure!(pair.condition("Bootstrapped")?.0 == "True", "not bootstrapped");
    let load = pair.load(2, 0)?;
    load.progress(200, PATIENCE)?;
    let history = load.finish();
    history.judge(&pair.records()?).clean()?;
    pair.last_copy()?;
    pair.wait_equal()
}

fn writes_go_on(stage: &Stage<'_>) -> Result<()> {
    let cluster = stage.cluster;
    cluster.kubectl(&["cordon", "n2"])?;
    let pair = Pair::apply(cluster, stage.namespace, "orders", &Wishes { mebibytes: 1024, ..Wishes::default() })?;
    pair.wait_active("a")?;
    let mut talk = pair.converse()?;
    for number in 0..40 {
        let answer = talk.ask(&format!("put f{number} 2000000"))?;
        ensure!(answer.starts_with("ok"), "{answer}");
    }
    let load = pair.patient_load(2, 50)?;
    load.progress(50, PATIENCE)?;
    cluster.kubectl(&["uncordon", "n2"])?;
    pair.wait_in_sync("a")?;
    load.progress(50, PATIENCE)?;
    let history = load.finish();
    let verdict = history.judge(&pair.records()?);
    verdict.clean()?;
    ensure!(
        verdict.unknown + verdict.refused == 0,
        "{} writes failed during netcopy",
        verdict.unknown + verdict.refused
    );
    // Everything must be on the other side too: let it lead and look.
    let before = sorted(pair.converse()?.ask_all("list")?);
    pair.annotate("switchover", "look")?;
    pair.wait_request("switchover", "look", "Completed")?;
    pair.wait_in_sync("b")?;
    ensure!(sorted(pair.converse()?.ask_all("list")?) == before, "the copied files differ");
    history.judge(&pair.records()?).clean()
}

/// A copy that is cut ends as failed, is told about, and is tried again.
fn terminal_state_always(stage: &Stage<'_>) -> Result<()> {
    let cluster = stage.cluster;
    cluster.kubectl(&["cordon", "n2"])?;
    let wishes = Wishes { mebibytes: 1024, ..Wishes::spec(json!({"bootstrap": {"stallTimeoutSeconds": 10}})) };
    let pair = Pair::apply(cluster, stage.namespace, "orders", &wishes)?;
    pair.wait_active("a")?;
    let mut talk = pair.converse()?;
    for number in 0..60 {
        let answer = talk.ask(&format!("put f{number} 2000000"))?;
        ensure!(answer.starts_with("ok"), "{answer}");
    }
    let node = cluster.node("n1")?;
    // Two minutes at this rate: the copy is surely on its way when the link is cut.
    node.slow_link(Some(8))?;
    cluster.kubectl(&["uncordon", "n2"])?;
    pair.wait(PATIENCE, "the copy to be on its way", |pair| {
        Ok(pair.status()?["netcopy"]["bytesDone"].as_u64().unwrap_or(0) > 2_000_000)
    })?;
    let container = pair.container("b", "replicator")?;
    let other = cluster.node("n2")?;
    other.cut(&container, &Cut::both(From::Port(7470)))?;
    pair.wait(Duration::from_secs(60), "the copy to count as failed", |pair| {
        Ok(pair.status()?["netcopy"]["phase"] == "Failed" && pair.has_event("NetcopyFailed")?)
    })?;
    ensure!(pair.condition("InSync")?.0 != "True", "half a copy counts as a copy");
    node.slow_link(None)?;
    other.heal(&container)?;
    pair.wait_in_sync("a")?;
    pair.wait_equal()
}

fn catch_up_not_copy(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let copied = pair.last_copy()?;
    let load = pair.load(2, 50)?;
    let node = stage.cluster.node("n2")?;
    node.freeze_pod(pair.pod("b")?["metadata"]["uid"].as_str().unwrap_or_default(), true)?;
    pair.wait(PATIENCE, "a to go on alone", |pair| Ok(pair.state("a")? == "PrimaryAlone"))?;
    load.progress(200, PATIENCE)?;
    node.freeze_pod(pair.pod("b")?["metadata"]["uid"].as_str().unwrap_or_default(), false)?;
    pair.wait_in_sync("a")?;
    ensure!(pair.last_copy()? == copied, "a copy was made where catching up would have done");
    let history = load.finish();
    history.judge(&pair.records()?).clean()?;
    ensure!(history.reigns().len() == 1, "the leader changed");
    Ok(())
}

fn switchover(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let epoch = pair.epoch()?;
    let load = pair.load(3, 0)?;
    load.progress(100, PATIENCE)?;
    let asked = Instant::now();
    pair.annotate("switchover", "t1")?;
    pair.wait_request("switchover", "t1", "Completed")?;
    pair.wait_in_sync("b")?;
    load.progress(100, PATIENCE)?;
    let history = load.finish();
    history.judge(&pair.records()?).clean()?;
    ensure!(history.reigns() == ["orders-a-0", "orders-b-0"], "{:?} acknowledged in this order", history.reigns());
    ensure!(pair.epoch()? > epoch, "the epoch did not grow");
    println!("  write outage {:.2} s", history.outage(asked).as_secs_f64());
    // The same token again is no new request.
    pair.annotate("switchover", "t1")?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(pair.active()? == "b", "a repeated token acted twice");
    Ok(())
}

fn both_return(stage: &Stage<'_>) -> Result<()> {
    use tandem_tests::cluster::trouble::Keeps;
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::spec(json!({})))?;
    pair.wait_in_sync("a")?;
    let load = pair.load(2, 0)?;
    load.progress(100, PATIENCE)?;
    let (n1, n2) = (stage.cluster.node("n1")?, stage.cluster.node("n2")?);
    n2.kill(Keeps::OnlySynced)?;
    // a goes on alone: it has the newer history.
    load.progress(50, PATIENCE)?;
    n1.kill(Keeps::OnlySynced)?;
    let history = load.finish();
    n2.start()?;
    n1.start()?;
    pair.wait_in_sync("a")?;
    history.judge(&pair.records()?).clean()
}

pub(crate) fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}
