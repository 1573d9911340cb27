//! Network namespaces with a name: a file in a directory of the caller's choice, on which the namespace is mounted.
//!
//! Promise: the calling thread's own namespace never changes but by [`NetworkNamespace::enter`]; what must happen inside another one happens on a thread
//! that is used for nothing else. A namespace lives until its file is deleted and its last process, socket and
//! descriptor are gone.

#![allow(unsafe_code, reason = "getsockopt(2) takes a pointer to where the answer goes")]

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};

use crate::error::{Context, Error, Result};
use crate::netlink::Netlink;

/// The calling thread's network namespace. Not `/proc/self`, which is the first thread's.
const OWN: &str = "/proc/thread-self/ns/net";
/// Of `asm-generic/socket.h`; the libc crate has it for other C libraries only.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS: FsType = FsType(0x6e73_6673);

/// An open network namespace.
#[derive(Debug)]
pub struct NetworkNamespace {
    file: File,
    path: PathBuf,
}

impl NetworkNamespace {
    /// Opens the namespace that is mounted on `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).context("open network namespace", path.display())?;
        let kind = fstatfs(&file).context("inspect", path.display())?.filesystem_type();
        if kind != NSFS {
            return Err(Error::Unexpected {
                object: path.display().to_string(),
                found: "an ordinary file".to_owned(),
                expected: "a file with a network namespace mounted on it",
            });
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Makes a new, empty namespace and mounts it on `path`, a file that must not exist yet.
    pub fn create(path: &Path) -> Result<Self> {
        OpenOptions::new().write(true).create_new(true).open(path).context("create", path.display())?;
        let made = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare network namespace for", path.display())?;
            mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .context("mount network namespace on", path.display())?;
            File::open(path).context("open network namespace", path.display())
        });
        match made {
            Ok(file) => Ok(Self { file, path: path.to_owned() }),
            Err(error) => {
                // The first error is the one that explains.
                let _ = Self::delete(path);
                Err(error)
            }
        }
    }

    /// Takes the mount and the file away; that there is none is no error.
    pub fn delete(path: &Path) -> Result<()> {
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: nothing is mounted there.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(error).context("unmount network namespace", path.display()),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context("delete", path.display())
            }
            _ => Ok(()),
        }
    }

    /// Moves the calling thread in, for good; for one that does nothing else afterwards.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).context("enter network namespace", self.path.display())
    }

    /// Calls `work` inside, on a thread of its own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .context("enter network namespace", self.path.display())?;
            Ok(work())
        })
    }

    /// Calls `work` in each of these, in order and with its path, all on one thread of its own: for many namespaces a
    /// thread each would cost more than the work.
    pub fn each<T: Send>(
        namespaces: &[PathBuf],
        mut work: impl FnMut(&Path) -> T + Send,
    ) -> Result<Vec<Result<T>>> {
        on_own_thread(|| {
            let visit = |path: &PathBuf| {
                Self::open(path)?.enter()?;
                Ok(work(path))
            };
            Ok(namespaces.iter().map(visit).collect())
        })
    }

    /// Runs the future that `work` makes inside, on a runtime and thread of its own, to its end.
    pub fn inside_async<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> Result<T> {
        self.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            Ok(runtime.context("start runtime in", self.path.display())?.block_on(work()))
        })?
    }

    /// Opens a netlink connection inside; must be called within a tokio runtime, which runs it.
    pub fn netlink(&self) -> Result<Netlink> {
        let runtime = tokio::runtime::Handle::current();
        self.inside(|| {
            let _entered = runtime.enter();
            Netlink::open()
        })?
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The kernel's number of the calling thread's network namespace, never used again while it runs: what programs know
/// namespaces by (`bpf_get_netns_cookie`). Linux 5.14.
pub fn cookie() -> Result<u64> {
    // Every socket knows its namespace, also one that belongs to no protocol of the network.
    let socket = UnixDatagram::unbound().context("open", "a socket")?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes over `cookie`, which has as many.
    let result = unsafe {
        let place = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, place, &raw mut length)
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error()).context("ask for", "SO_NETNS_COOKIE")
    }
}

/// A thread that has entered a namespace must do nothing else afterwards, so it is never one of a pool.
fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work);
        let thread = thread.context("start thread", "netns")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    //! Need root: they make network namespaces.

    use super::*;
    use crate::scratch;

    #[test]
    fn what_runs_inside_sees_only_the_new_namespace() {
        let scratch = scratch::Namespace::new("linux").unwrap();
        let inside =
            scratch.namespace().inside(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        let devices: Vec<_> = inside.lines().skip(2).collect();
        assert_eq!(devices.len(), 1, "only lo in {inside}");
        assert_ne!(
            fs::read_link(OWN).unwrap(),
            scratch.namespace().inside(|| fs::read_link(OWN).unwrap()).unwrap()
        );
    }

    #[test]
    fn a_namespace_has_a_cookie_of_its_own_whichever_thread_asks() {
        let scratch = scratch::Namespace::new("linux").unwrap();
        let [first, second] = [(); 2].map(|()| scratch.namespace().inside(cookie).unwrap().unwrap());
        assert_eq!(first, second);
        assert_ne!(first, cookie().unwrap());
        assert_ne!(first, 0, "zero stands for no namespace");
    }

    #[test]
    fn an_ordinary_file_is_refused() {
        let error = NetworkNamespace::open(Path::new("/etc/hostname")).unwrap_err();
        assert!(error.to_string().contains("an ordinary file"), "{error}");
    }

    #[test]
    fn deleting_twice_is_no_error() {
        let scratch = scratch::Namespace::new("linux").unwrap();
        NetworkNamespace::delete(scratch.path()).unwrap();
        NetworkNamespace::delete(scratch.path()).unwrap();
    }
}
