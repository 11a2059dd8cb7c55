//! Every operation survives its encoding; no bytes whatever make the decoder panic or accept two encodings of one thing.

use proptest::prelude::*;

use super::*;

/// An operation that owns its bytes, so that proptest can keep it.
#[derive(Clone, Debug)]
struct Owned {
    which: u8,
    numbers: [u64; 4],
    small: [u32; 2],
    names: [Vec<u8>; 2],
    bulk: Vec<u8>,
    flags: [bool; 2],
}

impl Owned {
    fn op(&self) -> Op<'_> {
        let id = FileId((self.numbers[0] & ID_MAX).max(1));
        let parent = FileId((self.numbers[1] & ID_MAX).max(1));
        let other = FileId((self.numbers[2] & ID_MAX).max(1));
        let offset = self.numbers[3] >> 2;
        let length = self.numbers[2] >> 2;
        let (name, other_name) = (self.names[0].as_slice(), self.names[1].as_slice());
        let [uid, gid] = self.small;
        let mode = uid & 0o7777;
        let [first, second] = self.flags;
        let bulk = self.bulk.as_slice();
        match self.which % 24 {
            0 => Op::Create { id, parent, name, kind: Kind::File, mode, uid, gid },
            1 => Op::Create { id, parent, name, kind: Kind::Directory, mode, uid, gid },
            2 => Op::Create { id, parent, name, kind: Kind::Symlink(other_name), mode, uid, gid },
            3 => Op::Create { id, parent, name, kind: Kind::Fifo, mode, uid, gid },
            4 => Op::Create { id, parent, name, kind: Kind::Socket, mode, uid, gid },
            5 => Op::Create { id, parent, name, kind: Kind::Character(offset), mode, uid, gid },
            6 => Op::Create { id, parent, name, kind: Kind::Block(offset), mode, uid, gid },
            7 => Op::CreateUnnamed { id, mode, uid, gid },
            8 => Op::Link { id, parent, name },
            9 => Op::Unlink { id, parent, name },
            10 => Op::Rename {
                id,
                parent,
                name,
                new_parent: other,
                new_name: other_name,
                replaced: first.then_some(FileId(7)),
            },
            11 => Op::Exchange { id, parent, name, other, other_parent: parent, other_name },
            12 => Op::Drop { id },
            13 => Op::Write { id, offset, data: bulk },
            14 => Op::Truncate { id, size: offset },
            15 => Op::Allocate { id, offset, length, keep_size: first },
            16 => Op::Punch { id, offset, length },
            17 => Op::Zero { id, offset, length, keep_size: first },
            18 => Op::SetMode { id, mode },
            19 => Op::SetOwner { id, uid, gid },
            20 => Op::SetTimes {
                id,
                atime: first.then_some(self.numbers[2] as i64),
                mtime: second.then_some(self.numbers[3] as i64),
            },
            21 => Op::SetXattr { id, name, value: bulk },
            22 => Op::RemoveXattr { id, name },
            _ => Op::Begin { member: "a" },
        }
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>().prop_filter("a name", |byte| !matches!(byte, 0 | b'/' | b'.')), 1..=255)
}

fn owned() -> impl Strategy<Value = Owned> {
    (
        any::<u8>(),
        any::<[u64; 4]>(),
        any::<[u32; 2]>(),
        [name(), name()],
        prop::collection::vec(any::<u8>(), 0..600),
        any::<[bool; 2]>(),
    )
        .prop_map(|(which, numbers, small, names, bulk, flags)| Owned {
            which,
            numbers,
            small,
            names,
            bulk,
            flags,
        })
}

proptest! {
    #[test]
    fn what_was_encoded_decodes_to_the_same(owned in owned()) {
        let op = owned.op();
        let encoded = encode(&op).unwrap();
        prop_assert_eq!(decode(encoded.head(), encoded.payload).unwrap(), op);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_have_one_encoding(
        head in prop::collection::vec(any::<u8>(), 0..200), payload in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        if let Ok(op) = decode(&head, &payload) {
            let again = encode(&op).unwrap();
            prop_assert_eq!((again.head(), again.payload), (head.as_slice(), payload.as_slice()));
        }
    }

    #[test]
    fn one_changed_byte_never_panics(owned in owned(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let op = owned.op();
        let encoded = encode(&op).unwrap();
        let mut head = encoded.head().to_vec();
        let at = at.index(head.len());
        head[at] = to;
        if let Ok(op) = decode(&head, encoded.payload) {
            let again = encode(&op).unwrap();
            prop_assert_eq!(again.head(), head.as_slice());
        }
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'x'; 256]] {
        let op = Op::Unlink { id: FileId(2), parent: FileId(1), name };
        assert!(encode(&op).is_err(), "{name:?}");
    }
    encode(&Op::Unlink { id: FileId(2), parent: FileId(1), name: &[b'x'; 255] }).unwrap();
}

#[test]
fn limits_hold_both_ways() {
    let long = vec![0; DATA_BYTES_MAX + 1];
    assert_eq!(encode(&Op::Write { id: FileId(2), offset: 0, data: &long }).err(), Some(CodecError::TooLong));
    let head = encode(&Op::Write { id: FileId(2), offset: 0, data: b"" }).unwrap();
    assert_eq!(decode(head.head(), &long), Err(CodecError::TooLong));
    assert_eq!(
        encode(&Op::Write { id: FileId(2), offset: i64::MAX as u64, data: b"x" }).err(),
        Some(CodecError::Number)
    );
    assert_eq!(encode(&Op::SetMode { id: FileId(2), mode: 0o100644 }).err(), Some(CodecError::Number));
    assert_eq!(encode(&Op::Drop { id: FileId(0) }).err(), Some(CodecError::Number));
    assert_eq!(encode(&Op::Drop { id: FileId(ID_MAX + 1) }).err(), Some(CodecError::Number));
    let last = encode(&Op::Drop { id: FileId(ID_MAX) }).unwrap();
    let mut beyond = last.head().to_vec();
    beyond[8] |= 0x80;
    assert!(decode(last.head(), &[]).is_ok());
    assert_eq!(decode(&beyond, &[]), Err(CodecError::Number));
    assert_eq!(
        encode(&Op::SetXattr { id: FileId(2), name: b"user.x", value: &long[..XATTR_BYTES_MAX + 1] }).err(),
        Some(CodecError::TooLong)
    );
}

#[test]
fn bulk_after_an_operation_without_bulk_is_refused() {
    let encoded = encode(&Op::Drop { id: FileId(9) }).unwrap();
    assert_eq!(decode(encoded.head(), b"x"), Err(CodecError::LeftOver));
}
