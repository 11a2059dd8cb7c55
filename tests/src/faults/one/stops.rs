//! Processes that stand still for a while and then go on as if nothing had been: half of the time after which the other
//! member takes over, that time, and three times as long.

use crate::faults::dice::Dice;
use crate::faults::kinds::Account;
use crate::faults::subject::{Member, Subject};
use anyhow::{Result, ensure};
use rustix::process::Signal;
use std::time::Duration;

fn time(subject: &Subject, dice: &mut Dice, account: &mut Account) -> Duration {
    let halves = *dice.one_of(&[1_u32, 2, 6]);
    account.note = format!("{} x the time of suspicion", f64::from(halves) / 2.0);
    subject.character.suspicion() * halves / 2
}

pub(crate) fn signal(subject: &Subject, member: &Member, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let (time, container) = (time(subject, dice, account), member.container("replicator")?);
    account.begin();
    let count = member.node.signal(container, "serve", Signal::STOP)?;
    ensure!(count > 0, "{} has no serving process", member.name);
    std::thread::sleep(time);
    // The pod may have been replaced meanwhile.
    member.node.signal(container, "serve", Signal::CONT).ok();
    Ok(())
}

pub(crate) fn freezer(subject: &Subject, member: &Member, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let time = time(subject, dice, account);
    account.begin();
    member.node.freeze_pod(&member.uid, true)?;
    std::thread::sleep(time);
    member.node.freeze_pod(&member.uid, false).ok();
    Ok(())
}
