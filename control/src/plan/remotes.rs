//! Endpoints of other nodes: what of the things nodes say of themselves is believed.
//!
//! Promise: a node is believed only about addresses that the administrator has given to it and to no other, and only
//! that a workload is there which the administrator has placed there. Who claims an address that somebody else claims
//! with the same right is not believed, nor is the other. What a workload is comes from its `Workload` object alone.
//!
//! Judged whole when something that this comes from is another one; who is believed as before is the same value.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use mesh::auth::InstanceName;
use mesh::identity::Identity;
use mesh::workload::WorkloadName;

use super::NodeFacts;
use super::notes::{Notes, of_claim, of_node, of_workload};
use super::owners::Owners;
use super::people::People;
use crate::authority::{self, Standing};
use crate::kind::{Namespace, Node, Workload};
use crate::world::{Claim, ClaimName, World};

/// An endpoint of another node that is believed in.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Remote {
    pub(crate) workload: Arc<Workload>,
    pub(crate) standing: Standing,
    pub(crate) identity: Identity,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
}

impl Remote {
    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }
}

pub(crate) type All = BTreeMap<InstanceName, Arc<Remote>>;

/// Endpoints of other nodes, kept from plan to plan.
#[derive(Default)]
pub(super) struct Remotes {
    inputs: Option<Inputs>,
    pub(super) all: Arc<All>,
    pub(super) notes: Notes,
}

/// What they come from.
#[derive(PartialEq)]
struct Inputs {
    claims: Same<BTreeMap<ClaimName, Claim>>,
    nodes: Same<BTreeMap<String, Node>>,
    workloads: Same<BTreeMap<Arc<WorkloadName>, Arc<Workload>>>,
    namespaces: Same<BTreeMap<String, Namespace>>,
    shared: bool,
    services: [IpNet; 2],
    node: NodeFacts,
}

/// Equal if it is the very same.
struct Same<T>(Arc<T>);

impl<T> PartialEq for Same<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Inputs {
    fn new(world: &World, node: &NodeFacts) -> Self {
        Self {
            claims: Same(Arc::clone(&world.endpoints)),
            nodes: Same(Arc::clone(&world.nodes)),
            workloads: Same(Arc::clone(&world.workloads)),
            namespaces: Same(Arc::clone(&world.namespaces)),
            shared: world.shared,
            services: service_pools(world),
            node: node.clone(),
        }
    }
}

impl Remotes {
    /// Brings everything up to date; whether anything was judged anew.
    pub(super) fn update(&mut self, world: &World, node: &NodeFacts, people: &People) -> bool {
        let inputs = Inputs::new(world, node);
        if self.inputs.as_ref() == Some(&inputs) {
            return false;
        }
        self.notes = review(world, Some(node));
        let mut judge = Judge { world, node, owners: Owners::new(world, node), notes: &mut self.notes };
        let claims = judge.entitled();
        let claims = judge.uncontested(claims);
        let same_namespaces =
            self.inputs.as_ref().is_some_and(|earlier| earlier.namespaces == inputs.namespaces);
        let believed = claims.into_iter().filter_map(|(claim, workload)| {
            let name = InstanceName { node: claim.endpoint.node.clone(), instance: claim.endpoint.instance };
            let (ipv4, ipv6) = (claim.endpoint.ipv4, claim.endpoint.ipv6);
            let known = self.all.get(&name).filter(|known| {
                same_namespaces
                    && Arc::ptr_eq(&known.workload, workload)
                    && (known.ipv4, known.ipv6) == (ipv4, ipv6)
            });
            let remote = match known {
                Some(known) => Arc::clone(known),
                None => {
                    let (standing, identity) =
                        (authority::declared(world, workload), people.declared(&workload.name)?);
                    Arc::new(Remote { workload: Arc::clone(workload), standing, identity, ipv4, ipv6 })
                }
            };
            Some((name, remote))
        });
        let all: All = believed.collect();
        if *self.all != all {
            self.all = Arc::new(all);
        }
        self.inputs = Some(inputs);
        true
    }
}

/// Whom this world believes other nodes have, whoever they were before.
pub(super) fn believed<'a>(world: &'a World, node: &'a NodeFacts) -> BTreeMap<InstanceName, Entitled<'a>> {
    let mut notes = Notes::default();
    let mut judge = Judge { world, node, owners: Owners::new(world, node), notes: &mut notes };
    let claims = judge.entitled();
    let named = judge.uncontested(claims).into_iter().map(|entitled| {
        let endpoint = &entitled.0.endpoint;
        (InstanceName { node: endpoint.node.clone(), instance: endpoint.instance }, entitled)
    });
    named.collect()
}

fn service_pools(world: &World) -> [IpNet; 2] {
    [world.configuration.ipv4_service_pool.into(), world.configuration.ipv6_service_pool.into()]
}

/// What there is to say of nodes and of where workloads are placed.
pub(super) fn review(world: &World, node: Option<&NodeFacts>) -> Notes {
    let mut notes = Notes::default();
    super::owners::overlaps(world, &mut notes);
    if let (Some(facts), Some(declared)) = (node, node.and_then(|node| world.nodes.get(&node.name))) {
        let pools: [IpNet; 2] = [facts.ipv4_pool.into(), facts.ipv6_pool.into()];
        for pool in pools.iter().filter(|_| !declared.pod_cidrs.is_empty()) {
            if !declared.pod_cidrs.iter().any(|own| own.contains(pool)) {
                let message = format!(
                    "spec.podCIDRs: the pool {pool} of this node is in none of them: other nodes do not believe it about its workloads; change ipv4Pool and ipv6Pool, or podCIDRs"
                );
                notes.error(of_node(&declared.name), message);
            }
        }
    }
    if world.shared {
        for workload in world.workloads.values() {
            let message = match &workload.node {
                None => "spec.node: missing: it is placed nowhere, may not start and gets no certificate"
                    .to_owned(),
                Some(node) if !world.nodes.contains_key(node) => {
                    format!("spec.node: there is no Node {node}: other nodes do not know where it runs")
                }
                Some(_) => continue,
            };
            notes.warn(of_workload(&workload.name), message);
        }
    }
    notes
}

/// A claim that somebody is entitled to, and the workload that it is of.
pub(super) type Entitled<'a> = (&'a Claim, &'a Arc<Workload>);

struct Judge<'a, 'n> {
    world: &'a World,
    node: &'a NodeFacts,
    owners: Owners<'a>,
    notes: &'n mut Notes,
}

impl<'a> Judge<'a, '_> {
    /// Claims of other nodes about their own addresses and the workloads that are placed on them.
    fn entitled(&mut self) -> Vec<(&'a ClaimName, Entitled<'a>)> {
        let mut all = Vec::new();
        for (name, claim) in self.world.endpoints.iter().filter(|((node, ..), _)| *node != self.node.name) {
            match self.entitlement(claim) {
                Ok(workload) => all.push((name, (claim, workload))),
                Err(message) => self.notes.error(of_claim(name), message),
            }
        }
        all
    }

    fn entitlement(&self, claim: &Claim) -> Result<&'a Arc<Workload>, String> {
        let endpoint = &claim.endpoint;
        let node = &endpoint.node;
        if !self.world.nodes.contains_key(node) {
            return Err(format!("there is no Node {node}: nobody believes it"));
        }
        let addresses: [(&str, IpAddr); 2] =
            [("spec.ipv4", endpoint.ipv4.into()), ("spec.ipv6", endpoint.ipv6.into())];
        for (field, address) in addresses {
            if let Some(whose) = self.owners.refuse(node, address) {
                return Err(format!("{field}: {address} {whose}: not believed"));
            }
        }
        let name = &endpoint.workload;
        let workload = self.world.workloads.get(name);
        let workload =
            workload.ok_or_else(|| format!("spec.workload: there is no Workload {name}: not believed"))?;
        match &workload.node {
            Some(placed) if placed == node => Ok(workload),
            Some(placed) => {
                Err(format!("spec.workload: Workload {name} is placed on {placed}: not believed"))
            }
            None => {
                Err(format!("spec.workload: Workload {name} is placed nowhere (spec.node): not believed"))
            }
        }
    }

    /// Those whose instance and addresses nobody else claims. Whatever this node has given out itself is in a range of its
    /// own, where nobody is entitled to anything.
    fn uncontested(&mut self, claims: Vec<(&'a ClaimName, Entitled<'a>)>) -> Vec<Entitled<'a>> {
        let mut by_address: BTreeMap<IpAddr, Vec<&ClaimName>> = BTreeMap::new();
        let mut by_instance: BTreeMap<(&str, u64), Vec<&ClaimName>> = BTreeMap::new();
        for (name, (claim, _)) in &claims {
            let endpoint = &claim.endpoint;
            for address in [IpAddr::from(endpoint.ipv4), endpoint.ipv6.into()] {
                by_address.entry(address).or_default().push(name);
            }
            by_instance.entry((&endpoint.node, endpoint.instance)).or_default().push(name);
        }
        let mut left = Vec::new();
        for (name, entitled) in claims {
            let endpoint = &entitled.0.endpoint;
            let key = (endpoint.node.as_str(), endpoint.instance);
            let claimed = [
                ("spec.ipv4", endpoint.ipv4.to_string(), by_address.get(&endpoint.ipv4.into())),
                ("spec.ipv6", endpoint.ipv6.to_string(), by_address.get(&endpoint.ipv6.into())),
                ("spec.instance", endpoint.instance.to_string(), by_instance.get(&key)),
            ];
            let fault = claimed.into_iter().find_map(|(field, what, names)| {
                let other = self.place(names?.iter().find(|other| **other != name)?);
                Some(format!("{field}: {what} is claimed by {other} too: neither is believed"))
            });
            match fault {
                Some(fault) => self.notes.error(of_claim(name), fault),
                None => left.push(entitled),
            }
        }
        left
    }

    fn place(&self, name: &ClaimName) -> String {
        self.world.endpoints.get(name).map(|claim| claim.place.clone()).unwrap_or_default()
    }
}
