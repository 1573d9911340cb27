//! What requests come to: counts by workload pair, method and code, and how long answers take to begin. And how many TLS
//! connections pass or do not by the name of their server; the names are no labels, for clients choose them.
//!
//! Names of workloads are labels here, so their number is bounded: pairs beyond the first few hundred are counted together.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh::flow::{Flow, Peer, Verdict};
use mesh::l7::{HttpKind, L7Flow};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Pairs that have series of their own.
const MOST_PAIRS: usize = 256;
/// What all the others are called, at both ends.
const OTHER: &str = "other";
/// Methods that are told apart.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"];

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
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Tls {
    source: String,
    destination: String,
    verdict: &'static str,
}

/// Counts of requests; a clone counts into the same series.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    requests: Family<Request, Counter>,
    tls: Family<Tls, Counter>,
    latency: Family<Pair, Histogram, fn() -> Histogram>,
    pairs: Arc<Mutex<BTreeSet<Pair>>>,
}

impl HttpMetrics {
    /// Registers `ferromesh_http_requests_total{source,destination,method,code,verdict}`,
    /// `ferromesh_http_request_duration_seconds{source,destination}` and
    /// `ferromesh_tls_connections_total{source,destination,verdict}`.
    pub fn register(registry: &mut Registry) -> Self {
        let histogram: fn() -> Histogram = || {
            Histogram::new([
                0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
            ])
        };
        let (requests, latency) = (Family::default(), Family::new_with_constructor(histogram));
        registry.register(
            "http_requests",
            "Requests that were answered, by workloads, method and code of the answer",
            requests.clone(),
        );
        registry.register_with_unit(
            "http_request_duration",
            "From the first byte of a request to the first one of its answer",
            Unit::Seconds,
            latency.clone(),
        );
        let tls = Family::default();
        registry.register(
            "tls_connections",
            "TLS connections judged by the name of their server, and those ended because rules have changed",
            tls.clone(),
        );
        Self { requests, tls, latency, pairs: Arc::default() }
    }

    /// Counts one flow: by the answer, for that says how it went.
    pub fn count(&self, flow: &Flow) {
        if let Some(L7Flow::Tls(_)) = &flow.l7 {
            let Pair { source, destination } = self.pair(&flow.source, &flow.destination);
            self.tls.get_or_create(&Tls { source, destination, verdict: verdict(flow) }).inc();
        }
        let http = flow.l7.as_ref().and_then(L7Flow::http);
        let Some(http) = http.filter(|http| http.kind == HttpKind::Response) else { return };
        // The packet of an answer runs from the server to the client.
        let Pair { source, destination } = self.pair(&flow.destination, &flow.source);
        if let Some(latency) = http.latency {
            let pair = Pair { source: source.clone(), destination: destination.clone() };
            self.latency.get_or_create(&pair).observe(latency as f64 / 1e9);
        }
        let method = METHODS.into_iter().find(|known| *known == http.method).unwrap_or(OTHER);
        // The servers choose it: what is no code is none.
        let code = http.code.filter(|code| (100..600).contains(code)).unwrap_or(0);
        let verdict = verdict(flow);
        self.requests.get_or_create(&Request { source, destination, method, code, verdict }).inc();
    }

    fn pair(&self, source: &Peer, destination: &Peer) -> Pair {
        let pair = Pair { source: name(source), destination: name(destination) };
        let mut pairs = self.pairs.lock();
        if pairs.contains(&pair) || pairs.len() < MOST_PAIRS {
            pairs.insert(pair.clone());
            return pair;
        }
        Pair { source: OTHER.to_owned(), destination: OTHER.to_owned() }
    }
}

fn verdict(flow: &Flow) -> &'static str {
    match flow.verdict {
        Verdict::Forwarded => "FORWARDED",
        Verdict::Dropped => "DROPPED",
        Verdict::Audit => "AUDIT",
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
    use super::*;
    use mesh::l7::HttpFlow;

    use crate::compact::tests::{hello, request, response};
    use crate::metrics::registry;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn answers_are_counted_by_workloads_method_and_code() {
        let mut registry = registry("0.1.0", "abc", 1);
        let metrics = HttpMetrics::register(&mut registry);
        metrics.count(&request());
        metrics.count(&response());
        let mut odd = response();
        odd.l7 = odd
            .l7
            .map(|l7| L7Flow::Http(HttpFlow { method: "BREW".to_owned(), ..l7.http().unwrap().clone() }));
        metrics.count(&odd);
        metrics.count(&hello(Some("a.example")));
        metrics.count(&hello(None));
        let text = text(&registry);
        for line in [
            r#"ferromesh_http_requests_total{source="default/tiefighter",destination="default/deathstar",method="PUT",code="403",verdict="FORWARDED"} 1"#,
            r#"ferromesh_http_requests_total{source="default/tiefighter",destination="default/deathstar",method="other",code="403",verdict="FORWARDED"} 1"#,
            r#"ferromesh_tls_connections_total{source="default/tiefighter",destination="default/deathstar",verdict="DROPPED"} 2"#,
            r#"ferromesh_http_request_duration_seconds_count{source="default/tiefighter",destination="default/deathstar"} 2"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
        }
    }

    #[test]
    fn pairs_without_number_are_counted_together() {
        let mut registry = registry("0.1.0", "abc", 1);
        let metrics = HttpMetrics::register(&mut registry);
        for number in 0..2 * MOST_PAIRS {
            let mut flow = response();
            flow.destination.workload = Some(format!("default/ship-{number}").parse().unwrap());
            metrics.count(&flow);
        }
        let text = text(&registry);
        let series = text.lines().filter(|line| line.starts_with("ferromesh_http_requests_total{"));
        assert_eq!(series.count(), MOST_PAIRS + 1);
    }
}
