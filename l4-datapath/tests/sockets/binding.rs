//! Ports that the node's own processes bind.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd as _;

use linux::scratch::Namespace;
use nix::sys::socket::bind;

use crate::client::{Client, Kind};
use crate::world::{World, storage};

/// Binds a new socket of the client's to the port of every address.
fn bind_port(client: &Client, kind: Kind, port: u16) -> std::os::fd::OwnedFd {
    let socket = client.socket(kind);
    let any: SocketAddr = match kind {
        Kind::Tcp4 | Kind::Udp4 => ([0, 0, 0, 0], port).into(),
        Kind::Tcp6 | Kind::Udp6 => ([0_u16; 8], port).into(),
    };
    bind(socket.as_raw_fd(), &storage(any)).unwrap();
    socket
}

/// A node whose own namespace is the client's, with ports 40000 to 40999 for masquerading.
fn node() -> World {
    let mut world = World::new();
    let cookie = world.namespace.namespace().inside(linux::namespace::cookie).unwrap().unwrap();
    world.datapath.as_mut().unwrap().set_namespace(cookie);
    world.tables.set_masquerade(40_000, 40_999);
    world
}

#[test]
fn a_port_of_the_range_that_a_process_of_the_node_binds_is_noted() {
    let world = node();
    let ports = [(Kind::Tcp4, 40_000), (Kind::Tcp6, 40_063), (Kind::Udp4, 40_064), (Kind::Udp6, 40_999)];
    let bound: Vec<_> = ports.iter().map(|(kind, port)| bind_port(&world.client, *kind, *port)).collect();
    assert_eq!(world.tables.bound(), ports.map(|(_, port)| port));
    drop(bound);
    assert_eq!(world.tables.bound(), ports.map(|(_, port)| port), "noted for good");
}

#[test]
fn a_port_outside_of_the_range_is_not_noted() {
    let world = node();
    for (kind, port) in [(Kind::Tcp4, 39_999), (Kind::Tcp6, 41_000), (Kind::Udp4, 53), (Kind::Udp6, 65_535)] {
        bind_port(&world.client, kind, port);
    }
    assert_eq!(world.tables.bound(), Vec::<u16>::new());
}

#[test]
fn a_port_that_a_workload_binds_is_not_noted() {
    let world = node();
    let workload = Namespace::new("sockets-workload").unwrap();
    let client = workload.namespace().inside(|| Client::start(world.cgroup.path())).unwrap();
    for kind in [Kind::Tcp4, Kind::Tcp6, Kind::Udp4, Kind::Udp6] {
        bind_port(&client, kind, 40_001 + kind as u16);
    }
    assert_eq!(world.tables.bound(), Vec::<u16>::new());
}

#[test]
fn a_node_that_masquerades_nothing_notes_nothing() {
    let mut world = World::new();
    let cookie = world.namespace.namespace().inside(linux::namespace::cookie).unwrap().unwrap();
    world.datapath.as_mut().unwrap().set_namespace(cookie);
    bind_port(&world.client, Kind::Tcp4, 40_000);
    assert_eq!(world.tables.bound(), Vec::<u16>::new());
}

#[test]
fn a_port_that_is_taken_is_refused_by_the_kernel_as_ever() {
    let world = node();
    let taken = world
        .namespace
        .namespace()
        .inside(|| (TcpListener::bind("0.0.0.0:40005").unwrap(), UdpSocket::bind("0.0.0.0:40005").unwrap()));
    for kind in [Kind::Tcp4, Kind::Udp4] {
        let socket = world.client.socket(kind);
        let any: SocketAddr = ([0, 0, 0, 0], 40_005).into();
        assert_eq!(bind(socket.as_raw_fd(), &storage(any)), Err(nix::errno::Errno::EADDRINUSE));
    }
    drop(taken);
    assert_eq!(world.tables.bound(), Vec::<u16>::new(), "nobody of the cgroup has it");
}
