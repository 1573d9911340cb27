//! Filters of `observe`: text from a person, compiled once, applied to each flow.
//!
//! Within a field any of the values is enough, between fields all must hold, as in Hubble. Nothing is ignored: a value
//! that means nothing is an error that names what would be accepted.

use std::net::IpAddr;

use abi::DropReason;
use ipnet::IpNet;
use mesh::flow::{Flow, Peer, TrafficDirection, Verdict};
use mesh::labels::{LabelSet, Source};
use mesh::policy::protocol;
use node_api::FlowFilter;

/// A value that cannot be filtered by.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field} {found:?}: expected {expected}")]
pub struct FilterError {
    /// Which filter, by the name of its flag.
    pub field: &'static str,
    /// What was given.
    pub found: String,
    /// What would be accepted.
    pub expected: String,
}

/// A compiled [`FlowFilter`].
#[derive(Clone, PartialEq, Debug)]
pub struct Filter {
    pods: Vec<PodPrefix>,
    verdicts: Vec<Verdict>,
    labels: Vec<Vec<LabelMatch>>,
    prefixes: Vec<IpNet>,
    ports: Vec<u16>,
    protocols: Vec<&'static [u8]>,
    reasons: Vec<u8>,
    directions: Vec<TrafficDirection>,
    since: Option<i64>,
    until: Option<i64>,
}

#[derive(Clone, PartialEq, Debug)]
struct PodPrefix {
    namespace: String,
    name_prefix: String,
}

#[derive(Clone, PartialEq, Debug)]
struct LabelMatch {
    /// Any, if the person named none.
    source: Option<Source>,
    key: String,
    /// Any, if the person named none.
    value: Option<String>,
}

const VERDICTS: [(&str, Verdict); 3] =
    [("FORWARDED", Verdict::Forwarded), ("DROPPED", Verdict::Dropped), ("AUDIT", Verdict::Audit)];

const DIRECTIONS: [(&str, TrafficDirection); 2] =
    [("ingress", TrafficDirection::Ingress), ("egress", TrafficDirection::Egress)];

const PROTOCOLS: [(&str, &[u8]); 6] = [
    ("tcp", &[protocol::TCP]),
    ("udp", &[protocol::UDP]),
    ("sctp", &[protocol::SCTP]),
    ("icmp", &[protocol::ICMP, protocol::ICMPV6]),
    ("icmpv4", &[protocol::ICMP]),
    ("icmpv6", &[protocol::ICMPV6]),
];

impl Filter {
    /// Understands a filter, or names the first value that means nothing.
    pub fn compile(filter: &FlowFilter) -> Result<Self, FilterError> {
        Ok(Self {
            pods: filter.pods.iter().map(|text| pod(text)).collect::<Result<_, _>>()?,
            verdicts: named(&filter.verdicts, "--verdict", &VERDICTS)?,
            labels: filter.labels.iter().map(|text| labels(text)).collect::<Result<_, _>>()?,
            prefixes: filter.ips.iter().map(|text| prefix(text)).collect::<Result<_, _>>()?,
            ports: filter.ports.clone(),
            protocols: named(&filter.protocols, "--protocol", &PROTOCOLS)?,
            reasons: filter.drop_reasons.iter().map(|text| reason(text)).collect::<Result<_, _>>()?,
            directions: named(&filter.directions, "--traffic-direction", &DIRECTIONS)?,
            since: filter.since,
            until: filter.until,
        })
    }

    /// Whether the flow is one that was asked for.
    pub fn admits(&self, flow: &Flow) -> bool {
        let ends = [&flow.source, &flow.destination];
        let either = |holds: &dyn Fn(&Peer) -> bool| ends.into_iter().any(holds);
        any(&self.verdicts, |verdict| *verdict == flow.verdict)
            && any(&self.directions, |direction| *direction == flow.direction)
            && any(&self.protocols, |numbers| numbers.contains(&flow.protocol))
            && any(&self.reasons, |reason| flow.drop.as_ref().is_some_and(|drop| drop.reason == *reason))
            && any(&self.ports, |port| either(&|end| end.port == Some(*port)))
            && any(&self.prefixes, |prefix| either(&|end| contains(prefix, end.address)))
            && any(&self.pods, |pod| either(&|end| pod.admits(end)))
            && any(&self.labels, |all| either(&|end| all.iter().all(|one| one.admits(&end.labels))))
            && self.since.is_none_or(|since| flow.time >= since)
            && !self.is_over(flow)
    }

    /// Whether the flow is later than what was asked for.
    pub(crate) fn is_over(&self, flow: &Flow) -> bool {
        self.until.is_some_and(|until| flow.time > until)
    }
}

impl PodPrefix {
    fn admits(&self, end: &Peer) -> bool {
        end.workload.as_ref().is_some_and(|workload| {
            workload.namespace == self.namespace && workload.name.starts_with(&self.name_prefix)
        })
    }
}

impl LabelMatch {
    fn admits(&self, labels: &LabelSet) -> bool {
        let found = match self.source {
            Some(source) => labels.get(source, &self.key),
            None => labels.get_any(&self.key),
        };
        found.is_some_and(|found| self.value.as_deref().is_none_or(|value| value == found))
    }
}

/// An empty field matches everything.
fn any<T>(values: &[T], holds: impl FnMut(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(holds)
}

fn contains(prefix: &IpNet, address: Option<IpAddr>) -> bool {
    address.is_some_and(|address| prefix.contains(&address))
}

fn named<T: Clone>(
    texts: &[String],
    field: &'static str,
    known: &[(&str, T)],
) -> Result<Vec<T>, FilterError> {
    let find = |text: &String| {
        let found = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, value)| value.clone()).ok_or_else(|| {
            let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
            FilterError { field, found: text.clone(), expected: format!("one of {}", names.join(", ")) }
        })
    };
    texts.iter().map(find).collect()
}

/// `[namespace/]name-prefix`; without a namespace `default`, as Hubble has it. `namespace/` is the whole namespace.
fn pod(text: &str) -> Result<PodPrefix, FilterError> {
    let (namespace, name_prefix) = text.split_once('/').unwrap_or(("default", text));
    if namespace.is_empty() || name_prefix.contains('/') || text.is_empty() {
        let expected = "[namespace/]name-prefix".to_owned();
        return Err(FilterError { field: "--pod", found: text.to_owned(), expected });
    }
    Ok(PodPrefix { namespace: namespace.to_owned(), name_prefix: name_prefix.to_owned() })
}

fn labels(text: &str) -> Result<Vec<LabelMatch>, FilterError> {
    text.split(',').map(|label| label_match(label.trim()).ok_or(text)).collect::<Result<_, _>>().map_err(
        |text| {
            let expected = "[k8s:|reserved:|cidr:]key[=value], more of them after commas".to_owned();
            FilterError { field: "--label", found: text.to_owned(), expected }
        },
    )
}

fn label_match(label: &str) -> Option<LabelMatch> {
    let sources = [Source::K8s, Source::Reserved, Source::Cidr];
    let sourced = label.split_once(':').and_then(|(source, rest)| {
        sources.into_iter().find(|known| known.as_str() == source).map(|known| (Some(known), rest))
    });
    let (source, rest) = sourced.unwrap_or((None, label));
    let (key, value) = rest.split_once('=').map_or((rest, None), |(key, value)| (key, Some(value)));
    (!key.is_empty()).then(|| LabelMatch { source, key: key.to_owned(), value: value.map(str::to_owned) })
}

fn prefix(text: &str) -> Result<IpNet, FilterError> {
    let whole = text.parse::<IpAddr>().map(IpNet::from);
    whole.or_else(|_| text.parse()).map_err(|_| FilterError {
        field: "--ip",
        found: text.to_owned(),
        expected: "an address or a prefix, as 10.1.0.7, fd00::7 or 10.1.0.0/16".to_owned(),
    })
}

/// By number, by our text, or by the name of Hubble's enum (`POLICY_DENIED`).
fn reason(text: &str) -> Result<u8, FilterError> {
    let wanted = text.replace(['_', '-'], " ");
    let by_text = DropReason::ALL.iter().find(|reason| reason.text().eq_ignore_ascii_case(&wanted));
    let by_number = || text.parse().ok().and_then(DropReason::from_number);
    by_text.copied().or_else(by_number).map(|reason| reason as u8).ok_or_else(|| {
        let known: Vec<_> =
            DropReason::ALL.iter().map(|reason| format!("{:?} ({})", reason.text(), *reason as u8)).collect();
        FilterError {
            field: "--drop-reason",
            found: text.to_owned(),
            expected: format!("one of {}", known.join(", ")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compact::tests::{dropped, forwarded};

    fn admits(set: impl FnOnce(&mut FlowFilter)) -> bool {
        let mut filter = FlowFilter::default();
        set(&mut filter);
        Filter::compile(&filter).unwrap().admits(&dropped())
    }

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|&value| value.to_owned()).collect()
    }

    #[test]
    fn an_empty_filter_admits_everything() {
        assert!(admits(|_| {}));
    }

    #[test]
    fn each_field_looks_at_its_part_of_the_flow() {
        type Case = (fn(&mut FlowFilter, Vec<String>), &'static [&'static str], &'static [&'static str]);
        let cases: [Case; 7] = [
            (
                |f, v| f.pods = v,
                &["xwing", "deathst", "default/", "default/x"],
                &["tie", "kube-system/xwing"],
            ),
            (|f, v| f.verdicts = v, &["DROPPED", "dropped"], &["FORWARDED"]),
            (
                |f, v| f.labels = v,
                &["org=alliance", "k8s:org=empire", "class=deathstar,org=empire", "org"],
                &["org=rebels", "reserved:org=empire", "org=alliance,class=deathstar"],
            ),
            (|f, v| f.ips = v, &["10.1.0.3", "10.1.0.0/16"], &["10.2.0.0/16", "fd00::1"]),
            (|f, v| f.protocols = v, &["tcp", "TCP"], &["udp", "icmp"]),
            (|f, v| f.drop_reasons = v, &["Policy denied", "POLICY_DENIED", "133"], &["134", "TTL exceeded"]),
            (|f, v| f.directions = v, &["ingress"], &["egress"]),
        ];
        for (set, matching, others) in cases {
            for text in matching {
                assert!(admits(|filter| set(filter, texts(&[text]))), "{text}");
            }
            for text in others {
                assert!(!admits(|filter| set(filter, texts(&[text]))), "{text}");
            }
            assert!(
                admits(|filter| set(filter, texts(&[others[0], matching[0]]))),
                "any of a field is enough"
            );
        }
        assert!(admits(|f| f.ports = vec![80]) && admits(|f| f.ports = vec![49_446, 1]));
        assert!(!admits(|f| f.ports = vec![81]));
    }

    #[test]
    fn all_fields_must_hold() {
        assert!(!admits(|f| {
            f.pods = texts(&["xwing"]);
            f.ports = vec![81];
        }));
    }

    #[test]
    fn a_flow_without_reason_has_none_of_the_reasons() {
        let filter = FlowFilter { drop_reasons: texts(&["133"]), ..FlowFilter::default() };
        assert!(!Filter::compile(&filter).unwrap().admits(&forwarded()));
    }

    #[test]
    fn time_is_inclusive_at_both_ends() {
        let time = dropped().time;
        assert!(admits(|f| (f.since, f.until) = (Some(time), Some(time))));
        assert!(!admits(|f| f.since = Some(time + 1)));
        assert!(!admits(|f| f.until = Some(time - 1)));
    }

    #[test]
    fn an_error_names_the_value_and_what_is_accepted() {
        let cases: [(FlowFilter, &str); 6] = [
            (
                FlowFilter { verdicts: texts(&["DROPED"]), ..FlowFilter::default() },
                r#"--verdict "DROPED": expected one of FORWARDED, DROPPED, AUDIT"#,
            ),
            (
                FlowFilter { protocols: texts(&["http"]), ..FlowFilter::default() },
                r#"--protocol "http": expected one of tcp, udp, sctp, icmp, icmpv4, icmpv6"#,
            ),
            (
                FlowFilter { directions: texts(&["in"]), ..FlowFilter::default() },
                r#"--traffic-direction "in": expected one of ingress, egress"#,
            ),
            (
                FlowFilter { ips: texts(&["10.0.0"]), ..FlowFilter::default() },
                r#"--ip "10.0.0": expected an address or a prefix, as 10.1.0.7, fd00::7 or 10.1.0.0/16"#,
            ),
            (
                FlowFilter { labels: texts(&["=x"]), ..FlowFilter::default() },
                r#"--label "=x": expected [k8s:|reserved:|cidr:]key[=value], more of them after commas"#,
            ),
            (
                FlowFilter { pods: texts(&["a/b/c"]), ..FlowFilter::default() },
                r#"--pod "a/b/c": expected [namespace/]name-prefix"#,
            ),
        ];
        for (filter, expected) in cases {
            assert_eq!(Filter::compile(&filter).unwrap_err().to_string(), expected);
        }
        let unknown = FlowFilter { drop_reasons: texts(&["bad luck"]), ..FlowFilter::default() };
        let message = Filter::compile(&unknown).unwrap_err().to_string();
        assert!(message.contains(r#""Policy denied" (133)"#), "{message}");
    }
}
