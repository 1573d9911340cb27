//! The listening sockets of the proxy, kept beside it.
//!
//! They outlive it: what connects while it is started again waits in them. An agent that finds a proxy running takes copies
//! of its sockets, so that there is only ever one set.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use linux::cgroup::Cgroup;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::AcceptConn;

/// Number of the first one in the proxy.
const FIRST: i32 = 8;

/// IPv4 and IPv6 in turn, a pair for each worker.
pub(super) struct Listeners(Vec<OwnedFd>);

impl Listeners {
    /// New ones; they and what they accept belong to the proxy's cgroup, which is made if need be.
    pub(super) fn open(cgroup: &Path, workers: usize) -> Result<Self, String> {
        let open = || {
            let cgroup = Cgroup::create(cgroup)?;
            linux::listener::transparent(cgroup.as_fd(), workers)
        };
        open().map(Self).map_err(|error| format!("its listening sockets: {error}"))
    }

    /// Those of a proxy that runs.
    pub(super) fn of(pid: i32, workers: usize) -> Result<Self, String> {
        let numbers = (FIRST..).take(workers * 2);
        let copies = numbers.map(|number| linux::child::descriptor(pid, number));
        let copies: Vec<OwnedFd> = copies
            .collect::<linux::Result<_>>()
            .map_err(|error| format!("its listening sockets cannot be copied: {error}"))?;
        // One that has stopped to listen has other things under these numbers.
        let listens = |socket: &OwnedFd| matches!(getsockopt(socket, AcceptConn), Ok(true));
        if copies.iter().all(listens) {
            Ok(Self(copies))
        } else {
            Err("it does not listen any more".to_owned())
        }
    }

    pub(super) fn copies(&self) -> Result<Vec<OwnedFd>, String> {
        let copies: io::Result<_> = self.0.iter().map(OwnedFd::try_clone).collect();
        copies.map_err(|error| format!("copying a descriptor: {error}"))
    }
}
