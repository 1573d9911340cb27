//! A handshake of two workloads within a session of two nodes, and nothing beside it: what a first connection is compared
//! with.
//!
//! The same two network namespaces, kind of session, configurations, certificates and messages as between auth-agents, but
//! no packet that waits, no pairs, no marks, and one thread on each side that does nothing else: so it is the least that
//! such a handshake costs here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use certs::UnixTime;
use certs::bundle::Bundles;
use certs::ca::{Authority, Files, Lifetimes, SVID_LIFETIME};
use certs::svid::{KeyRequest, Svid};
use certs::tls::{client_config, server_config, server_name};
use certs::verify::Expected;
use linux::namespace::NetworkNamespace;
use mesh::spiffe::{SpiffeId, TrustDomain};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::{ClientConnection, Connection, ServerConnection};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use crate::lab::Mesh;

/// Beside the auth-agents' own.
const PORT: u16 = 4260;
/// Kinds of messages: who is to be proven, part of a handshake, it was accepted.
const PROVE: u8 = 0;
const PART: u8 = 1;
const ACCEPT: u8 = 2;
/// More than any message of a handshake.
const MOST: usize = 1 << 16;

/// What is to be timed.
#[derive(Clone, Copy, Debug)]
enum What {
    /// A session of the nodes, from nothing to the first message back.
    Session,
    /// A handshake in a session that is up.
    Handshake,
}

/// Two sides that wait to be asked.
pub(super) struct Alone {
    asked: Option<Sender<What>>,
    told: Receiver<f64>,
    sides: Vec<JoinHandle<()>>,
}

impl Alone {
    /// On the first two nodes; as where the server's node asks for proof, the second begins.
    pub(super) fn new(mesh: &Mesh) -> Self {
        let [first, second] = parties();
        let namespace = |node: usize| {
            NetworkNamespace::open(&mesh.nodes[node].network_file()).expect("a node has a namespace")
        };
        let (here, there) = (namespace(0), namespace(1));
        let address = SocketAddr::new(mesh.address(0), PORT);
        let (ready, is_ready) = channel();
        let (asked, asks) = channel();
        let (tells, told) = channel();
        let answering = std::thread::spawn(move || {
            let _ = here.inside_async(|| answer(first, address, ready)).expect("inside a namespace");
        });
        is_ready.recv().expect("the other side listens");
        let beginning = std::thread::spawn(move || {
            let ended = there.inside_async(|| begin(second, address, asks, tells));
            ended.expect("inside a namespace").expect("handshakes between two that trust each other");
        });
        Self { asked: Some(asked), told, sides: vec![beginning, answering] }
    }

    /// Microseconds of one handshake, from the first message to the other side's acceptance.
    pub(super) fn handshake(&self) -> f64 {
        self.time(What::Handshake)
    }

    /// Microseconds of one session, from the call to the first message back.
    pub(super) fn session(&self) -> f64 {
        self.time(What::Session)
    }

    fn time(&self, what: What) -> f64 {
        let asked = self.asked.as_ref().expect("until it is dropped");
        asked.send(what).expect("the side that begins lives");
        self.told.recv().expect("it says how long that took")
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.asked.take();
        for side in self.sides.drain(..) {
            if side.join().is_err() && !std::thread::panicking() {
                panic!("a side of the handshake has failed, see above");
            }
        }
    }
}

/// A node and a workload of it.
struct Party {
    node: Svid,
    workload: Svid,
    other_node: SpiffeId,
    other_workload: SpiffeId,
    bundles: Arc<Bundles>,
    clock: certs::Clock,
}

/// Two, with certificates of one CA.
fn parties() -> [Party; 2] {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let trust_domain: TrustDomain = "cluster.local".parse().expect("a trust domain");
    let files = Files {
        root: directory.path().join("root"),
        directory: directory.path().join("ca"),
        owner: None,
        trust_domain: trust_domain.clone(),
        lifetimes: Lifetimes::default(),
    };
    files.prepare(UnixTime::now()).expect("a CA");
    let authority = Authority::open(&files.directory, SVID_LIFETIME).expect("a CA that issues");
    let bundles = Arc::new(Bundles::new(authority.bundle().clone()));
    let node = |number: usize| trust_domain.node(["node-0", "node-1"][number]).expect("an ID");
    let workload =
        |number: usize| trust_domain.workload("default", ["client", "server"][number]).expect("an ID");
    [(0, 1), (1, 0)].map(|(own, other)| Party {
        node: issued(&authority, &node(own)),
        workload: issued(&authority, &workload(own)),
        other_node: node(other),
        other_workload: workload(other),
        bundles: Arc::clone(&bundles),
        clock: certs::system_clock(),
    })
}

fn issued(authority: &Authority, id: &SpiffeId) -> Svid {
    let key = KeyRequest::new().expect("a key");
    let chain = authority.issue(key.der(), id, UnixTime::now()).expect("a certificate");
    key.finish(id, chain).expect("of that key")
}

fn failed(error: impl ToString) -> io::Error {
    io::Error::other(error.to_string())
}

impl Party {
    fn expected(&self) -> Expected {
        Expected::Id(self.other_workload.clone())
    }

    /// The side of a handshake that begins it.
    fn client(&self) -> io::Result<Connection> {
        let config = client_config(&self.workload, self.expected(), &self.bundles, &self.clock);
        let config = config.map_err(failed)?;
        ClientConnection::new(config, server_name()).map(Connection::from).map_err(failed)
    }

    fn server(&self) -> io::Result<Connection> {
        let config = server_config(&self.workload, self.expected(), &self.bundles, &self.clock);
        ServerConnection::new(config.map_err(failed)?).map(Connection::from).map_err(failed)
    }

    /// A session with the other node.
    async fn call(&self, to: SocketAddr) -> io::Result<client::TlsStream<TcpStream>> {
        let expected = Expected::Id(self.other_node.clone());
        let config = client_config(&self.node, expected, &self.bundles, &self.clock).map_err(failed)?;
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(server_name(), stream).await
    }

    /// One handshake, until both sides know that it ended well.
    async fn prove(&self, session: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
        let mut connection = self.client()?;
        let ids = format!("{} {}", self.workload.id(), self.other_workload);
        send(session, PROVE, ids.as_bytes()).await?;
        send(session, PART, &written(&mut connection)?).await?;
        let mut is_accepted = false;
        while connection.is_handshaking() || !is_accepted {
            match receive(session).await? {
                (ACCEPT, _) => is_accepted = true,
                (_, bytes) => {
                    read(&mut connection, &bytes)?;
                    send(session, PART, &written(&mut connection)?).await?;
                }
            }
        }
        Ok(())
    }
}

async fn begin(party: Party, to: SocketAddr, asks: Receiver<What>, tells: Sender<f64>) -> io::Result<()> {
    let mut session = party.call(to).await?;
    // Nothing else is to be done on this thread meanwhile.
    while let Ok(what) = asks.recv() {
        let begin = Instant::now();
        match what {
            What::Handshake => party.prove(&mut session).await?,
            What::Session => {
                let mut another = party.call(to).await?;
                send(&mut another, ACCEPT, &[]).await?;
                receive(&mut another).await?;
            }
        }
        let _ = tells.send(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(())
}

/// Serves sessions until the first of them ends.
async fn answer(party: Party, at: SocketAddr, ready: Sender<()>) -> io::Result<()> {
    let listener = TcpListener::bind(at).await?;
    let _ = ready.send(());
    let (party, mut others) = (Arc::new(party), tokio::task::JoinSet::new());
    let first = talk(Arc::clone(&party), listener.accept().await?.0);
    tokio::pin!(first);
    loop {
        tokio::select! {
            ended = &mut first => return ended,
            accepted = listener.accept() => {
                others.spawn(talk(Arc::clone(&party), accepted?.0));
            }
        }
    }
}

async fn talk(party: Arc<Party>, stream: TcpStream) -> io::Result<()> {
    let expected = Expected::Id(party.other_node.clone());
    let config = server_config(&party.node, expected, &party.bundles, &party.clock).map_err(failed)?;
    stream.set_nodelay(true)?;
    let mut session = TlsAcceptor::from(config).accept(stream).await?;
    let mut connection = party.server()?;
    loop {
        match receive(&mut session).await? {
            (PROVE, _) => connection = party.server()?,
            (PART, bytes) => {
                read(&mut connection, &bytes)?;
                let back = written(&mut connection)?;
                if !back.is_empty() {
                    send(&mut session, PART, &back).await?;
                }
                if !connection.is_handshaking() {
                    send(&mut session, ACCEPT, &[]).await?;
                }
            }
            _ => send(&mut session, ACCEPT, &[]).await?,
        }
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len() + 1).map_err(failed)?;
    to.write_all(&[&length.to_be_bytes()[..], &[kind], bytes].concat()).await?;
    to.flush().await
}

async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let length = from.read_u32().await? as usize;
    if !(1..=MOST).contains(&length) {
        return Err(failed("a message of an odd length"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok((bytes.remove(0), bytes))
}

fn read(connection: &mut Connection, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        connection.read_tls(&mut bytes)?;
        connection.process_new_packets().map_err(failed)?;
    }
    Ok(())
}

/// What is to be sent now.
fn written(connection: &mut Connection) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes)?;
    }
    Ok(bytes)
}
