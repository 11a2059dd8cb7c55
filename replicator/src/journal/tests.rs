//! Crash states of the journal: whatever a crash leaves, what opens is a prefix of what was written, and holds everything
//! that was durable; and if it cannot, it does not open.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::op::FileId;

const PAIR: [u8; 16] = *b"pair-of-the-test";
const SMALL: Options = Options { segment_bytes: 16 << 10, pair: PAIR };

/// A folder in memory where there is one: these tests open thousands of journals, and what they ask is not whether the disk
/// keeps what it was told to.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open(folder: &Path) -> (Journal, Recovered) {
    Journal::open(folder, SMALL).unwrap()
}

fn write(journal: &Journal, data: &[u8]) -> Position {
    let seq = journal.end().seq;
    let stamp = Stamp { time: seq as i64, unique: seq };
    journal.append(1, stamp, &Op::Write { id: FileId(2), offset: seq, data }).unwrap()
}

/// A journal with `count` records of various lengths.
fn written(count: u64) -> (TempDir, Journal) {
    let folder = scratch();
    let (journal, _) = open(folder.path());
    for at in 0..count {
        write(&journal, &vec![at as u8; (at as usize * 37) % 700]);
    }
    (folder, journal)
}

fn all(journal: &Journal) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut next = journal.first();
    while next <= journal.end().seq {
        let batch = journal.read(next, 3000, &mut bytes).unwrap();
        next = batch.last.seq + 1;
    }
    bytes
}

/// The raw bytes of a journal's folder, as a crash may find them.
fn image(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap())
        .map(|file| (file.file_name().to_string_lossy().into_owned(), std::fs::read(file.path()).unwrap()))
        .filter(|(name, _)| name.ends_with(".seg"))
        .collect();
    files.sort();
    files
}

fn restore(image: &[(String, Vec<u8>)]) -> TempDir {
    let folder = scratch();
    for (name, bytes) in image {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// Zeros make syncs faster and a stream slower: who gets them is whoever syncs.
#[test]
fn only_who_syncs_often_gets_segments_with_zeros() {
    let has_zeros = |syncs: bool| {
        let folder = scratch();
        let options = Options { segment_bytes: 1 << 20, pair: PAIR };
        let (journal, _) = Journal::open(folder.path(), options).unwrap();
        // To its half.
        for _ in 0..40 {
            write(&journal, &[7; 14 << 10]);
            if syncs {
                journal.sync().unwrap();
            }
        }
        let began = std::time::Instant::now();
        // The next segment is prepared, or the journal goes on in it already.
        while journal.room.prepared() == 0 && journal.segments.read().len() == 1 {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "no room is prepared");
            std::thread::yield_now();
        }
        let next = journal.segments.read().get(1).map(|segment| segment.path.clone());
        let mut names = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path());
        let next = next.or_else(|| names.find(|path| path.to_string_lossy().contains("spare-"))).unwrap();
        // Behind whatever was appended.
        let end = rustix::fs::SeekFrom::Data(options.segment_bytes - 4096);
        rustix::fs::seek(std::fs::File::open(next).unwrap(), end).is_ok()
    };
    assert!(has_zeros(true));
    assert!(!has_zeros(false));
}

/// Who is told of damage copies what it lacks from the volume; who is told of a failed disk does not even try.
#[test]
fn a_short_file_is_damage_and_a_failed_read_is_the_disk() {
    let (folder, journal) = written(200);
    for (name, _) in image(folder.path()) {
        std::fs::File::options().write(true).open(folder.path().join(name)).unwrap().set_len(4096).unwrap();
    }
    assert!(matches!(journal.read(150, 1 << 20, &mut Vec::new()), Err(ReadError::Broken(_))));
    assert_eq!(journal.position_at(201).unwrap(), None);
    assert!(matches!(ReadError::from(io::Error::from_raw_os_error(5)), ReadError::Io(_)));
}

#[test]
fn what_was_appended_is_read_back_and_survives_reopening() {
    let (folder, journal) = written(200);
    let before = all(&journal);
    let end = journal.end();
    assert_eq!(records_after(Position::default(), &before).map(Result::unwrap).count(), 200);
    drop(journal);
    let (journal, recovered) = open(folder.path());
    assert_eq!((recovered.end, recovered.torn_bytes), (end, 0));
    assert_eq!(journal.durable(), 200);
    assert_eq!(all(&journal), before);
    for record in records_after(Position::default(), &before).map(Result::unwrap) {
        assert_eq!(journal.position_at(record.position.seq).unwrap(), Some(record.position));
        let data = vec![(record.position.seq - 1) as u8; ((record.position.seq - 1) as usize * 37) % 700];
        assert_eq!(record.op().unwrap(), Op::Write { id: FileId(2), offset: record.position.seq - 1, data: &data });
    }
    write(&journal, b"and on");
    assert_eq!(journal.end().seq, 201);
}

#[test]
fn the_peers_journal_takes_the_same_bytes_and_stands_at_the_same_position() {
    let (_folder, journal) = written(150);
    let other = scratch();
    let (replicant, _) = open(other.path());
    let mut next = 1;
    while next <= journal.end().seq {
        let mut bytes = Vec::new();
        let batch = journal.read(next, 5000, &mut bytes).unwrap();
        replicant.append_raw(&bytes).unwrap();
        replicant.mark_committed(batch.last.seq).unwrap();
        next = batch.last.seq + 1;
    }
    assert_eq!(replicant.end(), journal.end());
    assert_eq!(all(&replicant), all(&journal));
    replicant.sync().unwrap();
    drop(replicant);
    let (replicant, recovered) = open(other.path());
    assert_eq!(recovered.committed_mark, 150);
    assert_eq!(all(&replicant), all(&journal));
}

#[test]
fn records_that_do_not_go_on_are_refused_whole() {
    let (_folder, journal) = written(20);
    let bytes = all(&journal);
    let other = scratch();
    let (replicant, _) = open(other.path());
    let second = records(&bytes).next().unwrap().unwrap().bytes.len();
    assert!(matches!(replicant.append_raw(&bytes[second..]), Err(JournalError::Broken(Broken::Sequence { .. }))));
    for at in (0..bytes.len()).step_by(41) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert!(replicant.append_raw(&damaged).is_err(), "byte {at}");
        assert_eq!(replicant.end().seq, 0);
    }
    replicant.append_raw(&bytes).unwrap();
    assert!(replicant.append_raw(&bytes).is_err());
}

#[test]
fn every_truncation_and_every_damaged_byte_of_the_tail_leaves_a_prefix() {
    let (folder, journal) = written(12);
    let whole = all(&journal);
    drop(journal);
    let image = image(folder.path());
    let (name, bytes) = image.last().unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let tail = end.saturating_sub(900);
    for at in tail..end {
        let zeroed = {
            let mut bytes = bytes.clone();
            bytes[at..].fill(0);
            bytes
        };
        let flipped = {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0xff;
            bytes
        };
        for changed in [zeroed, flipped] {
            let folder = restore(&[(name.clone(), changed)]);
            let (journal, recovered) = open(folder.path());
            let kept = all(&journal);
            assert!(whole.starts_with(&kept) && kept.len() < whole.len() || kept == whole, "byte {at}");
            assert_eq!(journal.end(), recovered.end);
            // And it goes on, also after one more crash.
            let position = write(&journal, b"after the crash");
            drop(journal);
            let (journal, recovered) = open(folder.path());
            assert_eq!(recovered.end, position);
            assert!(all(&journal).starts_with(&kept));
        }
    }
}

#[test]
fn a_later_part_without_an_earlier_one_is_cut() {
    // The kernel may write the pages of the unsynced tail in any order, over several segments.
    let (folder, journal) = written(120);
    let whole = all(&journal);
    drop(journal);
    let image = image(folder.path());
    assert!(image.len() > 2);
    for file in 0..image.len() {
        for page in 0..4 {
            let mut lost = image.clone();
            lost[file].1[page * 4096..(page + 1) * 4096].fill(0);
            let folder = restore(&lost);
            let (journal, _) = open(folder.path());
            let kept = all(&journal);
            assert!(whole.starts_with(&kept), "file {file} page {page}");
            write(&journal, b"new");
            drop(journal);
            open(folder.path());
        }
    }
}

#[test]
fn a_hole_before_what_was_durable_is_not_opened() {
    let (folder, journal) = written(30);
    journal.sync().unwrap();
    write(&journal, b"after the sync");
    journal.mark_committed(30).unwrap();
    drop(journal);
    let image = image(folder.path());
    let mut damaged = image.clone();
    damaged[0].1[4096 + 20] ^= 1;
    let folder = restore(&damaged);
    match Journal::open(folder.path(), SMALL) {
        Err(JournalError::Corrupt { end: 0, durable: 30, .. }) => {}
        other => panic!("{:?}", other.map(|(_, recovered)| recovered)),
    }
    // Damaged within the part that no flush covered: an ordinary torn tail.
    let mut torn = image;
    let last = torn.last_mut().unwrap();
    let end = last.1.iter().rposition(|byte| *byte != 0).unwrap();
    last.1[end - 70] ^= 1;
    let folder = restore(&torn);
    assert_eq!(open(folder.path()).1.end.seq, 30);
}

#[test]
fn damage_in_what_was_durable_long_ago_is_found_at_the_latest_when_it_is_read() {
    let folder = scratch();
    let (journal, _) = open(folder.path());
    for at in 0..100 {
        write(&journal, &vec![at; 600]);
        journal.sync().unwrap();
    }
    drop(journal);
    let image = image(folder.path());
    assert!(image.len() > 3);
    // A header: the journal does not open.
    let mut damaged = image.clone();
    damaged[0].1[4096 + 30] ^= 1;
    let folder = restore(&damaged);
    assert!(matches!(Journal::open(folder.path(), SMALL), Err(JournalError::Corrupt { end: 0, .. })));
    // Contents: it opens without reading them, and whoever reads them is told.
    let mut damaged = image.clone();
    damaged[0].1[4096 + 300] ^= 1;
    let folder = restore(&damaged);
    let (journal, recovered) = open(folder.path());
    assert_eq!(recovered.end.seq, 100);
    let mut bytes = Vec::new();
    let batch = journal.read(1, 2000, &mut bytes).unwrap();
    assert_eq!(records_after(batch.before, &bytes).next().unwrap().unwrap_err(), Broken::Checksum);
    // Contents of a segment where no other goes on: new records would come behind them, so it is read now.
    let mut damaged = image;
    damaged.truncate(2);
    damaged[0].1[4096 + 300] ^= 1;
    let page = &mut damaged[1].1[..4096];
    page[48] ^= 1;
    let checksum = crc32c::crc32c(&page[16..]);
    page[12..16].copy_from_slice(&checksum.to_le_bytes());
    let folder = restore(&damaged);
    assert!(matches!(Journal::open(folder.path(), SMALL), Err(JournalError::Corrupt { end: 0, .. })));
}

#[test]
fn another_pairs_journal_is_refused() {
    let (folder, journal) = written(3);
    drop(journal);
    let other = Options { pair: [7; 16], ..SMALL };
    assert!(matches!(Journal::open(folder.path(), other), Err(JournalError::Foreign(_))));
}

#[test]
fn a_cut_tail_is_gone_and_can_be_saved_before() {
    let (folder, journal) = written(100);
    let whole = all(&journal);
    journal.mark_committed(60).unwrap();
    journal.sync().unwrap();
    let aside = folder.path().join("aside");
    assert_eq!(journal.save_tail(61, &aside).unwrap(), (journal.position_at(61).unwrap().unwrap(), 39));
    let position = journal.position_at(61).unwrap().unwrap();
    assert_eq!(journal.cut_after(61).unwrap(), position);
    assert_eq!((journal.end(), journal.durable()), (position, 61));
    assert!(whole.starts_with(&all(&journal)));
    drop(journal);
    let (journal, recovered) = open(folder.path());
    assert_eq!((recovered.end, recovered.committed_mark), (position, 60));
    write(&journal, b"another history");
    let (saved, recovered) = open(&aside);
    assert_eq!((recovered.end.seq, saved.first()), (100, 62));
    assert!(whole.ends_with(&all(&saved)));
}

#[test]
fn every_cut_is_exact() {
    let (folder, journal) = written(80);
    let mut positions: Vec<_> = (0..=80).map(|seq| journal.position_at(seq).unwrap().unwrap()).collect();
    drop(journal);
    let (journal, _) = open(folder.path());
    while let Some(position) = positions.pop() {
        assert_eq!(journal.cut_after(position.seq).unwrap(), position);
        assert_eq!(journal.end(), position);
    }
    assert_eq!(journal.end(), Position::default());
    drop(journal);
    assert_eq!(open(folder.path()).1.end, Position::default());
}

#[test]
fn forgotten_segments_are_used_again_and_their_old_records_never_show() {
    let (folder, journal) = written(0);
    for round in 0..6u64 {
        for at in 0..60 {
            write(&journal, &vec![at as u8; 500]);
        }
        journal.sync().unwrap();
        journal.mark_committed(journal.end().seq).unwrap();
        journal.trim_below(journal.end().seq).unwrap();
        assert!(journal.first() > round * 60 + 20, "{} of {}", journal.first(), journal.end().seq);
    }
    assert!(matches!(journal.read(1, 100, &mut Vec::new()), Err(ReadError::Trimmed { .. })));
    let (end, first, kept) = (journal.end(), journal.first(), all(&journal));
    drop(journal);
    let (journal, recovered) = open(folder.path());
    assert_eq!((recovered.end, journal.first()), (end, first));
    assert_eq!(all(&journal), kept);
}

#[test]
fn a_reset_journal_goes_on_where_it_was_told() {
    let (folder, journal) = written(50);
    let at = Position { epoch: 4, seq: 1000, chain: 77 };
    journal.reset(at).unwrap();
    assert_eq!((journal.end(), journal.first(), journal.durable()), (at, 1001, 1000));
    let after = journal.append(4, Stamp::default(), &Op::Begin { member: "a" }).unwrap();
    assert!(matches!(
        journal.append(3, Stamp::default(), &Op::Begin { member: "b" }),
        Err(JournalError::EpochBack { last: 4, got: 3 })
    ));
    drop(journal);
    let (_, recovered) = open(folder.path());
    assert_eq!((recovered.end, recovered.committed_mark), (after, 1000));
}

#[test]
fn a_failed_flush_is_final() {
    let (_folder, journal) = written(5);
    disk::trouble::break_next("sync_journal", libc::EIO);
    assert!(matches!(journal.sync(), Err(JournalError::Poisoned(_))));
    assert!(matches!(journal.sync(), Err(JournalError::Poisoned(_))));
    assert!(matches!(journal.append(1, Stamp::default(), &Op::Drop { id: FileId(2) }), Err(JournalError::Poisoned(_))));
    assert_eq!(journal.durable(), 0);
}

#[test]
fn only_a_checkpoint_that_frees_a_segment_provides_the_next_one() {
    let (_folder, journal) = written(0);
    let second = loop {
        write(&journal, &[1; 3000]);
        if let Some(second) = journal.segments.read().get(1) {
            break second.previous.seq;
        }
    };
    let first = journal.first();
    assert!(!journal.trims(second) && journal.trims(second + 1));
    journal.trim_below(second).unwrap();
    assert_eq!(journal.first(), first);
    // In the first half of a segment nobody prepares the next one.
    journal.room.forget_prepared();
    for (foreseen, wanted) in
        [(0, journal.options.segment_bytes), (second, journal.options.segment_bytes), (second + 1, 0)]
    {
        journal.foresee(foreseen);
        assert_eq!(journal.room_wanted(), wanted, "{foreseen}");
    }
    journal.trim_below(second + 1).unwrap();
    assert_eq!(journal.first(), second + 1);
}

#[test]
fn no_room_is_said_before_anything_is_written_and_may_pass() {
    let (folder, journal) = written(0);
    // No file can be prepared ahead here: the size of a segment is what one record nearly fills.
    let data = vec![1; 11 << 10];
    write(&journal, &data);
    disk::trouble::break_next("create_with_room", libc::ENOSPC);
    let op = Op::Write { id: FileId(2), offset: 0, data: &data };
    let mut refused = false;
    // The thread that prepares segments may have been faster; then the next one fails.
    for _ in 0..20 {
        match journal.append(1, Stamp::default(), &op) {
            Ok(_) => {}
            Err(JournalError::Full(_)) => refused = true,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused);
    let end = journal.end();
    drop(journal);
    assert_eq!(open(folder.path()).1.end, end);
}

#[test]
fn a_record_for_which_there_was_no_room_may_be_tried_again() {
    let (folder, journal) = written(5);
    let op = Op::Write { id: FileId(2), offset: 0, data: b"again" };
    for errno in [libc::ENOSPC, libc::EDQUOT] {
        disk::trouble::break_next("write_entry", errno);
        assert!(matches!(journal.append(1, Stamp::default(), &op), Err(JournalError::Full(_))));
        assert!(journal.is_usable());
        journal.append(1, Stamp::default(), &op).unwrap();
    }
    disk::trouble::break_next("write_entry", libc::EIO);
    assert!(matches!(journal.append(1, Stamp::default(), &op), Err(JournalError::Io { .. })));
    assert!(!journal.is_usable());
    let end = journal.end();
    drop(journal);
    assert_eq!(open(folder.path()).1.end, end);
}

#[test]
fn many_waiters_share_flushes_and_each_is_covered() {
    let (_folder, journal) = written(0);
    let journal = Arc::new(journal);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let journal = journal.clone();
            std::thread::spawn(move || {
                for _ in 0..50 {
                    // Sequence numbers are given by the journal; only the chain of calls matters here.
                    let op = Op::Write { id: FileId(3), offset: 0, data: b"shared" };
                    let position = journal.append(1, Stamp::default(), &op).unwrap();
                    assert!(journal.sync().unwrap() >= position.seq);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!((journal.end().seq, journal.durable()), (400, 400));
}

#[test]
fn who_begins_to_wait_for_syncs_goes_on_in_a_segment_of_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 16 << 20, pair: PAIR };
    let (journal, _) = Journal::open(folder.path(), options).unwrap();
    let segments = || journal.segments.read().len();
    let mut appended = 0;
    while segments() == 1 {
        journal.append(1, Stamp::default(), &Op::Drop { id: FileId(7) }).unwrap();
        journal.sync().unwrap();
        appended += 1;
        assert!(appended < 100_000, "the first segment is half full, and nothing has come");
    }
    let first = Arc::clone(&journal.segments.read()[0]);
    assert!(first.end_offset() < options.segment_bytes / 2);
    for _ in 0..2 * super::segment::SYNCED_OFTEN {
        journal.append(1, Stamp::default(), &Op::Drop { id: FileId(7) }).unwrap();
        journal.sync().unwrap();
    }
    assert_eq!(segments(), 2, "it stays in the better one");
    // Half a segment without zeros is no better than a new one, and kept because there is none.
    drop(first);
    journal.trim_below(journal.end().seq).unwrap();
    assert_eq!((segments(), journal.room.prepared(), journal.room.has_written()), (1, 1, false));
    let end = journal.end();
    drop(journal);
    assert_eq!(Journal::open(folder.path(), options).unwrap().1.end, end);
}

#[test]
fn a_segment_without_records_is_never_left() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 1 << 20, pair: PAIR };
    let (journal, _) = Journal::open(folder.path(), options).unwrap();
    for _ in 0..2 * super::segment::SYNCED_OFTEN {
        journal.append(1, Stamp::default(), &Op::Drop { id: FileId(7) }).unwrap();
        journal.sync().unwrap();
        // What is cut leaves a segment that was synced often, and holds nothing.
        journal.cut_after(0).unwrap();
        journal.room.prepare_one(true);
    }
    for _ in 0..1000 {
        if journal.room.has_written() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(journal.room.has_written());
    journal.append(1, Stamp::default(), &Op::Drop { id: FileId(7) }).unwrap();
    assert_eq!(journal.segments.read().len(), 1);
    journal.append(1, Stamp::default(), &Op::Drop { id: FileId(7) }).unwrap();
    assert_eq!(journal.segments.read().len(), 2, "one with a record is");
    journal.sync().unwrap();
    let end = journal.end();
    drop(journal);
    assert_eq!(Journal::open(folder.path(), options).unwrap().1.end, end);
}

#[test]
fn bytes_between_is_never_less_than_the_truth() {
    let (_folder, journal) = written(120);
    let bytes = all(&journal);
    let sizes: Vec<u64> = records(&bytes).map(|record| record.unwrap().bytes.len() as u64).collect();
    for (from, to) in [(0, 120), (0, 1), (119, 120), (40, 80), (7, 7), (9, 3)] {
        let truth: u64 = sizes.iter().skip(from as usize).take(to.max(from) as usize - from as usize).sum();
        let said = journal.bytes_between(from, to);
        assert!(said >= truth && (truth > 0 || said == 0), "{from}..{to}: {said} for {truth}");
    }
}

/// What one append, one flush and one append-and-flush cost here. `cargo test ... journal_speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a check"]
fn journal_speed() {
    let folder = tempfile::tempdir_in(std::env::var("TANDEM_BENCH_DIR").unwrap_or_else(|_| "/var/tmp".into())).unwrap();
    let (journal, _) = Journal::open(&folder.path().join("j"), Options::new(PAIR)).unwrap();
    let data = vec![5; 4096];
    let op = Op::Write { id: FileId(2), offset: 0, data: &data };
    let time = |name: &str, count: u32, work: &dyn Fn()| {
        let began = std::time::Instant::now();
        for _ in 0..count {
            work();
        }
        println!("{name}: {:?} each", began.elapsed() / count);
    };
    time("append 4 KiB", 2000, &|| {
        journal.append(1, Stamp::default(), &op).unwrap();
    });
    journal.sync().unwrap();
    time("append 4 KiB + sync", 2000, &|| {
        journal.append(1, Stamp::default(), &op).unwrap();
        journal.sync().unwrap();
    });
    let large = vec![5; 1 << 20];
    let op = Op::Write { id: FileId(2), offset: 0, data: &large };
    time("append 1 MiB", 100, &|| {
        journal.append(1, Stamp::default(), &op).unwrap();
    });
    let file = disk::create_with_zeros(&folder.path().join("native"), 32 << 20).unwrap();
    time("native pwrite 4 KiB + fdatasync", 2000, &|| {
        disk::write_entry(&file, 8192, &[&data]).unwrap();
        disk::sync_journal(&file).unwrap();
    });
}
