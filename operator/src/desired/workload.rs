//! A member's pod: the user's template with the sidecar and the gate before everything else, and the volume named `data`
//! provided by the node plugin. The user's containers see nothing of ours: not the claim, not the keys, not the token.

use super::access::account;
use super::network::{HEALTH, REPLICATION};
use super::{Kind, Object, Sidecar, object};
use crate::pair::{MEMBER, PAIR, ValidPair};
use serde_json::{Map, Value, json};
use tandem_crds::v1alpha1::MemberName;

/// After the application has ended the replicator hands over: it gets this much longer.
const HAND_OVER_SECONDS: i64 = 10;
/// What Kubernetes gives to a pod that says nothing.
const GRACE_SECONDS: i64 = 30;
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The StatefulSet of one member. Its pod is replaced only by deletion, in an order that somebody decides.
pub fn stateful_set(pair: &ValidPair, member: MemberName, volume_uid: &str, sidecar: &Sidecar) -> Object {
    let name = pair.member_object(member);
    let mut pod_labels = json!({PAIR: pair.name, MEMBER: member.letter()});
    overlay(&mut pod_labels, pair.pod_metadata.get("labels"));
    let mut metadata = json!({"labels": pod_labels});
    if let Some(annotations) = pair.pod_metadata.get("annotations") {
        metadata["annotations"] = annotations.clone();
    }
    let spec = json!({
        "replicas": 1,
        "serviceName": name,
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"},
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": {PAIR: pair.name, MEMBER: member.letter()}},
        "template": {"metadata": metadata, "spec": pod(pair, member, volume_uid, sidecar)},
    });
    object(pair, Kind::StatefulSet, name, Some(member), json!({"spec": spec}))
}

/// Adds what is missing; what is ours stays.
fn overlay(base: &mut Value, more: Option<&Value>) {
    if let (Some(base), Some(more)) = (base.as_object_mut(), more.and_then(Value::as_object)) {
        for (key, value) in more {
            base.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

fn pod(pair: &ValidPair, member: MemberName, volume_uid: &str, sidecar: &Sidecar) -> Value {
    let mut spec = pair.pod_spec.clone();
    let told = pair.spec.members.get(member).cloned().unwrap_or_default();
    let mut first = vec![replicator(pair, member, volume_uid, sidecar), gate(sidecar)];
    first.extend(array(&spec, "initContainers"));
    spec.insert("initContainers".into(), Value::Array(first));
    let mut volumes = array(&spec, "volumes");
    volumes.extend(volumes_of(pair, member));
    spec.insert("volumes".into(), Value::Array(volumes));
    spec.remove("serviceAccount");
    spec.insert("serviceAccountName".into(), json!(account(pair, member)));
    spec.insert("automountServiceAccountToken".into(), json!(false));
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(GRACE_SECONDS);
    spec.insert("terminationGracePeriodSeconds".into(), json!(grace.saturating_add(HAND_OVER_SECONDS)));
    if !told.node_selector.is_empty() {
        let mut selector = json!(told.node_selector);
        overlay(&mut selector, spec.get("nodeSelector"));
        spec.insert("nodeSelector".into(), selector);
    }
    if !told.tolerations.is_empty() {
        let mut tolerations = array(&spec, "tolerations");
        tolerations.extend(told.tolerations.iter().map(|toleration| json!(toleration)));
        spec.insert("tolerations".into(), Value::Array(tolerations));
    }
    let affinity = match told.affinity {
        Some(affinity) => json!(affinity),
        None => apart(pair, spec.get("affinity").cloned().unwrap_or_else(|| json!({}))),
    };
    spec.insert("affinity".into(), affinity);
    if let Some(context) = spec.get_mut("securityContext").and_then(Value::as_object_mut)
        && context.contains_key("fsGroup")
    {
        // Otherwise kubelet would change every file of the member's volume at each start, behind the replicator's back.
        context.insert("fsGroupChangePolicy".into(), json!("OnRootMismatch"));
    }
    Value::Object(spec)
}

fn array(spec: &Map<String, Value>, field: &str) -> Vec<Value> {
    spec.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// The two members never share a node.
fn apart(pair: &ValidPair, mut affinity: Value) -> Value {
    let term = json!({"labelSelector": {"matchLabels": {PAIR: pair.name}}, "topologyKey": HOSTNAME});
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let mut terms = affinity
        .pointer(&format!("/podAntiAffinity/{required}"))
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    terms.push(term);
    affinity["podAntiAffinity"][required] = Value::Array(terms);
    affinity
}

fn volumes_of(pair: &ValidPair, member: MemberName) -> Vec<Value> {
    let inline = |name: &str, role: &str, read_only: bool| json!({"name": name, "csi": {"driver": "tandem.dev", "readOnly": read_only, "volumeAttributes": {"role": role}}});
    vec![
        inline("data", "data", false),
        inline("tandem-control", "control", true),
        json!({"name": "tandem-backing", "persistentVolumeClaim": {"claimName": pair.claim(member)}}),
        json!({"name": "tandem-tls", "secret": {"secretName": pair.member_secret(member), "defaultMode": 0o400}}),
        // In memory: gone after a power failure, which is how the replicator knows that there was one.
        json!({"name": "tandem-run", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
        json!({"name": "tandem-token", "projected": {"defaultMode": 0o400, "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}),
    ]
}

fn replicator(pair: &ValidPair, member: MemberName, volume_uid: &str, sidecar: &Sidecar) -> Value {
    let value = |name: &str, value: &str| json!({"name": name, "value": value});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let peer = format!("{}.{}.svc", pair.member_object(member.other()), pair.namespace);
    let probe = |path: &str, period: i32, failures: i32| {
        json!({
            "httpGet": {"path": path, "port": HEALTH, "scheme": "HTTP"},
            "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5, "successThreshold": 1,
        })
    };
    json!({
        "name": "replicator",
        "image": sidecar.image,
        "imagePullPolicy": sidecar.pull_policy,
        "restartPolicy": "Always",
        "command": ["/replicator", "supervise"],
        "env": [
            value("TANDEM_NAMESPACE", &pair.namespace),
            value("TANDEM_PAIR", &pair.name),
            value("TANDEM_MEMBER", member.letter()),
            value("TANDEM_PEER_HOST", &peer),
            value("TANDEM_VOLUME_UID", volume_uid),
            field("TANDEM_POD", "metadata.name"),
            field("TANDEM_POD_UID", "metadata.uid"),
            field("TANDEM_NODE", "spec.nodeName"),
        ],
        "ports": [
            {"name": "replication", "containerPort": REPLICATION, "protocol": "TCP"},
            {"name": "tandem-http", "containerPort": HEALTH, "protocol": "TCP"},
        ],
        // Redo after a crash may take its time; an application without its files is no better off sooner.
        "startupProbe": probe("/started", 1, 600),
        "livenessProbe": probe("/live", 10, 6),
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "securityContext": {
            "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false, "privileged": false,
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            // To give files the owners that the application chose, and to read them whatever their rights.
            "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "tandem-backing", "mountPath": "/volume"},
            {"name": "tandem-control", "mountPath": "/control", "readOnly": true},
            {"name": "tandem-tls", "mountPath": "/tls", "readOnly": true},
            {"name": "tandem-run", "mountPath": "/run/tandem"},
            {"name": "tandem-token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true},
        ],
    })
}

fn gate(sidecar: &Sidecar) -> Value {
    json!({
        "name": "gate",
        "image": sidecar.image,
        "imagePullPolicy": sidecar.pull_policy,
        "command": ["/replicator", "gate"],
        "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}},
        "securityContext": {
            "runAsUser": 65532, "runAsGroup": 65532, "runAsNonRoot": true, "privileged": false,
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}
