//! What the configuration says of authentication, as far as processes are started with it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use control::World;
use mesh::spiffe::TrustDomain;
use serde::{Deserialize, Serialize};

/// Settings of the processes. A process that was started with others is replaced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Settings {
    /// Build of the agent that started them: only the same build is talked to.
    build: String,
    pub(super) trust_domain: TrustDomain,
    pub(super) node: String,
    /// Where certificates come from.
    pub(super) ca: Ca,
    /// Where this node's auth-agent listens for others.
    pub(super) listen: Vec<SocketAddr>,
    /// How long certificates are good.
    pub(super) svid_lifetime: Duration,
}

/// Where certificates come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Ca {
    /// This node.
    Here {
        /// Where it listens.
        listen: SocketAddr,
        /// For others too: it is there from the start.
        shared: bool,
    },
    /// Another.
    Elsewhere {
        /// Where that listens.
        address: SocketAddr,
        /// File with the token by which this node joins.
        join_token: Option<PathBuf>,
        /// File with the roots to trust.
        bundle: Option<PathBuf>,
    },
}

impl Settings {
    pub(super) fn of(world: &World, node: &str) -> Self {
        let configuration = &world.configuration;
        let port = configuration.auth_port;
        let addresses = world.nodes.get(node).map(|node| node.addresses.clone()).unwrap_or_default();
        let mut listen: Vec<_> =
            addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        if listen.is_empty() {
            // Of both families, where the machine has both.
            listen.push(SocketAddr::new(IpAddr::from([0; 16]), port));
        }
        let ca = match configuration.ca_address {
            Some(address) => Ca::Elsewhere {
                address,
                join_token: configuration.join_token_file.clone(),
                bundle: configuration.trust_bundle_file.clone(),
            },
            None => {
                let listen = configuration.ca_listen;
                Ca::Here { listen, shared: !listen.ip().is_loopback() }
            }
        };
        Self {
            build: crate::BUILD.to_owned(),
            trust_domain: configuration.trust_domain.clone(),
            node: node.to_owned(),
            ca,
            listen,
            svid_lifetime: configuration.svid_lifetime,
        }
    }

    /// Where the auth-agent asks for certificates.
    pub(super) fn ca_address(&self) -> SocketAddr {
        match &self.ca {
            Ca::Elsewhere { address, .. } => *address,
            Ca::Here { listen, .. } if listen.ip().is_unspecified() => {
                let loopback: IpAddr =
                    if listen.is_ipv4() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1u16].into() };
                SocketAddr::new(loopback, listen.port())
            }
            Ca::Here { listen, .. } => *listen,
        }
    }

    /// Ports that no workload may call, on any node: where auth-agents and the CA listen.
    pub(super) fn guarded(&self) -> [u16; 2] {
        let port = self.listen.first().map_or(0, SocketAddr::port);
        let mut both = [port, self.ca_address().port()];
        // To programs of an earlier build they are the first and the last.
        both.sort_unstable();
        both
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_kept_from_both_ports_however_far_they_are_from_each_other() {
        let mut world = World::default();
        assert_eq!(Settings::of(&world, "node1").guarded(), [4250, 4251]);
        world.configuration.ca_listen = ([192, 0, 2, 1], 443).into();
        assert_eq!(Settings::of(&world, "node1").guarded(), [443, 4250]);
        world.configuration.ca_address = Some(([192, 0, 2, 2], 8443).into());
        assert_eq!(Settings::of(&world, "node1").guarded(), [4250, 8443]);
    }
}
