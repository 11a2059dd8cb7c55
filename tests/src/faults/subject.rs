//! A pair that faults happen to: who leads, where its parts run, and when it has come to rest.

use super::chapter::{Application, Chapter};
use super::door::{Door, ask_member};
use super::timeline::Timeline;
use crate::cluster::node::Node;
use crate::judge::{Event, Outcome};
use crate::pair::Pair;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Coming to rest may take this long after a fault has ended, on a machine that does much else.
pub const REST: Duration = Duration::from_secs(120);

/// What is special about a pair.
#[derive(Clone, Copy, Debug)]
pub struct Character {
    pub name: &'static str,
    pub protection: &'static str,
    pub acknowledgement: &'static str,
    pub application: Application,
    pub interval_milliseconds: u64,
}

impl Character {
    /// After so long without a sign of life the replicant takes over.
    pub fn suspicion(&self) -> Duration {
        Duration::from_millis(self.interval_milliseconds * 5)
    }

    /// Bytes that may be lost when leadership moves by force.
    pub fn allowed(&self) -> u64 {
        if self.protection == "Async" { super::LAG_BYTES } else { 0 }
    }
}

/// One pair under faults.
pub struct Subject {
    pub pair: Pair,
    pub character: Character,
    pub door: Arc<Door>,
    pub timeline: Arc<Timeline>,
    pub chapter: Mutex<Option<Chapter>>,
}

/// One member's pod as it runs now.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    pub node: Node,
    pub uid: String,
    pub address: String,
    /// Ids of containers by their names.
    pub containers: BTreeMap<String, String>,
}

impl Member {
    pub fn container(&self, name: &str) -> Result<&str> {
        self.containers.get(name).map(String::as_str).with_context(|| format!("{} has no container {name}", self.name))
    }
}

/// Who is who.
#[derive(Clone, Debug)]
pub struct Scene {
    pub master: Member,
    pub replicant: Member,
    pub epoch: u64,
}

impl Scene {
    /// One of the two.
    pub fn member(&self, master: bool) -> &Member {
        if master { &self.master } else { &self.replicant }
    }
}

impl Subject {
    /// The container that the users' program runs in.
    pub fn application(&self) -> &'static str {
        match self.character.application {
            Application::Records => "app",
            Application::PostgreSql => "postgres",
        }
    }

    pub fn object(&self, kind: &str, name: &str) -> String {
        let group = if kind.starts_with("replication") || kind == "pairrecords" {
            "apis/tandem.dev/v1alpha1"
        } else {
            "api/v1"
        };
        format!("/{group}/namespaces/{}/{kind}/{name}", self.pair.namespace)
    }

    pub fn pod_path(&self, member: &str) -> String {
        self.object("pods", &format!("{}-{member}-0", self.pair.name))
    }

    pub fn annotate(&self, annotations: &[(&str, &str)]) -> Result<()> {
        let all: serde_json::Map<String, Value> =
            annotations.iter().map(|(verb, token)| (format!("tandem.dev/{verb}"), json!(token))).collect();
        self.door.merge(&self.object("replicationpairs", &self.pair.name), &json!({"metadata": {"annotations": all}}))
    }

    pub fn status(&self) -> Result<Value> {
        Ok(self.door.get(&self.object("replicationpairs", &self.pair.name))?["status"].take())
    }

    /// What became of a request by annotation: its result.
    pub fn answer(&self, verb: &str, token: &str) -> Result<Option<String>> {
        let status = self.status()?;
        let all = status["handledRequests"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|one| one["verb"] == verb && one["token"] == token);
        Ok(found.and_then(|one| one["result"].as_str().map(String::from)))
    }

    /// Where a member's files are, as this process sees them.
    pub fn volume(&self, member: &Member) -> Result<PathBuf> {
        member.node.path(&format!("/mnt/{}", self.pair.volume(&member.name)))
    }

    /// What clients of the current chapter were answered.
    pub fn since(&self, from: Instant) -> Vec<Event> {
        self.chapter.lock().unwrap().as_ref().map_or_else(Vec::new, |chapter| chapter.since(from))
    }

    fn members(&self) -> Result<Vec<Member>> {
        ["a", "b"].into_iter().map(|name| self.member(name)).collect()
    }

    pub fn member(&self, name: &str) -> Result<Member> {
        let pod = self.door.get(&self.pod_path(name))?;
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            bail!("pod {name} is ending");
        }
        let lists = ["containerStatuses", "initContainerStatuses"];
        let statuses = lists.iter().flat_map(|list| pod["status"][list].as_array().cloned().unwrap_or_default());
        let containers = statuses
            .filter(|status| !status["state"]["running"].is_null())
            .filter_map(|status| {
                Some((status["name"].as_str()?.to_string(), status["containerID"].as_str()?.to_string()))
            })
            .collect();
        Ok(Member {
            name: name.to_string(),
            node: self.pair.cluster.node(if name == "a" { "n1" } else { "n2" })?,
            uid: pod["metadata"]["uid"].as_str().context("a pod has an uid")?.to_string(),
            address: pod["status"]["podIP"].as_str().with_context(|| format!("pod {name} has no address"))?.to_string(),
            containers,
        })
    }

    /// Both members as they say themselves, if one leads and serves and the other follows it, with everything.
    fn look(&self) -> Result<Scene> {
        let members = self.members()?;
        let told = members.iter().map(|member| ask_member(&member.address)).collect::<Result<Vec<_>>>()?;
        let is = |index: usize, state: &str| told[index]["state"] == state;
        for (master, replicant) in [(0, 1), (1, 0)] {
            let leads = is(master, "PrimaryActive") && told[master]["serving"] == true && told[master]["gate"] == true;
            let linked = told[master]["peerConnected"] == true && told[replicant]["peerConnected"] == true;
            if leads && linked && is(replicant, "SecondaryActive") {
                let epoch = told[master]["epoch"].as_u64().unwrap_or_default();
                let mut members = members;
                let other = members.swap_remove(replicant);
                return Ok(Scene { master: members.swap_remove(0), replicant: other, epoch });
            }
        }
        let word = |index: usize| {
            format!(
                "{} ({})",
                told[index]["state"].as_str().unwrap_or("?"),
                told[index]["message"].as_str().unwrap_or("")
            )
        };
        bail!("a is {}, b is {}", word(0), word(1))
    }

    /// Waits until the pair is whole: one leads, the other one has everything, the application's container runs, clients
    /// are served by that leader, and the status says so.
    pub fn rest(&self, limit: Duration) -> Result<Scene> {
        let began = Instant::now();
        loop {
            let result = self.is_at_rest(began);
            match result {
                Ok(scene) => return Ok(scene),
                Err(error) if began.elapsed() > limit => {
                    return Err(error.context(format!(
                        "{} did not come to rest within {} s",
                        self.pair.name,
                        limit.as_secs()
                    )));
                }
                // Seldom enough that the API server is not kept busy by those who look on.
                Err(_) => std::thread::sleep(Duration::from_millis(400)),
            }
        }
    }

    fn is_at_rest(&self, since: Instant) -> Result<Scene> {
        let scene = self.look()?;
        for member in [&scene.master, &scene.replicant] {
            member.container("replicator")?;
        }
        scene.master.container(self.application())?;
        let pod = format!("{}-{}-0", self.pair.name, scene.master.name);
        if self.chapter.lock().unwrap().is_some() {
            let answered = self.since(since);
            let served = |event: &&Event| matches!(&event.outcome, Outcome::Acknowledged(by) if *by == pod);
            let count = answered.iter().filter(served).count();
            if count < 10 {
                let last = answered.last().map(|event| format!("{:?}", event.outcome));
                bail!(
                    "{} leads, but only {count} writes were acknowledged since; the last answer: {last:?}",
                    scene.master.name
                );
            }
        }
        let status = self.status()?;
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let holds = |kind: &str| conditions.iter().any(|one| one["type"] == kind && one["status"] == "True");
        if status["active"] != scene.master.name.as_str() || !holds("InSync") || !holds("Ready") {
            bail!(
                "{} leads and all is well, but the status says {}: {}",
                scene.master.name,
                status["active"],
                status["message"]
            );
        }
        Ok(scene)
    }
}
