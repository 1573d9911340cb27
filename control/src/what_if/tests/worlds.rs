//! On random worlds and edits, the changes are those that the oracle finds flow by flow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::labels::{LabelSet, NAMESPACE};
use mesh::plan::NodePlan;
use mesh::policy::arbitrary::{self, Random};
use mesh::policy::oracle::{self, Packet};
use mesh::policy::{PeerPorts, Policy, PolicyName};
use mesh::workload::{Endpoint, NamedPorts};
use node_api::{Change, ChangeKind, Changes, Listed, PortRange, Reason};

use crate::allocate::Allocator;
use crate::kind::{Node, Object, Workload, Written};
use crate::plan::tests::bench::{endpoint, facts};
use crate::plan::{Planned, Present, plan};
use crate::what_if::overlay::{put, remove_policy};
use crate::what_if::{changes, parties};
use crate::world::World;

const WORLDS: u64 = 400;
const FLOWS: usize = 400;
const OUTSIDE: [&str; 10] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.1.3.0",
    "10.9.9.9",
    "192.0.2.255",
    "8.8.8.8",
    "2001:db8:1:2::3",
    "2001:db8:1:3::",
    "2001:db8:ffff::1",
    "2606:4700::1111",
];
/// Of the node, another node, and the pools.
const INSIDE: [&str; 6] =
    ["192.0.2.1", "2001:db8::1", "192.0.2.7", "2001:db8::7", "10.217.200.1", "fd00:217::dead"];
const PORTS: [u16; 16] = [0, 1, 52, 53, 54, 79, 80, 81, 442, 443, 444, 8080, 9000, 9001, 65_534, 65_535];

/// One world, what runs here, and its plan.
struct Scene {
    world: World,
    planned: Planned,
    policies: Vec<Policy>,
    /// Named ports of each identity.
    ports: BTreeMap<Identity, PeerPorts>,
}

impl Scene {
    fn new(world: World, endpoints: &[Endpoint], numbers: &mut Allocator) -> Self {
        let leaving = BTreeSet::new();
        let present = Present { endpoints, leaving: &leaving, plan: None };
        let planned = plan(&world, present, &facts(), numbers).unwrap();
        let policies = planned.policies.iter().map(|policy| Policy::clone(policy)).collect();
        let mut ports: BTreeMap<Identity, PeerPorts> = BTreeMap::new();
        let numbered: BTreeMap<&LabelSet, Identity> =
            planned.plan.identities.iter().map(|(identity, labels)| (labels, *identity)).collect();
        for workload in world.workloads.values() {
            let labels = crate::authority::declared(&world, workload).labels;
            let named = ports.entry(numbered[&labels]).or_default();
            for (name, port) in &workload.ports {
                named.entry(name.clone()).or_default().insert(*port);
            }
        }
        Self { world, planned, policies, ports }
    }

    fn plan(&self) -> &NodePlan {
        &self.planned.plan
    }
}

/// A workload object of an arbitrary one; it may not say who it is by a derived label.
fn workload(number: usize, party: &arbitrary::Party) -> Workload {
    let labels = party.labels.iter().filter(|(key, _)| key.key != NAMESPACE);
    Workload {
        name: format!("{}/ship-{number}", party.labels.namespace().unwrap()).parse().unwrap(),
        labels: labels.map(|(key, value)| (key.key.clone(), value.to_owned())).collect(),
        node: None,
        service_account: "default".to_owned(),
        ports: party.ports.clone(),
    }
}

fn written(policy: &Policy) -> Object {
    Object::Policy(Written { policy: Arc::new(policy.clone()), services: [].into() })
}

/// A random world, and the same after a random edit.
fn scenes(seed: u64) -> (Scene, Scene, Vec<Endpoint>) {
    let random = &mut Random::new(seed ^ 0xed17);
    let (one, other) = (arbitrary::World::new(seed), arbitrary::World::new(seed + 1_000_003));
    let mut world = World::default();
    world.configuration.enforcement = one.enforcement;
    let addresses = ["192.0.2.7", "2001:db8::7"].map(|address| address.parse().unwrap());
    put(
        &mut world,
        Object::Node(Node {
            name: "other".to_owned(),
            labels: BTreeMap::new(),
            addresses: addresses.into(),
            pod_cidrs: Vec::new(),
            auth_port: 4250,
        }),
    );
    let mut endpoints = Vec::new();
    for (number, party) in one.workloads.iter().enumerate() {
        let workload = workload(number, party);
        if random.chance(75) {
            endpoints.push(endpoint(number as u16 + 1, &format!("{}=a=b", workload.name)));
        }
        put(&mut world, Object::Workload(workload.into()));
    }
    for policy in &one.policies {
        put(&mut world, written(policy));
    }
    let mut then = world.clone();
    for policy in &other.policies {
        if random.chance(40) {
            put(&mut then, written(policy));
        }
    }
    if let Some(policy) = one.policies.first().filter(|_| random.chance(50)) {
        remove_policy(&mut then, &policy.name);
    }
    if random.chance(30) {
        let name = then.workloads.keys().next().unwrap().clone();
        // As one who was not here, or as one of the others.
        let likes = if random.chance(50) { &other.workloads } else { &one.workloads };
        let relabelled = workload(0, &random.pick(likes));
        put(&mut then, Object::Workload(Workload { name: (*name).clone(), ..relabelled }.into()));
    }
    if random.chance(10) {
        then.configuration.enforcement = other.enforcement;
    }
    let state = tempfile::tempdir().unwrap();
    let mut numbers = Allocator::open(state.path()).unwrap();
    let now = Scene::new(world, &endpoints, &mut numbers);
    let then = Scene::new(then, &endpoints, &mut numbers.scratch());
    (now, then, endpoints)
}

/// Someone at an end of a flow, by workload or address.
#[derive(Clone, PartialEq, Debug)]
enum Who {
    Endpoint(Endpoint),
    Elsewhere(String),
    Address(IpAddr),
}

/// What the oracle needs to know of someone.
struct Known {
    identity: Identity,
    labels: LabelSet,
    address: IpAddr,
    ports: NamedPorts,
}

impl Who {
    fn in_scene(&self, scene: &Scene) -> Known {
        let plan = scene.plan();
        let workload = |name: &str, address: IpAddr| {
            let (_, workload) = scene.world.workloads.iter().find(|(it, _)| it.to_string() == name).unwrap();
            let standing = crate::authority::declared(&scene.world, workload);
            let found = plan.identities.iter().find(|(_, labels)| **labels == standing.labels);
            Known { identity: *found.unwrap().0, labels: standing.labels, address, ports: standing.ports }
        };
        match self {
            Self::Endpoint(it) => workload(&it.workload.to_string(), it.ipv4.into()),
            Self::Elsewhere(name) => workload(name, [10, 217, 77, 7].into()),
            Self::Address(address) => {
                let covering = plan.ipcache.iter().filter(|(prefix, _)| prefix.contains(address));
                let (_, identity) = covering.max_by_key(|(prefix, _)| prefix.prefix_len()).unwrap();
                let labels = plan.identities.get(&identity.identity).cloned().unwrap();
                Known { identity: identity.identity, labels, address: *address, ports: NamedPorts::new() }
            }
        }
    }

    fn name(&self, pieces: &[(ipnet::IpNet, parties::Party)]) -> String {
        match self {
            Self::Endpoint(endpoint) => endpoint.workload.to_string(),
            Self::Elsewhere(name) => name.clone(),
            Self::Address(address) => {
                let covering = pieces.iter().filter(|(prefix, _)| prefix.contains(address));
                covering.max_by_key(|(prefix, _)| prefix.prefix_len()).unwrap().1.name.clone()
            }
        }
    }
}

/// What the ends say of a flow, the sender first.
fn judge(
    scene: &Scene,
    from: &Who,
    to: &Who,
    protocol: u8,
    port: u16,
) -> Vec<(TrafficDirection, oracle::Reason)> {
    let none = PeerPorts::new();
    let sides = [(from, to, TrafficDirection::Egress), (to, from, TrafficDirection::Ingress)];
    let judging = sides.into_iter().filter(|(subject, ..)| matches!(subject, Who::Endpoint(_)));
    let judged = judging.map(|(subject, peer, direction)| {
        let (subject, peer) = (subject.in_scene(scene), peer.in_scene(scene));
        let packet = Packet {
            direction,
            subject: &subject.labels,
            subject_ports: &subject.ports,
            peer: peer.identity,
            peer_labels: &peer.labels,
            peer_address: peer.address,
            peer_ports: scene.ports.get(&peer.identity).unwrap_or(&none),
            protocol,
            port,
        };
        (direction, oracle::judge(&packet, &scene.policies, scene.world.configuration.enforcement))
    });
    judged.collect()
}

fn holds(range: &PortRange, protocol: u8, port: u16) -> bool {
    let named = range.protocol.map_or_else(|| !range.except.contains(&protocol), |own| own == protocol);
    named && (range.first..=range.last).contains(&port)
}

fn all<T>(listed: &Listed<T>) -> &[T] {
    assert_eq!(listed.total, listed.items.len(), "a random world is small");
    &listed.items
}

/// The row about a flow; there is at most one.
fn row<'a>(changes: &'a Changes, from: &str, to: &str, protocol: u8, port: u16) -> Option<&'a Change> {
    let about = |row: &&Change| {
        let is = |names, name: &str| all(names).iter().any(|own: &String| own == name);
        is(&row.from, from)
            && is(&row.to, to)
            && all(&row.ports).iter().any(|range| holds(range, protocol, port))
    };
    let found: Vec<_> = all(&changes.rows).iter().filter(about).collect();
    assert!(found.len() <= 1, "{from} -> {to} {port}/{protocol}: {found:#?}");
    found.first().copied()
}

/// Denied, passed if authenticated, passed.
fn verdict(reason: &oracle::Reason) -> u8 {
    match reason {
        oracle::Reason::Authenticated(_) => 1,
        reason => 2 * u8::from(reason.allowed()),
    }
}

/// The verdicts of a change.
fn ends(change: ChangeKind) -> (u8, u8) {
    match change {
        ChangeKind::AllowedToDenied => (2, 0),
        ChangeKind::AuthenticatedToDenied => (1, 0),
        ChangeKind::AllowedToAuthenticated => (2, 1),
        ChangeKind::DeniedToAuthenticated => (0, 1),
        ChangeKind::DeniedToAllowed => (0, 2),
        ChangeKind::AuthenticatedToAllowed => (1, 2),
    }
}

/// Whether the row is about the end that changes the verdict, and gives the oracle's reason and policies that it names.
fn is_explained(row: &Change, judged: [&[(TrafficDirection, oracle::Reason)]; 2]) -> bool {
    let [now, then] = judged.map(|judged| judged.iter().find(|(direction, _)| *direction == row.direction));
    let (Some((_, before)), Some((_, reason))) = (now, then) else { return false };
    // The whole flow goes from the one to the other; this end makes it so.
    let (from, to) = ends(row.change);
    let (before, after) = (verdict(before), verdict(reason));
    if !(if to < from { before >= from && after == to } else { before == from && after >= to }) {
        return false;
    }
    let among = |policies: &BTreeSet<PolicyName>| {
        let named = all(&row.policies);
        !named.is_empty() && named.iter().all(|name| policies.contains(name))
    };
    match (row.reason, reason) {
        (Reason::DenyRule, oracle::Reason::DenyRule(policies))
        | (Reason::AllowRule, oracle::Reason::AllowRule(policies))
        | (Reason::Authentication, oracle::Reason::Authenticated(policies))
        | (Reason::NoPrincipal, oracle::Reason::NoPrincipal(policies))
        | (Reason::Unmet, oracle::Reason::Unmet(policies)) => among(policies),
        (Reason::DefaultDeny, oracle::Reason::Default)
        | (Reason::NotEnforced, oracle::Reason::NotEnforced)
        // The node's own way may be the entry found first.
        | (Reason::Node, oracle::Reason::Node | oracle::Reason::AllowRule(_)) => true,
        _ => false,
    }
}

#[test]
fn changes_are_those_that_the_oracle_finds_flow_by_flow() {
    let mut seen = [0_u32; 7];
    let mut reasons = BTreeSet::new();
    for seed in 0..WORLDS {
        let (now, then, endpoints) = scenes(seed);
        let (before, after) = ((&now.world, now.plan()), (&then.world, then.plan()));
        let pieces = parties::addresses(now.plan(), then.plan());
        let changes = changes::changes(&parties::parties(before, after));
        assert!(changes.complete);
        let here: BTreeSet<_> = endpoints.iter().map(|endpoint| &endpoint.workload).collect();
        let elsewhere = now.world.workloads.keys().filter(|name| !here.contains(name.as_ref()));
        let mut everyone: Vec<Who> = endpoints.iter().cloned().map(Who::Endpoint).collect();
        everyone.extend(elsewhere.map(|name| Who::Elsewhere(name.to_string())));
        everyone.extend(OUTSIDE.iter().chain(&INSIDE).map(|it| Who::Address(it.parse().unwrap())));
        let random = &mut Random::new(seed);
        for _ in 0..FLOWS {
            let (from, to) = (random.pick(&everyone), random.pick(&everyone));
            if from == to || !matches!((&from, &to), (Who::Endpoint(_), _) | (_, Who::Endpoint(_))) {
                continue;
            }
            let (protocol, port) = match random.below(10) {
                0 => (random.pick(&[1, 58]), random.pick(&[0, 3, 8, 128, 129, 255])),
                1 => (random.pick(&[47, 50, 0, 255]), 0),
                2 => (random.pick(&[17, 132]), random.pick(&PORTS)),
                _ => (6, random.pick(&PORTS)),
            };
            let [earlier, later] = [&now, &then].map(|scene| judge(scene, &from, &to, protocol, port));
            let strictest =
                |judged: &[(_, oracle::Reason)]| judged.iter().map(|(_, it)| verdict(it)).min().unwrap();
            let expected = (strictest(&earlier), strictest(&later));
            let (from, to) = (from.name(&pieces), to.name(&pieces));
            let found = row(&changes, &from, &to, protocol, port);
            let told = || {
                format!("seed {seed}: {from} -> {to} {port}/{protocol}: {earlier:?} -> {later:?}: {found:#?}")
            };
            let same = found.map_or(expected.0 == expected.1, |row| ends(row.change) == expected);
            assert!(same, "{}", told());
            assert!(found.is_none_or(|row| is_explained(row, [&earlier, &later])), "{}", told());
            reasons.extend(found.map(|row| row.reason));
            seen[found.map_or(0, |row| 1 + row.change as usize)] += 1;
        }
    }
    assert!(seen.iter().all(|count| *count > 30), "the worlds are varied enough to mean something: {seen:?}");
    assert_eq!(reasons.len(), 8, "every reason is met: {reasons:?}");
}
