//! The small world of the semantic tests, and short ways to write policies about it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::l7::{Expression, HttpRule, L7Demand, ServerName, TlsInspection};
use crate::labels::{LabelSet, NAMESPACE, Source};
use crate::policy::arbitrary::peer_ports;
use crate::policy::oracle::{self, Packet};
use crate::policy::{
    Asked, Authentication, Enforcement, Needs, Operator, Outcome, Peer, PeerPorts, Peers, Policy, PolicyKind,
    PolicyName, PortMatch, Requirement, Rule, Ruleset, Selector, Side, Statement, Universe, compile,
    protocol,
};
use crate::workload::NamedPorts;

pub(super) use crate::flow::TrafficDirection::{Egress, Ingress};

type TcpPorts = &'static [(&'static str, u16)];

/// Name, identity, labels, named TCP ports.
const WORKLOADS: [(&str, u32, &str, TcpPorts); 4] = [
    ("deathstar", 256, "org=empire,class=deathstar", &[("landing", 80)]),
    ("tiefighter", 257, "org=empire,class=tiefighter", &[("landing", 8080)]),
    ("xwing", 258, "org=alliance,class=xwing", &[]),
    ("probe", 259, "class=probe", &[]),
];

/// Policies, and how they are enforced.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) policies: Vec<Policy>,
    pub(super) enforcement: Enforcement,
}

pub(super) fn given<const N: usize>(policies: [Policy; N]) -> Given {
    Given { policies: policies.into(), enforcement: Enforcement::Default }
}

/// A policy about the deathstar.
pub(super) fn policy<const N: usize>(name: &str, parts: [(TrafficDirection, Part); N]) -> Policy {
    let mut rule =
        Rule { subject: selector("class=deathstar"), ingress: Side::default(), egress: Side::default() };
    for (direction, part) in parts {
        let side = match direction {
            Ingress => &mut rule.ingress,
            Egress => &mut rule.egress,
        };
        match part {
            Part::DefaultDeny => side.default_deny = true,
            Part::Allow(statement) => side.allow.push(statement),
            Part::Deny(statement) => side.deny.push(statement),
        }
    }
    let kind = PolicyKind::CiliumNetworkPolicy;
    let name = PolicyName { kind, namespace: Some("default".to_owned()), name: name.to_owned() };
    Policy { name, rules: vec![rule] }
}

/// What stands in one direction of a rule.
pub(super) enum Part {
    DefaultDeny,
    Allow(Statement),
    Deny(Statement),
}

/// A policy that denies by default and allows this.
pub(super) fn allowing(name: &str, direction: TrafficDirection, peers: Peers, ports: &[PortMatch]) -> Policy {
    policy(name, [(direction, Part::DefaultDeny), (direction, Part::Allow(statement(peers, ports)))])
}

/// A policy that denies this, and nothing by default.
pub(super) fn denying(name: &str, direction: TrafficDirection, peers: Peers, ports: &[PortMatch]) -> Policy {
    policy(name, [(direction, Part::Deny(statement(peers, ports)))])
}

/// A policy that denies by default and allows this to whoever is authenticated.
pub(super) fn requiring(
    name: &str,
    direction: TrafficDirection,
    peers: Peers,
    ports: &[PortMatch],
) -> Policy {
    let statement = Statement { authentication: Authentication::Required, ..statement(peers, ports) };
    policy(name, [(direction, Part::DefaultDeny), (direction, Part::Allow(statement))])
}

/// A policy that denies by default and would allow this, if its demand were met.
pub(super) fn demanding(name: &str, needs: Needs, peers: Peers, ports: &[PortMatch]) -> Policy {
    let statement = Statement { needs: Some(needs), ..statement(peers, ports) };
    policy(name, [(Ingress, Part::DefaultDeny), (Ingress, Part::Allow(statement))])
}

/// A policy that denies by default and allows requests of this method.
pub(super) fn requesting(
    name: &str,
    direction: TrafficDirection,
    peers: Peers,
    ports: &[PortMatch],
    method: &str,
) -> Policy {
    demanding_of(name, direction, peers, ports, L7Demand::Http([method_is(method)].into()))
}

/// A policy that denies by default and allows TLS to a server of this name.
pub(super) fn naming(
    name: &str,
    direction: TrafficDirection,
    peers: Peers,
    ports: &[PortMatch],
    server: &str,
) -> Policy {
    demanding_of(name, direction, peers, ports, L7Demand::ServerNames([server_is(server)].into()))
}

/// A policy that denies by default and allows TLS that the proxy sees into.
pub(super) fn inspecting(
    name: &str,
    direction: TrafficDirection,
    peers: Peers,
    ports: &[PortMatch],
    inspection: &Arc<TlsInspection>,
) -> Policy {
    demanding_of(name, direction, peers, ports, L7Demand::Inspection(Arc::clone(inspection)))
}

fn demanding_of(
    name: &str,
    direction: TrafficDirection,
    peers: Peers,
    ports: &[PortMatch],
    demand: L7Demand,
) -> Policy {
    let statement = Statement { l7: Some(demand), ..statement(peers, ports) };
    policy(name, [(direction, Part::DefaultDeny), (direction, Part::Allow(statement))])
}

pub(super) fn server_is(name: &str) -> ServerName {
    name.parse().unwrap()
}

pub(super) fn method_is(method: &str) -> HttpRule {
    HttpRule { method: Some(Expression(method.to_owned())), ..HttpRule::default() }
}

pub(super) fn statement(peers: Peers, ports: &[PortMatch]) -> Statement {
    Statement {
        peers,
        ports: ports.to_vec(),
        authentication: Authentication::None,
        needs: None,
        l7: None,
        field: None,
    }
}

/// `key=value` and `reserved:name`, all of which must hold.
pub(super) fn selector(text: &str) -> Selector {
    let requirement = |label: &str| match label.strip_prefix("reserved:") {
        Some(name) => {
            Requirement { source: Some(Source::Reserved), key: name.to_owned(), operator: Operator::Exists }
        }
        None => {
            let (key, value) = label.split_once('=').unwrap();
            Requirement { source: None, key: key.to_owned(), operator: Operator::In(vec![value.to_owned()]) }
        }
    };
    Selector(text.split(',').filter(|label| !label.is_empty()).map(requirement).collect())
}

pub(super) fn pods(text: &str) -> Peers {
    Peers::Selected(vec![Peer::Endpoints(selector(text))])
}

pub(super) fn entity(name: &str) -> Peers {
    Peers::Selected(vec![Peer::Entity(name.parse().unwrap())])
}

pub(super) fn cidr(cidr: &str, except: &[&str]) -> Peers {
    let except = except.iter().map(|net| net.parse().unwrap()).collect();
    Peers::Selected(vec![Peer::Cidr { cidr: cidr.parse().unwrap(), except }])
}

pub(super) fn tcp(first: u16, last: u16) -> PortMatch {
    PortMatch::Range { protocol: Some(protocol::TCP), first, last }
}

/// How the deathstar and a peer fare.
pub(super) type Case<'a> = (&'a str, &'a str, bool);

impl Given {
    pub(super) fn universe(&self) -> Universe {
        let prefixes: BTreeMap<IpNet, Identity> = compile::prefixes(&self.policies)
            .into_iter()
            .zip((Identity::FIRST_CIDR..).filter_map(Identity::new))
            .collect();
        let each = |number| Identity::new(number).unwrap();
        let identities = WORKLOADS.iter().map(|(_, number, text, _)| (each(*number), labels(text))).collect();
        let ports = WORKLOADS
            .iter()
            .map(|(_, number, _, ports)| (each(*number), peer_ports(&named(ports))))
            .collect();
        Universe::new(&identities, &prefixes, &ports)
    }

    pub(super) fn ruleset(&self, direction: TrafficDirection) -> Ruleset {
        let [(_, _, text, ports), ..] = WORKLOADS;
        let universe = self.universe();
        compile::ruleset(&labels(text), &named(ports), direction, &self.policies, &universe, self.enforcement)
    }

    /// The outcome for a peer, given as workload, reserved identity or address, at `port/protocol`.
    pub(super) fn outcome(
        &self,
        direction: TrafficDirection,
        peer: &str,
        port: &str,
    ) -> (bool, Option<Outcome>) {
        let (identity, ..) = party(peer, &self.universe());
        let (protocol, port) = parse(port);
        let ruleset = self.ruleset(direction);
        let (allowed, outcome) = ruleset.judge(identity, protocol, port);
        (allowed, outcome.cloned())
    }

    /// Holds the compiled ruleset and the oracle against each case.
    pub(super) fn expect(&self, direction: TrafficDirection, cases: &[Case<'_>]) {
        let [(_, _, text, ports), ..] = WORKLOADS;
        let (subject, subject_ports) = (labels(text), named(ports));
        for (peer, port, expected) in cases {
            let (identity, peer_labels, peer_address, peer_ports) = party(peer, &self.universe());
            let (allowed, outcome) = self.outcome(direction, peer, port);
            let cannot =
                outcome.is_some_and(|it| it.authentication.of(identity, direction) == Asked::NoPrincipal);
            assert_eq!(allowed && !cannot, *expected, "compiled: {direction:?} {peer} {port}");
            let (protocol, port) = parse(port);
            let packet = Packet {
                direction,
                subject: &subject,
                subject_ports: &subject_ports,
                peer: identity,
                peer_labels: &peer_labels,
                peer_address,
                peer_ports: &peer_ports,
                protocol,
                port,
            };
            let answer = oracle::judge(&packet, &self.policies, self.enforcement);
            assert_eq!(
                answer.allowed(),
                *expected,
                "oracle: {answer:?}: {direction:?} {peer} {port:?}: {self:?}"
            );
        }
    }
}

fn labels(text: &str) -> LabelSet {
    text.parse::<LabelSet>().unwrap().with(Source::K8s, NAMESPACE, "default")
}

fn named(ports: &[(&str, u16)]) -> NamedPorts {
    ports.iter().map(|(name, port)| (((*name).to_owned(), protocol::TCP), *port)).collect()
}

/// Identity, labels, address and named ports of a workload, a reserved identity or an address.
pub(super) fn party(name: &str, universe: &Universe) -> (Identity, LabelSet, IpAddr, PeerPorts) {
    let pod: IpAddr = "10.1.2.3".parse().unwrap();
    if let Ok(address) = name.parse() {
        return (universe.outside(address), LabelSet::new(), address, PeerPorts::new());
    }
    if let Some((_, number, text, ports)) = WORKLOADS.iter().find(|(workload, ..)| *workload == name) {
        return (Identity::new(*number).unwrap(), labels(text), pod, peer_ports(&named(ports)));
    }
    let (identity, _) = Identity::RESERVED.into_iter().find(|(_, reserved)| *reserved == name).unwrap();
    (identity, identity.reserved_labels().unwrap(), pod, PeerPorts::new())
}

/// `port/protocol`.
pub(super) fn parse(port: &str) -> (u8, u16) {
    let (port, protocol) = port.split_once('/').unwrap();
    let protocol = match protocol {
        "tcp" => protocol::TCP,
        "udp" => protocol::UDP,
        "sctp" => protocol::SCTP,
        "icmp" => protocol::ICMP,
        "icmpv6" => protocol::ICMPV6,
        number => number.parse().unwrap(),
    };
    (protocol, port.parse().unwrap())
}

/// Labels and named ports of the subject.
pub(super) fn deathstar() -> (LabelSet, NamedPorts) {
    let [(_, _, text, ports), ..] = WORKLOADS;
    (labels(text), named(ports))
}
