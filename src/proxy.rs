//! `ferromesh proxy`: the process that judges the HTTP requests of this node.
//!
//! It opens the maps it was handed, then gives up every right but NET_RAW and the file system but its directory, then reads
//! its first byte from anybody. Before that it takes leave for as many descriptors as its workers may use. Killed at any moment it leaves its listening sockets with the agent: who connects waits for
//! the next one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use l7_proxy::listener::{self, Listeners};
use linux::process;
use linux::user::Credentials;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::confine::confine_proxy;

/// Why the proxy does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(
        "found {found} inherited descriptors, expected {expected} for {workers} workers: 3, its control socket; 4, 5, 6 \
        and 7, the maps NODE, ENDPOINTS, ASSIGNMENTS and IPCACHE; and from 8 on two listening TCP sockets for each worker, \
        IPv4 and IPv6; the agent starts this process"
    )]
    Descriptors { found: usize, expected: usize, workers: usize },
    #[error(transparent)]
    Linux(#[from] linux::Error),
    #[error(transparent)]
    Maps(#[from] maps::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Runs until it is told to end.
pub(crate) fn run(directory: &Path, user: &str, workers: usize) -> Result<(), Failure> {
    let inherited = process::inherited()?;
    let (found, expected) = (inherited.len(), 5 + 2 * workers);
    if found != expected {
        return Err(Failure::Descriptors { found, expected, workers });
    }
    let mut inherited = inherited.into_iter();
    let mut next = || inherited.next().ok_or(Failure::Descriptors { found, expected, workers });
    let control = next()?;
    let identities = maps::Identities::open([next()?, next()?, next()?, next()?])?;
    let sockets: Vec<Listeners> =
        (0..workers).map(|_| Ok([next()?, next()?])).collect::<Result<_, Failure>>()?;
    let credentials = Credentials::parse(user)?;
    let open_files = raise_descriptors(workers)?;
    let own = [control.as_fd()].into_iter().chain(sockets.iter().flatten().map(OwnedFd::as_fd));
    let kept: Vec<_> = own.chain(identities.descriptors()).collect();
    confine_proxy(directory, &credentials, &kept)?;
    // After the confinement: a thread has the rights of the one that started it.
    let workers = listener::start(sockets, identities, open_files)?;
    // Whoever compiles rules and tells of requests is not to keep a worker from its core.
    process::stand_back()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(listener::run(control, workers))?)
}

/// How many descriptors it may have then. As root it may lift the hard limit too, where the kernel and its container let it.
fn raise_descriptors(workers: usize) -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = listener::descriptors(workers);
    let lifted = needed > hard && setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_ok();
    if !lifted {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    if !lifted && needed > hard {
        tracing::warn!(
            limit = hard,
            needed,
            "connections will be refused before the workers have all they may have"
        );
    }
    Ok(if lifted { needed } else { hard })
}
