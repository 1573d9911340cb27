//! Services for packets, where it gets narrow: backends that change, ports used twice, oneself as backend, full tables.

use std::net::IpAddr;

use abi::{DropReason, PacketTuple, RuleVerdict, Translation, map};

use super::{
    frame::{ACK, Ends, FIN, LINK, SYN, TCP, UDP, pieces, tcp, tcp_with, udp},
    node::{Node, REDIRECT, SHOT, TRANSLATIONS},
    service::{delivered, delivers, from_vip, node_with_backend, open_node, vip},
    world::{A, B, FAMILIES, Family, Ports, address},
};

/// Another address beyond the node.
fn other(family: Family) -> IpAddr {
    match family {
        Family::V4 => "192.0.2.8".parse().unwrap(),
        Family::V6 => "2001:db8::8".parse().unwrap(),
    }
}

/// TCP and UDP on port 80 go to `backend` from now on.
fn move_to(node: &mut Node, family: Family, backend: IpAddr) {
    let n = u32::from(family == Family::V6);
    for (m, protocol) in (1..).zip([TCP, UDP]) {
        node.serve(n * 2 + m, (vip(family), 80, protocol), &[(n + 7, backend, 8080)], 0);
    }
}

/// Empties `TRANSLATIONS`.
fn forget(node: &mut Node) {
    for key in node.halves().into_keys() {
        node.take::<PacketTuple, Translation>(map::TRANSLATIONS, key);
    }
}

#[test]
fn a_live_connection_keeps_its_backend_when_that_leaves_the_service() {
    let mut node = node_with_backend(Family::peer);
    node.allow_all();
    for family in FAMILIES {
        let call = family.from(A, vip(family));
        let (old, new) = (family.from(A, family.peer()), family.from(A, other(family)));
        node.passes("from_pod", A, &tcp(call, (4000, 80), SYN));
        node.passes("from_pod", A, &udp(call, (4000, 80), b"?"));
        move_to(&mut node, family, other(family));
        for flags in [SYN, ACK, FIN | ACK] {
            let outcome = node.passes("from_pod", A, &tcp(call, (4000, 80), flags));
            assert_eq!(outcome.frame, tcp(old, (4000, 8080), flags));
        }
        let outcome = node.passes("from_pod", A, &udp(call, (4000, 80), b"?"));
        assert_eq!(outcome.frame, udp(old, (4000, 8080), b"?"));
        // What is opened now goes to the new one.
        let outcome = node.passes("from_pod", A, &tcp(call, (4001, 80), SYN));
        assert_eq!(outcome.frame, tcp(new, (4001, 8080), SYN));
    }
}

#[test]
fn ports_that_are_used_again_go_to_a_backend_of_today() {
    let mut node = node_with_backend(Family::peer);
    node.allow_all();
    for family in FAMILIES {
        let call = family.from(A, vip(family));
        let new = family.from(A, other(family));
        node.passes("from_pod", A, &tcp(call, (4000, 80), SYN));
        node.passes("from_pod", A, &udp(call, (4000, 80), b"?"));
        move_to(&mut node, family, other(family));
        node.change_connections(family, |connection| {
            connection.reset = 1;
            connection.seen = connection.seen.saturating_sub(61);
        });
        let outcome = node.passes("from_pod", A, &tcp(call, (4000, 80), SYN));
        assert_eq!(outcome.frame, tcp(new, (4000, 8080), SYN));
        let outcome = node.passes("from_pod", A, &udp(call, (4000, 80), b"?"));
        assert_eq!(outcome.frame, udp(new, (4000, 8080), b"?"));
        // Its answers come from the VIP too.
        let answer = udp(family.to(other(family), A), (8080, 4000), b"!");
        assert_eq!(node.passes("to_pod", A, &answer).frame, udp(from_vip(family, A), (80, 4000), b"!"));
    }
}

#[test]
fn a_workload_that_is_its_own_backend_is_called_by_the_vip_whatever_policy_says() {
    let mut node = node_with_backend(|family| family.pool(A.host));
    for family in FAMILIES {
        let (to_vip, seen) = (family.from(A, vip(family)), from_vip(family, A));
        for flags in [SYN, ACK] {
            let expected = tcp(seen, (4000, 8080), flags);
            delivers(&mut node, A, &tcp(to_vip, (4000, 80), flags), A, seen, &expected);
            let expected = tcp(seen, (80, 4000), flags | ACK);
            delivers(&mut node, A, &tcp(to_vip, (8080, 4000), flags | ACK), A, seen, &expected);
        }
        let expected = udp(seen, (4000, 8080), b"?");
        delivers(&mut node, A, &udp(to_vip, (4000, 80), b"?"), A, seen, &expected);
        let expected = udp(seen, (80, 4000), b"!");
        delivers(&mut node, A, &udp(to_vip, (8080, 4000), b"!"), A, seen, &expected);
        // From a port to itself there would be one direction only.
        node.drops_from(A, &udp(to_vip, (8080, 80), b"?"), DropReason::TranslationConflict);
    }
    assert_eq!((node.usage(A), node.halves().len()), (4, 8));
}

#[test]
fn ports_that_talk_with_the_backend_itself_call_it_by_no_vip() {
    let mut node = open_node();
    for (index, family) in (30..).zip(FAMILIES) {
        let (call, direct) = (family.from(A, vip(family)), family.between(A, B));
        node.passes("from_pod", A, &udp(direct, (4000, 8080), b"?"));
        node.drops_from(A, &udp(call, (4000, 80), b"?"), DropReason::TranslationConflict);
        // And the other way round.
        node.passes("from_pod", A, &udp(call, (4001, 80), b"?"));
        node.drops_from(A, &udp(direct, (4001, 8080), b"?"), DropReason::TranslationConflict);
        // Nor by two.
        node.serve(index, (vip(family), 81, UDP), &[(index, family.pool(B.host), 8080)], 0);
        node.drops_from(A, &udp(call, (4001, 81), b"?"), DropReason::TranslationConflict);
        // Where there is another backend, it is taken.
        let backends = [(index, family.pool(B.host), 8080), (index + 4, family.peer(), 8080)];
        node.serve(index, (vip(family), 81, UDP), &backends, 0);
        let outcome = node.passes("from_pod", A, &udp(call, (4001, 81), b"?"));
        assert_eq!(outcome.frame, udp(family.from(A, family.peer()), (4001, 8080), b"?"));
        let before = node.halves();
        node.passes("from_pod", A, &udp(call, (4001, 80), b"?"));
        assert_eq!(node.halves(), before);
    }
}

#[test]
fn every_piece_of_a_datagram_reaches_the_backend() {
    let mut node = open_node();
    for family in FAMILIES {
        let (call, there) = (family.from(A, vip(family)), family.between(A, B));
        let (back, answer) = (family.between(B, A), from_vip(family, A));
        let cut = |ends: Ends, ports: (u16, u16)| pieces(ends, 7, &udp(ends, ports, &[5; 2500]), 1000);
        for (sent, expected) in cut(call, (4000, 80)).iter().zip(cut(there, (4000, 8080))) {
            assert_eq!(node.passes("from_pod", A, sent).frame, delivered(&expected, B));
        }
        for (sent, expected) in cut(back, (8080, 4000)).iter().zip(cut(answer, (80, 4000))) {
            assert_eq!(node.passes("from_pod", B, sent).frame, delivered(&expected, A));
        }
        let late = pieces(call, 8, &udp(call, (4000, 80), &[5; 2500]), 1000).remove(1);
        node.drops_from(A, &late, DropReason::FirstFragmentMissing);
    }
}

#[test]
fn a_backend_is_never_shown_where_the_translation_is_lost() {
    let mut node = open_node();
    for family in FAMILIES {
        let (call, back) = (family.from(A, vip(family)), family.between(B, A));
        node.passes("from_pod", A, &udp(call, (4000, 80), b"?"));
        forget(&mut node);
        node.drops_from(B, &udp(back, (8080, 4000), b"!"), DropReason::NoConnection);
        // The next call heals it.
        node.passes("from_pod", A, &udp(call, (4000, 80), b"?"));
        let expected = udp(from_vip(family, A), (80, 4000), b"!");
        assert_eq!(node.passes("from_pod", B, &udp(back, (8080, 4000), b"!")).frame, delivered(&expected, A));
        assert_eq!(node.usage(A), if family == Family::V4 { 1 } else { 2 });
    }
}

#[test]
fn where_the_table_is_full_a_call_leaves_no_connection_behind() {
    let mut node = open_node();
    for family in FAMILIES {
        let call = family.from(A, vip(family));
        // The last place is for a forward half alone.
        let fill = (TRANSLATIONS - 1) as u16;
        for port in 0..fill {
            let key = PacketTuple {
                source: address(family.pool(9)),
                destination: address(vip(family)),
                source_port: port.to_be_bytes(),
                destination_port: [0, 80],
                protocol: UDP,
                zero: [0; 3],
            };
            let half = Translation { tuple: key, kind: 1, is_forward: 1, orphaned: 0, zero: 0 };
            node.put(map::TRANSLATIONS, key, half);
        }
        let usage = node.usage(A);
        node.events();
        let outcome = node.run_from_pod(A, &udp(call, (4000, 80), b"?"));
        // Policy has allowed it, and says so.
        let told: Vec<_> = node.events().iter().map(|e| e.reason).collect();
        assert_eq!((outcome.verdict, told), (SHOT, vec![0, 0, DropReason::TranslationMapFull as u8]));
        assert_eq!((node.usage(A), node.halves().len()), (usage, fill.into()));
        assert!(node.connections(family).is_empty());
        forget(&mut node);
        node.passes("from_pod", A, &udp(call, (4000, 80), b"?"));
        forget(&mut node);
    }
}

#[test]
fn who_floods_a_service_harms_nobody_else() {
    let mut node = open_node();
    node.set_quota(A, 10);
    for (round, family) in (1..).zip(FAMILIES) {
        let call = family.from(A, vip(family));
        for port in 5000..5100 {
            node.run_from_pod(A, &udp(call, (port, 80), b"?"));
        }
        node.drops_from(A, &udp(call, (6000, 80), b"?"), DropReason::ConnectionQuota);
        assert_eq!(node.usage(A), 10);
        assert_eq!(node.halves().len(), 20 + 2 * (round - 1));
        node.serve(40, (vip(family), 90, TCP), &[(40, family.pool(A.host), 9000)], 0);
        let other = node.passes("from_pod", B, &tcp(family.from(B, vip(family)), (4000, 90), SYN));
        assert_eq!(other.verdict, REDIRECT);
    }
}

/// T41: what is left of an earlier endpoint with this address hinders nobody.
#[test]
fn the_next_endpoint_with_an_address_calls_anew() {
    let mut node = node_with_backend(Family::peer);
    node.allow_all();
    for (instance, family) in (100..).zip(FAMILIES) {
        let call = family.from(A, vip(family));
        node.passes("from_pod", A, &tcp(call, (4000, 80), SYN));
        node.enrol_again(A, instance);
        move_to(&mut node, family, other(family));
        node.drops_from(A, &tcp(call, (4000, 80), ACK), DropReason::NoConnection);
        let outcome = node.passes("from_pod", A, &tcp(call, (4000, 80), SYN));
        assert_eq!(outcome.frame, tcp(family.from(A, other(family)), (4000, 8080), SYN));
    }
}

#[test]
fn what_we_answer_to_a_call_comes_from_the_vip() {
    let mut node = open_node();
    for family in FAMILIES {
        let call = family.from(A, vip(family));
        let old = tcp_with(call, (4000, 80), SYN, 1, b"");
        let large = udp(call, (4000, 80), &[7; 1500]);
        for (frame, reason) in [(old, DropReason::TtlExceeded), (large, DropReason::TooBig)] {
            let answer = node.drops_from(A, &frame, reason).frame;
            let (from, quoted) = if call.is_v4() {
                (LINK + 12..LINK + 16, LINK + 28..)
            } else {
                (LINK + 8..LINK + 24, LINK + 48..)
            };
            assert_eq!(answer[from], super::frame::octets(vip(family)));
            assert_eq!(answer[quoted], frame[LINK..call.transport() + 8]);
        }
    }
}

#[test]
fn a_call_is_judged_anew_as_one_to_its_backend() {
    let mut node = open_node();
    for (generation, family) in (2..).step_by(2).zip(FAMILIES) {
        let (call, back) = (family.from(A, vip(family)), family.between(B, A));
        node.passes("from_pod", A, &udp(call, (4000, 80), b"?"));
        node.rule(A.egress, B.identity, Ports::One(UDP, 8080), RuleVerdict::Deny);
        node.set_generation(generation);
        node.drops_from(A, &udp(call, (4000, 80), b"?"), DropReason::PolicyDeny);
        let outcome = node.run_from_pod(B, &udp(back, (8080, 4000), b"!"));
        let blamed: Vec<_> = node.events().iter().map(|e| (e.reason, e.ifindex)).collect();
        assert_eq!((outcome.verdict, blamed), (SHOT, vec![(DropReason::PolicyDeny as u8, A.ifindex)]));
        node.allow(A.egress, B.identity, Ports::One(UDP, 8080));
        assert_eq!(node.passes("from_pod", B, &udp(back, (8080, 4000), b"!")).verdict, REDIRECT);
    }
}
