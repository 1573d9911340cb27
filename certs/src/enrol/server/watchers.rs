//! Nodes that wait for another bundle.
//!
//! Promise: each hears of a change as soon as it is in force here, whatever else nodes ask; there is one such connection
//! per node of the mesh, whose latest counts. What a connection was let in for is judged again whenever it asks again.

use std::collections::BTreeMap;
use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::super::message::{self, Denied, HOLD, Request, Response};
use super::{PATIENCE, Server};
use crate::bundle::Fingerprint;

/// Each node's; dropping it ends the connection.
pub(super) type Watchers = BTreeMap<String, oneshot::Sender<()>>;

/// A node, and the bundle that it has.
pub(super) struct Waits {
    pub(super) node: String,
    pub(super) known: Fingerprint,
    pub(super) stream: TlsStream<TcpStream>,
}

impl Server {
    /// Its name, if it may.
    pub(super) fn may_wait(&self, node: Option<String>) -> Result<String, Response> {
        let Some(node) = node else { return Err(self.denied(None, None, Denied::NoCertificate, "")) };
        let is_of_mesh = self.state.lock().node_id(&node).map(drop);
        match is_of_mesh {
            Ok(()) => Ok(node),
            Err((denied, detail)) => Err(self.denied(Some(&node), None, denied, &detail)),
        }
    }

    /// Tells a node of every other bundle, until it goes or comes again.
    pub(super) async fn attend(&self, waits: Waits) -> io::Result<()> {
        let (held, mut given_up) = oneshot::channel();
        let node = waits.node.clone();
        self.state.lock().watchers.insert(node.clone(), held);
        let result = self.tell(waits, &mut given_up).await;
        given_up.close();
        let mut state = self.state.lock();
        if state.watchers.get(&node).is_some_and(oneshot::Sender::is_closed) {
            state.watchers.remove(&node);
        }
        result
    }

    async fn tell(&self, waits: Waits, given_up: &mut oneshot::Receiver<()>) -> io::Result<()> {
        let Waits { node, mut known, mut stream } = waits;
        loop {
            let response = tokio::select! {
                response = self.other_than(known) => response,
                _ = &mut *given_up => return Ok(()),
                // It has nothing to say before it has its answer: it has gone, or is of another version.
                _ = stream.read_u8() => return Ok(()),
            };
            timeout(PATIENCE, message::send(&mut stream, &response)).await??;
            known = match timeout(PATIENCE, message::receive(&mut stream)).await? {
                Ok(Request::Watch { known }) => known,
                // It has heard what it wanted to.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "another request than before"));
                }
            };
            self.refresh();
            // Roots are public, and whose root is gone is the very one to hear of it.
            if *self.fingerprint.borrow() != known {
                continue;
            }
            let shown = self.peer(stream.get_ref().1.peer_certificates())?;
            if let Err(response) = self.may_wait(shown.filter(|shown| *shown == node)) {
                timeout(PATIENCE, message::send(&mut stream, &response)).await??;
                return stream.shutdown().await;
            }
        }
    }

    async fn other_than(&self, known: Fingerprint) -> Response {
        let mut fingerprint = self.fingerprint.subscribe();
        match timeout(HOLD, fingerprint.wait_for(|now| *now != known)).await {
            Ok(_) => self.bundle(),
            Err(_) => Response::Unchanged,
        }
    }
}
