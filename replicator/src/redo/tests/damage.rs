//! What a power failure may leave of a volume, for tests: anything between the last checkpoint and now.

use std::path::{Path, PathBuf};

use crate::manifest::Manifest;
use crate::op::{FileId, Op, Stamp};
use crate::volume::Volume;
use crate::volume::random::Dice;

/// Folders of the volume that redo has reason to look into: those that records touch, and those that are not of the
/// checkpoint.
fn touched_paths(volume: &Volume, manifest: &Manifest, records: &[(Stamp, Op<'_>)]) -> Vec<PathBuf> {
    let old = manifest.tree().unwrap();
    let mut touched: Vec<FileId> = Vec::new();
    for (_, op) in records {
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
pub(crate) fn damage(volume: &Volume, manifest: &Manifest, records: &[(Stamp, Op<'_>)], dice: &mut Dice) {
    let old = manifest.tree().unwrap();
    // Earlier content of old files over later content, which also brings earlier sizes and rights.
    for (stamp, op) in records {
        if dice.below(3) == 0
            && let Some(id) = super::file_of(op)
            && volume.kind(id).is_ok()
            && dice.below(2) == 0
            && !matches!(op, Op::RemoveXattr { .. })
        {
            volume.perform(op, *stamp).unwrap();
        }
    }
    let folders = touched_paths(volume, manifest, records);
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
