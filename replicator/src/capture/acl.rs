//! What a new file inherits from its directory's default access rules (POSIX.1e draft 17, section 23.1.2; the bytes are
//! those of the kernel's `posix_acl_xattr`). Pure.

/// Extended attribute of the rules that a directory hands down.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";
/// Extended attribute of a file's own rules.
pub const ACCESS: &[u8] = b"system.posix_acl_access";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// A new file's permission bits and, if it needs more than those, its own rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Value of [`ACCESS`].
    pub access: Option<Vec<u8>>,
}

/// `mode` is what the caller of `open` or `mkdir` asked for: the umask does not count where there are default rules.
/// `None`: the rules are not understood.
pub fn inherit(default: &[u8], mode: u32) -> Option<Inherited> {
    let (version, entries) = default.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut access = default.to_vec();
    let has_mask = entries.chunks_exact(8).any(|entry| tag(entry) == MASK);
    let mut granted = 0;
    for entry in access[4..].chunks_exact_mut(8) {
        let (shift, limits) = match tag(entry) {
            USER_OBJ => (6, true),
            GROUP_OBJ => (3, !has_mask),
            MASK => (3, true),
            OTHER => (0, true),
            _ => continue,
        };
        let permissions = u16::from_le_bytes([entry[2], entry[3]]);
        if limits {
            let left = permissions & ((mode >> shift) & 7) as u16;
            entry[2..4].copy_from_slice(&left.to_le_bytes());
            granted |= u32::from(left & 7) << shift;
        }
    }
    let plain = entries.len() == 3 * 8;
    Some(Inherited { mode: (mode & !0o777) | granted, access: (!plain).then_some(access) })
}

fn tag(entry: &[u8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, permissions) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(u32::MAX.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn plain_rules_become_permission_bits() {
        let default = rules(&[(USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 0)]);
        assert_eq!(inherit(&default, 0o666), Some(Inherited { mode: 0o640, access: None }));
    }

    #[test]
    fn a_mask_takes_the_place_of_the_group() {
        let default = rules(&[(USER_OBJ, 7), (0x02, 7), (GROUP_OBJ, 7), (MASK, 7), (OTHER, 5)]);
        let access = rules(&[(USER_OBJ, 6), (0x02, 7), (GROUP_OBJ, 7), (MASK, 4), (OTHER, 4)]);
        assert_eq!(inherit(&default, 0o2644), Some(Inherited { mode: 0o2644, access: Some(access) }));
    }

    #[test]
    fn garbage_is_not_understood() {
        for bytes in [&b""[..], b"\x02\0\0", b"\x03\0\0\0", b"\x02\0\0\0\x01"] {
            assert_eq!(inherit(bytes, 0o644), None);
        }
    }
}
