//! Random faults on a cluster that runs: `cargo verify -- --soak MINUTES` starts one and calls this.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;
use tandem_tests::cluster::{Cluster, repository};
use tandem_tests::faults::figures::Results;
use tandem_tests::faults::{Plan, report, run};

#[derive(Parser)]
#[command(about = "Random faults on a cluster that runs")]
struct Arguments {
    #[arg(long, default_value_t = 8)]
    minutes: u64,
    /// What the faults follow from; drawn from the day if it is not said.
    #[arg(long)]
    seed: Option<u64>,
    /// So many pairs at once.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Only kinds of faults whose names contain this word.
    #[arg(long)]
    only: Vec<String>,
    /// Also writes the page of the results into the repository.
    #[arg(long)]
    keep: bool,
    /// Plays nothing: makes the page from the results of earlier runs.
    #[arg(long)]
    page_of: Vec<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.page_of.is_empty() {
        let read = |path: &PathBuf| -> Result<Results> {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))
        };
        return keep(&arguments.page_of.iter().map(read).collect::<Result<Vec<_>>>()?);
    }
    let cluster = Cluster::here();
    ensure!(
        cluster.is_up() && !cluster.is_foreign(),
        "no cluster runs that may be broken: `cargo verify -- --soak 60`"
    );
    cluster.enter()?;
    let day =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    let seed = arguments.seed.unwrap_or(day);
    let again = format!("cargo verify -- --soak {} --seed {seed} --pairs {}", arguments.minutes, arguments.pairs);
    println!("seed {seed}; to play it again: {again}");
    let plan = Plan {
        seed,
        time: Duration::from_secs(arguments.minutes * 60),
        pairs: arguments.pairs,
        only: arguments.only.clone(),
    };
    let results = run(&cluster, &plan)?;
    println!("{}", report::page(std::slice::from_ref(&results)));
    if arguments.keep {
        keep(std::slice::from_ref(&results))?;
    }
    if results.failures.is_empty() {
        return Ok(());
    }
    let logs = tandem_tests::faults::folder(&cluster, seed);
    bail!(
        "{} failures with seed {seed} (again: {again}; logs in {}): {}",
        results.failures.len(),
        logs.display(),
        results.failures.join("; ")
    )
}

fn keep(results: &[Results]) -> Result<()> {
    let file = repository().join("tests/RESULTS.md");
    std::fs::write(&file, report::page(results)).with_context(|| format!("write {}", file.display()))
}
