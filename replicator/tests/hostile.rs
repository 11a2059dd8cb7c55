//! A peer with a valid certificate that means harm. It speaks the real protocol to a real process and then misbehaves; the
//! process lives, says what was wrong, changes nothing beside its pair's files, and goes on with an honest peer.

#![allow(clippy::type_complexity, reason = "tables of what is tried")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test says what it expects by panicking

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::{Pair, append, judge};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection, SideData,
    StreamOwned,
};
use tandem_protocol::Position;
use tandem_protocol::handshake::{Hello, PROTOCOL};
use tandem_protocol::identity::{Generation, MemberName, Nonce, PairId, Span};
use tandem_protocol::member::event::Control;
use tandem_protocol::record::Request;
use tandem_replicator::journal::entry::{self, Header};
use tandem_replicator::link::frame::{Ack, HEADER_BYTES, Heartbeat, RecordsHeader, Type, header, parse_header};
use tandem_replicator::netcopy::{Ask, Blob, Item, Looks, Special, VERSION, to_bytes};
use tandem_replicator::op::codec::encode;
use tandem_replicator::op::{FileId, Kind, Op, ROOT, Stamp};

const PATIENCE: Duration = Duration::from_secs(20);
/// What a member may take more than before an attack.
const MEMORY_BYTES: u64 = 96 << 20;

trait Wire: Read + Write + Send {
    fn socket(&self) -> &TcpStream;
}

impl<C, S> Wire for StreamOwned<C, TcpStream>
where
    C: std::ops::DerefMut<Target = ConnectionCommon<S>> + Send,
    S: SideData + Send,
{
    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

/// The hostile end of a proven connection.
struct Peer {
    wire: Box<dyn Wire>,
}

fn certificates(folder: &Path) -> (RootCertStore, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(folder.join("ca.crt")).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let chain = CertificateDer::pem_file_iter(folder.join("tls.crt")).unwrap().map(Result::unwrap).collect();
    (roots, chain, PrivateKeyDer::from_pem_file(folder.join("tls.key")).unwrap())
}

impl Peer {
    /// As member `b` at the door of `a`.
    fn dial(pair: &Pair) -> Peer {
        let (roots, chain, key) = certificates(&pair.home("b").join("tls"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        let name = ServerName::try_from("a.orders.shop.pair.tandem.dev").unwrap();
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = TcpStream::connect(pair.address("a", 7470)).unwrap();
        Peer::begin(Box::new(StreamOwned::new(session, socket)))
    }

    /// As member `a` to whom `b` comes.
    fn answer(pair: &Pair, listener: &TcpListener) -> Peer {
        let started = Instant::now();
        loop {
            let (socket, _) = listener.accept().unwrap();
            let (roots, chain, key) = certificates(&pair.home("a").join("tls"));
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            let config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_client_cert_verifier(verifier.build().unwrap())
                .with_single_cert(chain, key)
                .unwrap();
            let session = ServerConnection::new(Arc::new(config)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut wire = StreamOwned::new(session, socket);
            // Who only wanted to know whether somebody is here says nothing.
            if wire.write_all(&[]).is_ok() && wire.conn.complete_io(&mut wire.sock).is_ok() {
                return Peer::begin(Box::new(wire));
            }
            assert!(started.elapsed() < PATIENCE, "b never came");
        }
    }

    fn begin(wire: Box<dyn Wire>) -> Peer {
        wire.socket().set_read_timeout(Some(PATIENCE)).unwrap();
        wire.socket().set_write_timeout(Some(PATIENCE)).unwrap();
        let mut peer = Peer { wire };
        peer.send(Type::Preface, &[0; 8]);
        let (kind, _) = peer.next().expect("the member's first frame");
        assert_eq!(kind, Type::Preface);
        peer
    }

    /// Raw bytes; says whether the other side still took them.
    fn say(&mut self, bytes: &[u8]) -> bool {
        self.wire.write_all(bytes).and_then(|()| self.wire.flush()).is_ok()
    }

    fn send(&mut self, kind: Type, payload: &[u8]) -> bool {
        let mut bytes = header(kind, payload.len()).to_vec();
        bytes.extend_from_slice(payload);
        self.say(&bytes)
    }

    fn control(&mut self, message: &Control) -> bool {
        self.send(Type::Control, &postcard::to_stdvec(message).unwrap())
    }

    fn items(&mut self, items: &Vec<Item>) -> bool {
        self.send(Type::Bulk, &to_bytes(items).unwrap())
    }

    /// The next frame; none when the connection is over.
    fn next(&mut self) -> Option<(Type, Vec<u8>)> {
        let mut head = [0; HEADER_BYTES];
        self.wire.read_exact(&mut head).ok()?;
        let (kind, length) = parse_header(&head).unwrap();
        let mut payload = vec![0; length];
        self.wire.read_exact(&mut payload).ok()?;
        Some((kind, payload))
    }

    /// The next control message that is not a sign of life.
    fn heard(&mut self) -> Option<Control> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let (kind, payload) = self.next()?;
            if kind == Type::Control {
                let message: Control = postcard::from_bytes(&payload).unwrap();
                if !matches!(message, Control::Heartbeat { .. }) {
                    return Some(message);
                }
            }
        }
        panic!("nothing but signs of life");
    }

    fn hello(&mut self) -> Hello {
        match self.heard() {
            Some(Control::Hello(hello)) => *hello,
            other => panic!("not a hello: {other:?}"),
        }
    }

    /// The member hangs up, whatever it still says before.
    fn is_cut_off(&mut self) -> bool {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if self.next().is_none() {
                return started.elapsed() < PATIENCE;
            }
        }
        false
    }
}

/// A member under attack, and what must not change around it.
struct Besieged {
    pair: Pair,
    member: &'static str,
    canary: PathBuf,
    own: BTreeMap<PathBuf, Vec<u8>>,
    memory: u64,
}

impl Besieged {
    fn new(mut pair: Pair, member: &'static str) -> Besieged {
        let canary = pair.home(member).join("canary");
        fs::write(&canary, "nobody may change this").unwrap();
        let memory = memory(&mut pair, member);
        let own = own_files(&pair.volume(member));
        Besieged { pair, member, canary, own, memory }
    }

    /// What was attacked lives, and nothing beside the pair's files changed.
    fn check(&mut self, attack: &str) {
        let member = self.member;
        let child = self.pair.child(member).as_mut().unwrap();
        assert!(child.try_wait().unwrap().is_none(), "{attack}: the member ended; {}", self.pair.story());
        assert_eq!(fs::read(&self.canary).unwrap(), b"nobody may change this", "{attack}");
        let mut names: Vec<_> = fs::read_dir(self.pair.home(member))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["canary", "log", "mount", "run", "tls", "volume"], "{attack}");
        for (path, content) in &self.own {
            assert_eq!(fs::read(path).ok().as_ref(), Some(content), "{attack}: {}", path.display());
        }
        let now = memory(&mut self.pair, member);
        assert!(now < self.memory + MEMORY_BYTES, "{attack}: {} MiB before, {} MiB now", self.memory >> 20, now >> 20);
        let log = fs::read_to_string(self.pair.home(member).join("log")).unwrap();
        assert!(!log.contains("panicked"), "{attack}: {}", self.pair.story());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.pair.home(self.member).join("log")).unwrap()
    }
}

/// Bytes of memory that a member's process takes.
fn memory(pair: &mut Pair, member: &str) -> u64 {
    let id = pair.child(member).as_ref().unwrap().id();
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// What a member remembers about itself and must not change because of a peer: its lock.
fn own_files(volume: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    ["lock"]
        .iter()
        .map(|name| volume.join(".tandem").join(name))
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect()
}

/// All files below a volume's root without Tandem's own, with what they hold.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![root.to_path_buf()];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            let relative = path.strip_prefix(root).unwrap().to_path_buf();
            if relative == Path::new(".tandem") || relative == Path::new("lost+found") {
                continue;
            }
            if kind.is_dir() {
                ahead.push(path);
                found.insert(relative, b"a folder".to_vec());
            } else if kind.is_file() {
                found.insert(relative, fs::read(&path).unwrap());
            } else {
                found.insert(relative, format!("{kind:?}").into_bytes());
            }
        }
    }
    found
}

/// A pair in sync with some data.
fn pair() -> (Pair, u64) {
    let mut pair = Pair::new();
    pair.start("a");
    pair.wait_serving("a");
    pair.start("b");
    pair.wait_in_sync("a");
    let acknowledged = append(&pair.mount("a").join("log"), 0, 20);
    (pair, acknowledged)
}

fn hello_as(member: MemberName, pair: &Pair, theirs: &Hello) -> Hello {
    let record = pair.record();
    let generation = Generation { epoch: record.epoch, nonce: record.nonce };
    let leads = (member == MemberName::A).then_some(generation);
    let certificate = if member == MemberName::A { record.certified.a } else { record.certified.b };
    Hello {
        protocol: PROTOCOL,
        pair: record.pair,
        member,
        data_id: certificate.map(|certificate| certificate.data_id).unwrap_or_default(),
        boot: 1,
        promised: generation,
        leads,
        first: 1,
        end: theirs.end,
        history: theirs.history.clone(),
        inconsistent: false,
        unverified: false,
    }
}

#[test]
fn a_master_outlives_a_hostile_replicant() {
    let (mut pair, mut acknowledged) = pair();
    pair.stop("b");
    pair.wait("a to lead alone", || pair.shown("a")["serving"] == true);
    let mut besieged = Besieged::new(pair, "a");
    let file = besieged.pair.mount("a").join("log");

    // Bytes that are no frames.
    let mut broken = header(Type::Control, 4);
    broken[13] ^= 1;
    let mut version = header(Type::Control, 4);
    version[4] = 9;
    let seal = |mut head: [u8; HEADER_BYTES]| {
        let crc = crc32c::crc32c(&head[..12]);
        head[12..].copy_from_slice(&crc.to_le_bytes());
        head
    };
    let mut unknown = header(Type::Control, 4);
    unknown[5] = 200;
    let frames: [(&str, Vec<u8>); 9] = [
        ("does not speak the replication protocol", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("does not speak the replication protocol", broken.to_vec()),
        ("speaks version 9", seal(version).to_vec()),
        ("unknown type 200", seal(unknown).to_vec()),
        ("4294967295 bytes", header(Type::Bulk, u32::MAX as usize).to_vec()),
        ("4294967295 bytes", header(Type::Records, u32::MAX as usize).to_vec()),
        ("cannot be read", [header(Type::Control, 3).as_slice(), &[0xff; 3]].concat()),
        ("impossible contents", [header(Type::Ack, 24).as_slice(), &[9, 0, 0, 0, 0, 0, 0, 0], &[0xff; 16]].concat()),
        ("more than its window", [header(Type::Credit, 8).as_slice(), &[0xff; 8]].concat()),
    ];
    for (said, bytes) in &frames {
        let mut peer = Peer::dial(&besieged.pair);
        peer.say(bytes);
        assert!(peer.is_cut_off(), "{said}");
        besieged.pair.wait(said, || besieged.log().contains(said));
        besieged.check(said);
    }
    acknowledged = append(&file, acknowledged, 5);

    // Hellos of somebody else, or from another time.
    let changes: [(&str, fn(&mut Hello)); 6] = [
        ("another version", |hello| hello.protocol = 77),
        ("another pair", |hello| hello.pair = PairId(1)),
        ("this very member", |hello| hello.member = MemberName::A),
        ("two histories", |hello| hello.promised.nonce = Nonce(99)),
        ("an endless history", |hello| {
            let span = Span { generation: Generation { epoch: u64::MAX, nonce: Nonce(1) }, after: Position::default() };
            hello.history = vec![span; 3000];
        }),
        ("numbers at their end", |hello| {
            hello.end = Position { epoch: u64::MAX, seq: u64::MAX, chain: u64::MAX };
            (hello.first, hello.boot) = (u64::MAX, u64::MAX);
        }),
    ];
    for (what, change) in &changes {
        let mut peer = Peer::dial(&besieged.pair);
        let theirs = peer.hello();
        let mut mine = hello_as(MemberName::B, &besieged.pair, &theirs);
        change(&mut mine);
        peer.control(&Control::Hello(Box::new(mine)));
        let from = Position { epoch: u64::MAX, seq: u64::MAX, chain: 7 };
        peer.control(&Control::Follow { generation: theirs.promised, from });
        std::thread::sleep(Duration::from_millis(400));
        besieged.check(what);
    }
    acknowledged = append(&file, acknowledged, 5);

    // Follows from where nobody ever was, and acknowledges what was never sent.
    for seq in [u64::MAX, 1 << 63, 3] {
        let mut peer = Peer::dial(&besieged.pair);
        let theirs = peer.hello();
        peer.control(&Control::Hello(Box::new(hello_as(MemberName::B, &besieged.pair, &theirs))));
        peer.control(&Control::Follow { generation: theirs.promised, from: Position { epoch: 1, seq, chain: 7 } });
        peer.send(Type::Ack, &Ack { taken: u64::MAX, received: u64::MAX, durable: u64::MAX }.bytes());
        peer.send(Type::Nack, &[[1; 8], [0xff; 8]].concat());
        std::thread::sleep(Duration::from_millis(300));
        besieged.check("a position that never was");
    }
    let mut peer = Peer::dial(&besieged.pair);
    let theirs = peer.hello();
    peer.control(&Control::Hello(Box::new(hello_as(MemberName::B, &besieged.pair, &theirs))));
    peer.control(&Control::Follow { generation: theirs.promised, from: theirs.end });
    std::thread::sleep(Duration::from_millis(300));
    peer.send(Type::Ack, &Ack { taken: u64::MAX, received: u64::MAX, durable: u64::MAX }.bytes());
    assert!(peer.is_cut_off(), "a false acknowledgement");
    besieged.check("a false acknowledgement");

    // A copy is asked for, and answered with what nobody asked.
    for answer in [vec![0xff; 100], to_bytes(&tandem_replicator::netcopy::Reply::Complete).unwrap()] {
        let mut peer = Peer::dial(&besieged.pair);
        let theirs = peer.hello();
        peer.control(&Control::Hello(Box::new(hello_as(MemberName::B, &besieged.pair, &theirs))));
        peer.control(&Control::CopyMe { generation: theirs.promised });
        peer.send(Type::Bulk, &answer);
        assert!(peer.is_cut_off(), "an answer to nothing");
        besieged.check("an answer to nothing");
    }

    // More than anybody listens to: pieces of a copy without credit, records without a window, messages without end.
    let mut peer = Peer::dial(&besieged.pair);
    for _ in 0..8 {
        peer.send(Type::Bulk, &vec![0; 4 << 20]);
    }
    besieged.check("bulk without credit");
    drop(peer);
    let mut peer = Peer::dial(&besieged.pair);
    let frame = [RecordsHeader::default().bytes().as_slice(), &vec![0; 4 << 20]].concat();
    for _ in 0..40 {
        if !peer.send(Type::Records, &frame) {
            break;
        }
    }
    besieged.check("records without a window");
    drop(peer);
    let request = Request { id: "x".repeat(60_000), to: MemberName::B };
    let message = postcard::to_stdvec(&Control::Declined { request }).unwrap();
    let mut peer = Peer::dial(&besieged.pair);
    for _ in 0..10_000 {
        if !peer.send(Type::Control, &message) {
            break;
        }
    }
    besieged.check("a flood of long messages");
    let mut peer = Peer::dial(&besieged.pair);
    let beat = Heartbeat { sent: u64::MAX, echo: u64::MAX, grant: true };
    let many = [header(Type::Heartbeat, 24).as_slice(), beat.bytes().as_slice()].concat().repeat(1000);
    for _ in 0..1000 {
        if !peer.say(&many) {
            break;
        }
    }
    besieged.check("a flood of signs of life");

    // Half a connection, and one that speaks a byte at a time: neither keeps an honest peer out.
    let silent: Vec<_> = (0..64).map(|_| TcpStream::connect(besieged.pair.address("a", 7470)).unwrap()).collect();
    let mut slow = Peer::dial_when_there_is_room(&besieged.pair);
    for byte in header(Type::Control, 200_000) {
        slow.say(&[byte]);
    }
    acknowledged = append(&file, acknowledged, 5);
    besieged.pair.start("b");
    for _ in 0..20 {
        slow.say(&[0]);
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(silent);
    besieged.pair.wait_in_sync("a");
    acknowledged = append(&file, acknowledged, 20);
    besieged.check("an honest peer afterwards");
    judge(&file, acknowledged);
    besieged.pair.stop("a");
    besieged.pair.wait_serving("b");
    judge(&besieged.pair.mount("b").join("log"), acknowledged);
}

impl Peer {
    /// Others sit on the places for those who have not proven who they are.
    fn dial_when_there_is_room(pair: &Pair) -> Peer {
        let started = Instant::now();
        loop {
            let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Peer::dial(pair)));
            match tried {
                Ok(peer) => return peer,
                Err(_) => assert!(started.elapsed() < PATIENCE, "no place for the other member"),
            }
        }
    }
}

/// Records that go on after a position, as a master's journal would hold them.
fn records(before: &mut Position, ops: &[Op<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for op in ops {
        let encoded = encode(op).unwrap();
        bytes.extend(record(before, encoded.head(), encoded.payload));
    }
    bytes
}

/// One record of any bytes, with checksums and chain that hold.
fn record(before: &mut Position, head: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = head.len() + payload.len();
    let sum = entry::digest(head, payload);
    let header = Header::following(*before, before.epoch, Stamp::default(), head.len(), length, sum);
    *before = header.position();
    let mut bytes = header.bytes().to_vec();
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(payload);
    bytes.resize(entry::size(length), 0);
    bytes
}

/// A hostile master that `b` has agreed to follow.
struct Master {
    peer: Peer,
    generation: Generation,
    at: Position,
}

impl Master {
    fn followed(pair: &Pair, listener: &TcpListener) -> Master {
        let mut peer = Peer::answer(pair, listener);
        let theirs = peer.hello();
        peer.control(&Control::Hello(Box::new(hello_as(MemberName::A, pair, &theirs))));
        match peer.heard() {
            Some(Control::Follow { generation, from }) => Master { peer, generation, at: from },
            other => panic!("b does not follow: {other:?}; {}", pair.story()),
        }
    }

    fn header(&self, committed: u64) -> RecordsHeader {
        RecordsHeader {
            epoch: self.generation.epoch,
            nonce: self.generation.nonce.0,
            committed,
            sync: true,
            receipt: true,
        }
    }

    fn ship(&mut self, header: &RecordsHeader, records: &[u8]) -> bool {
        self.peer.send(Type::Records, &[header.bytes().as_slice(), records].concat())
    }

    /// What `b` answers to records: how far it is, or that it cannot.
    fn answer(&mut self, at_least: u64) -> Result<Ack, Vec<u8>> {
        loop {
            match self.peer.next() {
                Some((Type::Ack, payload)) => {
                    let ack = Ack::parse(&payload).unwrap();
                    if ack.durable >= at_least {
                        return Ok(ack);
                    }
                }
                Some((Type::Nack, payload)) => return Err(payload),
                Some(_) => {}
                None => return Err(Vec::new()),
            }
        }
    }
}

/// `b` alone, in sync until now, and somebody else at the address of `a`.
fn orphaned() -> (Besieged, TcpListener) {
    let (mut pair, _) = pair();
    // Nobody takes over while the other one is played.
    pair.wish("b", serde_json::json!({"hold": ["h"]}));
    std::thread::sleep(Duration::from_millis(500));
    pair.kill("a");
    let listener = TcpListener::bind(pair.address("a", 7470)).unwrap();
    (Besieged::new(pair, "b"), listener)
}

/// The honest member comes back, and both hold the same.
fn reconciled(mut besieged: Besieged, listener: TcpListener) {
    drop(listener);
    besieged.pair.start("a");
    besieged.pair.wait_serving("a");
    besieged.pair.wait_in_sync("a");
    besieged.pair.wish("b", serde_json::json!({}));
    let file = besieged.pair.mount("a").join("log");
    append(&file, 20, 20);
    besieged.check("an honest peer afterwards");
    let (a, b) = (besieged.pair.volume("a"), besieged.pair.volume("b"));
    besieged.pair.wait("both to hold the same", || tree(&a) == tree(&b));
    judge(&b.join("log"), 40);
}

#[test]
fn a_replicant_takes_no_records_that_cannot_be() {
    let (mut besieged, listener) = orphaned();
    let before = tree(&besieged.pair.volume("b"));
    let name = b"nnnnnn";
    let create = Op::Create { id: FileId(1 << 30), parent: ROOT, name, kind: Kind::File, mode: 0o600, uid: 0, gid: 0 };
    let good = encode(&create).unwrap();
    let renamed = |name: &[u8; 6]| {
        let mut head = good.head().to_vec();
        let at = head.windows(6).position(|window| window == b"nnnnnn").unwrap();
        head[at..at + 6].copy_from_slice(name);
        head
    };
    let numbered = |at: usize, number: u64| {
        let mut head = good.head().to_vec();
        head[at..at + 8].copy_from_slice(&number.to_le_bytes());
        head
    };
    let write = |offset: u64| {
        let op = Op::Write { id: FileId(2), offset: 0, data: b"" };
        let mut head = encode(&op).unwrap().head().to_vec();
        head[9..17].copy_from_slice(&offset.to_le_bytes());
        head
    };
    let hostile: [(&str, Vec<u8>, Vec<u8>); 9] = [
        ("a name with a slash", renamed(b"../can"), Vec::new()),
        ("a name with a zero", renamed(b"nn\0nnn"), Vec::new()),
        ("a file without an id", numbered(1, 0), Vec::new()),
        ("the last id of all", numbered(1, u64::MAX), Vec::new()),
        ("a parent without an id", numbered(9, 0), Vec::new()),
        ("an offset beyond the end", write(u64::MAX), b"x".to_vec()),
        ("an offset that overflows", write(i64::MAX as u64), b"x".to_vec()),
        ("an unknown operation", vec![99], Vec::new()),
        ("bulk where none belongs", good.head().to_vec(), vec![0; 100]),
    ];
    for (what, head, payload) in &hostile {
        let mut master = Master::followed(&besieged.pair, &listener);
        let mut at = master.at;
        let bytes = record(&mut at, head, payload);
        master.ship(&master.header(at.seq), &bytes);
        let answer = master.answer(at.seq);
        assert!(answer.is_err(), "{what}: {answer:?}");
        besieged.check(what);
    }
    // Genuine records of another time, place or history.
    let changes: [(&str, fn(&mut Position, &mut RecordsHeader)); 7] = [
        ("a gap", |at, _| at.seq += 5),
        ("what was before", |at, _| at.seq -= 2),
        ("another chain", |at, _| at.chain ^= 1),
        ("an epoch that is over", |at, header| (at.epoch, header.epoch) = (0, 0)),
        ("another nonce", |_, header| header.nonce ^= 1),
        ("an epoch that nobody promised", |_, header| header.epoch += 1),
        ("the end of all numbers", |at, _| at.seq = u64::MAX - 1),
    ];
    for (what, change) in &changes {
        let mut master = Master::followed(&besieged.pair, &listener);
        let (mut at, mut header) = (master.at, master.header(u64::MAX));
        change(&mut at, &mut header);
        let seq = master.at.seq + 1;
        let bytes = records(&mut at, &[Op::Drop { id: FileId(9) }]);
        master.ship(&header, &bytes);
        let answer = master.answer(seq);
        assert!(answer.is_err(), "{what}: {answer:?}");
        besieged.check(what);
    }
    assert_eq!(tree(&besieged.pair.volume("b")), before);
    reconciled(besieged, listener);
}

#[test]
fn a_replicant_outlives_records_that_cannot_be_performed() {
    let (mut besieged, mut listener) = orphaned();
    let id = FileId(1 << 30);
    let create = |name, kind| Op::Create { id, parent: ROOT, name, kind, mode: 0o644, uid: 0, gid: 0 };
    let other = FileId(u64::from(u32::MAX));
    let hostile: [(&str, Vec<Op<'_>>); 7] = [
        ("a device", vec![create(b"device", Kind::Block(0x801))]),
        ("Tandem's own folder", vec![create(b".tandem", Kind::Directory)]),
        ("a file that does not exist", vec![Op::Write { id: other, offset: 0, data: b"x" }]),
        (
            "below a link",
            vec![
                create(b"way-out", Kind::Symlink(b"..")),
                Op::Create { id: other, parent: id, name: b"canary", kind: Kind::File, mode: 0o666, uid: 0, gid: 0 },
            ],
        ),
        (
            "through a link",
            vec![create(b"through", Kind::Symlink(b"../canary")), Op::Write { id, offset: 0, data: b"changed" }],
        ),
        (
            "rights by attribute",
            vec![create(b"capable", Kind::File), Op::SetXattr { id, name: b"security.capability", value: &[1; 20] }],
        ),
        (
            "an attribute of the kernel",
            vec![create(b"trusted", Kind::File), Op::SetXattr { id, name: b"trusted.overlay.opaque", value: b"y" }],
        ),
    ];
    for (what, ops) in &hostile {
        let mut master = Master::followed(&besieged.pair, &listener);
        let mut at = master.at;
        let bytes = records(&mut at, ops);
        master.ship(&master.header(at.seq), &bytes);
        master.ship(&master.header(at.seq), &[]);
        // It finds out when it performs them, and wants everything anew.
        loop {
            match master.peer.heard() {
                Some(Control::CopyMe { .. }) => break,
                Some(_) => {}
                None => panic!("{what}: {}", besieged.pair.story()),
            }
        }
        besieged.check(what);
        // From a master that is one it gets it.
        drop((master, listener));
        besieged.pair.start("a");
        besieged.pair.wait_serving("a");
        besieged.pair.wait_in_sync("a");
        assert!(!tree(&besieged.pair.volume("b")).keys().any(|path| path != Path::new("log")), "{what}");
        besieged.pair.kill("a");
        listener = TcpListener::bind(besieged.pair.address("a", 7470)).unwrap();
    }
    reconciled(besieged, listener);
}

#[test]
fn a_copy_from_a_hostile_master_changes_only_the_volume() {
    let (mut besieged, listener) = orphaned();
    let position = Position { epoch: 1, seq: 5000, chain: 1 };
    let list = |nodes: &[(u8, u64)], folders: &[(u64, &[(u64, u64, &[u8])])], position: Position| {
        let mut bytes = b"TNDIDS01".to_vec();
        for number in [position.epoch, position.seq, position.chain, 100, nodes.len() as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for (kind, id) in nodes {
            bytes.extend([*kind, 0]);
            for number in [*id, 0, 0, 0, 0] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        for (parent, entries) in folders {
            for number in [*parent, 90, entries.len() as u64] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            for (cookie, id, name) in *entries {
                bytes.extend_from_slice(&cookie.to_le_bytes());
                bytes.extend_from_slice(&id.to_le_bytes());
                bytes.push(name.len() as u8);
                bytes.extend_from_slice(name);
            }
        }
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(sum.as_bytes());
        bytes
    };
    let (file, folder) = (0, 1);
    let with_name = |name: &'static [u8]| list(&[(folder, 1), (file, 2)], &[(1, &[(3, 2, name)])], position);
    let far = Position { epoch: u64::MAX, seq: u64::MAX, chain: 0 };
    let lists: Vec<(&str, Vec<u8>, Position)> = vec![
        ("no list", vec![7; 100], position),
        ("a name that leads out", with_name(b"../canary"), position),
        ("the folder above", with_name(b".."), position),
        ("Tandem's own folder", with_name(b".tandem"), position),
        ("no name", with_name(b""), position),
        (
            "two of one name",
            list(&[(folder, 1), (file, 2), (file, 3)], &[(1, &[(3, 2, b"x"), (4, 3, b"x")])], position),
            position,
        ),
        (
            "a parent that is not there",
            list(&[(folder, 1), (folder, 2)], &[(1, &[]), (9, &[(3, 2, b"x")])], position),
            position,
        ),
        (
            "the root as a child",
            list(&[(folder, 1), (folder, 2)], &[(1, &[(3, 2, b"x")]), (2, &[(3, 1, b"y")])], position),
            position,
        ),
        (
            "a circle",
            list(
                &[(folder, 1), (folder, 2), (folder, 3)],
                &[(1, &[]), (2, &[(3, 3, b"x")]), (3, &[(3, 2, b"y")])],
                position,
            ),
            position,
        ),
        ("a place that nobody sees", list(&[(folder, 1), (file, 2)], &[(1, &[(0, 2, b"x")])], position), position),
        (
            "more files than bytes",
            {
                let mut bytes = list(&[(folder, 1)], &[(1, &[])], position);
                let end = bytes.len() - 32;
                bytes.truncate(end);
                bytes[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
                let sum = blake3::hash(&bytes);
                bytes.extend_from_slice(sum.as_bytes());
                bytes
            },
            position,
        ),
        ("a device", list(&[(folder, 1), (6, 2)], &[(1, &[(3, 2, b"x")])], position), position),
        ("the end of all numbers", list(&[(folder, 1)], &[(1, &[])], far), far),
    ];
    let copied = |besieged: &mut Besieged| {
        let mut peer = Peer::answer(&besieged.pair, &listener);
        let theirs = peer.hello();
        let mut mine = hello_as(MemberName::A, &besieged.pair, &theirs);
        (mine.first, mine.end) = (position.seq, position);
        peer.control(&Control::Hello(Box::new(mine)));
        loop {
            match peer.heard() {
                Some(Control::CopyMe { .. }) => return peer,
                Some(_) => {}
                None => panic!("b asks for no copy: {}", besieged.pair.story()),
            }
        }
    };
    for (what, list, position) in lists {
        let mut peer = copied(&mut besieged);
        let begin = Item::Begin { version: VERSION, position, manifest_bytes: list.len() as u64 };
        peer.items(&vec![begin, Item::Manifest(Blob(list)), Item::Arrange]);
        peer.items(&vec![Item::End { files: 1, digest: [0; 32], through: 0 }]);
        assert!(peer.is_cut_off(), "{what}");
        besieged.check(what);
    }
    let looks = |id| Item::Looks(Looks { id, mode: 0o644, uid: 0, gid: 0, xattrs: Vec::new() });
    let link = (FileId(3), Special::Symlink(Blob(b"../../canary".to_vec())));
    let ends: [(&str, Vec<Item>); 9] = [
        ("no steps in order", vec![Item::Arrange]),
        ("endless list", vec![Item::Begin { version: VERSION, position, manifest_bytes: u64::MAX }]),
        ("another version", vec![Item::Begin { version: 99, position, manifest_bytes: 9 }]),
        ("files out of order", vec![looks(FileId(2))]),
        ("content of no file", vec![looks(ROOT), Item::Data { offset: 0, data: Blob(vec![1]) }]),
        (
            "content that overflows",
            vec![looks(ROOT), looks(FileId(2)), Item::Data { offset: 1 << 63, data: Blob(vec![1]) }],
        ),
        (
            "an attribute that gives rights",
            vec![Item::Looks(Looks {
                id: ROOT,
                mode: 0,
                uid: 0,
                gid: 0,
                xattrs: vec![(Blob(b"security.capability".to_vec()), Blob(vec![1; 20]))],
            })],
        ),
        ("questions without end", vec![Item::Compare(vec![Ask { id: FileId(2), first: 0, count: u32::MAX }; 4000])]),
        (
            "content through a link",
            vec![looks(ROOT), looks(FileId(2)), looks(FileId(3)), Item::Data { offset: 0, data: Blob(vec![1]) }],
        ),
    ];
    for (what, items) in ends {
        let mut peer = copied(&mut besieged);
        if !["no steps in order", "endless list", "another version"].contains(&what) {
            let list = list(&[(folder, 1), (file, 2), (2, 3)], &[(1, &[(3, 2, b"x"), (4, 3, b"link")])], position);
            let begin = Item::Begin { version: VERSION, position, manifest_bytes: list.len() as u64 };
            peer.items(&vec![begin, Item::Manifest(Blob(list)), Item::Specials(vec![link.clone()]), Item::Arrange]);
        }
        peer.items(&items);
        assert!(peer.is_cut_off(), "{what}");
        besieged.check(what);
    }
    reconciled(besieged, listener);
}
