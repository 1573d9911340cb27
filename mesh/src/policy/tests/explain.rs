//! What people are told.

use super::given::*;
use crate::flow::TrafficDirection;
use crate::policy::explain::{End, Question, explain};
use crate::policy::{Asked, Enforcement, Needs, Peer, Peers, PortMatch, protocol};

/// The first line for a packet between the deathstar and a peer.
fn told(given: &Given, direction: TrafficDirection, peer: &str, port: &str) -> String {
    all_told(given, direction, peer, port).swap_remove(0)
}

fn all_told(given: &Given, direction: TrafficDirection, peer: &str, port: &str) -> Vec<String> {
    let universe = given.universe();
    let (subject, other) = (party("deathstar", &universe), party(peer, &universe));
    let ports = [&subject, &other].map(|(_, _, _, ports)| {
        ports.iter().flat_map(|(name, numbers)| numbers.iter().map(|port| (name.clone(), *port))).collect()
    });
    let (protocol, port) = parse(port);
    let subject = End { name: "deathstar", identity: subject.0, labels: &subject.1, ports: &ports[0] };
    let other = End { name: peer, identity: other.0, labels: &other.1, ports: &ports[1] };
    let question = Question { subject, direction, peer: other, protocol, port };
    let answer = explain(&question, &given.policies, &universe, given.enforcement);
    let verdict = match (answer.allowed, answer.asked) {
        (true, Asked::Proof) => "allowed, authentication required: ",
        (true, Asked::Nothing) => "allowed: ",
        (false, Asked::Nothing | Asked::NoPrincipal) => "denied: ",
        _ => panic!("{answer:?}"),
    };
    assert!(answer.lines[0].starts_with(verdict), "{answer:?}");
    answer.lines
}

#[test]
fn rule1_is_explained_as_on_the_box() {
    let given = given([allowing(
        "rule1",
        Ingress,
        pods("org=empire,io.kubernetes.pod.namespace=default"),
        &[tcp(80, 80)],
    )]);
    for (peer, port, expected) in [
        ("xwing", "80/tcp", "denied: rule1 selects deathstar, no rule matches org=alliance"),
        ("tiefighter", "80/tcp", "allowed: by rule1, for tiefighter at 80/TCP"),
        ("tiefighter", "443/tcp", "denied: rule1 selects deathstar, no rule for tiefighter matches 443/TCP"),
        (
            "tiefighter",
            "8/icmp",
            "denied: rule1 selects deathstar, no rule for tiefighter matches ICMP type 8",
        ),
        ("probe", "80/tcp", "denied: rule1 selects deathstar, no rule matches probe"),
        ("8.8.8.8", "80/tcp", "denied: rule1 selects deathstar, no rule matches 8.8.8.8"),
        ("host", "80/tcp", "allowed: the node may always reach its own deathstar"),
    ] {
        assert_eq!(told(&given, Ingress, peer, port), expected);
    }
    assert_eq!(told(&given, Egress, "xwing", "80/tcp"), "allowed: no policy restricts egress of deathstar");
}

#[test]
fn each_statement_of_each_selecting_policy_gets_a_line() {
    let mut deny = denying("deny", Ingress, cidr("10.0.0.0/8", &["10.1.0.0/16"]), &[]);
    deny.name.namespace = None;
    let icmp = PortMatch::Icmp { protocol: protocol::ICMPV6, icmp_type: None };
    let given = given([
        allowing(
            "rule1",
            Ingress,
            pods("org=empire,io.kubernetes.pod.namespace=default"),
            &[tcp(80, 90), tcp(0, u16::MAX), icmp],
        ),
        allowing("rule2", Ingress, Peers::Any, &[PortMatch::Protocol(47)]),
        demanding(
            "rule3",
            Needs::L7Proxy,
            entity("world"),
            &[PortMatch::Named { protocol: None, name: "web".into() }],
        ),
        allowing("rule4", Ingress, Peers::Selected(vec![Peer::Endpoints(selector(""))]), &[]),
        allowing("rule5", Ingress, pods("io.kubernetes.pod.namespace=default"), &[PortMatch::Protocol(132)]),
        deny,
    ]);
    let lines = all_told(&given, Ingress, "tiefighter", "81/tcp");
    let expected = [
        "allowed: by rule1, rule4, for tiefighter at 81/TCP",
        "  rule1 allows org=empire at 80-90/TCP, any/TCP, ICMPv6: matches",
        "  rule2 allows anyone at protocol 47: other port",
        "  rule3 would allow, by L7 rules, world at web/ANY: other peer",
        "  rule4 allows all workloads at any port: matches",
        "  rule5 allows io.kubernetes.pod.namespace=default at SCTP: other port",
        "  deny denies 10.0.0.0/8 except 10.1.0.0/16 at any port: other peer",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn denials_say_which_kind_they_are() {
    let strict = allowing("strict", Ingress, Peers::Any, &[]);
    let deny = denying("spies", Ingress, pods("org=alliance"), &[]);
    let line = told(&given([strict, deny]), Ingress, "xwing", "80/tcp");
    assert_eq!(line, "denied: by a deny rule of spies, for xwing at 80/TCP");
    let given_l7 = given([demanding("rule2", Needs::L7Proxy, Peers::Any, &[])]);
    let line = told(&given_l7, Ingress, "xwing", "80/tcp");
    assert_eq!(line, "denied: rule2 allows xwing at 80/TCP only by L7 rules, which nothing enforces yet");
    let two = given(["a", "b"].map(|name| allowing(name, Ingress, Peers::Selected(Vec::new()), &[])));
    let line = told(&two, Ingress, "xwing", "80/tcp");
    assert_eq!(line, "denied: a, b select deathstar, no rule matches xwing");
    let always = Given { policies: Vec::new(), enforcement: Enforcement::Always };
    let line = told(&always, Ingress, "xwing", "80/tcp");
    assert_eq!(line, "denied: policy is always enforced, and none allows ingress of deathstar");
}

#[test]
fn who_must_authenticate_is_told_and_by_which_policy() {
    let given = given([
        allowing("open", Ingress, pods("org=empire"), &[]),
        requiring("proven", Ingress, entity("all"), &[tcp(80, 80)]),
    ]);
    for (peer, port, expected) in [
        ("tiefighter", "80/tcp", "allowed, authentication required: by proven, for tiefighter at 80/TCP"),
        ("tiefighter", "81/tcp", "allowed: by open, for tiefighter at 81/TCP"),
        (
            "8.8.8.8",
            "80/tcp",
            "denied: proven allows 8.8.8.8 at 80/TCP only if authenticated, and only workloads can be",
        ),
        (
            "remote-node",
            "80/tcp",
            "denied: proven allows remote-node at 80/TCP only if authenticated, and only workloads can be",
        ),
        ("host", "80/tcp", "allowed: by proven, for host at 80/TCP; the node itself need not authenticate"),
    ] {
        assert_eq!(told(&given, Ingress, peer, port), expected);
    }
    assert_eq!(
        all_told(&given, Ingress, "tiefighter", "80/tcp")[1..],
        [
            "  open allows org=empire at any port: matches",
            "  proven allows, once authenticated, all at 80/TCP: matches"
        ]
    );
}
