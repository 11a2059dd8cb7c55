//! Redo on what a real file system keeps when the power goes: an ext4 on a loop device whose image is copied while it is
//! in use, at a moment of chance, and mounted again. Needs root and loop devices, as the machines that run the checks have.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Dice, History, Options, Scope, Volume, assert_same, expected, picture};
use crate::checkpoint;
use crate::journal::{self, Journal};
use crate::op::Stamp;

fn run(program: &str, arguments: &[&Path]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A mounted file system, unmounted at the end.
struct Disk {
    mountpoint: PathBuf,
}

impl Disk {
    fn mount(image: &Path, mountpoint: &Path) -> Disk {
        std::fs::create_dir_all(mountpoint).unwrap();
        run("mount", &[Path::new("-o"), Path::new("loop,commit=300"), image, mountpoint]);
        Disk { mountpoint: mountpoint.to_path_buf() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.mountpoint).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_power_failure_at_any_moment_leaves_enough() {
    for seed in 0..4 {
        let dice = &mut Dice::new(31_000 + seed);
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
        run("mkfs.ext4", &[Path::new("-q"), Path::new("-F"), &image]);
        let disk = Disk::mount(&image, &folder.path().join("disk"));
        let volume = Volume::adopt(&disk.mountpoint, Options::default()).unwrap();
        let options = journal::Options { segment_bytes: 4 << 20, pair: [7; 16] };
        let (journal, _) = Journal::open(&volume.folder().join("journal"), options).unwrap();
        checkpoint::take(&volume, &volume.snapshot(journal.end()), &journal).unwrap();
        let mut history = History::default();
        let crash_at = 100 + dice.below(900);
        while history.last() < crash_at {
            let op = crate::volume::random::operation(&volume, dice);
            let stamp = Stamp { time: 1_700_000_000_000_000_000 + history.last() as i64, unique: 0 };
            journal.append(1, stamp, &op).unwrap();
            history.records.push((stamp, op.clone()));
            volume.perform(&op, stamp).unwrap();
            match dice.below(300) {
                0 => checkpoint::take(&volume, &volume.snapshot(journal.end()), &journal).unwrap(),
                1..=10 => {
                    journal.sync().unwrap();
                }
                11..=14 => {
                    // Some of it reaches the disk early; by itself nothing does while the image is being copied.
                    let any = volume
                        .tree()
                        .nodes()
                        .filter(|(_, node)| node.kind == crate::volume::FileKind::File)
                        .map(|(id, _)| id)
                        .next();
                    if let Some(id) = any {
                        crate::disk::sync_file(volume.open_apart(id).unwrap()).unwrap();
                    }
                }
                _ => {}
            }
        }
        let durable = journal.sync().unwrap();
        assert_eq!(durable, history.last());
        let after = folder.path().join("after");
        std::fs::copy(&image, &after).unwrap();
        drop(volume);
        drop(journal);
        drop(disk);

        let disk = Disk::mount(&after, &folder.path().join("again"));
        let (journal, found) = Journal::open(&disk.mountpoint.join(".tandem/journal"), options).unwrap();
        assert_eq!(found.end.seq, history.last(), "seed {seed}");
        let scope = if seed % 2 == 0 { Scope::Touched } else { Scope::Everything };
        let volume = super::super::recover(&disk.mountpoint, Options::default(), &journal, found.end.seq, scope)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_same(&format!("seed {seed}"), &expected(&history, history.last()), &picture(&volume));
        drop(volume);
        drop(journal);
        drop(disk);
    }
}
