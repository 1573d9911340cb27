//! Who calls a VIP talks with a backend, and sees the VIP.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::connect;

use crate::client::Kind;
use crate::tables::{TCP, UDP, frontend};
use crate::world::{FAMILIES, Family, World, call, storage};

/// A service of one backend.
fn serve(world: &mut World, family: Family, index: u32, protocol: u8, at: SocketAddr) -> SocketAddr {
    let vip = family.vip(index as u8, 80);
    world.tables.set_backend(index, at);
    world.tables.set_service(index, frontend(vip, protocol), &[index], 0);
    vip
}

/// Says something both ways, and what each side is told of the other.
fn converse(family: Family, client: &mut TcpStream, server: &mut TcpStream, vip: SocketAddr) {
    client.write_all(b"question").unwrap();
    server.read_exact(&mut [0; 8]).unwrap();
    server.write_all(b"answer").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    assert_eq!(client.peer_addr().unwrap(), vip, "{family:?}: the client sees what it called");
    let own = client.local_addr().unwrap();
    assert_eq!(own.ip(), family.seen((family.local(), 0).into()).ip(), "{family:?}: its own address is real");
    assert_eq!(family.seen(server.peer_addr().unwrap()), own, "{family:?}: so is what the server sees");
    assert_eq!(server.local_addr().unwrap().ip(), family.local(), "{family:?}: and what it is itself");
}

#[test]
fn a_connection_to_a_vip_reaches_a_backend_and_is_told_the_vip() {
    let mut world = World::new();
    for family in FAMILIES {
        let server = world.tcp_server(family);
        let vip = serve(&mut world, family, 1, TCP, server.local_addr().unwrap());
        let mut client = world.tcp(family, vip).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        converse(family, &mut client, &mut accepted, vip);
    }
}

#[test]
fn a_connection_that_is_not_waited_for_reaches_a_backend_as_well() {
    let mut world = World::new();
    for family in FAMILIES {
        let server = world.tcp_server(family);
        let vip = serve(&mut world, family, 1, TCP, server.local_addr().unwrap());
        let socket = world.client.socket(family.tcp());
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        match connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &storage(vip)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => panic!("{family:?}: {error}"),
        }
        poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(10_000_u16)).unwrap();
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        converse(family, &mut TcpStream::from(socket), &mut accepted, vip);
    }
}

#[test]
fn a_connected_datagram_socket_talks_with_a_backend_and_is_told_the_vip() {
    let mut world = World::new();
    for family in FAMILIES {
        let server = world.udp_server(family);
        let vip = serve(&mut world, family, 1, UDP, server.local_addr().unwrap());
        let client = world.udp_client(family);
        client.connect(vip).unwrap();
        client.send(b"question").unwrap();
        let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(family.seen(from), client.local_addr().unwrap(), "{family:?}");
        server.send_to(b"answer", from).unwrap();
        let (length, source) = client.recv_from(&mut [0; 8]).unwrap();
        assert_eq!((length, source), (6, vip), "{family:?}");
        assert_eq!(client.peer_addr().unwrap(), vip, "{family:?}");
    }
}

/// One question to `vip`, answered by `server`: what the client sees as the source.
fn ask(client: &UdpSocket, server: &UdpSocket, vip: SocketAddr) -> SocketAddr {
    client.send_to(b"question", vip).unwrap();
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
    server.send_to(b"answer", from).unwrap();
    client.recv_from(&mut [0; 8]).unwrap().1
}

#[test]
fn an_answer_to_an_unconnected_socket_comes_from_the_vip_it_called() {
    let mut world = World::new();
    for family in FAMILIES {
        let servers = [(); 2].map(|()| world.udp_server(family));
        let vips = [1, 2].map(|index| {
            let at = servers[index as usize - 1].local_addr().unwrap();
            serve(&mut world, family, index, UDP, at)
        });
        let client = world.udp_client(family);
        for _ in 0..2 {
            for (server, vip) in servers.iter().zip(vips) {
                assert_eq!(ask(&client, server, vip), vip, "{family:?}");
            }
        }
        // And somebody who is no service's backend, on the same socket.
        let other = world.udp_server(family);
        let at = family.seen(other.local_addr().unwrap());
        assert_eq!(ask(&client, &other, at), at, "{family:?}");
    }
}

/// A service of four servers for datagrams.
fn serve_four(world: &mut World, family: Family) -> (SocketAddr, [UdpSocket; 4]) {
    let servers = [(); 4].map(|()| world.udp_server(family));
    for (number, server) in (1..).zip(&servers) {
        world.tables.set_backend(number, server.local_addr().unwrap());
    }
    let vip = family.vip(1, 53);
    world.tables.set_service(1, frontend(vip, UDP), &[1, 2, 3, 4], 0);
    (vip, servers)
}

/// How many of `sent` datagrams come to each server. On a busy machine the kernel delivers even to itself a moment later.
fn take(servers: &[UdpSocket], sent: usize) -> Vec<usize> {
    let mut received = vec![0; servers.len()];
    while received.iter().sum::<usize>() < sent {
        let mut ready: Vec<_> =
            servers.iter().map(|server| PollFd::new(server.as_fd(), PollFlags::POLLIN)).collect();
        if poll(&mut ready, PollTimeout::from(5000u16)).unwrap() == 0 {
            break;
        }
        for (server, count) in servers.iter().zip(&mut received) {
            server.set_nonblocking(true).unwrap();
            *count += std::iter::from_fn(|| server.recv(&mut [0; 8]).ok()).count();
        }
    }
    received
}

#[test]
fn the_datagrams_of_a_socket_to_a_vip_go_to_one_backend_and_those_of_many_to_all() {
    let mut world = World::new();
    for family in FAMILIES {
        let (vip, servers) = serve_four(&mut world, family);
        let clients: Vec<_> = (0..64).map(|_| world.udp_client(family)).collect();
        let mut used = BTreeSet::new();
        for client in &clients {
            for _ in 0..8 {
                client.send_to(b"question", vip).unwrap();
            }
            let received = take(&servers, 8);
            assert_eq!(received.iter().max(), Some(&8), "{family:?}: {received:?}");
            used.insert(received);
        }
        assert_eq!(used.len(), 4, "{family:?}");
    }
}

#[test]
fn connections_spread_over_all_slots() {
    let mut world = World::new();
    for family in FAMILIES {
        let (_, servers) = serve_four(&mut world, family);
        let vip = family.vip(2, 53);
        world.tables.set_service(2, frontend(vip, UDP), &[1, 2, 3, 4], 0);
        for _ in 0..128 {
            let client = world.udp_client(family);
            client.connect(vip).unwrap();
            client.send(b"question").unwrap();
        }
        let received = take(&servers, 128);
        assert!(!received.contains(&0) && received.iter().sum::<usize>() == 128, "{family:?}: {received:?}");
    }
}

#[test]
fn who_is_not_called_by_a_vip_is_called_as_ever() {
    let mut world = World::new();
    for family in FAMILIES {
        world.tables.set_service(1, frontend(family.vip(1, 80), TCP), &[], 0);
        let server = world.tcp_server(family);
        let at = family.seen(server.local_addr().unwrap());
        let mut client = world.tcp(family, at).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        converse(family, &mut client, &mut accepted, at);
        let server = world.udp_server(family);
        let at = family.seen(server.local_addr().unwrap());
        assert_eq!(ask(&world.udp_client(family), &server, at), at, "{family:?}");
    }
    assert_eq!(world.tables.called(), []);
}

#[test]
fn a_socket_made_outside_of_the_cgroup_is_left_alone() {
    let mut world = World::new();
    let server = world.tcp_server(Family::V4);
    let vip = serve(&mut world, Family::V4, 1, TCP, server.local_addr().unwrap());
    let outside = world.namespace.namespace().inside(|| call(Kind::Tcp4.make(), vip)).unwrap();
    assert_eq!(outside.unwrap_err().raw_os_error(), Some(nix::libc::ENETUNREACH));
    world.tcp(Family::V4, vip).unwrap();
}

#[test]
fn what_a_socket_called_is_forgotten_with_it() {
    let mut world = World::new();
    for family in FAMILIES {
        let (tcp, udp) = (world.tcp_server(family), world.udp_server(family));
        let called = serve(&mut world, family, 1, TCP, tcp.local_addr().unwrap());
        let asked = serve(&mut world, family, 2, UDP, udp.local_addr().unwrap());
        let stream = world.tcp(family, called).unwrap();
        let datagrams = world.udp_client(family);
        datagrams.connect(asked).unwrap();
        let mut known: Vec<_> = world.tables.called().into_iter().map(|(_, called)| called.service).collect();
        known.sort_unstable();
        assert_eq!(known, [1, 2], "{family:?}");
        drop((stream, datagrams));
        assert_eq!(world.tables.called(), [], "{family:?}");
    }
}
