//! The answering side: a listening socket, and for each connection a task that judges the caller and hands its
//! request to the agent.
//!
//! Promise: connections, frames and waiting are bounded; a caller that is slow, silent, gone or sends garbage costs
//! its own connection and nothing else. Replies are sent as they are made, so a stream holds one frame in memory.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::frame::{self, FrameError, Frames};
use crate::{Hello, MAX_REPLY, MAX_REQUEST, Reply, Request, VERSION, build_difference};

/// Connections served at once; one more is told so and closed. A hundred workloads that start at once have one each.
pub const MAX_CONNECTIONS: usize = 256;

/// How long a caller may take to greet and ask, and to take in each reply.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent serves it.
    #[error("an agent already answers at {}; stop it with `ferromesh down`, or give another --run-dir", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket stands there.
    #[error("{} exists and is not a socket; remove it or give another --run-dir", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot open the socket {}: {error}", .socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Who asks, by the kernel's word at the time of `connect`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerCredentials {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process id, where the caller is visible in our process namespace. It may be gone and reused: for messages only.
    pub pid: Option<i32>,
}

/// The other side is gone, or did not take a reply in time. There is no one left to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the caller is gone")]
pub struct Gone;

/// The open socket. Its file stays when this is dropped: by then it may be a successor's.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    build: String,
    connections: Arc<Semaphore>,
    patience: Duration,
}

impl Server {
    /// Opens the socket with mode 0660, for root and the group `readers`. A socket left behind by a killed agent is replaced, one that is answered is
    /// not. `build` is the agent's version and commit.
    ///
    /// The mode is set under another name and the socket then renamed: there is no moment in which others can
    /// connect. Two agents that start at the very same time are kept apart by the agent's own lock, not here.
    pub fn bind(socket: &Path, build: &str, readers: Option<u32>) -> Result<Self, BindError> {
        refuse_if_used(socket)?;
        let io = |error| BindError::Io { socket: socket.to_owned(), error };
        let fresh = socket.with_extension(format!("{}.new", std::process::id()));
        let open = || {
            let _ = fs::remove_file(&fresh);
            let listener = UnixListener::bind(&fresh)?;
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o660))?;
            if let Some(readers) = readers {
                chown(&fresh, None, Some(readers))?;
            }
            fs::rename(&fresh, socket)?;
            Ok(listener)
        };
        let listener = open().inspect_err(|_| drop(fs::remove_file(&fresh))).map_err(io)?;
        Ok(Self {
            listener,
            build: build.to_owned(),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            patience: PATIENCE,
        })
    }

    /// Another patience than [`PATIENCE`].
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Answers until dropped. `answer` gets each request that its sender may make; what it returns is not awaited by
    /// other connections. When this future is dropped, so are all answers under way.
    pub async fn serve<A, F>(self, answer: A)
    where
        A: Fn(PeerCredentials, Request, ReplySink) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let answer = Arc::new(answer);
        let mut tasks = JoinSet::new();
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors: the ones in use must end first, and an endless loop would not help.
                        warn!(%error, "node socket: cannot accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                Some(_) = tasks.join_next() => continue,
            };
            match Arc::clone(&self.connections).try_acquire_owned() {
                Ok(permit) => {
                    let connection = self.connection(stream);
                    tasks.spawn(converse(connection, Arc::clone(&answer), permit));
                }
                Err(_) => self.turn_away(&stream),
            }
        }
    }

    fn connection(&self, stream: UnixStream) -> Connection {
        let peer = stream.peer_cred().ok();
        Connection {
            peer: peer.map(|c| PeerCredentials { uid: c.uid(), gid: c.gid(), pid: c.pid() }),
            frames: Frames::new(stream, MAX_REQUEST, MAX_REPLY),
            build: self.build.clone(),
            patience: self.patience,
        }
    }

    /// One write into an empty socket buffer, never waited for.
    fn turn_away(&self, stream: &UnixStream) {
        let full = Reply::Error(format!(
            "the agent serves {MAX_CONNECTIONS} connections already; end some (`observe --follow`, `run`) and try again"
        ));
        let hello = frame::encode(&Hello { version: VERSION, build: self.build.clone() });
        if let (Ok(hello), Ok(full)) = (hello, frame::encode(&full)) {
            let _ = stream.try_write(&[hello, full].concat());
        }
    }
}

fn refuse_if_used(socket: &Path) -> Result<(), BindError> {
    let io = |error| BindError::Io { socket: socket.to_owned(), error };
    match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(socket.to_owned())),
        Ok(_) => {}
    }
    match BlockingStream::connect(socket) {
        Ok(_) => Err(BindError::InUse(socket.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(io(error)),
    }
}

struct Connection {
    frames: Frames,
    peer: Option<PeerCredentials>,
    build: String,
    patience: Duration,
}

/// Where the replies to one request go.
#[derive(Debug)]
pub struct ReplySink {
    frames: Frames,
    patience: Duration,
}

impl ReplySink {
    /// Sends one reply; waits for the caller to take it in, but not for ever.
    pub async fn send(&mut self, reply: &Reply) -> Result<(), Gone> {
        match timeout(self.patience, self.frames.send(reply)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error @ (FrameError::TooLong { .. } | FrameError::Meaning(_)))) => {
                let sorry = Reply::Error(format!("the answer cannot be sent: {error}"));
                timeout(self.patience, self.frames.send(&sorry)).await.map_err(|_| Gone)?.map_err(|_| Gone)
            }
            Ok(Err(FrameError::Closed | FrameError::Io(_))) | Err(_) => Err(Gone),
        }
    }

    /// Returns when the caller has closed the connection or was killed. A caller that sends more than its one request
    /// counts as gone. Cancel safe.
    pub async fn closed(&mut self) {
        let _ = self.frames.receive::<serde_json::Value>().await;
    }
}

async fn converse<A, F>(connection: Connection, answer: Arc<A>, _permit: OwnedSemaphorePermit)
where
    A: Fn(PeerCredentials, Request, ReplySink) -> F,
    F: Future<Output = ()>,
{
    let Connection { frames, peer, build, patience } = connection;
    let mut sink = ReplySink { frames, patience };
    let Some(peer) = peer else {
        return debug!("node socket: a caller without credentials");
    };
    match timeout(patience, hear(&mut sink.frames, &build)).await {
        Err(_) => debug!(?peer, "node socket: the caller did not ask in time"),
        Ok(Err(Unheard::Version(theirs))) => info!(
            ?peer,
            "node socket: the caller speaks version {theirs}, this agent version {VERSION}; not answered"
        ),
        Ok(Err(Unheard::Frame(error))) => {
            debug!(?peer, %error, "node socket: no request");
            if !matches!(error, FrameError::Closed) {
                let _ = sink.send(&Reply::Error(format!("not a request: {error}"))).await;
            }
        }
        Ok(Ok(request)) => match refusal(peer, &request) {
            Some(text) => drop(sink.send(&Reply::Error(text)).await),
            None => answer(peer, request, sink).await,
        },
    }
}

enum Unheard {
    Version(u32),
    Frame(FrameError),
}

impl From<FrameError> for Unheard {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

/// Greetings, then the request.
async fn hear(frames: &mut Frames, build: &str) -> Result<Request, Unheard> {
    frames.send(&Hello { version: VERSION, build: build.to_owned() }).await?;
    let hello: Hello = frames.receive().await?;
    if hello.version != VERSION {
        return Err(Unheard::Version(hello.version));
    }
    if let Some(difference) = build_difference(&hello.build, build) {
        debug!("node socket: {difference}");
    }
    Ok(frames.receive().await?)
}

/// Why `peer` may not ask this; none if it may. Root may all; whoever the socket's mode lets in may read.
fn refusal(peer: PeerCredentials, request: &Request) -> Option<String> {
    (peer.uid != 0 && request.has_effects())
        .then(|| format!("uid {}: only root may change this node; run the same command with sudo", peer.uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_may_all_others_may_read() {
        const NO: &str = "uid 1000: only root may change this node; run the same command with sudo";
        let cases = [
            (0, Request::Status, None),
            (0, Request::Down, None),
            (1000, Request::Status, None),
            (1000, Request::Down, Some(NO)),
        ];
        for (uid, request, expected) in cases {
            let peer = PeerCredentials { uid, gid: uid, pid: None };
            assert_eq!(refusal(peer, &request).as_deref(), expected, "{uid} {request:?}");
        }
    }
}
