//! Rows about files: each makes what it needs in a folder, measures for a while, and puts it away. More is better.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::databases::run;

/// Name, unit, and how it is measured.
pub(crate) type Row = (&'static str, &'static str, fn(&Path) -> f64);

pub(crate) const ROWS: &[Row] = &[
    ("fdatasync of 4 KiB, 1 thread", "/s", |folder| flushes(folder, 1)),
    ("fdatasync of 4 KiB, 4 threads", "/s", |folder| flushes(folder, 4)),
    ("fdatasync of 4 KiB, 16 threads", "/s", |folder| flushes(folder, 16)),
    (SEQUENTIAL_WRITE, "MiB/s", sequential_write),
    ("sequential read of 1 MiB, warm", "MiB/s", sequential_read),
    ("random write of 4 KiB", "/s", random_write),
    ("random read of 4 KiB, warm", "/s", random_read),
    ("untar of small files", "files/s", untar),
    (BESIDE_A_STREAM, "ms", beside_a_stream),
];

/// The one about which the processors' time is kept.
pub(crate) const SEQUENTIAL_WRITE: &str = "sequential write of 1 MiB";
const BESIDE_A_STREAM: &str = "fdatasync beside 100 MB/s, 99 of 100 (less is better)";

const LONG: Duration = Duration::from_millis(1500);
const PAGE: usize = 4096;

/// Size of a large file, bytes.
pub(crate) fn large_bytes() -> u64 {
    (256 << 20) * crate::times()
}

/// How many small files.
fn small_count() -> usize {
    2_000 * crate::times() as usize
}

/// A sequence without pattern, the same each time.
fn offsets() -> impl Iterator<Item = u64> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    })
}

fn flushes(folder: &Path, threads: usize) -> f64 {
    let began = Instant::now();
    let counts: Vec<u64> = std::thread::scope(|scope| {
        let each = |number: usize| {
            let path = folder.join(format!("flushed-{number}"));
            move || {
                let file = File::create(&path).unwrap();
                file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
                file.sync_data().unwrap();
                let mut count = 0;
                for offset in offsets() {
                    if began.elapsed() > LONG {
                        break;
                    }
                    file.write_all_at(&[2; PAGE], offset % 256 * PAGE as u64).unwrap();
                    file.sync_data().unwrap();
                    count += 1;
                }
                fs::remove_file(path).unwrap();
                count
            }
        };
        let running: Vec<_> = (0..threads).map(|number| scope.spawn(each(number))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    counts.iter().sum::<u64>() as f64 / began.elapsed().as_secs_f64()
}

fn large(folder: &Path) -> (std::path::PathBuf, f64) {
    let path = folder.join("large");
    let piece = vec![3; 1 << 20];
    let began = Instant::now();
    let mut file = File::create(&path).unwrap();
    for _ in 0..large_bytes() >> 20 {
        file.write_all(&piece).unwrap();
    }
    (path, (large_bytes() >> 20) as f64 / began.elapsed().as_secs_f64())
}

fn sequential_write(folder: &Path) -> f64 {
    let (path, rate) = large(folder);
    settle(&path);
    rate
}

/// What was left to do in the background is no part of the next row.
fn settle(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
    fs::remove_file(path).unwrap();
}

/// Writing goes on in the background for a while: on disks, and to the peer. A row about reading begins after it.
fn rest(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
    std::thread::sleep(Duration::from_millis(500));
}

fn sequential_read(folder: &Path) -> f64 {
    let (path, _) = large(folder);
    rest(&path);
    let mut piece = vec![0; 1 << 20];
    let mut read_all = || {
        let mut file = File::open(&path).unwrap();
        while file.read(&mut piece).unwrap() > 0 {}
    };
    read_all();
    let began = Instant::now();
    read_all();
    let rate = (large_bytes() >> 20) as f64 / began.elapsed().as_secs_f64();
    settle(&path);
    rate
}

/// Milliseconds until what was written is safe while somebody else writes 100 MB/s and syncs nothing: a sync waits for all
/// that was written before it, so for a pair this is also how far the replicant is behind. Of a hundred syncs, the slowest
/// but one.
fn beside_a_stream(folder: &Path) -> f64 {
    const PIECE: usize = 1 << 20;
    const PAUSE: Duration = Duration::from_nanos(1_000_000_000 * PIECE as u64 / 100_000_000);
    let (stream, probe) = (folder.join("stream"), folder.join("probe"));
    let began = Instant::now();
    let mut taken = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (file, piece) = (File::create(&stream).unwrap(), vec![7; PIECE]);
            for number in 0_u32.. {
                let due = PAUSE * number;
                if due > LONG * 2 {
                    break;
                }
                std::thread::sleep(due.saturating_sub(began.elapsed()));
                file.write_all_at(&piece, u64::from(number % 256) << 20).unwrap();
            }
        });
        let file = File::create(&probe).unwrap();
        let mut taken = Vec::new();
        while began.elapsed() < LONG * 2 {
            let asked = Instant::now();
            file.write_all_at(&[8; PAGE], 0).unwrap();
            file.sync_data().unwrap();
            taken.push(asked.elapsed().as_secs_f64() * 1e3);
            std::thread::sleep(PAUSE);
        }
        taken
    });
    taken.sort_by(f64::total_cmp);
    fs::remove_file(probe).unwrap();
    settle(&stream);
    taken[taken.len() * 99 / 100]
}

fn random_write(folder: &Path) -> f64 {
    let (path, _) = large(folder);
    let file = File::options().write(true).open(&path).unwrap();
    file.sync_all().unwrap();
    let pages = large_bytes() / PAGE as u64;
    let (began, mut count) = (Instant::now(), 0);
    for offset in offsets().take_while(|_| began.elapsed() < LONG) {
        file.write_all_at(&[4; PAGE], offset % pages * PAGE as u64).unwrap();
        count += 1;
    }
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    settle(&path);
    rate
}

fn random_read(folder: &Path) -> f64 {
    let (path, _) = large(folder);
    rest(&path);
    let file = File::open(&path).unwrap();
    let mut page = [0; PAGE];
    let mut all = vec![0; 1 << 20];
    for megabyte in 0..large_bytes() >> 20 {
        file.read_exact_at(&mut all, megabyte << 20).unwrap();
    }
    let pages = large_bytes() / PAGE as u64;
    let (began, mut count) = (Instant::now(), 0);
    for offset in offsets().take_while(|_| began.elapsed() < LONG) {
        file.read_exact_at(&mut page, offset % pages * PAGE as u64).unwrap();
        count += 1;
    }
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    settle(&path);
    rate
}

/// Rows about files of 1 KiB.
pub(crate) const SMALL: [&str; 5] = [
    "small files: create",
    "small files: stat, warm",
    "small files: read, warm",
    "small files: grep -r, warm",
    "small files: rename",
];

/// What is done when all rounds are over: name, and how it is measured for a round, if that left anything.
pub(crate) type Last = (&'static str, fn(&Path, u32) -> Option<f64>);

pub(crate) const LAST: &[Last] =
    &[("small files: unlink", unlink_small_files), ("untar of small files: rm -r", remove_untarred)];

fn small_folder(folder: &Path, round: u32) -> std::path::PathBuf {
    folder.join(format!("small-{round}-{}", crate::times()))
}

fn small(folder: &Path, round: u32) -> impl Fn(&dyn Fn(&Path)) -> f64 {
    let folder = small_folder(folder, round);
    let paths: Vec<_> = (0..small_count()).map(|number| folder.join(format!("file-{number}"))).collect();
    move |act| {
        let began = Instant::now();
        paths.iter().for_each(|path| act(path));
        paths.len() as f64 / began.elapsed().as_secs_f64()
    }
}

fn renamed(path: &Path) -> std::path::PathBuf {
    path.with_extension("renamed")
}

/// Creating, looking at, reading and renaming small files. They stay until all rounds are over: some file systems search for a long
/// time where many files were removed shortly before.
pub(crate) fn small_files(folder: &Path, round: u32) -> [f64; 5] {
    let place = small_folder(folder, round);
    fs::create_dir(&place).unwrap();
    let timed = small(folder, round);
    let create = timed(&|path| fs::write(path, [5; 1024]).unwrap());
    rest(&place);
    let look = |path: &Path| assert_eq!(fs::metadata(path).unwrap().len(), 1024);
    timed(&look);
    let stat = timed(&look);
    let open = |path: &Path| assert_eq!(fs::read(path).unwrap().len(), 1024);
    // Twice: after it has really read a file, the kernel asks once more for the time of that.
    timed(&open);
    timed(&open);
    let read = timed(&open);
    let began = Instant::now();
    run("grep", &["-rc", "^", &shown(&place)]);
    let grep = small_count() as f64 / began.elapsed().as_secs_f64();
    [create, stat, read, grep, timed(&|path| fs::rename(path, renamed(path)).unwrap())]
}

/// Removing what `small_files` left.
fn unlink_small_files(folder: &Path, round: u32) -> Option<f64> {
    let is_there = small_folder(folder, round).exists();
    is_there.then(|| small(folder, round)(&|path| fs::remove_file(renamed(path)).unwrap()))
}

fn untarred(folder: &Path, round: u32) -> std::path::PathBuf {
    folder.join(format!("untarred-{round}-{}", crate::times()))
}

/// Removing what `untar` left.
fn remove_untarred(folder: &Path, round: u32) -> Option<f64> {
    let tree = untarred(folder, round);
    let began = Instant::now();
    tree.exists().then(|| {
        run("rm", &["-r", &shown(&tree)]);
        small_count() as f64 / began.elapsed().as_secs_f64()
    })
}

fn untar(folder: &Path) -> f64 {
    // In memory, so that what is removed here is none of the volume's.
    let source = tempfile::tempdir_in("/dev/shm").unwrap();
    for number in 0..small_count() {
        let inner = source.path().join(format!("tree/{}", number % 40));
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join(format!("file-{number}")), vec![6; 500 + number % 9_000]).unwrap();
    }
    let archive = source.path().join("tree.tar");
    run("tar", &["-C", &shown(source.path()), "-cf", &shown(&archive), "tree"]);
    // It stays there, for the reason given at `small_files`.
    let into = (0..).map(|round| untarred(folder, round)).find(|path| !path.exists()).unwrap();
    fs::create_dir(&into).unwrap();
    let began = Instant::now();
    run("tar", &["-C", &shown(&into), "-xf", &shown(&archive)]);
    small_count() as f64 / began.elapsed().as_secs_f64()
}

pub(crate) fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_string()
}
