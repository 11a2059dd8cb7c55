//! The bytes of an operation: a small head, and for operations that carry bulk a payload that is borrowed, never copied.
//! One operation has exactly one encoding, and every limit is checked before anything is believed: what decodes can be
//! performed without a further look at lengths. The same bytes lie in both journals and travel between them.

use crate::op::{FileId, Kind, Op};

/// Longest name in a directory.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest target of a symbolic link.
pub const TARGET_BYTES_MAX: usize = 4095;
/// Longest value of an extended attribute.
pub const XATTR_BYTES_MAX: usize = 64 << 10;
/// Most data of one write.
pub const DATA_BYTES_MAX: usize = 4 << 20;
/// The highest id of a file. No master counts so far; one that came from elsewhere must not leave the next one without any.
pub const ID_MAX: u64 = i64::MAX as u64;
/// Longest head of any operation: a tag, a few numbers, at most two names.
pub const HEAD_BYTES_MAX: usize = 640;
const MEMBER_BYTES_MAX: usize = 63;
const MODE_BITS: u32 = 0o7777;

/// Why bytes are not an operation, or an operation cannot become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The head ends too early.
    #[error("operation is cut short")]
    Short,
    /// The head goes on after its last field, or bulk follows an operation that has none.
    #[error("operation has bytes left over")]
    LeftOver,
    /// The tag is not known to this version.
    #[error("operation has unknown tag {0}")]
    Tag(u8),
    /// A file id, mode, flag, offset or size outside its range.
    #[error("operation has a number out of range")]
    Number,
    /// A name that no directory may hold.
    #[error("operation has an impossible name")]
    Name,
    /// Bulk longer than its limit.
    #[error("operation carries too many bytes")]
    TooLong,
}

/// An operation as bytes: `head` then `payload`.
pub struct Encoded<'a> {
    head: [u8; HEAD_BYTES_MAX],
    length: usize,
    /// The bulk, borrowed from the operation.
    pub payload: &'a [u8],
}

impl Encoded<'_> {
    /// Everything but the bulk.
    pub fn head(&self) -> &[u8] {
        &self.head[..self.length]
    }
}

/// The bytes of an operation, or why it must not be journaled.
pub fn encode<'a>(op: &Op<'a>) -> Result<Encoded<'a>, CodecError> {
    let mut out = Writer { head: [0; HEAD_BYTES_MAX], length: 0 };
    let mut payload: &[u8] = &[];
    match *op {
        Op::Create { id, parent, name, ref kind, mode, uid, gid } => {
            out.byte(1);
            out.id(id)?;
            out.id(parent)?;
            out.name(name)?;
            match *kind {
                Kind::File => out.byte(0),
                Kind::Directory => out.byte(1),
                Kind::Symlink(target) => {
                    check_target(target)?;
                    out.byte(2);
                    payload = target;
                }
                Kind::Fifo => out.byte(3),
                Kind::Socket => out.byte(4),
                Kind::Character(device) => {
                    out.byte(5);
                    out.number(device);
                }
                Kind::Block(device) => {
                    out.byte(6);
                    out.number(device);
                }
            }
            out.mode(mode)?;
            out.small(uid);
            out.small(gid);
        }
        Op::CreateUnnamed { id, mode, uid, gid } => {
            out.byte(2);
            out.id(id)?;
            out.mode(mode)?;
            out.small(uid);
            out.small(gid);
        }
        Op::Link { id, parent, name } => {
            out.byte(3);
            out.id(id)?;
            out.id(parent)?;
            out.name(name)?;
        }
        Op::Unlink { id, parent, name } => {
            out.byte(4);
            out.id(id)?;
            out.id(parent)?;
            out.name(name)?;
        }
        Op::Rename { id, parent, name, new_parent, new_name, replaced } => {
            out.byte(5);
            out.id(id)?;
            out.id(parent)?;
            out.name(name)?;
            out.id(new_parent)?;
            out.name(new_name)?;
            match replaced {
                None => out.byte(0),
                Some(replaced) => {
                    out.byte(1);
                    out.id(replaced)?;
                }
            }
        }
        Op::Exchange { id, parent, name, other, other_parent, other_name } => {
            out.byte(6);
            out.id(id)?;
            out.id(parent)?;
            out.name(name)?;
            out.id(other)?;
            out.id(other_parent)?;
            out.name(other_name)?;
        }
        Op::Drop { id } => {
            out.byte(7);
            out.id(id)?;
        }
        Op::Write { id, offset, data } => {
            if data.len() > DATA_BYTES_MAX {
                return Err(CodecError::TooLong);
            }
            out.byte(8);
            out.id(id)?;
            out.range(offset, data.len() as u64)?;
            payload = data;
        }
        Op::Truncate { id, size } => {
            out.byte(9);
            out.id(id)?;
            out.range(size, 0)?;
        }
        Op::Allocate { id, offset, length, keep_size } => {
            out.byte(10);
            out.id(id)?;
            out.range(offset, length)?;
            out.number(length);
            out.byte(keep_size.into());
        }
        Op::Punch { id, offset, length } => {
            out.byte(11);
            out.id(id)?;
            out.range(offset, length)?;
            out.number(length);
        }
        Op::Zero { id, offset, length, keep_size } => {
            out.byte(12);
            out.id(id)?;
            out.range(offset, length)?;
            out.number(length);
            out.byte(keep_size.into());
        }
        Op::SetMode { id, mode } => {
            out.byte(13);
            out.id(id)?;
            out.mode(mode)?;
        }
        Op::SetOwner { id, uid, gid } => {
            out.byte(14);
            out.id(id)?;
            out.small(uid);
            out.small(gid);
        }
        Op::SetTimes { id, atime, mtime } => {
            out.byte(15);
            out.id(id)?;
            out.byte(u8::from(atime.is_some()) | u8::from(mtime.is_some()) << 1);
            for time in [atime, mtime].into_iter().flatten() {
                out.number(time as u64);
            }
        }
        Op::SetXattr { id, name, value } => {
            if value.len() > XATTR_BYTES_MAX {
                return Err(CodecError::TooLong);
            }
            out.byte(16);
            out.id(id)?;
            out.attribute(name)?;
            payload = value;
        }
        Op::RemoveXattr { id, name } => {
            out.byte(17);
            out.id(id)?;
            out.attribute(name)?;
        }
        Op::Begin { member } => {
            out.byte(18);
            out.text(member)?;
        }
    }
    Ok(Encoded { head: out.head, length: out.length, payload })
}

/// The operation in bytes that may come from anywhere.
pub fn decode<'a>(head: &'a [u8], payload: &'a [u8]) -> Result<Op<'a>, CodecError> {
    if head.len() > HEAD_BYTES_MAX {
        return Err(CodecError::TooLong);
    }
    let mut from = Reader { rest: head };
    let mut bulk = payload;
    let tag = from.byte()?;
    let op = match tag {
        1 => {
            let (id, parent, name) = (from.id()?, from.id()?, from.name()?);
            let kind = match from.byte()? {
                0 => Kind::File,
                1 => Kind::Directory,
                2 => {
                    check_target(bulk)?;
                    Kind::Symlink(std::mem::take(&mut bulk))
                }
                3 => Kind::Fifo,
                4 => Kind::Socket,
                5 => Kind::Character(from.number()?),
                6 => Kind::Block(from.number()?),
                _ => return Err(CodecError::Number),
            };
            Op::Create { id, parent, name, kind, mode: from.mode()?, uid: from.small()?, gid: from.small()? }
        }
        2 => Op::CreateUnnamed { id: from.id()?, mode: from.mode()?, uid: from.small()?, gid: from.small()? },
        3 => Op::Link { id: from.id()?, parent: from.id()?, name: from.name()? },
        4 => Op::Unlink { id: from.id()?, parent: from.id()?, name: from.name()? },
        5 => Op::Rename {
            id: from.id()?,
            parent: from.id()?,
            name: from.name()?,
            new_parent: from.id()?,
            new_name: from.name()?,
            replaced: if from.flag()? { Some(from.id()?) } else { None },
        },
        6 => Op::Exchange {
            id: from.id()?,
            parent: from.id()?,
            name: from.name()?,
            other: from.id()?,
            other_parent: from.id()?,
            other_name: from.name()?,
        },
        7 => Op::Drop { id: from.id()? },
        8 => {
            let (id, offset) = (from.id()?, from.number()?);
            let data = std::mem::take(&mut bulk);
            if data.len() > DATA_BYTES_MAX {
                return Err(CodecError::TooLong);
            }
            check_range(offset, data.len() as u64)?;
            Op::Write { id, offset, data }
        }
        9 => {
            let (id, size) = (from.id()?, from.number()?);
            check_range(size, 0)?;
            Op::Truncate { id, size }
        }
        10 => {
            let (id, (offset, length), keep_size) = (from.id()?, from.range()?, from.flag()?);
            Op::Allocate { id, offset, length, keep_size }
        }
        11 => {
            let (id, (offset, length)) = (from.id()?, from.range()?);
            Op::Punch { id, offset, length }
        }
        12 => {
            let (id, (offset, length), keep_size) = (from.id()?, from.range()?, from.flag()?);
            Op::Zero { id, offset, length, keep_size }
        }
        13 => Op::SetMode { id: from.id()?, mode: from.mode()? },
        14 => Op::SetOwner { id: from.id()?, uid: from.small()?, gid: from.small()? },
        15 => {
            let (id, which) = (from.id()?, from.byte()?);
            if which > 3 {
                return Err(CodecError::Number);
            }
            let atime = if which & 1 != 0 { Some(from.number()? as i64) } else { None };
            let mtime = if which & 2 != 0 { Some(from.number()? as i64) } else { None };
            Op::SetTimes { id, atime, mtime }
        }
        16 => {
            let (id, name) = (from.id()?, from.attribute()?);
            let value = std::mem::take(&mut bulk);
            if value.len() > XATTR_BYTES_MAX {
                return Err(CodecError::TooLong);
            }
            Op::SetXattr { id, name, value }
        }
        17 => Op::RemoveXattr { id: from.id()?, name: from.attribute()? },
        18 => Op::Begin { member: from.text()? },
        unknown => return Err(CodecError::Tag(unknown)),
    };
    if !from.rest.is_empty() || !bulk.is_empty() {
        return Err(CodecError::LeftOver);
    }
    Ok(op)
}

/// A name that a directory may hold: nothing that could lead out of it.
pub fn check_name(name: &[u8]) -> Result<(), CodecError> {
    let possible = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
    if possible { Ok(()) } else { Err(CodecError::Name) }
}

fn check_attribute(name: &[u8]) -> Result<(), CodecError> {
    let possible = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(&0);
    if possible { Ok(()) } else { Err(CodecError::Name) }
}

/// What a symbolic link may point to. Nobody here follows it.
pub fn check_target(target: &[u8]) -> Result<(), CodecError> {
    let possible = (1..=TARGET_BYTES_MAX).contains(&target.len()) && !target.contains(&0);
    if possible { Ok(()) } else { Err(CodecError::Name) }
}

/// File offsets are signed for the kernel; a range must end where an offset can be.
fn check_range(offset: u64, length: u64) -> Result<(), CodecError> {
    match offset.checked_add(length) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(CodecError::Number),
    }
}

struct Writer {
    head: [u8; HEAD_BYTES_MAX],
    length: usize,
}

impl Writer {
    // The longest operation (Exchange: four ids, two names) has 1 + 4 * 8 + 2 * 256 bytes; `HEAD_BYTES_MAX` is above that.
    fn bytes(&mut self, bytes: &[u8]) {
        self.head[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    fn byte(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    fn small(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn number(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn id(&mut self, id: FileId) -> Result<(), CodecError> {
        if id.0 == 0 || id.0 > ID_MAX {
            return Err(CodecError::Number);
        }
        self.number(id.0);
        Ok(())
    }

    fn mode(&mut self, mode: u32) -> Result<(), CodecError> {
        if mode & !MODE_BITS != 0 {
            return Err(CodecError::Number);
        }
        self.small(mode);
        Ok(())
    }

    fn range(&mut self, offset: u64, length: u64) -> Result<(), CodecError> {
        check_range(offset, length)?;
        self.number(offset);
        Ok(())
    }

    fn name(&mut self, name: &[u8]) -> Result<(), CodecError> {
        check_name(name)?;
        self.byte(name.len() as u8);
        self.bytes(name);
        Ok(())
    }

    fn attribute(&mut self, name: &[u8]) -> Result<(), CodecError> {
        check_attribute(name)?;
        self.byte(name.len() as u8);
        self.bytes(name);
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), CodecError> {
        if text.len() > MEMBER_BYTES_MAX {
            return Err(CodecError::TooLong);
        }
        self.byte(text.len() as u8);
        self.bytes(text.as_bytes());
        Ok(())
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, CodecError> {
        Ok(self.take(1)?[0])
    }

    fn flag(&mut self) -> Result<bool, CodecError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Number),
        }
    }

    fn small(&mut self) -> Result<u32, CodecError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(u32::from_le_bytes(*bytes))
    }

    fn number(&mut self) -> Result<u64, CodecError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    fn id(&mut self) -> Result<FileId, CodecError> {
        match self.number()? {
            id @ 1..=ID_MAX => Ok(FileId(id)),
            _ => Err(CodecError::Number),
        }
    }

    fn mode(&mut self) -> Result<u32, CodecError> {
        match self.small()? {
            mode if mode & !MODE_BITS == 0 => Ok(mode),
            _ => Err(CodecError::Number),
        }
    }

    fn range(&mut self) -> Result<(u64, u64), CodecError> {
        let (offset, length) = (self.number()?, self.number()?);
        check_range(offset, length)?;
        Ok((offset, length))
    }

    fn counted(&mut self) -> Result<&'a [u8], CodecError> {
        let count = self.byte()?;
        self.take(count.into())
    }

    fn name(&mut self) -> Result<&'a [u8], CodecError> {
        let name = self.counted()?;
        check_name(name)?;
        Ok(name)
    }

    fn attribute(&mut self) -> Result<&'a [u8], CodecError> {
        let name = self.counted()?;
        check_attribute(name)?;
        Ok(name)
    }

    fn text(&mut self) -> Result<&'a str, CodecError> {
        let text = self.counted()?;
        if text.len() > MEMBER_BYTES_MAX {
            return Err(CodecError::TooLong);
        }
        std::str::from_utf8(text).map_err(|_| CodecError::Name)
    }
}

#[cfg(test)]
mod tests;
