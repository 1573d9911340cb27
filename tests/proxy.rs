//! The real `ferromesh proxy`, started as the agent starts it, between a client and a server in namespaces of their own.
//! Needs root: it makes namespaces and maps, and looks at what the process has given up. In place of the node's programs a
//! routing rule brings the client's packets to the proxy, by a mark of the client's socket.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test file: they are how a test fails"
)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use abi::Address;
use linux::scratch;
use mesh::access_log::Headers;
use mesh::exchange::Exchange;
use mesh::identity::Identity;
use mesh::l7::{Expression, HttpFlow, HttpKind, HttpRule, L7Access, L7Endpoint, L7Ports, L7Rules};
use mesh::workload::EndpointId;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use node_api::channel::Channel;
use node_api::proxy::{
    BudgetOwner, FromProxy, ProxyAnswer, ProxyConnection, ProxyFlow, ProxyQuestion, ProxySupposed, Record,
    SupposedEnd, SupposedRequest, ToProxy,
};
use socket2::{Domain, Socket, Type};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A user that nobody is.
const USER: u32 = 64_251;
/// Nobody waits longer for anything; what is right takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(60);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// Of the client's socket.
const MARK: u32 = 0x77;

type Agent = Channel<ToProxy, FromProxy>;

/// Killed if the test fails.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn endpoint(rules: Vec<HttpRule>) -> Box<L7Endpoint> {
    let access =
        vec![L7Access { peers: Some([Identity::new(300).unwrap()].into()), http: Some(rules.into()) }];
    Box::new(L7Endpoint {
        id: EndpointId::new(1).unwrap(),
        instance: 7,
        workload: "default/deathstar".parse().unwrap(),
        ipv4: SERVER,
        ipv6: Ipv6Addr::LOCALHOST,
        identity: Identity::new(256).unwrap(),
        ingress: Some(Arc::new(L7Rules {
            ports: vec![L7Ports {
                first: 80,
                last: 80,
                access: access.into(),
                tls: Arc::default(),
                inspected: Arc::default(),
            }],
        })),
        egress: None,
        audit: false,
        secrets: Vec::new(),
    })
}

fn rule(method: &str, path: &str) -> HttpRule {
    let part = |text: &str| Some(Expression(text.to_owned()));
    HttpRule { method: part(method), path: part(path), ..HttpRule::default() }
}

/// The maps, with the server as endpoint 1 of this node and the client as identity 300 elsewhere.
fn maps() -> [OwnedFd; 4] {
    let maps = maps::scratch::identities().unwrap();
    let copy = |number: usize| maps::handed_over("test", maps[number].try_clone().unwrap()).unwrap();
    let fact = abi::Endpoint { instance: 7, id: 1, ..abi::Endpoint::default() };
    maps::Endpoints::new(copy(1)).unwrap().insert(Address::v4(SERVER.octets()), fact).unwrap();
    let slot = abi::Assignment { identity: 256, ..abi::Assignment::default() };
    let assignments = abi::Assignments { slot: [slot; 2], endpoint: fact, ..abi::Assignments::default() };
    maps::Assignments::new(copy(2)).unwrap().set(1, assignments).unwrap();
    let remote = abi::Remote { identity: [300; 2], ..abi::Remote::default() };
    let client = maps::Prefix { bits: 128, data: Address::v4(CLIENT.octets()) };
    maps::Ipcache::new(copy(3)).unwrap().insert(client, remote).unwrap();
    maps
}

fn transparent(address: IpAddr) -> OwnedFd {
    let address = SocketAddr::new(address, 80);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true).unwrap(),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true).unwrap(),
    }
    socket.bind(&address.into()).unwrap();
    socket.listen(128).unwrap();
    socket.into()
}

fn start(socket: &Path, directory: &Path, maps: &[OwnedFd; 4], log: &Path) -> Process {
    let handed: Vec<OwnedFd> = [UnixListener::bind(socket).unwrap().into()]
        .into_iter()
        .chain(maps.iter().map(|map| map.try_clone().unwrap()))
        .chain([transparent(Ipv4Addr::UNSPECIFIED.into()), transparent(Ipv6Addr::LOCALHOST.into())])
        .collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferromesh"));
    command.args(["proxy", "--workers", "1", "--user", &USER.to_string()]);
    command.arg("--directory").arg(directory).env_clear();
    let descriptors: Vec<_> = handed.iter().map(AsFd::as_fd).collect();
    linux::child::hand_over(&mut command, &descriptors, File::create(log).unwrap()).unwrap();
    Process(command.spawn().unwrap())
}

/// A connection of the client that the routing rule brings to the proxy.
fn call() -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_mark(MARK).unwrap();
    socket.bind(&SocketAddr::new(CLIENT.into(), 0).into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(&SocketAddr::new(SERVER.into(), 80).into()).unwrap();
    socket.into()
}

fn ask(stream: &mut TcpStream, request: &str, answer: &str) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut found = vec![0; answer.len()];
    stream.read_exact(&mut found).unwrap();
    assert_eq!(String::from_utf8(found).unwrap(), answer);
}

/// Answers every connection's requests with the address it was called from.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        std::thread::spawn(move || {
            let peer = stream.peer_addr().unwrap().ip().to_string();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{peer}", peer.len());
            let mut buffer = [0; 4096];
            while let Ok(1..) = stream.read(&mut buffer) {
                let _ = stream.write_all(answer.as_bytes());
            }
        });
    }
}

fn http(flow: &ProxyFlow) -> &HttpFlow {
    flow.l7.http().unwrap()
}

/// What was seen.
#[derive(Default)]
struct Seen {
    flows: Vec<ProxyFlow>,
    exchanges: Vec<Exchange>,
    counted: u64,
}

impl Seen {
    /// Takes what was seen; any other message is returned.
    async fn take(&mut self, agent: &mut Agent) -> Option<FromProxy> {
        let other = self.put(timeout(PATIENCE, agent.receive()).await.unwrap().unwrap());
        if other.is_none() {
            agent.send(&ToProxy::Taken).await.unwrap();
        }
        other
    }

    fn put(&mut self, said: FromProxy) -> Option<FromProxy> {
        match said {
            FromProxy::Flows(more) => self.flows.extend(more),
            FromProxy::Report(report) => {
                self.exchanges.extend(report.exchanges);
                let kinds = report.counts.iter().flat_map(|pair| &pair.exchanges);
                self.counted += kinds.map(|(_, count)| count).sum::<u64>();
            }
            other => return Some(other),
        }
        None
    }
}

/// The next message that is not about what was seen.
async fn said(agent: &mut Agent, seen: &mut Seen) -> FromProxy {
    loop {
        if let Some(said) = seen.take(agent).await {
            return said;
        }
    }
}

/// Its answer to a question.
async fn answered(agent: &mut Agent, seen: &mut Seen, question: ProxyQuestion) -> ProxyAnswer {
    agent.send(&ToProxy::Ask { number: 9, question }).await.unwrap();
    match said(agent, seen).await {
        FromProxy::Answer { number: 9, answer } => *answer,
        other => panic!("{other:?}"),
    }
}

async fn connections(agent: &mut Agent, seen: &mut Seen) -> Vec<ProxyConnection> {
    match answered(agent, seen, ProxyQuestion::Connections).await {
        ProxyAnswer::Connections(connections) => connections,
        other => panic!("{other:?}"),
    }
}

/// The client is not of this node: the server's workload has its connections.
async fn tells_of_budgets(agent: &mut Agent, seen: &mut Seen) {
    let ProxyAnswer::Budgets(rows) = answered(agent, seen, ProxyQuestion::Budgets).await else {
        panic!("no budgets");
    };
    let [one, all] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((one.owner, one.instance, one.address), (BudgetOwner::Workload, Some(7), Some(SERVER.into())));
    assert!(
        one.budgets.connections.used >= 1 && one.budgets.connections.bound > one.budgets.connections.used
    );
    assert_eq!((all.owner, all.budgets.connections.used), (BudgetOwner::All, one.budgets.connections.used));
}

/// By the maps and rules that it judges by.
async fn explains(agent: &mut Agent, seen: &mut Seen) {
    for (method, path, status) in
        [("PUT", "/v1/exhaust-port", None), ("POST", "/v1/request-landing", Some(403))]
    {
        let end = |address: Ipv4Addr| SupposedEnd { address: address.into(), identity: None };
        let request = SupposedRequest {
            http2: false,
            method: method.to_owned(),
            path: path.to_owned(),
            host: Some("deathstar".to_owned()),
            headers: Vec::new(),
        };
        let asked = ProxySupposed { client: end(CLIENT), server: end(SERVER), port: 80, request };
        let question = ProxyQuestion::Explain(Box::new(asked));
        let ProxyAnswer::Explained(says) = answered(agent, seen, question).await else {
            panic!("unexplained")
        };
        assert_eq!((says.client_identity, says.server_identity), (Identity::new(300), Identity::new(256)));
        assert_eq!(says.answer.as_ref().map(|answer| answer.status), status, "{says:?}");
        assert_eq!(says.forwarded.is_empty(), status.is_some());
    }
}

fn has_one_right(pid: u32, directory: &Path) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for (set, value) in
        [("CapInh", 0), ("CapPrm", 1 << 13), ("CapEff", 1 << 13), ("CapBnd", 0), ("CapAmb", 0)]
    {
        assert_eq!(field(set), format!("{value:016x}"), "{set}");
    }
    let user = [USER.to_string(), USER.to_string(), USER.to_string(), USER.to_string()].join(" ");
    assert_eq!((field("Uid"), field("Gid")), (user.clone(), user));
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".to_owned(), "2".to_owned()));
    assert_eq!(fs::read_link(format!("/proc/{pid}/root")).unwrap(), fs::canonicalize(directory).unwrap());
}

#[test]
fn with_one_right_it_judges_calls_in_the_clients_name_and_tells() {
    let node = scratch::Namespace::new("proxy-node").unwrap();
    let pod = scratch::Namespace::new("proxy-pod").unwrap();
    node.namespace()
        .inside(|| {
            ip(&format!("link add to-pod type veth peer name eth0 netns {}", pod.path().display()));
            ip(&format!("address add {CLIENT}/24 dev to-pod"));
            for device in ["to-pod", "lo"] {
                ip(&format!("link set {device} up"));
            }
            ip(&format!("rule add fwmark {MARK} lookup 100"));
            ip(&format!("route add local {SERVER}/32 dev lo table 100"));
        })
        .unwrap();
    let listener = pod
        .namespace()
        .inside(|| {
            ip(&format!("address add {SERVER}/24 dev eth0"));
            ip("link set eth0 up");
            TcpListener::bind((SERVER, 80)).unwrap()
        })
        .unwrap();
    std::thread::spawn(move || serve(&listener));
    node.namespace().inside_async(judges_calls_and_tells).unwrap();
}

/// On a core that both want, workers go before whoever compiles rules and speaks with the agent.
fn workers_go_first(pid: u32) {
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        let (name, numbers) = stat.rsplit_once(") ").unwrap();
        // The nineteenth of all, proc_pid_stat(5).
        let nice = numbers.split(' ').nth(16).unwrap();
        assert_eq!(nice, if name.contains("(worker-") { "0" } else { "10" }, "{stat}");
    }
}

/// It may open as many files as it was allowed to, not as few as most do.
fn may_have_many_descriptors(pid: u32) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let numbers: Vec<u64> = line.split_whitespace().take(2).map(|number| number.parse().unwrap()).collect();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(numbers[0] == numbers[1] && numbers[0] >= hard, "{line}, this process: {hard}");
}

const DENIED: &str =
    "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 15\r\n\r\nAccess denied\r\n";
const PUT: &str = "PUT /v1/exhaust-port HTTP/1.1\r\nHost: deathstar\r\n\r\n";
const POST: &str = "POST /v1/request-landing HTTP/1.1\r\nHost: deathstar\r\n\r\n";

async fn judges_calls_and_tells() {
    let files = tempfile::tempdir().unwrap();
    let directory = files.path().join("proxy");
    fs::create_dir(&directory).unwrap();
    let (socket, log) = (files.path().join("proxy.sock"), files.path().join("log"));
    let maps = maps();
    // As most programs are started.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.min(1024), hard).unwrap();
    let mut process = start(&socket, &directory, &maps, &log);
    let told = || fs::read_to_string(&log).unwrap();

    // Before rules are known nothing passes, and nobody is turned away: who calls waits.
    let mut early = call();
    early.write_all(PUT.as_bytes()).unwrap();

    let mut agent: Agent = Channel::new(UnixStream::connect(&socket).await.unwrap());
    let mut seen = Seen::default();
    let exchanges = Headers { request: vec!["host".to_owned()], response: Vec::new() };
    let record = Record { exchanges: Some(exchanges), request_id: false };
    agent.send(&ToProxy::Pack).await.unwrap();
    agent.send(&ToProxy::Record(record)).await.unwrap();
    let id = EndpointId::new(1).unwrap();
    let set = |generation, rules| ToProxy::Set { generation, endpoint: endpoint(rules) };
    agent.send(&set(1, vec![rule("POST", "/v1/request-landing")])).await.unwrap();
    assert_eq!(said(&mut agent, &mut seen).await, FromProxy::Accepted { generation: 1, endpoint: id });
    agent.send(&ToProxy::Synced { generation: 1 }).await.unwrap();
    assert_eq!(said(&mut agent, &mut seen).await, FromProxy::Synced { generation: 1 });

    ask(&mut early, "", DENIED);
    drop(early);
    let mut client = call();
    let passed = format!("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{CLIENT}");
    ask(&mut client, PUT, DENIED);
    ask(&mut client, POST, &passed);
    has_one_right(process.0.id(), &directory);
    may_have_many_descriptors(process.0.id());
    workers_go_first(process.0.id());

    // Nobody on this host gets anything by the listeners' own addresses, whoever has rules there.
    for own in [IpAddr::from(Ipv6Addr::LOCALHOST), Ipv4Addr::LOCALHOST.into()] {
        let mut stranger = TcpStream::connect((own, 80)).unwrap();
        let _ = stranger.write_all(PUT.as_bytes());
        assert_eq!(stranger.read(&mut [0; 16]).unwrap_or(0), 0, "{own}");
    }

    // What cannot be used leaves what is in force.
    agent.send(&set(2, vec![rule("(", "/")])).await.unwrap();
    match said(&mut agent, &mut seen).await {
        FromProxy::Refused { generation: 2, field, .. } => {
            assert_eq!(field, "ingress.ports[0].access[0].http[0].method");
        }
        other => panic!("{other:?}"),
    }
    ask(&mut client, POST, &passed);
    // An edit holds from the next request on, on the same connection.
    agent.send(&set(3, vec![rule("PUT", "/v1/.*")])).await.unwrap();
    assert_eq!(said(&mut agent, &mut seen).await, FromProxy::Accepted { generation: 3, endpoint: id });
    ask(&mut client, POST, DENIED);
    ask(&mut client, PUT, &passed);

    let connections = connections(&mut agent, &mut seen).await;
    let one = connections.iter().find(|one| one.client == client.local_addr().unwrap()).unwrap();
    assert_eq!((one.requests, one.protocol.as_deref()), (5, Some("HTTP/1.1")));
    assert_eq!(one.upstream.unwrap().ip(), IpAddr::from(CLIENT));
    tells_of_budgets(&mut agent, &mut seen).await;
    explains(&mut agent, &mut seen).await;
    let answers =
        |seen: &Seen| seen.flows.iter().filter(|flow| http(flow).kind == HttpKind::Response).count();
    while answers(&seen) < 6 || seen.counted < 6 {
        let other = seen.take(&mut agent).await;
        assert!(other.is_none(), "{other:?}");
    }
    let codes: Vec<_> = seen.exchanges.iter().filter_map(|exchange| exchange.code).collect();
    assert_eq!(codes, [403, 403, 200, 200, 403, 200], "{}", told());
    let is_named =
        |exchange: &Exchange| exchange.request_headers == [("host".to_owned(), "deathstar".to_owned())];
    assert!(seen.exchanges.iter().filter(|exchange| exchange.code.is_some()).all(is_named));
    let denied = seen.flows.iter().find(|flow| http(flow).code == Some(403)).unwrap();
    assert_eq!(http(denied).url, "http://deathstar/v1/exhaust-port");
    assert_eq!(denied.client_identity, Identity::new(300));
    assert_eq!(denied.server_identity, Identity::new(256));

    // It goes on with whom it has, says with the next answer that this ends, and takes nobody any more.
    let drain = ToProxy::Drain { within: 600_000, idle: 600_000 };
    agent.send(&drain).await.unwrap();
    let connections = self::connections(&mut agent, &mut seen).await;
    assert!(connections.iter().all(|one| one.draining) && !connections.is_empty());
    agent.send(&set(4, vec![rule("POST", "/v1/.*")])).await.unwrap();
    assert_eq!(said(&mut agent, &mut seen).await, FromProxy::Accepted { generation: 4, endpoint: id });
    let last = DENIED.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    ask(&mut client, PUT, &last);
    assert_eq!(client.read(&mut [0; 16]).unwrap(), 0, "it has said so");
    // It stays until all that it has seen of this has been taken.
    while let Ok(said) = timeout(PATIENCE, agent.receive()).await.unwrap() {
        let other = seen.put(said);
        assert!(other.is_none(), "{other:?}");
        // It may have ended by now.
        let _ = agent.send(&ToProxy::Taken).await;
    }
    assert_eq!(answers(&seen), 7);
    assert_eq!(seen.exchanges.iter().filter(|exchange| exchange.code.is_some()).count(), 7);
    let ended = tokio::task::spawn_blocking(move || process.0.wait().unwrap());
    let ended = timeout(PATIENCE, ended).await.unwrap().unwrap();
    assert!(ended.success(), "{}", told());
}

#[test]
fn without_its_descriptors_it_says_what_it_needs() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferromesh"));
    command.args(["proxy", "--user", "64251", "--directory", "/"]);
    linux::child::hand_over(&mut command, &[], File::create(&log).unwrap()).unwrap();
    assert!(!command.status().unwrap().success());
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("found 0 inherited descriptors, expected 7 for 1 workers"), "{said}");
}
