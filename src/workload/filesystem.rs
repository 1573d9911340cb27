//! What a workload sees of the file system: the host's, read-only, without kernel interfaces, devices and places where
//! sockets lie.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use linux::mount::{self, Restrictions, Tree};

use super::Failure;

/// Made anew for each workload, whatever the host has there.
const FRESH: [&str; 7] = ["/proc", "/sys", "/dev", "/run", "/var/run", "/tmp", "/var/tmp"];
/// Of these nothing can be made writable.
const KERNEL_PLACES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// File systems that show the kernel, wherever they are mounted.
const KERNEL_FILESYSTEMS: [&str; 22] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// Settings of the whole machine below `/proc` that user 0 may change without any capability.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// What tells of the machine's memory, keys and timers, or drives its devices.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Name, major and minor number (`devices.txt` of the kernel).
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// What of the host a workload may do something with.
pub(super) const UNPRIVILEGED: Restrictions =
    Restrictions { read_only: false, no_devices: true, no_set_user_id: true, no_execute: false };

/// A path that `--writable` does not give.
#[derive(Debug, thiserror::Error)]
pub(super) enum WritableError {
    /// It is not there.
    #[error("--writable {}: {error}", .path.display())]
    Absent {
        /// As it was given.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// It is, contains, or lies in what a workload must not reach.
    #[error("--writable {}: overlaps {}, which no workload may reach; give a directory beside it", .path.display(), .with.display())]
    Overlaps {
        /// As it was given.
        path: PathBuf,
        /// The place.
        with: PathBuf,
    },
    /// The mount table cannot be read.
    #[error(transparent)]
    Mounts(#[from] linux::Error),
}

/// The paths without symbolic links, if each may be writable.
pub(super) fn resolve_writable(paths: &[PathBuf], hidden: &[PathBuf]) -> Result<Vec<PathBuf>, WritableError> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let table = mount::table()?;
    let kernel = table.into_iter().filter(is_kernel).map(|mount| mount.path);
    let kernel: Vec<_> =
        kernel.chain(KERNEL_PLACES.map(PathBuf::from)).chain(hidden.iter().cloned()).collect();
    let check = |path: &PathBuf| {
        let absent = |error| WritableError::Absent { path: path.clone(), error };
        let resolved = fs::canonicalize(path).map_err(absent)?;
        let within = kernel.iter().find(|place| resolved.starts_with(place) || place.starts_with(&resolved));
        // Parts of these may be given, the whole not.
        let whole = FRESH.iter().map(Path::new).find(|place| place.starts_with(&resolved));
        match within.map(PathBuf::as_path).or(whole) {
            Some(with) => Err(WritableError::Overlaps { path: path.clone(), with: with.to_owned() }),
            None => Ok(resolved),
        }
    };
    paths.iter().map(check).collect()
}

/// Places of which a workload sees nothing but what it was started from.
const SCRATCH: [&str; 2] = ["/tmp", "/var/tmp"];

/// Where the command is started and where its program lies, as far as they would vanish below a fresh `/tmp`: whoever
/// starts something from there means to see it. The whole of `/tmp` is not meant, nor what shows the kernel or the node.
pub(super) fn started_from(program: Option<&OsStr>, hidden: &[PathBuf]) -> linux::Result<Vec<PathBuf>> {
    let program = program.map(Path::new).filter(|program| program.components().count() > 1);
    let beside = program.and_then(|program| Some(fs::canonicalize(program).ok()?.parent()?.to_owned()));
    let here = std::env::current_dir().ok();
    let below_scratch = |path: &PathBuf| {
        SCRATCH.iter().map(Path::new).any(|scratch| path.starts_with(scratch) && path.as_path() != scratch)
    };
    let mut kept: Vec<PathBuf> = here.into_iter().chain(beside).filter(below_scratch).collect();
    if kept.is_empty() {
        return Ok(kept);
    }
    let table = mount::table()?;
    let kernel = table.into_iter().filter(is_kernel).map(|mount| mount.path);
    let forbidden: Vec<_> = kernel.chain(hidden.iter().cloned()).collect();
    kept.retain(|path| !forbidden.iter().any(|place| path.starts_with(place) || place.starts_with(path)));
    // The outer before the inner.
    kept.sort();
    kept.dedup();
    Ok(kept)
}

fn is_kernel(mount: &mount::Mount) -> bool {
    KERNEL_FILESYSTEMS.contains(&mount.filesystem.as_str())
}

/// Builds it in the calling process's own mount namespace. All paths are without symbolic links; `kept` can be read,
/// `writable` written.
pub(super) fn build(hidden: &[PathBuf], kept: &[PathBuf], writable: &[PathBuf]) -> Result<(), Failure> {
    mount::make_private().map_err(Failure::own)?;
    let kept = kept.iter().map(|path| (path, UNPRIVILEGED.read_only()));
    let given = kept.chain(writable.iter().map(|path| (path, UNPRIVILEGED)));
    let copies = given.map(|(path, restrictions)| Ok((path, path.is_dir(), Tree::copy(path)?, restrictions)));
    let copies = copies.collect::<linux::Result<Vec<_>>>().map_err(Failure::own)?;
    mount::restrict(Path::new("/"), UNPRIVILEGED.read_only()).map_err(Failure::own)?;
    detach_kernel(hidden).map_err(Failure::own)?;

    kernel_views().map_err(Failure::own)?;
    devices()?;
    for (path, mode) in [("/run", "755"), ("/var/run", "755"), ("/tmp", "1777"), ("/var/tmp", "1777")] {
        if is_directory(path) {
            mount::mount("tmpfs", Path::new(path), UNPRIVILEGED, &format!("mode={mode}"))
                .map_err(Failure::own)?;
        }
    }
    for path in hidden.iter().filter(|path| path.is_dir()) {
        conceal(path).map_err(Failure::own)?;
    }
    for (path, is_directory, tree, restrictions) in copies {
        tree.restrict(restrictions).map_err(Failure::own)?;
        provide_mount_point(path, is_directory)
            .map_err(|error| Failure::own(format!("{}: {error}", path.display())))?;
        tree.attach(path).map_err(Failure::own)?;
    }
    Ok(())
}

/// Takes away what shows the kernel and what will be covered, for a mount below a cover would stay in use: another
/// workload's network namespace would live as long as this one.
fn detach_kernel(hidden: &[PathBuf]) -> linux::Result<()> {
    let covered = |path: &Path| {
        FRESH
            .iter()
            .map(Path::new)
            .chain(hidden.iter().map(PathBuf::as_path))
            .any(|place| path.starts_with(place))
    };
    let mut detached: BTreeSet<PathBuf> = BTreeSet::new();
    for mount in mount::table()? {
        let gone = mount.path.ancestors().any(|above| detached.contains(above));
        if !gone && (is_kernel(&mount) || covered(&mount.path)) {
            mount::detach(&mount.path)?;
            detached.insert(mount.path);
        }
    }
    Ok(())
}

/// The kernel as this PID and network namespace has it, read-only where it concerns the whole machine.
fn kernel_views() -> linux::Result<()> {
    mount::mount("proc", Path::new("/proc"), Restrictions::INERT, "")?;
    mount::mount("sysfs", Path::new("/sys"), Restrictions::INERT.read_only(), "")?;
    for path in READ_ONLY.iter().map(Path::new).filter(|path| path.exists()) {
        let tree = Tree::copy(path)?;
        tree.restrict(Restrictions::INERT.read_only())?;
        tree.attach(path)?;
    }
    Ok(())
}

fn devices() -> Result<(), Failure> {
    let directory = Path::new("/dev");
    let restrictions = Restrictions { no_set_user_id: true, no_execute: true, ..Restrictions::default() };
    mount::mount("tmpfs", directory, restrictions, "mode=755,size=64k").map_err(Failure::own)?;
    for (name, major, minor) in DEVICES {
        mount::make_device(&directory.join(name), major, minor).map_err(Failure::own)?;
    }
    let make = |what: io::Result<()>, name: &str| {
        what.map_err(|error| Failure::own(format!("/dev/{name}: {error}")))
    };
    for (name, target) in LINKS {
        make(symlink(target, directory.join(name)), name)?;
    }
    for (name, filesystem, options) in
        [("pts", "devpts", "newinstance,mode=620,ptmxmode=666,gid=5"), ("shm", "tmpfs", "mode=1777")]
    {
        let path = directory.join(name);
        make(fs::create_dir(&path), name)?;
        let restrictions = Restrictions { no_devices: filesystem != "devpts", ..Restrictions::INERT };
        mount::mount(filesystem, &path, restrictions, options).map_err(Failure::own)?;
    }
    for path in MASKED.iter().map(Path::new) {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => conceal(path).map_err(Failure::own)?,
            Ok(_) => {
                Tree::copy(Path::new("/dev/null")).and_then(|null| null.attach(path)).map_err(Failure::own)?
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// Covers a directory with an empty one that nobody may enter.
fn conceal(path: &Path) -> linux::Result<()> {
    mount::mount("tmpfs", path, Restrictions::INERT.read_only(), "mode=000,size=4k")
}

/// On the fresh `/run` and `/tmp` there is nothing yet to mount on; a directory wants a directory, a file a file.
fn provide_mount_point(path: &Path, is_directory: bool) -> io::Result<()> {
    match path.parent() {
        _ if path.exists() => Ok(()),
        _ if is_directory => fs::create_dir_all(path),
        Some(directory) => {
            fs::create_dir_all(directory)?;
            fs::File::create_new(path).map(drop)
        }
        None => Ok(()),
    }
}

fn is_directory(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}
