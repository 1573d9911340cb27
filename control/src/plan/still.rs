//! What of authentication surely stands by a world of which there is no plan.
//!
//! Promise: it needs no number and no memory, so it can be told when planning fails; whoever is gone, is elsewhere, or is
//! somebody else by that world has no part in it. It never says more than the plan in force.

use mesh::auth::{AuthEndpoint, AuthPlan};
use mesh::labels::LabelSet;
use mesh::plan::NodePlan;

use super::authentication::id_of;
use super::{NodeFacts, Present, remotes};
use crate::authority;
use crate::world::World;

/// The part of the plan in force ([`Present::plan`]) that this world says too; `None` where nobody must authenticate by it.
pub fn still(world: &World, node: &NodeFacts, present: Present<'_>) -> Option<AuthPlan> {
    let in_force = present.plan?;
    let mut still = in_force.auth.as_deref()?.clone();
    let domain = &world.configuration.trust_domain;
    let same_domain = still.trust_domain == *domain;
    still.nodes.retain(|name, _| same_domain && world.nodes.contains_key(name));
    still.endpoints.retain(|instance, known| {
        let staying = present.endpoints.iter().filter(|endpoint| !present.leaving.contains(&endpoint.id));
        staying.into_iter().any(|endpoint| {
            endpoint.instance == *instance
                && (known.ipv4, known.ipv6) == (endpoint.ipv4, endpoint.ipv6)
                && id_of(world, domain, endpoint).as_ref() == Some(&known.id)
                && is_labelled(in_force, known, &authority::running(world, &node.name, endpoint).labels)
        })
    });
    let believed = remotes::believed(world, node);
    still.remotes.retain(|name, known| {
        believed.get(name).is_some_and(|(claim, workload)| {
            let id = domain.workload(&workload.name.namespace, &workload.service_account);
            (known.ipv4, known.ipv6) == (claim.endpoint.ipv4, claim.endpoint.ipv6)
                && known.workload == workload.name
                && id.ok().as_ref() == Some(&known.id)
                && is_labelled(in_force, known, &authority::declared(world, workload).labels)
        })
    });
    Some(still)
}

/// Whether its identity in force is that of these labels.
fn is_labelled(in_force: &NodePlan, known: &AuthEndpoint, labels: &LabelSet) -> bool {
    in_force.identities.get(&known.identity) == Some(labels)
}
