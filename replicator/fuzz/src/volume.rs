//! Operations carried out on a real folder: whatever they ask for, only the volume changes, and it stays what the tree says.

use tandem_replicator::op::Stamp;
use tandem_replicator::op::codec::encode;
use tandem_replicator::volume::{Options, Volume};

use crate::draw::Draw;
use crate::operations::script;
use crate::place::Place;

/// One input.
pub fn run(bytes: &[u8]) {
    let place = Place::fresh("volume");
    let volume = Volume::adopt(&place.volume(), Options::default()).unwrap();
    let mut draw = Draw::new(bytes);
    draw.byte();
    for time in 0..32 {
        if draw.is_empty() {
            break;
        }
        let op = draw.op();
        // What cannot be encoded never comes over a wire.
        if encode(&op).is_ok() {
            // Refused or carried out; never half of it, as the comparison below finds out.
            volume.perform(&op, Stamp { time, unique: 0 }).ok();
        }
    }
    place.check_untouched();
    let snapshot = volume.snapshot(Default::default());
    let tree = snapshot.tree().unwrap();
    place.check_against(&tree);
    let next = volume.next_id();
    assert!(next.0 > 1 && tree.node(next).is_none(), "{next:?} is given out a second time");
    // A new life finds the same names.
    drop(volume);
    let adopted = Volume::adopt(&place.volume(), Options::default()).unwrap();
    place.check_against(&adopted.snapshot(Default::default()).tree().unwrap());
}

/// Inputs that reach deep.
pub fn seeds() -> Vec<Vec<u8>> {
    // A second name for a file, of which one goes.
    let linked = [&script()[..17], &[6, 2, 0, 2, 7, 2, 0, 3, 12, 2]].concat();
    vec![script(), linked]
}
