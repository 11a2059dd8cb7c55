//! Real applications on a pair: PostgreSQL, killed and taken over under load.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};
use tandem_tests::cluster::trouble::Keeps;
use tandem_tests::pair::{PATIENCE, Pair, Wishes};

pub(crate) const CASES: &[Case] = &[("postgresql_is_taken_over", postgresql)];

/// A database server as users run it: its own user, its folder made by its own tools on first start.
pub(crate) fn server() -> serde_json::Value {
    json!({
        "name": "postgres", "image": "localhost/tandem-workload:test", "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", "test -s /data/db/PG_VERSION || { mkdir -p /data/db && chmod 700 /data/db && initdb -D /data/db -U postgres -A trust --data-checksums --no-locale -E UTF8 && echo \"host all all all trust\" >> /data/db/pg_hba.conf; } && exec postgres -D /data/db -c listen_addresses='*' -c unix_socket_directories=/tmp"],
        "securityContext": {"runAsUser": 999, "runAsGroup": 999},
        "ports": [{"name": "sql", "containerPort": 5432}],
        "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    })
}

fn sql(pair: &Pair, text: &str) -> Result<String> {
    pair.run("psql", &["-h", &pair.address()?, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-qAtc", text])
}

fn postgresql(stage: &Stage<'_>) -> Result<()> {
    let wishes = Wishes {
        mebibytes: 1536,
        container: server(),
        spec: json!({"template": {"spec": {"securityContext": {"fsGroup": 999}}}}),
    };
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &wishes)?;
    pair.wait_in_sync("a")?;
    pair.wait(PATIENCE, "PostgreSQL to answer", |pair| Ok(sql(pair, "select 1")?.trim() == "1"))?;
    sql(&pair, "create table ledger (k bigint primary key)")?;
    let address = pair.address()?;
    pair.run("pgbench", &["-h", &address, "-U", "postgres", "-i", "-q", "-s", "2", "postgres"])?;
    let mut bench = pair.command("pgbench");
    let mut bench = bench
        .args(["-h", &address, "-U", "postgres", "-c", "4", "-T", "600", "postgres"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let mut acknowledged = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        sql(&pair, &format!("insert into ledger values ({acknowledged})"))?;
        acknowledged += 1;
    }
    let node = stage.cluster.node("n1")?;
    node.kill(Keeps::OnlySynced)?;
    pair.wait_active("b")?;
    pair.wait(PATIENCE, "PostgreSQL to answer on the other side", |pair| Ok(sql(pair, "select 1")?.trim() == "1"))?;
    bench.kill().ok();
    bench.wait()?;
    let there = sql(&pair, "select count(*), coalesce(max(k), -1) from ledger")?;
    ensure!(
        there.trim().starts_with(&format!("{acknowledged}|")),
        "{acknowledged} rows were acknowledged, there are {there}"
    );
    let sums = sql(
        &pair,
        "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history) and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)",
    )?;
    ensure!(sums.trim() == "t", "the sums of pgbench do not agree");
    sql(&pair, "create extension if not exists amcheck")?;
    pair.run("pg_amcheck", &["-h", &address, "-U", "postgres", "--heapallindexed", "postgres"])?;
    node.start()?;
    pair.wait_in_sync("b")?;
    pair.annotate("failback", "home")?;
    pair.wait_request("failback", "home", "Completed")?;
    pair.wait_in_sync("a")?;
    pair.wait(PATIENCE, "PostgreSQL to answer at home", |pair| Ok(sql(pair, "select 1")?.trim() == "1"))?;
    let there = sql(&pair, "select count(*) from ledger")?;
    ensure!(
        there.trim() == acknowledged.to_string(),
        "{acknowledged} rows were acknowledged, at home there are {there}"
    );
    Ok(())
}
