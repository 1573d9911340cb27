//! A node that is taken over, with everything it holds; and who can send on the network between nodes.

use std::net::SocketAddr;
use std::sync::Arc;

use certs::bundle::{Bundle, Bundles};
use certs::enrol::{Client, Denied, EnrolError};
use certs::svid::Svid;
use certs::verify::Expected;
use conformance::lab::{Outcome, Session, binary, wait_until};
use linux::namespace::NetworkNamespace;
use mesh::spiffe::TrustDomain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::scene::{REQUIRED, Scene, marks_of, placed_on};

/// What the second node's auth-agent holds: its certificate and key, and the roots it trusts.
pub(crate) fn loot(scene: &Scene) -> (TrustDomain, Svid, Arc<Bundles>) {
    let domain = "cluster.local".parse::<TrustDomain>().unwrap();
    let directory = scene.mesh.nodes[1].state().join("auth");
    wait_until("the node has a certificate", || directory.join("node.pem").exists());
    let svid = Svid::load(&domain.node("node-1").unwrap(), &directory.join("node.pem")).unwrap().unwrap();
    let roots = std::fs::read_to_string(directory.join("bundle.pem")).unwrap();
    let bundle = Bundle::from_pem(domain.clone(), &roots).unwrap();
    (domain, svid, Arc::new(Bundles::new(bundle)))
}

/// Runs in the network namespace of the second node.
pub(crate) fn on_the_second<T: Send, F: Future<Output = T>>(
    scene: &Scene,
    work: impl FnOnce() -> F + Send,
) -> T {
    let namespace = NetworkNamespace::open(&scene.mesh.nodes[1].network_file()).unwrap();
    namespace.inside_async(work).unwrap()
}

/// Fault 6, T56. A node gets certificates of what is placed on it, and of nothing else.
#[test]
fn a_foreign_certificate_is_refused_and_the_log_names_the_node() {
    let scene = Scene::required("");
    let (domain, svid, bundles) = loot(&scene);
    let ca = SocketAddr::new(scene.mesh.address(0), 4251);
    let client = Client::new(ca, domain.clone(), bundles, certs::system_clock());
    // What would match `server`, and what `server` would match, if names were patterns.
    let foreign = ["client", "stranger", "ser.er", "server.x", "serve", "Server"];
    let foreign = foreign.map(|account| domain.workload("default", account).unwrap());
    let others = [domain.node("node-0").unwrap(), domain.workload("ferromesh", "ca").unwrap()];
    on_the_second(&scene, || async {
        client.issue(&svid, &domain.workload("default", "server").unwrap()).await.unwrap();
        for id in foreign.iter().chain(&others) {
            let refused = client.issue(&svid, id).await;
            let why = refused.as_ref().err();
            assert!(
                matches!(why, Some(EnrolError::Denied { denied: Denied::NotPlaced, .. })),
                "{id}: {why:?}"
            );
        }
    });
    let log = scene.mesh.nodes[0].log("ca");
    let line = |id: &str| log.lines().any(|line| line.contains("node-1") && line.contains(id));
    assert!(foreign.iter().all(|id| line(&id.to_string())), "{log}");
}

/// T47, T54, T60. Whoever connects to an auth-agent without a node's certificate, or with garbage, or with what it has
/// itself said before, gets no word of the protocol, and disturbs nobody.
#[test]
fn garbage_reflection_and_callers_without_a_certificate_get_no_session() {
    let scene = Scene::required("");
    let mut live = scene.hold("client", 0);
    assert_eq!(live.ask("before"), "answered");
    let (domain, _, bundles) = loot(&scene);
    let door = SocketAddr::new(scene.mesh.address(0), 4250);
    let expected = || Expected::Id(domain.node("node-0").unwrap());
    let anonymous =
        certs::tls::anonymous_client_config(expected(), &bundles, &certs::system_clock()).unwrap();
    on_the_second(&scene, || async {
        for words in [&b"\x16\x03\x01\x02\x00\x01garbage"[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096]] {
            let mut stream = TcpStream::connect(door).await.unwrap();
            stream.write_all(words).await.unwrap();
            assert!(read(&mut stream).await.len() < 16, "an alert at most");
        }
        let stream = TcpStream::connect(door).await.unwrap();
        let session = TlsConnector::from(anonymous).connect(certs::tls::server_name(), stream).await;
        // A TLS 1.3 client is through before the server has judged it: what counts is that nothing comes.
        if let Ok(mut session) = session {
            let _ = session.write_all(&[0, 0, 0, 1, 0]).await;
            assert_eq!(read(&mut session).await, [0; 0]);
        }
        // What it says itself, sent back to it.
        let mut stream = TcpStream::connect(door).await.unwrap();
        let mut recorded = vec![0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0];
        for _ in 0..2 {
            let _ = stream.write_all(&recorded).await;
            recorded = read(&mut stream).await;
        }
    });
    assert_eq!(live.ask("after"), "answered");
    assert_eq!(scene.attempt("twin", "tcp", 1), "answered");
    let nodes = scene.mesh.nodes[0].json(&["auth", "nodes"]);
    assert!(nodes.as_array().unwrap().iter().any(|node| node["connected"] == true), "{nodes:#}");
}

/// Everything the other side says until it closes; an error of the connection is an end too.
async fn read(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    all
}

/// It writes into its own part of the shared directory what is not its own.
#[test]
fn claims_to_what_is_anothers_are_refused_with_the_files_name() {
    let scene = Scene::required("");
    let mut live = scene.hold("client", 0);
    assert_eq!(live.ask("before"), "answered");
    let before = scene.mesh.nodes.each_ref_marks();
    for (file, workload, address) in [
        ("elsewhere", "near", "10.77.0.2"),
        ("workload", "twin", "10.77.1.77"),
        ("outside", "near", "198.51.100.7"),
    ] {
        let yaml = format!(
            "apiVersion: ferromesh.io/v1alpha1\nkind: WorkloadEndpoint\n\
             metadata: {{name: {file}, namespace: default}}\n\
             spec: {{workload: {workload}, instance: 4711, ipv4: {address}, ipv6: 'fd00:77::1:77'}}\n"
        );
        refused_by_name(&scene, file, &yaml);
        let known = scene.mesh.nodes[0].ferromesh(&["ip", "list", "-o", "json"]).success();
        assert!(!known.contains("10.77.1.77") && !known.contains("198.51.100.7/"), "{known}");
        assert_eq!(scene.mesh.nodes.each_ref_marks(), before, "{file}");
    }
    // Labels, account and placement, of its own workload and of another's; and what is allowed.
    let workload = |name: &str| placed_on(name, "app: client", "client", 1);
    for (file, yaml) in [
        ("account", workload("near")),
        ("placement", workload("client")),
        ("label", placed_on("server", "app: client", "server", 1)),
        ("policy", REQUIRED.replace("client", "other")),
    ] {
        refused_by_name(&scene, file, &yaml);
        assert_eq!(scene.mesh.nodes.each_ref_marks(), before, "{file}");
    }
    let mut near = scene.hold("near", 0);
    assert_eq!((live.ask("after"), near.ask("a word")), ("answered".to_owned(), "answered".to_owned()));
    let ids = scene.mesh.nodes[1].json(&["auth", "list"]).to_string();
    assert!(ids.contains("/sa/near") && !ids.contains("/sa/client"), "{ids}");
    assert_eq!(scene.attempt("stranger", "tcp", 0), "silent");
}

/// Writes a file into the second node's part of the shared directory; the first node takes nothing from it, and says so.
#[track_caller]
fn refused_by_name(scene: &Scene, file: &str, yaml: &str) {
    let file = format!("nodes/node-1/{file}.yaml");
    std::fs::write(scene.mesh.shared().join(&file), yaml).unwrap();
    wait_until(&format!("{file} is refused by name"), || {
        let list = scene.mesh.nodes[0].json(&["policy", "list"]);
        let its = |row: &serde_json::Value| {
            row["valid"] == false && row["location"].as_str().is_some_and(|it| it.contains(&file))
        };
        list.as_array().unwrap().iter().any(its)
    });
}

/// Marks of the client by node.
trait EachMarks {
    fn each_ref_marks(&self) -> [usize; 2];
}

impl EachMarks for Vec<conformance::lab::Node> {
    fn each_ref_marks(&self) -> [usize; 2] {
        [0, 1].map(|node: usize| marks_of(&self[node], "client"))
    }
}

/// Fault 3, documented loser (docs/threat-model.md, *Who wins all the same*): without encryption, who can send a
/// workload's address on the network between nodes is heard as it while its mark lives, and only while it lives.
#[test]
fn a_raw_packet_on_the_underlay_is_heard_while_the_mark_lives_and_not_after() {
    let scene = Scene::required("");
    scene.mesh.intrude();
    let client = scene.mesh.nodes[0].serve("client", &[], 81);
    let probe = binary("probe");
    let call = |to: SocketAddr| {
        Outcome::of(scene.node_of("client").within("client", &probe).args(["udp", &to.to_string()])).stdout
    };
    let watch = Session::start(scene.node_of("server").beside("server", &probe).arg("capture"));
    assert_eq!(watch.line(), "serving");
    for which in [0, 1] {
        assert_eq!(call(scene.to(which)), "answered", "the mark lives");
        forge(&scene, which, &client.addresses[which]);
        heard(&watch, &client.addresses[which]);
    }
    scene.mesh.place("client", &["app=other"], 0);
    let server = &scene.mesh.nodes[1];
    wait_until("the mark is gone", || marks_of(server, "client") == 0);
    for which in [0, 1] {
        forge(&scene, which, &client.addresses[which]);
        wait_until("it is dropped", || {
            let drops = server.ferromesh(&["observe", "--verdict", "DROPPED", "--last", "100", "-o", "json"]);
            drops.stdout.contains("40000") && drops.stdout.contains(&client.addresses[which].to_string())
        });
    }
}

/// A datagram with the client's address, from the network itself.
fn forge(scene: &Scene, which: usize, from: &std::net::IpAddr) {
    let to = scene.server.addresses[which];
    let mut command = scene.mesh.underlay(binary("probe"));
    let sent = Outcome::of(command.args(["forge", "spoof", &to.to_string(), &from.to_string()]));
    assert_eq!(sent.success(), "sent");
}

/// The forged datagram reaches the server's namespace.
fn heard(watch: &Session, from: &std::net::IpAddr) {
    let source = format!("udp {} > ", SocketAddr::new(*from, 40_000));
    while !watch.line().starts_with(&source) {}
}
