//! What must be given up is kept here first: `.tandem/aside/<name>/` holds the records that only this member has, the present
//! content of the files they changed (when they were performed), and a page that says what it is. Nothing here is ever
//! removed by itself.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{ioctl_ficlone, renameat, seek};
use serde::{Deserialize, Serialize};
use tandem_protocol::Position;

use crate::disk;
use crate::journal::{Broken, Journal, JournalError, ReadError, records_after};
use crate::op::codec::CodecError;
use crate::op::{FileId, ROOT};
use crate::volume::open::{folder, stat_of};
use crate::volume::perform::{file_of, write_all};
use crate::volume::tree::is_hidden;
use crate::volume::{FOLDER, FileKind, Volume, names_in, open_root};

/// The folder's name in Tandem's folder.
pub const ASIDE: &str = "aside";
const PAGE: &str = "what-this-is.json";
/// How the names begin of what was thrown away and still takes room.
const GONE: &str = ".gone-";
/// Space that stays free: saving must not be what fills the volume.
const RESERVE_BYTES: u64 = 64 << 20;

/// What was saved, as its page says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// Name of its folder.
    pub name: String,
    /// Why it was saved.
    pub reason: String,
    /// The records saved begin after this position.
    pub after: Position,
    /// ... and end with this one.
    pub end: Position,
    /// How many.
    pub records: u64,
    /// Files that were saved with their content: id, and the path they had.
    pub files: BTreeMap<u64, String>,
}

/// Why nothing was saved. Whatever waits for it must not go on.
#[derive(Debug, thiserror::Error)]
pub enum AsideError {
    /// A human must make room, or say that it may be lost.
    #[error("saving aside needs {needed} bytes, {free} are free")]
    NoRoom {
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// The records could not be saved.
    #[error("save records aside: {0}")]
    Journal(#[from] JournalError),
    /// The records could not be read.
    #[error("save records aside: {0}")]
    Read(#[from] ReadError),
    /// A record does not hold.
    #[error("save records aside: {0}")]
    Broken(#[from] Broken),
    /// A record says what cannot be.
    #[error("save records aside: {0}")]
    Codec(#[from] CodecError),
    /// A step on files failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being attempted.
        doing: &'static str,
        /// How it failed.
        source: io::Error,
    },
}

fn on<E: Into<io::Error>>(doing: &'static str) -> impl Fn(E) -> AsideError {
    move |source| AsideError::Io { doing, source: source.into() }
}

fn home(root: &Path) -> PathBuf {
    root.join(FOLDER).join(ASIDE)
}

/// Everything that was saved and not yet thrown away, by name.
pub fn list(root: &Path) -> io::Result<Vec<Aside>> {
    let entries = match std::fs::read_dir(home(root)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut saved = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(GONE) {
            continue;
        }
        match std::fs::read(entry.path().join(PAGE)) {
            Ok(page) => saved.push(serde_json::from_slice(&page)?),
            // Without its page it was never finished.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    saved.sort_by(|one: &Aside, other: &Aside| one.name.cmp(&other.name));
    Ok(saved)
}

/// Saves the journal's records after `after`; with `performed_on`, also the present content of the files that they
/// changed. Complete and durable when it returns; a repeated call with the same name begins anew.
pub fn save(
    root: &Path,
    name: &str,
    reason: &str,
    journal: &Journal,
    after: Position,
    performed_on: Option<&Volume>,
) -> Result<Aside, AsideError> {
    let changed = match performed_on {
        Some(volume) => changed_files(journal, journal.held_after(after.seq), volume)?,
        None => BTreeMap::new(),
    };
    let end = journal.end();
    let content: u64 = changed.values().map(|(_, size)| *size).sum();
    let needed = journal.bytes_between(after.seq, end.seq).saturating_add(content);
    check_room(root, needed)?;
    let folder = begin(root, name)?;
    let (after, records) = journal.save_tail(after.seq, &folder.join("journal"))?;
    if let Some(volume) = performed_on {
        let files = folder.join("files");
        disk::create_folder(&files).map_err(on("make a folder aside"))?;
        for id in changed.keys() {
            copy(volume, *id, &files.join(id.0.to_string()))?;
        }
        disk::sync_folder(&files).map_err(on("flush a folder aside"))?;
    }
    let files = changed.into_iter().map(|(id, (path, _))| (id.0, path)).collect();
    let aside = Aside { name: name.to_string(), reason: reason.to_string(), after, end, records, files };
    finish(&folder, &aside)?;
    Ok(aside)
}

/// Moves all files of a volume aside, as they are: for a volume that belongs to somebody else, so that this member may
/// begin on an empty one.
pub fn keep_files(root: &Path, name: &str, reason: &str) -> Result<Aside, AsideError> {
    let path = begin(root, name)?;
    let from = open_root(root).map_err(on("open the volume"))?;
    let aside = open_root(&path).map_err(on("open a folder aside"))?;
    let to = folder(aside.as_fd(), "files").map_err(on("make a folder aside"))?;
    for name in names_in(&from).map_err(on("list the volume"))? {
        if !is_hidden(ROOT, &name) {
            renameat(&from, name.as_slice(), &to, name.as_slice()).map_err(on("move a file aside"))?;
        }
    }
    disk::sync_volume(&from).map_err(on("flush the volume"))?;
    let position = Position::default();
    let (name, reason) = (name.to_string(), reason.to_string());
    let aside = Aside { name, reason, after: position, end: position, records: 0, files: BTreeMap::new() };
    finish(&path, &aside)?;
    Ok(aside)
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// Makes the folder; what an interrupted attempt under the same name left is used again.
fn begin(root: &Path, name: &str) -> Result<PathBuf, AsideError> {
    if !is_plain(name) {
        return Err(on("name a folder aside")(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    let path = home(root).join(name);
    for folder in [&root.join(FOLDER), &home(root), &path] {
        disk::create_folder(folder).map_err(on("make a folder aside"))?;
    }
    Ok(path)
}

/// The page comes last: with it, what was saved counts as saved.
fn finish(folder: &Path, aside: &Aside) -> Result<(), AsideError> {
    let page = serde_json::to_vec_pretty(aside).map_err(on("describe what was saved"))?;
    disk::write_durably(&folder.join(PAGE), &page).map_err(on("describe what was saved"))
}

fn check_room(root: &Path, needed: u64) -> Result<(), AsideError> {
    let available = disk::available_bytes(root).map_err(on("ask for the volume's space"))?;
    let free = available.saturating_sub(RESERVE_BYTES);
    if needed > free { Err(AsideError::NoRoom { needed, free }) } else { Ok(()) }
}

/// The regular files that records after a position changed and that are still there: their paths and sizes.
fn changed_files(
    journal: &Journal,
    after: u64,
    volume: &Volume,
) -> Result<BTreeMap<FileId, (String, u64)>, AsideError> {
    let mut changed = BTreeMap::new();
    let mut bytes = Vec::new();
    let mut next = after + 1;
    while next <= journal.end().seq {
        bytes.clear();
        let batch = journal.read(next, 4 << 20, &mut bytes)?;
        for record in records_after(batch.before, &bytes) {
            let record = record?;
            let Some(id) = file_of(&record.op()?) else { continue };
            if changed.contains_key(&id) || volume.kind(id) != Ok(FileKind::File) {
                continue;
            }
            let path = volume.path_of(id).unwrap_or_default().escape_ascii().to_string();
            let size = volume.attributes(id).map_err(on("look at a file to save it"))?.blocks.saturating_mul(512);
            changed.insert(id, (path, size));
        }
        next = batch.last.seq + 1;
    }
    Ok(changed)
}

/// Copies a file: by sharing its blocks where the file system can, byte by byte, holes left out, where not.
fn copy(volume: &Volume, id: FileId, to: &Path) -> Result<(), AsideError> {
    let doing = "copy a file aside";
    let from = volume.open_apart(id).map_err(on(doing))?;
    let to: File =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to).map_err(on(doing))?;
    let size = stat_of(from.as_fd()).map_err(on(doing))?.stx_size;
    if ioctl_ficlone(&to, &from).is_err() {
        let mut piece = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < size {
            match seek(&from, rustix::fs::SeekFrom::Data(offset)) {
                Ok(data) => offset = data,
                Err(rustix::io::Errno::NXIO) => break,
                Err(_) => {}
            }
            let read = crate::netcopy::differences::read_full(from.as_fd(), offset, &mut piece).map_err(on(doing))?;
            if read == 0 {
                break;
            }
            write_all(to.as_fd(), offset, piece.get(..read).unwrap_or_default()).map_err(on(doing))?;
            offset += read as u64;
        }
        to.set_len(size).map_err(on(doing))?;
    }
    disk::sync_file(&to).map_err(on(doing))
}

/// Throws these away, for good: their owner said so. They are gone at once; [`sweep`] gives their room back.
pub fn throw_away(root: &Path, names: &[String]) -> Result<(), AsideError> {
    for name in names.iter().filter(|name| is_plain(name)) {
        match disk::move_durably(&home(root).join(name), &home(root).join(format!("{GONE}{name}"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved.map_err(on("throw away what was saved"))?,
        }
    }
    Ok(())
}

/// Gives back the room of what was thrown away.
pub fn sweep(root: &Path) -> Result<(), AsideError> {
    let doing = "remove what was thrown away";
    let entries = match std::fs::read_dir(home(root)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(on(doing))?,
    };
    for entry in entries {
        let entry = entry.map_err(on(doing))?;
        if entry.file_name().to_string_lossy().starts_with(GONE) {
            disk::remove_tree(&entry.path()).map_err(on(doing))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal;
    use crate::op::{Kind, Op, Stamp};
    use crate::volume::Options;

    #[test]
    fn a_tail_and_the_files_it_changed_are_kept_and_listed() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::adopt(folder.path(), Options::default()).unwrap();
        let options = journal::Options { segment_bytes: 1 << 20, pair: [1; 16] };
        let (journal, _) = Journal::open(&folder.path().join(".tandem/journal"), options).unwrap();
        let file = FileId(2);
        let ops = [
            Op::Create { id: file, parent: ROOT, name: b"f", kind: Kind::File, mode: 0o600, uid: 0, gid: 0 },
            Op::Write { id: file, offset: 0, data: b"shared" },
            Op::Write { id: file, offset: 6, data: b" and mine" },
        ];
        for op in &ops {
            journal.append(1, Stamp::default(), op).unwrap();
            volume.perform(op, Stamp::default()).unwrap();
        }
        assert_eq!(list(folder.path()).unwrap(), []);
        let shared = journal.position_at(2).unwrap().unwrap();
        let saved =
            save(folder.path(), "tail-2", "the peer went on without it", &journal, shared, Some(&volume)).unwrap();
        assert_eq!((saved.records, saved.files.len(), saved.end.seq), (1, 1, 3));
        assert_eq!(list(folder.path()).unwrap(), [saved]);
        let home = home(folder.path()).join("tail-2");
        assert_eq!(std::fs::read(home.join("files/2")).unwrap(), b"shared and mine");
        let (tail, found) = Journal::open(&home.join("journal"), options).unwrap();
        assert_eq!((tail.first(), found.end.seq), (3, 3));
        assert!(save(folder.path(), "../escape", "", &journal, shared, None).is_err());
    }

    #[test]
    fn files_of_a_foreign_volume_are_moved_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("d")).unwrap();
        std::fs::write(folder.path().join("d/f"), "x").unwrap();
        keep_files(folder.path(), "foreign", "volume of another pair").unwrap();
        assert!(!folder.path().join("d").exists());
        assert_eq!(std::fs::read(folder.path().join(".tandem/aside/foreign/files/d/f")).unwrap(), b"x");
        assert_eq!(list(folder.path()).unwrap().len(), 1);
        throw_away(folder.path(), &["other".into(), "../aside".into()]).unwrap();
        assert_eq!(list(folder.path()).unwrap().len(), 1);
        throw_away(folder.path(), &["foreign".into()]).unwrap();
        assert_eq!(list(folder.path()).unwrap(), []);
        sweep(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(home(folder.path())).unwrap().count(), 0);
    }
}
