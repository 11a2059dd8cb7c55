//! Netcopy between two folders, with writers at work, interrupted, repeated, and against a peer that breaks the rules.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::{Copied, Item, NetcopyError, Reply, Source, Step, Target, from_bytes, to_bytes};
use crate::disk;
use crate::op::{FileId, Kind, Op, ROOT, Stamp};
use crate::volume::random::{Dice, History, assert_same, operation, picture};
use crate::volume::{Options, Volume};
use tandem_protocol::Position;

/// A master: a volume, and what was done to it.
struct Master {
    _folder: tempfile::TempDir,
    volume: Arc<Volume>,
    history: Arc<Mutex<History>>,
}

fn master() -> Master {
    let folder = tempfile::tempdir().unwrap();
    let volume = Arc::new(Volume::adopt(folder.path(), Options::default()).unwrap());
    Master { _folder: folder, volume, history: Arc::default() }
}

impl Master {
    fn go_on(&self, dice: &mut Dice, count: usize) {
        self.history.lock().unwrap().go_on(&self.volume, dice, count);
    }

    fn write(&self, id: FileId, offset: u64, data: &[u8]) {
        let data: &'static [u8] = Box::leak(data.to_vec().into_boxed_slice());
        self.perform(Op::Write { id, offset, data });
    }

    fn perform(&self, op: Op<'static>) {
        let mut history = self.history.lock().unwrap();
        let stamp = Stamp { time: 1_600_000_000_000_000_000 + history.last() as i64 * 1_000_003, unique: 0 };
        history.records.push((stamp, op.clone()));
        self.volume.perform(&op, stamp).unwrap();
    }

    fn file(&self, name: &'static str, size: usize, seed: u64) -> FileId {
        let id = self.volume.next_id();
        self.perform(Op::Create {
            id,
            parent: ROOT,
            name: name.as_bytes(),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
        });
        let mut dice = Dice::new(seed);
        let data: Vec<u8> = (0..size).map(|_| dice.below(256) as u8).collect();
        self.write(id, 0, &data);
        id
    }

    fn source(&self) -> Source {
        let history = self.history.lock().unwrap();
        let manifest = self.volume.snapshot(Position { epoch: 1, seq: history.last(), chain: 9 });
        drop(history);
        let history = Arc::clone(&self.history);
        Source::new(Arc::clone(&self.volume), manifest, move || history.lock().unwrap().last()).unwrap()
    }

    /// What the target must do after the copy.
    fn catch_up(&self, copied: &Copied) {
        let history = self.history.lock().unwrap();
        history.perform_on(&copied.volume, copied.position.seq, history.last()).unwrap();
    }

    fn check(&self, what: &str, copied: &Copied) {
        assert!(copied.through <= self.history.lock().unwrap().last());
        self.catch_up(copied);
        assert_same(what, &picture(&self.volume), &picture(&copied.volume));
        assert_eq!(copied.volume.digest().unwrap(), self.volume.digest().unwrap());
        assert_eq!(std::fs::read_dir(copied.volume.folder().join("staging")).unwrap().count(), 0);
    }
}

fn target(path: &Path) -> Target {
    Target::new(path, Options::default(), None, Box::new(|_| Ok(())), Box::new(|_| Ok(())))
}

/// Carries messages to and fro until both are done, or until `steps` are over.
fn carry(source: &mut Source, mut target: Target, steps: u64) -> Result<Option<Copied>, NetcopyError> {
    let mut now = Instant::now();
    for _ in 0..steps {
        let mut moved = false;
        match source.step(now)? {
            Step::Send(items) => {
                moved = true;
                target.accept(from_bytes::<Vec<Item>>(&to_bytes(&items)?)?)?;
            }
            Step::Pause(time) => {
                moved = true;
                now += time;
            }
            Step::Wait => {}
            Step::Finished => return Ok(target.into_copied()),
        }
        if let Step::Send(reply) = target.step()? {
            moved = true;
            source.accept(from_bytes::<Reply>(&to_bytes(&reply)?)?)?;
        }
        assert!(moved, "both wait for each other");
    }
    Ok(None)
}

#[test]
fn a_quiet_volume_is_copied_whole() {
    for seed in 0..20 {
        let master = master();
        master.go_on(&mut Dice::new(seed), 10 + seed as usize * 12);
        let folder = tempfile::tempdir().unwrap();
        let copied = carry(&mut master.source(), target(folder.path()), u64::MAX).unwrap().unwrap();
        assert_same(&format!("seed {seed}"), &picture(&master.volume), &picture(&copied.volume));
    }
}

#[test]
fn writers_at_work_are_caught_up_from_the_journal() {
    for seed in 0..12 {
        let master = Arc::new(master());
        master.go_on(&mut Dice::new(seed), 300);
        for number in 0..3 {
            master.file(["big1", "big2", "big3"][number], 300_000, seed + number as u64);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (master, stop) = (Arc::clone(&master), Arc::clone(&stop));
                std::thread::spawn(move || {
                    let dice = &mut Dice::new(seed * 100 + writer);
                    while !stop.load(Ordering::Relaxed) {
                        // As capture does it: journal and volume under the same lock.
                        let mut history = master.history.lock().unwrap();
                        let op = operation(&master.volume, dice);
                        let stamp =
                            Stamp { time: 1_700_000_000_000_000_000 + history.last() as i64 * 1_000_003, unique: 0 };
                        history.records.push((stamp, op.clone()));
                        master.volume.perform(&op, stamp).unwrap();
                    }
                })
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let copied = carry(&mut master.source(), target(folder.path()), u64::MAX).unwrap().unwrap();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().unwrap();
        }
        master.check(&format!("seed {seed}"), &copied);
    }
}

#[test]
fn an_interrupted_copy_begins_again_from_whatever_is_there() {
    for seed in 0..25 {
        let master = master();
        let dice = &mut Dice::new(seed);
        master.go_on(dice, 200);
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..4 {
            let steps = dice.below(12);
            if let Some(copied) = carry(&mut master.source(), target(folder.path()), steps).unwrap() {
                master.check(&format!("seed {seed}, in between"), &copied);
            }
            master.go_on(dice, 60);
        }
        let copied = carry(&mut master.source(), target(folder.path()), u64::MAX).unwrap().unwrap();
        master.check(&format!("seed {seed}"), &copied);
    }
}

#[test]
fn what_failed_to_reach_the_disk_is_sent_again() {
    let master = master();
    master.file("large", 1 << 20, 1);
    let folder = tempfile::tempdir().unwrap();
    disk::trouble::break_next("sync_volume", libc::EIO);
    assert!(matches!(carry(&mut master.source(), target(folder.path()), u64::MAX), Err(NetcopyError::Io { .. })));
    let mut source = master.source();
    let copied = carry(&mut source, target(folder.path()), u64::MAX).unwrap().unwrap();
    assert!(source.progress().bytes_sent > 1 << 20, "what was read from memory counted as being on disk");
    master.check("after", &copied);
}

#[test]
fn setuid_is_kept_by_whoever_loses_it_by_writing() {
    let master = master();
    let id = master.file("program", 100_000, 1);
    master.perform(Op::SetMode { id, mode: 0o6755 });
    let folder = tempfile::tempdir().unwrap();
    // As in a user namespace. Of this thread alone.
    let mut rights = capabilities(None).unwrap();
    rights.effective.remove(CapabilitySet::FSETID);
    set_capabilities(None, rights).unwrap();
    let copied = carry(&mut master.source(), target(folder.path()), u64::MAX).unwrap().unwrap();
    assert_eq!(copied.volume.attributes(id).unwrap().mode, 0o6755);
    // And when only the content differs.
    drop(copied);
    master.write(id, 70_000, b"otherwise");
    master.perform(Op::SetMode { id, mode: 0o6755 });
    let copied = carry(&mut master.source(), target(folder.path()), u64::MAX).unwrap().unwrap();
    assert_eq!(copied.volume.attributes(id).unwrap().mode, 0o6755);
}

#[test]
fn files_that_only_the_target_has_go_and_are_prepared_for_before() {
    let master = master();
    master.go_on(&mut Dice::new(1), 100);
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("own/deep")).unwrap();
    std::fs::write(folder.path().join("own/deep/only copy"), "x").unwrap();
    let path = folder.path().to_path_buf();
    let failing = Target::new(
        &path,
        Options::default(),
        None,
        Box::new(|_| Err(std::io::ErrorKind::StorageFull.into())),
        Box::new(|_| Ok(())),
    );
    assert!(matches!(carry(&mut master.source(), failing, u64::MAX), Err(NetcopyError::Io { .. })));
    assert!(path.join("own/deep/only copy").exists(), "nothing goes before it is saved");
    let copied = carry(&mut master.source(), target(&path), u64::MAX).unwrap().unwrap();
    master.check("after", &copied);
    assert!(!path.join("own").exists());
}

#[test]
fn a_second_copy_sends_what_changed() {
    let master = master();
    let big = master.file("big", 8 << 20, 1);
    for number in 0..50u8 {
        master.file(Box::leak(format!("small{number}").into_boxed_str()), 3000, u64::from(number));
    }
    let folder = tempfile::tempdir().unwrap();
    let copied = carry(&mut master.source(), target(folder.path()), u64::MAX).unwrap().unwrap();
    assert!(copied.progress.bytes_sent >= 8 << 20);
    let held = copied.volume.snapshot(copied.position);
    drop(copied);
    master.write(big, 5 << 20, &[7; 80_000]);
    master.write(big, (8 << 20) - 5, &[7; 100]);
    let small = master.volume.lookup(ROOT, b"small7").unwrap();
    master.perform(Op::Truncate { id: small, size: 10 });
    let again = Target::new(folder.path(), Options::default(), Some(held), Box::new(|_| Ok(())), Box::new(|_| Ok(())));
    let mut source = master.source();
    let copied = carry(&mut source, again, u64::MAX).unwrap().unwrap();
    assert!(copied.progress.bytes_sent < 160_000, "{} bytes for 80 thousand", copied.progress.bytes_sent);
    master.check("differences", &copied);
}

#[test]
fn differences_that_are_scattered_fit_into_messages() {
    let master = master();
    let big = master.file("big", 8 << 20, 1);
    let folder = tempfile::tempdir().unwrap();
    let copied = carry(&mut master.source(), target(folder.path()), u64::MAX).unwrap().unwrap();
    let held = copied.volume.snapshot(copied.position);
    drop(copied);
    // As a database leaves it that was killed: one page of two is another one.
    for place in (0..8 << 20).step_by(32 << 10) {
        master.write(big, place, b"page");
    }
    let again = Target::new(folder.path(), Options::default(), Some(held), Box::new(|_| Ok(())), Box::new(|_| Ok(())));
    let copied = carry(&mut master.source(), again, u64::MAX).unwrap().unwrap();
    assert!((4 << 20..5 << 20).contains(&copied.progress.bytes_sent), "{} bytes", copied.progress.bytes_sent);
    master.check("scattered", &copied);
}

#[test]
fn holes_are_not_sent_and_stay_holes() {
    use std::os::unix::fs::MetadataExt as _;
    let master = master();
    let id = master.file("sparse", 100, 3);
    master.perform(Op::Truncate { id, size: 1 << 43 });
    master.write(id, 5_000_000_123, b"island");
    let folder = tempfile::tempdir().unwrap();
    let copied = carry(&mut master.source(), target(folder.path()), u64::MAX).unwrap().unwrap();
    assert!(copied.progress.bytes_sent < 100_000);
    let mut island = [0; 8];
    copied.volume.read(copied.volume.lookup(ROOT, b"sparse").unwrap(), 5_000_000_122, &mut island).unwrap();
    assert_eq!(&island, b"\0island\0");
    assert!(std::fs::metadata(folder.path().join("sparse")).unwrap().blocks() < 1000);
    assert_eq!(copied.volume.attributes(id).unwrap().size, 1 << 43);
    // Again, now that the target holds it; and with the island gone.
    master.perform(Op::Punch { id, offset: 4_000_000_000, length: 2_000_000_000 });
    drop(copied);
    let copied = carry(&mut master.source(), target(folder.path()), u64::MAX).unwrap().unwrap();
    copied.volume.read(id, 5_000_000_122, &mut island).unwrap();
    assert_eq!(island, [0; 8]);
}

#[test]
fn the_source_keeps_to_its_rate() {
    let master = master();
    master.file("big", 4 << 20, 1);
    let folder = tempfile::tempdir().unwrap();
    let mut source = master.source();
    source.limit(Some(1 << 20));
    let mut target = target(folder.path());
    let start = Instant::now();
    let mut now = start;
    loop {
        match source.step(now).unwrap() {
            Step::Send(items) => target.accept(items).unwrap(),
            Step::Pause(time) => now += time,
            Step::Wait => {}
            Step::Finished => break,
        }
        if let Step::Send(reply) = target.step().unwrap() {
            source.accept(reply).unwrap();
        }
    }
    let took = now - start;
    assert!(took > Duration::from_millis(3000) && took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn a_peer_that_breaks_the_rules_is_refused() {
    let master = master();
    master.go_on(&mut Dice::new(1), 60);
    let first = master.file("first", 50_000, 2);
    let messages = {
        let mut source = master.source();
        let folder = tempfile::tempdir().unwrap();
        let mut target = target(folder.path());
        let mut messages = Vec::new();
        while !matches!(
            source.step(Instant::now()).map(|step| if let Step::Send(items) = step {
                target.accept(items.clone()).unwrap();
                messages.extend(items);
                false
            } else {
                matches!(step, Step::Finished)
            }),
            Ok(true)
        ) {
            if let Step::Send(reply) = target.step().unwrap() {
                source.accept(reply).unwrap();
            }
        }
        messages
    };
    // Every item left out, doubled, or bent: an error or, for what is only a hint, the same result; never a panic.
    for (at, item) in messages.iter().enumerate() {
        for trouble in 0..3 {
            let mut bent = messages.clone();
            match trouble {
                0 => drop(bent.remove(at)),
                1 => bent.insert(at, item.clone()),
                _ => {
                    let mut bytes = to_bytes(&vec![item.clone()]).unwrap();
                    let place = bytes.len() / 2;
                    bytes[place] ^= 0x55;
                    let Ok(items) = from_bytes::<Vec<Item>>(&bytes) else { continue };
                    bent.splice(at..=at, items);
                }
            }
            let folder = tempfile::tempdir().unwrap();
            let mut target = target(folder.path());
            let result = target.accept(bent);
            if let (Ok(()), Some(copied)) = (&result, target.into_copied()) {
                let names = |volume: &Volume| picture(volume).len();
                assert_eq!(names(&copied.volume), names(&master.volume), "item {at}, trouble {trouble}");
            }
        }
    }
    // It would count as long as it says and hold nothing.
    let content = messages.iter().position(|item| matches!(item, Item::Data { .. })).unwrap();
    let mut empty = messages[..content].to_vec();
    empty.push(Item::Hole { offset: 0, length: 1 << 20 });
    empty.push(Item::Data { offset: 1 << 20, data: super::Blob(Vec::new()) });
    let evil: [Vec<Item>; 5] = [
        empty,
        vec![Item::Begin { version: 1, position: Position::default(), manifest_bytes: u64::MAX }],
        vec![Item::Data { offset: 0, data: super::Blob(vec![1]) }],
        vec![Item::Begin { version: 7, position: Position::default(), manifest_bytes: 5 }],
        vec![Item::Gone(first)],
    ];
    for items in evil {
        let folder = tempfile::tempdir().unwrap();
        assert!(target(folder.path()).accept(items).is_err());
    }
    assert!(from_bytes::<Vec<Item>>(&vec![0xFF; 2 << 20]).is_err());
    let mut source = master.source();
    assert!(source.accept(Reply::Complete).is_err());
    assert!(source.accept(Reply::Digests { id: first, digests: super::Blob(vec![0; 16]), last: true }).is_err());
}
