//! Certificates that are not what they should be, shown to a real auth-agent; and a node that proves itself by half.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use auth_agent::message::{Attestation, Message, VERSION};
use certs::CertificateDer;
use certs::bundle::Bundles;
use certs::enrol::Client;
use certs::svid::Svid;
use certs::verify::Expected;
use conformance::lab::wait_until;
use mesh::spiffe::SpiffeId;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, HandshakeKind, ServerConnection, SignatureScheme,
};

use crate::compromise::{loot, on_the_second};
use crate::scene::{Scene, Stopped, asker, proven};

/// The second node, as it should name itself.
const NODE: &str = "spiffe://cluster.local/ferromesh/node/node-1";

/// A chain, leaf first, and the key that its shower has.
struct Shown(Vec<CertificateDer<'static>>, KeyPair);

/// Who signs, and his certificate.
struct Signer(Issuer<'static, KeyPair>, CertificateDer<'static>);

type Change = fn(&mut CertificateParams);

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

/// What a node's certificate says, but for a change.
fn node_params(change: Change) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(NODE)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (date_time_ymd(2024, 1, 1), date_time_ymd(2124, 1, 1));
    change(&mut params);
    params
}

fn pair_of(pem: &str) -> KeyPair {
    let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    KeyPair::try_from(&key).unwrap()
}

impl Signer {
    /// The intermediate, with its key: the CA's process is taken over.
    fn stolen(scene: &Scene) -> Self {
        let pem = std::fs::read_to_string(scene.mesh.nodes[0].state().join("ca/ca.pem")).unwrap();
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        Self(Issuer::from_ca_cert_der(&certificate, pair_of(&pem)).unwrap(), certificate)
    }

    /// A root of somebody else's, who calls his trust domain what he likes.
    fn foreign(domain: &str) -> Self {
        let mut params = node_params(|_| ());
        params.subject_alt_names = vec![uri(domain)];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "root");
        let pair = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&pair).unwrap().der().clone();
        Self(Issuer::new(params, pair), certificate)
    }

    fn node(&self, change: Change) -> Shown {
        let pair = KeyPair::generate().unwrap();
        let leaf = node_params(change).signed_by(&pair, &self.0).unwrap().der().clone();
        Shown(vec![leaf, self.1.clone()], pair)
    }
}

/// Who does not look at whom he talks to.
#[derive(Debug)]
struct Careless;

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("never offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        certs::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

impl Shown {
    /// A client with it that remembers sessions, and would send early.
    fn client(&self) -> Arc<ClientConfig> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.1.serialize_der()));
        let certified = CertifiedKey::new(self.0.clone(), any_ecdsa_type(&key).unwrap());
        let mut config = ClientConfig::builder_with_provider(certs::tls::provider().clone())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Careless))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.enable_early_data = true;
        Arc::new(config)
    }

    /// The first byte of the auth-agent's own, if there is one.
    async fn is_let_in(&self, door: SocketAddr) -> bool {
        let stream = TcpStream::connect(door).await.unwrap();
        let session = TlsConnector::from(self.client()).connect(certs::tls::server_name(), stream).await;
        // A TLS 1.3 client is through before the server has judged it.
        let Ok(mut session) = session else { return false };
        session.read(&mut [0; 64]).await.is_ok_and(|length| length > 0)
    }
}

/// The key of an SVID as something that shows any chain.
fn shown(svid: &Svid, chain: &[&CertificateDer<'static>]) -> Shown {
    Shown(chain.iter().map(|der| (*der).clone()).collect(), pair_of(&svid.to_pem()))
}

/// T48, T49, T50, T51. Chains made of a workload's own certificate and the node's, with the intermediate's key, by another
/// root: what is not the node's own certificate, as it should be, opens no session.
#[test]
fn no_chain_but_a_nodes_own_opens_a_session() {
    let scene = Scene::required("");
    let mut live = [scene.hold("client", 0), scene.hold("near", 1)];
    for live in &mut live {
        assert_eq!(live.ask("before"), "answered");
    }
    let (domain, node, bundles) = loot(&scene);
    let door = SocketAddr::new(scene.mesh.address(0), 4250);
    let ca = Client::new(
        SocketAddr::new(scene.mesh.address(0), 4251),
        domain.clone(),
        bundles,
        certs::system_clock(),
    );
    let stolen = Signer::stolen(&scene);
    on_the_second(&scene, || async {
        let (near, _) = ca.issue(&node, &domain.workload("default", "near").unwrap()).await.unwrap();
        assert!(shown(&node, &node.chain().iter().collect::<Vec<_>>()).is_let_in(door).await);
        assert!(
            stolen.node(|_| ()).is_let_in(door).await,
            "the intermediate's key makes any node: the CA wins"
        );
        for (what, chain) in confused(&near, &node).into_iter().chain(odd(&stolen)).chain(foreign(&stolen)) {
            assert!(!chain.is_let_in(door).await, "{what}");
        }
    });
    for live in &mut live {
        assert_eq!(live.ask("after"), "answered");
    }
    assert_eq!(scene.attempt("twin", "tcp", 1), "answered");
}

/// T48: the certificate of a workload, whose key the shower has, and the node's, whose key he has not.
fn confused(near: &Svid, node: &Svid) -> Vec<(&'static str, Shown)> {
    let ([own, issuer], [victim, _]) = (near.chain(), node.chain()) else {
        panic!("a leaf and an intermediate")
    };
    let signing = {
        let mut params = node_params(|_| ());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Signer(Issuer::new(params, pair_of(&near.to_pem())), own.clone())
    };
    let mut forged = signing.node(|_| ());
    forged.0.push(issuer.clone());
    vec![
        ("a workload's", shown(near, &[own, issuer])),
        ("the victim's behind it", shown(near, &[own, victim, issuer])),
        ("the victim's at the end", shown(near, &[own, issuer, victim])),
        ("the victim's before it", shown(near, &[victim, own, issuer])),
        ("the victim's, with another key", shown(near, &[victim, issuer])),
        ("the issuer first", shown(near, &[issuer, own])),
        ("issued by a workload", forged),
    ]
}

/// T49, T51, and other certificates of the right issuer that say too little, too much, or of another time.
fn odd(stolen: &Signer) -> Vec<(&'static str, Shown)> {
    const UPPER: &str = "spiffe://Cluster.local/ferromesh/node/node-1";
    let changes: [(&str, Change); 12] = [
        ("no name", |params| params.subject_alt_names.clear()),
        ("two IDs", |params| params.subject_alt_names.push(uri("spiffe://cluster.local/ns/default/sa/near"))),
        ("another URI beside", |params| params.subject_alt_names.push(uri("https://cluster.local/"))),
        ("upper case", |params| params.subject_alt_names = vec![uri(UPPER)]),
        ("a zero byte", |params| params.subject_alt_names = vec![uri(&format!("{NODE}\0"))]),
        ("an ID in a DNS name", |params| {
            params.subject_alt_names = vec![SanType::DnsName(NODE.try_into().unwrap())]
        }),
        ("an ID in the common name", |params| {
            params.subject_alt_names.clear();
            params.distinguished_name.push(DnType::CommonName, NODE);
        }),
        ("no key usage", |params| params.key_usages.clear()),
        ("a CA", |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("one end only", |params| params.extended_key_usages.truncate(1)),
        ("expired", |params| params.not_after = date_time_ymd(2025, 1, 1)),
        ("not yet valid", |params| params.not_before = date_time_ymd(2123, 1, 1)),
    ];
    changes.map(|(what, change)| (what, stolen.node(change))).into()
}

/// T50: who is trusted for another domain, and who is not for this one; and who nobody has signed.
fn foreign(stolen: &Signer) -> Vec<(&'static str, Shown)> {
    let own = {
        let (pair, params) = (KeyPair::generate().unwrap(), node_params(|_| ()));
        let certificate = params.self_signed(&pair).unwrap().der().clone();
        Shown(vec![certificate], pair)
    };
    let of_empire: Change =
        |params| params.subject_alt_names = vec![uri("spiffe://empire.example/ferromesh/node/node-1")];
    vec![
        ("signed by itself", own),
        ("another root of the same name", Signer::foreign("spiffe://cluster.local").node(|_| ())),
        ("another trust domain's root", Signer::foreign("spiffe://empire.example").node(|_| ())),
        ("another trust domain, of its own root", Signer::foreign("spiffe://empire.example").node(of_empire)),
        ("another trust domain, by our CA", stolen.node(of_empire)),
    ]
}

/// T53. Who is let in is given nothing to come back with, so there is nothing either with which to speak early.
#[test]
fn nobody_comes_back_by_a_ticket() {
    let scene = Scene::required("");
    assert_eq!(scene.attempt("client", "tcp", 0), "answered", "the nodes know each other");
    let (_, node, _) = loot(&scene);
    let door = SocketAddr::new(scene.mesh.address(0), 4250);
    on_the_second(&scene, || async {
        let config = shown(&node, &node.chain().iter().collect::<Vec<_>>()).client();
        for _ in 0..3 {
            let stream = TcpStream::connect(door).await.unwrap();
            let connector = TlsConnector::from(config.clone());
            let mut session = connector.connect(certs::tls::server_name(), stream).await.unwrap();
            assert!(session.read(&mut [0; 64]).await.unwrap() > 0);
            let client = session.get_ref().1;
            assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(client.tls13_tickets_received(), 0);
        }
    });
}

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
    assert!(half.unsaid[1].is_empty() && marks() == 0, "it has not heard that its certificate was taken");
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
