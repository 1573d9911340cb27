//! The CA's side.
//!
//! Promise: a node gets certificates for the workloads placed on it and for itself, nobody gets any other; each refusal
//! is logged with the node that asked and what for. Whoever connects is bounded in time, bytes and number of
//! connections before anything is known of him. A restart needs nothing but the CA's directory, and placements told
//! again: until then nothing is issued.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh::spiffe::{SpiffeId, TrustDomain};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::UnixTime;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use super::message::{self, Denied, Request, Response};
use super::token::Tokens;
use crate::Clock;
use crate::bundle::Bundles;
use crate::ca::{Authority, BACKDATED, BUNDLE_FILE, CA_FILE, CaError};
use crate::svid::Svid;
use crate::tls;
use crate::verify::{Expected, node_name, problem_of_io, verify_chain};

/// How long one connection may take, from accept to close.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Connections at one time.
const MAX_CONNECTIONS: usize = 256;
/// Of those, from one address.
const MAX_PER_ADDRESS: usize = 64;
/// The wait after the kernel could not give a connection, most likely for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Who may have which certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// The domain they are of.
    pub trust_domain: TrustDomain,
    /// Every node of the mesh, and the IDs of the workloads placed on it.
    pub nodes: BTreeMap<String, BTreeSet<SpiffeId>>,
}

/// What a file was when it was read.
type Stamp = [Option<(u64, SystemTime)>; 2];

struct State {
    authority: Authority,
    stamp: Stamp,
    own: Svid,
    allowed: Option<Allowed>,
    tokens: Tokens,
    refused: BTreeMap<Denied, u64>,
    connections: BTreeMap<IpAddr, usize>,
}

/// A CA that answers nodes.
#[derive(Debug)]
pub struct Server {
    directory: PathBuf,
    lifetime: Duration,
    clock: Clock,
    bundles: Arc<Bundles>,
    state: Mutex<State>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl Server {
    /// From what [`crate::ca::Files::prepare`] has laid into the directory; `lifetime` is that of what it issues.
    pub fn open(directory: &Path, lifetime: Duration, clock: Clock) -> Result<Self, CaError> {
        let stamp = stamp(directory);
        let authority = Authority::open(directory, lifetime)?;
        let own = authority.own(now(&clock)?)?;
        let bundles = Arc::new(Bundles::new(authority.bundle().clone()));
        let state = State {
            authority,
            stamp,
            own,
            allowed: None,
            tokens: Tokens::default(),
            refused: BTreeMap::new(),
            connections: BTreeMap::new(),
        };
        Ok(Self { directory: directory.to_owned(), lifetime, clock, bundles, state: Mutex::new(state) })
    }

    /// Replaces who may have what.
    pub fn place(&self, allowed: Allowed) -> Result<(), String> {
        let mut state = self.state.lock();
        let own = state.authority.trust_domain();
        if allowed.trust_domain != *own {
            let other = &allowed.trust_domain;
            return Err(format!("placements are of trust domain {other}, this CA issues for {own}"));
        }
        state.allowed = Some(allowed);
        Ok(())
    }

    /// A token for a node of the mesh.
    pub fn token(&self, node: &str) -> Result<String, String> {
        let time = now(&self.clock).map_err(|error| error.to_string())?;
        let mut state = self.state.lock();
        if !state.allowed.as_ref().is_some_and(|allowed| allowed.nodes.contains_key(node)) {
            return Err(format!("node {node:?}: not one of the mesh; is there a Node object of this name?"));
        }
        state.tokens.create(node, time).ok_or_else(|| "cannot get random numbers".to_owned())
    }

    /// How often each refusal was given.
    pub fn refused(&self) -> BTreeMap<Denied, u64> {
        self.state.lock().refused.clone()
    }

    /// Answers nodes until it is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if let Some(slot) = Slot::take(&self, peer.ip()) {
                        tokio::spawn(async move { slot.server.connection(stream, slot.address).await });
                    } else {
                        warn!(%peer, "too many connections: refused");
                    }
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, stream: TcpStream, address: IpAddr) {
        match timeout(PATIENCE, self.exchange(stream)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => info!(%address, error = problem_of_io(&error), "connection failed"),
            Err(_) => info!(%address, "connection took more than {} s", PATIENCE.as_secs()),
        }
    }

    async fn exchange(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let config = self.config().map_err(io::Error::other)?;
        let mut stream = TlsAcceptor::from(config).accept(stream).await?;
        let node = self.peer(stream.get_ref().1.peer_certificates())?;
        let response = match message::receive(&mut stream).await {
            Ok(request) => self.answer(node.as_deref(), request),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.denied(node.as_deref(), None, Denied::Protocol, &error.to_string())
            }
            Err(error) => return Err(error),
        };
        message::send(&mut stream, &response).await?;
        stream.shutdown().await
    }

    /// The node that has shown its certificate.
    fn peer(&self, chain: Option<&[rustls::pki_types::CertificateDer<'_>]>) -> io::Result<Option<String>> {
        let Some(chain) = chain else { return Ok(None) };
        let time = now(&self.clock).map_err(io::Error::other)?;
        let peer =
            verify_chain(chain, &self.expected(), &self.bundles.load(), time).map_err(io::Error::other)?;
        Ok(node_name(&peer.id).map(str::to_owned))
    }

    fn expected(&self) -> Expected {
        Expected::Node(self.state.lock().authority.trust_domain().clone())
    }

    /// For one connection, with what is in the files now.
    fn config(&self) -> Result<Arc<ServerConfig>, CaError> {
        let time = now(&self.clock)?;
        self.refresh();
        let expected = self.expected();
        let mut state = self.state.lock();
        if half_over(&state.own, time) {
            state.own = state.authority.own(time)?;
        }
        Ok(tls::joining_server_config(&state.own, expected, &self.bundles, &self.clock)?)
    }

    /// Takes over what the administrator has changed: another intermediate, another bundle. What cannot be read leaves
    /// what was there in force, and says so.
    fn refresh(&self) {
        let mut state = self.state.lock();
        let stamp = stamp(&self.directory);
        if stamp == state.stamp {
            return;
        }
        state.stamp = stamp;
        let opened = Authority::open(&self.directory, self.lifetime)
            .and_then(|authority| Ok((authority.own(now(&self.clock)?)?, authority)));
        match opened {
            Ok((own, authority)) if authority.trust_domain() == state.authority.trust_domain() => {
                info!("intermediate and bundle read again");
                self.bundles.replace(authority.bundle().clone());
                (state.own, state.authority) = (own, authority);
            }
            Ok((_, authority)) => {
                warn!("the files are now of trust domain {}: not taken over", authority.trust_domain());
            }
            Err(error) => warn!(%error, "the files have changed and are of no use: not taken over"),
        }
    }

    fn answer(&self, node: Option<&str>, request: Request) -> Response {
        match (request, node) {
            (Request::Join { node, token, csr }, _) => self.join(&node, &token, &csr),
            (Request::Issue { id, csr }, Some(node)) => self.issue(node, &id, &csr),
            (Request::Issue { id, .. }, None) => self.denied(None, Some(&id), Denied::NoCertificate, ""),
            (Request::Bundle, _) => Response::Bundle(certificates(&self.state.lock().authority)),
        }
    }

    fn join(&self, node: &str, token: &str, csr: &[u8]) -> Response {
        let mut state = self.state.lock();
        let joined = now(&self.clock).map_err(|error| (Denied::Unable, error.to_string())).and_then(|time| {
            // First of all: who has no token learns nothing, not even which nodes there are.
            let token = state.tokens.find(token, node, time).ok_or((Denied::Token, String::new()))?;
            let id = state.node_id(node)?;
            let response = state.sign(csr, &id, time)?;
            state.tokens.spend(token);
            Ok((id, response))
        });
        drop(state);
        match joined {
            Ok((id, response)) => {
                info!(node, %id, "node has joined");
                response
            }
            Err((denied, detail)) => self.denied(Some(node), None, denied, &detail),
        }
    }

    fn issue(&self, node: &str, id: &SpiffeId, csr: &[u8]) -> Response {
        let state = self.state.lock();
        let issued = now(&self.clock).map_err(|error| (Denied::Unable, error.to_string())).and_then(|time| {
            let own = state.node_id(node)?;
            if *id != own && !state.is_placed(node, id) {
                return Err((Denied::NotPlaced, String::new()));
            }
            state.sign(csr, id, time)
        });
        drop(state);
        match issued {
            Ok(response) => {
                info!(node, %id, "issued");
                response
            }
            Err((denied, detail)) => self.denied(Some(node), Some(id), denied, &detail),
        }
    }

    /// Counts and logs a refusal.
    fn denied(&self, node: Option<&str>, id: Option<&SpiffeId>, denied: Denied, detail: &str) -> Response {
        let count = {
            let mut state = self.state.lock();
            let count = state.refused.entry(denied).or_default();
            *count += 1;
            *count
        };
        // A name that a stranger has sent is shown quoted and cut.
        let node = node.map(|name| name.chars().take(64).collect::<String>());
        let id = id.map(ToString::to_string);
        warn!(?node, id, detail, count, "refused: {denied}");
        Response::Denied(denied)
    }
}

impl State {
    /// The ID of a node, if it is one of the mesh.
    fn node_id(&self, node: &str) -> Result<SpiffeId, (Denied, String)> {
        let known = self.allowed.as_ref().is_some_and(|allowed| allowed.nodes.contains_key(node));
        if !known {
            return Err((Denied::UnknownNode, String::new()));
        }
        self.authority.trust_domain().node(node).map_err(|error| (Denied::UnknownNode, error.to_string()))
    }

    /// A workload's ID; those under `/ferromesh/` are the mesh's own, whoever should have placed them.
    fn is_placed(&self, node: &str, id: &SpiffeId) -> bool {
        let placed = self.allowed.as_ref().and_then(|allowed| allowed.nodes.get(node));
        placed.is_some_and(|ids| ids.contains(id)) && !id.path().starts_with("/ferromesh/")
    }

    fn sign(&self, csr: &[u8], id: &SpiffeId, time: UnixTime) -> Result<Response, (Denied, String)> {
        let chain = self.authority.issue(csr, id, time).map_err(|error| match error {
            CaError::Request(_) => (Denied::Request, error.to_string()),
            error => (Denied::Unable, error.to_string()),
        })?;
        let chain = chain.iter().map(|der| der.to_vec()).collect();
        Ok(Response::Issued { chain, bundle: certificates(&self.authority) })
    }
}

fn certificates(authority: &Authority) -> Vec<Vec<u8>> {
    authority.bundle().certificates().map(|der| der.to_vec()).collect()
}

/// A new file has another inode or another time.
fn stamp(directory: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    [CA_FILE, BUNDLE_FILE].map(|name| {
        let metadata = std::fs::symlink_metadata(directory.join(name)).ok()?;
        Some((metadata.ino(), metadata.modified().ok()?))
    })
}

fn now(clock: &Clock) -> Result<UnixTime, CaError> {
    clock.current_time().ok_or(CaError::NoTime)
}

/// The right to one connection.
struct Slot {
    server: Arc<Server>,
    address: IpAddr,
}

impl Slot {
    fn take(server: &Arc<Server>, address: IpAddr) -> Option<Self> {
        let mut state = server.state.lock();
        let all: usize = state.connections.values().sum();
        let own = state.connections.get(&address).copied().unwrap_or(0);
        if all >= MAX_CONNECTIONS || own >= MAX_PER_ADDRESS {
            return None;
        }
        state.connections.insert(address, own + 1);
        drop(state);
        Some(Self { server: server.clone(), address })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.server.state.lock();
        if let Some(own) = state.connections.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                state.connections.remove(&self.address);
            }
        }
    }
}

/// Whether half of a certificate's life is over, counted from when it was issued: one that lives shorter than it was
/// backdated would otherwise be made anew for every connection.
fn half_over(svid: &Svid, time: UnixTime) -> bool {
    let (issued, end) = (svid.not_before().as_secs().saturating_add(BACKDATED), svid.not_after().as_secs());
    time.as_secs() >= issued.saturating_add(end.saturating_sub(issued) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Files, Lifetimes};
    use crate::testing::{NOW, TestClock, at, domain};

    /// Root and intermediate of a CA.
    fn prepared(directory: &tempfile::TempDir) -> Files {
        let files = Files {
            root: directory.path().join("root"),
            directory: directory.path().join("ca"),
            owner: None,
            trust_domain: domain("rebels.example"),
            lifetimes: Lifetimes::default(),
        };
        files.prepare(at(NOW)).unwrap();
        files
    }

    #[test]
    fn the_own_certificate_is_made_anew_at_half_of_its_life_however_short() {
        let directory = tempfile::tempdir().unwrap();
        let files = prepared(&directory);
        for lifetime in [10, 60, 3_600] {
            let authority = Authority::open(&files.directory, Duration::from_secs(lifetime)).unwrap();
            let own = authority.own(at(NOW)).unwrap();
            let over = [0, lifetime / 2 - 1, lifetime / 2].map(|age| half_over(&own, at(NOW + age)));
            assert_eq!(over, [false, false, true], "{lifetime} s");
        }
    }

    #[test]
    fn connections_are_bounded_in_all_and_from_each_address() {
        let directory = tempfile::tempdir().unwrap();
        let files = prepared(&directory);
        let server =
            Server::open(&files.directory, Duration::from_secs(60), TestClock::at(NOW).clock()).unwrap();
        let server = Arc::new(server);
        let take = |last: u8| Slot::take(&server, IpAddr::from([10, 0, 0, last]));
        let mut first: Vec<Slot> = (0..MAX_PER_ADDRESS).map(|_| take(1).unwrap()).collect();
        assert!(take(1).is_none(), "one too many from this address");
        let others: Vec<Slot> = (MAX_PER_ADDRESS..MAX_CONNECTIONS)
            .map(|index| take(2 + (index / MAX_PER_ADDRESS) as u8).unwrap())
            .collect();
        assert!(take(100).is_none(), "one too many in all");
        first.pop();
        assert!(take(100).is_some());
        drop((first, others));
        assert!(server.state.lock().connections.is_empty(), "nothing is remembered");
    }
}
