//! The kinds as Kubernetes reads them. One pass over what the derive makes: `nullable` goes (an explicit null would block defaulting), and nothing unsigned or unbounded stays.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use crate::v1alpha1::{PairRecord, ReplicationMember, ReplicationPair};

/// File names and contents of `crds/yaml`.
pub fn files() -> Result<Vec<(&'static str, String)>, serde_json::Error> {
    [
        ("replicationpairs.yaml", ReplicationPair::crd()),
        ("replicationmembers.yaml", ReplicationMember::crd()),
        ("pairrecords.yaml", PairRecord::crd()),
    ]
    .into_iter()
    .map(|(name, crd)| Ok((name, print(&crd)?)))
    .collect()
}

fn print(crd: &CustomResourceDefinition) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(crd)?;
    if let Some(versions) = value.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
                tidy(schema);
            }
        }
    }
    // serde_json's error type carries any text; there is no second error type for one call.
    serde_saphyr::to_string(&value).map_err(<serde_json::Error as serde::ser::Error>::custom)
}

fn tidy(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("nullable");
    if object.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
        object.remove("format");
    }
    // A regular Condition comes without the bounds that the Go types have.
    if object.get("type") == Some(&json!("string"))
        && !object.contains_key("maxLength")
        && !object.contains_key("enum")
        && object.get("format").is_none()
    {
        object.insert("maxLength".into(), json!(1024));
    }
    for key in ["properties", "patternProperties"] {
        if let Some(children) = object.get_mut(key).and_then(Value::as_object_mut) {
            children.values_mut().for_each(tidy);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = object.get_mut(key) {
            tidy(child);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_committed_yaml_is_what_the_types_say() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
        for (name, text) in files().expect("printable") {
            let committed = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
            assert!(committed == text, "crds/yaml/{name} is out of date: run `cargo run -p tandem-crds --bin crdgen`");
        }
    }

    fn each(schema: &Value, path: &str, check: &mut dyn FnMut(&str, &Value)) {
        check(path, schema);
        if let Some(children) = schema.get("properties").and_then(Value::as_object) {
            for (name, child) in children {
                each(child, &format!("{path}.{name}"), check);
            }
        }
        for key in ["items", "additionalProperties"] {
            if let Some(child) = schema.get(key).filter(|child| child.is_object()) {
                each(child, &format!("{path}[]"), check);
            }
        }
    }

    #[test]
    fn everything_is_signed_bounded_and_described() {
        for (name, text) in files().expect("printable") {
            let crd: Value = serde_saphyr::from_str(&text).expect("yaml");
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            each(schema, name, &mut |path, schema| {
                assert!(schema.get("nullable").is_none(), "{path}: nullable");
                match schema.get("type").and_then(Value::as_str) {
                    Some("array") => assert!(schema.get("maxItems").is_some(), "{path}: a list without a bound"),
                    Some("string") => assert!(
                        schema.get("maxLength").is_some()
                            || schema.get("enum").is_some()
                            || schema.get("format").is_some(),
                        "{path}: a string without a bound"
                    ),
                    Some("object") => assert!(
                        schema.get("additionalProperties").is_none() || schema.get("maxProperties").is_some(),
                        "{path}: a map without a bound"
                    ),
                    Some("integer") => assert!(
                        !schema.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with('u')),
                        "{path}: unsigned"
                    ),
                    _ => {}
                }
            });
        }
    }
}
