//! What the L7 proxy enforces: HTTP rules and names of TLS servers, for whom they hold, and what became of a request.
//!
//! Meaning only. How expressions are compiled and matched is the proxy's own affair (`l7-proxy`); which rule may be written
//! where, and that its expressions are ones, is checked by `control` before anything here is made.

mod inspection;
mod measure;
mod server_name;
mod written;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::workload::{EndpointId, WorkloadName};

use self::written::Written;
pub use inspection::{SecretItems, SecretName, TlsContext, TlsInspection, TlsSecret};
pub use measure::{Measure, OBJECT_PARTS, WORKLOAD_PARTS};
pub use server_name::{ServerName, ServerNameError, is_said};

/// A regular expression as in YAML, matched against the whole of what it is about: anchored at both ends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Expression(pub String);

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

/// Headers that say where messages begin and end, and to whom they go: who changes them changes what is requested.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Longest name or value of a header that a rule may have, bytes.
pub const MAX_HEADER: usize = 4096;

/// What cannot be used of a [`HeaderRule`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderFault {
    /// It names none.
    #[error("not the name of a header: letters, digits and -")]
    Name,
    /// No header can have that value.
    #[error("not the value of a header: one line, without spaces around it")]
    Value,
    /// There is nothing that could mismatch.
    #[error("needs a value: without one there is nothing that could mismatch")]
    NoValue,
    /// It must not be changed.
    #[error("a header that says what is requested and of whom; LOG is all that can be")]
    Framing,
}

impl HeaderFault {
    /// The field that is at fault.
    pub fn part(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Value => "value",
            Self::NoValue | Self::Framing => "mismatch",
        }
    }
}

impl HeaderRule {
    /// Whether it can be enforced: by the same word `control` accepts it and the proxy uses it.
    pub fn check(&self) -> Result<(), HeaderFault> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if self.name.is_empty() || self.name.len() > MAX_HEADER || !self.name.bytes().all(is_token) {
            return Err(HeaderFault::Name);
        }
        let fits = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        let is_value = |text: &str| text.len() <= MAX_HEADER && text.bytes().all(fits) && text.trim() == text;
        if !self.value.as_deref().is_none_or(is_value) {
            return Err(HeaderFault::Value);
        }
        if !matches!(self.mismatch, Mismatch::Add | Mismatch::Delete | Mismatch::Replace) {
            return Ok(());
        }
        if self.value.is_none() {
            return Err(HeaderFault::NoValue);
        }
        match FRAMING.iter().any(|name| self.name.eq_ignore_ascii_case(name)) {
            true => Err(HeaderFault::Framing),
            false => Ok(()),
        }
    }
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
    /// The proxy ends or begins the TLS, and sees what is in it.
    Inspection(Arc<TlsInspection>),
}

impl L7Demand {
    /// The HTTP rules, if it has any.
    pub fn http(&self) -> Option<&HttpRules> {
        match self {
            Self::Http(rules) => Some(rules),
            Self::ServerNames(_) => None,
            Self::Inspection(inspection) => inspection.http.as_ref(),
        }
    }

    /// The names of servers, if it has any.
    pub fn server_names(&self) -> Option<&ServerNames> {
        match self {
            Self::Http(_) => None,
            Self::ServerNames(names) => Some(names),
            Self::Inspection(inspection) => inspection.names.as_ref(),
        }
    }

    /// What the proxy does about TLS, if that is what it is.
    pub fn inspection(&self) -> Option<&Arc<TlsInspection>> {
        match self {
            Self::Http(_) | Self::ServerNames(_) => None,
            Self::Inspection(inspection) => Some(inspection),
        }
    }
}

/// What the proxy judges by, for one direction of one endpoint: TCP only. Shared by endpoints whose rules are equal. Written
/// down, what several ranges of ports have stands there once.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct L7Rules {
    /// By ports, which never overlap, first port ascending.
    pub ports: Vec<L7Ports>,
}

/// Rules of a range of ports. What holds there is shared by ranges where the same does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct L7Ports {
    /// First port.
    pub first: u16,
    /// Last port, inclusive.
    pub last: u16,
    /// What holds for whom. A peer whom several of these name may do what any of them lets him.
    pub access: Arc<[L7Access]>,
    /// Which TLS passes untouched for whom, beside that.
    pub tls: Arc<[L7Tls]>,
    /// For whom the proxy ends or begins TLS, beside that.
    pub inspected: Arc<[L7Inspected]>,
}

/// What of a range of ports, both ends inclusive, others leave: `ends` says which theirs are. They must not overlap, and come
/// first port ascending. Costs what they have in common.
pub fn left_of<T>(range: (u16, u16), others: &[T], ends: impl Fn(&T) -> (u16, u16)) -> Vec<(u16, u16)> {
    let (mut from, last) = range;
    let mut left = Vec::new();
    let before = others.partition_point(|other| ends(other).1 < from);
    for (other_first, other_last) in others.iter().skip(before).map(ends) {
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
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct L7Access {
    /// The peers; `None`: anybody.
    pub peers: Option<Arc<[Identity]>>,
    /// What they may request; `None`: anything, also what is not HTTP.
    pub http: Option<HttpRules>,
}

/// TLS that some peers may open: to servers of these names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct L7Tls {
    /// The peers; `None`: anybody.
    pub peers: Option<Arc<[Identity]>>,
    /// Names of which the client must say one.
    pub names: ServerNames,
}

/// TLS that the proxy ends or begins for some peers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct L7Inspected {
    /// The peers; `None`: anybody.
    pub peers: Option<Arc<[Identity]>>,
    /// How, and what may be requested inside.
    pub inspection: Arc<TlsInspection>,
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
    /// The Secrets that the rules name and that are there, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<TlsSecret>,
}

impl L7Endpoint {
    /// The most bytes that its rules and their peers may take, about: written down as JSON, where some bytes take six, they must
    /// fit a message of `node-api`.
    pub const MAX_SIZE: usize = 8 << 20;

    /// About how many bytes its rules and their peers take, what is shared once.
    pub fn size(&self) -> usize {
        let rules = [&self.ingress, &self.egress].into_iter().flatten().map(|rules| rules.size());
        let items = self.secrets.iter().flat_map(|secret| secret.items.0.iter());
        rules.sum::<usize>() + items.map(|(name, text)| name.len() + text.len()).sum::<usize>()
    }

    /// The same with no requests for anybody whom HTTP rules are for, no names of servers, and no TLS that the proxy ends or
    /// begins.
    pub fn closed(&self) -> Self {
        let closed = |rules: &Arc<L7Rules>| Arc::new(rules.closed());
        let (ingress, egress) = (self.ingress.as_ref().map(closed), self.egress.as_ref().map(closed));
        Self { ingress, egress, secrets: Vec::new(), ..self.clone() }
    }

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
    /// What else there is to say of what was let pass: a header that a rule with `mismatch: LOG` looks at is not as it should
    /// be, an answer is the proxy's own.
    /// Never left out when written: in packed messages what follows would be taken for it.
    #[serde(default)]
    pub note: Option<String>,
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
    use super::*;

    #[test]
    fn what_is_left_of_a_range_is_what_no_other_has() {
        let left = |range, others: &[(u16, u16)]| left_of(range, others, |other| *other);
        assert_eq!(left((80, 90), &[]), [(80, 90)]);
        assert_eq!(left((80, 90), &[(1, 79), (91, 99)]), [(80, 90)]);
        assert_eq!(left((80, 90), &[(80, 80), (84, 85), (90, 95)]), [(81, 83), (86, 89)]);
        assert_eq!(left((80, 90), &[(1, 5), (7, 9), (70, 85), (99, 99)]), [(86, 90)]);
        assert_eq!(left((80, 90), &[(1, 65_535)]), []);
        assert_eq!(left((0, 65_535), &[(1, 65_534)]), [(0, 0), (65_535, 65_535)]);
        assert_eq!(left((65_535, 65_535), &[(65_535, 65_535)]), []);
    }
}
