//! Sockets that have outlived whom they talk with.
//!
//! A service's client holds a socket to one backend. When that goes away TCP is told by a reset, but from a dead
//! endpoint nothing comes, and UDP is never told: the client sends into the void until it gives up. Such sockets are
//! ended, their owner gets `ECONNABORTED` and connects anew, to a backend that lives.
//!
//! Promise: only sockets that were opened through a service end, TCP ones only when the endpoint itself is gone: one
//! that terminates or is not ready keeps them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use linux::namespace::NetworkNamespace;
use linux::sock_diag::{Diagnosis, Protocol, Socket};
use mesh::service::{Backend, Frontend};
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

fn end_everywhere(
    namespaces: &[PathBuf],
    outlived: &(dyn Fn(&Socket) -> bool + Sync),
    protocols: &[Protocol],
) -> Result<usize> {
    let mut ended = end_here(outlived, protocols);
    for there in NetworkNamespace::each(namespaces, || end_here(outlived, protocols))? {
        ended = match (ended, there.and_then(|there| there)) {
            (Ok(ended), Ok(there)) => Ok(ended + there),
            // Its workload has ended meanwhile, and its sockets with it.
            (ended, Err(error)) if error.is_absent() => ended,
            (Err(first), _) => Err(first),
            (Ok(_), Err(error)) => Err(error),
        };
    }
    Ok(ended?)
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
