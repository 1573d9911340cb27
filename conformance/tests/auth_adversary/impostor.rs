//! A member node that is asked for proofs and shows certificates of its own workloads in one another's place: each is good,
//! and each is somebody else's.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use auth_agent::message::Message;
use certs::svid::Svid;
use certs::tls::server_config;
use certs::verify::Expected;
use conformance::lab::{Node, policy, wait_until};
use linux::namespace::NetworkNamespace;
use mesh::auth::Refusal;
use mesh::spiffe::SpiffeId;
use tokio::sync::oneshot;
use tokio_rustls::rustls::{Connection, ServerConnection};

use crate::member::{Member, Talk, written};
use crate::scene::{REQUIRED, Scene, at, certified_asker, drops, known, proven};

/// The second node's, in this test's hands.
struct Impostor {
    stop: oneshot::Sender<()>,
    heard: JoinHandle<Vec<Refusal>>,
}

impl Impostor {
    /// It has a session with the first node when this returns, and attests what is its own. Whoever is asked to prove to
    /// be one of these shows the other's certificate.
    fn start(scene: &Scene, member: Member, pair: [&str; 2]) -> Self {
        let namespace = NetworkNamespace::open(&scene.mesh.nodes[1].network_file()).unwrap();
        let claims = pair.map(|name| member.attestation(name));
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let pose = async move || {
            let [one, other] = pair_of(&member, &claims.each_ref().map(|claim| &claim.id)).await;
            let shown = BTreeMap::from([(claims[0].id.clone(), other), (claims[1].id.clone(), one)]);
            let mut talk = member.call(0).await;
            talk.greet(claims.to_vec()).await;
            let complete = |message: &Message| matches!(message, Message::Complete).then_some(());
            talk.until("it says all it attests", complete).await;
            talk.say(&Message::Withdrawn { number: 0 }).await;
            ready.send(()).unwrap();
            answer(&member, &mut talk, &shown, stopped).await
        };
        let heard = thread::spawn(move || namespace.inside_async(pose).unwrap());
        is_ready.recv().expect("it has a session");
        Self { stop, heard }
    }

    /// What it was told of each of its proofs.
    fn finish(self) -> Vec<Refusal> {
        self.stop.send(()).unwrap();
        self.heard.join().unwrap()
    }
}

async fn pair_of(member: &Member, ids: &[&SpiffeId; 2]) -> [Svid; 2] {
    [member.certificate(ids[0]).await, member.certificate(ids[1]).await]
}

/// Goes through with each proof that it is asked for, and says that it accepts whatever the other side finds.
async fn answer(
    member: &Member,
    talk: &mut Talk,
    shown: &BTreeMap<SpiffeId, Svid>,
    mut stop: oneshot::Receiver<()>,
) -> Vec<Refusal> {
    let (mut running, mut refused) = (BTreeMap::<u64, Connection>::new(), Vec::new());
    loop {
        let message = tokio::select! {
            _ = &mut stop => return refused,
            message = talk.next("the end of the test") => message,
        };
        match message {
            Message::Withdraw { number, .. } => talk.say(&Message::Withdrawn { number }).await,
            Message::Prove { proof, initiator, responder } => {
                let clock = certs::system_clock();
                let expected = Expected::Id(initiator);
                let config = server_config(&shown[&responder], expected, &member.bundles, &clock).unwrap();
                running.insert(proof, ServerConnection::new(config).unwrap().into());
            }
            Message::Handshake { ours: true, proof, bytes } => {
                let Some(connection) = running.get_mut(&proof) else { continue };
                connection.read_tls(&mut &bytes[..]).unwrap();
                // An alert is what is to come.
                let _ = connection.process_new_packets();
                let bytes = written(connection);
                if !bytes.is_empty() {
                    talk.say(&Message::Handshake { ours: false, proof, bytes }).await;
                }
            }
            Message::Refuse { ours: true, proof, why } => {
                running.remove(&proof);
                refused.push(why);
                talk.say(&Message::Accept { proof }).await;
            }
            Message::Bind { initiator, responder, .. } => {
                panic!("{initiator} is to be marked as proven to {responder}")
            }
            _ => {}
        }
    }
}

/// Who calls its workloads, and whom they call, is refused at once, and is told which certificate was shown for which.
#[test]
fn a_certificate_of_another_workload_of_its_node_is_refused_and_named() {
    let mut scene = Scene::required(", authenticationAhead: 0");
    scene.mesh.place("victim", &["app=server"], 0);
    scene.mesh.place("client", &["app=client", "asks=itself"], 0);
    // Each is asked for where the other end is not the member's.
    let by_client = policy(
        "caller",
        "asks: itself",
        &["egress: [{toEndpoints: [{matchLabels: {app: server}}], authentication: {mode: required}}]"],
    );
    scene.mesh.apply("proven.yaml", &[REQUIRED, &by_client].join("---\n"));
    let [node, other] = &scene.mesh.nodes[..] else { panic!("two nodes") };
    let victim = node.serve("victim", &[], 80);
    known(other, &victim);
    let mut near = certified_asker(other, "near");
    known(node, &near);
    let mut client = certified_asker(node, "client");
    let member = Member::of(&mut scene.mesh, 1);
    let impostor = Impostor::start(&scene, member, ["server", "near"]);

    let node = &scene.mesh.nodes[0];
    for (which, prohibited) in [(0, "unreachable"), (1, "prohibited")] {
        let (server, victim) = (scene.to(which), at(victim.addresses[which], 80));
        for (from, to) in [(&mut client, server), (&mut near, victim)] {
            assert_eq!(from.session.ask(&format!("tcp {to}")), "refused", "{to}");
            assert_eq!(from.session.ask(&format!("udp {to}")), prohibited, "{to}");
        }
        assert_eq!(client.session.ask(&format!("tcp {victim}")), "answered", "a proof of its own node's");
    }
    assert!(proven(node).iter().all(|pair| pair["remote"]["node"] != "node-1"));
    named(node, ("client", "server"), "server", "near");
    named(node, ("near", "victim"), "near", "server");
    let refused = impostor.finish();
    assert!(refused.len() >= 2 && refused.iter().all(|why| *why == Refusal::WrongId), "{refused:?}");
}

/// The node says of the pair that one end had to be `expected`, and has shown the certificate of `shown`.
#[track_caller]
fn named(node: &Node, (from, to): (&str, &str), expected: &str, shown: &str) {
    let id = |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}");
    let why = format!("the certificate shows another SPIFFE ID: {}, it shows {}", id(expected), id(shown));
    // Over TCP and UDP, in both families. Of ends elsewhere observe has the address alone.
    wait_until("each drop is told with its reason", || {
        let is_told = |line: &&str| line.contains("Authentication refused DROPPED") && line.contains(&why);
        drops(node).lines().filter(is_told).count() >= 4
    });
    let ends = [id(from), id(to)];
    let its = |pair: &&serde_json::Value| {
        [&pair["local_id"], &pair["remote_id"]].iter().all(|end| ends.iter().any(|id| *end == id))
            && pair["remote"]["node"] == "node-1"
    };
    // It is tried again from time to time; meanwhile it is being proven.
    let mut pair = serde_json::Value::Null;
    wait_until("the pair is refused", || {
        let pairs = node.json(&["auth", "pairs"]);
        pair = pairs.as_array().unwrap().iter().find(its).unwrap_or_else(|| panic!("{pairs:#}")).clone();
        pair["state"] == "refused"
    });
    assert_eq!(pair["refusal"], "wrong-id");
    assert_eq!(pair["detail"], format!("node node-1: {why}"));
    wait_until("it is said why", || {
        let told = node.ferromesh(&["auth", "why", from, &format!("{to}:80")]);
        let step = told.stdout.lines().find(|line| line.starts_with("✗   proof"));
        told.code == Some(1) && step.is_some_and(|line| line.contains(&why))
    });
    let log = node.log("auth");
    assert!(
        log.lines()
            .any(|line| line.contains("no proof") && line.contains("node-1") && line.contains(&id(shown))),
        "{log}"
    );
}
