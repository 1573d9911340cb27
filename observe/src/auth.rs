//! Metrics of authentication. The auth-agent counts; these only repeat what it said last.
//!
//! Promise: while there is no auth-agent that could say so, nothing is served: a missing series means that.

use std::collections::BTreeMap;
use std::fmt::{Debug, Error};
use std::sync::Arc;

use mesh::auth::Refusal;
use node_api::auth::AuthCounters;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// What was said last; a clone shares it.
#[derive(Clone, Default, Debug)]
pub struct AuthMetrics(Arc<Mutex<Option<AuthCounters>>>);

impl AuthMetrics {
    /// Registers `ferromesh_auth_handshakes_total{result,reason}`, `_marks`, `_sessions`, `_held`, `_hold_packets_total{outcome,reason}`,
    /// `_hold_seconds` and `_certificate_expiry_seconds`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_collector(Box::new(metrics.clone()));
        metrics
    }

    /// Repeats this from now on; none: authentication is not in use.
    pub fn set(&self, counters: Option<AuthCounters>) {
        *self.0.lock() = counters;
    }
}

impl Collector for AuthMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(counters) = self.0.lock().clone() else { return Ok(()) };
        handshakes(&mut encoder, &counters)?;
        for (name, help, value) in [
            ("auth_marks", "Pairs of endpoints that are proven", counters.marks),
            ("auth_sessions", "Nodes there is a session with", counters.sessions),
            ("auth_held", "Packets that wait for a proof", counters.held),
        ] {
            gauge(&mut encoder, name, help, None, value)?;
        }
        if let Some(seconds) = counters.first_expiry {
            let help = "Until the first certificate ends unless it is renewed";
            gauge(&mut encoder, "auth_certificate_expiry", help, Some(&Unit::Seconds), seconds)?;
        }
        let help = "Packets that have waited for a proof, by what became of them";
        let mut metric = encoder.encode_descriptor("auth_hold_packets", help, None, MetricType::Counter)?;
        let labels = [("outcome", "released"), ("reason", "")];
        ConstCounter::new(counters.released).encode(metric.encode_family(&labels)?)?;
        each_reason(&mut metric, ("outcome", "lost"), &counters.lost)?;
        hold(&mut encoder, &counters)
    }
}

fn handshakes(encoder: &mut DescriptorEncoder<'_>, counters: &AuthCounters) -> Result<(), Error> {
    let help = "Proofs and bindings that came to an end";
    let mut metric = encoder.encode_descriptor("auth_handshakes", help, None, MetricType::Counter)?;
    let labels = [("result", "proven"), ("reason", "")];
    ConstCounter::new(counters.proven).encode(metric.encode_family(&labels)?)?;
    each_reason(&mut metric, ("result", "refused"), &counters.refused)
}

/// A series for every reason, also where nothing was counted: a rate needs the zero.
fn each_reason(
    metric: &mut MetricEncoder<'_>,
    label: (&str, &str),
    counts: &BTreeMap<Refusal, u64>,
) -> Result<(), Error> {
    for reason in Refusal::ALL {
        let count = counts.get(&reason).copied().unwrap_or(0);
        let labels = [label, ("reason", reason.text())];
        ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: u64,
) -> Result<(), Error> {
    let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    value.encode(encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?)
}

fn hold(encoder: &mut DescriptorEncoder<'_>, counters: &AuthCounters) -> Result<(), Error> {
    let help = "From the arrival of a packet that must wait for a proof to its release";
    let mut metric =
        encoder.encode_descriptor("auth_hold", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    let seconds = |microseconds: u64| match microseconds {
        // What the encoder writes as infinity.
        u64::MAX => f64::INFINITY,
        microseconds => microseconds as f64 / 1e6,
    };
    let mut buckets: Vec<_> =
        counters.waited.iter().map(|(bound, count)| (seconds(*bound), *count)).collect();
    if counters.waited.last_key_value().is_none_or(|(bound, _)| *bound != u64::MAX) {
        buckets.push((f64::INFINITY, 0));
    }
    let count = counters.waited.values().fold(0u64, |sum, count| sum.saturating_add(*count));
    metric.encode_histogram::<NoLabelSet>(counters.waited_sum as f64 / 1e6, count, &buckets, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_auth_agent_counts_is_in_the_text_while_it_is_in_use() {
        let mut registry = Registry::with_prefix("ferromesh");
        let metrics = AuthMetrics::register(&mut registry);
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        assert!(!text().contains("auth"), "{}", text());
        metrics.set(Some(AuthCounters {
            proven: 5,
            refused: [(Refusal::Expired, 2)].into(),
            marks: 4,
            held: 1,
            released: 9,
            lost: [(Refusal::WrongId, 3)].into(),
            waited: [(500, 7), (1000, 1), (u64::MAX, 1)].into(),
            waited_sum: 2_500_000,
            first_expiry: Some(1800),
            sessions: 2,
        }));
        let told = text();
        for line in [
            r#"ferromesh_auth_handshakes_total{result="proven",reason=""} 5"#,
            r#"ferromesh_auth_handshakes_total{result="refused",reason="the certificate has expired"} 2"#,
            r#"ferromesh_auth_handshakes_total{result="refused",reason="withdrawn"} 0"#,
            "ferromesh_auth_marks 4",
            "ferromesh_auth_held 1",
            "ferromesh_auth_sessions 2",
            r#"ferromesh_auth_hold_packets_total{outcome="released",reason=""} 9"#,
            r#"ferromesh_auth_hold_packets_total{outcome="lost",reason="the certificate shows another SPIFFE ID"} 3"#,
            r#"ferromesh_auth_hold_packets_total{outcome="lost",reason="it took too long"} 0"#,
            "ferromesh_auth_certificate_expiry_seconds 1800",
            r#"ferromesh_auth_hold_seconds_bucket{le="0.0005"} 7"#,
            r#"ferromesh_auth_hold_seconds_bucket{le="0.001"} 8"#,
            r#"ferromesh_auth_hold_seconds_bucket{le="+Inf"} 9"#,
            "ferromesh_auth_hold_seconds_count 9",
            "ferromesh_auth_hold_seconds_sum 2.5",
        ] {
            assert!(told.lines().any(|found| found == line), "{line}\nnot in\n{told}");
        }
        metrics.set(None);
        assert!(!text().contains("auth"));
    }
}
