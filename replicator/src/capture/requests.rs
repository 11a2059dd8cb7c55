//! What the kernel asks, one function for each kind of request. Reads are answered from the volume at once; mutations take
//! a turn; syncs wait in `commit`.
//!
//! Nobody but this mount changes the volume while it is served, so names and attributes are given to the kernel to keep,
//! and it is never asked for `open`, `create`, `flush` or `opendir`: it learns from one ENOSYS that these mean nothing here.

use std::sync::Arc;

use rustix::io::Errno;

use super::parking::Ticket;
use super::resend::Done;
use super::sequence::{Passage, Stopped, Turn};
use super::transport::{Handler, Reply, with_scratch};
use super::wire::{
    self, Attr, Entry, FOPEN_KEEP_CACHE, KEEP_SECONDS, Listing, Operation, Request, SetAttributes, SetTime, StatFs,
};
use super::{Capture, acl};
use crate::op::{FileId, Kind, Op};
use crate::volume::tree::NAME_BYTES_MAX;
use crate::volume::{Attributes, FileKind, Volume};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;
const PERMISSIONS: u32 = 0o7777;
const TYPE: u32 = 0o170_000;

const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;
const FALLOCATE_KEEP_SIZE: u32 = 0x01;
const FALLOCATE_PUNCH_HOLE: u32 = 0x02;
const FALLOCATE_ZERO_RANGE: u32 = 0x10;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
/// Flags of an open file: what is written is to be durable before the answer. `O_SYNC` contains `O_DSYNC`.
const O_DSYNC: u32 = 0o10_000;
/// Cookies of a listing: what the volume counts begins after `.` and `..`.
const DOTS: u64 = 2;

/// What waits at a held gate.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// A request of the kernel, with the bytes it came as. Its answer may be withdrawn meanwhile: then it is not performed.
    Request(Box<[u8]>, Ticket),
    /// A file without names that nobody holds any more is to go.
    Drop(FileId),
}

impl Waiting {
    pub(crate) fn refuse(self, errno: Errno) {
        match self {
            Waiting::Request(_, ticket) => {
                if let Some(reply) = ticket.take() {
                    reply.error(errno);
                }
            }
            // It stays, and goes when a gate is opened for a new application.
            Waiting::Drop(_) => {}
        }
    }
}

impl Handler for Capture {
    fn handle(&self, request: Request<'_>, reply: Reply) {
        if !changes_something(&request.operation) {
            return self.look(&request, reply);
        }
        match self.sequencer.enter(request.unique) {
            // Asked behind the gate: before it opened, what a predecessor performed was not known.
            Ok(passage) if request.resent => {
                let done = self.performed_of(request.unique);
                self.change(passage.after(done), &request, reply);
            }
            Ok(passage) => self.change(passage, &request, reply),
            Err(Stopped::Refused(errno)) => reply.error(errno),
            Err(Stopped::Held) => {
                let waiting = Waiting::Request(Box::from(request.message), reply.park());
                if let Some(again) = self.sequencer.gate().put_down(waiting) {
                    self.take_up(again);
                }
            }
        }
    }
}

fn changes_something(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::SetAttributes(_)
        | Operation::Symlink { .. }
        | Operation::MakeNode { .. }
        | Operation::MakeDirectory { .. }
        | Operation::Unlink { .. }
        | Operation::RemoveDirectory { .. }
        | Operation::Rename { .. }
        | Operation::Link { .. }
        | Operation::Write { .. }
        | Operation::SetXattr { .. }
        | Operation::RemoveXattr { .. }
        | Operation::Fallocate { .. }
        | Operation::TemporaryFile { .. } => true,
        Operation::Lookup { .. }
        | Operation::Forget(_)
        | Operation::GetAttributes { .. }
        | Operation::ReadLink
        | Operation::Open { .. }
        | Operation::Read { .. }
        | Operation::StatFs
        | Operation::Release { .. }
        | Operation::Fsync { .. }
        | Operation::GetXattr { .. }
        | Operation::ListXattr { .. }
        | Operation::Flush { .. }
        | Operation::Init(_)
        | Operation::OpenDirectory { .. }
        | Operation::ReadDirectory { .. }
        | Operation::ReleaseDirectory { .. }
        | Operation::FsyncDirectory { .. }
        | Operation::Access { .. }
        | Operation::Create { .. }
        | Operation::Interrupt { .. }
        | Operation::Destroy
        | Operation::Seek { .. }
        | Operation::CopyFileRange { .. }
        | Operation::SyncFs
        | Operation::Unsupported { .. } => false,
    }
}

impl Capture {
    /// Tries again what waited at the gate.
    pub(crate) fn take_up(&self, waiting: Waiting) {
        match waiting {
            Waiting::Drop(id) => self.drop_file(id),
            Waiting::Request(message, ticket) => {
                // From here on it is performed, and no interrupt takes that back.
                let Some(reply) = ticket.take() else { return };
                match wire::parse(&message) {
                    Ok(parsed) => self.handle(parsed.request, reply),
                    // It was parsed once before.
                    Err(_) => reply.error(Errno::IO),
                }
            }
        }
    }

    fn look(&self, request: &Request<'_>, reply: Reply) {
        let id = FileId(request.nodeid);
        match &request.operation {
            Operation::Lookup { name } => self.lookup(id, name, reply),
            Operation::Forget(forgets) => self.forget(forgets.clone()),
            Operation::GetAttributes { .. } => self.attributes(id, reply),
            Operation::ReadLink => answer(reply, self.volume.readlink(id), |reply, target| reply.bytes(&target)),
            Operation::Read { offset, size, .. } => with_scratch(*size, |buffer| {
                answer(reply, self.volume.read(id, *offset, buffer), |reply, length| reply.bytes(&buffer[..length]));
            }),
            Operation::StatFs => self.statfs(reply),
            Operation::Fsync { .. } | Operation::FsyncDirectory { .. } | Operation::SyncFs => self.sync(reply),
            Operation::GetXattr { name, .. } if is_bare(name) => reply.error(Errno::INVAL),
            Operation::GetXattr { name, size } => {
                answer(reply, self.volume.get_xattr(id, name), |reply, value| sized(reply, &value, *size));
            }
            Operation::ListXattr { size } => answer(reply, self.volume.list_xattr(id), |reply, names| {
                let mut list = Vec::new();
                for name in names {
                    list.extend_from_slice(&name);
                    list.push(0);
                }
                sized(reply, &list, *size);
            }),
            Operation::ReadDirectory { offset, size, plus, .. } => self.list(id, *offset, *size, *plus, reply),
            Operation::Seek { offset, whence, .. } => match *whence {
                SEEK_DATA | SEEK_HOLE => {
                    answer(reply, self.volume.seek(id, *offset, *whence == SEEK_HOLE), |reply, at| reply.position(at));
                }
                _ => reply.error(Errno::INVAL),
            },
            Operation::Release { .. } | Operation::ReleaseDirectory { .. } | Operation::Destroy => reply.ok(),
            // The transport sees to it.
            Operation::Interrupt { .. } => drop(reply),
            // The kernel then does by itself what is wanted: make and open, copy by reading and writing, check rights.
            Operation::Open { .. }
            | Operation::OpenDirectory { .. }
            | Operation::Create { .. }
            | Operation::Flush { .. }
            | Operation::Access { .. }
            | Operation::CopyFileRange { .. }
            | Operation::Init(_)
            | Operation::Unsupported { .. } => reply.error(Errno::NOSYS),
            // These are for `change`.
            Operation::SetAttributes(_)
            | Operation::Symlink { .. }
            | Operation::MakeNode { .. }
            | Operation::MakeDirectory { .. }
            | Operation::Unlink { .. }
            | Operation::RemoveDirectory { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. }
            | Operation::Write { .. }
            | Operation::SetXattr { .. }
            | Operation::RemoveXattr { .. }
            | Operation::Fallocate { .. }
            | Operation::TemporaryFile { .. } => reply.error(Errno::IO),
        }
    }

    fn change(&self, passage: Passage<'_>, request: &Request<'_>, reply: Reply) {
        let id = FileId(request.nodeid);
        if let Some(file) = passage.done().and_then(Done::file)
            && is_one_operation(&request.operation)
        {
            // A predecessor did all that was asked.
            drop(passage);
            return if let Operation::Link { .. } | Operation::Symlink { .. } = request.operation {
                self.entry(file, reply);
            } else {
                reply.ok();
            };
        }
        let who = Who { uid: request.uid, gid: request.gid };
        match &request.operation {
            Operation::SetAttributes(changes) => self.set_attributes(passage, id, changes, reply),
            Operation::Symlink { name, target } => {
                self.create(passage, &who, id, name, Kind::Symlink(target), 0o777, 0, reply);
            }
            Operation::MakeNode { name, mode, device, umask } => match node_kind(*mode, *device) {
                Some(kind) => self.create(passage, &who, id, name, kind, mode & PERMISSIONS, *umask, reply),
                None => reply.error(Errno::INVAL),
            },
            Operation::MakeDirectory { name, mode, umask } => {
                self.create(passage, &who, id, name, Kind::Directory, mode & PERMISSIONS, *umask, reply);
            }
            Operation::Unlink { name } | Operation::RemoveDirectory { name } => self.unlink(passage, id, name, reply),
            Operation::Rename { name, new_parent, new_name, flags } => {
                self.rename(passage, id, name, FileId(*new_parent), new_name, *flags, reply);
            }
            Operation::Link { file, name } => self.link(passage, FileId(*file), id, name, reply),
            Operation::Write { offset, data, write_flags, flags, .. } => {
                self.write(passage, id, *offset, data, *write_flags, *flags, reply);
            }
            Operation::SetXattr { name, value, flags, setxattr_flags } => {
                self.set_xattr(passage, id, name, value, *flags, *setxattr_flags, reply);
            }
            Operation::RemoveXattr { name } if is_bare(name) => reply.error(Errno::INVAL),
            Operation::RemoveXattr { name } => {
                let done = passage.file(id, |turn| match turn.volume().get_xattr(id, name) {
                    // Access rules that are not there may be removed, other attributes not.
                    Err(Errno::NODATA) if [acl::ACCESS, acl::DEFAULT].contains(name) => Ok(()),
                    Err(errno) => Err(errno),
                    Ok(_) => turn.perform(&Op::RemoveXattr { id, name }),
                });
                answer(reply, done, |reply, _| reply.ok());
            }
            Operation::Fallocate { offset, length, mode, .. } => {
                self.allocate(passage, id, *offset, *length, *mode, reply);
            }
            Operation::TemporaryFile { mode, umask, .. } => {
                self.unnamed(passage, &who, id, mode & PERMISSIONS, *umask, reply);
            }
            // These are for `look`.
            Operation::Lookup { .. }
            | Operation::Forget(_)
            | Operation::GetAttributes { .. }
            | Operation::ReadLink
            | Operation::Open { .. }
            | Operation::Read { .. }
            | Operation::StatFs
            | Operation::Release { .. }
            | Operation::Fsync { .. }
            | Operation::GetXattr { .. }
            | Operation::ListXattr { .. }
            | Operation::Flush { .. }
            | Operation::Init(_)
            | Operation::OpenDirectory { .. }
            | Operation::ReadDirectory { .. }
            | Operation::ReleaseDirectory { .. }
            | Operation::FsyncDirectory { .. }
            | Operation::Access { .. }
            | Operation::Create { .. }
            | Operation::Interrupt { .. }
            | Operation::Destroy
            | Operation::Seek { .. }
            | Operation::CopyFileRange { .. }
            | Operation::SyncFs
            | Operation::Unsupported { .. } => reply.error(Errno::IO),
        }
    }
}

/// Whether a request leads to one operation, and would find nothing to do, or something else, after it.
fn is_one_operation(operation: &Operation<'_>) -> bool {
    matches!(
        operation,
        Operation::Symlink { .. }
            | Operation::Unlink { .. }
            | Operation::RemoveDirectory { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. }
            | Operation::RemoveXattr { .. }
    )
}

/// On whose behalf a file is made.
struct Who {
    uid: u32,
    gid: u32,
}

/// What a new file gets.
struct Born {
    mode: u32,
    gid: u32,
    access: Option<Vec<u8>>,
    default: Option<Vec<u8>>,
}

impl Capture {
    fn lookup(&self, parent: FileId, name: &[u8], reply: Reply) {
        if name.len() > NAME_BYTES_MAX {
            return reply.error(Errno::NAMETOOLONG);
        }
        // No folder lists these: the kernel asks with them for a file of which it has nothing but a handle. Numbers are never
        // used twice, so a handle is as good on the other member, and good for ever.
        let found = match name {
            b"." => Some(parent),
            b".." => self.volume.parent(parent),
            name => self.volume.lookup(parent, name),
        };
        match found {
            Some(id) => self.entry(id, reply),
            None if self.volume.kind(parent).is_err() => reply.error(Errno::STALE),
            None => reply.entry(&Entry::absent()),
        }
    }

    /// Names a file to the kernel, which holds it from then on.
    fn entry(&self, id: FileId, reply: Reply) {
        self.volume.hold(id);
        match self.volume.attributes(id) {
            Ok(attributes) => reply.entry(&Entry::found(attr_of(&attributes))),
            Err(errno) => {
                self.let_go(id, 1);
                reply.error(errno);
            }
        }
    }

    fn forget(&self, forgets: wire::Forgets<'_>) {
        for (id, count) in forgets {
            self.let_go(FileId(id), count);
        }
    }

    fn let_go(&self, id: FileId, count: u64) {
        if self.volume.release(id, count) {
            self.drop_file(id);
        }
    }

    fn attributes(&self, id: FileId, reply: Reply) {
        answer(reply, self.volume.attributes(id), |reply, found| reply.attributes(&attr_of(&found), KEEP_SECONDS));
    }

    fn set_attributes(&self, passage: Passage<'_>, id: FileId, changes: &SetAttributes, reply: Reply) {
        let done = passage.file(id, |turn| {
            let now = turn.volume().attributes(id)?;
            if let Some(size) = changes.size {
                turn.perform(&Op::Truncate { id, size })?;
            }
            if changes.uid.is_some() || changes.gid.is_some() {
                let (uid, gid) = (changes.uid.unwrap_or(now.uid), changes.gid.unwrap_or(now.gid));
                turn.perform(&Op::SetOwner { id, uid, gid })?;
            }
            if let Some(mode) = changes.mode {
                turn.perform(&Op::SetMode { id, mode: mode & PERMISSIONS })?;
            } else if changes.kill_suidgid {
                lose_privileges(turn, id, now.mode)?;
            }
            if changes.atime.is_some() || changes.mtime.is_some() {
                let at = |time: Option<SetTime>| {
                    time.map(|time| match time {
                        SetTime::Now => turn.time(),
                        SetTime::At(at) => at,
                    })
                };
                let (atime, mtime) = (at(changes.atime), at(changes.mtime));
                turn.perform(&Op::SetTimes { id, atime, mtime })?;
            }
            turn.volume().attributes(id)
        });
        answer(reply, done, |reply, (found, _)| reply.attributes(&attr_of(&found), KEEP_SECONDS));
    }

    #[allow(clippy::too_many_arguments, reason = "they are those of the request")]
    fn create(
        &self,
        passage: Passage<'_>,
        who: &Who,
        parent: FileId,
        name: &[u8],
        kind: Kind<'_>,
        mode: u32,
        umask: u32,
        reply: Reply,
    ) {
        let mut spoiled = None;
        let made = passage.names(|turn| {
            let of = FileKind::of(&kind);
            let born = born(turn.volume(), parent, who, of, mode, umask)?;
            let id = turn.done().and_then(Done::file).unwrap_or_else(|| turn.volume().next_id());
            turn.perform(&Op::Create { id, parent, name, kind, mode: born.mode, uid: who.uid, gid: born.gid })?;
            // Held before anybody else may take a turn: it must not be dropped under the kernel's hands.
            turn.volume().hold(id);
            if let Err(errno) = endow(turn, id, &born) {
                // Without its access rules it would let in more than it should. Somebody may have it open by now.
                spoiled = Some(id);
                turn.take_name_back(id, parent, name)?;
                return Err(errno);
            }
            Ok(id)
        });
        if let Some(id) = spoiled {
            self.let_go(id, 1);
        }
        answer(reply, made, |reply, id| match self.volume.attributes(id) {
            Ok(attributes) => reply.entry(&Entry::found(attr_of(&attributes))),
            Err(errno) => {
                self.let_go(id, 1);
                reply.error(errno);
            }
        });
    }

    fn unnamed(&self, passage: Passage<'_>, who: &Who, parent: FileId, mode: u32, umask: u32, reply: Reply) {
        let mut spoiled = None;
        let made = passage.names(|turn| {
            let born = born(turn.volume(), parent, who, FileKind::File, mode, umask)?;
            let id = turn.done().and_then(Done::file).unwrap_or_else(|| turn.volume().next_id());
            turn.perform(&Op::CreateUnnamed { id, mode: born.mode, uid: who.uid, gid: born.gid })?;
            turn.volume().hold(id);
            endow(turn, id, &born).inspect_err(|_| spoiled = Some(id))?;
            turn.volume().attributes(id)
        });
        if let Some(id) = spoiled {
            self.let_go(id, 1);
        }
        answer(reply, made, |reply, found| reply.created(&Entry::found(attr_of(&found)), 0, FOPEN_KEEP_CACHE));
    }

    fn unlink(&self, passage: Passage<'_>, parent: FileId, name: &[u8], reply: Reply) {
        let done = passage.names(|turn| {
            let id = turn.volume().lookup(parent, name).ok_or(Errno::NOENT)?;
            turn.perform(&Op::Unlink { id, parent, name })
        });
        // It goes when the kernel forgets it: somebody may hold it open, which after a restart of this process is known
        // to the kernel only.
        answer(reply, done, |reply, ()| reply.ok());
    }

    #[allow(clippy::too_many_arguments, reason = "they are those of the request")]
    fn rename(
        &self,
        passage: Passage<'_>,
        parent: FileId,
        name: &[u8],
        new_parent: FileId,
        new_name: &[u8],
        flags: u32,
        reply: Reply,
    ) {
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0 {
            return reply.error(Errno::INVAL);
        }
        let done = passage.names(|turn| {
            let id = turn.volume().lookup(parent, name).ok_or(Errno::NOENT)?;
            let there = turn.volume().lookup(new_parent, new_name);
            if flags & RENAME_EXCHANGE != 0 {
                let other = there.ok_or(Errno::NOENT)?;
                return turn.perform(&Op::Exchange {
                    id,
                    parent,
                    name,
                    other,
                    other_parent: new_parent,
                    other_name: new_name,
                });
            }
            if there.is_some() && flags & RENAME_NOREPLACE != 0 {
                return Err(Errno::EXIST);
            }
            if there == Some(id) {
                // Two names of one file: POSIX wants nothing done.
                return Ok(());
            }
            turn.perform(&Op::Rename { id, parent, name, new_parent, new_name, replaced: there })
        });
        answer(reply, done, |reply, ()| reply.ok());
    }

    fn link(&self, passage: Passage<'_>, id: FileId, parent: FileId, name: &[u8], reply: Reply) {
        let done = passage.names(|turn| turn.perform(&Op::Link { id, parent, name }));
        answer(reply, done, |reply, ()| self.entry(id, reply));
    }

    #[allow(clippy::too_many_arguments, reason = "they are those of the request")]
    fn write(
        &self,
        passage: Passage<'_>,
        id: FileId,
        offset: u64,
        data: &[u8],
        write_flags: u32,
        flags: u32,
        reply: Reply,
    ) {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let mut lost = false;
        let done = passage.file(id, |turn| {
            if write_flags & wire::WRITE_KILL_SUIDGID != 0 {
                let mode = turn.volume().attributes(id)?.mode;
                // A predecessor that took them away may not have come to tell the kernel.
                lost = lose_privileges(turn, id, mode)? || turn.done().is_some();
            }
            turn.perform(&Op::Write { id, offset, data })
        });
        if lost {
            reply.forget_attributes(id.0);
        }
        answer(reply, done, |reply, ((), seq)| {
            if flags & O_DSYNC == 0 {
                // What the kernel writes back by itself it cannot hold up without holding up reads.
                let is_paced = write_flags & wire::WRITE_CACHE == 0;
                let Some(earlier) = self.commit.pace(seq).filter(|_| is_paced) else { return reply.written(length) };
                let ticket = reply.park();
                let go_on = move || ticket.take().into_iter().for_each(|reply| reply.written(length));
                return self.commit.when_paced(earlier, Box::new(go_on));
            }
            // Nothing was done if a predecessor did it all, and it may not have been told.
            let seq = if seq == 0 { self.journal.end().seq } else { seq };
            self.when_safe(seq, reply, move |reply| reply.written(length));
        });
    }

    /// Everything that was answered before is to be safe. One file or all: there is one journal.
    fn sync(&self, reply: Reply) {
        if self.sequencer.gate().shows_only() {
            return reply.ok();
        }
        let seq = self.journal.end().seq;
        self.when_safe(seq, reply, Reply::ok);
    }

    /// Answers once everything up to an operation may be called safe. What was performed stays performed, also when nobody
    /// waits for the answer any more.
    fn when_safe(&self, seq: u64, reply: Reply, done: impl FnOnce(Reply) + Send + 'static) {
        let ticket = reply.park();
        let told = move |told| {
            if let Some(reply) = ticket.take() {
                answer(reply, told, |reply, ()| done(reply));
            }
        };
        self.commit.when_acknowledged(seq, Box::new(told));
    }

    #[allow(clippy::too_many_arguments, reason = "they are those of the request")]
    fn set_xattr(
        &self,
        passage: Passage<'_>,
        id: FileId,
        name: &[u8],
        value: &[u8],
        flags: u32,
        setxattr_flags: u32,
        reply: Reply,
    ) {
        if is_bare(name) {
            return reply.error(Errno::INVAL);
        }
        let done = passage.file(id, |turn| {
            if turn.done().is_none() {
                // Also without flags: attributes that the volume does not know are refused before they are journaled.
                match turn.volume().get_xattr(id, name) {
                    Ok(_) if flags & XATTR_CREATE != 0 => return Err(Errno::EXIST),
                    Err(Errno::NODATA) if flags & XATTR_REPLACE != 0 => return Err(Errno::NODATA),
                    Ok(_) | Err(Errno::NODATA) => {}
                    Err(errno) => return Err(errno),
                }
            }
            turn.perform(&Op::SetXattr { id, name, value })?;
            if setxattr_flags & wire::SETXATTR_ACL_KILL_SGID != 0 {
                let mode = turn.volume().attributes(id)?.mode;
                if mode & SETGID != 0 {
                    turn.perform(&Op::SetMode { id, mode: mode & !SETGID })?;
                }
            }
            Ok(())
        });
        answer(reply, done, |reply, _| reply.ok());
    }

    fn allocate(&self, passage: Passage<'_>, id: FileId, offset: u64, length: u64, mode: u32, reply: Reply) {
        let keep_size = mode & FALLOCATE_KEEP_SIZE != 0;
        let op = match mode & !FALLOCATE_KEEP_SIZE {
            0 => Op::Allocate { id, offset, length, keep_size },
            FALLOCATE_PUNCH_HOLE if keep_size => Op::Punch { id, offset, length },
            FALLOCATE_ZERO_RANGE => Op::Zero { id, offset, length, keep_size },
            // Collapsing and inserting ranges cannot be redone over a later state of the file.
            _ => return reply.error(Errno::OPNOTSUPP),
        };
        let mut lost = false;
        let done = passage.file(id, |turn| {
            // The kernel leaves it to us, and does not say here who asks. Only the mightiest might keep them.
            let mode = turn.volume().attributes(id)?.mode;
            lost = lose_privileges(turn, id, mode)? || turn.done().is_some();
            turn.perform(&op)
        });
        if lost {
            reply.forget_attributes(id.0);
        }
        answer(reply, done, |reply, _| reply.ok());
    }

    fn list(&self, id: FileId, offset: u64, size: u32, plus: bool, reply: Reply) {
        let mut listing = Listing::new(size);
        let mut at = offset;
        while at < DOTS {
            let (dot, name): (FileId, &[u8]) =
                if at == 0 { (id, b".") } else { (self.volume.parent(id).unwrap_or(id), b"..") };
            let taken = if plus {
                // Not counted as known: the kernel takes neither for a name.
                let attr = Attr { ino: dot.0, mode: FileKind::Directory.mode_bits(), ..Attr::default() };
                listing.push_plus(&Entry { nodeid: 0, entry_valid: 0, attr_valid: 0, attr }, at + 1, name)
            } else {
                listing.push(dot.0, at + 1, FileKind::Directory.mode_bits() >> 12, name)
            };
            if !taken {
                return reply.listing(&listing);
            }
            at += 1;
        }
        let mut found = Vec::new();
        // A name takes at least this many bytes of the answer.
        let most = size as usize / if plus { 152 } else { 32 } + 1;
        let listed = self.volume.list(id, at - DOTS, |entry| {
            found.push(entry.clone());
            found.len() < most
        });
        if let Err(errno) = listed {
            return reply.error(errno);
        }
        for entry in found {
            let next = entry.cookie + DOTS;
            if !plus {
                if !listing.push(entry.id.0, next, entry.kind.mode_bits() >> 12, &entry.name) {
                    break;
                }
                continue;
            }
            self.volume.hold(entry.id);
            let taken = match self.volume.attributes(entry.id) {
                Ok(attributes) => listing.push_plus(&Entry::found(attr_of(&attributes)), next, &entry.name),
                // It went meanwhile.
                Err(_) => {
                    self.let_go(entry.id, 1);
                    continue;
                }
            };
            if !taken {
                self.let_go(entry.id, 1);
                break;
            }
        }
        reply.listing(&listing);
    }

    fn statfs(&self, reply: Reply) {
        answer(reply, self.volume.statfs(), |reply, space| {
            let size = u32::try_from(space.block_size).unwrap_or(u32::MAX);
            reply.statfs(&StatFs {
                blocks: space.blocks,
                bfree: space.blocks_free,
                bavail: space.blocks_available,
                files: space.files,
                ffree: space.files_free,
                bsize: size,
                frsize: size,
                namelen: 255,
            });
        });
    }
}

/// Owner, rights and inherited rules of a new file, as POSIX and its directory have it.
fn born(volume: &Volume, parent: FileId, who: &Who, kind: FileKind, mode: u32, umask: u32) -> Result<Born, Errno> {
    let directory = volume.attributes(parent)?;
    let mut born = Born { mode, gid: who.gid, access: None, default: None };
    if directory.mode & SETGID != 0 {
        born.gid = directory.gid;
        if kind == FileKind::Directory {
            born.mode |= SETGID;
        }
    }
    if kind == FileKind::Symlink {
        return Ok(born);
    }
    if volume.has_default_acl(parent) {
        let default = volume.get_xattr(parent, acl::DEFAULT)?;
        let inherited = acl::inherit(&default, born.mode).ok_or(Errno::IO)?;
        born.mode = inherited.mode;
        born.access = inherited.access;
        born.default = (kind == FileKind::Directory).then_some(default);
    } else {
        born.mode &= !(umask & 0o777);
    }
    Ok(born)
}

/// Gives a new file the rules it inherits.
fn endow(turn: &mut Turn<'_>, id: FileId, born: &Born) -> Result<(), Errno> {
    for (name, value) in [(acl::ACCESS, &born.access), (acl::DEFAULT, &born.default)] {
        if let Some(value) = value {
            turn.perform(&Op::SetXattr { id, name, value })?;
        }
    }
    Ok(())
}

/// A name space without a name in it: elsewhere the kernel refuses it before it asks.
fn is_bare(name: &[u8]) -> bool {
    name.ends_with(b".") && name.iter().filter(|byte| **byte == b'.').count() == 1
}

/// Setuid goes, and setgid where it stands for execution. Whether there was any.
fn lose_privileges(turn: &mut Turn<'_>, id: FileId, mode: u32) -> Result<bool, Errno> {
    let lost = SETUID | if mode & GROUP_EXECUTE != 0 { SETGID } else { 0 };
    if mode & lost == 0 {
        return Ok(false);
    }
    turn.perform(&Op::SetMode { id, mode: mode & !lost })?;
    Ok(true)
}

fn node_kind(mode: u32, device: u32) -> Option<Kind<'static>> {
    let (major, minor) = (u64::from((device >> 8) & 0xfff), u64::from((device & 0xff) | ((device >> 12) & 0xf_ff00)));
    let device = rustix::fs::makedev(major as u32, minor as u32);
    match FileKind::from_mode(if mode & TYPE == 0 { mode | 0o100_000 } else { mode })? {
        FileKind::File => Some(Kind::File),
        FileKind::Fifo => Some(Kind::Fifo),
        FileKind::Socket => Some(Kind::Socket),
        FileKind::Character => Some(Kind::Character(device)),
        FileKind::Block => Some(Kind::Block(device)),
        FileKind::Directory | FileKind::Symlink => None,
    }
}

fn attr_of(found: &Attributes) -> Attr {
    let (major, minor) = (rustix::fs::major(found.device), rustix::fs::minor(found.device));
    Attr {
        ino: found.id.0,
        size: found.size,
        blocks: found.blocks,
        atime: found.atime,
        mtime: found.mtime,
        ctime: found.ctime,
        mode: found.kind.mode_bits() | found.mode,
        nlink: found.links,
        uid: found.uid,
        gid: found.gid,
        rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        blksize: found.block_size,
    }
}

/// Answers with what was found, or with why it was not.
fn answer<T>(reply: Reply, result: Result<T, Errno>, found: impl FnOnce(Reply, T)) {
    match result {
        Ok(value) => found(reply, value),
        Err(errno) => reply.error(errno),
    }
}

/// A value whose length may be asked for first.
fn sized(reply: Reply, value: &[u8], size: u32) {
    if size == 0 {
        reply.xattr_length(u32::try_from(value.len()).unwrap_or(u32::MAX));
    } else if value.len() > size as usize {
        reply.error(Errno::RANGE);
    } else {
        reply.bytes(value);
    }
}

/// Runs a file system on a connection until it ends.
pub fn serve(
    capture: &Arc<Capture>,
    session: &Arc<super::transport::Session>,
    threads: usize,
) -> std::io::Result<super::transport::Running> {
    let handler: Arc<dyn Handler> = Arc::clone(capture) as Arc<dyn Handler>;
    session.run(handler, threads)
}
