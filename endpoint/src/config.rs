//! Where this node keeps things, and which addresses it may give out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::{Error, Result};

/// What tells one node from another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Directory that a reboot empties: `/run/ferromesh`. Network namespaces are below it.
    pub run_dir: PathBuf,
    /// Directory of what is remembered: `/var/lib/ferromesh`.
    pub state_dir: PathBuf,
    /// Cgroup v2 directory that is this node's own; one cgroup per workload is made in it.
    pub cgroup: PathBuf,
    /// IPv4 addresses of workloads. The first one is the node's own.
    pub ipv4_pool: Ipv4Net,
    /// IPv6 addresses of workloads. The first one is the node's own.
    pub ipv6_pool: Ipv6Net,
    /// MTU of workloads' devices in bytes; that of the default route's device if not given.
    pub mtu: Option<u32>,
    /// Addresses of services: like those of the pools, they have no way out.
    pub service_pools: Vec<IpNet>,
    /// Ports that stand for workloads' own when those are masqueraded; the host's own sockets do not get them.
    pub masquerade_ports: Option<RangeInclusive<u16>>,
    /// The host too asks the node's DNS.
    pub host_resolver: Option<HostResolver>,
}

/// How the host is to ask the node's DNS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostResolver {
    /// Its file: `/etc/resolv.conf`.
    pub file: PathBuf,
    /// The cluster domain.
    pub domain: String,
}

impl Config {
    /// The node's own IPv4 address in the pool: the workloads' gateway.
    pub fn ipv4_gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.ipv4_pool.network().to_bits().saturating_add(1))
    }

    /// The node's own IPv6 address in the pool: the workloads' gateway. The zeroth would be the subnet router's
    /// anycast address (RFC 4291, 2.6.1).
    pub fn ipv6_gateway(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.ipv6_pool.network().to_bits().saturating_add(1))
    }

    /// Both gateways, each with the length of a single address.
    pub(crate) fn gateways(&self) -> [IpNet; 2] {
        [IpAddr::V4(self.ipv4_gateway()).into(), IpAddr::V6(self.ipv6_gateway()).into()]
    }

    /// Both pools.
    pub(crate) fn pools(&self) -> [IpNet; 2] {
        [self.ipv4_pool.trunc().into(), self.ipv6_pool.trunc().into()]
    }

    /// Everything that must be nobody else's: the pools, and the addresses of services.
    pub(crate) fn claimed(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.pools().into_iter().chain(self.service_pools.iter().map(IpNet::trunc))
    }

    /// Each pool must hold the node's own and at least one more address.
    pub(crate) fn validate(&self) -> Result<()> {
        let longest = |pool: IpNet| if pool.addr().is_ipv4() { 29 } else { 125 };
        match self.pools().into_iter().find(|pool| pool.prefix_len() > longest(*pool)) {
            Some(pool) => Err(Error::PoolTooSmall { pool, longest: longest(pool) }),
            None => Ok(()),
        }
    }

    pub(crate) fn namespaces(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.state_dir.join("endpoints")
    }
}
