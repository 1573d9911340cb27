//! Both ends hear that their connection has ended: real kernels, whose TCP takes an RST by its exact number alone.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
};

use super::{
    super::{
        live::{PATIENCE, Shell, two_pods},
        masquerade::live::scene,
    },
    *,
};

/// A stream from `client` to `server`, with a byte exchanged in both directions.
fn connected(client: &Shell, server: &Shell, address: SocketAddr) -> [TcpStream; 2] {
    let listener = server.inside(|| TcpListener::bind(address).unwrap());
    let mut one = client.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
    let (mut other, _) = listener.accept().unwrap();
    for stream in [&one, &other] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Nothing is sent but what a test sends.
        stream.set_nodelay(true).unwrap();
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut one, &mut other];
        let [from, to] = [from, to].map(|n: usize| &*ends[n]);
        (&*from).write_all(b"!").unwrap();
        (&*to).read_exact(&mut [0]).unwrap();
    }
    [one, other]
}

/// Bytes sent that the other end has not acknowledged.
fn unacknowledged(stream: &TcpStream) -> i32 {
    let mut bytes = 0;
    // SAFETY: an open socket, and a live local for the result.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(result, 0);
    bytes
}

/// Waits until nothing is on its way: what acknowledges the last byte must not be the packet that finds out.
fn settle(streams: &[TcpStream; 2]) {
    while streams.iter().any(|stream| unacknowledged(stream) != 0) {
        std::thread::yield_now();
    }
}

#[track_caller]
fn is_reset(stream: &TcpStream) {
    let error = (&*stream).read(&mut [0]).expect_err("no byte, no end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Asserts that one packet of the one end, after `end`, resets both.
#[track_caller]
fn both_are_reset(streams: &[TcpStream; 2], sender: usize, end: impl FnOnce()) {
    settle(streams);
    end();
    (&streams[sender]).write_all(b"?").unwrap();
    for stream in streams {
        is_reset(stream);
    }
}

/// TCP segments that the stack of a namespace has received.
fn received(shell: &Shell) -> u64 {
    let all = shell.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let lines: Vec<Vec<_>> = all
        .lines()
        .filter_map(|line| line.strip_prefix("Tcp:"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let [names, numbers] = &lines[..] else { panic!("{all}") };
    let at = names.iter().position(|name| *name == "InSegs").expect("a column");
    numbers[at].parse().expect("a number")
}

/// Asserts that the RST by which one end goes away, after `end`, resets the other, and that the one is sent nothing.
#[track_caller]
fn a_reset_reaches_the_other(streams: [TcpStream; 2], sender: usize, shell: &Shell, end: impl FnOnce()) {
    settle(&streams);
    end();
    let before = received(shell);
    let [one, other] = streams;
    let (aborted, left) = if sender == 0 { (one, other) } else { (other, one) };
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&aborted, nix::sys::socket::sockopt::Linger, &at_once).unwrap();
    drop(aborted);
    is_reset(&left);
    assert_eq!(received(shell), before);
}

/// Asserts both, for connections of both families, with either end as the one that sends.
#[track_caller]
fn ends(node: &mut Node, peer: Peer, (client, server): (&Shell, &Shell), address: impl Fn(Family) -> IpAddr) {
    for (family, sender) in FAMILIES.into_iter().flat_map(|family| [0, 1].map(|sender| (family, sender))) {
        let port = 80 + 2 * sender as u16;
        node.prove(A, peer, MARK, EPOCH);
        let streams = connected(client, server, SocketAddr::from((address(family), port)));
        both_are_reset(&streams, sender, || node.withdraw(MARK));
        node.prove(A, peer, MARK, EPOCH);
        let streams = connected(client, server, SocketAddr::from((address(family), port + 1)));
        a_reset_reaches_the_other(streams, sender, [client, server][sender], || node.withdraw(MARK));
    }
}

#[test]
fn between_two_pods_both_ends_are_reset() {
    let (mut node, a, b) = two_pods();
    node.require(A, EGRESS, B.identity, Ports::All);
    ends(&mut node, Peer::Pod(B), (&a, &b), |family| family.pool(B.host));
}

/// Out under the node's address: the RST goes the same way.
#[test]
fn between_a_pod_and_somebody_beyond_both_ends_are_reset() {
    let (mut node, a, beyond) = scene();
    node.require(A, EGRESS, PEER, Ports::All);
    ends(&mut node, Peer::Beyond, (&a, &beyond), |family| family.peer());
}

#[test]
fn between_somebody_beyond_and_a_pod_both_ends_are_reset() {
    let (mut node, a, mut beyond) = scene();
    node.require(A, INGRESS, PEER, Ports::All);
    for family in FAMILIES {
        let pod = family.pool(A.host);
        // The device's own MAC stands for the router's.
        let router = "02:00:00:00:01:09";
        for command in [
            format!("ip route add {pod} dev wire"),
            format!("ip neighbour add {pod} lladdr {router} dev wire"),
        ] {
            assert!(beyond.run(&command), "{command}");
        }
    }
    ends(&mut node, Peer::Beyond, (&beyond, &a), |family| family.pool(A.host));
}

#[test]
fn a_refused_caller_hears_it_at_once() {
    let (mut node, a, _b) = two_pods();
    node.require(A, EGRESS, B.identity, Ports::All);
    node.refuse(A, Peer::Pod(B), 1, FAR);
    for family in FAMILIES {
        let address = SocketAddr::from((family.pool(B.host), 80));
        let error = a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let client = a.inside(|| UdpSocket::bind((family.pool(A.host), 0)).unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect(address).unwrap();
        client.send(b"anybody?").unwrap();
        let error = client.recv(&mut [0; 8]).unwrap_err();
        // EHOSTUNREACH, EACCES: that it is forbidden.
        let expected =
            if family == Family::V4 { ErrorKind::HostUnreachable } else { ErrorKind::PermissionDenied };
        assert_eq!(error.kind(), expected, "{family:?} {error}");
    }
}

/// The mark that says where a packet of ours goes is no right that a process of the node could take.
#[test]
fn nobody_reaches_a_pod_by_the_mark_of_what_we_send_inward() {
    let mut node = Node::new();
    for family in FAMILIES {
        let frame = tcp(family.to(family.pool(B.host), A), PORTS, RST);
        let outcome = node.run("to_pod", A, Context { mark: abi::MARK_INWARD, ..Context::default() }, &frame);
        assert_eq!((outcome.verdict, outcome.mark), (crate::node::SHOT, 0));
    }
    let a = Shell::new(A);
    node.attach(A);
    node.events();
    for family in FAMILIES {
        a.inside(|| {
            let socket = UdpSocket::bind((family.pool(A.host), 0)).unwrap();
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &abi::MARK_INWARD)
                .unwrap();
            socket.send_to(b"let me through", (family.pool(B.host), 53)).unwrap();
        });
        let event = node.wait_for_event(PATIENCE);
        assert_eq!(event.reason, abi::DropReason::PolicyDenied as u8);
    }
}
