//! Random calls by several threads, each made on a plain folder and on Tandem: the same answers, and the same files in the
//! end, on both members; also when the process that serves them is killed again and again, and after a takeover.
//! `TANDEM_BESIDE_CALLS` says how many calls each thread makes, `TANDEM_BESIDE_SEED` which.

#![allow(clippy::unwrap_used, clippy::panic)] // a test says what it expects by panicking

mod harness;

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::disks::Disk;
use harness::plugin::{kill_daemon, plugin};
use harness::trees::{Tree, difference, equal, tree};
use harness::{Dice, Pair};
use rustix::fs::{
    self, AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, Stat, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use rustix::thread;
use serde_json::json;

const THREADS: usize = 4;
/// Far more than all calls of a busy machine take.
const PATIENCE: Duration = Duration::from_secs(600);
const SLOTS: u64 = 6;
/// A time that nothing gets by itself.
const LONG_AGO: i64 = 1_000_000_000;
const NOBODY: u32 = 65534;

/// A call, as drawn. Paths are relative to the folder of the thread, slots hold open files.
#[derive(Clone, Debug)]
enum Call {
    Open { slot: usize, path: PathBuf, flags: OFlags, mode: u32 },
    Unnamed { slot: usize, path: PathBuf, mode: u32 },
    Name { slot: usize, path: PathBuf },
    Close { slot: usize },
    MakeFolder { path: PathBuf, mode: u32 },
    MakePipe { path: PathBuf, mode: u32 },
    Unlink { path: PathBuf },
    RemoveFolder { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, flags: RenameFlags },
    Link { from: PathBuf, to: PathBuf },
    SymbolicLink { to: PathBuf, path: PathBuf },
    ReadLink { path: PathBuf },
    SetMode { path: PathBuf, mode: u32 },
    SetOwner { path: PathBuf, uid: u32, gid: u32 },
    SetSize { path: PathBuf, size: u64 },
    SetTimes { path: PathBuf },
    SetAttribute { path: PathBuf, name: &'static str, value: Vec<u8>, flags: XattrFlags },
    GetAttribute { path: PathBuf, name: &'static str },
    RemoveAttribute { path: PathBuf, name: &'static str },
    Look { path: PathBuf },
    List { path: PathBuf },
    SyncFolder { path: PathBuf },
    Write { slot: usize, offset: u64, byte: u8, length: usize },
    Append { slot: usize, byte: u8, length: usize },
    Read { slot: usize, offset: u64, length: usize },
    Cut { slot: usize, size: u64 },
    Allocate { slot: usize, flags: FallocateFlags, offset: u64, length: u64 },
    Sync { slot: usize, data: bool },
    Copy { from: usize, to: usize, source: u64, target: u64, length: usize },
    SetModeOf { slot: usize, mode: u32 },
    LookAt { slot: usize },
    Lock { slot: usize, how: FlockOperation },
}

fn path(dice: &mut Dice) -> PathBuf {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "a name that is longer, with a new\nline"];
    let depth = 1 + dice.below(3);
    (0..depth).map(|_| NAMES[dice.below(NAMES.len() as u64) as usize]).collect()
}

/// Setuid and setgid only for whoever loses them by writing. (By `fallocate` everybody does here: a file system in user space
/// is not told who asks.)
fn mode(dice: &mut Dice, mighty: bool) -> u32 {
    const MODES: [u32; 10] = [0o644, 0o600, 0o755, 0o777, 0o700, 0o1777, 0o444, 0o4755, 0o2755, 0o2770];
    MODES[dice.below(if mighty { 7 } else { 10 }) as usize]
}

fn id(dice: &mut Dice) -> u32 {
    [0, 1000, NOBODY, 70_000, 4_000_000_000][dice.below(5) as usize]
}

/// Access rules as the kernel passes them: a version, then what each of those named may do.
fn rules(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    let mut say = |tag: u16, rights: u64, id: u32| {
        bytes.extend(tag.to_le_bytes());
        bytes.extend((rights as u16).to_le_bytes());
        bytes.extend(id.to_le_bytes());
    };
    say(0x01, dice.below(8), u32::MAX);
    say(0x02, dice.below(8), 1000);
    say(0x04, dice.below(8), u32::MAX);
    say(0x10, dice.below(8), u32::MAX);
    say(0x20, dice.below(8), u32::MAX);
    bytes
}

fn draw(dice: &mut Dice, mighty: bool) -> Call {
    const OPENS: [OFlags; 7] = [
        OFlags::RDWR.union(OFlags::CREATE),
        OFlags::RDWR.union(OFlags::CREATE).union(OFlags::EXCL),
        OFlags::RDWR.union(OFlags::CREATE).union(OFlags::TRUNC),
        OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::APPEND),
        OFlags::RDONLY,
        OFlags::RDWR,
        OFlags::RDWR.union(OFlags::NOFOLLOW),
    ];
    const ALLOCATIONS: [FallocateFlags; 5] = [
        FallocateFlags::empty(),
        FallocateFlags::KEEP_SIZE,
        FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE),
        FallocateFlags::ZERO_RANGE,
        FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE),
    ];
    const RENAMES: [RenameFlags; 4] =
        [RenameFlags::empty(), RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE];
    // Those that only the mightiest may set are not for a sidecar without rights.
    const ATTRIBUTES: [&str; 4] = ["user.a", "user.b", "user.a longer name", "user."];
    const LOCKS: [FlockOperation; 3] =
        [FlockOperation::NonBlockingLockExclusive, FlockOperation::NonBlockingLockShared, FlockOperation::Unlock];
    let slot = dice.below(SLOTS) as usize;
    let attribute = ATTRIBUTES[dice.below(4) as usize];
    match dice.below(46) {
        0..=5 => Call::Open { slot, path: path(dice), flags: OPENS[dice.below(7) as usize], mode: mode(dice, mighty) },
        6 => Call::Unnamed { slot, path: path(dice), mode: mode(dice, mighty) },
        7 => Call::Name { slot, path: path(dice) },
        8 => Call::Close { slot },
        9..=11 => Call::MakeFolder { path: path(dice), mode: mode(dice, mighty) },
        12 => Call::MakePipe { path: path(dice), mode: mode(dice, mighty) },
        13 | 14 => Call::Unlink { path: path(dice) },
        15 => Call::RemoveFolder { path: path(dice) },
        16..=18 => Call::Rename { from: path(dice), to: path(dice), flags: RENAMES[dice.below(4) as usize] },
        19 => Call::Link { from: path(dice), to: path(dice) },
        20 => Call::SymbolicLink { to: path(dice), path: path(dice) },
        21 => Call::ReadLink { path: path(dice) },
        22 => Call::SetMode { path: path(dice), mode: mode(dice, mighty) },
        23 => Call::SetOwner { path: path(dice), uid: id(dice), gid: id(dice) },
        24 => Call::SetSize { path: path(dice), size: dice.below(70_000) },
        25 => Call::SetTimes { path: path(dice) },
        26 => {
            let flags = [XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE][dice.below(3) as usize];
            let value = vec![7; dice.below(900) as usize];
            Call::SetAttribute { path: path(dice), name: attribute, value, flags }
        }
        27 => {
            let name = ["system.posix_acl_access", "system.posix_acl_default"][dice.below(2) as usize];
            Call::SetAttribute { path: path(dice), name, value: rules(dice), flags: XattrFlags::empty() }
        }
        28 => Call::GetAttribute { path: path(dice), name: attribute },
        29 => Call::GetAttribute { path: path(dice), name: "system.posix_acl_access" },
        30 => Call::RemoveAttribute { path: path(dice), name: attribute },
        31 => Call::Look { path: path(dice) },
        32 => Call::List { path: path(dice) },
        33 => Call::SyncFolder { path: path(dice) },
        34..=36 => {
            let length = [1, 100, 4096, 10_000, 70_000][dice.below(5) as usize];
            Call::Write { slot, offset: dice.below(200_000), byte: dice.below(256) as u8, length }
        }
        37 => Call::Append { slot, byte: dice.below(256) as u8, length: dice.below(9_000) as usize },
        38 => Call::Read { slot, offset: dice.below(220_000), length: dice.below(80_000) as usize },
        39 => Call::Cut { slot, size: dice.below(200_000) },
        40 => {
            let flags = ALLOCATIONS[dice.below(5) as usize];
            Call::Allocate { slot, flags, offset: dice.below(200_000), length: 1 + dice.below(50_000) }
        }
        41 => Call::Sync { slot, data: dice.below(2) == 0 },
        42 => Call::Copy {
            from: slot,
            to: dice.below(SLOTS) as usize,
            source: dice.below(100_000),
            target: dice.below(100_000),
            length: dice.below(60_000) as usize,
        },
        43 => Call::SetModeOf { slot, mode: mode(dice, mighty) },
        44 => Call::LookAt { slot },
        _ => Call::Lock { slot, how: LOCKS[dice.below(3) as usize] },
    }
}

/// Whether a folder's names are counted: Btrfs says that each has one, whatever lies in it.
fn counts_folders(plain: &Path) -> bool {
    std::fs::metadata(plain).unwrap().nlink() > 1
}

/// One of the two places, as one thread sees it.
struct Side {
    counts_folders: bool,
    root: PathBuf,
    slots: Vec<Option<OwnedFd>>,
}

/// What a call told, or why it failed.
type Told = Result<String, Errno>;

impl Side {
    fn new(counts_folders: bool, root: PathBuf) -> Self {
        Self { counts_folders, root, slots: (0..SLOTS).map(|_| None).collect() }
    }

    fn file(&self, slot: usize) -> Result<&OwnedFd, Errno> {
        self.slots[slot].as_ref().ok_or(Errno::BADF)
    }

    fn keep(&mut self, slot: usize, opened: Result<OwnedFd, Errno>) -> Result<(), Errno> {
        self.slots[slot] = Some(opened?);
        Ok(())
    }

    fn make(&mut self, call: &Call) -> Told {
        let here = |path: &Path| self.root.join(path);
        let mut told = String::new();
        match call {
            Call::Open { slot, path, flags, mode } => {
                let path = here(path);
                // A pipe would wait for its other end.
                let opened = fs::open(path, *flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::from_raw_mode(*mode));
                self.keep(*slot, opened)?;
            }
            Call::Unnamed { slot, path, mode } => {
                let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
                let opened = fs::open(here(path), flags, Mode::from_raw_mode(*mode));
                self.keep(*slot, opened)?;
            }
            Call::Name { slot, path } => {
                fs::linkat(self.file(*slot)?, "", CWD, here(path), AtFlags::EMPTY_PATH)?;
            }
            Call::Close { slot } => self.slots[*slot] = None,
            Call::MakeFolder { path, mode } => fs::mkdir(here(path), Mode::from_raw_mode(*mode))?,
            Call::MakePipe { path, mode } => {
                fs::mknodat(CWD, here(path), FileType::Fifo, Mode::from_raw_mode(*mode), 0)?;
            }
            Call::Unlink { path } => fs::unlink(here(path))?,
            Call::RemoveFolder { path } => fs::rmdir(here(path))?,
            Call::Rename { from, to, flags } => fs::renameat_with(CWD, here(from), CWD, here(to), *flags)?,
            Call::Link { from, to } => fs::link(here(from), here(to))?,
            Call::SymbolicLink { to, path } => fs::symlink(to, here(path))?,
            Call::ReadLink { path } => told = format!("{:?}", fs::readlink(here(path), Vec::new())?),
            Call::SetMode { path, mode } => fs::chmod(here(path), Mode::from_raw_mode(*mode))?,
            Call::SetOwner { path, uid, gid } => {
                let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
                fs::chownat(CWD, here(path), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Call::SetSize { path, size } => {
                // Without an answer for a pipe, which would wait.
                let file = fs::open(here(path), OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
                fs::ftruncate(file, *size)?;
            }
            Call::SetTimes { path } => {
                let time = Timespec { tv_sec: LONG_AGO, tv_nsec: 0 };
                let times = Timestamps { last_access: time, last_modification: time };
                fs::utimensat(CWD, here(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Call::SetAttribute { path, name, value, flags } => fs::setxattr(here(path), *name, value, *flags)?,
            Call::GetAttribute { path, name } => {
                let mut value = vec![0; 2000];
                let length = fs::getxattr(here(path), *name, &mut value[..])?;
                told = format!("{:?}", &value[..length]);
            }
            Call::RemoveAttribute { path, name } => fs::removexattr(here(path), *name)?,
            Call::Look { path } => told = self.shown(&fs::statat(CWD, here(path), AtFlags::SYMLINK_NOFOLLOW)?),
            Call::List { path } => {
                let folder = fs::open(here(path), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
                let mut names = Vec::new();
                for entry in fs::Dir::read_from(folder)? {
                    let entry = entry?;
                    names.push(format!("{:?} {:?}", entry.file_name(), entry.file_type()));
                }
                names.sort();
                told = names.join(", ");
            }
            Call::SyncFolder { path } => {
                let folder = fs::open(here(path), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
                fs::fsync(folder)?;
            }
            Call::Write { slot, offset, byte, length } => {
                let written = rustix::io::pwrite(self.file(*slot)?, &vec![*byte; *length], *offset)?;
                told = written.to_string();
            }
            Call::Append { slot, byte, length } => {
                let file = self.file(*slot)?;
                if fs::fstat(file)?.st_mode & 0o170_000 == 0o010_000 {
                    // A pipe keeps what is written to it, and nobody reads it.
                    return Ok(told);
                }
                told = rustix::io::write(file, &vec![*byte; *length])?.to_string();
            }
            Call::Read { slot, offset, length } => {
                let mut bytes = vec![0; *length];
                let read = rustix::io::pread(self.file(*slot)?, &mut bytes[..], *offset)?;
                told = format!("{read} bytes, {}", blake3::hash(&bytes[..read]).to_hex());
            }
            Call::Cut { slot, size } => fs::ftruncate(self.file(*slot)?, *size)?,
            Call::Allocate { slot, flags, offset, length } => {
                fs::fallocate(self.file(*slot)?, *flags, *offset, *length)?;
            }
            Call::Sync { slot, data: true } => fs::fdatasync(self.file(*slot)?)?,
            Call::Sync { slot, data: false } => fs::fsync(self.file(*slot)?)?,
            Call::Copy { from, to, source, target, length } => {
                let (mut source, mut target) = (*source, *target);
                let (from, to) = (self.file(*from)?, self.file(*to)?);
                told = fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), *length)?.to_string();
            }
            Call::SetModeOf { slot, mode } => fs::fchmod(self.file(*slot)?, Mode::from_raw_mode(*mode))?,
            Call::LookAt { slot } => told = self.shown(&fs::fstat(self.file(*slot)?)?),
            Call::Lock { slot, how } => fs::flock(self.file(*slot)?, *how)?,
        }
        Ok(told)
    }

    /// What must be the same of a file. Times are, as far as somebody set them.
    fn shown(&self, stat: &Stat) -> String {
        let folder = stat.st_mode & 0o170_000 == 0o040_000;
        let mut told = format!("mode {:o}, owner {}:{}", stat.st_mode, stat.st_uid, stat.st_gid);
        if !folder || self.counts_folders {
            write!(told, ", names {}", stat.st_nlink).unwrap();
        }
        if !folder {
            write!(told, ", {} bytes", stat.st_size).unwrap();
        }
        if stat.st_mtime == LONG_AGO {
            told.push_str(", of long ago");
        }
        told
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// The folders of one thread, one on each side.
fn prepare(roots: [&Path; 2], number: usize) -> [PathBuf; 2] {
    roots.map(|root| {
        let folder = root.join(format!("thread-{number}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        folder
    })
}

/// POSIX leaves to a file system how it says that a folder is not empty, and XFS says it differently.
fn one_word_for_one_thing(errno: Errno) -> Errno {
    if errno == Errno::NOTEMPTY { Errno::EXIST } else { errno }
}

/// Makes the calls of one thread. One of the threads has no rights of its own.
fn play(folders: [PathBuf; 2], number: usize, seed: u64, calls: u64) {
    if number == 0 {
        // Of this thread alone.
        thread::set_thread_groups(&[]).unwrap();
        let (uid, gid) = (Uid::from_raw(1000), Gid::from_raw(1000));
        thread::set_thread_res_gid(gid, gid, gid).unwrap();
        thread::set_thread_res_uid(uid, uid, uid).unwrap();
    }
    let mut dice = Dice::new(seed * 1_000 + number as u64);
    let counts = counts_folders(&folders[0]);
    let [mut plain, mut tandem] = folders.map(|folder| Side::new(counts, folder));
    // For whoever looks for the call that made a difference: what was done before, and succeeded.
    let mut story = Vec::new();
    for step in 0..calls {
        let call = draw(&mut dice, number > 0);
        let expected = plain.make(&call).map_err(one_word_for_one_thing);
        let found = tandem.make(&call).map_err(one_word_for_one_thing);
        let shown = format!("{step}: {call:?}").chars().take(200).collect::<String>();
        if found != expected {
            panic!("seed {seed}, thread {number}, {}\n{shown}\n{found:?} instead of {expected:?}", story.join("\n"));
        }
        if found.is_ok() {
            story.push(shown);
        }
    }
}

/// The same tree, whatever the times were that nobody set.
fn compared(counts_folders: bool, mut tree: Tree) -> Tree {
    for look in tree.values_mut() {
        look.changed = (i64::from(look.changed.0 == LONG_AGO), 0);
        if look.is_folder() && !counts_folders {
            look.names = 1;
        }
    }
    tree
}

/// `meanwhile` is called again and again until all threads have ended.
fn play_all(plain: &Path, pair: &mut Pair, seed: u64, calls: u64, mut meanwhile: impl FnMut(&mut Pair)) {
    let tandem = &pair.mount("a");
    let left = AtomicUsize::new(THREADS);
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let (folders, left) = (prepare([plain, tandem], number), &left);
            scope.spawn(move || {
                // Counted also when it ends in a panic, or nobody would hear of it.
                let played =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(folders, number, seed, calls)));
                left.fetch_sub(1, Ordering::AcqRel);
                if let Err(panic) = played {
                    std::panic::resume_unwind(panic);
                }
            });
        }
        let began = Instant::now();
        while left.load(Ordering::Acquire) > 0 {
            if began.elapsed() > PATIENCE {
                // Whoever waits in the mount would wait for ever, and nobody could be told of it.
                pair.unmount("a");
                panic!("the calls do not end; {}", pair.story());
            }
            meanwhile(pair);
        }
    });
}

/// A plain folder on the same file system as the volumes, which everybody may enter.
fn plain() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn open_to_all(pair: &Pair) {
    let home = pair.home("a");
    for folder in [home.as_path(), home.parent().unwrap()] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn same_as(plain: &Path, place: &Path, what: &str) {
    let counts = counts_folders(plain);
    let difference = difference(&compared(counts, tree(plain)), &compared(counts, tree(place)));
    assert_eq!(difference, None, "the plain folder and {what}");
}

#[test]
fn random_calls_tell_the_same_beside_a_plain_folder() {
    beside(&plain(), &mut Pair::new());
}

#[test]
#[ignore = "needs tools of other file systems: cargo verify -- --only posix"]
fn random_calls_tell_the_same_on_xfs_and_btrfs() {
    for kind in ["xfs", "btrfs"] {
        let (plain, mut pair) = (plain(), Pair::new());
        let places = [plain.path().to_path_buf(), pair.volume("a"), pair.volume("b")];
        let _disks = places.map(|place| Disk::mounted(kind, 1024, &place));
        beside(&plain, &mut pair);
        println!("{kind}: the same");
    }
}

fn beside(plain: &tempfile::TempDir, pair: &mut Pair) {
    let (seed, calls) = (number("TANDEM_BESIDE_SEED", 1), number("TANDEM_BESIDE_CALLS", 4_000));
    open_to_all(pair);
    pair.start("a");
    pair.wait_serving("a");
    pair.start("b");
    pair.wait_in_sync("a");
    play_all(plain.path(), pair, seed, calls, |_| std::thread::sleep(Duration::from_millis(50)));
    same_as(plain.path(), &pair.mount("a"), "the mount");
    same_as(plain.path(), &pair.volume("a"), "the master's volume");
    equal(pair);
    // What was asked to be durable before it is all there after a takeover.
    std::fs::File::open(pair.mount("a").join("thread-1")).unwrap().sync_all().unwrap();
    pair.kill("a");
    pair.wait_serving("b");
    same_as(plain.path(), &pair.mount("b"), "the mount after a takeover");
    pair.start("a");
    pair.wait_in_sync("b");
    equal(pair);
}

#[test]
fn random_calls_tell_the_same_while_the_serving_process_dies_again_and_again() {
    let (seed, calls) = (number("TANDEM_BESIDE_SEED", 2), number("TANDEM_BESIDE_CALLS", 4_000));
    let plain = plain();
    let mut pair = Pair::new();
    open_to_all(&pair);
    // A process that is back soon keeps the lead.
    for member in ["a", "b"] {
        pair.wish(member, json!({"settings": {"interval": 5_000, "hold": 60_000}}));
    }
    let (socket, mount) = (pair.home("a").join("plugin.sock"), pair.mount("a"));
    plugin(&socket, &mount);
    pair.supervise("a", &socket);
    pair.start("b");
    pair.wait_in_sync("a");
    let mut dice = Dice::new(seed);
    let mut deaths = 0;
    play_all(plain.path(), &mut pair, seed, calls, |pair| {
        std::thread::sleep(Duration::from_millis(200 + dice.below(600)));
        // After more of them, so close together, a supervisor leaves it to whoever started it.
        if deaths < 9 && pair.shown("a")["serving"] == true {
            kill_daemon(pair, "a");
            deaths += 1;
        }
    });
    println!("the serving process died {deaths} times");
    assert!(deaths > 0, "all was over before anything could die");
    pair.wait_in_sync("a");
    same_as(plain.path(), &mount, "the mount");
    equal(&pair);
}
