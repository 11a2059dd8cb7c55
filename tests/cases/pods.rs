//! Pods as users have them: several containers, users of their own, preparation, probes; and their ends, in any order.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tandem_tests::cluster::wait;
use tandem_tests::pair::{PATIENCE, Pair, Wishes};

pub(crate) const CASES: &[Case] = &[
    ("pods_have_the_usual_shapes", |stage| shapes(stage, true)),
    ("pods_have_users_of_their_own_namespace", |stage| shapes(stage, false)),
    ("pods_end_whatever_is_killed_first", ends),
];

/// Two containers and a preparation share the volume as a user of their own; probes look at it.
fn template(host_users: bool) -> Value {
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    let part = |name: &str, script: &str| {
        json!({"name": name, "image": "localhost/tandem-workload:test", "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", script], "volumeMounts": mounts})
    };
    let mut application = part("app", "exec /workload serve /data");
    application["ports"] = json!([{"name": "client", "containerPort": tandem_tests::workload::PORT}]);
    application["readinessProbe"] = json!({"tcpSocket": {"port": "client"}, "periodSeconds": 1});
    application["livenessProbe"] = json!({"exec": {"command": ["/bin/sh", "-c", "test -s /data/prepared"]}, "periodSeconds": 2, "timeoutSeconds": 10});
    json!({"spec": {
        "hostUsers": host_users,
        "securityContext": {"runAsUser": 1500, "runAsGroup": 1500, "runAsNonRoot": true, "fsGroup": 2000},
        "initContainers": [part("prepare", "echo $(id -u):$(id -g) >> /data/prepared")],
        "containers": [
            application,
            part("helper", "while echo beat >> /data/beats; do sleep 0.2; done"),
        ],
        "terminationGracePeriodSeconds": 2,
    }})
}

fn shapes(stage: &Stage<'_>, host_users: bool) -> Result<()> {
    let wishes = Wishes::spec(json!({"template": template(host_users)}));
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &wishes)?;
    pair.wait_in_sync("a")?;
    let load = pair.load(2, 0)?;
    load.progress(50, PATIENCE)?;
    let ready = |pair: &Pair, member: &str| -> Result<bool> {
        let pod = pair.pod(member)?;
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        Ok(statuses.len() == 2 && statuses.iter().all(|status| status["ready"] == true))
    };
    pair.wait(PATIENCE, "both containers to be ready", |pair| ready(pair, "a"))?;
    let shell = |member: &str, script: &str| {
        pair.kubectl(&["exec", &format!("orders-{member}-0"), "-c", "helper", "--", "/bin/sh", "-c", script])
    };
    ensure!(shell("a", "cat /data/prepared")?.trim() == "1500:1500", "the preparation ran as somebody else");
    let beats = |member: &str| Ok::<_, anyhow::Error>(shell(member, "wc -l < /data/beats")?.trim().parse::<u64>()?);
    let before = beats("a")?;
    pair.wait(PATIENCE, "the other container to write", |_| Ok(beats("a")? > before))?;
    let owner = shell("a", "stat -c %u:%g /data/beats")?;
    ensure!(owner.trim().starts_with("1500:"), "a file belongs to {owner}");

    // A pod that is only killed may be back sooner than its peer loses patience, and lead on.
    stage.cluster.kubectl(&["cordon", "n1"])?;
    pair.delete_killed("a")?;
    pair.wait_active("b")?;
    stage.cluster.kubectl(&["uncordon", "n1"])?;
    pair.wait_in_sync("b")?;
    pair.wait(PATIENCE, "both containers to be ready on the other node", |pair| ready(pair, "b"))?;
    load.progress(50, PATIENCE)?;
    // Prepared by each that led; what the first one wrote is seen by the second. (Kubelet may prepare a pod twice.)
    let prepared = shell("b", "cat /data/prepared")?;
    let lines = prepared.lines().count();
    ensure!(lines >= 2 && prepared.lines().all(|line| line == "1500:1500"), "not prepared on both: {prepared}");
    let then = beats("b")?;
    ensure!(then >= before, "{then} beats after {before}");
    pair.wait(PATIENCE, "the other container to write on", |_| Ok(beats("b")? > then))?;
    ensure!(shell("b", "stat -c %u:%g /data/beats")? == owner, "the owner changed on the way");
    let history = load.finish();
    history.judge(&pair.records()?).clean()
}

/// The serving process, the pod and the plugin of the master's node, killed one right after the other; each of them first
/// once, and last once. (The plugin is started again after pauses that grow, so each more order takes a minute.)
fn ends(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let load = pair.load(2, 0)?;
    let orders = [[0, 1, 2], [1, 2, 0], [2, 0, 1]];
    for order in orders {
        load.progress(50, PATIENCE)?;
        let master = pair.active()?;
        let gone = pair.pod(&master)?["metadata"]["uid"].clone();
        for part in order {
            match part {
                0 => kill_process(&pair, &master)?,
                1 => {
                    let pod = format!("orders-{master}-0");
                    pair.kubectl(&["delete", "pod", &pod, "--wait=false", "--ignore-not-found"])?;
                }
                _ => kill_plugin(stage, &pair.home(&master)?.name)?,
            }
        }
        pair.wait(PATIENCE, "the pod to be gone", |pair| {
            // Its name may already be used again.
            Ok(pair.pod(&master).map_or(true, |pod| pod["metadata"]["uid"] != gone))
        })?;
        pair.wait(PATIENCE, "the pair to be whole again", |pair| {
            Ok(pair.condition("InSync")?.0 == "True" && pair.state(&pair.active()?)? == "PrimaryActive")
        })?;
    }
    let history = load.finish();
    history.judge(&pair.records()?).clean()?;
    pair.wait_equal()
}

/// The process that serves the volume; its supervisor starts another.
fn kill_process(pair: &Pair, member: &str) -> Result<()> {
    // It may have ended already, with its pod.
    let Ok(container) = pair.container(member, "replicator") else { return Ok(()) };
    pair.home(member)?.signal(&container, "serve", Signal::KILL).map(drop).or(Ok(()))
}

fn kill_plugin(stage: &Stage<'_>, node: &str) -> Result<()> {
    let on = format!("spec.nodeName={node}");
    let chosen = ["-l", "app.kubernetes.io/component=node", "--field-selector", &on];
    let one = "jsonpath={.items[0].status.containerStatuses[0].containerID}";
    let words = [&["-n", "tandem-system", "get", "pods"], &chosen[..], &["-o", one]].concat();
    let ours = stage.cluster.node(node)?;
    // Kubelet may still tell of one that was killed before.
    wait(PATIENCE, &format!("the plugin on {node} to run, and die"), || {
        stage.cluster.kubectl(&words).is_ok_and(|container| ours.kill_container(container.trim()).is_ok())
    })
}
