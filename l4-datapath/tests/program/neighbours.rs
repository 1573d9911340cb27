//! ARP and neighbour discovery between a workload and its gateway.

use std::net::{IpAddr, Ipv6Addr};

use abi::DropReason;

use super::{
    frame::{Ends, arp, icmp, ip, is_sound, octets},
    node::{Node, REDIRECT, SHOT},
    world::{A, B, Family},
};

const ALL: [u8; 6] = [0xff; 6];
const OWN: [u8; 4] = [10, 0, 0, 2];
const SOLICITATION: u8 = 135;

fn node() -> Node {
    let mut node = Node::new();
    node.allow_all();
    node
}

#[test]
fn arp_for_any_address_but_its_own_is_answered_with_the_gateways_mac() {
    let node = node();
    for target in [[10, 0, 0, 1], [10, 0, 0, 3], [8, 8, 8, 8], [169, 254, 1, 1]] {
        let asked = arp((A.mac, ALL), 1, (A.mac, OWN), ([0; 6], target));
        let outcome = node.run_from_pod(A, &asked);
        assert_eq!(outcome.verdict, REDIRECT);
        assert_eq!(outcome.frame, arp((A.gateway_mac, A.mac), 2, (A.gateway_mac, target), (A.mac, OWN)));
    }
}

#[test]
fn its_own_duplicate_address_detection_is_met_with_silence() {
    let mut node = node();
    let own = Ipv6Addr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    let frames = [
        // RFC 5227 probe and announcement, of its own address and of one it would like.
        arp((A.mac, ALL), 1, (A.mac, [0; 4]), ([0; 6], OWN)),
        arp((A.mac, ALL), 1, (A.mac, [0; 4]), ([0; 6], [10, 0, 0, 9])),
        arp((A.mac, ALL), 1, (A.mac, OWN), ([0; 6], OWN)),
        solicit(Ipv6Addr::UNSPECIFIED.into(), own),
        solicit(Ipv6Addr::UNSPECIFIED.into(), "fe80::a".parse().unwrap()),
        solicit(own.into(), own),
        solicit("fe80::a".parse().unwrap(), own),
        solicit("fe80::a".parse().unwrap(), "fe80::a".parse().unwrap()),
    ];
    for frame in frames {
        assert_eq!(node.run_from_pod(A, &frame).verdict, SHOT, "{frame:02x?}");
    }
    assert_eq!(node.events(), []);
    assert!(node.drops().is_empty());
}

/// T31.
#[test]
fn neighbour_messages_that_could_poison_are_refused() {
    let mut node = node();
    let other = ([0; 6], [10, 0, 0, 1]);
    let a: IpAddr = Family::V6.pool(A.host);
    let b: IpAddr = Family::V6.pool(B.host);
    let target: Ipv6Addr = "fd00::1".parse().unwrap();
    let from_b = Ends { addresses: (b, "ff02::1:ff00:1".parse().unwrap()), ..to_all(a) };
    let wrong_mac = Ends { macs: (B.mac, ALL), ..to_all(a) };
    let frames = [
        // Another's address, another's MAC inside, another's MAC outside, a reply nobody asked for.
        arp((A.mac, ALL), 1, (A.mac, [10, 0, 0, 3]), other),
        arp((A.mac, ALL), 1, (A.mac, [10, 0, 0, 99]), other),
        arp((A.mac, ALL), 1, (B.mac, OWN), other),
        arp((B.mac, ALL), 1, (B.mac, OWN), other),
        arp((A.mac, A.gateway_mac), 2, (A.mac, OWN), other),
        arp((A.mac, A.gateway_mac), 2, (A.mac, [10, 0, 0, 1]), other),
        solicitation(from_b, target),
        solicitation(wrong_mac, target),
        // Router advertisement, redirect.
        icmp(to_all(a), 134, 0, 255, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]),
        icmp(to_all("fe80::a".parse().unwrap()), 134, 0, 255, &[0; 12]),
        icmp(Family::V6.between(A, B), 137, 0, 255, &[0; 36]),
        icmp(Family::V4.between(A, B), 5, 1, 64, &[0; 32]),
    ];
    for frame in frames {
        node.drops_from(A, &frame, DropReason::NeighbourSpoof);
    }
}

#[test]
fn malformed_neighbour_messages_are_refused() {
    let mut node = node();
    let honest = solicit(Family::V6.pool(A.host), "fd00::1".parse().unwrap());
    let mut crossed_a_router = honest.clone();
    crossed_a_router[14 + 7] = 254;
    let mut coded = honest;
    coded[14 + 40 + 1] = 1;
    let mut hardware = arp((A.mac, ALL), 1, (A.mac, OWN), ([0; 6], [10, 0, 0, 1]));
    hardware[15] = 6;
    let mut lengths = arp((A.mac, ALL), 1, (A.mac, OWN), ([0; 6], [10, 0, 0, 1]));
    lengths[18] = 8;
    for frame in [crossed_a_router, coded, hardware, lengths] {
        node.drops_from(A, &frame, DropReason::InvalidPacket);
    }
}

#[test]
fn a_solicitation_is_answered_with_the_gateways_mac() {
    let node = node();
    let senders: [IpAddr; 2] = [Family::V6.pool(A.host), "fe80::a".parse().unwrap()];
    for sender in senders {
        for target in ["fd00::1", "fd00::3", "fe80::1", "2001:db8::7"] {
            let target: Ipv6Addr = target.parse().unwrap();
            let outcome = node.run_from_pod(A, &solicit(sender, target));
            let back = Ends { macs: (A.gateway_mac, A.mac), addresses: (target.into(), sender) };
            let mut rest = vec![0x60, 0, 0, 0];
            rest.extend(target.octets());
            rest.extend([2, 1]);
            rest.extend(A.gateway_mac);
            assert_eq!(outcome.verdict, REDIRECT);
            assert_eq!(outcome.frame, icmp(back, 136, 0, 255, &rest));
            assert!(is_sound(back, &outcome.frame));
        }
    }
}

/// What every kernel sends unasked is counted as multicast and not told; advertisements are not even counted.
#[test]
fn the_noise_of_a_link_makes_no_events() {
    let mut node = node();
    let link_local: IpAddr = "fe80::a".parse().unwrap();
    let group = |name: &str| Ends { addresses: (link_local, name.parse().unwrap()), ..to_all(link_local) };
    let report = [58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0];
    let noise = [
        icmp(group("ff02::2"), 133, 0, 255, &[0; 4]),
        icmp(group("ff02::16"), 143, 0, 1, &[0; 4]),
        ip(group("ff02::16"), 0, 1, &report),
    ];
    for frame in &noise {
        assert_eq!(node.run_from_pod(A, frame).verdict, SHOT);
    }
    assert_eq!(node.run_from_pod(A, &icmp(group("ff02::1"), 136, 0, 255, &[0; 20])).verdict, SHOT);
    assert_eq!(node.events(), []);
    let counted = [((A.ifindex, DropReason::Multicast as u8, 1), noise.len() as u64)];
    assert_eq!(node.drops(), counted.into_iter().collect());
}

fn to_all(source: IpAddr) -> Ends {
    Ends { macs: (A.mac, [0x33, 0x33, 0, 0, 0, 1]), addresses: (source, "ff02::1".parse().unwrap()) }
}

/// A solicitation as Linux sends it: to the solicited-node group, with its own MAC unless it has no address yet.
fn solicit(source: IpAddr, target: Ipv6Addr) -> Vec<u8> {
    let [.., x, y, z] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
    let ends = Ends { macs: (A.mac, [0x33, 0x33, 0xff, x, y, z]), addresses: (source, group.into()) };
    solicitation(ends, target)
}

fn solicitation(ends: Ends, target: Ipv6Addr) -> Vec<u8> {
    let mut rest = vec![0; 4];
    rest.extend(octets(target.into()));
    if !ends.addresses.0.is_unspecified() {
        rest.extend([1, 1]);
        rest.extend(A.mac);
    }
    icmp(ends, SOLICITATION, 0, 255, &rest)
}
