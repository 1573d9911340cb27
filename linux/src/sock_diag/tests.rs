//! Need root: they make network namespaces and end sockets in them.

use std::io::Read;
use std::net::{TcpListener, TcpStream, UdpSocket};

use super::*;
use crate::scratch;

const FAMILIES: [(&str, &str); 3] =
    [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0"), ("127.0.0.1:0", "[::]:0")];

/// A peer, and two UDP clients of it; the client is mapped where its own family is the other.
fn clients(server: &str, client: &str) -> (UdpSocket, [UdpSocket; 2]) {
    let server = UdpSocket::bind(server).unwrap();
    let peer = match (server.local_addr().unwrap(), client.starts_with('[')) {
        (SocketAddr::V4(peer), true) => SocketAddr::from((peer.ip().to_ipv6_mapped(), peer.port())),
        (peer, _) => peer,
    };
    let connect = || {
        let client = UdpSocket::bind(client).unwrap();
        client.connect(peer).unwrap();
        client
    };
    let clients = [connect(), connect()];
    (server, clients)
}

#[allow(unsafe_code, reason = "no safe call reads SO_COOKIE")]
fn cookie(socket: &impl AsRawFd) -> u64 {
    let (mut cookie, mut length) = (0u64, 8u32);
    let value = std::ptr::from_mut(&mut cookie).cast();
    // SAFETY: eight bytes that are ours, and their number.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, value, &mut length)
    };
    assert_eq!(result, 0);
    cookie
}

fn inside(work: impl FnOnce() + Send) {
    scratch::Namespace::new("sock-diag").unwrap().namespace().inside(work).unwrap();
}

#[test]
fn an_ended_udp_socket_tells_its_owner_and_its_neighbour_lives() {
    inside(|| {
        for (server, client) in FAMILIES {
            let (server, [ended, other]) = clients(server, client);
            let mut diagnosis = Diagnosis::open().unwrap();
            let listed = diagnosis.connected(Protocol::Udp).unwrap();
            let socket = listed.iter().find(|socket| socket.cookie == cookie(&ended)).unwrap();
            assert_eq!(socket.remote, server.local_addr().unwrap());
            assert_eq!(socket.local.port(), ended.local_addr().unwrap().port());

            assert!(diagnosis.end(socket).unwrap());
            let error = ended.recv(&mut [0; 1]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
            server.send_to(b"x", listed_local(&listed, cookie(&other))).unwrap();
            assert_eq!(other.recv(&mut [0; 8]).unwrap(), 1);
        }
    });
}

fn listed_local(listed: &[Socket], cookie: u64) -> SocketAddr {
    listed.iter().find(|socket| socket.cookie == cookie).unwrap().local
}

#[test]
fn an_ended_tcp_socket_is_aborted_and_its_peer_reset() {
    inside(|| {
        for (server, _) in &FAMILIES[..2] {
            let listener = TcpListener::bind(server).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut accepted, _) = listener.accept().unwrap();
            let mut diagnosis = Diagnosis::open().unwrap();
            let listed = diagnosis.connected(Protocol::Tcp).unwrap();
            assert_eq!(listed.len(), 2, "both ends, not the listener: {listed:?}");
            let socket = listed.iter().find(|socket| socket.cookie == cookie(&client)).unwrap();

            assert!(diagnosis.end(socket).unwrap());
            assert_eq!(client.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
            assert_eq!(accepted.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_socket_that_is_gone_or_whose_ports_another_has_now_is_not_ended() {
    inside(|| {
        let (server, [first, _second]) = clients("127.0.0.1:0", "127.0.0.1:0");
        let mut diagnosis = Diagnosis::open().unwrap();
        let listed = diagnosis.connected(Protocol::Udp).unwrap();
        let socket = listed.iter().find(|socket| socket.cookie == cookie(&first)).unwrap();
        drop(first);
        assert!(!diagnosis.end(socket).unwrap());

        let successor = UdpSocket::bind(socket.local).unwrap();
        successor.connect(socket.remote).unwrap();
        assert!(!diagnosis.end(socket).unwrap());
        server.send_to(b"x", socket.local).unwrap();
        assert_eq!(successor.recv(&mut [0; 8]).unwrap(), 1);
    });
}

#[test]
fn more_sockets_than_one_answer_holds_are_all_listed_once() {
    inside(|| {
        let server = UdpSocket::bind("[::1]:0").unwrap();
        let clients: Vec<_> = (0..800)
            .map(|_| {
                let client = UdpSocket::bind("[::1]:0").unwrap();
                client.connect(server.local_addr().unwrap()).unwrap();
                client
            })
            .collect();
        let listed = Diagnosis::open().unwrap().connected(Protocol::Udp).unwrap();
        let mut listed: Vec<_> = listed.iter().map(|socket| socket.cookie).collect();
        let mut made: Vec<_> = clients.iter().map(cookie).collect();
        listed.sort_unstable();
        made.sort_unstable();
        assert_eq!(listed, made);
    });
}

#[test]
fn sockets_of_another_namespace_are_not_seen() {
    let here = scratch::Namespace::new("sock-diag").unwrap();
    let _held = here.namespace().inside(|| clients("127.0.0.1:0", "127.0.0.1:0")).unwrap();
    inside(|| assert_eq!(Diagnosis::open().unwrap().connected(Protocol::Udp).unwrap(), []));
}

#[test]
fn this_kernel_can() {
    inside(|| Diagnosis::open().unwrap().works().unwrap());
}
