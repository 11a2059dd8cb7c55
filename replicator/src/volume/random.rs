//! Random but valid histories, for the tests of redo and netcopy: a seed in, the same operations out.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::{FileKind, Volume};
use crate::op::{FileId, Kind, Op, ROOT, Stamp};

/// A small generator of numbers, the same everywhere.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound.max(1)
    }

    pub(crate) fn one<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len() as u64) as usize)
    }
}

/// The same bytes for ever: few names, so that nothing grows.
fn leak(bytes: Vec<u8>) -> &'static [u8] {
    static KNOWN: Mutex<BTreeSet<&'static [u8]>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock();
    if let Some(known) = known.get(bytes.as_slice()) {
        return known;
    }
    let fresh: &'static [u8] = Box::leak(bytes.into_boxed_slice());
    known.insert(fresh);
    fresh
}

/// The same byte many times.
fn filled(byte: u8, length: u64) -> &'static [u8] {
    static PAGES: [OnceLock<Vec<u8>>; 256] = [const { OnceLock::new() }; 256];
    &PAGES[usize::from(byte)].get_or_init(|| vec![byte; 9_001])[..length as usize]
}

/// A name of a file.
struct Named {
    id: FileId,
    kind: FileKind,
    parent: FileId,
    name: &'static [u8],
}

/// One operation that is valid on the volume as it is. Few names, so that they meet often.
pub(crate) fn operation(volume: &Volume, dice: &mut Dice) -> Op<'static> {
    let (named, files, folders, orphans) = {
        let tree = volume.tree();
        let mut ids: Vec<FileId> = tree.nodes().map(|(id, _)| id).collect();
        ids.sort_unstable();
        let mut named = Vec::new();
        let (mut files, mut folders, mut orphans) = (Vec::new(), vec![ROOT], Vec::new());
        for id in ids {
            let node = tree.node(id).unwrap();
            for link in node.links() {
                let name = leak(tree.name(*link).unwrap().to_vec());
                named.push(Named { id, kind: node.kind, parent: link.parent, name });
            }
            if node.kind == FileKind::File {
                files.push(id);
            }
            if node.kind == FileKind::Directory && !node.links().is_empty() {
                folders.push(id);
            }
            if id != ROOT && node.links().is_empty() {
                orphans.push(id);
            }
        }
        (named, files, folders, orphans)
    };
    let any = |dice: &mut Dice| named.get(dice.below(named.len() as u64) as usize);
    loop {
        let folder = *dice.one(&folders).unwrap();
        let name = leak(format!("n{}", dice.below(12)).into_bytes());
        let (uid, gid) = (dice.below(3) as u32, dice.below(3) as u32);
        let file = dice.one(&files).copied();
        let offset = dice.below(20_000);
        let length = 1 + dice.below(9000);
        let op = match dice.below(32) {
            0..=4 => Op::Create {
                id: volume.next_id(),
                parent: folder,
                name,
                kind: Kind::File,
                mode: 0o600 | (dice.below(64) as u32),
                uid,
                gid,
            },
            5 | 6 => Op::Create {
                id: volume.next_id(),
                parent: folder,
                name,
                kind: Kind::Directory,
                mode: 0o700 | (dice.below(8) as u32),
                uid,
                gid,
            },
            7 => {
                let kind = match dice.below(3) {
                    0 => Kind::Symlink(leak(format!("to{}", dice.below(9)).into_bytes())),
                    1 => Kind::Fifo,
                    _ => Kind::Socket,
                };
                Op::Create { id: volume.next_id(), parent: folder, name, kind, mode: 0o644, uid, gid }
            }
            8 => Op::CreateUnnamed { id: volume.next_id(), mode: 0o640, uid, gid },
            9 | 10 => match file {
                Some(id) => Op::Link { id, parent: folder, name },
                None => continue,
            },
            11..=13 => match any(dice) {
                Some(Named { id, parent, name, .. }) => Op::Unlink { id: *id, parent: *parent, name },
                None => continue,
            },
            14..=17 => match any(dice) {
                Some(from) => {
                    let replaced = volume.lookup(folder, name);
                    Op::Rename {
                        id: from.id,
                        parent: from.parent,
                        name: from.name,
                        new_parent: folder,
                        new_name: name,
                        replaced,
                    }
                }
                None => continue,
            },
            18 => match (any(dice), any(dice)) {
                (Some(one), Some(two)) => Op::Exchange {
                    id: one.id,
                    parent: one.parent,
                    name: one.name,
                    other: two.id,
                    other_parent: two.parent,
                    other_name: two.name,
                },
                _ => continue,
            },
            19 | 20 => match dice.one(&orphans) {
                Some(id) => Op::Drop { id: *id },
                None => continue,
            },
            21..=24 => match file {
                Some(id) => {
                    let byte = dice.below(256) as u8;
                    Op::Write { id, offset, data: filled(byte, length) }
                }
                None => continue,
            },
            25 => match file {
                Some(id) => Op::Truncate { id, size: offset },
                None => continue,
            },
            26 => match file {
                Some(id) => Op::Punch { id, offset, length },
                None => continue,
            },
            27 => match file {
                Some(id) => Op::Zero { id, offset, length, keep_size: dice.below(2) == 0 },
                None => continue,
            },
            28 => match any(dice) {
                Some(Named { id, kind, .. }) if *kind != FileKind::Symlink => {
                    Op::SetMode { id: *id, mode: dice.below(0o10000) as u32 }
                }
                _ => continue,
            },
            29 => match any(dice) {
                Some(Named { id, .. }) => Op::SetOwner { id: *id, uid, gid },
                None => continue,
            },
            30 => match any(dice) {
                Some(Named { id, .. }) => {
                    Op::SetTimes { id: *id, atime: Some(5), mtime: Some(dice.below(1 << 40) as i64) }
                }
                None => continue,
            },
            _ => match any(dice) {
                Some(Named { id, kind: FileKind::File | FileKind::Directory, .. }) => {
                    let attribute = leak(format!("user.{}", dice.below(3)).into_bytes());
                    if dice.below(3) > 0 {
                        Op::SetXattr { id: *id, name: attribute, value: filled(b'v', dice.below(100)) }
                    } else if volume.get_xattr(*id, attribute).is_ok() {
                        Op::RemoveXattr { id: *id, name: attribute }
                    } else {
                        continue;
                    }
                }
                _ => continue,
            },
        };
        if volume.check(&op).is_ok() {
            return op;
        }
    }
}

/// What was done, in order; numbers begin at 1.
#[derive(Clone, Default)]
pub(crate) struct History {
    pub(crate) records: Vec<(Stamp, Op<'static>)>,
}

impl History {
    pub(crate) fn last(&self) -> u64 {
        self.records.len() as u64
    }

    /// Chooses, notes and performs operations.
    pub(crate) fn go_on(&mut self, volume: &Volume, dice: &mut Dice, count: usize) {
        for _ in 0..count {
            let op = operation(volume, dice);
            let stamp = Stamp { time: 1_700_000_000_000_000_000 + self.records.len() as i64 * 1_000_003, unique: 0 };
            self.records.push((stamp, op.clone()));
            volume.perform(&op, stamp).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        }
    }

    /// The same on another volume.
    pub(crate) fn perform_on(&self, volume: &Volume, from: u64, upto: u64) -> Result<(), Errno> {
        for (stamp, op) in &self.records[from as usize..upto as usize] {
            volume.perform(op, *stamp)?;
        }
        Ok(())
    }
}

/// Everything that can be seen, one line for each name, orphans included.
pub(crate) fn picture(volume: &Volume) -> Vec<String> {
    let mut lines = Vec::new();
    volume
        .describe(|line| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            Ok(())
        })
        .unwrap();
    for id in volume.orphans() {
        let told = volume.attributes(id).unwrap();
        let content =
            if told.kind == FileKind::File { volume.content_digest(id).unwrap().to_string() } else { String::new() };
        lines.push(format!(
            "orphan {} {:?} {:o} {}:{} {} {content}",
            id.0, told.kind, told.mode, told.uid, told.gid, told.mtime
        ));
    }
    let tree = volume.tree();
    let mut times: Vec<(u64, i64, i64)> =
        tree.nodes().filter(|(id, _)| *id != ROOT).map(|(id, node)| (id.0, node.mtime(), node.ctime())).collect();
    times.sort_unstable();
    lines.push(format!("{times:?}"));
    lines
}

/// Names the first difference.
pub(crate) fn assert_same(what: &str, expected: &[String], found: &[String]) {
    for (line, (one, two)) in expected.iter().zip(found).enumerate() {
        assert_eq!(one, two, "{what}: line {line}");
    }
    assert_eq!(expected.len(), found.len(), "{what}");
}

/// Access rules as the kernel keeps them: `user::rwx user:8:rwx group::r-x mask::rwx other::---`.
pub(crate) fn access_rules() -> Vec<u8> {
    let entries = [(1_u16, 7_u16, u32::MAX), (2, 7, 8), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)];
    let mut rules = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, who) in entries {
        rules.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(who.to_le_bytes()));
    }
    rules
}
