//! The control socket: the agent's one connection.
//!
//! Promise: only root or this process's own user is listened to; a new connection replaces the one before, and that
//! there is none changes nothing. What an agent that does not read is not told, the next one learns with its plan; but
//! whose proof has ended meanwhile no plan says, so that is kept for it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as Listener;

use node_api::auth::{EndedPair, FromAuthAgent, ToAuthAgent};
use node_api::channel::Channel;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

/// Messages of the agent that may wait for their turn.
const INCOMING: usize = 8;
/// Messages that may wait for the agent to read them.
const OUTGOING: usize = 1024;
/// Pairs that have ended with no agent to be told, the first of them; an agent looks for others itself.
const UNTOLD: usize = 1024;

/// The socket and its present connection.
pub(super) struct Control {
    listener: UnixListener,
    uid: u32,
    present: Option<Present>,
    untold: Vec<EndedPair>,
    heard: mpsc::Sender<ToAuthAgent>,
    hears: mpsc::Receiver<ToAuthAgent>,
}

struct Present {
    outgoing: mpsc::Sender<FromAuthAgent>,
    task: AbortHandle,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Control {
    /// Over a listening unix stream socket. Must be called within a runtime, as the user that the process stays.
    pub(super) fn new(listener: OwnedFd) -> io::Result<Self> {
        let listener = Listener::from(listener);
        listener.set_nonblocking(true)?;
        // Both ends of a pair are this process.
        let uid = UnixStream::pair()?.0.peer_cred()?.uid();
        let (heard, hears) = mpsc::channel(INCOMING);
        let listener = UnixListener::from_std(listener)?;
        Ok(Self { listener, uid, present: None, untold: Vec::new(), heard, hears })
    }

    /// The agent's next message. Cancel safe.
    pub(super) async fn receive(&mut self) -> ToAuthAgent {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.meet(stream),
                    Err(error) => {
                        // Too many descriptors: not an end, and not a reason to try without pause.
                        warn!(%error, "control socket");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                },
                Some(message) = self.hears.recv() => return message,
            }
        }
    }

    fn meet(&mut self, stream: UnixStream) {
        match stream.peer_cred().map(|peer| peer.uid()) {
            Ok(uid) if uid == 0 || uid == self.uid => {}
            peer => return warn!(?peer, "control socket: only root is listened to"),
        }
        debug!("the agent is there");
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        let task = tokio::spawn(converse(Channel::new(stream), queue, self.heard.clone())).abort_handle();
        self.present = Some(Present { outgoing, task });
        if !self.untold.is_empty() {
            let untold = std::mem::take(&mut self.untold);
            self.tell(FromAuthAgent::Ended(untold));
        }
    }

    /// Tells the agent, if there is one.
    pub(super) fn tell(&mut self, message: FromAuthAgent) {
        let Some(present) = &self.present else { return self.keep(message) };
        if let Err(error) = present.outgoing.try_send(message) {
            debug!("the agent has gone or does not read");
            self.present = None;
            self.keep(error.into_inner());
        }
    }

    /// Keeps of a message that nobody hears what the next agent must know.
    fn keep(&mut self, message: FromAuthAgent) {
        if let FromAuthAgent::Ended(pairs) = message {
            self.untold.extend(pairs.into_iter().take(UNTOLD.saturating_sub(self.untold.len())));
        }
    }
}

async fn converse(
    mut channel: Channel<FromAuthAgent, ToAuthAgent>,
    mut queue: mpsc::Receiver<FromAuthAgent>,
    heard: mpsc::Sender<ToAuthAgent>,
) {
    loop {
        let over = tokio::select! {
            received = channel.receive() => match received {
                Ok(message) => heard.send(message).await.is_err(),
                Err(error) if error.is_closed() => true,
                Err(error) => return warn!(%error, "control socket: the agent is not understood"),
            },
            message = queue.recv() => match message {
                Some(message) => match channel.send(&message).await {
                    Ok(()) => false,
                    Err(error) if error.is_closed() => true,
                    Err(error) => return warn!(%error, "control socket: the agent cannot be told"),
                },
                None => true,
            },
        };
        if over {
            return info!("the agent has gone; what it wanted last stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh::auth::Refusal;
    use node_api::auth::AuthQuestion;

    use super::*;

    type Agent = Channel<ToAuthAgent, FromAuthAgent>;

    fn socket() -> (Control, std::path::PathBuf, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth.sock");
        (Control::new(Listener::bind(&path).unwrap().into()).unwrap(), path, directory)
    }

    async fn agent(path: &std::path::Path) -> Agent {
        Channel::new(UnixStream::connect(path).await.unwrap())
    }

    fn ask(number: u64) -> ToAuthAgent {
        ToAuthAgent::Ask { number, question: AuthQuestion::Pairs }
    }

    #[tokio::test]
    async fn a_new_agent_replaces_the_one_before() {
        let (mut control, path, _directory) = socket();
        let mut first = agent(&path).await;
        first.send(&ask(1)).await.unwrap();
        assert_eq!(control.receive().await, ask(1));
        let mut second = agent(&path).await;
        second.send(&ask(2)).await.unwrap();
        assert_eq!(control.receive().await, ask(2));
        assert!(first.receive().await.unwrap_err().is_closed());
        control.tell(FromAuthAgent::Applied { number: 3 });
        assert_eq!(second.receive().await.unwrap(), FromAuthAgent::Applied { number: 3 });
    }

    #[tokio::test]
    async fn telling_nobody_is_fine_and_who_does_not_read_is_left() {
        let (mut control, path, _directory) = socket();
        control.tell(FromAuthAgent::Free { instance: 1 });
        let mut deaf = agent(&path).await;
        deaf.send(&ask(1)).await.unwrap();
        control.receive().await;
        for instance in 0.. {
            control.tell(FromAuthAgent::Free { instance });
            if control.present.is_none() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut next = agent(&path).await;
        next.send(&ask(2)).await.unwrap();
        assert_eq!(control.receive().await, ask(2));
    }

    #[tokio::test]
    async fn what_has_ended_while_nobody_listened_is_told_to_the_next_once() {
        let (mut control, path, _directory) = socket();
        let ended = |epoch| EndedPair { instance: 1, remote: Vec::new(), epoch, why: Refusal::Withdrawn };
        for epoch in 0..2 * UNTOLD as u64 {
            control.tell(FromAuthAgent::Ended(vec![ended(epoch)]));
        }
        for first in [
            FromAuthAgent::Ended((0..UNTOLD as u64).map(ended).collect()),
            FromAuthAgent::Applied { number: 3 },
        ] {
            let mut agent = agent(&path).await;
            agent.send(&ask(1)).await.unwrap();
            assert_eq!(control.receive().await, ask(1));
            control.tell(FromAuthAgent::Applied { number: 3 });
            assert_eq!(agent.receive().await.unwrap(), first);
        }
    }

    #[tokio::test]
    async fn who_sends_no_message_is_closed() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut control, path, _directory) = socket();
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(&[0, 0, 0, 2, b'{', b'}']).await.unwrap();
        let closed = async {
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
        };
        tokio::select! {
            message = control.receive() => panic!("{message:?}"),
            () = closed => {}
        }
    }
}
