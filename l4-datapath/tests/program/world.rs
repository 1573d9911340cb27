//! Who is there: two pods of this node, the node, a peer beyond.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use abi::Address;

use super::frame::Ends;

/// A local endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pod {
    pub(crate) id: u32,
    pub(crate) ifindex: u32,
    pub(crate) identity: u32,
    pub(crate) ingress: u32,
    pub(crate) egress: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) gateway_mac: [u8; 6],
    pub(crate) host: u8,
}

pub(crate) const A: Pod = Pod {
    id: 1,
    ifindex: 11,
    identity: 1001,
    ingress: 101,
    egress: 102,
    mac: [2, 0, 0, 0, 0, 0xa],
    gateway_mac: [2, 0, 0, 0, 1, 0xa],
    host: 2,
};
pub(crate) const B: Pod = Pod {
    id: 2,
    ifindex: 21,
    identity: 1002,
    ingress: 201,
    egress: 202,
    mac: [2, 0, 0, 0, 0, 0xb],
    gateway_mac: [2, 0, 0, 0, 1, 0xb],
    host: 3,
};
/// Index of the device that leads out of the node.
pub(crate) const NIC: u32 = 31;
/// Identity of the peer beyond the node.
pub(crate) const PEER: u32 = 5000;
/// Identity of everybody else.
pub(crate) const WORLD: u32 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// An address of the node's pool.
    pub(crate) fn pool(self, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 0, 0, host).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    /// The peer beyond the node.
    pub(crate) fn peer(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, 7).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into(),
        }
    }

    /// The node itself.
    pub(crate) fn host(self) -> IpAddr {
        self.pool(1)
    }

    /// The node's address on the device that leads out.
    pub(crate) fn outside(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(198, 51, 100, 1).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1).into(),
        }
    }

    /// From the pod, as it would address it: to its gateway's MAC.
    pub(crate) fn from(self, pod: Pod, to: IpAddr) -> Ends {
        Ends { macs: (pod.mac, pod.gateway_mac), addresses: (self.pool(pod.host), to) }
    }

    pub(crate) fn between(self, from: Pod, to: Pod) -> Ends {
        self.from(from, self.pool(to.host))
    }

    /// To the pod, as the host's stack would send it.
    pub(crate) fn to(self, from: IpAddr, pod: Pod) -> Ends {
        Ends { macs: (pod.gateway_mac, pod.mac), addresses: (from, self.pool(pod.host)) }
    }
}

pub(crate) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(a) => Address::v4(a.octets()),
        IpAddr::V6(a) => Address(a.octets()),
    }
}

/// What a rule covers.
#[derive(Clone, Copy)]
pub(crate) enum Ports {
    All,
    Of(u8),
    One(u8, u16),
    /// The ports that share this many leading bits.
    Prefix(u8, u16, u32),
}
