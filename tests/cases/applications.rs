//! Real applications on a pair: PostgreSQL, killed and taken over under load.

use crate::{Case, Stage};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};
use tandem_tests::cluster::trouble::Keeps;
use tandem_tests::pair::{Pair, Wishes};

pub(crate) const CASES: &[Case] = &[
    ("postgresql_is_taken_over", postgresql),
    ("sqlite_wal_is_taken_over", |stage| sqlite(stage, "wal")),
    ("sqlite_rollback_journal_is_taken_over", |stage| sqlite(stage, "delete")),
];

/// SQLite in one of its journal modes, its process killed with its node in the middle of its work.
fn sqlite(stage: &Stage<'_>, mode: &str) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    let mut talk = pair.converse()?;
    let insert = |talk: &mut tandem_tests::judge::Conversation, k: u64| {
        let answer = talk.ask(&format!("insert {mode} {k}"))?;
        ensure!(answer.starts_with("ok"), "row {k} was not taken: {answer}");
        Ok(())
    };
    let mut acknowledged: Vec<u64> = Vec::new();
    for k in 0..100 {
        insert(&mut talk, k)?;
        acknowledged.push(k);
    }
    talk.be_patient(Duration::from_secs(5))?;
    let writer = {
        let mode = mode.to_string();
        std::thread::spawn(move || {
            let mut more = Vec::new();
            for k in 100.. {
                match talk.ask(&format!("insert {mode} {k}")) {
                    Ok(answer) if answer.starts_with("ok") => more.push(k),
                    _ => break,
                }
            }
            more
        })
    };
    std::thread::sleep(Duration::from_secs(1));
    let node = stage.cluster.node("n1")?;
    node.kill(Keeps::OnlySynced)?;
    acknowledged.extend(writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?);
    pair.wait_active("b")?;
    let mut talk = pair.converse()?;
    let next = acknowledged.len() as u64 + 10;
    insert(&mut talk, next)?;
    acknowledged.push(next);
    let rows: Vec<u64> = talk
        .ask_all(&format!("rows {mode}"))?
        .iter()
        .filter_map(|line| line.strip_prefix("row ")?.parse().ok())
        .collect();
    let lost: Vec<&u64> = acknowledged.iter().filter(|k| rows.binary_search(k).is_err()).collect();
    ensure!(
        lost.is_empty(),
        "of {} acknowledged rows {} are lost, the first {:?}",
        acknowledged.len(),
        lost.len(),
        lost.first()
    );
    println!("  {} rows acknowledged with journal mode {mode}, none lost", acknowledged.len());
    node.start()?;
    pair.wait_in_sync("b")?;
    pair.wait_equal()
}

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
