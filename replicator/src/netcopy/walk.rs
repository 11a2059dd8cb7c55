//! The order in which a copy goes through the files of a list: by id. Both sides derive it from the list, so nothing of it
//! goes over the wire.

use crate::op::FileId;
use crate::volume::tree::{FileKind, Tree};

/// All files of the list in the order of copying.
pub(crate) fn order(tree: &Tree) -> Vec<(FileId, FileKind)> {
    let mut files: Vec<(FileId, FileKind)> = tree.nodes().map(|(id, node)| (id, node.kind)).collect();
    files.sort_unstable_by_key(|(id, _)| *id);
    files
}

/// Whether a file cannot be changed into another of its kind, only made anew.
pub(crate) fn is_special(kind: FileKind) -> bool {
    match kind {
        FileKind::Symlink | FileKind::Character | FileKind::Block => true,
        FileKind::File | FileKind::Directory | FileKind::Fifo | FileKind::Socket => false,
    }
}
