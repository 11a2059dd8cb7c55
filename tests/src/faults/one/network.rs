//! The network of one member's pod loses packets.

use crate::cluster::trouble::{Cut, From, PodNetwork};
use crate::faults::dice::Dice;
use crate::faults::kinds::Account;
use crate::faults::subject::{Member, Scene, Subject};
use crate::judge::{Conversation, Event, Outcome};
use anyhow::Result;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const REPLICATION: u16 = 7470;

fn network(member: &Member) -> Result<PodNetwork> {
    member.node.network_of(member.container("replicator")?)
}

/// Cuts, waits, heals: also when the waiting fails.
fn cut_for(member: &Member, cut: &Cut, time: Duration, account: &mut Account) -> Result<()> {
    let network = network(member)?;
    account.begin();
    network.cut(cut)?;
    std::thread::sleep(time);
    network.heal()
}

fn seconds(dice: &mut Dice, low: u64, high: u64) -> Duration {
    Duration::from_millis(dice.between(low * 1000, high * 1000))
}

fn told(account: &mut Account, what: &str, time: Duration) {
    account.note = format!("{what}{:.1} s", time.as_secs_f64());
}

pub(crate) fn apart(_: &Subject, scene: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let time = seconds(dice, 1, 10);
    told(account, "", time);
    cut_for(scene.member(dice.chance(50)), &Cut::both(From::Port(REPLICATION)), time, account)
}

pub(crate) fn one_way(_: &Subject, scene: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let (time, to_master) = (seconds(dice, 1, 10), dice.chance(50));
    told(account, if to_master { "to the master, " } else { "to the replicant, " }, time);
    let cut = Cut { from: From::Port(REPLICATION), sending: !to_master, receiving: to_master };
    cut_for(&scene.master, &cut, time, account)
}

pub(crate) fn flapping(_: &Subject, scene: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let network = network(scene.member(dice.chance(50)))?;
    account.begin();
    let times = dice.between(2, 4);
    for _ in 0..times {
        network.cut(&Cut::both(From::Port(REPLICATION)))?;
        std::thread::sleep(Duration::from_millis(dice.between(300, 4000)));
        network.heal()?;
        std::thread::sleep(Duration::from_millis(dice.between(300, 3000)));
    }
    account.note = format!("{times} times");
    Ok(())
}

pub(crate) fn from_api(member: &Member, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let time = seconds(dice, 4, 15);
    told(account, "", time);
    cut_for(member, &Cut::both(From::Api), time, account)
}

pub(crate) fn from_everybody(member: &Member, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let time = seconds(dice, 2, 12);
    told(account, "", time);
    cut_for(member, &Cut::both(From::Everybody), time, account)
}

/// What the members ask of the API server arrives and is done; they never hear of it. Meanwhile one that leads has a reason
/// to write the record.
pub(crate) fn lost_answers(_: &Subject, scene: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let (time, of_master) = (seconds(dice, 3, 8), dice.chance(50));
    told(account, if of_master { "the master's, " } else { "the replicant's, " }, time);
    let (link, api) = (network(&scene.replicant)?, network(scene.member(of_master))?);
    account.begin();
    api.cut(&Cut { from: From::Api, sending: false, receiving: true })?;
    // The same table would be another one's: a cut in the other pod, or the link is left alone.
    if of_master {
        link.cut(&Cut::both(From::Port(REPLICATION)))?;
    }
    std::thread::sleep(time);
    if of_master {
        link.heal()?;
    }
    api.heal()
}

/// The master hears nobody and is heard by nobody; only a client in its own pod still reaches it. That one says when it was
/// answered for the last time.
pub(crate) fn isolated(subject: &Subject, scene: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let time = subject.character.suspicion() + seconds(dice, 1, 10);
    told(account, "", time);
    let network = network(&scene.master)?;
    let client = subject
        .chapter
        .lock()
        .unwrap()
        .as_ref()
        .filter(|_| subject.application() == "app")
        .map(|chapter| chapter.inside_client(usize::try_from(dice.between(0, 9)).unwrap_or(0)));
    let stop = AtomicBool::new(false);
    let events = std::thread::scope(|scope| -> Result<Vec<Event>> {
        let inside = client.map(|client| {
            let (network, stop) = (&network, &stop);
            // Its records come after those of a client of this number that was here before.
            let first_k = Duration::from_secs_f64(crate::faults::moments::now()).as_millis() as u64;
            scope.spawn(move || write_inside(network, client, first_k, stop))
        });
        if inside.is_some() {
            std::thread::sleep(Duration::from_millis(400));
        }
        account.begin();
        let cut = network.cut(&Cut::both(From::Everybody));
        std::thread::sleep(time);
        stop.store(true, Ordering::Release);
        let events = inside.map(|inside| inside.join().unwrap_or_else(|_| Ok(Vec::new())));
        cut.and(network.heal())?;
        events.unwrap_or_else(|| Ok(Vec::new()))
    })?;
    let began = account.began.unwrap_or_else(Instant::now);
    let last = events.iter().rfind(|event| matches!(event.outcome, Outcome::Acknowledged(_)));
    if let Some(last) = last {
        let after = last.answered.saturating_duration_since(began);
        account.figures.push(("isolated master's last acknowledgement", after.as_secs_f64()));
    }
    if let Some(chapter) = subject.chapter.lock().unwrap().as_ref() {
        chapter.inside(events);
    }
    Ok(())
}

fn write_inside(network: &PodNetwork, client: usize, first_k: u64, stop: &AtomicBool) -> Result<Vec<Event>> {
    network.enter()?;
    let (mut events, mut conversation) = (Vec::new(), None);
    let mut k = first_k;
    while !stop.load(Ordering::Acquire) {
        let asked = Instant::now();
        let open = conversation.take().map_or_else(|| Conversation::open("127.0.0.1", Duration::from_secs(1)), Ok);
        let Ok(mut open) = open else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let outcome = match open.ask(&format!("append {client} {k}")) {
            Ok(line) if line.starts_with("ok ") => {
                conversation = Some(open);
                Outcome::Acknowledged(line.split_whitespace().nth(3).unwrap_or_default().to_string())
            }
            Ok(line) => Outcome::Refused(line),
            Err(error) => Outcome::Unknown(format!("{error:#}")),
        };
        events.push(Event { client, k, asked, answered: Instant::now(), outcome });
        k += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(events)
}
