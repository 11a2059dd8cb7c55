//! Random faults on pairs that serve: drawn from a seed, one after the other on each pair and now and then on all of them,
//! while clients write. After each fault the pair must come to rest by itself; at the end of each chapter everything that
//! was acknowledged is looked for, and both members' files are compared.

pub mod chapter;
pub mod dice;
pub mod door;
mod everybody;
pub mod figures;
pub mod kinds;
mod ledger;
pub mod moments;
mod one;
pub mod report;
pub mod subject;
pub mod timeline;
pub mod verdict;

use crate::cluster::Cluster;
use crate::judge::Conversation;
use crate::namespace::{everything, with_namespace};
use crate::pair::{Pair, Wishes, postgresql};
use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use chapter::{Application, Chapter, Ended};
use dice::Dice;
use door::Door;
use figures::{Played, Results};
use kinds::{Account, Kind, OF_ALL, OF_ONE, Play, Upsets};
use serde_json::json;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use subject::{Character, REST, Scene, Subject};
use timeline::{Follower, Timeline};

/// `maxLagBytes` of the Async pair.
pub const LAG_BYTES: u64 = 65_536;
/// Each pair has faults of its own for so long; then something happens to all.
const ROUND: Duration = Duration::from_secs(50);
/// So many rounds are a chapter.
const ROUNDS_OF_A_CHAPTER: u64 = 3;
/// What the end needs: the last chapter's judgement, and putting everything away.
const END: Duration = Duration::from_secs(50);

/// What to play.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub time: Duration,
    /// So many pairs, the first of the list.
    pub pairs: usize,
    /// Only kinds of faults whose names contain one of these words; all if there is none.
    pub only: Vec<String>,
}

/// The pairs. Half of the default times, so that more faults fit into an hour; one keeps the defaults.
const PAIRS: &[Character] = &[
    Character {
        name: "available",
        protection: "MaxAvailability",
        acknowledgement: "Durable",
        application: Application::Records,
        interval_milliseconds: 500,
    },
    Character {
        name: "ledger",
        protection: "MaxAvailability",
        acknowledgement: "Durable",
        application: Application::PostgreSql,
        interval_milliseconds: 500,
    },
    Character {
        name: "protected",
        protection: "MaxProtection",
        acknowledgement: "Durable",
        application: Application::Records,
        interval_milliseconds: 500,
    },
    Character {
        name: "lagging",
        protection: "Async",
        acknowledgement: "Durable",
        application: Application::Records,
        interval_milliseconds: 500,
    },
    Character {
        name: "received",
        protection: "MaxAvailability",
        acknowledgement: "Received",
        application: Application::Records,
        interval_milliseconds: 500,
    },
    Character {
        name: "both",
        protection: "MaxProtection",
        acknowledgement: "Received",
        application: Application::Records,
        interval_milliseconds: 500,
    },
    Character {
        name: "slower",
        protection: "MaxAvailability",
        acknowledgement: "Durable",
        application: Application::Records,
        interval_milliseconds: 1000,
    },
];

/// Where logs and results of a run are kept.
pub fn folder(cluster: &Cluster, seed: u64) -> PathBuf {
    cluster.cache().join("faults").join(seed.to_string())
}

/// Plays a plan. What was found wrong is in the results' failures; an error means that it could not be played.
pub fn run(cluster: &Cluster, plan: &Plan) -> Result<Results> {
    let mut results = None;
    let end = with_namespace(cluster, "faults", |namespace| {
        let mut run = Run::begin(cluster, namespace, plan)?;
        let played = run.play(plan);
        let found = run.end(plan);
        let failures = found.failures.clone();
        results = Some(found);
        played?;
        if failures.is_empty() { Ok(()) } else { bail!("{} failures, the first: {}", failures.len(), failures[0]) }
    });
    match (results, end) {
        (Some(mut results), end) => {
            if let Err(error) = end
                && results.failures.is_empty()
            {
                results.failures.push(format!("{error:#}"));
            }
            Ok(results)
        }
        (None, end) => end.and_then(|()| bail!("nothing was played")),
    }
}

struct Run {
    cluster: Cluster,
    namespace: String,
    /// Those that still take part.
    subjects: Vec<Arc<Subject>>,
    timeline: Arc<Timeline>,
    /// Dropped last, so that nothing that was logged is missed.
    _follower: Follower,
    folder: PathBuf,
    /// How many faults each pair has had, in the order of `PAIRS`.
    numbers: Vec<(String, u64)>,
    /// What clients of earlier chapters remember: it must be there at the end too.
    ended: Mutex<Vec<(String, Ended)>>,
    results: Mutex<Results>,
    began: Instant,
}

impl Run {
    fn begin(cluster: &Cluster, namespace: &str, plan: &Plan) -> Result<Self> {
        let began = Instant::now();
        let folder = folder(cluster, plan.seed);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).context("remove what an earlier run of this seed left")?;
        }
        let (door, timeline) = (Arc::new(Door::open(cluster)?), Arc::new(Timeline::default()));
        let follower = Follower::start(cluster, namespace, &folder, Arc::clone(&timeline))?;
        let chosen = &PAIRS[..plan.pairs.clamp(1, PAIRS.len())];
        let subjects = std::thread::scope(|scope| {
            let starts: Vec<_> = chosen
                .iter()
                .map(|character| {
                    let (door, timeline) = (Arc::clone(&door), Arc::clone(&timeline));
                    scope.spawn(move || start(cluster, namespace, *character, door, timeline))
                })
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().unwrap_or_else(|_| bail!("the start of a pair panicked")))
                .collect::<Result<Vec<_>>>()
        })?;
        let commit = shell::sh(
            "git",
            &["-C", &crate::cluster::repository().display().to_string(), "rev-parse", "--short", "HEAD"],
        );
        let results = Results {
            seed: plan.seed,
            commit: commit.unwrap_or_default().trim().to_string(),
            pairs: chosen.iter().map(describe).collect(),
            ..Results::default()
        };
        Ok(Self {
            cluster: cluster.clone(),
            namespace: namespace.to_string(),
            numbers: subjects.iter().map(|subject| (subject.pair.name.clone(), 0)).collect(),
            subjects,
            timeline,
            _follower: follower,
            folder,
            ended: Mutex::default(),
            results: Mutex::new(results),
            began,
        })
    }

    fn play(&mut self, plan: &Plan) -> Result<()> {
        let wanted =
            |kind: &&Kind| plan.only.is_empty() || plan.only.iter().any(|word| kind.name.contains(word.as_str()));
        let of_one: Vec<Kind> = OF_ONE.iter().filter(wanted).copied().collect();
        let of_all: Vec<Kind> = OF_ALL.iter().filter(wanted).copied().collect();
        ensure!(!of_one.is_empty() || !of_all.is_empty(), "no kind of fault is named {:?}", plan.only);
        let deadline = self.began + plan.time.saturating_sub(END);
        for round in 0.. {
            if self.subjects.is_empty() || Instant::now() >= deadline {
                break;
            }
            if round % ROUNDS_OF_A_CHAPTER == 0 {
                self.turn_the_page(round / ROUNDS_OF_A_CHAPTER);
            }
            if !of_one.is_empty() {
                self.faults_of_each(plan.seed, &of_one, deadline.min(Instant::now() + ROUND));
            }
            if !of_all.is_empty() && Instant::now() < deadline && !self.subjects.is_empty() {
                self.fault_of_all(plan.seed, round, &of_all)?;
            }
        }
        Ok(())
    }

    /// Every pair has faults of its own until the time is over, all at once.
    fn faults_of_each(&mut self, seed: u64, kinds: &[Kind], until: Instant) {
        let mut numbers = std::mem::take(&mut self.numbers);
        let this = &*self;
        let lost: Vec<String> = std::thread::scope(|scope| {
            let rounds: Vec<_> = numbers
                .iter_mut()
                .filter_map(|(name, number)| Some((this.subjects.iter().find(|one| one.pair.name == *name)?, number)))
                .map(|(subject, number)| {
                    scope.spawn(move || {
                        while Instant::now() < until {
                            let mut dice = Dice::of(seed, &subject.pair.name, *number);
                            let kind = *dice.weighted(kinds, |kind| kind.weight);
                            *number += 1;
                            if let Err(error) = this.fault_of_one(subject, &kind, *number, &mut dice) {
                                this.failed(subject, &format!("fault {number}, {}", kind.name), &error);
                                return Some(subject.pair.name.clone());
                            }
                        }
                        None
                    })
                })
                .collect();
            rounds.into_iter().filter_map(|round| round.join().unwrap_or(None)).collect()
        });
        self.numbers = numbers;
        self.subjects.retain(|subject| !lost.contains(&subject.pair.name));
    }

    fn fault_of_one(&self, subject: &Subject, kind: &Kind, number: u64, dice: &mut Dice) -> Result<()> {
        let Play::One(play) = kind.play else { bail!("{} is not a fault of one pair", kind.name) };
        let before = subject.rest(REST).context("before the fault")?;
        let mut account = Account::default();
        let played = caught(|| play(subject, &before, dice, &mut account));
        let began = account.began.unwrap_or_else(Instant::now);
        let told = format!("{} {number}: {} {}", subject.pair.name, kind.name, account.note);
        played.with_context(|| format!("{} ({} led)", account.note, before.master.name))?;
        self.account(subject, kind, &before, &account, began, kind.upsets == Upsets::Master, "")
            .with_context(|| format!("{} ({} led)", account.note, before.master.name))?;
        self.results.lock().unwrap().injected += 1;
        self.say(&told);
        Ok(())
    }

    fn fault_of_all(&mut self, seed: u64, round: u64, kinds: &[Kind]) -> Result<()> {
        let mut dice = Dice::of(seed, "everybody", round);
        let kind = *dice.weighted(kinds, |kind| kind.weight);
        let Play::All(play) = kind.play else { bail!("{} is not a fault of all pairs", kind.name) };
        let before = self.each(|subject| subject.rest(REST).context("before a fault of all"));
        let mut account = Account::default();
        let played = caught(|| play(&self.cluster, &self.subjects, &mut dice, &mut account));
        let began = account.began.unwrap_or_else(Instant::now);
        if let Err(error) = &played {
            // Whatever is still broken must not be held against the pairs.
            self.cluster.restore()?;
            let first = self.subjects.first().context("a pair")?;
            self.failed(first, &format!("round {round}, {}: {}", kind.name, account.note), error);
        }
        let (this, account) = (&*self, &account);
        let after = this.each(|subject| {
            let Some((_, before)) = before.iter().find(|(name, _)| *name == subject.pair.name) else {
                bail!("it was not whole before");
            };
            let of_master = account.node.map(|node| node == before.master.name);
            let upset = kind.upsets == Upsets::Master || of_master == Some(true);
            let suffix = match of_master {
                Some(true) => ", the master's",
                Some(false) => ", the replicant's",
                None => "",
            };
            this.account(subject, &kind, before, account, began, upset, suffix)
                .with_context(|| format!("after {}: {} ({} led)", kind.name, account.note, before.master.name))
        });
        self.results.lock().unwrap().injected += 1;
        self.say(&format!("all, round {round}: {} {}", kind.name, account.note));
        self.subjects.retain(|subject| after.iter().any(|(name, ())| *name == subject.pair.name));
        Ok(())
    }

    /// Asks something of every pair at once; those that fail are told about and left out of the answer.
    fn each<T: Send>(&self, ask: impl Fn(&Subject) -> Result<T> + Sync) -> Vec<(String, T)> {
        let ask = &ask;
        std::thread::scope(|scope| {
            let asked: Vec<_> =
                self.subjects.iter().map(|subject| (subject, scope.spawn(move || ask(subject)))).collect();
            asked
                .into_iter()
                .filter_map(|(subject, answer)| {
                    match answer.join().unwrap_or_else(|_| bail!("a look at {} panicked", subject.pair.name)) {
                        Ok(answer) => Some((subject.pair.name.clone(), answer)),
                        Err(error) => {
                            self.failed(subject, "all", &error);
                            None
                        }
                    }
                })
                .collect()
        })
    }

    /// Waits until the pair is whole again, and writes down what the fault cost.
    #[allow(clippy::too_many_arguments)] // each is one fact of the fault
    fn account(
        &self,
        subject: &Subject,
        kind: &Kind,
        before: &Scene,
        account: &Account,
        began: Instant,
        upset: bool,
        suffix: &str,
    ) -> Result<()> {
        let after = subject.rest(REST)?;
        let rest = began.elapsed().as_secs_f64();
        // The logs are followed a little behind.
        std::thread::sleep(Duration::from_millis(300));
        let seen = figures::measure(subject, began, before, &after);
        let failover = after.master.name != before.master.name;
        let played = Played {
            pair: subject.pair.name.clone(),
            kind: format!("{}{suffix}", kind.name),
            row: kind.row,
            note: account.note.clone(),
            rest,
            outage: seen.outage,
            steps: seen.steps,
            failover,
            false_failover: failover && !upset,
            epochs: after.epoch - before.epoch.min(after.epoch),
            refused: seen.refused,
            complaint: seen.complaint,
            figures: account.figures.iter().map(|(name, value)| ((*name).to_string(), *value)).collect(),
        };
        if played.false_failover {
            self.say(&format!("{}: a false failover after {} {}", played.pair, played.kind, played.note));
        }
        self.say(&format!(
            "  {} {:28} outage {:6.2}  whole after {:6.2}  {}{}",
            played.pair,
            played.kind,
            played.outage,
            played.rest,
            if failover { "moved" } else { "" },
            if played.refused > 0 {
                format!(" {} refused: {}", played.refused, played.complaint)
            } else {
                String::new()
            }
        ));
        ensure!(after.epoch >= before.epoch, "the epoch went back from {} to {}", before.epoch, after.epoch);
        self.results.lock().unwrap().played.push(played);
        Ok(())
    }

    /// Ends the chapter of every pair and judges it, then begins the next one.
    fn turn_the_page(&mut self, number: u64) {
        let number = usize::try_from(number).unwrap_or_default();
        let went_on = self.each(|subject| {
            self.close(subject)?;
            let next = Chapter::begin(&subject.pair, subject.character.application, number)?;
            *subject.chapter.lock().unwrap() = Some(next);
            Ok(())
        });
        self.subjects.retain(|subject| went_on.iter().any(|(name, ())| *name == subject.pair.name));
    }

    fn close(&self, subject: &Subject) -> Result<()> {
        if subject.chapter.lock().unwrap().is_none() {
            return Ok(());
        }
        subject.rest(REST)?;
        let chapter = subject.chapter.lock().unwrap().take();
        let Some(ended) = chapter.map(Chapter::end) else { return Ok(()) };
        // Nobody writes now.
        let records = ended.read(&subject.pair, subject.character.application).context("read what was written")?;
        let reigns = self.timeline.reigns(&subject.pair.name);
        let judged = ended
            .judge(&records, &reigns, subject.character.allowed())
            .with_context(|| format!("chapter {}", ended.number))?;
        let postgres = subject.character.application == Application::PostgreSql;
        if postgres {
            ledger::sound(&subject.pair)?;
        } else {
            // The server writes to its files also when nobody asks it to.
            subject.pair.wait_equal().context("the members' files")?;
        }
        let mut results = self.results.lock().unwrap();
        results.add(&judged);
        results.trees += usize::from(!postgres);
        results.amcheck += usize::from(postgres);
        results.sqlite += usize::from(ended.used_sqlite());
        drop(results);
        self.say(&format!("{}, chapter {}: {judged:?}", subject.pair.name, ended.number));
        self.ended.lock().unwrap().push((subject.pair.name.clone(), ended));
        Ok(())
    }

    /// Judges what is open, and once more everything from the beginning.
    fn end(mut self, plan: &Plan) -> Results {
        let closed = self.each(|subject| self.close(subject));
        self.subjects.retain(|subject| closed.iter().any(|(name, ())| *name == subject.pair.name));
        let ended = std::mem::take(&mut *self.ended.lock().unwrap());
        self.each(|subject| {
            let reigns = self.timeline.reigns(&subject.pair.name);
            for (_, ended) in ended.iter().filter(|(name, _)| *name == subject.pair.name) {
                let records = ended.read(&subject.pair, subject.character.application)?;
                ended
                    .judge(&records, &reigns, subject.character.allowed())
                    .with_context(|| format!("chapter {}, read again at the end", ended.number))?;
            }
            Ok(())
        });
        let mut results = std::mem::take(&mut *self.results.lock().unwrap());
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        results.load = load.split_whitespace().nth(2).and_then(|load| load.parse().ok()).unwrap_or_default();
        results.minutes = self.began.elapsed().as_secs_f64() / 60.0;
        self.say(&format!("seed {}: {} faults in {:.1} minutes", plan.seed, results.injected, results.minutes));
        if let Ok(text) = serde_json::to_string_pretty(&results)
            && let Err(error) = std::fs::write(self.folder.join("results.json"), text)
        {
            eprintln!("the results were not kept: {error}");
        }
        results
    }

    /// Writes down what went wrong, with everything that the cluster knows now.
    fn failed(&self, subject: &Subject, doing: &str, error: &anyhow::Error) {
        let text = format!("{}: {doing}: {error:#}", subject.pair.name);
        self.say(&format!("FAILED {text}"));
        let file = self.folder.join(format!("{}.failed.txt", subject.pair.name));
        let told = format!("{text}\n{}", everything(&self.cluster, &self.namespace));
        if let Err(error) = std::fs::write(&file, told) {
            eprintln!("{} was not written: {error}", file.display());
        }
        self.results.lock().unwrap().failures.push(text);
    }

    fn say(&self, text: &str) {
        println!("{:7.1} {text}", self.began.elapsed().as_secs_f64());
    }
}

fn describe(one: &Character) -> Vec<String> {
    let application = match one.application {
        Application::Records => "records in files; SQLite (WAL, rollback journal) in two chapters of three",
        Application::PostgreSql => "PostgreSQL: a ledger, and pgbench beside it",
    };
    let suspicion = format!("{} ms x 5 = {:.1} s", one.interval_milliseconds, one.suspicion().as_secs_f64());
    [one.name, one.protection, one.acknowledgement, application, &suspicion].map(String::from).to_vec()
}

/// A panic in a fault is a failure of that fault.
fn caught(play: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(play)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()));
        bail!(text.unwrap_or_else(|| "the fault panicked".into()))
    })
}

/// Applies a pair, waits until it is whole, and gives it something to hold.
fn start(
    cluster: &Cluster,
    namespace: &str,
    character: Character,
    door: Arc<Door>,
    timeline: Arc<Timeline>,
) -> Result<Arc<Subject>> {
    let postgres = character.application == Application::PostgreSql;
    let mut spec = json!({
        "health": {"intervalMilliseconds": character.interval_milliseconds, "missedLimit": 5},
        "replication": {"protection": character.protection, "ackPolicy": character.acknowledgement},
    });
    if character.protection == "Async" {
        spec["replication"]["maxLagBytes"] = LAG_BYTES.into();
    }
    if postgres {
        spec["template"] = json!({"spec": {"securityContext": {"fsGroup": 999}}});
    }
    let mut wishes = Wishes { mebibytes: 1024, ..Wishes::spec(spec) };
    if postgres {
        (wishes.container, wishes.mebibytes) = (postgresql(), 1536);
    }
    let pair = Pair::apply(cluster, namespace, character.name, &wishes)?;
    let subject = Subject { pair, character, door, timeline, chapter: Mutex::default() };
    subject.rest(REST).context("the first start")?;
    if postgres {
        ledger::prepare(&subject.pair)?;
    } else {
        // The route follows a moment later.
        subject.pair.converse()?;
        // Otherwise a copy would be over before anything could happen to it.
        let mut talk = Conversation::open(&subject.pair.address()?, Duration::from_secs(20))?;
        for number in 0..20 {
            let answer = talk.ask(&format!("put f{number} 1000000"))?;
            ensure!(answer.starts_with("ok"), "{answer}");
        }
    }
    Ok(Arc::new(subject))
}
