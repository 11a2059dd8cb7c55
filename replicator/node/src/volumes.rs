//! What is published on this node: which volume of which pod is mounted where, and the descriptors that serve it. Written
//! down in one small file per volume, so that a restart of the plugin changes nothing for a pod.
//!
//! ```text
//! <plugin directory>/state/<volume>.json     one per published volume
//! <plugin directory>/pods/<pod uid>/         shown read-only to that pod's replicator, and to nobody else
//!                                 plugin.sock
//! ```
//!
//! What must always hold: descriptors go to the pod they were opened for; the file of a volume is written before its
//! descriptors are handed out; nothing here waits for whoever serves a mount.

use crate::handover::{self, Door};
use crate::mounts;
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What a volume is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The application's files.
    Data,
    /// The directory with the socket.
    Control,
}

/// Whose volume it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Identity: a pod of the same name that comes later has another.
    pub uid: String,
}

/// A volume as kubelet wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Kubelet's name for it, unique on the node.
    pub volume: String,
    /// What it is for.
    pub role: Role,
    /// Whose it is.
    pub pod: Pod,
    /// Where it is to appear.
    pub target: PathBuf,
}

/// A volume as it was written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Written {
    version: u32,
    volume: String,
    role: Role,
    pod: Pod,
    target: PathBuf,
    /// The connection's number, of a data volume.
    minor: Option<u32>,
    /// Whether descriptors were ever handed out: the kernel's greeting may have been read.
    handed: bool,
    /// What the replicator and the kernel agreed on, for its successor.
    agreed: Option<String>,
}

/// What went wrong with a volume.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{0}")]
    Refused(String),
    #[error("{doing} {}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    /// Whether trying again without a change is in vain.
    pub fn is_the_callers(&self) -> bool {
        matches!(self, Error::Refused(_))
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { doing, path: path.to_owned(), source }
}

/// Whether a replicator is connected to a pod's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Since the volume was published, or the plugin started.
    Never(Instant),
    /// The number of its connection.
    Here(u64),
    /// It was here.
    Gone(Instant),
}

struct Volume {
    written: Written,
    devices: Vec<OwnedFd>,
    /// The connection was ended. Not told by its number: the kernel gives that to the next mount.
    ended: bool,
}

struct PodEntry {
    presence: Presence,
    /// Ends, and removes the socket, when dropped.
    _door: Door,
}

#[derive(Default)]
struct Inner {
    volumes: HashMap<String, Volume>,
    pods: HashMap<String, PodEntry>,
}

/// What the watchdog looks at.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Name of the data volume.
    pub volume: String,
    /// Its pod.
    pub pod: Pod,
    /// The connection's number.
    pub minor: u32,
    /// Whether somebody serves it.
    pub presence: Presence,
    /// It was ended, and nothing was mounted since.
    pub ended: bool,
}

/// Everything published on this node.
pub struct Volumes {
    directory: PathBuf,
    kubelet: PathBuf,
    runtime: tokio::runtime::Handle,
    inner: Mutex<Inner>,
}

/// Descriptors of a pod's mount, whether they were handed out before, and what was agreed with the kernel since.
pub(crate) type Handed = (Vec<OwnedFd>, bool, Option<String>);

impl Volumes {
    /// Reads what was written down by an earlier run. Volumes that are no longer mounted are forgotten.
    pub fn open(directory: &Path, kubelet: &Path, runtime: tokio::runtime::Handle) -> Result<Arc<Self>, Error> {
        for name in ["state", "pods"] {
            let path = directory.join(name);
            std::fs::create_dir_all(&path).map_err(io_error("create", &path))?;
            close_to_others(&path)?;
        }
        let volumes = Arc::new(Self {
            directory: directory.to_owned(),
            kubelet: kubelet.to_owned(),
            runtime,
            inner: Mutex::new(Inner::default()),
        });
        let state = directory.join("state");
        for entry in std::fs::read_dir(&state).map_err(io_error("list", &state))? {
            let path = entry.map_err(io_error("list", &state))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // A half-written file of a run that was killed.
                std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
                continue;
            }
            let bytes = std::fs::read(&path).map_err(io_error("read", &path))?;
            match serde_json::from_slice::<Written>(&bytes) {
                Ok(written)
                    if mounts::mounted_at(&written.target).map_err(io_error("find", &written.target))?.is_some() =>
                {
                    tracing::info!(volume = written.volume, pod = written.pod.name, "found published");
                    volumes.take_in(Volume { written, devices: Vec::new(), ended: false })?;
                }
                Ok(written) => {
                    tracing::info!(volume = written.volume, pod = written.pod.name, "no longer mounted, forgotten");
                    std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
                }
                Err(error) => {
                    // Kept for whoever wants to know; kubelet's own retry of unpublish works without it.
                    tracing::error!(%error, path = %path.display(), "not readable, set aside");
                    let aside = path.with_extension("unreadable");
                    std::fs::rename(&path, &aside).map_err(io_error("set aside", &path))?;
                }
            }
        }
        volumes.remove_empty_pods()?;
        Ok(volumes)
    }

    fn take_in(self: &Arc<Self>, volume: Volume) -> Result<(), Error> {
        let uid = volume.written.pod.uid.clone();
        let mut inner = self.inner.lock();
        if let Entry::Vacant(place) = inner.pods.entry(uid) {
            let door = self.open_door(place.key())?;
            place.insert(PodEntry { presence: Presence::Never(Instant::now()), _door: door });
        }
        inner.volumes.insert(volume.written.volume.clone(), volume);
        Ok(())
    }

    fn open_door(self: &Arc<Self>, uid: &str) -> Result<Door, Error> {
        let directory = self.pod_directory(uid);
        std::fs::create_dir_all(&directory).map_err(io_error("create", &directory))?;
        close_to_others(&directory)?;
        handover::open(&directory, uid.to_owned(), Arc::clone(self), &self.runtime)
            .map_err(io_error("listen in", &directory))
    }

    fn pod_directory(&self, uid: &str) -> PathBuf {
        self.directory.join("pods").join(uid)
    }

    /// Directories of pods that have nothing published any more: a run was killed between two steps.
    fn remove_empty_pods(&self) -> Result<(), Error> {
        let pods = self.directory.join("pods");
        let inner = self.inner.lock();
        for entry in std::fs::read_dir(&pods).map_err(io_error("list", &pods))? {
            let entry = entry.map_err(io_error("list", &pods))?;
            if !entry.file_name().to_str().is_some_and(|uid| inner.pods.contains_key(uid)) {
                std::fs::remove_dir_all(entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Makes a volume appear at its target. Asked again for the same, it changes nothing.
    pub fn publish(self: &Arc<Self>, wanted: &Publication) -> Result<(), Error> {
        check_name("volume id", &wanted.volume)?;
        check_name("uid of the pod", &wanted.pod.uid)?;
        self.check_target(&wanted.target)?;
        let known = {
            let inner = self.inner.lock();
            if let Some(other) = inner.volumes.values().find(|volume| {
                let written = &volume.written;
                wanted.role == Role::Data
                    && written.role == Role::Data
                    && written.pod.uid == wanted.pod.uid
                    && written.volume != wanted.volume
            }) {
                let other = &other.written.volume;
                return Err(Error::Refused(format!(
                    "this pod already has a data volume, {other}: there can be only one"
                )));
            }
            inner.volumes.get(&wanted.volume).map(|volume| volume.written.clone())
        };
        let mounted = mounts::mounted_at(&wanted.target).map_err(io_error("find", &wanted.target))?;
        if let Some(written) = known {
            if written.target != wanted.target || written.role != wanted.role || written.pod.uid != wanted.pod.uid {
                return Err(Error::Refused("this volume is already published otherwise".to_owned()));
            }
            if mounted.is_some() {
                return Ok(());
            }
            // Unmounted behind our back; begin anew.
            self.forget(&wanted.volume)?;
        } else if mounted.is_some() {
            // A run was killed before it wrote this down, hence before it handed anything out: nobody serves it.
            mounts::unmount(&wanted.target).map_err(io_error("unmount", &wanted.target))?;
        }
        mounts::make_target(&wanted.target).map_err(io_error("create", &wanted.target))?;
        let (devices, minor) = match wanted.role {
            Role::Data => {
                let (devices, minor) = mounts::mount_data(&wanted.target, &wanted.volume)
                    .map_err(io_error("mount the data volume at", &wanted.target))?;
                (devices, Some(minor))
            }
            Role::Control => (Vec::new(), None),
        };
        let written = Written {
            version: 1,
            volume: wanted.volume.clone(),
            role: wanted.role,
            pod: wanted.pod.clone(),
            target: wanted.target.clone(),
            minor,
            handed: false,
            agreed: None,
        };
        self.write_down(&written)?;
        self.take_in(Volume { written, devices, ended: false })?;
        if wanted.role == Role::Control {
            mounts::bind_control(&self.pod_directory(&wanted.pod.uid), &wanted.target)
                .map_err(io_error("show the control directory at", &wanted.target))?;
        }
        tracing::info!(volume = wanted.volume, role = ?wanted.role, namespace = wanted.pod.namespace, pod = wanted.pod.name, minor, "published");
        Ok(())
    }

    /// Takes a volume away. Asked again, or for one that never was, it changes nothing.
    pub fn unpublish(&self, volume: &str, target: &Path) -> Result<(), Error> {
        check_name("volume id", volume)?;
        self.check_target(target)?;
        if mounts::mounted_at(target).map_err(io_error("find", target))?.is_some() {
            mounts::unmount(target).map_err(io_error("unmount", target))?;
        } else {
            match rustix::fs::rmdir(target) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(io_error("remove", target)(errno.into())),
            }
        }
        self.forget(volume)?;
        tracing::info!(volume, "unpublished");
        Ok(())
    }

    fn forget(&self, volume: &str) -> Result<(), Error> {
        let path = self.state_path(volume);
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("remove", &path)(error)),
        }
        let mut inner = self.inner.lock();
        let Some(volume) = inner.volumes.remove(volume) else { return Ok(()) };
        let uid = &volume.written.pod.uid;
        if inner.volumes.values().any(|other| other.written.pod.uid == *uid) {
            return Ok(());
        }
        let pod = inner.pods.remove(uid);
        // Its connections report their end, and need the lock for it.
        drop(inner);
        drop(pod);
        let directory = self.pod_directory(uid);
        match std::fs::remove_dir_all(&directory) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("remove", &directory)(error)),
        }
    }

    fn state_path(&self, volume: &str) -> PathBuf {
        self.directory.join("state").join(format!("{volume}.json"))
    }

    /// Survives a kill of the plugin, which is all it has to: after a crash of the node no mount is left either.
    fn write_down(&self, written: &Written) -> Result<(), Error> {
        let path = self.state_path(&written.volume);
        let new = path.with_extension("new");
        let bytes = serde_json::to_vec_pretty(written).map_err(|error| io_error("write", &path)(error.into()))?;
        std::fs::write(&new, bytes).map_err(io_error("write", &new))?;
        std::fs::rename(&new, &path).map_err(io_error("write", &path))
    }

    /// Only below kubelet's pods, whatever the request says.
    fn check_target(&self, target: &Path) -> Result<(), Error> {
        let plain = target.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if plain && target.starts_with(self.kubelet.join("pods")) {
            Ok(())
        } else {
            Err(Error::Refused(format!("{} is not a place of a pod's volume", target.display())))
        }
    }

    /// A replicator connected to a pod's socket. The latest one counts: an earlier one is dead or about to be.
    pub(crate) fn arrived(&self, uid: &str, connection: u64) {
        if let Some(pod) = self.inner.lock().pods.get_mut(uid) {
            pod.presence = Presence::Here(connection);
        }
    }

    /// A replicator's connection ended.
    pub(crate) fn left(&self, uid: &str, connection: u64) {
        if let Some(pod) = self.inner.lock().pods.get_mut(uid)
            && pod.presence == Presence::Here(connection)
        {
            pod.presence = Presence::Gone(Instant::now());
        }
    }

    /// Duplicates of a pod's descriptors, whether they were handed out before, and what was agreed since. `None`: the pod
    /// has no data volume here.
    pub(crate) fn descriptors(&self, uid: &str) -> Result<Option<Handed>, Error> {
        let mut inner = self.inner.lock();
        let Inner { volumes, pods } = &mut *inner;
        let Some(volume) = data_volume(volumes, uid) else { return Ok(None) };
        if volume.devices.is_empty() {
            // Whoever left, left another mount: its absence must not be held against the new one.
            if let Some(pod) = pods.get_mut(uid).filter(|pod| matches!(pod.presence, Presence::Gone(_))) {
                pod.presence = Presence::Never(Instant::now());
            }
            // Both lost them, this plugin and the replicator: the kernel ended the connection when the last one closed.
            // Who holds files of it open gets errors and must be restarted; a new container sees the new mount.
            let target = volume.written.target.clone();
            tracing::warn!(pod = volume.written.pod.name, "descriptors are lost, mounting anew");
            mounts::unmount(&target).map_err(io_error("unmount", &target))?;
            mounts::make_target(&target).map_err(io_error("create", &target))?;
            let (devices, minor) =
                mounts::mount_data(&target, &volume.written.volume).map_err(io_error("mount anew at", &target))?;
            (volume.devices, volume.ended) = (devices, false);
            volume.written.minor = Some(minor);
            volume.written.handed = false;
            volume.written.agreed = None;
        }
        let handed = volume.written.handed;
        volume.written.handed = true;
        self.write_down(&volume.written)?;
        let duplicates: io::Result<Vec<_>> = volume.devices.iter().map(OwnedFd::try_clone).collect();
        let duplicates = duplicates.map_err(io_error("duplicate descriptors of", &volume.written.target))?;
        Ok(Some((duplicates, handed, volume.written.agreed.clone())))
    }

    /// Takes descriptors back that a replicator kept while this plugin was away.
    pub(crate) fn adopt(&self, uid: &str, devices: Vec<OwnedFd>, agreed: Option<String>) -> Result<(), Error> {
        let refuse = |why: &str| Err(Error::Refused(why.to_owned()));
        let mut inner = self.inner.lock();
        let Some(volume) = data_volume(&mut inner.volumes, uid) else {
            return refuse("this pod has no data volume here");
        };
        if !volume.devices.is_empty() {
            return Ok(());
        }
        if devices.is_empty() {
            return refuse("no descriptors came along");
        }
        for device in &devices {
            let told = mounts::is_fuse(device.as_fd())
                .and_then(|fuse| Ok((fuse, mounts::connection_of(device.as_fd())?)))
                .map_err(io_error("look at a descriptor for", &volume.written.target))?;
            if !told.0 || told.1.is_some_and(|minor| Some(minor) != volume.written.minor) {
                return refuse("a descriptor is not one of this mount");
            }
        }
        volume.devices = devices;
        volume.written.handed = true;
        volume.written.agreed = agreed.or_else(|| volume.written.agreed.take());
        self.write_down(&volume.written)?;
        tracing::info!(pod = volume.written.pod.name, "descriptors came back");
        Ok(())
    }

    /// Keeps what a replicator and the kernel agreed on.
    pub(crate) fn agreed(&self, uid: &str, agreed: &str) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        let Some(volume) = data_volume(&mut inner.volumes, uid) else {
            return Err(Error::Refused("this pod has no data volume here".to_owned()));
        };
        volume.written.agreed = Some(agreed.to_owned());
        self.write_down(&volume.written)
    }

    /// The data volumes and whether somebody serves them.
    pub fn seen(&self) -> Vec<Seen> {
        let inner = self.inner.lock();
        let seen = inner.volumes.values().filter_map(|volume| {
            Some(Seen {
                volume: volume.written.volume.clone(),
                pod: volume.written.pod.clone(),
                minor: volume.written.minor?,
                presence: inner.pods.get(&volume.written.pod.uid)?.presence,
                ended: volume.ended,
            })
        });
        seen.collect()
    }

    /// Lets go of a connection that was aborted; not of one that was mounted meanwhile.
    pub fn let_go(&self, volume: &str, minor: u32) {
        let mut inner = self.inner.lock();
        let found = inner.volumes.get_mut(volume).filter(|volume| volume.written.minor == Some(minor));
        if let Some(volume) = found {
            volume.devices.clear();
            volume.ended = true;
        }
    }

    /// Takes everything of a pod away that no longer exists.
    pub fn clear_pod(&self, uid: &str) -> Result<(), Error> {
        let volumes: Vec<_> = {
            let inner = self.inner.lock();
            let of_pod = inner.volumes.values().filter(|volume| volume.written.pod.uid == uid);
            of_pod.map(|volume| (volume.written.volume.clone(), volume.written.target.clone())).collect()
        };
        volumes.into_iter().try_for_each(|(volume, target)| self.unpublish(&volume, &target))
    }
}

fn data_volume<'a>(volumes: &'a mut HashMap<String, Volume>, uid: &str) -> Option<&'a mut Volume> {
    volumes.values_mut().find(|volume| volume.written.role == Role::Data && volume.written.pod.uid == uid)
}

fn close_to_others(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(io_error("close to others", path))
}

/// Names become file names.
fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let good = !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if good { Ok(()) } else { Err(Error::Refused(format!("{what} {name:?} is not one that kubelet would give"))) }
}
