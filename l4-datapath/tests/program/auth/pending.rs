//! Addresses of other nodes' pods of which nothing is known yet.

use abi::{DropReason, Remote, RemoteFlags, ReservedIdentity};

use super::*;
use crate::{frame::unreachable, node::SHOT, run, world::NIC};

/// The peer is one of a prefix without an entry of its own.
fn pending() -> Node {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        node.expect(family, [ReservedIdentity::UNMANAGED; 2]);
    }
    node
}

impl Node {
    fn expect(&mut self, family: Family, identity: [u32; 2]) {
        let mut map: LpmTrie<_, Address, Remote> =
            LpmTrie::try_from(self.bpf().map_mut(map::IPCACHE).unwrap()).unwrap();
        let value = Remote { identity, node: 0, flags: RemoteFlags::PENDING };
        map.insert(&Key::new(128, address(family.peer())), value, 0).unwrap();
    }
}

#[test]
fn what_goes_there_or_comes_from_there_is_said_to_be_early() {
    let mut node = pending();
    for (way, talk) in [WAYS[3], WAYS[4]].into_iter().flat_map(|way| TALKS.map(|talk| (way, talk))) {
        for family in FAMILIES {
            let (_, pod) = way.hook(false);
            let direction = if matches!(way.opener, Peer::Beyond) { INGRESS } else { EGRESS };
            let first = talk.first(way, family);
            let outcome = way.drops(&mut node, false, &first, (DropReason::PendingAddress, pod, direction));
            assert_eq!(outcome.verdict, SHOT);
            assert_eq!(node.connections(family), []);
        }
    }
}

/// The receiver's hook judges.
#[test]
fn the_device_lets_it_in() {
    let node = pending();
    for family in FAMILIES {
        let frame = tcp(family.to(family.peer(), A), PORTS, SYN);
        let context = Context { ingress_ifindex: NIC, ..Context::default() };
        assert_eq!(run::run(node.program("from_netdev"), NIC, context, &frame).verdict, u32::MAX);
    }
}

#[test]
fn once_it_is_known_it_is_judged_by_who_it_is() {
    let mut node = pending();
    for family in FAMILIES {
        node.identify(family.peer(), 128, PEER);
        for way in [WAYS[3], WAYS[4]] {
            Talk::Udp.open(&mut node, way, family);
            node.forget_connections(family);
        }
    }
}

/// The flag stands beside the identities of both generations.
#[test]
fn the_flag_says_nothing_of_a_generation_in_which_the_address_is_known() {
    let mut node = pending();
    for family in FAMILIES {
        node.expect(family, [ReservedIdentity::UNMANAGED, PEER]);
        node.passes("from_pod", A, &Talk::Udp.first(WAYS[3], family));
    }
}

#[test]
fn a_connection_whose_peer_is_no_more_known_is_asked_about() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        Talk::Udp.open(&mut node, WAYS[3], family);
        node.expect(family, [ReservedIdentity::UNMANAGED; 2]);
    }
    node.set_generation(2);
    for family in FAMILIES {
        for reply in [false, true] {
            let (program, pod) = WAYS[3].hook(reply);
            let direction = if program == "from_pod" { EGRESS } else { INGRESS };
            let blamed = (DropReason::PendingAddress, pod, direction);
            WAYS[3].drops(&mut node, reply, &Talk::Udp.next(WAYS[3], family, reply), blamed);
        }
    }
}

/// It is about nothing that anybody there could know.
#[test]
fn no_icmp_error_comes_from_there() {
    let mut node = Node::new();
    node.allow_all();
    for family in FAMILIES {
        Talk::Udp.open(&mut node, WAYS[3], family);
        let error = unreachable(WAYS[3].ends(family, true).1, &Talk::Udp.next(WAYS[3], family, false));
        node.passes("to_pod", A, &error);
        node.expect(family, [ReservedIdentity::UNMANAGED; 2]);
        node.drops_to(A, &error, DropReason::PendingAddress);
    }
}

/// The own pool is not pending: nobody else can make an endpoint of it.
#[test]
fn a_free_address_of_the_own_pool_stays_what_it_was() {
    let mut node = pending();
    for family in FAMILIES {
        let free = family.pool(99);
        node.drops_from(A, &tcp(family.from(A, free), PORTS, SYN), DropReason::NoEndpoint);
        node.drops_to(A, &tcp(family.to(free, A), PORTS, SYN), DropReason::InvalidSourceIp);
    }
}
