//! Nodes go, stand still, or cannot be reached.

use crate::cluster::Cluster;
use crate::cluster::node::Node;
use crate::cluster::trouble::Keeps;
use crate::faults::dice::Dice;
use crate::faults::kinds::Account;
use crate::faults::subject::Subject;
use anyhow::Result;
use std::sync::Arc;
use std::time::Duration;

/// One of the nodes, and the member that it holds.
fn choose(cluster: &Cluster, dice: &mut Dice, account: &mut Account) -> Result<Node> {
    let (name, member) = *dice.one_of(&[("n1", "a"), ("n2", "b")]);
    account.node = Some(member);
    cluster.node(name)
}

fn pause(dice: &mut Dice, low: u64, high: u64) -> Duration {
    Duration::from_millis(dice.between(low * 1000, high * 1000))
}

pub(crate) fn power(cluster: &Cluster, _: &[Arc<Subject>], dice: &mut Dice, account: &mut Account) -> Result<()> {
    lose(cluster, Keeps::OnlySynced, dice, account)
}

pub(crate) fn processes(cluster: &Cluster, _: &[Arc<Subject>], dice: &mut Dice, account: &mut Account) -> Result<()> {
    lose(cluster, Keeps::Everything, dice, account)
}

fn lose(cluster: &Cluster, keeps: Keeps, dice: &mut Dice, account: &mut Account) -> Result<()> {
    let node = choose(cluster, dice, account)?;
    let away = pause(dice, 1, 12);
    account.note = format!("{}, off for {:.1} s", node.name, away.as_secs_f64());
    account.begin();
    node.kill(keeps)?;
    std::thread::sleep(away);
    node.start()?;
    cluster.wait_for_nodes()
}

/// The second one goes while what the first one missed is perhaps not there yet.
pub(crate) fn both(cluster: &Cluster, _: &[Arc<Subject>], dice: &mut Dice, account: &mut Account) -> Result<()> {
    let names = if dice.chance(50) { ["n1", "n2"] } else { ["n2", "n1"] };
    let between = pause(dice, 0, 10);
    account.note = format!("{} first, {:.1} s between its return and the other's end", names[0], between.as_secs_f64());
    account.begin();
    for (number, name) in names.into_iter().enumerate() {
        let node = cluster.node(name)?;
        node.kill(Keeps::OnlySynced)?;
        std::thread::sleep(pause(dice, 1, 8));
        node.start()?;
        if number == 0 {
            std::thread::sleep(between);
        }
    }
    cluster.wait_for_nodes()
}

pub(crate) fn cut_off(cluster: &Cluster, _: &[Arc<Subject>], dice: &mut Dice, account: &mut Account) -> Result<()> {
    let node = choose(cluster, dice, account)?;
    let away = pause(dice, 2, 15);
    account.note = format!("{}, {:.1} s", node.name, away.as_secs_f64());
    account.begin();
    node.set_link(false)?;
    std::thread::sleep(away);
    node.set_link(true)?;
    cluster.wait_for_nodes()
}

/// As when a virtual machine is paused.
pub(crate) fn frozen(cluster: &Cluster, _: &[Arc<Subject>], dice: &mut Dice, account: &mut Account) -> Result<()> {
    let node = choose(cluster, dice, account)?;
    let away = pause(dice, 1, 12);
    account.note = format!("{}, {:.1} s", node.name, away.as_secs_f64());
    account.begin();
    node.freeze(true)?;
    std::thread::sleep(away);
    node.freeze(false)?;
    cluster.wait_for_nodes()
}
