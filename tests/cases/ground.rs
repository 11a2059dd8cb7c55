//! The ground that the other scenarios stand on: that trouble is what it says it is, shown with a plain pod on a plain volume.

use crate::{Case, Stage};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use tandem_tests::cluster::node::Node;
use tandem_tests::cluster::trouble::{Cut, From, Keeps};
use tandem_tests::cluster::wait;
use tandem_tests::judge::Conversation;

pub(crate) const CASES: &[Case] = &[
    ("ground_power_failure_takes_what_was_not_synced", power_failure),
    ("ground_links_are_cut_one_way_and_healed", links),
    ("ground_processes_stand_still_and_end", processes),
    ("ground_a_volume_fills_up", fills),
    ("ground_applications_run", applications),
    ("ground_the_api_goes_and_comes", api),
];

const LIMIT: Duration = Duration::from_secs(60);

/// A pod of the test application on n1, with a volume and a Service, all named `plain`.
struct Plain<'a> {
    stage: &'a Stage<'a>,
    node: Node,
    volume: String,
}

impl<'a> Plain<'a> {
    fn start(stage: &'a Stage<'a>) -> Result<Self> {
        let (namespace, node) = (stage.namespace, stage.cluster.node("n1")?);
        let volume = format!("{namespace}-plain");
        node.create_volume(&volume, 64, "")?;
        wait(LIMIT, "the namespace's account", || {
            stage.cluster.kubectl(&["-n", namespace, "get", "serviceaccount", "default"]).is_ok()
        })?;
        stage.cluster.apply(&format!(
            "{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: plain, namespace: {namespace}}},
              spec: {{storageClassName: tandem-local, volumeName: {volume}, accessModes: [ReadWriteOncePod], resources: {{requests: {{storage: 64Mi}}}}}}}}
---
{{apiVersion: v1, kind: Service, metadata: {{name: plain, namespace: {namespace}}}, spec: {{selector: {{app: plain}}, ports: [{{port: 8080}}]}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: plain, namespace: {namespace}, labels: {{app: plain}}}}, spec: {{terminationGracePeriodSeconds: 0,
  containers: [{{name: app, image: 'localhost/tandem-workload:test', imagePullPolicy: Never, command: [/workload, serve, /data],
    volumeMounts: [{{name: data, mountPath: /data}}]}}],
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: plain}}}}]}}}}"
        ))?;
        let plain = Self { stage, node, volume };
        plain.wait_serving()?;
        Ok(plain)
    }

    fn get(&self, kind: &str, path: &str) -> Result<String> {
        self.stage.cluster.kubectl(&[
            "-n",
            self.stage.namespace,
            "get",
            kind,
            "plain",
            "-o",
            &format!("jsonpath={path}"),
        ])
    }

    fn container(&self) -> Result<String> {
        self.get("pod", "{.status.containerStatuses[0].containerID}")
    }

    fn ask(&self, line: &str) -> Result<String> {
        Conversation::open(&self.address()?, Duration::from_secs(20))?.ask(line)
    }

    fn address(&self) -> Result<String> {
        self.get("service", "{.spec.clusterIP}")
    }

    /// Nobody answers within a second.
    fn is_silent(&self) -> Result<bool> {
        let address = self.address()?;
        Ok(Conversation::open(&address, Duration::from_secs(1)).and_then(|mut open| open.ask("who")).is_err())
    }

    fn wait_serving(&self) -> Result<()> {
        wait(LIMIT, "the pod to serve", || self.ask("who").is_ok_and(|answer| answer.starts_with("ok")))
    }
}

fn power_failure(stage: &Stage<'_>) -> Result<()> {
    let plain = Plain::start(stage)?;
    ensure!(plain.ask("append c 1")?.starts_with("ok"), "not written");
    let unsynced = |node: &Node| node.path(&format!("/mnt/{}/unsynced", plain.volume));
    let written = Instant::now();
    std::fs::write(unsynced(&plain.node)?, "nobody asked for it to stay").context("write beside the application")?;
    plain.node.kill(Keeps::OnlySynced)?;
    // The file system commits by itself every five seconds.
    let killed_after = written.elapsed();
    ensure!(plain.is_silent()?, "a dead node answers");
    plain.node.start()?;
    ensure!(killed_after < Duration::from_secs(3), "waited {killed_after:?} for a node to lose power");
    ensure!(!unsynced(&plain.node)?.exists(), "what no fsync asked for outlived a power failure");
    plain.wait_serving()?;
    let records = Conversation::open(&plain.address()?, LIMIT)?.ask_all("read")?;
    ensure!(records == ["record c 1"], "{records:?}");
    std::fs::write(unsynced(&plain.node)?, "the kernel lives on").context("write beside the application")?;
    plain.node.kill(Keeps::Everything)?;
    plain.node.start()?;
    ensure!(unsynced(&plain.node)?.exists(), "a node whose processes died lost what its kernel held");
    plain.wait_serving()
}

fn links(stage: &Stage<'_>) -> Result<()> {
    let plain = Plain::start(stage)?;
    let container = plain.container()?;
    for cut in [
        Cut::both(From::Everybody),
        Cut { from: From::Everybody, sending: true, receiving: false },
        Cut { from: From::Everybody, sending: false, receiving: true },
        Cut::both(From::Port(8080)),
    ] {
        plain.node.cut(&container, &cut)?;
        ensure!(plain.is_silent()?, "an answer came through {cut:?}");
        plain.node.heal(&container)?;
        plain.wait_serving()?;
    }
    plain.node.cut(&container, &Cut::both(From::Api))?;
    plain.node.heal(&container)?;
    plain.node.set_link(false)?;
    ensure!(plain.is_silent()?, "an answer came through a link that is down");
    plain.node.set_link(true)?;
    plain.wait_serving()
}

fn processes(stage: &Stage<'_>) -> Result<()> {
    let plain = Plain::start(stage)?;
    let uid = plain.get("pod", "{.metadata.uid}")?;
    plain.node.freeze_pod(&uid, true)?;
    ensure!(plain.is_silent()?, "a frozen pod answers");
    plain.node.freeze_pod(&uid, false)?;
    plain.wait_serving()?;
    plain.node.kill_container(&plain.container()?)?;
    wait(LIMIT, "the container to be started again", || {
        plain.get("pod", "{.status.containerStatuses[0].restartCount}").is_ok_and(|count| count == "1")
    })?;
    plain.wait_serving()?;
    plain.node.kill_pod(&uid)?;
    wait(LIMIT, "the pod's containers to be started again", || {
        plain.get("pod", "{.status.containerStatuses[0].restartCount}").is_ok_and(|count| count == "2")
    })?;
    plain.wait_serving()
}

fn fills(stage: &Stage<'_>) -> Result<()> {
    let plain = Plain::start(stage)?;
    plain.node.fill_volume(&plain.volume)?;
    let answer = plain.ask("put large 1000000")?;
    ensure!(answer.contains("No space left"), "{answer}");
    plain.node.free_volume(&plain.volume)?;
    let answer = plain.ask("put large 1000000")?;
    ensure!(answer.starts_with("ok"), "{answer}");
    Ok(())
}

fn applications(stage: &Stage<'_>) -> Result<()> {
    let plain = Plain::start(stage)?;
    let mut talk = Conversation::open(&plain.address()?, LIMIT)?;
    for mode in ["wal", "delete"] {
        for k in 0..3 {
            let answer = talk.ask(&format!("insert {mode} {k}"))?;
            ensure!(answer.starts_with("ok"), "{answer}");
        }
        let rows = talk.ask_all(&format!("rows {mode}"))?;
        ensure!(rows == ["row 0", "row 1", "row 2"], "{rows:?}");
    }
    plain.node.slow_link(Some(8))?;
    let began = Instant::now();
    ensure!(talk.ask_all("list")?.is_empty(), "files from nowhere");
    plain.node.slow_link(None)?;
    ensure!(began.elapsed() < LIMIT, "a slow link is no cut one");
    Ok(())
}

fn api(stage: &Stage<'_>) -> Result<()> {
    let plain = Plain::start(stage)?;
    let address = plain.address()?;
    stage.cluster.stop_api_server()?;
    let began = Instant::now();
    let asked = Conversation::open(&address, Duration::from_secs(20)).and_then(|mut open| open.ask("who"));
    ensure!(stage.cluster.kubectl(&["get", "nodes"]).is_err(), "the API server answers");
    stage.cluster.resume_api_server()?;
    println!("  the API server was away for {:.1} s", began.elapsed().as_secs_f64());
    ensure!(asked?.starts_with("ok"), "the pod went with the API server");
    plain.wait_serving()
}
