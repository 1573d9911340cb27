//! World → what this node does.
//!
//! Promise: a function of values (the allocator remembers numbers, nothing else). The same world, endpoints and
//! numbers give the same plan; endpoints with equal rulesets share one.

mod subjects;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::labels::{LabelSet, Source};
use mesh::plan::{EndpointPlan, Masquerade, NodePlan};
use mesh::policy::{Enforcement, PeerPorts, Policy, Ruleset, Universe, compile};
use mesh::workload::Endpoint;

use crate::allocate::{AllocateError, Allocator};
use crate::authority::{self, Standing};
use crate::world::World;
use subjects::Subjects;

/// What only the node itself knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Everything whose packets it receives itself, of both families: its addresses, their broadcast and anycast
    /// addresses.
    pub addresses: Vec<IpNet>,
    /// Pool of its workloads' IPv4 addresses.
    pub ipv4_pool: Ipv4Net,
    /// Pool of its workloads' IPv6 addresses.
    pub ipv6_pool: Ipv6Net,
    /// Ports that its own sockets leave to masquerading.
    pub masquerade_ports: RangeInclusive<u16>,
}

/// Why there is no plan; the earlier one stays in force.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// No identity number.
    #[error(transparent)]
    Allocate(#[from] AllocateError),
}

/// The plan, and the universe it was compiled in, for explanation.
pub struct Planned {
    /// For the datapath.
    pub plan: Arc<NodePlan>,
    /// Every identity that policy can name.
    pub universe: Universe,
}

/// Computes the plan of a node. Save the allocator before the plan is applied.
pub fn plan(
    world: &World,
    endpoints: &[Endpoint],
    node: &NodeFacts,
    allocator: &mut Allocator,
) -> Result<Planned, PlanError> {
    let mut known = Known::default();
    for workload in world.workloads.values() {
        known.add(authority::declared(world, workload), allocator)?;
    }
    let mut running = Vec::new();
    for endpoint in endpoints {
        let standing = authority::running(world, &node.name, endpoint);
        running.push((endpoint, known.add(standing.clone(), allocator)?, standing));
    }
    let policies = || world.policies.iter().map(Arc::as_ref);
    let taken = taken_addresses(world, node);
    let prefixes = prefixes(policies(), &taken, allocator)?;
    let universe = Universe::new(&known.identities, &prefixes, &known.ports);
    let subjects = Subjects::new(policies());
    let enforcement = world.configuration.enforcement;
    let mut compiled = Compiled {
        subjects,
        enforcement,
        universe: &universe,
        rulesets: BTreeMap::new(),
        shared: BTreeMap::new(),
    };
    let mut plan = NodePlan { masquerade: masquerade(world, node), ..NodePlan::default() };
    for (endpoint, identity, standing) in running {
        let (ingress, egress) = compiled.rulesets(standing);
        let audit = world.configuration.audit;
        let planned = EndpointPlan { endpoint: endpoint.clone(), identity, ingress, egress, audit };
        plan.endpoints.insert(endpoint.id, planned);
    }
    plan.identities = identities(&known, &prefixes);
    plan.ipcache.extend(prefixes);
    plan.ipcache.extend(taken);
    plan.ipcache.insert(Ipv4Net::default().into(), Identity::WORLD_IPV4);
    plan.ipcache.insert(Ipv6Net::default().into(), Identity::WORLD_IPV6);
    Ok(Planned { plan: Arc::new(plan), universe })
}

/// Workloads of one mesh see each other's own addresses: what goes to a pool is never masqueraded.
fn masquerade(world: &World, node: &NodeFacts) -> Masquerade {
    let configuration = &world.configuration;
    let pools: [IpNet; 2] = [node.ipv4_pool.into(), node.ipv6_pool.into()];
    Masquerade {
        ipv4: configuration.ipv4_masquerade,
        ipv6: configuration.ipv6_masquerade,
        ports: node.masquerade_ports.clone(),
        exceptions: configuration.masquerade_exceptions.iter().copied().chain(pools).collect(),
    }
}

/// Workloads by identity.
#[derive(Default)]
struct Known {
    identities: BTreeMap<Identity, LabelSet>,
    ports: BTreeMap<Identity, PeerPorts>,
}

impl Known {
    fn add(&mut self, standing: Standing, allocator: &mut Allocator) -> Result<Identity, AllocateError> {
        let reserved =
            Identity::RESERVED.iter().find(|(_, name)| standing.labels == LabelSet::reserved(name));
        let identity = match reserved {
            Some((identity, _)) => *identity,
            None => allocator.workload(&standing.labels)?,
        };
        self.identities.insert(identity, standing.labels);
        for (name, port) in standing.ports {
            self.ports.entry(identity).or_default().entry(name).or_default().insert(port);
        }
        Ok(identity)
    }
}

/// Addresses that policy never matches by prefix: the pools, the node's own, the other nodes'.
fn taken_addresses(world: &World, node: &NodeFacts) -> BTreeMap<IpNet, Identity> {
    let mut taken: BTreeMap<IpNet, Identity> =
        world.other_nodes(&node.name).map(|address| (address.into(), Identity::REMOTE_NODE)).collect();
    taken.insert(node.ipv4_pool.into(), Identity::UNMANAGED);
    taken.insert(node.ipv6_pool.into(), Identity::UNMANAGED);
    let declared = world.nodes.get(&node.name).into_iter().flat_map(|node| &node.addresses);
    let own = node.addresses.iter().copied().chain(declared.map(|address| IpNet::from(*address)));
    taken.extend(own.map(|prefix| (prefix, Identity::HOST)));
    taken
}

/// Prefixes of policies that need an identity. One inside a pool, or a node's very address, would take addresses of
/// workloads and nodes out of their identities.
fn prefixes<'a>(
    policies: impl Iterator<Item = &'a Policy>,
    taken: &BTreeMap<IpNet, Identity>,
    allocator: &mut Allocator,
) -> Result<BTreeMap<IpNet, Identity>, AllocateError> {
    let named: BTreeSet<IpNet> = compile::prefixes(policies);
    let inside = |prefix: &IpNet| taken.keys().any(|taken| taken.contains(prefix));
    named
        .into_iter()
        .filter(|prefix| !inside(prefix))
        .map(|prefix| Ok((prefix, allocator.prefix(prefix)?)))
        .collect()
}

/// Rulesets already compiled in this plan.
struct Compiled<'a> {
    subjects: Subjects<'a>,
    enforcement: Enforcement,
    universe: &'a Universe,
    rulesets: BTreeMap<Standing, (Arc<Ruleset>, Arc<Ruleset>)>,
    /// Different labels often come to the same rules.
    shared: BTreeMap<Arc<Ruleset>, ()>,
}

impl Compiled<'_> {
    fn rulesets(&mut self, standing: Standing) -> (Arc<Ruleset>, Arc<Ruleset>) {
        if let Some(known) = self.rulesets.get(&standing) {
            return known.clone();
        }
        let ingress = self.compile(&standing, TrafficDirection::Ingress);
        let egress = self.compile(&standing, TrafficDirection::Egress);
        self.rulesets.insert(standing, (Arc::clone(&ingress), Arc::clone(&egress)));
        (ingress, egress)
    }

    fn compile(&mut self, standing: &Standing, direction: TrafficDirection) -> Arc<Ruleset> {
        let policies = self.subjects.candidates(&standing.labels);
        let ruleset = compile::ruleset(
            &standing.labels,
            &standing.ports,
            direction,
            policies,
            self.universe,
            self.enforcement,
        );
        if let Some((shared, ())) = self.shared.get_key_value(&ruleset) {
            return Arc::clone(shared);
        }
        let ruleset = Arc::new(ruleset);
        self.shared.insert(Arc::clone(&ruleset), ());
        ruleset
    }
}

fn identities(known: &Known, prefixes: &BTreeMap<IpNet, Identity>) -> BTreeMap<Identity, LabelSet> {
    let reserved = Identity::RESERVED.iter().map(|(identity, name)| (*identity, LabelSet::reserved(name)));
    let of_prefix = |(prefix, identity): (&IpNet, &Identity)| {
        let world = if prefix.addr().is_ipv4() { "world-ipv4" } else { "world-ipv6" };
        let labels =
            LabelSet::new().with(Source::Cidr, &prefix.to_string(), "").with(Source::Reserved, world, "");
        (*identity, labels)
    };
    let workloads = known.identities.iter().map(|(identity, labels)| (*identity, labels.clone()));
    reserved.chain(prefixes.iter().map(of_prefix)).chain(workloads).collect()
}

#[cfg(test)]
pub(crate) mod tests;
