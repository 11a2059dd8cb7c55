//! What cannot work is refused, with a sentence that says why, before anything is made.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tandem_tests::pair::{PATIENCE, Pair, Wishes};

pub(crate) const CASES: &[Case] =
    &[("bad_specs_are_refused", bad_specs), ("unknown_requests_are_refused", unknown_requests)];

fn bad_specs(stage: &Stage<'_>) -> Result<()> {
    let container = |more: Value| {
        let mut base = json!({"name": "app", "image": "x", "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            base[key] = value;
        }
        json!({"template": {"spec": {"containers": [base]}}})
    };
    let pod = |more: Value| {
        let mut spec = json!({"containers": [{"name": "app", "image": "x", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]});
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            spec[key] = value;
        }
        json!({"template": {"spec": spec}})
    };
    let wrong: Vec<(&str, Value)> = vec![
        ("several writers", json!({"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteMany"]}}})),
        ("read-only volumes", json!({"volumeClaimTemplate": {"spec": {"accessModes": ["ReadOnlyMany"]}}})),
        ("no such member", json!({"preferredMaster": "c"})),
        ("no such protection", json!({"replication": {"protection": "Sometimes"}})),
        ("no such acknowledgement", json!({"replication": {"ackPolicy": "Perhaps"}})),
        ("a negative lag", json!({"replication": {"protection": "Async", "maxLagBytes": -1}})),
        ("a negative hold", json!({"replication": {"holdSeconds": -1}})),
        ("an interval of nothing", json!({"health": {"intervalMilliseconds": 0}})),
        ("no misses at all", json!({"health": {"missedLimit": 0}})),
        ("no such failover mode", json!({"failover": {"mode": "Maybe"}})),
        ("no such deletion policy", json!({"deletionPolicy": "Shred"})),
        ("no such management state", json!({"managementState": "Sleeping"})),
        ("founded by nobody", json!({"bootstrap": {"from": "c"}})),
        ("a word for a number", json!({"health": {"missedLimit": "five"}})),
        ("nobody may lead", json!({"members": {"a": {"electable": false}, "b": {"electable": false}}})),
        (
            "a sub-path of the data",
            container(json!({"volumeMounts": [{"name": "data", "mountPath": "/data", "subPath": "x"}]})),
        ),
        ("the data nowhere mounted", container(json!({"volumeMounts": []}))),
        (
            "the backing claim mounted",
            container(
                json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tandem-backing", "mountPath": "/b"}]}),
            ),
        ),
        ("our container's name", container(json!({"name": "replicator"}))),
        ("our gate's name", container(json!({"name": "gate"}))),
        ("a volume with our name", pod(json!({"volumes": [{"name": "tandem-control", "emptyDir": {}}]}))),
        ("a volume of its own named data", pod(json!({"volumes": [{"name": "data", "emptyDir": {}}]}))),
        ("a pod that is not restarted", pod(json!({"restartPolicy": "Never"}))),
        ("no containers", json!({"template": {"spec": {"containers": []}}})),
    ];
    // Without the kinds, or with a good pair refused, every refusal below would mean nothing.
    let good = Pair::apply_only(stage.cluster, stage.namespace, "good", &Wishes::default())?;
    good.kubectl(&["delete", "replicationpair", "good", "--wait=false"])?;
    let mut taken = Vec::new();
    for (what, spec) in &wrong {
        match Pair::apply_only(stage.cluster, stage.namespace, "wrong", &Wishes::spec(spec.clone())) {
            Ok(_) => {
                taken.push(*what);
                stage.cluster.kubectl(&[
                    "-n",
                    stage.namespace,
                    "delete",
                    "replicationpair",
                    "wrong",
                    "--wait=false",
                ])?;
            }
            Err(error) => println!(
                "  {what}: {}",
                format!("{error:#}").lines().last().unwrap_or_default().chars().take(200).collect::<String>()
            ),
        }
    }
    let long = "x".repeat(60);
    if Pair::apply_only(stage.cluster, stage.namespace, &long, &Wishes::default()).is_ok() {
        taken.push("a name too long for its pods");
    }
    ensure!(taken.is_empty(), "taken although they cannot work: {taken:?}");
    Ok(())
}

fn unknown_requests(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    pair.annotate("swichover", "t1")?;
    pair.wait_request("swichover", "t1", "Refused")?;
    pair.annotate("failback", "t2")?;
    // a leads already: there is nowhere to go back from.
    pair.wait(PATIENCE, "the needless failback to be answered", |pair| Ok(pair.request("failback", "t2")?.is_some()))?;
    ensure!(pair.active()? == "a", "a needless request moved the pair");
    Ok(())
}
