//! The proxy's HTTP on a plain listener, for conformance tools and benchmarks.
//!
//! `allow_all` lets everything pass to an HTTP/2 server in this process; `allow_all ADDRESS SERVER` lets `GET` and `POST` of
//! `/bench/…` pass to that server, and writes what it sees as it would tell the agent, to nobody. It prints the port at
//! which it listens, and serves until it is ended.

#![allow(clippy::unwrap_used, reason = "a tool for tests: it ends with what is wrong")]

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use l7_proxy::index::Compiler;
use l7_proxy::runtime::{
    BOUNDS, Called, ConnectError, FlowLog, Found, Identities, Published, Snapshot, Tenants, Worker,
    serve_admitted,
};
use l7_proxy::stage::admit::{Budgets, Tenant};
use mesh::identity::Identity;
use mesh::l7::{Expression, HttpRule, L7Access, L7Endpoint, L7Ports, L7Rules};
use mesh::workload::EndpointId;
use node_api::proxy::FromProxy;
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

/// How often what was seen is told, as by the product.
const TICK: Duration = Duration::from_millis(100);

async fn run() {
    let arguments: Vec<SocketAddr> = std::env::args().skip(1).map(|word| word.parse().unwrap()).collect();
    let (at, origin, rule) = match arguments.as_slice() {
        [at, server] => (*at, *server, bench()),
        _ => (SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), serve_here().await, HttpRule::default()),
    };
    let listener = TcpListener::bind(at).await.unwrap();
    let at = listener.local_addr().unwrap();
    println!("{}", at.port());
    let worker = Rc::new(worker(rule));
    spawn_local(tell(Arc::clone(&worker.log)));
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
                serve_admitted(stream, called, place, &worker, async || call(origin).await).await;
            });
        }
    });
    match unconstrained(tenants).await {}
}

/// An HTTP/2 server in this process.
async fn serve_here() -> SocketAddr {
    let origin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = origin.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (stream, _) = origin.accept().await.unwrap();
            spawn_local(answer(stream));
        }
    });
    at
}

fn bench() -> HttpRule {
    let expression = |text: &str| Some(Expression(text.to_owned()));
    HttpRule { method: expression("GET|POST"), path: expression("/bench/.*"), ..HttpRule::default() }
}

/// Writes what was seen.
async fn tell(log: Arc<FlowLog>) {
    let mut nobody = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let mut write = |message: FromProxy| nobody.write_all(&postcard::to_stdvec(&message).unwrap()).unwrap();
    loop {
        tokio::time::sleep(TICK).await;
        let flows: Vec<_> = log.take().flows().collect();
        if !flows.is_empty() {
            write(FromProxy::Flows(flows));
        }
        let report = log.take_exchanges();
        if !report.counts.is_empty() {
            write(FromProxy::Report(Box::new(report)));
        }
    }
}

async fn call(origin: SocketAddr) -> Result<(TcpStream, Option<SocketAddr>), ConnectError> {
    let stream = TcpStream::connect(origin).await.map_err(|_| ConnectError::Refused)?;
    stream.set_nodelay(true).map_err(|_| ConnectError::Refused)?;
    Ok((stream, None))
}

/// What the rule lets through, to every port.
fn worker(rule: HttpRule) -> Worker<Anybody> {
    let peers = Some([Identity::new(256).unwrap()].into());
    let access = vec![L7Access { peers, http: Some(vec![rule].into()) }];
    let rules = L7Rules {
        ports: vec![L7Ports {
            first: 1,
            last: u16::MAX,
            access: access.into(),
            tls: Arc::default(),
            inspected: Arc::default(),
        }],
    };
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
        secrets: Vec::new(),
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
