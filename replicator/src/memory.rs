//! Small things that a member remembers beside its identity: JSON with a version, one file each in `.tandem`, replaced whole
//! and durably. Nothing here decides who may write; that is the identity's.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::disk;

const VERSION: u32 = 1;

/// A version from later is not guessed at.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Written<T> {
    version: u32,
    content: T,
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Memory {
    folder: PathBuf,
}

impl Memory {
    /// In `.tandem` of the volume, which exists.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Replaces what is remembered under a name. When this returns it survives a power failure.
    pub fn keep<T: Serialize>(&self, name: &str, content: &T) -> io::Result<()> {
        let text = serde_json::to_vec(&Written { version: VERSION, content })?;
        disk::write_durably(&self.path(name), &text)
    }

    /// What was kept last; `None`: nothing ever was.
    pub fn recall<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let text = match std::fs::read(self.path(name)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Version { version } = serde_json::from_slice(&text)?;
        if version != VERSION {
            let why = format!("version {version}; this program knows version {VERSION}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let written: Written<T> = serde_json::from_slice(&text)?;
        Ok(Some(written.content))
    }

    /// Nothing is remembered under this name any more.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        disk::remove_durably(&self.path(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_recalled_and_a_later_version_is_not_guessed_at() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(folder.path());
        assert_eq!(memory.recall::<Vec<u8>>("list").unwrap(), None);
        memory.keep("list", &vec![1, 2]).unwrap();
        assert_eq!(memory.recall::<Vec<u8>>("list").unwrap(), Some(vec![1, 2]));
        std::fs::write(folder.path().join("list.json"), r#"{"version":2,"content":{"new":"shape"}}"#).unwrap();
        assert!(memory.recall::<Vec<u8>>("list").is_err());
        memory.forget("list").unwrap();
        assert_eq!(memory.recall::<Vec<u8>>("list").unwrap(), None);
    }
}
