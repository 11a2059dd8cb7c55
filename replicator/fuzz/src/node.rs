//! What kubelet and the replicator say to the node plugin.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tandem_node::csi;
use tandem_node::grpc::{self, Service, Status};
use tandem_node::hpack::Decoder;
use tandem_node::registration::Registration;
use tandem_replicator::handover::{from_hex, to_hex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::bounded;
use crate::draw::Draw;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One input.
pub fn run(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    match draw.byte() % 6 {
        0 => headers(&mut draw),
        1 => hex(draw.rest()),
        2 => publication(draw.rest()),
        3 => connection(draw.rest().to_vec()),
        _ => frames(&mut draw),
    }
}

/// Blocks of headers on one connection: bounded, whatever they refer to.
fn headers(draw: &mut Draw<'_>) {
    let mut decoder = Decoder::default();
    for _ in 0..8 {
        if draw.is_empty() {
            break;
        }
        let block = draw.data();
        // A block's own bound, the table's, and what a single field may be before it is counted.
        let Ok(fields) = bounded(128 << 10, || decoder.decode(block)) else { break };
        let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        assert!(bytes <= 16 << 10);
    }
}

fn hex(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(found) = from_hex(text)
    {
        assert!(to_hex(&found).eq_ignore_ascii_case(&text.replace('+', "0")) || text.contains('+'));
        assert_eq!(from_hex(&to_hex(&found)), Some(found));
    }
}

/// What kubelet asks to be published. Names and places in it are judged where they are used.
fn publication(message: &[u8]) {
    let most = (16 << 10) + message.len() * 256;
    if let Ok(publication) = bounded(most, || csi::publication_in(message)) {
        assert!(!format!("{publication:?}").is_empty());
    }
}

/// Answers every call with what was asked, and counts the calls.
struct Echo {
    registration: Registration,
    calls: AtomicUsize,
}

impl Service for Echo {
    async fn call(&self, path: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.registration.call(path, message).await
    }
}

/// A whole connection. It ends, its answers are whole frames, and it never takes much memory.
fn connection(bytes: Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let most = (2 << 20) + bytes.len() * 16;
    let answer = bounded(most, || {
        runtime.block_on(async move {
            let (mine, theirs) = tokio::io::duplex(1 << 20);
            let registration = Registration { driver: "d".into(), endpoint: "e".into() };
            let service = Arc::new(Echo { registration, calls: AtomicUsize::new(0) });
            let serving = tokio::spawn(grpc::connection(theirs, Arc::clone(&service)));
            let (mut from, mut to) = tokio::io::split(mine);
            let writing = tokio::spawn(async move {
                // It may hang up before it has heard everything.
                to.write_all(&bytes).await.ok();
                to.shutdown().await.ok();
            });
            let mut answer = Vec::new();
            from.read_to_end(&mut answer).await.unwrap();
            writing.await.unwrap();
            serving.await.unwrap().ok();
            answer
        })
    });
    let mut rest = answer.as_slice();
    while let [l0, l1, l2, kind, _, _, _, _, _, after @ ..] = rest {
        let length = u32::from_be_bytes([0, *l0, *l1, *l2]) as usize;
        assert!(length <= 16_384 && *kind <= 9);
        rest = &after[length..];
    }
    assert!(rest.is_empty());
}

/// The same, of frames whose lengths hold.
fn frames(draw: &mut Draw<'_>) {
    let mut bytes = PREFACE.to_vec();
    while !draw.is_empty() {
        let (kind, flags, stream) = (draw.byte() % 11, draw.byte(), draw.byte());
        let payload = draw.data();
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
        bytes.extend_from_slice(payload);
    }
    connection(bytes);
}

/// Inputs that reach deep.
pub fn seeds() -> Vec<Vec<u8>> {
    let path = b"/pluginregistration.Registration/GetInfo";
    // A literal field: ":path" is entry 4 of the static table.
    let block = [&[4, path.len() as u8][..], path].concat();
    let headers = [&[4, 1, 4, 1, block.len() as u8], block.as_slice()].concat();
    let data = [4, 0, 1, 1, 5, 0, 0, 0, 0, 0];
    let call = [&headers[..], &data[1..]].concat();
    let split = [&[4, 1, 0, 1, 4], &block[..4], &[9, 4, 1, (block.len() - 4) as u8], &block[4..], &data[1..]].concat();
    let rfc = [0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
    let mut publish = Vec::new();
    for (tag, text) in [(1_u8, "csi-1"), (4, "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/data/mount")] {
        publish.extend([tag << 3 | 2, text.len() as u8]);
        publish.extend_from_slice(text.as_bytes());
    }
    for (key, value) in [
        ("csi.storage.k8s.io/pod.name", "orders-a-0"),
        ("csi.storage.k8s.io/pod.namespace", "shop"),
        ("csi.storage.k8s.io/pod.uid", "u"),
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("role", "data"),
    ] {
        let mut entry = vec![1 << 3 | 2, key.len() as u8];
        entry.extend_from_slice(key.as_bytes());
        entry.extend([2 << 3 | 2, value.len() as u8]);
        entry.extend_from_slice(value.as_bytes());
        publish.extend([8 << 3 | 2, entry.len() as u8]);
        publish.extend(entry);
    }
    // A field that is kept, then named again and again: nearly what a block may have, in few bytes.
    let kept = [&[0, 104, 0x40, 1, b'n', 100][..], &[b'v'; 100], &[110], &[0xbe; 110]].concat();
    vec![
        kept,
        [&[0, rfc.len() as u8], rfc.as_slice(), &[2, 0xbe, 0x20]].concat(),
        [&[1], b"00ff17".as_slice()].concat(),
        [&[2], publish.as_slice()].concat(),
        [&[3], PREFACE].concat(),
        call,
        split,
        // Settings, ping, window.
        vec![4, 4, 0, 0, 0, 6, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 8, 0, 0, 4, 0, 0, 1, 0],
    ]
}
