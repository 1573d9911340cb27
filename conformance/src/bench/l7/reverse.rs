//! Proxies on a plain listener before a server, all in one network namespace.
//!
//! The product has no such listener yet. So ours is the example `allow_all` of the proxy's crate: the same runtime, codec
//! and stages by one rule for one path, its flows written as they would be to the agent; without the kernel's maps.

use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;

use super::load::{Order, Port};
use super::peers::{Before, Peer};
use super::process::{Process, on};
use super::transparent::PORTS;
use super::{Driver, OTHERS, PROXY};
use crate::lab::{Namespace, Session, binary};

const SINK: u16 = 19_100;
/// Where they listen, in the order in which they are started.
const FIRST: u16 = 19_000;

/// A server, a client, and proxies between them.
pub(super) struct Reverse {
    proxies: Vec<(Peer, Result<Process, String>)>,
    /// Ours, for each length of a body.
    _own: [Process; 2],
    /// The client.
    pub(super) driver: Driver,
    _server: Session,
    _files: TempDir,
    _namespace: Namespace,
}

/// Of those that listen before the server of this length.
fn listens(place: usize, body: usize) -> u16 {
    FIRST + place as u16 * 2 + u16::from(body > 0)
}

impl Reverse {
    /// With these peers, over HTTP/1.1.
    pub(super) fn new(peers: &[Peer]) -> Self {
        let namespace = Namespace::new(format!("fmlab{}l7", std::process::id()));
        let files = tempfile::tempdir().expect("a temporary directory");
        let ports: Vec<String> =
            PORTS[..2].iter().map(Port::to_string).chain([format!("sink:{SINK}")]).collect();
        let server =
            on(OTHERS, || Session::start(namespace.command(binary("l7load")).arg("serve").args(&ports)));
        assert_eq!(server.line(), "serving");
        let own = [0, 1024].map(|body| {
            let at = |port| SocketAddr::from(([127, 0, 0, 1], port)).to_string();
            let mut command = namespace.command(binary("examples/allow_all"));
            command.args([at(listens(0, body)), at(before(body))]);
            let mut process = Process::start(PROXY, &mut command);
            process.listener(listens(0, body)).expect("it listens");
            process
        });
        let mut proxies = Vec::new();
        for (place, peer) in (1..).zip(peers) {
            for body in [0, 1024] {
                let port = listens(place, body);
                let within = |program: &Path| namespace.command(program);
                let to = Before::Server(before(body));
                let started = peer.start(within, files.path(), port, &to, ("127.0.0.1", SINK));
                let started = started.and_then(|mut process| process.listener(port).map(|_| process));
                proxies.push((*peer, started));
            }
        }
        let driver = Driver::start(&mut namespace.command(binary("l7load")));
        Self { proxies, _own: own, driver, _server: server, _files: files, _namespace: namespace }
    }

    /// The same order by way of ours, or of another.
    pub(super) fn by_way_of(&self, peer: Option<Peer>, order: &Order) -> Order {
        let place = peer.and_then(|peer| self.proxies.iter().position(|(name, _)| *name == peer));
        let place = place.map_or(0, |position| position / 2 + 1);
        Order { to: SocketAddr::from(([127, 0, 0, 1], listens(place, order.body))), ..order.clone() }
    }

    /// Why a proxy cannot be compared with.
    pub(super) fn missing(&self, peer: Peer) -> Option<String> {
        let of = |(name, started): &(Peer, Result<Process, String>)| {
            (*name == peer).then(|| started.as_ref().err().cloned()).flatten()
        };
        self.proxies.iter().find_map(of)
    }
}

fn before(body: usize) -> u16 {
    super::transparent::port_of(super::load::Protocol::H1, body)
}
