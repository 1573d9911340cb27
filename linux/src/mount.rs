//! The mount table and the calls that change it.
//!
//! Promise: every call acts on the calling process's own mount namespace; whether that is the machine's is for the
//! caller to know.

#![allow(unsafe_code, reason = "open_tree(2), move_mount(2) and mount_setattr(2) have no wrapper")]

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::error::{Context, Result};

/// What cannot be done on a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restrictions {
    /// Change anything.
    pub read_only: bool,
    /// Use device nodes.
    pub no_devices: bool,
    /// Gain privileges by executing a file.
    pub no_set_user_id: bool,
    /// Execute anything.
    pub no_execute: bool,
}

impl Restrictions {
    /// All but read-only.
    pub const INERT: Self =
        Self { read_only: false, no_devices: true, no_set_user_id: true, no_execute: true };

    /// These and read-only.
    #[must_use]
    pub const fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    fn flags(self) -> MsFlags {
        let each = [
            (self.read_only, MsFlags::MS_RDONLY),
            (self.no_devices, MsFlags::MS_NODEV),
            (self.no_set_user_id, MsFlags::MS_NOSUID),
            (self.no_execute, MsFlags::MS_NOEXEC),
        ];
        each.into_iter().filter(|(set, _)| *set).fold(MsFlags::empty(), |flags, (_, flag)| flags | flag)
    }

    fn attributes(self) -> u64 {
        let each = [
            (self.read_only, libc::MOUNT_ATTR_RDONLY),
            (self.no_devices, libc::MOUNT_ATTR_NODEV),
            (self.no_set_user_id, libc::MOUNT_ATTR_NOSUID),
            (self.no_execute, libc::MOUNT_ATTR_NOEXEC),
        ];
        each.into_iter().filter(|(set, _)| *set).fold(0, |attributes, (_, attribute)| attributes | attribute)
    }
}

/// Cuts every mount off from its copies in other mount namespaces.
pub fn make_private() -> Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .context("make private", "all mounts")
}

/// Mounts a new file system of this type.
pub fn mount(filesystem: &str, path: &Path, restrictions: Restrictions, options: &str) -> Result<()> {
    nix::mount::mount(Some(filesystem), path, Some(filesystem), restrictions.flags(), Some(options))
        .context("mount a file system on", path.display())
}

/// Takes a mount and all below it out of sight at once. That nothing is mounted there is no error.
pub fn detach(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(error) => Err(error).context("unmount", path.display()),
    }
}

/// Restricts a mount and all below it further; what is not asked for stays as it is.
pub fn restrict(path: &Path, restrictions: Restrictions) -> Result<()> {
    let name = CString::new(path.as_os_str().as_bytes()).context("restrict mounts below", path.display())?;
    set_attributes(libc::AT_FDCWD, &name, libc::AT_RECURSIVE, restrictions)
        .context("restrict mounts below", path.display())
}

/// Makes a character device that anyone may use.
pub fn make_device(path: &Path, major: u64, minor: u64) -> Result<()> {
    mknod(path, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor))
        .context("make device", path.display())?;
    // Not in the call above: there the umask would count.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).context("make device", path.display())
}

/// A copy of a mount and all below it that is mounted nowhere yet.
#[derive(Debug)]
pub struct Tree {
    descriptor: OwnedFd,
}

impl Tree {
    /// Copies what is at `path`, file or directory.
    pub fn copy(path: &Path) -> Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes()).context("copy mount", path.display())?;
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as u32;
        // SAFETY: the name lives through the call.
        let result = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags) };
        check(result).context("copy mount", path.display())?;
        // SAFETY: the kernel returned a new descriptor, and nobody else has it.
        Ok(Self { descriptor: unsafe { OwnedFd::from_raw_fd(result as i32) } })
    }

    /// Restricts it and all below it further.
    pub fn restrict(&self, restrictions: Restrictions) -> Result<()> {
        set_attributes(
            self.descriptor.as_raw_fd(),
            c"",
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            restrictions,
        )
        .context("restrict", "a copied mount")
    }

    /// Mounts it on `path`, a file for a file, a directory for a directory.
    pub fn attach(self, path: &Path) -> Result<()> {
        let name = CString::new(path.as_os_str().as_bytes()).context("mount on", path.display())?;
        let (from, empty) = (self.descriptor.as_raw_fd(), c"".as_ptr());
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
        // SAFETY: both names live through the call.
        let result =
            unsafe { libc::syscall(libc::SYS_move_mount, from, empty, libc::AT_FDCWD, name.as_ptr(), flags) };
        check(result).context("mount on", path.display())
    }
}

fn set_attributes(
    directory: i32,
    name: &std::ffi::CStr,
    flags: i32,
    restrictions: Restrictions,
) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: restrictions.attributes(), attr_clr: 0, propagation: 0, userns_fd: 0 };
    let size = size_of_val(&attributes);
    // SAFETY: name and attributes live through the call, and `size` is theirs.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, directory, name.as_ptr(), flags, &raw const attributes, size)
    };
    check(result)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A line of the mount table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// File system type: `ext4`, `cgroup2`, `bpf`.
    pub filesystem: String,
}

/// The mount table of the calling process, oldest mount first.
pub fn table() -> Result<Vec<Mount>> {
    let file = "/proc/self/mountinfo";
    let text = fs::read(file).context("read", file)?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
}

/// proc_pid_mountinfo(5): the fifth field is the mount point; after a lone `-` comes the type.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let path = unescape(fields.nth(4)?);
    let filesystem = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        path: PathBuf::from(OsString::from_vec(path)),
        filesystem: String::from_utf8_lossy(filesystem).into_owned(),
    })
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                text.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = tail;
            }
            _ => {
                text.push(*first);
                rest = tail;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_and_escapes_are_understood() {
        let line =
            br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let mount = Mount { path: PathBuf::from("/mnt 2"), filesystem: "ext3".to_owned() };
        assert_eq!(parse_line(line), Some(mount));
        assert_eq!(parse_line(b""), None);
    }
}
