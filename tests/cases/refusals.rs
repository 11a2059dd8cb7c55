//! What cannot work is refused, with a sentence that says why, before anything is made.

use crate::{Case, Stage};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tandem_tests::pair::{PATIENCE, Pair, Wishes};

pub(crate) const CASES: &[Case] = &[
    ("bad_specs_are_refused", bad_specs),
    ("unknown_requests_are_refused", unknown_requests),
    ("strangers_are_refused", strangers),
    ("a_volume_of_another_pair_is_refused", volume_of_another_pair),
];

fn bad_specs(stage: &Stage<'_>) -> Result<()> {
    let container = |more: Value| {
        let mut base = json!({"name": "app", "image": "x", "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            base[key] = value;
        }
        json!({"template": {"spec": {"containers": [base]}}})
    };
    let pod = |more: Value| {
        let mut spec = json!({"containers": [{"name": "app", "image": "x", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]});
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            spec[key] = value;
        }
        json!({"template": {"spec": spec}})
    };
    let wrong: Vec<(&str, Value)> = vec![
        ("several writers", json!({"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteMany"]}}})),
        ("read-only volumes", json!({"volumeClaimTemplate": {"spec": {"accessModes": ["ReadOnlyMany"]}}})),
        ("no such member", json!({"preferredMaster": "c"})),
        ("no such protection", json!({"replication": {"protection": "Sometimes"}})),
        ("no such acknowledgement", json!({"replication": {"ackPolicy": "Perhaps"}})),
        ("a negative lag", json!({"replication": {"protection": "Async", "maxLagBytes": -1}})),
        ("a negative hold", json!({"replication": {"holdSeconds": -1}})),
        ("an interval of nothing", json!({"health": {"intervalMilliseconds": 0}})),
        ("no misses at all", json!({"health": {"missedLimit": 0}})),
        ("no such failover mode", json!({"failover": {"mode": "Maybe"}})),
        ("no such deletion policy", json!({"deletionPolicy": "Shred"})),
        ("no such management state", json!({"managementState": "Sleeping"})),
        ("founded by nobody", json!({"bootstrap": {"from": "c"}})),
        ("a word for a number", json!({"health": {"missedLimit": "five"}})),
        ("nobody may lead", json!({"members": {"a": {"electable": false}, "b": {"electable": false}}})),
        (
            "a sub-path of the data",
            container(json!({"volumeMounts": [{"name": "data", "mountPath": "/data", "subPath": "x"}]})),
        ),
        ("the data nowhere mounted", container(json!({"volumeMounts": []}))),
        (
            "the backing claim mounted",
            container(
                json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tandem-backing", "mountPath": "/b"}]}),
            ),
        ),
        ("our container's name", container(json!({"name": "replicator"}))),
        ("our gate's name", container(json!({"name": "gate"}))),
        ("a volume with our name", pod(json!({"volumes": [{"name": "tandem-control", "emptyDir": {}}]}))),
        ("a volume of its own named data", pod(json!({"volumes": [{"name": "data", "emptyDir": {}}]}))),
        ("a pod that is not restarted", pod(json!({"restartPolicy": "Never"}))),
        ("no containers", json!({"template": {"spec": {"containers": []}}})),
    ];
    // Without the kinds, or with a good pair refused, every refusal below would mean nothing.
    let good = Pair::apply_only(stage.cluster, stage.namespace, "good", &Wishes::default())?;
    good.kubectl(&["delete", "replicationpair", "good", "--wait=false"])?;
    let mut taken = Vec::new();
    for (what, spec) in &wrong {
        match Pair::apply_only(stage.cluster, stage.namespace, "wrong", &Wishes::spec(spec.clone())) {
            Ok(_) => {
                taken.push(*what);
                stage.cluster.kubectl(&[
                    "-n",
                    stage.namespace,
                    "delete",
                    "replicationpair",
                    "wrong",
                    "--wait=false",
                ])?;
            }
            Err(error) => println!(
                "  {what}: {}",
                format!("{error:#}").lines().last().unwrap_or_default().chars().take(200).collect::<String>()
            ),
        }
    }
    let long = "x".repeat(60);
    if Pair::apply_only(stage.cluster, stage.namespace, &long, &Wishes::default()).is_ok() {
        taken.push("a name too long for its pods");
    }
    ensure!(taken.is_empty(), "taken although they cannot work: {taken:?}");
    Ok(())
}

fn unknown_requests(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    pair.annotate("swichover", "t1")?;
    pair.wait_request("swichover", "t1", "Refused")?;
    pair.annotate("failback", "t2")?;
    // a leads already: there is nowhere to go back from.
    pair.wait(PATIENCE, "the needless failback to be answered", |pair| Ok(pair.request("failback", "t2")?.is_some()))?;
    ensure!(pair.active()? == "a", "a needless request moved the pair");
    Ok(())
}

/// Somebody in the cluster's network who is not the peer: garbage, silence, another pair's certificate.
fn strangers(stage: &Stage<'_>) -> Result<()> {
    let pair = Pair::apply(stage.cluster, stage.namespace, "orders", &Wishes::default())?;
    let other = Pair::apply(stage.cluster, stage.namespace, "other", &Wishes::default())?;
    pair.wait_in_sync("a")?;
    other.wait_in_sync("a")?;
    let epoch = pair.epoch()?;
    let load = pair.patient_load(1, 50)?;
    load.progress(20, PATIENCE)?;
    let mut silent = Vec::new();
    for member in ["a", "b"] {
        let address = format!("{}:7470", pair.pod_address(member)?);
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0x16, 0x03, 0x01, 0xff, 0xff, 0x01]] {
            let mut stream = TcpStream::connect(&address)?;
            // Whether it takes all of it is its own business.
            stream.write_all(garbage).ok();
        }
        for _ in 0..20 {
            silent.push(TcpStream::connect(&address)?);
        }
        // Made by Tandem, valid, and for another pair.
        let name = format!("{member}.orders.{}.pair.tandem.dev", stage.namespace);
        let refused =
            knock(&address, &name, &pair.get("secret", "orders-a-tls")?, &other.get("secret", "other-b-tls")?);
        ensure!(refused.is_err(), "a member of another pair was let in");
        println!(
            "  {member} to a member of another pair: {:#}",
            refused.err().map_or_else(String::new, |e| format!("{e:#}"))
        );
    }
    load.progress(50, PATIENCE)?;
    pair.wait_in_sync("a")?;
    ensure!(pair.epoch()? == epoch, "strangers disturbed the pair");
    ensure!(pair.restarts("a")? + pair.restarts("b")? == 0, "a stranger ended a replicator");
    drop(silent);
    let history = load.finish();
    let verdict = history.judge(&pair.records()?);
    verdict.clean()?;
    ensure!(verdict.refused + verdict.unknown == 0, "strangers cost writes");
    Ok(())
}

/// Speaks TLS, trusting whoever one Secret trusts, with the certificate of another, and waits for a first word.
fn knock(address: &str, name: &str, trust: &Value, identity: &Value) -> Result<()> {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    let part = |secret: &Value, key: &str| -> Result<Vec<u8>> {
        let text = secret["data"][key].as_str().context("the Secret lacks a part")?;
        Ok(serde_json::from_value::<k8s_openapi::ByteString>(text.into())?.0)
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&part(trust, "ca.crt")?)?)?;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let settings = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(&part(identity, "tls.crt")?)?],
            PrivateKeyDer::from_pem_slice(&part(identity, "tls.key")?)?,
        )?;
    let server = ServerName::try_from(name.to_string())?;
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(settings), server)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    // With TLS 1.3 a client learns only now what was thought of its certificate.
    let mut word = [0; 1];
    rustls::Stream::new(&mut connection, &mut stream).read_exact(&mut word).context("refused")
}

/// The volume that b gets was a member of another pair: nothing on it is touched, and it counts for nothing.
fn volume_of_another_pair(stage: &Stage<'_>) -> Result<()> {
    let first = Pair::apply(stage.cluster, stage.namespace, "first", &Wishes::default())?;
    first.wait_in_sync("a")?;
    let load = first.load(1, 0)?;
    load.progress(50, PATIENCE)?;
    let history = load.finish();
    first.wait_equal()?;
    first.kubectl(&["delete", "replicationpair", "first", "--timeout=180s"])?;
    first
        .wait(PATIENCE, "the pods to go", |pair| Ok(pair.kubectl(&["get", "pods", "-o", "name"])?.trim().is_empty()))?;

    let node = stage.cluster.node("n2")?;
    let volume = Pair::volume_for(stage.cluster, stage.namespace, "second", "b", 512)?;
    let [from, to] = [first.volume("b"), volume.clone()].map(|volume| node.path(&format!("/mnt/{volume}")));
    let (from, to) = (from?.join("."), to?);
    first.run("cp", &["-a", &from.display().to_string(), &to.display().to_string()])?;

    let second = Pair::apply(stage.cluster, stage.namespace, "second", &Wishes::default())?;
    second.wait(PATIENCE, "the volume to be known as another pair's", |pair| {
        Ok(pair.condition("ManualActionRequired")? == ("True".into(), "OtherPair".into()))
    })?;
    second.wait_active("a")?;
    ensure!(second.condition("InSync")?.0 != "True", "another pair's volume counts as a copy");
    let kept = std::fs::read_to_string(to.join("records/0"))?;
    let lines: Vec<String> = kept.lines().map(|k| format!("record 0 {k}")).collect();
    history.judge(&lines).clean()
}
