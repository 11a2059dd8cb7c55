//! What HP Storage Mirroring did: write order, short faults, a human in between, restarts of either side.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;
use tandem_tests::cluster::trouble::{Cut, From, Keeps};
use tandem_tests::pair::{PATIENCE, Pair, Wishes};

pub(crate) const CASES: &[Case] = &[
    ("hp_2_write_order", write_order),
    ("hp_4_blip", blip),
    ("hp_6_manual_mode", manual_mode),
    ("hp_7_not_while_mirroring", not_while_mirroring),
    ("hp_9_restart_of_the_replicant", restart_of_the_replicant),
];

fn write_order(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let mut talk = pair.converse()?;
    let mut last = 0;
    for k in 0..500_u64 {
        ensure!(talk.ask(&format!("pair {k}"))?.starts_with("ok"), "record {k} was refused");
        last = k;
    }
    talk.be_patient(Duration::from_secs(5))?;
    let writer = std::thread::spawn(move || {
        let mut last = last;
        for k in last + 1.. {
            match talk.ask(&format!("pair {k}")) {
                Ok(answer) if answer.starts_with("ok") => last = k,
                _ => return last,
            }
        }
        last
    });
    std::thread::sleep(Duration::from_millis(300));
    pair.kill_pod("a")?;
    let acknowledged = writer.join().unwrap();
    pair.wait(PATIENCE, "somebody to lead again", |pair| {
        Ok(pair.epoch()? > 1 && pair.converse()?.ask("who")?.starts_with("ok"))
    })?;
    let mut numbers: Vec<u64> = Vec::new();
    for line in pair.converse()?.ask_all("numbers")? {
        numbers.extend(line.split_whitespace().nth(2).and_then(|word| word.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    let count = numbers.len() as u64;
    ensure!(numbers.iter().copied().eq(0..count), "a hole in {count} records");
    ensure!(count > acknowledged, "{acknowledged} was acknowledged, {count} records are there");
    Ok(())
}

/// The link between the members is cut for a while: nobody else leads, nothing is copied again.
fn blip(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let (epoch, copied) = (pair.epoch()?, pair.last_copy()?);
    let load = pair.load(2, 100)?;
    let node = stage.cluster.node("n2")?;
    let container = pair.container("b", "replicator")?;
    node.cut(&container, &Cut::both(From::Port(7470)))?;
    pair.wait(PATIENCE, "a to go on alone", |pair| Ok(pair.state("a")? == "PrimaryAlone"))?;
    load.progress(100, PATIENCE)?;
    std::thread::sleep(Duration::from_secs(10));
    node.heal(&container)?;
    pair.wait_in_sync("a")?;
    let history = load.finish();
    history.judge(&pair.records()?).clean()?;
    ensure!(pair.epoch()? == epoch, "the epoch went from {epoch} to {}", pair.epoch()?);
    ensure!(pair.last_copy()? == copied, "a blip caused a copy");
    Ok(())
}

fn manual_mode(stage: &Stage<'_>) -> Result<()> {
    let pair =
        Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::spec(json!({"failover": {"mode": "Manual"}})))?;
    pair.wait_in_sync("a")?;
    let load = pair.load(1, 0)?;
    load.progress(50, PATIENCE)?;
    stage.cluster.kubectl(&["cordon", "n1"])?;
    pair.delete_killed("a")?;
    pair.wait(PATIENCE, "the human to be asked", |pair| {
        Ok(pair.condition("ManualActionRequired")? == ("True".into(), "FailoverPending".into()))
    })?;
    ensure!(!pair.state("b")?.starts_with("Primary"), "b was promoted although the mode is Manual");
    stage.cluster.restart_operator()?;
    pair.wait(PATIENCE, "the question to outlive the operator", |pair| {
        Ok(pair.condition("ManualActionRequired")? == ("True".into(), "FailoverPending".into()))
    })?;
    pair.annotate("failover", "go")?;
    pair.wait_active("b")?;
    load.progress(50, PATIENCE)?;
    let history = load.finish();
    history.judge(&pair.records()?).clean()?;
    stage.cluster.kubectl(&["uncordon", "n1"])?;
    // One on each node again: later the other node is lost.
    stage.cluster.restart_operator()?;
    pair.wait_in_sync("b")
}

/// The master dies while its first copy is on the way: half a copy never leads.
fn not_while_mirroring(stage: &Stage<'_>) -> Result<()> {
    let cluster = stage.cluster;
    cluster.kubectl(&["cordon", "n2"])?;
    let pair = Pair::apply(cluster, stage.namespace, "orders", &Wishes { mebibytes: 1024, ..Wishes::default() })?;
    pair.wait_active("a")?;
    let mut talk = pair.converse()?;
    for number in 0..60 {
        let answer = talk.ask(&format!("put f{number} 2000000"))?;
        ensure!(answer.starts_with("ok"), "{answer}");
    }
    let wanted = super::sdb::sorted(talk.ask_all("list")?);
    let node = cluster.node("n1")?;
    node.slow_link(Some(16))?;
    cluster.kubectl(&["uncordon", "n2"])?;
    pair.wait(PATIENCE, "the copy to be on its way", |pair| {
        Ok(pair.status()?["netcopy"]["bytesDone"].as_u64().unwrap_or(0) > 10_000_000)
    })?;
    pair.wait(PATIENCE, "the half copy to be named", |pair| {
        Ok(pair.condition("FailoverReady")? == ("False".into(), "TargetDataIncomplete".into()))
    })?;
    node.kill(Keeps::OnlySynced)?;
    std::thread::sleep(Duration::from_secs(15));
    let state = pair.state("b")?;
    node.start()?;
    ensure!(!state.starts_with("Primary"), "half a copy was promoted: {state}");
    pair.wait_in_sync("a")?;
    ensure!(super::sdb::sorted(pair.converse()?.ask_all("list")?) == wanted, "files changed");
    pair.wait_equal()
}

fn restart_of_the_replicant(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let copied = pair.last_copy()?;
    let load = pair.load(2, 100)?;
    load.progress(50, PATIENCE)?;
    pair.replace_pod("b")?;
    load.progress(50, PATIENCE)?;
    pair.wait_in_sync("a")?;
    ensure!(pair.last_copy()? == copied, "a clean restart caused a copy");
    pair.kill_pod("b")?;
    load.progress(50, PATIENCE)?;
    pair.wait_in_sync("a")?;
    let history = load.finish();
    history.judge(&pair.records()?).clean()?;
    ensure!(history.reigns().len() == 1, "the leader changed");
    Ok(())
}
