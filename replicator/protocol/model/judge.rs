//! What must hold in every state, in the words of the README's guarantees: I1 to I6, and the bound of Async. Judged from outside: the
//! judge sees both disks, the record and every acknowledgement, none of which a member sees whole.

use tandem_protocol::Position;
use tandem_protocol::member::{AckPolicy, Protection, StateName};

use crate::runs::Run;
use crate::world::{BOTH, World, name};

/// What the state breaks, if anything. I1, I3, I4 and I5 are about steps and are noted where the step is made.
pub(crate) fn verdict(run: &Run, world: &World) -> Option<&'static str> {
    let synchronous = run.lag.is_none();
    for of in BOTH {
        if synchronous && is_certified_without(run, world, of) {
            return Some("I2: a certified member lacks an acknowledged operation");
        }
        if synchronous && serves_without(world, of) {
            return Some("I2: the serving master lacks an acknowledged operation");
        }
    }
    let disks = [&world.nodes[0].disk, &world.nodes[1].disk];
    for op in world.acked.iter().chain(&world.given_up) {
        if world.destroyed.contains(op) {
            continue;
        }
        let copies = disks.iter().filter(|disk| disk.holds(op) || disk.aside.contains(op)).count();
        if copies == 0 {
            return Some("I6: an acknowledged operation is nowhere");
        }
        let two = run.settings.protection == Protection::MaxProtection && world.spent.disasters == 0;
        if two && copies < 2 {
            return Some("I2: of an acknowledged operation only one copy exists");
        }
    }
    None
}

/// Whoever is certified may be promoted at any moment, so it must hold everything acknowledged.
fn is_certified_without(run: &Run, world: &World, of: usize) -> bool {
    let node = &world.nodes[of];
    let Some(identity) = &node.disk.identity else { return false };
    let named = world.record.certified.get(name(of));
    // By name only, if that is the rule that was left out; and never a copy on a volume it was not made for.
    let certified = world.record.certifies(name(of), &identity.data_id)
        || (run.mutation == Some(tandem_protocol::member::Mutation::IdentityByName) && named.is_some() && node.alive);
    if !certified || identity.inconsistent || identity.quarantine.is_some() {
        return false;
    }
    let moved = identity.data_id.volume != format!("{}{}", name(of), node.disk.volume);
    // Where a start finds out what happened to the volume, it has to have started.
    if (moved || node.disk.rolled_back) && (!node.alive || world.state(of) == StateName::Starting) {
        return false;
    }
    let forgot = identity.dirty || (identity.volatile_acks && identity.node_boot != node.outages.to_string());
    if forgot && run.mutation != Some(tandem_protocol::member::Mutation::IgnoreDirty) {
        return false;
    }
    let safe = match run.settings.ack_policy {
        AckPolicy::Durable => &node.disk.journal[..node.disk.durable],
        AckPolicy::Received => &node.disk.journal[..],
    };
    world.acked.iter().any(|op| !safe.contains(op))
}

fn serves_without(world: &World, of: usize) -> bool {
    let node = &world.nodes[of];
    let newest = node.open == Some(world.record.epoch) && world.record.led_by(name(of));
    newest && world.acked.iter().any(|op| !node.disk.holds(op))
}

/// Async: what a new master does not have is counted, and forgotten by the judge; more than the bound breaks the promise.
pub(crate) fn account_for_lag(run: &Run, world: &mut World, of: usize) {
    let journal = world.nodes[of].disk.journal.clone();
    let (kept, lost): (Vec<Position>, Vec<Position>) = world.acked.iter().partition(|op| journal.contains(op));
    if lost.len() as u64 > run.lag.unwrap_or_default() {
        world.broken = Some("RPO: a failover lost more than the bound");
    }
    let last_kept = kept.iter().map(|op| op.seq).max().unwrap_or_default();
    if lost.iter().any(|op| op.seq <= last_kept) {
        world.broken = Some("RPO: what a failover lost is no tail");
    }
    world.acked = kept;
    world.given_up.extend(lost);
}

/// What a run must have met, so that nothing holds for lack of anything happening.
pub(crate) mod met {
    use crate::world::World;

    fn served(world: &World, of: u8) -> Option<u64> {
        world.ackers.iter().filter(|(_, by)| *by == of).map(|(epoch, _)| *epoch).max()
    }

    /// Both are certified, equal, and everything that was written is acknowledged.
    pub(crate) fn redundant(world: &World) -> bool {
        world.at_rest() && !world.acked.is_empty() && world.acked.len() == world.nodes[0].disk.journal.len()
    }

    /// Member b acknowledged something.
    pub(crate) fn failover(world: &World) -> bool {
        served(world, 1).is_some()
    }

    /// Member a did again, after b.
    pub(crate) fn failback(world: &World) -> bool {
        served(world, 1).is_some_and(|b| served(world, 0).is_some_and(|a| a > b))
    }

    /// A tail that was not to be kept is kept aside.
    pub(crate) fn saved(world: &World) -> bool {
        world.nodes.iter().any(|node| !node.disk.aside.is_empty())
    }
}
