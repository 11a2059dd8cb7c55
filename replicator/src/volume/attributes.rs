//! Everything that is asked about a file, and its content. Content times come from the tree: the volume's own follow
//! later, and would differ between the members.

use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, fgetxattr, flistxattr, fstatvfs, getxattr, listxattr, readlinkat, seek};
use rustix::io::{Errno, pread};

use super::Volume;
use super::open::nanoseconds;
use super::perform::own_path;
use super::tree::{FileKind, Node, check_xattr};
use crate::op::FileId;

/// As `stat` tells, with the id as inode number. Times in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The file.
    pub id: FileId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid, sticky; without the type (see `FileKind::mode_bits`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names; for a directory as POSIX counts.
    pub links: u32,
    /// Size in bytes.
    pub size: u64,
    /// Space used, in blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred size of a request.
    pub block_size: u32,
    /// Device of a device file, as `makedev` combines it.
    pub device: u64,
    /// Last read, as the volume counts it; not replicated.
    pub atime: i64,
    /// Last change of the content.
    pub mtime: i64,
    /// Last change of anything.
    pub ctime: i64,
    /// Birth on this volume.
    pub btime: i64,
}

/// One entry of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Go on after this entry by handing it in.
    pub cookie: u64,
    /// Name.
    pub name: std::sync::Arc<[u8]>,
    /// File.
    pub id: FileId,
    /// What it is.
    pub kind: FileKind,
}

/// Space of the volume, as `statvfs` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Unit of the block counts in bytes.
    pub block_size: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks that may be used.
    pub blocks_available: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
}

impl Space {
    /// The size of the volume in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }

    /// Bytes that may still be used.
    pub fn available_bytes(&self) -> u64 {
        self.blocks_available.saturating_mul(self.block_size)
    }
}

impl Volume {
    /// What a name names; hidden names name nothing.
    pub fn lookup(&self, parent: FileId, name: &[u8]) -> Option<FileId> {
        self.tree.read().lookup(parent, name)
    }

    /// The directory above a directory (the root's is the root).
    pub fn parent(&self, id: FileId) -> Option<FileId> {
        let tree = self.tree.read();
        tree.node(id)?;
        Some(tree.parent(id).unwrap_or(crate::op::ROOT))
    }

    /// What a file is.
    pub fn kind(&self, id: FileId) -> Result<FileKind, Errno> {
        self.tree.read().node(id).map(|node| node.kind).ok_or(Errno::STALE)
    }

    /// A path to a file, for messages and reports only: names may change at any time.
    pub fn path_of(&self, id: FileId) -> Option<Vec<u8>> {
        let tree = self.tree.read();
        let mut names = Vec::new();
        let mut at = id;
        while let Some(link) = tree.node(at)?.links().first() {
            names.push(std::sync::Arc::clone(tree.name(*link)?));
            at = link.parent;
        }
        if at != crate::op::ROOT {
            return None;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    /// All attributes of a file.
    pub fn attributes(&self, id: FileId) -> Result<Attributes, Errno> {
        let stat = self.stat(id)?;
        let tree = self.tree.read();
        let node = tree.node(id).ok_or(Errno::STALE)?;
        let is_removed = id != crate::op::ROOT && node.links().is_empty();
        Ok(Attributes {
            id,
            kind: node.kind,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            links: if is_removed { 0 } else { node.link_count() },
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            block_size: stat.stx_blksize,
            device: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
            atime: nanoseconds(stat.stx_atime),
            mtime: node.mtime(),
            ctime: node.ctime(),
            btime: nanoseconds(stat.stx_btime),
        })
    }

    /// Reads content; fewer bytes than asked for only at the end of the file.
    pub fn read(&self, id: FileId, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.regular(id)?;
        let file = self.descriptor(id)?;
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..)
            && !rest.is_empty()
        {
            match pread(&file, rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn regular(&self, id: FileId) -> Result<(), Errno> {
        match self.kind(id)? {
            FileKind::File => Ok(()),
            FileKind::Directory => Err(Errno::ISDIR),
            FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::Character | FileKind::Block => {
                Err(Errno::INVAL)
            }
        }
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, id: FileId) -> Result<Vec<u8>, Errno> {
        if self.kind(id)? != FileKind::Symlink {
            return Err(Errno::INVAL);
        }
        Ok(readlinkat(self.descriptor(id)?, "", Vec::new())?.into_bytes())
    }

    /// Entries of a directory after a cookie (0: from the first), in order of their insertion, until `take` answers
    /// false. An entry that stays is neither missed nor seen twice, whatever else comes and goes.
    pub fn list(&self, id: FileId, after: u64, mut take: impl FnMut(&Listed) -> bool) -> Result<(), Errno> {
        let tree = self.tree.read();
        let directory = tree.node(id).ok_or(Errno::STALE)?.directory().ok_or(Errno::NOTDIR)?;
        for (cookie, entry) in directory.after(after) {
            let kind = tree.node(entry.id).map(|node| node.kind).ok_or(Errno::STALE)?;
            if !take(&Listed { cookie, name: std::sync::Arc::clone(&entry.name), id: entry.id, kind }) {
                break;
            }
        }
        Ok(())
    }

    /// Whether new files of a directory get access rules from it. Capture then reads them (`system.posix_acl_default`)
    /// and journals what a new file gets as operations of their own: the volume hands nothing down by itself.
    pub fn has_default_acl(&self, id: FileId) -> bool {
        let tree = self.tree.read();
        tree.node(id).and_then(Node::directory).is_some_and(|directory| directory.has_default_acl)
    }

    /// The value of an extended attribute. The kernel's limit is 64 KiB.
    pub fn get_xattr(&self, id: FileId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let kind = self.kind(id)?;
        if check_xattr(kind, name).is_err() {
            return Err(Errno::NODATA);
        }
        xattr_of(self.descriptor(id)?.as_fd(), kind, name)
    }

    /// The names of the extended attributes that the pair replicates.
    pub fn list_xattr(&self, id: FileId) -> Result<Vec<Vec<u8>>, Errno> {
        let kind = self.kind(id)?;
        xattrs_of(self.descriptor(id)?.as_fd(), kind)
    }

    /// The next data (or hole) at or after an offset, as `lseek` answers.
    pub fn seek(&self, id: FileId, offset: u64, hole: bool) -> Result<u64, Errno> {
        self.regular(id)?;
        let whence = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        seek(self.descriptor(id)?, whence)
    }

    /// Space of the volume.
    pub fn statfs(&self) -> Result<Space, Errno> {
        let stat = fstatvfs(&self.folders.root)?;
        Ok(Space {
            block_size: stat.f_frsize,
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
        })
    }
}

fn has_descriptor_calls(kind: FileKind) -> bool {
    matches!(kind, FileKind::File | FileKind::Directory)
}

/// The value of an extended attribute of an open file.
pub(crate) fn xattr_of(file: std::os::fd::BorrowedFd<'_>, kind: FileKind, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 256];
    loop {
        let read = if has_descriptor_calls(kind) {
            fgetxattr(file, name, value.as_mut_slice())
        } else {
            getxattr(own_path(file), name, value.as_mut_slice())
        };
        match read {
            Ok(length) => {
                value.truncate(length);
                return Ok(value);
            }
            Err(Errno::RANGE) if value.len() < 65536 => value.resize(65536, 0),
            Err(error) => return Err(error),
        }
    }
}

/// The names of the replicated extended attributes of an open file, sorted.
pub(crate) fn xattrs_of(file: std::os::fd::BorrowedFd<'_>, kind: FileKind) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = vec![0; 512];
    loop {
        let read = if has_descriptor_calls(kind) {
            flistxattr(file, names.as_mut_slice())
        } else {
            listxattr(own_path(file), names.as_mut_slice())
        };
        match read {
            Ok(length) => {
                names.truncate(length);
                break;
            }
            Err(Errno::RANGE) if names.len() < 65536 => names.resize(65536, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    let mut names: Vec<Vec<u8>> =
        names.split(|byte| *byte == 0).filter(|name| check_xattr(kind, name).is_ok()).map(<[u8]>::to_vec).collect();
    names.sort();
    Ok(names)
}
