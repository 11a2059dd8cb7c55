//! Troubles of the control plane: the API server, the operators, the node plugins; and what else may happen meanwhile.

use crate::cluster::Cluster;
use crate::cluster::wait;
use crate::faults::dice::Dice;
use crate::faults::kinds::Account;
use crate::faults::one::processes;
use crate::faults::subject::{Scene, Subject};
use anyhow::{Context, Result};
use rustix::process::{Signal, kill_process};
use std::sync::Arc;
use std::time::Duration;

fn pause(dice: &mut Dice, low: u64, high: u64) -> Duration {
    Duration::from_millis(dice.between(low * 1000, high * 1000))
}

/// Does something while the API server is away, and brings it back whatever became of it.
fn without_api(
    cluster: &Cluster,
    time: Duration,
    account: &mut Account,
    meanwhile: impl FnOnce(&mut Account) -> Result<()>,
) -> Result<()> {
    cluster.stop_api_server()?;
    account.begin();
    let done = meanwhile(account);
    std::thread::sleep(time);
    cluster.resume_api_server()?;
    // Kubelets that were not heard for long count as lost until they are heard again.
    cluster.wait_for_nodes()?;
    cluster.wait_for_routes()?;
    done
}

/// Each pair's members, asked before the one who knows goes away.
fn scenes(subjects: &[Arc<Subject>]) -> Result<Vec<Scene>> {
    subjects.iter().map(|subject| subject.rest(Duration::from_secs(60))).collect()
}

pub(crate) fn api_away(cluster: &Cluster, _: &[Arc<Subject>], dice: &mut Dice, account: &mut Account) -> Result<()> {
    let time = pause(dice, 5, 20);
    account.note = format!("{:.1} s", time.as_secs_f64());
    without_api(cluster, time, account, |_| Ok(()))
}

pub(crate) fn api_away_applications(
    cluster: &Cluster,
    subjects: &[Arc<Subject>],
    dice: &mut Dice,
    account: &mut Account,
) -> Result<()> {
    let scenes = scenes(subjects)?;
    without_api(cluster, pause(dice, 5, 15), account, |account| {
        subjects.iter().zip(&scenes).try_for_each(|(subject, scene)| processes::application(subject, scene, account))
    })
}

/// Nobody can claim before it is back.
pub(crate) fn api_away_serving(
    cluster: &Cluster,
    subjects: &[Arc<Subject>],
    dice: &mut Dice,
    account: &mut Account,
) -> Result<()> {
    let (time, scenes) = (pause(dice, 1, 8), scenes(subjects)?);
    account.note = format!("{:.1} s", time.as_secs_f64());
    without_api(cluster, time, account, |account| {
        scenes.iter().try_for_each(|scene| processes::serving(&scene.master, account))
    })
}

/// It stands still several times: what is asked meanwhile is answered late, or done after nobody waits for it any more.
fn slowly(
    cluster: &Cluster,
    dice: &mut Dice,
    account: &mut Account,
    meanwhile: impl FnOnce(&mut Account) -> Result<()>,
) -> Result<()> {
    let times: Vec<u64> = (0..dice.between(2, 4)).map(|_| dice.between(1000, 7000)).collect();
    account.note = format!("stands still for {times:?} ms");
    account.begin();
    let (mut meanwhile, mut done) = (Some(meanwhile), Ok(()));
    for time in times {
        cluster.freeze_api_server(true)?;
        if let Some(meanwhile) = meanwhile.take() {
            done = meanwhile(account);
        }
        std::thread::sleep(Duration::from_millis(time));
        cluster.freeze_api_server(false)?;
        std::thread::sleep(Duration::from_millis(dice.between(100, 1500)));
    }
    cluster.wait_for_nodes()?;
    cluster.wait_for_routes()?;
    done
}

pub(crate) fn api_slow(cluster: &Cluster, _: &[Arc<Subject>], dice: &mut Dice, account: &mut Account) -> Result<()> {
    slowly(cluster, dice, account, |_| Ok(()))
}

pub(crate) fn api_slow_pods(
    cluster: &Cluster,
    subjects: &[Arc<Subject>],
    dice: &mut Dice,
    account: &mut Account,
) -> Result<()> {
    let scenes = scenes(subjects)?;
    slowly(cluster, dice, account, |account| scenes.iter().try_for_each(|scene| processes::pod(&scene.master, account)))
}

/// The containers of the product's own pods: the node's name and the id.
fn own(cluster: &Cluster, subjects: &[Arc<Subject>], component: &str) -> Result<Vec<(String, String)>> {
    let door = &subjects.first().context("a pair")?.door;
    let path = format!(
        "/api/v1/namespaces/tandem-system/pods?labelSelector=app.kubernetes.io%2Fcomponent%3D{component}&fieldSelector=status.phase%3DRunning"
    );
    let pods = door.get(&path)?["items"].take();
    let mut found = Vec::new();
    for pod in pods.as_array().cloned().unwrap_or_default() {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_string();
        let status = &pod["status"]["containerStatuses"][0];
        if let (Some(id), false) = (status["containerID"].as_str(), status["state"]["running"].is_null()) {
            found.push((cluster.node(&node)?.name.clone(), id.to_string()));
        }
    }
    Ok(found)
}

fn end(cluster: &Cluster, containers: &[(String, String)]) -> Result<()> {
    for (node, container) in containers {
        // One that has just ended by itself needs no killing.
        cluster.node(node)?.kill_container(container).ok();
    }
    Ok(())
}

fn system_is_ready(cluster: &Cluster) -> Result<()> {
    let system = |arguments: &[&str]| cluster.kubectl(&[&["-n", "tandem-system"], arguments].concat());
    for part in ["daemonset/tandem-node", "deployment/tandem-operator"] {
        system(&["rollout", "status", part, "--timeout=120s"])?;
    }
    Ok(())
}

pub(crate) fn operators_killed(
    cluster: &Cluster,
    subjects: &[Arc<Subject>],
    _: &mut Dice,
    account: &mut Account,
) -> Result<()> {
    let operators = own(cluster, subjects, "operator")?;
    account.begin();
    end(cluster, &operators)?;
    std::thread::sleep(Duration::from_secs(2));
    system_is_ready(cluster)
}

/// Everybody asks for a switchover, and the operators die at a moment in it.
pub(crate) fn operators_killed_in_switchover(
    cluster: &Cluster,
    subjects: &[Arc<Subject>],
    dice: &mut Dice,
    account: &mut Account,
) -> Result<()> {
    let operators = own(cluster, subjects, "operator")?;
    let token = ask_all(subjects, dice, account)?;
    std::thread::sleep(Duration::from_millis(dice.between(0, 1500)));
    end(cluster, &operators)?;
    system_is_ready(cluster)?;
    all_answered(subjects, &token)
}

fn ask_all(subjects: &[Arc<Subject>], dice: &mut Dice, account: &mut Account) -> Result<String> {
    let token = format!("t{}", dice.between(0, u64::MAX / 2));
    account.begin();
    subjects.iter().try_for_each(|subject| subject.annotate(&[("switchover", &token)]))?;
    Ok(token)
}

fn all_answered(subjects: &[Arc<Subject>], token: &str) -> Result<()> {
    for subject in subjects {
        wait(crate::pair::PATIENCE, &format!("the switchover of {} to be answered", subject.pair.name), || {
            subject.answer("switchover", token).is_ok_and(|answer| answer.is_some_and(|answer| answer != "Accepted"))
        })?;
    }
    Ok(())
}

/// The operator that acts stands still with work half done, and goes on when another one has long taken its place.
pub(crate) fn operator_paused(
    cluster: &Cluster,
    subjects: &[Arc<Subject>],
    dice: &mut Dice,
    account: &mut Account,
) -> Result<()> {
    let leader = leader(subjects)?;
    let acting = own_of(subjects, &leader)?;
    let mut operators = own(cluster, subjects, "operator")?;
    operators.retain(|(_, id)| *id == acting);
    let token = ask_all(subjects, dice, account)?;
    std::thread::sleep(Duration::from_millis(dice.between(0, 800)));
    // Beyond the end of its lease.
    let time = pause(dice, 18, 24);
    account.note = format!("{leader} for {:.1} s", time.as_secs_f64());
    for signal in [Signal::STOP, Signal::CONT] {
        for (node, container) in &operators {
            for process in cluster.node(node)?.container_processes(container).unwrap_or_default() {
                kill_process(process, signal).ok();
            }
        }
        if signal == Signal::STOP {
            std::thread::sleep(time);
        }
    }
    all_answered(subjects, &token)?;
    system_is_ready(cluster)
}

fn leader(subjects: &[Arc<Subject>]) -> Result<String> {
    let door = &subjects.first().context("a pair")?.door;
    let lease = door.get(LEASE)?;
    lease["spec"]["holderIdentity"].as_str().map(String::from).context("nobody holds the operators' lease")
}

fn own_of(subjects: &[Arc<Subject>], pod: &str) -> Result<String> {
    let door = &subjects.first().context("a pair")?.door;
    let pod = door.get(&format!("/api/v1/namespaces/tandem-system/pods/{pod}"))?;
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str();
    id.map(String::from).context("the acting operator's container")
}

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/tandem-system/leases/tandem-operator";

/// Their lease is deleted again and again, so that each of them believes that it is the one who acts, while everybody asks
/// for a switchover.
pub(crate) fn several_operators(
    _: &Cluster,
    subjects: &[Arc<Subject>],
    dice: &mut Dice,
    account: &mut Account,
) -> Result<()> {
    let door = &subjects.first().context("a pair")?.door;
    // Before the next renewal of one, the other one takes what is free.
    door.delete(LEASE, None)?;
    std::thread::sleep(Duration::from_millis(dice.between(0, 2000)));
    let token = ask_all(subjects, dice, account)?;
    for _ in 0..8 {
        // Somebody else may be faster.
        door.delete(LEASE, None).ok();
        std::thread::sleep(Duration::from_millis(dice.between(300, 1500)));
    }
    all_answered(subjects, &token)
}

pub(crate) fn plugins_killed(
    cluster: &Cluster,
    subjects: &[Arc<Subject>],
    _: &mut Dice,
    account: &mut Account,
) -> Result<()> {
    let plugins = own(cluster, subjects, "node")?;
    account.begin();
    end(cluster, &plugins)?;
    std::thread::sleep(Duration::from_secs(1));
    system_is_ready(cluster)
}

pub(crate) fn plugins_and_serving(
    cluster: &Cluster,
    subjects: &[Arc<Subject>],
    dice: &mut Dice,
    account: &mut Account,
) -> Result<()> {
    let (plugins, scenes) = (own(cluster, subjects, "node")?, scenes(subjects)?);
    let (first, between) = (dice.chance(50), Duration::from_millis(dice.between(0, 300)));
    account.begin();
    if first {
        end(cluster, &plugins)?;
        std::thread::sleep(between);
    }
    for scene in &scenes {
        processes::serving(&scene.master, account)?;
    }
    if !first {
        std::thread::sleep(between);
        end(cluster, &plugins)?;
    }
    std::thread::sleep(Duration::from_secs(1));
    system_is_ready(cluster)
}
