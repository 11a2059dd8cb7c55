//! Every durable file operation, named by the step it serves. Each says what would be lost without it, and tests can break
//! exactly one of them. Nothing else in this crate syncs or renames.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, FlockOperation, IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

/// Flushes the journal's records.
/// Without it: a power failure takes records that an application, or the peer, was told are on disk.
pub fn sync_journal(file: impl AsFd) -> io::Result<()> {
    trouble::check("sync_journal")?;
    if mistake!(JournalNotFlushed) {
        return Ok(());
    }
    if trouble::synced(&file)? {
        return Ok(());
    }
    Ok(rustix::fs::fdatasync(file)?)
}

/// Flushes a file with its size and attributes.
/// Without it: the name may outlive a power failure and the contents may not.
pub fn sync_file(file: impl AsFd) -> io::Result<()> {
    trouble::check("sync_file")?;
    if trouble::synced(&file)? {
        return Ok(());
    }
    Ok(rustix::fs::fsync(file)?)
}

/// Flushes the names in a folder.
/// Without it: a file that was synced may have no name after a power failure.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    trouble::check("sync_folder")?;
    if trouble::folder_synced(folder) {
        return Ok(());
    }
    let folder = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fsync(folder)?)
}

/// Flushes everything of the volume that holds `any`: the application's files at a checkpoint.
/// Without it: the journal would be trimmed although the volume does not hold yet what it says.
pub fn sync_volume(any: impl AsFd) -> io::Result<()> {
    trouble::check("sync_volume")?;
    if trouble::is_simulated() {
        return Ok(());
    }
    Ok(rustix::fs::syncfs(any)?)
}

/// Lets the disk begin with what was written to a part of a file. It promises nothing: whoever needs that flushes as well, and
/// finds less to do. What is on disk already leaves memory by it, so it is for files that nobody reads soon.
pub fn begin_flush(file: impl AsFd, offset: u64, length: NonZeroU64) {
    // Where it is not known or not allowed, all is left to the flush.
    rustix::fs::fadvise(file, offset, Some(length), Advice::DontNeed).ok();
}

/// Bytes that may still be used on the volume that holds a folder.
pub fn available_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Replaces a small file so that after a crash either the old or the new contents are there, whole.
/// Without the temporary file: half of the new. Without the first sync: a name for nothing. Without the last: the old one,
/// although something was already done in reliance on the new.
pub fn write_durably(path: &Path, contents: &[u8]) -> io::Result<()> {
    trouble::check("write_durably")?;
    let folder = parent(path)?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let new = folder.join(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(contents)?;
    sync_file(&file)?;
    std::fs::rename(&new, path)?;
    sync_folder(folder)
}

/// Moves a file or folder to its final name, on one volume, and makes that last.
/// Without the syncs: after a power failure it may be under the old name, or under both.
pub fn move_durably(from: &Path, to: &Path) -> io::Result<()> {
    trouble::check("move_durably")?;
    std::fs::rename(from, to)?;
    sync_folder(parent(to)?)?;
    if parent(from)? != parent(to)? {
        sync_folder(parent(from)?)?;
    }
    Ok(())
}

/// Removes a folder with everything in it, as far as it is there. Without the sync a power failure could bring it back.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    path.parent().map_or(Ok(()), sync_folder)
}

/// Removes a file and makes that last.
/// Without the sync: a mark that was taken away (a segment given up, an order done) may be back after a power failure.
pub fn remove_durably(path: &Path) -> io::Result<()> {
    trouble::check("remove_durably")?;
    match std::fs::remove_file(path) {
        Ok(()) => sync_folder(parent(path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a folder that lasts; one that exists is fine.
/// Without the sync: everything that is later synced inside it may be unreachable after a power failure.
pub fn create_folder(path: &Path) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)) {
        Ok(()) => sync_folder(parent(path)?),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What is made in a folder from now on is written in place, where a file system would otherwise write each change elsewhere.
/// Without it: on Btrfs room that was taken is no room, for writing to it takes more; a full volume would then stop the
/// journal, and not only what is written to the volume.
pub fn write_in_place(folder: &Path) -> io::Result<()> {
    let folder = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let set = ioctl_getflags(&folder).and_then(|flags| ioctl_setflags(&folder, flags | IFlags::NOCOW));
    match set {
        // Every other file system writes in place, or knows no other way.
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

/// A new file whose space is already taken, at once.
/// Without taking it: records could fail half way for want of space.
pub fn create_with_room(path: &Path, bytes: u64) -> io::Result<File> {
    trouble::check("create_with_room")?;
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let taken = match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        // A file system that cannot reserve takes the space when something is written.
        Err(Errno::OPNOTSUPP) => write_zeros(&file, 0, bytes).and_then(|()| sync_file(&file)),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = taken {
        std::fs::remove_file(path)?;
        return Err(error);
    }
    Ok(file)
}

/// The same, and written with zeros: takes as long as writing it does.
/// Without the zeros each sync of a record would also have to log the conversion of its blocks, which costs about as much
/// as the sync itself; without the sync the first record's sync would wait for all the zeros.
pub fn create_with_zeros(path: &Path, bytes: u64) -> io::Result<File> {
    let file = create_with_room(path, bytes)?;
    if let Err(error) = write_zeros(&file, 0, bytes).and_then(|()| sync_file(&file)) {
        std::fs::remove_file(path)?;
        return Err(error);
    }
    Ok(file)
}

/// Overwrites a range with zeros, as data and not as a hole, for the reason given at [`create_with_zeros`].
pub fn write_zeros(file: &File, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
    let mut at = from;
    while at < to {
        let piece = (to - at).min(ZEROS.len() as u64) as usize;
        file.write_all_at(&ZEROS[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}

/// Writes the parts of one journal entry one after the other at an offset: one system call unless the kernel stops early.
/// Not durable until [`sync_journal`]; safe from the death of this process at once.
pub fn write_entry(file: &File, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
    trouble::check("write_entry")?;
    let total: usize = parts.iter().map(|part| part.len()).sum();
    trouble::writing(file, offset, total)?;
    let mut done = 0;
    while done < total {
        let mut skip = done;
        let mut slices = [IoSlice::new(&[]); 8];
        let mut used = 0;
        for part in parts {
            let passed = skip.min(part.len());
            skip -= passed;
            if part.len() > passed && used < slices.len() {
                slices[used] = IoSlice::new(&part[passed..]);
                used += 1;
            }
        }
        match rustix::io::pwritev(file, &slices[..used], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives a prepared file its name in the journal. The folder is synced together with the first records inside it
/// (see `Journal::sync`), not here: an append must not wait for the disk.
pub fn name_segment(prepared: &Path, name: &Path) -> io::Result<()> {
    trouble::check("name_segment")?;
    trouble::renaming(prepared, name);
    std::fs::rename(prepared, name)
}

/// Takes the lock that admits one process to a member's volume on this node; it lasts as long as the descriptor.
/// Without it: two processes of one member could both write the journal.
pub fn lock(path: &Path) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file.into())
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a path without a folder"))
}

/// Breaks one named step, in tests: the step fails as often as asked on the thread that asked. The simulation has its own
/// ideas of what breaks and of what is durable.
#[cfg(test)]
pub mod trouble {
    use std::cell::RefCell;
    use std::io;

    pub(super) use crate::simulated::{folder_synced, is_on as is_simulated, renaming, synced, writing};

    thread_local! {
        static ARMED: RefCell<Vec<(&'static str, i32)>> = const { RefCell::new(Vec::new()) };
    }

    /// The next call of `step` on this thread fails with `errno`.
    pub fn break_next(step: &'static str, errno: i32) {
        ARMED.with_borrow_mut(|armed| armed.push((step, errno)));
    }

    pub(super) fn check(step: &'static str) -> io::Result<()> {
        crate::simulated::step(step)?;
        ARMED.with_borrow_mut(|armed| match armed.iter().position(|(name, _)| *name == step) {
            Some(at) => Err(io::Error::from_raw_os_error(armed.remove(at).1)),
            None => Ok(()),
        })
    }
}

/// Nothing is broken, and nothing is simulated: this is the product.
#[cfg(not(test))]
mod trouble {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsFd;
    use std::path::Path;

    #[inline(always)]
    pub(super) fn check(_step: &'static str) -> io::Result<()> {
        Ok(())
    }

    #[inline(always)]
    pub(super) fn is_simulated() -> bool {
        false
    }

    #[inline(always)]
    pub(super) fn synced(_file: &impl AsFd) -> io::Result<bool> {
        Ok(false)
    }

    #[inline(always)]
    pub(super) fn folder_synced(_folder: &Path) -> bool {
        false
    }

    #[inline(always)]
    pub(super) fn writing(_file: &File, _offset: u64, _length: usize) -> io::Result<()> {
        Ok(())
    }

    #[inline(always)]
    pub(super) fn renaming(_from: &Path, _to: &Path) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("member");
        write_durably(&path, b"old").unwrap();
        trouble::break_next("sync_file", libc::EIO);
        assert!(write_durably(&path, b"new").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        write_durably(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_second_lock_is_refused_while_the_first_lives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = lock(&path).unwrap();
        assert!(lock(&path).is_err());
        drop(first);
        lock(&path).unwrap();
    }

    #[test]
    fn an_entry_is_written_in_its_parts_order() {
        let file = tempfile::tempfile().unwrap();
        write_entry(&file, 3, &[b"ab", b"", b"cde"]).unwrap();
        let mut read = [0; 5];
        file.read_exact_at(&mut read, 3).unwrap();
        assert_eq!(&read, b"abcde");
    }
}
