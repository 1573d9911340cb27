//! Compiled rules, and what they say of a peer and of a request.

use std::net::IpAddr;
use std::sync::Arc;

use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::workload::EndpointId;

use super::{Inspected, Refused, RuleSet, Tls};

/// An endpoint of this node with rules.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its number.
    pub id: EndpointId,
    /// Number of this creation.
    pub instance: u64,
    /// Its addresses.
    pub addresses: [IpAddr; 2],
    /// What its peers may request of it; `None`: L7 has nothing to say.
    pub ingress: Option<Side>,
    /// What it may request of its peers; `None` likewise.
    pub egress: Option<Side>,
    /// Denials are reported, not enforced.
    pub audit: bool,
    /// A Secret that cannot be used: what wants it does not pass, or goes on with what was there of it before.
    pub fault: Option<Refused>,
}

impl Endpoint {
    /// The rules of a direction.
    pub fn side(&self, direction: TrafficDirection) -> Option<&Side> {
        match direction {
            TrafficDirection::Ingress => self.ingress.as_ref(),
            TrafficDirection::Egress => self.egress.as_ref(),
        }
    }
}

/// Rules of one direction.
#[derive(Clone, Debug)]
pub enum Side {
    /// By ports, first port ascending.
    Ports(Box<[Ports]>),
    /// They could not be compiled, and there were none before: nothing passes.
    Refused,
}

/// Rules of a range of ports.
#[derive(Clone, Debug)]
pub struct Ports {
    /// First port.
    pub first: u16,
    /// Last port, inclusive.
    pub last: u16,
    /// What holds there, which other ranges may share.
    pub terms: Arc<Terms>,
}

/// What holds at a range of ports.
#[derive(Debug, Default)]
pub struct Terms {
    /// What holds for whom, those of the same peers as one; empty, as the others are, for ranges of rules that could not be compiled:
    /// nothing passes.
    pub access: Box<[Access]>,
    /// Which TLS may pass untouched, beside that.
    pub tls: Box<[Tls]>,
    /// For whom the proxy ends or begins TLS, beside that.
    pub inspected: Box<[Inspected]>,
    /// What of requests any of these rules looks at.
    pub asks: Arc<Asks>,
}

/// What of a request rules look at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Asks {
    /// At its path.
    pub path: bool,
    /// At these headers, in lower case.
    pub headers: Box<[Box<str>]>,
}

/// What some peers may do.
#[derive(Clone, Debug)]
pub struct Access {
    /// The peers, ascending; `None`: anybody.
    pub peers: Option<Arc<[Identity]>>,
    /// What they may request; `None`: anything.
    pub http: Option<Arc<RuleSet>>,
}

/// What a peer may do at a port.
#[derive(Clone, Debug)]
pub enum Grant {
    /// There are no rules for this port.
    Open,
    /// Anything.
    Plain,
    /// What these rules let through, HTTP only.
    Http(Vec<Arc<RuleSet>>),
    /// Nothing.
    Nothing(&'static str),
}

/// Why nothing passes where rules could not be compiled.
const REFUSED: &str = "rules that cannot be used";

impl Side {
    /// What a peer may do at a port; rules of several accesses that name him add up. With what the port's rules look at.
    pub fn grant(&self, port: u16, peer: Option<Identity>) -> (Grant, Option<Arc<Asks>>) {
        let Self::Ports(ports) = self else { return (Grant::Nothing(REFUSED), None) };
        let Some(ports) = terms(ports, port) else { return (Grant::Open, None) };
        if ports.access.is_empty() && ports.tls.is_empty() && ports.inspected.is_empty() {
            return (Grant::Nothing(REFUSED), None);
        }
        let asks = Some(Arc::clone(&ports.asks));
        let Some(peer) = peer else { return (Grant::Nothing("peer of no known identity"), asks) };
        let mut sets = Vec::new();
        for access in &ports.access {
            let names = access.peers.as_ref().is_none_or(|peers| peers.binary_search(&peer).is_ok());
            match &access.http {
                _ if !names => {}
                None => return (Grant::Plain, asks),
                Some(set) => sets.push(Arc::clone(set)),
            }
        }
        match sets.is_empty() {
            true => (Grant::Nothing("no rule for this peer"), asks),
            false => (Grant::Http(sets), asks),
        }
    }
}

/// What holds at a port.
pub(super) fn terms(ports: &[Ports], port: u16) -> Option<&Terms> {
    let last = ports.partition_point(|ports| ports.first <= port).checked_sub(1);
    last.and_then(|at| ports.get(at)).filter(|ports| port <= ports.last).map(|ports| &*ports.terms)
}

/// What rules look at.
pub trait Subject {
    /// The method.
    fn method(&self) -> &[u8];
    /// Path and query; empty for CONNECT.
    fn path(&self) -> &[u8];
    /// The authority.
    fn authority(&self) -> &[u8];
    /// The lines of a header, by its name in lower case.
    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]>;
    /// The names of all headers, in any case.
    fn names(&self) -> impl Iterator<Item = &[u8]>;
}
