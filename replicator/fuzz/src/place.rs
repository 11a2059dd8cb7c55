//! A folder in memory that holds a volume, and beside it what a volume's contents must never reach.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use std::os::unix::fs::FileTypeExt as _;
use tandem_replicator::manifest::Manifest;
use tandem_replicator::op::{FileId, ROOT};
use tandem_replicator::volume::FileKind;
use tandem_replicator::volume::tree::{Node, Tree};

const CANARY: &[u8] = b"nobody may change this";

/// The folder of this process, empty again for each input.
pub(crate) struct Place {
    root: PathBuf,
}

impl Place {
    pub(crate) fn fresh(name: &str) -> Place {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let root = base.join(format!("tandem-fuzz-{}-{name}", std::process::id()));
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        fs::create_dir_all(root.join("volume/.tandem")).unwrap();
        fs::write(root.join("canary"), CANARY).unwrap();
        fs::write(root.join("volume/.tandem/member"), CANARY).unwrap();
        Place { root }
    }

    pub(crate) fn volume(&self) -> PathBuf {
        self.root.join("volume")
    }

    /// Nothing outside of the volume changed, and nothing of what the member remembers.
    pub(crate) fn check_untouched(&self) {
        assert_eq!(names(&self.root), BTreeSet::from([b"canary".to_vec(), b"volume".to_vec()]));
        for path in [self.root.join("canary"), self.volume().join(".tandem/member")] {
            assert_eq!(fs::read(&path).unwrap(), CANARY, "{}", path.display());
        }
    }

    /// The folders hold exactly the names that the tree knows, each of its kind; no device is among them.
    pub(crate) fn check_against(&self, tree: &Tree) {
        let mut ahead = vec![(ROOT, self.volume())];
        while let Some((id, path)) = ahead.pop() {
            let mut found = names(&path);
            if id == ROOT {
                assert!(found.remove(b".tandem".as_slice()));
            }
            let directory = tree.node(id).and_then(Node::directory).unwrap();
            let known: BTreeSet<Vec<u8>> = directory.entries().map(|entry| entry.name.to_vec()).collect();
            assert_eq!(found, known, "{}", path.display());
            for entry in directory.entries() {
                use std::os::unix::ffi::OsStrExt as _;
                let below = path.join(std::ffi::OsStr::from_bytes(&entry.name));
                let there = fs::symlink_metadata(&below).unwrap().file_type();
                assert!(!there.is_block_device() && !there.is_char_device(), "a device: {}", below.display());
                let kind = tree.node(entry.id).unwrap().kind;
                assert_eq!(kind == FileKind::Directory, there.is_dir());
                assert_eq!(kind == FileKind::File, there.is_file());
                assert_eq!(kind == FileKind::Symlink, there.is_symlink());
                if kind == FileKind::Directory {
                    ahead.push((entry.id, below));
                }
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nobody works in it any more.
        if let Err(error) = fs::remove_dir_all(&self.root) {
            panic!("remove {}: {error}", self.root.display());
        }
    }
}

fn names(folder: &Path) -> BTreeSet<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt as _;
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect()
}

/// A tree as values that can be compared: ids with kinds, times and names with their cookies.
pub(crate) fn canonical(tree: &Tree) -> Vec<String> {
    let mut lines: Vec<String> = tree
        .nodes()
        .map(|(FileId(id), node)| {
            let entries: Vec<_> = node
                .directory()
                .into_iter()
                .flat_map(|directory| directory.after(0).map(|(cookie, entry)| (cookie, entry.id, entry.name.clone())))
                .collect();
            let next = node.directory().map(|directory| (directory.next_cookie(), directory.has_default_acl));
            let (kind, links) = (node.kind, node.links().len());
            format!("{id} {kind:?} {:?} {} {} {links} {next:?} {entries:?}", node.backing, node.mtime(), node.ctime())
        })
        .collect();
    lines.sort();
    lines.push(tree.last_id().to_string());
    lines
}

/// Every folder has one way up, and it ends at the root or at a removed folder without entries.
fn check_is_tree(tree: &Tree) {
    for (id, node) in tree.nodes() {
        let directory = node.kind == FileKind::Directory;
        assert_eq!(directory, node.directory().is_some());
        assert!(!directory || node.links().len() <= usize::from(id != ROOT), "{id:?} has two names");
        assert!(!directory || id == ROOT || !node.links().is_empty() || node.directory().unwrap().is_empty());
        let (mut at, mut steps) = (id, 0);
        while let Some(link) = tree.node(at).unwrap().links().first() {
            at = link.parent;
            steps += 1;
            assert!(steps <= tree.count(), "{id:?} is in itself");
        }
        assert!(at == ROOT || at == id, "{id:?} lies in a removed folder");
    }
}

/// What a list of files says is a tree can be written down and read back the same.
pub(crate) fn check_survives(tree: &Tree) {
    check_is_tree(tree);
    let written = Manifest::of(tree, Default::default());
    let read = Manifest::from_bytes(written.bytes().to_vec()).unwrap().tree().unwrap();
    assert_eq!(canonical(&read), canonical(tree));
}
