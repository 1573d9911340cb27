//! Control groups, version 2 only.

#![allow(unsafe_code, reason = "tokio cannot know that a file keeps its descriptor")]

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Context, Error, Result};
use crate::mount;

/// Where the version 2 hierarchy is mounted: usually `/sys/fs/cgroup`, `/sys/fs/cgroup/unified` beside version 1.
pub fn hierarchy() -> Result<PathBuf> {
    let mounts = mount::table()?;
    let found = mounts.into_iter().find(|mount| mount.filesystem == "cgroup2");
    found.map(|mount| mount.path).ok_or_else(|| Error::Unexpected {
        object: "/proc/self/mountinfo".to_owned(),
        found: "no cgroup2 file system".to_owned(),
        expected: "cgroup version 2, mounted by `mount -t cgroup2 none /sys/fs/cgroup`",
    })
}

/// An open cgroup directory.
#[derive(Debug)]
pub struct Cgroup {
    directory: File,
    path: PathBuf,
}

impl Cgroup {
    /// Refuses a path where no cgroup can be made. Changes nothing.
    pub fn check(path: &Path) -> Result<()> {
        let there = path.ancestors().find(|above| above.is_dir());
        Self::open(there.unwrap_or(path)).map(drop)
    }

    /// Makes the cgroup and those above it that are missing; one that is there already is opened.
    pub fn create(path: &Path) -> Result<Self> {
        Self::check(path)?;
        fs::create_dir_all(path).context("create cgroup", path.display())?;
        Self::open(path)
    }

    /// Opens an existing one.
    pub fn open(path: &Path) -> Result<Self> {
        let directory = File::open(path).context("open cgroup", path.display())?;
        let kind = fstatfs(&directory).context("inspect", path.display())?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(Error::Unexpected {
                object: path.display().to_string(),
                found: "a directory of another file system".to_owned(),
                expected: "a directory below the cgroup version 2 mount",
            });
        }
        Ok(Self { directory, path: path.to_owned() })
    }

    /// Whether a live process is in it or below. Zombies do not count.
    pub fn is_populated(&self) -> Result<bool> {
        let path = self.path.join("cgroup.events");
        Ok(says_populated(&fs::read_to_string(&path).context("read", path.display())?))
    }

    /// Whether a process has ever run in it, for a microsecond at least.
    pub fn was_used(&self) -> Result<bool> {
        let path = self.path.join("cpu.stat");
        let text = fs::read_to_string(&path).context("read", path.display())?;
        Ok(text.lines().any(|line| line.strip_prefix("usage_usec ").is_some_and(|usage| usage != "0")))
    }

    /// Moves a process in, threads and all.
    pub fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .context("move a process into cgroup", self.path.display())
    }

    /// Kills every process in it and below, by one write (kernel 5.14).
    pub fn kill(&self) -> Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
            .context("kill the processes of cgroup", self.path.display())
    }

    /// Opens its event file.
    pub fn events(&self) -> Result<Events> {
        Events::open(&self.path)
    }

    /// Removes it if nothing is in it or below. That there is no such cgroup is no error.
    pub fn remove_empty(path: &Path) -> Result<()> {
        use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
        match fs::remove_dir(path) {
            Err(error) if ![NotFound, ResourceBusy, DirectoryNotEmpty].contains(&error.kind()) => {
                Err(error).context("remove cgroup", path.display())
            }
            _ => Ok(()),
        }
    }

    /// Kills what is in it, waits until that is gone, and removes it. That there is no such cgroup is no error.
    pub async fn remove(path: &Path) -> Result<()> {
        let cgroup = match Self::open(path) {
            Err(error) if error.is_absent() => return Ok(()),
            cgroup => cgroup?,
        };
        let mut events = cgroup.events()?;
        if events.populated()? {
            cgroup.kill()?;
            while events.populated()? {
                events.changed().await?;
            }
        }
        match fs::remove_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context("remove cgroup", path.display())
            }
            _ => Ok(()),
        }
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// `cgroup.events` of one cgroup: the kernel says when its last process has gone.
#[derive(Debug)]
pub struct Events {
    file: AsyncFd<File>,
    path: PathBuf,
}

impl Events {
    fn open(cgroup: &Path) -> Result<Self> {
        let path = cgroup.join("cgroup.events");
        let mut file = File::open(&path).context("open", path.display())?;
        // Until its first read such a file counts as changed (`kernfs_generic_poll`).
        io::copy(&mut file, &mut io::sink()).context("read", path.display())?;
        // The kernel announces a change of such a file as priority data; it is always readable.
        // SAFETY: the `AsyncFd` owns the file, nothing takes it out, and `File` keeps its one descriptor until it drops.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
        Ok(Self { file: file.context("watch", path.display())?, path })
    }

    /// Whether a live process is in the cgroup or below. Zombies do not count.
    pub fn populated(&mut self) -> Result<bool> {
        let mut text = String::new();
        let mut file = self.file.get_ref();
        match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
            // The cgroup is gone.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
            read => read.context("read", self.path.display())?,
        };
        Ok(says_populated(&text))
    }

    /// Waits until something has happened since the file was opened, or since the last [`Events::populated`].
    pub async fn changed(&self) -> Result<()> {
        let mut ready = self.file.ready(Interest::PRIORITY).await.context("watch", self.path.display())?;
        ready.clear_ready();
        Ok(())
    }
}

fn says_populated(events: &str) -> bool {
    events.lines().any(|line| line == "populated 1")
}

#[cfg(test)]
mod tests {
    //! Need root: they make cgroups.

    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        hierarchy().unwrap().join(format!("linux-{name}-{}", std::process::id()))
    }

    #[tokio::test]
    async fn the_last_process_leaving_is_an_event() {
        let path = scratch("event");
        let cgroup = Cgroup::create(&path).unwrap();
        let mut events = cgroup.events().unwrap();
        assert!(!events.populated().unwrap() && !cgroup.was_used().unwrap());

        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        cgroup.add(child.id()).unwrap();
        let bound = Duration::from_secs(5);
        tokio::time::timeout(bound, events.changed()).await.unwrap().unwrap();
        assert!(events.populated().unwrap() && cgroup.is_populated().unwrap());

        drop(child.stdin.take());
        child.wait().unwrap();
        tokio::time::timeout(bound, events.changed()).await.unwrap().unwrap();
        assert!(!events.populated().unwrap() && cgroup.was_used().unwrap());
        Cgroup::remove(&path).await.unwrap();
    }

    #[tokio::test]
    async fn removing_kills_what_is_inside_and_can_be_repeated() {
        let path = scratch("kill");
        let cgroup = Cgroup::create(&path).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        cgroup.add(child.id()).unwrap();
        Cgroup::remove(&path).await.unwrap();
        assert!(!path.exists());
        assert!(!child.wait().unwrap().success());
        Cgroup::remove(&path).await.unwrap();
    }

    #[test]
    fn a_directory_of_another_file_system_is_refused() {
        for error in [
            Cgroup::open(Path::new("/etc")).unwrap_err(),
            Cgroup::create(Path::new("/etc/linux-test/below")).unwrap_err(),
        ] {
            assert!(
                error.to_string().starts_with("/etc: found a directory of another file system"),
                "{error}"
            );
        }
        assert!(!Path::new("/etc/linux-test").exists(), "nothing is made");
    }
}
