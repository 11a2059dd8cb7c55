//! Turns the engine's bytes into values: a few that meet often, some that are at a limit, and now and then raw ones. At the
//! end of the bytes everything is zero.

use tandem_replicator::op::{FileId, Kind, Op};

/// Bytes not yet used.
pub(crate) struct Draw<'a> {
    rest: &'a [u8],
}

impl<'a> Draw<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Draw<'a> {
        Draw { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((first, rest)) => {
                self.rest = rest;
                *first
            }
            None => 0,
        }
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(crate) fn slice(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.slice(N);
        let mut array = [0; N];
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub(crate) fn raw(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::from(u16::from_le_bytes(self.array())) % bound.max(1)
    }

    /// Small ones, those at the ends of what is possible, and any.
    pub(crate) fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..=199 => u64::from(small),
            200..=209 => u64::from(self.byte()) << 12,
            210..=214 => u64::MAX,
            215..=219 => u64::MAX - 1,
            220..=224 => i64::MAX as u64,
            225..=229 => i64::MAX as u64 - 1,
            230..=234 => 1 << 63,
            235..=239 => 1 << 62,
            240..=244 => u64::from(u32::MAX),
            _ => self.raw(),
        }
    }

    pub(crate) fn word(&mut self) -> u32 {
        self.number() as u32
    }

    pub(crate) fn id(&mut self) -> FileId {
        match self.byte() {
            small @ 0..=239 => FileId(u64::from(small % 12) + 1),
            240..=243 => FileId(0),
            244..=247 => FileId(u64::MAX),
            _ => FileId(self.raw()),
        }
    }

    pub(crate) fn name(&mut self) -> &'a [u8] {
        const USUAL: [&[u8]; 4] = [b"a", b"b", b"c", b"dd"];
        const HOSTILE: [&[u8]; 12] = [
            b".",
            b"..",
            b"",
            b"/",
            b"a/b",
            b"../canary",
            b".tandem",
            b"lost+found",
            b"a\0b",
            b"member",
            &[b'n'; 255],
            &[b'n'; 256],
        ];
        match self.byte() {
            usual @ 0..=199 => USUAL[usize::from(usual) % USUAL.len()],
            hostile @ 200..=240 => HOSTILE[usize::from(hostile - 200) % HOSTILE.len()],
            _ => {
                let length = usize::from(self.byte());
                self.slice(length)
            }
        }
    }

    pub(crate) fn attribute(&mut self) -> &'a [u8] {
        const NAMES: [&[u8]; 10] = [
            b"user.a",
            b"user.b",
            b"user.",
            b"security.capability",
            b"trusted.overlay.opaque",
            b"system.posix_acl_access",
            b"system.posix_acl_default",
            b"security.selinux",
            b"user.\0",
            b"",
        ];
        match self.byte() {
            known @ 0..=239 => NAMES[usize::from(known) % NAMES.len()],
            _ => {
                let length = usize::from(self.byte());
                self.slice(length)
            }
        }
    }

    pub(crate) fn data(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte());
        self.slice(length)
    }

    /// Where in a file: near the beginning, or at what a file can have at most.
    pub(crate) fn offset(&mut self) -> u64 {
        match self.number() {
            number if !(1 << 20..=1 << 60).contains(&number) => number,
            number => number >> 44,
        }
    }

    /// How much of a file: little, or more than there can be. What lies between would only cost time.
    pub(crate) fn length(&mut self) -> u64 {
        match self.number() {
            number if number < 1 << 20 || number > i64::MAX as u64 => number,
            number => number & 0xf_ffff,
        }
    }

    pub(crate) fn kind(&mut self) -> Kind<'a> {
        match self.byte() {
            0..=99 => Kind::File,
            100..=169 => Kind::Directory,
            170..=189 => Kind::Symlink(self.name()),
            190..=199 => Kind::Symlink(b"../canary"),
            200..=214 => Kind::Fifo,
            215..=229 => Kind::Socket,
            230..=239 => Kind::Character(self.raw()),
            _ => Kind::Block(self.raw()),
        }
    }

    pub(crate) fn mode(&mut self) -> u32 {
        match self.byte() {
            usual @ 0..=199 => 0o600 | u32::from(usual & 0o77),
            200..=229 => 0o7777,
            _ => self.raw() as u32,
        }
    }

    pub(crate) fn owner(&mut self) -> u32 {
        match self.byte() {
            usual @ 0..=239 => u32::from(usual % 3),
            240..=247 => u32::MAX,
            _ => self.raw() as u32,
        }
    }

    /// Any operation, possible or not.
    pub(crate) fn op(&mut self) -> Op<'a> {
        match self.byte() % 24 {
            0..=4 => Op::Create {
                kind: self.kind(),
                id: self.id(),
                parent: self.id(),
                name: self.name(),
                mode: self.mode(),
                uid: self.owner(),
                gid: self.owner(),
            },
            5 => Op::CreateUnnamed { id: self.id(), mode: self.mode(), uid: self.owner(), gid: self.owner() },
            6 => Op::Link { id: self.id(), parent: self.id(), name: self.name() },
            7 | 8 => Op::Unlink { id: self.id(), parent: self.id(), name: self.name() },
            9 | 10 => Op::Rename {
                id: self.id(),
                parent: self.id(),
                name: self.name(),
                new_parent: self.id(),
                new_name: self.name(),
                replaced: self.flag().then(|| self.id()),
            },
            11 => Op::Exchange {
                id: self.id(),
                parent: self.id(),
                name: self.name(),
                other: self.id(),
                other_parent: self.id(),
                other_name: self.name(),
            },
            12 => Op::Drop { id: self.id() },
            13 => Op::Write { id: self.id(), offset: self.offset(), data: self.data() },
            14 => Op::Truncate { id: self.id(), size: self.offset() },
            15 => Op::Allocate { id: self.id(), offset: self.offset(), length: self.length(), keep_size: self.flag() },
            16 => Op::Punch { id: self.id(), offset: self.offset(), length: self.length() },
            17 => Op::Zero { id: self.id(), offset: self.offset(), length: self.length(), keep_size: self.flag() },
            18 => Op::SetMode { id: self.id(), mode: self.mode() },
            19 => Op::SetOwner { id: self.id(), uid: self.owner(), gid: self.owner() },
            20 => {
                let (atime, mtime) = (self.number() as i64, self.number() as i64);
                Op::SetTimes { id: self.id(), atime: self.flag().then_some(atime), mtime: self.flag().then_some(mtime) }
            }
            21 => Op::SetXattr { id: self.id(), name: self.attribute(), value: self.data() },
            22 => Op::RemoveXattr { id: self.id(), name: self.attribute() },
            _ => Op::Begin { member: if self.flag() { "a" } else { "b" } },
        }
    }
}
