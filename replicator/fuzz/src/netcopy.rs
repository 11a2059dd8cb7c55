//! A copy from a master that may say anything, and to a replicant that may answer anything.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use tandem_protocol::Position;
use tandem_replicator::netcopy::{Ask, Blob, Item, Looks, Reply, Source, Special, Step, Target, VERSION};
use tandem_replicator::op::{FileId, Kind, Op, ROOT, Stamp};
use tandem_replicator::volume::{Options, Volume};

use crate::bounded;
use crate::draw::Draw;
use crate::place::Place;

/// One input.
pub fn run(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    if draw.byte().is_multiple_of(4) { source(&mut draw) } else { target(&mut draw) }
}

/// A volume with a few files of every kind.
fn filled(place: &Place) -> Volume {
    let volume = Volume::adopt(&place.volume(), Options::default()).unwrap();
    let create =
        |id, parent, name, kind| Op::Create { id: FileId(id), parent, name, kind, mode: 0o600, uid: 0, gid: 0 };
    let data = vec![7; 100_000];
    let ops = [
        create(2, ROOT, b"a", Kind::Directory),
        create(3, FileId(2), b"b", Kind::File),
        create(4, ROOT, b"c", Kind::File),
        create(5, ROOT, b"dd", Kind::Symlink(b"a/b")),
        create(6, ROOT, b"e", Kind::Fifo),
        Op::Write { id: FileId(4), offset: 0, data: &data },
        Op::Write { id: FileId(3), offset: 9, data: b"small" },
    ];
    for op in &ops {
        volume.perform(op, Stamp { time: 5, unique: 0 }).unwrap();
    }
    volume
}

/// The master's side hears anything: it goes on, or ends the copy; it never sends more than there is.
fn source(draw: &mut Draw<'_>) {
    let place = Place::fresh("netcopy");
    let volume = Arc::new(filled(&place));
    let position = Position { epoch: 1, seq: 3, chain: 3 };
    let manifest = volume.snapshot(position);
    bounded(8 << 20, || {
        let mut source = Source::new(volume, manifest, || 9).unwrap();
        let now = Instant::now();
        for _ in 0..64 {
            match source.step(now) {
                Ok(Step::Send(items)) => drop(items),
                Ok(Step::Wait | Step::Pause(_)) if draw.is_empty() => break,
                Ok(Step::Wait | Step::Pause(_)) => {
                    let reply = match draw.byte() % 8 {
                        0 => Reply::Complete,
                        1 | 2 => Reply::Holding { bits: Blob(draw.data().to_vec()), last: draw.flag() },
                        _ => Reply::Digests { id: draw.id(), digests: Blob(draw.data().to_vec()), last: draw.flag() },
                    };
                    if source.accept(reply).is_err() {
                        break;
                    }
                }
                Ok(Step::Finished) | Err(_) => break,
            }
        }
    });
    place.check_untouched();
}

/// The bytes of a list of files, sealed.
fn manifest(draw: &mut Draw<'_>, position: Position) -> Vec<u8> {
    let mut nodes = Vec::new();
    let mut count = 0_u64;
    let mut directories = 0;
    let mut node = |nodes: &mut Vec<u8>, kind: u8, flags: u8, id: u64, times: [u64; 4]| {
        nodes.extend([kind, flags]);
        for number in [id, times[0], times[1], times[2], times[3]] {
            nodes.extend_from_slice(&number.to_le_bytes());
        }
        count += 1;
        directories += usize::from(kind == 1);
    };
    // Nearly always a root that is one.
    if draw.byte() != 255 {
        node(&mut nodes, 1, draw.byte() & 1, 1, [0; 4]);
    }
    for _ in 0..draw.byte() % 8 {
        let kind = match draw.byte() {
            0..=99 => 0,
            100..=179 => 1,
            kind => kind % 8,
        };
        node(&mut nodes, kind, draw.byte() & 1, draw.id().0, [draw.number(), 0, draw.number(), draw.number()]);
    }
    let mut folders = Vec::new();
    for at in 0..directories {
        let parent = if at == 0 { 1 } else { draw.id().0 };
        let mut entries = Vec::new();
        let number = u64::from(draw.byte() % 6);
        for cookie in 0..number {
            let cookie = if draw.byte() < 230 { cookie + 3 } else { draw.number() };
            let name = draw.name();
            entries.extend_from_slice(&cookie.to_le_bytes());
            entries.extend_from_slice(&draw.id().0.to_le_bytes());
            entries.push(name.len() as u8);
            entries.extend_from_slice(name);
        }
        let number = if draw.byte() < 250 { number } else { draw.number() };
        let next = draw.number();
        for number in [parent, next, number] {
            folders.extend_from_slice(&number.to_le_bytes());
        }
        folders.extend_from_slice(&entries);
    }
    let (last, count) = (draw.number(), if draw.byte() < 250 { count } else { draw.number() });
    let mut bytes = b"TNDIDS01".to_vec();
    for number in [position.epoch, position.seq, position.chain, last, count] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&nodes);
    bytes.extend_from_slice(&folders);
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

pub(crate) fn sealed_manifest(draw: &mut Draw<'_>) -> Vec<u8> {
    let position = Position { epoch: draw.number(), seq: draw.number(), chain: draw.number() };
    manifest(draw, position)
}

fn item(draw: &mut Draw<'_>) -> Item {
    match draw.byte() % 16 {
        0 => Item::Gone(draw.id()),
        1 | 2 => Item::Specials(vec![(
            draw.id(),
            if draw.flag() { Special::Symlink(Blob(draw.name().to_vec())) } else { Special::Device(draw.number()) },
        )]),
        3 | 4 => Item::Arrange,
        5 => Item::Compare(vec![Ask { id: draw.id(), first: draw.number(), count: draw.word() }]),
        6..=8 => {
            let xattrs = (0..draw.byte() % 3).map(|_| (Blob(draw.attribute().to_vec()), Blob(draw.data().to_vec())));
            let xattrs = xattrs.collect();
            Item::Looks(Looks { id: draw.id(), mode: draw.mode(), uid: draw.owner(), gid: draw.owner(), xattrs })
        }
        9 | 10 => Item::Data { offset: draw.offset(), data: Blob(draw.data().to_vec()) },
        11 => Item::Hole { offset: draw.offset(), length: draw.offset() },
        12 | 13 => {
            let size = draw.offset();
            // The digest of an empty file, or none.
            let digest = if draw.flag() { *blake3::hash(&size.to_le_bytes()).as_bytes() } else { draw.array() };
            Item::Finish { size, digest }
        }
        14 => Item::End { files: draw.number(), digest: draw.array(), through: draw.number() },
        _ => Item::Begin { version: VERSION, position: Position::default(), manifest_bytes: draw.number() },
    }
}

/// The replicant's side hears anything, on a volume that holds files already.
fn target(draw: &mut Draw<'_>) {
    let place = Place::fresh("netcopy");
    let held = filled(&place).snapshot(Position::default());
    let position = Position { epoch: draw.number(), seq: draw.number(), chain: draw.number() };
    let list = manifest(draw, position);
    let version = if draw.byte() == 255 { draw.word() } else { VERSION };
    let mut items =
        vec![Item::Begin { version, position, manifest_bytes: list.len() as u64 }, Item::Manifest(Blob(list))];
    if draw.byte() < 200 {
        items.push(Item::Arrange);
    }
    for _ in 0..32 {
        if draw.is_empty() {
            break;
        }
        items.push(item(draw));
    }
    let path = place.volume();
    let begun = std::cell::Cell::new(false);
    bounded(16 << 20, || {
        let prepare = Box::new(|_| Ok(()));
        let mut target = Target::new(&path, Options::default(), Some(held), prepare, Box::new(|_| Ok(())));
        'items: for item in items {
            if target.accept(vec![item]).is_err() {
                break;
            }
            loop {
                match target.step() {
                    Ok(Step::Send(_)) => {}
                    Ok(Step::Wait | Step::Pause(_)) => break,
                    Ok(Step::Finished) | Err(_) => break 'items,
                }
            }
        }
        begun.set(target.has_begun());
    });
    place.check_untouched();
    check_kinds(&path);
    // However it ended, another life finds a volume.
    Volume::adopt(&path, Options::default()).unwrap();
}

/// No device came onto the volume.
fn check_kinds(folder: &std::path::Path) {
    use std::os::unix::fs::FileTypeExt as _;
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        assert!(!kind.is_block_device() && !kind.is_char_device(), "a device: {}", entry.path().display());
        if kind.is_dir() {
            check_kinds(&entry.path());
        }
    }
}

/// Messages of an honest copy.
pub(crate) fn conversations() -> Vec<Vec<Item>> {
    let place = Place::fresh("netcopy-seeds");
    let volume = Arc::new(filled(&place));
    let manifest = volume.snapshot(Position::default());
    let mut source = Source::new(volume, manifest, || 9).unwrap();
    let mut sent = Vec::new();
    loop {
        match source.step(Instant::now()).unwrap() {
            Step::Send(items) => {
                if items.iter().all(|item| !matches!(item, Item::Data { data, .. } if data.0.len() > 4096)) {
                    sent.push(items);
                }
            }
            Step::Wait => {
                let reply = Reply::Holding { bits: Blob(vec![0]), last: true };
                if source.accept(reply).is_err() {
                    return sent;
                }
            }
            Step::Pause(_) => {}
            Step::Finished => return sent,
        }
    }
}

/// Inputs that reach deep.
pub fn seeds() -> Vec<Vec<u8>> {
    // Position, root, three files: a directory 2, files 3 and 4; names: a is 2, in it b is 3; c is 4; next cookies, counts.
    let list = [
        &[1, 0, 9, 0, 0, 0, 3][..],
        &[100, 0, 1, 0, 0, 0],
        &[0, 0, 2, 0, 0, 0],
        &[0, 0, 3, 0, 0, 0],
        // The root's entries: two. Cookie, name, id each; count, next.
        &[2, 0, 0, 1, 0, 2, 3, 0, 9],
        // Of directory 2: one.
        &[1, 1, 0, 1, 2, 0, 9],
        // Last id, count; version; arrange.
        &[9, 0, 0, 0],
    ]
    .concat();
    let looks = |id: u8| [6, 0, id, 0, 0, 0];
    let finish = [12, 0, 1];
    let whole =
        [&list[..], &looks(0), &looks(1), &looks(2), &[9, 0, 4, 1, 2, 3, 4], &finish, &looks(3), &finish].concat();
    let ask = [&list[..], &[5, 3, 0, 9], &looks(0), &looks(1), &looks(2), &[11, 0, 200, 1], &finish].concat();
    vec![whole, ask, vec![0, 1, 1, 0xff, 1], vec![4, 1, 1, 0xff, 1, 3, 3, 16], list]
}
