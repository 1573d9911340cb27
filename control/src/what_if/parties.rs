//! Who can be at either end of a flow, and what each is now and then.
//!
//! Endpoints are judged here. Workloads of other nodes, nodes and addresses are peers only: the verdict at the far end
//! is the other node's. Addresses are cut by the prefixes of both plans, so all of one piece fare alike.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use mesh::identity::Identity;
use mesh::labels::LabelSet;
use mesh::plan::NodePlan;
use mesh::policy::Ruleset;
use mesh::workload::WorkloadName;

use crate::authority;
use crate::world::World;

/// A value now, and the same then.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Turn<T> {
    pub(super) now: T,
    pub(super) then: T,
}

/// One who sends or receives.
#[derive(Debug)]
pub(super) struct Party {
    /// What it is called; addresses that are one identity are called by its name.
    pub(super) name: String,
    pub(super) identity: Turn<Identity>,
    /// What it is judged by, if it is an endpoint of this node.
    pub(super) judged: Option<Judged>,
}

/// The rulesets of an endpoint.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub(super) ingress: Turn<Arc<Ruleset>>,
    pub(super) egress: Turn<Arc<Ruleset>>,
}

/// Everyone who is known both now and then.
pub(super) fn parties(now: (&World, &NodePlan), then: (&World, &NodePlan)) -> Vec<Party> {
    let mut parties: Vec<Party> = endpoints(now.1, then.1).collect();
    let here: BTreeSet<&WorkloadName> =
        now.1.endpoints.values().map(|planned| &planned.endpoint.workload).collect();
    let (mut elsewhere, mut later) = (declared(now.0, now.1), declared(then.0, then.1));
    elsewhere.retain(|name, _| !here.contains(name));
    parties.extend(elsewhere.into_iter().filter_map(|(name, identity)| {
        let identity = Turn { now: identity, then: later.remove(name)? };
        Some(Party { name: name.to_string(), identity, judged: None })
    }));
    parties.extend(addresses(now.1, then.1).into_iter().map(|(_, party)| party));
    parties
}

fn endpoints(now: &NodePlan, then: &NodePlan) -> impl Iterator<Item = Party> {
    let both = now.endpoints.iter().filter_map(|(id, earlier)| Some((earlier, then.endpoints.get(id)?)));
    both.map(|(now, then)| Party {
        name: now.endpoint.workload.to_string(),
        identity: Turn { now: now.identity, then: then.identity },
        judged: Some(Judged {
            ingress: Turn { now: Arc::clone(&now.ingress), then: Arc::clone(&then.ingress) },
            egress: Turn { now: Arc::clone(&now.egress), then: Arc::clone(&then.egress) },
        }),
    })
}

/// Declared workloads, wherever they run.
fn declared<'a>(world: &'a World, plan: &NodePlan) -> BTreeMap<&'a WorkloadName, Identity> {
    let workloads = plan.identities.iter().filter(|(identity, _)| identity.is_workload());
    let numbers: BTreeMap<&LabelSet, Identity> =
        workloads.map(|(identity, labels)| (labels, *identity)).collect();
    let number = |labels: &LabelSet| numbers.get(labels).copied();
    let all = world.workloads.values();
    all.filter_map(|it| Some((&it.name, number(&authority::declared(world, it).labels)?))).collect()
}

/// Pieces of the address space: all addresses of a prefix that are in no longer one.
pub(super) fn addresses(now: &NodePlan, then: &NodePlan) -> Vec<(IpNet, Party)> {
    let all: BTreeSet<IpNet> = now.ipcache.keys().chain(then.ipcache.keys()).copied().collect();
    let party = |prefix: &IpNet| {
        let identity = Turn { now: longest(now, prefix)?, then: longest(then, prefix)? };
        let reserved = (identity.now == identity.then).then(|| identity.now.reserved_labels()).flatten();
        let name = reserved.map_or_else(|| prefix.to_string(), |labels| labels.to_string());
        Some((*prefix, Party { name, identity, judged: None }))
    };
    all.iter().filter(|prefix| !is_covered(prefix, &all)).filter_map(party).collect()
}

/// The identity of addresses of this prefix that are in no longer one.
fn longest(plan: &NodePlan, prefix: &IpNet) -> Option<Identity> {
    let around = (0..=prefix.prefix_len()).rev().filter_map(|length| IpNet::new(prefix.addr(), length).ok());
    around.into_iter().find_map(|prefix| plan.ipcache.get(&prefix.trunc())).map(|there| there.identity)
}

/// Whether each of its addresses is in a longer prefix. Halves are looked into only where there is a prefix inside.
fn is_covered(prefix: &IpNet, all: &BTreeSet<IpNet>) -> bool {
    let Ok(mut halves) = prefix.subnets(prefix.prefix_len().saturating_add(1)) else { return false };
    let holds_one = |half: &IpNet| {
        let last = IpNet::new(half.broadcast(), half.max_prefix_len()).unwrap_or(*half);
        all.range(*half..=last).next().is_some()
    };
    halves.all(|half| all.contains(&half) || holds_one(&half) && is_covered(&half, all))
}
