//! Security identities: a number for a set of labels.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::labels::LabelSet;

/// A security identity. Zero is never one; below 256 reserved with Cilium's numbers; 256–65535 workloads;
/// from 0x0100_0000 address prefixes, which never leave the node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(u32);

impl Identity {
    /// This node.
    pub const HOST: Self = Self(1);
    /// Anything outside, either family; what policies and people name.
    pub const WORLD: Self = Self(2);
    /// An address of the pool that no workload has.
    pub const UNMANAGED: Self = Self(3);
    /// Health checks between nodes.
    pub const HEALTH: Self = Self(4);
    /// A workload whose labels are not known yet.
    pub const INIT: Self = Self(5);
    /// Another node.
    pub const REMOTE_NODE: Self = Self(6);
    /// The Kubernetes API server.
    pub const KUBE_APISERVER: Self = Self(7);
    /// Gateways.
    pub const INGRESS: Self = Self(8);
    /// Outside, IPv4: what `0.0.0.0/0` resolves to.
    pub const WORLD_IPV4: Self = Self(9);
    /// Outside, IPv6: what `::/0` resolves to.
    pub const WORLD_IPV6: Self = Self(10);

    /// First number of workloads.
    pub const FIRST_WORKLOAD: u32 = 256;
    /// Last number of workloads.
    pub const LAST_WORKLOAD: u32 = 65_535;
    /// First number of address prefixes.
    pub const FIRST_CIDR: u32 = 0x0100_0000;
    /// Last number of address prefixes.
    pub const LAST_CIDR: u32 = 0x01ff_ffff;

    /// The reserved identities and the labels they stand for.
    pub const RESERVED: [(Self, &'static str); 10] = [
        (Self::HOST, "host"),
        (Self::WORLD, "world"),
        (Self::UNMANAGED, "unmanaged"),
        (Self::HEALTH, "health"),
        (Self::INIT, "init"),
        (Self::REMOTE_NODE, "remote-node"),
        (Self::KUBE_APISERVER, "kube-apiserver"),
        (Self::INGRESS, "ingress"),
        (Self::WORLD_IPV4, "world-ipv4"),
        (Self::WORLD_IPV6, "world-ipv6"),
    ];

    /// None for zero: no identity.
    pub fn new(number: u32) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// The number, never zero.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Whether it stands for the labels of workloads.
    pub fn is_workload(self) -> bool {
        (Self::FIRST_WORKLOAD..=Self::LAST_WORKLOAD).contains(&self.0)
    }

    /// Whether it stands for an address prefix that some policy names.
    pub fn is_cidr(self) -> bool {
        (Self::FIRST_CIDR..=Self::LAST_CIDR).contains(&self.0)
    }

    /// Whether it is outside the cluster: the world, or a prefix of it.
    pub fn is_world(self) -> bool {
        self.is_cidr() || [Self::WORLD, Self::WORLD_IPV4, Self::WORLD_IPV6].contains(&self)
    }

    /// Labels of a reserved identity.
    pub fn reserved_labels(self) -> Option<LabelSet> {
        Self::RESERVED
            .iter()
            .find(|(identity, _)| *identity == self)
            .map(|(_, name)| LabelSet::reserved(name))
    }
}

impl fmt::Display for Identity {
    /// The name of a reserved identity, else the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::RESERVED.iter().find(|(identity, _)| identity == self) {
            Some((_, name)) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}
