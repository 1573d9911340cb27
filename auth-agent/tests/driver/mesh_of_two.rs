//! Two nodes, one workload on each, and the policy that they authenticate.

use abi::{Address, HoldKind, HoldTag};
use mesh::auth::Refusal;
use node_api::auth::{AuthAnswer, AuthCounters, AuthQuestion, CertificateView, FromAuthAgent};

use crate::world::{Ca, Node, endpoint, inside, until};

async fn two() -> (Ca, Node, Node) {
    let ca = Ca::start(&[("a", &["client"]), ("b", &["server"])]).await;
    let mut a = Node::start(&ca, "a", 1).await;
    let mut b = Node::start(&ca, "b", 2).await;
    a.tell(1, a.plan(&ca, "client", &b, "server")).await;
    b.tell(1, b.plan(&ca, "server", &a, "client")).await;
    (ca, a, b)
}

async fn proven(a: &Node, b: &Node) -> [u64; 2] {
    let epoch = |of: &Node, to: &Node| {
        let marks = of.marks(to);
        (marks.len() == 2).then(|| marks.values().next().unwrap().epoch)
    };
    until("both ends are marked", async || Some([epoch(a, b)?, epoch(b, a)?])).await
}

async fn counters(node: &mut Node) -> AuthCounters {
    match node.ask(AuthQuestion::Counters).await {
        AuthAnswer::Counters(counters) => counters,
        other => panic!("{other:?}"),
    }
}

async fn certificates(node: &mut Node) -> Vec<CertificateView> {
    match node.ask(AuthQuestion::Certificates).await {
        AuthAnswer::Certificates(certificates) => certificates,
        other => panic!("{other:?}"),
    }
}

#[test]
fn they_join_are_proven_and_both_ends_are_marked_for_both_families() {
    inside(async || {
        let (ca, mut a, mut b) = two().await;
        proven(&a, &b).await;
        for (node, other, name) in [(&a, &b, "server"), (&b, &a, "client")] {
            let peer = endpoint(&ca, other.number, name);
            let expected = [Address::v4(peer.ipv4.octets()), Address(peer.ipv6.octets())];
            let marks = node.marks(other);
            assert!(expected.iter().all(|address| marks.contains_key(address)));
            assert!(marks.values().all(|mark| mark.instances == [node.number.into(), 0]));
        }
        for node in [&mut a, &mut b] {
            assert!(!node.has("join-token") && node.has("node.pem"));
            let held = certificates(node).await;
            assert_eq!(held.len(), 2, "{held:?}");
            assert!(held.iter().all(|it| it.serial.is_some() && it.problem.is_none()), "{held:?}");
            assert_eq!(held[1].workloads.len(), 1);
            let counters = counters(node).await;
            assert!(counters.marks == 1 && counters.sessions == 1 && counters.proven >= 1, "{counters:?}");
            assert!(counters.first_expiry.is_some_and(|left| (3_000..=3_600).contains(&left)));
            match node.ask(AuthQuestion::Nodes).await {
                AuthAnswer::Nodes(nodes) => assert!(nodes[0].connected && nodes[0].address.is_some()),
                other => panic!("{other:?}"),
            }
        }
        a.finish().await;
        b.finish().await;
    });
}

#[test]
fn a_packet_that_waits_goes_on_as_it_was_once_its_ends_are_proven() {
    inside(async || {
        let (ca, mut a, b) = two().await;
        let [client, server] = [endpoint(&ca, 1, "client"), endpoint(&ca, 2, "server")];
        let tag = HoldTag { id: 0xabcd_ef01, kind: HoldKind::Egress };
        let mut frame = [&tag.to_mac()[..], &[2, 0, 0, 0, 0, 1], &[8, 0]].concat();
        frame.extend([0x45, 0, 0, 48, 0x12, 0x34, 0x40, 0, 64, 6, 0xaa, 0xbb]);
        frame.extend(client.ipv4.octets());
        frame.extend(server.ipv4.octets());
        frame.extend((0..28).map(|byte| byte * 9));
        // Before anything of it is proven; the machine may let one that comes so early wait in vain, so another follows.
        let mut back = [0; 2048];
        let length = until("the packet goes on", async || {
            a.device.send(&frame).unwrap();
            a.device.recv(&mut back).ok()
        })
        .await;
        assert_eq!(back[..length], frame);
        assert_eq!(a.marks(&b).len(), 2);
        let stray = HoldTag { id: 1, kind: HoldKind::Egress };
        frame[..6].copy_from_slice(&stray.to_mac());
        frame[33] = 99;
        a.device.send(&frame).unwrap();
        // Behind those that were sent again while the first waited.
        until("a packet to nobody goes back", async || {
            a.device.recv(&mut back).ok().filter(|length| back[..*length] == frame)
        })
        .await;
        assert_eq!(counters(&mut a).await.lost.get(&Refusal::UnknownPeer), Some(&1));
    });
}

#[test]
fn a_killed_auth_agent_comes_back_to_the_same_marks() {
    inside(async || {
        let (ca, mut a, mut b) = two().await;
        let before = proven(&a, &b).await;
        // The higher name is called, the lower one calls.
        b.restart().await;
        b.tell(7, b.plan(&ca, "server", &a, "client")).await;
        until("there is a session again", async || (counters(&mut b).await.proven > 0).then_some(())).await;
        assert_eq!(proven(&a, &b).await, before);
        a.restart().await;
        a.tell(7, a.plan(&ca, "client", &b, "server")).await;
        until("there is a session again", async || (counters(&mut a).await.proven > 0).then_some(())).await;
        assert_eq!(proven(&a, &b).await, before);
    });
}

#[test]
fn a_workload_that_goes_takes_its_marks_at_both_ends() {
    inside(async || {
        let (ca, mut a, mut b) = two().await;
        proven(&a, &b).await;
        let mut plan = b.plan(&ca, "server", &a, "client");
        plan.endpoints.clear();
        b.tell(2, plan).await;
        let ended = |message| match message {
            FromAuthAgent::Ended(ended) => Some(ended),
            _ => None,
        };
        let ended = a.told(ended).await;
        assert_eq!((ended.len(), ended[0].instance, ended[0].why), (1, 1, Refusal::Withdrawn));
        assert!(a.marks(&b).is_empty() && b.marks(&a).is_empty());
        b.told(|message| matches!(message, FromAuthAgent::Free { instance: 2 }).then_some(())).await;
    });
}

#[test]
fn a_root_that_goes_takes_marks_and_session() {
    inside(async || {
        let (ca, mut a, b) = two().await;
        proven(&a, &b).await;
        let other = Ca::start(&[]).await;
        a.trust(&other);
        until("nothing is left of it", async || a.marks(&b).is_empty().then_some(())).await;
        let problems = certificates(&mut a).await;
        assert!(problems.iter().all(|it| it.serial.is_none() && it.problem.is_some()), "{problems:?}");
        drop(ca);
    });
}

#[test]
fn the_ca_tells_that_a_root_is_gone_without_being_asked() {
    inside(async || {
        let (mut ca, mut a, mut b) = two().await;
        proven(&a, &b).await;
        until("both wait for its word", async || (ca.server.waiting() == 2).then_some(())).await;
        // Whoever asks from here on is not answered.
        ca.close_door().await;
        ca.trust_nobody();
        for node in [&mut a, &mut b] {
            let ended = |message| matches!(message, FromAuthAgent::Ended(_)).then_some(());
            node.told(ended).await;
            until("it is in force", async || node.bundle().is_empty().then_some(())).await;
        }
        assert!(a.marks(&b).is_empty() && b.marks(&a).is_empty());
    });
}

#[test]
fn the_agents_word_takes_a_root_away_and_gives_it_back() {
    inside(async || {
        let (ca, mut a, b) = two().await;
        proven(&a, &b).await;
        let other = Ca::start(&[]).await;
        a.hear_of_roots(&other).await;
        let ended = |message| match message {
            FromAuthAgent::Ended(ended) => Some(ended),
            _ => None,
        };
        assert_eq!(a.told(ended).await[0].instance, 1);
        assert!(a.marks(&b).is_empty());
        assert_eq!(a.bundle(), other.authority().bundle().to_pem(), "also after a restart");
        a.hear_of_roots(&ca).await;
        until("it is proven again", async || (a.marks(&b).len() == 2).then_some(())).await;
        assert_eq!(a.bundle(), ca.authority().bundle().to_pem());
    });
}

#[test]
fn a_workload_that_the_ca_does_not_know_is_refused_by_name() {
    inside(async || {
        let ca = Ca::start(&[("a", &[]), ("b", &["server"])]).await;
        let mut a = Node::start(&ca, "a", 1).await;
        let mut b = Node::start(&ca, "b", 2).await;
        a.tell(1, a.plan(&ca, "client", &b, "server")).await;
        b.tell(1, b.plan(&ca, "server", &a, "client")).await;
        a.told(|message| matches!(message, FromAuthAgent::Settled { number: 1 }).then_some(())).await;
        let problem = until("the CA has refused", async || {
            certificates(&mut a)
                .await
                .into_iter()
                .find_map(|it| it.problem.filter(|_| it.workloads.len() == 1))
        });
        assert!(problem.await.starts_with("CA at 127.0.0.1"));
        assert!(a.marks(&b).is_empty() && b.marks(&a).is_empty());
    });
}
