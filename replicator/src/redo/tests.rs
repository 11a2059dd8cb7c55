//! Redo against histories and damage by the thousand. The reference is a volume on which the same operations were performed
//! without any trouble.

mod power;

use std::path::{Path, PathBuf};

use super::{RedoError, Scope, Visit, converge, trouble};
use crate::manifest::Manifest;
use crate::op::{FileId, Op, ROOT};
use crate::volume::random::{Dice, History, assert_same, picture};
use crate::volume::{Options, Volume};
use tandem_protocol::Position;

fn records(history: &History, after: u64) -> impl FnMut(&mut Visit<'_>) -> Result<(), RedoError> {
    move |visit| {
        for (at, (stamp, op)) in history.records.iter().enumerate().skip(after as usize) {
            visit(at as u64 + 1, *stamp, op)?;
        }
        Ok(())
    }
}

fn at(seq: u64) -> Position {
    Position { epoch: 1, seq, chain: 0 }
}

fn expected(history: &History, upto: u64) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::adopt(folder.path(), Options::default()).unwrap();
    history.perform_on(&volume, 0, upto).unwrap();
    picture(&volume)
}

/// Folders of the volume that redo has reason to look into: those that records touch, and those that are not of the
/// checkpoint.
fn touched_paths(volume: &Volume, manifest: &Manifest, history: &History) -> Vec<PathBuf> {
    let old = manifest.tree().unwrap();
    let after = manifest.position().unwrap().seq as usize;
    let mut touched: Vec<FileId> = Vec::new();
    for (_, op) in &history.records[after..] {
        if let Op::Create { parent, .. } | Op::Link { parent, .. } | Op::Unlink { parent, .. } = op {
            touched.push(*parent);
        }
        if let Op::Rename { parent, new_parent: other, .. } | Op::Exchange { parent, other_parent: other, .. } = op {
            touched.extend([*parent, *other]);
        }
    }
    touched.sort_unstable();
    touched.dedup();
    let is_new = |id: &FileId| old.node(*id).is_none();
    let born: Vec<FileId> = volume
        .tree()
        .nodes()
        .filter(|(id, node)| is_new(id) && node.directory().is_some() && !node.links().is_empty())
        .map(|(id, _)| id)
        .collect();
    touched
        .into_iter()
        .chain(born)
        .filter_map(|id| volume.path_of(id))
        .map(|path| volume.path().join(String::from_utf8(path).unwrap()))
        .collect()
}

/// Puts the volume into a state that a power failure may have left: in touched folders names of old files move about,
/// go (when another is left) and come; new files are cut, changed, moved or gone; strays appear.
fn damage(volume: &Volume, manifest: &Manifest, history: &History, dice: &mut Dice) {
    let old = manifest.tree().unwrap();
    let after = manifest.position().unwrap().seq as usize;
    // Earlier content of old files over later content, which also brings earlier sizes and rights.
    for (stamp, op) in &history.records[after..] {
        if dice.below(3) == 0
            && let Some(id) = super::file_of(op)
            && volume.kind(id).is_ok()
            && dice.below(2) == 0
            && !matches!(op, Op::RemoveXattr { .. })
        {
            volume.perform(op, *stamp).unwrap();
        }
    }
    let folders = touched_paths(volume, manifest, history);
    let own = [volume.folder().join("staging"), volume.folder().join("orphans")];
    let is_old = |path: &Path| {
        use std::os::unix::fs::MetadataExt as _;
        let ino = path.symlink_metadata().unwrap().ino();
        old.nodes().any(|(_, node)| node.backing.ino == ino)
    };
    let is_hidden = |path: &Path| path.parent() == Some(volume.path()) && path.ends_with(".tandem");
    for round in 0..1 + dice.below(12) {
        let living: Vec<&PathBuf> = folders.iter().filter(|folder| folder.is_dir()).collect();
        let Some(folder) = dice.one(&living) else { return };
        let entries: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| !is_hidden(path))
            .collect();
        match dice.below(5) {
            0 => {
                let stray = folder.join(format!("stray{round}"));
                if std::fs::create_dir(&stray).is_ok()
                    && let Some(entry) = dice.one(&entries)
                    && dice.below(2) == 0
                    // A folder may have gone into a new one and be found there.
                    && !stray.starts_with(entry)
                {
                    std::fs::rename(entry, stray.join("inside")).unwrap();
                }
            }
            1 => std::fs::write(folder.join(format!("n{}", dice.below(40) + 12)), "stray").unwrap(),
            2 => {
                let Some(entry) = dice.one(&entries) else { continue };
                let into = if dice.below(2) == 0 {
                    dice.one(&living).map(|folder| folder.join(format!("moved{round}")))
                } else {
                    dice.one(&own).map(|folder| folder.join(format!("moved{round}")))
                };
                let into = into.unwrap();
                if !into.starts_with(entry) {
                    std::fs::rename(entry, into).unwrap();
                }
            }
            3 => {
                let Some(entry) = dice.one(&entries) else { continue };
                if entry.is_file() && !entry.is_symlink() && !is_old(entry) {
                    match dice.below(3) {
                        0 => std::fs::remove_file(entry).unwrap(),
                        1 => std::fs::write(entry, "").unwrap(),
                        _ => std::fs::write(entry, "not what was written").unwrap(),
                    }
                }
            }
            _ => {
                let Some(entry) = dice.one(&entries) else { continue };
                if entry.is_file() && !entry.is_symlink() {
                    // A second name that the journal does not know, or did not know yet.
                    std::fs::hard_link(entry, folder.join(format!("linked{round}"))).unwrap();
                }
            }
        }
    }
}

struct Crashed {
    folder: tempfile::TempDir,
    manifest: Manifest,
    history: History,
}

/// A history with a checkpoint somewhere in it.
fn crashed(dice: &mut Dice, before: usize, after: usize) -> (Crashed, Volume) {
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::adopt(folder.path(), Options::default()).unwrap();
    let mut history = History::default();
    history.go_on(&volume, dice, before);
    let manifest = volume.snapshot(at(history.last()));
    history.go_on(&volume, dice, after);
    (Crashed { folder, manifest, history }, volume)
}

fn recover(crashed: &Crashed, upto: u64, scope: Scope) -> Result<Volume, RedoError> {
    let after = crashed.manifest.position().unwrap().seq;
    converge(
        crashed.folder.path(),
        Options::default(),
        &crashed.manifest,
        upto,
        scope,
        &mut records(&crashed.history, after),
    )
}

#[test]
fn a_killed_process_finds_everything_as_it_was() {
    for seed in 0..30 {
        let dice = &mut Dice::new(seed);
        let (crashed, volume) = crashed(dice, 1 + (seed as usize * 7) % 150, (seed as usize * 13) % 150);
        let before = picture(&volume);
        drop(volume);
        let volume = recover(&crashed, crashed.history.last(), Scope::Touched)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_same(&format!("seed {seed}"), &before, &picture(&volume));
        assert_same(
            &format!("seed {seed} against the reference"),
            &expected(&crashed.history, crashed.history.last()),
            &picture(&volume),
        );
        assert_eq!(std::fs::read_dir(volume.folder().join("staging")).unwrap().count(), 0, "seed {seed}");
    }
}

#[test]
fn any_mixture_of_old_and_new_converges() {
    for seed in 0..100 {
        let dice = &mut Dice::new(1000 + seed);
        let (crashed, volume) = crashed(dice, 1 + (seed as usize * 7) % 120, 1 + (seed as usize * 13) % 150);
        damage(&volume, &crashed.manifest, &crashed.history, dice);
        drop(volume);
        let volume = recover(&crashed, crashed.history.last(), Scope::Touched)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_same(&format!("seed {seed}"), &expected(&crashed.history, crashed.history.last()), &picture(&volume));
        assert_eq!(std::fs::read_dir(volume.folder().join("staging")).unwrap().count(), 0, "seed {seed}");
    }
}

#[test]
fn a_crash_in_the_middle_of_redo_is_a_crash_like_any_other() {
    for seed in 0..50 {
        let dice = &mut Dice::new(5000 + seed);
        let (crashed, volume) = crashed(dice, 1 + (seed as usize * 7) % 120, 1 + (seed as usize * 13) % 100);
        if seed % 2 == 0 {
            damage(&volume, &crashed.manifest, &crashed.history, dice);
        }
        drop(volume);
        let mut failed = 0;
        for _ in 0..4 {
            trouble::break_after(dice.below(60));
            failed += u32::from(recover(&crashed, crashed.history.last(), Scope::Touched).is_err());
            trouble::heal();
        }
        let volume = recover(&crashed, crashed.history.last(), Scope::Touched)
            .unwrap_or_else(|error| panic!("seed {seed} after {failed} failures: {error}"));
        assert_same(&format!("seed {seed}"), &expected(&crashed.history, crashed.history.last()), &picture(&volume));
    }
}

#[test]
fn names_from_a_tail_that_is_given_up_are_undone() {
    for seed in 0..30 {
        let dice = &mut Dice::new(9000 + seed);
        let (mut crashed, volume) = crashed(dice, 1 + (seed as usize * 7) % 120, (seed as usize * 13) % 100);
        let upto = crashed.history.last();
        while crashed.history.last() < upto + 30 {
            let op = crate::volume::random::operation(&volume, dice);
            if super::file_of(&op).is_none() && !matches!(op, Op::Drop { .. }) {
                let stamp = crate::op::Stamp { time: 5, unique: 0 };
                crashed.history.records.push((stamp, op.clone()));
                volume.perform(&op, stamp).unwrap();
            }
        }
        drop(volume);
        let volume = recover(&crashed, upto, Scope::Touched).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_same(&format!("seed {seed}"), &expected(&crashed.history, upto), &picture(&volume));
    }
}

#[test]
fn a_master_that_lost_the_end_of_its_journal_shows_no_names_from_it() {
    for seed in 0..30 {
        let dice = &mut Dice::new(12_000 + seed);
        let (mut crashed, volume) = crashed(dice, 1 + (seed as usize * 7) % 120, (seed as usize * 13) % 100);
        let kept = crashed.history.clone();
        while crashed.history.last() < kept.last() + 20 {
            let op = crate::volume::random::operation(&volume, dice);
            if super::file_of(&op).is_none() && !matches!(op, Op::Drop { .. }) {
                let stamp = crate::op::Stamp { time: 5, unique: 0 };
                crashed.history.records.push((stamp, op.clone()));
                volume.perform(&op, stamp).unwrap();
            }
        }
        drop(volume);
        crashed.history = kept;
        let volume = recover(&crashed, crashed.history.last(), Scope::Everything)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_same(&format!("seed {seed}"), &expected(&crashed.history, crashed.history.last()), &picture(&volume));
    }
}

#[test]
fn a_missing_file_and_a_foreign_volume_are_named() {
    let dice = &mut Dice::new(7);
    let (crashed, volume) = crashed(dice, 100, 0);
    let file = volume
        .tree()
        .nodes()
        .find(|(_, node)| node.kind == crate::volume::FileKind::File && node.links().len() == 1)
        .map(|(id, _)| id)
        .unwrap();
    let path = volume.path().join(String::from_utf8(volume.path_of(file).unwrap()).unwrap());
    drop(volume);
    std::fs::remove_file(path).unwrap();
    match recover(&crashed, crashed.history.last(), Scope::Everything) {
        Err(RedoError::Lost(lost)) => assert_eq!(lost, [file]),
        other => panic!("{other:?}"),
    }
    let elsewhere = Crashed { folder: tempfile::tempdir().unwrap(), ..crashed };
    assert!(matches!(recover(&elsewhere, elsewhere.history.last(), Scope::Touched), Err(RedoError::OtherVolume)));
    assert_eq!(elsewhere.manifest.tree().unwrap().parent(ROOT), None);
}

#[test]
fn a_member_that_is_killed_again_and_again_loses_nothing() {
    use crate::journal::{self, Journal};
    for seed in 0..12 {
        let dice = &mut Dice::new(77_000 + seed);
        let folder = tempfile::tempdir().unwrap();
        let journal_folder = tempfile::tempdir().unwrap();
        let options = journal::Options { segment_bytes: 1 << 20, pair: [7; 16] };
        let mut volume = Volume::adopt(folder.path(), Options::default()).unwrap();
        let (mut journal, _) = Journal::open(journal_folder.path(), options).unwrap();
        crate::checkpoint::take(&volume, &volume.snapshot(journal.end()), &journal).unwrap();
        let mut history = History::default();
        for _ in 0..5 {
            for _ in 0..dice.below(120) {
                let op = crate::volume::random::operation(&volume, dice);
                let stamp = crate::op::Stamp { time: 1_700_000_000_000_000_000 + history.last() as i64, unique: 0 };
                journal.append(1, stamp, &op).unwrap();
                history.records.push((stamp, op.clone()));
                volume.perform(&op, stamp).unwrap();
                if dice.below(60) == 0 {
                    crate::checkpoint::take(&volume, &volume.snapshot(journal.end()), &journal).unwrap();
                    journal.trim_below(journal.end().seq).unwrap();
                }
            }
            drop(volume);
            drop(journal);
            let (opened, found) = Journal::open(journal_folder.path(), options).unwrap();
            assert_eq!(found.end.seq, history.last());
            journal = opened;
            volume = super::recover(folder.path(), Options::default(), &journal, history.last(), Scope::Touched)
                .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            volume.begin_epoch(2);
            assert_same(&format!("seed {seed}"), &expected(&history, history.last()), &picture(&volume));
        }
    }
}
