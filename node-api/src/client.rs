//! The asking side: the command line and `ferromesh run`.
//!
//! Promise: every failure is one sentence that names the socket and what to do. Nothing waits without bound, except
//! for the next reply of a stream, which may rightly be long in coming.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::frame::{FrameError, Frames};
use crate::{Hello, MAX_REPLY, MAX_REQUEST, Reply, Request, VERSION};

/// How long the agent may take to greet: it does so before it looks at anything else.
const GREETING: Duration = Duration::from_secs(5);

/// How long the agent may take for the answer to [`Client::ask`]; undoing a large node is the slowest.
const ANSWER: Duration = Duration::from_secs(60);

/// Why the agent could not be asked, or what it answered instead.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error("agent is not running (no answer at {}); start it with `ferromesh up`", .socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket's mode keeps the caller out.
    #[error(
        "{} answers only to root and the group {}; run the same command with sudo, or join the group",
        .socket.display(),
        crate::GROUP
    )]
    NotPermitted {
        /// The socket.
        socket: PathBuf,
    },
    /// Someone listens and says nothing.
    #[error("agent at {} has not answered for {} s; it may be stopped or overloaded", .socket.display(), .waited.as_secs())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// How long it was given.
        waited: Duration,
    },
    /// The two speak different versions of the messages.
    #[error(
        "this command speaks version {VERSION} of the node socket, the agent at {} speaks version {agent} \
         (build {build}); use the command installed with it, or restart the agent", .socket.display()
    )]
    Version {
        /// The socket.
        socket: PathBuf,
        /// The agent's version.
        agent: u32,
        /// The agent's build.
        build: String,
    },
    /// The connection ended before the answer.
    #[error("agent at {} closed the connection before it answered; its log says why", .socket.display())]
    Closed {
        /// The socket.
        socket: PathBuf,
    },
    /// What listens there is not an agent, or is broken.
    #[error("what listens at {} does not talk like an agent: {problem}", .socket.display())]
    Foreign {
        /// The socket.
        socket: PathBuf,
        /// What it sent.
        problem: String,
    },
    /// The system refused.
    #[error("{}: {error}", .socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The agent answered with [`Reply::Error`].
    #[error("{0}")]
    Refused(String),
}

/// A greeted connection that has not asked yet.
#[derive(Debug)]
pub struct Client {
    frames: Frames,
    socket: PathBuf,
    agent: Hello,
}

impl Client {
    /// Connects and greets; `build` is the caller's version and commit.
    pub async fn connect(socket: &Path, build: &str) -> Result<Self, ClientError> {
        let attempt = async {
            let stream = UnixStream::connect(socket).await.map_err(|error| not_connected(socket, error))?;
            let mut frames = Frames::new(stream, MAX_REPLY, MAX_REQUEST);
            let hello = Hello { version: VERSION, build: build.to_owned() };
            // A closed connection may still hold the agent's greeting, which explains it: read before giving up.
            let sent = frames.send(&hello).await;
            let agent: Hello = frames.receive().await.map_err(|error| failed(socket, error))?;
            if agent.version != VERSION {
                let socket = socket.to_owned();
                return Err(ClientError::Version { socket, agent: agent.version, build: agent.build });
            }
            match sent {
                Ok(()) | Err(FrameError::Closed) => Ok(Self { frames, socket: socket.to_owned(), agent }),
                Err(error) => Err(failed(socket, error)),
            }
        };
        let silent = || ClientError::Silent { socket: socket.to_owned(), waited: GREETING };
        timeout(GREETING, attempt).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Version and commit of the agent.
    pub fn agent_build(&self) -> &str {
        &self.agent.build
    }

    /// Asks for a single reply. [`Reply::Error`] is returned as [`ClientError::Refused`].
    pub async fn ask(self, request: &Request) -> Result<Reply, ClientError> {
        let silent = ClientError::Silent { socket: self.socket.clone(), waited: ANSWER };
        let answer = async {
            let mut replies = self.stream(request).await?;
            replies.next().await
        };
        timeout(ANSWER, answer).await.unwrap_or(Err(silent))
    }

    /// Asks for replies until the agent or the caller has had enough.
    pub async fn stream(mut self, request: &Request) -> Result<Replies, ClientError> {
        match self.frames.send(request).await {
            // The agent may have refused and closed already: its reply is still there to be read.
            Ok(()) | Err(FrameError::Closed) => Ok(Replies { frames: self.frames, socket: self.socket }),
            Err(FrameError::TooLong { limit }) => {
                Err(ClientError::Refused(format!("the request is longer than {limit} bytes")))
            }
            Err(error) => Err(failed(&self.socket, error)),
        }
    }
}

/// Replies to one request. Dropping it closes the connection, which the agent notices: it ends a stream, and the
/// lease of an enrolment.
#[derive(Debug)]
pub struct Replies {
    frames: Frames,
    socket: PathBuf,
}

impl Replies {
    /// The next reply; [`Reply::Done`] is the last of a stream. Cancel safe.
    pub async fn next(&mut self) -> Result<Reply, ClientError> {
        match self.frames.receive().await {
            Ok(Reply::Error(text)) => Err(ClientError::Refused(text)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(failed(&self.socket, error)),
        }
    }
}

fn not_connected(socket: &Path, error: io::Error) -> ClientError {
    let socket = socket.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning { socket },
        io::ErrorKind::PermissionDenied => ClientError::NotPermitted { socket },
        _ => ClientError::Io { socket, error },
    }
}

fn failed(socket: &Path, error: FrameError) -> ClientError {
    let socket = socket.to_owned();
    match error {
        FrameError::Closed => ClientError::Closed { socket },
        FrameError::Io(error) => ClientError::Io { socket, error },
        FrameError::TooLong { .. } | FrameError::Meaning(_) => {
            ClientError::Foreign { socket, problem: error.to_string() }
        }
    }
}
