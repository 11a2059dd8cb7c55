//! Processes end at once, pods end in order.

use crate::cluster::wait;
use crate::faults::kinds::Account;
use crate::faults::subject::{Member, Scene, Subject};
use anyhow::{Result, ensure};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// A deletion that takes longer is a pod that is stuck.
const DELETED: Duration = Duration::from_secs(90);

pub(crate) fn application(subject: &Subject, scene: &Scene, account: &mut Account) -> Result<()> {
    let container = scene.master.container(subject.application())?;
    account.begin();
    scene.master.node.kill_container(container)
}

/// The process that answers the file system; its supervisor starts another.
pub(crate) fn serving(member: &Member, account: &mut Account) -> Result<()> {
    let container = member.container("replicator")?;
    account.begin();
    let count = member.node.signal(container, "serve", Signal::KILL)?;
    ensure!(count > 0, "{} has no serving process", member.name);
    Ok(())
}

/// The supervisor too: kubelet starts the container again.
pub(crate) fn sidecar(member: &Member, account: &mut Account) -> Result<()> {
    let container = member.container("replicator")?;
    account.begin();
    member.node.kill_container(container)
}

pub(crate) fn pod(member: &Member, account: &mut Account) -> Result<()> {
    account.begin();
    member.node.kill_pod(&member.uid)
}

pub(crate) fn delete(subject: &Subject, member: &Member, grace: Option<u32>, account: &mut Account) -> Result<()> {
    account.begin();
    let began = Instant::now();
    subject.door.delete(&subject.pod_path(&member.name), grace)?;
    let path = subject.pod_path(&member.name);
    wait(DELETED, &format!("pod {} to be gone", member.name), || {
        // Its name may already be used again.
        subject.door.get(&path).map_or_else(
            |error| format!("{error:#}").contains("not found"),
            |pod| pod["metadata"]["uid"].as_str() != Some(&member.uid),
        )
    })?;
    account
        .figures
        .push((if grace.is_some() { "pod deleted by force" } else { "pod deleted" }, began.elapsed().as_secs_f64()));
    Ok(())
}
