//! Which ports a statement means, and how few entries say so.

use super::given::*;
use crate::policy::{Peers, PortMatch, protocol};

fn expect(direction: crate::flow::TrafficDirection, ports: &[PortMatch], cases: &[(&str, bool)]) {
    for peers in [Peers::Any, pods("org=empire")] {
        let cases: Vec<_> = cases.iter().map(|(port, expected)| ("tiefighter", *port, *expected)).collect();
        given([allowing("rule", direction, peers, ports)]).expect(direction, &cases);
    }
}

#[test]
fn a_range_means_its_ends_and_what_lies_between() {
    let ports = [tcp(79, 443), PortMatch::Range { protocol: Some(protocol::UDP), first: 0, last: 0 }];
    let cases = [
        ("78/tcp", false),
        ("79/tcp", true),
        ("200/tcp", true),
        ("443/tcp", true),
        ("444/tcp", false),
        ("79/udp", false),
        ("0/udp", true),
        ("1/udp", false),
    ];
    expect(Ingress, &ports, &cases);
    expect(Ingress, &[tcp(65_535, 65_535)], &[("65535/tcp", true), ("65534/tcp", false), ("0/tcp", false)]);
    expect(Ingress, &[tcp(0, 65_535)], &[("0/tcp", true), ("65535/tcp", true), ("53/udp", false)]);
}

#[test]
fn any_protocol_with_a_port_means_the_three_that_have_ports() {
    let ports = [PortMatch::Range { protocol: None, first: 53, last: 53 }];
    let cases =
        [("53/tcp", true), ("53/udp", true), ("53/sctp", true), ("54/udp", false), ("53/icmp", false)];
    expect(Egress, &ports, &cases);
    let ports = [PortMatch::Range { protocol: None, first: 0, last: u16::MAX }];
    expect(Egress, &ports, &[("7/sctp", true), ("8/icmp", false), ("0/47", false)]);
}

#[test]
fn icmp_and_icmpv6_are_allowed_by_type() {
    let echo = [
        PortMatch::Icmp { protocol: protocol::ICMP, icmp_type: Some(8) },
        PortMatch::Icmp { protocol: protocol::ICMPV6, icmp_type: Some(128) },
    ];
    let cases =
        [("8/icmp", true), ("0/icmp", false), ("128/icmpv6", true), ("8/icmpv6", false), ("8/tcp", false)];
    expect(Ingress, &echo, &cases);
    let any = [PortMatch::Icmp { protocol: protocol::ICMPV6, icmp_type: None }];
    expect(Ingress, &any, &[("0/icmpv6", true), ("255/icmpv6", true), ("8/icmp", false)]);
}

#[test]
fn a_whole_protocol_is_allowed_without_ports() {
    expect(Ingress, &[PortMatch::Protocol(47)], &[("0/47", true), ("0/50", false), ("0/tcp", false)]);
}

#[test]
fn a_port_name_is_the_subjects_for_ingress_and_the_peers_for_egress() {
    let landing = [PortMatch::Named { protocol: Some(protocol::TCP), name: "landing".to_owned() }];
    expect(Ingress, &landing, &[("80/tcp", true), ("8080/tcp", false)]);
    expect(Egress, &landing, &[("80/tcp", false), ("8080/tcp", true)]);
    let given = given([allowing("rule", Egress, Peers::Any, &landing)]);
    given.expect(
        Egress,
        &[("xwing", "80/tcp", false), ("deathstar", "80/tcp", true), ("8.8.8.8", "8080/tcp", false)],
    );
}

#[test]
fn a_name_that_no_port_has_allows_nothing_rather_than_everything() {
    let ports = [PortMatch::Named { protocol: None, name: "hangar".to_owned() }];
    for direction in [Ingress, Egress] {
        expect(direction, &ports, &[("80/tcp", false), ("8080/tcp", false), ("8/icmp", false)]);
    }
    let udp = [PortMatch::Named { protocol: Some(protocol::UDP), name: "landing".to_owned() }];
    expect(Ingress, &udp, &[("80/tcp", false), ("80/udp", false)]);
}

#[test]
fn all_of_tcp_but_one_port_is_two_entries() {
    let deny = denying("rule", Egress, Peers::Any, &[tcp(80, 80)]);
    assert_eq!(given([deny.clone()]).ruleset(Egress).entries.len(), 2);
    let allow = allowing("rule", Egress, Peers::Any, &[tcp(0, u16::MAX)]);
    assert_eq!(given([allow, deny]).ruleset(Egress).entries.len(), 2);
}

#[test]
fn however_the_same_is_written_it_is_the_same_ruleset() {
    let written: [&[PortMatch]; 4] = [
        &[tcp(80, 95), tcp(443, 443)],
        &[tcp(443, 443), tcp(88, 95), tcp(80, 87)],
        &[tcp(80, 90), tcp(85, 95), tcp(443, 443), tcp(443, 443)],
        &[tcp(443, 443), tcp(80, 81), tcp(82, 82), tcp(83, 95), tcp(9, 8)],
    ];
    let rulesets =
        written.map(|ports| given([allowing("rule", Ingress, Peers::Any, ports)]).ruleset(Ingress));
    assert!(rulesets.iter().all(|ruleset| *ruleset == rulesets[0]));
    assert_eq!(rulesets[0].entries.len(), 3, "80/12, 443/16 and the host's own way");
}
