//! Real sockets, with a relay in the proxy's place.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::atomic::Ordering,
    thread,
};

use super::super::{
    live::{PATIENCE, Shell, drop_reasons},
    node::Node,
    world::{A, B, FAMILIES},
};
use super::{PORT, relay};

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
    relay::prepare([A, B]);
    node.attach(A);
    node.attach(B);
    let relay = relay::Relay::new();
    relay::ready(&mut node, &relay);
    World { node, relay, a, b }
}

/// What a server said to a client, after it has heard all of what the client said.
fn exchange(world: &World, address: SocketAddr, listener: &TcpListener, said: &[u8]) -> (Vec<u8>, IpAddr) {
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut stream, from) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            stream.write_all(&heard).unwrap();
            from.ip()
        });
        let mut client = world.a.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
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
        let (answer, from) = exchange(&world, address, &listener, &said);
        assert!(answer == said, "{family:?}: {} bytes", answer.len());
        assert_eq!(from, family.pool(A.host));
        let (from, to) = world.relay.calls.lock().unwrap().pop().unwrap();
        assert_eq!((from.ip(), to), (family.pool(A.host), address));
    }
    assert_eq!(world.relay.accepted.load(Ordering::Relaxed), 2);
    assert_eq!(drop_reasons(&world.node), []);
}
