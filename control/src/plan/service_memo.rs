//! Services, and policies with those peers that are services, kept from plan to plan.
//!
//! Planned whole, and only if something that they come from is another one: of all edits few are about services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh::policy::{Policy, PolicyName};
use mesh::service::{ServiceName, Services};
use mesh::workload::WorkloadName;

use super::services::backends::Reachable;
use super::{NodeFacts, Notes, remotes, services, to_services};
use crate::allocate::Vips;
use crate::authority::Standing;
use crate::kind::{Configuration, EndpointSlice, Node, Service, ToService};
use crate::world::World;

/// What services came to.
#[derive(Default)]
pub(super) struct Memo {
    inputs: Option<Inputs>,
    pub(super) services: Arc<Services>,
    service_notes: Notes,
    written: Arc<Vec<Arc<Policy>>>,
    missing: Arc<BTreeMap<PolicyName, Arc<[ToService]>>>,
    policies: Arc<Vec<Arc<Policy>>>,
    /// Policies whose peers are services: as written, and whole.
    whole: BTreeMap<PolicyName, Whole>,
    /// What there is to say of all of that.
    pub(super) notes: Arc<Notes>,
}

struct Whole {
    written: Arc<Policy>,
    missing: Arc<[ToService]>,
    policy: Arc<Policy>,
    notes: Notes,
}

/// What services come from.
struct Inputs {
    services: Arc<BTreeMap<ServiceName, Arc<Service>>>,
    slices: Arc<BTreeMap<ServiceName, Arc<EndpointSlice>>>,
    nodes: Arc<BTreeMap<String, Node>>,
    configuration: Configuration,
    node: NodeFacts,
    running: Vec<Own>,
    remotes: Arc<remotes::All>,
}

/// A workload of this node: its name, what policy is told of it, its addresses, and whether it is leaving.
type Own = (WorkloadName, Standing, [IpAddr; 2], bool);

impl Inputs {
    fn new(
        world: &World,
        reachable: &[Reachable<'_>],
        remotes: &Arc<remotes::All>,
        node: &NodeFacts,
    ) -> Self {
        let running = reachable.iter().filter(|it| it.is_here).map(|it| {
            (it.workload.clone(), it.standing.clone(), [it.ipv4.into(), it.ipv6.into()], it.leaving)
        });
        Self {
            services: Arc::clone(&world.services),
            slices: Arc::clone(&world.slices),
            nodes: Arc::clone(&world.nodes),
            configuration: world.configuration.clone(),
            node: node.clone(),
            running: running.collect(),
            remotes: Arc::clone(remotes),
        }
    }

    fn are(
        &self,
        world: &World,
        reachable: &[Reachable<'_>],
        remotes: &Arc<remotes::All>,
        node: &NodeFacts,
    ) -> bool {
        let here = reachable.iter().filter(|it| it.is_here);
        Arc::ptr_eq(&self.services, &world.services)
            && Arc::ptr_eq(&self.slices, &world.slices)
            && Arc::ptr_eq(&self.nodes, &world.nodes)
            && self.configuration == world.configuration
            && self.node == *node
            && Arc::ptr_eq(&self.remotes, remotes)
            && self.running.len() == here.clone().count()
            && self.running.iter().zip(here).all(|((workload, standing, addresses, leaving), now)| {
                *leaving == now.leaving
                    && standing == now.standing
                    && workload == now.workload
                    && *addresses == [IpAddr::from(now.ipv4), now.ipv6.into()]
            })
    }
}

impl Memo {
    /// Brings everything up to date; whether services, or who may serve them, are others.
    pub(super) fn update(
        &mut self,
        world: &World,
        reachable: &[Reachable<'_>],
        remotes: &Arc<remotes::All>,
        node: &NodeFacts,
        vips: &mut Vips,
    ) -> bool {
        let same = self.inputs.as_ref().is_some_and(|inputs| inputs.are(world, reachable, remotes, node));
        if !same {
            self.inputs = Some(Inputs::new(world, reachable, remotes, node));
            vips.let_all_go();
            self.service_notes = Notes::default();
            let services = services::services(world, reachable, node, vips, &mut self.service_notes);
            if *self.services != services {
                self.services = Arc::new(services);
            }
        }
        let same_policies =
            Arc::ptr_eq(&self.written, &world.policies) && Arc::ptr_eq(&self.missing, &world.to_services);
        if !same || !same_policies {
            self.written = Arc::clone(&world.policies);
            self.missing = Arc::clone(&world.to_services);
            self.complete(world, reachable, same);
            self.notes = Arc::new(self.noted());
        }
        !same
    }

    /// Finds the peers that are services; of policies that are as they were only if services are not.
    fn complete(&mut self, world: &World, reachable: &[Reachable<'_>], same_services: bool) {
        let mut earlier = std::mem::take(&mut self.whole);
        if world.to_services.is_empty() {
            self.policies = Arc::clone(&world.policies);
            return;
        }
        let answers = to_services::ByAnswer::new(world, reachable);
        let whole = |written: &Arc<Policy>| {
            let Some(missing) = world.to_services.get(&written.name) else { return Arc::clone(written) };
            let before = earlier.remove(&written.name);
            let whole = match before {
                Some(before)
                    if same_services
                        && Arc::ptr_eq(&before.written, written)
                        && Arc::ptr_eq(&before.missing, missing) =>
                {
                    before
                }
                before => {
                    let mut notes = Notes::default();
                    let policy = answers.complete(written, missing, &mut notes);
                    // Whoever compares by address sees that it is the same.
                    let before = before.map(|before| before.policy).filter(|before| **before == policy);
                    let policy = before.unwrap_or_else(|| Arc::new(policy));
                    let (written, missing) = (Arc::clone(written), Arc::clone(missing));
                    Whole { written, missing, policy, notes }
                }
            };
            let policy = Arc::clone(&whole.policy);
            self.whole.insert(written.name.clone(), whole);
            policy
        };
        self.policies = Arc::new(world.policies.iter().map(whole).collect());
    }

    /// The policies in force, whole.
    pub(super) fn policies(&self) -> Arc<Vec<Arc<Policy>>> {
        Arc::clone(&self.policies)
    }

    fn noted(&self) -> Notes {
        let mut notes = self.service_notes.clone();
        self.whole.values().for_each(|whole| notes.add(&whole.notes));
        notes
    }
}
