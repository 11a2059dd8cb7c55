//! What may happen to a member's volume: its device dies, somebody sets it back.

use crate::outages::other;
use crate::{Case, Stage};
use anyhow::{Result, ensure};
use std::time::Instant;
use tandem_tests::cluster::trouble::Keeps;
use tandem_tests::pair::{PATIENCE, Pair, Wishes};
use tandem_tests::shell;

pub(crate) const CASES: &[Case] =
    &[("a_failing_disk_hands_over", failing_disk), ("a_volume_that_was_set_back_is_not_trusted", set_back)];

/// The master's disk fails, then the replicant's: the other one goes on each time, and what is answered is there.
fn failing_disk(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let load = pair.load(2, 0)?;
    for victim_leads in [true, false] {
        load.progress(100, PATIENCE)?;
        let master = pair.active()?;
        let victim = if victim_leads { master.as_str() } else { other(&master) };
        let rest = other(victim);
        let node = pair.home(victim)?;
        let failed = Instant::now();
        node.fail_volume(&pair.volume(victim))?;
        pair.wait(PATIENCE, "the other member to go on alone", |pair| {
            Ok(pair.active()? == rest && pair.state(rest)? == "PrimaryAlone")
        })?;
        load.progress(50, PATIENCE)?;
        println!("  the other one leads alone after {:.1} s", failed.elapsed().as_secs_f64());
        node.replace_device(&pair.volume(victim))?;
        // The operator may have replaced a master that was overruled already.
        pair.replace_pod(victim)?;
        pair.wait_in_sync(rest)?;
    }
    let history = load.finish();
    history.judge(&pair.records()?).clean()?;
    pair.wait_equal()
}

/// Both members lose power, and somebody puts an old copy of one volume back before that member starts first: it is
/// certified by name and identity, but it must not lead.
fn set_back(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let load = pair.load(1, 0)?;
    load.progress(50, PATIENCE)?;
    let (near, far) = (stage.cluster.node("n1")?, stage.cluster.node("n2")?);
    let file = far.volume_file(&pair.volume("b")).display().to_string();
    let old = format!("{file}.old");
    far.kill(Keeps::Everything)?;
    pair.wait(PATIENCE, "the master to go on alone", |pair| Ok(pair.state("a")? == "PrimaryAlone"))?;
    shell::sh("cp", &["--sparse=always", &file, &old])?;
    far.start()?;
    pair.wait(PATIENCE, "the members to meet again", |pair| Ok(pair.state("a")? == "PrimaryActive"))?;
    pair.wait_in_sync("a")?;
    for (token, leader) in [("there", "b"), ("back", "a")] {
        pair.annotate("switchover", token)?;
        pair.wait_request("switchover", token, "Completed")?;
        pair.wait_in_sync(leader)?;
    }
    load.progress(50, PATIENCE)?;
    // At one instant, or the last one would record that it goes on alone.
    far.freeze(true)?;
    near.freeze(true)?;
    let history = load.finish();
    near.kill(Keeps::OnlySynced)?;
    far.kill(Keeps::OnlySynced)?;
    shell::sh("mv", &[&old, &file])?;
    far.start()?;
    pair.wait(PATIENCE, "the old volume to be recognised", |pair| {
        Ok(pair.condition("ManualActionRequired")? == ("True".into(), "RolledBack".into()))
    })?;
    ensure!(pair.active()? == "a", "a volume that was set back leads");
    near.start()?;
    pair.wait_active("a")?;
    history.judge(&pair.records()?).clean()?;
    pair.annotate("discard", "b/set-back")?;
    pair.wait_request("discard", "b/set-back", "Completed")?;
    pair.wait_in_sync("a")?;
    pair.wait_equal()?;
    let kept = pair.status()?["members"][1]["savedAside"].as_array().map_or(0, Vec::len);
    ensure!(kept == 1, "{kept} folders aside: what was given up is not kept");
    Ok(())
}
