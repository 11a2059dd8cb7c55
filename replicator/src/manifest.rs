//! The list of a volume's files at one position: every id with its names, times and place, as bytes with a digest. It is
//! the `ids` file of a checkpoint, and what a netcopy builds from. It comes from a disk or from the peer, so reading it
//! believes nothing: every count is bounded by the bytes that are there.

use rustix::io::Errno;
use tandem_protocol::position::Position;

use crate::journal::entry::NUMBER_MAX;
use crate::op::codec::ID_MAX;
use crate::op::{FileId, ROOT};
use crate::volume::tree::{Backing, FIRST_COOKIE, FileKind, Node, Tree, check_name};

/// First bytes of a manifest; the last two are the version.
const MAGIC: &[u8; 8] = b"TNDIDS01";
const DIGEST_BYTES: usize = 32;

/// What is wrong with the bytes of a manifest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// Not written by a version that this one knows.
    #[error("not a list of files, or of a version this one does not know")]
    Version,
    /// Changed since it was written.
    #[error("the list of files does not have the digest it says")]
    Digest,
    /// Ends too early, or a value that cannot be.
    #[error("the list of files is broken at byte {at}")]
    Broken {
        /// Where.
        at: usize,
    },
    /// The files do not make a tree.
    #[error("the list of files does not make a tree: {reason}")]
    NoTree {
        /// Why.
        reason: &'static str,
    },
}

/// A list of files as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    bytes: Vec<u8>,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ManifestError> {
        let end = self.at.checked_add(count).ok_or(ManifestError::Broken { at: self.at })?;
        let taken = self.bytes.get(self.at..end).ok_or(ManifestError::Broken { at: self.at })?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, ManifestError> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    fn number(&mut self) -> Result<u64, ManifestError> {
        let mut number = [0; 8];
        number.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(number))
    }

    fn signed(&mut self) -> Result<i64, ManifestError> {
        Ok(self.number()?.cast_signed())
    }
}

const KINDS: [FileKind; 7] = [
    FileKind::File,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::Fifo,
    FileKind::Socket,
    FileKind::Character,
    FileKind::Block,
];

const DEFAULT_ACL: u8 = 1;
/// Places in a directory are shown to applications as offsets, which are signed. Those before the first are never shown.
const COOKIE_MAX: u64 = i64::MAX as u64;

impl Manifest {
    /// Writes the list down. Cheap enough to be done while nothing may be performed.
    pub fn of(tree: &Tree, position: Position) -> Manifest {
        let mut bytes = Vec::with_capacity(256 + tree.count() * 96);
        bytes.extend_from_slice(MAGIC);
        for number in [position.epoch, position.seq, position.chain, tree.last_id(), tree.count() as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for (id, node) in tree.nodes() {
            let kind = KINDS.iter().position(|kind| *kind == node.kind).unwrap_or_default();
            let flags = node.directory().map_or(0, |directory| u8::from(directory.has_default_acl) * DEFAULT_ACL);
            bytes.push(kind as u8);
            bytes.push(flags);
            for number in [
                id.0,
                node.backing.ino,
                node.backing.btime.cast_unsigned(),
                node.mtime().cast_unsigned(),
                node.ctime().cast_unsigned(),
            ] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        // Names by directory, in the order in which they lie in memory.
        for (id, directory) in tree.nodes().filter_map(|(id, node)| Some((id, node.directory()?))) {
            for number in [id.0, directory.next_cookie(), directory.after(0).count() as u64] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            for (cookie, entry) in directory.after(0) {
                bytes.extend_from_slice(&cookie.to_le_bytes());
                bytes.extend_from_slice(&entry.id.0.to_le_bytes());
                bytes.push(entry.name.len() as u8);
                bytes.extend_from_slice(&entry.name);
            }
        }
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        Manifest { bytes }
    }

    /// Takes bytes for a list of files, when their digest is right. What is inside is checked by `tree`.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Manifest, ManifestError> {
        if bytes.get(..MAGIC.len()) != Some(MAGIC.as_slice()) {
            return Err(ManifestError::Version);
        }
        let Some((content, digest)) = bytes.split_last_chunk::<DIGEST_BYTES>() else {
            return Err(ManifestError::Broken { at: bytes.len() });
        };
        if blake3::hash(content) != *digest {
            return Err(ManifestError::Digest);
        }
        if content.len() < MAGIC.len() + 40 {
            return Err(ManifestError::Broken { at: content.len() });
        }
        Ok(Manifest { bytes })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Names this list among all.
    pub fn digest(&self) -> [u8; DIGEST_BYTES] {
        self.bytes.last_chunk::<DIGEST_BYTES>().copied().unwrap_or_default()
    }

    fn header(&self) -> Result<(Reader<'_>, Position, u64, u64), ManifestError> {
        let end = self.bytes.len().saturating_sub(DIGEST_BYTES);
        let mut reader = Reader { bytes: self.bytes.get(..end).unwrap_or_default(), at: MAGIC.len() };
        let position = Position { epoch: reader.number()?, seq: reader.number()?, chain: reader.number()? };
        let last_id = reader.number()?;
        if position.epoch > NUMBER_MAX || position.seq > NUMBER_MAX || last_id > ID_MAX {
            return Err(ManifestError::Broken { at: MAGIC.len() });
        }
        let count = reader.number()?;
        Ok((reader, position, last_id, count))
    }

    /// The position that the list is of.
    pub fn position(&self) -> Result<Position, ManifestError> {
        Ok(self.header()?.1)
    }

    /// How many files it says it lists.
    pub fn files(&self) -> u64 {
        self.header().map(|(_, _, _, count)| count).unwrap_or_default()
    }

    /// Builds the tree, and refuses what is not one: names that cannot be, files without a way to the root, circles,
    /// directories with two names.
    pub fn tree(&self) -> Result<Tree, ManifestError> {
        let (mut reader, _, last_id, count) = self.header()?;
        let mut tree: Option<Tree> = None;
        let mut early = Vec::new();
        let mut directories = 0u64;
        for _ in 0..count {
            let at = reader.at;
            let kind = *KINDS.get(usize::from(reader.byte()?)).ok_or(ManifestError::Broken { at })?;
            let flags = reader.byte()?;
            let id = FileId(reader.number()?);
            let backing = Backing { ino: reader.number()?, btime: reader.signed()? };
            let mut node = Node::new(kind, backing, reader.signed()?, reader.signed()?);
            if let Some(directory) = node.directory_mut() {
                directory.has_default_acl = flags & DEFAULT_ACL != 0;
                directories += 1;
            }
            match &mut tree {
                Some(tree) => Self::add(tree, id, node)?,
                None if id == ROOT && kind == FileKind::Directory => tree = Some(Tree::new(node)),
                None => early.push((id, node)),
            }
        }
        let mut tree = tree.ok_or(ManifestError::NoTree { reason: "it has no root" })?;
        for (id, node) in early {
            Self::add(&mut tree, id, node)?;
        }
        for _ in 0..directories {
            Self::read_directory(&mut tree, &mut reader)?;
        }
        if reader.at != reader.bytes.len() {
            return Err(ManifestError::Broken { at: reader.at });
        }
        tree.raise_last_id(last_id);
        Self::check_reach(&tree)?;
        Ok(tree)
    }

    fn add(tree: &mut Tree, id: FileId, node: Node) -> Result<(), ManifestError> {
        if id.0 == 0 || id.0 > ID_MAX {
            return Err(ManifestError::NoTree { reason: "an id that cannot be" });
        }
        tree.add(id, node).map_err(|_| ManifestError::NoTree { reason: "an id is there twice" })
    }

    fn read_directory(tree: &mut Tree, reader: &mut Reader<'_>) -> Result<(), ManifestError> {
        let at = reader.at;
        let parent = FileId(reader.number()?);
        let next_cookie = reader.number()?;
        if next_cookie > COOKIE_MAX {
            return Err(ManifestError::Broken { at });
        }
        for _ in 0..reader.number()? {
            let at = reader.at;
            let cookie = reader.number()?;
            // A name before the first place would be there without being listed; one at the last leaves none for the next.
            if !(FIRST_COOKIE..COOKIE_MAX).contains(&cookie) {
                return Err(ManifestError::Broken { at });
            }
            let id = FileId(reader.number()?);
            let length = usize::from(reader.byte()?);
            let name = reader.take(length)?;
            if id == ROOT {
                return Err(ManifestError::NoTree { reason: "the root has a name" });
            }
            check_name(parent, name).map_err(|_| ManifestError::NoTree { reason: "a name that cannot be" })?;
            tree.link(id, parent, name, Some(cookie)).map_err(|error| ManifestError::NoTree {
                reason: match error {
                    Errno::EXIST => "two files have one name",
                    Errno::NOTDIR => "a file lies in something that is no directory",
                    _ => "a name of a file, or in a directory, that is not there",
                },
            })?;
        }
        tree.set_next_cookie(parent, next_cookie);
        Ok(())
    }

    fn check_reach(tree: &Tree) -> Result<(), ManifestError> {
        let mut directories = 0usize;
        for (id, node) in tree.nodes() {
            if node.kind == FileKind::Directory {
                directories += 1;
                if node.links().len() > 1 {
                    return Err(ManifestError::NoTree { reason: "a directory has two names" });
                }
                if id != ROOT && node.links().is_empty() {
                    // A removed directory that somebody stands in: reachable as an orphan.
                    directories -= 1;
                    if node.directory().is_some_and(|directory| !directory.is_empty()) {
                        return Err(ManifestError::NoTree { reason: "a removed directory has entries" });
                    }
                }
            }
        }
        let mut reached = 0usize;
        let mut ahead = vec![ROOT];
        while let Some(id) = ahead.pop() {
            reached += 1;
            let entries = tree.node(id).and_then(Node::directory).into_iter().flat_map(|directory| directory.entries());
            ahead.extend(
                entries
                    .filter(|entry| tree.node(entry.id).is_some_and(|node| node.kind == FileKind::Directory))
                    .map(|entry| entry.id),
            );
        }
        if reached == directories { Ok(()) } else { Err(ManifestError::NoTree { reason: "directories form a circle" }) }
    }
}
