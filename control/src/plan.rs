//! World → what this node does.
//!
//! Promise: a function of values (the allocator remembers numbers, nothing else). The same world, endpoints and
//! numbers give the same plan; endpoints with equal rulesets share one.

mod notes;
mod services;
mod subjects;
mod to_services;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::labels::{LabelSet, Source};
use mesh::plan::{EndpointPlan, Masquerade, NodePlan};
use mesh::policy::{Enforcement, PeerPorts, Policy, Ruleset, Universe, compile};
use mesh::service::Services;
use mesh::workload::{Endpoint, EndpointId};

use crate::allocate::{AllocateError, Allocator};
use crate::authority::{self, Standing};
use crate::world::World;
pub(crate) use notes::{Notes, of_policy, of_service};
use services::backends::Running;
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

/// What is on the node now.
#[derive(Clone, Copy)]
pub struct Present<'a> {
    /// Its endpoints.
    pub endpoints: &'a [Endpoint],
    /// Those of them that are about to be removed. Policy stays in force for them, but services send nobody new to
    /// them: plan and apply with this before their processes end.
    pub leaving: &'a BTreeSet<EndpointId>,
    /// The plan in force: what has not changed since is shared with it.
    pub plan: Option<&'a NodePlan>,
}

/// The plan, and what explains it.
pub struct Planned {
    /// For the datapath.
    pub plan: Arc<NodePlan>,
    /// Every identity that policy can name.
    pub universe: Universe,
    /// Policies in force, in order of their names, with all of their peers.
    pub policies: Vec<Arc<Policy>>,
    /// What planning has found to be said of objects.
    pub(crate) notes: Notes,
}

/// Plans.
#[derive(Default)]
pub struct Planner {}

impl Planner {
    /// See [`plan`].
    pub fn plan(
        &mut self,
        world: &World,
        present: Present<'_>,
        node: &NodeFacts,
        allocator: &mut Allocator,
    ) -> Result<Planned, PlanError> {
        plan(world, present, node, allocator)
    }
}

/// Computes the plan of a node. Save the allocator before the plan is applied.
pub fn plan(
    world: &World,
    present: Present<'_>,
    node: &NodeFacts,
    allocator: &mut Allocator,
) -> Result<Planned, PlanError> {
    let mut known = Known::default();
    for workload in world.workloads.values() {
        known.add(authority::declared(world, workload), allocator)?;
    }
    let running: Vec<_> =
        present.endpoints.iter().map(|endpoint| running(world, node, present, endpoint)).collect();
    let mut notes = Notes::default();
    let services = services::services(world, &running, node, &mut allocator.vips, &mut notes);
    let policies = to_services::resolve(world, &running, &mut notes);
    let mut identified = Vec::new();
    for workload in running {
        identified.push((
            workload.endpoint,
            known.add(workload.standing.clone(), allocator)?,
            workload.standing,
        ));
    }
    let taken = taken_addresses(world, node);
    let prefixes = prefixes(policies.iter().map(Arc::as_ref), &taken, allocator)?;
    let universe = Universe::new(&known.identities, &prefixes, &known.ports);
    let mut compiled = Compiled {
        subjects: Subjects::new(policies.iter().map(Arc::as_ref)),
        enforcement: world.configuration.enforcement,
        universe: &universe,
        rulesets: BTreeMap::new(),
        shared: BTreeMap::new(),
    };
    let audit = world.configuration.audit;
    let endpoints = identified.into_iter().map(|(endpoint, identity, standing)| {
        let (ingress, egress) = compiled.rulesets(standing);
        (endpoint.id, EndpointPlan { endpoint: endpoint.clone(), identity, ingress, egress, audit })
    });
    let plan = NodePlan {
        endpoints: endpoints.collect(),
        identities: identities(&known, &prefixes),
        ipcache: ipcache(prefixes, taken, vips(world, &services)),
        services: shared(services, present.plan),
        masquerade: masquerade(world, node),
    };
    Ok(Planned { plan: Arc::new(plan), universe, policies, notes })
}

/// What planning has to say of a world wherever it is planned: of services and slices among themselves, and of peers
/// that are services.
pub(crate) fn review(world: &World) -> Notes {
    let nowhere = NodeFacts {
        name: String::new(),
        addresses: Vec::new(),
        ipv4_pool: world.configuration.ipv4_pool,
        ipv6_pool: world.configuration.ipv6_pool,
        masquerade_ports: world.configuration.masquerade_ports.clone(),
    };
    let mut notes = Notes::default();
    services::review(world, &nowhere, &mut notes);
    to_services::resolve(world, &[], &mut notes);
    notes
}

fn running<'a>(world: &World, node: &NodeFacts, present: Present<'_>, endpoint: &'a Endpoint) -> Running<'a> {
    let standing = authority::running(world, &node.name, endpoint);
    Running { endpoint, standing, leaving: present.leaving.contains(&endpoint.id) }
}

/// Whoever applies or serves the same services again sees it by the pointer.
fn shared(services: Services, earlier: Option<&NodePlan>) -> Arc<Services> {
    match earlier {
        Some(earlier) if *earlier.services == services => Arc::clone(&earlier.services),
        _ => Arc::new(services),
    }
}

fn ipcache(
    prefixes: BTreeMap<IpNet, Identity>,
    taken: BTreeMap<IpNet, Identity>,
    vips: impl IntoIterator<Item = IpNet>,
) -> BTreeMap<IpNet, Identity> {
    let mut ipcache = prefixes;
    ipcache.extend(taken);
    // No packet that is judged bears one: whoever sends from it has forged it.
    ipcache.extend(vips.into_iter().map(|vip| (vip, Identity::UNMANAGED)));
    ipcache.insert(Ipv4Net::default().into(), Identity::WORLD_IPV4);
    ipcache.insert(Ipv6Net::default().into(), Identity::WORLD_IPV6);
    ipcache
}

/// Addresses of services: their pools, and those chosen elsewhere.
fn vips(world: &World, services: &Services) -> BTreeSet<IpNet> {
    let configuration = &world.configuration;
    let pools: [IpNet; 2] = [configuration.ipv4_service_pool.into(), configuration.ipv6_service_pool.into()];
    let chosen = services.frontends.keys().map(|frontend| IpNet::from(frontend.address));
    chosen.filter(|vip| !pools.iter().any(|pool| pool.contains(vip))).chain(pools).collect()
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
