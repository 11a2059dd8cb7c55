//! What is made of a pair.

use super::*;
use crate::observed::Observed;
use crate::validate::validate;
use k8s_openapi::jiff::Timestamp;

fn pair(spec: Value) -> ValidPair {
    let mut whole = json!({
        "template": {
            "metadata": {"labels": {"app": "web", "tandem.dev/pair": "forged"}},
            "spec": {
                "containers": [{"name": "app", "image": "x", "ports": [{"containerPort": 80, "name": "web"}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "initContainers": [{"name": "prepare", "image": "x"}],
                "nodeSelector": {"disk": "fast", "kubernetes.io/hostname": "n9"},
                "securityContext": {"fsGroup": 999},
                "terminationGracePeriodSeconds": 60,
            },
        },
        "volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}},
        "members": {"a": {"nodeSelector": {"kubernetes.io/hostname": "n1"}}},
    });
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let object = serde_json::from_value(json!({
        "apiVersion": "tandem.dev/v1alpha1", "kind": "ReplicationPair", "spec": whole,
        "metadata": {"name": "orders", "namespace": "shop", "uid": "9f0c0000-1111-2222-3333-444444444444"},
    }));
    validate(&object.unwrap()).unwrap()
}

fn pod(pair: &ValidPair, member: MemberName) -> Value {
    let sidecar = Sidecar { image: "image".into(), pull_policy: "Never".into() };
    workload::stateful_set(pair, member, "claim-uid", &sidecar).content["spec"]["template"].clone()
}

#[test]
fn the_sidecar_and_the_gate_come_before_everything_of_the_user() {
    let pod = pod(&pair(json!({})), MemberName::A);
    let names: Vec<_> = pod["spec"]["initContainers"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["replicator", "gate", "prepare"]);
    assert_eq!(pod["spec"]["initContainers"][0]["restartPolicy"], "Always");
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 70);
    assert_eq!(pod["metadata"]["labels"], json!({"app": "web", "tandem.dev/pair": "orders", "tandem.dev/member": "a"}));
}

#[test]
fn the_users_containers_see_nothing_of_ours() {
    let pod = pod(&pair(json!({})), MemberName::A);
    let ours = ["tandem-backing", "tandem-control", "tandem-tls", "tandem-run", "tandem-token"];
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array().unwrap() {
            if container["name"] == "replicator" {
                continue;
            }
            let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            assert!(mounts.iter().all(|mount| !ours.contains(&mount["name"].as_str().unwrap())), "{container}");
        }
    }
    assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
}

#[test]
fn the_sidecar_is_unprivileged() {
    let pod = pod(&pair(json!({})), MemberName::A);
    let context = &pod["spec"]["initContainers"][0]["securityContext"];
    assert_eq!(context["privileged"], false);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(context["capabilities"]["add"], json!(["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD"]));
}

#[test]
fn a_members_own_placement_wins_and_the_two_never_share_a_node() {
    let pair = pair(json!({}));
    assert_eq!(
        pod(&pair, MemberName::A)["spec"]["nodeSelector"],
        json!({"disk": "fast", "kubernetes.io/hostname": "n1"})
    );
    assert_eq!(pod(&pair, MemberName::B)["spec"]["nodeSelector"]["kubernetes.io/hostname"], "n9");
    let term = &pod(&pair, MemberName::B)["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        [0];
    assert_eq!(term["labelSelector"]["matchLabels"], json!({"tandem.dev/pair": "orders"}));
}

#[test]
fn kubelet_does_not_walk_through_the_volume_at_each_start() {
    assert_eq!(
        pod(&pair(json!({})), MemberName::A)["spec"]["securityContext"]["fsGroupChangePolicy"],
        "OnRootMismatch"
    );
}

#[test]
fn claims_outlive_the_pair_unless_it_was_said_otherwise() {
    let kept = claim(&pair(json!({})), MemberName::A, "7");
    assert!(kept.content["metadata"].get("ownerReferences").is_none());
    assert_eq!(kept.content["spec"]["accessModes"], json!(["ReadWriteOncePod"]));
    assert_eq!(kept.content["metadata"]["annotations"]["tandem.dev/pair-id"], "7");
    let gone = claim(&pair(json!({"deletionPolicy": "Delete"})), MemberName::A, "7");
    assert_eq!(gone.content["metadata"]["ownerReferences"][0]["kind"], "ReplicationPair");
}

#[test]
fn rights_name_every_object_they_are_for() {
    for object in access::objects(&pair(json!({}))) {
        if object.kind == Kind::Role {
            for rule in object.content["rules"].as_array().unwrap() {
                assert_eq!(rule["resourceNames"].as_array().map(Vec::len), Some(1), "{rule}");
                assert!(!rule["verbs"].to_string().contains("delete") && !rule["verbs"].to_string().contains('*'));
            }
        }
    }
}

#[test]
fn the_users_own_account_gets_the_rights_when_there_is_one() {
    let mut named = pair(json!({}));
    named.pod_spec.insert("serviceAccountName".into(), json!("shopkeeper"));
    let made = access::objects(&named);
    assert!(made.iter().all(|object| object.kind != Kind::ServiceAccount));
    let binding = made.iter().find(|object| object.kind == Kind::RoleBinding).unwrap();
    assert_eq!(binding.content["subjects"][0]["name"], "shopkeeper");
    assert_eq!(pod(&named, MemberName::A)["spec"]["serviceAccountName"], "shopkeeper");
}

#[test]
fn the_selector_of_the_read_write_service_is_left_to_whoever_leads() {
    let service = network::objects(&pair(json!({}))).remove(0);
    assert_eq!(service.name, "orders");
    assert!(service.content["spec"].get("selector").is_none());
    assert_eq!(
        service.content["spec"]["ports"][0],
        json!({"name": "web", "port": 80, "targetPort": 80, "protocol": "TCP"})
    );
}

#[test]
fn no_workload_is_made_before_its_volume_is_known() {
    let pair = pair(json!({}));
    let sidecar = Sidecar { image: "i".into(), pull_policy: "Always".into() };
    let claims = PerMember { a: None, b: Some("uid".to_string()) };
    let made = workloads(&pair, &claims, &sidecar);
    assert_eq!(made.iter().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["orders-b"]);
    let plan = crate::decide::decide(&pair, &Observed::default(), Timestamp::UNIX_EPOCH);
    assert_eq!(record(&pair, &plan).unwrap().name, "orders");
    assert_eq!(surroundings(&pair, &plan).last().unwrap().content["spec"]["minAvailable"], 1);
}
