//! The proxy's HTTP on a plain listener, for conformance tools: everything may pass to an HTTP/2 server in this process.
//!
//! `allow_all` prints the port of 127.0.0.1 at which it listens, and serves until it is ended.

#![allow(clippy::unwrap_used, reason = "a tool for tests: it ends with what is wrong")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use l7_proxy::index::Compiler;
use l7_proxy::runtime::{
    BOUNDS, Called, ConnectError, FlowLog, Found, Identities, Published, Snapshot, Tenants, Worker,
    serve_admitted,
};
use l7_proxy::stage::admit::{Budgets, Tenant};
use mesh::identity::Identity;
use mesh::l7::{HttpRule, L7Access, L7Endpoint, L7Ports, L7Rules};
use mesh::workload::EndpointId;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local, unconstrained};

/// Everybody is the same.
struct Anybody;

impl Identities for Anybody {
    fn generation(&self) -> u64 {
        0
    }

    fn find(&self, _: IpAddr) -> Found {
        Found { identity: Identity::new(256), instance: Some(1) }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    LocalSet::new().run_until(run()).await;
}

async fn run() {
    let origin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (origin_at, at) = (origin.local_addr().unwrap(), listener.local_addr().unwrap());
    println!("{}", at.port());
    spawn_local(async move {
        loop {
            let (stream, _) = origin.accept().await.unwrap();
            spawn_local(answer(stream));
        }
    });
    let worker = Rc::new(worker());
    // As the workers of the process do.
    let tenants = Tenants::default();
    let spawner = tenants.spawner();
    tenants.spawner().spawn(Tenant::Worker, async move {
        loop {
            let (stream, client) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (worker, called) = (Rc::clone(&worker), Called { client, server: at });
            let Ok(place) = worker.admit(called) else { continue };
            spawner.spawn(place.tenant, async move {
                serve_admitted(stream, called, place, &worker, async || call(origin_at).await).await;
                // Nobody asks for them.
                let _ = worker.log.take();
            });
        }
    });
    match unconstrained(tenants).await {}
}

async fn call(origin: SocketAddr) -> Result<(TcpStream, Option<SocketAddr>), ConnectError> {
    let stream = TcpStream::connect(origin).await.map_err(|_| ConnectError::Refused)?;
    stream.set_nodelay(true).map_err(|_| ConnectError::Refused)?;
    Ok((stream, None))
}

/// Rules that let every HTTP request through to every port.
fn worker() -> Worker<Anybody> {
    let access = vec![L7Access { peers: None, http: Some(vec![HttpRule::default()].into()) }];
    let rules = L7Rules { ports: vec![L7Ports { first: 1, last: u16::MAX, access, tls: Vec::new() }] };
    let endpoint = L7Endpoint {
        id: EndpointId::new(1).unwrap(),
        instance: 1,
        workload: "default/server".parse().unwrap(),
        ipv4: Ipv4Addr::LOCALHOST,
        ipv6: Ipv6Addr::LOCALHOST,
        identity: Identity::new(256).unwrap(),
        ingress: Some(Arc::new(rules)),
        egress: None,
        audit: false,
    };
    let mut snapshot = Snapshot::default();
    snapshot.is_synced = true;
    snapshot.insert(Compiler::default().endpoint(&endpoint).unwrap());
    let published = Arc::new(Published::default());
    published.set(snapshot);
    let log = Arc::new(FlowLog::default());
    let budgets = Arc::new(Budgets::new(BOUNDS));
    Worker { identities: Anybody, published, log, connections: Arc::default(), budgets }
}

/// Answers every stream with a few bytes, and throws away what it is sent.
async fn answer(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        spawn_local(async move {
            let is_head = request.method() == http::Method::HEAD;
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
            }
            let answered = respond.send_response(http::Response::new(()), is_head);
            if let (Ok(mut to), false) = (answered, is_head) {
                let _ = to.send_data(Bytes::from_static(&[b'x'; 64]), true);
            }
        });
    }
}
