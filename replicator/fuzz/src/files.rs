//! The small files and objects that a member reads about itself and its pair.

use std::fs;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tandem_crds::translation::{content, record};
use tandem_crds::v1alpha1::{Netcopy, PairRecord, RecordContent, ReplicationMember};
use tandem_protocol::identity::{DataUuid, Identity, Nonce, PairId};
use tandem_protocol::{Record, Settings};
use tandem_replicator::identity::IdentityFile;
use tandem_replicator::manifest::Manifest;
use tandem_replicator::memory::Memory;
use tandem_replicator::op::codec::ID_MAX;
use tandem_replicator::{aside, checkpoint};

use crate::bounded;
use crate::draw::Draw;
use crate::netcopy::sealed_manifest;
use crate::place::{Place, canonical, check_survives};

/// One input.
pub fn run(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    match draw.byte() % 8 {
        0 => list(&seal(draw.rest())),
        1 => list(&sealed_manifest(&mut draw)),
        2 => member(draw.rest()),
        3 => remembered(draw.rest()),
        4 => saved_aside(draw.rest()),
        5 => object(draw.rest()),
        6 => text(draw.rest()),
        _ => {
            same::<Record>(draw.rest());
        }
    }
}

fn seal(content: &[u8]) -> Vec<u8> {
    let mut bytes = b"TNDIDS01".to_vec();
    bytes.extend_from_slice(content);
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

/// A list of files: what is taken for a tree is one, and stays the same when it is written and read again.
fn list(bytes: &[u8]) {
    let most = (64 << 10) + bytes.len() * 64;
    let Ok(manifest) = Manifest::from_bytes(bytes.to_vec()) else { return };
    let Ok(tree) = bounded(most, || manifest.tree()) else { return };
    check_survives(&tree);
    assert_eq!(canonical(&manifest.tree().unwrap()), canonical(&tree));
    // The application can go on: no id and no place in a directory is used up.
    assert!(tree.last_id() <= ID_MAX);
    for (_, node) in tree.nodes() {
        if let Some(directory) = node.directory() {
            assert!(i64::try_from(directory.next_cookie()).is_ok());
            assert_eq!(directory.after(2).count(), directory.entries().count(), "an entry that no listing shows");
        }
    }
    let place = Place::fresh("files");
    fs::write(place.volume().join(".tandem").join(checkpoint::FILE), bytes).unwrap();
    assert_eq!(checkpoint::read(&place.volume().join(".tandem")).unwrap(), Some(manifest));
}

/// The member's file, sealed: what it holds is the same when it is kept and read again.
fn member(content: &[u8]) {
    let place = Place::fresh("files");
    let folder = place.volume().join(".tandem");
    let file = IdentityFile::lock(&folder).unwrap();
    let mut bytes = b"TDMEMBER".to_vec();
    for word in [1, content.len() as u32, crc32c::crc32c(content)] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(content);
    fs::write(folder.join("member"), &bytes).unwrap();
    if let Ok(identity) = bounded((16 << 10) + content.len() * 128, || file.load::<Identity>()) {
        let identity = identity.unwrap();
        file.keep(&identity).unwrap();
        assert_eq!(file.load().unwrap(), Some(identity));
    }
    // As it came, without any seal.
    fs::write(folder.join("member"), content).unwrap();
    assert!(file.load::<Identity>().is_err());
}

fn remembered(content: &[u8]) {
    let place = Place::fresh("files");
    let folder = place.volume().join(".tandem");
    let memory = Memory::new(&folder);
    let written = [br#"{"version":1,"content":"#, content, b"}"].concat();
    for text in [content, &written] {
        fs::write(folder.join("netcopy.json"), text).unwrap();
        if let Ok(Some(copy)) = memory.recall::<Netcopy>("netcopy") {
            memory.keep("netcopy", &copy).unwrap();
            assert_eq!(memory.recall("netcopy").unwrap(), Some(copy));
        }
        if let Ok(Some(settings)) = memory.recall::<Settings>("netcopy") {
            memory.keep("settings", &settings).unwrap();
            assert_eq!(memory.recall("settings").unwrap(), Some(settings));
        }
    }
}

/// What a page says was saved is listed as it stands; nothing is looked for outside.
fn saved_aside(content: &[u8]) {
    let place = Place::fresh("files");
    let folder = place.volume().join(".tandem").join(aside::ASIDE).join("one");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("what-this-is.json"), content).unwrap();
    if let Ok(listed) = aside::list(&place.volume()) {
        assert_eq!(listed.len(), 1);
        same::<aside::Aside>(&serde_json::to_vec(&listed[0]).unwrap());
    }
    place.check_untouched();
}

/// JSON that can be read is the same when it is written and read again.
fn same<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(text: &[u8]) -> Option<T> {
    let found: T = serde_json::from_slice(text).ok()?;
    let written = serde_json::to_vec(&found).unwrap();
    assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), found);
    Some(found)
}

/// The record and a member's orders, as objects of the API.
fn object(text: &[u8]) {
    if let Ok(found) = serde_json::from_slice::<PairRecord>(text)
        && let Ok(known) = record(&found.spec)
    {
        assert_eq!(record(&content(&known)).unwrap(), known);
    }
    if let Ok(found) = serde_json::from_slice::<RecordContent>(text)
        && let Ok(known) = record(&found)
    {
        assert_eq!(record(&content(&known)).unwrap(), known);
    }
    if let Ok(found) = serde_json::from_slice::<ReplicationMember>(text) {
        let written = serde_json::to_vec(&found).unwrap();
        serde_json::from_slice::<ReplicationMember>(&written).unwrap();
    }
}

fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    macro_rules! survives {
        ($($kind:ty),*) => {$(
            if let Ok(found) = text.parse::<$kind>() {
                assert_eq!(found.to_string().parse::<$kind>().unwrap(), found);
            }
        )*};
    }
    survives!(PairId, DataUuid, Nonce);
}

/// Inputs that reach deep.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> =
        crate::netcopy::seeds().iter().map(|seed| [&[1], seed.get(1..).unwrap_or_default()].concat()).collect();
    let place = Place::fresh("files-seeds");
    let volume = tandem_replicator::volume::Volume::adopt(&place.volume(), Default::default()).unwrap();
    let bytes = volume.snapshot(Default::default()).bytes().to_vec();
    seeds.push([&[0], &bytes[8..bytes.len() - 32]].concat());
    let founded = Record::founded(PairId(1), tandem_protocol::identity::MemberName::A);
    seeds.push([&[7], serde_json::to_vec(&founded).unwrap().as_slice()].concat());
    let spec = content(&founded);
    seeds.push([&[5], serde_json::to_vec(&spec).unwrap().as_slice()].concat());
    seeds.push([&[5], serde_json::to_vec(&PairRecord::new("orders", spec)).unwrap().as_slice()].concat());
    seeds.push([&[6], PairId(u128::MAX).to_string().as_bytes()].concat());
    let settings = serde_json::to_vec(&Settings::default()).unwrap();
    seeds.push([&[3], settings.as_slice()].concat());
    seeds.push(b"\x03{\"id\":\"1\",\"phase\":\"Copying\",\"bytesDone\":1,\"bytesTotal\":2,\"failures\":0}".to_vec());
    let page = aside::Aside {
        name: "one".into(),
        reason: "because".into(),
        after: Default::default(),
        end: Default::default(),
        records: 1,
        files: [(2, "a/b".into())].into(),
    };
    seeds.push([&[4], serde_json::to_vec(&page).unwrap().as_slice()].concat());
    let identity = identity();
    seeds.push([&[2], postcard::to_stdvec(&identity).unwrap().as_slice()].concat());
    seeds
}

fn identity() -> Identity {
    Identity {
        pair: PairId(1),
        member: tandem_protocol::identity::MemberName::A,
        data_id: Default::default(),
        boot: 3,
        node_boot: "n".into(),
        promised: Default::default(),
        intent: 2,
        led: 1,
        leading: true,
        clean: false,
        volatile_acks: false,
        dirty: false,
        inconsistent: false,
        unverified: true,
        quarantine: Some(tandem_protocol::identity::Quarantine::NeedsSpace),
        seen: Default::default(),
        history: vec![tandem_protocol::identity::Span { generation: Default::default(), after: Default::default() }],
        served: None,
        testified: Some(Default::default()),
        unwitnessed: true,
    }
}
