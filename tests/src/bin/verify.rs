//! Every check of the project, one after the other, each with its time; the last line says how many held.
//! `cargo verify -- --only NAME` plays one scenario (or runs one step), `--skip-cluster` leaves the cluster out.
//! `cargo verify -- --soak MINUTES` plays random faults for so long, and nothing else; `--seed` plays those of a seed again.

use anyhow::{Context, Result, bail};
use clap::Parser;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::Instant;
use tandem_tests::cluster::{Cluster, built, cache, components, repository};

#[derive(Parser)]
#[command(about = "Every check of the project")]
struct Arguments {
    /// Only the steps and scenarios whose names contain this word.
    #[arg(long)]
    only: Vec<String>,
    /// Leaves out what needs a cluster. For a quick look; never in CI.
    #[arg(long)]
    skip_cluster: bool,
    /// Also the model's large runs: some minutes more.
    #[arg(long)]
    deep: bool,
    /// How long each fuzz target runs.
    #[arg(long, default_value_t = 60, value_name = "N")]
    fuzz_seconds: u64,
    /// Leaves the cluster up afterwards.
    #[arg(long)]
    keep: bool,
    /// Only random faults, for so many minutes; the results become the repository's page of them. `--only` chooses kinds, `--pairs` how many pairs.
    #[arg(long)]
    soak: Option<u64>,
    /// The seed that the faults follow from; the day's number if it is not said.
    #[arg(long)]
    seed: Option<u64>,
    /// Pairs under faults at once.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
}

/// Worlds that the simulation plays in every run.
const SEEDS: u64 = 2_000;
/// How long random faults are played when nobody says how long.
const SAMPLE_MINUTES: u64 = 5;

/// What happened to a step.
struct Tally {
    passed: usize,
    failed: Vec<String>,
    only: Vec<String>,
}

impl Tally {
    fn step(&mut self, name: &str, run: impl FnOnce() -> Result<()>) {
        if !self.only.is_empty() && !self.only.iter().any(|word| name.contains(word.as_str())) {
            return;
        }
        eprintln!("==== {name}");
        let started = Instant::now();
        let result = run();
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                eprintln!("==== {name}: passed in {seconds:.1} s");
                self.passed += 1;
            }
            Err(error) => {
                eprintln!("==== {name}: FAILED after {seconds:.1} s: {error:#}");
                self.failed.push(format!("{name}: {error:#}"));
            }
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.skip_cluster && std::env::var_os("REQUIRE_CLUSTER").is_some_and(|value| value == "1") {
        eprintln!("REQUIRE_CLUSTER=1 forbids --skip-cluster");
        return ExitCode::FAILURE;
    }
    if !arguments.keep {
        end_when_interrupted(vec![Cluster::here(), second()]);
    }
    let mut tally = Tally { passed: 0, failed: Vec::new(), only: arguments.only.clone() };
    let mut stage = Stage::default();
    if let Some(minutes) = arguments.soak {
        tally.only.clear();
        let mut words = vec!["--pairs".to_string(), arguments.pairs.to_string()];
        words.extend(arguments.seed.iter().flat_map(|seed| ["--seed".to_string(), seed.to_string()]));
        words.extend(arguments.only.iter().flat_map(|word| ["--only".to_string(), word.clone()]));
        // What a part of the faults says is not the results.
        words.extend(arguments.only.is_empty().then(|| "--keep".to_string()));
        tally.step("random faults", || faults(&mut stage, minutes, &words));
        return finish(tally, stage, &arguments);
    }
    tally.step("format", || cargo(&["fmt", "--all", "--check"]));
    tally.step("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]));
    tally.step("packages", || components::packages().context("install what the tests need"));
    tally.step("unit tests", || {
        let mut words =
            vec!["test".to_string(), "--workspace".into(), "--quiet".into(), "--lib".into(), "--bins".into()];
        for test in integration_tests()? {
            words.extend(["--test".to_string(), test]);
        }
        words.extend(["--".to_string(), "--skip".into(), "simulation::".into()]);
        cargo(&words.iter().map(String::as_str).collect::<Vec<_>>())
    });
    tally.step("simulation", || simulation(if arguments.deep { 100_000 } else { SEEDS }));
    tally.step("model of the protocol", || {
        let deep: &[&str] = if arguments.deep { &["--deep"] } else { &[] };
        // It is a long calculation, but no image: optimised, and linked without waiting for the whole program.
        let quick = ["--config", "profile.release.lto='off'"];
        let model = ["run", "--quiet", "--release", "--package", "tandem-protocol", "--features", "mutations"];
        cargo(&[&model[..], &quick, &["--example", "model", "--"], deep].concat())
    });
    tally.step("posix", || posix(arguments.deep));
    tally.step("programs", programs);
    tally.step("large trees", || large(arguments.deep));
    tally.step("fuzz", || fuzz(arguments.fuzz_seconds, arguments.deep));
    tally.step("kinds as YAML are current", || {
        run(Command::new(built("crdgen")?).current_dir(repository()).arg("--check"))
    });
    tally.step("dependencies", dependencies);
    if !arguments.skip_cluster {
        tally.step("chart", chart);
        tally.step("scenarios", || scenarios(&mut stage, &arguments));
        let sample = ["--pairs", "4", "--seed", "1"].map(String::from);
        tally.step("random faults", || faults(&mut stage, SAMPLE_MINUTES, &sample));
        // A single scenario: its name is no step's name.
        if tally.passed + tally.failed.len() == 0 {
            tally.only.clear();
            tally.step("scenarios", || scenarios(&mut stage, &arguments));
        }
    }
    finish(tally, stage, &arguments)
}

fn finish(mut tally: Tally, mut stage: Stage, arguments: &Arguments) -> ExitCode {
    if !arguments.keep {
        tally.only.clear();
        for cluster in stage.ready.clone() {
            tally.step("a cluster ends", || stage.end(&cluster));
        }
    }
    // Once more, with the reasons: of a long run people often see only the end.
    for failure in &tally.failed {
        println!("failed: {failure}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed.len());
    if tally.failed.is_empty() && tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ctrl-C ends the cluster too. A run that is killed outright leaves it to the next one, which puts it away first.
fn end_when_interrupted(clusters: Vec<Cluster>) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if runtime.is_ok_and(|runtime| runtime.block_on(tokio::signal::ctrl_c()).is_ok()) {
            eprintln!("interrupted: ending the clusters");
            for error in clusters.iter().filter_map(|cluster| cluster.down().err()) {
                eprintln!("{error:#}");
            }
            std::process::exit(130);
        }
    });
}

/// The names of all integration tests but the scenarios, which need a cluster. Named one by one so that one selection of
/// packages serves every step: another one would compile all dependencies again.
fn integration_tests() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for package in ["crds", "operator", "replicator", "replicator/node", "replicator/protocol", "replicator/fuzz", "."]
    {
        let folder = repository().join(package).join("tests");
        if !folder.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let name = entry.context("list integration tests")?.file_name().to_string_lossy().into_owned();
            found.extend(name.strip_suffix(".rs").map(String::from));
        }
    }
    found.sort();
    Ok(found)
}

/// Two members in one process, a seed for everything that happens to them; and the mistakes it must notice.
fn simulation(seeds: u64) -> Result<()> {
    let mut command = cargo_command();
    command.args(["test", "--workspace", "--quiet", "--lib"]);
    if seeds > SEEDS {
        // So many that it pays to compile them once more for speed.
        command.args(["--release", "--config", "profile.release.lto='off'"]);
    }
    command.args(["--", "simulation::", "--nocapture", "--test-threads=1"]);
    // In memory: nothing of it must last, and what is lost is decided by the seed.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        command.env("TMPDIR", memory);
    }
    run(command.env("SIMULATION_SEEDS", seeds.to_string()))
}

fn cargo(arguments: &[&str]) -> Result<()> {
    run(cargo_command().args(arguments))
}

fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn cargo_command() -> Command {
    let mut command = Command::new(cargo_program());
    command.current_dir(repository());
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("start {:?}", command.get_program()))?;
    if status.success() { Ok(()) } else { bail!("`{}`: {status}", tandem_tests::shell::shown(command)) }
}

/// Fuzz targets that run at a time.
const FUZZERS: usize = 2;

/// Every fuzz target for so long. Our own crates are compiled once more for it, with their edges counted; dependencies are
/// those of the other steps, because only the workspace's crates pass the wrapper.
///
/// It begins at the same place each time, so that a change is judged by the change; `deep` begins somewhere else.
fn fuzz(seconds: u64, deep: bool) -> Result<()> {
    components::engine().context("install what the fuzz targets are linked with")?;
    let home = repository().join("replicator/fuzz");
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(home.join("fuzz_targets")).context("list the fuzz targets")? {
        let name = entry.context("list the fuzz targets")?.file_name().to_string_lossy().into_owned();
        targets.extend(name.strip_suffix(".rs").map(|name| format!("fuzz_{name}")));
    }
    targets.sort();
    let mut command = cargo_command();
    command.env("RUSTC_WORKSPACE_WRAPPER", home.join("instrument"));
    // With a test among what is built, dependencies have the features that they have in the tests.
    command.args(["build", "--workspace", "--features", "tandem-fuzz/engine", "--test", "seeds", "--bin", "seeds"]);
    command.args(targets.iter().flat_map(|target| ["--bin", target.as_str()])).arg("--message-format=json");
    let printed = tandem_tests::shell::run(&mut command)?;
    let messages = printed.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let programs: Vec<PathBuf> = messages
        .filter(|message| message["profile"]["test"] == false)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect();
    let program = |name: &str| {
        let found = programs.iter().find(|program| program.file_name().is_some_and(|file| file == name));
        found.with_context(|| format!("cargo did not say where {name} is"))
    };
    // What was found interesting stays in the cache, so that a longer run goes on where the last one ended.
    let place = cache().join("fuzz");
    run(Command::new(program("seeds")?).arg(place.join("seeds")))?;
    let waiting = Mutex::new(targets.iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..FUZZERS {
            scope.spawn(|| {
                while let Some(target) = waiting.lock().ok().and_then(|mut waiting| waiting.next()) {
                    let result = program(target).and_then(|program| fuzz_one(program, target, &place, seconds, deep));
                    if let Err(error) = result
                        && let Ok(mut failed) = failed.lock()
                    {
                        failed.push(format!("{target}: {error:#}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(|_| vec!["a fuzzer panicked".into()]);
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
}

/// One target. A finding is printed with the bytes that lead to it and how to play them again.
fn fuzz_one(program: &Path, target: &str, place: &Path, seconds: u64, deep: bool) -> Result<()> {
    let (found, findings) = (place.join(target), place.join("findings").join(target));
    for folder in [&found, &findings] {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let mut command = Command::new(program);
    command.env("RUST_BACKTRACE", "0").arg(&found).arg(place.join("seeds").join(target)).args([
        format!("-max_total_time={seconds}"),
        format!("-artifact_prefix={}/", findings.display()),
        // 0: by the clock.
        format!("-seed={}", u8::from(!deep)),
        "-timeout=20".into(),
        "-rss_limit_mb=1024".into(),
        "-max_len=4096".into(),
        "-reload=0".into(),
        "-print_final_stats=1".into(),
    ]);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {}", program.display()))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let last = log.lines().rfind(|line| line.starts_with('#') && line.contains("cov:")).unwrap_or_default();
    let executed = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    eprintln!("{target}: {} inputs; {}", executed.unwrap_or("?").trim(), last.trim());
    if output.status.success() {
        return Ok(());
    }
    let tail: Vec<&str> = log.lines().filter(|line| !line.starts_with('#')).collect();
    let mut story = tail.get(tail.len().saturating_sub(40)..).unwrap_or_default().join("\n");
    let artifact = log.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path.trim());
    if let Some(artifact) = artifact {
        let input = std::fs::read(artifact).with_context(|| format!("read {artifact}"))?;
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        story += &format!("\nreplay: echo {hex} | xxd -r -p > /tmp/input && {} /tmp/input", program.display());
    }
    bail!("{}\n{story}", output.status)
}

/// A program of somebody else's, built into the cache the first time, and again for another version.
fn tool(name: &str, version: &str) -> Result<PathBuf> {
    let tools = cache().join("tools");
    let program = tools.join("bin").join(name);
    let installed = std::fs::read_to_string(tools.join(".crates.toml")).unwrap_or_default();
    if !program.exists() || !installed.contains(&format!("\"{name} {version} ")) {
        let (root, build) = (tools.display().to_string(), tools.join("build"));
        let place = build.display().to_string();
        eprintln!("building {name} (once, some minutes)");
        // Not optimised: it is built more often than it would save time.
        let words = ["install", "--quiet", "--force", "--debug", "--locked", "--root", &root, "--target-dir", &place];
        cargo(&[&words[..], &["--version", version, name]].concat())?;
        std::fs::remove_dir_all(&build).context("remove what the build left")?;
    }
    Ok(program)
}

/// The advisories of cargo-deny need a network that a check must not depend on.
fn dependencies() -> Result<()> {
    let program = tool("cargo-deny", "0.20.2")?;
    let words = ["--log-level", "error", "check", "bans", "licenses", "sources"];
    run(Command::new(program).current_dir(repository()).args(words))
}

/// What other people's programs think of the file system that an application sees.
fn posix(deep: bool) -> Result<()> {
    tool("pjdfstest", "0.2.2")?;
    let folder = tool("fsx", "0.3.2")?.parent().context("a program is in a folder")?.to_path_buf();
    components::stressors().context("install stress-ng and other file systems")?;
    run(&mut all_of("beside"))?;
    let operations = if deep { "200000" } else { "5000" };
    run(all_of("posix").env("TANDEM_POSIX_TOOLS", folder).env("TANDEM_FSX_OPERATIONS", operations))
}

/// Databases, git, a compiler: unmodified on a pair, each with its own check after its master died under load.
fn programs() -> Result<()> {
    components::programs().context("install the programs")?;
    run(&mut all_of("programs"))
}

/// Much of everything. What takes most is to make the files.
fn large(deep: bool) -> Result<()> {
    run(all_of("large").env("TANDEM_LARGE", if deep { "1000000" } else { "30000" }))
}

/// Tests that need more than a plain `cargo test` can expect: among other things, to mount. In a mount namespace of their own,
/// so that even a run that is killed outright leaves no mount behind.
fn all_of(test: &str) -> Command {
    let mut command = Command::new("unshare");
    command.current_dir(repository()).args(["--mount", "--propagation", "private"]).arg(cargo_program());
    command.args(["test", "--quiet", "--workspace", "--test", test]);
    command.args(["--", "--ignored", "--nocapture", "--test-threads=1"]);
    command
}

/// The chart is clean and renders, with its defaults and with everything turned around.
fn chart() -> Result<()> {
    let cluster = Cluster::here();
    components::prepare(&cache())?;
    let chart = repository().join("charts/tandem");
    let render = |arguments: &[&str]| -> Result<()> {
        let mut command = Command::new(cluster.program("helm"));
        run(command.args(arguments).arg(&chart).stdout(Stdio::null()))
    };
    render(&["lint", "--strict"])?;
    render(&["template", "tandem", "--namespace", "tandem-system"])?;
    render(&[
        "template",
        "tandem",
        "--set",
        "crds.keep=false,node.enabled=false,networkPolicy.enabled=false,operator.replicas=1",
    ])?;
    if render(&["template", "tandem", "--set", "operator.replica=1"]).is_ok() {
        bail!("a misspelt value was taken");
    }
    Ok(())
}

/// A second cluster beside the first: scenarios mostly wait, so two at a time take little longer than one.
fn second() -> Cluster {
    Cluster::at(cache().join("cluster-2"))
}

/// The clusters, each started by the first step that needs it, with the product installed as a user would.
#[derive(Default)]
struct Stage {
    ready: Vec<Cluster>,
}

impl Stage {
    fn ready(&mut self, cluster: Cluster) -> Result<()> {
        if !self.ready.contains(&cluster) {
            run(&mut by_hand(&cluster, &["up"])?)?;
            // From here on there is something to end.
            self.ready.push(cluster.clone());
            run(&mut by_hand(&cluster, &["install"])?)?;
        }
        Ok(())
    }

    fn end(&mut self, cluster: &Cluster) -> Result<()> {
        self.ready.retain(|ready| ready != cluster);
        run(&mut by_hand(cluster, &["down"])?)
    }
}

fn by_hand(cluster: &Cluster, words: &[&str]) -> Result<Command> {
    let mut command = Command::new(built("cluster")?);
    command.args(words).env("TANDEM_CLUSTER", cluster.folder());
    Ok(command)
}

/// Plays the scenarios: on two clusters at once, each taking the next one that nobody has taken; a few named ones on one.
fn scenarios(stage: &mut Stage, arguments: &Arguments) -> Result<()> {
    let mut words: Vec<&str> = vec!["test", "--quiet", "--workspace", "--test", "cases", "--"];
    let named: Vec<&str> = arguments.only.iter().map(String::as_str).filter(|word| *word != "scenarios").collect();
    words.extend(&named);
    stage.ready(Cluster::here())?;
    if !named.is_empty() || std::env::var_os("TEST_KUBECONFIG").is_some() {
        return cargo(&words);
    }
    stage.ready(second())?;
    let taken = second().folder().join("taken");
    // A cluster that was kept up has played them before.
    match std::fs::remove_dir_all(&taken) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("forget what was taken before");
        }
        Ok(()) | Err(_) => std::fs::create_dir_all(&taken).context("make a folder for what is taken")?,
    }
    let share = format!("--share={}", taken.display());
    words.push(&share);
    let noted = second().folder().join("failures");
    std::fs::write(&noted, "").context("make a file for what fails")?;
    let failures = format!("--failures={}", noted.display());
    words.push(&failures);
    let beside = cargo_command()
        .args(&words)
        .env("TANDEM_CLUSTER", second().folder())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("play scenarios on the second cluster")?;
    let told = std::thread::spawn(|| beside.wait_with_output());
    let first = cargo(&words);
    let output = told.join().map_err(|_| anyhow::anyhow!("waiting for the second cluster panicked"))?;
    let output = output.context("wait for the second cluster")?;
    eprintln!("on the second cluster:");
    std::io::stderr().write_all(&[output.stdout, output.stderr].concat()).context("print what was played")?;
    // Before the cluster ends, and its folder with it.
    let failures = std::fs::read_to_string(&noted).context("read what failed")?;
    if !arguments.keep {
        stage.end(&second())?;
    }
    if !failures.is_empty() {
        bail!("{}", failures.trim_end());
    }
    first?;
    if output.status.success() { Ok(()) } else { bail!("scenarios on the second cluster: {}", output.status) }
}

/// Plays random faults on the first cluster.
fn faults(stage: &mut Stage, minutes: u64, words: &[String]) -> Result<()> {
    stage.ready(Cluster::here())?;
    run(Command::new(built("faults")?).args(["--minutes", &minutes.to_string()]).args(words))
}
