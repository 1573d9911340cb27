//! Which plan the auth-agent is told when that of the node changes, is refused or waits.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh::auth::{AuthPlan, IdentityPair};
use mesh::plan::NodePlan;
use mesh::workload::EndpointId;

/// Whether one of these pairs may have something open: both were known, and one of them was here.
pub(super) fn may_be_cut<'a>(pairs: impl IntoIterator<Item = &'a IdentityPair>, before: &NodePlan) -> bool {
    let here: BTreeSet<_> = before.endpoints.values().map(|endpoint| endpoint.identity).collect();
    let known = |identity| here.contains(&identity) || before.identities.contains_key(&identity);
    pairs.into_iter().any(|pair| {
        let (one, other) = pair.identities();
        (here.contains(&one) || here.contains(&other)) && known(one) && known(other)
    })
}

/// A plan by which more pairs authenticate.
pub(super) fn join(plan: &Arc<AuthPlan>, more: &BTreeSet<IdentityPair>) -> Arc<AuthPlan> {
    if more.is_subset(&plan.pairs) {
        return Arc::clone(plan);
    }
    let pairs = plan.pairs.union(more).copied().collect();
    Arc::new(AuthPlan { pairs, ..AuthPlan::clone(plan) })
}

/// What two plans say alike of who there is, under the pairs of the first.
pub(super) fn common(plan: &AuthPlan, other: &AuthPlan) -> AuthPlan {
    let mut common = plan.clone();
    common.nodes.retain(|name, node| other.nodes.get(name) == Some(node));
    common.endpoints.retain(|instance, endpoint| other.endpoints.get(instance) == Some(endpoint));
    common.remotes.retain(|name, endpoint| other.remotes.get(name) == Some(endpoint));
    common
}

/// The plan by which nobody does any more. Who is still there stays in it: that tells who has gone from who need not
/// prove anything.
pub(super) fn nobody(told: &AuthPlan, plan: &NodePlan, leaving: &BTreeSet<EndpointId>) -> Arc<AuthPlan> {
    let staying = plan.endpoints.values().map(|planned| &planned.endpoint);
    let staying: BTreeSet<_> = staying
        .filter(|endpoint| !leaving.contains(&endpoint.id))
        .map(|endpoint| endpoint.instance)
        .collect();
    let mut nobody = AuthPlan { pairs: BTreeSet::new(), ..told.clone() };
    nobody.endpoints.retain(|instance, _| staying.contains(instance));
    Arc::new(nobody)
}
