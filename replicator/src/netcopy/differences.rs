//! Digests of content: both sides cut a file into the same chunks, so the one that has an older state of it tells what it
//! has in sixteen bytes per chunk, and only what differs is sent.

use rustix::io::{Errno, pread};
use std::os::fd::BorrowedFd;

/// Content is compared in pieces of this size: small enough that a changed database page does not send its neighbours.
pub const CHUNK_BYTES: usize = 16 << 10;
/// Of a digest so much goes over the wire; two honest chunks do not meet in 128 bits.
pub const DIGEST_BYTES: usize = 16;

/// Digest of a chunk. The last chunk of a file is shorter; its length is part of what is digested.
pub type Digest = [u8; DIGEST_BYTES];

/// What stands for a chunk.
pub fn digest(chunk: &[u8]) -> Digest {
    let mut digest = [0; DIGEST_BYTES];
    digest.copy_from_slice(blake3::hash(chunk).as_bytes().get(..DIGEST_BYTES).unwrap_or(&[0; DIGEST_BYTES]));
    digest
}

/// How many chunks so many bytes have.
pub fn chunks(size: u64) -> u64 {
    size.div_ceil(CHUNK_BYTES as u64)
}

/// The digest of a whole file, from those of its chunks in their order.
#[derive(Clone, Default)]
pub struct FileDigest {
    hasher: blake3::Hasher,
}

impl FileDigest {
    /// The next chunk.
    pub fn add(&mut self, digest: &Digest) {
        self.hasher.update(digest);
    }

    /// A hole takes the place of its chunks: it may be longer than anybody could count.
    pub fn add_hole(&mut self, length: u64) {
        self.hasher.update(b"hole");
        self.hasher.update(&length.to_le_bytes());
    }

    /// After the last one.
    pub fn finish(&self, size: u64) -> [u8; 32] {
        let mut hasher = self.hasher.clone();
        hasher.update(&size.to_le_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// Reads so many bytes to the end of what was read before, fewer where the file ends; how many.
pub(crate) fn read_on(file: BorrowedFd<'_>, offset: u64, wanted: usize, content: &mut Vec<u8>) -> Result<usize, Errno> {
    let before = content.len();
    content.resize(before + wanted, 0);
    let read = read_full(file, offset, content.get_mut(before..).unwrap_or_default())?;
    content.truncate(before + read);
    Ok(read)
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn read_full(file: BorrowedFd<'_>, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..)
        && !rest.is_empty()
    {
        match pread(file, rest, offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
