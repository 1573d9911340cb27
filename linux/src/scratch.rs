//! Network namespaces for tests: unique, with loopback up, gone when dropped.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Context, Result};
use crate::namespace::NetworkNamespace;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A namespace that is deleted on drop.
#[derive(Debug)]
pub struct Namespace {
    namespace: NetworkNamespace,
    path: PathBuf,
}

impl Namespace {
    /// Makes one whose name starts with `prefix`.
    pub fn new(prefix: &str) -> Result<Self> {
        let directory = Path::new("/run/ferromesh-scratch");
        std::fs::create_dir_all(directory).context("create", directory.display())?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{prefix}-{}-{number}", std::process::id()));
        // A file left by a dead process of the same number.
        NetworkNamespace::delete(&path)?;
        let namespace = NetworkNamespace::create(&path)?;
        namespace.inside_async(|| async {
            let netlink = crate::netlink::Netlink::open()?;
            netlink.set_up(crate::netlink::LOOPBACK, true).await
        })??;
        Ok(Self { namespace, path })
    }

    /// The namespace.
    pub fn namespace(&self) -> &NetworkNamespace {
        &self.namespace
    }

    /// The file it is mounted on.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A test that ends cannot do more about it than the next one, which deletes a file in its way.
        let _ = NetworkNamespace::delete(&self.path);
    }
}
