//! Sockets that have outlived whom they talk with.
//!
//! A service's client holds a socket to one backend. When that goes away TCP is told by a reset, but from a dead
//! endpoint nothing comes, and UDP is never told: the client sends into the void until it gives up. Such sockets are
//! ended, their owner gets `ECONNABORTED` and connects anew, to a backend that lives.
//!
//! Promise: only sockets that were opened through a service end, TCP ones only when the endpoint itself is gone: one
//! that terminates or is not ready keeps them.
//!
//! Likewise those whose peer is no longer proven: the programs stop their packets and answer the next one of a TCP flow
//! with a reset, but who only listens would never be told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use linux::namespace::NetworkNamespace;
use linux::sock_diag::{Diagnosis, Protocol, Socket};
use mesh::service::{Backend, Frontend};
use node_api::auth::EndedPair;
use tokio::task::JoinHandle;

use crate::enrolment::Endpoints;
use crate::error::Result;

/// After sockets have ended their neighbours are listed again: a list in the making can miss some then.
const ROUNDS: u32 = 4;

/// Who can no longer be talked with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Departed {
    /// Those that left a service: [`mesh::service::Services::departed`].
    pub backends: BTreeSet<(Frontend, Backend)>,
    /// Those that no service lists any more, by IP protocol: what an agent finds at its start.
    pub unlisted: BTreeSet<(u8, Backend)>,
    /// Addresses of endpoints that are gone.
    pub addresses: BTreeSet<IpAddr>,
}

impl Departed {
    /// Nobody.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty() && self.unlisted.is_empty() && self.addresses.is_empty()
    }

    /// TCP sockets have no business here while their endpoint lives.
    fn protocols(&self) -> &'static [Protocol] {
        if self.addresses.is_empty() { &[Protocol::Udp] } else { &[Protocol::Udp, Protocol::Tcp] }
    }

    /// Whether a socket that called `frontend` and was connected to `remote` has outlived it.
    fn ends(&self, protocol: Protocol, frontend: Frontend, remote: Backend) -> bool {
        let left = self.backends.contains(&(frontend, remote))
            || self.unlisted.contains(&(protocol.number(), remote));
        (protocol == Protocol::Udp && left) || self.addresses.contains(&remote.ip())
    }
}

impl Endpoints {
    /// Ends the sockets of the node's own processes and of all endpoints that talk with the departed through a
    /// service; `called` tells by cookie, IP protocol and peer what a socket called, if it called a service. Starts at
    /// once, on a thread of its own, and yields how many it were. To be called after the departed have left the
    /// kernel's tables, so that what connects anew goes elsewhere.
    ///
    /// # Errors
    /// A namespace that could not be searched; the others were, all the same.
    pub fn end_sockets<F>(&self, departed: Departed, called: F) -> JoinHandle<Result<usize>>
    where
        F: Fn(u64, u8, Backend) -> Option<Frontend> + Send + Sync + 'static,
    {
        let namespaces = self.network_namespaces();
        tokio::task::spawn_blocking(move || {
            if departed.is_empty() {
                return Ok(0);
            }
            // The oracle is asked only of those that may be concerned.
            let left = departed.backends.iter().map(|(_, backend)| *backend);
            let left: BTreeSet<Backend> =
                left.chain(departed.unlisted.iter().map(|(_, backend)| *backend)).collect();
            let outlived = |socket: &Socket| {
                let (protocol, remote) = (socket.protocol, socket.remote);
                (left.contains(&remote) || departed.addresses.contains(&remote.ip()))
                    && called(socket.cookie, protocol.number(), remote)
                        .is_some_and(|frontend| departed.ends(protocol, frontend, remote))
            };
            end_everywhere(&namespaces, &outlived, departed.protocols())
        })
    }
}

impl Endpoints {
    /// Ends the sockets of endpoints that depended on marks which are no more. `epoch` tells on which mark's epoch the
    /// connection of a socket depends, if on any: another connection with the same peer, which policy lets through
    /// without a proof or by a newer one, is left alone. Starts at once, on a thread of its own, and yields how many.
    ///
    /// # Errors
    /// A namespace that could not be searched; the others were, all the same.
    pub fn end_unproven<F>(&self, ended: &[EndedPair], epoch: F) -> JoinHandle<Result<usize>>
    where
        F: Fn(&Socket) -> Option<u64> + Send + Sync + 'static,
    {
        let namespaces = self.network_namespaces_of_instances();
        let mut unproven: BTreeMap<PathBuf, BTreeSet<(IpAddr, u64)>> = BTreeMap::new();
        for pair in ended {
            // One that is gone has no sockets.
            let Some(namespace) = namespaces.get(&pair.instance) else { continue };
            let marks = pair.remote.iter().map(|remote| (*remote, pair.epoch));
            unproven.entry(namespace.clone()).or_default().extend(marks);
        }
        tokio::task::spawn_blocking(move || {
            let namespaces: Vec<_> = unproven.keys().cloned().collect();
            let passes = NetworkNamespace::each(&namespaces, |namespace| {
                let none = BTreeSet::new();
                let marks = unproven.get(namespace).unwrap_or(&none);
                let of_peer =
                    |socket: &Socket| marks.range((socket.remote.ip(), 0)..=(socket.remote.ip(), u64::MAX));
                let outlived = |socket: &Socket| {
                    let mut marks = of_peer(socket).peekable();
                    // The kernel is asked only of those that may be concerned.
                    marks.peek().is_some()
                        && epoch(socket).is_some_and(|epoch| marks.any(|(_, gone)| *gone == epoch))
                };
                end_here(&outlived, &[Protocol::Tcp, Protocol::Udp])
            })?;
            Ok(passes.into_iter().fold(Ok(0), add)?)
        })
    }
}

impl Endpoints {
    /// Ends each connected socket of endpoints for which this says so. Starts at once, on a thread of its own, and yields
    /// how many.
    ///
    /// # Errors
    /// A namespace that could not be searched; the others were, all the same.
    pub fn end_each<F>(&self, is_over: F) -> JoinHandle<Result<usize>>
    where
        F: Fn(&Socket) -> bool + Send + Sync + 'static,
    {
        let namespaces = self.network_namespaces();
        tokio::task::spawn_blocking(move || {
            let passes =
                NetworkNamespace::each(&namespaces, |_| end_here(&is_over, &[Protocol::Tcp, Protocol::Udp]))?;
            Ok(passes.into_iter().fold(Ok(0), add)?)
        })
    }
}

/// What has been ended so far and in one more namespace; the first error stays.
fn add(ended: linux::Result<usize>, there: linux::Result<linux::Result<usize>>) -> linux::Result<usize> {
    // Its workload has ended meanwhile, and its sockets with it: the mount goes first, then the file.
    if let Err(linux::Error::Unexpected { .. }) = there {
        return ended;
    }
    match (ended, there.and_then(|there| there)) {
        (Ok(ended), Ok(there)) => Ok(ended + there),
        (ended, Err(error)) if error.is_absent() => ended,
        (Err(first), _) => Err(first),
        (Ok(_), Err(error)) => Err(error),
    }
}

fn end_everywhere(
    namespaces: &[PathBuf],
    outlived: &(dyn Fn(&Socket) -> bool + Sync),
    protocols: &[Protocol],
) -> Result<usize> {
    let here = end_here(outlived, protocols);
    let there = NetworkNamespace::each(namespaces, |_| end_here(outlived, protocols))?;
    Ok(there.into_iter().fold(here, add)?)
}

/// In the calling thread's network namespace.
fn end_here(outlived: &dyn Fn(&Socket) -> bool, protocols: &[Protocol]) -> linux::Result<usize> {
    let mut diagnosis = Diagnosis::open()?;
    let mut ended = 0;
    for protocol in protocols {
        for _ in 0..ROUNDS {
            let before = ended;
            for socket in diagnosis.connected(*protocol)?.iter().filter(|socket| outlived(socket)) {
                ended += usize::from(diagnosis.end(socket)?);
            }
            if ended == before {
                break;
            }
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_whose_mount_has_gone_or_whose_file_has_is_no_error_and_any_other_is() {
        let directory = tempfile::tempdir().unwrap();
        let [unmounted, gone] = ["unmounted", "gone"].map(|name| directory.path().join(name));
        std::fs::write(&unmounted, "").unwrap();
        let visited = NetworkNamespace::each(&[unmounted, gone], |_| Ok(1)).unwrap();
        assert_eq!(visited.into_iter().fold(Ok(3), add).unwrap(), 3);
        let under_a_file = directory.path().join("unmounted/namespace");
        let visited = NetworkNamespace::each(&[under_a_file], |_| Ok(1)).unwrap();
        assert!(visited.into_iter().fold(Ok(3), add).is_err());
    }
}
