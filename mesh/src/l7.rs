//! What the L7 proxy enforces: HTTP rules and names of TLS servers, for whom they hold, and what became of a request.
//!
//! Meaning only. How expressions are compiled and matched is the proxy's own affair (`l7-proxy`); which rule may be written
//! where, and that its expressions are ones, is checked by `control` before anything here is made.

mod server_name;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::workload::{EndpointId, WorkloadName};

pub use server_name::{ServerName, ServerNameError, is_said};

/// A regular expression as in YAML, matched against the whole of what it is about: anchored at both ends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Expression(pub String);

/// Longest text of an [`Expression`], bytes.
pub const EXPRESSION_TEXT: usize = 4096;

/// What an [`Expression`] may take as the NFA that `regex-automata` makes of it, bytes: whoever accepts it and whoever
/// matches by it hold it to the same bound.
pub const EXPRESSION_SIZE: usize = 256 << 10;

/// How the text of an [`Expression`] is read: bytes, as RE2 reads them in Latin-1.
pub mod expression {
    /// Classes are of ASCII: `\w` does not grow to the letters of all scripts.
    pub const UNICODE: bool = false;
    /// Groups within groups.
    pub const DEPTH: u32 = 64;
}

/// One item of `rules.http` of a CiliumNetworkPolicy: every part that is there must match.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRule {
    /// The whole `:path`, query included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Expression>,
    /// The method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Expression>,
    /// The authority, with its port where the request names one; compared without regard to case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Expression>,
    /// What the request's headers must be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderRule>,
}

/// One of `headers` or `headerMatches`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderRule {
    /// The name, in lower case.
    pub name: String,
    /// The value that every line of it must have exactly, one line at least: a server may read any of them. (Envoy compares
    /// the lines joined by commas.) `None`: it must be there.
    pub value: Option<String>,
    /// What is done where it is not so.
    #[serde(default)]
    pub mismatch: Mismatch,
}

/// `mismatch` of `headerMatches`, as Cilium spells it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mismatch {
    /// The rule does not match.
    #[default]
    Deny,
    /// The rule matches all the same, and the access log says so.
    Log,
    /// The header is added.
    Add,
    /// The header is taken away.
    Delete,
    /// The header is taken away and added with the value.
    Replace,
}

/// Rules of which one must match; none: no request passes.
pub type HttpRules = Arc<[HttpRule]>;

/// Names of servers, one of which a TLS client must say; ascending, each once.
pub type ServerNames = Arc<[ServerName]>;

/// The most names of one item of `toPorts`: whoever accepts it and whoever matches by it hold it to the same bound.
pub const SERVER_NAMES: usize = 4096;

/// The most of them that have a wildcard elsewhere than as their first label: these are tried one by one.
pub const PATTERNS: usize = 128;

/// What the proxy holds to what a statement allows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum L7Demand {
    /// Each request matches one of them.
    Http(HttpRules),
    /// It is TLS, and its client says one of them. What is in it nobody sees.
    ServerNames(ServerNames),
}

impl L7Demand {
    /// The HTTP rules, if that is what it is.
    pub fn http(&self) -> Option<&HttpRules> {
        match self {
            Self::Http(rules) => Some(rules),
            Self::ServerNames(_) => None,
        }
    }

    /// The names of servers, if that is what it is.
    pub fn server_names(&self) -> Option<&ServerNames> {
        match self {
            Self::Http(_) => None,
            Self::ServerNames(names) => Some(names),
        }
    }
}

/// What the proxy judges by, for one direction of one endpoint: TCP only. Shared by endpoints whose rules are equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct L7Rules {
    /// By ports, which never overlap, first port ascending.
    pub ports: Vec<L7Ports>,
}

/// Rules of a range of ports.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct L7Ports {
    /// First port.
    pub first: u16,
    /// Last port, inclusive.
    pub last: u16,
    /// What holds for whom. A peer whom several of these name may do what any of them lets him.
    pub access: Vec<L7Access>,
    /// Which TLS passes untouched for whom, beside that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<L7Tls>,
}

/// What of a range of ports, both ends inclusive, others leave. They must not overlap, and come first port ascending.
pub fn left_of(range: (u16, u16), others: impl IntoIterator<Item = (u16, u16)>) -> Vec<(u16, u16)> {
    let (mut from, last) = range;
    let mut left = Vec::new();
    for (other_first, other_last) in others {
        if other_last < from {
            continue;
        }
        if other_first > last {
            break;
        }
        if other_first > from {
            left.push((from, other_first - 1));
        }
        match other_last.checked_add(1) {
            Some(next) if next <= last => from = next,
            _ => return left,
        }
    }
    left.push((from, last));
    left
}

/// What some peers may do. Whom none names is denied.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct L7Access {
    /// The peers; `None`: anybody.
    pub peers: Option<Arc<[Identity]>>,
    /// What they may request; `None`: anything, also what is not HTTP.
    pub http: Option<HttpRules>,
}

/// TLS that some peers may open: to servers of these names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct L7Tls {
    /// The peers; `None`: anybody.
    pub peers: Option<Arc<[Identity]>>,
    /// Names of which the client must say one.
    pub names: ServerNames,
}

/// An endpoint of this node with L7 rules in one direction at least.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct L7Endpoint {
    /// Its number.
    pub id: EndpointId,
    /// Number of this creation.
    pub instance: u64,
    /// The workload in it.
    pub workload: WorkloadName,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// Its address.
    pub ipv6: Ipv6Addr,
    /// Its own identity.
    pub identity: Identity,
    /// What its peers may request of it; `None`: L7 has nothing to say, whatever the kernel lets through may pass.
    pub ingress: Option<Arc<L7Rules>>,
    /// What it may request of its peers; `None` likewise.
    pub egress: Option<Arc<L7Rules>>,
    /// Denials are reported, not enforced.
    pub audit: bool,
}

impl L7Endpoint {
    /// The rules of a direction.
    pub fn rules(&self, direction: TrafficDirection) -> Option<&Arc<L7Rules>> {
        match direction {
            TrafficDirection::Ingress => self.ingress.as_ref(),
            TrafficDirection::Egress => self.egress.as_ref(),
        }
    }
}

/// Everything the L7 proxy of one node is told.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct L7Plan {
    /// Endpoints of this node that have L7 rules.
    pub endpoints: BTreeMap<EndpointId, L7Endpoint>,
}

/// What the proxy has seen, and judged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum L7Flow {
    /// A request or the answer to it; without a method: a connection that is none of HTTP, where HTTP is required.
    Http(HttpFlow),
    /// The begin of a TLS connection, or the end that a change of rules has put to it.
    Tls(TlsFlow),
}

impl L7Flow {
    /// The request or the answer, if that is what it is.
    pub fn http(&self) -> Option<&HttpFlow> {
        match self {
            Self::Http(http) => Some(http),
            Self::Tls(_) => None,
        }
    }

    /// The TLS connection, if that is what it is.
    pub fn tls(&self) -> Option<&TlsFlow> {
        match self {
            Self::Http(_) => None,
            Self::Tls(tls) => Some(tls),
        }
    }
}

/// A TLS connection that passes untouched, or does not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsFlow {
    /// The name of the server that the client has said, in lower case; `None`: none that can be read.
    pub server_name: Option<String>,
}

/// A request or the answer to it, as an access log has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpFlow {
    /// `request` or `response`.
    pub kind: HttpKind,
    /// As the client wrote it: `GET`.
    pub method: String,
    /// `http://AUTHORITY/PATH?QUERY`, without user information.
    pub url: String,
    /// `HTTP/1.1`, `HTTP/2`.
    pub protocol: String,
    /// Status of the answer; `None` on a request.
    pub code: Option<u16>,
    /// From the request's first byte to the answer's first one, nanoseconds; `None` on a request.
    pub latency: Option<u64>,
}

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpKind {
    /// Judged, on its way to the server.
    Request,
    /// On its way back.
    Response,
}

#[cfg(test)]
mod tests {
    use super::left_of;

    #[test]
    fn what_is_left_of_a_range_is_what_no_other_has() {
        assert_eq!(left_of((80, 90), []), [(80, 90)]);
        assert_eq!(left_of((80, 90), [(1, 79), (91, 99)]), [(80, 90)]);
        assert_eq!(left_of((80, 90), [(80, 80), (84, 85), (90, 95)]), [(81, 83), (86, 89)]);
        assert_eq!(left_of((80, 90), [(70, 85)]), [(86, 90)]);
        assert_eq!(left_of((80, 90), [(1, 65_535)]), []);
        assert_eq!(left_of((0, 65_535), [(1, 65_534)]), [(0, 0), (65_535, 65_535)]);
        assert_eq!(left_of((65_535, 65_535), [(65_535, 65_535)]), []);
    }
}
