//! The way to a session: who connects is let in when he has shown a node's certificate, and who is called must be the
//! one that was meant.
//!
//! Promise: those who have not shown one yet are few, for five seconds each, and a crowd from one address or from many
//! pushes out its own oldest; nobody waits for another.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener as Listener};
use std::sync::Arc;
use std::time::Duration;

use certs::verify::{VerifyError, refusal_of_io};
use mesh::auth::Refusal;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tracing::{debug, warn};

/// How long a handshake may take, and a connection to an address.
const PATIENCE: Duration = Duration::from_secs(5);
/// Strangers at once, from everywhere and from one address.
const MAX_STRANGERS: usize = 32;
const MAX_STRANGERS_OF_ONE: usize = 8;
/// How long a peer may leave what was sent unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// A connection whose other end has shown a certificate that was accepted.
pub(super) struct Met {
    /// The connection.
    pub(super) stream: TlsStream<TcpStream>,
    /// Its other end.
    pub(super) address: SocketAddr,
    /// The node that was called; none: it called.
    pub(super) called: Option<String>,
}

impl Met {
    /// What it has shown.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec()
    }
}

/// What comes of the door.
pub(super) enum Arrival {
    /// Somebody connects: [`Door::admit`].
    Stranger(TcpStream, SocketAddr),
    /// A handshake has ended well.
    Met(Box<Met>),
    /// Somebody who connected was turned away.
    TurnedAway {
        /// Who.
        address: SocketAddr,
        /// Why.
        why: Refusal,
        /// That in the words of who judged it.
        problem: String,
    },
    /// A node that was called is not to be had; why.
    Failed {
        /// Its name.
        node: String,
        /// What was tried and how each ended.
        problem: String,
    },
}

/// Listeners, strangers, and calls under way.
pub(super) struct Door {
    strangers: Vec<Stranger>,
    calls: BTreeMap<String, AbortHandle>,
    arrivals: mpsc::Sender<Arrival>,
    arrived: mpsc::Receiver<Arrival>,
    /// Ends with this.
    _listening: JoinSet<()>,
}

struct Stranger {
    address: SocketAddr,
    task: AbortHandle,
}

impl Door {
    /// Over listening sockets. Must be called within a runtime.
    pub(super) fn new(listeners: Vec<Listener>) -> io::Result<Self> {
        let (arrivals, arrived) = mpsc::channel(4);
        let mut listening = JoinSet::new();
        for listener in listeners {
            listener.set_nonblocking(true)?;
            listening.spawn(listen(TcpListener::from_std(listener)?, arrivals.clone()));
        }
        Ok(Self { strangers: Vec::new(), calls: BTreeMap::new(), arrivals, arrived, _listening: listening })
    }

    /// Who comes next. Cancel safe.
    pub(super) async fn arrives(&mut self) -> Arrival {
        loop {
            let Some(arrival) = self.arrived.recv().await else {
                // This side keeps a sender.
                std::future::pending().await
            };
            match &arrival {
                // Of a call that was given up in the meantime nothing more is heard.
                Arrival::Met(met)
                    if met.called.as_ref().is_some_and(|node| self.calls.remove(node).is_none()) => {}
                Arrival::Failed { node, .. } if self.calls.remove(node).is_none() => {}
                _ => return arrival,
            }
        }
    }

    /// Lets a stranger show his certificate.
    /// Returns who has to go for it.
    pub(super) fn admit(
        &mut self,
        stream: TcpStream,
        address: SocketAddr,
        config: Arc<ServerConfig>,
    ) -> Option<SocketAddr> {
        let mut pushed_out = None;
        self.strangers.retain(|stranger| !stranger.task.is_finished());
        let of_one = self.strangers.iter().filter(|stranger| stranger.address.ip() == address.ip()).count();
        let oldest = if of_one >= MAX_STRANGERS_OF_ONE {
            self.strangers.iter().position(|stranger| stranger.address.ip() == address.ip())
        } else {
            (self.strangers.len() >= MAX_STRANGERS).then_some(0)
        };
        if let Some(oldest) = oldest {
            let Stranger { address, task } = self.strangers.remove(oldest);
            task.abort();
            pushed_out = Some(address);
        }
        let task = tokio::spawn(greet(stream, address, config, self.arrivals.clone())).abort_handle();
        self.strangers.push(Stranger { address, task });
        pushed_out
    }

    /// Calls a node. The configuration insists on that very node's certificate.
    pub(super) fn call(&mut self, node: String, addresses: Vec<SocketAddr>, config: Arc<ClientConfig>) {
        let arrivals = self.arrivals.clone();
        let name = node.clone();
        let task = tokio::spawn(async move {
            let arrival = match call(&addresses, &config).await {
                Ok((stream, address)) => {
                    Arrival::Met(Box::new(Met { stream: stream.into(), address, called: Some(name) }))
                }
                Err(problem) => Arrival::Failed { node: name, problem },
            };
            let _ = arrivals.send(arrival).await;
        });
        if let Some(before) = self.calls.insert(node, task.abort_handle()) {
            before.abort();
        }
    }
}

async fn listen(listener: TcpListener, arrivals: mpsc::Sender<Arrival>) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                if arrivals.send(Arrival::Stranger(stream, address)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // Too many descriptors, or a connection that has gone again: not an end, and no reason to try without
                // pause.
                warn!(%error, "listening for nodes");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn greet(
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    arrivals: mpsc::Sender<Arrival>,
) {
    if let Err(error) = tune(&stream) {
        return debug!(%address, %error, "connection of a node");
    }
    let arrival = match timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => Arrival::Met(Box::new(Met { stream: stream.into(), address, called: None })),
        Ok(Err(error)) => {
            let why = match refusal_of_io(&error) {
                // It went, or spoke no TLS.
                Refusal::NodeUnreachable => Refusal::Protocol,
                why => why,
            };
            Arrival::TurnedAway { address, why, problem: explained(&error) }
        }
        Err(_) => {
            let problem = "it showed no certificate in time".to_owned();
            Arrival::TurnedAway { address, why: Refusal::TimedOut, problem }
        }
    };
    let _ = arrivals.send(arrival).await;
}

/// The first address that answers as it should; otherwise how each did.
async fn call(
    addresses: &[SocketAddr],
    config: &Arc<ClientConfig>,
) -> Result<(tokio_rustls::client::TlsStream<TcpStream>, SocketAddr), String> {
    let mut problems = Vec::new();
    for address in addresses {
        let attempt = async {
            let stream = TcpStream::connect(address).await?;
            tune(&stream)?;
            let name = ServerName::from(address.ip());
            TlsConnector::from(Arc::clone(config)).connect(name, stream).await
        };
        match timeout(PATIENCE, attempt).await {
            Ok(Ok(stream)) => return Ok((stream, *address)),
            Ok(Err(error)) => problems.push(format!("{address}: {}", explained(&error))),
            Err(_) => problems.push(format!("{address}: no answer within {} s", PATIENCE.as_secs())),
        }
    }
    if problems.is_empty() {
        problems.push("its Node object names no address".to_owned());
    }
    Err(problems.join("; "))
}

/// An error of a TLS stream; what was wrong with a certificate, in the words of who judged it.
fn explained(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause.and_then(VerifyError::of) {
        Some(verdict) => verdict.to_string(),
        None => error.to_string(),
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(UNACKNOWLEDGED))?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}
