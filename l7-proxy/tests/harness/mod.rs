//! The whole of a connection in memory: a client, the proxy's session, a server; no sockets, no rights, paused time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows only functions marked as tests to be tests"
)]
#![allow(dead_code, unreachable_pub, reason = "each test binary has it as a module and uses a part")]

pub mod http2;
pub mod random;
pub mod wire;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use l7_proxy::index::Compiler;
use l7_proxy::runtime::{
    BOUNDS, Called, ConnectError, FlowLog, Found, Identities, Published, Snapshot, Worker, serve,
};
use l7_proxy::stage::admit::{Amounts, Budgets};
use mesh::identity::Identity;
use mesh::l7::{
    Expression, HttpRule, L7Access, L7Endpoint, L7Flow, L7Inspected, L7Ports, L7Rules, L7Tls, TlsSecret,
};
use mesh::workload::EndpointId;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use wire::{Cut, wire};

/// The client: identity 300, not of this node.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The server: endpoint 1 of this node, identity 256.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// Identities by address, which tests set.
#[derive(Default)]
pub struct Table {
    pub generation: Cell<u64>,
    pub found: RefCell<BTreeMap<IpAddr, Found>>,
}

/// The table as the worker has it.
pub struct Known(Rc<Table>);

impl Identities for Known {
    fn generation(&self) -> u64 {
        self.0.generation.get()
    }

    fn find(&self, address: IpAddr) -> Found {
        self.0.found.borrow().get(&address).copied().unwrap_or_default()
    }
}

/// A proxy with rules for one endpoint.
pub struct Bench {
    pub published: Arc<Published>,
    pub log: Arc<FlowLog>,
    pub table: Rc<Table>,
    pub worker: Rc<Worker<Known>>,
    compiler: Compiler,
    secrets: Vec<TlsSecret>,
    /// What a connection to the server comes to; none: it does.
    pub refuses: Rc<Cell<Option<ConnectError>>>,
    /// How long it takes to reach the server.
    pub takes: Rc<Cell<Duration>>,
    /// How connections have ended, in the order they did.
    pub ended: Rc<RefCell<Vec<Cut>>>,
}

pub fn expression(text: &str) -> Option<Expression> {
    Some(Expression(text.to_owned()))
}

/// A rule of a method and a path.
pub fn rule(method: &str, path: &str) -> HttpRule {
    let part = |text: &str| (!text.is_empty()).then(|| Expression(text.to_owned()));
    HttpRule { method: part(method), path: part(path), ..HttpRule::default() }
}

pub fn anybody(rules: Vec<HttpRule>) -> Vec<L7Access> {
    vec![L7Access { peers: None, http: Some(rules.into()) }]
}

impl Bench {
    /// Anybody may do what the rules say, at port 80.
    pub fn new(rules: Vec<HttpRule>) -> Self {
        Self::with(anybody(rules), false)
    }

    pub fn with(access: Vec<L7Access>, audit: bool) -> Self {
        Self::bounded(access, audit, BOUNDS)
    }

    /// The same on a worker that has so much.
    pub fn bounded(access: Vec<L7Access>, audit: bool, bounds: Amounts) -> Self {
        let (published, log) = (Arc::new(Published::default()), Arc::new(FlowLog::default()));
        let table = Rc::new(Table::default());
        let worker = Worker {
            identities: Known(Rc::clone(&table)),
            published: Arc::clone(&published),
            log: Arc::clone(&log),
            connections: Arc::default(),
            budgets: Arc::new(Budgets::new(bounds)),
        };
        let mut bench = Self {
            published,
            log,
            table,
            worker: Rc::new(worker),
            compiler: Compiler::default(),
            secrets: Vec::new(),
            refuses: Rc::default(),
            takes: Rc::default(),
            ended: Rc::default(),
        };
        bench.identify(CLIENT, 300, None);
        bench.identify(SERVER, 256, Some(7));
        bench.enforce(access, audit);
        bench
    }

    pub fn identify(&self, address: Ipv4Addr, identity: u32, instance: Option<u64>) {
        let found = Found { identity: Identity::new(identity), instance };
        self.table.found.borrow_mut().insert(address.into(), found);
        self.table.generation.set(self.table.generation.get() + 1);
    }

    /// Puts other rules in force.
    pub fn enforce(&mut self, access: Vec<L7Access>, audit: bool) {
        self.enforce_at(80, access, audit);
    }

    /// The same for another port than the one that is called, 80.
    pub fn enforce_at(&mut self, port: u16, access: Vec<L7Access>, audit: bool) {
        self.enforce_all(
            L7Ports {
                first: port,
                last: port,
                access: access.into(),
                tls: Arc::default(),
                inspected: Arc::default(),
            },
            audit,
        );
    }

    /// The same beside TLS that some may open, at the port that is called.
    pub fn enforce_tls(&mut self, access: Vec<L7Access>, tls: Vec<L7Tls>, audit: bool) {
        self.enforce_all(
            L7Ports {
                first: 80,
                last: 80,
                access: access.into(),
                tls: tls.into(),
                inspected: Arc::default(),
            },
            audit,
        );
    }

    /// TLS that the proxy ends or begins, beside what anybody may request without, made of these Secrets.
    pub fn enforce_inspected(
        &mut self,
        access: Vec<L7Access>,
        inspected: Vec<L7Inspected>,
        secrets: Vec<TlsSecret>,
        audit: bool,
    ) {
        self.secrets = secrets;
        let (access, inspected) = (access.into(), inspected.into());
        self.enforce_all(L7Ports { first: 80, last: 80, access, tls: Arc::default(), inspected }, audit);
    }

    /// The same beside TLS that passes untouched.
    pub fn enforce_ports(
        &mut self,
        tls: Arc<[L7Tls]>,
        inspected: Arc<[L7Inspected]>,
        secrets: Vec<TlsSecret>,
    ) {
        self.secrets = secrets;
        self.enforce_all(L7Ports { first: 80, last: 80, access: Arc::default(), tls, inspected }, false);
    }

    fn enforce_all(&mut self, ports: L7Ports, audit: bool) {
        let rules = L7Rules { ports: vec![ports] };
        let endpoint = L7Endpoint {
            id: EndpointId::new(1).unwrap(),
            instance: 7,
            workload: "default/server".parse().unwrap(),
            ipv4: SERVER,
            ipv6: Ipv6Addr::LOCALHOST,
            identity: Identity::new(256).unwrap(),
            ingress: Some(Arc::new(rules)),
            egress: None,
            audit,
            secrets: self.secrets.clone(),
        };
        let mut snapshot = Snapshot::default();
        snapshot.is_synced = true;
        snapshot.insert(self.compiler.endpoint(&endpoint).unwrap());
        self.published.set(snapshot);
    }

    /// Puts rules of the client in force, besides those of the server: the client is endpoint 2 of this node from now on.
    pub fn enforce_egress(&mut self, ports: L7Ports) {
        self.identify(CLIENT, 300, Some(8));
        let endpoint = L7Endpoint {
            id: EndpointId::new(2).unwrap(),
            instance: 8,
            workload: "default/client".parse().unwrap(),
            ipv4: CLIENT,
            ipv6: Ipv6Addr::UNSPECIFIED,
            identity: Identity::new(300).unwrap(),
            ingress: None,
            egress: Some(Arc::new(L7Rules { ports: vec![ports] })),
            audit: false,
            secrets: self.secrets.clone(),
        };
        let mut snapshot = Snapshot::clone(&self.published.snapshot());
        snapshot.insert(self.compiler.endpoint(&endpoint).unwrap());
        self.published.set(snapshot);
    }

    /// A connection of the client; must be called within a [`LocalSet`].
    pub fn open(&self) -> (DuplexStream, Servers) {
        self.open_from(CLIENT)
    }

    /// The same of a client with another address.
    pub fn open_from(&self, client: Ipv4Addr) -> (DuplexStream, Servers) {
        let called = Called {
            client: SocketAddr::new(client.into(), 40000),
            server: SocketAddr::new(SERVER.into(), 80),
        };
        let (client, down, is_client_cut) = wire();
        let (connected, servers) = mpsc::unbounded_channel();
        let (worker, refuses) = (Rc::clone(&self.worker), Rc::clone(&self.refuses));
        let (takes, ended) = (Rc::clone(&self.takes), Rc::clone(&self.ended));
        tokio::task::spawn_local(async move {
            let is_server_cut = Cell::new(None);
            let connect = async || {
                if let Some(error) = refuses.get() {
                    return Err(error);
                }
                if !takes.get().is_zero() {
                    tokio::time::sleep(takes.get()).await;
                }
                let (server, up, is_cut) = wire();
                is_server_cut.set(Some(is_cut));
                let _ = connected.send(server);
                Ok((up, None))
            };
            serve(down, called, &worker, connect).await;
            let is_server_cut = is_server_cut.take().is_some_and(|is_cut| is_cut.get());
            ended.borrow_mut().push(Cut::of(is_client_cut.get(), is_server_cut));
        });
        (client, Servers(servers))
    }

    /// A connection of the client whose server has got what the client has said: both ends.
    #[track_caller]
    pub fn asked<'a>(&'a self, said: &'a str) -> impl Future<Output = (DuplexStream, DuplexStream)> + 'a {
        let (mut client, mut servers) = self.open();
        let place = std::panic::Location::caller();
        async move {
            send(&mut client, said).await;
            let mut server = servers.next().await;
            expect_at(&mut server, said, place).await;
            (client, server)
        }
    }

    /// What was recorded since the last time: `request DROPPED GET http://h/ (why)`, `response FORWARDED 403 GET …`.
    pub fn flows(&self) -> Vec<String> {
        let log = self.log.take();
        let flows = log.flows().map(|flow| {
            let why = flow.reason.map_or(String::new(), |why| format!(" ({why})"));
            let verdict = format!("{:?}", flow.verdict).to_uppercase();
            let http = match flow.l7 {
                L7Flow::Http(http) => http,
                L7Flow::Tls(tls) => {
                    let name = tls.server_name.map_or(String::new(), |name| format!(" {name}"));
                    return format!("tls {verdict}{name}{why}");
                }
            };
            let kind = serde_name(&format!("{:?}", http.kind));
            let code = http.code.map_or(String::new(), |code| format!(" {code}"));
            let what =
                if http.method.is_empty() { String::new() } else { format!(" {} {}", http.method, http.url) };
            format!("{kind} {verdict}{code}{what}{why}")
        });
        flows.collect()
    }
}

fn serde_name(name: &str) -> String {
    name.to_lowercase()
}

/// The proxy's connections to the server, as they are made.
pub struct Servers(mpsc::UnboundedReceiver<DuplexStream>);

impl Servers {
    pub async fn next(&mut self) -> DuplexStream {
        self.0.recv().await.expect("a connection to the server")
    }

    pub async fn try_next(&mut self) -> Option<DuplexStream> {
        self.0.recv().await
    }

    /// None has been made that was not taken, and none will.
    pub async fn none(&mut self) {
        assert!(self.0.recv().await.is_none(), "a connection to the server");
    }
}

/// Runs a test's connections on this thread.
pub async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

pub async fn send(stream: &mut DuplexStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// The next bytes are these.
#[track_caller]
pub fn expect<'a>(stream: &'a mut DuplexStream, text: &'a str) -> impl Future<Output = ()> + 'a {
    expect_at(stream, text, std::panic::Location::caller())
}

async fn expect_at(stream: &mut DuplexStream, text: &str, place: &std::panic::Location<'_>) {
    let mut found = vec![0; text.len()];
    let mut at = 0;
    while at < found.len() {
        match stream.read(&mut found[at..]).await.unwrap() {
            0 => break,
            count => at += count,
        }
    }
    let found = String::from_utf8_lossy(&found[..at]);
    assert_eq!(found, text, "{place}");
}

/// The rest until the end.
pub async fn rest(stream: &mut DuplexStream) -> String {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).into_owned()
}

/// What came of a client's bytes.
#[derive(Debug)]
pub struct Outcome {
    /// All that the server was sent, as text and as it came.
    pub received: String,
    pub raw: Vec<u8>,
    /// All that the client was sent.
    pub answer: String,
    pub flows: Vec<String>,
}

impl Outcome {
    /// Statuses of the answers, in order.
    pub fn codes(&self) -> Vec<u16> {
        let lines = self.answer.split("HTTP/1.1 ").skip(1);
        lines.map(|line| line[..3].parse().unwrap()).collect()
    }

    /// Why the first that did not pass did not.
    pub fn reason(&self) -> &str {
        let dropped = self.flows.iter().find(|flow| flow.contains(" DROPPED"));
        let why = dropped.and_then(|flow| flow.split_once(" (")?.1.strip_suffix(')'));
        why.unwrap_or_default()
    }
}

/// Sends a client's bytes to a server that answers each head with `answer`, until both ends have closed.
pub async fn run_against(bench: &Bench, input: &[u8], answer: &'static str) -> Outcome {
    local(async {
        let (mut client, mut servers) = bench.open();
        let received = Rc::new(RefCell::new(Vec::new()));
        let all = Rc::clone(&received);
        let serving = tokio::task::spawn_local(async move {
            while let Some(mut server) = servers.0.recv().await {
                let (mut answered, mut buffer) = (0, [0; 4096]);
                while let Ok(count @ 1..) = server.read(&mut buffer).await {
                    all.borrow_mut().extend_from_slice(&buffer[..count]);
                    let heads = all.borrow().windows(4).filter(|end| end == b"\r\n\r\n").count();
                    while answered < heads {
                        answered += 1;
                        let _ = server.write_all(answer.as_bytes()).await;
                    }
                }
            }
        });
        client.write_all(input).await.unwrap();
        client.shutdown().await.unwrap();
        let answer = rest(&mut client).await;
        drop(client);
        serving.await.unwrap();
        let raw = received.take();
        let received = String::from_utf8_lossy(&raw).into_owned();
        Outcome { received, raw, answer, flows: bench.flows() }
    })
    .await
}

/// The same, to a server that is pleased with everything.
pub async fn run(rules: Vec<HttpRule>, input: &str) -> Outcome {
    run_against(&Bench::new(rules), input.as_bytes(), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await
}
