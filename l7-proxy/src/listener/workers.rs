//! Workers: threads that accept and serve.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener as Listener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use linux::vanished;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tracing::{debug, warn};

use super::call::call;
use super::kernel::Kernel;
use crate::runtime::{Called, Connection, FlowLog, Published, Worker, serve};

/// The most connections of a worker.
const MAX_CONNECTIONS: usize = 16_384;
/// Descriptors of a process beside those of its connections: maps, sockets, those of the runtimes.
const OTHERS: u64 = 256;
/// What a worker waits after it could not accept, for want of descriptors mostly.
const PAUSE: Duration = Duration::from_millis(50);

/// Listening sockets of a worker: one for each family.
pub type Listeners = [OwnedFd; 2];

/// How many descriptors a process with so many workers may come to have: two for each connection.
pub fn descriptors(workers: usize) -> u64 {
    workers as u64 * MAX_CONNECTIONS as u64 * 2 + OTHERS
}

/// Workers that are running; they end with the process.
pub struct Workers {
    /// The rules they judge by.
    pub published: Arc<Published>,
    pub(super) shared: Vec<Shared>,
}

/// What a worker shares with who speaks to the agent.
#[derive(Clone, Default)]
pub(super) struct Shared {
    pub(super) log: Arc<FlowLog>,
    pub(super) connections: Arc<Mutex<BTreeMap<u64, Arc<Connection>>>>,
}

/// Starts a worker for each pair of listeners.
pub fn start(listeners: Vec<Listeners>, identities: maps::Identities) -> io::Result<Workers> {
    let published = Arc::new(Published::default());
    let kernel = Kernel(Arc::new(identities));
    let mut shared = Vec::new();
    for (number, listeners) in listeners.into_iter().enumerate() {
        let own = Shared::default();
        shared.push(own.clone());
        let worker = Worker {
            identities: kernel.clone(),
            published: Arc::clone(&published),
            log: own.log,
            connections: own.connections,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            LocalSet::new().block_on(&runtime, work(listeners, worker));
        })?;
    }
    Ok(Workers { published, shared })
}

/// Accepts until the proxy is drained, and serves to the end of the process.
async fn work(listeners: Listeners, worker: Worker<Kernel>) {
    let worker = Rc::new(worker);
    for listener in listeners {
        let worker = Rc::clone(&worker);
        tokio::task::spawn_local(async move {
            if let Err(error) = accept(listener, worker).await {
                warn!(%error, "a listening socket cannot be used");
            }
        });
    }
    std::future::pending().await
}

async fn accept(listener: OwnedFd, worker: Rc<Worker<Kernel>>) -> io::Result<()> {
    let listener = Listener::from(listener);
    listener.set_nonblocking(true)?;
    // Clients that vanish would hold their place and two descriptors for ever, where nothing else bounds a connection.
    vanished::notice(&listener).map_err(io::Error::other)?;
    let listener = TcpListener::from_std(listener)?;
    let own = canonical(listener.local_addr()?);
    let mut changes = worker.published.subscribe();
    // Who connects before the rules are there waits for them.
    while !worker.published.snapshot().is_synced && !worker.published.is_draining() {
        if changes.changed().await.is_err() {
            return Ok(());
        }
    }
    while !worker.published.is_draining() {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = changes.changed() => continue,
        };
        let opened = accepted.and_then(|(stream, client)| {
            let server = stream.local_addr()?;
            stream.set_nodelay(true)?;
            Ok((stream, Called { client: canonical(client), server: canonical(server) }))
        });
        match opened {
            // Somebody of this host, by the listener's own address: a call to that would come back here, without end.
            Ok((_, called)) if called.server == own || called.server.ip().is_loopback() => {
                debug!(client = %called.client, "called by its own address; closed");
            }
            Ok(_) if worker.connections.lock().len() >= MAX_CONNECTIONS => {
                warn!("more than {MAX_CONNECTIONS} connections; this one is closed");
            }
            Ok((stream, called)) => drop(tokio::task::spawn_local(one(stream, called, Rc::clone(&worker)))),
            Err(error) => {
                warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    Ok(())
}

async fn one(stream: TcpStream, called: Called, worker: Rc<Worker<Kernel>>) {
    serve(stream, called, &worker, async || call(called).await).await;
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
