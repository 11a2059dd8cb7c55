//! What owners ask for by annotation, also what they had better not ask for.

use crate::cluster::wait;
use crate::faults::dice::Dice;
use crate::faults::kinds::Account;
use crate::faults::subject::{Scene, Subject};
use crate::pair::PATIENCE;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

fn token(dice: &mut Dice) -> String {
    format!("t{}", dice.between(0, u64::MAX / 2))
}

fn answered(subject: &Subject, verb: &str, token: &str) -> Result<String> {
    let mut last = None;
    wait(PATIENCE, &format!("{verb}={token} to be answered"), || {
        last = subject.answer(verb, token).ok().flatten();
        last.as_deref().is_some_and(|result| result != "Accepted")
    })?;
    Ok(last.unwrap_or_default())
}

pub(crate) fn switchover(subject: &Subject, _: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let token = token(dice);
    account.begin();
    let began = Instant::now();
    subject.annotate(&[("switchover", &token)])?;
    let result = answered(subject, "switchover", &token)?;
    ensure!(result == "Completed", "a switchover of a pair that is whole was {result}");
    account.figures.push(("switchover answered", began.elapsed().as_secs_f64()));
    Ok(())
}

/// Home, if the pair is abroad; otherwise abroad, so that it can be brought home later.
pub(crate) fn failback(subject: &Subject, scene: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    if scene.master.name == "a" {
        account.note = "out".into();
        return switchover(subject, scene, dice, account);
    }
    let token = token(dice);
    account.note = "home".into();
    account.begin();
    let began = Instant::now();
    subject.annotate(&[("failback", &token)])?;
    let result = answered(subject, "failback", &token)?;
    ensure!(result == "Completed", "a failback of a pair that is whole was {result}");
    account.figures.push(("failback answered", began.elapsed().as_secs_f64()));
    Ok(())
}

/// Whatever the answers are, there is one each, and the pair comes to rest.
pub(crate) fn both(subject: &Subject, _: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let (one, other) = (token(dice), token(dice));
    account.begin();
    subject.annotate(&[("switchover", &one), ("failback", &other)])?;
    account.note = format!(
        "switchover {}, failback {}",
        answered(subject, "switchover", &one)?,
        answered(subject, "failback", &other)?
    );
    Ok(())
}

pub(crate) fn repeated(subject: &Subject, scene: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let token = token(dice);
    account.begin();
    subject.annotate(&[("switchover", &token)])?;
    let result = answered(subject, "switchover", &token)?;
    ensure!(result == "Completed", "a switchover of a pair that is whole was {result}");
    let after = subject.rest(PATIENCE)?;
    ensure!(after.master.name != scene.master.name, "the switchover is completed, and the same member leads");
    subject.annotate(&[("switchover", &token)])?;
    std::thread::sleep(Duration::from_secs(2));
    let then = subject.rest(PATIENCE)?;
    ensure!(then.epoch == after.epoch, "a repeated token acted twice: epoch {} became {}", after.epoch, then.epoch);
    Ok(())
}

/// Somebody deletes the record. It is made anew of what both members swear, with a later epoch; nothing else is to be done.
pub(crate) fn record_deleted(subject: &Subject, scene: &Scene, _: &mut Dice, account: &mut Account) -> Result<()> {
    let record = subject.object("pairrecords", &subject.pair.name);
    account.begin();
    let began = Instant::now();
    subject.door.delete(&record, None)?;
    wait(PATIENCE, "a record made anew", || {
        subject.door.get(&record).is_ok_and(|found| found["spec"]["epoch"].as_u64() > Some(scene.epoch))
    })?;
    account.figures.push(("record made anew", began.elapsed().as_secs_f64()));
    Ok(())
}
