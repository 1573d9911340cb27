//! What the names of services lead to.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh::service::{HeadlessEndpoint, NamePlan, ServicePort};

use super::backends::{Candidate, Place, State};
use crate::kind::{Family, Service, is_label};

pub(super) fn cluster(service: &Service, addresses: &[IpAddr]) -> NamePlan {
    let port = |port: &crate::kind::Port| ServicePort {
        name: port.name.clone(),
        protocol: port.protocol,
        port: port.port,
    };
    NamePlan::Cluster { addresses: addresses.to_vec(), ports: service.ports.iter().map(port).collect() }
}

pub(super) fn external(name: &str) -> NamePlan {
    NamePlan::External { name: name.to_owned() }
}

/// Endpoints that are ready. Nothing falls back to those that are about to end: a name is asked for more than once.
pub(super) fn headless(
    place: &Place<'_>,
    service: &Service,
    candidates: &[Candidate<'_>],
    families: &[Family],
) -> NamePlan {
    let mut endpoints = BTreeSet::new();
    for candidate in candidates.iter().filter(|candidate| candidate.state(service) == State::Ready) {
        let mut addresses = candidate.addresses(families);
        addresses.retain(|address| !place.leaving.contains(address));
        if !addresses.is_empty() {
            let hostname = hostname(candidate);
            endpoints.insert(HeadlessEndpoint { hostname, addresses, ports: ports(service, candidate) });
        }
    }
    NamePlan::Headless { endpoints: endpoints.into_iter().collect() }
}

/// A workload is called by its own name, as the pods of a StatefulSet are.
fn hostname(candidate: &Candidate<'_>) -> Option<String> {
    match candidate {
        Candidate::Found(workload) => Some(workload.workload.name.clone()).filter(|name| is_label(name)),
        Candidate::Named(_, endpoint) => endpoint.hostname.clone(),
    }
}

/// A headless service need not name its ports: then a slice's stand for themselves.
fn ports(service: &Service, candidate: &Candidate<'_>) -> Vec<ServicePort> {
    if let (Candidate::Named(slice, _), true) = (candidate, service.ports.is_empty()) {
        let own = |port: &crate::kind::SlicePort| ServicePort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: port.port,
        };
        return slice.ports.iter().map(own).collect();
    }
    let of_port = |port: &crate::kind::Port| {
        let number = candidate.port(port)?;
        Some(ServicePort { name: port.name.clone(), protocol: port.protocol, port: number })
    };
    service.ports.iter().filter_map(of_port).collect()
}
