//! What an owner may ask for by annotation beside a change of leadership.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;
use tandem_tests::cluster::trouble::{Cut, From, Keeps};
use tandem_tests::judge::{Clients, Load, Task};
use tandem_tests::pair::{PATIENCE, Pair, Wishes};

pub(crate) const CASES: &[Case] = &[
    ("a_resync_copies_again", resync),
    ("a_pair_on_hold_does_not_fail_over", hold),
    ("a_new_template_is_rolled_out", rollout),
    ("a_human_gives_up_what_only_a_lost_master_holds", force),
    ("a_deleted_record_is_made_anew_when_both_members_are_there", deleted_record),
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

/// The master goes on alone and dies for good. What only it held is given up by a human, who is told what that is; all that
/// the replicant had acknowledged stays; and when the lost node comes back after all, what it held is kept aside.
fn force(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let together = pair.load(1, 0)?;
    together.progress(100, PATIENCE)?;
    let together = together.finish();
    let client = |first| {
        let patience = Duration::from_secs(2);
        let clients = Clients { first, count: 1, per_second: 0, patience, what: Task::Append };
        Ok::<_, anyhow::Error>(Load::of(&pair.address()?, &clients))
    };
    let far = stage.cluster.node("n2")?;
    let replicator = pair.container("b", "replicator")?;
    far.cut(&replicator, &Cut::both(From::Port(7470)))?;
    pair.wait(PATIENCE, "the master to go on alone", |pair| Ok(pair.state("a")? == "PrimaryAlone"))?;
    let alone = client(1)?;
    alone.progress(100, PATIENCE)?;
    // What a failover would lose is known as soon as the record notes it or the master reports.
    pair.wait(PATIENCE, "the master to tell how far it is", |pair| {
        let end = |member| Ok::<_, anyhow::Error>(pair.report(member)?["position"]["seq"].as_i64().unwrap_or_default());
        Ok(end("a")? > end("b")?)
    })?;
    let alone = alone.finish();
    let near = stage.cluster.node("n1")?;
    near.kill(Keeps::OnlySynced)?;
    far.heal(&replicator)?;
    pair.wait(PATIENCE, "the pair to say what a human can do", |pair| {
        Ok(pair.condition("ManualActionRequired")? == ("True".into(), "CertifiedCopyAway".into()))
    })?;
    let epoch = pair.epoch()?;
    let message = pair.status()?["message"].as_str().unwrap_or_default().to_string();
    ensure!(message.contains("at least") && message.contains(&format!("tandem.dev/force=b@{epoch}/")), "{message}");
    println!("  {message}");

    pair.annotate("failover", "t1")?;
    pair.wait_request("failover", "t1", "Refused")?;
    let token = format!("b@{}/t2", epoch + 1);
    pair.annotate("force", &token)?;
    pair.wait_request("force", &token, "Refused")?;
    ensure!(pair.epoch()? == epoch, "another epoch was given up than the one that was named");

    let token = format!("b@{epoch}/t3");
    pair.annotate("force", &token)?;
    pair.wait_active("b")?;
    pair.wait_request("force", &token, "Completed")?;
    let after = client(2)?;
    after.progress(50, PATIENCE)?;
    let after = after.finish();
    let verdict = together.judge(&pair.records()?);
    ensure!(verdict.lost.is_empty(), "lost although both held it: {:?}", verdict.lost);

    near.start()?;
    pair.wait_in_sync("b")?;
    pair.wait_equal()?;
    ensure!(after.judge(&pair.records()?).lost.is_empty(), "what the new master acknowledged was lost");
    let aside = near.path(&format!("/mnt/{}/.tandem/aside", pair.volume("a")))?;
    let kept: Vec<_> = std::fs::read_dir(&aside)?.collect::<std::io::Result<_>>()?;
    ensure!(kept.len() == 1, "{} folders aside", kept.len());
    let page: serde_json::Value = serde_json::from_slice(&std::fs::read(kept[0].path().join("what-this-is.json"))?)?;
    let records = page["records"].as_u64().unwrap_or_default();
    ensure!(records >= alone.acknowledged().count() as u64, "of what was given up {records} operations are kept");
    let shown = |pair: &Pair| Ok::<_, anyhow::Error>(pair.status()?["members"][0]["savedAside"].clone());
    pair.wait(PATIENCE, "the status to list what is kept aside", |pair| Ok(shown(pair)? == json!([page["name"]])))?;
    pair.annotate("discard", "t4")?;
    pair.wait_request("discard", "t4", "Completed")?;
    pair.wait(PATIENCE, "what was discarded to be gone", |_| Ok(std::fs::read_dir(&aside)?.next().is_none()))?;
    pair.wait(PATIENCE, "the status to list nothing", |pair| Ok(shown(pair)?.is_null()))
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

/// Somebody deletes the record. Both members say what they hold, and the pair goes on by itself; while one of them is away the
/// other serves on, and people are told whom to bring back.
fn deleted_record(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let epoch = pair.epoch()?;
    let load = pair.load(2, 20)?;
    load.progress(50, PATIENCE)?;
    let again = |epoch: u64| {
        pair.wait(PATIENCE, "a new record, and everybody in sync", |pair| {
            let in_sync = pair.condition("InSync")?.0 == "True" && pair.condition("Ready")?.0 == "True";
            Ok(in_sync && pair.epoch()? > epoch + 1)
        })
    };
    pair.kubectl(&["delete", "pairrecord", "orders"])?;
    again(epoch)?;
    load.progress(50, PATIENCE)?;

    let epoch = pair.epoch()?;
    let (leader, other) = if pair.active()? == "a" { ("a", "n2") } else { ("b", "n1") };
    let away = if leader == "a" { "b" } else { "a" };
    stage.cluster.node(other)?.kill(Keeps::OnlySynced)?;
    pair.wait(PATIENCE, "the leader to go on alone", |pair| Ok(pair.state(leader)? == "PrimaryAlone"))?;
    pair.kubectl(&["delete", "pairrecord", "orders"])?;
    pair.wait(PATIENCE, "people to be told whom to bring back", |pair| {
        let said = pair.status()?["message"].as_str().unwrap_or_default().to_string();
        Ok(pair.condition("ManualActionRequired")? == ("True".into(), "RecordMissing".into())
            && said.contains(&format!("member {away} is not there")))
    })?;
    load.progress(100, PATIENCE)?;
    ensure!(pair.state(leader)? == "PrimaryAlone", "the leader stopped although nobody else can say what he holds");
    stage.cluster.node(other)?.start()?;
    again(epoch)?;
    load.progress(50, PATIENCE)?;
    let history = load.finish();
    history.judge(&pair.records()?).clean()?;
    pair.wait_equal()
}
