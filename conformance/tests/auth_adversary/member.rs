//! A member node that is taken over: its agent and auth-agent are killed, and what its auth-agent held speaks the protocol
//! for it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use auth_agent::message::{Attestation, MAX_MESSAGE, Message, VERSION};
use certs::bundle::{Bundle, Bundles};
use certs::enrol::Client;
use certs::svid::Svid;
use certs::tls::{client_config, server_name};
use certs::verify::Expected;
use conformance::lab::{Mesh, wait_until};
use mesh::spiffe::{SpiffeId, TrustDomain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConnection, Connection};

use crate::scene::processes;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// What it says its auth-agent's start was; nobody else's number.
pub(crate) const INCARNATION: u64 = 0x6d65_6d62_6572;

/// What the member node held, and where the others are.
pub(crate) struct Member {
    domain: TrustDomain,
    svid: Svid,
    pub(crate) bundles: Arc<Bundles>,
    addresses: Vec<SocketAddr>,
    ca: SocketAddr,
    /// What its agent has made known of its workloads.
    published: PathBuf,
}

impl Member {
    /// Takes the node over.
    pub(crate) fn of(mesh: &mut Mesh, number: usize) -> Self {
        let directory = mesh.nodes[number].state().join("auth");
        mesh.nodes[number].kill_agent();
        let [pid] = processes(&mesh.nodes[number], "auth-agent")[..] else { panic!("one auth-agent runs") };
        linux::process::send(pid, 9).unwrap();
        wait_until("it is dead", || processes(&mesh.nodes[number], "auth-agent").is_empty());
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let id = domain.node(&format!("node-{number}")).unwrap();
        let svid = Svid::load(&id, &directory.join("node.pem")).unwrap().unwrap();
        let roots = std::fs::read_to_string(directory.join("bundle.pem")).unwrap();
        let bundles = Arc::new(Bundles::new(Bundle::from_pem(domain.clone(), &roots).unwrap()));
        let addresses = [0, 1].map(|node| SocketAddr::new(mesh.address(node), 4250)).to_vec();
        let ca = SocketAddr::new(mesh.address(0), 4251);
        let published = mesh.shared().join(format!("nodes/node-{number}"));
        Self { domain, svid, bundles, addresses, ca, published }
    }

    pub(crate) fn workload(&self, account: &str) -> SpiffeId {
        self.domain.workload("default", account).unwrap()
    }

    /// A session with another node, in its own name.
    pub(crate) async fn call(&self, node: usize) -> Talk {
        let expected = Expected::Id(self.domain.node(&format!("node-{node}")).unwrap());
        let config = client_config(&self.svid, expected, &self.bundles, &certs::system_clock()).unwrap();
        let stream = TcpStream::connect(self.addresses[node]).await.unwrap();
        let stream = TlsConnector::from(config).connect(server_name(), stream).await.unwrap();
        Talk { stream, said: Vec::new() }
    }

    /// A certificate of one of its own workloads, which the CA gives it.
    pub(crate) async fn certificate(&self, own: &SpiffeId) -> Svid {
        let ca = Client::new(self.ca, self.domain.clone(), Arc::clone(&self.bundles), certs::system_clock());
        ca.issue(&self.svid, own).await.unwrap().0
    }

    /// The side of a proof that begins it.
    pub(crate) async fn client(&self, own: &SpiffeId, other: &SpiffeId) -> Connection {
        let svid = self.certificate(own).await;
        let expected = Expected::Id(other.clone());
        let config = client_config(&svid, expected, &self.bundles, &certs::system_clock()).unwrap();
        ClientConnection::new(config, server_name()).unwrap().into()
    }

    /// What it may say of a workload of its own, whose account has its name.
    pub(crate) fn attestation(&self, workload: &str) -> Attestation {
        let files = std::fs::read_dir(&self.published).unwrap().map(|entry| entry.unwrap().path());
        let mut texts = files.map(|path| std::fs::read_to_string(path).unwrap());
        let text = texts.find(|text| text.contains(&format!("workload: \"{workload}\"\n")));
        let text = text.expect("its endpoint is known");
        let word = |key: &str| {
            let rest = text.split(&format!("{key}:")).nth(1).unwrap_or_else(|| panic!("{key} in {text}"));
            rest.lines().next().unwrap().trim().trim_matches('"').to_owned()
        };
        let address = |key: &str| word(key).parse::<IpAddr>().unwrap();
        let instance = word("  instance").parse().unwrap();
        Attestation { instance, addresses: [address("ipv4"), address("ipv6")], id: self.workload(workload) }
    }
}

/// One session, as the member speaks it.
pub(crate) struct Talk {
    stream: TlsStream<TcpStream>,
    /// Every message it has said, as it went.
    pub(crate) said: Vec<Vec<u8>>,
}

impl Talk {
    pub(crate) async fn say(&mut self, message: &Message) {
        self.repeat(&postcard::to_allocvec(message).unwrap()).await;
    }

    /// Bytes of a message that somebody has said before.
    pub(crate) async fn repeat(&mut self, message: &[u8]) {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        // A session that was closed meanwhile is for who hears to notice.
        let _ = self.stream.write_all(&[&length[..], message].concat()).await;
        let _ = self.stream.flush().await;
        self.said.push(message.to_vec());
    }

    /// The next message; none: the other side has closed the session.
    pub(crate) async fn hear(&mut self) -> Option<Vec<u8>> {
        let read = async {
            let length = self.stream.read_u32().await.ok()? as usize;
            assert!(length <= MAX_MESSAGE);
            let mut message = vec![0; length];
            self.stream.read_exact(&mut message).await.ok()?;
            Some(message)
        };
        timeout(PATIENCE, read).await.expect("the other side says something, or goes")
    }

    /// The next message that it is to hear; are you there is answered.
    pub(crate) async fn next(&mut self, before: &str) -> Message {
        loop {
            let Some(bytes) = self.hear().await else { panic!("the session was closed before {before}") };
            match postcard::from_bytes(&bytes).unwrap() {
                Message::Probe { nonce } => {
                    // Not recorded: it answers a number that is asked once.
                    let echo = Message::Echo { nonce, withdrawal: 0, grace: 10_000 };
                    self.say(&echo).await;
                    self.said.pop();
                }
                message => return message,
            }
        }
    }

    /// Messages until one is the right one.
    pub(crate) async fn until<T>(&mut self, what: &str, right: impl Fn(&Message) -> Option<T>) -> T {
        loop {
            if let Some(found) = right(&self.next(what).await) {
                return found;
            }
        }
    }

    /// Says who it is and what it attests, as every session begins.
    pub(crate) async fn greet(&mut self, attested: Vec<Attestation>) {
        self.say(&Message::Hello { version: VERSION, incarnation: INCARNATION }).await;
        self.say(&Message::Attest(attested)).await;
        self.say(&Message::Complete).await;
    }
}

/// What a side of a handshake has to say.
pub(crate) fn written(connection: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).unwrap();
    }
    bytes
}
