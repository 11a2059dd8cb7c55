//! Two journals over a real connection in one process: stream, break, resume, refuse. And who is not let in.

use std::net::SocketAddr;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::disk;
use crate::journal::{JournalError, Options};
use crate::link::{self, Evidence, Lanes, LinkEvent, LinkSettings, NackReason, TlsSettings, frame};
use crate::op::{FileId, Op, Stamp};
use crate::receive::{self, Following, ReceiveEvent};

const PAIR: [u8; 16] = *b"pair-of-the-test";
const PATIENCE: Duration = Duration::from_secs(20);
const A: &str = "a.orders.shop.pair.tandem.dev";
const B: &str = "b.orders.shop.pair.tandem.dev";

type Events = mpsc::UnboundedReceiver<LinkEvent<String>>;
type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A member's certificate folder.
fn certificates(authority: &Authority, trusts: &Authority, names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_string()).collect();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, authority).unwrap();
    std::fs::write(folder.path().join("ca.crt"), trusts.as_ref().pem()).unwrap();
    std::fs::write(folder.path().join("tls.crt"), leaf.pem()).unwrap();
    std::fs::write(folder.path().join("tls.key"), key.serialize_pem()).unwrap();
    folder
}

fn settings(listen: SocketAddr, peer: SocketAddr, dials: bool, folder: &Path, peer_name: &str) -> LinkSettings {
    LinkSettings {
        listen,
        peer: peer.to_string(),
        dials,
        tls: TlsSettings { folder: folder.to_path_buf(), peer_name: peer_name.into() },
        interval: Duration::from_millis(200),
        silence: Duration::from_secs(2),
    }
}

async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

struct End {
    link: LinkHandle,
    events: Events,
    lanes: Lanes,
    _certificates: TempDir,
}

async fn end(listen: SocketAddr, peer: SocketAddr, dials: bool, certificates: TempDir, peer_name: &str) -> End {
    let settings = settings(listen, peer, dials, certificates.path(), peer_name);
    let (link, events, lanes) = link::start(settings).await.unwrap();
    End { link, events, lanes, _certificates: certificates }
}

/// Both ends of a pair, not yet connected.
async fn pair() -> (End, End) {
    let (at_a, at_b) = (free_address().await, free_address().await);
    let authority = authority();
    let a = end(at_a, at_b, false, certificates(&authority, &authority, &[A]), B).await;
    let b = end(at_b, at_a, true, certificates(&authority, &authority, &[B]), A).await;
    (a, b)
}

async fn next(events: &mut Events) -> LinkEvent<String> {
    timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("the link lives")
}

async fn up(events: &mut Events) -> u64 {
    loop {
        if let LinkEvent::Up { session } = next(events).await {
            return session;
        }
    }
}

async fn down(events: &mut Events) -> (u64, Evidence) {
    loop {
        if let LinkEvent::Down { session, evidence, .. } = next(events).await {
            return (session, evidence);
        }
    }
}

/// A master's and a replicant's journal, and everything between them.
struct Stream {
    master: Arc<Journal>,
    replicant: Arc<Journal>,
    a: End,
    b_link: LinkHandle,
    b_events: Events,
    receiver: receive::Receiver,
    refused: mpsc::UnboundedReceiver<ReceiveEvent>,
    committed: Arc<AtomicU64>,
    /// Of the master, with a replicant that says nothing.
    patience: Duration,
    _folders: [TempDir; 2],
}

async fn stream(segment_bytes: u64) -> Stream {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let options = Options { segment_bytes, pair: PAIR };
    let master = Arc::new(Journal::open(folders[0].path(), options).unwrap().0);
    let replicant = Arc::new(Journal::open(folders[1].path(), options).unwrap().0);
    let (a, b) = pair().await;
    let committed = Arc::new(AtomicU64::new(0));
    let told = committed.clone();
    let (receiver, refused) = receive::receive(
        b.link.clone(),
        b.lanes.records,
        Box::new(move |seq| {
            told.fetch_max(seq, Ordering::AcqRel);
        }),
    )
    .unwrap();
    std::mem::forget(b._certificates);
    Stream {
        master,
        replicant,
        a,
        b_link: b.link,
        b_events: b.events,
        receiver,
        refused,
        committed,
        patience: 2 * PATIENCE,
        _folders: folders,
    }
}

impl Stream {
    /// Waits for a connection and ships over it from where the replicant stands.
    async fn connect(&mut self) -> Shipper {
        let at_a = up(&mut self.a.events).await;
        let at_b = up(&mut self.b_events).await;
        self.follow(at_a, at_b, false, |_| {})
    }

    /// Ships over a connection, with the wish that the peer's memory suffices or without it.
    fn follow(
        &self,
        at_a: u64,
        at_b: u64,
        from_memory: bool,
        heard: impl Fn(crate::link::Ack) + Send + Sync + 'static,
    ) -> Shipper {
        let following = Following { session: at_b, epoch: 1, nonce: 7, memory_acks: from_memory };
        self.receiver.follow(following, self.replicant.clone());
        let from = self.replicant.end().seq + 1;
        let shipping =
            Shipping { session: at_a, epoch: 1, nonce: 7, from, receipts: from_memory, patience: self.patience };
        ship(self.master.clone(), self.a.link.clone(), shipping, heard)
    }

    fn write(&self, count: u64, bytes: usize) -> u64 {
        let data = vec![3; bytes];
        for _ in 0..count {
            let op = Op::Write { id: FileId(2), offset: 0, data: &data };
            self.master.append(1, Stamp::default(), &op).unwrap();
        }
        self.master.end().seq
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(PATIENCE, waiting).await.is_ok(), "never: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replicant_gets_everything_and_acknowledges_what_is_durable() {
    let mut stream = stream(8 << 20).await;
    let shipper = stream.connect().await;
    let last = stream.write(300, 5000);
    shipper.want_durable(last);
    until("durable", || shipper.acknowledged().durable == last).await;
    assert_eq!(stream.replicant.end(), stream.master.end());
    assert_eq!(stream.replicant.durable(), last);
    // Nobody waits for these: they come all the same, and become durable soon.
    let last = stream.write(20, 100);
    until("durable unasked", || shipper.acknowledged().durable == last).await;
    // A record of the largest size.
    let last = stream.write(1, 4 << 20);
    shipper.want_durable(last);
    until("the largest record", || shipper.acknowledged().durable == last).await;
    // What is committed is told, noted durably, and only then allowed to be applied.
    shipper.committed(last);
    until("committed", || stream.committed.load(Ordering::Acquire) == last).await;
    assert_eq!(stream.replicant.committed(), last);
    // A replicant that lacks nothing says so as well: nobody may be allowed to write before.
    stream.a.link.close(stream.a.link.current().unwrap(), "the test cuts it");
    until("the end of the shipment", || shipper.ended().borrow().is_some()).await;
    stream.receiver.stop();
    let shipper = stream.connect().await;
    until("everything durable, with nothing new", || shipper.acknowledged().durable == last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_is_made_again_and_the_stream_goes_on_where_it_was() {
    let mut stream = stream(8 << 20).await;
    let mut shipper = stream.connect().await;
    for round in 0..4 {
        stream.write(400, 3000);
        if round % 2 == 0 {
            let session = stream.a.link.current().unwrap();
            stream.a.link.close(session, "the test cuts it");
        } else {
            let session = stream.b_link.current().unwrap();
            stream.b_link.close(session, "the test cuts it");
        }
        until("the end of the shipment", || shipper.ended().borrow().is_some() || stream.a.link.current().is_none())
            .await;
        stream.receiver.stop();
        shipper.stop();
        shipper = stream.connect().await;
    }
    let last = stream.write(1, 10);
    shipper.want_durable(last);
    until("durable", || shipper.acknowledged().durable == last).await;
    assert_eq!(stream.replicant.end(), stream.master.end());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_far_behind_replicant_is_brought_up_through_the_window() {
    let mut stream = stream(8 << 20).await;
    let last = stream.write(200, 200 << 10);
    let shipper = stream.connect().await;
    shipper.want_durable(last);
    until("caught up", || shipper.acknowledged().durable == last).await;
    assert_eq!(stream.replicant.end(), stream.master.end());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicant_without_room_says_so() {
    let mut stream = stream(64 << 10).await;
    // The second segment does not fit: the folder of the replicant's journal is on a volume that is full by then.
    let folder = stream._folders[1].path().to_path_buf();
    rustix::mount::mount("none", &folder, "tmpfs", rustix::mount::MountFlags::empty(), Some(c"size=300k")).unwrap();
    let small = Options { segment_bytes: 64 << 10, pair: PAIR };
    let full = Arc::new(Journal::open(&folder, small).unwrap().0);
    let (a, b) = pair().await;
    let (receiver, mut refused) = receive::receive(b.link.clone(), b.lanes.records, Box::new(|_| {})).unwrap();
    (stream.a, stream.b_link, stream.b_events, stream.replicant, stream.receiver) =
        (End { lanes: a.lanes, ..a }, b.link.clone(), b.events, full.clone(), receiver);
    let shipper = stream.connect().await;
    let last = stream.write(30, 30 << 10);
    shipper.want_durable(last);
    let nack = loop {
        if let LinkEvent::Nack { nack, .. } = next(&mut stream.a.events).await {
            break nack;
        }
    };
    let ReceiveEvent::Stopped { reason, .. } = timeout(PATIENCE, refused.recv()).await.unwrap().unwrap();
    rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!((nack.reason, reason), (NackReason::Full, NackReason::Full));
    assert_eq!(nack.end, full.end().seq);
    assert!(nack.end > 0 && nack.end < last);
    drop(stream.refused);
}

/// What the peer has said, ack by ack.
type Heard = Arc<parking_lot::Mutex<Vec<crate::link::Ack>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_suffices_only_for_as_long_as_the_member_allows_it() {
    let mut stream = stream(8 << 20).await;
    let (at_a, at_b) = (up(&mut stream.a.events).await, up(&mut stream.b_events).await);
    let heard = Heard::default();
    let hearing = heard.clone();
    let shipper = stream.follow(at_a, at_b, true, move |ack| hearing.lock().push(ack));
    let ahead = |heard: &Heard| heard.lock().iter().any(|ack| ack.received > ack.durable);
    // Each record waits for a flush of up to a fifth of a second, and is acknowledged from memory before.
    for _ in 0..20 {
        let last = stream.write(1, 100);
        until("received", || shipper.acknowledged().received == last).await;
    }
    assert!(ahead(&heard), "nothing was acknowledged from memory: {:?}", heard.lock());

    stream.receiver.end_memory_acks();
    let last = stream.master.end().seq;
    shipper.want_durable(last);
    until("all durable", || shipper.acknowledged().durable == last).await;
    heard.lock().clear();
    for _ in 0..20 {
        let last = stream.write(1, 100);
        until("received", || shipper.acknowledged().received == last).await;
    }
    assert!(!ahead(&heard), "acknowledged from memory: {:?}", heard.lock());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_flows_without_a_promise() {
    let mut stream = stream(8 << 20).await;
    let (at_a, at_b) = (up(&mut stream.a.events).await, up(&mut stream.b_events).await);
    let heard = Heard::default();
    let hearing = heard.clone();
    let shipper = stream.follow(at_a, at_b, false, move |ack| hearing.lock().push(ack));
    // Several windows: room is made without waiting for a flush.
    let last = stream.write(200, 200 << 10);
    until("all durable", || shipper.acknowledged().durable == last).await;
    assert!(heard.lock().iter().all(|ack| ack.received == ack.durable), "{:?}", heard.lock());
    assert!(heard.lock().iter().any(|ack| ack.taken > ack.received), "{:?}", heard.lock());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_another_generation_are_refused() {
    let mut stream = stream(1 << 20).await;
    let shipper = stream.connect().await;
    let session = stream.b_link.current().unwrap();
    let other = Following { session, epoch: 2, nonce: 9, memory_acks: false };
    stream.receiver.follow(other, stream.replicant.clone());
    let last = stream.write(1, 10);
    shipper.want_durable(last);
    let ReceiveEvent::Stopped { reason, .. } = timeout(PATIENCE, stream.refused.recv()).await.unwrap().unwrap();
    assert_eq!(reason, NackReason::OtherGeneration);
    assert_eq!(stream.replicant.end().seq, 0);
}

/// A stream whose master does not put up with silence, and whose replicant has everything so far.
async fn impatient(segment_bytes: u64) -> (Stream, Shipper) {
    let mut stream = stream(segment_bytes).await;
    stream.patience = Duration::from_millis(400);
    let shipper = stream.connect().await;
    let last = stream.write(3, 100);
    shipper.want_durable(last);
    until("durable", || shipper.acknowledged().durable == last).await;
    (stream, shipper)
}

/// The master closes the connection, and says why.
async fn is_given_up(mut stream: Stream, shipper: Shipper) {
    until("the end of the shipment", || shipper.ended().borrow().is_some()).await;
    assert!(matches!(*shipper.ended().borrow(), Some(Ended::Stuck(_))));
    assert_eq!(down(&mut stream.a.events).await.0, shipper.state.shipping.session);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicant_that_lives_and_makes_nothing_durable_is_given_up() {
    let (stream, shipper) = impatient(1 << 20).await;
    // Nothing is asked of it: it may be silent for as long as it likes.
    tokio::time::sleep(3 * stream.patience).await;
    assert_eq!(*shipper.ended().borrow(), None);
    // As if its disk hung: the frames wait, and heartbeats come.
    stream.receiver.stop();
    shipper.want_durable(stream.write(1, 100));
    is_given_up(stream, shipper).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicant_that_takes_nothing_of_a_whole_window_is_given_up() {
    let (stream, shipper) = impatient(32 << 20).await;
    stream.receiver.stop();
    // Nobody waits for these; then somebody does, who cannot even be asked for any more.
    let last = stream.write(12, 1 << 20);
    until("a full window", || shipper.state.window_is_full()).await;
    shipper.want_durable(last);
    is_given_up(stream, shipper).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_of_what_was_never_sent_ends_the_connection() {
    let mut stream = stream(1 << 20).await;
    let shipper = stream.connect().await;
    let session = stream.b_link.current().unwrap();
    until("the end", || {
        // The receiver's own acknowledgement may take the place of one that was not sent yet.
        stream.b_link.send_ack(session, Ack { taken: 1000, received: 1000, durable: 1000 }).ok();
        matches!(*shipper.ended().borrow(), Some(Ended::FalseAck { acknowledged: 1000, .. }))
    })
    .await;
    assert_eq!(shipper.acknowledged(), Ack::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_forgot_too_much_says_so() {
    let mut stream = stream(64 << 10).await;
    stream.write(20, 30 << 10);
    stream.master.trim_below(15).unwrap();
    let shipper = stream.connect().await;
    until("left behind", || matches!(*shipper.ended().borrow(), Some(Ended::LeftBehind { .. }))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_copies_and_grants_travel() {
    let (mut a, mut b) = pair().await;
    let (at_a, at_b) = (up(&mut a.events).await, up(&mut b.events).await);
    a.link.grant(true);
    b.link.send(at_b, &"hello".to_string()).unwrap();
    let sender = a.link.clone();
    let sending = tokio::spawn(async move {
        for piece in 0..40u8 {
            sender.send_bulk(at_a, vec![piece; 1 << 20]).await.unwrap();
        }
    });
    for piece in 0..40u8 {
        let bulk = timeout(PATIENCE, b.lanes.bulk.recv()).await.unwrap().unwrap();
        assert_eq!((bulk.bytes.len(), bulk.bytes[0]), (1 << 20, piece));
    }
    sending.await.unwrap();
    let mut hello = false;
    while !hello {
        hello = matches!(next(&mut a.events).await, LinkEvent::Message { message, .. } if message == "hello");
    }
    loop {
        if let LinkEvent::Heard { granted: Some(sent), .. } = next(&mut b.events).await
            && !sent.is_zero()
        {
            break;
        }
    }
    assert!(a.link.send(at_a + 1, &"to a connection that never was".to_string()).is_err());
    b.link.close(at_b, "the test ends it");
    assert_eq!(down(&mut a.events).await, (at_a, Evidence::Closed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_each_with_a_reason() {
    let (at_a, nobody) = (free_address().await, free_address().await);
    let (ours, other) = (authority(), authority());
    let mut a = end(at_a, nobody, false, certificates(&ours, &ours, &[A]), B).await;
    let knocks = [
        (certificates(&other, &ours, &[B]), "TLS handshake"),
        (certificates(&ours, &ours, &["b.other.shop.pair.tandem.dev"]), "proved to be"),
        (certificates(&ours, &ours, &[B, A]), "proved to be"),
        (certificates(&ours, &ours, &[A]), "proved to be"),
    ];
    for (certificates, expected) in knocks {
        let mut stranger = end(free_address().await, at_a, true, certificates, A).await;
        let why = loop {
            if let LinkEvent::Stranger { why, .. } = next(&mut a.events).await {
                break why;
            }
        };
        assert!(why.contains(expected), "{why}");
        loop {
            let event = next(&mut stranger.events).await;
            assert!(!matches!(event, LinkEvent::Up { .. }), "let in");
            if matches!(event, LinkEvent::Attempt { .. }) {
                break;
            }
        }
        drop(stranger);
        while a.events.try_recv().is_ok() {}
        tokio::time::sleep(Duration::from_millis(300)).await;
        while a.events.try_recv().is_ok() {}
    }
    let mut garbage = TcpStream::connect(at_a).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, garbage.read_to_end(&mut answer)).await.unwrap().ok();
    loop {
        if let LinkEvent::Stranger { why, .. } = next(&mut a.events).await {
            assert!(why.contains("TLS handshake"), "{why}");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proven_peer_that_breaks_the_protocol_is_cut_off() {
    let (at_a, nobody) = (free_address().await, free_address().await);
    let ours = authority();
    let mut a = end(at_a, nobody, false, certificates(&ours, &ours, &[A]), B).await;
    let folder = certificates(&ours, &ours, &[B]);
    let mine = settings(nobody, at_a, true, folder.path(), A);
    let hostile: [Vec<u8>; 3] = [
        vec![0xff; 64],
        {
            let mut header = frame_header(4, u32::MAX);
            header.extend_from_slice(&[0; 100]);
            header
        },
        frame_header(99, 0),
    ];
    for bytes in hostile {
        let mut raw = link::test_dial(&mine).await;
        let session = up(&mut a.events).await;
        raw.write_all(&bytes).await.unwrap();
        raw.flush().await.unwrap();
        assert_eq!(down(&mut a.events).await, (session, Evidence::Misbehaved));
    }
    let mut raw = link::test_dial(&mine).await;
    let session = up(&mut a.events).await;
    raw.flush().await.unwrap();
    // Silent from here on, with the socket open.
    assert_eq!(down(&mut a.events).await, (session, Evidence::Silent));
}

fn frame_header(kind: u8, length: u32) -> Vec<u8> {
    let mut bytes = b"TNDM".to_vec();
    bytes.extend_from_slice(&[1, kind, 0, 0]);
    bytes.extend_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Whoever has something to send writes it from its own thread. When the socket is full, what was begun is completed by the
/// task that speaks, and nothing is lost, cut in two or overtaken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_socket_held_up_arrives_whole_and_in_order() {
    let (at_a, nobody) = (free_address().await, free_address().await);
    let ours = authority();
    let folders = [certificates(&ours, &ours, &[A]), certificates(&ours, &ours, &[B])];
    let patient = |settings| LinkSettings { silence: PATIENCE, ..settings };
    let (link, mut events, _lanes) =
        link::start::<String>(patient(settings(at_a, nobody, false, folders[0].path(), B))).await.unwrap();
    let mut raw = link::test_dial(&patient(settings(nobody, at_a, true, folders[1].path(), A))).await;
    let session = up(&mut events).await;
    let header = RecordsHeader { epoch: 1, nonce: 2, committed: 0, sync: false, receipt: false };
    let sending = link.clone();
    let frame = move |number: u64| RecordsHeader { committed: number, ..header };
    let records = |number: u64| vec![number as u8; 60 << 10];
    let sent = tokio::task::spawn_blocking(move || {
        let mut sent = 0;
        let began = clock::monotonic();
        // Nobody reads: a heartbeat may be in the way now and then, the full socket is for ever.
        let mut refused_since = None;
        while refused_since.is_none_or(|since| clock::monotonic() - since < Duration::from_millis(300)) {
            assert!(clock::monotonic() - began < PATIENCE, "the socket is never full");
            if sending.send_records_now(session, || frame(sent + 1), &records(sent + 1)).unwrap() {
                (sent, refused_since) = (sent + 1, None);
            } else {
                refused_since.get_or_insert_with(clock::monotonic);
                std::thread::yield_now();
            }
        }
        // Replaced by the second, which waits.
        for taken in [1, 2] {
            sending.send_ack(session, Ack { taken, received: 0, durable: 0 }).unwrap();
        }
        sent
    });
    let sent = sent.await.unwrap();
    assert!(sent > 2, "{sent}");
    let (mut arrived, mut acknowledged) = (0, false);
    while !acknowledged {
        let (kind, payload) = read_frame(&mut raw).await;
        match kind {
            frame::Type::Records => {
                arrived += 1;
                assert_eq!(RecordsHeader::parse(&payload).unwrap().committed, arrived);
                assert!(payload[frame::RECORDS_HEADER_BYTES..].iter().all(|byte| *byte == arrived as u8));
            }
            frame::Type::Ack => {
                assert_eq!(Ack::parse(&payload).unwrap().taken, 2);
                acknowledged = true;
            }
            other => assert_eq!(other, frame::Type::Heartbeat),
        }
    }
    assert_eq!(arrived, sent);
    // And everybody may write again.
    let sending = link.clone();
    tokio::task::spawn_blocking(move || {
        while !sending.send_records_now(session, || frame(sent + 1), &records(sent + 1)).unwrap() {
            std::thread::yield_now();
        }
    });
    loop {
        let (kind, payload) = read_frame(&mut raw).await;
        if kind == frame::Type::Records {
            assert_eq!(RecordsHeader::parse(&payload).unwrap().committed, sent + 1);
            break;
        }
    }
}

async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> (frame::Type, Vec<u8>) {
    let mut header = [0; frame::HEADER_BYTES];
    timeout(PATIENCE, from.read_exact(&mut header)).await.unwrap().unwrap();
    let (kind, length) = frame::parse_header(&header).unwrap();
    let mut payload = vec![0; length];
    timeout(PATIENCE, from.read_exact(&mut payload)).await.unwrap().unwrap();
    (kind, payload)
}

/// A record that is sent by whoever waits for it does not overtake what the conductor said before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_do_not_overtake_what_was_said_before() {
    let (mut a, mut b) = pair().await;
    let (at_a, at_b) = (up(&mut a.events).await, up(&mut b.events).await);
    let said = tokio::task::spawn_blocking(move || {
        for round in 0..2_000_u64 {
            a.link.send(at_a, &round.to_string()).unwrap();
            let header = RecordsHeader { epoch: 1, nonce: 2, committed: round, sync: false, receipt: false };
            while !a.link.send_records_now(at_a, || header, &[]).unwrap() {
                std::thread::yield_now();
            }
        }
        a
    });
    for round in 0..2_000_u64 {
        let frame = loop {
            match b.lanes.records.frames.try_recv() {
                Ok(frame) => break frame,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!((frame.session, frame.header.committed), (at_b, round));
        loop {
            // It came first, so it waits already.
            if let LinkEvent::Message { message, .. } = b.events.try_recv().expect("said before the records") {
                assert_eq!(message, round.to_string());
                break;
            }
        }
    }
    said.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_the_process_is_evidence() {
    let (at_a, nobody) = (free_address().await, free_address().await);
    let ours = authority();
    for dials in [true, false] {
        let mut a = end(free_address().await, nobody, dials, certificates(&ours, &ours, &[A]), B).await;
        loop {
            if let LinkEvent::Attempt { evidence, .. } = next(&mut a.events).await {
                assert_eq!(evidence, Evidence::Refused);
                break;
            }
        }
        assert_eq!(a.link.probe().await.0, Evidence::Refused);
    }
    let listening = end(at_a, nobody, false, certificates(&ours, &ours, &[A]), B).await;
    let asking = end(free_address().await, at_a, false, certificates(&ours, &ours, &[B]), A).await;
    assert_eq!(asking.link.probe().await.0, Evidence::Answers);
    drop(listening);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicant_whose_flush_fails_says_so_and_stays_silent_about_durability() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(folder.path(), Options { segment_bytes: 1 << 20, pair: PAIR }).unwrap();
    disk::trouble::break_next("sync_journal", libc::EIO);
    let op = Op::Drop { id: FileId(2) };
    journal.append(1, Stamp::default(), &op).unwrap();
    assert!(matches!(journal.sync(), Err(JournalError::Poisoned(_))));
    assert!(journal.append_raw(&[1]).is_err());
}

/// The way of one small fdatasync: append, flush here and there, acknowledgement. `--ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn round_trip_speed() {
    let mut stream = stream(32 << 20).await;
    let shipper = Arc::new(stream.connect().await);
    let (acked, mut heard) = watch::channel(0);
    let session = stream.a.link.current().unwrap();
    let hearing = shipper.state.clone();
    stream.a.link.on_ack(Arc::new(move |number, ack| {
        if number == session && hearing.hear(ack) {
            acked.send_replace(ack.durable);
        }
    }));
    let data = vec![5; 4096];
    let rounds = 2000;
    let began = std::time::Instant::now();
    for _ in 0..rounds {
        let op = Op::Write { id: FileId(2), offset: 0, data: &data };
        let seq = stream.master.append(1, Stamp::default(), &op).unwrap().seq;
        shipper.want_durable(seq);
        let journal = stream.master.clone();
        let local = tokio::task::spawn_blocking(move || journal.sync().unwrap());
        heard.wait_for(|durable| *durable >= seq).await.unwrap();
        local.await.unwrap();
    }
    println!("append 4 KiB, durable on both: {:?} each", began.elapsed() / rounds);
    let began = std::time::Instant::now();
    let last = stream.write(512, 1 << 20);
    shipper.want_durable(last);
    heard.wait_for(|durable| *durable >= last).await.unwrap();
    println!("512 MiB in records of 1 MiB: {:?}", began.elapsed());
}
