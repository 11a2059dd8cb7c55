//! Pieces of Kubernetes that users write inside a pair: a pod template and a claim. They are kept as they were written (a newer Kubernetes may know more
//! fields than this program), while their schema names the parts that Tandem must look at, so that the API server itself refuses what cannot work.

use kube::core::{Rule, cel};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::borrow::Cow;

/// A pod template, as it was written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodTemplate(pub Value);

/// A claim template, as it was written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeClaim(pub Value);

fn text(max: u32) -> Value {
    json!({"type": "string", "maxLength": max})
}

/// An object of which only `properties` are looked at; the rest stays as written.
fn open(properties: Value) -> Value {
    json!({"type": "object", "properties": properties, "x-kubernetes-preserve-unknown-fields": true})
}

fn list(items: Value, max: u32) -> Value {
    json!({"type": "array", "items": items, "maxItems": max})
}

fn metadata() -> Value {
    let map = json!({"type": "object", "additionalProperties": text(1024), "maxProperties": 64});
    json!({"type": "object", "properties": {"labels": map, "annotations": map}, "description": "Labels and annotations; nothing else of the metadata can be chosen."})
}

fn container() -> Value {
    let mount = open(json!({
        "name": text(63), "mountPath": text(512), "subPath": text(512), "subPathExpr": text(512), "mountPropagation": text(32),
    }));
    let port = open(json!({
        "name": text(15), "containerPort": {"type": "integer", "minimum": 1, "maximum": 65535}, "protocol": text(8),
    }));
    let mut container = open(json!({
        "name": text(63), "image": text(1024), "restartPolicy": text(32),
        "volumeMounts": list(mount, 32), "ports": list(port, 32),
    }));
    container["required"] = json!(["name", "image"]);
    container
}

fn rule(schema: &mut Schema, expression: &str, message: &str) {
    // Adding a rule to an object schema cannot fail; if it ever did, the committed YAML would differ and the test would show it.
    let added = cel::validate(schema, Rule::new(expression).message(message));
    debug_assert!(added.is_ok(), "{added:?}");
}

/// The names of all containers. The two lists are of different types to CEL, so only what is taken out of them can be joined.
const NAMES: &str = "(self.spec.containers.map(c, c.name) + (has(self.spec.initContainers) ? self.spec.initContainers.map(c, c.name) : []))";

impl JsonSchema for PodTemplate {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "PodTemplate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut containers = list(container(), 16);
        containers["minItems"] = json!(1);
        let mut spec = open(json!({
            "containers": containers,
            "initContainers": list(container(), 16),
            "ephemeralContainers": list(open(json!({})), 16),
            "volumes": list(open(json!({"name": text(63), "persistentVolumeClaim": open(json!({"claimName": text(253)}))})), 32),
            "restartPolicy": text(32),
            "nodeName": text(253),
            "hostNetwork": {"type": "boolean"},
            "hostPID": {"type": "boolean"},
            "shareProcessNamespace": {"type": "boolean"},
            "automountServiceAccountToken": {"type": "boolean"},
            "terminationGracePeriodSeconds": {"type": "integer", "minimum": 1, "maximum": 86400},
        }));
        spec["required"] = json!(["containers"]);
        let mut schema = json_schema!({
            "type": "object",
            "properties": {"metadata": metadata(), "spec": spec},
            "required": ["spec"],
        });
        let all = |condition: &str| {
            let init = format!("!has(self.spec.initContainers) || self.spec.initContainers.all(c, {condition})");
            format!("self.spec.containers.all(c, {condition}) && ({init})")
        };
        let mounts = |condition: &str| all(&format!("!has(c.volumeMounts) || c.volumeMounts.all(m, {condition})"));
        let rules: [(String, &str); 16] = [
            (
                "self.spec.containers.exists(c, has(c.volumeMounts) && c.volumeMounts.exists(m, m.name == 'data'))".into(),
                "no container mounts the volume named data: without it nothing is replicated",
            ),
            (
                mounts("m.name != 'data' || (!has(m.subPath) && !has(m.subPathExpr))"),
                "subPath and subPathExpr cannot be used on the volume named data: mount the whole volume and use a folder in it",
            ),
            (
                mounts("m.name != 'data' || !has(m.mountPropagation) || m.mountPropagation == 'None'"),
                "mountPropagation cannot be used on the volume named data",
            ),
            (
                mounts("!m.name.startsWith('tandem-')"),
                "volumes named tandem-... belong to the replicator: writing to them behind its back would not be replicated; mount the volume named data",
            ),
            (
                all("c.name != 'replicator' && c.name != 'gate'"),
                "the container names replicator and gate are Tandem's own",
            ),
            (
                format!("{NAMES}.all(n, {NAMES}.filter(m, m == n).size() == 1)"),
                "two containers of the template have the same name",
            ),
            (
                "!has(self.spec.volumes) || self.spec.volumes.all(v, v.name != 'data' && !v.name.startsWith('tandem-'))".into(),
                "the volume names data and tandem-... are Tandem's own: leave the volume out, Tandem provides data",
            ),
            (
                all("!has(c.ports) || c.ports.all(p, !has(p.containerPort) || (p.containerPort != 7470 && p.containerPort != 7471))"),
                "the ports 7470 and 7471 are Tandem's own",
            ),
            (
                "!has(self.spec.restartPolicy) || self.spec.restartPolicy == 'Always'".into(),
                "restartPolicy must be Always: the application of a pair runs until it is told to stop",
            ),
            (
                "!has(self.spec.hostNetwork) || !self.spec.hostNetwork".into(),
                "hostNetwork cannot be used: each member needs an address of its own",
            ),
            (
                "(!has(self.spec.hostPID) || !self.spec.hostPID) && (!has(self.spec.shareProcessNamespace) || !self.spec.shareProcessNamespace)".into(),
                "hostPID and shareProcessNamespace cannot be used: the application must not reach the replicator's process",
            ),
            (
                "!has(self.spec.automountServiceAccountToken) || !self.spec.automountServiceAccountToken".into(),
                "automountServiceAccountToken would hand the replicator's rights to the application: mount a projected token of your own",
            ),
            (
                "!has(self.spec.nodeName)".into(),
                "nodeName cannot be used, both members would be bound to one node: use members.a.nodeSelector and members.b.nodeSelector",
            ),
            (
                "!has(self.spec.ephemeralContainers)".into(),
                "ephemeralContainers do not belong in a template",
            ),
            (
                mounts("has(m.name) && has(m.mountPath)"),
                "each volumeMount needs a name and a mountPath",
            ),
            (
                "!has(self.metadata) || !has(self.metadata.labels) || !self.metadata.labels.exists(k, k.startsWith('tandem.dev/'))".into(),
                "labels that begin with tandem.dev/ are Tandem's own",
            ),
        ];
        for (expression, message) in rules {
            rule(&mut schema, &expression, message);
        }
        schema
    }
}

impl JsonSchema for VolumeClaim {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "VolumeClaim".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let quantities = json!({
            "type": "object", "maxProperties": 8,
            "additionalProperties": {"x-kubernetes-int-or-string": true, "maxLength": 32, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        });
        let mut resources = open(json!({"requests": quantities}));
        resources["required"] = json!(["requests"]);
        let mut spec = open(json!({
            "accessModes": list(text(32), 4),
            "storageClassName": text(253),
            "volumeMode": text(32),
            "resources": resources,
        }));
        spec["required"] = json!(["resources"]);
        let mut schema = json_schema!({
            "type": "object",
            "properties": {"metadata": metadata(), "spec": spec},
            "required": ["spec"],
        });
        rule(
            &mut schema,
            "!has(self.spec.accessModes) || self.spec.accessModes.all(m, m == 'ReadWriteOnce' || m == 'ReadWriteOncePod')",
            "accessModes must be ReadWriteOncePod (or ReadWriteOnce): a volume that several pods can write cannot be protected from a forgotten writer",
        );
        rule(
            &mut schema,
            "!has(self.spec.volumeMode) || self.spec.volumeMode == 'Filesystem'",
            "volumeMode must be Filesystem: Tandem replicates files, not blocks",
        );
        rule(
            &mut schema,
            "'storage' in self.spec.resources.requests && isQuantity(string(self.spec.resources.requests['storage'])) && quantity(string(self.spec.resources.requests['storage'])).isGreaterThan(quantity('0'))",
            "resources.requests.storage must be a size above zero, such as 20Gi",
        );
        schema
    }
}

/// An object that is kept as written.
pub(super) fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A short list of objects that are kept as written.
pub(super) fn any_objects(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 32, "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}})
}

/// A bounded map of labels.
pub(super) fn small_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "maxProperties": 32, "additionalProperties": {"type": "string", "maxLength": 63}})
}

/// A transport protocol of a Service.
pub(super) fn protocol(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["TCP", "UDP"]})
}
