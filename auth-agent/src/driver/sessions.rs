//! Sessions with other nodes: TLS connections that carry messages.
//!
//! Promise: a session's messages arrive in order or not at all; a peer that sends what is no message, or more than
//! [`MAX_MESSAGE`] at once, or does not read what it is sent, loses its session; memory per session is bounded. Who the
//! peer is has been verified before ([`super::door`]); what a message means is not known here.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use crate::event::SessionId;
use crate::message::{MAX_MESSAGE, Message};

/// Bytes that may wait for a peer to read them: the full set of a large node, some hundred handshakes.
const MAX_QUEUE: usize = 8 << 20;
/// Messages of all sessions that may wait for their turn.
const INCOMING: usize = 32;
/// How long a session that is closed may go on sending what was sent on it.
const FAREWELL: Duration = Duration::from_secs(1);

/// Something that happened to a session.
pub(super) enum Event {
    /// A message has come.
    Message(SessionId, Message),
    /// It is over; why.
    Over(SessionId, String),
}

/// All that are up.
pub(super) struct Sessions {
    up: BTreeMap<SessionId, Session>,
    next: u64,
    events: mpsc::Sender<Event>,
    happened: mpsc::Receiver<Event>,
}

/// One that is up.
pub(super) struct Session {
    /// The other node's name.
    pub(super) node: String,
    /// Where it is.
    pub(super) address: SocketAddr,
    /// Its certificate and those above.
    pub(super) chain: Vec<CertificateDer<'static>>,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    queued: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Sessions {
    pub(super) fn new() -> Self {
        let (events, happened) = mpsc::channel(INCOMING);
        Self { up: BTreeMap::new(), next: 0, events, happened }
    }

    /// Begins a session with a peer who has been verified.
    pub(super) fn begin(
        &mut self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        node: String,
        address: SocketAddr,
        chain: Vec<CertificateDer<'static>>,
    ) -> SessionId {
        let id = SessionId(self.next);
        self.next += 1;
        let (outgoing, queue) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(talk(stream, id, queue, Arc::clone(&queued), self.events.clone()));
        let session = Session { node, address, chain, outgoing, queued, task: task.abort_handle() };
        self.up.insert(id, session);
        id
    }

    /// Sends a message; on a session that is over, does nothing. An error means that it must be closed.
    pub(super) fn send(&mut self, id: SessionId, message: &Message) -> Result<(), String> {
        let Some(session) = self.up.get(&id) else { return Ok(()) };
        let frame = frame(message)?;
        if session.queued.fetch_add(frame.len(), Ordering::Relaxed) + frame.len() > MAX_QUEUE {
            session.task.abort();
            return Err("the peer's node does not read what it is sent".to_owned());
        }
        // It has ended by itself if nobody takes this, and has said so.
        let _ = session.outgoing.send(frame);
        Ok(())
    }

    /// Closes a session; what was sent on it still goes, for a moment.
    pub(super) fn close(&mut self, id: SessionId) -> Option<Session> {
        let session = self.up.remove(&id)?;
        let task = session.task.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            task.abort();
        });
        Some(session)
    }

    /// What happens next to one that is up. Cancel safe.
    pub(super) async fn happens(&mut self) -> Event {
        loop {
            match self.happened.recv().await {
                Some(Event::Message(id, _) | Event::Over(id, _)) if !self.up.contains_key(&id) => {}
                Some(event) => return event,
                // This side keeps a sender.
                None => std::future::pending().await,
            }
        }
    }

    /// One that is up.
    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.up.get(&id)
    }

    /// Those that are up.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.up.iter().map(|(id, session)| (*id, session))
    }
}

/// A message as it stands on the wire.
fn frame(message: &Message) -> Result<Vec<u8>, String> {
    let mut frame =
        postcard::to_extend(message, vec![0; 4]).map_err(|error| format!("message not written: {error}"))?;
    let length = frame.len() - 4;
    if length > MAX_MESSAGE {
        return Err(format!("message of {length} bytes, {MAX_MESSAGE} are allowed"));
    }
    if let Some(place) = frame.first_chunk_mut::<4>() {
        *place = (length as u32).to_be_bytes();
    }
    Ok(frame)
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Send,
    id: SessionId,
    queue: mpsc::UnboundedReceiver<Vec<u8>>,
    queued: Arc<AtomicUsize>,
    events: mpsc::Sender<Event>,
) {
    let (read, write) = split(stream);
    let problem = tokio::select! {
        problem = hear(read, id, &events) => problem,
        spoken = speak(write, queue, &queued) => match spoken {
            Ok(()) => return,
            Err(error) => error.to_string(),
        },
    };
    let _ = events.send(Event::Over(id, problem)).await;
}

/// Until there is no more to hear; why.
async fn hear(read: impl AsyncRead + Unpin, id: SessionId, events: &mpsc::Sender<Event>) -> String {
    let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_MESSAGE).new_codec();
    let mut frames = FramedRead::new(read, codec);
    loop {
        let frame = match frames.next().await {
            None => return "the peer's node closed the session".to_owned(),
            Some(Err(error)) => return error.to_string(),
            Some(Ok(frame)) => frame,
        };
        let event = match postcard::take_from_bytes(&frame) {
            Ok((message, [])) => Event::Message(id, message),
            Ok(_) => return "the peer's node sent a message with something after it".to_owned(),
            Err(error) => return format!("the peer's node sent what is no message: {error}"),
        };
        if events.send(event).await.is_err() {
            return String::new();
        }
    }
}

/// Until nothing more will be sent.
async fn speak(
    mut write: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    queued: &AtomicUsize,
) -> io::Result<()> {
    let mut frames = Vec::new();
    while queue.recv_many(&mut frames, 64).await > 0 {
        for frame in frames.drain(..) {
            write.write_all(&frame).await?;
            queued.fetch_sub(frame.len(), Ordering::Relaxed);
        }
        write.flush().await?;
    }
    write.shutdown().await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    use super::*;

    fn session(sessions: &mut Sessions) -> (SessionId, DuplexStream) {
        let (near, far) = duplex(4096);
        let address = "127.0.0.1:1".parse().unwrap();
        (sessions.begin(near, "b".to_owned(), address, Vec::new()), far)
    }

    fn probe(nonce: u64) -> Message {
        Message::Probe { nonce }
    }

    async fn over(sessions: &mut Sessions) -> String {
        match sessions.happens().await {
            Event::Over(_, problem) => problem,
            Event::Message(_, message) => panic!("{message:?}"),
        }
    }

    #[tokio::test]
    async fn messages_go_both_ways_in_order_and_a_closed_session_says_nothing_more() {
        let mut sessions = Sessions::new();
        let (id, mut far) = session(&mut sessions);
        for nonce in 0..3 {
            sessions.send(id, &probe(nonce)).unwrap();
            far.write_all(&frame(&probe(nonce + 10)).unwrap()).await.unwrap();
        }
        for nonce in 10..13 {
            assert!(matches!(sessions.happens().await, Event::Message(_, heard) if heard == probe(nonce)));
        }
        assert!(sessions.close(id).is_some());
        let mut sent = Vec::new();
        far.read_to_end(&mut sent).await.unwrap();
        assert_eq!(sent, (0..3).flat_map(|nonce| frame(&probe(nonce)).unwrap()).collect::<Vec<_>>());
        let (_other, far) = session(&mut sessions);
        drop(far);
        assert!(over(&mut sessions).await.contains("closed the session"));
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_session() {
        let too_long = ((MAX_MESSAGE + 1) as u32).to_be_bytes().to_vec();
        let after = {
            let mut frame = frame(&probe(1)).unwrap();
            frame[3] += 1;
            frame.push(0);
            frame
        };
        let cases = [
            (too_long, "frame size"),
            (vec![0, 0, 0, 1, 0xff], "no message"),
            (vec![0, 0, 0, 0], "no message"),
            (after, "something after it"),
        ];
        for (bytes, expected) in cases {
            let mut sessions = Sessions::new();
            let (_, mut far) = session(&mut sessions);
            far.write_all(&bytes).await.unwrap();
            let problem = over(&mut sessions).await;
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_left() {
        let mut sessions = Sessions::new();
        let (id, _far) = session(&mut sessions);
        let large = Message::Handshake { ours: true, proof: 1, bytes: vec![0; 60_000] };
        let problem = (0..1000).find_map(|_| sessions.send(id, &large).err()).unwrap();
        assert!(problem.contains("does not read"), "{problem}");
        let longest = Message::Handshake { ours: true, proof: 1, bytes: vec![0; MAX_MESSAGE] };
        let (id, _far) = session(&mut sessions);
        assert!(sessions.send(id, &longest).unwrap_err().contains("are allowed"));
    }
}
