//! What a workload may not send, whatever policy says.

use abi::{Address, DropReason};

use super::{
    frame::{LINK, SYN, TCP, UDP, ip, octets, tcp, udp},
    node::{Context, Node, OK, REDIRECT},
    world::{A, B, FAMILIES, Family},
};

fn open_node() -> Node {
    let mut node = Node::new();
    node.allow_all();
    node
}

/// T31.
#[test]
fn a_source_address_or_mac_that_is_not_the_workloads_own_is_refused() {
    let mut node = open_node();
    for family in FAMILIES {
        let honest = family.from(A, family.peer());
        let others = [family.pool(B.host), family.pool(99), family.host(), family.peer()];
        for source in others {
            let mut ends = honest;
            ends.addresses = (source, family.pool(77));
            node.drops_from(A, &tcp(ends, (4000, 80), SYN), DropReason::InvalidSourceIp);
        }
        let mut ends = honest;
        ends.macs.0 = B.mac;
        node.drops_from(A, &tcp(ends, (4000, 80), SYN), DropReason::InvalidSourceMac);
        // The right address and MAC on the wrong veth.
        node.drops_from(B, &tcp(honest, (4000, 80), SYN), DropReason::InvalidSourceIp);
    }
}

#[test]
fn addresses_that_may_not_stand_in_a_packet_are_refused_on_both_sides() {
    let mut node = open_node();
    let v4 = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.169.254", "240.0.0.1", "255.1.2.3"];
    // T30: v4-mapped; v4-compatible, where interfaces have their names.
    let v6 = ["::", "::1", "::10.0.0.2", "::ffff:10.0.0.2", "::0.0.0.11", "fe80::1", "febf::1"];
    for (family, forbidden) in [(Family::V4, &v4[..]), (Family::V6, &v6[..])] {
        for address in forbidden {
            let address = address.parse().unwrap();
            let mut from = family.from(A, address);
            node.drops_from(A, &udp(from, (4000, 53), b""), DropReason::InvalidAddress);
            from.addresses = (address, family.peer());
            node.drops_from(A, &udp(from, (4000, 53), b""), DropReason::InvalidAddress);
            node.drops_to(A, &udp(family.to(address, A), (4000, 53), b""), DropReason::InvalidAddress);
        }
        // Itself (LAND).
        let land = udp(family.between(A, A), (53, 53), b"");
        node.drops_from(A, &land, DropReason::InvalidAddress);
    }
}

/// T36.
#[test]
fn multicast_and_broadcast_are_refused() {
    let mut node = open_node();
    let cases = [
        (Family::V4, "224.0.0.251"),
        (Family::V4, "239.1.2.3"),
        (Family::V4, "255.255.255.255"),
        (Family::V6, "ff02::fb"),
        (Family::V6, "ff0e::1"),
    ];
    for (family, group) in cases {
        let frame = udp(family.from(A, group.parse().unwrap()), (5353, 5353), b"");
        node.drops_from(A, &frame, DropReason::Multicast);
        let source = udp(family.to(group.parse().unwrap(), A), (5353, 5353), b"");
        node.drops_to(A, &source, DropReason::InvalidAddress);
    }
    // Of the pool: the directed broadcast, the network itself, the subnet's anycast address.
    for (family, address) in [(Family::V4, "10.0.0.255"), (Family::V4, "10.0.0.0"), (Family::V6, "fd00::")] {
        let frame = udp(family.from(A, address.parse().unwrap()), (4000, 53), b"");
        node.drops_from(A, &frame, DropReason::NoEndpoint);
    }
    let igmp = ip(Family::V4.from(A, "224.0.0.22".parse().unwrap()), 2, 1, &[0x22, 0, 0, 0, 0, 0, 0, 0]);
    node.drops_from(A, &igmp, DropReason::Multicast);
}

/// T28.
#[test]
fn ipv4_options_and_lying_lengths_are_refused() {
    let mut node = open_node();
    let honest = tcp(Family::V4.from(A, Family::V4.peer()), (4000, 80), SYN);
    let patched = |offset: usize, bytes: &[u8]| {
        let mut frame = honest.clone();
        frame[LINK + offset..LINK + offset + bytes.len()].copy_from_slice(bytes);
        frame
    };
    // Loose source route, six words.
    node.drops_from(A, &patched(0, &[0x46]), DropReason::Ipv4Options);
    node.drops_from(A, &patched(0, &[0x4f]), DropReason::Ipv4Options);
    let invalid = [
        patched(0, &[0x44]),
        patched(0, &[0x40]),
        patched(0, &[0x65]),
        // Total length: zero, header only in part, header only, more than there is.
        patched(2, &[0, 0]),
        patched(2, &[0, 19]),
        patched(2, &[0, 20]),
        patched(2, &[0, 39]),
        patched(2, &[0, 41]),
        patched(2, &[0xff, 0xff]),
        // Data offset: too small, beyond the packet.
        patched(20 + 12, &[0x40]),
        patched(20 + 12, &[0x60]),
        honest[..LINK + 39].to_vec(),
    ];
    for frame in invalid {
        node.drops_from(A, &frame, DropReason::InvalidPacket);
    }
    let mut padded = honest;
    padded.extend([0; 6]);
    node.passes("from_pod", A, &padded);
}

#[test]
fn lying_ipv6_and_transport_lengths_are_refused() {
    let mut node = open_node();
    for family in FAMILIES {
        let ends = family.from(A, family.peer());
        let honest = udp(ends, (4000, 53), b"data");
        for length in [0_u16, 7, 13, 0xffff] {
            let mut frame = honest.clone();
            frame[ends.transport() + 4..ends.transport() + 6].copy_from_slice(&length.to_be_bytes());
            node.drops_from(A, &frame, DropReason::InvalidPacket);
        }
        for (protocol, short) in [(TCP, 19), (UDP, 7), (132, 11), (ends.icmp(), 7)] {
            let frame = ip(ends, protocol, 64, &vec![0; short]);
            node.drops_from(A, &frame, DropReason::InvalidPacket);
        }
    }
    let honest = udp(Family::V6.from(A, Family::V6.peer()), (4000, 53), b"data");
    for (offset, value) in [(0, 0x40), (4, 0xff), (5, 13), (5, 0)] {
        let mut frame = honest.clone();
        frame[LINK + offset] = value;
        node.drops_from(A, &frame, DropReason::InvalidPacket);
    }
}

/// T30: tunnels, and ICMP of the other family.
#[test]
fn protocols_that_cannot_be_judged_are_refused() {
    let mut node = open_node();
    for (family, protocols) in
        [(Family::V4, &[0, 2, 4, 41, 47, 50, 58, 94, 255][..]), (Family::V6, &[1, 4, 41, 47])]
    {
        for &protocol in protocols {
            let frame = ip(family.from(A, family.peer()), protocol, 64, &[0; 40]);
            node.drops_from(A, &frame, DropReason::UnknownL4);
        }
    }
}

/// T30: VXLAN and Geneve are UDP to whoever policy says.
#[test]
fn an_overlay_from_a_pod_is_udp_under_policy() {
    let mut node = Node::new();
    for family in FAMILIES {
        for port in [4789, 8472, 6081] {
            let frame = udp(family.from(A, family.host()), (4000, port), &[0; 50]);
            node.drops_from(A, &frame, DropReason::PolicyDenied);
        }
    }
}

#[test]
fn what_is_neither_ip_nor_arp_is_refused() {
    let mut node = open_node();
    let honest = udp(Family::V4.from(A, Family::V4.peer()), (4000, 53), b"");
    for ethertype in [[0x81, 0x00], [0x88, 0xa8], [0x88, 0xcc], [0x86, 0xdc], [0x00, 0x26]] {
        let mut frame = honest.clone();
        frame[12..14].copy_from_slice(&ethertype);
        node.drops_from(A, &frame, DropReason::UnsupportedL3);
        node.drops_to(A, &frame, DropReason::UnsupportedL3);
    }
    // IPv6 behind the EtherType of IPv4.
    let mut frame = udp(Family::V6.from(A, Family::V6.peer()), (4000, 53), b"");
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    node.drops_from(A, &frame, DropReason::InvalidPacket);
}

#[test]
fn delivery_ages_the_packet_and_readdresses_the_frame() {
    let node = open_node();
    for family in FAMILIES {
        let ends = family.between(A, B);
        let outcome = node.run_from_pod(A, &udp(ends, (4000, 53), b"data"));
        assert_eq!(outcome.verdict, REDIRECT);
        let expected = super::frame::Ends { macs: (B.gateway_mac, B.mac), ..ends };
        let mut frame = udp(expected, (4000, 53), b"data");
        let ttl = if ends.is_v4() { LINK + 8 } else { LINK + 7 };
        frame[ttl] = 63;
        if ends.is_v4() {
            frame[LINK + 10..LINK + 12].copy_from_slice(&[0, 0]);
            let sum = super::frame::checksum(&frame[LINK..LINK + 20]);
            frame[LINK + 10..LINK + 12].copy_from_slice(&sum);
        }
        assert_eq!(outcome.frame, frame);
        // Beyond the node the stack routes: untouched.
        let out = udp(family.from(A, family.peer()), (4000, 53), b"data");
        let outcome = node.run_from_pod(A, &out);
        assert_eq!((outcome.verdict, outcome.frame), (OK, out));
    }
}

#[test]
fn a_mark_is_cleared_and_only_our_own_answers_pass_by_it() {
    let node = Node::new();
    for family in FAMILIES {
        let frame = udp(family.between(A, B), (4000, 53), b"");
        for (mark, verdict) in [(0, 2), (0x4000, 2), (0x0f00, 2), (abi::MARK_ANSWER, OK)] {
            let outcome = node.run("from_pod", A, Context { mark, ..Context::default() }, &frame);
            // An answer's is looked for once more, where it leaves the node.
            let left = if verdict == OK { mark } else { 0 };
            assert_eq!((outcome.verdict, outcome.mark), (verdict, left), "mark {mark:#x}");
        }
    }
}

/// One buffer with several segments: its header tells the length of all, or zero beyond 64 KiB.
#[test]
fn segmented_packets_are_judged_as_one() {
    let node = open_node();
    for family in FAMILIES {
        let ends = family.between(A, B);
        let context = Context { gso_size: 100, ..Context::default() };
        let mut frame = super::frame::tcp_with(ends, (4000, 80), SYN, 64, &[0; 300]);
        assert_eq!(node.run("from_pod", A, context, &frame).verdict, REDIRECT);
        let length = if ends.is_v4() { LINK + 2 } else { LINK + 4 };
        frame[length..length + 2].copy_from_slice(&[0, 0]);
        assert_eq!(node.run("from_pod", A, context, &frame).verdict, REDIRECT);
    }
}

#[test]
fn an_event_says_what_was_seen_of_a_packet_that_lies() {
    let mut node = open_node();
    for family in FAMILIES {
        let mut ends = family.from(A, family.peer());
        ends.addresses.0 = family.pool(B.host);
        node.run_from_pod(A, &tcp(ends, (4000, 80), SYN));
        let [event] = node.events()[..] else { panic!("one event") };
        let told =
            |address: Address| octets(ends.addresses.0) == address.0[16 - octets(ends.addresses.0).len()..];
        assert!(told(event.source));
        assert_eq!((event.ifindex, event.protocol, event.source_identity), (A.ifindex, TCP, 0));
    }
}
