//! What of a volume is left when the power goes: anything between the last checkpoint and now.

use tandem_protocol::Position;

use crate::checkpoint;
use crate::simulated::Histories;
use crate::volume::Volume;
use crate::volume::random::Dice;

/// Damages the volume as a power failure may: what was performed up to `applied` and is younger than the checkpoint may be
/// there, or not, or in part.
pub(super) fn cut(volume: &Volume, histories: &Histories, end: Position, applied: u64, dice: &mut Dice) {
    let Ok(Some(manifest)) = checkpoint::read(&volume.folder()) else { return };
    let Ok(begin) = manifest.position() else { return };
    let path = super::world::path_to(histories, end);
    let young = path.iter().filter(|position| position.seq > begin.seq && position.seq <= applied);
    let mut records = Vec::new();
    for position in young {
        let Some(found) = histories.get(&crate::simulated::key(*position)) else { return };
        records.push(found);
    }
    let ops: Vec<_> = records.iter().map(|record| (record.stamp, record.op())).collect();
    if !ops.is_empty() {
        crate::redo::damage::damage(volume, &manifest, &ops, dice);
    }
}
