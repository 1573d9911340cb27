//! The size we promise: five thousand policies and ten thousand identities.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};

use super::given::{policy, tcp};
use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::labels::{LabelSet, NAMESPACE, Source};
use crate::policy::{
    Authentication, Enforcement, Operator, Peer, PeerPorts, Peers, Policy, PortMatch, Requirement, Rule,
    Selector, Side, Statement, Universe, compile, protocol,
};

/// A hundred namespaces of a hundred identities.
fn labels(number: u32) -> LabelSet {
    let app = format!("app-{}", number % 20);
    let workload =
        LabelSet::new().with(Source::K8s, "app", &app).with(Source::K8s, "pod", &number.to_string());
    workload.with(Source::K8s, NAMESPACE, &format!("namespace-{}", number / 100))
}

fn having(key: &str, value: String) -> Requirement {
    Requirement { source: Some(Source::K8s), key: key.to_owned(), operator: Operator::In(vec![value]) }
}

/// Fifty policies a namespace, each about one app, for another app there and for a network, by number and by name.
fn about(number: u32) -> Policy {
    let namespace = having(NAMESPACE, format!("namespace-{}", number / 50));
    let app = |number: u32| having("app", format!("app-{}", number % 20));
    let port = 80 + (number % 50) as u16;
    let named = PortMatch::Named { protocol: Some(protocol::TCP), name: "web".to_owned() };
    let network = Ipv4Net::new_assert([10, (number / 256) as u8, (number % 256) as u8, 0].into(), 24);
    let peers = Peers::Selected(vec![
        Peer::Endpoints(Selector(vec![namespace.clone(), app(number * 7)])),
        Peer::Cidr { cidr: network.into(), except: Vec::new() },
    ]);
    let ports = vec![tcp(port, port + 10), named];
    let allow = vec![Statement {
        peers,
        ports,
        authentication: Authentication::None,
        needs: None,
        l7: None,
        field: None,
    }];
    let side = Side { default_deny: true, allow, deny: Vec::new() };
    let subject = Selector(vec![namespace, app(number)]);
    let rules = vec![Rule { subject, ingress: side.clone(), egress: side }];
    Policy { rules, ..policy(&format!("policy-{number}"), []) }
}

/// Measured in release on the development machine: under 2 ms a direction, the universe about 10 ms. The bounds here
/// are for tests side by side on a busy machine; what is quadratic misses them by far.
#[test]
fn ten_thousand_identities_and_five_thousand_policies_are_compiled_at_once() {
    let policies: Vec<_> = (0..5_000).map(about).collect();
    let numbered = |first| (first..).filter_map(Identity::new);
    let prefixes: BTreeMap<IpNet, Identity> =
        compile::prefixes(&policies).into_iter().zip(numbered(Identity::FIRST_CIDR)).collect();
    let identities: BTreeMap<Identity, LabelSet> =
        numbered(Identity::FIRST_WORKLOAD).zip((0..10_000).map(labels)).collect();
    let web = |port: u16| PeerPorts::from([(("web".to_owned(), protocol::TCP), [port].into())]);
    let ports = identities.keys().map(|it| (*it, web(8080 + (it.number() % 3) as u16))).collect();

    let start = Instant::now();
    let universe = Universe::new(&identities, &prefixes, &ports);
    let subject = labels(4_242);
    for direction in [TrafficDirection::Ingress, TrafficDirection::Egress] {
        let own = [(("web".to_owned(), protocol::TCP), 8080)].into();
        let ruleset = compile::ruleset(&subject, &own, direction, &policies, &universe, Enforcement::Default);
        assert!(
            ruleset.denied_by_default.len() >= 2 && ruleset.entries.len() < 1_000,
            "{}",
            ruleset.entries.len()
        );
    }
    assert!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());
}
