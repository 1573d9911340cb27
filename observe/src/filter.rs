//! Filters of `observe`: text from a person, compiled once, applied to each flow.
//!
//! Within a field any of the values is enough, between fields all must hold, as in Hubble. Nothing is ignored: a value
//! that means nothing is an error that names what would be accepted.

mod http;
mod peer;
#[cfg(test)]
mod tests;

use abi::DropReason;
use mesh::flow::{Flow, TrafficDirection, Verdict};
use mesh::l7::L7Flow;
use mesh::policy::protocol;
use node_api::{FlowFilter, ObserveQuery};

use self::http::HttpMatch;
use self::peer::PeerMatch;

/// A value that cannot be filtered by.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field} {found:?}: expected {expected}")]
pub struct FilterError {
    /// Which filter, by the name of its flag.
    pub field: String,
    /// What was given.
    pub found: String,
    /// What would be accepted.
    pub expected: String,
}

/// The filters and times of an [`ObserveQuery`], compiled.
#[derive(Clone, PartialEq, Debug)]
pub struct Filter {
    keep: FlowMatch,
    except: Vec<FlowMatch>,
    since: Option<i64>,
    until: Option<i64>,
}

/// A compiled [`FlowFilter`].
#[derive(Clone, PartialEq, Debug)]
struct FlowMatch {
    either: PeerMatch,
    source: PeerMatch,
    destination: PeerMatch,
    verdicts: Vec<Verdict>,
    protocols: Vec<Protocol>,
    tcp_flags: Vec<u8>,
    reasons: Vec<u8>,
    directions: Vec<TrafficDirection>,
    http: HttpMatch,
}

/// Bytes of all filters together, as a request carries them.
const LONGEST: usize = 64 * 1024;

/// Names of verdicts.
pub const VERDICTS: [(&str, Verdict); 3] =
    [("FORWARDED", Verdict::Forwarded), ("DROPPED", Verdict::Dropped), ("AUDIT", Verdict::Audit)];

/// Names of directions.
pub const DIRECTIONS: [(&str, TrafficDirection); 2] =
    [("ingress", TrafficDirection::Ingress), ("egress", TrafficDirection::Egress)];

/// What a protocol's name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// IP protocols of these numbers.
    Ip(&'static [u8]),
    /// Requests and answers that the L7 proxy has seen.
    Http,
    /// TLS connections that it has judged.
    Tls,
}

/// Names of protocols.
pub const PROTOCOLS: [(&str, Protocol); 8] = [
    ("tcp", Protocol::Ip(&[protocol::TCP])),
    ("udp", Protocol::Ip(&[protocol::UDP])),
    ("sctp", Protocol::Ip(&[protocol::SCTP])),
    ("icmp", Protocol::Ip(&[protocol::ICMP, protocol::ICMPV6])),
    ("icmpv4", Protocol::Ip(&[protocol::ICMP])),
    ("icmpv6", Protocol::Ip(&[protocol::ICMPV6])),
    ("http", Protocol::Http),
    ("tls", Protocol::Tls),
];

/// Names of TCP flags and their bits, in the order in which Hubble prints them.
pub const TCP_FLAGS: [(&str, u8); 8] =
    [("SYN", 2), ("ACK", 16), ("RST", 4), ("FIN", 1), ("PSH", 8), ("URG", 32), ("ECE", 64), ("CWR", 128)];

impl Filter {
    /// Understands a query's filters, or names the first value that means nothing.
    pub fn compile(query: &ObserveQuery) -> Result<Self, FilterError> {
        // Each flow is held against all of it.
        let size = serde_json::to_vec(query).map_or(usize::MAX, |bytes| bytes.len());
        if size > LONGEST {
            let (found, expected) = (format!("{size} bytes"), format!("at most {LONGEST}"));
            return Err(FilterError { field: "filters".to_owned(), found, expected });
        }
        Ok(Self {
            keep: FlowMatch::compile(&query.filter)?,
            except: query.except.iter().map(FlowMatch::compile).collect::<Result<_, _>>()?,
            since: query.since,
            until: query.until,
        })
    }

    /// Whether the flow is one that was asked for.
    pub fn admits(&self, flow: &Flow) -> bool {
        self.keep.matches(flow)
            && !self.except.iter().any(|except| except.matches(flow))
            && self.since.is_none_or(|since| flow.time >= since)
            && !self.is_over(flow)
    }

    /// Whether the flow is later than what was asked for.
    pub(crate) fn is_over(&self, flow: &Flow) -> bool {
        self.until.is_some_and(|until| flow.time > until)
    }
}

impl FlowMatch {
    fn compile(filter: &FlowFilter) -> Result<Self, FilterError> {
        Ok(Self {
            either: PeerMatch::compile(&filter.either, "")?,
            source: PeerMatch::compile(&filter.source, "from-")?,
            destination: PeerMatch::compile(&filter.destination, "to-")?,
            verdicts: named(&filter.verdicts, "--verdict", &VERDICTS)?,
            protocols: named(&filter.protocols, "--protocol", &PROTOCOLS)?,
            tcp_flags: filter.tcp_flags.iter().map(|text| tcp_flags(text)).collect::<Result<_, _>>()?,
            reasons: filter.drop_reasons.iter().map(|text| reason(text)).collect::<Result<_, _>>()?,
            directions: named(&filter.directions, "--traffic-direction", &DIRECTIONS)?,
            http: HttpMatch::compile(filter)?,
        })
    }

    fn matches(&self, flow: &Flow) -> bool {
        let (source, destination) = (&flow.source, &flow.destination);
        any(&self.verdicts, |verdict| *verdict == flow.verdict)
            && any(&self.directions, |direction| *direction == flow.direction)
            && any(&self.protocols, |protocol| match protocol {
                Protocol::Ip(numbers) => numbers.contains(&flow.protocol),
                Protocol::Http => matches!(flow.l7, Some(L7Flow::Http(_))),
                Protocol::Tls => matches!(flow.l7, Some(L7Flow::Tls(_))),
            })
            && any(&self.tcp_flags, |wanted| {
                flow.protocol == protocol::TCP && flow.tcp_flags & wanted == *wanted
            })
            && any(&self.reasons, |reason| flow.drop.as_ref().is_some_and(|drop| drop.reason == *reason))
            && self.http.matches(flow)
            && self.source.matches(&[source])
            && self.destination.matches(&[destination])
            && self.either.matches(&[source, destination])
    }
}

/// An empty field matches everything.
fn any<T>(values: &[T], holds: impl FnMut(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(holds)
}

fn named<T: Clone>(texts: &[String], field: &str, known: &[(&str, T)]) -> Result<Vec<T>, FilterError> {
    texts.iter().map(|text| name(text, field, text, known)).collect()
}

/// What one name stands for; an error shows all of what was `found` at the flag.
fn name<T: Clone>(text: &str, field: &str, found: &str, known: &[(&str, T)]) -> Result<T, FilterError> {
    let value =
        known.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, value)| value.clone());
    value.ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        let expected = format!("one of {}", names.join(", "));
        FilterError { field: field.to_owned(), found: found.to_owned(), expected }
    })
}

/// The bits of flags that stand after commas.
fn tcp_flags(text: &str) -> Result<u8, FilterError> {
    let flag = |flag: &str| name(flag.trim(), "--tcp-flags", text, &TCP_FLAGS);
    text.split(',').try_fold(0, |bits, one| Ok(bits | flag(one)?))
}

/// The name that Hubble's enum has for a reason, or would have: `POLICY_DENIED`.
pub fn reason_name(reason: DropReason) -> String {
    match reason {
        // Where name and text differ in Hubble.
        DropReason::InvalidPacket => return "INVALID_PACKET_DROPPED".to_owned(),
        DropReason::PolicyDeny => return "POLICY_DENY".to_owned(),
        _ => {}
    }
    let upper = reason.text().to_ascii_uppercase();
    let words: Vec<_> = upper
        .split(|character: char| !character.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    words.join("_")
}

/// By number, by our text, or by the name of Hubble's enum (`POLICY_DENIED`).
fn reason(text: &str) -> Result<u8, FilterError> {
    let fits = |reason: &&DropReason| {
        reason.text().eq_ignore_ascii_case(text) || reason_name(**reason).eq_ignore_ascii_case(text)
    };
    let by_text = DropReason::ALL.iter().find(fits);
    let by_number = || text.parse().ok().and_then(DropReason::from_number);
    by_text.copied().or_else(by_number).map(|reason| reason as u8).ok_or_else(|| {
        let known: Vec<_> =
            DropReason::ALL.iter().map(|reason| format!("{:?} ({})", reason.text(), *reason as u8)).collect();
        FilterError {
            field: "--drop-reason".to_owned(),
            found: text.to_owned(),
            expected: format!("one of {}", known.join(", ")),
        }
    })
}
