//! What an owner may ask for by annotation beside a change of leadership.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use std::time::Duration;
use tandem_tests::cluster::trouble::Keeps;
use tandem_tests::pair::{PATIENCE, Pair, Wishes};

pub(crate) const CASES: &[Case] = &[
    ("a_resync_copies_again", resync),
    ("a_pair_on_hold_does_not_fail_over", hold),
    ("a_new_template_is_rolled_out", rollout),
];

fn resync(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let (copied, epoch) = (pair.last_copy()?, pair.epoch()?);
    let load = pair.load(1, 50)?;
    load.progress(20, PATIENCE)?;
    pair.annotate("resync", "t1")?;
    pair.wait_request("resync", "t1", "Completed")?;
    pair.wait_in_sync("a")?;
    ensure!(pair.last_copy()? != copied, "nothing was compared");
    ensure!(pair.epoch()? == epoch, "a comparison changed the leader");
    let history = load.finish();
    history.judge(&pair.records()?).clean()?;
    pair.wait_equal()
}

/// On hold nobody takes over by itself; afterwards the dead master is replaced at once.
fn hold(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let load = pair.load(1, 0)?;
    load.progress(50, PATIENCE)?;
    pair.annotate("hold", "t1")?;
    pair.wait_condition("Paused", "True")?;
    pair.wait(PATIENCE, "the members to know of it", |pair| {
        Ok(pair.request("hold", "t1")? == Some(("Accepted".into(), "Holding".into())))
    })?;
    let node = stage.cluster.node("n1")?;
    node.kill(Keeps::OnlySynced)?;
    std::thread::sleep(Duration::from_secs(20));
    let state = pair.state("b")?;
    ensure!(!state.starts_with("Primary"), "b took over although the pair is on hold: {state}");
    pair.kubectl(&["annotate", "replicationpair", "orders", "tandem.dev/hold-"])?;
    pair.wait_active("b")?;
    load.progress(50, PATIENCE)?;
    node.start()?;
    pair.wait_in_sync("b")?;
    let history = load.finish();
    history.judge(&pair.records()?).clean()
}

/// Another template reaches the replicant first; then leadership moves, once, without an error for a client that reconnects.
fn rollout(stage: &Stage<'_>) -> Result<()> {
    let wishes = Wishes::default();
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &wishes)?;
    pair.wait_in_sync("a")?;
    let load = pair.load(2, 0)?;
    load.progress(50, PATIENCE)?;
    let mut manifest = pair.manifest(&wishes);
    manifest["spec"]["template"]["metadata"]["annotations"]["release"] = "two".into();
    pair.apply_manifest(&manifest)?;
    pair.wait(PATIENCE, "both pods to be of the new template", |pair| {
        let is_new = |member| Ok::<_, anyhow::Error>(pair.pod(member)?["metadata"]["annotations"]["release"] == "two");
        Ok(is_new("a")? && is_new("b")? && pair.condition("InSync")?.0 == "True")
    })?;
    load.progress(50, PATIENCE)?;
    let history = load.finish();
    let verdict = history.judge(&pair.records()?);
    verdict.clean()?;
    ensure!(verdict.refused == 0, "{} writes were answered with an error", verdict.refused);
    ensure!(history.reigns() == ["orders-a-0", "orders-b-0"], "{:?}", history.reigns());
    Ok(())
}
