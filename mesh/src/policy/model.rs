//! The one vocabulary for every kind of policy.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Selector;
use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::l7::L7Demand;

/// The kinds of policy object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `cilium.io/v2`, namespaced.
    CiliumNetworkPolicy,
    /// `cilium.io/v2`, whole cluster.
    CiliumClusterwideNetworkPolicy,
}

impl PolicyKind {
    /// As in YAML.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
        }
    }
}

/// Which object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PolicyName {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its namespace; clusterwide ones have none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PolicyName {
    /// `namespace/name`, or `name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

/// One policy object, understood.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Policy {
    /// Which object.
    pub name: PolicyName,
    /// `spec` and each of `specs`.
    pub rules: Vec<Rule>,
}

/// One rule: whom it is about, and what may come and go.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Rule {
    /// The endpoints it is about, narrowed to the policy's namespace.
    pub subject: Selector,
    /// Packets to them.
    pub ingress: Side,
    /// Packets from them.
    pub egress: Side,
}

impl Rule {
    /// The side for packets of this direction.
    pub fn side(&self, direction: TrafficDirection) -> &Side {
        match direction {
            TrafficDirection::Ingress => &self.ingress,
            TrafficDirection::Egress => &self.egress,
        }
    }
}

/// One direction of a rule.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Side {
    /// What nothing allows is denied, for the subjects and in this direction.
    pub default_deny: bool,
    /// What is allowed.
    pub allow: Vec<Statement>,
    /// What is denied, before any allow of any policy.
    pub deny: Vec<Statement>,
}

/// Peers and ports, both of which must match.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Statement {
    /// Who.
    pub peers: Peers,
    /// On which ports; empty means any protocol and port.
    pub ports: Vec<PortMatch>,
    /// What the peer must have proven before it allows. In a deny statement it means nothing.
    pub authentication: Authentication,
    /// What must also hold and has no enforcer yet: such a statement allows nothing; what it would have allowed is
    /// denied with this reason (unless another statement allows it).
    pub needs: Option<Needs>,
    /// Of an allow: what the L7 proxy holds it to, so that it allows by way of the proxy only, and nothing but TCP. In a deny
    /// statement it means nothing.
    pub l7: Option<L7Demand>,
    /// Of one with such a demand: which field of the object it is, `spec.ingress[0].toPorts[1]`.
    #[serde(skip)]
    pub field: Option<Arc<str>>,
}

/// A demand of a statement that this version cannot enforce.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Needs {
    /// `rules` other than `http`, `listener`.
    L7Proxy,
}

/// What a peer must have proven, the strictest last. Of all statements that admit a packet the strictest counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authentication {
    /// Nothing: `authentication` is absent, or its mode `disabled`.
    #[default]
    None,
    /// Who it is: `authentication.mode: required`.
    Required,
}

/// What an [`Authentication`] comes to for one peer of one subject.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Asked {
    /// It passes without.
    Nothing,
    /// It passes once each end has proven to the other who it is.
    Proof,
    /// It never passes: only workloads have an ID that they could prove.
    NoPrincipal,
}

impl Authentication {
    /// What is asked of this peer. The node proves nothing to its own workloads, whatever policy says: probes come that
    /// way.
    pub fn of(self, peer: Identity, direction: TrafficDirection) -> Asked {
        let own_node = direction == TrafficDirection::Ingress && peer == Identity::HOST;
        match self {
            Self::Required if own_node => Asked::Nothing,
            Self::Required if peer.is_workload() => Asked::Proof,
            Self::Required => Asked::NoPrincipal,
            Self::None => Asked::Nothing,
        }
    }
}

/// The peers of a statement.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub enum Peers {
    /// Anyone at all: the policy says nothing about peers.
    Any,
    /// Whoever one of these matches; nobody, if there are none.
    Selected(Vec<Peer>),
}

/// One way to name peers.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub enum Peer {
    /// By labels. Workloads only, unless it names reserved labels ([`Selector::names_reserved`]).
    Endpoints(Selector),
    /// By role.
    Entity(Entity),
    /// By address, outside the cluster only: workloads, nodes and the host are never matched by address.
    Cidr {
        /// The prefix.
        cidr: IpNet,
        /// What of it is left out.
        except: Vec<IpNet>,
    },
}

/// Cilium's entities.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entity {
    /// Everyone.
    All,
    /// Outside the cluster, prefixes included.
    World,
    /// Outside, IPv4 only.
    WorldIpv4,
    /// Outside, IPv6 only.
    WorldIpv6,
    /// All workloads, nodes, host, health, init, unmanaged, ingress, kube-apiserver.
    Cluster,
    /// This node.
    Host,
    /// Other nodes.
    RemoteNode,
    /// The API server.
    KubeApiserver,
    /// Gateways.
    Ingress,
    /// Workloads without labels yet.
    Init,
    /// Health endpoints.
    Health,
    /// Pool addresses without workload.
    Unmanaged,
    /// Nobody.
    None,
}

impl Entity {
    /// All of them with their names in YAML.
    pub const ALL: [(Self, &'static str); 13] = [
        (Self::All, "all"),
        (Self::World, "world"),
        (Self::WorldIpv4, "world-ipv4"),
        (Self::WorldIpv6, "world-ipv6"),
        (Self::Cluster, "cluster"),
        (Self::Host, "host"),
        (Self::RemoteNode, "remote-node"),
        (Self::KubeApiserver, "kube-apiserver"),
        (Self::Ingress, "ingress"),
        (Self::Init, "init"),
        (Self::Health, "health"),
        (Self::Unmanaged, "unmanaged"),
        (Self::None, "none"),
    ];
}

/// Not an entity.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no entity")]
pub struct EntityError(String);

impl FromStr for Entity {
    type Err = EntityError;

    fn from_str(text: &str) -> Result<Self, EntityError> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(entity, _)| *entity).ok_or_else(|| EntityError(text.to_owned()))
    }
}

/// Protocol and ports of a statement.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub enum PortMatch {
    /// Ports `first..=last` of a protocol; protocol `None` is TCP, UDP and SCTP. `0..=65535` is any port.
    Range {
        /// IP protocol number.
        protocol: Option<u8>,
        /// First port.
        first: u16,
        /// Last port, inclusive.
        last: u16,
    },
    /// A port by the name its workload gives it: the subject's for ingress, the peer's for egress.
    Named {
        /// IP protocol number; `None` is TCP, UDP and SCTP.
        protocol: Option<u8>,
        /// The name.
        name: String,
    },
    /// ICMP (protocol 1) or ICMPv6 (58) of a type; `None` any type.
    Icmp {
        /// 1 or 58.
        protocol: u8,
        /// ICMP type.
        icmp_type: Option<u8>,
    },
    /// A whole IP protocol without ports.
    Protocol(u8),
}

/// IP protocol numbers that policy names.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// The protocols `ANY` stands for in a port rule.
    pub const WITH_PORTS: [u8; 3] = [TCP, UDP, SCTP];

    /// The name people use, else none.
    pub fn name(number: u8) -> Option<&'static str> {
        Some(match number {
            ICMP => "ICMP",
            TCP => "TCP",
            UDP => "UDP",
            ICMPV6 => "ICMPv6",
            SCTP => "SCTP",
            _ => return None,
        })
    }
}

/// When policy is enforced on an endpoint (`policyEnforcementMode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// In a direction in which some rule selects the endpoint and denies by default.
    #[default]
    Default,
    /// Always; without a rule everything is denied.
    Always,
    /// Never.
    Never,
}
