//! Real sockets, with a relay in the proxy's place.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use abi::{DropReason, MARK_FROM_PROXY, MARK_TO_PROXY, RuleVerdict};
use nix::sys::socket::{setsockopt, sockopt::Mark};

use super::super::{
    frame::TCP,
    live::{PATIENCE, Shell, drop_reasons, ip},
    masquerade::{
        gate,
        live::{behind, workload_and_peer},
    },
    node::Node,
    world::{A, B, FAMILIES, Family, Ports},
};
use super::{PORT, own_cgroup, relay};

struct World {
    node: Node,
    relay: relay::Relay,
    a: Shell,
    b: Shell,
}

fn world() -> World {
    let mut node = Node::new();
    node.allow_by_proxy();
    let (a, b) = (Shell::new(A), Shell::new(B));
    relay::prepare(&[A, B]);
    node.attach(A);
    node.attach(B);
    let relay = relay::Relay::new();
    relay::ready(&mut node, &relay);
    World { node, relay, a, b }
}

/// What a server said to a client, after it has heard all of what the client said.
fn exchange(a: &Shell, address: SocketAddr, listener: &TcpListener, said: &[u8]) -> (Vec<u8>, IpAddr) {
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut stream, from) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            stream.write_all(&heard).unwrap();
            from.ip()
        });
        let mut client = a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(said).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        (answer, server.join().unwrap())
    })
}

/// From SYN to close, with a half close in between, by way of the relay: either end sees the other's address.
#[test]
fn a_proxied_connection_lives_from_its_first_packet_to_its_last() {
    let world = world();
    let said: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    for family in FAMILIES {
        let address = SocketAddr::from((family.pool(B.host), PORT));
        let listener = world.b.inside(|| TcpListener::bind(address).unwrap());
        let (answer, from) = exchange(&world.a, address, &listener, &said);
        assert!(answer == said, "{family:?}: {} bytes", answer.len());
        assert_eq!(from, family.pool(A.host));
        let (from, to) = world.relay.calls.lock().pop().unwrap();
        assert_eq!((from.ip(), to), (family.pool(A.host), address));
    }
    assert_eq!(world.relay.accepted.load(Ordering::Relaxed), 2);
    assert_eq!(drop_reasons(&world.node), []);
}

/// Ports come round again, whoever closes first, and none waits for what is left of an earlier connection.
#[test]
fn short_connections_follow_one_another() {
    let mut world = world();
    // Each counts twice, and for a while after its end.
    world.node.set_quota(A, 4000);
    for family in FAMILIES {
        let address = SocketAddr::from((family.pool(B.host), PORT));
        let listener = world.b.inside(|| TcpListener::bind(address).unwrap());
        for _ in 0..500 {
            assert_eq!(exchange(&world.a, address, &listener, b"word").0, b"word");
        }
    }
    assert_eq!(world.relay.accepted.load(Ordering::Relaxed), 1000);
    assert_eq!(drop_reasons(&world.node), []);
}

/// The server closes first, so that the proxy's end waits (TIME_WAIT) when the client's port comes again.
#[test]
fn a_port_that_comes_again_finds_a_new_connection() {
    let world = world();
    for family in FAMILIES {
        let address = SocketAddr::from((family.pool(B.host), PORT));
        let listener = world.b.inside(|| TcpListener::bind(address).unwrap());
        for _ in 0..5 {
            let mut client = world.a.inside(|| {
                relay::connect_from(SocketAddr::from((family.pool(A.host), 40_000)), address).unwrap()
            });
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            server.write_all(b"bye").unwrap();
            drop(server);
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).unwrap();
            assert_eq!(heard, b"bye");
        }
    }
}

/// A server of the node itself, on the same port and any address, is given nothing of it.
#[test]
fn what_is_left_of_a_connection_hands_nobody_on_the_node_a_call() {
    let world = world();
    // Of both families.
    let bystander = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    bystander.set_nonblocking(true).unwrap();
    for family in FAMILIES {
        let address = SocketAddr::from((family.pool(B.host), PORT));
        let listener = world.b.inside(|| TcpListener::bind(address).unwrap());
        let call = |patience| {
            let from = SocketAddr::from((family.pool(A.host), 40_000));
            world.a.inside(|| relay::connect_within(from, address, patience))
        };
        let client = call(PATIENCE).unwrap();
        let (server, _) = listener.accept().unwrap();
        drop(server);
        (&client).read_to_end(&mut Vec::new()).unwrap();
        drop(client);
        assert!(call(Duration::from_millis(1500)).is_err(), "{family:?}: dropped while something is left");
        assert!(bystander.accept().is_err(), "{family:?}: nobody but the proxy is called");
        assert!(drop_reasons(&world.node).contains(&DropReason::NoProxy));
    }
}

/// Neither the mark of what is for the proxy nor that of what comes from it helps a workload.
#[test]
fn a_workload_without_a_rule_for_the_proxy_never_meets_it() {
    let world = world();
    for family in FAMILIES {
        let address = SocketAddr::from((family.pool(B.host), PORT + 1));
        let listener = world.b.inside(|| TcpListener::bind(address).unwrap());
        assert_eq!(exchange(&world.a, address, &listener, b"word").0, b"word");
        for mark in [MARK_TO_PROXY, MARK_FROM_PROXY] {
            world.a.inside(|| {
                let socket = relay::plain(address).unwrap();
                setsockopt(&socket, Mark, &mark).unwrap();
                relay::connect(&socket, address).unwrap();
            });
            listener.accept().unwrap();
        }
    }
    assert_eq!(world.relay.accepted.load(Ordering::Relaxed), 0);
    assert_eq!(drop_reasons(&world.node), []);
}

/// While there is no proxy a call waits, and goes through when there is one again.
#[test]
fn a_call_waits_for_the_proxy() {
    let mut world = world();
    for family in FAMILIES {
        let address = SocketAddr::from((family.pool(B.host), PORT));
        let listener = world.b.inside(|| TcpListener::bind(address).unwrap());
        world.node.set_proxy(1, own_cgroup(), 0);
        let called = thread::scope(|scope| {
            let client =
                scope.spawn(|| world.a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).map(drop)));
            while !drop_reasons(&world.node).contains(&DropReason::NoProxy) {
                thread::park_timeout(Duration::from_millis(10));
            }
            assert!(!client.is_finished());
            world.node.set_proxy(1, own_cgroup(), 1);
            client.join().unwrap()
        });
        called.unwrap();
        listener.accept().unwrap();
    }
}

/// What is open goes on while nobody new is sent there.
#[test]
fn a_connection_outlives_that_the_proxy_listens() {
    let mut world = world();
    for family in FAMILIES {
        let address = SocketAddr::from((family.pool(B.host), PORT));
        let listener = world.b.inside(|| TcpListener::bind(address).unwrap());
        let mut client = world.a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        for listeners in [1, 0] {
            world.node.set_proxy(1, own_cgroup(), listeners);
            let mut heard = [0; 4];
            client.write_all(b"word").unwrap();
            server.read_exact(&mut heard).unwrap();
            server.write_all(&heard).unwrap();
            client.read_exact(&mut heard).unwrap();
        }
        world.node.set_proxy(1, own_cgroup(), 1);
    }
    assert_eq!(drop_reasons(&world.node), []);
}

/// A node with one workload and somebody beyond, who see each other's addresses, and a relay.
fn gateway() -> (Node, Shell, Shell, relay::Relay) {
    let mut node = gate();
    let (a, mut beyond) = workload_and_peer(&mut node);
    relay::prepare(&[A]);
    for family in FAMILIES {
        let flag = if family == Family::V4 { "-4" } else { "-6" };
        let (own, pod) = (family.outside(), family.pool(A.host));
        assert!(beyond.run(&format!("ip {flag} route add {pod} via {own} dev wire")));
    }
    for ruleset in [A.ingress, A.egress] {
        node.rule(ruleset, 0, Ports::One(TCP, PORT), RuleVerdict::Proxy);
    }
    let relay = relay::Relay::new();
    relay::ready(&mut node, &relay);
    (node, a, beyond, relay)
}

/// By the rule of the workload's egress: the proxy calls in its name, and the node stands for both.
#[test]
fn calls_out_of_the_node_go_by_way_of_the_proxy() {
    let (node, a, beyond, relay) = gateway();
    let said: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    for family in FAMILIES {
        let address = SocketAddr::from((family.peer(), PORT));
        let listener = beyond.inside(|| TcpListener::bind(address).unwrap());
        let (answer, from) = exchange(&a, address, &listener, &said);
        assert!(answer == said, "{family:?}: {} bytes", answer.len());
        assert_eq!(from, family.outside());
    }
    assert_eq!(relay.accepted.load(Ordering::Relaxed), 2);
    assert_eq!(drop_reasons(&node), []);
}

/// By the rule of the workload's ingress, for a caller beyond the node, whose address the workload sees.
#[test]
fn calls_into_the_node_go_by_way_of_the_proxy() {
    let (node, a, beyond, relay) = gateway();
    let said: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    for family in FAMILIES {
        let address = SocketAddr::from((family.pool(A.host), PORT));
        let listener = a.inside(|| TcpListener::bind(address).unwrap());
        let (answer, from) = exchange(&beyond, address, &listener, &said);
        assert!(answer == said, "{family:?}: {} bytes", answer.len());
        assert_eq!(from, family.peer());
    }
    assert_eq!(relay.accepted.load(Ordering::Relaxed), 2);
    assert_eq!(drop_reasons(&node), []);
}

/// What the proxy may not open it hears of at once, wherever it would go.
#[test]
fn a_call_of_the_proxys_that_policy_refuses_is_refused_at_once() {
    for family in FAMILIES {
        let (mut node, a, _beyond, relay) = gateway();
        let address = SocketAddr::from((family.peer(), PORT));
        let hesitation = relay.hesitation.lock();
        let client = a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        node.rule(A.egress, 0, Ports::One(TCP, PORT), RuleVerdict::Deny);
        node.set_proxy(3, own_cgroup(), 1);
        drop(hesitation);
        while relay.failures.lock().is_empty() {
            thread::park_timeout(Duration::from_millis(10));
        }
        assert_eq!(relay.failures.lock().pop(), Some(ErrorKind::ConnectionRefused), "{family:?}");
        assert!(drop_reasons(&node).contains(&DropReason::PolicyDeny));
        drop(client);
    }
}

/// Nor whom nobody has called, on this node and beyond.
#[test]
fn a_call_of_the_proxys_for_which_nobody_asked_is_refused_at_once() {
    let (node, a, _beyond, relay) = gateway();
    let world = world();
    for family in FAMILIES {
        for (node, shell, relay, called) in
            [(&node, &a, &relay, family.peer()), (&world.node, &world.a, &world.relay, family.pool(B.host))]
        {
            relay.astray.store(1, Ordering::Relaxed);
            let address = SocketAddr::from((called, PORT));
            let mut client = shell.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            assert_eq!(relay.failures.lock().pop(), Some(std::io::ErrorKind::ConnectionRefused), "{called}");
            assert_eq!(drop_reasons(node), [DropReason::ProxyForged]);
        }
    }
}

/// Frag Needed and Packet Too Big about what the proxy sends reach its socket.
#[test]
fn a_smaller_mtu_on_the_proxys_way_is_discovered() {
    let (node, a, mut router, relay) = gateway();
    let mut server = Shell::bare();
    for family in FAMILIES {
        let far = behind(&mut router, &mut server, family, 1300);
        let address = SocketAddr::new(far, PORT);
        let listener = server.inside(|| TcpListener::bind(address).unwrap());
        let said: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
        let (answer, _) = exchange(&a, address, &listener, &said);
        assert!(answer == said, "{family:?}: {} bytes", answer.len());
        let heard = Command::new("ip").args(["route", "get", &far.to_string()]).output().unwrap();
        assert!(String::from_utf8_lossy(&heard.stdout).contains("mtu 1300"), "{family:?}: {heard:?}");
    }
    assert_eq!(relay.accepted.load(Ordering::Relaxed), 2);
    assert_eq!(drop_reasons(&node), []);
}

/// The proxy need not wait to learn that nobody is there.
#[test]
fn a_router_that_knows_no_way_is_heard() {
    let (node, a, mut router, relay) = gateway();
    assert!(router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"));
    for (family, nowhere) in FAMILIES.into_iter().zip(["203.0.113.9", "2001:db8:9::9"]) {
        let peer = family.peer().to_string();
        ip(&["route", "add", nowhere, "via", &peer, "dev", "nic", "onlink"]);
        assert!(router.run(&format!("ip route add unreachable {nowhere}")));
        let address = SocketAddr::new(nowhere.parse().unwrap(), PORT);
        let client = a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        while relay.failures.lock().is_empty() {
            thread::park_timeout(Duration::from_millis(10));
        }
        drop(client);
        let failure = relay.failures.lock().pop();
        // Of IPv6, the code is that of no route.
        let unreachable = [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
        assert!(failure.is_some_and(|kind| unreachable.contains(&kind)), "{family:?} {failure:?}");
    }
    assert_eq!(drop_reasons(&node), []);
}

/// Whom it calls could not tell the two apart.
#[test]
fn a_direct_call_from_a_port_that_the_proxy_uses_in_its_name_is_refused() {
    for family in FAMILIES {
        let mut world = world();
        let address = SocketAddr::from((family.pool(B.host), PORT));
        let listener = world.b.inside(|| TcpListener::bind(address).unwrap());
        let client = world.a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        let (server, proxys) = listener.accept().unwrap();
        world.node.rule(B.ingress, A.identity, Ports::One(TCP, PORT), RuleVerdict::Allow);
        world.node.set_proxy(3, own_cgroup(), 1);
        let direct = || world.a.inside(|| relay::connect_from(proxys, address).map(drop));
        let called = direct();
        assert_eq!(called.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "{family:?}");
        assert_eq!(drop_reasons(&world.node), [DropReason::ProxyPorts]);
        // Another one is free.
        let other = world.a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        assert_eq!(listener.accept().unwrap().1, other.local_addr().unwrap());
        drop((client, server, other));
    }
}
