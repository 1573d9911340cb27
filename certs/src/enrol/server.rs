//! The CA's side.
//!
//! Promise: a node gets certificates for the workloads placed on it and for itself, nobody gets any other; each refusal
//! is logged with the node that asked and what for. Whoever connects is bounded in time, bytes and number of
//! connections before anything is known of him, and who fills them all up pushes out his own. A change of the bundle is
//! told at once to every node that waits for one. A restart needs nothing but the CA's directory, and placements told
//! again: until then nothing is issued.

mod files;
mod slots;
mod watchers;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh::spiffe::{SpiffeId, TrustDomain};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::UnixTime;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use super::message::{self, Denied, Request, Response};
use super::token::Tokens;
use crate::Clock;
use crate::bundle::{Bundles, Fingerprint};
use crate::ca::{Authority, BACKDATED, CaError};
use crate::svid::Svid;
use crate::tls;
use crate::verify::{Expected, node_name, problem_of_io, verify_chain};
use files::{Stamp, stamp};
use slots::{Slot, Slots};
use watchers::{Waits, Watchers};

/// How long one connection may take, from accept to close.
pub const PATIENCE: Duration = Duration::from_secs(5);
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

struct State {
    authority: Authority,
    stamp: Stamp,
    own: Svid,
    allowed: Option<Allowed>,
    tokens: Tokens,
    refused: BTreeMap<Denied, u64>,
    slots: Slots,
    watchers: Watchers,
}

/// A CA that answers nodes.
#[derive(Debug)]
pub struct Server {
    directory: PathBuf,
    lifetime: Duration,
    clock: Clock,
    bundles: Arc<Bundles>,
    state: Mutex<State>,
    /// Of the bundle in force.
    fingerprint: watch::Sender<Fingerprint>,
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
        let fingerprint = watch::Sender::new(authority.bundle().fingerprint());
        let state = State {
            authority,
            stamp,
            own,
            allowed: None,
            tokens: Tokens::default(),
            refused: BTreeMap::new(),
            slots: Slots::default(),
            watchers: Watchers::default(),
        };
        let (directory, state) = (directory.to_owned(), Mutex::new(state));
        Ok(Self { directory, lifetime, clock, bundles, state, fingerprint })
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

    /// How many nodes are told of another bundle as soon as there is one.
    pub fn waiting(&self) -> usize {
        self.state.lock().watchers.len()
    }

    /// Answers nodes until it is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let address = peer.ip();
                    let begin = |slot| tokio::spawn(slot_of(&self, slot).connection(stream, address));
                    if !self.state.lock().slots.take(address, |slot| begin(slot).abort_handle()) {
                        warn!(%peer, "too many connections of nodes: refused");
                    }
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Up to the answer; none where the node waits for another bundle.
    async fn exchange(self: &Arc<Self>, stream: TcpStream, slot: &Slot) -> io::Result<Option<Waits>> {
        stream.set_nodelay(true)?;
        let config = self.config().map_err(io::Error::other)?;
        let mut stream = TlsAcceptor::from(config).accept(stream).await?;
        let node = self.peer(stream.get_ref().1.peer_certificates())?;
        if node.is_some() {
            slot.is_known();
        }
        let response = match message::receive(&mut stream).await {
            Ok(Request::Watch { known }) => match self.may_wait(node) {
                Ok(node) => return Ok(Some(Waits { node, known, stream })),
                Err(response) => response,
            },
            Ok(request) => self.answer(node.as_deref(), request),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.denied(node.as_deref(), None, Denied::Protocol, &error.to_string())
            }
            Err(error) => return Err(error),
        };
        message::send(&mut stream, &response).await?;
        stream.shutdown().await?;
        Ok(None)
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

    fn answer(&self, node: Option<&str>, request: Request) -> Response {
        match (request, node) {
            (Request::Join { node, token, csr }, _) => self.join(&node, &token, &csr),
            (Request::Issue { id, csr }, Some(node)) => self.issue(node, &id, &csr),
            (Request::Issue { id, .. }, None) => self.denied(None, Some(&id), Denied::NoCertificate, ""),
            (Request::Bundle, _) => self.bundle(),
            // Answered where it waits.
            (Request::Watch { .. }, _) => self.denied(node, None, Denied::Protocol, "out of its turn"),
        }
    }

    fn bundle(&self) -> Response {
        Response::Bundle(certificates(&self.state.lock().authority))
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

fn now(clock: &Clock) -> Result<UnixTime, CaError> {
    clock.current_time().ok_or(CaError::NoTime)
}

/// One connection.
struct Connection {
    server: Arc<Server>,
    slot: Slot,
}

fn slot_of(server: &Arc<Server>, number: u64) -> Connection {
    Connection { server: server.clone(), slot: Slot { server: server.clone(), number } }
}

impl Connection {
    async fn connection(self, stream: TcpStream, address: IpAddr) {
        let Self { server, slot } = self;
        match timeout(PATIENCE, server.exchange(stream, &slot)).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(waits))) => {
                // From here on it is one of the nodes', of which there is one each.
                drop(slot);
                if let Err(error) = server.attend(waits).await {
                    info!(%address, error = problem_of_io(&error), "connection failed");
                }
            }
            Ok(Err(error)) => info!(%address, error = problem_of_io(&error), "connection failed"),
            Err(_) => info!(%address, "connection took more than {} s", PATIENCE.as_secs()),
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
    use crate::testing::{NOW, at, domain};

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
}
