//! One digest over everything an application can see on a volume: names, types, rights, owners, sizes, times of content,
//! extended attributes, content, and which names are one file. Two members at one position have the same.

use std::collections::HashMap;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::Volume;
use super::attributes::{xattr_of, xattrs_of};
use super::tree::FileKind;
use crate::op::{FileId, ROOT};

/// Content is read in pieces of this size.
const PIECE_BYTES: usize = 256 << 10;

fn add(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    // The length first, so that two fields never read as one.
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

impl Volume {
    /// The digest, and how many names it covers. Only meaningful while nothing is performed.
    pub fn digest(&self) -> Result<([u8; 32], u64), Errno> {
        let mut names = 0;
        let mut hasher = blake3::Hasher::new();
        self.describe(|line| {
            names += 1;
            add(&mut hasher, line);
            Ok(())
        })?;
        Ok((*hasher.finalize().as_bytes(), names))
    }

    /// Hands out a description of each name, parents first, in the order of names. Two volumes differ where these do.
    pub fn describe(&self, mut take: impl FnMut(&[u8]) -> Result<(), Errno>) -> Result<(), Errno> {
        let mut first_path: HashMap<FileId, Vec<u8>> = HashMap::new();
        let mut ahead = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = ahead.pop() {
            take(&self.describe_one(&path, id, &mut first_path)?)?;
            if self.kind(id)? == FileKind::Directory {
                let mut entries = Vec::new();
                self.list(id, 0, |entry| {
                    entries.push((entry.name.to_vec(), entry.id));
                    true
                })?;
                entries.sort();
                for (name, below) in entries.into_iter().rev() {
                    ahead.push(([path.as_slice(), b"/", &name].concat(), below));
                }
            }
        }
        Ok(())
    }

    fn describe_one(
        &self,
        path: &[u8],
        id: FileId,
        first_path: &mut HashMap<FileId, Vec<u8>>,
    ) -> Result<Vec<u8>, Errno> {
        let attributes = self.attributes(id)?;
        let kind = attributes.kind;
        let mut line = format!(
            "\"{}\" {kind:?} mode={:o} owner={}:{}",
            path.escape_ascii(),
            attributes.mode,
            attributes.uid,
            attributes.gid
        );
        line.push_str(&format!(" links={} mtime={}", attributes.links, attributes.mtime));
        let file = self.descriptor(id)?;
        for name in xattrs_of(file.as_fd(), kind)? {
            let value = xattr_of(file.as_fd(), kind, &name)?;
            line.push_str(&format!(" {}={}", name.escape_ascii(), value.escape_ascii()));
        }
        match kind {
            FileKind::File => {
                if let Some(first) = first_path.get(&id) {
                    line.push_str(&format!(" same as \"{}\"", first.escape_ascii()));
                } else {
                    line.push_str(&format!(" size={} content={}", attributes.size, self.content_digest(id)?.to_hex()));
                    if attributes.links > 1 {
                        first_path.insert(id, path.to_vec());
                    }
                }
            }
            FileKind::Symlink => line.push_str(&format!(" to \"{}\"", self.readlink(id)?.escape_ascii())),
            FileKind::Character | FileKind::Block => line.push_str(&format!(" device={:x}", attributes.device)),
            FileKind::Directory | FileKind::Fifo | FileKind::Socket => {}
        }
        Ok(line.into_bytes())
    }

    /// The digest of one file's content.
    pub fn content_digest(&self, id: FileId) -> Result<blake3::Hash, Errno> {
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0; PIECE_BYTES];
        let mut offset = 0;
        loop {
            let read = self.read(id, offset, &mut piece)?;
            hasher.update(piece.get(..read).unwrap_or_default());
            offset += read as u64;
            if read < PIECE_BYTES {
                return Ok(hasher.finalize());
            }
        }
    }
}
