//! Copies and comparisons between the members, and what interrupts them.

use super::processes;
use crate::faults::dice::Dice;
use crate::faults::kinds::Account;
use crate::faults::subject::{Scene, Subject};
use anyhow::{Context, Result};
use std::fs;
use std::time::Duration;

/// A comparison with the master, in which one of the two dies.
pub(crate) fn comparison(subject: &Subject, scene: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let token = format!("t{}", dice.between(0, u64::MAX / 2));
    let (pause, of_master, whole_pod) =
        (Duration::from_millis(dice.between(0, 1500)), dice.chance(50), dice.chance(50));
    let member = scene.member(of_master);
    account.note = format!(
        "the {}'s {} after {} ms",
        if of_master { "master" } else { "replicant" },
        if whole_pod { "pod" } else { "process" },
        pause.as_millis()
    );
    subject.annotate(&[("resync", &token)])?;
    std::thread::sleep(pause);
    if whole_pod { processes::pod(member, account) } else { processes::serving(member, account) }
}

/// Everything on the replicant's volume is gone; while it is copied again, its process dies once or twice more.
pub(crate) fn volume(subject: &Subject, scene: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let (member, root) = (&scene.replicant, subject.volume(&scene.replicant)?);
    account.begin();
    member.node.freeze_pod(&member.uid, true)?;
    let emptied = empty(&root);
    let killed = member.node.kill_pod(&member.uid);
    member.node.freeze_pod(&member.uid, false)?;
    emptied.and(killed)?;
    let times = dice.between(1, 3);
    for _ in 0..times {
        std::thread::sleep(Duration::from_millis(dice.between(500, 4000)));
        // Between two lives there is nobody to kill.
        if let Ok(now) = subject.member(&member.name) {
            processes::serving(&now, &mut Account::default()).ok();
        }
    }
    account.note = format!("killed {times} more times");
    Ok(())
}

fn empty(root: &std::path::Path) -> Result<()> {
    for entry in fs::read_dir(root).context("list a volume")?.flatten() {
        if entry.file_name() == "lost+found" {
            continue;
        }
        let gone = if entry.path().is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        gone.with_context(|| format!("remove {}", entry.path().display()))?;
    }
    Ok(())
}
