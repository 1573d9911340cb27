//! Services → what is called, who answers, under which names.
//!
//! Promise: a function of the world, of what runs here and of who had which address. A service with an error is not
//! served, and nobody else is touched by it.

pub(crate) mod backends;
pub(crate) mod claims;
mod judge;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh::service::{Frontend, FrontendPlan, ServiceName, Services};

use super::NodeFacts;
use super::notes::Notes;
use crate::allocate::Vips;
use crate::kind::{EndpointSlice, Family, Reach, Service};
use crate::world::World;
use backends::{ByLabel, Candidate, Place, Reachable};

/// Plans all services of a node.
pub(super) fn services(
    world: &World,
    reachable: &[Reachable<'_>],
    node: &NodeFacts,
    vips: &mut Vips,
    notes: &mut Notes,
) -> Services {
    if world.services.is_empty() && world.slices.is_empty() {
        return Services::default();
    }
    let granted = claims::settle(world, node, vips, notes);
    let place = place(world, reachable, node, granted.values().flatten().copied().collect());
    judge::slices(world, &granted, notes);
    let mut all = Services::default();
    for service in world.services.values().map(AsRef::as_ref) {
        let candidates = place.candidates(service);
        let addresses = granted.get(&service.name);
        let name = match (&service.reach, addresses) {
            (Reach::Cluster(_), None) => continue,
            (Reach::Cluster(_), Some(addresses)) => {
                frontends(&place, service, &candidates, addresses, &mut all.frontends);
                names::cluster(service, addresses)
            }
            (Reach::Headless(families), _) => names::headless(&place, service, &candidates, families),
            (Reach::External(name), _) => names::external(name),
        };
        judge::service(service, &candidates, notes);
        all.names.insert(service.name.clone(), name);
    }
    all
}

/// What there is to say whoever runs where.
pub(super) fn review(world: &World, node: &NodeFacts, notes: &mut Notes) {
    let mut vips = Vips::default();
    let granted = claims::settle(world, node, &mut vips, notes);
    judge::slices(world, &granted, notes);
}

fn place<'a>(
    world: &'a World,
    reachable: &'a [Reachable<'a>],
    node: &'a NodeFacts,
    vips: BTreeSet<IpAddr>,
) -> Place<'a> {
    let addresses = |leaving: bool| {
        let here = reachable.iter().filter(|workload| workload.is_here);
        let these = here.filter(move |workload| !leaving || workload.leaving);
        these.flat_map(|workload| [Family::V4, Family::V6].map(|family| workload.address(family))).collect()
    };
    Place {
        node: &node.name,
        here: addresses(false),
        leaving: addresses(true),
        vips,
        workloads: ByLabel::new(reachable),
        slices: slices(world),
    }
}

/// Slices by the services they are of.
pub(crate) fn slices(world: &World) -> BTreeMap<&ServiceName, Vec<&EndpointSlice>> {
    let mut slices: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for slice in world.slices.values() {
        if let Some(service) = &slice.service {
            slices.entry(service).or_default().push(slice.as_ref());
        }
    }
    slices
}

fn frontends(
    place: &Place<'_>,
    service: &Service,
    candidates: &[Candidate<'_>],
    addresses: &[IpAddr],
    frontends: &mut BTreeMap<Frontend, FrontendPlan>,
) {
    for address in addresses {
        for port in &service.ports {
            let (backends, draining) = place.backends(service, candidates, port, Family::of(*address));
            let plan = FrontendPlan {
                service: service.name.clone(),
                port_name: port.name.clone(),
                backends,
                draining,
                affinity: service.affinity,
            };
            let frontend = Frontend { address: *address, port: port.port, protocol: port.protocol };
            frontends.insert(frontend, plan);
        }
    }
}

#[cfg(test)]
mod tests;
