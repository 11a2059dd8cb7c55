//! The product in a few minutes: a local Kubernetes, the chart, PostgreSQL on a pair, a killed node, the takeover, the way
//! home, and a verdict that counts every acknowledged row. `cargo demo -- down` removes the cluster.

#![allow(clippy::unwrap_used)] // a writer that panicked ends the demo

use anyhow::{Context, Result, bail};
use serde_json::json;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tandem_tests::cluster::trouble::Keeps;
use tandem_tests::cluster::{Cluster, built};
use tandem_tests::pair::{Pair, Wishes, postgresql, postgresql_in};

const NAMESPACE: &str = "demo";

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        None => play(),
        Some("down") => Cluster::here().down().map(|()| true),
        Some(other) => Err(anyhow::anyhow!("`{other}` is not understood: `cargo demo`, or `cargo demo -- down`")),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the demo could not go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What happened when, for the timeline at the end.
struct Story {
    began: Instant,
    lines: Vec<(Duration, String)>,
}

impl Story {
    fn tell(&mut self, what: impl Into<String>) {
        let (at, what) = (self.began.elapsed(), what.into());
        println!("{:7.1} s  {what}", at.as_secs_f64());
        self.lines.push((at, what));
    }
}

fn play() -> Result<bool> {
    let mut story = Story { began: Instant::now(), lines: Vec::new() };
    if std::env::var_os("TEST_KUBECONFIG").is_none() {
        println!("Programs are built and a cluster started; the first time this takes about a quarter of an hour.");
    }
    let cluster = Cluster::here();
    if cluster.is_foreign() {
        tandem_tests::images::install(&cluster)?;
    } else {
        let by_hand = built("cluster")?;
        step(Command::new(&by_hand).arg("up"))?;
        story.tell("a Kubernetes of two nodes runs");
        step(Command::new(&by_hand).arg("install"))?;
    }
    story.tell("the chart is installed");

    cluster.enter()?;
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true"])?;
    cluster.delete_volumes(&format!("{NAMESPACE}-"))?;
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    let pair = if cluster.is_foreign() { elsewhere(&cluster)? } else { here(&cluster)? };
    story.tell("pair `orders` is applied: PostgreSQL, its files on two nodes");
    pair.wait_in_sync("a")?;
    pair.wait_sql()?;
    let home = pair.pod("a")?["spec"]["nodeName"].as_str().unwrap_or_default().to_string();
    story.tell(format!("both members hold everything; member a leads on node {home}"));
    print!("{}", pair.kubectl(&["get", "replicationpairs"])?);

    pair.sql("create table ledger (k bigint primary key, at timestamptz default now())")?;
    let writer = Writer::start(&pair)?;
    writer.wait_for(200)?;
    let killed = Instant::now();
    if cluster.is_foreign() {
        // Its node is not ours to break.
        story.tell(format!(
            "{} rows are acknowledged; member a is killed, and not let back on {home}",
            writer.acknowledged()
        ));
        cluster.kubectl(&["cordon", &home])?;
        pair.kubectl(&["delete", "pod", "orders-a-0", "--grace-period=0", "--force"])?;
    } else {
        story.tell(format!(
            "{} rows are acknowledged; node {home} is killed, with everything in it",
            writer.acknowledged()
        ));
        cluster.node(&home)?.kill(Keeps::OnlySynced)?;
    }
    let before = writer.acknowledged();
    writer.wait_for(before + 200)?;
    let outage = writer.outage(killed);
    story.tell(format!("member b serves: no write was acknowledged for {:.1} s", outage.as_secs_f64()));
    if cluster.is_foreign() {
        cluster.kubectl(&["uncordon", &home])?;
    } else {
        cluster.node(&home)?.start()?;
    }
    story.tell(format!("node {home} is back"));
    pair.wait_in_sync("b")?;
    story.tell("member a holds everything again, as the replicant");
    pair.annotate("failback", &format!("demo-{}", std::process::id()))?;
    let asked = Instant::now();
    pair.wait_in_sync("a")?;
    pair.wait_sql()?;
    story.tell(format!("one annotation later member a leads again ({:.1} s)", asked.elapsed().as_secs_f64()));
    let before = writer.acknowledged();
    writer.wait_for(before + 100)?;
    let rows = writer.finish();

    let found: Vec<u64> =
        pair.sql("select k from ledger order by k")?.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let missing: Vec<u64> = rows.iter().copied().filter(|row| found.binary_search(row).is_err()).collect();
    println!("\ntimeline");
    for (at, line) in &story.lines {
        println!("{:7.1} s  {line}", at.as_secs_f64());
    }
    println!("\n{} rows acknowledged, {} of them missing", rows.len(), missing.len());
    if !missing.is_empty() {
        println!("FAILED: acknowledged rows are missing, the first is {:?}", missing.first());
    }
    println!(
        "{}",
        if cluster.is_foreign() {
            "The namespace `demo` and the chart stay: look with `kubectl get pairs -A`."
        } else {
            "The cluster stays up: `cargo run -p tandem-tests --bin cluster -- kubectl get pairs -A`; `cargo demo -- down` removes it."
        }
    );
    Ok(missing.is_empty())
}

/// On our own cluster, with volumes of its nodes.
fn here(cluster: &Cluster) -> Result<Pair> {
    let wishes = Wishes { mebibytes: 1024, container: postgresql(), spec: user_of_its_own() };
    Pair::apply(cluster, NAMESPACE, "orders", &wishes)
}

/// On the cluster that `TEST_KUBECONFIG` names: with its storage (`TEST_STORAGE_CLASS`, or the default class), and an image
/// that it can pull (`TEST_POSTGRES_IMAGE`).
fn elsewhere(cluster: &Cluster) -> Result<Pair> {
    let image = std::env::var("TEST_POSTGRES_IMAGE").unwrap_or_else(|_| "postgres:17".into());
    let mut claim = json!({
        "accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "500Mi"}},
    });
    if let Ok(class) = std::env::var("TEST_STORAGE_CLASS") {
        claim["storageClassName"] = json!(class);
    }
    let mut spec = user_of_its_own();
    spec["template"]["spec"]["containers"] = json!([postgresql_in(&image, "IfNotPresent")]);
    spec["volumeClaimTemplate"] = json!({"spec": claim});
    spec["preferredMaster"] = json!("a");
    let pair = Pair { cluster: cluster.clone(), namespace: NAMESPACE.into(), name: "orders".into() };
    pair.apply_manifest(&json!({"apiVersion": "tandem.dev/v1alpha1", "kind": "ReplicationPair",
        "metadata": {"name": pair.name, "namespace": NAMESPACE}, "spec": spec}))?;
    pair.start_client(&image)?;
    Ok(pair)
}

fn user_of_its_own() -> serde_json::Value {
    json!({"template": {"spec": {"securityContext": {"fsGroup": 999}}}})
}

fn step(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {:?}", command.get_program()))?;
    if status.success() { Ok(()) } else { bail!("`{}`: {status}", tandem_tests::shell::shown(command)) }
}

/// Inserts rows one by one through the Service, and remembers those that were acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    /// Which row, and when.
    acknowledged: Arc<std::sync::Mutex<Vec<(u64, Instant)>>>,
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    fn start(pair: &Pair) -> Result<Self> {
        let pair = Pair { cluster: pair.cluster.clone(), namespace: pair.namespace.clone(), name: pair.name.clone() };
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(std::sync::Mutex::new(Vec::new()));
        let thread = std::thread::spawn({
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            move || {
                for row in 0.. {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    // A row that was not acknowledged may be there or not: it is not asked for again.
                    if pair.sql(&format!("insert into ledger (k) values ({row})")).is_ok() {
                        acknowledged.lock().unwrap().push((row, Instant::now()));
                    }
                }
            }
        });
        Ok(Self { stop, acknowledged, thread })
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// The longest time without an acknowledgement that ends after this moment.
    fn outage(&self, after: Instant) -> Duration {
        let rows = self.acknowledged.lock().unwrap();
        let pauses = rows.windows(2).filter(|pair| pair[1].1 > after).map(|pair| pair[1].1 - pair[0].1);
        pauses.max().unwrap_or_default()
    }

    fn wait_for(&self, rows: usize) -> Result<()> {
        tandem_tests::cluster::wait(tandem_tests::pair::PATIENCE, "rows to be acknowledged", || {
            self.acknowledged() >= rows
        })
    }

    fn finish(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap();
        let rows = std::mem::take(&mut *self.acknowledged.lock().unwrap());
        rows.into_iter().map(|(row, _)| row).collect()
    }
}
