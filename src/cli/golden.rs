//! Golden tests: fixed values, and what verbs make of them, kept under `tests/golden`.
//!
//! `FERROMESH_REWRITE_GOLDEN=1 cargo test` writes what is printed now; look at the difference before committing it.

use std::collections::BTreeSet;
use std::path::Path;

use mesh::auth::{InstanceName, Refusal};
use mesh::flow::{Drop, Flow, Peer, TrafficDirection, Verdict};
use mesh::identity::Identity;
use mesh::labels::LabelSet;
use mesh::policy::{PolicyKind, PolicyName, protocol};
use mesh::service::ServiceName;
use mesh::spiffe::SpiffeId;
use mesh::workload::{Endpoint, EndpointId, Mac};
use node_api::auth::{AuthStep, AuthWhy, CertificateView, NodeView, PairState, PairView};
use node_api::{
    AddressView, AuthStatus, ConfigEntry, ConnectionView, DropView, EndpointView, EventView, IdentityView,
    L7Status, LoadBalancerView, MapUse, Masquerading, MetricView, PolicyView, ProgramView, ServiceCounts,
    ServiceView, Status,
};
use serde_json::{Value, json};

/// Compares with `tests/golden/NAME.txt`.
pub(crate) fn golden(name: &str, printed: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let file = directory.join(format!("{name}.txt"));
    if std::env::var_os("FERROMESH_REWRITE_GOLDEN").is_some() {
        std::fs::write(&file, printed).unwrap();
    }
    let expected =
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert!(printed == expected, "{name}: printed\n{printed}\nexpected\n{expected}");
}

/// A directory that goes with the test.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) fn policy(name: &str) -> PolicyName {
    PolicyName {
        kind: PolicyKind::CiliumNetworkPolicy,
        namespace: Some("default".to_owned()),
        name: name.to_owned(),
    }
}

pub(crate) fn identity(number: u32) -> Identity {
    Identity::new(number).unwrap()
}

pub(crate) fn labels(text: &str) -> LabelSet {
    text.parse().unwrap()
}

pub(crate) fn spiffe_id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{account}").parse().unwrap()
}

pub(crate) fn status() -> Status {
    let text = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect();
    let found = |pairs: &[(&str, &str)]| pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    Status {
        node: "death-star-1".to_owned(),
        pid: 4242,
        build: "0.1.0 (0123456789)".to_owned(),
        schema: 1,
        config: "/etc/ferromesh".into(),
        snapshot: 3,
        revision: 17,
        endpoints: 4,
        ingress_enforced: 2,
        egress_enforced: 0,
        policies: 1,
        invalid: 0,
        services: ServiceCounts { services: 3, frontends: 5, backends: 12 },
        masquerading: Masquerading {
            ipv4: true,
            ipv6: true,
            ports: (49_152, 65_535),
            devices: text(&["eth0"]),
        },
        l7: Some(L7Status { workers: 2, endpoints: 2, refused: 0, draining: 1, problem: None }),
        authentication: Some(AuthStatus {
            trust_domain: "cluster.local".parse().unwrap(),
            required: 2,
            marks: 3,
            nodes: 2,
            sessions: 1,
            first_expiry: Some(3_120),
            problem: None,
        }),
        dns: vec!["10.1.0.1:53".parse().unwrap(), "[fd00:10:1::1]:53".parse().unwrap()],
        adopted: 3,
        degraded: Vec::new(),
        host_changes: text(&[
            "net.ipv4.conf.all.forwarding: 0 -> 1; `ferromesh down` sets it back",
            "route 10.1.0.0/16 to ferromesh0; `ferromesh down` removes it",
        ]),
        capabilities: found(&[("redirect_peer", "yes"), ("tcx", "yes (links)")]),
        maps: [
            ("CONNECTIONS4".to_owned(), MapUse { used: None, capacity: 524_288, bytes: 58_721_792 }),
            ("IPCACHE".to_owned(), MapUse { used: Some(12), capacity: 512_000, bytes: 1544 }),
            ("RULES".to_owned(), MapUse { used: Some(950_000), capacity: 1_048_576, bytes: 60_800_008 }),
        ]
        .into(),
        programs: [("from_pod", 210, 8, Some(61_342)), ("to_pod", 211, 4, None)]
            .map(|(name, id, attached, verified)| ProgramView {
                name: name.to_owned(),
                id,
                attached,
                verified,
                bytes: 45_056,
            })
            .into(),
        lost_events: 0,
    }
}

fn endpoint(id: u16, name: &str, given: &str) -> Endpoint {
    Endpoint {
        id: EndpointId::new(id).unwrap(),
        instance: 1000 + u64::from(id),
        workload: name.parse().unwrap(),
        labels: labels(given),
        service_account: "default".to_owned(),
        interface: format!("fm{id}"),
        ifindex: 100 + u32::from(id),
        mac: Mac([2, 0, 0, 0, 1, 7]),
        gateway_mac: Mac([2, 0, 0, 0, 0, 1]),
        ipv4: format!("10.1.0.{id}").parse().unwrap(),
        ipv6: format!("fd00:10:1::{id}").parse().unwrap(),
    }
}

pub(crate) fn endpoints() -> Vec<EndpointView> {
    let derived = "io.kubernetes.pod.namespace=default";
    let deathstar = EndpointView {
        endpoint: endpoint(3, "default/deathstar", "org=empire,class=deathstar"),
        labels: labels(&format!("org=empire,class=deathstar,{derived}")),
        identity: identity(17_839),
        spiffe_id: Some(spiffe_id("deathstar")),
        ingress_enforced: true,
        egress_enforced: false,
        ingress_ruleset: 5,
        egress_ruleset: 1,
        audit: false,
        policies: vec![policy("rule1")],
        connections: 12,
        state: "ready".to_owned(),
    };
    let xwing = EndpointView {
        endpoint: endpoint(7, "default/xwing", "org=alliance,class=xwing"),
        labels: labels(&format!("org=alliance,class=xwing,{derived}")),
        identity: identity(13_058),
        spiffe_id: Some(spiffe_id("xwing")),
        ingress_ruleset: 1,
        audit: true,
        policies: Vec::new(),
        connections: 0,
        state: "waiting for its first plan".to_owned(),
        ..deathstar.clone()
    };
    vec![deathstar, xwing]
}

pub(crate) fn identities() -> Vec<IdentityView> {
    let view = |number, text: &str, ids: &[&str]| IdentityView {
        identity: identity(number),
        labels: labels(text),
        spiffe_ids: ids.iter().map(|account| spiffe_id(account)).collect(),
    };
    let deathstar = "org=empire,class=deathstar,io.kubernetes.pod.namespace=default";
    vec![
        view(2, "reserved:world", &[]),
        view(17_839, deathstar, &["deathstar", "superlaser"]),
        view(16_777_217, "cidr:10.0.0.0/8,reserved:world", &[]),
    ]
}

fn instance(node: &str, instance: u64) -> InstanceName {
    InstanceName { node: node.to_owned(), instance }
}

pub(crate) fn certificates(now: i64) -> Vec<CertificateView> {
    let held = CertificateView {
        id: "spiffe://cluster.local/ferromesh/node/death-star-1".parse().unwrap(),
        serial: Some("5f3a9c0012d4e7b8".to_owned()),
        expires: Some(now + 3_120),
        workloads: BTreeSet::new(),
        problem: None,
    };
    let of = |account: &str, serial: Option<&str>, expires, problem: Option<&str>| CertificateView {
        id: spiffe_id(account),
        serial: serial.map(str::to_owned),
        expires,
        workloads: [format!("default/{account}").parse().unwrap()].into(),
        problem: problem.map(str::to_owned),
    };
    let refused = "the CA at 192.0.2.10:4251 refuses it: not placed on death-star-1";
    vec![
        held,
        of("deathstar", Some("1c77aa0412d4e7b8"), Some(now + 1_799), None),
        of("xwing", None, None, Some(refused)),
        of("tiefighter", Some("0e77aa0412d4e7b9"), Some(now - 5), Some("the CA does not answer")),
    ]
}

pub(crate) fn pairs() -> Vec<PairView> {
    let proven = PairView {
        local: instance("death-star-1", 1003),
        local_workload: "default/deathstar".parse().unwrap(),
        local_id: spiffe_id("deathstar"),
        remote: instance("death-star-2", 12),
        remote_workload: "default/tiefighter".parse().unwrap(),
        remote_id: spiffe_id("tiefighter"),
        state: PairState::Proven,
        mark: 4,
        epoch: 77,
        expires_in: Some(1_750),
        proof_micros: Some(1_873),
        refusal: None,
        detail: None,
    };
    let refused = PairView {
        remote: instance("death-star-1", 1007),
        remote_workload: "default/xwing".parse().unwrap(),
        remote_id: spiffe_id("xwing"),
        state: PairState::Refused,
        mark: 0,
        epoch: 0,
        expires_in: None,
        proof_micros: None,
        refusal: Some(Refusal::PeerNoCertificate),
        detail: Some(
            "no certificate for spiffe://cluster.local/ns/default/sa/xwing on death-star-1".to_owned(),
        ),
        ..proven.clone()
    };
    let idle = PairView { state: PairState::Idle, refusal: None, detail: None, ..refused.clone() };
    vec![proven, refused, idle]
}

pub(crate) fn auth_nodes() -> Vec<NodeView> {
    let here = NodeView {
        name: "death-star-2".to_owned(),
        id: "spiffe://cluster.local/ferromesh/node/death-star-2".parse().unwrap(),
        connected: true,
        address: Some("192.0.2.12:4250".parse().unwrap()),
        lease: 9_480,
        marks: 3,
        problem: None,
    };
    let away = NodeView {
        name: "yavin".to_owned(),
        id: "spiffe://cluster.local/ferromesh/node/yavin".parse().unwrap(),
        connected: false,
        address: None,
        lease: 0,
        marks: 0,
        problem: Some("connecting to 192.0.2.13:4250: connection refused".to_owned()),
    };
    vec![here, away]
}

pub(crate) fn why() -> AuthWhy {
    let step = |step: &str, ok, text: &str| AuthStep { step: step.to_owned(), ok, text: text.to_owned() };
    AuthWhy {
        ok: false,
        steps: vec![
            step("policy", true, "allowed, authentication required: by rule1, for tiefighter at 80/TCP"),
            step(
                "identity",
                true,
                "default/tiefighter on death-star-1 is spiffe://cluster.local/ns/default/sa/tiefighter",
            ),
            step(
                "certificate",
                false,
                "none for spiffe://cluster.local/ns/default/sa/tiefighter: the CA does not answer",
            ),
        ],
    }
}

pub(crate) fn services() -> Vec<ServiceView> {
    let view = |id, name: (&str, &str), frontend: &str, port: &str, backends: &[&str], draining: &[&str]| {
        let addresses = |list: &[&str]| list.iter().map(|backend| backend.parse().unwrap()).collect();
        ServiceView {
            id,
            service: ServiceName { namespace: name.0.to_owned(), name: name.1.to_owned() },
            kind: "ClusterIP".to_owned(),
            frontend: frontend.parse().unwrap(),
            port_name: port.to_owned(),
            backends: addresses(backends),
            draining: addresses(draining),
            affinity: (name.1 == "deathstar").then_some(10_800),
        }
    };
    let (deathstar, dns, empty) =
        (("default", "deathstar"), ("kube-system", "kube-dns"), ("default", "empty"));
    vec![
        view(
            1,
            deathstar,
            "10.96.0.7:80/TCP",
            "http",
            &["10.1.0.3:8080", "10.1.0.4:8080"],
            &["10.1.0.9:8080"],
        ),
        view(2, deathstar, "[fd00:10:96::7]:80/TCP", "http", &["[fd00:10:1::3]:8080"], &[]),
        view(3, dns, "10.96.0.10:53/UDP", "", &["10.1.0.5:53"], &[]),
        view(0, empty, "10.96.0.11:80/TCP", "", &[], &[]),
    ]
}

pub(crate) fn load_balancer() -> Vec<LoadBalancerView> {
    let view = |id, frontend: &str, slots: &[(u32, &str)], affinity| LoadBalancerView {
        id,
        frontend: frontend.parse().unwrap(),
        slots: slots.iter().map(|(number, backend)| (*number, backend.parse().unwrap())).collect(),
        affinity,
    };
    vec![
        view(1, "10.96.0.7:80/TCP", &[(1, "10.1.0.3:8080"), (2, "10.1.0.4:8080")], 10_800),
        view(4, "10.96.0.11:80/TCP", &[], 0),
        view(2, "[fd00:10:96::7]:80/TCP", &[(3, "[fd00:10:1::3]:8080")], 0),
    ]
}

pub(crate) fn connections() -> Vec<ConnectionView> {
    let through_service = ConnectionView {
        protocol: protocol::TCP,
        source: "10.1.0.7:49446".parse().unwrap(),
        destination: "10.1.0.3:8080".parse().unwrap(),
        called: Some("10.96.0.7:80".parse().unwrap()),
        masqueraded: None,
        state: "established".to_owned(),
        expires: 7_999,
        generation: 17,
        audited: false,
        charged: Some(7),
    };
    let outside = ConnectionView {
        protocol: protocol::UDP,
        destination: "198.51.100.1:53".parse().unwrap(),
        called: None,
        masqueraded: Some("192.0.2.1:61001".parse().unwrap()),
        state: "opening".to_owned(),
        expires: 58,
        audited: true,
        ..through_service.clone()
    };
    let probe = ConnectionView {
        protocol: protocol::ICMPV6,
        source: "[fd00:10:1::1]:4711".parse().unwrap(),
        destination: "[fd00:10:1::3]:4711".parse().unwrap(),
        called: None,
        charged: None,
        ..through_service.clone()
    };
    vec![through_service, outside, probe]
}

pub(crate) fn addresses() -> Vec<AddressView> {
    let view = |prefix: &str, number, text: &str, source: &str, workload: Option<&str>| AddressView {
        prefix: prefix.parse().unwrap(),
        identity: identity(number),
        labels: labels(text),
        source: source.to_owned(),
        workload: workload.map(|name| name.parse().unwrap()),
    };
    vec![
        view("0.0.0.0/0", 9, "reserved:world-ipv4", "world", None),
        view("10.1.0.1/32", 1, "reserved:host", "node", None),
        view("10.1.0.3/32", 17_839, "org=empire,class=deathstar", "endpoint", Some("default/deathstar")),
        view("198.51.100.0/24", 16_777_217, "cidr:198.51.100.0/24,reserved:world", "policy", None),
    ]
}

pub(crate) fn policies() -> Vec<PolicyView> {
    let view = |policy, valid, location: &str, message: &str, selected| PolicyView {
        policy,
        valid,
        location: location.to_owned(),
        message: message.to_owned(),
        selected,
    };
    let cure = "spec.ingress[0].fromEndpoint: unknown, did you mean fromEndpoints; previous version in force";
    vec![
        view(Some(policy("deny-all")), true, "base.yaml:1", "Policy validation succeeded", 4),
        view(Some(policy("rule1")), false, "rule1.yaml:12", cure, 2),
        view(None, false, "scrap.yaml:3", "not YAML: expected ':' after a key", 0),
    ]
}

pub(crate) fn config() -> Vec<ConfigEntry> {
    let entry = |key: &str, value: &str, origin: &str| ConfigEntry {
        key: key.to_owned(),
        value: value.to_owned(),
        origin: origin.to_owned(),
    };
    vec![
        entry("metrics.address", "127.0.0.1:9962", "default"),
        entry("pool.ipv4", "10.1.0.0/16", "ferromesh.yaml:4"),
    ]
}

pub(crate) fn plan() -> Value {
    json!({
        "endpoints": { "3": { "identity": 17_839, "audit": false, "ingress": { "enforced": true, "entries": [] } } },
        "ipcache": { "0.0.0.0/0": 9, "::/0": 10 },
        "identities": { "2": ["reserved:world"], "13058": ["k8s:org=alliance", "k8s:note=yes: # no"] },
    })
}

pub(crate) fn flow() -> Flow {
    let peer = |address: &str, port, number, name: &str, text: &str| Peer {
        address: Some(address.parse().unwrap()),
        port: Some(port),
        identity: Identity::new(number),
        workload: Some(name.parse().unwrap()),
        labels: labels(text),
    };
    Flow {
        time: 1_698_333_346_416_000_000,
        node: "death-star-1".to_owned(),
        verdict: Verdict::Dropped,
        drop: Some(Drop { reason: 133, text: "Policy denied".to_owned(), policies: vec![policy("rule1")] }),
        direction: TrafficDirection::Ingress,
        source: peer("10.1.0.7", 49_446, 13_058, "xwing", "org=alliance"),
        destination: peer("10.1.0.3", 80, 17_839, "deathstar", "org=empire"),
        protocol: protocol::TCP,
        tcp_flags: 2,
        icmp_type: None,
        is_reply: None,
        length: 74,
        interface: "fm3".to_owned(),
        authentication: None,
        l7: None,
        trace: false,
    }
}

pub(crate) fn event() -> EventView {
    EventView {
        time: 1_698_333_346_416_000_000,
        kind: 1,
        reason: 133,
        direction: 0,
        flags: 0,
        ifindex: 103,
        endpoint: Some(3),
        from: Some(7),
        to: Some(3),
        source_identity: 13_058,
        destination_identity: 17_839,
        ruleset: 5,
        cookie: 0,
        ethertype: 0x0800,
        source: Some("10.1.0.7".parse().unwrap()),
        destination: Some("10.1.0.3".parse().unwrap()),
        protocol: protocol::TCP,
        source_port: 49_446,
        destination_port: 80,
        tcp_flags: 2,
        length: 74,
        authentication: 0,
    }
}

pub(crate) fn drops() -> Vec<DropView> {
    let view = |number, direction: &str, workload: Option<&str>, ifindex, packets| DropView {
        number,
        reason: abi::DropReason::from_number(number).unwrap().text().to_owned(),
        direction: direction.to_owned(),
        workload: workload.map(|name| name.parse().unwrap()),
        ifindex,
        packets,
        bytes: packets * 74,
        meaning: observe::advice::meaning(number).to_owned(),
    };
    vec![
        view(133, "ingress", Some("default/deathstar"), 103, 12),
        view(133, "ingress", Some("default/tiefighter"), 104, 3),
        view(133, "egress", Some("default/xwing"), 107, 1),
        view(222, "ingress", None, 2, 4),
    ]
}

pub(crate) fn metrics() -> Vec<MetricView> {
    let view = |name: &str, labels: &[(&str, &str)], value| MetricView {
        name: format!("ferromesh_{name}"),
        labels: labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        value,
    };
    vec![
        view("drop_total", &[("reason", "Policy denied"), ("direction", "ingress")], 12.0),
        view("map_pressure", &[("map", "RULES")], 0.9059),
        view("policy_edit_to_live_seconds_sum", &[], 0.008),
        view("policy_edit_to_live_seconds_count", &[], 1.0),
        view("policy_edit_to_live_seconds_bucket", &[("le", "0.01")], 1.0),
        view("policy_revision", &[], 17.0),
    ]
}
