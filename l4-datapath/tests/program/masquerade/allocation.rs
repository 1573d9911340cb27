//! Which port, and what when there is none.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::Barrier,
    thread,
};

use abi::{DropReason, PacketTuple, Translation, map};
use aya::maps::Array;

use super::{
    super::{
        frame::{Ends, udp},
        node::{Node, TRANSLATIONS},
        run,
        world::{A, B, FAMILIES, Family, NIC, address},
    },
    Talk, by, gate, outward,
};

impl Node {
    /// As `post_bind` notes it.
    fn bind(&mut self, port: u16) {
        let mut map: Array<_, u64> = Array::try_from(self.bpf().map_mut(map::BOUND).unwrap()).unwrap();
        let word = u32::from(port) / 64;
        let bits = map.get(&word, 0).unwrap() | 1 << (port % 64);
        map.set(word, bits, 0).unwrap();
    }

    /// Asserts that there is no port for this.
    #[track_caller]
    fn has_none(&mut self, talk: Talk, family: Family, port: u16) {
        let question = talk.question(family.from(A, family.peer()), port);
        self.passes("from_pod", A, &question);
        self.stops("to_netdev", by(A), &question, (DropReason::NoMapping, A.ifindex));
    }
}

#[test]
fn a_port_that_a_process_of_the_node_has_bound_is_left_to_it() {
    let mut node = gate();
    node.set_ports(50_000..=50_002);
    node.bind(50_000);
    node.bind(50_002);
    for family in FAMILIES {
        for talk in [Talk::Tcp, Talk::Udp] {
            assert_eq!(talk.ask(&mut node, A, family, 50_000), 50_001);
            node.has_none(talk, family, 4000);
        }
        // Identifiers are no ports.
        assert_eq!(Talk::Echo.ask(&mut node, A, family, 50_000), 50_000);
    }
}

/// Whatever `post_bind` did not see: sockets from before us, of another cgroup, of a kernel without the hook.
#[test]
fn a_port_on_which_the_node_has_a_socket_is_left_to_it() {
    let mut node = gate();
    node.set_ports(50_000..=50_000);
    for family in FAMILIES {
        let any = if family == Family::V4 { "0.0.0.0:50000" } else { "[::]:50000" };
        let any: SocketAddr = any.parse().unwrap();
        let listener = TcpListener::bind(any).unwrap();
        node.has_none(Talk::Tcp, family, 4000);
        let socket = UdpSocket::bind(any).unwrap();
        node.has_none(Talk::Udp, family, 4000);
        assert_eq!(Talk::Echo.ask(&mut node, A, family, 4000), 50_000);
        drop((listener, socket));
        assert_eq!(Talk::Tcp.ask(&mut node, A, family, 4000), 50_000);
        assert_eq!(Talk::Udp.ask(&mut node, A, family, 4000), 50_000);
    }
}

#[test]
fn all_of_a_small_range_is_used_for_each_peer_and_protocol_and_then_no_more() {
    let mut node = gate();
    node.set_ports(50_000..=50_004);
    for (family, talk) in FAMILIES.into_iter().flat_map(|family| Talk::ALL.map(|talk| (family, talk))) {
        let ports: BTreeSet<u16> = (0..5).map(|n| talk.ask(&mut node, A, family, 4000 + n)).collect();
        assert_eq!(ports, (50_000..=50_004).collect(), "{family:?} {talk:?}");
        node.has_none(talk, family, 4005);
        node.has_none(talk, family, 50_000);
        // Those who have one keep it, and towards another peer all are free.
        talk.ask(&mut node, A, family, 4000);
        let elsewhere =
            Ends { addresses: (family.pool(A.host), family.pool(1)), ..family.from(A, family.peer()) };
        node.leaves(A, &talk.question(elsewhere, 50_003));
    }
}

#[test]
fn whoever_has_much_leaves_the_last_eighth_of_a_range_to_others() {
    let mut node = gate();
    node.set_ports(50_000..=50_999);
    node.set_quota(A, 4000);
    let mut ask = |numbers: std::ops::Range<u16>| -> BTreeSet<u16> {
        numbers.map(|n| Talk::Udp.ask(&mut node, A, Family::V4, 1000 + n)).collect()
    };
    let few = ask(0..500);
    let many = ask(500..750);
    let own = ask(50_990 - 1000..50_991 - 1000);
    assert_eq!(few.len() + many.len(), few.union(&many).count(), "each has one of its own");
    assert!(few.iter().all(|port| (50_000..=50_999).contains(port)));
    assert!(many.union(&own).all(|port| (50_000..50_875).contains(port)));
    let other: BTreeSet<u16> = (0..50).map(|n| Talk::Udp.ask(&mut node, B, Family::V4, 1000 + n)).collect();
    assert_eq!(other.len(), 50);
}

/// What a full table refuses leaves no half behind, wherever it is refused.
#[test]
fn a_full_table_refuses_whole() {
    for room in [0, 1] {
        let mut node = gate();
        for number in 0..TRANSLATIONS - room {
            let half = Translation { tuple: other(number), kind: 1, is_forward: 1, orphaned: 0, zero: 0 };
            node.put(map::TRANSLATIONS, other(number), half);
        }
        let question = udp(Family::V6.from(A, Family::V6.peer()), (4000, 53), b"");
        node.passes("from_pod", A, &question);
        node.stops("to_netdev", by(A), &question, (DropReason::TranslationMapFull, A.ifindex));
    }
}

/// A tuple that nothing here has.
fn other(number: u32) -> PacketTuple {
    let [a, b, c, d] = number.to_be_bytes();
    PacketTuple {
        source: abi::Address::v4([203, 0, 113, 1]),
        destination: abi::Address::v4([203, 0, 113, 2]),
        source_port: [a, b],
        destination_port: [c, d],
        protocol: 6,
        zero: [0; 3],
    }
}

/// Two CPUs with packets of one new connection, many times.
#[test]
fn two_packets_at_once_get_one_port() {
    let mut node = gate();
    node.set_quota(A, 4000);
    for (family, number) in FAMILIES.into_iter().flat_map(|family| (0..200).map(move |n| (family, n))) {
        let ends = family.from(A, family.peer());
        let question = Talk::Udp.question(ends, 1000 + number);
        node.passes("from_pod", A, &question);
        let (program, barrier) = (node.program("to_netdev"), Barrier::new(2));
        let leave = || {
            barrier.wait();
            run::run(program, NIC, by(A), &question).frame
        };
        // The device is known by its index in the namespace of this thread, which threads inherit.
        let [one, other] = thread::scope(|scope| {
            let both = [scope.spawn(leave), scope.spawn(leave)];
            both.map(|thread| thread.join().unwrap())
        });
        assert_eq!(one, other);
        assert_eq!(one, Talk::Udp.question(outward(family, ends), Talk::Udp.port(ends, &one)));
    }
    assert_eq!(node.events(), [], "nobody was refused");
    let halves = node.halves();
    assert_eq!(halves.len(), 2 * 400, "none is left over");
    for (key, half) in &halves {
        assert!(halves.get(&half.tuple.reversed()).is_some_and(|back| back.tuple.reversed() == *key));
    }
}

#[test]
fn each_workload_has_ports_of_its_own() {
    let mut node = gate();
    for family in FAMILIES {
        Talk::Tcp.ask(&mut node, A, family, 55_555);
        Talk::Tcp.ask(&mut node, B, family, 55_555);
    }
    let forward: Vec<_> = node.halves().into_iter().filter(|(_, half)| half.is_forward == 1).collect();
    assert_eq!(forward.len(), 4);
    for (key, half) in forward {
        assert!([A, B].iter().any(|pod| FAMILIES.iter().any(|f| address(f.pool(pod.host)) == key.source)));
        assert_eq!(
            (key.destination, key.destination_port),
            (half.tuple.destination, half.tuple.destination_port)
        );
    }
}
