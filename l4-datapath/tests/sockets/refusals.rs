//! Calls that nobody can answer fail at once.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;

use linux::cgroup::hierarchy;

use crate::tables::{TCP, UDP, frontend};
use crate::world::{FAMILIES, Family, World};

/// The three ways to call, each with what became of it.
fn call_all(world: &World, family: Family, vip: SocketAddr) -> [(&'static str, io::Result<()>); 3] {
    let datagrams = world.udp_client(family);
    [
        ("TCP connect", world.tcp(family, vip).map(drop)),
        ("UDP sendto", datagrams.send_to(b"question", vip).map(drop)),
        ("UDP connect", datagrams.connect(vip)),
    ]
}

fn refused(world: &World, family: Family, vip: SocketAddr) {
    for (way, result) in call_all(world, family, vip) {
        let kind = result.map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::ConnectionRefused), "{family:?}: {way}");
    }
    assert_eq!(world.tables.called(), [], "{family:?}");
}

#[test]
fn a_service_without_backends_refuses() {
    let mut world = World::new();
    for family in FAMILIES {
        let vip = family.vip(1, 80);
        for (index, protocol) in [(1, TCP), (2, UDP)] {
            world.tables.set_service(index, frontend(vip, protocol), &[], 0);
        }
        refused(&world, family, vip);
    }
}

#[test]
fn a_service_without_backends_refuses_who_had_one() {
    let mut world = World::new();
    for family in FAMILIES {
        let vip = family.vip(1, 80);
        for (index, protocol) in [(1, TCP), (2, UDP)] {
            world.tables.set_service(index, frontend(vip, protocol), &[], 100);
            world.tables.set_member(index, 1, true);
            let client = abi::AffinityKey::namespace(
                world.namespace.namespace().inside(linux::namespace::cookie).unwrap().unwrap(),
            );
            world.tables.set_affinity(
                client,
                index,
                abi::Affinity { backend: 1, seen: super::affinity::second() },
            );
        }
        refused(&world, family, vip);
    }
}

#[test]
fn a_port_that_the_vip_does_not_have_refuses() {
    let mut world = World::new();
    for family in FAMILIES {
        let server = world.tcp_server(family);
        world.tables.set_backend(1, server.local_addr().unwrap());
        for (index, protocol) in [(1, TCP), (2, UDP)] {
            world.tables.set_service(index, frontend(family.vip(1, 80), protocol), &[1], 0);
        }
        refused(&world, family, family.vip(1, 81));
    }
}

/// A workload that reaches itself through a service sees the VIP as its client, and answers there.
#[test]
fn a_datagram_of_a_workload_to_a_port_that_the_vip_does_not_have_is_left_to_the_device() {
    let mut world = World::new();
    let here = world.namespace.namespace().inside(linux::namespace::cookie).unwrap().unwrap();
    for family in FAMILIES {
        world.tables.set_service(1, frontend(family.vip(1, 80), UDP), &[], 0);
        let at_port =
            |world: &World, port| call_all(world, family, family.vip(1, port)).map(|(_, result)| result);
        world.datapath.as_mut().unwrap().set_namespace(here);
        let own = at_port(&world, 81).map(|result| result.unwrap_err().kind());
        assert_eq!(own, [ErrorKind::ConnectionRefused; 3], "{family:?}: a process of the node");
        world.datapath.as_mut().unwrap().set_namespace(here + 1);
        let [tcp, sendto, connect] = at_port(&world, 81);
        assert_eq!(tcp.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{family:?}");
        for left in [sendto, connect] {
            // By the kernel, which knows no way there in this namespace.
            assert_eq!(left.unwrap_err().kind(), ErrorKind::NetworkUnreachable, "{family:?}");
        }
        let nobody = at_port(&world, 80).map(|result| result.unwrap_err().kind());
        assert_eq!(nobody, [ErrorKind::ConnectionRefused; 3], "{family:?}: nobody answers");
        assert_eq!(world.tables.called(), [], "{family:?}");
    }
}

#[test]
fn a_port_of_another_protocol_refuses() {
    let mut world = World::new();
    for family in FAMILIES {
        let vip = family.vip(1, 80);
        let server = world.tcp_server(family);
        world.tables.set_backend(1, server.local_addr().unwrap());
        world.tables.set_service(1, frontend(vip, TCP), &[1], 0);
        let [(_, tcp), (_, sendto), (_, connect)] = call_all(&world, family, vip);
        tcp.unwrap();
        for result in [sendto, connect] {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{family:?}");
        }
    }
}

/// What a reader meets whose element of `FRONTENDS` became another's under it.
#[test]
fn a_service_that_is_called_by_something_else_is_not_believed() {
    let mut world = World::new();
    for family in FAMILIES {
        let servers = (world.tcp_server(family), world.udp_server(family));
        world.tables.set_backend(1, servers.0.local_addr().unwrap());
        world.tables.set_backend(2, servers.1.local_addr().unwrap());
        let (vip, other) = (family.vip(1, 80), family.vip(2, 80));
        for (index, protocol) in [(1, TCP), (2, UDP)] {
            world.tables.set_service(index, frontend(other, protocol), &[index], 0);
            world.tables.point(frontend(vip, protocol), index);
        }
        refused(&world, family, vip);
    }
}

#[test]
fn a_backend_of_the_other_family_refuses_where_it_cannot_be_called() {
    let mut world = World::new();
    let server = (world.tcp_server(Family::V6), world.udp_server(Family::V6));
    world.tables.set_backend(1, server.0.local_addr().unwrap());
    world.tables.set_backend(2, server.1.local_addr().unwrap());
    let vip = Family::V4.vip(1, 80);
    for (index, protocol) in [(1, TCP), (2, UDP)] {
        world.tables.set_service(index, frontend(vip, protocol), &[index], 0);
    }
    refused(&world, Family::V4, vip);
}

/// By none of its addresses: between the node and itself no packet is judged.
#[test]
fn the_l7_proxy_cannot_call_the_node_itself() {
    let mut world = World::new();
    let lines = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = lines.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    let own = std::fs::metadata(hierarchy().unwrap().join(path)).unwrap().ino();
    for family in FAMILIES {
        let server = world.tcp_server(family);
        let address = family.seen(server.local_addr().unwrap());
        let any = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 | Family::Mapped => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        for to in [address, SocketAddr::new(any, address.port())] {
            world.tables.set_proxy(own);
            let refused = world.tcp(family, to).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{family:?} {to}");
            world.tables.set_proxy(own + 1);
            world.tcp(family, address).unwrap();
        }
    }
}
