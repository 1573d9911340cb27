//! Workers: threads that accept and serve.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as Listener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use linux::vanished;
use node_api::proxy::ProxyBudgets;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::unconstrained;
use tracing::{debug, error, warn};

use super::budgets;
use super::call::call;
use super::kernel::Kernel;
use super::seldom::Seldom;
use crate::runtime::{
    BOUNDS, Called, Connection, FlowLog, Identities, Published, Spawner, Tenants, Worker, serve_admitted,
    turn,
};
use crate::stage::admit::{Budgets, Tenant};

/// The most connections of a worker.
const MAX_CONNECTIONS: u64 = BOUNDS[0];
/// Descriptors of a process beside those of its connections: maps, sockets, those of the runtimes.
const OTHERS: u64 = 256;
/// Why a connection is closed that was not for anybody behind the proxy.
const OWN: &str = "called by the address of the proxy";
/// What a worker waits after it could not accept.
const PAUSE: Duration = Duration::from_millis(50);

/// Listening sockets of a worker: one for each family.
pub type Listeners = [OwnedFd; 2];

/// How many descriptors a process with so many workers may come to have: two for each connection.
pub fn descriptors(workers: usize) -> u64 {
    workers as u64 * MAX_CONNECTIONS * 2 + OTHERS
}

/// Workers that are running; they end with the process.
pub struct Workers {
    /// The rules they judge by.
    pub published: Arc<Published>,
    /// Who has which address, as they know it.
    pub(super) identities: Arc<dyn Identities + Send + Sync>,
    pub(super) shared: Vec<Shared>,
}

impl Workers {
    /// Whether nobody listens, and no connection that was taken is left.
    pub(super) fn is_idle(&self) -> bool {
        self.shared.iter().all(|worker| Arc::strong_count(&worker.busy) == 1)
    }

    /// What workloads have, and were refused, of all workers.
    pub(super) fn budgets(&self) -> Vec<ProxyBudgets> {
        budgets::rows(self.shared.iter().map(|worker| &*worker.budgets), self.published.is_draining())
    }
}

/// What a worker shares with who speaks to the agent.
#[derive(Clone)]
pub(super) struct Shared {
    /// Who listens or serves has a copy; from the moment a connection is taken on it counts.
    pub(super) busy: Arc<()>,
    pub(super) log: Arc<FlowLog>,
    pub(super) connections: Arc<Mutex<BTreeMap<u64, Arc<Connection>>>>,
    pub(super) budgets: Arc<Budgets>,
}

/// Starts a worker for each pair of listeners, in a process that may open so many files.
pub fn start(
    listeners: Vec<Listeners>,
    identities: maps::Identities,
    open_files: u64,
) -> io::Result<Workers> {
    let published = Arc::new(Published::default());
    let kernel = Kernel::new(identities);
    let places = places(open_files, listeners.len());
    let [_, heads, streams, bytes] = BOUNDS;
    let mut shared = Vec::new();
    for (number, listeners) in listeners.into_iter().enumerate() {
        let budgets = Arc::new(Budgets::new([places, heads, streams, bytes]));
        let own = Shared { busy: Arc::default(), log: Arc::default(), connections: Arc::default(), budgets };
        shared.push(own.clone());
        let worker = Worker {
            identities: kernel.clone(),
            published: Arc::clone(&published),
            log: own.log,
            connections: own.connections,
            budgets: own.budgets,
        };
        let busy = own.busy;
        // Whatever there may be of tokio's own tasks: what has arrived is looked at after each.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(1).build()?;
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let _vital = Vital::new("a worker", &worker.published);
            match runtime.block_on(unconstrained(work(listeners, worker, busy))) {}
        })?;
    }
    Ok(Workers { published, identities: Arc::new(kernel), shared })
}

/// What a proxy that takes connections cannot be without. Where it ends all the same (an error of the program), the process
/// ends: the agent starts another at once, and who connects waits. Going on, those would wait for ever whom the kernel gives
/// to what has ended.
struct Vital {
    what: &'static str,
    published: Arc<Published>,
    end: fn(),
}

impl Vital {
    fn new(what: &'static str, published: &Arc<Published>) -> Self {
        Self { what, published: Arc::clone(published), end: || std::process::exit(1) }
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if !self.published.is_draining() {
            error!("{} has ended, and the process with it", self.what);
            (self.end)();
        }
    }
}

/// The connections that a worker has descriptors for: two each.
fn places(open_files: u64, workers: usize) -> u64 {
    (open_files.saturating_sub(OTHERS) / 2 / workers.max(1) as u64).min(MAX_CONNECTIONS)
}

/// Accepts until the proxy is drained, and serves to the end of the process.
async fn work(listeners: Listeners, worker: Worker<Kernel>, busy: Arc<()>) -> std::convert::Infallible {
    let worker = Rc::new(worker);
    let tenants = Tenants::default();
    for listener in listeners {
        let acceptor = Acceptor {
            worker: Rc::clone(&worker),
            busy: Arc::clone(&busy),
            spawner: tenants.spawner(),
            refused: Seldom::default(),
            failed: Seldom::default(),
        };
        let vital = Vital::new("a listening socket", &worker.published);
        tenants.spawner().spawn(Tenant::Worker, async move {
            let _vital = vital;
            if let Err(error) = acceptor.accept(listener).await {
                error!(%error, "a listening socket cannot be used");
            }
        });
    }
    drop(busy);
    let (spawner, published) = (tenants.spawner(), Arc::clone(&worker.published));
    tenants.spawner().spawn(Tenant::Worker, async move {
        let mut changes = published.subscribe();
        while !published.ends_all() && changes.changed().await.is_ok() {}
        // Most wait for their ends and not for that.
        spawner.wake_all();
    });
    tenants.await
}

/// Takes what comes on a listening socket.
struct Acceptor {
    worker: Rc<Worker<Kernel>>,
    busy: Arc<()>,
    spawner: Spawner,
    refused: Seldom,
    failed: Seldom,
}

impl Acceptor {
    async fn accept(&self, listener: OwnedFd) -> io::Result<()> {
        let listener = Listener::from(listener);
        listener.set_nonblocking(true)?;
        // Clients that vanish would hold their place and two descriptors for ever, where nothing else bounds a connection.
        vanished::notice(&listener).map_err(io::Error::other)?;
        let listener = TcpListener::from_std(listener)?;
        let own = canonical(listener.local_addr()?);
        let published = &self.worker.published;
        let mut changes = published.subscribe();
        // Who connects before the rules are there waits for them.
        while !published.snapshot().is_synced && !published.is_draining() {
            if changes.changed().await.is_err() {
                return Ok(());
            }
        }
        while !published.is_draining() {
            poll_fn(|cx| turn::step(turn::LOOK, cx)).await;
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                _ = changes.changed() => continue,
            };
            match accepted.and_then(|(stream, client)| opened(stream, client)) {
                // Somebody of this host, by the listener's own address: a call to that would come back here, without end.
                Ok((_, called)) if called.server == own || called.server.ip().is_loopback() => {
                    self.worker.log.refuse(OWN);
                    debug!(client = %called.client, "{OWN}; closed");
                }
                Ok((stream, called)) => self.admit(stream, called),
                Err(error) => {
                    if let Some(times) = self.failed.note() {
                        warn!(%error, times, "connections cannot be accepted");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }

    fn admit(&self, stream: TcpStream, called: Called) {
        match self.worker.admit(called) {
            Ok(place) => {
                let (worker, busy) = (Rc::clone(&self.worker), Arc::clone(&self.busy));
                self.spawner.spawn(place.tenant, async move {
                    serve_admitted(stream, called, place, &worker, async || call(called).await).await;
                    drop(busy);
                });
            }
            Err(reason) => {
                if let Some(times) = self.refused.note() {
                    warn!(client = %called.client, server = %called.server, reason, times, "connections are closed");
                }
            }
        }
    }
}

fn opened(stream: TcpStream, client: SocketAddr) -> io::Result<(TcpStream, Called)> {
    let server = stream.local_addr()?;
    stream.set_nodelay(true)?;
    Ok((stream, Called { client: canonical(client), server: canonical(server) }))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_ends_with_what_it_cannot_be_without_unless_it_is_drained() {
        use std::pin::pin;
        use std::sync::atomic::{AtomicU32, Ordering};
        static ENDS: AtomicU32 = AtomicU32::new(0);
        let published = Arc::new(Published::default());
        let ends = |published: &Arc<Published>| {
            let end = || {
                ENDS.fetch_add(1, Ordering::Relaxed);
            };
            let mut vital = Vital::new("a test", published);
            vital.end = end;
            let tenants = Tenants::default();
            tenants.spawner().spawn(Tenant::Worker, async move {
                let _vital = vital;
                panic!("on purpose");
            });
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(pin!(tenants).poll(&mut cx).is_pending());
            ENDS.load(Ordering::Relaxed)
        };
        assert_eq!(ends(&published), 1);
        published.drain();
        assert_eq!(ends(&published), 1);
    }

    #[test]
    fn a_worker_has_places_for_as_many_as_it_has_descriptors_for() {
        assert_eq!(places(descriptors(4), 4), MAX_CONNECTIONS);
        assert_eq!(places(u64::MAX, 4), MAX_CONNECTIONS);
        assert_eq!(places(1024, 2), 192);
        assert_eq!((places(100, 2), places(1024, 0)), (0, 384));
    }
}
