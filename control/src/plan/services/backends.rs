//! Who answers for a service, of those whom its selector and its slices name.
//!
//! As kube-proxy has it: those that are ready; if none is, those that serve though they are about to end; the others
//! keep the connections that they have. A workload of this node that is being removed is never chosen again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use mesh::labels::{LabelSet, Source};
use mesh::policy::{Operator, Selector};
use mesh::service::Backend;
use mesh::workload::{Endpoint, WorkloadName};

use crate::authority::Standing;
use crate::kind::{EndpointSlice, Family, Port, Service, SliceEndpoint, SlicePort, Target};

/// A workload that runs on this node.
#[derive(Clone, Debug)]
pub(crate) struct Running<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) standing: Standing,
    /// It is about to be removed.
    pub(crate) leaving: bool,
}

impl Running<'_> {
    /// As services see it.
    pub(crate) fn reachable(&self) -> Reachable<'_> {
        let endpoint = self.endpoint;
        Reachable {
            workload: &endpoint.workload,
            standing: &self.standing,
            ipv4: endpoint.ipv4,
            ipv6: endpoint.ipv6,
            is_here: true,
            leaving: self.leaving,
        }
    }
}

/// A workload whose addresses are known, of this node or another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reachable<'a> {
    pub(crate) workload: &'a WorkloadName,
    pub(crate) standing: &'a Standing,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
    /// It runs on this node.
    pub(crate) is_here: bool,
    /// It is about to be removed.
    pub(crate) leaving: bool,
}

impl Reachable<'_> {
    /// Its address of a family.
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ipv4.into(),
            Family::V6 => self.ipv6.into(),
        }
    }
}

/// Workloads by their labels, so that ten thousand selectors are not held against each of ten thousand workloads.
pub(crate) struct ByLabel<'a> {
    reachable: &'a [Reachable<'a>],
    carrying: BTreeMap<(&'a str, &'a str), Vec<usize>>,
}

impl<'a> ByLabel<'a> {
    pub(crate) fn new(reachable: &'a [Reachable<'a>]) -> Self {
        let mut carrying: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (place, workload) in reachable.iter().enumerate() {
            for (key, value) in workload.standing.labels.iter().filter(|(key, _)| key.source == Source::K8s) {
                carrying.entry((key.key.as_str(), value)).or_default().push(place);
            }
        }
        Self { reachable, carrying }
    }

    /// Whom the selector of a service finds.
    fn selected(&self, selector: &Selector) -> impl Iterator<Item = &'a Reachable<'a>> {
        let lists = selector.0.iter().filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => {
                let value = values.first()?;
                let list = self.carrying.get(&(requirement.key.as_str(), value.as_str()));
                Some(list.map(Vec::as_slice).unwrap_or_default())
            }
            Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
        });
        let rarest = lists.min_by_key(|list| list.len()).unwrap_or_default();
        let fits = |labels: &LabelSet| selector.matches(labels);
        let found: Vec<_> = rarest.iter().filter_map(|place| self.reachable.get(*place)).collect();
        found
            .into_iter()
            .filter(move |workload| fits(&workload.standing.labels))
            .collect::<Vec<_>>()
            .into_iter()
    }
}

/// How far an endpoint can be used. In the order of preference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum State {
    /// For new connections.
    Ready,
    /// For new connections if no other is ready.
    Ending,
    /// For the connections that it has.
    Draining,
}

/// One who answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Candidate<'a> {
    /// Found by the selector.
    Found(&'a Reachable<'a>),
    /// Named by a slice.
    Named(&'a EndpointSlice, &'a SliceEndpoint),
}

impl Candidate<'_> {
    /// Its addresses of these families.
    pub(crate) fn addresses(&self, families: &[Family]) -> Vec<IpAddr> {
        match self {
            Self::Found(workload) => families.iter().map(|family| workload.address(*family)).collect(),
            Self::Named(_, endpoint) => {
                let fits = families.contains(&Family::of(endpoint.address));
                fits.then_some(endpoint.address).into_iter().collect()
            }
        }
    }

    /// Where it listens for a port of the service.
    pub(crate) fn port(&self, port: &Port) -> Option<u16> {
        match self {
            Self::Found(workload) => match &port.target {
                Target::Number(number) => Some(*number),
                Target::Name(name) => workload.standing.ports.get(&(name.clone(), port.protocol)).copied(),
            },
            Self::Named(slice, _) => {
                let same = |own: &&SlicePort| own.name == port.name && own.protocol == port.protocol;
                slice.ports.iter().find(same).map(|own| own.port)
            }
        }
    }

    pub(crate) fn state(&self, service: &Service) -> State {
        match self {
            Self::Found(workload) if workload.leaving => State::Draining,
            Self::Found(_) => State::Ready,
            Self::Named(_, endpoint) => match endpoint {
                _ if service.publish_not_ready || endpoint.ready => State::Ready,
                _ if endpoint.serving && endpoint.terminating => State::Ending,
                _ => State::Draining,
            },
        }
    }
}

/// What candidates are judged by, besides themselves.
pub(crate) struct Place<'a> {
    /// Name of this node.
    pub(crate) node: &'a str,
    /// Addresses of its workloads.
    pub(crate) here: BTreeSet<IpAddr>,
    /// Of those, the ones that are being removed.
    pub(crate) leaving: BTreeSet<IpAddr>,
    /// VIPs, which answer for nobody.
    pub(crate) vips: BTreeSet<IpAddr>,
    pub(crate) workloads: ByLabel<'a>,
    /// Slices by their services.
    pub(crate) slices: BTreeMap<&'a mesh::service::ServiceName, Vec<&'a EndpointSlice>>,
}

impl<'a> Place<'a> {
    /// Everyone who answers for a service, ready or not.
    pub(crate) fn candidates(&self, service: &'a Service) -> Vec<Candidate<'a>> {
        let selected = service.selector.iter().flat_map(|selector| self.workloads.selected(selector));
        let slices = self.slices.get(&service.name).into_iter().flatten();
        let named = slices.flat_map(|slice| slice.endpoints.iter().map(|endpoint| (*slice, endpoint)));
        let named = named.filter(|(_, endpoint)| !self.vips.contains(&endpoint.address));
        selected.map(Candidate::Found).chain(named.map(|(slice, e)| Candidate::Named(slice, e))).collect()
    }

    /// Whether it is on this node.
    fn is_here(&self, candidate: &Candidate<'_>) -> bool {
        match candidate {
            Candidate::Found(workload) => workload.is_here,
            Candidate::Named(_, endpoint) => {
                endpoint.node.as_deref() == Some(self.node) || self.here.contains(&endpoint.address)
            }
        }
    }

    /// For one port and family: whom new connections go to, and who keeps the ones that it has.
    pub(crate) fn backends(
        &self,
        service: &Service,
        candidates: &[Candidate<'_>],
        port: &Port,
        family: Family,
    ) -> (Arc<[Backend]>, Arc<[Backend]>) {
        let mut states: BTreeMap<Backend, State> = BTreeMap::new();
        for candidate in candidates {
            if service.local && !self.is_here(candidate) {
                continue;
            }
            let Some(number) = candidate.port(port).filter(|number| fits(port, *number)) else { continue };
            for address in candidate.addresses(&[family]) {
                // What this node knows of its own workloads goes before what a slice says.
                let leaving = self.leaving.contains(&address);
                let state = if leaving { State::Draining } else { candidate.state(service) };
                let known = states.entry(SocketAddr::new(address, number)).or_insert(state);
                *known = state.min(*known);
            }
        }
        let best = states.values().copied().min().filter(|state| *state != State::Draining);
        let chosen = |state: &State| Some(*state) == best;
        let (used, draining): (Vec<_>, Vec<_>) = states.into_iter().partition(|(_, state)| chosen(state));
        let addresses = |list: Vec<(Backend, State)>| list.into_iter().map(|(backend, _)| backend).collect();
        (addresses(used), addresses(draining))
    }
}

/// SCTP is served by the same port only: its checksum covers the ports, and nothing computes it anew.
pub(crate) fn fits(port: &Port, number: u16) -> bool {
    port.protocol != mesh::policy::protocol::SCTP || number == port.port
}
