//! A node that proves itself by half.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use auth_agent::message::{Attestation, Message, VERSION};
use certs::bundle::Bundles;
use certs::enrol::Client;
use certs::svid::Svid;
use certs::verify::Expected;
use conformance::lab::wait_until;
use mesh::spiffe::SpiffeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ServerConnection;

use crate::compromise::{loot, on_the_second};
use crate::scene::{Scene, Stopped, asker, proven};

/// The second node, which keeps to the protocol as far as it is told to.
struct Half {
    stream: TlsStream<TcpStream>,
    svid: Svid,
    client: SpiffeId,
    bundles: Arc<Bundles>,
    /// Handshakes that the first node has begun, by number.
    proofs: BTreeMap<u64, ServerConnection>,
    /// Those that have ended well, of which it has not said so; and binds that it has not answered.
    unsaid: [Vec<u64>; 2],
    /// Whether it says so.
    accepts: bool,
    probes: u32,
}

impl Half {
    async fn send(&mut self, message: &Message) {
        let bytes = postcard::to_allocvec(message).unwrap();
        self.stream.write_u32(u32::try_from(bytes.len()).unwrap()).await.unwrap();
        self.stream.write_all(&bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Says what it is, and which one workload it has.
    async fn greet(&mut self, instance: u64, addresses: [IpAddr; 2]) {
        self.send(&Message::Hello { version: VERSION, incarnation: 4711 }).await;
        let id = self.svid.id().clone();
        self.send(&Message::Attest(vec![Attestation { instance, addresses, id }])).await;
        self.send(&Message::Complete).await;
    }

    /// Hears messages until it is so.
    async fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            let length = self.stream.read_u32().await.unwrap();
            let mut bytes = vec![0; length as usize];
            self.stream.read_exact(&mut bytes).await.unwrap();
            self.hear(postcard::from_bytes(&bytes).unwrap()).await;
        }
    }

    /// The next two questions whether it is alive: the first node has had the time for what it had to do.
    async fn for_a_while(&mut self) {
        let until = self.probes + 2;
        self.until(|half| half.probes >= until).await;
    }

    async fn hear(&mut self, message: Message) {
        match message {
            Message::Probe { nonce } => {
                self.probes += 1;
                self.send(&Message::Echo { nonce, withdrawal: 0, grace: 10_000 }).await;
            }
            Message::Prove { proof, initiator, responder } => {
                assert_eq!((&initiator, &responder), (&self.client, self.svid.id()));
                let expected = Expected::Id(initiator);
                let config =
                    certs::tls::server_config(&self.svid, expected, &self.bundles, &certs::system_clock());
                self.proofs.insert(proof, ServerConnection::new(config.unwrap()).unwrap());
            }
            Message::Handshake { ours: true, proof, bytes } => self.shake(proof, &bytes).await,
            Message::Bind { bind, .. } => self.unsaid[1].push(bind),
            _ => {}
        }
    }

    async fn shake(&mut self, proof: u64, bytes: &[u8]) {
        let tls = self.proofs.get_mut(&proof).unwrap();
        tls.read_tls(&mut &bytes[..]).unwrap();
        tls.process_new_packets().unwrap();
        let (mut bytes, is_over) = (Vec::new(), !tls.is_handshaking());
        while tls.wants_write() {
            tls.write_tls(&mut bytes).unwrap();
        }
        if !bytes.is_empty() {
            self.send(&Message::Handshake { ours: false, proof, bytes }).await;
        }
        if is_over && self.accepts {
            self.send(&Message::Accept { proof }).await;
        } else if is_over {
            self.unsaid[0].push(proof);
        }
    }
}

/// The second node with everything it holds, called by nobody: the certificate of its server, and a connection to the first.
async fn half(scene: &Scene) -> Half {
    let (domain, node, bundles) = loot(scene);
    let [ca, door] = [4251, 4250].map(|port| SocketAddr::new(scene.mesh.address(0), port));
    let ca = Client::new(ca, domain.clone(), bundles.clone(), certs::system_clock());
    let server = domain.workload("default", "server").unwrap();
    let (svid, stream) = on_the_second(scene, || async {
        let (svid, _) = ca.issue(&node, &server).await.unwrap();
        let stream = std::net::TcpStream::connect(door).unwrap();
        stream.set_nonblocking(true).unwrap();
        (svid, stream)
    });
    let first = Expected::Id(domain.node("node-0").unwrap());
    let config = certs::tls::client_config(&node, first, &bundles, &certs::system_clock()).unwrap();
    let stream = TcpStream::from_std(stream).unwrap();
    let stream = TlsConnector::from(config).connect(certs::tls::server_name(), stream).await.unwrap();
    let client = domain.workload("default", "client").unwrap();
    let (proofs, unsaid) = (BTreeMap::new(), [Vec::new(), Vec::new()]);
    Half { stream, svid, client, bundles, proofs, unsaid, accepts: false, probes: 0 }
}

/// T54, fault 4. The other node has verified everything, and does not say so; says so, and does not mark. Until it has done
/// both there is no mark here.
#[tokio::test]
async fn half_a_proof_marks_nothing() {
    let scene = Scene::required("");
    let node = &scene.mesh.nodes[0];
    let marks = || proven(node).len();
    let server = scene.mesh.nodes[1].json(&["endpoint", "get", "server"]);
    let instance = server["endpoint"]["instance"].as_u64().unwrap();
    assert_eq!(scene.attempt("twin", "tcp", 0), "answered", "the nodes know each other");
    wait_until("its mark is gone", || marks() == 0);
    // The auth-agent that it was says nothing any more.
    let _mute = Stopped::new(&scene.mesh.nodes[1], "auth-agent");
    let mut half = half(&scene).await;
    half.greet(instance, scene.server.addresses).await;
    half.for_a_while().await;
    let _client = asker(node, "client");
    half.until(|half| !half.unsaid[0].is_empty()).await;
    half.for_a_while().await;
    // It asks for the other's mark already, which is to be answered only behind that word.
    assert_eq!(marks(), 0, "it has not heard that its certificate was taken");
    half.accepts = true;
    for proof in std::mem::take(&mut half.unsaid[0]) {
        half.send(&Message::Accept { proof }).await;
    }
    half.until(|half| !half.unsaid[1].is_empty()).await;
    assert_eq!(marks(), 0, "the other node's mark comes first");
    half.for_a_while().await;
    assert_eq!(marks(), 0);
    let known = half.unsaid[1].len();
    half.until(|half| half.unsaid[1].len() > known).await;
    let bind = *half.unsaid[1].last().unwrap();
    half.send(&Message::Bound { bind }).await;
    half.for_a_while().await;
    assert_eq!(marks(), 1);
}
