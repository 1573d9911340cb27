//! `ferromesh ca`: the embedded CA's process. It holds the intermediate's key, and issues on the word of the agent.
//!
//! Confined before it reads anything from a socket. Killed at any moment it loses join tokens and placements, which the
//! agent tells it again, and nothing else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use certs::ca::Rotated;
use certs::ca::{Authority, CaError, Files, Lifetimes};
use certs::enrol::server::{Allowed, Server};
use certs::{Owner, UnixTime};
use linux::process;
use linux::user::Credentials;
use node_api::auth::{FromCa, Placements, ToCa};
use node_api::channel::Channel;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::confine::{Maps, confine};

/// Why the CA does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(
        "found {0} inherited descriptors, expected two: 3, its control socket, and 4, the TCP socket it listens on; \
        the agent starts this process"
    )]
    Descriptors(usize),
    #[error(transparent)]
    Linux(#[from] linux::Error),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Takes the next step towards another root: the administrator's, who has the root keys. The running CA takes over what
/// it finds in its files.
pub(crate) fn rotate(directory: &Path, root: &Path) -> Result<Rotated, Failure> {
    let owner = std::fs::metadata(directory)?;
    let authority = Authority::open(directory, Duration::ZERO)?;
    let files = Files {
        root: root.to_owned(),
        directory: directory.to_owned(),
        owner: Some(Owner { uid: owner.uid(), gid: owner.gid() }),
        trust_domain: authority.trust_domain().clone(),
        lifetimes: Lifetimes::default(),
    };
    Ok(files.rotate(UnixTime::now())?)
}

/// Runs until it is told to end.
pub(crate) fn run(directory: &Path, user: &str, lifetime: Duration) -> Result<(), Failure> {
    let descriptors = process::inherited()?;
    let [control, listener] =
        <[OwnedFd; 2]>::try_from(descriptors).map_err(|found| Failure::Descriptors(found.len()))?;
    let credentials = Credentials::parse(user)?;
    confine(directory, &credentials, &[control.as_fd(), listener.as_fd()], Maps::None)?;
    let server = Arc::new(Server::open(Path::new("/"), lifetime, certs::system_clock())?);
    // After the confinement: a thread has the rights of the one that started it.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(serve(server, control, listener))
}

async fn serve(server: Arc<Server>, control: OwnedFd, listener: OwnedFd) -> Result<(), Failure> {
    let control = StdUnixListener::from(control);
    control.set_nonblocking(true)?;
    let control = UnixListener::from_std(control)?;
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    info!(address = %listener.local_addr()?, "the CA answers");
    let nodes = tokio::spawn(server.clone().serve(listener));
    let files = tokio::spawn(server.clone().follow());
    let stop = Arc::new(Notify::new());
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            accepted = control.accept() => {
                let (stream, _) = accepted?;
                if may_control(&stream) {
                    tokio::spawn(obey(server.clone(), stream, stop.clone()));
                }
            }
            () = stop.notified() => break,
            _ = terminate.recv() => break,
        }
    }
    nodes.abort();
    files.abort();
    Ok(())
}

/// The agent is root, and nobody else has a word here, whoever can reach the socket.
fn may_control(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 => true,
        Ok(peer) => {
            warn!(uid = peer.uid(), "refused at the control socket");
            false
        }
        Err(error) => {
            warn!(%error, "cannot tell who is at the control socket: refused");
            false
        }
    }
}

/// Does what one agent says, until it goes.
async fn obey(server: Arc<Server>, stream: UnixStream, stop: Arc<Notify>) {
    let mut channel: Channel<FromCa, ToCa> = Channel::new(stream);
    loop {
        let answer = match channel.receive().await {
            Ok(ToCa::Place(placements)) => match server.place(allowed(placements)) {
                Ok(()) => FromCa::Placed,
                Err(problem) => FromCa::Error(problem),
            },
            Ok(ToCa::Count) => {
                let refused = server.refused().into_iter();
                FromCa::Refused(refused.map(|(why, count)| (why.name().to_owned(), count)).collect())
            }
            Ok(ToCa::Token { node }) => server.token(&node).map_or_else(FromCa::Error, FromCa::Token),
            Ok(ToCa::Stop) => {
                stop.notify_one();
                return;
            }
            Err(error) if error.is_closed() => return,
            Err(error) => {
                warn!(%error, "the agent's connection is of no use");
                return;
            }
        };
        if channel.send(&answer).await.is_err() {
            return;
        }
    }
}

fn allowed(placements: Placements) -> Allowed {
    let Placements { trust_domain, nodes } = placements;
    Allowed { trust_domain, nodes }
}
