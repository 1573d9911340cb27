//! Random worlds for tests: a few workloads, policies about them, and everyone else who might send a packet.
//!
//! A seed makes the same world on every machine. The worlds are small and crowded on purpose: few labels, nested
//! prefixes, overlapping port ranges, workloads whose addresses lie inside prefixes that policies name. Every variant of
//! the model appears; subjects are mostly broad, so that many policies meet at one endpoint.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::oracle::Packet;
use super::{
    Authentication, Enforcement, Entity, Needs, Operator, Peer, PeerPorts, Peers, Policy, PolicyKind,
    PolicyName, PortMatch, Requirement, Rule, Ruleset, Selector, Side, Statement, Universe, compile,
    protocol,
};
use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::l7::{
    Expression, HttpRule, HttpRules, L7Demand, SecretName, ServerName, ServerNames, TlsContext, TlsInspection,
};
use crate::labels::{LabelSet, NAMESPACE, Source};
use crate::workload::NamedPorts;

const PREFIXES: [&str; 14] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/23",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "10.1.3.0/24",
    "192.0.2.0/24",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1:2::/64",
    "2001:db8:1:2::3/128",
    "fd00::/8",
];

const OUTSIDE: [&str; 12] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.1.3.0",
    "10.9.9.9",
    "192.0.2.255",
    "8.8.8.8",
    "2001:db8:1:2::3",
    "2001:db8:1:2::4",
    "2001:db8:1:3::",
    "2001:db8:ffff::1",
    "fd11::1",
    "2606:4700::1111",
];

const PORTS: [u16; 9] = [0, 53, 79, 80, 81, 443, 8080, 9000, 65_535];

/// A small pseudo-random generator (SplitMix64): equal on every machine and in every version.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True in so many of a hundred cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of the items.
    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }

    fn some<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }
}

/// Someone who sends or receives.
#[derive(Clone, Debug)]
pub struct Party {
    /// Of a workload or reserved; the world's comes from the longest known prefix around the address.
    pub identity: Identity,
    /// The identity's labels.
    pub labels: LabelSet,
    /// One address.
    pub address: IpAddr,
    /// Named ports, where it is a workload.
    pub ports: NamedPorts,
}

/// Workloads, policies and whoever else there is.
#[derive(Clone, Debug)]
pub struct World {
    /// Each has labels and an identity of its own; every second one has an IPv6 address.
    pub workloads: Vec<Party>,
    /// In no particular order.
    pub policies: Vec<Policy>,
    /// The mode of the node.
    pub enforcement: Enforcement,
}

impl World {
    /// The world of this seed.
    pub fn new(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let mut workloads: Vec<Party> = Vec::new();
        for number in 0..2 + random.below(6) {
            let labels = labels(random);
            if workloads.iter().all(|other| other.labels != labels) {
                workloads.push(workload(random, number, labels));
            }
        }
        let policies = (0..random.below(7)).map(|number| policy(random, number)).collect();
        let modes = [Enforcement::Default, Enforcement::Default, Enforcement::Default, Enforcement::Always];
        let enforcement = if random.chance(3) { Enforcement::Never } else { random.pick(&modes) };
        Self { workloads, policies, enforcement }
    }

    /// An identity for each prefix that a policy names.
    pub fn prefixes(&self) -> BTreeMap<IpNet, Identity> {
        let numbers = (Identity::FIRST_CIDR..).filter_map(Identity::new);
        compile::prefixes(&self.policies).into_iter().zip(numbers).collect()
    }

    /// Everyone a ruleset can name.
    pub fn universe(&self) -> Universe {
        let identities = self.workloads.iter().map(|it| (it.identity, it.labels.clone())).collect();
        let ports = self.workloads.iter().map(|it| (it.identity, peer_ports(&it.ports))).collect();
        Universe::new(&identities, &self.prefixes(), &ports)
    }

    /// The compiled ruleset of one direction of a workload.
    pub fn ruleset(&self, subject: &Party, direction: TrafficDirection, universe: &Universe) -> Ruleset {
        let Party { labels, ports, .. } = subject;
        compile::ruleset(labels, ports, direction, &self.policies, universe, self.enforcement)
    }

    /// Everyone: workloads, reserved identities, addresses outside.
    pub fn parties(&self, universe: &Universe) -> Vec<Party> {
        let mut parties = self.workloads.clone();
        let inside = Identity::RESERVED.iter().map(|(identity, _)| *identity).filter(|it| !it.is_world());
        parties.extend(inside.filter_map(|identity| {
            let address = Ipv4Addr::from(0x0a01_0200 | identity.number()).into();
            Some(Party { identity, labels: identity.reserved_labels()?, address, ports: NamedPorts::new() })
        }));
        parties.extend(OUTSIDE.iter().filter_map(|text| text.parse().ok()).map(|address| {
            let identity = universe.outside(address);
            Party { identity, labels: LabelSet::new(), address, ports: NamedPorts::new() }
        }));
        parties
    }
}

impl Party {
    /// A random packet between this subject and a peer, with the peer's named ports beside it.
    pub fn packet<'a>(
        &'a self,
        random: &mut Random,
        direction: TrafficDirection,
        peer: &'a Party,
        peer_ports: &'a PeerPorts,
    ) -> Packet<'a> {
        let protocols = [protocol::TCP, protocol::UDP, protocol::SCTP, protocol::ICMP, protocol::ICMPV6, 47];
        let protocol = if random.chance(60) { protocol::TCP } else { random.pick(&protocols) };
        let port = match protocol {
            protocol::ICMP | protocol::ICMPV6 => random.pick(&[0, 3, 8, 128, 129]),
            47 => 0,
            _ => random.pick(&PORTS),
        };
        Packet {
            direction,
            subject: &self.labels,
            subject_ports: &self.ports,
            peer: peer.identity,
            peer_labels: &peer.labels,
            peer_address: peer.address,
            peer_ports,
            protocol,
            port,
        }
    }
}

/// What one workload's named ports are to its peers.
pub fn peer_ports(ports: &NamedPorts) -> PeerPorts {
    ports.iter().map(|(name, port)| (name.clone(), [*port].into())).collect()
}

fn labels(random: &mut Random) -> LabelSet {
    let mut labels = LabelSet::new().with(Source::K8s, NAMESPACE, random.pick(&["left", "right"]));
    for (key, values) in [("app", ["web", "db"]), ("tier", ["front", "back"])] {
        if random.chance(70) {
            labels = labels.with(Source::K8s, key, random.pick(&values));
        }
    }
    labels
}

fn workload(random: &mut Random, number: usize, labels: LabelSet) -> Party {
    let last = number as u16 + 16;
    let address: IpAddr = if number.is_multiple_of(2) {
        Ipv4Addr::new(10, 1, 2, last as u8).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0, 0, 0, last).into()
    };
    let mut ports = NamedPorts::new();
    for (name, protocol) in [("web", protocol::TCP), ("dns", protocol::UDP), ("dns", protocol::TCP)] {
        if random.chance(60) {
            ports.insert((name.to_owned(), protocol), random.pick(&PORTS));
        }
    }
    let number = Identity::FIRST_WORKLOAD + number as u32;
    Party { identity: Identity::new(number).unwrap_or(Identity::INIT), labels, address, ports }
}

fn policy(random: &mut Random, number: usize) -> Policy {
    let kind = PolicyKind::CiliumNetworkPolicy;
    let name = PolicyName { kind, namespace: Some("left".to_owned()), name: format!("policy-{number}") };
    Policy { name, rules: (0..=random.below(2)).map(|_| rule(random)).collect() }
}

fn rule(random: &mut Random) -> Rule {
    let subject = if random.chance(60) { Selector::default() } else { selector(random) };
    Rule { subject, ingress: side(random), egress: side(random) }
}

fn side(random: &mut Random) -> Side {
    let default_deny = random.chance(60);
    let allow = random.some(3, |random| Statement {
        authentication: if random.chance(20) { Authentication::Required } else { Authentication::None },
        needs: random.chance(10).then_some(Needs::L7Proxy),
        l7: random.chance(30).then(|| demand(random)),
        field: None,
        ..statement(random)
    });
    let deny = if random.chance(30) { random.some(2, statement) } else { Vec::new() };
    Side { default_deny, allow, deny }
}

fn statement(random: &mut Random) -> Statement {
    let peers = if random.chance(25) { Peers::Any } else { Peers::Selected(random.some(3, peer)) };
    let ports =
        if random.chance(30) { Vec::new() } else { (0..=random.below(3)).map(|_| port(random)).collect() };
    Statement { peers, ports, authentication: Authentication::None, needs: None, l7: None, field: None }
}

fn demand(random: &mut Random) -> L7Demand {
    match random.below(5) {
        0 | 1 => L7Demand::ServerNames(names(random)),
        2 | 3 => L7Demand::Http(http(random)),
        _ => L7Demand::Inspection(Arc::new(inspection(random))),
    }
}

fn inspection(random: &mut Random) -> TlsInspection {
    let context = |random: &mut Random| {
        let secret =
            SecretName { namespace: "default".to_owned(), name: random.pick(&["a", "b"]).to_owned() };
        let context = TlsContext { secret, trusted_ca: None, certificate: None, private_key: None };
        random.chance(60).then_some(context)
    };
    TlsInspection {
        names: random.chance(40).then(|| names(random)),
        terminating: context(random),
        originating: context(random),
        http: random.chance(70).then(|| http(random)),
    }
}

fn names(random: &mut Random) -> ServerNames {
    let all = ["a.example", "b.example", "*.example"];
    let mut names: Vec<ServerName> =
        (0..=random.below(2)).filter_map(|_| random.pick(&all).parse().ok()).collect();
    names.sort();
    names.dedup();
    names.into()
}

/// Methods only: which rules meet is what matters here, not how they are matched.
fn http(random: &mut Random) -> HttpRules {
    let rule = |random: &mut Random| HttpRule {
        method: Some(Expression(random.pick(&["GET", "POST", "PUT"]).to_owned())),
        ..HttpRule::default()
    };
    (0..=random.below(2)).map(|_| rule(random)).collect()
}

fn peer(random: &mut Random) -> Peer {
    match random.below(5) {
        0 => Peer::Entity(random.pick(&Entity::ALL).0),
        1 | 2 => Peer::Cidr { cidr: prefix(random), except: random.some(2, prefix) },
        _ => Peer::Endpoints(selector(random)),
    }
}

fn prefix(random: &mut Random) -> IpNet {
    random.pick(&PREFIXES).parse().unwrap_or_default()
}

fn selector(random: &mut Random) -> Selector {
    Selector(random.some(2, requirement))
}

fn requirement(random: &mut Random) -> Requirement {
    if random.chance(15) {
        let key = random.pick(&Identity::RESERVED).1.to_owned();
        let operator =
            random.pick(&[Operator::Exists, Operator::DoesNotExist, Operator::In(vec![String::new()])]);
        return Requirement { source: Some(Source::Reserved), key, operator };
    }
    let (key, values) =
        random.pick(&[("app", ["web", "db"]), ("tier", ["front", "back"]), (NAMESPACE, ["left", "right"])]);
    let values = (0..=random.below(2)).map(|_| random.pick(&values).to_owned()).collect::<Vec<_>>();
    let operators =
        [Operator::In(values.clone()), Operator::NotIn(values), Operator::Exists, Operator::DoesNotExist];
    Requirement {
        source: random.pick(&[None, Some(Source::K8s)]),
        key: key.to_owned(),
        operator: random.pick(&operators),
    }
}

fn port(random: &mut Random) -> PortMatch {
    let carrier = random.pick(&[None, Some(protocol::TCP), Some(protocol::TCP), Some(protocol::UDP)]);
    match random.below(8) {
        0 => PortMatch::Named { protocol: carrier, name: random.pick(&["web", "dns", "absent"]).to_owned() },
        1 => {
            let (protocol, kinds) = random.pick(&[
                (protocol::ICMP, [None, Some(0), Some(8)]),
                (protocol::ICMPV6, [None, Some(128), Some(129)]),
            ]);
            PortMatch::Icmp { protocol, icmp_type: random.pick(&kinds) }
        }
        2 => PortMatch::Protocol(random.pick(&[protocol::TCP, protocol::SCTP, 47])),
        3 => PortMatch::Range { protocol: carrier, first: 0, last: u16::MAX },
        4 | 5 => {
            let (one, other) = (random.pick(&PORTS), random.pick(&PORTS));
            PortMatch::Range { protocol: carrier, first: one.min(other), last: one.max(other) }
        }
        _ => {
            let port = random.pick(&PORTS);
            PortMatch::Range { protocol: carrier, first: port, last: port }
        }
    }
}
