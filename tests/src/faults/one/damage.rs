//! Bytes on a member's volume change. The member stands still meanwhile and is killed before it goes on, so that it finds
//! the damage when it starts, and its owner gives the volume up; or, for files that nobody reads on a replicant, a
//! comparison finds it.

use crate::cluster::wait;
use crate::faults::dice::Dice;
use crate::faults::door::ask_member;
use crate::faults::kinds::Account;
use crate::faults::subject::{Member, Scene, Subject};
use crate::pair::PATIENCE;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(crate) fn journal(subject: &Subject, member: &Member, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let folder = subject.volume(member)?.join(".tandem/journal");
    account.begin();
    member.node.freeze_pod(&member.uid, true)?;
    let damaged = damage_journal(&folder, dice);
    // What is frozen takes the signal when it is thawed, before anything else.
    let killed = member.node.kill_pod(&member.uid);
    member.node.freeze_pod(&member.uid, false)?;
    account.note = damaged?;
    killed?;
    mend(subject, member, dice, account)
}

/// What is damaged is never used: the member says so and waits for its owner's word, unless nobody needs the damaged part.
fn mend(subject: &Subject, member: &Member, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let mut state = String::new();
    wait(PATIENCE, "the member to say what it thinks of the damage", || {
        let told = subject.member(&member.name).and_then(|now| ask_member(&now.address));
        state = told.ok().and_then(|told| told["state"].as_str().map(String::from)).unwrap_or_default();
        !["", "Offline", "Starting"].contains(&state.as_str())
    })?;
    if state == "Quarantined" {
        account.note += ", found, discarded";
        // What the operator has not heard of it does not give up.
        wait(PATIENCE, "the pair to say that the member waits for its owner", || {
            let waits = |one: &Value| one["name"] == member.name && one["state"] == "Quarantined";
            subject.status().is_ok_and(|status| status["members"].as_array().is_some_and(|all| all.iter().any(waits)))
        })?;
        let token = format!("{}/t{}", member.name, dice.between(0, u64::MAX / 2));
        subject.annotate(&[("discard", &token)])?;
        wait(PATIENCE, "the damaged volume to be given up", || {
            subject.answer("discard", &token).is_ok_and(|answer| answer.as_deref() == Some("Completed"))
        })?;
    }
    Ok(())
}

fn damage_journal(folder: &Path, dice: &mut Dice) -> Result<String> {
    let mut segments: Vec<PathBuf> = files_below(folder)?;
    segments.sort();
    let mut used: Vec<(PathBuf, u64)> = Vec::new();
    for segment in segments {
        let bytes = fs::read(&segment).context("read a segment")?;
        // Segments are made longer than what is in them.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        if end > 0 {
            used.push((segment, end));
        }
    }
    if used.is_empty() {
        bail!("{} holds no journal", folder.display());
    }
    let (segment, end) = dice.one_of(&used);
    let name = segment.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let at = dice.between(0, end - 1);
    if dice.chance(25) {
        File::options().write(true).open(segment)?.set_len(at).context("shorten a segment")?;
        return Ok(format!("{name} cut at byte {at} of {end}"));
    }
    let length = dice.between(1, 64).min(end - at);
    change(segment, at, length)?;
    Ok(format!("{length} bytes at {at} of {end} in {name}"))
}

/// Turns bytes into others.
fn change(path: &Path, at: u64, length: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut bytes = vec![0; usize::try_from(length)?];
    file.read_exact_at(&mut bytes, at).context("read what is to be damaged")?;
    bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
    file.write_all_at(&bytes, at).context("damage bytes")?;
    file.sync_all().context("make the damage last")
}

/// The device under a member's volume dies while it is used. The other member goes on without it; then the owner puts
/// another device in its place and deletes the pod.
pub(crate) fn device(subject: &Subject, scene: &Scene, of_master: bool, account: &mut Account) -> Result<()> {
    let (member, other) = (scene.member(of_master), scene.member(!of_master));
    let volume = subject.pair.volume(&member.name);
    account.begin();
    member.node.fail_volume(&volume)?;
    let mut last = String::new();
    let gone_on = wait(PATIENCE, "the other member to go on without it", || {
        let told = ask_member(&other.address);
        last = told.ok().and_then(|told| told["state"].as_str().map(String::from)).unwrap_or_default();
        // With MaxProtection it may lead and acknowledge nothing.
        last == "PrimaryAlone" || last == "PrimaryUncertain"
    });
    let replaced = member.node.replace_device(&volume);
    gone_on.with_context(|| format!("{} is {last}", other.name))?;
    replaced?;
    // By now it may be another one: that one has the dead device too.
    subject.door.delete(&subject.pod_path(&member.name), None)
}

/// Bytes of the replicant's plain files change under it; the owner asks for a comparison, and that repairs them.
pub(crate) fn files(subject: &Subject, scene: &Scene, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let volume = subject.volume(&scene.replicant)?;
    let mut all = files_below(&volume)?;
    all.retain(|file| !file.starts_with(volume.join(".tandem")) && !file.starts_with(volume.join("lost+found")));
    all.retain(|file| file.metadata().is_ok_and(|status| status.len() > 0));
    all.sort();
    if all.is_empty() {
        bail!("no file to damage");
    }
    let token = format!("t{}", dice.between(0, u64::MAX / 2));
    account.begin();
    let mut names = Vec::new();
    for _ in 0..3 {
        let file = dice.one_of(&all);
        let size = file.metadata().map_or(0, |status| status.len());
        let at = dice.between(0, size.saturating_sub(1));
        // It may have been removed meanwhile.
        if change(file, at, dice.between(1, 16).min(size - at)).is_ok() {
            names.push(file.strip_prefix(&volume)?.display().to_string());
        }
    }
    account.note = names.join(", ");
    subject.annotate(&[("resync", &token)])?;
    wait(PATIENCE, "the comparison to be completed", || {
        subject.answer("resync", &token).is_ok_and(|answer| answer.as_deref() == Some("Completed"))
    })
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
