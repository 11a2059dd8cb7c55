//! What the IBM TSM runbook did in twelve steps: the other side takes over, the first comes back harmless, and goes home.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use tandem_tests::cluster::trouble::Keeps;
use tandem_tests::judge::{Conversation, Load};
use tandem_tests::pair::{PATIENCE, Pair, Wishes};

pub(crate) const CASES: &[Case] =
    &[("ibm_1_2_3_round_trip", round_trip), ("d3_6_main_takes_back_over", main_takes_back_over)];

/// IBM-1: stored while failed over. IBM-2: the return is harmless. IBM-3: everything comes home.
fn round_trip(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes { mebibytes: 1024, ..Wishes::default() })?;
    pair.wait_in_sync("a")?;
    let mut talk = pair.converse()?;
    for number in 0..300 {
        let answer = talk.ask(&format!("put old{number} 1000"))?;
        ensure!(answer.starts_with("ok"), "{answer}");
    }
    let epoch = pair.epoch()?;
    let load = pair.load(3, 0)?;
    load.progress(100, PATIENCE)?;

    let node = stage.cluster.node("n1")?;
    let killed = Instant::now();
    node.kill(Keeps::OnlySynced)?;
    pair.wait_active("b")?;
    load.progress(100, PATIENCE)?;
    let history = load.finish();
    println!("  write outage after the loss of a node {:.2} s", history.outage(killed).as_secs_f64());
    history.judge(&pair.records()?).clean()?;
    ensure!(history.reigns() == ["orders-a-0", "orders-b-0"], "{:?}", history.reigns());
    ensure!(pair.epoch()? == epoch + 1, "epoch {} after {epoch}", pair.epoch()?);
    pair.wait_condition("FailedOver", "True")?;

    let mut talk = pair.converse()?;
    for number in 0..300 {
        let answer = talk.ask(&format!("put new{number} 1500"))?;
        ensure!(answer.starts_with("ok"), "{answer}");
    }
    for number in 0..100 {
        let answer = talk.ask(&format!("remove old{number}"))?;
        ensure!(answer.starts_with("ok"), "{answer}");
    }
    let wanted = super::sdb::sorted(talk.ask_all("list")?);

    node.start()?;
    pair.wait_in_sync("b")?;
    // A client that still knows the old address must not be served.
    let pinned = Conversation::open(&pair.pod_address("a")?, Duration::from_secs(2))
        .and_then(|mut talk| talk.ask("append 99 0"));
    ensure!(
        !pinned.as_ref().is_ok_and(|answer| answer.starts_with("ok")),
        "the returned member acknowledged: {pinned:?}"
    );

    let load = Load::start(&pair.address()?, 2, 0);
    load.progress(50, PATIENCE)?;
    let asked = Instant::now();
    pair.annotate("failback", "t1")?;
    pair.wait_request("failback", "t1", "Completed")?;
    pair.wait_in_sync("a")?;
    load.progress(50, PATIENCE)?;
    let second = load.finish();
    println!("  write outage of the way home {:.2} s", second.outage(asked).as_secs_f64());
    ensure!(second.reigns() == ["orders-b-0", "orders-a-0"], "{:?}", second.reigns());
    ensure!(super::sdb::sorted(pair.converse()?.ask_all("list")?) == wanted, "the files differ after the way home");
    pair.wait_equal()?;
    pair.wait_condition("FailedOver", "False")?;
    let epoch = pair.epoch()?;
    pair.annotate("failback", "t1")?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(pair.epoch()? == epoch && pair.active()? == "a", "a repeated token acted twice");
    Ok(())
}

fn main_takes_back_over(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let load = pair.load(2, 0)?;
    load.progress(50, PATIENCE)?;
    let node = stage.cluster.node("n1")?;
    node.kill(Keeps::Everything)?;
    pair.wait_active("b")?;
    load.progress(50, PATIENCE)?;
    node.start()?;
    pair.wait_in_sync("b")?;
    ensure!(pair.state("a")?.starts_with("Secondary"), "the main member returned as {}", pair.state("a")?);
    pair.annotate("failback", "home")?;
    pair.wait_request("failback", "home", "Completed")?;
    pair.wait_in_sync("a")?;
    load.progress(50, PATIENCE)?;
    let history = load.finish();
    history.judge(&pair.records()?).clean()?;
    ensure!(history.reigns() == ["orders-a-0", "orders-b-0", "orders-a-0"], "{:?}", history.reigns());
    Ok(())
}
