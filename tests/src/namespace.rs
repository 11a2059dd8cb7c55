//! One namespace for one scenario: made, marked, told about when the scenario fails, and removed.

use crate::cluster::{Cluster, wait};
use anyhow::Result;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Only namespaces with this label are ever removed.
const GUARD: &str = "tandem.dev/scenario=true";

/// Runs `test` in a namespace of its own. When it fails, says everything that the cluster knows; the namespace goes in
/// either case, unless `KEEP_NAMESPACE` is set.
pub fn with_namespace(cluster: &Cluster, name: &str, test: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let moment = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let namespace = format!("{}-{:05x}", name.to_lowercase().replace('_', "-"), moment & 0xf_ffff);
    cluster.kubectl(&["create", "namespace", &namespace])?;
    cluster.kubectl(&["label", "namespace", &namespace, GUARD])?;
    let result = catch_unwind(AssertUnwindSafe(|| test(&namespace))).unwrap_or_else(|panic| {
        let text =
            panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()));
        Err(anyhow::anyhow!(text.unwrap_or_else(|| "the scenario panicked".into())))
    });
    let result = result.map_err(|error| {
        eprintln!("{}", everything(cluster, &namespace));
        // Nothing ends well on a node that is down. What was found stays what was found.
        match cluster.restore() {
            Ok(()) => error,
            Err(broken) => error.context(format!("restore the cluster: {broken:#}; and before that")),
        }
    });
    if std::env::var_os("KEEP_NAMESPACE").is_some() {
        return result;
    }
    // A pod that does not end is no slowness: it is not played again.
    let put_away = put_away(cluster, &namespace).map_err(|error| anyhow::anyhow!("remove {namespace}: {error:#}"));
    match (result, put_away) {
        (Ok(()), Ok(())) => Ok(()),
        (Ok(()), Err(error)) => {
            // A pod that does not end is a failure of its own.
            eprintln!("{}", everything(cluster, &namespace));
            Err(error)
        }
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(stuck)) => Err(error.context(format!("{stuck:#}; and before that"))),
    }
}

/// The namespace, and the volumes that were made for it.
fn put_away(cluster: &Cluster, namespace: &str) -> Result<()> {
    // Pods first: a namespace with ending pods in it is looked at again only after half of their grace.
    let of_namespace = |arguments: &[&str]| cluster.kubectl(&[&["-n", namespace], arguments].concat());
    for kind in ["replicationpairs", "pods"] {
        of_namespace(&["delete", kind, "--all", "--wait=false"])?;
    }
    wait(Duration::from_secs(120), "the pods of the scenario to end", || {
        of_namespace(&["get", "pods", "-o", "name"]).is_ok_and(|left| left.trim().is_empty())
    })?;
    cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"])?;
    wait(Duration::from_secs(300), "the scenario's namespace to go", || {
        cluster
            .kubectl(&["get", "namespace", namespace, "-o", "name", "--ignore-not-found"])
            .is_ok_and(|left| left.is_empty())
    })?;
    cluster.delete_volumes(&format!("{namespace}-"))
}

/// Objects, events and logs, for whoever has to find out why.
pub fn everything(cluster: &Cluster, namespace: &str) -> String {
    let mut told = format!("---- all there is to know about {namespace}\n");
    let mut tell = |title: &str, arguments: &[&str]| {
        let text = cluster.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
        // Writing to a string cannot fail.
        writeln!(told, "---- {title}\n{text}").ok();
    };
    tell("pods", &["-n", namespace, "get", "pods", "-o", "wide"]);
    tell(
        "pairs",
        &[
            "-n",
            namespace,
            "get",
            "replicationpairs,replicationmembers,pairrecords",
            "-o",
            "yaml",
            "--show-managed-fields=false",
        ],
    );
    tell(
        "services",
        &["-n", namespace, "get", "services,endpointslices,persistentvolumeclaims,statefulsets", "-o", "wide"],
    );
    tell("events", &["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"]);
    tell("descriptions", &["-n", namespace, "describe", "pods"]);
    let pods = cluster.kubectl(&["-n", namespace, "get", "pods", "-o", "name"]).unwrap_or_default();
    for pod in pods.lines() {
        tell(&format!("log of {pod}"), &["-n", namespace, "logs", pod, "--all-containers", "--prefix", "--tail=150"]);
        tell(
            &format!("earlier log of {pod}"),
            &["-n", namespace, "logs", pod, "-c", "replicator", "--previous", "--tail=80"],
        );
    }
    for app in ["tandem-operator", "tandem-node"] {
        let label = format!("app.kubernetes.io/component={}", app.trim_start_matches("tandem-"));
        tell(&format!("log of {app}"), &["-n", "tandem-system", "logs", "-l", &label, "--prefix", "--tail=120"]);
    }
    told
}
