//! Nodes and their CA over loopback, with real TLS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test file: they are how a test fails"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use certs::bundle::{Bundle, Bundles};
use certs::ca::{BUNDLE_FILE, Files, Lifetimes};
use certs::enrol::message::Request;
use certs::enrol::server::{Allowed, Server};
use certs::enrol::{Client, Denied, EnrolError, Watch, ca_id};
use certs::svid::Svid;
use certs::verify::{Expected, verify_chain};
use certs::{Clock, UnixTime, tls};
use mesh::auth::Refusal;
use mesh::spiffe::{SpiffeId, TrustDomain};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

const NOW: u64 = 1_800_000_000;
const HOUR: u64 = 3600;
const LUKE: &str = "spiffe://rebels.example/ns/default/sa/luke";
const LEIA: &str = "spiffe://rebels.example/ns/default/sa/leia";

#[derive(Debug)]
struct TestClock(AtomicU64);

impl rustls::time_provider::TimeProvider for TestClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(at(self.0.load(Ordering::Relaxed)))
    }
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// A mesh of two nodes: Luke's workload is on yavin, Leia's on hoth.
struct Mesh {
    directory: TempDir,
    files: Files,
    time: Arc<TestClock>,
    server: Arc<Server>,
    address: SocketAddr,
    bundle: Bundle,
}

impl Mesh {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = Files {
            root: directory.path().join("ca-root"),
            directory: directory.path().join("ca"),
            owner: None,
            trust_domain: "rebels.example".parse().unwrap(),
            lifetimes: Lifetimes::default(),
        };
        let bundle = files.prepare(at(NOW)).unwrap().bundle;
        let time = Arc::new(TestClock(AtomicU64::new(NOW)));
        let server = Server::open(&files.directory, Duration::from_secs(HOUR), time.clone()).unwrap();
        let server = Arc::new(server);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(server.clone().serve(listener));
        tokio::spawn(server.clone().follow());
        let mesh = Self { directory, files, time, server, address, bundle };
        mesh.place(&[("yavin", &[LUKE]), ("hoth", &[LEIA])]);
        mesh
    }

    fn place(&self, nodes: &[(&str, &[&str])]) {
        let nodes =
            nodes.iter().map(|(node, ids)| ((*node).to_owned(), ids.iter().map(|text| id(text)).collect()));
        self.server.place(Allowed { trust_domain: self.domain(), nodes: nodes.collect() }).unwrap();
    }

    fn domain(&self) -> TrustDomain {
        self.files.trust_domain.clone()
    }

    fn clock(&self) -> Clock {
        self.time.clone()
    }

    fn pass(&self, seconds: u64) {
        self.time.0.fetch_add(seconds, Ordering::Relaxed);
    }

    fn bundles(&self) -> Arc<Bundles> {
        Arc::new(Bundles::new(self.bundle.clone()))
    }

    fn client(&self) -> Client {
        Client::new(self.address, self.domain(), self.bundles(), self.clock())
    }

    /// A node that has joined.
    async fn join(&self, node: &str) -> Svid {
        let token = self.server.token(node).unwrap();
        self.client().join(node, &token).await.unwrap().0
    }

    fn refused(&self, denied: Denied) -> u64 {
        self.server.refused().get(&denied).copied().unwrap_or(0)
    }
}

fn denied<T: std::fmt::Debug>(result: Result<T, EnrolError>) -> Denied {
    match result.unwrap_err() {
        EnrolError::Denied { denied, .. } => denied,
        other => panic!("not denied but: {other}"),
    }
}

#[tokio::test]
async fn a_node_joins_by_its_token_and_gets_certificates_for_its_workloads() {
    let mesh = Mesh::start().await;
    let token = mesh.server.token("yavin").unwrap();
    let (node, bundle) = mesh.client().join("yavin", &token).await.unwrap();
    assert_eq!((node.id(), &bundle), (&mesh.domain().node("yavin").unwrap(), &mesh.bundle));
    let (luke, _) = mesh.client().issue(&node, &id(LUKE)).await.unwrap();
    let expected = Expected::Id(id(LUKE));
    let verified = verify_chain(luke.chain(), &expected, &mesh.bundles().load(), at(NOW)).unwrap();
    assert_eq!((verified.serial.as_str(), verified.not_after), (luke.serial(), at(NOW + HOUR)));
    assert_eq!(mesh.client().bundle(&node).await.unwrap(), mesh.bundle);
    assert!(mesh.server.refused().is_empty());
}

#[tokio::test]
async fn a_token_is_good_once_for_its_node_within_an_hour() {
    let mesh = Mesh::start().await;
    let (yavin, hoth) = (mesh.server.token("yavin").unwrap(), mesh.server.token("hoth").unwrap());
    for (node, token) in [("yavin", "0".repeat(32)), ("yavin", String::new()), ("hoth", yavin.clone())] {
        assert_eq!(denied(mesh.client().join(node, &token).await), Denied::Token, "{node} {token}");
    }
    mesh.client().join("yavin", &yavin).await.unwrap();
    assert_eq!(denied(mesh.client().join("yavin", &yavin).await), Denied::Token, "a second time");
    mesh.pass(HOUR);
    assert_eq!(denied(mesh.client().join("hoth", &hoth).await), Denied::Token, "too late");
    assert_eq!(mesh.refused(Denied::Token), 5);
}

#[tokio::test]
async fn a_node_that_is_not_of_the_mesh_gets_neither_token_nor_certificate() {
    let mesh = Mesh::start().await;
    assert!(mesh.server.token("bespin").unwrap_err().contains("\"bespin\": not one of the mesh"));
    let node = mesh.join("yavin").await;
    let token = mesh.server.token("hoth").unwrap();
    mesh.place(&[]);
    assert_eq!(denied(mesh.client().join("hoth", &token).await), Denied::UnknownNode);
    // Its certificate is still valid; what it may have with it is not.
    assert_eq!(denied(mesh.client().issue(&node, &id(LUKE)).await), Denied::UnknownNode);
    assert_eq!(denied(mesh.client().issue(&node, node.id()).await), Denied::UnknownNode);
}

#[tokio::test]
async fn a_node_gets_no_certificate_of_anothers_workload_or_of_the_mesh_itself() {
    let mesh = Mesh::start().await;
    let node = mesh.join("yavin").await;
    let foreign = [
        id(LEIA),
        mesh.domain().node("hoth").unwrap(),
        ca_id(&mesh.domain()).unwrap(),
        id("spiffe://rebels.example/ns/default/sa/luke2"),
        id("spiffe://rebels.example"),
        id("spiffe://empire.example/ns/default/sa/luke"),
    ];
    for other in &foreign {
        assert_eq!(denied(mesh.client().issue(&node, other).await), Denied::NotPlaced, "{other}");
    }
    // Not even if the placements were to say so.
    let ca = ca_id(&mesh.domain()).unwrap().to_string();
    mesh.place(&[("yavin", &[&ca, "spiffe://rebels.example/ferromesh/node/hoth"]), ("hoth", &[])]);
    for other in &foreign[1..3] {
        assert_eq!(denied(mesh.client().issue(&node, other).await), Denied::NotPlaced, "{other}");
    }
    assert_eq!(mesh.refused(Denied::NotPlaced), 8);
}

#[tokio::test]
async fn a_workload_that_has_moved_is_issued_where_it_is_now() {
    let mesh = Mesh::start().await;
    let (yavin, hoth) = (mesh.join("yavin").await, mesh.join("hoth").await);
    mesh.place(&[("yavin", &[]), ("hoth", &[LUKE, LEIA])]);
    assert_eq!(denied(mesh.client().issue(&yavin, &id(LUKE)).await), Denied::NotPlaced);
    mesh.client().issue(&hoth, &id(LUKE)).await.unwrap();
}

#[tokio::test]
async fn a_node_renews_its_certificate_by_the_one_it_has() {
    let mesh = Mesh::start().await;
    let node = mesh.join("yavin").await;
    mesh.pass(HOUR / 2);
    let (renewed, _) = mesh.client().issue(&node, node.id()).await.unwrap();
    assert_eq!(renewed.not_after(), at(NOW + HOUR / 2 + HOUR));
    assert_ne!(renewed.serial(), node.serial());
    mesh.pass(HOUR);
    let expired = mesh.client().issue(&node, node.id()).await.unwrap_err();
    assert_eq!(expired.refusal(), Refusal::RefusedByPeer, "{expired}");
    mesh.client().issue(&renewed, &id(LUKE)).await.unwrap();
}

#[tokio::test]
async fn a_workloads_certificate_is_not_a_nodes() {
    let mesh = Mesh::start().await;
    let node = mesh.join("yavin").await;
    let (luke, _) = mesh.client().issue(&node, &id(LUKE)).await.unwrap();
    let refused = mesh.client().issue(&luke, &id(LUKE)).await.unwrap_err();
    assert_eq!(refused.refusal(), Refusal::RefusedByPeer, "{refused}");
}

#[tokio::test]
async fn who_shows_no_certificate_gets_nothing_but_by_token() {
    let mesh = Mesh::start().await;
    let mut stream = anonymous(&mesh).await;
    let csr = certs::svid::KeyRequest::new().unwrap().der().to_vec();
    let request = postcard::to_stdvec(&Request::Issue { id: id(LUKE), csr }).unwrap();
    stream.write_u32(request.len() as u32).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    // `Response::Denied(NoCertificate)`, the third of each.
    assert_eq!(answer, [0, 0, 0, 2, 2, 2]);
    assert_eq!(mesh.refused(Denied::NoCertificate), 1);
}

async fn anonymous(mesh: &Mesh) -> tokio_rustls::client::TlsStream<TcpStream> {
    let expected = Expected::Id(ca_id(&mesh.domain()).unwrap());
    let config = tls::anonymous_client_config(expected, &mesh.bundles(), &mesh.clock()).unwrap();
    let stream = TcpStream::connect(mesh.address).await.unwrap();
    TlsConnector::from(config).connect(tls::server_name(), stream).await.unwrap()
}

#[tokio::test]
async fn a_frame_that_is_too_long_or_means_nothing_is_refused_unread() {
    let mesh = Mesh::start().await;
    for frame in [&[0, 1, 0, 1][..], &[0xff; 4], &[0, 0, 0, 1, 9], &[0, 0, 0, 2, 2, 0], &[0, 0, 0, 0]] {
        let mut stream = anonymous(&mesh).await;
        stream.write_all(frame).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        // `Response::Denied(Protocol)`.
        assert_eq!(answer, [0, 0, 0, 2, 2, 6], "{frame:?}");
    }
    assert_eq!(mesh.refused(Denied::Protocol), 5);
    mesh.join("yavin").await;
}

#[tokio::test]
async fn peers_that_say_nothing_hold_no_others_up_and_are_cut_off() {
    let mesh = Mesh::start().await;
    // Nearly as many as one address may have: one says nothing after its handshake, the others not even that.
    let mut slow = anonymous(&mesh).await;
    let mut silent = Vec::new();
    for _ in 0..62 {
        silent.push(TcpStream::connect(mesh.address).await.unwrap());
    }
    mesh.join("yavin").await;
    for stream in &mut silent {
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }
    assert_eq!(slow.read(&mut [0]).await.unwrap_or(0), 0);
    mesh.join("hoth").await;
}

#[tokio::test]
async fn somebody_else_at_the_cas_address_is_told_no_token() {
    let (mesh, other) = (Mesh::start().await, Mesh::start().await);
    let token = mesh.server.token("yavin").unwrap();
    let client = Client::new(other.address, mesh.domain(), mesh.bundles(), mesh.clock());
    let refused = client.join("yavin", &token).await.unwrap_err();
    assert_eq!(refused.refusal(), Refusal::Untrusted, "{refused}");
    assert!(other.server.refused().is_empty(), "it was not asked");
    mesh.client().join("yavin", &token).await.unwrap();
}

#[tokio::test]
async fn a_changed_bundle_reaches_nodes_and_judges_them() {
    let mesh = Mesh::start().await;
    let node = mesh.join("yavin").await;
    mesh.files.rotate(at(NOW)).unwrap();
    let both = mesh.client().bundle(&node).await.unwrap();
    assert_eq!(both.certificates().count(), 2);
    mesh.files.rotate(at(NOW)).unwrap();
    // Issued by the new root, asked for with a certificate of the old.
    let client = Client::new(mesh.address, mesh.domain(), Arc::new(Bundles::new(both)), mesh.clock());
    let (renewed, _) = client.issue(&node, node.id()).await.unwrap();
    mesh.files.rotate(at(NOW)).unwrap();
    let refused = client.issue(&node, node.id()).await;
    assert!(refused.is_err(), "of the old root");
    for svid in [&renewed, &node] {
        assert_eq!(client.bundle(svid).await.unwrap().certificates().count(), 1);
    }
}

#[tokio::test]
async fn a_node_that_waits_hears_of_another_bundle_and_of_nothing_else() {
    let mesh = Mesh::start().await;
    let node = mesh.join("yavin").await;
    let mut watch = mesh.client().watch(&node).await.unwrap();
    let heard =
        async |watch: &mut Watch, known: &Bundle| watch.next(known.fingerprint()).await.unwrap().unwrap();
    let rotate = || mesh.files.rotate(at(NOW)).unwrap();
    let (both, _) = tokio::join!(heard(&mut watch, &mesh.bundle), async { rotate() });
    assert_eq!(both.certificates().count(), 2);
    // Another intermediate, the same roots: only the third step is news.
    let (last, _) = tokio::join!(heard(&mut watch, &both), async { (rotate(), rotate()) });
    assert_eq!(last.certificates().count(), 1);
    let refused = watch.next(last.fingerprint()).await.unwrap_err();
    assert!(matches!(refused, EnrolError::Connection { .. }), "it shows the root that is gone: {refused}");
}

#[tokio::test]
async fn a_node_that_waits_hears_that_nobody_is_trusted_though_nobody_may_connect_any_more() {
    let mesh = Mesh::start().await;
    let node = mesh.join("yavin").await;
    let mut watch = mesh.client().watch(&node).await.unwrap();
    let take_away = async { std::fs::write(mesh.files.directory.join(BUNDLE_FILE), "").unwrap() };
    let (heard, ()) = tokio::join!(watch.next(mesh.bundle.fingerprint()), take_away);
    assert!(heard.unwrap().unwrap().is_empty());
}

#[tokio::test]
async fn without_news_a_node_that_waits_is_told_so_and_asks_again() {
    let mesh = Mesh::start().await;
    let node = mesh.join("yavin").await;
    let mut watch = mesh.client().watch(&node).await.unwrap();
    assert_eq!(watch.next(mesh.bundle.fingerprint()).await.unwrap(), None);
    let other = Mesh::start().await.bundle.fingerprint();
    assert_eq!(watch.next(other).await.unwrap().as_ref(), Some(&mesh.bundle), "at once: it has another");
}

#[tokio::test]
async fn only_nodes_of_the_mesh_may_wait_and_the_latest_connection_of_each_counts() {
    let mesh = Mesh::start().await;
    let (yavin, hoth) = (mesh.join("yavin").await, mesh.join("hoth").await);
    let known = mesh.bundle.fingerprint();
    let mut stream = anonymous(&mesh).await;
    let request = postcard::to_stdvec(&Request::Watch { known }).unwrap();
    stream.write_u32(request.len() as u32).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    // `Response::Denied(NoCertificate)`.
    assert_eq!(answer, [0, 0, 0, 2, 2, 2]);

    let mut first = mesh.client().watch(&yavin).await.unwrap();
    let mut second = mesh.client().watch(&yavin).await.unwrap();
    let another = mesh.client();
    let (first, second, ()) = tokio::join!(first.next(known), second.next(known), async {
        // Whichever of them comes later, a third one comes after both.
        let mut third = another.watch(&yavin).await.unwrap();
        let change = async { mesh.files.rotate(at(NOW)).unwrap() };
        let (third, _) = tokio::join!(third.next(known), change);
        assert!(third.unwrap().is_some());
    });
    assert!(first.is_err() || second.is_err(), "one at least was given up: {first:?}, {second:?}");

    mesh.place(&[("yavin", &[LUKE])]);
    let mut gone = mesh.client().watch(&hoth).await.unwrap();
    assert_eq!(denied(gone.next(known).await), Denied::UnknownNode);
}

#[tokio::test]
async fn strangers_that_hold_every_connection_keep_no_node_out() {
    let mesh = Mesh::start().await;
    let yavin = mesh.join("yavin").await;
    let mut watch = mesh.client().watch(&yavin).await.unwrap();
    let mut silent = Vec::new();
    for last in 1..=5 {
        for _ in 0..64 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, last], 0).into()).unwrap();
            silent.push(socket.connect(mesh.address).await.unwrap());
        }
    }
    let (heard, ()) = tokio::join!(watch.next(mesh.bundle.fingerprint()), async {
        mesh.join("hoth").await;
        mesh.client().issue(&yavin, &id(LUKE)).await.unwrap();
        mesh.files.rotate(at(NOW)).unwrap();
    });
    assert_eq!(heard.unwrap().unwrap().certificates().count(), 2, "who waits takes nobody's place");
}

#[tokio::test]
async fn nodes_learn_that_their_only_root_was_taken_away() {
    let mesh = Mesh::start().await;
    let node = mesh.join("yavin").await;
    std::fs::write(mesh.files.directory.join(BUNDLE_FILE), "").unwrap();
    assert!(mesh.client().bundle(&node).await.unwrap().is_empty());
    assert!(mesh.client().issue(&node, &id(LUKE)).await.is_err());
}

#[tokio::test]
async fn a_ca_that_runs_for_years_issues_with_the_intermediate_that_was_renewed_meanwhile() {
    const DAY: u64 = 24 * HOUR;
    let mesh = Mesh::start().await;
    let forgotten = Mesh::start().await;
    for day in [300, 600, 900] {
        mesh.pass(300 * DAY);
        mesh.files.prepare(at(NOW + day * DAY)).unwrap();
        let node = mesh.join("yavin").await;
        assert_eq!(node.not_after(), at(NOW + day * DAY + HOUR));
    }
    forgotten.pass(400 * DAY);
    let token = forgotten.server.token("yavin").unwrap();
    assert!(forgotten.client().join("yavin", &token).await.is_err(), "not renewed");
}

#[tokio::test]
async fn files_of_no_use_leave_what_was_in_force() {
    let mesh = Mesh::start().await;
    let node = mesh.join("yavin").await;
    let path = mesh.files.directory.join(BUNDLE_FILE);
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA").unwrap();
    assert_eq!(mesh.client().bundle(&node).await.unwrap(), mesh.bundle);
    std::fs::remove_file(&path).unwrap();
    mesh.client().issue(&node, &id(LUKE)).await.unwrap();
}

#[tokio::test]
async fn a_ca_that_was_killed_goes_on_with_its_files_and_forgets_tokens() {
    let mesh = Mesh::start().await;
    let node = mesh.join("yavin").await;
    let token = mesh.server.token("hoth").unwrap();
    let again = Server::open(&mesh.files.directory, Duration::from_secs(HOUR), mesh.clock()).unwrap();
    let again = Arc::new(again);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(listener.local_addr().unwrap(), mesh.domain(), mesh.bundles(), mesh.clock());
    tokio::spawn(again.clone().serve(listener));
    // Before placements are told again, nothing is issued.
    assert_eq!(denied(client.issue(&node, &id(LUKE)).await), Denied::UnknownNode);
    let nodes = [("yavin".to_owned(), [id(LUKE)].into()), ("hoth".to_owned(), [].into())].into();
    again.place(Allowed { trust_domain: mesh.domain(), nodes }).unwrap();
    client.issue(&node, &id(LUKE)).await.unwrap();
    assert_eq!(denied(client.join("hoth", &token).await), Denied::Token);
    assert!(mesh.directory.path().exists());
}

#[tokio::test]
async fn placements_of_another_domain_are_refused() {
    let mesh = Mesh::start().await;
    let empire = Allowed { trust_domain: "empire.example".parse().unwrap(), nodes: [].into() };
    let told = mesh.server.place(empire).unwrap_err();
    assert!(told.contains("empire.example") && told.contains("rebels.example"), "{told}");
}
