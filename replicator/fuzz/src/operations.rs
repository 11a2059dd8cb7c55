//! Operations: their bytes, and what they do to the names of a volume.

use tandem_replicator::op::codec::{DATA_BYTES_MAX, NAME_BYTES_MAX, TARGET_BYTES_MAX, XATTR_BYTES_MAX, decode, encode};
use tandem_replicator::op::{FileId, Kind, Op, ROOT};
use tandem_replicator::volume::tree::{Node, Tree};
use tandem_replicator::volume::{Backing, FileKind};

use crate::bounded;
use crate::draw::Draw;
use crate::place::check_survives;

/// One input.
pub fn run(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    if draw.flag() { raw(&mut draw) } else { names(&mut draw) }
}

/// Any bytes: what decodes is within all limits, and encodes to exactly these bytes.
fn raw(draw: &mut Draw<'_>) {
    let length = draw.below(700);
    let head = draw.slice(length);
    let payload = draw.rest();
    // Nothing is copied to name an operation.
    let Ok(op) = bounded(0, || decode(head, payload)) else { return };
    check_limits(&op);
    let encoded = encode(&op).unwrap();
    assert_eq!((encoded.head(), encoded.payload), (head, payload));
}

fn check_limits(op: &Op<'_>) {
    let (names, ids): (Vec<&[u8]>, Vec<FileId>) = match op {
        Op::Create { id, parent, name, kind, mode, .. } => {
            if let Kind::Symlink(target) = kind {
                assert!(!target.is_empty() && target.len() <= TARGET_BYTES_MAX && !target.contains(&0));
            }
            assert!(*mode <= 0o7777);
            (vec![name], vec![*id, *parent])
        }
        Op::Link { id, parent, name } | Op::Unlink { id, parent, name } => (vec![name], vec![*id, *parent]),
        Op::Rename { id, parent, name, new_parent, new_name, replaced } => {
            (vec![name, new_name], [*id, *parent, *new_parent].into_iter().chain(*replaced).collect())
        }
        Op::Exchange { id, parent, name, other, other_parent, other_name } => {
            (vec![name, other_name], vec![*id, *parent, *other, *other_parent])
        }
        Op::Write { id, offset, data } => {
            assert!(data.len() <= DATA_BYTES_MAX && offset + data.len() as u64 <= i64::MAX as u64);
            (vec![], vec![*id])
        }
        Op::Truncate { id, size } => {
            assert!(*size <= i64::MAX as u64);
            (vec![], vec![*id])
        }
        Op::Allocate { id, offset, length, .. }
        | Op::Punch { id, offset, length }
        | Op::Zero { id, offset, length, .. } => {
            assert!(offset + length <= i64::MAX as u64);
            (vec![], vec![*id])
        }
        Op::SetXattr { id, name, value } => {
            assert!(!name.contains(&0) && value.len() <= XATTR_BYTES_MAX);
            (vec![], vec![*id])
        }
        Op::CreateUnnamed { id, mode, .. } | Op::SetMode { id, mode } => {
            assert!(*mode <= 0o7777);
            (vec![], vec![*id])
        }
        Op::Drop { id } | Op::SetOwner { id, .. } | Op::SetTimes { id, .. } | Op::RemoveXattr { id, .. } => {
            (vec![], vec![*id])
        }
        Op::Begin { member } => {
            assert!(member.len() <= 63);
            (vec![], vec![])
        }
    };
    assert!(ids.iter().all(|id| id.0 != 0));
    for name in names {
        assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX && name != b"." && name != b"..");
        assert!(!name.contains(&b'/') && !name.contains(&0));
    }
}

/// Operations one after the other on the names of a volume: what is allowed is done, and the result is always a tree that
/// a checkpoint can hold.
fn names(draw: &mut Draw<'_>) {
    let mut tree = Tree::new(Node::new(FileKind::Directory, Backing::default(), 0, 0));
    for time in 0..64 {
        if draw.is_empty() {
            break;
        }
        let op = draw.op();
        let Ok(encoded) = encode(&op) else { continue };
        assert_eq!(decode(encoded.head(), encoded.payload).unwrap(), op);
        let allowed = tree.check(&op);
        assert_eq!(tree.change(&op, time, Backing { ino: time as u64 + 2, btime: time }), allowed);
    }
    assert!(tree.node(ROOT).is_some());
    check_survives(&tree);
}

/// Inputs that reach deep.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let name = b"name".as_slice();
    let (id, parent) = (FileId(7), FileId(1));
    let create = |kind| Op::Create { id, parent, name, kind, mode: 0o4755, uid: 1, gid: 2 };
    let ops = [
        create(Kind::File),
        create(Kind::Symlink(b"target")),
        create(Kind::Character(0x103)),
        Op::CreateUnnamed { id, mode: 0o600, uid: 1, gid: 2 },
        Op::Link { id, parent, name },
        Op::Rename { id, parent, name, new_parent: id, new_name: b"x", replaced: Some(FileId(3)) },
        Op::Exchange { id, parent, name, other: FileId(3), other_parent: parent, other_name: b"y" },
        Op::Write { id, offset: 1 << 40, data: b"data" },
        Op::Allocate { id, offset: 1, length: 9, keep_size: true },
        Op::SetTimes { id, atime: Some(-1), mtime: None },
        Op::SetXattr { id, name: b"user.x", value: b"v" },
        Op::Begin { member: "a" },
    ];
    for op in &ops {
        let encoded = encode(op).unwrap();
        let mut seed = vec![1];
        seed.extend_from_slice(&(encoded.head().len() as u16).to_le_bytes());
        seed.extend_from_slice(encoded.head());
        seed.extend_from_slice(encoded.payload);
        seeds.push(seed);
    }
    seeds.push(script());
    seeds
}

/// Draws: a directory, a file in it, a rename over another file, a removal.
pub(crate) fn script() -> Vec<u8> {
    let mut script = vec![0];
    // Create: code, kind, id, parent, name, mode, uid, gid. Ids are one above the byte.
    script.extend([0, 100, 1, 0, 0, 0o55, 0, 0]);
    script.extend([0, 0, 2, 1, 1, 0, 0, 0]);
    script.extend([0, 0, 3, 0, 2, 0, 0, 0]);
    script.extend([0, 190, 4, 0, 3, 0, 0, 0]);
    // Write: id, offset, length and bytes. SetXattr. Rename, replaced. Exchange. Unlink. Drop.
    script.extend([13, 2, 9, 3, b'x', b'y', b'z']);
    script.extend([21, 2, 0, 1, b'v']);
    script.extend([9, 2, 1, 1, 0, 2, 1, 3]);
    script.extend([11, 2, 0, 2, 4, 0, 3]);
    script.extend([7, 4, 0, 2]);
    script.extend([12, 3]);
    script
}
