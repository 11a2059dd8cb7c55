//! What must be true at the end, whatever went wrong: no acknowledged operation is lost, one member acknowledges in an
//! epoch, both members show the same, and it is what the history says.

use std::collections::{BTreeMap, HashSet};

use tandem_protocol::Position;
use tandem_protocol::member::settings::Protection;

use super::world::{World, path_to};
use crate::aside;
use crate::simulated::{Histories, key};
use crate::volume::random::picture;
use crate::volume::{Options, Volume};

/// What is wrong, if something is.
pub(super) fn judge(world: &World) -> Result<(), String> {
    let Some((end, [one, two])) = world.pictures() else { return Err("the members do not end together".into()) };
    let histories = world.histories.borrow();
    let path = path_to(&histories, end);
    if path.first().is_none_or(|first| first.seq != 0) {
        return Err(format!("the history of {end:?} does not begin at its beginning: {:?}", path.first()));
    }
    let kept: HashSet<_> = path.iter().map(|position| key(*position)).collect();
    acknowledged(world, &histories, &kept)?;
    saved(world, &histories, &kept)?;
    same("a and b", &one, &two)?;
    if world.is_blurred() {
        return Ok(());
    }
    let folder = tempfile::tempdir().unwrap();
    let reference = Volume::adopt(folder.path(), Options::default()).unwrap();
    for position in path.iter().skip(1) {
        let Some(found) = histories.get(&key(*position)) else { return Err("a hole in the history".into()) };
        if let Err(error) = reference.perform(&found.op(), found.stamp) {
            return Err(format!("the history cannot be performed: {position:?} {:?}: {error}", found.op()));
        }
    }
    let expected = picture(&reference);
    for (member, found) in [("a", &one), ("b", &two)] {
        same(&format!("the history and {member}"), &expected, found)?;
    }
    Ok(())
}

fn same(what: &str, one: &[String], other: &[String]) -> Result<(), String> {
    if let Some((line, (one, other))) = one.iter().zip(other).enumerate().find(|(_, (one, other))| one != other) {
        return Err(format!("{what} differ in line {line}:\n  {one}\n  {other}"));
    }
    if one.len() != other.len() {
        return Err(format!("{what} have {} and {} lines", one.len(), other.len()));
    }
    Ok(())
}

/// No acknowledged operation is lost, Async: no more than the bound; and in an epoch one member acknowledges.
fn acknowledged(world: &World, histories: &Histories, kept: &HashSet<(u64, u64, u64)>) -> Result<(), String> {
    let mut reigns = BTreeMap::new();
    for acked in world.acked.lock().iter() {
        let first = *reigns.entry(acked.position.epoch).or_insert(acked.member);
        if first != acked.member {
            return Err(format!("both members acknowledged in epoch {}", acked.position.epoch));
        }
        if kept.contains(&key(acked.position)) {
            continue;
        }
        let lost = bytes_off(histories, kept, acked.position);
        if world.settings.protection != Protection::Async {
            return Err(format!("{:?} was acknowledged and is lost, {lost} bytes", acked.position));
        }
        if lost > world.settings.max_lag_bytes {
            return Err(format!("{:?} was acknowledged, and {lost} bytes are lost", acked.position));
        }
    }
    Ok(())
}

/// Bytes of the records up to `at` that are not in the history.
fn bytes_off(histories: &Histories, kept: &HashSet<(u64, u64, u64)>, at: Position) -> u64 {
    let (mut at, mut bytes) = (at, 0);
    while !kept.contains(&key(at)) {
        let Some(found) = histories.get(&key(at)) else { break };
        bytes += found.bytes;
        at = found.before;
    }
    bytes
}

/// Whatever was acknowledged and given up lies aside, unless its disk was lost.
fn saved(world: &World, histories: &Histories, kept: &HashSet<(u64, u64, u64)>) -> Result<(), String> {
    let mut ends: Vec<Vec<aside::Aside>> = Vec::new();
    for member in 0..2 {
        let found = aside::list(&world.volume_path(member)).map_err(|error| format!("list what is aside: {error}"))?;
        ends.push(found);
    }
    for acked in world.acked.lock().iter() {
        if kept.contains(&key(acked.position)) || world.lost_disk(acked.member) {
            continue;
        }
        let covered = ends.iter().flatten().any(|saved| {
            // The saved tail holds it if it lies on the way to the tail's end.
            let mut at = saved.end;
            while at.seq > acked.position.seq {
                let Some(found) = histories.get(&key(at)) else { return false };
                at = found.before;
            }
            key(at) == key(acked.position)
        });
        if !covered {
            return Err(format!("{:?} was acknowledged, given up, and not saved aside", acked.position));
        }
    }
    Ok(())
}
