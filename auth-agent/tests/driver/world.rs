//! A CA, nodes, and their agents.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use abi::{Address, Mark, PairKey};
use auth_agent::driver::{Handed, Options, WallClock};
use certs::UnixTime;
use certs::ca::{Authority, Files, Lifetimes, SVID_LIFETIME};
use certs::enrol::server::{Allowed, Server};
use certs::svid::{KeyRequest, Svid};
use linux::clock::realtime;
use maps::{Leases, Marks, Pairs, handed_over};
use mesh::auth::{AuthEndpoint, AuthNode, AuthPlan, IdentityPair, InstanceName};
use mesh::identity::Identity;
use mesh::spiffe::{SpiffeId, TrustDomain};
use node_api::auth::{AuthAnswer, AuthQuestion, FromAuthAgent, ToAuthAgent};
use node_api::channel::Channel;
use tempfile::TempDir;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

/// Nobody waits longer for anything; what is right takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test in a network namespace of its own.
pub(crate) fn inside(test: impl AsyncFnOnce() + Send) {
    let scratch = linux::scratch::Namespace::new("auth-agent").unwrap();
    scratch.namespace().inside_async(|| async { LocalSet::new().run_until(test()).await }).unwrap();
}

/// Until it is so.
pub(crate) async fn until<T>(what: &str, mut is_so: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(value) = is_so().await {
                return value;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"))
}

pub(crate) struct Ca {
    directory: Arc<TempDir>,
    pub(crate) domain: TrustDomain,
    pub(crate) server: Arc<Server>,
    pub(crate) address: SocketAddr,
    door: JoinHandle<()>,
}

impl Ca {
    /// It has been there for some hours.
    pub(crate) async fn start(nodes: &[(&str, &[&str])]) -> Self {
        Self::start_behind(nodes, SVID_LIFETIME, 0).await
    }

    /// Its certificates last that long, and its clock is so many seconds behind.
    pub(crate) async fn start_behind(nodes: &[(&str, &[&str])], lifetime: Duration, behind: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let domain: TrustDomain = "td".parse().unwrap();
        let files = Files {
            root: directory.path().join("root"),
            directory: directory.path().join("ca"),
            owner: None,
            trust_domain: domain.clone(),
            lifetimes: Lifetimes::default(),
        };
        let earlier = UnixTime::now().as_secs() - 4 * 3_600;
        files.prepare(UnixTime::since_unix_epoch(Duration::from_secs(earlier))).unwrap();
        Self::open(Arc::new(directory), domain, nodes, lifetime, behind).await
    }

    /// Another process of the same CA.
    pub(crate) async fn beside(&self, nodes: &[(&str, &[&str])], lifetime: Duration, behind: u32) -> Self {
        Self::open(Arc::clone(&self.directory), self.domain.clone(), nodes, lifetime, behind).await
    }

    async fn open(
        directory: Arc<TempDir>,
        domain: TrustDomain,
        nodes: &[(&str, &[&str])],
        lifetime: Duration,
        behind: u32,
    ) -> Self {
        let clock = WallClock::new(move || realtime() - i128::from(behind) * 1_000_000_000);
        let server = Server::open(&directory.path().join("ca"), lifetime, Arc::new(clock)).unwrap();
        let server = Arc::new(server);
        let ids =
            |names: &[&str]| names.iter().map(|name| domain.workload("default", name).unwrap()).collect();
        let nodes = nodes.iter().map(|(node, names)| ((*node).to_owned(), ids(names))).collect();
        server.place(Allowed { trust_domain: domain.clone(), nodes }).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = spawn_local(server.clone().serve(listener));
        spawn_local(server.clone().follow());
        Self { directory, domain, server, address, door }
    }

    pub(crate) fn authority(&self) -> Authority {
        Authority::open(&self.directory.path().join("ca"), SVID_LIFETIME).unwrap()
    }

    /// Nobody can connect to it any more; who has stays.
    pub(crate) async fn close_door(&mut self) {
        self.door.abort();
        let _ = (&mut self.door).await;
    }

    /// Takes every root out of its bundle.
    pub(crate) fn trust_nobody(&self) {
        std::fs::write(self.directory.path().join("ca/bundle.pem"), "").unwrap();
    }

    /// A certificate that nobody has asked for over the network.
    pub(crate) fn svid(&self, id: &SpiffeId) -> Svid {
        let key = KeyRequest::new().unwrap();
        let chain = self.authority().issue(key.der(), id, UnixTime::now()).unwrap();
        key.finish(id, chain).unwrap()
    }
}

/// One endpoint per node, with the node's number in everything that is its own.
pub(crate) fn endpoint(ca: &Ca, number: u8, name: &str) -> AuthEndpoint {
    AuthEndpoint {
        workload: format!("default/{name}").parse().unwrap(),
        id: ca.domain.workload("default", name).unwrap(),
        identity: identity(number),
        ipv4: Ipv4Addr::new(10, 0, number, 1),
        ipv6: Ipv6Addr::new(0xfd00, 0, 0, number.into(), 0, 0, 0, 1),
    }
}

pub(crate) fn identity(number: u8) -> Identity {
    Identity::new(300 + u32::from(number)).unwrap()
}

pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) number: u8,
    directory: TempDir,
    maps: [OwnedFd; 3],
    pub(crate) address: SocketAddr,
    /// The other end of what stands for the hold device.
    pub(crate) device: UnixDatagram,
    task: JoinHandle<()>,
    ca: SocketAddr,
    /// Seconds by which its wall clock is ahead of everybody else's.
    ahead: Arc<AtomicI64>,
    agent: Channel<ToAuthAgent, FromAuthAgent>,
    asked: u64,
}

impl Node {
    pub(crate) async fn start(ca: &Ca, name: &'static str, number: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(directory.path().join(file), text).unwrap();
        write("bundle.pem", &ca.authority().bundle().to_pem());
        write("join-token", &ca.server.token(name).unwrap());
        let maps = maps::scratch::auth().unwrap();
        let address = SocketAddr::from(([127, 0, 0, number], 4250));
        let ahead = Arc::new(AtomicI64::new(0));
        let (task, agent, device) = run(&directory, &maps, name, address, ca.address, &ahead).await;
        Self { name, number, directory, maps, address, device, task, ca: ca.address, ahead, agent, asked: 0 }
    }

    /// As by kill -9, and a new start.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        (self.task, self.agent, self.device) =
            run(&self.directory, &self.maps, self.name, self.address, self.ca, &self.ahead).await;
    }

    /// Sets its wall clock so many seconds ahead of everybody else's.
    pub(crate) fn set_clock(&self, ahead: i64) {
        self.ahead.store(ahead, Ordering::Relaxed);
    }

    pub(crate) async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    pub(crate) fn has(&self, file: &str) -> bool {
        self.directory.path().join(file).exists()
    }

    /// From now on this node trusts another CA.
    pub(crate) fn trust(&self, ca: &Ca) {
        let file = self.directory.path().join("bundle.pem");
        std::fs::write(file, ca.authority().bundle().to_pem()).unwrap();
    }

    /// The same by the agent's word; what a start would find is left as it is.
    pub(crate) async fn hear_of_roots(&mut self, ca: &Ca) {
        let pem = ca.authority().bundle().to_pem();
        self.agent.send(&ToAuthAgent::Bundle { pem }).await.unwrap();
    }

    pub(crate) fn bundle(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("bundle.pem")).unwrap()
    }

    /// The plan of this node: `own` here, `other` on the other, and they must authenticate.
    pub(crate) fn plan(&self, ca: &Ca, own: &str, other: &Node, name: &str) -> AuthPlan {
        self.plan_of(ca, own, &[(other, name)])
    }

    /// The same with several others.
    pub(crate) fn plan_of(&self, ca: &Ca, own: &str, others: &[(&Node, &str)]) -> AuthPlan {
        let others = || others.iter().copied();
        let node =
            |(other, _): (&Node, &str)| (other.name.to_owned(), auth_node(ca, other.name, other.address));
        let remote = |(other, name): (&Node, &str)| (other.instance(), endpoint(ca, other.number, name));
        let pair =
            |(other, _): (&Node, &str)| IdentityPair::new(identity(self.number), identity(other.number));
        AuthPlan {
            trust_domain: ca.domain.clone(),
            node: self.name.to_owned(),
            grace: 10_000,
            ahead: 20_000,
            nodes: others().map(node).collect(),
            endpoints: BTreeMap::from([(u64::from(self.number), endpoint(ca, self.number, own))]),
            remotes: others().map(remote).collect(),
            pairs: others().map(pair).collect(),
        }
    }

    fn instance(&self) -> InstanceName {
        InstanceName { node: self.name.to_owned(), instance: self.number.into() }
    }

    pub(crate) async fn tell(&mut self, number: u64, plan: AuthPlan) {
        self.agent.send(&ToAuthAgent::Plan { number, plan: Arc::new(plan) }).await.unwrap();
    }

    /// Waits for what the auth-agent says of it.
    pub(crate) async fn told<T>(&mut self, mut is: impl FnMut(FromAuthAgent) -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(value) = is(self.agent.receive().await.unwrap()) {
                    return value;
                }
            }
        };
        timeout(PATIENCE, waiting).await.expect("to be told")
    }

    pub(crate) async fn ask(&mut self, question: AuthQuestion) -> AuthAnswer {
        self.asked += 1;
        let number = self.asked;
        self.agent.send(&ToAuthAgent::Ask { number, question }).await.unwrap();
        self.told(|message| match message {
            FromAuthAgent::Answer { number: of, answer } if of == number => Some(*answer),
            _ => None,
        })
        .await
    }

    pub(crate) async fn finish(&mut self) {
        self.agent.send(&ToAuthAgent::Stop).await.unwrap();
        timeout(PATIENCE, &mut self.task).await.unwrap().unwrap();
    }

    /// The marks that lead from this node's endpoint to the other's, by address, if the kernel would let packets pass.
    pub(crate) fn marks(&self, other: &Node) -> BTreeMap<Address, Mark> {
        let map = |at: usize, name| handed_over(name, self.maps[at].try_clone().unwrap()).unwrap();
        let pairs = Pairs::new(map(0, "AUTH")).unwrap();
        let marks = Marks::new(map(1, "MARKS")).unwrap();
        let leases = Leases::new(map(2, "LEASES")).unwrap();
        let now = linux::clock::boottime();
        let led = |(key, pair): (PairKey, abi::Pair)| {
            let mark = marks.get(pair.mark).unwrap();
            let is_it =
                key.instance == u32::from(self.number) && key.identity == identity(other.number).number();
            let is_good = pair.mark != 0 && mark.epoch != 0 && mark.expiry > now;
            (is_it && is_good && leases.get(mark.lease).unwrap() > now).then_some((key.remote, mark))
        };
        pairs.entries().unwrap().into_iter().filter_map(led).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn auth_node(ca: &Ca, name: &str, address: SocketAddr) -> AuthNode {
    AuthNode { addresses: vec![address], id: ca.domain.node(name).unwrap() }
}

async fn run(
    directory: &TempDir,
    maps: &[OwnedFd; 3],
    name: &str,
    address: SocketAddr,
    ca: SocketAddr,
    ahead: &Arc<AtomicI64>,
) -> (JoinHandle<()>, Channel<ToAuthAgent, FromAuthAgent>, UnixDatagram) {
    let socket = directory.path().join("auth.sock");
    let _ = std::fs::remove_file(&socket);
    let control = UnixListener::bind(&socket).unwrap();
    let (hold, device) = UnixDatagram::pair().unwrap();
    hold.set_nonblocking(true).unwrap();
    device.set_nonblocking(true).unwrap();
    let [pairs, marks, leases] = [0, 1, 2].map(|at: usize| maps[at].try_clone().unwrap());
    let listeners = vec![TcpListener::bind(address).unwrap().into()];
    let triggers = maps::scratch::triggers().unwrap();
    let (control, hold) = (control.into(), hold.into());
    let handed = Handed { control, hold, pairs, marks, leases, triggers, listeners };
    let ahead = Arc::clone(ahead);
    let wall = WallClock::new(move || realtime() + i128::from(ahead.load(Ordering::Relaxed)) * 1_000_000_000);
    let options = Options { node: name.to_owned(), ca, directory: directory.path().to_owned(), wall };
    let opened = handed.open().unwrap();
    assert_eq!(opened.descriptors().len(), 7);
    let task = spawn_local(async move { opened.run(options).await.unwrap() });
    let agent = Channel::new(tokio::net::UnixStream::connect(&socket).await.unwrap());
    (task, agent, device)
}
