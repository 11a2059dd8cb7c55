//! Records as they come from a peer, and the files of a journal after anything happened to them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use tandem_protocol::Position;
use tandem_replicator::journal::entry::{HEADER_BYTES, Header, NUMBER_MAX, digest, size};
use tandem_replicator::journal::{Journal, JournalError, Options, records_after};
use tandem_replicator::op::codec::encode;
use tandem_replicator::op::{FileId, Op, Stamp};

use crate::bounded;
use crate::draw::Draw;
use crate::place::Place;

const SEGMENT_BYTES: u64 = 8 << 10;
const PAGE_BYTES: usize = 4096;
const OPTIONS: Options = Options { segment_bytes: SEGMENT_BYTES, pair: *b"a pair of a fuzz" };

/// One input.
pub fn run(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    match draw.byte() % 4 {
        0 => {
            verify(Position::default(), draw.rest());
        }
        1 => {
            let before = position(&mut draw);
            let bytes = stream(&mut draw, before);
            verify(before, &bytes);
        }
        2 => taken_in(&mut draw),
        _ => opened(&mut draw),
    }
}

fn position(draw: &mut Draw<'_>) -> Position {
    Position { epoch: draw.number(), seq: draw.number(), chain: draw.number() }
}

/// Entries that hold, but for what the draw says: lengths, numbers, chain, contents, padding.
fn stream(draw: &mut Draw<'_>, mut before: Position) -> Vec<u8> {
    let mut stream = Vec::new();
    for _ in 0..8 {
        if draw.is_empty() {
            break;
        }
        let op = draw.op();
        let (mut head, mut payload) = match encode(&op) {
            Ok(encoded) => (encoded.head().to_vec(), encoded.payload.to_vec()),
            Err(_) => (draw.data().to_vec(), Vec::new()),
        };
        let flaw = draw.byte();
        if flaw == 1 {
            (head, payload) = (draw.data().to_vec(), draw.data().to_vec());
        }
        let epoch = if flaw == 2 { draw.number() } else { before.epoch };
        let stamp = Stamp { time: draw.number() as i64, unique: draw.number() };
        if flaw == 3 {
            before = position(draw);
        }
        if before.seq == u64::MAX {
            break;
        }
        let sum = digest(&head, &payload);
        let length = head.len() + payload.len();
        let header = Header::following(before, epoch, stamp, head.len(), length, sum);
        let mut bytes = header.bytes().to_vec();
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&payload);
        bytes.resize(size(length), u8::from(flaw == 4));
        if flaw == 5 {
            // Any field, with a header checksum that holds.
            let at = 4 + draw.below(HEADER_BYTES - 12);
            bytes[at..at + 8].copy_from_slice(&draw.number().to_le_bytes());
            let crc = crc32c::crc32c(&bytes[4..HEADER_BYTES]);
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
        }
        if flaw == 6 {
            let at = draw.below(bytes.len());
            bytes[at] ^= draw.byte();
        }
        if flaw == 7 {
            bytes.truncate(draw.below(bytes.len()));
        }
        stream.extend_from_slice(&bytes);
        before = header.position();
    }
    stream
}

/// Whatever is taken for records is one history, each of them exactly the bytes that its operation would be written as.
fn verify(before: Position, bytes: &[u8]) -> u64 {
    let mut at = before;
    let mut used = 0;
    let mut count = 0;
    for record in bounded(0, || records_after(before, bytes)) {
        let Ok(record) = record else { break };
        assert_eq!(record.position.seq, at.seq + 1);
        assert!(record.position.epoch >= at.epoch);
        assert_eq!(record.bytes, &bytes[used..used + record.bytes.len()]);
        used += record.bytes.len();
        if let Ok(op) = record.op() {
            let encoded = encode(&op).unwrap();
            let (head, payload) = (encoded.head(), encoded.payload);
            let length = head.len() + payload.len();
            let sum = digest(head, payload);
            let header = Header::following(at, record.position.epoch, record.stamp, head.len(), length, sum);
            let mut again = header.bytes().to_vec();
            again.extend_from_slice(head);
            again.extend_from_slice(payload);
            again.resize(size(length), 0);
            assert_eq!(again, record.bytes);
        }
        at = record.position;
        count += 1;
    }
    count
}

/// The replicant's way in: all of a frame or nothing, and never anything that cannot be read back.
fn taken_in(draw: &mut Draw<'_>) {
    let place = Place::fresh("journal");
    let folder = place.volume().join(".tandem/journal");
    let (journal, _) = Journal::open(&folder, OPTIONS).unwrap();
    if draw.flag() {
        // As a copy from the peer would begin it.
        journal.reset(position(draw)).ok();
    }
    for _ in 0..3 {
        let end = journal.end();
        let frame = stream(draw, end);
        match journal.append_raw(&frame) {
            Ok(now) => {
                assert_eq!(now, journal.end());
                assert_eq!(now.seq - end.seq, verify(end, &frame));
            }
            Err(JournalError::Full(_) | JournalError::TooLong(_)) => {}
            Err(_) => assert_eq!(journal.end(), end),
        }
        journal.mark_committed(draw.number()).unwrap();
        journal.sync().unwrap();
    }
    let (end, first) = (journal.end(), journal.first());
    drop(journal);
    let (journal, recovered) = Journal::open(&folder, OPTIONS).unwrap();
    assert_eq!((recovered.end, journal.first()), (end, first));
    check_usable(&journal, &folder);
    drop(journal);
    place.check_untouched();
}

type Files = BTreeMap<String, Vec<u8>>;

/// The files of a journal of three segments.
fn original() -> &'static (Files, BTreeMap<u64, Vec<u8>>) {
    static ORIGINAL: OnceLock<(Files, BTreeMap<u64, Vec<u8>>)> = OnceLock::new();
    ORIGINAL.get_or_init(|| {
        let place = Place::fresh("journal-original");
        let folder = place.volume().join(".tandem/journal");
        let (journal, _) = Journal::open(&folder, OPTIONS).unwrap();
        for number in 0..36_u64 {
            let data = vec![number as u8; 200 + number as usize];
            let op = Op::Write { id: FileId(2), offset: number, data: &data };
            journal.append(1 + number / 12, Stamp { time: number as i64, unique: number }, &op).unwrap();
            if number % 5 == 4 {
                journal.mark_committed(number - 2).unwrap();
                journal.sync().unwrap();
            }
        }
        journal.sync().unwrap();
        let records = contents(&journal).0;
        drop(journal);
        let files = fs::read_dir(&folder).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
        });
        let files: Files = files.filter(|(name, _)| name.ends_with(".seg")).collect();
        assert!(files.len() >= 3, "{} segments", files.len());
        (files, records)
    })
}

/// Every record that can be read, and whether that was all.
fn contents(journal: &Journal) -> (BTreeMap<u64, Vec<u8>>, bool) {
    let mut found = BTreeMap::new();
    let (mut next, end) = (journal.first(), journal.end());
    while next <= end.seq {
        let mut bytes = Vec::new();
        let Ok(batch) = journal.read(next, 64 << 10, &mut bytes) else { return (found, false) };
        assert!(batch.count > 0);
        for record in records_after(batch.before, &bytes) {
            let Ok(record) = record else { return (found, false) };
            assert_eq!(record.position.seq, next);
            found.insert(next, record.bytes.to_vec());
            next += 1;
        }
        assert_eq!(batch.last.seq + 1, next);
    }
    (found, true)
}

/// A journal that was opened goes on: one more record is there after the next opening, with all before it.
fn check_usable(journal: &Journal, folder: &Path) {
    let end = journal.end();
    let appended = journal.append(end.epoch, Stamp::default(), &Op::Drop { id: FileId(3) });
    if end.seq >= NUMBER_MAX {
        assert!(appended.is_err());
        return;
    }
    let position = appended.unwrap();
    assert_eq!(position.seq, end.seq + 1);
    journal.mark_committed(position.seq).unwrap();
    assert_eq!(journal.sync().unwrap(), position.seq);
    assert_eq!(journal.committed(), position.seq);
    let copy = folder.with_file_name("copy");
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        // Room that is being prepared has its name changed meanwhile; no record is in it.
        if !entry.file_name().to_string_lossy().starts_with("spare") {
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    let (again, recovered) = Journal::open(&copy, OPTIONS).unwrap();
    assert_eq!((recovered.end, recovered.committed_mark), (position, position.seq));
    assert_eq!(again.first(), journal.first());
}

fn page_sealed(page: &mut [u8]) {
    let crc = crc32c::crc32c(&page[16..PAGE_BYTES]);
    page[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// The folder of a journal to which things happened: it opens to a history that holds, or says why not.
fn opened(draw: &mut Draw<'_>) {
    let (files, records) = original();
    let mut files = files.clone();
    // Only what a disk may do by accident: then nothing that was not there can be found.
    let mut accident = true;
    for _ in 0..6 {
        if draw.is_empty() || files.is_empty() {
            break;
        }
        let Some(name) = files.keys().nth(draw.below(files.len())).cloned() else { break };
        let Some(file) = files.get_mut(&name) else { break };
        match draw.byte() % 9 {
            0 if !file.is_empty() => {
                let at = draw.below(file.len());
                file[at] ^= draw.byte();
            }
            1 => file.truncate(draw.below(file.len() + 1)),
            2 => drop(files.remove(&name)),
            3 => {
                let (from, length) = (draw.below(file.len() + 1), draw.below(PAGE_BYTES));
                file.iter_mut().skip(from).take(length).for_each(|byte| *byte = 0);
            }
            4 => {
                // A field of the first page, sealed.
                accident = false;
                if file.len() >= PAGE_BYTES {
                    let at = 8 + 8 * draw.below(10);
                    file[at..at + 8].copy_from_slice(&draw.number().to_le_bytes());
                    page_sealed(&mut file[..PAGE_BYTES]);
                }
            }
            5 => {
                // A field of an entry, sealed.
                accident = false;
                let at = PAGE_BYTES + 8 * draw.below(SEGMENT_BYTES as usize / 8);
                let field = 4 + draw.below(HEADER_BYTES - 12);
                if file.len() >= at + HEADER_BYTES {
                    let entry = &mut file[at..at + HEADER_BYTES];
                    entry[field..field + 8].copy_from_slice(&draw.number().to_le_bytes());
                    let crc = crc32c::crc32c(&entry[4..]);
                    entry[..4].copy_from_slice(&crc.to_le_bytes());
                }
            }
            6 => {
                // Under the name of another.
                accident = false;
                let file = file.clone();
                files.insert(format!("{:020}.seg", draw.number()), file);
            }
            7 => {
                // Records of somebody else behind a page of one's own.
                accident = false;
                if file.len() >= PAGE_BYTES {
                    let before = position(draw);
                    for (at, number) in [before.epoch, before.seq, before.chain].iter().enumerate() {
                        file[32 + at * 8..40 + at * 8].copy_from_slice(&number.to_le_bytes());
                    }
                    page_sealed(&mut file[..PAGE_BYTES]);
                    let entries = stream(draw, before);
                    let length = file.len();
                    file.truncate(PAGE_BYTES);
                    file.extend_from_slice(&entries);
                    file.resize(length.max(PAGE_BYTES), 0);
                    let file = file.clone();
                    files.remove(&name);
                    files.insert(format!("{:020}.seg", before.seq.wrapping_add(1)), file);
                }
            }
            _ => {
                let name: String = String::from_utf8_lossy(draw.data()).chars().take(40).collect();
                files.insert(name.replace(['/', '\0'], "_"), Vec::new());
            }
        }
    }
    let place = Place::fresh("journal");
    let folder = place.volume().join(".tandem/journal");
    fs::create_dir_all(&folder).unwrap();
    for (name, file) in files.iter().filter(|(name, _)| !["", ".", ".."].contains(&name.as_str())) {
        fs::write(folder.join(name), file).unwrap();
    }
    let most = (files.len() + 2) * (2 * SEGMENT_BYTES as usize) + (64 << 10);
    if let Ok((journal, recovered)) = bounded(most, || Journal::open(&folder, OPTIONS)) {
        assert_eq!(recovered.end, journal.end());
        assert!(recovered.committed_mark <= recovered.end.seq);
        assert!(journal.first() <= recovered.end.seq.saturating_add(1));
        let (found, _) = contents(&journal);
        if accident {
            for (seq, record) in &found {
                assert_eq!(Some(record), records.get(seq), "record {seq} is not what was written");
            }
        }
        check_usable(&journal, &folder);
    }
    place.check_untouched();
}

/// Inputs that reach deep.
pub fn seeds() -> Vec<Vec<u8>> {
    let (files, records) = original();
    let all: Vec<u8> = records.values().take(3).flatten().copied().collect();
    // Drop of file 8, no flaw, time 1, unique 2.
    let record = [12, 7, 0, 1, 2];
    let mut seeds = vec![[&[0], all.as_slice()].concat(), [&[1, 0, 0, 0][..], &record, &record].concat()];
    seeds.push([&[2, 0][..], &record, &record, &[1]].concat());
    seeds.push([&[2, 1, 3, 9, 77][..], &record, &record, &[1]].concat());
    seeds.push(vec![3]);
    for what in 0..8 {
        for at in 0..files.len() as u8 {
            seeds.push([&[3, at, 0, what, 40, 3, 9][..], &record, &record].concat());
        }
    }
    seeds
}
