//! `toServices` → ordinary peers.
//!
//! Traffic is judged by who answers, never by the VIP: a service with a selector is its workloads, wherever they run;
//! the endpoints of its slices are the workloads that have these addresses, else the addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh::labels::LabelSet;
use mesh::policy::{Operator, Peer, Peers, Policy, Requirement, Selector};
use mesh::service::ServiceName;

use super::notes::{Notes, of_policy};
use super::services::backends::Reachable;
use super::services::slices;
use crate::kind::{EndpointSlice, Family, Reach, Service, ToService, Which};
use crate::world::World;

/// Notes on peers that are services.
pub(super) fn review(world: &World, notes: &mut Notes) {
    let services = ByAnswer::new(world, &[]);
    for policy in world.policies.iter() {
        if let Some(missing) = world.to_services.get(&policy.name) {
            services.complete(policy, missing, notes);
        }
    }
}

/// Who answers for services.
pub(super) struct ByAnswer<'a> {
    world: &'a World,
    slices: BTreeMap<&'a ServiceName, Vec<&'a EndpointSlice>>,
    workloads: BTreeMap<IpAddr, &'a LabelSet>,
}

impl<'a> ByAnswer<'a> {
    pub(super) fn new(world: &'a World, reachable: &'a [Reachable<'a>]) -> Self {
        let both = |workload: &'a Reachable<'a>| {
            [Family::V4, Family::V6].map(|family| (workload.address(family), &workload.standing.labels))
        };
        // Of one that may not be here nothing is known; it is nobody's backend.
        let known = reachable.iter().filter(|workload| workload.standing.labels.namespace().is_some());
        Self { world, slices: slices(world), workloads: known.flat_map(both).collect() }
    }

    /// A policy with the peers that were missing.
    pub(super) fn complete(&self, policy: &Policy, missing: &[ToService], notes: &mut Notes) -> Policy {
        let mut policy = policy.clone();
        for to in missing {
            let meant = self.meant(&to.which);
            if let Some(fault) = fault(&meant) {
                let outcome = if to.denies { "denies" } else { "allows" };
                let message =
                    format!("toServices: {} {fault}: {outcome} nothing by it", described(&to.which));
                notes.warn(of_policy(&policy.name), message);
            }
            let rule = policy.rules.get_mut(to.rule).map(|rule| &mut rule.egress);
            let side = rule.map(|side| if to.denies { &mut side.deny } else { &mut side.allow });
            let statement = side.and_then(|side| side.get_mut(to.statement));
            if let Some(Peers::Selected(known)) = statement.map(|statement| &mut statement.peers) {
                known.extend(meant.into_iter().flat_map(|service| self.answering(service)));
            }
        }
        policy
    }

    fn meant(&self, which: &Which) -> Vec<&'a Service> {
        let all = self.world.services.values().map(AsRef::as_ref);
        let fits = |service: &&Service| which.means(&service.name, &service.labels);
        match &which.named {
            Some(name) => self.world.services.get(name).map(AsRef::as_ref).into_iter().filter(fits).collect(),
            None => all.filter(fits).collect(),
        }
    }

    /// Those who answer for a service.
    fn answering(&self, service: &Service) -> Vec<Peer> {
        if is_external(service) {
            return Vec::new();
        }
        let selected = service.selector.clone().map(Peer::Endpoints);
        let named = self.slices.get(&service.name).into_iter().flatten().flat_map(|slice| &slice.endpoints);
        let peer = |address: IpAddr| match self.workloads.get(&address) {
            Some(labels) => Peer::Endpoints(exactly(labels)),
            None => Peer::Cidr { cidr: address.into(), except: Vec::new() },
        };
        selected.into_iter().chain(named.map(|endpoint| peer(endpoint.address))).collect()
    }
}

fn is_external(service: &Service) -> bool {
    matches!(service.reach, Reach::External(_))
}

/// Why services as peers come to nobody, whoever answers.
fn fault(meant: &[&Service]) -> Option<&'static str> {
    match meant {
        [] => Some("names no Service"),
        all if all.iter().all(|service| is_external(service)) => {
            Some("leads to another name, which policy cannot follow")
        }
        _ => None,
    }
}

/// Everyone who has all of these labels. Whoever has more of them could as well have been given just these.
fn exactly(labels: &LabelSet) -> Selector {
    let requirement = |(key, value): (&mesh::labels::Key, &str)| Requirement {
        source: Some(key.source),
        key: key.key.clone(),
        operator: Operator::In(vec![value.to_owned()]),
    };
    Selector(labels.iter().map(requirement).collect())
}

fn described(which: &Which) -> String {
    match (&which.named, &which.selected) {
        (Some(name), _) => name.to_string(),
        (None, Some((Some(namespace), _))) => format!("k8sServiceSelector in {namespace}"),
        (None, _) => "k8sServiceSelector".to_owned(),
    }
}

#[cfg(test)]
mod tests;
