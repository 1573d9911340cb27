//! Masquerading between real kernels: what a test run cannot show (segments in one buffer, checksums left to the device,
//! the stack's own errors).

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
};

use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};

use super::{
    super::{
        live::{PATIENCE, Shell, drop_reasons, ip, mac, stay_on_this_cpu},
        node::Node,
        world::{A, FAMILIES, Family, Pod},
    },
    gate,
};

/// Somebody beyond: a namespace at the other end of the device, without a route to workloads.
const BEYOND: Pod = Pod { id: 9, ifindex: 91, mac: [2, 0, 0, 0, 0, 9], gateway_mac: [2, 0, 0, 0, 1, 9], ..A };

/// A node with one workload and somebody beyond; the node routes between them.
pub(crate) fn scene() -> (Node, Shell, Shell) {
    let mut node = gate();
    let (a, beyond) = workload_and_peer(&mut node);
    (node, a, beyond)
}

/// One workload and somebody beyond; the node routes between them.
pub(crate) fn workload_and_peer(node: &mut Node) -> (Shell, Shell) {
    let a = Shell::new(A);
    node.attach(A);
    let mut beyond = Shell::bare();
    ip(&["link", "set", "nic", "address", &mac(BEYOND.gateway_mac), "up"]);
    ip(&["link", "set", "wire", "address", &mac(BEYOND.mac), "netns", &beyond.pid()]);
    ip(&["link", "set", "host1", "up"]);
    assert!(beyond.run("ip link set wire up"));
    for family in FAMILIES {
        let length = if family == Family::V4 { 32 } else { 128 };
        let (own, pod, peer) = (family.outside(), family.pool(A.host), family.peer());
        let text = |ip: std::net::IpAddr| format!("{ip}/{length}");
        ip(&["address", "add", &text(own), "dev", "nic"]);
        ip(&["route", "add", &text(peer), "dev", "nic"]);
        ip(&["neighbour", "add", &peer.to_string(), "lladdr", &mac(BEYOND.mac), "dev", "nic"]);
        ip(&["route", "add", &text(pod), "dev", "host1"]);
        ip(&["neighbour", "add", &pod.to_string(), "lladdr", &mac(A.mac), "dev", "host1"]);
        for command in [
            format!("ip address add {} dev wire nodad", text(peer)),
            format!("ip route add {} dev wire", text(own)),
            format!("ip neighbour add {own} lladdr {} dev wire", mac(BEYOND.gateway_mac)),
        ] {
            let command = if family == Family::V4 { command.replace(" nodad", "") } else { command };
            assert!(beyond.run(&command), "{command}");
        }
    }
    for family in FAMILIES {
        beyond.receives(family.peer());
    }
    let settings = [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.tcp_early_demux", "0"),
    ];
    for (key, value) in settings {
        assert!(Command::new("sysctl").args(["-qw", &format!("{key}={value}")]).status().unwrap().success());
    }
    for (name, hook) in [("from_netdev", TcAttachType::Ingress), ("to_netdev", TcAttachType::Egress)] {
        let program: &mut SchedClassifier = node.bpf().program_mut(name).unwrap().try_into().unwrap();
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        program.attach_with_options("nic", hook, order).expect("tcx, kernel 6.6");
    }
    (a, beyond)
}

#[test]
fn a_stream_of_large_segments_goes_out_and_back_whole() {
    let (node, a, beyond) = scene();
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| n as u8).collect();
    for family in FAMILIES {
        let address = SocketAddr::from((family.peer(), 80));
        let listener = beyond.inside(|| TcpListener::bind(address).unwrap());
        let echoed = thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, from) = listener.accept().unwrap();
                assert_eq!(from.ip(), family.outside(), "the node stands for the workload");
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                stream.write_all(&received).unwrap();
            });
            a.inside(|| {
                let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
                assert_eq!(stream.local_addr().unwrap().ip(), family.pool(A.host));
                stream.write_all(&sent).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut echoed = Vec::new();
                stream.read_to_end(&mut echoed).unwrap();
                echoed
            })
        });
        assert!(echoed == sent, "{family:?}: {} bytes of {}", echoed.len(), sent.len());
    }
    assert_eq!(drop_reasons(&node), []);
}

/// Fragments included: more than fits a frame.
#[test]
fn datagrams_of_every_size_go_out_and_back() {
    // A later piece that comes before the first is dropped.
    stay_on_this_cpu();
    let (node, a, beyond) = scene();
    for family in FAMILIES {
        let server = beyond.inside(|| UdpSocket::bind((family.peer(), 53)).unwrap());
        let client = a.inside(|| UdpSocket::bind((family.pool(A.host), 0)).unwrap());
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let mut bytes = vec![0; 65_536];
        for size in [0, 1, 1472, 1473, 3000, 9000] {
            let question = vec![size as u8; size];
            client.send_to(&question, (family.peer(), 53)).unwrap();
            let (length, from) = server.recv_from(&mut bytes).unwrap_or_else(|error| {
                panic!("{family:?} {size}: {error}; drops {:?}", drop_reasons(&node))
            });
            assert_eq!((&bytes[..length], from.ip()), (&question[..], family.outside()));
            server.send_to(&bytes[..length], from).unwrap();
            let (length, from) = client.recv_from(&mut bytes).unwrap();
            assert_eq!((&bytes[..length], from), (&question[..], (family.peer(), 53).into()));
        }
    }
    assert_eq!(drop_reasons(&node), []);
}

/// The peer's kernel says that nobody listens; the workload's socket hears it.
#[test]
fn a_refused_datagram_is_an_error_at_the_workloads_socket() {
    let (node, a, _beyond) = scene();
    for family in FAMILIES {
        let client = a.inside(|| UdpSocket::bind((family.pool(A.host), 0)).unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect((family.peer(), 54)).unwrap();
        client.send(b"anybody?").unwrap();
        let error = client.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{family:?} {error}");
    }
    assert_eq!(drop_reasons(&node), []);
}

/// Gives the server an address that the node reaches by way of the router, whose device to the server has this MTU. Both
/// are bare but for what earlier calls have made.
pub(crate) fn behind(router: &mut Shell, server: &mut Shell, family: Family, mtu: u32) -> IpAddr {
    let (far0, far1) = ("02:00:00:00:00:f0", "02:00:00:00:00:f1");
    let to_server = format!(
        "ip link show far0 || ip link add far0 address {far0} mtu {mtu} type veth \
         peer name far1 address {far1} mtu 1500 netns {}",
        server.pid()
    );
    assert!(router.run(&to_server) && router.run("ip link set far0 up") && server.run("ip link set far1 up"));
    assert!(router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"));
    let (far, length) = match family {
        Family::V4 => ("203.0.113.7", 32),
        Family::V6 => ("2001:db8:7::7", 128),
    };
    let (own, peer) = (family.outside(), family.peer());
    ip(&["route", "add", &format!("{far}/{length}"), "via", &peer.to_string(), "dev", "nic", "onlink"]);
    for command in [
        format!("ip route add {far}/{length} dev far0"),
        format!("ip neighbour add {far} lladdr {far1} dev far0"),
    ] {
        assert!(router.run(&command), "{command}");
    }
    let nodad = if family == Family::V6 { "nodad" } else { "" };
    for command in [
        format!("ip address add {far}/{length} dev far1 {nodad}"),
        format!("ip route add {own}/{length} dev far1"),
        format!("ip neighbour add {own} lladdr {far0} dev far1"),
    ] {
        assert!(server.run(&command), "{command}");
    }
    far.parse().unwrap()
}

/// T35 for real: a router beyond the node says that segments are too big, about the node's packets; the workload's
/// kernel hears it about its own, and the stream goes on.
#[test]
fn a_smaller_mtu_on_the_way_is_discovered() {
    let (node, mut a, mut router) = scene();
    let mut server = Shell::bare();
    for family in FAMILIES {
        let far = behind(&mut router, &mut server, family, 1300);
        let address = SocketAddr::new(far, 80);
        let listener = server.inside(|| TcpListener::bind(address).unwrap());
        let sent = vec![7; 1_000_000];
        let received = thread::scope(|scope| {
            scope.spawn(|| {
                a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap().write_all(&sent))
            });
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        assert!(received == sent, "{family:?}: {} bytes of {}", received.len(), sent.len());
        assert!(a.run(&format!("ip route get {far} | grep -q 'mtu 1300'")), "{family:?}: it was heard");
    }
    assert_eq!(drop_reasons(&node), []);
}
