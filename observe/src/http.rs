//! What requests come to: counts by workload pair, method and code, how long answers take to begin, how large bodies are.
//! And how many TLS connections pass or do not by the name of their server; the names are no labels, for clients choose them.
//!
//! Requests the proxy counts, and tells what has been added: however many flows are lost, no count is. Names of workloads are labels
//! here, so their number is bounded: pairs beyond the first few hundred are counted together, and of a pair the kinds beyond
//! the first few dozen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use mesh::exchange::{BYTES, Distribution, Kind, PairCounts, SECONDS};
use mesh::flow::{Flow, Peer, Verdict};
use mesh::l7::L7Flow;
use node_api::proxy::PerBudget;
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};

/// Pairs that have series of their own.
const MOST_PAIRS: usize = 256;
/// Reasons for refusals that have series of their own.
const MOST_REASONS: usize = 32;
/// What all the others are called, pairs at both ends.
const OTHER: &str = "other";

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, EncodeLabelSet)]
struct Pair {
    source: String,
    destination: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Request {
    source: String,
    destination: String,
    method: &'static str,
    code: u16,
    verdict: &'static str,
    response_flags: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Budget {
    budget: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Tls {
    source: String,
    destination: String,
    verdict: &'static str,
}

/// A histogram to which many values are added at once.
#[derive(Clone, Debug)]
struct Sums(Arc<Mutex<Distribution>>, &'static [f64]);

impl TypedMetric for Sums {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Sums {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let sums = self.0.lock();
        let bounds = self.1.iter().copied().chain([f64::INFINITY]);
        let counts = sums.buckets.iter().copied().chain(std::iter::repeat(0));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        encoder.encode_histogram::<NoLabelSet>(sums.sum, sums.count(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

type Histograms = Family<Pair, Sums, fn() -> Sums>;

/// Counts of requests; a clone counts into the same series.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    requests: Family<Request, Counter>,
    tls: Family<Tls, Counter>,
    refused: Family<Budget, Counter>,
    untold: Family<Reason, Counter>,
    /// Reasons that have been told: the proxy's words, of which one that was taken over could make up any number.
    reasons: Arc<Mutex<BTreeSet<String>>>,
    latency: Histograms,
    received: Histograms,
    sent: Histograms,
    /// Pairs with series of their own, and the kinds that each has.
    pairs: Arc<Mutex<BTreeMap<Pair, Vec<Kind>>>>,
}

impl HttpMetrics {
    /// Registers `ferromesh_http_requests_total{source,destination,method,code,verdict,response_flags}`,
    /// `ferromesh_http_request_duration_seconds{source,destination}`, `ferromesh_http_request_size_bytes` and
    /// `ferromesh_http_response_size_bytes` likewise; `ferromesh_tls_connections_total{source,destination,verdict}`,
    /// `ferromesh_l7_budget_refused_total{budget}`, and `ferromesh_l7_refused_total{reason}`.
    pub fn register(registry: &mut Registry) -> Self {
        let seconds: fn() -> Sums = || Sums(Arc::default(), &SECONDS);
        let bytes: fn() -> Sums = || Sums(Arc::default(), &BYTES);
        let metrics = Self {
            requests: Family::default(),
            tls: Family::default(),
            refused: Family::default(),
            untold: Family::default(),
            reasons: Arc::default(),
            latency: Family::new_with_constructor(seconds),
            received: Family::new_with_constructor(bytes),
            sent: Family::new_with_constructor(bytes),
            pairs: Arc::default(),
        };
        registry.register(
            "http_requests",
            "Requests, by workloads, method, code of the answer and what became of them",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "http_request_duration",
            "From the first byte of a request to the first one of its answer",
            Unit::Seconds,
            metrics.latency.clone(),
        );
        registry.register_with_unit(
            "http_request_size",
            "Bodies of requests",
            Unit::Bytes,
            metrics.received.clone(),
        );
        registry.register_with_unit(
            "http_response_size",
            "Bodies of answers",
            Unit::Bytes,
            metrics.sent.clone(),
        );
        registry.register(
            "tls_connections",
            "TLS connections judged by the name of their server, and those ended because rules have changed",
            metrics.tls.clone(),
        );
        registry.register(
            "l7_budget_refused",
            "How often a workload was refused more than its part of what the L7 proxy has",
            metrics.refused.clone(),
        );
        registry.register(
            "l7_refused",
            "What the L7 proxy has refused that no rules are about, so that there is no flow of it",
            metrics.untold.clone(),
        );
        metrics.refuse(PerBudget::default());
        metrics
    }

    /// Adds how often something was refused of which there is no flow, by reason; `other` once there are [`MOST_REASONS`].
    pub fn refuse_untold(&self, untold: BTreeMap<String, u64>) {
        let mut reasons = self.reasons.lock();
        for (reason, count) in untold {
            let is_known =
                reasons.contains(&reason) || reasons.len() < MOST_REASONS && reasons.insert(reason.clone());
            let reason = if is_known { reason } else { OTHER.to_owned() };
            self.untold.get_or_create(&Reason { reason }).inc_by(count);
        }
    }

    /// Adds how often workloads were refused more of something.
    pub fn refuse(&self, refused: PerBudget<u64>) {
        for (budget, count) in refused.named() {
            self.refused.get_or_create(&Budget { budget }).inc_by(*count);
        }
    }

    /// Counts a flow, if it is one of TLS.
    pub fn count(&self, flow: &Flow) {
        if let Some(L7Flow::Tls(_)) = &flow.l7 {
            let mut pairs = self.pairs.lock();
            let Pair { source, destination } = apart(&mut pairs, Some((&flow.source, &flow.destination)));
            self.tls.get_or_create(&Tls { source, destination, verdict: verdict(flow.verdict) }).inc();
        }
    }

    /// Adds what has happened between two ends; `None`: between many.
    pub fn add(&self, ends: Option<(&Peer, &Peer)>, counts: &PairCounts) {
        let mut pairs = self.pairs.lock();
        let pair = apart(&mut pairs, ends);
        let kinds = pairs.entry(pair.clone()).or_default();
        for (kind, count) in &counts.exchanges {
            let has_room = kinds.contains(kind) || kinds.len() < PairCounts::MOST_KINDS;
            let kind = if has_room { *kind } else { Kind { method: None, code: 0, ..*kind } };
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
            self.requests.get_or_create(&request(&pair, &kind)).inc_by(*count);
        }
        for (family, more) in
            [(&self.latency, &counts.latency), (&self.received, &counts.received), (&self.sent, &counts.sent)]
        {
            family.get_or_create(&pair).0.lock().add(more);
        }
    }
}

/// How a pair is called, if there is room to tell it apart.
fn apart(pairs: &mut BTreeMap<Pair, Vec<Kind>>, ends: Option<(&Peer, &Peer)>) -> Pair {
    let pair =
        ends.map(|(source, destination)| Pair { source: name(source), destination: name(destination) });
    let has_room = |pair: &Pair| pairs.contains_key(pair) || pairs.len() < MOST_PAIRS;
    let other = || Pair { source: OTHER.to_owned(), destination: OTHER.to_owned() };
    let pair = pair.filter(has_room).unwrap_or_else(other);
    pairs.entry(pair.clone()).or_default();
    pair
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forwarded => "FORWARDED",
        Verdict::Dropped => "DROPPED",
        Verdict::Audit => "AUDIT",
    }
}

fn request(pair: &Pair, kind: &Kind) -> Request {
    Request {
        source: pair.source.clone(),
        destination: pair.destination.clone(),
        method: kind.method(),
        code: kind.code,
        verdict: verdict(kind.verdict),
        response_flags: kind.flag.map_or("-", |flag| flag.short()),
    }
}

/// The workload; of others the reserved identity alone, for addresses are without number.
fn name(peer: &Peer) -> String {
    let reserved = || peer.identity.filter(|identity| identity.reserved_labels().is_some());
    let workload = peer.workload.as_ref().map(ToString::to_string);
    workload
        .or_else(|| reserved().map(|identity| identity.to_string()))
        .unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use mesh::exchange::Flag;

    use super::*;
    use crate::compact::tests::{hello, request as flow};
    use crate::metrics::registry;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    fn counts(code: u16, count: u64) -> PairCounts {
        let mut counts = PairCounts::default();
        let (verdict, flag) = match code {
            503 => (Verdict::Forwarded, Some(Flag::Uf)),
            _ => (Verdict::Dropped, None),
        };
        counts.count(Kind { method: Some(3), code, verdict, flag }, count);
        for _ in 0..count {
            counts.latency.observe(0.002, &SECONDS);
            counts.received.observe(0.0, &BYTES);
            counts.sent.observe(15.0, &BYTES);
        }
        counts
    }

    #[test]
    fn what_is_told_adds_up_by_workloads_method_and_code() {
        let mut registry = registry("0.1.0", "abc", 1);
        let metrics = HttpMetrics::register(&mut registry);
        let flow = flow();
        let ends = Some((&flow.source, &flow.destination));
        metrics.add(ends, &counts(403, 2));
        metrics.add(ends, &counts(403, 3));
        metrics.add(ends, &counts(503, 1));
        metrics.add(None, &counts(403, 1));
        metrics.count(&hello(Some("a.example")));
        metrics.count(&hello(None));
        metrics.count(&flow);
        metrics.refuse([0, 0, 2, 0].into());
        metrics.refuse([0, 0, 1, 0].into());
        metrics.refuse_untold([("no rules for it".to_owned(), 2)].into());
        metrics.refuse_untold([("no rules for it".to_owned(), 1)].into());
        metrics.refuse_untold((0..100).map(|made_up| (format!("made up {made_up:03}"), 1)).collect());
        let text = text(&registry);
        let ends = r#"source="default/tiefighter",destination="default/deathstar""#;
        for line in [
            format!(r#"ferromesh_http_requests_total{{{ends},method="PUT",code="403",verdict="DROPPED",response_flags="-"}} 5"#),
            format!(r#"ferromesh_http_requests_total{{{ends},method="PUT",code="503",verdict="FORWARDED",response_flags="UF"}} 1"#),
            r#"ferromesh_http_requests_total{source="other",destination="other",method="PUT",code="403",verdict="DROPPED",response_flags="-"} 1"#.to_owned(),
            format!(r#"ferromesh_tls_connections_total{{{ends},verdict="DROPPED"}} 2"#),
            r#"ferromesh_l7_budget_refused_total{budget="streams"} 3"#.to_owned(),
            r#"ferromesh_l7_budget_refused_total{budget="heads"} 0"#.to_owned(),
            r#"ferromesh_l7_refused_total{reason="no rules for it"} 3"#.to_owned(),
            r#"ferromesh_l7_refused_total{reason="made up 030"} 1"#.to_owned(),
            r#"ferromesh_l7_refused_total{reason="other"} 69"#.to_owned(),
            format!(r#"ferromesh_http_request_duration_seconds_count{{{ends}}} 6"#),
            format!(r#"ferromesh_http_request_duration_seconds_bucket{{le="0.001",{ends}}} 0"#),
            format!(r#"ferromesh_http_request_duration_seconds_bucket{{le="0.0025",{ends}}} 6"#),
            format!(r#"ferromesh_http_request_duration_seconds_bucket{{le="+Inf",{ends}}} 6"#),
            format!(r#"ferromesh_http_request_size_bytes_bucket{{le="0.0",{ends}}} 6"#),
            format!(r#"ferromesh_http_response_size_bytes_sum{{{ends}}} 90.0"#),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
        }
    }

    #[test]
    fn pairs_and_codes_without_number_are_counted_together() {
        let mut registry = registry("0.1.0", "abc", 1);
        let metrics = HttpMetrics::register(&mut registry);
        for number in 0..2 * MOST_PAIRS {
            let mut flow = flow();
            flow.source.workload = Some(format!("default/ship-{number}").parse().unwrap());
            metrics.add(Some((&flow.source, &flow.destination)), &counts(403, 1));
        }
        let mut flow = flow();
        flow.source.workload = Some("default/ship-0".parse().unwrap());
        for code in 100..600 {
            metrics.add(Some((&flow.source, &flow.destination)), &counts(code, 1));
        }
        let text = text(&registry);
        let series: Vec<_> =
            text.lines().filter(|line| line.starts_with("ferromesh_http_requests_total{")).collect();
        // Kinds of the rest: those that are apart, and without a code one for each verdict and flag.
        assert_eq!(series.len(), MOST_PAIRS + 1 + PairCounts::MOST_KINDS - 1 + 2);
        let sum: u64 = series.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
        assert_eq!(sum, 2 * MOST_PAIRS as u64 + 500);
    }
}
