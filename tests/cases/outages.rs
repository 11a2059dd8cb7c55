//! Each protection under each trouble, and the control plane away: nothing acknowledged is lost, nobody acknowledges twice.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};
use tandem_tests::cluster::trouble::{Cut, From, Keeps};
use tandem_tests::pair::{PATIENCE, Pair, Wishes};

pub(crate) const CASES: &[Case] = &[
    ("max_availability_under_trouble", |stage| under_trouble(stage, "MaxAvailability")),
    ("max_protection_under_trouble", |stage| under_trouble(stage, "MaxProtection")),
    ("async_loses_no_more_than_allowed", async_loses_little),
    ("failover_without_an_operator", without_an_operator),
    ("two_minutes_without_the_api", without_the_api),
    ("drain_of_the_masters_node", drain),
    ("deleting_the_pair_keeps_the_volumes", deleting),
    ("d3_8_split", split),
    ("certificates_change_under_load", certificates),
];

/// Something bad, made to happen to the pair that this member leads.
type Trouble = fn(&Pair, &str) -> Result<()>;

/// Master's pod killed, replicant killed, link cut, master cut from everything, master's node killed; one after the other
/// on one pair under load, whole again in between.
fn under_trouble(stage: &Stage<'_>, protection: &str) -> Result<()> {
    let wishes = Wishes::spec(json!({"replication": {"protection": protection}}));
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &wishes)?;
    pair.wait_in_sync("a")?;
    let load = pair.load(3, 0)?;
    let trouble: [(&str, Trouble); 5] = [
        ("master's pod killed", |pair, master| pair.kill_pod(master)),
        ("replicant killed", |pair, master| pair.kill_pod(other(master))),
        ("link cut", |pair, master| cut_for(pair, other(master), From::Port(7470))),
        ("master cut from everything", |pair, master| cut_for(pair, master, From::Everybody)),
        ("master's node killed", |pair, master| {
            let node = pair.home(master)?;
            node.kill(Keeps::OnlySynced)?;
            pair.wait_active(other(master))?;
            std::thread::sleep(Duration::from_secs(2));
            node.start()
        }),
    ];
    for (name, make) in trouble {
        load.progress(100, PATIENCE)?;
        let master = pair.active()?;
        let began = Instant::now();
        make(&pair, &master)?;
        pair.wait(PATIENCE, "the pair to be whole again", |pair| {
            let active = pair.active()?;
            Ok(pair.condition("InSync")?.0 == "True" && pair.state(&active)? == "PrimaryActive")
        })?;
        load.progress(50, PATIENCE)?;
        println!("  {name}: {} leads, whole again after {:.1} s", pair.active()?, began.elapsed().as_secs_f64());
    }
    let history = load.finish();
    let verdict = history.judge(&pair.records()?);
    println!(
        "  {} acknowledged, {} unknown, {} refused; {:?}",
        verdict.acknowledged,
        verdict.unknown,
        verdict.refused,
        history.reigns()
    );
    verdict.clean()?;
    pair.wait_equal()
}

/// With `Async` a dying master may take something along, but never more than was allowed, and only from the end.
fn async_loses_little(stage: &Stage<'_>) -> Result<()> {
    const ALLOWED: usize = 65_536;
    let wishes = Wishes::spec(json!({"replication": {"protection": "Async", "maxLagBytes": ALLOWED}}));
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &wishes)?;
    pair.wait_in_sync("a")?;
    let load = pair.load(1, 0)?;
    load.progress(500, PATIENCE)?;
    let node = stage.cluster.node("n1")?;
    node.kill(Keeps::OnlySynced)?;
    pair.wait_active("b")?;
    load.progress(100, PATIENCE)?;
    let history = load.finish();
    let verdict = history.judge(&pair.records()?);
    ensure!(verdict.wrong.is_empty(), "{:?}", verdict.wrong);
    // A record is at least a line in its file; what the journal keeps of it is longer.
    ensure!(verdict.lost.len() * 8 <= ALLOWED, "{} acknowledged records are lost", verdict.lost.len());
    let first_of_b =
        history.acknowledged().find(|(_, pod)| *pod == "orders-b-0").map_or(u64::MAX, |(event, _)| event.k);
    // Of what was acknowledged; what nobody was told may be there or not.
    let first_lost = verdict.lost.first().map_or(u64::MAX, |(_, k)| *k);
    let from_the_end = history
        .acknowledged()
        .filter(|(event, _)| (first_lost..first_of_b).contains(&event.k))
        .all(|(event, _)| verdict.lost.contains(&(event.client, event.k)));
    ensure!(
        from_the_end && verdict.lost.iter().all(|(_, k)| *k < first_of_b),
        "lost from the middle: {:?}",
        verdict.lost
    );
    println!("  {} of {} acknowledged records lost, as Async allows", verdict.lost.len(), verdict.acknowledged);
    node.start()?;
    pair.wait_in_sync("b")?;
    pair.wait_equal()
}

pub(crate) fn other(member: &str) -> &'static str {
    if member == "a" { "b" } else { "a" }
}

fn cut_for(pair: &Pair, member: &str, from: From) -> Result<()> {
    let node = pair.home(member)?;
    let container = pair.running(member)?.container;
    node.cut(&container, &Cut::both(from))?;
    std::thread::sleep(Duration::from_secs(15));
    // The pod may have been replaced meanwhile; its network went with it.
    node.heal(&container).ok();
    Ok(())
}

fn without_an_operator(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let load = pair.load(2, 0)?;
    load.progress(50, PATIENCE)?;
    stage.cluster.scale_operator(0)?;
    let node = stage.cluster.node("n1")?;
    let killed = Instant::now();
    // The Service too must have moved: that is where the clients are.
    let result = node.kill(Keeps::OnlySynced).and_then(|()| load.progress(100, PATIENCE));
    let started = node.start().and_then(|()| stage.cluster.wait_for_nodes());
    // Whatever went wrong: other scenarios need it.
    stage.cluster.scale_operator(2)?;
    started?;
    result?;
    pair.wait_in_sync("b")?;
    let history = load.finish();
    println!("  write outage without an operator {:.2} s", history.outage(killed).as_secs_f64());
    history.judge(&pair.records()?).clean()
}

fn without_the_api(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let load = pair.patient_load(2, 100)?;
    load.progress(50, PATIENCE)?;
    stage.cluster.stop_api_server()?;
    let began = Instant::now();
    let mut result = Ok(());
    while result.is_ok() && began.elapsed() < Duration::from_secs(120) {
        result = load.progress(100, Duration::from_secs(20));
    }
    stage.cluster.resume_api_server()?;
    result?;
    pair.wait_in_sync("a")?;
    let history = load.finish();
    let verdict = history.judge(&pair.records()?);
    verdict.clean()?;
    ensure!(
        verdict.unknown + verdict.refused == 0,
        "{} writes failed while the API server was away",
        verdict.unknown + verdict.refused
    );
    Ok(())
}

fn drain(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let load = pair.load(2, 0)?;
    load.progress(50, PATIENCE)?;
    // Nobody is evicted from a pair that is not whole.
    pair.wait_in_sync("a")?;
    let began = Instant::now();
    stage.cluster.kubectl(&[
        "drain",
        "n1",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=180s",
        "--pod-selector",
        "tandem.dev/pair=orders",
    ])?;
    pair.wait_active("b")?;
    load.progress(50, PATIENCE)?;
    stage.cluster.kubectl(&["uncordon", "n1"])?;
    pair.wait_in_sync("b")?;
    let history = load.finish();
    println!("  write outage of a drain {:.2} s", history.outage(began).as_secs_f64());
    let verdict = history.judge(&pair.records()?);
    verdict.clean()?;
    ensure!(verdict.refused == 0, "{} writes were answered with an error", verdict.refused);
    Ok(())
}

fn deleting(stage: &Stage<'_>) -> Result<()> {
    let wishes = Wishes::default();
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &wishes)?;
    pair.wait_in_sync("a")?;
    let load = pair.load(1, 0)?;
    load.progress(100, PATIENCE)?;
    let history = load.finish();
    pair.kubectl(&["delete", "replicationpair", "orders", "--timeout=180s"])?;
    pair.wait(PATIENCE, "the pods to go", |pair| Ok(pair.kubectl(&["get", "pods", "-o", "name"])?.trim().is_empty()))?;
    let claims = pair.kubectl(&["get", "persistentvolumeclaims", "-o", "name"])?;
    ensure!(claims.lines().count() == 2, "claims left: {claims}");
    // Plain files, readable without us.
    let records = stage.cluster.node("n1")?.path(&format!("/mnt/{}/records/0", pair.volume("a")))?;
    let lines: Vec<String> = std::fs::read_to_string(records)?.lines().map(|k| format!("record 0 {k}")).collect();
    history.judge(&lines).clean()
}

/// The members are cut from each other while both see clients.
fn split(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let load = pair.load(2, 0)?;
    load.progress(50, PATIENCE)?;
    let pinned = tandem_tests::judge::Load::start(&pair.pod_address("b")?, 1, 10);
    let node = stage.cluster.node("n2")?;
    let container = pair.container("b", "replicator")?;
    node.cut(&container, &Cut::both(From::Port(7470)))?;
    load.progress(200, PATIENCE)?;
    std::thread::sleep(Duration::from_secs(12));
    load.progress(50, PATIENCE)?;
    ensure!(pinned.acknowledged() == 0, "both acknowledged");
    node.heal(&container)?;
    pair.wait_in_sync("a")?;
    ensure!(pinned.finish().acknowledged().count() == 0, "both acknowledged");
    let history = load.finish();
    history.judge(&pair.records()?).clean()
}

/// The pair's authority and certificates are made anew, as after a leak: the connection that stands goes on, and the next one
/// proves itself with the new ones.
fn certificates(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let epoch = pair.epoch()?;
    let load = pair.patient_load(2, 0)?;
    load.progress(50, PATIENCE)?;
    let authority = |name: &str| {
        pair.kubectl(&["get", "secret", name, "-o", "go-template={{index .data \"ca.crt\" | base64decode}}"])
    };
    let old = authority("orders-ca")?;
    pair.kubectl(&["delete", "secret", "orders-ca", "orders-a-tls", "orders-b-tls"])?;
    // It looks at once when it starts.
    stage.cluster.restart_operator()?;
    pair.wait(PATIENCE, "new certificates", |_| {
        let new = authority("orders-ca")?;
        Ok(new != old && authority("orders-a-tls")? == new && authority("orders-b-tls")? == new)
    })?;
    let new = authority("orders-ca")?;
    for member in ["a", "b"] {
        let uid = pair.pod(member)?["metadata"]["uid"].as_str().unwrap_or_default().to_string();
        let file = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~secret/tandem-tls/ca.crt");
        let node = pair.home(member)?;
        pair.wait(PATIENCE, "kubelet to hand the new certificates over", |_| {
            Ok(std::fs::read_to_string(node.path(&file)?)? == new)
        })?;
    }
    load.progress(50, PATIENCE)?;
    let history = load.finish();
    let verdict = history.judge(&pair.records()?);
    verdict.clean()?;
    ensure!(verdict.refused + verdict.unknown == 0, "{} writes failed", verdict.refused + verdict.unknown);
    ensure!(pair.condition("InSync")?.0 == "True", "the connection did not go on");
    cut_for(&pair, "b", From::Port(7470))?;
    pair.wait(PATIENCE, "the members to meet again", |pair| Ok(pair.state("a")? == "PrimaryActive"))?;
    pair.wait_in_sync("a")?;
    ensure!(pair.epoch()? == epoch, "leadership moved");
    pair.wait_equal()
}
