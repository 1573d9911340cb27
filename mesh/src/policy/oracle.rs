//! The oracle: what policy says about one packet, by reading the policies as a person would.
//!
//! The second, obvious implementation. It knows no universe, no prefix identities, no tables and no order of evaluation:
//! each packet asks every statement again, and addresses are held against CIDRs as they stand. It is far too slow to be
//! used for anything but to judge the fast one: tests here hold it against compiled rulesets, tests of the datapath
//! against the programs in the kernel. It shares nothing with [`super::compile`] but the model.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{
    Authentication, Enforcement, Entity, Needs, Peer, PeerPorts, Peers, Policy, PolicyName, PortMatch,
    Selector, Side, Statement,
};
use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::labels::{LabelSet, Source};
use crate::workload::NamedPorts;

/// A first packet, seen from the subject.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// To or from the subject.
    pub direction: TrafficDirection,
    /// Labels of the subject.
    pub subject: &'a LabelSet,
    /// Its named ports.
    pub subject_ports: &'a NamedPorts,
    /// Whom it comes from or goes to; of whoever [is the world](Identity::is_world) only the address matters.
    pub peer: Identity,
    /// Labels of the peer.
    pub peer_labels: &'a LabelSet,
    /// Address of the peer.
    pub peer_address: IpAddr,
    /// Named ports of the peer.
    pub peer_ports: &'a PeerPorts,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, or ICMP type.
    pub port: u16,
}

/// Why the packet passes or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Deny statements of these policies match.
    DenyRule(BTreeSet<PolicyName>),
    /// Nothing restricts this direction.
    NotEnforced,
    /// The node itself may reach its workloads.
    Node,
    /// Allow statements of these policies match.
    AllowRule(BTreeSet<PolicyName>),
    /// The same, and the peer must have proven who it is: these policies ask for it.
    Authenticated(BTreeSet<PolicyName>),
    /// The same, of a peer that has no ID to prove.
    NoPrincipal(BTreeSet<PolicyName>),
    /// These policies would allow it under a demand that nothing enforces yet.
    Unmet(BTreeSet<PolicyName>),
    /// Nothing allows it.
    Default,
}

impl Reason {
    /// Whether the packet passes, once whoever can prove who he is has done so.
    pub fn allowed(&self) -> bool {
        matches!(self, Self::NotEnforced | Self::Node | Self::AllowRule(_) | Self::Authenticated(_))
    }
}

/// What policy says about the packet.
pub fn judge(packet: &Packet<'_>, policies: &[Policy], enforcement: Enforcement) -> Reason {
    if enforcement == Enforcement::Never {
        return Reason::NotEnforced;
    }
    let mut enforced =
        enforcement == Enforcement::Always || packet.subject.get(Source::Reserved, "init").is_some();
    let (mut denying, mut allowing, mut wanting) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut authenticating = BTreeSet::new();
    for policy in policies {
        for rule in policy.rules.iter().filter(|rule| rule.subject.matches(packet.subject)) {
            let side = match packet.direction {
                TrafficDirection::Ingress => &rule.ingress,
                TrafficDirection::Egress => &rule.egress,
            };
            enforced |= side.default_deny;
            if side.deny.iter().any(|statement| matches(statement, packet)) {
                denying.insert(policy.name.clone());
            }
            for statement in side.allow.iter().filter(|statement| admits(statement, packet)) {
                match (statement.needs, statement.authentication) {
                    (None, Authentication::None) => allowing.insert(policy.name.clone()),
                    (None, Authentication::Required) => authenticating.insert(policy.name.clone()),
                    (Some(Needs::L7Proxy), _) => wanting.insert(policy.name.clone()),
                };
            }
        }
    }
    let from_node = packet.direction == TrafficDirection::Ingress && packet.peer == Identity::HOST;
    if !denying.is_empty() {
        Reason::DenyRule(denying)
    } else if !authenticating.is_empty() && from_node {
        Reason::AllowRule(authenticating)
    } else if !authenticating.is_empty() && packet.peer.is_workload() {
        Reason::Authenticated(authenticating)
    } else if !authenticating.is_empty() {
        Reason::NoPrincipal(authenticating)
    } else if !enforced {
        Reason::NotEnforced
    } else if !allowing.is_empty() {
        Reason::AllowRule(allowing)
    } else if from_node {
        Reason::Node
    } else if !wanting.is_empty() {
        Reason::Unmet(wanting)
    } else {
        Reason::Default
    }
}

/// Whether a packet that passes goes by way of the L7 proxy: whatever allows it has a demand of L7.
pub fn is_proxied(packet: &Packet<'_>, policies: &[Policy], enforcement: Enforcement) -> bool {
    let sides = || sides(packet, policies);
    let always = enforcement == Enforcement::Always || packet.subject.get(Source::Reserved, "init").is_some();
    let enforced = enforcement != Enforcement::Never && (always || sides().any(|side| side.default_deny));
    let from_node = packet.direction == TrafficDirection::Ingress && packet.peer == Identity::HOST;
    let denied = sides().flat_map(|side| &side.deny).any(|statement| matches(statement, packet));
    let admitting = admitting(packet, policies);
    enforced
        && !from_node
        && !denied
        && !admitting.is_empty()
        && admitting.iter().all(|statement| statement.l7.is_some())
}

/// The statements that let the packet pass, unless another one denies it.
pub fn admitting<'a>(packet: &Packet<'_>, policies: &'a [Policy]) -> Vec<&'a Statement> {
    let statements = sides(packet, policies).flat_map(|side| &side.allow);
    statements.filter(|statement| statement.needs.is_none() && admits(statement, packet)).collect()
}

fn sides<'a>(packet: &Packet<'_>, policies: &'a [Policy]) -> impl Iterator<Item = &'a Side> {
    let rules = policies.iter().flat_map(|policy| &policy.rules);
    rules.filter(|rule| rule.subject.matches(packet.subject)).map(|rule| rule.side(packet.direction))
}

/// The proxy takes TCP: of what else it matches a statement with a demand of L7 says nothing.
fn admits(statement: &Statement, packet: &Packet<'_>) -> bool {
    let can_be = statement.l7.is_none() || statement.needs.is_some() || packet.protocol == 6;
    can_be && matches(statement, packet)
}

fn matches(statement: &Statement, packet: &Packet<'_>) -> bool {
    let peer = match &statement.peers {
        Peers::Any => true,
        Peers::Selected(peers) => peers.iter().any(|peer| is_meant(peer, packet)),
    };
    peer && (statement.ports.is_empty() || statement.ports.iter().any(|port| is_at(port, packet)))
}

fn is_meant(peer: &Peer, packet: &Packet<'_>) -> bool {
    match peer {
        Peer::Endpoints(selector) => selects(selector, packet),
        Peer::Entity(entity) => is_in(*entity, packet),
        Peer::Cidr { cidr, except } => {
            let address = &packet.peer_address;
            packet.peer.is_world()
                && cidr.contains(address)
                && !except.iter().any(|net| net.contains(address))
        }
    }
}

fn selects(selector: &Selector, packet: &Packet<'_>) -> bool {
    let reserved = selector.0.iter().any(|requirement| requirement.source == Some(Source::Reserved));
    if packet.peer.is_world() {
        let family = if packet.peer_address.is_ipv4() { "world-ipv4" } else { "world-ipv6" };
        let labels = LabelSet::reserved("world").with(Source::Reserved, family, "");
        return reserved && selector.matches(&labels);
    }
    (reserved || packet.peer.is_workload()) && selector.matches(packet.peer_labels)
}

fn is_in(entity: Entity, packet: &Packet<'_>) -> bool {
    let world = packet.peer.is_world();
    match entity {
        Entity::All => true,
        Entity::World => world,
        Entity::WorldIpv4 => world && packet.peer_address.is_ipv4(),
        Entity::WorldIpv6 => world && packet.peer_address.is_ipv6(),
        Entity::Cluster => !world,
        Entity::Host => packet.peer == Identity::HOST,
        Entity::RemoteNode => packet.peer == Identity::REMOTE_NODE,
        Entity::KubeApiserver => packet.peer == Identity::KUBE_APISERVER,
        Entity::Ingress => packet.peer == Identity::INGRESS,
        Entity::Init => packet.peer == Identity::INIT,
        Entity::Health => packet.peer == Identity::HEALTH,
        Entity::Unmanaged => packet.peer == Identity::UNMANAGED,
        Entity::None => false,
    }
}

fn is_at(port: &PortMatch, packet: &Packet<'_>) -> bool {
    let carries = |protocol: &Option<u8>| match protocol {
        Some(protocol) => *protocol == packet.protocol,
        None => matches!(packet.protocol, 6 | 17 | 132),
    };
    match port {
        PortMatch::Range { protocol, first, last } => {
            carries(protocol) && (*first..=*last).contains(&packet.port)
        }
        PortMatch::Named { protocol, name } => carries(protocol) && is_called(name, packet),
        PortMatch::Icmp { protocol, icmp_type } => {
            *protocol == packet.protocol && icmp_type.is_none_or(|kind| u16::from(kind) == packet.port)
        }
        PortMatch::Protocol(protocol) => *protocol == packet.protocol,
    }
}

fn is_called(name: &str, packet: &Packet<'_>) -> bool {
    let key = (name.to_owned(), packet.protocol);
    match packet.direction {
        TrafficDirection::Ingress => packet.subject_ports.get(&key) == Some(&packet.port),
        TrafficDirection::Egress => {
            packet.peer_ports.get(&key).is_some_and(|ports| ports.contains(&packet.port))
        }
    }
}
