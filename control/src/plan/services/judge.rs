//! What is worth saying of services and slices that are in force.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh::service::ServiceName;

use super::backends::{Candidate, fits};
use super::claims::Granted;
use crate::kind::{Reach, Service, Target};
use crate::plan::notes::{Notes, of_service, of_slice};
use crate::world::World;

/// Notes of slices: whose they are, and addresses that answer for nobody.
pub(crate) fn slices(world: &World, granted: &Granted<'_>, notes: &mut Notes) {
    let vips: BTreeMap<&IpAddr, &ServiceName> =
        granted.iter().flat_map(|(name, list)| list.iter().map(|address| (address, *name))).collect();
    for slice in world.slices.values() {
        let key = || of_slice(&slice.name);
        for (place, endpoint) in slice.endpoints.iter().enumerate() {
            if let Some(service) = vips.get(&endpoint.address) {
                let address = endpoint.address;
                notes.error(
                    key(),
                    format!("endpoints[{place}].addresses[0]: {address} is {service}'s VIP, and a VIP answers for nobody; left out"),
                );
            }
        }
        let Some(name) = &slice.service else { continue };
        match world.services.get(name).map(|service| &service.reach) {
            None => notes.warn(key(), format!("serves nobody yet: there is no Service {name}")),
            Some(Reach::External(_)) => {
                notes.warn(key(), format!("serves nobody: Service {name} is an ExternalName"));
            }
            Some(Reach::Cluster(_) | Reach::Headless(_)) => {}
        }
    }
}

/// Notes of a service: nobody answers, or not on every port.
pub(super) fn service(service: &Service, candidates: &[Candidate<'_>], notes: &mut Notes) {
    if matches!(service.reach, Reach::External(_)) {
        return;
    }
    let key = || of_service(&service.name);
    if candidates.is_empty() {
        let message = match &service.selector {
            Some(_) => "spec.selector: matches no workload of this node, and no EndpointSlice names others",
            None => "has neither a selector nor an EndpointSlice: nobody answers",
        };
        return notes.warn(key(), message.to_owned());
    }
    for (place, port) in service.ports.iter().enumerate() {
        let numbers: Vec<_> = candidates.iter().filter_map(|candidate| candidate.port(port)).collect();
        if let (true, Target::Name(name)) = (numbers.is_empty(), &port.target) {
            notes.warn(
                key(),
                format!("spec.ports[{place}].targetPort: none of those who answer has a port named {name:?}"),
            );
        }
        let translated = matches!(service.reach, Reach::Cluster(_));
        if let (true, Some(other)) = (translated, numbers.iter().find(|number| !fits(port, **number))) {
            notes.warn(
                key(),
                format!(
                    "spec.ports[{place}]: SCTP is served on one port only; endpoints on {other} are left out"
                ),
            );
        }
    }
}
