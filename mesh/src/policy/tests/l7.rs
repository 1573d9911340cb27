//! What HTTP rules, names of servers and inspections of TLS come to, in the kernel and for the proxy.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::given::*;
use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::l7::{
    HttpRule, L7Access, L7Demand, L7Inspected, L7Rules, L7Tls, SecretName, ServerName, TlsContext,
    TlsInspection,
};
use crate::policy::arbitrary::{Random, World, peer_ports};
use crate::policy::oracle;
use crate::policy::{Authentication, Peers, l7, protocol};

fn rules(given: &Given, direction: TrafficDirection) -> Option<L7Rules> {
    let (subject, ports) = deathstar();
    l7::rules(&subject, &ports, direction, &given.policies, &given.universe(), given.enforcement)
}

/// First and last port, peers (none: anybody), methods (none: anything).
type Range<'a> = (u16, u16, &'a [(Option<&'a [u32]>, Option<&'a [&'a str]>)]);

#[track_caller]
fn expect(given: &Given, direction: TrafficDirection, expected: &[Range<'_>]) {
    let found = rules(given, direction).unwrap_or_default();
    let all: Vec<_> = expected
        .iter()
        .map(|(first, last, access)| {
            let access = access.iter().map(|(peers, methods)| L7Access {
                peers: peers.map(|peers| peers.iter().filter_map(|it| Identity::new(*it)).collect()),
                http: methods.map(|methods| methods.iter().map(|method| method_is(method)).collect()),
            });
            (*first, *last, access.collect::<Vec<_>>())
        })
        .collect();
    assert!(found.ports.iter().all(|ports| ports.tls.is_empty() && ports.inspected.is_empty()), "{found:?}");
    let found: Vec<_> = found.ports.into_iter().map(|it| (it.first, it.last, it.access.to_vec())).collect();
    assert_eq!(found, all);
}

#[track_caller]
fn goes(given: &Given, direction: TrafficDirection, peer: &str, port: &str, expected: (bool, bool)) {
    let (identity, ..) = party(peer, &given.universe());
    let (protocol, port) = parse(port);
    let ruleset = given.ruleset(direction);
    let (allowed, _) = ruleset.judge(identity, protocol, port);
    assert_eq!((allowed, ruleset.is_proxied(identity, protocol, port)), expected, "{peer}");
}

const NODE: (Option<&[u32]>, Option<&[&str]>) = (Some(&[1]), None);
const DIRECT: (bool, bool) = (true, false);
const PROXIED: (bool, bool) = (true, true);
const DENIED: (bool, bool) = (false, false);

#[test]
fn a_statement_with_rules_sends_its_peers_to_the_proxy_and_denies_the_others() {
    let given = given([requesting("rule1", Ingress, pods("org=empire"), &[tcp(80, 80)], "POST")]);
    goes(&given, Ingress, "tiefighter", "80/tcp", PROXIED);
    goes(&given, Ingress, "xwing", "80/tcp", DENIED);
    goes(&given, Ingress, "tiefighter", "81/tcp", DENIED);
    goes(&given, Ingress, "host", "80/tcp", DIRECT);
    given.expect(Ingress, &[("tiefighter", "80/tcp", true), ("xwing", "80/tcp", false)]);
    expect(&given, Ingress, &[(80, 80, &[NODE, (Some(&[256, 257]), Some(&["POST"]))])]);
    assert_eq!(rules(&given, Egress), None, "the other direction knows nothing of it");
}

/// The union is per identity of the peer: who may do anything by one policy may, whatever another asks of others.
#[test]
fn the_same_port_with_and_without_rules_is_a_union_per_identity() {
    let given = given([
        requesting("land", Ingress, pods("org=empire"), &[tcp(80, 80)], "POST"),
        allowing("ship", Ingress, pods("class=tiefighter"), &[tcp(80, 80)]),
        requesting("look", Ingress, Peers::Any, &[tcp(80, 81)], "GET"),
    ]);
    goes(&given, Ingress, "tiefighter", "80/tcp", DIRECT);
    goes(&given, Ingress, "deathstar", "80/tcp", PROXIED);
    goes(&given, Ingress, "xwing", "80/tcp", PROXIED);
    goes(&given, Ingress, "tiefighter", "81/tcp", PROXIED);
    let both = [
        (Some(&[1_u32, 257][..]), None),
        (None, Some(&["GET"][..])),
        (Some(&[256][..]), Some(&["POST"][..])),
    ];
    expect(&given, Ingress, &[(80, 80, &both), (81, 81, &[NODE, (None, Some(&["GET"]))])]);
}

#[test]
fn a_plain_allow_for_anybody_leaves_nothing_to_the_proxy() {
    let given = given([
        requesting("land", Ingress, pods("org=empire"), &[tcp(80, 80)], "POST"),
        allowing("open", Ingress, Peers::Any, &[tcp(0, u16::MAX)]),
    ]);
    goes(&given, Ingress, "tiefighter", "80/tcp", DIRECT);
    assert_eq!(rules(&given, Ingress), None);
}

/// Whom HTTP rules name, whom names of servers name, and who is free: each peer may what any of them lets him.
#[test]
fn names_of_servers_stand_beside_rules_and_plain_allows() {
    let given = given([
        naming("call", Ingress, Peers::Any, &[tcp(443, 444)], "a.example"),
        requesting("land", Ingress, pods("org=empire"), &[tcp(443, 443)], "POST"),
        allowing("ship", Ingress, pods("class=tiefighter"), &[tcp(443, 443)]),
    ]);
    goes(&given, Ingress, "tiefighter", "443/tcp", DIRECT);
    goes(&given, Ingress, "deathstar", "443/tcp", PROXIED);
    goes(&given, Ingress, "xwing", "443/tcp", PROXIED);
    goes(&given, Ingress, "tiefighter", "444/tcp", PROXIED);
    goes(&given, Ingress, "xwing", "443/udp", DENIED);
    let identities = |numbers: &[u32]| Some(numbers.iter().filter_map(|it| Identity::new(*it)).collect());
    let tls = vec![L7Tls { peers: None, names: [server_is("a.example")].into() }];
    let found = rules(&given, Ingress).unwrap().ports;
    let [both, alone] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((both.first, both.last, alone.first, alone.last), (443, 443, 444, 444));
    assert_eq!((&*both.tls, &*alone.tls), (&*tls, &*tls));
    assert_eq!(
        *both.access,
        [
            L7Access { peers: identities(&[1, 257]), http: None },
            L7Access { peers: identities(&[256]), http: Some([method_is("POST")].into()) },
        ]
    );
    assert_eq!(*alone.access, [L7Access { peers: identities(&[1]), http: None }]);
    let given =
        super::given::given([naming("out", Egress, pods("class=xwing"), &[tcp(443, 443)], "*.example")]);
    goes(&given, Egress, "xwing", "443/tcp", PROXIED);
    goes(&given, Egress, "tiefighter", "443/tcp", DENIED);
    let found = rules(&given, Egress).unwrap().ports;
    let [only] = found.as_slice() else { panic!("{found:#?}") };
    assert!(only.access.is_empty());
    assert_eq!(*only.tls, [L7Tls { peers: identities(&[258]), names: [server_is("*.example")].into() }]);
}

/// Whom rules about the inside of TLS name, beside whom HTTP rules name and who is free: the latter is not inspected.
#[test]
fn inspections_stand_beside_rules_and_plain_allows() {
    let secret = SecretName { namespace: "default".to_owned(), name: "web".to_owned() };
    let context = TlsContext { secret, trusted_ca: None, certificate: None, private_key: None };
    let inspection = Arc::new(TlsInspection {
        names: Some([server_is("a.example")].into()),
        terminating: Some(context),
        originating: None,
        http: Some([method_is("GET")].into()),
    });
    let given = given([
        inspecting("look", Ingress, Peers::Any, &[tcp(443, 444)], &inspection),
        requesting("land", Ingress, pods("org=empire"), &[tcp(443, 443)], "POST"),
        allowing("ship", Ingress, pods("class=tiefighter"), &[tcp(443, 443)]),
    ]);
    goes(&given, Ingress, "tiefighter", "443/tcp", DIRECT);
    goes(&given, Ingress, "deathstar", "443/tcp", PROXIED);
    goes(&given, Ingress, "xwing", "443/tcp", PROXIED);
    goes(&given, Ingress, "tiefighter", "444/tcp", PROXIED);
    goes(&given, Ingress, "xwing", "443/udp", DENIED);
    let identities = |numbers: &[u32]| Some(numbers.iter().filter_map(|it| Identity::new(*it)).collect());
    let found = rules(&given, Ingress).unwrap().ports;
    let [both, alone] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((both.first, both.last, alone.first, alone.last), (443, 443, 444, 444));
    for ports in [both, alone] {
        assert_eq!(*ports.inspected, [L7Inspected { peers: None, inspection: Arc::clone(&inspection) }]);
        assert!(Arc::ptr_eq(&ports.inspected[0].inspection, &inspection), "it is the policy's own");
        assert!(ports.tls.is_empty());
    }
    assert_eq!(
        *both.access,
        [
            L7Access { peers: identities(&[1, 257]), http: None },
            L7Access { peers: identities(&[256]), http: Some([method_is("POST")].into()) },
        ]
    );
    assert_eq!(*alone.access, [L7Access { peers: identities(&[1]), http: None }]);
}

#[test]
fn a_deny_goes_before_rules_and_is_the_kernels_alone() {
    let given = given([
        requesting("land", Ingress, pods("org=empire"), &[tcp(80, 80)], "POST"),
        denying("deny", Ingress, pods("class=tiefighter"), &[tcp(80, 80)]),
    ]);
    goes(&given, Ingress, "tiefighter", "80/tcp", DENIED);
    goes(&given, Ingress, "deathstar", "80/tcp", PROXIED);
    expect(&given, Ingress, &[(80, 80, &[NODE, (Some(&[256, 257]), Some(&["POST"]))])]);
}

#[test]
fn the_strictest_authentication_counts_however_the_packet_goes() {
    let proven = |mut policy: crate::policy::Policy| {
        for rule in &mut policy.rules {
            rule.ingress.allow.iter_mut().for_each(|it| it.authentication = Authentication::Required);
        }
        policy
    };
    let asks = |given: &Given, expected: (bool, bool)| {
        goes(given, Ingress, "tiefighter", "80/tcp", expected);
        let (_, outcome) = given.outcome(Ingress, "tiefighter", "80/tcp");
        outcome.unwrap().authentication
    };
    let land = |peers| requesting("land", Ingress, peers, &[tcp(80, 80)], "POST");
    let ship = |peers| allowing("ship", Ingress, peers, &[tcp(80, 80)]);
    // In one table (both name the peer), and in two (one of them is for anybody).
    for peers in [pods("org=empire"), Peers::Any] {
        let one = given([proven(land(peers.clone())), ship(pods("org=empire"))]);
        assert_eq!(asks(&one, DIRECT), Authentication::Required);
        let other = given([land(peers.clone()), proven(ship(pods("org=empire")))]);
        assert_eq!(asks(&other, DIRECT), Authentication::Required);
        let both = given([proven(land(peers)), land(pods("org=empire"))]);
        assert_eq!(asks(&both, PROXIED), Authentication::Required);
    }
}

#[test]
fn rules_of_egress_go_by_the_names_that_peers_give_their_ports() {
    let landing =
        crate::policy::PortMatch::Named { protocol: Some(protocol::TCP), name: "landing".to_owned() };
    let given = given([requesting("out", Egress, pods("org=empire"), &[landing], "POST")]);
    goes(&given, Egress, "tiefighter", "8080/tcp", PROXIED);
    goes(&given, Egress, "tiefighter", "80/tcp", DENIED);
    expect(
        &given,
        Egress,
        &[(80, 80, &[(Some(&[256]), Some(&["POST"]))]), (8080, 8080, &[(Some(&[257]), Some(&["POST"]))])],
    );
}

/// Whatever goes to the proxy finds there the rules of the statements that let it, and no others.
#[test]
fn the_proxy_is_told_what_the_oracle_says() {
    let mut seen = (0, 0, 0, 0);
    for seed in 0..1_500 {
        let world = World::new(seed);
        let universe = world.universe();
        let parties = world.parties(&universe);
        let mut random = Random::new(seed);
        for direction in [Ingress, Egress] {
            let subject = random.pick(&world.workloads);
            let ruleset = world.ruleset(&subject, direction, &universe);
            let (labels, ports) = (&subject.labels, &subject.ports);
            let rules = l7::rules(labels, ports, direction, &world.policies, &universe, world.enforcement);
            for _ in 0..40 {
                let peer = random.pick(&parties);
                let ports = peer_ports(&peer.ports);
                let packet = subject.packet(&mut random, direction, &peer, &ports);
                if packet.protocol != protocol::TCP {
                    continue;
                }
                let range = rules.as_ref().and_then(|rules| {
                    rules.ports.iter().find(|it| (it.first..=it.last).contains(&packet.port))
                });
                let proxied = ruleset.is_proxied(packet.peer, packet.protocol, packet.port);
                assert!(!proxied || range.is_some(), "no rules: seed {seed}: {packet:#?}");
                let Some(range) = range else { continue };
                let mine = range
                    .access
                    .iter()
                    .filter(|access| access.peers.as_ref().is_none_or(|peers| peers.contains(&packet.peer)));
                let mine: Vec<_> = mine.collect();
                let admitting = oracle::admitting(&packet, &world.policies);
                let node = direction == Ingress && packet.peer == Identity::HOST;
                let free = node || admitting.iter().any(|it| it.l7.is_none());
                assert_eq!(mine.iter().any(|it| it.http.is_none()), free, "seed {seed}: {packet:#?}");
                seen.0 += u32::from(free);
                if !free {
                    let demands = || {
                        let outside = |demand: &&L7Demand| demand.inspection().is_none();
                        admitting.iter().filter_map(|it| it.l7.as_ref()).filter(outside)
                    };
                    let found: BTreeSet<&HttpRule> =
                        mine.iter().filter_map(|it| it.http.as_deref()).flatten().collect();
                    let right: BTreeSet<&HttpRule> =
                        demands().filter_map(|it| it.http()).flat_map(|rules| rules.iter()).collect();
                    assert_eq!(found, right, "seed {seed}: {packet:#?}");
                    seen.1 += u32::from(!right.is_empty());
                    let names = |peers: &Option<_>| {
                        let peers: &Option<Arc<[Identity]>> = peers;
                        peers.as_ref().is_none_or(|peers| peers.contains(&packet.peer))
                    };
                    let tls = range.tls.iter().filter(|tls| names(&tls.peers));
                    let found: BTreeSet<&ServerName> = tls.flat_map(|tls| tls.names.iter()).collect();
                    let right: BTreeSet<&ServerName> =
                        demands().filter_map(|it| it.server_names()).flat_map(|names| names.iter()).collect();
                    assert_eq!(found, right, "seed {seed}: {packet:#?}");
                    seen.2 += u32::from(!right.is_empty());
                    let found = range.inspected.iter().filter(|one| names(&one.peers));
                    let found: BTreeSet<_> = found.map(|one| &one.inspection).collect();
                    let right = admitting.iter().filter_map(|it| it.l7.as_ref()?.inspection());
                    let right: BTreeSet<_> = right.collect();
                    assert_eq!(found, right, "seed {seed}: {packet:#?}");
                    seen.3 += u32::from(!right.is_empty());
                }
            }
        }
    }
    assert!(seen.0 > 200 && seen.1 > 200 && seen.2 > 200 && seen.3 > 200, "{seen:?}");
}
