//! Files below `/etc` that a workload has of its own: whom it asks for names, and its own name.
//!
//! Promise: the host's files are not touched, whatever they are: a file, a mount on one, a link into `/run` that leads
//! nowhere in here, or nothing at all.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use linux::mount::{self, Restrictions, Tree};

use super::Failure;
use super::filesystem::UNPRIVILEGED;

/// A file and what is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OwnFile {
    path: PathBuf,
    text: String,
}

/// Where what is written lies; the workload's own by then.
const DRAFT: &str = "/run/ferromesh-draft";
/// Where a file lies that the host has no place for.
const LAYER: &str = "/run/ferromesh-layer";

impl OwnFile {
    /// `/etc/resolv.conf`.
    pub(crate) fn resolver(text: String) -> Self {
        Self { path: PathBuf::from("/etc/resolv.conf"), text }
    }

    /// `/etc/hosts`: the workload's own name and addresses before what the host knows, as pods have it; none where the
    /// host has no such file. To be called outside of the workload.
    pub(crate) fn hosts(name: &str, addresses: &[IpAddr]) -> Option<Self> {
        let path = PathBuf::from("/etc/hosts");
        let host = String::from_utf8_lossy(&fs::read(&path).ok()?).into_owned();
        let own: String = addresses.iter().map(|address| format!("{address}\t{name}\n")).collect();
        Some(Self { path, text: own + &host })
    }

    /// Puts it in place, in the calling process's own mount namespace, on whose `/run` nothing of the host's is.
    pub(super) fn put(&self) -> Result<(), Failure> {
        match fs::symlink_metadata(&self.path) {
            Ok(_) => self.cover(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.layer(),
            Err(error) => Err(self.failure(error)),
        }
    }

    /// Covers what is there. A link is covered itself, not what it leads to.
    fn cover(&self) -> Result<(), Failure> {
        self.write(Path::new(DRAFT))?;
        let tree = Tree::copy(Path::new(DRAFT)).map_err(Failure::own)?;
        tree.restrict(Restrictions::INERT.read_only()).map_err(Failure::own)?;
        tree.attach(&self.path).map_err(Failure::own)?;
        fs::remove_file(DRAFT).map_err(|error| self.failure(error))
    }

    /// Adds it to a directory that cannot be written, by a layer over it. A layer shows no mounts: they are put on top.
    fn layer(&self) -> Result<(), Failure> {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(());
        };
        fs::create_dir(LAYER).map_err(|error| self.failure(error))?;
        self.write(&Path::new(LAYER).join(name))?;
        let inner = mounts_below(directory).map_err(Failure::own)?;
        let options = format!("lowerdir={LAYER}:{}", directory.display());
        mount::mount("overlay", directory, UNPRIVILEGED.read_only(), &options).map_err(|error| {
            let path = self.path.display();
            Failure::own(format!("{path}: there is none on the host, and {error}; make an empty one there"))
        })?;
        for (path, tree) in inner {
            tree.attach(&path).map_err(Failure::own)?;
        }
        Ok(())
    }

    fn write(&self, to: &Path) -> Result<(), Failure> {
        let readable = || fs::set_permissions(to, fs::Permissions::from_mode(0o644));
        fs::write(to, &self.text).and_then(|()| readable()).map_err(|error| self.failure(error))
    }

    fn failure(&self, error: io::Error) -> Failure {
        Failure::own(format!("the workload's {}: {error}", self.path.display()))
    }
}

/// What is mounted below a directory, the outermost mounts.
fn mounts_below(directory: &Path) -> linux::Result<Vec<(PathBuf, Tree)>> {
    let mut paths: Vec<_> = mount::table()?.into_iter().map(|mount| mount.path).collect();
    paths.retain(|path| path.starts_with(directory) && path != directory);
    paths.sort();
    // Sorted, so that what contains comes before what it contains.
    paths.dedup_by(|inner, outer| inner.starts_with(&*outer));
    paths.into_iter().map(|path| Ok((path.clone(), Tree::copy(&path)?))).collect()
}
