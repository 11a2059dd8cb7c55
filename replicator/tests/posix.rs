//! POSIX to the letter, judged by other people's programs on a pair in sync: `pjdfstest` for what every call must do, `fsx`
//! for what a file holds after many of them. `cargo verify -- --only posix` builds both and says where they are.

#![allow(clippy::unwrap_used, clippy::panic)] // a test says what it expects by panicking

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::disks::Disk;
use harness::trees::equal;
use harness::{Pair, append, judge};
use rustix::io::Errno;

/// Who has no rights of his own.
const NOBODY: u32 = 65534;

fn tool(name: &str) -> PathBuf {
    let folder = std::env::var_os("TANDEM_POSIX_TOOLS").unwrap_or_else(|| panic!("run `cargo verify -- --only posix`"));
    PathBuf::from(folder).join(name)
}

/// Why a case may fail here.
fn excused(case: &str) -> bool {
    // Device files: the sidecar has no right to make any, and a volume that brings some along would hand rights out.
    case.split("::").any(|part| part == "block" || part == "char")
        // The C library says that a file of an unknown file system has 127 names at most; more are possible.
        || case == "link::link_count_max"
}

fn in_sync() -> Pair {
    let mut pair = Pair::new();
    pair.start("a");
    pair.wait_serving("a");
    pair.start("b");
    pair.wait_in_sync("a");
    pair
}

/// What each case came to, by its name.
fn cases(folder: &Path, root: bool) -> BTreeMap<String, String> {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let settings = place.path().join("settings.toml");
    fs::write(
        &settings,
        "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutimensat = {}\nutime_now = {}\nstat_st_birthtime = {}\n\
         [settings]\nnaptime = 0.02\nallow_remount = false\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n",
    )
    .unwrap();
    // Where it was built nobody else may look.
    let program = place.path().join("pjdfstest");
    fs::copy(tool("pjdfstest"), &program).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(&settings).arg("-p").arg(folder).env("NO_COLOR", "1");
    if !root {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found = BTreeMap::new();
    for line in told.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [name, result @ ("ok" | "FAILED" | "skipped")] = words[..] {
            found.insert(name.to_string(), result.to_string());
        }
    }
    assert!(found.len() > 300, "{told}{}", String::from_utf8_lossy(&output.stderr));
    found
}

#[test]
#[ignore = "needs pjdfstest: cargo verify -- --only posix"]
fn every_case_that_the_volume_passes_passes_here() {
    let mut pair = in_sync();
    for root in [true, false] {
        let here = pair.mount("a").join("cases");
        let there = pair.home("a").join("cases");
        for folder in [&here, &there] {
            fs::create_dir(folder).unwrap();
            fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
        }
        // Whoever has no rights of his own must at least reach them.
        let home = pair.home("a");
        for folder in [home.as_path(), home.parent().unwrap()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let (expected, found) = (cases(&there, root), cases(&here, root));
        let passed = found.values().filter(|result| *result == "ok").count();
        println!("{passed} of {} cases pass {}", found.len(), if root { "as root" } else { "as nobody" });
        let worse: Vec<&String> = expected
            .iter()
            .filter(|(name, result)| *result == "ok" && found[*name] != "ok" && !excused(name))
            .map(|(name, _)| name)
            .collect();
        assert!(worse.is_empty(), "passed by the volume, not here: {worse:?}");
        fs::remove_dir(&here).unwrap();
        fs::remove_dir(&there).unwrap();
    }
    equal(&pair);
    pair.stop("b");
    pair.stop("a");
}

#[test]
#[ignore = "needs fsx: cargo verify -- --only posix"]
fn random_operations_on_one_file_read_as_they_were_written() {
    let count = std::env::var("TANDEM_FSX_OPERATIONS").unwrap_or_else(|_| "5000".into());
    let mut pair = in_sync();
    let settings = pair.home("a").join("fsx.toml");
    fs::write(
        &settings,
        "flen = 1048576\n[opsize]\nmax = 131072\nmin = 1\n[weights]\nclose_open = 1\nread = 10\nwrite = 10\nmapread = 10\n\
         mapwrite = 10\ninvalidate = 1\ntruncate = 5\nfsync = 1\nfdatasync = 1\nposix_fallocate = 2\npunch_hole = 3\n\
         sendfile = 2\nposix_fadvise = 1\ncopy_file_range = 3\n",
    )
    .unwrap();
    for seed in 1..=8 {
        let mut command = Command::new(tool("fsx"));
        command.arg("-f").arg(&settings).args(["-N", &count, "-S", &seed.to_string()]).arg("-P").arg(pair.home("a"));
        let output = command.arg(pair.mount("a").join(format!("file-{seed}"))).output().unwrap();
        let told = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&told));
    }
    println!("8 seeds, {count} operations each");
    equal(&pair);
    pair.stop("b");
    pair.stop("a");
}

/// What `stress-ng` does to files, each for a moment by two processes that check what they read.
const STRESSORS: &str = "access aio aiol chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup \
    fallocate fault fcntl fiemap file-ioctl filename flock fpunch fsize fstat getdent handle hdd inode-flags inotify io io-uring iomix \
    lease link locka lockf lockofd mknod msync msyncmany open readahead rename revio seek sendfile splice symlink sync-file \
    touch utime verity xattr";

/// How a stressor ended: well, with something that it found, or without having been able to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stressed {
    Passed,
    Failed,
    Impossible,
}

fn stress(name: &str, folder: &Path) -> (Stressed, String) {
    let mut command = Command::new("stress-ng");
    command.args([&format!("--{name}"), "2", "--timeout", "1", "--verify", "--temp-path"]).arg(folder);
    // Otherwise a gigabyte.
    if ["hdd", "iomix", "readahead", "revio"].contains(&name) {
        command.args([&format!("--{name}-bytes"), "32M"]);
    }
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let result = match output.status.code() {
        Some(0) => Stressed::Passed,
        // No resources, or not made for this system.
        Some(3 | 4) => Stressed::Impossible,
        _ => Stressed::Failed,
    };
    (result, told)
}

#[test]
#[ignore = "needs stress-ng: cargo verify -- --only posix"]
fn stressors_find_no_more_than_on_the_volume() {
    let mut pair = in_sync();
    let home = pair.home("a");
    let there = home.join("stress");
    fs::create_dir(&there).unwrap();
    let (mut passed, mut worse) = (0, Vec::new());
    for name in STRESSORS.split_whitespace() {
        let (here, told) = stress(name, &pair.mount("a"));
        if here == Stressed::Passed {
            passed += 1;
            continue;
        }
        let (expected, _) = stress(name, &there);
        println!("{name}: {here:?} here, {expected:?} on the volume");
        if here != expected {
            worse.push(format!("{name}: {told}"));
        }
    }
    println!("{passed} stressors pass");
    assert!(worse.is_empty(), "{}", worse.join("\n"));
    assert!(passed > 40, "only {passed} stressors could be played");
    assert_eq!(pair.shown("b")["state"], "SecondaryActive", "{}", pair.story());
    equal(&pair);
    pair.stop("b");
    pair.stop("a");
}

/// Calls that the volume itself refuses, some of them only after they were journaled: the application is told what the volume
/// says, and both members are none the worse for it.
#[test]
fn what_the_volume_refuses_is_refused_and_nothing_else_happens() {
    use rustix::fs::{FallocateFlags, XattrFlags, fallocate, fsetxattr, ftruncate};
    const FAR: u64 = i64::MAX as u64;
    const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
    type Attempt = dyn Fn(&fs::File) -> rustix::io::Result<()>;
    let mut pair = in_sync();
    let here = fs::File::options().create(true).read(true).write(true).truncate(true).open(pair.mount("a").join("f"));
    let there = fs::File::options().create(true).read(true).write(true).truncate(true).open(pair.home("a").join("f"));
    let (here, there) = (here.unwrap(), there.unwrap());
    let tries: [(&str, &Attempt); 7] = [
        ("a large attribute", &|file| fsetxattr(file, "user.large", &[7; 5000], XattrFlags::empty())),
        ("a small attribute", &|file| fsetxattr(file, "user.small", &[7; 50], XattrFlags::empty())),
        ("a size beyond all measure", &|file| ftruncate(file, 999_999_999_999_999)),
        ("a hole up to the end of the world", &|file| fallocate(file, PUNCH, 4096, FAR - 4096)),
        ("space without end", &|file| fallocate(file, FallocateFlags::empty(), 0, FAR)),
        ("a write far out", &|file| rustix::io::pwrite(file, b"x", FAR - 10).map(drop)),
        ("an ordinary write", &|file| rustix::io::pwrite(file, b"hello", 0).map(drop)),
    ];
    for (what, attempt) in tries {
        assert_eq!(attempt(&here), attempt(&there), "{what}");
    }
    for number in 0..66_000 {
        let name = format!("link-{number}");
        let linked = [pair.mount("a"), pair.home("a")]
            .map(|root| fs::hard_link(root.join("f"), root.join(&name)).map_err(|error| error.raw_os_error()));
        assert_eq!(linked[0], linked[1], "{name}");
        if linked[0].is_err() {
            println!("no more than {number} more links");
            break;
        }
    }
    here.sync_all().unwrap();
    drop(here);
    assert_eq!(pair.shown("b")["state"], "SecondaryActive", "{}", pair.story());
    equal(&pair);
    // Whoever takes over, or begins again with its own journal, finds nothing that it cannot perform.
    pair.kill("a");
    pair.wait_serving("b");
    assert_eq!(fs::read(pair.mount("b").join("f")).unwrap(), b"hello");
    pair.start("a");
    pair.wait_in_sync("b");
    equal(&pair);
}

/// Fills a file until that is refused; how many bytes it took, and what was said.
fn filled(path: &Path) -> (u64, Errno) {
    let (mut file, piece) = (fs::File::create(path).unwrap(), vec![7; 1 << 20]);
    let mut length = 0;
    loop {
        match file.write_all(&piece).and_then(|()| file.sync_data()) {
            Ok(()) => length += piece.len() as u64,
            Err(error) => return (length, Errno::from_io_error(&error).unwrap()),
        }
    }
}

#[test]
#[ignore = "needs tools of other file systems: cargo verify -- --only posix"]
fn a_full_volume_is_told_as_such_and_leaves_both_members_equal() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let mut pair = Pair::new();
        let _disks = ["a", "b"].map(|member| Disk::mounted(kind, 512, &pair.volume(member)));
        pair.start("a");
        pair.start("b");
        pair.wait_in_sync("a");
        let large = pair.mount("a").join("large");
        let (length, said) = filled(&large);
        println!("{kind}: {said} after {length} bytes");
        assert_eq!(said, Errno::NOSPC, "{}", pair.story());
        fs::remove_file(&large).unwrap();
        let after = pair.mount("a").join("after");
        let written = || fs::write(&after, vec![1; 8 << 20]).and_then(|()| fs::File::open(&after)?.sync_all());
        pair.wait("there to be room again", || written().is_ok());
        pair.wait_in_sync("a");
        equal(&pair);
        pair.stop("b");
        pair.stop("a");
    }
}

#[test]
#[ignore = "mounts and freezes a file system: cargo verify -- --only posix"]
fn a_replicant_whose_disk_hangs_is_given_up_and_catches_up_later() {
    let mut pair = Pair::new();
    let disk = Disk::mounted("ext4", 256, &pair.volume("b"));
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    let log = pair.mount("a").join("log");
    let acknowledged = append(&log, 0, 50);
    let frozen = disk.freeze();
    // The first of these waits until the master goes on alone.
    let acknowledged = append(&log, acknowledged, 50);
    assert_eq!(acknowledged, 100);
    assert_eq!(pair.shown("a")["state"], "PrimaryAlone");
    drop(frozen);
    pair.wait_in_sync("a");
    pair.kill("a");
    pair.wait_serving("b");
    judge(&pair.mount("b").join("log"), acknowledged);
}
