//! What the command line shows of the world and of the plan.

use std::collections::BTreeMap;

use mesh::identity::Identity;
use mesh::labels::LabelSet;
use mesh::plan::NodePlan;
use mesh::policy::{Policy, PolicyName};
use node_api::{IdentityView, PolicyView};

use crate::world::World;

/// Rows of `policy list`, in order of files and lines.
pub fn policies(world: &World, plan: &NodePlan) -> Vec<PolicyView> {
    let mut endpoints: BTreeMap<Identity, usize> = BTreeMap::new();
    for planned in plan.endpoints.values() {
        *endpoints.entry(planned.identity).or_default() += 1;
    }
    let selected = |name: &PolicyName| {
        let Some(policy) = world.policies.iter().find(|policy| policy.name == *name) else { return 0 };
        let counted = endpoints.iter().filter(|(identity, _)| {
            plan.identities.get(identity).is_some_and(|labels| selects(policy, labels))
        });
        counted.map(|(_, count)| count).sum()
    };
    let row = |status: &crate::ObjectStatus| {
        let policy = World::policy_of(status);
        let what = match (&policy, &status.key) {
            (None, Some(key)) => format!("{key}: "),
            _ => String::new(),
        };
        PolicyView {
            selected: policy.as_ref().map_or(0, selected),
            policy,
            valid: status.valid,
            location: format!("{}:{}", status.file, status.line),
            message: format!("{what}{}", status.message),
        }
    };
    world.statuses.iter().filter(|status| World::is_listed(status)).map(row).collect()
}

/// Rows of `identity list`.
pub fn identities(plan: &NodePlan) -> Vec<IdentityView> {
    let row = |(identity, labels): (&Identity, &LabelSet)| IdentityView {
        identity: *identity,
        labels: labels.clone(),
    };
    plan.identities.iter().map(row).collect()
}

/// The policies that select a workload of these labels.
pub fn policies_selecting(world: &World, labels: &LabelSet) -> Vec<PolicyName> {
    let selecting = world.policies.iter().filter(|policy| selects(policy, labels));
    selecting.map(|policy| policy.name.clone()).collect()
}

/// Whether some rule of the policy is about a workload of these labels.
pub(crate) fn selects(policy: &Policy, labels: &LabelSet) -> bool {
    policy.rules.iter().any(|rule| rule.subject.matches(labels))
}
