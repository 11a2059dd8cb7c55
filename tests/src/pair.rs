//! A `ReplicationPair` as a user sees it: a manifest, its status, its Service, its annotations.

use crate::cluster::node::Node;
use crate::cluster::{Cluster, wait};
use crate::judge::{Clients, Conversation, Load, Task};
use crate::shell;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a step may take on a busy machine before it counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than a write is held with `holdSeconds` as it is unless somebody says otherwise.
const HELD_MAX: Duration = Duration::from_secs(40);

/// What runs of a member's replicator.
pub struct Running {
    /// Of its pod.
    pub uid: String,
    /// The id of its container.
    pub container: String,
}

/// One pair in one namespace, its member a on node n1 and b on n2.
pub struct Pair {
    pub cluster: Cluster,
    pub namespace: String,
    pub name: String,
}

/// What differs from the simplest pair.
#[derive(Clone, Debug)]
pub struct Wishes {
    pub mebibytes: u64,
    /// Merged over `spec`.
    pub spec: Value,
    /// Image and command of the one container; the workload by default.
    pub container: Value,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { mebibytes: 512, spec: json!({}), container: workload() }
    }
}

impl Wishes {
    /// The simplest pair, with these fields of `spec`.
    pub fn spec(spec: Value) -> Self {
        Self { spec, ..Self::default() }
    }
}

fn workload() -> Value {
    json!({
        "name": "app", "image": "localhost/tandem-workload:test", "imagePullPolicy": "Never",
        "command": ["/workload", "serve", "/data"],
        "ports": [{"name": "client", "containerPort": crate::workload::PORT}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    })
}

/// A database server as users run it: its own user, its folder made by its own tools on the first start.
pub fn postgresql() -> Value {
    postgresql_in(crate::images::WORKLOAD, "Never")
}

/// The same in another image, if that has PostgreSQL where Debian keeps it.
pub fn postgresql_in(image: &str, policy: &str) -> Value {
    let first = "test -s /data/db/PG_VERSION || { mkdir -p /data/db && chmod 700 /data/db && \
        $bin/initdb -D /data/db -U postgres -A trust --data-checksums --no-locale -E UTF8 && \
        echo 'host all all all trust' >> /data/db/pg_hba.conf; }";
    let script = format!(
        "bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1); {first} && \
         exec $bin/postgres -D /data/db -c listen_addresses='*' -c cluster_name=$HOSTNAME -c unix_socket_directories=/tmp"
    );
    json!({
        "name": "postgres", "image": image, "imagePullPolicy": policy,
        "command": ["/bin/sh", "-c", script],
        // As the usual images have it: otherwise the server waits for its clients to leave.
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "kill -INT 1"]}}},
        "securityContext": {"runAsUser": 999, "runAsGroup": 999},
        "ports": [{"name": "sql", "containerPort": 5432}],
        "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    })
}

/// The pod that talks to a database in a cluster whose Services this machine does not reach.
const CLIENT: &str = "sql-client";
const PSQL: &str = "PGCONNECT_TIMEOUT=15 exec $(ls -d /usr/lib/postgresql/*/bin | tail -n 1)/psql \"$@\"";

impl Pair {
    /// Makes the members' volumes and applies the pair. Returns at once: `wait` says when it is what it should be.
    pub fn apply(cluster: &Cluster, namespace: &str, name: &str, wishes: &Wishes) -> Result<Self> {
        let pair = Self { cluster: cluster.clone(), namespace: namespace.into(), name: name.into() };
        for (member, node) in [("a", "n1"), ("b", "n2")] {
            if !cluster.node(node)?.volumes()?.contains(&pair.volume(member)) {
                pair.make_volume(member, wishes.mebibytes)?;
            }
        }
        pair.apply_manifest(&pair.manifest(wishes))?;
        Ok(pair)
    }

    /// The node that has a member's volume.
    pub fn home(&self, member: &str) -> Result<Node> {
        self.cluster.node(if member == "a" { "n1" } else { "n2" })
    }

    /// A volume for a member of a pair that need not be there yet; its name.
    pub fn volume_for(cluster: &Cluster, namespace: &str, name: &str, member: &str, mebibytes: u64) -> Result<String> {
        let pair = Self { cluster: cluster.clone(), namespace: namespace.into(), name: name.into() };
        pair.make_volume(member, mebibytes)
    }

    fn make_volume(&self, member: &str, mebibytes: u64) -> Result<String> {
        let volume = self.volume(member);
        self.home(member)?.create_volume(&volume, mebibytes, "")?;
        // Reserved for this member: volumes of other pairs on the node look just the same.
        let claim = json!({"spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "namespace": self.namespace, "name": format!("tandem-backing-{}-{member}-0", self.name)}}});
        self.cluster.kubectl(&["patch", "persistentvolume", &volume, "-p", &claim.to_string()])?;
        Ok(volume)
    }

    /// Applies a pair without making volumes: for what must be refused.
    pub fn apply_only(cluster: &Cluster, namespace: &str, name: &str, wishes: &Wishes) -> Result<Self> {
        let pair = Self { cluster: cluster.clone(), namespace: namespace.into(), name: name.into() };
        pair.apply_manifest(&pair.manifest(wishes))?;
        Ok(pair)
    }

    /// A program of this machine, to be run as a client of the pair: this process is in the cluster's network.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", "/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin").env("PGCONNECT_TIMEOUT", "15");
        command
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        shell::run(self.command(program).args(arguments))
    }

    /// The manifest that `apply` applies.
    pub fn manifest(&self, wishes: &Wishes) -> Value {
        let mut spec = json!({
            "template": {"spec": {"containers": [wishes.container], "terminationGracePeriodSeconds": 5}},
            "volumeClaimTemplate": {"spec": {
                "accessModes": ["ReadWriteOncePod"], "storageClassName": "tandem-local",
                "resources": {"requests": {"storage": format!("{}Mi", wishes.mebibytes / 2)}},
            }},
            "preferredMaster": "a",
            "members": {
                "a": {"nodeSelector": {"kubernetes.io/hostname": "n1"}},
                "b": {"nodeSelector": {"kubernetes.io/hostname": "n2"}},
            },
        });
        merge(&mut spec, &wishes.spec);
        json!({"apiVersion": "tandem.dev/v1alpha1", "kind": "ReplicationPair",
               "metadata": {"name": self.name, "namespace": self.namespace}, "spec": spec})
    }

    pub fn apply_manifest(&self, manifest: &Value) -> Result<()> {
        self.cluster.apply(&manifest.to_string())
    }

    /// The name of a member's volume on its node.
    pub fn volume(&self, member: &str) -> String {
        format!("{}-{}-{member}", self.namespace, self.name)
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", &self.namespace], arguments].concat())
    }

    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"])?).context("read the object")
    }

    pub fn status(&self) -> Result<Value> {
        Ok(self.get("replicationpair", &self.name)?["status"].take())
    }

    pub fn active(&self) -> Result<String> {
        Ok(self.status()?["active"].as_str().unwrap_or_default().to_string())
    }

    pub fn epoch(&self) -> Result<u64> {
        Ok(self.status()?["epoch"].as_u64().unwrap_or_default())
    }

    /// A condition's status and reason.
    pub fn condition(&self, kind: &str) -> Result<(String, String)> {
        let status = self.status()?;
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == kind);
        let text = |field: &str| found.as_ref().and_then(|found| found[field].as_str()).unwrap_or_default().to_string();
        Ok((text("status"), text("reason")))
    }

    /// A member's own report.
    pub fn report(&self, member: &str) -> Result<Value> {
        Ok(self.get("replicationmember", &format!("{}-{member}", self.name))?["status"].take())
    }

    pub fn state(&self, member: &str) -> Result<String> {
        Ok(self.report(member)?["state"].as_str().unwrap_or_default().to_string())
    }

    pub fn wait(&self, limit: Duration, what: &str, mut holds: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let mut last = None;
        wait(limit, what, || match holds(self) {
            Ok(holds) => holds,
            Err(error) => {
                last = Some(error);
                false
            }
        })
        .with_context(|| match last {
            Some(error) => format!("the last look failed: {error:#}"),
            None => {
                format!("status: {}", self.status().map_or_else(|error| error.to_string(), |status| status.to_string()))
            }
        })
    }

    pub fn wait_condition(&self, kind: &str, status: &str) -> Result<()> {
        self.wait(PATIENCE, &format!("{kind}={status}"), |pair| Ok(pair.condition(kind)?.0 == status))
    }

    /// Both members have everything, and `member` leads and serves.
    pub fn wait_in_sync(&self, member: &str) -> Result<()> {
        self.wait(PATIENCE, &format!("{member} to lead a pair that is in sync"), |pair| {
            Ok(pair.active()? == member
                && pair.condition("InSync")?.0 == "True"
                && pair.condition("Ready")?.0 == "True")
        })
    }

    /// `member` leads and serves, alone or not.
    pub fn wait_active(&self, member: &str) -> Result<()> {
        self.wait(PATIENCE, &format!("{member} to lead"), |pair| {
            Ok(pair.active()? == member && pair.state(member)?.starts_with("Primary"))
        })
    }

    /// Runs a statement through the Service, as a client of PostgreSQL.
    pub fn sql(&self, text: &str) -> Result<String> {
        let ask = ["-U", "postgres", "-v", "ON_ERROR_STOP=1", "-qAtc", text];
        if self.cluster.is_foreign() {
            let within = ["exec", CLIENT, "--", "/bin/sh", "-c", PSQL, "psql", "-h", &self.name];
            return self.kubectl(&[&within[..], &ask].concat());
        }
        self.run("psql", &[&["-h", &self.address()?][..], &ask].concat())
    }

    /// Starts the pod that `sql` speaks from, in a cluster that somebody else runs.
    pub fn start_client(&self, image: &str) -> Result<()> {
        self.kubectl(&["run", CLIENT, "--image", image, "--restart=Never", "--command", "--", "/bin/sleep", "86400"])?;
        self.kubectl(&["wait", "pod", CLIENT, "--for=condition=Ready", "--timeout=300s"]).map(drop)
    }

    /// Waits until PostgreSQL answers through the Service.
    pub fn wait_sql(&self) -> Result<()> {
        self.wait(PATIENCE, "PostgreSQL to answer", |pair| Ok(pair.sql("select 1")?.trim() == "1"))
    }

    /// Asks for something by annotation. The token is the caller's.
    pub fn annotate(&self, verb: &str, token: &str) -> Result<()> {
        self.kubectl(&["annotate", "--overwrite", "replicationpair", &self.name, &format!("tandem.dev/{verb}={token}")])
            .map(drop)
    }

    /// What became of a request: `Accepted`, `Refused` or `Completed`, and why.
    pub fn request(&self, verb: &str, token: &str) -> Result<Option<(String, String)>> {
        let status = self.status()?;
        let requests = status["handledRequests"].as_array().cloned().unwrap_or_default();
        let found = requests.into_iter().find(|request| request["verb"] == verb && request["token"] == token);
        Ok(found.map(|request| {
            let text = |field: &str| request[field].as_str().unwrap_or_default().to_string();
            (text("result"), text("reason"))
        }))
    }

    pub fn wait_request(&self, verb: &str, token: &str, result: &str) -> Result<()> {
        self.wait(PATIENCE, &format!("{verb}={token} to be {result}"), |pair| {
            Ok(pair.request(verb, token)?.is_some_and(|(found, _)| found == result))
        })
    }

    /// The address of the read/write Service.
    pub fn address(&self) -> Result<String> {
        let address = self.kubectl(&["get", "service", &self.name, "-o", "jsonpath={.spec.clusterIP}"])?;
        if address.is_empty() { bail!("Service {} has no address", self.name) } else { Ok(address) }
    }

    /// A conversation with whoever serves, as soon as somebody does.
    pub fn converse(&self) -> Result<Conversation> {
        let address = self.address()?;
        let started = Instant::now();
        loop {
            let opened = Conversation::open(&address, Duration::from_secs(2)).and_then(|mut open| {
                open.ask("who")?;
                Ok(open)
            });
            match opened {
                Ok(open) => {
                    open.be_patient(PATIENCE)?;
                    return Ok(open);
                }
                Err(error) if started.elapsed() > PATIENCE => {
                    bail!("waited {} s for somebody to serve: {error:#}", PATIENCE.as_secs());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// The same, who wait longer than writes may ever be held: for whoever promises that none fails.
    pub fn patient_load(&self, clients: usize, per_second: u64) -> Result<Load> {
        self.converse()?;
        let clients = Clients { first: 0, count: clients, per_second, patience: HELD_MAX, what: Task::Append };
        Ok(Load::of(&self.address()?, &clients))
    }

    /// Clients at work through the Service.
    pub fn load(&self, clients: usize, per_second: u64) -> Result<Load> {
        self.converse()?;
        Ok(Load::start(&self.address()?, clients, per_second))
    }

    pub fn records(&self) -> Result<Vec<String>> {
        self.converse()?.ask_all("read")
    }

    pub fn pod(&self, member: &str) -> Result<Value> {
        self.get("pod", &format!("{}-{member}-0", self.name))
    }

    /// The id of a member's running container.
    pub fn container(&self, member: &str, name: &str) -> Result<String> {
        let pod = self.pod(member)?;
        let statuses = ["containerStatuses", "initContainerStatuses"]
            .iter()
            .flat_map(|list| pod["status"][list].as_array().cloned().unwrap_or_default())
            .collect::<Vec<_>>();
        let found = statuses.into_iter().find(|status| status["name"] == name);
        let id = found.and_then(|status| status["containerID"].as_str().map(String::from));
        id.with_context(|| format!("{member} has no container {name}"))
    }

    /// Where a member's pod can be reached, whoever leads.
    pub fn pod_address(&self, member: &str) -> Result<String> {
        let pod = self.pod(member)?;
        pod["status"]["podIP"].as_str().map(String::from).with_context(|| format!("{member} has no address"))
    }

    /// What runs of a member's replicator: its pod and its container, as soon as kubelet tells what really runs.
    pub fn running(&self, member: &str) -> Result<Running> {
        let node = self.home(member)?;
        let mut found = None;
        self.wait(PATIENCE, &format!("the replicator of {member} to run"), |pair| {
            let uid = pair.pod(member)?["metadata"]["uid"].as_str().unwrap_or_default().to_string();
            let container = pair.container(member, "replicator")?;
            node.container_processes(&container)?;
            found = Some(Running { uid, container });
            Ok(true)
        })?;
        found.context("nothing runs")
    }

    /// Kills everything in a member's pod, and returns when something else runs there.
    pub fn kill_pod(&self, member: &str) -> Result<()> {
        let killed = self.running(member)?;
        self.home(member)?.kill_pod(&killed.uid)?;
        self.wait(PATIENCE, "another container to run", |pair| {
            Ok(pair.container(member, "replicator")? != killed.container)
        })
    }

    /// Deletes a member's pod, if it has one, and waits until another one has its name.
    pub fn replace_pod(&self, member: &str) -> Result<()> {
        let gone = self.pod(member).map_or_else(|_| Value::Null, |pod| pod["metadata"]["uid"].clone());
        let name = format!("{}-{member}-0", self.name);
        self.kubectl(&["delete", "pod", &name, "--wait=false", "--ignore-not-found"])?;
        self.wait(PATIENCE, "another pod", |pair| Ok(pair.pod(member)?["metadata"]["uid"] != gone))
    }

    /// Deletes a member's pod and kills it at once: it says no farewell.
    pub fn delete_killed(&self, member: &str) -> Result<()> {
        let node = self.home(member)?;
        let uid = self.running(member)?.uid;
        node.freeze_pod(&uid, true)?;
        self.kubectl(&["delete", "pod", &format!("{}-{member}-0", self.name), "--wait=false"])?;
        node.kill_pod(&uid)?;
        // It may be gone already.
        node.freeze_pod(&uid, false).ok();
        Ok(())
    }

    /// How often the containers of a member were restarted.
    pub fn restarts(&self, member: &str) -> Result<u64> {
        let pod = self.pod(member)?;
        let lists = ["containerStatuses", "initContainerStatuses"];
        let statuses = lists.iter().flat_map(|list| pod["status"][list].as_array().cloned().unwrap_or_default());
        Ok(statuses.map(|status| status["restartCount"].as_u64().unwrap_or_default()).sum())
    }

    /// Which copy to the replicant was the last one: another id means that everything was copied again.
    pub fn last_copy(&self) -> Result<String> {
        let id = self.status()?["netcopy"]["id"].as_str().unwrap_or_default().to_string();
        if id.is_empty() { bail!("the status names no copy") } else { Ok(id) }
    }

    /// A member's files on its own volume: kind, rights, owner and content, by path, without what Tandem keeps for itself.
    pub fn files(&self, member: &str) -> Result<BTreeMap<String, String>> {
        let node = self.home(member)?;
        let mut found = BTreeMap::new();
        describe(&node.path(&format!("/mnt/{}", self.volume(member)))?, "", &mut found)?;
        Ok(found)
    }

    /// Waits until both members' volumes hold the same files, and says what differs if they never do. Nobody may write.
    pub fn wait_equal(&self) -> Result<()> {
        let started = Instant::now();
        loop {
            let (a, b) = (self.files("a")?, self.files("b")?);
            if a == b {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                let names: BTreeSet<&String> =
                    a.keys().chain(b.keys()).filter(|name| a.get(*name) != b.get(*name)).collect();
                let some =
                    names.iter().take(10).map(|name| format!("{name}: a {:?}, b {:?}", a.get(*name), b.get(*name)));
                bail!("{} files differ: {}", names.len(), some.collect::<Vec<_>>().join("; "));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Whether an Event with this reason was recorded about anything of the pair.
    pub fn has_event(&self, reason: &str) -> Result<bool> {
        let events: Value = serde_json::from_str(&self.kubectl(&["get", "events", "-o", "json"])?)?;
        let events = events["items"].as_array().cloned().unwrap_or_default();
        Ok(events.iter().any(|event| event["reason"] == reason))
    }
}

fn describe(folder: &Path, prefix: &str, found: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry.context("list a folder")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if prefix.is_empty() && (name == ".tandem" || name == "lost+found") {
            continue;
        }
        let path = entry.path();
        let status = match std::fs::symlink_metadata(&path) {
            Ok(status) => status,
            // It went away between the listing and the look: the application is alive.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context("look at a file"),
        };
        let kind = status.file_type();
        let what = if kind.is_dir() {
            "folder".to_string()
        } else if kind.is_symlink() {
            format!("link to {}", std::fs::read_link(&path).context("read a link")?.display())
        } else if kind.is_file() {
            let content = match std::fs::read(&path) {
                Ok(content) => content,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).context("read a file"),
            };
            let hash = Sha256::digest(content);
            format!(
                "{} bytes {}",
                status.len(),
                hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>()
            )
        } else if kind.is_fifo() {
            "fifo".to_string()
        } else {
            "other".to_string()
        };
        let place = format!("{prefix}/{name}");
        found.insert(
            place.clone(),
            format!("{what} {:o} {}:{}", status.permissions().mode() & 0o7777, status.uid(), status.gid()),
        );
        if kind.is_dir() {
            describe(&path, &place, found)?;
        }
    }
    Ok(())
}

/// Lays `over` on `base`, object by object.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}
