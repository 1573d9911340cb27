//! The pin directory: `ROOT/v<SCHEMA>/{maps,links,filters}` on a BPF file system.
//!
//! Promise: one agent at a time (an advisory lock on ROOT, gone with its process); a pin is compared with what this
//! version expects before anything is reused; pins of another schema are never touched. `links` holds tcx and cgroup
//! links, which keep a program attached when the agent is dead; `filters` holds the program of each clsact filter, which has no
//! object of its own to pin, so that a later agent knows where to look.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapError, MapInfo};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{FsType, statfs};

use crate::Error;

/// Where bpffs belongs; the only place where we mount one.
const BPFFS: &str = "/sys/fs/bpf";
/// Source of a bpffs that we mounted, as in the mount table: tells `remove` that it is ours to unmount.
const MOUNT_SOURCE: &str = "ferromesh";
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// The pin directory of this schema, locked.
pub(crate) struct Pins {
    root: PathBuf,
    /// Held for the life of the agent.
    _lock: Flock<File>,
}

impl Pins {
    /// Mounts bpffs if need be, locks the root, refuses other schemas, makes the directories. The second value is the
    /// mount point, if a mount was made.
    pub(crate) fn open(root: &Path) -> Result<(Self, Option<PathBuf>), Error> {
        let mounted = ensure_bpffs(root)?;
        fs::create_dir_all(root).map_err(Error::path(root, "making the pin directory"))?;
        let pins = Self { root: root.to_owned(), _lock: lock(root)? };
        refuse_other_schemas(root)?;
        for directory in [pins.maps(), pins.links(), pins.filters()] {
            fs::create_dir_all(&directory).map_err(Error::path(&directory, "making the pin directory"))?;
        }
        Ok((pins, mounted))
    }

    /// Directory of the maps.
    pub(crate) fn maps(&self) -> PathBuf {
        schema_directory(&self.root).join("maps")
    }

    /// Directory of the tcx and cgroup links.
    pub(crate) fn links(&self) -> PathBuf {
        schema_directory(&self.root).join("links")
    }

    /// Directory of the programs of clsact filters.
    pub(crate) fn filters(&self) -> PathBuf {
        schema_directory(&self.root).join("filters")
    }

    /// Compares every pinned map with what it must be.
    pub(crate) fn check(&self, specs: &[maps::Spec]) -> Result<(), Error> {
        for spec in specs {
            let path = self.maps().join(spec.name);
            let difference = match MapInfo::from_pin(&path) {
                Ok(info) => spec.difference(&info),
                Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
                    None
                }
                Err(error) => {
                    return Err(Error::path(path, "reading the pinned map")(io::Error::other(error)));
                }
            };
            if let Some(difference) = difference {
                return Err(Error::IncompatiblePin { path, difference });
            }
        }
        Ok(())
    }
}

/// `ROOT/v<SCHEMA>`.
fn schema_directory(root: &Path) -> PathBuf {
    root.join(format!("v{}", abi::SCHEMA))
}

fn lock(root: &Path) -> Result<Flock<File>, Error> {
    let directory = File::open(root).map_err(Error::path(root, "opening the pin directory"))?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Error::Busy(root.to_owned()),
        errno => Error::path(root, "locking the pin directory")(errno.into()),
    })
}

fn ensure_bpffs(root: &Path) -> Result<Option<PathBuf>, Error> {
    if root.ancestors().find(|path| path.exists()).is_some_and(is_bpffs) {
        return Ok(None);
    }
    if !root.starts_with(BPFFS) || root == Path::new(BPFFS) {
        return Err(Error::NotBpffs(root.to_owned()));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(MOUNT_SOURCE), BPFFS, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| Error::path(BPFFS, "mounting the BPF file system")(errno.into()))?;
    Ok(Some(PathBuf::from(BPFFS)))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Schema numbers of the directories under the root that hold a pin.
fn schemas(root: &Path) -> Result<Vec<(u32, PathBuf)>, Error> {
    let mut found = Vec::new();
    for path in children(root)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(schema) = name.strip_prefix('v').and_then(|number| number.parse().ok()) {
            found.push((schema, path));
        }
    }
    Ok(found)
}

/// Every pinned link under the root, of any schema.
pub(crate) fn links(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let directories = schemas(root)?.into_iter().map(|(_, schema)| children(&schema.join("links")));
    directories.collect::<Result<Vec<_>, _>>().map(|links| links.concat())
}

fn refuse_other_schemas(root: &Path) -> Result<(), Error> {
    for (found, path) in schemas(root)? {
        if found != abi::SCHEMA && !pins_below(&path)?.is_empty() {
            return Err(Error::Schema { path, found, expected: abi::SCHEMA });
        }
    }
    Ok(())
}

/// Entries of a directory in order; none where there is no directory.
pub(crate) fn children(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::path(directory, "listing")(error)),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Error::path(directory, "listing"))?;
    paths.sort();
    Ok(paths)
}

/// Everything pinned below a directory.
fn pins_below(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut pins = Vec::new();
    for path in children(directory)? {
        if path.is_dir() {
            pins.extend(pins_below(&path)?);
        } else {
            pins.push(path);
        }
    }
    Ok(pins)
}

/// What is pinned under the root, of any schema, and the root itself if it exists; empty after [`remove`].
///
/// # Errors
/// A directory that cannot be listed.
pub fn leftovers(root: &Path) -> Result<Vec<String>, Error> {
    let mut found: Vec<PathBuf> = if root.exists() { vec![root.to_owned()] } else { Vec::new() };
    found.extend(pins_below(root)?);
    Ok(found.iter().map(|path| path.display().to_string()).collect())
}

/// Takes away every filter, link, map and directory under the root, of any schema, and unmounts a bpffs that we
/// mounted if nobody else uses it. Works with the agent dead. What was taken away is returned, a line each.
///
/// # Errors
/// [`Error::Busy`] while an agent holds the root; else what could not be removed. Calling it again continues.
pub fn remove(root: &Path) -> Result<Vec<String>, Error> {
    if !root.exists() {
        return Ok(Vec::new());
    }
    let lock = lock(root)?;
    let mut removed = Vec::new();
    for (_, schema) in schemas(root)? {
        for filter in children(&schema.join("filters"))? {
            crate::attach::remove_filter(&filter)?;
            removed.push(filter.display().to_string());
        }
        for link in children(&schema.join("links"))? {
            crate::attach::remove_link(&link)?;
            removed.push(link.display().to_string());
        }
        remove_tree(&schema, &mut removed)?;
    }
    fs::remove_dir(root).map_err(Error::path(root, "removing"))?;
    removed.push(root.display().to_string());
    drop(lock);
    if let Some(mount_point) = unmount_ours(root)? {
        removed.push(format!("{mount_point} (unmounted)"));
    }
    Ok(removed)
}

/// What is left below a directory, and the directory.
fn remove_tree(directory: &Path, removed: &mut Vec<String>) -> Result<(), Error> {
    for path in children(directory)? {
        if path.is_dir() {
            remove_tree(&path, removed)?;
        } else {
            fs::remove_file(&path).map_err(Error::path(&path, "removing"))?;
            removed.push(path.display().to_string());
        }
    }
    fs::remove_dir(directory).map_err(Error::path(directory, "removing"))
}

/// The mount table of the calling thread, whose namespace may be its own.
const MOUNTS: &str = "/proc/thread-self/mountinfo";

fn unmount_ours(root: &Path) -> Result<Option<&'static str>, Error> {
    // A name with a dot is the kernel's own (`maps.debug`): it lets nobody else choose one (`bpf_lookup`).
    let theirs = |path: &PathBuf| !path.to_string_lossy().trim_start_matches(BPFFS).contains('.');
    if !root.starts_with(BPFFS) || children(Path::new(BPFFS))?.iter().any(theirs) {
        return Ok(None);
    }
    let table = fs::read_to_string(MOUNTS).map_err(Error::path(MOUNTS, "reading"))?;
    if !table.lines().any(is_our_mount) {
        return Ok(None);
    }
    match umount(BPFFS) {
        Ok(()) => Ok(Some(BPFFS)),
        // Somebody has begun to use it since we looked.
        Err(Errno::EBUSY) => Ok(None),
        Err(errno) => Err(Error::path(BPFFS, "unmounting")(errno.into())),
    }
}

/// A line of `mountinfo` (proc_pid_mountinfo(5)): mount point is the fifth field; type and source follow " - ".
fn is_our_mount(line: &str) -> bool {
    let Some((head, tail)) = line.split_once(" - ") else { return false };
    head.split(' ').nth(4) == Some(BPFFS) && tail.starts_with(&format!("bpf {MOUNT_SOURCE} "))
}
