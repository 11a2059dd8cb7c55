//! The failover protocol, checked: the product's own `Member::step` twice, in every order of events that a bounded world
//! allows. Prints one line per run; `--deep` adds the large ones, `--write` renews the table of results beside this file,
//! names choose single runs, `--seconds=N` ends each run early.
//!
//! ```text
//! runs    which trouble, how often; the rules that are left out, and what that breaks
//! world   two members, their disks, the record, one connection; what may happen next
//! judge   what must hold in every state
//! ```

mod judge;
mod runs;
mod world;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Path, Property};

use runs::{Naive, Run};
use world::{Action, Step, World};

/// A run, as stateright explores it.
struct Checked {
    run: Run,
    start: World,
    /// Worlds from which rest was reached, or was not.
    calm: Mutex<HashMap<u64, bool>>,
}

const HOLDS: &str = "holds";
const RESTS: &str = "comes to rest";

impl Model for Checked {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.start.clone()]
    }

    fn actions(&self, state: &World, actions: &mut Vec<Action>) {
        if state.broken.is_none() {
            state.actions(&self.run, actions);
        }
    }

    fn next_state(&self, state: &World, action: Action) -> Option<World> {
        Step::new(&self.run, state).take(&action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::always(HOLDS, |_, world: &World| world.broken.is_none())];
        if self.run.rest {
            properties.push(Property::always(RESTS, |checked: &Checked, world| checked.rests(world)));
        }
        if self.run.mutation.is_none() && self.run.flaw.is_none() {
            properties.push(Property::sometimes("redundant", |_, world| judge::met::redundant(world)));
            properties.push(Property::sometimes("failover", |_, world| judge::met::failover(world)));
            if self.run.failback {
                properties.push(Property::sometimes("failback", |_, world| judge::met::failback(world)));
            }
            if self.run.tail {
                properties.push(Property::sometimes("tail saved", |_, world| judge::met::saved(world)));
            }
        }
        properties
    }
}

fn digest(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// So many steps without trouble must be enough.
const PATIENCE: usize = 400;

impl Checked {
    fn new(run: Run) -> Self {
        let mut start = World::new(&run);
        if !run.cold {
            let calm = Run { mutation: None, flaw: None, ..run.clone() };
            let mut idle = 0;
            for _ in 0..PATIENCE {
                if start.at_rest() {
                    break;
                }
                let action = start.calm_action(&mut idle);
                start = Step::new(&calm, &start).take(&action).unwrap_or(start);
            }
            assert!(start.at_rest(), "a pair that nobody disturbs is founded");
            for node in &mut start.nodes {
                node.leave_out(run.mutation);
                if run.snapshots || run.roll_back.is_some() {
                    node.take_snapshot();
                }
            }
        }
        Self { run, start, calm: Mutex::default() }
    }

    /// Whether the pair becomes whole again if nothing more happens to it, unless a human is needed.
    fn rests(&self, world: &World) -> bool {
        let mut calm = self.calm.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (mut world, mut idle, mut met) = (world.clone(), 0, Vec::new());
        world.late.clear();
        let verdict = loop {
            if world.at_rest() || world.needs_a_human() || world.broken.is_some() {
                break true;
            }
            if met.len() == PATIENCE {
                break false;
            }
            let known = digest(&world).wrapping_add(idle as u64 % 2);
            if let Some(verdict) = calm.get(&known) {
                break *verdict;
            }
            met.push(known);
            let action = world.calm_action(&mut idle);
            if let Some(next) = Step::new(&self.run, &world).take(&action) {
                world = next;
            }
            world.late.clear();
        };
        calm.extend(met.into_iter().map(|known| (known, verdict)));
        verdict
    }
}

/// What came of a run.
struct Outcome {
    states: usize,
    generated: usize,
    depth: usize,
    seconds: f64,
    /// What was broken, and the shortest story that breaks it.
    broken: Option<(String, Vec<String>)>,
    /// What was never met.
    unmet: Vec<&'static str>,
    /// Nothing is left to be explored.
    complete: bool,
}

fn explore(run: &Run, limit: Duration) -> Outcome {
    let begun = Instant::now();
    let checker =
        Checked::new(run.clone()).checker().timeout(limit).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let discoveries = checker.discoveries();
    let broken = [HOLDS, RESTS].into_iter().find_map(|property| {
        let path = discoveries.get(property)?.clone();
        let what = path.last_state().broken.unwrap_or("the pair does not come to rest").to_string();
        Some((what, story(path)))
    });
    let unmet = ["redundant", "failover", "failback", "tail saved"]
        .into_iter()
        .filter(|name| {
            let wanted = checker.model().properties().iter().any(|property| property.name == *name);
            wanted && !discoveries.contains_key(name)
        })
        .collect();
    Outcome {
        states: checker.unique_state_count(),
        generated: checker.state_count(),
        depth: checker.max_depth(),
        complete: begun.elapsed() < limit,
        seconds: begun.elapsed().as_secs_f64(),
        broken,
        unmet,
    }
}

fn story(path: Path<World, Action>) -> Vec<String> {
    let steps = path.into_vec();
    let mut lines = Vec::new();
    for (number, (_, action)) in steps.iter().enumerate() {
        let Some(action) = action else { break };
        let after = steps.get(number + 1).map(|(world, _)| world.to_string()).unwrap_or_default();
        lines.push(format!("{:>3}  {:<22} {after}", number + 1, format!("{action:?}")));
    }
    lines
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let deep = words.iter().any(|word| word == "--deep");
    let seconds = words.iter().find_map(|word| word.strip_prefix("--seconds=")?.parse().ok());
    let limit = Duration::from_secs(seconds.unwrap_or(3_600));
    let names: Vec<&String> = words.iter().filter(|word| !word.starts_with("--")).collect();
    let chosen = |name: &str, large: bool| {
        if names.is_empty() { deep || !large } else { names.iter().any(|word| word.as_str() == name) }
    };
    let mut table = Table::default();
    for run in runs::runs().into_iter().filter(|run| chosen(run.name, run.deep)) {
        table.must_hold(&run, &explore(&run, limit));
    }
    for naive in runs::naive().into_iter().filter(|naive| chosen(naive.run.name, false)) {
        table.must_break(&naive, &explore(&naive.run, limit));
    }
    println!("{} runs as they should be, {} not", table.good, table.bad);
    if words.iter().any(|word| word == "--write")
        && let Err(error) = std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/model/RESULTS.md"), table.text())
    {
        eprintln!("write the table: {error}");
        return ExitCode::FAILURE;
    }
    if table.bad == 0 && table.good > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is printed, and what is kept beside the model.
#[derive(Default)]
struct Table {
    good: usize,
    bad: usize,
    held: Vec<String>,
    found: Vec<String>,
}

impl Table {
    fn must_hold(&mut self, run: &Run, outcome: &Outcome) {
        let Outcome { states, generated, depth, seconds, .. } = outcome;
        let verdict = match &outcome.broken {
            Some((what, story)) => format!("BROKEN: {what}\n{}", story.join("\n")),
            None if !outcome.complete => "NOT EXPLORED to the end".to_string(),
            None if !outcome.unmet.is_empty() => format!("NEVER MET: {}", outcome.unmet.join(", ")),
            None if run.rest => "holds, and always comes to rest".to_string(),
            None => "holds".to_string(),
        };
        let holds = verdict.starts_with("holds");
        *(if holds { &mut self.good } else { &mut self.bad }) += 1;
        println!(
            "{:<5} {states:>9} states {generated:>10} generated depth {depth:>3} {seconds:>6.1} s  {}: {verdict}",
            run.name, run.about
        );
        let bounds = run.bounds();
        self.held.push(format!(
            "| {} | {} | {bounds} | {states} | {generated} | {depth} | {verdict} |",
            run.name, run.about
        ));
    }

    fn must_break(&mut self, naive: &Naive, outcome: &Outcome) {
        let Naive { run, breaks, about } = naive;
        let Some((what, story)) = outcome.broken.as_ref().filter(|(what, _)| what.starts_with(breaks)) else {
            self.bad += 1;
            println!("{:<5} NOT FOUND in {} states: {about}; {:?}", run.name, outcome.states, outcome.broken);
            return;
        };
        self.good += 1;
        let (states, steps) = (outcome.states, story.len());
        println!(
            "{:<5} found after {states} states, in {steps} steps: {about}: {what}\n{}",
            run.name,
            story.join("\n")
        );
        self.found.push(format!("| {} | {about} | {what} | {steps} | {states} |", run.name));
    }

    fn text(&self) -> String {
        let head = "# What the model has checked\n\nWritten by `cargo run --release -p tandem-protocol --features mutations \
            --example model -- --deep --write`. Explored breadth first by one thread, each run to its end: `states` are different ones, \
            `generated` all that were reached, `depth` is the longest shortest way.\n\n";
        let bounds = "Bounds: `o` operations, `e` epochs, `r` writes of the record, `c` crashes, `q` answers of the API late or lost, \
            `l` losses of the connection.\n\n";
        let held = "| run | about | bounds | states | generated | depth | result |\n| --- | --- | --- | ---: | ---: | ---: | --- |\n";
        let found = "\n\n## Rules that are left out\n\n| run | left out, or broken around the member | found as | steps | states |\n\
            | --- | --- | --- | ---: | ---: |\n";
        let tail = include_str!("differences.md");
        format!("{head}{bounds}{held}{}{found}{}\n\n{tail}", self.held.join("\n"), self.found.join("\n"))
    }
}
