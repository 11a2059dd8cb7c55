//! Redo against histories and damage by the thousand. The reference is a volume on which the same operations were performed
//! without any trouble.

mod power;

use super::damage::damage;
use super::{RedoError, Scope, Visit, converge, trouble};
use crate::manifest::Manifest;
use crate::op::{Kind, Op, ROOT, Stamp};
use crate::volume::random::{Dice, History, access_rules, assert_same, picture};
use crate::volume::{Options, Volume};
use tandem_protocol::Position;

fn records(history: &History, after: u64) -> impl FnMut(&mut Visit<'_>) -> Result<(), RedoError> {
    move |visit| {
        for (at, (stamp, op)) in history.records.iter().enumerate().skip(after as usize) {
            visit(self::at(at as u64 + 1), *stamp, op)?;
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

struct Crashed {
    folder: tempfile::TempDir,
    manifest: Manifest,
    history: History,
}

impl Crashed {
    /// What is younger than the checkpoint.
    fn young(&self) -> &[(Stamp, Op<'static>)] {
        &self.history.records[self.manifest.position().unwrap().seq as usize..]
    }
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
        damage(&volume, &crashed.manifest, crashed.young(), dice);
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
            damage(&volume, &crashed.manifest, crashed.young(), dice);
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
fn a_foreign_volume_is_named_and_a_file_that_nobody_has_counts_as_removed() {
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
    // Looked for everywhere, which is what a master does that lost its power: its journal may have lost the removal.
    let volume = recover(&crashed, crashed.history.last(), Scope::Everything).unwrap();
    assert!(volume.attributes(file).is_err() && volume.path_of(file).is_none());
    drop(volume);
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

#[test]
fn attributes_that_have_room_only_after_others_are_gone_are_set() {
    static LARGE: [u8; 3000] = [7; 3000];
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::adopt(folder.path(), Options::default()).unwrap();
    let (id, parent, kind) = (volume.next_id(), ROOT, crate::op::Kind::File);
    let stamp = |at: usize| Stamp { time: 1_700_000_000_000_000_000 + at as i64, unique: 0 };
    let create = Op::Create { id, parent, name: b"f", kind, mode: 0o644, uid: 0, gid: 0 };
    volume.perform(&create, stamp(0)).unwrap();
    let manifest = volume.snapshot(at(0));
    let mut history = History::default();
    for op in [
        Op::SetXattr { id, name: b"user.a", value: &LARGE },
        Op::RemoveXattr { id, name: b"user.a" },
        Op::SetXattr { id, name: b"user.b", value: &LARGE },
        Op::SetXattr { id, name: b"user.c", value: b"small" },
    ] {
        volume.perform(&op, stamp(history.records.len())).unwrap();
        history.records.push((stamp(history.records.len()), op));
    }
    let before = picture(&volume);
    drop(volume);
    let upto = history.last();
    let volume =
        converge(folder.path(), Options::default(), &manifest, upto, Scope::Touched, &mut records(&history, 0));
    assert_same("attributes", &before, &picture(&volume.unwrap()));
}

#[test]
fn what_is_made_anew_inherits_nothing_from_its_folder() {
    static RULES: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(access_rules);
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::adopt(folder.path(), Options::default()).unwrap();
    let parent = volume.next_id();
    let stamp = |at: usize| Stamp { time: 1_700_000_000_000_000_000 + at as i64, unique: 0 };
    let root = Op::Create { id: parent, parent: ROOT, name: b"d", kind: Kind::Directory, mode: 0o2777, uid: 0, gid: 9 };
    volume.perform(&root, stamp(0)).unwrap();
    let rules = Op::SetXattr { id: parent, name: b"system.posix_acl_default", value: &RULES };
    volume.perform(&rules, stamp(1)).unwrap();
    let manifest = volume.snapshot(at(0));
    let mut history = History::default();
    for (name, kind, mode) in [("f", Kind::File, 0o640), ("e", Kind::Directory, 0o705), ("p", Kind::Fifo, 0o4600)] {
        let (id, name) = (volume.next_id(), name.as_bytes());
        let op = Op::Create { id, parent, name, kind, mode, uid: 0, gid: 0 };
        volume.perform(&op, stamp(history.records.len())).unwrap();
        history.records.push((stamp(history.records.len()), op));
    }
    let before = picture(&volume);
    drop(volume);
    // As after a loss of power that took them.
    for (name, is_folder) in [("f", false), ("e", true), ("p", false)] {
        let path = folder.path().join("d").join(name);
        if is_folder { std::fs::remove_dir(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    let upto = history.last();
    let volume =
        converge(folder.path(), Options::default(), &manifest, upto, Scope::Touched, &mut records(&history, 0));
    assert_same("anew", &before, &picture(&volume.unwrap()));
}

/// A history whose second last but one operation the volume refuses, as it did when it was new.
fn refused(undoing: &[(u64, Op<'static>)]) -> Result<Vec<String>, RedoError> {
    static LARGE: [u8; 70_000] = [7; 70_000];
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::adopt(folder.path(), Options::default()).unwrap();
    let (id, name) = (volume.next_id(), b"user.large");
    let mut history = History::default();
    let mut note = |unique: u64, op: Op<'static>| {
        let stamp = Stamp { time: 1_700_000_000_000_000_000 + history.records.len() as i64, unique };
        history.records.push((stamp, op));
    };
    let (parent, kind) = (ROOT, crate::op::Kind::File);
    note(3, Op::Create { id, parent, name: b"f", kind, mode: 0o644, uid: 0, gid: 0 });
    note(7, Op::Write { id, offset: 0, data: b"before" });
    note(7, Op::SetXattr { id, name, value: &LARGE });
    for (unique, op) in undoing {
        note(*unique, op.clone());
    }
    note(9, Op::Write { id, offset: 0, data: b"after!" });
    let manifest = volume.snapshot(at(0));
    drop(volume);
    let upto = history.last();
    let volume =
        converge(folder.path(), Options::default(), &manifest, upto, Scope::Touched, &mut records(&history, 0))?;
    Ok(picture(&volume))
}

#[test]
fn what_was_refused_when_it_was_new_is_passed_over() {
    let id = crate::op::FileId(2);
    let gone = Op::RemoveXattr { id, name: b"user.large" };
    let undone = [(7 | crate::op::UNDONE, gone.clone()), (7 | crate::op::UNDONE, Op::SetMode { id, mode: 0o644 })];
    let picture = refused(&undone).unwrap();
    assert!(picture.iter().any(|line| line.contains("f")), "{picture:?}");
    // Nobody says so, or of another operation of the same request.
    assert!(refused(&[]).is_err());
    assert!(refused(&[(7, gone.clone()), (7 | crate::op::UNDONE, gone)]).is_err());
}

#[test]
fn what_cannot_be_written_again_and_is_cut_off_later_is_passed_over() {
    // No volume has so much.
    const MUCH: u64 = i64::MAX as u64 - 200;
    for (cut, well) in [(Some(100), true), (Some(101), false), (Some(0), true), (None, false)] {
        let (mut crashed, volume) = crashed(&mut Dice::new(1), 30, 0);
        let id = volume.next_id();
        drop(volume);
        let create = Op::Create { id, parent: ROOT, name: b"much", kind: Kind::File, mode: 0o600, uid: 0, gid: 0 };
        let records = [Some(create), Some(Op::Allocate { id, offset: 100, length: MUCH, keep_size: false })]
            .into_iter()
            .chain([cut.map(|size| Op::Truncate { id, size }), cut.and(Some(Op::Truncate { id, size: 101 }))]);
        for (number, op) in records.flatten().enumerate() {
            crashed.history.records.push((Stamp { time: 7, unique: 2 * (number as u64 + 1) }, op));
        }
        let found = recover(&crashed, crashed.history.last(), Scope::Touched);
        let size = found.map(|volume| volume.attributes(id).unwrap().size).map_err(|error| error.to_string());
        assert_eq!(size.is_ok(), well, "cut to {cut:?}: {size:?}");
        assert!(size.is_err() || size == Ok(101));
    }
}
