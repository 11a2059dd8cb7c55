//! What a volume does with each operation, on a real folder.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;

use rustix::io::Errno;

use super::{FileKind, Listed, Options, Volume};
use crate::op::{FileId, Kind, Op, ROOT, Stamp};

struct World {
    folder: tempfile::TempDir,
    volume: Volume,
    time: std::cell::Cell<i64>,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let volume = Volume::adopt(folder.path(), Options::default()).unwrap();
    World { folder, volume, time: std::cell::Cell::new(1_700_000_000_000_000_000) }
}

impl World {
    fn perform(&self, op: &Op<'_>) -> Result<(), Errno> {
        self.time.set(self.time.get() + 1_000_000_007);
        self.volume.perform(op, Stamp { time: self.time.get(), unique: 0 })
    }

    /// So many entries of the root after a cookie.
    fn listed(&self, after: u64, most: usize) -> Vec<Listed> {
        let mut got = Vec::new();
        let take = |entry: &Listed| {
            got.push(entry.clone());
            got.len() < most
        };
        self.volume.list(ROOT, after, take).unwrap();
        got
    }

    fn create(&self, parent: FileId, name: &str, kind: Kind<'_>, mode: u32) -> FileId {
        let id = self.volume.next_id();
        let op = Op::Create { id, parent, name: name.as_bytes(), kind, mode, uid: 0, gid: 0 };
        self.perform(&op).unwrap();
        id
    }

    fn file(&self, name: &str, data: &str) -> FileId {
        let id = self.create(ROOT, name, Kind::File, 0o644);
        self.perform(&Op::Write { id, offset: 0, data: data.as_bytes() }).unwrap();
        id
    }

    fn names(&self, id: FileId) -> Vec<String> {
        let mut names = Vec::new();
        self.volume
            .list(id, 0, |entry| {
                names.push(String::from_utf8_lossy(&entry.name).into_owned());
                true
            })
            .unwrap();
        names
    }

    fn content(&self, id: FileId) -> String {
        let mut buffer = vec![0; 1 << 16];
        let length = self.volume.read(id, 0, &mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}

#[test]
fn a_new_file_has_exactly_the_owner_and_rights_it_was_given() {
    let world = world();
    let id = world.volume.next_id();
    let op = Op::Create { id, parent: ROOT, name: b"f", kind: Kind::File, mode: 0o6751, uid: 1234, gid: 77 };
    world.perform(&op).unwrap();
    let plain = std::fs::metadata(world.folder.path().join("f")).unwrap();
    assert_eq!((plain.uid(), plain.gid(), plain.permissions().mode() & 0o7777), (1234, 77, 0o6751));
    let told = world.volume.attributes(id).unwrap();
    assert_eq!((told.uid, told.gid, told.mode, told.links, told.kind), (1234, 77, 0o6751, 1, FileKind::File));
    assert_eq!(told.mtime, world.time.get());
}

#[test]
fn every_kind_of_file_can_be_made_owned_and_listed() {
    let world = world();
    for (name, kind) in
        [("d", Kind::Directory), ("l", Kind::Symlink(b"/etc/passwd")), ("p", Kind::Fifo), ("s", Kind::Socket)]
    {
        let id = world.create(ROOT, name, kind.clone(), 0o640);
        world.perform(&Op::SetOwner { id, uid: 5, gid: 6 }).unwrap();
        let told = world.volume.attributes(id).unwrap();
        assert_eq!((told.uid, told.gid, told.kind), (5, 6, FileKind::of(&kind)), "{name}");
        if !matches!(kind, Kind::Symlink(_)) {
            world.perform(&Op::SetMode { id, mode: 0o1751 }).unwrap();
            assert_eq!(world.volume.attributes(id).unwrap().mode, 0o1751, "{name}");
        }
        world.perform(&Op::SetTimes { id, atime: Some(-5), mtime: Some(7) }).unwrap();
        assert_eq!(world.volume.attributes(id).unwrap().mtime, 7);
    }
    assert_eq!(world.names(ROOT), ["d", "l", "p", "s"]);
    let link = world.volume.lookup(ROOT, b"l").unwrap();
    assert_eq!(world.volume.readlink(link).unwrap(), b"/etc/passwd");
    let id = world.volume.next_id();
    let device = Op::Create { id, parent: ROOT, name: b"c", kind: Kind::Character(259), mode: 0o600, uid: 0, gid: 0 };
    assert_eq!(world.perform(&device), Err(Errno::PERM), "devices must be allowed first");
}

#[test]
fn names_that_lead_elsewhere_or_belong_to_tandem_are_refused() {
    let world = world();
    let long = [b'x'; 256];
    let names: [(&[u8], Errno); 8] = [
        (b"", Errno::INVAL),
        (b".", Errno::INVAL),
        (b"..", Errno::INVAL),
        (b"a/b", Errno::INVAL),
        (b"a\0b", Errno::INVAL),
        (&long, Errno::NAMETOOLONG),
        (b".tandem", Errno::PERM),
        (b"lost+found", Errno::PERM),
    ];
    for (name, expected) in names {
        let id = world.volume.next_id();
        let op = Op::Create { id, parent: ROOT, name, kind: Kind::File, mode: 0, uid: 0, gid: 0 };
        assert_eq!(world.perform(&op), Err(expected), "{}", name.escape_ascii());
    }
    assert_eq!(world.volume.lookup(ROOT, b".tandem"), None);
}

#[test]
fn an_unlinked_file_lives_until_it_is_dropped() {
    let world = world();
    let id = world.file("f", "hello");
    world.volume.hold(id);
    world.perform(&Op::Unlink { id, parent: ROOT, name: b"f" }).unwrap();
    assert_eq!(world.volume.attributes(id).unwrap().links, 0);
    world.perform(&Op::Write { id, offset: 5, data: b" there" }).unwrap();
    assert_eq!(world.content(id), "hello there");
    assert!(world.volume.orphans().is_empty(), "it is held");
    assert!(world.volume.release(id, 1));
    assert_eq!(world.volume.orphans(), [id]);
    world.perform(&Op::Drop { id }).unwrap();
    assert_eq!(world.volume.attributes(id), Err(Errno::STALE));
    assert_eq!(std::fs::read_dir(world.folder.path().join(".tandem/orphans")).unwrap().count(), 0);
}

#[test]
fn an_unnamed_file_gets_a_name() {
    let world = world();
    let id = world.volume.next_id();
    world.perform(&Op::CreateUnnamed { id, mode: 0o600, uid: 0, gid: 0 }).unwrap();
    world.perform(&Op::Write { id, offset: 0, data: b"x" }).unwrap();
    world.perform(&Op::Link { id, parent: ROOT, name: b"f" }).unwrap();
    assert_eq!(std::fs::read(world.folder.path().join("f")).unwrap(), b"x");
    world.perform(&Op::Link { id, parent: ROOT, name: b"g" }).unwrap();
    assert_eq!(world.volume.attributes(id).unwrap().links, 2);
    world.perform(&Op::Unlink { id, parent: ROOT, name: b"f" }).unwrap();
    assert_eq!(world.content(id), "x");
}

#[test]
fn renames_replace_exchange_and_never_form_a_circle() {
    let world = world();
    let one = world.file("one", "1");
    let two = world.file("two", "2");
    let op =
        Op::Rename { id: one, parent: ROOT, name: b"one", new_parent: ROOT, new_name: b"two", replaced: Some(two) };
    world.perform(&op).unwrap();
    assert_eq!(world.names(ROOT), ["two"]);
    assert_eq!(world.content(two), "2", "the replaced file may still be open");
    let directory = world.create(ROOT, "d", Kind::Directory, 0o755);
    let below = world.create(directory, "e", Kind::Directory, 0o755);
    let circle =
        Op::Rename { id: directory, parent: ROOT, name: b"d", new_parent: below, new_name: b"x", replaced: None };
    assert_eq!(world.perform(&circle), Err(Errno::INVAL));
    let swap =
        Op::Exchange { id: one, parent: ROOT, name: b"two", other: below, other_parent: directory, other_name: b"e" };
    world.perform(&swap).unwrap();
    assert!(world.folder.path().join("two").is_dir());
    assert_eq!(std::fs::read(world.folder.path().join("d/e")).unwrap(), b"1");
    assert_eq!(world.volume.attributes(directory).unwrap().links, 2);
    assert_eq!(world.volume.attributes(ROOT).unwrap().links, 4);
    let filled = Op::Unlink { id: directory, parent: ROOT, name: b"d" };
    assert_eq!(world.perform(&filled), Err(Errno::NOTEMPTY));
}

#[test]
fn a_listing_neither_misses_nor_doubles_what_stays() {
    let world = world();
    for number in 0..100 {
        world.create(ROOT, &format!("f{number}"), Kind::File, 0o644);
    }
    let mut seen = Vec::new();
    let mut after = 0;
    for round in 0.. {
        let got = world.listed(after, 7);
        let Some(last) = got.last() else { break };
        after = last.cookie;
        seen.extend(got.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
        // What was seen goes, what was seen is replaced, new ones come.
        let gone = format!("f{round}");
        let id = world.volume.lookup(ROOT, gone.as_bytes()).unwrap();
        world.perform(&Op::Unlink { id, parent: ROOT, name: gone.as_bytes() }).unwrap();
        if round < 5 {
            let new = world.create(ROOT, "new", Kind::File, 0o600);
            let old = world.volume.lookup(ROOT, b"f6").unwrap();
            let op = Op::Rename {
                id: new,
                parent: ROOT,
                name: b"new",
                new_parent: ROOT,
                new_name: b"f6",
                replaced: Some(old),
            };
            world.perform(&op).unwrap();
        }
    }
    for number in 0..100 {
        let times = seen.iter().filter(|name| **name == format!("f{number}")).count();
        assert_eq!(times, 1, "f{number}");
    }
}

#[test]
fn a_listing_ends_although_everything_listed_gets_another_name() {
    let world = world();
    for number in 0..50 {
        world.create(ROOT, &format!("f{number}"), Kind::File, 0o644);
    }
    let mut seen = Vec::new();
    let mut after = 0;
    while let [Listed { cookie, name, id, .. }] = &world.listed(after, 1)[..] {
        let renamed = [b"new-", &name[..]].concat();
        let op = Op::Rename { id: *id, parent: ROOT, name, new_parent: ROOT, new_name: &renamed, replaced: None };
        world.perform(&op).unwrap();
        seen.push(*id);
        after = *cookie;
    }
    let mut once = seen.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!((seen.len(), once.len()), (50, 50));
}

#[test]
fn ranges_are_punched_zeroed_allocated_and_cut() {
    let world = world();
    let id = world.file("f", "abcdefghij");
    world.perform(&Op::Punch { id, offset: 2, length: 3 }).unwrap();
    assert_eq!(world.content(id), "ab\0\0\0fghij");
    world.perform(&Op::Zero { id, offset: 8, length: 4, keep_size: false }).unwrap();
    assert_eq!(world.content(id), "ab\0\0\0fgh\0\0\0\0");
    world.perform(&Op::Truncate { id, size: 6 }).unwrap();
    world.perform(&Op::Allocate { id, offset: 0, length: 8, keep_size: false }).unwrap();
    world.perform(&Op::Allocate { id, offset: 0, length: 80, keep_size: true }).unwrap();
    assert_eq!(world.content(id), "ab\0\0\0f\0\0");
    assert_eq!(world.perform(&Op::Write { id, offset: u64::MAX - 2, data: b"abc" }), Err(Errno::FBIG));
    assert_eq!(world.perform(&Op::Write { id: ROOT, offset: 0, data: b"abc" }), Err(Errno::ISDIR));
}

#[test]
fn extended_attributes_of_the_user_and_access_rules_are_kept_and_others_refused() {
    let world = world();
    let id = world.file("f", "");
    let value = vec![7; 3000];
    world.perform(&Op::SetXattr { id, name: b"user.a", value: &value }).unwrap();
    assert_eq!(world.volume.get_xattr(id, b"user.a").unwrap(), value);
    assert_eq!(world.volume.list_xattr(id).unwrap(), [b"user.a".to_vec()]);
    for name in ["trusted.a", "security.capability", "system.data", "user."] {
        let op = Op::SetXattr { id, name: name.as_bytes(), value: b"v" };
        assert_eq!(world.perform(&op), Err(Errno::OPNOTSUPP), "{name}");
    }
    world.perform(&Op::RemoveXattr { id, name: b"user.a" }).unwrap();
    assert_eq!(world.volume.get_xattr(id, b"user.a"), Err(Errno::NODATA));
}

#[test]
fn nothing_is_handed_down_from_a_folder_but_by_operations() {
    let world = world();
    let folder = world.create(ROOT, "d", Kind::Directory, 0o2777);
    let rules = super::random::access_rules();
    world.perform(&Op::SetXattr { id: folder, name: b"system.posix_acl_default", value: &rules }).unwrap();
    assert!(world.volume.has_default_acl(folder));
    for (name, kind) in [("f", Kind::File), ("e", Kind::Directory), ("p", Kind::Fifo)] {
        let id = world.create(folder, name, kind, 0o640);
        assert_eq!(world.volume.attributes(id).unwrap().mode, 0o640, "{name}");
        assert!(world.volume.list_xattr(id).unwrap().is_empty(), "{name}");
        world.perform(&Op::SetXattr { id, name: b"system.posix_acl_access", value: &rules }).unwrap();
        assert_eq!(world.volume.attributes(id).unwrap().mode, 0o770, "{name}");
    }
    world.perform(&Op::RemoveXattr { id: folder, name: b"system.posix_acl_default" }).unwrap();
    assert!(!world.volume.has_default_acl(folder));
}

#[test]
fn files_of_before_are_adopted_with_their_hard_links() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::create_dir_all(path.join("d/e")).unwrap();
    std::fs::create_dir_all(path.join("lost+found")).unwrap();
    std::fs::write(path.join("d/f"), "content").unwrap();
    std::fs::hard_link(path.join("d/f"), path.join("d/e/g")).unwrap();
    std::os::unix::fs::symlink("/etc", path.join("etc")).unwrap();
    let volume = Volume::adopt(path, Options::default()).unwrap();
    let d = volume.lookup(ROOT, b"d").unwrap();
    let e = volume.lookup(d, b"e").unwrap();
    let f = volume.lookup(d, b"f").unwrap();
    assert_eq!(volume.lookup(e, b"g"), Some(f));
    assert_eq!(volume.attributes(f).unwrap().links, 2);
    assert_eq!(volume.lookup(ROOT, b"lost+found"), None);
    assert_eq!(
        volume.attributes(f).unwrap().mtime % 1_000_000_000,
        i64::from(std::fs::metadata(path.join("d/f")).unwrap().mtime_nsec() as i32)
    );
    assert_eq!(volume.kind(volume.lookup(ROOT, b"etc").unwrap()), Ok(FileKind::Symlink));
}

#[test]
fn a_folder_exchanged_for_a_link_from_outside_leads_nowhere() {
    let world = world();
    let directory = world.create(ROOT, "d", Kind::Directory, 0o755);
    let id = world.create(directory, "passwd", Kind::File, 0o644);
    let volume = Volume::adopt(world.folder.path(), Options::default()).unwrap();
    let directory = volume.lookup(ROOT, b"d").unwrap();
    let file = volume.lookup(directory, b"passwd").unwrap();
    std::fs::rename(world.folder.path().join("d"), world.folder.path().join("x")).unwrap();
    std::os::unix::fs::symlink("/etc", world.folder.path().join("d")).unwrap();
    volume.descriptors.lock().forget(directory);
    assert!(volume.attributes(file).is_err());
    assert!(volume.perform(&Op::Write { id: file, offset: 0, data: b"x" }, Stamp::default()).is_err());
    assert!(world.volume.attributes(id).is_ok(), "what is open already stays what it was");
}

#[test]
fn times_reach_the_plain_files() {
    let world = world();
    world.file("f", "x");
    let expected = world.time.get();
    world.volume.flush_all().unwrap();
    let plain = std::fs::metadata(world.folder.path().join("f")).unwrap();
    assert_eq!(plain.mtime() * 1_000_000_000 + plain.mtime_nsec(), expected);
}

#[test]
fn many_files_cost_little_memory_and_a_manifest_brings_them_back() {
    use super::tree::{Backing, Node, Tree};
    let mut tree = Tree::new(Node::new(FileKind::Directory, Backing::default(), 0, 0));
    for number in 2..20_002u64 {
        let id = FileId(number);
        let kind = if number % 50 == 2 { FileKind::Directory } else { FileKind::File };
        tree.add(id, Node::new(kind, Backing { ino: number, btime: 5 }, 6, 7)).unwrap();
        let parent = if kind == FileKind::Directory { ROOT } else { FileId(number - (number - 2) % 50) };
        tree.link(id, parent, format!("file-{number}").as_bytes(), None).unwrap();
    }
    assert!(size_of::<Node>() <= 96, "{} bytes per file before its name", size_of::<Node>());
    let manifest = crate::manifest::Manifest::of(&tree, tandem_protocol::Position { epoch: 3, seq: 9, chain: 5 });
    let read = crate::manifest::Manifest::from_bytes(manifest.bytes().to_vec()).unwrap();
    assert_eq!(read.position().unwrap().seq, 9);
    let back = read.tree().unwrap();
    assert_eq!(back.count(), tree.count());
    assert_eq!(back.last_id(), 20_001);
    for (id, node) in tree.nodes() {
        assert_eq!(back.node(id).unwrap().links(), node.links());
    }
    let mut bytes = manifest.bytes().to_vec();
    bytes[100] ^= 1;
    assert!(crate::manifest::Manifest::from_bytes(bytes).is_err());
    drop(Arc::new(back));
}

#[test]
#[ignore = "figures, not a promise: run it alone to see them"]
fn a_hundred_thousand_files() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_string()
    };
    let watch = || std::time::Instant::now();
    let folder = tempfile::tempdir().unwrap();
    let at = watch();
    {
        let volume = Volume::adopt(folder.path(), Options::default()).unwrap();
        let stamp = Stamp { time: 1_700_000_000_000_000_000, unique: 0 };
        for number in 0..1000 {
            let parent = volume.next_id();
            let name = format!("folder-{number}").into_bytes();
            volume
                .perform(
                    &Op::Create {
                        id: parent,
                        parent: ROOT,
                        name: &name,
                        kind: Kind::Directory,
                        mode: 0o755,
                        uid: 0,
                        gid: 0,
                    },
                    stamp,
                )
                .unwrap();
            for number in 0..100 {
                let id = volume.next_id();
                let name = format!("some-file-{number}").into_bytes();
                volume
                    .perform(
                        &Op::Create { id, parent, name: &name, kind: Kind::File, mode: 0o644, uid: 0, gid: 0 },
                        stamp,
                    )
                    .unwrap();
                volume.perform(&Op::Write { id, offset: 0, data: &[5; 3000] }, stamp).unwrap();
            }
        }
        println!("created and written in {:?}, {}", at.elapsed(), resident());
        let at = watch();
        volume.flush_times().unwrap();
        println!("times flushed in {:?}", at.elapsed());
    }
    let at = watch();
    let volume = Volume::adopt(folder.path(), Options::default()).unwrap();
    println!("adopted {} in {:?}, {}", volume.files(), at.elapsed(), resident());
    let at = watch();
    let manifest = volume.snapshot(tandem_protocol::Position::default());
    println!("snapshot of {} bytes in {:?}", manifest.bytes().len(), at.elapsed());
    drop(volume);
    for scope in [crate::redo::Scope::Touched, crate::redo::Scope::Everything] {
        let at = watch();
        crate::redo::converge(folder.path(), Options::default(), &manifest, 0, scope, &mut |_| Ok(())).unwrap();
        println!("redo, {scope:?}: {:?}", at.elapsed());
    }
}
