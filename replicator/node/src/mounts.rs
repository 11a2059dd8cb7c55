//! Everything that touches the kernel's mounts and FUSE connections. Nothing here ever looks *into* a mount: not `stat`,
//! not `open`. Whoever does waits for whoever serves it, possibly for ever.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create, fsmount, fsopen, mount,
    mount_bind, mount_remount, unmount as umount,
};
use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type our data mounts have in mount tables.
pub const DATA_TYPE: &str = "fuse.tandem";

/// Descriptors per connection: each has a queue of its own, so this many threads of the replicator never meet.
const DESCRIPTORS: usize = 4;

/// One line of a mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Minor number of the device: for FUSE, the connection's number in fusectl.
    pub minor: u32,
    /// Where.
    pub target: PathBuf,
    /// Type, with subtype.
    pub kind: String,
}

/// What is mounted at `target`, topmost.
pub fn mounted_at(target: &Path) -> io::Result<Option<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?).into_iter().rfind(|mount| mount.target == target))
}

fn parse(table: &[u8]) -> Vec<Mount> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b' ');
            let device = std::str::from_utf8(fields.nth(2)?).ok()?;
            let minor = device.split_once(':')?.1.parse().ok()?;
            let target = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
            // Optional fields end with a dash.
            fields.find(|field| *field == b"-")?;
            let kind = String::from_utf8_lossy(fields.next()?).into_owned();
            Some(Mount { minor, target, kind })
        })
        .collect()
}

/// Blanks and the like stand as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'\\'
            && let Some((digits, after)) = after.split_at_checked(3)
            && let Some(value) = std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            plain.push(value);
            rest = after;
        } else {
            plain.push(byte);
        }
    }
    plain
}

/// Makes the directory a volume is to be mounted on. Existing is fine: it may even be mounted already, and is not looked
/// into.
pub fn make_target(target: &Path) -> io::Result<()> {
    match rustix::fs::mkdir(target, Mode::from_raw_mode(0o750)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A FUSE mount that nobody serves yet, and the descriptors that serve it. Whatever enters it waits; the bare directory
/// beneath is never seen.
pub fn mount_data(target: &Path, volume: &str) -> io::Result<(Vec<OwnedFd>, u32)> {
    let first = open_fuse()?;
    let options = CString::new(format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=1048576",
        first.as_raw_fd()
    ))?;
    mount(format!("tandem-{volume}"), target, DATA_TYPE, MountFlags::NODEV, Some(options.as_c_str()))?;
    let mounted = (|| {
        let mut devices = vec![first];
        while devices.len() < DESCRIPTORS {
            let clone = open_fuse()?;
            clone_connection(clone.as_fd(), devices[0].as_fd())?;
            devices.push(clone);
        }
        let minor = mounted_at(target)?.ok_or_else(|| io::Error::other("the mount is not in the mount table"))?.minor;
        Ok((devices, minor))
    })();
    if mounted.is_err()
        && let Err(error) = unmount(target)
    {
        tracing::warn!(%error, target = %target.display(), "a mount that could not be completed stays");
    }
    mounted
}

fn open_fuse() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes a freshly opened `/dev/fuse` one more descriptor of a connection. Done here because the sidecar's device rules
/// forbid it to open `/dev/fuse`.
fn clone_connection(new: BorrowedFd<'_>, of: BorrowedFd<'_>) -> io::Result<()> {
    /// `_IOR(229, 0, u32)`
    const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;
    let source = of.as_raw_fd() as u32;
    #[allow(unsafe_code, reason = "rustix has no wrapper for this ioctl")]
    // SAFETY: both descriptors are open for the call; the kernel reads one u32 through the pointer and writes nothing.
    let result = unsafe { libc::ioctl(new.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const source) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Which connection a descriptor belongs to: its number in fusectl. `None` where the kernel does not tell.
pub fn connection_of(device: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd()))?;
    Ok(told.lines().find_map(|line| line.strip_prefix("fuse_connection:")?.trim().parse().ok()))
}

/// Whether a descriptor is one of `/dev/fuse`.
pub fn is_fuse(device: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = rustix::fs::fstat(device)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(10, 229))
}

/// Shows `directory` at `target`, read-only: a pod may connect to the socket in it and change nothing.
pub fn bind_control(directory: &Path, target: &Path) -> io::Result<()> {
    mount_bind(directory, target)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if let Err(errno) = mount_remount(target, flags, "") {
        unmount(target)?;
        return Err(errno.into());
    }
    Ok(())
}

/// Unmounts everything at `target` and removes the directory. Nothing there is fine. A FUSE connection ends with it,
/// served or not: `FORCE` aborts it, so this cannot hang.
pub fn unmount(target: &Path) -> io::Result<()> {
    // Bounded: whoever stacks mounts faster than this must not keep us here.
    for _ in 0..16 {
        match umount(target, UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    match rustix::fs::rmdir(target) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The kernel's list of FUSE connections. Held as a mount that is attached nowhere, so nobody sees it and nothing of it
/// can stay behind.
pub struct Connections {
    root: OwnedFd,
}

impl Connections {
    /// Opens the list.
    pub fn open() -> io::Result<Self> {
        let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        let root = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        Ok(Self { root })
    }

    /// Requests that have not been answered. `None`: there is no such connection.
    pub fn waiting(&self, minor: u32) -> io::Result<Option<u64>> {
        let path = format!("{minor}/waiting");
        let file = match rustix::fs::openat(&self.root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let mut text = [0; 32];
        let length = rustix::io::read(&file, &mut text)?;
        Ok(std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok()))
    }

    /// Ends a connection: everybody who waits in its mount gets an error, at once.
    pub fn abort(&self, minor: u32) -> io::Result<()> {
        let path = format!("{minor}/abort");
        match rustix::fs::openat(&self.root, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => {
                rustix::io::write(&file, b"1")?;
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table_is_read_with_its_oddities() {
        let table =
            b"36 35 0:98 / /var/lib/kubelet/pods/a\\040b/mount rw,nodev shared:1 master:2 - fuse.tandem tandem-x rw\n\
            37 35 8:1 / / rw - ext4 /dev/sda1 rw\nnonsense\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].minor, 98);
        assert_eq!(mounts[0].target, Path::new("/var/lib/kubelet/pods/a b/mount"));
        assert_eq!(mounts[0].kind, DATA_TYPE);
    }
}
