//! The sockets, and what becomes of a packet.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use domain::base::Message;
use domain::base::iana::Rcode;
use ipnet::IpNet;
use mesh::service::Services;
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::bind::{BindError, bind};
use super::forward::Forwarder;
use super::message::{self, Query, Received, Transport};
use super::metrics::{Dropped, Metrics, Source};
use super::places::{Place, Places};
use super::resolver::Resolver;
use super::upstreams::Upstreams;
use super::zone::{Answer, Found, Owner, Resource, Zone};
use crate::config::Config;

/// No question is longer, with all extensions; what does not fit is cut and so malformed.
const QUESTION: usize = 4096;
/// How many connections may be open, and by one client.
const CONNECTIONS: usize = 64;
const CONNECTIONS_EACH: usize = 16;
/// How long a connection may be silent, or not take its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// After an error of a socket, which can be lack of memory or of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What the configuration says of names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `clusterDomain`.
    pub domain: String,
    /// `dnsUpstreams`; if empty, those of the host's file are asked.
    pub upstreams: Vec<SocketAddr>,
    /// The host's file: `/etc/resolv.conf`.
    pub host_file: PathBuf,
}

/// Sockets that do not answer yet.
#[derive(Debug)]
pub struct Server {
    state: Arc<State>,
    sockets: Vec<(UdpSocket, TcpListener)>,
}

/// What is answered with; a clone changes the same server.
#[derive(Clone, Debug)]
pub struct Names(Arc<State>);

#[derive(Debug)]
struct State {
    zone: RwLock<Arc<Zone>>,
    /// Addresses of workloads.
    pools: [IpNet; 2],
    /// Addresses of this node.
    own: RwLock<Arc<BTreeSet<IpAddr>>>,
    host_file: PathBuf,
    forwarder: Forwarder,
    connections: Arc<Places>,
    metrics: Metrics,
    /// Number of the question; where the next answer begins.
    turn: AtomicUsize,
}

/// What a packet leads to.
enum Step {
    /// To an answer.
    Reply(Vec<u8>),
    /// To a question that somebody else can answer.
    Forward(Box<Pending>),
    /// To nothing.
    Drop,
}

/// A question on its way.
struct Pending {
    /// As the client asked it.
    query: Query,
    /// Where it led so far, and the name to ask for.
    alias: Option<(Vec<Resource>, Owner)>,
    transport: Transport,
    arrived: Instant,
    _place: Place,
}

impl Server {
    /// Opens port 53 of the node's own addresses. Until services are set, no name of a service exists.
    ///
    /// # Errors
    /// [`BindError::Taken`] names who has the port.
    pub async fn bind(config: &Config, settings: &Settings, metrics: Metrics) -> Result<Self, BindError> {
        let domain = Owner::vec_from_str(&settings.domain)
            .ok()
            .filter(|domain| !domain.is_root())
            .ok_or_else(|| BindError::Domain(settings.domain.clone()))?;
        let own = config.gateways().map(|gateway| gateway.addr());
        let mut sockets = Vec::new();
        for address in own {
            sockets.push(bind(address).await?);
        }
        let upstreams = Upstreams::new(&settings.upstreams, &settings.host_file, &own);
        let zone = Zone::new(domain, own.to_vec(), 1, Arc::default());
        let state = State {
            zone: RwLock::new(Arc::new(zone)),
            pools: config.pools(),
            own: RwLock::new(Arc::new(own.into())),
            host_file: settings.host_file.clone(),
            forwarder: Forwarder::new(upstreams, metrics.clone()),
            connections: Places::new(CONNECTIONS, CONNECTIONS_EACH),
            metrics,
            turn: AtomicUsize::new(0),
        };
        Ok(Self { state: Arc::new(state), sockets })
    }

    /// Where it answers.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|(udp, _)| udp.local_addr().ok()).collect()
    }

    /// The way to change what is answered.
    pub fn names(&self) -> Names {
        Names(Arc::clone(&self.state))
    }

    /// Answers until it is dropped.
    pub async fn run(self) {
        let mut loops = JoinSet::new();
        for (udp, tcp) in self.sockets {
            loops.spawn(datagrams(Arc::clone(&self.state), Arc::new(udp)));
            loops.spawn(connections(Arc::clone(&self.state), tcp));
        }
        while loops.join_next().await.is_some() {}
    }
}

impl Names {
    /// From now on these are the services there are.
    pub fn set(&self, services: &Arc<Services>) {
        let zone = Arc::clone(&self.0.zone.read());
        if !zone.is_of(services) {
            *self.0.zone.write() = Arc::new(zone.with(Arc::clone(services)));
        }
    }

    /// What `/etc/resolv.conf` says in a workload of this namespace.
    pub fn workload_file(&self, namespace: &str) -> String {
        // Without a file the host searches nothing, and so does the workload.
        let host = std::fs::read_to_string(&self.0.host_file).unwrap_or_default();
        let zone = Arc::clone(&self.0.zone.read());
        Resolver::for_workload(&host, zone.servers(), namespace, &zone.domain().to_string())
    }

    /// The node's addresses beside those in the pools: who asks from one of them is answered.
    pub fn set_own_addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        *self.0.own.write() = Arc::new(addresses.into_iter().collect());
    }
}

/// The runtime gives each task a budget of packets and then turns to the others, so a flood here starves nobody.
async fn datagrams(state: Arc<State>, socket: Arc<UdpSocket>) {
    let mut packet = vec![0; QUESTION];
    let mut pending = JoinSet::new();
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut packet) => received,
            Some(_) = pending.join_next() => continue,
        };
        let (length, client) = match received {
            Ok(received) => received,
            Err(error) => {
                pause("receive", &error).await;
                continue;
            }
        };
        match state.begin(packet.get(..length).unwrap_or_default(), client.ip(), Transport::Udp) {
            Step::Reply(answer) => send(&socket, &answer, client).await,
            Step::Forward(question) => {
                let (state, socket) = (Arc::clone(&state), Arc::clone(&socket));
                pending.spawn(async move { send(&socket, &state.finish(*question).await, client).await });
            }
            Step::Drop => {}
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "dns: answer not sent");
    }
}

async fn connections(state: Arc<State>, listener: TcpListener) {
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next() => continue,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause("accept", &error).await;
                continue;
            }
        };
        if !state.may_ask(client.ip()) {
            state.metrics.dropped(Dropped::Stranger);
            continue;
        }
        let Some(place) = state.connections.take(client.ip()) else {
            state.metrics.dropped(Dropped::Overload);
            continue;
        };
        let state = Arc::clone(&state);
        open.spawn(async move {
            if let Err(error) = converse(&state, stream, client.ip()).await {
                tracing::debug!(%client, %error, "dns: connection ended");
            }
            drop(place);
        });
    }
}

/// One question after the other, until the client is done or silent for too long.
async fn converse(state: &State, mut stream: TcpStream, client: IpAddr) -> io::Result<()> {
    let mut packet = vec![0; QUESTION];
    loop {
        let length = usize::from(timeout(PATIENCE, stream.read_u16()).await??);
        let Some(packet) = packet.get_mut(..length) else {
            state.metrics.dropped(Dropped::Malformed);
            return Ok(());
        };
        timeout(PATIENCE, stream.read_exact(packet)).await??;
        let answer = match state.begin(packet, client, Transport::Tcp) {
            Step::Reply(answer) => answer,
            Step::Forward(question) => state.finish(*question).await,
            Step::Drop => return Ok(()),
        };
        timeout(PATIENCE, stream.write_all(&message::framed(&answer))).await??;
    }
}

async fn pause(what: &str, error: &io::Error) {
    tracing::warn!(%error, "dns: cannot {what}");
    tokio::time::sleep(PAUSE).await;
}

impl State {
    /// As far as it goes without asking anybody.
    fn begin(&self, packet: &[u8], client: IpAddr, transport: Transport) -> Step {
        let arrived = Instant::now();
        if !self.may_ask(client) {
            self.metrics.dropped(Dropped::Stranger);
            return Step::Drop;
        }
        let query = match message::receive(packet) {
            Received::Query(query) => query,
            Received::Refused(rcode, answer) => {
                self.metrics.answered(Source::Cluster, rcode, arrived.elapsed());
                return Step::Reply(answer);
            }
            Received::Dropped => {
                self.metrics.dropped(Dropped::Malformed);
                return Step::Drop;
            }
        };
        let zone = Arc::clone(&self.zone.read());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let alias = match zone.find(query.question.qname(), query.question.qtype(), turn) {
            Found::Here(answer) => {
                let packet = message::write(&query, &answer, transport);
                self.metrics.answered(Source::Cluster, answer.rcode, arrived.elapsed());
                return Step::Reply(packet);
            }
            Found::Alias { chain, target } => Some((chain, target)),
            Found::Elsewhere => None,
        };
        match self.forwarder.place(client) {
            Some(place) => {
                Step::Forward(Box::new(Pending { query, alias, transport, arrived, _place: place }))
            }
            None => {
                self.metrics.answered(Source::Upstream, Rcode::SERVFAIL, arrived.elapsed());
                Step::Reply(message::write(&query, &Answer::empty(Rcode::SERVFAIL), transport))
            }
        }
    }

    /// Asks somebody else.
    async fn finish(&self, pending: Pending) -> Vec<u8> {
        let Pending { query, alias, transport, arrived, .. } = &pending;
        let answer = match alias {
            None => self.forwarder.ask(query).await.map(|told| message::pass_on(query, told, *transport)),
            Some((chain, target)) => {
                let told = self.forwarder.ask(&query.about(target.clone())).await;
                let answer = told.and_then(|told| message::continued(chain.clone(), &told.packet));
                answer.map(|answer| message::write(query, &answer, *transport))
            }
        };
        let failed = || message::write(query, &Answer::empty(Rcode::SERVFAIL), *transport);
        let answer = answer.unwrap_or_else(failed);
        let rcode = Message::from_slice(&answer).map_or(Rcode::SERVFAIL, |message| message.header().rcode());
        self.metrics.answered(Source::Upstream, rcode, arrived.elapsed());
        answer
    }

    /// Anybody else would make of us a resolver for strangers, and a way to flood others with answers.
    fn may_ask(&self, client: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.contains(&client))
            || client.is_loopback()
            || self.own.read().contains(&client)
    }
}
