//! Certificates that are not what they should be, shown to a real auth-agent.

use std::net::SocketAddr;
use std::sync::Arc;

use certs::CertificateDer;
use certs::enrol::Client;
use certs::svid::Svid;
use conformance::credulous::Credulous;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, HandshakeKind};

use crate::compromise::{loot, on_the_second};
use crate::scene::Scene;

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

impl Shown {
    /// A client with it that remembers sessions, and would send early.
    fn client(&self) -> Arc<ClientConfig> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.1.serialize_der()));
        let certified = CertifiedKey::new(self.0.clone(), any_ecdsa_type(&key).unwrap());
        let mut config = ClientConfig::builder_with_provider(certs::tls::provider().clone())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous))
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
