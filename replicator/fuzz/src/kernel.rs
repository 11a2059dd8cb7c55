//! Requests of the kernel, what was agreed with it, and the listings it gets.

use tandem_replicator::capture::wire::{
    Attr, Entry, IN_HEADER_LENGTH, Listing, Negotiated, Operation, parse, raw_unique,
};

use crate::bounded;
use crate::draw::Draw;

/// One input.
pub fn run(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    match draw.byte() % 8 {
        0 => agreed(draw.rest()),
        1 => listing(&mut draw),
        2 => request(draw.rest()),
        // The kernel never lies about the length.
        _ => {
            let mut message = draw.rest().to_vec();
            let length = (message.len() as u32).to_ne_bytes();
            if let Some(place) = message.get_mut(..4) {
                place.copy_from_slice(&length);
            }
            request(&message);
        }
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "only what carries names and bytes is looked at")]
fn request(message: &[u8]) {
    let Ok(parsed) = bounded(0, || parse(message)) else { return };
    assert_eq!(raw_unique(message), Some(parsed.raw_unique));
    let request = parsed.request;
    assert_eq!(request.message, message);
    assert!(request.unique >> 63 == 0);
    let body = message.len() - IN_HEADER_LENGTH;
    let (names, texts): (Vec<&[u8]>, Vec<&[u8]>) = match &request.operation {
        Operation::Lookup { name }
        | Operation::MakeNode { name, .. }
        | Operation::MakeDirectory { name, .. }
        | Operation::Unlink { name }
        | Operation::RemoveDirectory { name }
        | Operation::Link { name, .. }
        | Operation::Create { name, .. } => (vec![name], vec![]),
        Operation::Symlink { name, target } => (vec![name], vec![target]),
        Operation::Rename { name, new_name, .. } => (vec![name, new_name], vec![]),
        Operation::SetXattr { name, value, .. } => {
            assert!(value.len() < body);
            (vec![], vec![name])
        }
        Operation::GetXattr { name, .. } | Operation::RemoveXattr { name } => (vec![], vec![name]),
        Operation::Write { data, .. } => {
            assert!(data.len() < body);
            (vec![], vec![])
        }
        Operation::Forget(forgets) => {
            assert!(forgets.clone().count() <= body / 8);
            (vec![], vec![])
        }
        _ => (vec![], vec![]),
    };
    assert!(names.iter().all(|name| !name.is_empty() && !name.contains(&b'/')));
    assert!(names.iter().chain(&texts).all(|text| !text.contains(&0) && text.len() < body));
    // What a log shows of it must not panic either.
    assert!(!format!("{:?}", request.operation).is_empty());
}

fn agreed(bytes: &[u8]) {
    if let Some(agreed) = Negotiated::from_bytes(bytes) {
        assert_eq!(agreed.to_bytes().as_slice(), bytes);
    }
}

/// A listing is never longer than the kernel's buffer, and refuses what does not fit as a whole.
fn listing(draw: &mut Draw<'_>) {
    let size = draw.below(9000) as u32;
    let mut listing = Listing::new(size);
    let entry = Entry::found(Attr::default());
    for _ in 0..64 {
        if draw.is_empty() {
            break;
        }
        let before = listing.as_bytes().len();
        let name = draw.name();
        let taken =
            if draw.flag() { listing.push(1, 3, 8, name) } else { listing.push_plus(&entry, draw.number(), name) };
        let after = listing.as_bytes().len();
        assert!(after <= size as usize && after.is_multiple_of(8) && (after > before) == taken);
    }
}

/// Inputs that reach deep: every operation with a body of its own length.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (1..=52_u32)
        .map(|opcode| {
            let mut seed = vec![7];
            seed.extend_from_slice(&[0; 4]);
            seed.extend_from_slice(&opcode.to_ne_bytes());
            seed.extend_from_slice(&5_u64.to_ne_bytes());
            seed.extend_from_slice(&1_u64.to_ne_bytes());
            seed.extend_from_slice(&[0; 16]);
            // Numbers first, as in every structure, then names.
            seed.extend_from_slice(&[1; 16]);
            seed.extend_from_slice(b"name\0other\0");
            seed.extend_from_slice(&[0; 80]);
            seed
        })
        .collect();
    let agreed = Negotiated { minor: 45, max_readahead: 1 << 17, features: u64::MAX };
    seeds.push([&[0], agreed.to_bytes().as_slice()].concat());
    seeds.push([&[1, 0, 8], [0_u8; 60].as_slice()].concat());
    seeds
}
