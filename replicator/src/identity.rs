//! What a member remembers about itself: one small file on its volume, replaced whole and durably. The protocol relies on
//! it: whatever was promised or intended must still be known after any crash. Also the lock that admits one process.
//!
//! ```text
//! "TDMEMBER" | version u32 | length u32 | crc32c u32 | postcard
//! ```

use crate::disk;
use rustix::fd::OwnedFd;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"TDMEMBER";
const VERSION: u32 = 1;
const HEAD: usize = 20;
const LENGTH_MAX: usize = 1 << 20;

/// Why the member's file cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum IdentityError {
    #[error("{doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is damaged: {what}; the volume is not used until a human has looked at it")]
    Damaged { path: PathBuf, what: &'static str },
    #[error("{path} has version {found}; this program knows versions up to {VERSION}")]
    Newer { path: PathBuf, found: u32 },
    #[error("another process serves this volume: {path} is locked")]
    Locked { path: PathBuf },
    #[error("encode what the member remembers: {0}")]
    Encode(#[from] postcard::Error),
}

/// The member's file and the lock beside it.
pub struct IdentityFile {
    path: PathBuf,
    _lock: OwnedFd,
}

impl IdentityFile {
    /// Takes the lock in `folder` (`.tandem` of the volume), which lasts as long as this value.
    pub fn lock(folder: &Path) -> Result<Self, IdentityError> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Io { doing, path, source }
        };
        disk::create_folder(folder).map_err(failed("create", folder))?;
        let lock = folder.join("lock");
        let held = match disk::lock(&lock) {
            Ok(held) => held,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(IdentityError::Locked { path: lock });
            }
            Err(error) => return Err(failed("lock", &lock)(error)),
        };
        Ok(Self { path: folder.join("member"), _lock: held })
    }

    /// What a member keeps in `folder`, for whoever is no member and only looks.
    #[cfg(test)]
    pub(crate) fn peek<T: DeserializeOwned>(folder: &Path) -> Option<T> {
        let path = folder.join("member");
        let nobody = std::fs::File::open(&path).ok()?;
        Self { path, _lock: nobody.into() }.load().ok().flatten()
    }

    /// What was kept last; `None` on a volume that never belonged to a pair.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, IdentityError> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::Io { doing: "read", path: self.path.clone(), source }),
        };
        self.decode(&bytes).map(Some)
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, IdentityError> {
        let damaged = |what| IdentityError::Damaged { path: self.path.clone(), what };
        let word = |at: usize| {
            bytes
                .get(at..at + 4)
                .and_then(|word| word.try_into().ok())
                .map(u32::from_le_bytes)
                .ok_or(damaged("too short"))
        };
        if bytes.get(..8) != Some(MAGIC) {
            return Err(damaged("it does not begin as a member's file does"));
        }
        let version = word(8)?;
        if version > VERSION {
            return Err(IdentityError::Newer { path: self.path.clone(), found: version });
        }
        let body = bytes.get(HEAD..).unwrap_or_default();
        if word(12)? as usize != body.len() || body.len() > LENGTH_MAX {
            return Err(damaged("its length is wrong"));
        }
        if word(16)? != crc32c::crc32c(body) {
            return Err(damaged("its checksum is wrong"));
        }
        postcard::from_bytes(body).map_err(|_| damaged("its contents do not parse"))
    }

    /// Replaces what is kept. When this returns it survives a power failure; only then may it be relied upon.
    pub fn keep<T: Serialize>(&self, value: &T) -> Result<(), IdentityError> {
        let body = postcard::to_stdvec(value)?;
        let mut bytes = Vec::with_capacity(HEAD + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        disk::write_durably(&self.path, &bytes).map_err(|source| IdentityError::Io {
            doing: "write",
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, IdentityFile) {
        let folder = tempfile::tempdir().unwrap();
        let file = IdentityFile::lock(&folder.path().join(".tandem")).unwrap();
        (folder, file)
    }

    #[test]
    fn what_is_kept_is_found_again() {
        let (_folder, file) = file();
        assert_eq!(file.load::<(u64, String)>().unwrap(), None);
        file.keep(&(7u64, "a".to_owned())).unwrap();
        assert_eq!(file.load::<(u64, String)>().unwrap(), Some((7, "a".to_owned())));
    }

    #[test]
    fn a_second_process_is_refused() {
        let (folder, _file) = file();
        let second = IdentityFile::lock(&folder.path().join(".tandem"));
        assert!(matches!(second, Err(IdentityError::Locked { .. })));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let (folder, file) = file();
        file.keep(&(7u64, "a".to_owned())).unwrap();
        let path = folder.path().join(".tandem/member");
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            // A version below ours keeps its reader; there is none yet, so any flipped bit is found elsewhere or harmless.
            if (8 * 8..12 * 8).contains(&at) {
                continue;
            }
            std::fs::write(&path, &bad).unwrap();
            assert!(file.load::<(u64, String)>().is_err(), "bit {at}");
        }
    }
}
