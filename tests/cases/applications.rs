//! Real applications on a pair: PostgreSQL, killed and taken over under load.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};
use tandem_tests::cluster::trouble::Keeps;
use tandem_tests::pair::{Pair, Wishes};

pub(crate) const CASES: &[Case] = &[("postgresql_is_taken_over", postgresql)];

fn postgresql(stage: &Stage<'_>) -> Result<()> {
    let wishes = Wishes {
        mebibytes: 1536,
        container: tandem_tests::pair::postgresql(),
        spec: json!({"template": {"spec": {"securityContext": {"fsGroup": 999}}}}),
    };
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &wishes)?;
    pair.wait_in_sync("a")?;
    pair.wait_sql()?;
    pair.sql("create table ledger (k bigint primary key)")?;
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
        pair.sql(&format!("insert into ledger values ({acknowledged})"))?;
        acknowledged += 1;
    }
    let node = stage.cluster.node("n1")?;
    node.kill(Keeps::OnlySynced)?;
    pair.wait_active("b")?;
    pair.wait_sql()?;
    bench.kill().ok();
    bench.wait()?;
    let there = pair.sql("select count(*), coalesce(max(k), -1) from ledger")?;
    ensure!(
        there.trim().starts_with(&format!("{acknowledged}|")),
        "{acknowledged} rows were acknowledged, there are {there}"
    );
    let sums = pair.sql("select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history) and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)",
    )?;
    ensure!(sums.trim() == "t", "the sums of pgbench do not agree");
    pair.sql("create extension if not exists amcheck")?;
    pair.run("pg_amcheck", &["-h", &address, "-U", "postgres", "--heapallindexed", "postgres"])?;
    node.start()?;
    pair.wait_in_sync("b")?;
    pair.annotate("failback", "home")?;
    pair.wait_request("failback", "home", "Completed")?;
    pair.wait_in_sync("a")?;
    pair.wait_sql()?;
    let there = pair.sql("select count(*) from ledger")?;
    ensure!(
        there.trim() == acknowledged.to_string(),
        "{acknowledged} rows were acknowledged, at home there are {there}"
    );
    Ok(())
}
