//! Compiled rules, and what they say of a peer and of a request.

use std::net::IpAddr;
use std::sync::Arc;

use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::l7::Mismatch;
use mesh::workload::EndpointId;

use super::{Matcher, Tls};

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
    /// What holds for whom; empty, as `tls` is, for ranges of rules that could not be compiled: nothing passes.
    pub access: Box<[Access]>,
    /// Which TLS may pass untouched, beside that.
    pub tls: Box<[Tls]>,
    /// What of requests any rule of these ports looks at.
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

/// Rules of which one must match.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    /// In the order in which they are written.
    pub rules: Box<[Rule]>,
}

/// One rule: every part that is there must match.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The whole `:path`.
    pub path: Option<Arc<Matcher>>,
    /// The method.
    pub method: Option<Arc<Matcher>>,
    /// Whether the method's expression is the word CONNECT, or words of which it is one.
    pub names_connect: bool,
    /// The authority.
    pub host: Option<Arc<Matcher>>,
    /// The headers.
    pub headers: Box<[HeaderMatcher]>,
}

/// What a header must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeaderMatcher {
    /// Its name in lower case.
    pub name: Box<str>,
    /// The value that each of its lines must have, of which there must be one; `None`: it must be there.
    pub value: Option<Box<str>>,
    /// What is done where it is not so.
    pub mismatch: Mismatch,
}

/// A change of a request's headers that a rule asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edit<'a> {
    /// This line is added.
    Add(&'a str, &'a str),
    /// All lines of this name go.
    Delete(&'a str),
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
        let Some(ports) = ports.iter().find(|ports| (ports.first..=ports.last).contains(&port)) else {
            return (Grant::Open, None);
        };
        if ports.access.is_empty() && ports.tls.is_empty() {
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

impl Rule {
    /// Whether a request matches, its path read as `path`. CONNECT only where the rule says so: it names that method, not
    /// just any, and no path, which CONNECT has not unless it asks for a protocol (RFC 8441).
    pub fn is_match(&self, request: &impl Subject, path: &[u8]) -> bool {
        let method = request.method();
        let part = |matcher: &Option<Arc<Matcher>>, text: &[u8]| {
            matcher.as_ref().is_none_or(|matcher| matcher.is_match(text))
        };
        let is_connect = method == b"CONNECT";
        part(&self.method, method)
            && !(is_connect && (!self.names_connect || self.path.is_some() && path.is_empty()))
            && part(&self.path, path)
            && part(&self.host, request.authority())
            && self.headers.iter().all(|header| header.mismatch != Mismatch::Deny || header.is_met(request))
    }

    /// What it wants changed.
    pub fn edits<'a>(&'a self, request: &impl Subject, edits: &mut Vec<Edit<'a>>) {
        for header in self.headers.iter().filter(|header| !header.is_met(request)) {
            let value = header.value.as_deref().unwrap_or_default();
            match header.mismatch {
                Mismatch::Deny | Mismatch::Log => {}
                Mismatch::Add => edits.push(Edit::Add(&header.name, value)),
                Mismatch::Delete => edits.push(Edit::Delete(&header.name)),
                Mismatch::Replace => {
                    edits.extend([Edit::Delete(&header.name), Edit::Add(&header.name, value)]);
                }
            }
        }
    }
}

impl HeaderMatcher {
    /// Whether the header is there, and no line of it is another value: an origin may read any of them.
    fn is_met(&self, request: &impl Subject) -> bool {
        let mut lines = request.header(&self.name).peekable();
        lines.peek().is_some()
            && self.value.as_ref().is_none_or(|value| lines.all(|line| line == value.as_bytes()))
    }
}
