//! A member node that says again what others, or it itself, have said before: with its own keys, in sessions of its own.
//!
//! The node is taken over: its agent and auth-agent are killed, and what its auth-agent held speaks the protocol for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use auth_agent::message::{Attestation, MAX_MESSAGE, Message, VERSION};
use certs::bundle::{Bundle, Bundles};
use certs::enrol::Client;
use certs::svid::Svid;
use certs::tls::{client_config, server_name};
use certs::verify::Expected;
use conformance::lab::{Mesh, Node, Outcome, Session, binary, wait_until};
use linux::namespace::NetworkNamespace;
use mesh::auth::Refusal;
use mesh::spiffe::{SpiffeId, TrustDomain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConnection, Connection};

use crate::scene::{Scene, marks_of, processes, proven};

/// Number of the node that is taken over.
const MEMBER: usize = 2;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// What it says its auth-agent's start was; nobody else's number.
const INCARNATION: u64 = 0x6d65_6d62_6572;

/// What the member node held, and where the others are.
struct Member {
    domain: TrustDomain,
    svid: Svid,
    bundles: Arc<Bundles>,
    addresses: Vec<SocketAddr>,
    ca: SocketAddr,
}

impl Member {
    /// Takes the node over.
    fn of(mesh: &mut Mesh) -> Self {
        let directory = mesh.nodes[MEMBER].state().join("auth");
        mesh.nodes[MEMBER].kill_agent();
        let [pid] = processes(&mesh.nodes[MEMBER], "auth-agent")[..] else { panic!("one auth-agent runs") };
        linux::process::send(pid, 9).unwrap();
        wait_until("it is dead", || processes(&mesh.nodes[MEMBER], "auth-agent").is_empty());
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let id = domain.node("node-2").unwrap();
        let svid = Svid::load(&id, &directory.join("node.pem")).unwrap().unwrap();
        let roots = std::fs::read_to_string(directory.join("bundle.pem")).unwrap();
        let bundles = Arc::new(Bundles::new(Bundle::from_pem(domain.clone(), &roots).unwrap()));
        let addresses = [0, 1].map(|node| SocketAddr::new(mesh.address(node), 4250)).to_vec();
        let ca = SocketAddr::new(mesh.address(0), 4251);
        Self { domain, svid, bundles, addresses, ca }
    }

    fn workload(&self, account: &str) -> SpiffeId {
        self.domain.workload("default", account).unwrap()
    }

    /// A session with another node, in its own name.
    async fn call(&self, node: usize) -> Talk {
        let expected = Expected::Id(self.domain.node(&format!("node-{node}")).unwrap());
        let config = client_config(&self.svid, expected, &self.bundles, &certs::system_clock()).unwrap();
        let stream = TcpStream::connect(self.addresses[node]).await.unwrap();
        let stream = TlsConnector::from(config).connect(server_name(), stream).await.unwrap();
        Talk { stream, said: Vec::new() }
    }

    /// The side of a proof that begins it.
    async fn client(&self, own: &SpiffeId, other: &SpiffeId) -> Connection {
        let ca = Client::new(self.ca, self.domain.clone(), Arc::clone(&self.bundles), certs::system_clock());
        let (svid, _) = ca.issue(&self.svid, own).await.unwrap();
        let expected = Expected::Id(other.clone());
        let config = client_config(&svid, expected, &self.bundles, &certs::system_clock()).unwrap();
        ClientConnection::new(config, server_name()).unwrap().into()
    }
}

/// One session, as the member speaks it.
struct Talk {
    stream: TlsStream<TcpStream>,
    /// Every message it has said, as it went.
    said: Vec<Vec<u8>>,
}

impl Talk {
    async fn say(&mut self, message: &Message) {
        self.repeat(&postcard::to_allocvec(message).unwrap()).await;
    }

    /// Bytes of a message that somebody has said before.
    async fn repeat(&mut self, message: &[u8]) {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        // A session that was closed meanwhile is for who hears to notice.
        let _ = self.stream.write_all(&[&length[..], message].concat()).await;
        let _ = self.stream.flush().await;
        self.said.push(message.to_vec());
    }

    /// The next message; none: the other side has closed the session.
    async fn hear(&mut self) -> Option<Vec<u8>> {
        let read = async {
            let length = self.stream.read_u32().await.ok()? as usize;
            assert!(length <= MAX_MESSAGE);
            let mut message = vec![0; length];
            self.stream.read_exact(&mut message).await.ok()?;
            Some(message)
        };
        timeout(PATIENCE, read).await.expect("the other side says something, or goes")
    }

    /// Messages until one is the right one; are you there is answered meanwhile.
    async fn until<T>(&mut self, what: &str, right: impl Fn(&Message) -> Option<T>) -> T {
        loop {
            let Some(bytes) = self.hear().await else { panic!("the session was closed before {what}") };
            let message: Message = postcard::from_bytes(&bytes).unwrap();
            if let Message::Probe { nonce } = message {
                // Not recorded: it answers a number that is asked once.
                let echo = Message::Echo { nonce, withdrawal: 0, grace: 10_000 };
                self.say(&echo).await;
                self.said.pop();
            }
            if let Some(found) = right(&message) {
                return found;
            }
        }
    }

    /// Says who it is and what it attests, as every session begins.
    async fn greet(&mut self, attested: Vec<Attestation>) {
        self.say(&Message::Hello { version: VERSION, incarnation: INCARNATION }).await;
        self.say(&Message::Attest(attested)).await;
        self.say(&Message::Complete).await;
    }
}

/// What the other side says up to the end of all it attests, as bytes, and that itself.
async fn record(talk: &mut Talk) -> (Vec<Vec<u8>>, Vec<Attestation>) {
    let (mut heard, mut attested) = (Vec::new(), Vec::new());
    loop {
        let bytes = talk.hear().await.expect("it says all it attests");
        let message = postcard::from_bytes(&bytes).unwrap();
        heard.push(bytes);
        match message {
            Message::Attest(said) => attested.extend(said),
            Message::Complete => return (heard, attested),
            _ => {}
        }
    }
}

fn unbound(message: &Message) -> Option<Option<Refusal>> {
    match message {
        Message::Bound { .. } => Some(None),
        Message::Unbound { why, .. } => Some(Some(*why)),
        _ => None,
    }
}

/// Three nodes; the third, with a workload of its own that may call the server, is taken over. Connections of the client and
/// of that workload are open.
fn scene() -> (Scene, Member, [Session; 2]) {
    let mut scene = Scene::with(Mesh::up(3, ""));
    scene.mesh.place("member", &["app=client"], 2);
    let nodes = &scene.mesh.nodes;
    let to = scene.to(0).to_string();
    let workload = nodes[MEMBER].call("member", &[], "member", &[&nodes[0], &nodes[1]], &["hold", &to]);
    let mut live = workload.session;
    let mut client = scene.hold("client", 0);
    assert_eq!([client.ask("before"), live.ask("before")], ["answered", "answered"]);
    let member = Member::of(&mut scene.mesh);
    (scene, member, [client, live])
}

fn inside<F: Future<Output = ()>>(scene: &Scene, work: impl FnOnce() -> F + Send) {
    let file = scene.mesh.nodes[MEMBER].network_file();
    NetworkNamespace::open(&file).unwrap().inside_async(work).unwrap();
}

/// The node has counted what it has refused for one of these reasons.
fn counted(node: &Node, reasons: &[Refusal]) {
    wait_until(&format!("it is counted: {reasons:?}"), || {
        let metrics =
            ["auth_handshakes", "auth_refusals"].map(|named| node.json(&["metrics", "list", named]));
        metrics.iter().flat_map(|rows| rows.as_array().unwrap()).any(|row| {
            let reason = row["labels"]["reason"].as_str().unwrap_or_default();
            reasons.iter().any(|why| why.text() == reason) && row["value"].as_f64().unwrap_or_default() > 0.0
        })
    });
}

/// What node-0 attests of the client, recorded by a member in a session of its own, is said to the server's node: in the
/// member's name it is nobody's word, in no session; and to node-0 itself it is a reflection.
#[test]
fn what_another_node_attests_is_nothing_in_a_members_session() {
    let (scene, member, [mut client, _live]) = scene();
    let before =
        proven(&scene.mesh.nodes[1]).iter().filter(|pair| pair["remote"]["node"] != "node-2").count();
    // What the server's node shows of others while it is told all this.
    let shows = &scene.mesh.nodes[1];
    let mut nodes = shows.inside(binary("ferromesh"));
    nodes.arg("--socket").arg(shows.socket()).args(["auth", "nodes"]);
    inside(&scene, || async {
        let mut victim = member.call(0).await;
        let (recorded, attested) = record(&mut victim).await;
        let client = member.workload("client");
        let theirs = attested.iter().find(|it| it.id == client).expect("node-0 attests its client");

        // Said to the server's node, in two sessions one after the other.
        for round in 0..2 {
            let mut talk = member.call(1).await;
            talk.say(&Message::Hello { version: VERSION, incarnation: INCARNATION }).await;
            for message in recorded.iter().filter(|bytes| is_attestation(bytes)) {
                talk.repeat(message).await;
            }
            let (_, servers) = record(&mut talk).await;
            let server = servers.iter().find(|it| it.id == member.workload("server")).expect("a server");
            talk.say(&Message::Prove { proof: 1, initiator: client.clone(), responder: server.id.clone() })
                .await;
            let refused = |message: &Message| match message {
                Message::Refuse { why, .. } => Some(*why),
                Message::Handshake { .. } => panic!("a handshake began for another node's workload"),
                _ => None,
            };
            let why = talk.until("it refuses the proof", refused).await;
            assert!([Refusal::NotAttested, Refusal::UnknownPeer].contains(&why), "{why:?}");
            talk.say(&Message::Bind { bind: 1, initiator: theirs.instance, responder: server.instance })
                .await;
            let why = talk.until("it refuses the bind", unbound).await;
            assert!(why.is_some(), "a mark for another node's workload, round {round}");
            let problem = Outcome::of(&mut nodes).success();
            assert!(problem.contains("which is not its own"), "{problem}");
        }

        // Said back to who said it.
        let mut talk = member.call(0).await;
        let (own, _) = record(&mut talk).await;
        for message in &own {
            talk.repeat(message).await;
        }
        while talk.hear().await.is_some() {}
    });
    counted(&scene.mesh.nodes[1], &[Refusal::NotAttested]);
    counted(&scene.mesh.nodes[0], &[Refusal::Protocol]);
    for node in &scene.mesh.nodes[..2] {
        let log = node.log("auth");
        assert!(log.contains("session with node node-2 (192.0.2.12:"), "{log}");
    }
    assert_eq!(client.ask("after"), "answered");
    let after = proven(&scene.mesh.nodes[1]).iter().filter(|pair| pair["remote"]["node"] != "node-2").count();
    assert_eq!(after, before);
}

fn is_attestation(bytes: &[u8]) -> bool {
    matches!(postcard::from_bytes(bytes), Ok(Message::Attest(_) | Message::Complete))
}

/// A session in which the member has proven its own workload, as it may, is said again in a later one, byte for byte: the
/// other side marks nothing on the strength of it.
#[test]
fn what_was_said_in_a_session_proves_nothing_in_a_later_one() {
    let (scene, member, live) = scene();
    // The instance that the member's agent has made known.
    let own = instance_of(&scene);
    inside(&scene, || async {
        let [own_id, server_id] = ["member", "server"].map(|account| member.workload(account));
        let mut talk = member.call(1).await;
        talk.greet(vec![Attestation { instance: own.0, addresses: own.1, id: own_id.clone() }]).await;
        let (_, servers) = record(&mut talk).await;
        let server = servers.iter().find(|it| it.id == server_id).expect("a server").instance;
        let mut connection = member.client(&own_id, &server_id).await;
        talk.say(&Message::Prove { proof: 1, initiator: own_id.clone(), responder: server_id.clone() }).await;
        while connection.is_handshaking() {
            let bytes = written(&mut connection);
            talk.say(&Message::Handshake { ours: true, proof: 1, bytes }).await;
            let bytes = talk
                .until("it answers the handshake", |message| match message {
                    Message::Handshake { ours: false, proof: 1, bytes } => Some(bytes.clone()),
                    _ => None,
                })
                .await;
            connection.read_tls(&mut &bytes[..]).unwrap();
            connection.process_new_packets().unwrap();
        }
        talk.say(&Message::Handshake { ours: true, proof: 1, bytes: written(&mut connection) }).await;
        let accepted = |message: &Message| matches!(message, Message::Accept { proof: 1 }).then_some(());
        talk.until("it accepts", accepted).await;
        talk.say(&Message::Bind { bind: 1, initiator: own.0, responder: server }).await;
        assert_eq!(talk.until("it is bound", unbound).await, None, "what is true is believed");

        let recorded = std::mem::take(&mut talk.said);
        let mut later = member.call(1).await;
        for message in &recorded {
            later.repeat(message).await;
        }
        let refused = |message: &Message| match message {
            Message::Refuse { ours: false, proof: 1, why } => Some(*why),
            Message::Accept { .. } => panic!("a handshake was accepted twice"),
            _ => None,
        };
        // The bind is read while the handshake is still worked on: either answer may be first.
        let mut open = (None, None);
        while open.0.is_none() || open.1.is_none() {
            let (proof, bind) =
                later.until("it answers", |message| either(refused(message), unbound(message))).await;
            open = (open.0.or(proof), open.1.or(bind));
        }
        assert!(matches!(open.1, Some(Some(_))), "no mark on the strength of a replay: {open:?}");
    });
    drop(live);
    let server = &scene.mesh.nodes[1];
    counted(server, &Refusal::ALL);
    assert!(server.log("auth").contains("session with node node-2 (192.0.2.12:"));
    wait_until("the member's marks end with its word", || marks_of(server, "member") == 0);
}

fn either<A, B>(a: Option<A>, b: Option<B>) -> Option<(Option<A>, Option<B>)> {
    (a.is_some() || b.is_some()).then_some((a, b))
}

fn written(connection: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Number and addresses of the member's workload, as its node has made them known.
fn instance_of(scene: &Scene) -> (u64, [std::net::IpAddr; 2]) {
    let directory = scene.mesh.shared().join("nodes/node-2");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let text = files.map(|path| std::fs::read_to_string(path).unwrap()).find(|text| text.contains("member"));
    let text = text.expect("its endpoint is known");
    let word = |key: &str| {
        let rest = text.split(&format!("{key}:")).nth(1).unwrap_or_else(|| panic!("{key} in {text}"));
        rest.trim_start().split([',', '}', '\n']).next().unwrap().trim().trim_matches(['\'', '"']).to_owned()
    };
    let address = |key: &str| word(key).parse().unwrap();
    (word("instance").parse().unwrap(), [address("ipv4"), address("ipv6")])
}
