//! Whom to ask about names that are not ours.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::resolver::{Resolver, STUBS};

/// How old what was read of the host's file may be.
const FRESH: Duration = Duration::from_secs(5);
/// More are not asked, as glibc does it.
const MAX_SERVERS: usize = 3;
/// Where servers listen.
pub(super) const PORT: u16 = 53;
/// Whom systemd-resolved itself asks.
const UPLINK: &str = "/run/systemd/resolve/resolv.conf";

/// The servers that are asked, in order.
#[derive(Debug)]
pub(super) enum Upstreams {
    /// Those of the configuration.
    Configured(Arc<[SocketAddr]>),
    /// Those of the host.
    Host(HostFile),
}

/// The host's `/etc/resolv.conf`, which changes with the networks it is in.
#[derive(Debug)]
pub(super) struct HostFile {
    path: PathBuf,
    /// Whom not to ask: ourselves.
    own: Vec<IpAddr>,
    read: Mutex<Option<(Instant, Arc<[SocketAddr]>)>>,
}

impl Upstreams {
    pub(super) fn new(configured: &[SocketAddr], path: &Path, own: &[IpAddr]) -> Self {
        if configured.is_empty() {
            Self::Host(HostFile { path: path.to_owned(), own: own.to_vec(), read: Mutex::new(None) })
        } else {
            Self::Configured(
                configured.iter().filter(|server| !own.contains(&server.ip())).copied().collect(),
            )
        }
    }

    /// The servers as they are now.
    pub(super) async fn list(&self) -> Arc<[SocketAddr]> {
        match self {
            Self::Configured(servers) => Arc::clone(servers),
            Self::Host(file) => file.list().await,
        }
    }
}

impl HostFile {
    async fn list(&self) -> Arc<[SocketAddr]> {
        if let Some((at, servers)) = &*self.read.lock()
            && at.elapsed() < FRESH
        {
            return Arc::clone(servers);
        }
        let servers: Arc<[_]> = self.servers().await.into();
        *self.read.lock() = Some((Instant::now(), Arc::clone(&servers)));
        servers
    }

    async fn servers(&self) -> Vec<SocketAddr> {
        let mut servers = read(&self.path).await;
        // Where the host asks us, its systemd-resolved may do so too: ask whom that asks beside us.
        let asks_us = servers.iter().any(|server| self.own.contains(server));
        servers.retain(|server| !self.own.contains(server));
        if asks_us && servers.iter().any(|server| STUBS.contains(&server.to_string().as_str())) {
            servers = read(Path::new(UPLINK)).await;
            servers.retain(|server| !self.own.contains(server));
        }
        servers.truncate(MAX_SERVERS);
        servers.into_iter().map(|server| SocketAddr::new(server, PORT)).collect()
    }
}

/// The servers a file names; none where there is no such file.
async fn read(path: &Path) -> Vec<IpAddr> {
    match tokio::fs::read_to_string(path).await {
        Ok(text) => Resolver::parse(&text).servers,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(file = %path.display(), %error, "dns: the host's servers are not known");
            }
            Vec::new()
        }
    }
}
