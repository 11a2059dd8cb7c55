//! What the members and their applications log, followed while it is written: a pod that is deleted takes its log along.
//! Everything is kept in files for whoever has to find out why; what marks the steps of a takeover is kept as marks.

use super::moments;
use crate::cluster::Cluster;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Something that a log told.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Seconds of the time of day.
    pub at: f64,
    pub pair: String,
    pub member: String,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A write of the record was sent.
    Record {
        epoch: u64,
    },
    /// The member came into this state.
    State {
        to: String,
        epoch: u64,
    },
    /// The gate is open.
    MayStart {
        epoch: u64,
    },
    /// The application listens.
    Listens,
    PeerGone,
}

/// A reign: from here on, and until the next one, only this member may acknowledge.
#[derive(Clone, Debug, PartialEq)]
pub struct Reign {
    pub epoch: u64,
    pub member: String,
    pub claimed: f64,
}

/// The marks of all pairs.
#[derive(Default)]
pub struct Timeline {
    marks: Mutex<Vec<Mark>>,
}

impl Timeline {
    /// The marks of a pair since a moment, in the order of their times.
    pub fn since(&self, pair: &str, from: f64) -> Vec<Mark> {
        let all = self.marks.lock().unwrap();
        let mut found: Vec<Mark> = all.iter().filter(|mark| mark.pair == pair && mark.at >= from).cloned().collect();
        found.sort_by(|one, other| one.at.total_cmp(&other.at));
        found
    }

    /// Who reigned, in the order of the epochs.
    pub fn reigns(&self, pair: &str) -> Vec<Reign> {
        let mut found: Vec<Reign> = self
            .since(pair, 0.0)
            .into_iter()
            .filter_map(|mark| {
                let What::State { to, epoch } = mark.what else { return None };
                (to == "PrimaryOpening").then_some(Reign { epoch, member: mark.member, claimed: mark.at })
            })
            .collect();
        found.sort_by_key(|reign| reign.epoch);
        found
    }

    fn add(&self, mark: Mark) {
        self.marks.lock().unwrap().push(mark);
    }
}

/// Follows the logs until it is dropped.
pub struct Follower {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Reads the logs of this namespace's pods, and of the product's own, into `folder`.
    pub fn start(cluster: &Cluster, namespace: &str, folder: &Path, timeline: Arc<Timeline>) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut reading = Reading {
            places: cluster.nodes()?.iter().map(|node| node.disk().join("logs")).collect(),
            namespace: namespace.to_string(),
            folder: folder.to_path_buf(),
            known: HashMap::new(),
            timeline,
        };
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            loop {
                let last = told.load(Ordering::Acquire);
                reading.look();
                if last {
                    return;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// How far a log was read.
#[derive(Default)]
struct Place {
    inode: u64,
    offset: u64,
    /// What of its last line is not complete yet.
    rest: String,
}

struct Reading {
    places: Vec<PathBuf>,
    namespace: String,
    folder: PathBuf,
    known: HashMap<PathBuf, Place>,
    timeline: Arc<Timeline>,
}

impl Reading {
    /// Folders are named NAMESPACE_POD_UID, with a folder for each container in them.
    fn look(&mut self) {
        for place in self.places.clone() {
            for pod in entries(&place) {
                let name = pod.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let words: Vec<&str> = name.split('_').collect();
                let (Some(namespace), Some(pod_name)) = (words.first(), words.get(1)) else { continue };
                if *namespace != self.namespace && *namespace != "tandem-system" {
                    continue;
                }
                for container in entries(&pod) {
                    let container_name =
                        container.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                    for log in entries(&container) {
                        self.read(&log, pod_name, &container_name);
                    }
                }
            }
        }
    }

    fn read(&mut self, log: &Path, pod: &str, container: &str) {
        let place = self.known.entry(log.to_path_buf()).or_default();
        let Ok(mut file) = File::open(log) else { return };
        let Ok(status) = file.metadata() else { return };
        if place.inode != status.ino() || place.offset > status.len() {
            // Kubelet counts from the beginning again when a pod got a new sandbox: another log of the same name.
            *place = Place { inode: status.ino(), ..Place::default() };
        }
        if status.len() == place.offset || file.seek(SeekFrom::Start(place.offset)).is_err() {
            return;
        }
        let mut bytes = Vec::new();
        // Read again from here at the next look, if it fails now.
        if file.read_to_end(&mut bytes).is_err() {
            return;
        }
        place.offset += bytes.len() as u64;
        let mut text = std::mem::take(&mut place.rest);
        text.push_str(&String::from_utf8_lossy(&bytes));
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        place.rest = text.split_off(end);
        let copy = self.folder.join(format!("{pod}.{container}.log"));
        if let Ok(mut file) = File::options().create(true).append(true).open(copy) {
            // The copy is for people; the marks do not depend on it.
            file.write_all(text.as_bytes()).ok();
        }
        // Pods of pairs are named PAIR-MEMBER-0.
        let Some((pair, member)) = pod.strip_suffix("-0").and_then(|name| name.rsplit_once('-')) else { return };
        for line in text.lines() {
            if let Some((at, what)) = mark(container, line) {
                self.timeline.add(Mark { at, pair: pair.to_string(), member: member.to_string(), what });
            }
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// A line as the runtime keeps it: its own time, the stream, a flag, and what was printed.
fn mark(container: &str, line: &str) -> Option<(f64, What)> {
    let mut words = line.splitn(4, ' ');
    let (seen, printed) = (words.next()?, words.nth(2)?);
    if container != "replicator" {
        let listens =
            printed.starts_with("serving ") || printed.contains("database system is ready to accept connections");
        return listens.then_some((moments::parse(seen)?, What::Listens));
    }
    let told: Value = serde_json::from_str(printed).ok()?;
    // The member's own clock: the runtime writes the line only when it comes round to it.
    let at = moments::parse(told["timestamp"].as_str()?)?;
    let epoch = told["epoch"].as_u64().unwrap_or_default();
    let what = match told["message"].as_str()? {
        "write of the record" if told["error"].is_null() => What::Record { epoch },
        "state" => What::State { to: told["to"].as_str()?.to_string(), epoch },
        "the application may start" => What::MayStart { epoch },
        "the peer is disconnected" => What::PeerGone,
        _ => return None,
    };
    Some((at, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_logs_become_marks() {
        let line = r#"2026-11-21T10:00:00.9Z stderr F {"timestamp":"2026-11-21T10:00:00.500000Z","level":"INFO","message":"state","from":"Starting","to":"PrimaryOpening","epoch":7,"end":3}"#;
        let (at, what) = mark("replicator", line).unwrap();
        assert_eq!(what, What::State { to: "PrimaryOpening".into(), epoch: 7 });
        assert!((at.fract() - 0.5).abs() < 0.001);
        let listens = mark("app", "2026-11-21T10:00:01Z stdout F serving /data").unwrap();
        assert_eq!(listens.1, What::Listens);
        assert_eq!(mark("replicator", "2026-11-21T10:00:01Z stderr F not JSON"), None);
    }
}
