use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use mesh::identity::Identity;
use mesh::plan::EndpointPlan;
use mesh::workload::{Endpoint, EndpointId, Mac};

use crate::allocate::Allocator;
use crate::plan::{NodeFacts, Planned, Present, plan};
use crate::what_if::Snapshot;
use crate::world::World;

/// A node with endpoints named `namespace/name=labels`, numbered from 1; the world is YAML.
pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) planned: Arc<Planned>,
    endpoints: Vec<Endpoint>,
    allocator: Allocator,
    _state: tempfile::TempDir,
}

pub(crate) fn endpoint(number: u16, text: &str) -> Endpoint {
    let (workload, labels) = text.split_once('=').unwrap();
    let [high, low] = number.to_be_bytes();
    Endpoint {
        id: EndpointId::new(number).unwrap(),
        instance: u64::from(number),
        workload: workload.parse().unwrap(),
        labels: labels.parse().unwrap(),
        service_account: "default".to_owned(),
        interface: format!("fm{number}"),
        ifindex: u32::from(number),
        mac: Mac([2, 0, 0, 0, high, low]),
        gateway_mac: Mac([2, 0, 0, 1, high, low]),
        ipv4: [10, 217, high, low].into(),
        ipv6: [0xfd00, 0x217, 0, 0, 0, 0, 0, number].into(),
    }
}

pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        name: "node1".to_owned(),
        addresses: vec!["192.0.2.1/32".parse().unwrap(), "2001:db8::1/128".parse().unwrap()],
        ipv4_pool: "10.217.0.0/16".parse().unwrap(),
        ipv6_pool: "fd00:217::/64".parse().unwrap(),
        masquerade_ports: 49_152..=65_535,
    }
}

impl Bench {
    pub(crate) fn new(yaml: &str, endpoints: &[&str]) -> Self {
        Self::leaving(yaml, endpoints, &[])
    }

    /// Some of the endpoints are about to be removed.
    pub(crate) fn leaving(yaml: &str, endpoints: &[&str], leaving: &[u16]) -> Self {
        Self::of(World::of(yaml), endpoints, leaving)
    }

    /// In any world.
    pub(crate) fn of(world: World, endpoints: &[&str], leaving: &[u16]) -> Self {
        let endpoints: Vec<_> = (1..).zip(endpoints).map(|(number, text)| endpoint(number, text)).collect();
        let leaving = leaving.iter().filter_map(|number| EndpointId::new(*number)).collect();
        let state = tempfile::tempdir().unwrap();
        let mut allocator = Allocator::open(state.path()).unwrap();
        let present = Present { endpoints: &endpoints, leaving: &leaving, plan: None };
        let planned = Arc::new(plan(&world, present, &facts(), &mut allocator).unwrap());
        Self { world, planned, endpoints, allocator, _state: state }
    }

    /// The same node in another world.
    pub(crate) fn edit(&mut self, yaml: &str) {
        self.change(World::of(yaml));
    }

    /// The same node in any other world.
    pub(crate) fn change(&mut self, world: World) {
        self.world = world;
        let (leaving, earlier) = (BTreeSet::new(), Arc::clone(&self.planned.plan));
        let present = Present { endpoints: &self.endpoints, leaving: &leaving, plan: Some(&earlier) };
        self.planned = Arc::new(plan(&self.world, present, &facts(), &mut self.allocator).unwrap());
    }

    /// For questions about what would be.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            world: Arc::new(self.world.clone()),
            planned: Arc::clone(&self.planned),
            facts: facts(),
            leaving: BTreeSet::new(),
            numbers: self.allocator.scratch(),
        }
    }

    pub(crate) fn endpoint(&self, name: &str) -> &EndpointPlan {
        let found = self.planned.plan.endpoints.values().find(|e| e.endpoint.workload.to_string() == name);
        found.unwrap_or_else(|| panic!("no endpoint {name}"))
    }

    /// The identity of an endpoint or an address.
    pub(crate) fn identity(&self, who: &str) -> Identity {
        let Ok(address) = who.parse::<IpAddr>() else { return self.endpoint(who).identity };
        let covering = self.planned.plan.ipcache.iter().filter(|(prefix, _)| prefix.contains(&address));
        covering.max_by_key(|(prefix, _)| prefix.prefix_len()).unwrap().1.identity
    }

    /// Whether both ends let a first packet pass.
    pub(crate) fn allows(&self, from: &str, to: &str, protocol: u8, port: u16) -> bool {
        let out = from.parse::<IpAddr>().is_ok()
            || self.endpoint(from).egress.judge(self.identity(to), protocol, port).0;
        let into = to.parse::<IpAddr>().is_ok()
            || self.endpoint(to).ingress.judge(self.identity(from), protocol, port).0;
        out && into
    }
}

pub(crate) const SHIPS: [&str; 4] = [
    "default/deathstar-1=org=empire,class=deathstar",
    "default/deathstar-2=org=empire,class=deathstar",
    "default/tiefighter=org=empire,class=tiefighter",
    "default/xwing=org=alliance,class=xwing",
];
