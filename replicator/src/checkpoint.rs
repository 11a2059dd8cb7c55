//! The checkpoint: the list of files at a position, in the file `ids` of Tandem's folder. When it is there, the volume holds
//! at least everything up to that position durably, and redo needs only the journal's records after it. It is one file,
//! so position and list can never be of two different moments.

use std::io;
use std::path::Path;

use crate::journal::{Journal, JournalError};
use crate::manifest::{Manifest, ManifestError};
use crate::volume::Volume;

/// The file's name in Tandem's folder.
pub const FILE: &str = "ids";

/// No list of files would be longer: a billion bytes are ten million files.
const BYTES_MAX: u64 = 1 << 30;

/// Why there is no checkpoint to begin from, or none could be taken.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The journal could not be made durable up to it.
    #[error("checkpoint: {0}")]
    Journal(#[from] JournalError),
    /// The volume could not be flushed, or the list not be written.
    #[error("{doing}: {source}")]
    Write {
        /// What was being attempted.
        doing: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// It could not be read.
    #[error("read the list of files: {0}")]
    Read(#[from] io::Error),
    /// It is damaged.
    #[error("list of files: {0}")]
    Damaged(#[from] ManifestError),
}

/// The last checkpoint; none on a volume that was never used.
pub fn read(folder: &Path) -> Result<Option<Manifest>, CheckpointError> {
    let path = folder.join(FILE);
    match std::fs::metadata(&path) {
        Ok(found) if found.len() > BYTES_MAX => Err(CheckpointError::Damaged(ManifestError::Broken { at: 0 })),
        Ok(_) => Ok(Some(Manifest::from_bytes(std::fs::read(&path)?)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes a checkpoint. `manifest` was made by `Volume::snapshot` while nothing was performed; since then the application
/// may have gone on. After this the journal's records up to the manifest's position are needed by the peer only.
pub fn take(volume: &Volume, manifest: &Manifest, journal: &Journal) -> Result<(), CheckpointError> {
    // Without it a power failure could leave a checkpoint beyond the journal's end: a history that nobody else knows.
    journal.sync()?;
    volume.flush_all().map_err(|source| CheckpointError::Write { doing: "flush the volume", source })?;
    write(&volume.folder(), manifest)
        .map_err(|source| CheckpointError::Write { doing: "write the list of files", source })
}

/// Writes the list without flushing the volume: for a netcopy, whose volume counts as inconsistent until it is complete.
pub(crate) fn write(folder: &Path, manifest: &Manifest) -> io::Result<()> {
    crate::disk::write_durably(&folder.join(FILE), manifest.bytes())
}

/// From now on nobody knows what lies on the volume.
pub(crate) fn forget(folder: &Path) -> io::Result<()> {
    crate::disk::remove_durably(&folder.join(FILE))
}
