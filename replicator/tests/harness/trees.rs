//! What there is to see of all files below a folder, to be compared with another one.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Pair;

/// What there is to see of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Look {
    mode: u32,
    owner: (u32, u32),
    pub(crate) names: u64,
    size: u64,
    pub(crate) changed: (i64, i64),
    content: Option<String>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Look {
    pub(crate) fn is_folder(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }
}

pub(crate) type Tree = BTreeMap<PathBuf, Look>;

/// Everything below a folder but Tandem's own, and the file system's.
pub(crate) fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(look) = path.symlink_metadata() else { continue };
            if entry.file_name() == ".tandem" || entry.file_name() == "lost+found" {
                continue;
            }
            let content = if look.is_file() {
                Some(blake3::hash(&fs::read(&path).unwrap_or_default()).to_hex().to_string())
            } else {
                fs::read_link(&path).ok().map(|target| format!("{target:?}"))
            };
            if look.is_dir() {
                open.push(path.clone());
            }
            let seen = Look {
                mode: look.mode(),
                owner: (look.uid(), look.gid()),
                names: look.nlink(),
                // How large a folder is hangs on its past.
                size: if look.is_dir() { 0 } else { look.size() },
                changed: (look.mtime(), look.mtime_nsec()),
                content,
                attributes: attributes(&path),
            };
            found.insert(path.strip_prefix(root).unwrap_or(&path).to_path_buf(), seen);
        }
    }
    found
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut found = BTreeMap::new();
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        // XFS shows access rules a second time here; nobody else can use this, see the README.
        if name.to_bytes().starts_with(b"trusted.") {
            continue;
        }
        let mut value = vec![0_u8; 1 << 16];
        if let Ok(length) = rustix::fs::lgetxattr(path, name, &mut value[..]) {
            found.insert(name.to_bytes().to_vec(), value[..length].to_vec());
        }
    }
    found
}

/// The first difference, in words.
pub(crate) fn difference(one: &Tree, other: &Tree) -> Option<String> {
    let shown = |path: &Path| path.as_os_str().as_bytes().escape_ascii().to_string();
    let differs = |(path, look): (&PathBuf, &Look)| {
        let there = other.get(path);
        (there != Some(look)).then(|| format!("{}: {look:?} and {there:?}", shown(path)))
    };
    let more = other.keys().find(|path| !one.contains_key(*path)).map(|path| format!("{}: only there", shown(path)));
    one.iter().find_map(differs).or(more)
}

/// Waits until both volumes hold the same.
pub(crate) fn equal(pair: &Pair) {
    let mut last = None;
    let same = super::waited(|| {
        last = difference(&tree(&pair.volume("a")), &tree(&pair.volume("b")));
        last.is_none()
    });
    assert!(same, "the volumes differ: {last:?}");
}
