//! What the connections of a worker share, and what all workers share.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use mesh::workload::EndpointId;
use node_api::proxy::ProxyConnection;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use mesh::flow::Verdict;

use super::connection::Called;
use super::ends::{Ends, Identities};
use super::log::{Described, FlowLog, Said};
use crate::index::Endpoint;
use crate::stage::admit::{Amounts, Budgets, Payer, Place, Tenant};

/// The rules in force. Never changed: a change makes another, which shares what has not changed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Everything has been told once.
    pub is_synced: bool,
    endpoints: BTreeMap<EndpointId, Arc<Endpoint>>,
    addresses: BTreeMap<IpAddr, Arc<Endpoint>>,
}

impl Snapshot {
    /// The endpoint with rules that has an address.
    pub fn of(&self, address: IpAddr) -> Option<&Endpoint> {
        self.addresses.get(&address).map(Arc::as_ref)
    }

    /// The endpoint of a number.
    pub fn get(&self, id: EndpointId) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(&id)
    }

    /// Puts an endpoint in place of what had its number.
    pub fn insert(&mut self, endpoint: Endpoint) {
        self.remove(endpoint.id);
        let endpoint = Arc::new(endpoint);
        self.addresses.extend(endpoint.addresses.map(|address| (address, Arc::clone(&endpoint))));
        self.endpoints.insert(endpoint.id, endpoint);
    }

    /// Removes an endpoint; one that is not there is fine.
    pub fn remove(&mut self, id: EndpointId) {
        let Some(gone) = self.endpoints.remove(&id) else { return };
        for address in gone.addresses {
            // Another one may have the address by now.
            if self.addresses.get(&address).is_some_and(|has| has.id == id) {
                self.addresses.remove(&address);
            }
        }
    }

    /// Numbers of all endpoints.
    pub fn ids(&self) -> Vec<EndpointId> {
        self.endpoints.keys().copied().collect()
    }
}

/// Connections are taken.
const SERVING: u8 = 0;
/// None is taken, and each ends with its next answer.
const DRAINING: u8 = 1;
/// Those on which nothing is under way end now.
const ENDING: u8 = 2;
/// All end now, whatever is under way.
const OVER: u8 = 3;
/// Why what is under way then breaks off.
pub(super) const ENDED: &str = "proxy ended";

/// Where workers find the rules: a change is in force on all of them when [`Published::set`] returns, for each compares
/// the version at every request.
#[derive(Debug)]
pub struct Published {
    version: AtomicU64,
    current: ArcSwap<Snapshot>,
    phase: AtomicU8,
    changes: watch::Sender<()>,
}

impl Default for Published {
    fn default() -> Self {
        Self {
            version: AtomicU64::new(0),
            current: ArcSwap::default(),
            phase: AtomicU8::new(SERVING),
            changes: watch::Sender::new(()),
        }
    }
}

impl Published {
    /// The rules.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Puts others in force.
    pub fn set(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
        self.version.fetch_add(1, Ordering::Release);
        self.changes.send_replace(());
    }

    /// From now on no connection is taken, and each says with its next answer that it ends. One that is idle is left to its
    /// client: closed now, it could meet a request that is on its way.
    pub fn drain(&self) {
        self.enter(DRAINING);
    }

    /// From now on connections that wait for a request end as well.
    pub fn end_idle(&self) {
        self.enter(ENDING);
    }

    /// From now on whatever is under way breaks off, and is recorded so. What is not polled by itself is to be
    /// ([`Spawner::wake_all`](super::Spawner::wake_all)).
    pub fn end_all(&self) {
        self.enter(OVER);
    }

    fn enter(&self, phase: u8) {
        if self.phase.fetch_max(phase, Ordering::AcqRel) < phase {
            self.changes.send_replace(());
        }
    }

    /// Whether [`Published::drain`] has been called.
    pub fn is_draining(&self) -> bool {
        self.phase.load(Ordering::Acquire) >= DRAINING
    }

    /// Whether [`Published::end_idle`] has been called.
    pub fn ends_idle(&self) -> bool {
        self.phase.load(Ordering::Acquire) >= ENDING
    }

    /// Whether [`Published::end_all`] has been called.
    pub fn ends_all(&self) -> bool {
        self.phase.load(Ordering::Acquire) >= OVER
    }

    /// Told of every change, draining included.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}

/// What a worker has, in the order of [`Kind::ALL`](crate::stage::admit::Kind::ALL): connections, unfinished heads, streams,
/// bytes of buffers. One workload alone may have half of it.
pub const BOUNDS: Amounts = [16_384, 2048, 4096, 128 << 20];

/// What a worker's connections share.
#[derive(Debug)]
pub struct Worker<I> {
    /// Who has which address.
    pub identities: I,
    /// The rules.
    pub published: Arc<Published>,
    /// What was seen.
    pub log: Arc<FlowLog>,
    /// The connections, for who asks.
    pub connections: Arc<Mutex<BTreeMap<u64, Arc<Connection>>>>,
    /// What the workloads may have of it.
    pub budgets: Arc<Budgets>,
}

/// A connection, for who asks.
#[derive(Debug)]
pub struct Connection {
    client: SocketAddr,
    server: SocketAddr,
    opened: Instant,
    pub(super) requests: AtomicU64,
    /// The upstream's local address, and what is spoken.
    pub(super) known: Mutex<(Option<SocketAddr>, Option<&'static str>)>,
}

impl Connection {
    pub(super) fn new(client: SocketAddr, server: SocketAddr) -> Self {
        let (requests, known) = (AtomicU64::new(0), Mutex::new((None, None)));
        Self { client, server, opened: Instant::now(), requests, known }
    }

    /// As the agent is told.
    pub fn view(&self) -> ProxyConnection {
        let (upstream, protocol) = *self.known.lock();
        ProxyConnection {
            client: self.client,
            server: self.server,
            upstream,
            protocol: protocol.map(str::to_owned),
            requests: self.requests.load(Ordering::Relaxed),
            age: self.opened.elapsed().as_secs(),
            draining: false,
        }
    }
}

impl<I: Identities> Worker<I> {
    /// *admit*: a place for a connection, or why there is none; the refusal is in the flows.
    pub fn admit(&self, called: Called) -> Result<Place, &'static str> {
        let place = self.budgets.admit(self.payer(called), called.client.ip());
        place.inspect_err(|reason| self.refused(called, reason))
    }

    fn payer(&self, Called { client, server }: Called) -> Payer {
        let of = |address: IpAddr| self.identities.find(address).instance.map(Tenant::Endpoint);
        let caller = of(client.ip()).map(|tenant| (tenant, client.ip(), true));
        let (tenant, address, is_caller) =
            caller.unwrap_or_else(|| (of(server.ip()).unwrap_or(Tenant::Nobody), server.ip(), false));
        Payer { tenant, address, is_caller }
    }

    fn refused(&self, called: Called, reason: &'static str) {
        let mut ends = Ends::default();
        ends.refresh(called.client, called.server, &self.published, &self.identities);
        let (who, judge) = (&ends, ends.strict().or(ends.speaker()));
        let (ends, request) = ([called.client, called.server], &Described::default());
        let (verdict, reason) = (Verdict::Dropped, Some(reason));
        self.log.record(&Said { ends, who, judge, request, verdict, reason, answer: None });
    }
}

impl<I> Worker<I> {
    /// Enters a connection in the list, until what is returned is dropped.
    pub(super) fn enter(&self, client: SocketAddr, server: SocketAddr) -> Entered {
        let connection = Arc::new(Connection::new(client, server));
        let mut list = self.connections.lock();
        let number = list.last_key_value().map_or(0, |(last, _)| last + 1);
        list.insert(number, Arc::clone(&connection));
        Entered { connection, number, list: Arc::clone(&self.connections) }
    }
}

/// A connection in the list.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) connection: Arc<Connection>,
    number: u64,
    list: Arc<Mutex<BTreeMap<u64, Arc<Connection>>>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.list.lock().remove(&self.number);
    }
}
