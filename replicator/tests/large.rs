//! Much of everything: entries, bytes, levels, names, open files, and changes while somebody lists. `TANDEM_LARGE` says how many
//! files "many" are.

#![allow(clippy::unwrap_used, clippy::panic)] // a test says what it expects by panicking

mod harness;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use harness::trees::equal;
use harness::{Dice, Pair};
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, mkdirat, openat, seek, unlinkat};

fn many() -> u64 {
    std::env::var("TANDEM_LARGE").map_or(100_000, |text| text.parse().unwrap())
}

fn in_sync() -> Pair {
    let mut pair = Pair::new();
    pair.start("a");
    pair.start("b");
    pair.wait_in_sync("a");
    pair
}

/// What was asked to be durable before it is all there on the other member.
fn taken_over(pair: &mut Pair) {
    File::open(pair.mount("a")).unwrap().sync_all().unwrap();
    pair.kill("a");
    pair.wait_serving("b");
}

/// The most memory that a member's process has used, MiB.
fn memory(pair: &mut Pair, member: &str) -> u64 {
    let id = pair.child(member).as_ref().unwrap().id();
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// How often each name is listed.
fn listed(folder: &Path) -> HashMap<String, u32> {
    let mut found = HashMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        *found.entry(entry.unwrap().file_name().into_string().unwrap()).or_default() += 1;
    }
    found
}

#[test]
#[ignore = "takes minutes: cargo verify -- --only large"]
fn a_folder_of_many_entries_is_listed_whole_while_it_changes() {
    let many = many();
    let mut pair = in_sync();
    let folder = pair.mount("a").join("many");
    fs::create_dir(&folder).unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..many {
                fs::write(folder.join(format!("stays-{number}")), format!("{number}")).unwrap();
            }
            is_done.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            let mut number = 0_u64;
            while !is_done.load(Ordering::Acquire) {
                fs::write(folder.join(format!("comes-{number}")), "").unwrap();
                if let Some(old) = number.checked_sub(50) {
                    fs::remove_file(folder.join(format!("comes-{old}"))).unwrap();
                }
                number += 1;
            }
        });
        // What was there before a listing began and stays is in it once; nothing is in it twice.
        while !is_done.load(Ordering::Acquire) {
            let before = made_for_certain(&folder);
            let found = listed(&folder);
            assert!(found.values().all(|times| *times == 1), "an entry is listed twice");
            let missing = (0..before).find(|number| !found.contains_key(&format!("stays-{number}")));
            assert_eq!(missing, None, "of {before} entries that stay");
        }
    });
    println!("memory with {many} files: {} and {} MiB", memory(&mut pair, "a"), memory(&mut pair, "b"));
    if many <= 100_000 {
        assert!(memory(&mut pair, "a") <= 128 && memory(&mut pair, "b") <= 128);
    }
    taken_over(&mut pair);
    let folder = pair.mount("b").join("many");
    let found = listed(&folder);
    assert_eq!(found.keys().filter(|name| name.starts_with("stays")).count() as u64, many);
    for number in (0..many).step_by(997) {
        assert_eq!(fs::read_to_string(folder.join(format!("stays-{number}"))).unwrap(), number.to_string());
    }
    // The other comes back, by what its journal lacks.
    pair.start("a");
    pair.wait_in_sync("b");
    fs::remove_dir_all(&folder).unwrap();
    File::open(pair.mount("b")).unwrap().sync_all().unwrap();
    equal(&pair);
    assert!(!pair.volume("a").join("many").exists());
}

/// How many of the entries that stay were made for certain, in their order.
fn made_for_certain(folder: &Path) -> u64 {
    let (mut low, mut high) = (0, many());
    while low < high {
        let middle = (low + high) / 2;
        if folder.join(format!("stays-{middle}")).exists() {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[test]
#[ignore = "takes minutes: cargo verify -- --only large"]
fn a_file_of_a_tebibyte_is_mostly_holes_everywhere() {
    const SIZE: u64 = 1 << 40;
    let places = [0, 1 << 39, SIZE - 5];
    let mut pair = Pair::new();
    pair.start("a");
    pair.wait_serving("a");
    let file = File::options().create(true).read(true).write(true).truncate(true).open(pair.mount("a").join("huge"));
    let file = file.unwrap();
    file.set_len(SIZE).unwrap();
    for place in places {
        file.write_all_at(b"hello", place).unwrap();
    }
    file.sync_all().unwrap();
    assert_eq!(seek(&file, SeekFrom::Data(1 << 20)).unwrap(), 1 << 39);
    assert_eq!(seek(&file, SeekFrom::Hole(1 << 39)).unwrap(), (1 << 39) + 4096);
    drop(file);
    let is_whole = |path: &Path| {
        let file = File::open(path).unwrap();
        let look = file.metadata().unwrap();
        assert_eq!(look.len(), SIZE);
        assert!(look.blocks() * 512 < 1 << 20, "{} takes {} blocks", path.display(), look.blocks());
        for place in places {
            let mut found = [0; 5];
            file.read_exact_at(&mut found, place).unwrap();
            assert_eq!(&found, b"hello");
        }
    };
    // A copy of it, then what follows the copy.
    pair.start("b");
    pair.wait_in_sync("a");
    is_whole(&pair.volume("b").join("huge"));
    File::options().write(true).open(pair.mount("a").join("huge")).unwrap().write_all_at(b"!", 1 << 38).unwrap();
    taken_over(&mut pair);
    is_whole(&pair.mount("b").join("huge"));
    let mut found = [0];
    File::open(pair.mount("b").join("huge")).unwrap().read_exact_at(&mut found, 1 << 38).unwrap();
    assert_eq!(&found, b"!");
}

#[test]
#[ignore = "takes minutes: cargo verify -- --only large"]
fn a_hundred_levels_of_names_that_are_no_text() {
    const LEVELS: u8 = 100;
    let name = |level: u8| {
        let mut name = [0xff_u8 - level % 2; 255];
        name[0] = b'a' + level % 26;
        std::ffi::OsString::from(std::ffi::OsStr::from_bytes(&name))
    };
    // Longer than a path may be: only step by step.
    let down = |root: &Path, make: bool| -> Vec<OwnedFd> {
        let mut way = vec![OwnedFd::from(File::open(root).unwrap())];
        for level in 0..LEVELS {
            let here = way.last().unwrap();
            if make {
                mkdirat(here, name(level), Mode::from(0o755)).unwrap();
            }
            way.push(openat(here, name(level), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap());
        }
        way
    };
    let mut pair = in_sync();
    let way = down(&pair.mount("a"), true);
    let bottom = openat(way.last().unwrap(), "bottom", OFlags::CREATE | OFlags::RDWR, Mode::from(0o644)).unwrap();
    File::from(bottom).write_all_at(b"deep", 0).unwrap();
    drop(way);
    taken_over(&mut pair);
    let way = down(&pair.mount("b"), false);
    let bottom = openat(way.last().unwrap(), "bottom", OFlags::RDONLY, Mode::empty()).unwrap();
    let mut text = String::new();
    File::from(bottom).read_to_string(&mut text).unwrap();
    assert_eq!(text, "deep");
    // The one that died makes its volume true, follows, and removes it all.
    pair.start("a");
    pair.wait_in_sync("b");
    drop(down(&pair.volume("a"), false));
    unlinkat(way.last().unwrap(), "bottom", AtFlags::empty()).unwrap();
    for (level, folder) in way.iter().enumerate().take(LEVELS.into()).rev() {
        unlinkat(folder, name(level as u8), AtFlags::REMOVEDIR).unwrap();
    }
    equal(&pair);
    assert_eq!(fs::read_dir(pair.mount("b")).unwrap().count(), 0);
}

/// Files that one process may hold open everywhere.
const PER_PROCESS: u64 = 10_000;

/// Run by `many_files_are_open_at_once` as a process of its own.
#[test]
#[ignore = "part of another test"]
fn holds_files_open() {
    let Ok(folder) = std::env::var("TANDEM_HOLD") else { return };
    let first: u64 = std::env::var("TANDEM_HOLD_FROM").unwrap().parse().unwrap();
    let files: Vec<File> = (first..first + PER_PROCESS)
        .map(|number| {
            let path = Path::new(&folder).join(number.to_string());
            let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
            // Every other one has no name any more.
            if number % 2 == 1 {
                fs::remove_file(path).unwrap();
            }
            file.write_all_at(number.to_string().as_bytes(), 0).unwrap();
            file
        })
        .collect();
    println!("holds");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    for (number, file) in (first..).zip(&files) {
        let mut text = vec![0; number.to_string().len()];
        file.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(text, number.to_string().as_bytes());
    }
}

#[test]
#[ignore = "takes minutes: cargo verify -- --only large"]
fn many_files_are_open_at_once() {
    let processes = many().div_ceil(PER_PROCESS);
    let many = processes * PER_PROCESS;
    let mut pair = in_sync();
    let folder = pair.mount("a").join("open");
    fs::create_dir(&folder).unwrap();
    let begin = |process: u64| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "holds_files_open"])
            .env("TANDEM_HOLD", &folder)
            .env("TANDEM_HOLD_FROM", (process * PER_PROCESS).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut holders: Vec<Child> = (0..processes).map(begin).collect();
    for holder in &mut holders {
        let told = BufReader::new(holder.stdout.as_mut().unwrap());
        assert!(told.lines().any(|line| line.unwrap().ends_with("holds")), "a process could not open its files");
    }
    println!("memory with {many} open files: {} and {} MiB", memory(&mut pair, "a"), memory(&mut pair, "b"));
    if many <= 100_000 {
        assert!(memory(&mut pair, "a") <= 128 && memory(&mut pair, "b") <= 128);
    }
    for mut holder in holders {
        writeln!(holder.stdin.take().unwrap()).unwrap();
        let told = std::io::read_to_string(holder.stdout.take().unwrap()).unwrap();
        assert!(holder.wait().unwrap().success(), "an open file does not hold what was written to it: {told}");
    }
    taken_over(&mut pair);
    let folder = pair.mount("b").join("open");
    assert_eq!(listed(&folder).len() as u64, many / 2);
    for number in (0..many).step_by(998) {
        assert_eq!(fs::read_to_string(folder.join(number.to_string())).unwrap(), number.to_string());
    }
}

#[test]
#[ignore = "takes minutes: cargo verify -- --only large"]
fn a_file_has_ten_thousand_names() {
    const NAMES: u64 = 10_000;
    let mut pair = in_sync();
    let folder = pair.mount("a").join("names");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("0"), "one file").unwrap();
    for number in 1..NAMES {
        fs::hard_link(folder.join((number - 1).to_string()), folder.join(number.to_string())).unwrap();
    }
    assert_eq!(fs::metadata(folder.join("77")).unwrap().nlink(), NAMES);
    for number in (0..NAMES).step_by(2) {
        fs::remove_file(folder.join(number.to_string())).unwrap();
    }
    taken_over(&mut pair);
    let folder = pair.mount("b").join("names");
    let first = fs::metadata(folder.join("1")).unwrap();
    assert_eq!(first.nlink(), NAMES / 2);
    for number in (1..NAMES).step_by(2) {
        assert_eq!(fs::metadata(folder.join(number.to_string())).unwrap().ino(), first.ino());
    }
    assert_eq!(fs::read_to_string(folder.join("9999")).unwrap(), "one file");
    pair.start("a");
    pair.wait_in_sync("b");
    fs::remove_file(folder.join("1")).unwrap();
    let there = pair.volume("a").join("names/9999");
    pair.wait("the other to follow", || fs::metadata(&there).unwrap().nlink() == NAMES / 2 - 1);
}

#[test]
#[ignore = "takes minutes: cargo verify -- --only large"]
fn a_storm_of_renames_loses_and_doubles_nothing() {
    const FOLDERS: u64 = 8;
    const FILES: u64 = 200;
    const THREADS: u64 = 4;
    let mut pair = in_sync();
    let root = pair.mount("a");
    for folder in 0..FOLDERS {
        fs::create_dir(root.join(format!("f{folder}"))).unwrap();
    }
    for file in 0..FILES {
        fs::write(root.join(format!("f0/{file}")), file.to_string()).unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let root = &root;
            scope.spawn(move || {
                let mut dice = Dice::new(thread + 1);
                let mut places = vec![0; FILES as usize];
                for _ in 0..5_000 {
                    // Each thread moves its own files, all of them in the same folders.
                    let file = dice.below(FILES / THREADS) * THREADS + thread;
                    let to = dice.below(FOLDERS);
                    let from = std::mem::replace(&mut places[file as usize], to);
                    fs::rename(root.join(format!("f{from}/{file}")), root.join(format!("f{to}/{file}"))).unwrap();
                }
            });
        }
    });
    let all = |root: &Path| {
        let mut found = HashMap::new();
        for folder in 0..FOLDERS {
            for (name, times) in listed(&root.join(format!("f{folder}"))) {
                let text = fs::read_to_string(root.join(format!("f{folder}/{name}"))).unwrap();
                assert_eq!(text, name);
                *found.entry(name).or_insert(0) += times;
            }
        }
        assert!(found.len() as u64 == FILES && found.values().all(|times| *times == 1), "{found:?}");
    };
    all(&root);
    taken_over(&mut pair);
    all(&pair.mount("b"));
    pair.start("a");
    pair.wait_in_sync("b");
    equal(&pair);
}

#[test]
#[ignore = "takes minutes: cargo verify -- --only large"]
fn what_bypasses_the_cache_and_what_goes_through_it_agree() {
    const BLOCK: usize = 4096;
    let mut pair = in_sync();
    let path = pair.mount("a").join("direct");
    let cached = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    let direct = File::options().read(true).write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(&path).unwrap();
    // Memory that begins at a page.
    let mut memory = vec![0_u8; 3 * BLOCK];
    let begin = memory.as_ptr().align_offset(BLOCK);
    let page = &mut memory[begin..begin + BLOCK];
    for round in 0..200_u64 {
        let offset = (round * 7 % 16) * BLOCK as u64;
        let byte = round as u8;
        page.fill(byte);
        let mut found = vec![!byte; BLOCK];
        if round % 2 == 0 {
            direct.write_all_at(page, offset).unwrap();
            cached.read_exact_at(&mut found, offset).unwrap();
        } else {
            cached.write_all_at(page, offset).unwrap();
            page.fill(!byte);
            direct.read_exact_at(page, offset).unwrap();
            found.copy_from_slice(page);
        }
        assert!(found.iter().all(|found| *found == byte), "round {round}");
    }
    let expected = fs::read(&path).unwrap();
    taken_over(&mut pair);
    assert_eq!(fs::read(pair.mount("b").join("direct")).unwrap(), expected);
}
