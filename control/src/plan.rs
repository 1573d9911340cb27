//! World → what this node does.
//!
//! Promise: a function of values (the allocator remembers numbers, nothing else). The same world, endpoints and
//! numbers give the same plan; endpoints with equal rulesets share one.
//!
//! That is the meaning, not the cost: a [`Planner`] keeps what each step came to and does again only what its inputs
//! touch. What it gives equals what [`plan()`] gives, which starts from nothing; a test of random edits holds the two
//! together. Inputs are compared by address where a world shares with the one before what has not changed.

mod authentication;
mod notes;
mod outside;
mod owners;
mod people;
mod remotes;
mod rulesets;
mod secrets;
mod service_memo;
mod services;
mod still;
mod subjects;
mod to_services;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh::identity::Identity;
use mesh::l7::{L7Endpoint, L7Plan, TlsSecret};
use mesh::labels::{LabelSet, Source};
use mesh::plan::{EndpointPlan, Masquerade, NodePlan, Whereabouts};
use mesh::policy::{Policy, Universe};
use mesh::service::Services;
use mesh::workload::{Endpoint, EndpointId};

use crate::allocate::{AllocateError, Allocator, Token};
use crate::authority::{self, Standing};
use crate::kind::{Configuration, Namespace, Workload};
use crate::world::World;
pub use authentication::placements;
use authentication::{Auth, Given};
pub(crate) use notes::{Notes, of_policy, of_service};
use outside::Outside;
use people::People;
use remotes::Remotes;
use rulesets::{Mover, Rules, Rulesets};
use services::backends::{Reachable, Running};
pub use still::still;
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
    pub universe: Arc<Universe>,
    /// Policies in force, in order of their names, with all of their peers.
    pub policies: Arc<Vec<Arc<Policy>>>,
    /// What planning has found to be said of objects.
    pub(crate) notes: Arc<Notes>,
}

/// Computes the plan of a node from nothing. Save the allocator before the plan is applied.
pub fn plan(
    world: &World,
    present: Present<'_>,
    node: &NodeFacts,
    allocator: &mut Allocator,
) -> Result<Planned, PlanError> {
    Planner::default().plan(world, present, node, allocator)
}

/// Plans one world after another and keeps what each step came to.
#[derive(Default)]
pub struct Planner {
    /// Whose numbers these are; `None` before the first plan.
    allocator: Option<Token>,
    standings: Standings,
    people: People,
    remotes: Remotes,
    auth: Auth,
    services: service_memo::Memo,
    outside: Outside,
    policies: Arc<Vec<Arc<Policy>>>,
    subjects: Subjects,
    universe: Arc<Universe>,
    rulesets: Rulesets,
    secrets: secrets::Memo,
    identities: Arc<BTreeMap<Identity, LabelSet>>,
    ipcache: Arc<BTreeMap<IpNet, Whereabouts>>,
    /// Of services.
    service_notes: Arc<Notes>,
    /// Of everything.
    notes: Arc<Notes>,
}

impl Planner {
    /// What [`plan()`] gives, at the cost of what has changed since the last time. Save the allocator before the plan is
    /// applied.
    pub fn plan(
        &mut self,
        world: &World,
        present: Present<'_>,
        node: &NodeFacts,
        allocator: &mut Allocator,
    ) -> Result<Planned, PlanError> {
        if self.allocator.as_ref() != Some(allocator.token()) {
            *self = Self { allocator: Some(allocator.let_all_go()), ..Self::default() };
        }
        let planned = self.advance(world, present, node, allocator);
        if planned.is_err() {
            // What was done by halves is done anew.
            *self = Self::default();
        }
        planned
    }

    fn advance(
        &mut self,
        world: &World,
        present: Present<'_>,
        node: &NodeFacts,
        allocator: &mut Allocator,
    ) -> Result<Planned, PlanError> {
        let running = self.standings.of(world, node, present);
        let (identities, moved) = self.people.update(world, &running, allocator)?;
        let remotes_before = Arc::clone(&self.remotes.all);
        let remotes_judged = self.remotes.update(world, node, &self.people);
        let remotes_changed = !Arc::ptr_eq(&remotes_before, &self.remotes.all);
        let reachable = reachable(&running, &self.remotes.all);
        let services_changed =
            self.services.update(world, &reachable, &self.remotes.all, node, &mut allocator.vips);
        let services_noted = !Arc::ptr_eq(&self.service_notes, &self.services.notes);
        self.service_notes = Arc::clone(&self.services.notes);
        let policies = self.services.policies();
        let mut touched = self.take_in(policies);
        let (prefixes, taken_changed) = self.outside.update(world, node, allocator)?;
        if services_changed
            || remotes_changed
            || taken_changed
            || !prefixes.is_empty()
            || self.ipcache.is_empty()
        {
            let vips = vips(world, &self.services.services);
            self.ipcache = Arc::new(ipcache(&self.outside, &self.remotes.all, vips));
        }
        let movers = self.move_in(moved, prefixes);
        touched.sort_by_key(Arc::as_ptr);
        self.rulesets.touch(&touched, &movers, world.configuration.enforcement);
        let subjects: Vec<_> =
            identities.into_iter().zip(running.iter().map(|it| it.standing.clone())).collect();
        let rulesets = self.rulesets.of(&subjects, &self.subjects, &self.universe);
        let auth_changed = self.auth.update(&Given {
            world,
            node,
            running: &running,
            identities: &subjects.iter().map(|(identity, _)| *identity).collect::<Vec<_>>(),
            remotes: &self.remotes,
            policies: &self.policies,
            universe: &self.universe,
            moved: !movers.is_empty(),
        });
        let secrets_noted = self.secrets.update(world);
        if services_noted || remotes_judged || auth_changed || secrets_noted {
            self.note(world);
        }
        let audit = world.configuration.audit;
        let endpoints = running.iter().zip(subjects).zip(rulesets);
        let (mut l7, mut told) = (L7Plan::default(), secrets::Told::default());
        let endpoints = endpoints.map(|((running, (identity, _)), rules)| {
            let endpoint = running.endpoint.clone();
            let secrets = told.of(&rules.secrets, &world.secrets);
            l7.endpoints.extend(proxied(&endpoint, identity, &rules, secrets, audit));
            let [ingress, egress] = rules.rulesets;
            (endpoint.id, EndpointPlan { endpoint, identity, ingress, egress, audit })
        });
        let plan = NodePlan {
            endpoints: endpoints.collect(),
            l7: shared_l7(l7, present.plan),
            identities: Arc::clone(&self.identities),
            ipcache: Arc::clone(&self.ipcache),
            services: shared(&self.services.services, present.plan),
            masquerade: masquerade(world, node),
            auth: self.auth.plan.clone(),
        };
        Ok(Planned {
            plan: Arc::new(plan),
            universe: Arc::clone(&self.universe),
            policies: Arc::clone(&self.policies),
            notes: Arc::clone(&self.notes),
        })
    }

    /// Gathers what is to be said.
    fn note(&mut self, world: &World) {
        let mut notes = self.services.notes.as_ref().clone();
        notes.add(&self.remotes.notes);
        notes.add(&self.auth.notes);
        notes.add(&self.secrets.notes);
        authentication::review(world, &mut notes);
        if *self.notes != notes {
            self.notes = Arc::new(notes);
        }
    }

    /// Takes in other policies. Those that are new and those that they replace.
    fn take_in(&mut self, policies: Arc<Vec<Arc<Policy>>>) -> Vec<Arc<Policy>> {
        let mut touched = Vec::new();
        if Arc::ptr_eq(&self.policies, &policies) {
            return touched;
        }
        let earlier = std::mem::replace(&mut self.policies, Arc::clone(&policies));
        let mut before = earlier.iter().peekable();
        let mut new = Vec::new();
        for policy in policies.iter() {
            while let Some(gone) = before.next_if(|earlier| earlier.name < policy.name) {
                touched.push(Arc::clone(gone));
            }
            match before.next_if(|earlier| earlier.name == policy.name) {
                Some(same) if Arc::ptr_eq(same, policy) => continue,
                Some(gone) => touched.push(Arc::clone(gone)),
                None => {}
            }
            new.push(Arc::clone(policy));
        }
        touched.extend(before.cloned());
        for gone in &touched {
            self.subjects.remove(&gone.name);
            self.outside.remove(gone);
        }
        for policy in &new {
            self.subjects.insert(policy);
            self.outside.insert(policy);
        }
        touched.extend(new);
        touched
    }

    /// Brings the universe, and the labels of identities, up to date with who has moved.
    fn move_in(&mut self, people: Vec<people::Moved>, prefixes: Vec<outside::Moved>) -> Vec<Mover> {
        if self.identities.is_empty() {
            let reserved = Identity::RESERVED.iter();
            self.identities = Arc::new(reserved.map(|(id, name)| (*id, LabelSet::reserved(name))).collect());
        }
        if people.is_empty() && prefixes.is_empty() {
            return Vec::new();
        }
        let universe = Arc::make_mut(&mut self.universe);
        let identities = Arc::make_mut(&mut self.identities);
        let mut movers = Vec::with_capacity(people.len() + prefixes.len());
        for people::Moved { identity, labels, ports } in people {
            match ports {
                Some(ports) => {
                    universe.insert(identity, &labels, &ports);
                    identities.insert(identity, labels.clone());
                }
                None => {
                    universe.remove(identity);
                    if identity.reserved_labels().is_none() {
                        identities.remove(&identity);
                    }
                }
            }
            movers.push(Mover { identity, labels, prefix: None });
        }
        for outside::Moved { prefix, identity, is_named } in prefixes {
            let world = if prefix.addr().is_ipv4() { "world-ipv4" } else { "world-ipv6" };
            let of_family = LabelSet::new().with(Source::Reserved, world, "");
            match is_named {
                true => {
                    universe.insert_prefix(prefix, identity);
                    let labels = of_family.clone().with(Source::Cidr, &prefix.to_string(), "");
                    identities.insert(identity, labels);
                }
                false => {
                    universe.remove_prefix(prefix);
                    identities.remove(&identity);
                }
            }
            let labels = of_family.with(Source::Reserved, "world", "");
            movers.push(Mover { identity, labels, prefix: Some(prefix) });
        }
        movers
    }
}

/// What planning has to say of a world wherever it is planned: of services and slices among themselves, of peers that are
/// services, and of Secrets that policies name.
pub(crate) fn review(world: &World) -> Notes {
    let nowhere = NodeFacts {
        name: String::new(),
        addresses: Vec::new(),
        ipv4_pool: world.configuration.ipv4_pool,
        ipv6_pool: world.configuration.ipv6_pool,
        masquerade_ports: world.configuration.masquerade_ports.clone(),
    };
    let mut notes = remotes::review(world, None);
    authentication::review(world, &mut notes);
    services::review(world, &nowhere, &mut notes);
    to_services::review(world, &mut notes);
    secrets::review(world, &mut notes);
    notes
}

/// What policy is told of running workloads, kept from plan to plan.
#[derive(Default)]
struct Standings {
    node: String,
    configuration: Option<Configuration>,
    namespaces: Arc<BTreeMap<String, Namespace>>,
    known: BTreeMap<EndpointId, (Endpoint, Option<Arc<Workload>>, Standing)>,
}

impl Standings {
    fn of<'a>(&mut self, world: &World, node: &NodeFacts, present: Present<'a>) -> Vec<Running<'a>> {
        let same = self.node == node.name
            && self.configuration.as_ref() == Some(&world.configuration)
            && Arc::ptr_eq(&self.namespaces, &world.namespaces);
        let mut earlier = std::mem::take(&mut self.known);
        if !same {
            earlier.clear();
            self.node.clone_from(&node.name);
            self.configuration = Some(world.configuration.clone());
            self.namespaces = Arc::clone(&world.namespaces);
        }
        let running = present.endpoints.iter().map(|endpoint| {
            let workload = world.workloads.get(&endpoint.workload);
            let known = earlier.remove(&endpoint.id).filter(|(before, declared, _)| {
                before == endpoint && declared.as_ref().map(Arc::as_ptr) == workload.map(Arc::as_ptr)
            });
            let known = known.unwrap_or_else(|| {
                let standing = authority::running(world, &node.name, endpoint);
                (endpoint.clone(), workload.cloned(), standing)
            });
            let standing = known.2.clone();
            self.known.insert(endpoint.id, known);
            Running { endpoint, standing, leaving: present.leaving.contains(&endpoint.id) }
        });
        running.collect()
    }
}

/// Everyone whose address this node knows: workloads of its own, then of the others.
fn reachable<'a>(running: &'a [Running<'a>], remotes: &'a remotes::All) -> Vec<Reachable<'a>> {
    let remote = |remote: &'a Arc<remotes::Remote>| Reachable {
        workload: &remote.workload.name,
        standing: &remote.standing,
        ipv4: remote.ipv4,
        ipv6: remote.ipv6,
        is_here: false,
        leaving: false,
    };
    running.iter().map(Running::reachable).chain(remotes.values().map(remote)).collect()
}

/// What the proxy is told of an endpoint, if something of it goes that way.
fn proxied(
    endpoint: &Endpoint,
    identity: Identity,
    rules: &Rules,
    secrets: Vec<TlsSecret>,
    audit: bool,
) -> Option<(EndpointId, L7Endpoint)> {
    let [ingress, egress] = rules.l7.clone();
    if ingress.is_none() && egress.is_none() {
        return None;
    }
    let Endpoint { id, instance, ipv4, ipv6, .. } = *endpoint;
    let workload = endpoint.workload.clone();
    Some((id, L7Endpoint { id, instance, workload, ipv4, ipv6, identity, ingress, egress, audit, secrets }))
}

/// Whoever tells the proxy the same again sees it by the pointer.
fn shared_l7(plan: L7Plan, earlier: Option<&NodePlan>) -> Option<Arc<L7Plan>> {
    if plan.endpoints.is_empty() {
        return None;
    }
    let earlier = earlier.and_then(|earlier| earlier.l7.as_ref()).filter(|earlier| ***earlier == plan);
    Some(earlier.map_or_else(|| Arc::new(plan), Arc::clone))
}

/// Whoever applies or serves the same services again sees it by the pointer.
fn shared(services: &Arc<Services>, earlier: Option<&NodePlan>) -> Arc<Services> {
    match earlier {
        Some(earlier) if earlier.services == *services => Arc::clone(&earlier.services),
        _ => Arc::clone(services),
    }
}

fn ipcache(
    outside: &Outside,
    remotes: &remotes::All,
    vips: impl IntoIterator<Item = IpNet>,
) -> BTreeMap<IpNet, Whereabouts> {
    let prefixes = outside.prefixes.iter().map(|(prefix, identity)| (*prefix, (*identity).into()));
    let mut ipcache: BTreeMap<IpNet, Whereabouts> = prefixes.chain(outside.taken.clone()).collect();
    for remote in remotes.values() {
        ipcache
            .extend(remote.addresses().map(|address| (address.into(), Whereabouts::from(remote.identity))));
    }
    // No packet that is judged bears one: whoever sends from it has forged it.
    ipcache.extend(vips.into_iter().map(|vip| (vip, Identity::UNMANAGED.into())));
    ipcache.insert(Ipv4Net::default().into(), Identity::WORLD_IPV4.into());
    ipcache.insert(Ipv6Net::default().into(), Identity::WORLD_IPV6.into());
    ipcache
}

/// Addresses of services that were chosen outside their pools.
fn vips(world: &World, services: &Services) -> BTreeSet<IpNet> {
    let configuration = &world.configuration;
    let pools: [IpNet; 2] = [configuration.ipv4_service_pool.into(), configuration.ipv6_service_pool.into()];
    let chosen = services.frontends.keys().map(|frontend| IpNet::from(frontend.address));
    chosen.filter(|vip| !pools.iter().any(|pool| pool.contains(vip))).collect()
}

/// Workloads of one mesh see each other's own addresses: what goes to a pool, of this node or another, is never
/// masqueraded.
fn masquerade(world: &World, node: &NodeFacts) -> Masquerade {
    let configuration = &world.configuration;
    let pools: [IpNet; 2] = [node.ipv4_pool.into(), node.ipv6_pool.into()];
    Masquerade {
        ipv4: configuration.ipv4_masquerade,
        ipv6: configuration.ipv6_masquerade,
        ports: node.masquerade_ports.clone(),
        exceptions: configuration
            .masquerade_exceptions
            .iter()
            .copied()
            .chain(pools)
            .chain(world.other_pod_cidrs(&node.name))
            .collect(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
