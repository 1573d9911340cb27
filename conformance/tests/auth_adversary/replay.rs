//! A member node that says again what others, or it itself, have said before: with its own keys, in sessions of its own.

use auth_agent::message::{Attestation, Message, VERSION};
use conformance::lab::{Mesh, Node, Outcome, Session, binary, wait_until};
use linux::namespace::NetworkNamespace;
use mesh::auth::Refusal;

use crate::member::{INCARNATION, Member, Talk, written};
use crate::scene::{Scene, marks_of, proven};

/// Number of the node that is taken over.
const MEMBER: usize = 2;

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
    let member = Member::of(&mut scene.mesh, MEMBER);
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
    let own = member.attestation("member");
    inside(&scene, || async {
        let [own_id, server_id] = ["member", "server"].map(|account| member.workload(account));
        let mut talk = member.call(1).await;
        talk.greet(vec![own.clone()]).await;
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
        talk.say(&Message::Bind { bind: 1, initiator: own.instance, responder: server }).await;
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
