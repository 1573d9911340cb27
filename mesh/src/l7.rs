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

/// What the proxy judges by, for one direction of one endpoint: TCP only. Shared by endpoints whose rules are equal. Written
/// down, what several ranges of ports have stands there once.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Grouped", into = "Grouped")]
pub struct L7Rules {
    /// By ports, which never overlap, first port ascending.
    pub ports: Vec<L7Ports>,
}

/// [`L7Rules`] as they are written down.
#[derive(Serialize, Deserialize)]
struct Grouped {
    ports: Vec<L7Ports>,
    /// Ranges, both ends inclusive, that have what the one of `ports` of that place has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    also: Vec<(usize, u16, u16)>,
}

impl From<L7Rules> for Grouped {
    fn from(rules: L7Rules) -> Self {
        let (mut ports, mut also): (Vec<L7Ports>, _) = (Vec::new(), Vec::new());
        for range in rules.ports {
            // Lists that are shared are found equal at one look.
            let is_alike =
                |other: &L7Ports| *other == L7Ports { first: other.first, last: other.last, ..range.clone() };
            match ports.iter().position(is_alike) {
                Some(place) => also.push((place, range.first, range.last)),
                None => ports.push(range),
            }
        }
        Self { ports, also }
    }
}

impl From<Grouped> for L7Rules {
    fn from(Grouped { mut ports, also }: Grouped) -> Self {
        let alike = also.into_iter().filter_map(|(place, first, last)| {
            let range = ports.get(place)?.clone();
            Some(L7Ports { first, last, ..range })
        });
        let alike: Vec<L7Ports> = alike.collect();
        ports.extend(alike);
        ports.sort_by_key(|ports| ports.first);
        Self { ports }
    }
}

impl L7Rules {
    /// About how many bytes its rules take, lists that are shared once.
    fn size(&self) -> usize {
        let lists =
            self.ports.iter().flat_map(|ports| &ports.access).filter_map(|access| access.http.as_ref());
        let lists: BTreeMap<*const HttpRule, &HttpRules> = lists.map(|list| (list.as_ptr(), list)).collect();
        let http: usize = lists.values().flat_map(|list| list.iter()).map(HttpRule::size).sum();
        let names = self.ports.iter().flat_map(|ports| &ports.tls).map(|tls| &tls.names);
        let names: BTreeMap<*const ServerName, &ServerNames> =
            names.map(|list| (list.as_ptr(), list)).collect();
        http + names.values().flat_map(|list| list.iter()).map(|name| 32 + name.as_str().len()).sum::<usize>()
    }
}

impl HttpRule {
    fn size(&self) -> usize {
        let parts = [&self.path, &self.method, &self.host].into_iter().flatten().map(|part| part.0.len());
        let headers = self.headers.iter();
        let headers = headers.map(|it| 64 + it.name.len() + it.value.as_ref().map_or(0, String::len));
        64 + parts.sum::<usize>() + headers.sum::<usize>()
    }
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
    /// The most bytes that its HTTP rules may take, about: written down as JSON, where some bytes take six, they must fit a
    /// message of `node-api`.
    pub const MAX_SIZE: usize = 8 << 20;

    /// About how many bytes its HTTP rules take.
    pub fn size(&self) -> usize {
        [&self.ingress, &self.egress].into_iter().flatten().map(|rules| rules.size()).sum()
    }

    /// The same with no requests for anybody whom HTTP rules are for, and no names of servers.
    pub fn closed(&self) -> Self {
        let closed = |rules: &Arc<L7Rules>| {
            let mut rules = L7Rules::clone(rules);
            for http in rules.ports.iter_mut().flat_map(|ports| &mut ports.access) {
                http.http = http.http.as_ref().map(|_| Arc::default());
            }
            for tls in rules.ports.iter_mut().flat_map(|ports| &mut ports.tls) {
                tls.names = Arc::default();
            }
            Arc::new(rules)
        };
        let (ingress, egress) = (self.ingress.as_ref().map(closed), self.egress.as_ref().map(closed));
        Self { ingress, egress, ..self.clone() }
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

    fn rule(path: &str) -> HttpRule {
        HttpRule { path: Some(Expression(path.to_owned())), ..HttpRule::default() }
    }

    #[test]
    fn lists_that_ranges_share_are_counted_once_and_can_be_emptied() {
        let list: HttpRules = [rule(&"a".repeat(4000))].into();
        let ports = |first| {
            let access = vec![
                L7Access { peers: None, http: Some(Arc::clone(&list)) },
                L7Access { peers: None, http: None },
            ];
            L7Ports { first, last: first, access, tls: Vec::new() }
        };
        let rules = Arc::new(L7Rules { ports: (1..100).map(ports).collect() });
        assert!((4000..5000).contains(&rules.size()), "{}", rules.size());
        let endpoint = L7Endpoint {
            id: EndpointId::new(1).unwrap(),
            instance: 1,
            workload: "default/w".parse().unwrap(),
            ipv4: Ipv4Addr::LOCALHOST,
            ipv6: Ipv6Addr::LOCALHOST,
            identity: Identity::new(256).unwrap(),
            ingress: Some(Arc::clone(&rules)),
            egress: None,
            audit: false,
        };
        let closed = endpoint.closed();
        assert_eq!(closed.size(), 0);
        let closed = closed.ingress.unwrap();
        assert_eq!(closed.ports.len(), 99);
        let access = closed.ports.iter().flat_map(|ports| &ports.access);
        assert!(access.clone().all(|access| access.http.as_ref().is_none_or(|rules| rules.is_empty())));
        assert_eq!(access.filter(|access| access.http.is_none()).count(), 99, "who needs no rules has none");
    }

    #[test]
    fn what_ranges_share_is_written_down_once() {
        let ports = |first, path: &str| {
            let access = vec![L7Access { peers: None, http: Some([rule(path)].into()) }];
            L7Ports { first, last: first + 1, access, tls: Vec::new() }
        };
        let rules =
            L7Rules { ports: vec![ports(80, "/a"), ports(90, "/b"), ports(100, "/a"), ports(443, "/a")] };
        let grouped = Grouped::from(rules.clone());
        assert_eq!(grouped.ports, rules.ports[..2]);
        assert_eq!(grouped.also, [(0, 100, 101), (0, 443, 444)]);
        let back = L7Rules::from(grouped);
        assert_eq!(back, rules);
        let http = |at: usize| back.ports[at].access[0].http.clone().unwrap();
        assert!(Arc::ptr_eq(&http(0), &http(3)), "and is shared again");
    }

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
