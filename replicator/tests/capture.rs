//! The application's file system on a real mount, without a peer: what programs do to it, and that a volume taken from its
//! journal is the same. Needs root and /dev/fuse.

#![allow(clippy::unwrap_used, clippy::panic)] // a test says what it expects by panicking

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tandem_protocol::ack::AckRule;
use tandem_replicator::capture::{Capture, requests, transport};
use tandem_replicator::commit::Commit;
use tandem_replicator::journal::{Journal, Options};
use tandem_replicator::volume::{self, Volume};

/// A mounted file system over a folder of its own.
struct Mounted {
    folder: tempfile::TempDir,
    capture: Arc<Capture>,
    commit: Arc<Commit>,
    running: transport::Running,
    failed: Arc<AtomicBool>,
}

impl Mounted {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (backing, mount) = (folder.path().join("backing"), folder.path().join("mount"));
        fs::create_dir(&backing).unwrap();
        fs::create_dir(&mount).unwrap();
        let volume = Arc::new(Volume::adopt(&backing, volume::Options::default()).unwrap());
        let (journal, _) = Journal::open(&backing.join(".tandem/journal"), Options::new([7; 16])).unwrap();
        let journal = Arc::new(journal);
        let failed = Arc::new(AtomicBool::new(false));
        let fail = || {
            let failed = Arc::clone(&failed);
            Box::new(move || failed.store(true, Ordering::SeqCst))
        };
        let commit = Commit::start(Arc::clone(&journal), fail()).unwrap();
        let capture = Capture::new(volume, journal, Arc::clone(&commit), None, fail());
        let session = transport::mount_here(&mount).unwrap();
        let running = requests::serve(&capture, &session, 4).unwrap();
        assert!(session.wait_served());
        capture.open(1, "a").unwrap();
        commit.set_rule(AckRule::Alone { entitled_until: None });
        Self { folder, capture, commit, running, failed }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    fn backing(&self) -> PathBuf {
        self.folder.path().join("backing")
    }

    /// Unmounts, and gives back the folder.
    fn end(self) -> tempfile::TempDir {
        transport::unmount_here(&self.path()).unwrap();
        self.running.wait();
        self.commit.end();
        assert!(!self.failed.load(Ordering::SeqCst), "the member gave up");
        self.folder
    }
}

fn run(folder: &Path, script: &str) {
    let output = Command::new("bash").args(["-euc", script]).current_dir(folder).output().unwrap();
    assert!(
        output.status.success(),
        "{script}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn files_are_files() {
    let mounted = Mounted::new();
    let root = mounted.path();
    assert!(fs::metadata(root.join(".tandem")).is_err(), "Tandem's folder is hidden");
    fs::create_dir(root.join("d")).unwrap();
    let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(root.join("d/f")).unwrap();
    file.write_all(b"hello world").unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(mounted.backing().join("d/f")).unwrap(), b"hello world", "plain files on the volume");
    fs::hard_link(root.join("d/f"), root.join("g")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 2);
    symlink("d/f", root.join("s")).unwrap();
    assert_eq!(fs::read_link(root.join("s")).unwrap(), Path::new("d/f"));
    fs::rename(root.join("g"), root.join("d/h")).unwrap();
    fs::set_permissions(root.join("d/h"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(root.join("d/f")).unwrap().mode() & 0o7777, 0o640);
    file.set_len(5).unwrap();
    assert_eq!(fs::read(root.join("s")).unwrap(), b"hello");
    let mut names: Vec<_> = fs::read_dir(root.join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["f", "h"]);

    // Unlinked, and still open.
    fs::remove_file(root.join("d/f")).unwrap();
    fs::remove_file(root.join("d/h")).unwrap();
    file.write_all_at(b"HELLO", 0).unwrap();
    file.sync_data().unwrap();
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "HELLO");
    drop(file);
    fs::remove_dir(root.join("d")).unwrap();
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
    mounted.end();
}

#[test]
fn programs_do_not_notice() {
    let mounted = Mounted::new();
    let root = mounted.path();
    run(
        &root,
        "for mode in wal delete; do rm -f t.db*; sqlite3 t.db \"pragma journal_mode=$mode; create table t(a,b); with recursive n(i) as (select 1 union all select i+1 from n where i<2000) insert into t select i, randomblob(200) from n; delete from t where a%3=0;\" >/dev/null; test \"$(sqlite3 t.db 'pragma integrity_check')\" = ok; done",
    );
    run(
        &root,
        "mkdir src && cd src && for i in $(seq 300); do mkdir -p d$((i%10)); head -c $((i*37)) /dev/urandom > d$((i%10))/f$i; done && tar cf ../src.tar . && mkdir ../copy && tar xf ../src.tar -C ../copy && diff -r . ../copy",
    );
    run(
        &root,
        "cd copy && git init -q . && git add -A && git -c user.name=n -c user.email=e commit -qm one && git fsck --full --strict && rm -rf ../src",
    );
    run(
        &root,
        "python3 - <<'E'\nimport mmap, os\nf = open('m', 'w+b'); f.truncate(1 << 20)\nm = mmap.mmap(f.fileno(), 0); m[5000:5005] = b'hello'; m.flush(); m.close()\nassert open('m', 'rb').read()[5000:5005] == b'hello'\nos.posix_fallocate(f.fileno(), 0, 2 << 20)\nassert os.stat('m').st_size == 2 << 20\nE",
    );
    run(
        &root,
        "setfattr -n user.k -v v m 2>/dev/null || python3 -c \"import os; os.setxattr('m', 'user.k', b'v'); assert os.getxattr('m', 'user.k') == b'v'; assert os.listxattr('m') == ['user.k']\"",
    );
    mounted.end();
}

/// The journal alone, redone over an empty volume of the same age, gives the same files.
#[test]
fn the_journal_tells_the_whole_story() {
    let mounted = Mounted::new();
    let root = mounted.path();
    run(
        &root,
        "mkdir a b && for i in $(seq 50); do echo $i > a/$i; done && mv a/1 b/one && ln a/2 b/two && rm a/3 && cp -r a c && mv c b/ && chmod 600 a/4 && truncate -s 100000 a/5 && printf x | dd of=a/6 bs=1 seek=9999 conv=notrunc status=none && ln -s one b/link && rm -r b/c && rename=1 && mv a/7 a/8",
    );
    mounted.capture.volume().flush_all().unwrap();
    let before = mounted.capture.volume().digest().unwrap();
    let folder = mounted.end();
    let second = tempfile::tempdir().unwrap();
    let volume = Volume::adopt(second.path(), volume::Options::default()).unwrap();
    let (journal, _) = Journal::open(&folder.path().join("backing/.tandem/journal"), Options::new([7; 16])).unwrap();
    let mut from = 1;
    while from <= journal.end().seq {
        let mut bytes = Vec::new();
        let batch = journal.read(from, 1 << 20, &mut bytes).unwrap();
        for record in tandem_replicator::journal::records_after(batch.before, &bytes) {
            let record = record.unwrap();
            volume.perform(&record.op().unwrap(), record.stamp).unwrap();
        }
        from = batch.last.seq + 1;
    }
    volume.flush_all().unwrap();
    assert_eq!(volume.digest().unwrap(), before);
}

#[test]
fn a_gate_that_holds_or_refuses() {
    let mounted = Mounted::new();
    let root = mounted.path();
    fs::write(root.join("f"), "one").unwrap();
    for number in 0..10 {
        fs::write(root.join(format!("w{number}")), "one").unwrap();
    }
    mounted.capture.hold();
    // More than there are threads that serve.
    let writers: Vec<_> = (0..10)
        .map(|number| {
            let path = root.join(format!("w{number}"));
            std::thread::spawn(move || fs::write(path, "two"))
        })
        .collect();
    let writer = std::thread::spawn({
        let path = root.join("f");
        move || fs::write(path, "two")
    });
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(!writer.is_finished(), "a held gate lets nobody pass");
    assert_eq!(fs::read(root.join("f")).unwrap(), b"one", "reads go on");
    mounted.capture.resume();
    writer.join().unwrap().unwrap();
    for (number, writer) in writers.into_iter().enumerate() {
        writer.join().unwrap().unwrap();
        assert_eq!(fs::read(root.join(format!("w{number}"))).unwrap(), b"two");
    }

    // Those that waited too long are told so; then all goes on.
    mounted.capture.hold();
    let writer = std::thread::spawn({
        let path = root.join("w0");
        move || fs::write(path, "three")
    });
    std::thread::sleep(std::time::Duration::from_millis(100));
    mounted.capture.fail_waiting();
    assert_eq!(writer.join().unwrap().unwrap_err().raw_os_error(), Some(5));
    mounted.capture.resume();
    fs::write(root.join("w0"), "four").unwrap();
    assert_eq!(fs::read(root.join("f")).unwrap(), b"two");

    // Nothing may be acknowledged: a sync waits, and fails when the member is fenced.
    mounted.commit.set_rule(AckRule::Nothing);
    let file = File::options().write(true).open(root.join("f")).unwrap();
    file.write_all_at(b"3", 0).unwrap();
    let sync = std::thread::spawn(move || (file.sync_all(), file.write_all_at(b"4", 0)));
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(!sync.is_finished(), "a sync was told although nothing may be acknowledged");
    mounted.capture.refuse();
    let (synced, written) = sync.join().unwrap();
    assert_eq!(synced.unwrap_err().raw_os_error(), Some(5));
    assert_eq!(written.unwrap_err().raw_os_error(), Some(5));
    assert!(fs::write(root.join("g"), "x").is_err());
    mounted.end();
}

/// Runs a program that says when it is about to wait for something, and gives it time to begin.
fn waiting(program: &mut Command) -> Child {
    let mut child = program.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    child
}

fn ends_within(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        let ended = child.try_wait().unwrap();
        if ended.is_some() || started.elapsed() > patience {
            return ended;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_killed_process_dies_although_writes_are_held() {
    let mounted = Mounted::new();
    let root = mounted.path();
    for name in ["sync", "write"] {
        fs::write(root.join(name), "one").unwrap();
    }
    let python = |name: &str, script: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", &format!("import os\nf = os.open('{name}', os.O_WRONLY)\n{script}")]).current_dir(&root);
        command
    };
    mounted.commit.set_rule(AckRule::Nothing);
    let mut syncing = waiting(&mut python("sync", "os.write(f, b'two')\nos.write(1, b'!')\nos.fsync(f)"));
    mounted.capture.hold();
    let mut writing = waiting(&mut python("write", "os.write(1, b'!')\nos.write(f, b'two')"));
    for child in [&mut syncing, &mut writing] {
        child.kill().unwrap();
        assert!(ends_within(child, Duration::from_secs(20)).is_some(), "it cannot die");
    }
    mounted.commit.set_rule(AckRule::Alone { entitled_until: None });
    mounted.capture.resume();
    assert_eq!(fs::read(root.join("sync")).unwrap(), b"two", "what was performed stays");
    assert_eq!(fs::read(root.join("write")).unwrap(), b"one", "what was withdrawn is not performed");
    fs::write(root.join("write"), "three").unwrap();
    mounted.end();
}

#[test]
fn a_signal_during_a_short_hold_disturbs_no_sync() {
    let mounted = Mounted::new();
    let root = mounted.path();
    mounted.commit.set_rule(AckRule::Nothing);
    let script = "$| = 1; $SIG{ALRM} = sub { print STDERR 'rang' }; open F, '>>', 'f'; syswrite F, 'x'; print '!'; alarm 1; F->sync or die qq(sync: $!)";
    let mut program = Command::new("perl");
    let mut child = waiting(program.args(["-MIO::Handle", "-e", script]).current_dir(&root).stderr(Stdio::piped()));
    assert!(ends_within(&mut child, Duration::from_secs(2)).is_none());
    mounted.commit.set_rule(AckRule::Alone { entitled_until: None });
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stderr, b"rang", "the signal came while it waited");
    mounted.end();
}

#[test]
fn a_handle_finds_its_file_after_the_kernel_has_forgotten_it() {
    let mounted = Mounted::new();
    let root = mounted.path();
    fs::create_dir_all(root.join("above/below")).unwrap();
    fs::write(root.join("above/below/kept"), "kept").unwrap();
    fs::write(root.join("above/below/gone"), "gone").unwrap();
    // name_to_handle_at and open_by_handle_at, by their numbers on this architecture.
    let script = r#"
        sub handle { my $path = shift; my $h = pack("Ii", 128, 0) . "\0" x 128; my $id = pack("i", 0);
            syscall(303, -100, $path, $h, $id, 0) == 0 or die "name_to_handle_at: $!"; $h }
        my @handles = map { handle($_) } qw(above/below/kept above/below above/below/gone);
        unlink "above/below/gone" or die $!;
        open F, ">", "/proc/sys/vm/drop_caches" or die $!; print F "2\n"; close F or die $!;
        open R, "<", "." or die $!;
        for my $h (@handles) {
            my $fd = syscall(304, fileno(R), $h, 0);
            if ($fd < 0) { print "$!\n"; next }
            my $name = "/proc/self/fd/$fd";
            if (-d $name) { print readlink($name) . "\n"; next }
            open F, "<", $name or die $!; print <F>, "\n"; close F;
        }"#;
    let output = Command::new("perl").args(["-e", script]).current_dir(&root).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let told: Vec<_> = told.lines().collect();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told[0], "kept");
    // A folder is connected to those above it.
    assert!(told[1].ends_with("/above/below"), "{told:?}");
    assert_eq!(told[2], "Stale file handle");
    mounted.end();
}

#[test]
fn a_read_after_an_asynchronous_direct_write_finds_it() {
    let mounted = Mounted::new();
    // io_setup, io_submit and io_getevents, by their numbers on this architecture. Others read meanwhile, through the cache.
    let script = r#"
        use Fcntl; my $size = 10 * 65536;
        sysopen(D, "file", O_RDWR | O_CREAT | 040000) or die "open: $!"; truncate "file", $size or die "truncate: $!";
        sub whole { open R, "<", "file" or die "read: $!"; sysread R, my $found, $size; close R; $found }
        my @readers; END { local $?; kill "KILL", @readers; wait for @readers }
        @readers = map { my $id = fork; if (!$id) { whole() while 1 } $id } 1 .. 3;
        my $told = "\0" x 8; syscall(206, 1, $told) == 0 or die "io_setup: $!"; my $context = unpack("Q", $told);
        my $stale;
        for my $round (1 .. 100) {
            my $data = chr(65 + $round % 26) x $size;
            my $order = pack("QLlSsLPQqQLL", 0, 0, 0, 1, 0, fileno(D), $data, $size, 0, 0, 0, 0);
            my $orders = pack("P", $order); syscall(209, $context, 1, $orders) == 1 or die "io_submit: $!";
            my $event = "\0" x 32; syscall(208, $context, 1, 1, $event, 0) == 1 or die "io_getevents: $!";
            my (undef, undef, $written) = unpack("QQq", $event); $written == $size or die "wrote $written";
            if (whole() ne $data) { $stale = $round; last }
        }
        print $stale ? "old content in round $stale" : "fine";"#;
    let output = Command::new("perl").args(["-e", script]).current_dir(mounted.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "fine");
    mounted.end();
}

/// Not a test: serves TANDEM_BACKING at TANDEM_MOUNT until it is unmounted, for suites and measurements from outside.
#[test]
#[ignore = "serves until unmounted"]
fn serve() {
    let (Some(backing), Some(mount)) = (std::env::var_os("TANDEM_BACKING"), std::env::var_os("TANDEM_MOUNT")) else {
        return;
    };
    let options = volume::Options { devices: true, ..volume::Options::default() };
    let volume = Arc::new(Volume::adopt(Path::new(&backing), options).unwrap());
    let (journal, _) = Journal::open(&Path::new(&backing).join(".tandem/journal"), Options::new([7; 16])).unwrap();
    let journal = Arc::new(journal);
    let commit = Commit::start(Arc::clone(&journal), Box::new(|| eprintln!("the journal failed"))).unwrap();
    commit.set_rule(AckRule::Alone { entitled_until: None });
    let fail = Box::new(|| eprintln!("the member gave up"));
    let capture = Capture::new(volume, Arc::clone(&journal), commit, None, fail);
    let session = transport::mount_here(Path::new(&mount)).unwrap();
    let running = requests::serve(&capture, &session, 4).unwrap();
    let epoch = journal.end().epoch + 1;
    capture.open(epoch, "a").unwrap();
    running.wait();
}
