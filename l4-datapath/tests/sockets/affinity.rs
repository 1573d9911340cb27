//! A client returns to the backend it had.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;

use abi::{Affinity, AffinityKey};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

use crate::tables::{UDP, frontend};
use crate::world::{FAMILIES, Family, World};

const TIMEOUT: u32 = 100;

/// The second that the programs go by.
pub(crate) fn second() -> u32 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap().tv_sec() as u32 + abi::timeout::BOOT
}

/// Service 1 with this slot, of the two backends that are its members.
fn serve(world: &mut World, family: Family, slots: &[u32]) -> (SocketAddr, [UdpSocket; 2]) {
    let servers = [(); 2].map(|()| world.udp_server(family));
    for (number, server) in (1..).zip(&servers) {
        world.tables.set_backend(number, server.local_addr().unwrap());
        world.tables.set_member(1, number, true);
    }
    let vip = family.vip(1, 53);
    world.tables.set_service(1, frontend(vip, UDP), slots, TIMEOUT);
    (vip, servers)
}

/// How the programs know the client.
fn client(world: &World) -> abi::Address {
    let cookie = world.namespace.namespace().inside(linux::namespace::cookie);
    AffinityKey::namespace(cookie.unwrap().unwrap())
}

/// Which server is called, by a new socket that connects and by one that does not.
fn called(world: &World, family: Family, vip: SocketAddr, servers: &[UdpSocket; 2]) -> [usize; 2] {
    let connected = world.udp_client(family);
    connected.connect(vip).unwrap();
    connected.send(b"question").unwrap();
    let first = receiver(servers);
    world.udp_client(family).send_to(b"question", vip).unwrap();
    [first, receiver(servers)]
}

/// The one server, counted from 1, that something has come to.
fn receiver(servers: &[UdpSocket; 2]) -> usize {
    // On a busy machine the kernel delivers even to itself a moment later.
    let mut ready = servers.each_ref().map(|server| PollFd::new(server.as_fd(), PollFlags::POLLIN));
    poll(&mut ready, PollTimeout::from(5000u16)).unwrap();
    let received = servers.each_ref().map(|server| {
        server.set_nonblocking(true).unwrap();
        server.recv(&mut [0; 8]).is_ok()
    });
    match received {
        [true, false] => 1,
        [false, true] => 2,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_returns_to_its_backend() {
    for family in FAMILIES {
        let mut world = World::new();
        let (vip, servers) = serve(&mut world, family, &[1, 2]);
        let [first, second] = called(&world, family, vip, &servers);
        assert_eq!(first, second, "{family:?}");
        for _ in 0..16 {
            assert_eq!(called(&world, family, vip, &servers), [first; 2], "{family:?}");
        }
        let (key, affinity) = world.tables.affinity().expect("one client");
        assert_eq!((key.client, key.service), (client(&world), 1), "{family:?}");
        assert_eq!(affinity.backend as usize, first, "{family:?}");
    }
}

/// The slots say 2 and memory says 1: so it can be told which of them was asked.
fn remembered(world: &mut World, family: Family, age: u32) -> (SocketAddr, [UdpSocket; 2]) {
    let (vip, servers) = serve(world, family, &[2]);
    let seen = second().wrapping_sub(age);
    world.tables.set_affinity(client(world), 1, Affinity { backend: 1, seen });
    (vip, servers)
}

#[test]
fn each_call_refreshes_the_time() {
    for family in FAMILIES {
        let mut world = World::new();
        let before = second();
        let (vip, servers) = remembered(&mut world, family, TIMEOUT - 5);
        assert_eq!(called(&world, family, vip, &servers), [1; 2], "{family:?}");
        let (_, affinity) = world.tables.affinity().expect("one client");
        assert!(affinity.seen >= before && affinity.seen <= second(), "{family:?}: {affinity:?}, {before}");
    }
}

#[test]
fn a_client_that_stayed_away_too_long_is_given_any_backend() {
    for family in FAMILIES {
        let mut world = World::new();
        let (vip, servers) = remembered(&mut world, family, TIMEOUT + 1);
        assert_eq!(called(&world, family, vip, &servers), [2; 2], "{family:?}");
        assert_eq!(world.tables.affinity().expect("one client").1.backend, 2, "{family:?}");
    }
}

#[test]
fn a_client_moves_when_its_backend_is_gone() {
    for family in FAMILIES {
        let mut world = World::new();
        let (vip, servers) = remembered(&mut world, family, 0);
        assert_eq!(called(&world, family, vip, &servers), [1; 2], "{family:?}");
        world.tables.set_member(1, 1, false);
        assert_eq!(called(&world, family, vip, &servers), [2; 2], "{family:?}");
        world.tables.set_member(1, 1, true);
        assert_eq!(called(&world, family, vip, &servers), [2; 2], "{family:?}: and stays there");
    }
}
