//! Which sockets end when backends go. Needs root: it makes network namespaces and ends sockets in them.

#![allow(clippy::unwrap_used, reason = "test code")]

mod node;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use endpoint::{Departed, Endpoints, Host, Prepared};
use linux::namespace::NetworkNamespace;
use linux::sock_diag::{Diagnosis, Protocol};
use mesh::auth::Refusal;
use mesh::service::Frontend;
use node::{Node, soon, start};
use node_api::auth::EndedPair;

/// ECONNABORTED.
const ENDED: ErrorKind = ErrorKind::ConnectionAborted;

fn inside<T: Send>(of: &Prepared, work: impl FnOnce() -> T + Send) -> T {
    NetworkNamespace::open(&of.network_namespace).unwrap().inside(work).unwrap()
}

fn frontend(address: IpAddr, protocol: u8) -> Frontend {
    Frontend { address, port: 53, protocol }
}

fn client(to: SocketAddr) -> UdpSocket {
    let unspecified = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = UdpSocket::bind(unspecified).unwrap();
    client.connect(to).unwrap();
    client.set_nonblocking(true).unwrap();
    client
}

fn state(client: &UdpSocket) -> ErrorKind {
    client.recv(&mut [0]).unwrap_err().kind()
}

/// What stands in for the kernel's table: the listed sockets by local port, each with what it called.
fn called_by(ports: &[(u16, Frontend)]) -> BTreeMap<u64, Frontend> {
    let mut listed = Vec::new();
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        listed.extend(Diagnosis::open().unwrap().connected(protocol).unwrap());
    }
    let called = ports.iter().map(|(port, frontend)| {
        let socket = listed.iter().find(|socket| socket.local.port() == *port).unwrap();
        (socket.cookie, *frontend)
    });
    called.collect()
}

async fn end(endpoints: &Endpoints, departed: Departed, called: BTreeMap<u64, Frontend>) -> usize {
    let pass = endpoints.end_sockets(departed, move |cookie, _, _| called.get(&cookie).copied());
    soon(pass).await.unwrap().unwrap()
}

#[test]
fn udp_clients_of_a_backend_that_left_end_in_workloads_and_on_the_host_and_no_others() {
    Node::new().run(|config| async move {
        Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config).await.unwrap().endpoints;
        let (gone, one, two) =
            (start(&endpoints, "gone").await, start(&endpoints, "one").await, start(&endpoints, "two").await);
        for (left, stays) in [
            (IpAddr::from(gone.endpoint.ipv4), IpAddr::from(two.endpoint.ipv4)),
            (gone.endpoint.ipv6.into(), two.endpoint.ipv6.into()),
        ] {
            let (left, stays) = (SocketAddr::new(left, 53), SocketAddr::new(stays, 53));
            let (service, other) = (frontend(left.ip(), 17), frontend(stays.ip(), 17));
            let make = || {
                let clients = [client(left), client(left), client(stays), client(left)];
                let port = |of: usize| clients[of].local_addr().unwrap().port();
                // The fourth called the backend itself.
                let called = called_by(&[(port(0), service), (port(1), other), (port(2), service)]);
                (clients, called)
            };
            let (host, mut called) = make();
            let (workload, inner) = inside(&one, make);
            called.extend(inner);

            let departed = Departed { backends: [(service, left)].into(), ..Departed::default() };
            assert_eq!(end(&endpoints, departed, called).await, 2);
            for clients in [&host, &workload] {
                let states = clients.each_ref().map(state);
                assert_eq!(
                    states,
                    [ENDED, ErrorKind::WouldBlock, ErrorKind::WouldBlock, ErrorKind::WouldBlock]
                );
            }
        }
    });
}

#[test]
fn tcp_clients_end_only_with_the_endpoint_itself() {
    Node::new().run(|config| async move {
        Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config).await.unwrap().endpoints;
        let (server, from) = (start(&endpoints, "server").await, start(&endpoints, "from").await);
        for address in [IpAddr::from(server.endpoint.ipv4), server.endpoint.ipv6.into()] {
            let listener = inside(&server, || TcpListener::bind((address, 80)).unwrap());
            let backend = listener.local_addr().unwrap();
            let service = frontend(address, 6);
            let (mut client, called) = inside(&from, || {
                let client = TcpStream::connect(backend).unwrap();
                let called = called_by(&[(client.local_addr().unwrap().port(), service)]);
                (client, called)
            });
            let (mut accepted, _) = listener.accept().unwrap();

            let left = Departed { backends: [(service, backend)].into(), ..Departed::default() };
            assert_eq!(end(&endpoints, left, called.clone()).await, 0, "it left the service and lives");
            accepted.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();

            let gone = || Departed { addresses: [address].into(), ..Departed::default() };
            assert_eq!(end(&endpoints, gone(), BTreeMap::new()).await, 0, "it called the endpoint itself");
            assert_eq!(end(&endpoints, gone(), called).await, 1);
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ENDED);
        }
    });
}

#[test]
fn a_workload_that_ends_meanwhile_is_no_error() {
    Node::new().run(|config| async move {
        Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config).await.unwrap().endpoints;
        let prepared = start(&endpoints, "brief").await;
        NetworkNamespace::delete(&prepared.network_namespace).unwrap();
        let departed = Departed { addresses: ["10.42.0.9".parse().unwrap()].into(), ..Departed::default() };
        assert_eq!(end(&endpoints, departed, BTreeMap::new()).await, 0);
    });
}

#[test]
fn sockets_whose_mark_has_gone_end_and_those_of_other_marks_or_none_stay() {
    Node::new().run(|config| async move {
        Host::ensure(&config).await.unwrap();
        let endpoints = Endpoints::open(config).await.unwrap().endpoints;
        let (peer, one, two) =
            (start(&endpoints, "peer").await, start(&endpoints, "one").await, start(&endpoints, "two").await);
        for remote in [IpAddr::from(peer.endpoint.ipv4), peer.endpoint.ipv6.into()] {
            let to = SocketAddr::new(remote, 53);
            let server = inside(&peer, || TcpListener::bind(to).unwrap());
            let ours = inside(&one, || [TcpStream::connect(to).unwrap(), TcpStream::connect(to).unwrap()]);
            let datagrams = inside(&one, || [client(to), client(to)]);
            let theirs = inside(&two, || TcpStream::connect(to).unwrap());
            let port = |stream: &TcpStream| stream.local_addr().unwrap().port();
            let epochs: BTreeMap<u16, u64> = [
                (port(&ours[0]), 7),
                (port(&ours[1]), 8),
                (port(&theirs), 7),
                (datagrams[0].local_addr().unwrap().port(), 7),
            ]
            .into();
            let ended = EndedPair {
                instance: one.endpoint.instance,
                remote: vec![remote],
                epoch: 7,
                why: Refusal::Withdrawn,
            };
            let pass =
                endpoints.end_unproven(&[ended], move |socket| epochs.get(&socket.local.port()).copied());
            assert_eq!(soon(pass).await.unwrap().unwrap(), 2);
            let read = |mut stream: &TcpStream| {
                stream.set_nonblocking(true).unwrap();
                stream.read(&mut [0]).unwrap_err().kind()
            };
            assert_eq!(
                [&ours[0], &ours[1], &theirs].map(read),
                [ENDED, ErrorKind::WouldBlock, ErrorKind::WouldBlock]
            );
            assert_eq!([state(&datagrams[0]), state(&datagrams[1])], [ENDED, ErrorKind::WouldBlock]);
            // One by one, whoever they talk with.
            let over = port(&theirs);
            let pass = endpoints.end_each(move |socket| socket.local.port() == over);
            assert_eq!(soon(pass).await.unwrap().unwrap(), 1);
            assert_eq!([&ours[1], &theirs].map(read), [ErrorKind::WouldBlock, ENDED]);
            drop(server);
        }
        for endpoint in endpoints.list() {
            endpoints.remove(endpoint.id).await.unwrap();
        }
    });
}
