//! What the command line shows of the world and of the plan.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use mesh::identity::Identity;
use mesh::labels::LabelSet;
use mesh::plan::{NodePlan, Whereabouts};
use mesh::policy::{Policy, PolicyName};
use mesh::service::{Frontend, FrontendPlan};
use mesh::spiffe::SpiffeId;
use mesh::workload::WorkloadName;
use node_api::{AddressView, IdentityView, PolicyView, ServiceView};

use crate::plan::Planned;
use crate::world::World;

/// Rows of `policy list`, in order of files and lines.
pub fn policies(world: &World, planned: &Planned) -> Vec<PolicyView> {
    let plan = &planned.plan;
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
    let noted = world.statuses.iter().map(|status| planned.notes.add_to(status));
    noted.filter(World::is_listed).map(|status| row(&status)).collect()
}

/// Objects that have an error, of their own or with the others.
pub fn invalid(world: &World, planned: &Planned) -> usize {
    world.invalid() + planned.notes.refused(&world.statuses)
}

/// Rows of `service list`; the kernel's numbers are left at 0.
pub fn services(plan: &NodePlan) -> Vec<ServiceView> {
    let row = |(frontend, plan): (&Frontend, &FrontendPlan)| ServiceView {
        id: 0,
        service: plan.service.clone(),
        kind: "ClusterIP".to_owned(),
        frontend: *frontend,
        port_name: plan.port_name.clone(),
        backends: plan.backends.to_vec(),
        draining: plan.draining.to_vec(),
        affinity: plan.affinity,
    };
    plan.services.frontends.iter().map(row).collect()
}

/// Rows of `ip list`: endpoints and everything else that policy knows by address, in order of addresses.
pub fn addresses(plan: &NodePlan) -> Vec<AddressView> {
    let view =
        |prefix: IpNet, identity: Identity, source: &str, workload: Option<WorkloadName>| AddressView {
            prefix,
            identity,
            labels: plan.identities.get(&identity).cloned().unwrap_or_default(),
            source: source.to_owned(),
            workload,
        };
    let endpoints = plan.endpoints.values().flat_map(|planned| {
        let endpoint = &planned.endpoint;
        let addresses: [IpNet; 2] = [
            IpNet::from(std::net::IpAddr::from(endpoint.ipv4)),
            IpNet::from(std::net::IpAddr::from(endpoint.ipv6)),
        ];
        addresses.map(|prefix| view(prefix, planned.identity, "endpoint", Some(endpoint.workload.clone())))
    });
    let others =
        plan.ipcache.iter().map(|(prefix, there)| view(*prefix, there.identity, source(*there), None));
    let mut all: Vec<_> = endpoints.chain(others).collect();
    all.sort_by_key(|row| row.prefix);
    all
}

/// How an address that is no endpoint's came to its identity.
fn source(there: Whereabouts) -> &'static str {
    match there.identity {
        Identity::HOST => "node",
        Identity::REMOTE_NODE => "remote-node",
        Identity::UNMANAGED if there.pending => "pool-of-node",
        Identity::UNMANAGED => "pool",
        identity if identity.is_workload() => "workload-endpoint",
        Identity::WORLD | Identity::WORLD_IPV4 | Identity::WORLD_IPV6 => "world",
        _ => "policy",
    }
}

/// SPIFFE IDs of endpoints, of whichever node, by identity; of nobody where nobody must authenticate.
pub(crate) fn spiffe_ids(plan: &NodePlan) -> BTreeMap<Identity, BTreeSet<SpiffeId>> {
    let mut ids: BTreeMap<Identity, BTreeSet<SpiffeId>> = BTreeMap::new();
    let ends = plan.auth.iter().flat_map(|auth| auth.endpoints.values().chain(auth.remotes.values()));
    for end in ends {
        ids.entry(end.identity).or_default().insert(end.id.clone());
    }
    ids
}

/// Rows of `identity list`.
pub fn identities(plan: &NodePlan) -> Vec<IdentityView> {
    let spiffe_ids = spiffe_ids(plan);
    let row = |(identity, labels): (&Identity, &LabelSet)| IdentityView {
        identity: *identity,
        labels: labels.clone(),
        spiffe_ids: spiffe_ids.get(identity).cloned().unwrap_or_default(),
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
