//! The record in a folder of this machine, for development and for tests of two members without a cluster. Compare-and-swap
//! by a lock on the folder's lock file; not for two machines. A file named `down` makes it unreachable.

use super::{Kept, RecordError, RecordKeeper};
use crate::disk;
use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tandem_protocol::Record;
use tokio::sync::watch;

const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u64,
    record: Record,
}

/// A record in `record.json` of a folder.
pub struct FileKeeper {
    folder: PathBuf,
    seen: watch::Receiver<Option<Kept>>,
}

impl FileKeeper {
    /// Begins to look. The record itself is made by [`FileKeeper::found`].
    pub fn new(folder: &Path) -> Self {
        let (sender, seen) = watch::channel(None);
        let looked = folder.to_owned();
        tokio::spawn(async move {
            while !sender.is_closed() {
                if !is_down(&looked)
                    && let Ok(stored) = load(&looked)
                {
                    let kept = kept(stored);
                    sender.send_if_modified(|last: &mut Option<Kept>| {
                        let differs = last.as_ref() != Some(&kept);
                        *last = Some(kept);
                        differs
                    });
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Self { folder: folder.to_owned(), seen }
    }

    /// Makes the record of a new pair, unless there is one.
    pub fn found(folder: &Path, record: Record) -> io::Result<()> {
        let _locked = lock(folder)?;
        match load(folder) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => store(folder, &Stored { version: 1, record }),
            Err(error) => Err(error),
        }
    }
}

impl RecordKeeper for FileKeeper {
    fn read(&self) -> BoxFuture<'static, Result<Kept, RecordError>> {
        let folder = self.folder.clone();
        in_thread(move || {
            if is_down(&folder) {
                return Err(RecordError::Unreadable("it is down".into()));
            }
            match load(&folder) {
                Ok(stored) => Ok(kept(stored)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(RecordError::Absent),
                Err(error) => Err(RecordError::Unreadable(error.to_string())),
            }
        })
    }

    fn write(&self, version: String, record: Record) -> BoxFuture<'static, Result<Kept, RecordError>> {
        let folder = self.folder.clone();
        in_thread(move || {
            if is_down(&folder) {
                return Err(RecordError::Unknown("it is down".into()));
            }
            let swap = || {
                let _locked = lock(&folder)?;
                let old = load(&folder)?;
                if old.version.to_string() != version {
                    return Ok(None);
                }
                let stored = Stored { version: old.version + 1, record };
                store(&folder, &stored)?;
                Ok(Some(stored))
            };
            match swap() {
                Ok(Some(stored)) => Ok(kept(stored)),
                Ok(None) => Err(RecordError::Conflict("somebody wrote first".into())),
                Err(error) => Err(RecordError::Unknown(io::Error::to_string(&error))),
            }
        })
    }

    fn watch(&self) -> watch::Receiver<Option<Kept>> {
        self.seen.clone()
    }
}

fn in_thread(
    work: impl FnOnce() -> Result<Kept, RecordError> + Send + 'static,
) -> BoxFuture<'static, Result<Kept, RecordError>> {
    async move {
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(RecordError::Unknown(error.to_string())))
    }
    .boxed()
}

fn kept(stored: Stored) -> Kept {
    Kept { record: stored.record, version: stored.version.to_string() }
}

fn is_down(folder: &Path) -> bool {
    folder.join("down").exists()
}

fn load(folder: &Path) -> io::Result<Stored> {
    Ok(serde_json::from_slice(&std::fs::read(folder.join("record.json"))?)?)
}

fn store(folder: &Path, stored: &Stored) -> io::Result<()> {
    disk::write_durably(&folder.join("record.json"), &serde_json::to_vec_pretty(stored)?)
}

fn lock(folder: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let mode = Mode::from_raw_mode(0o600);
    let file = rustix::fs::open(folder.join("record.lock"), OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC, mode)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}
