//! Metrics of authentication. The auth-agent counts; these only repeat what it said last.
//!
//! Promise: while there is no auth-agent that could say so, nothing is served: a missing series means that.

use std::collections::BTreeMap;
use std::fmt::{Debug, Error};
use std::sync::Arc;

use mesh::auth::Refusal;
use node_api::auth::{AuthCounters, Step, Times};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// What was said last; a clone shares it.
#[derive(Clone, Default, Debug)]
pub struct AuthMetrics(Arc<Mutex<Option<AuthCounters>>>);

impl AuthMetrics {
    /// Registers `ferromesh_auth_handshakes_total{result,reason}`, `_refusals_total{step,reason}`, `_marks`, `_sessions`,
    /// `_held`, `_hold_packets_total{outcome,reason}`, `_hold_seconds`, `_time_to_authenticate_seconds{kind}` and
    /// `_certificate_expiry_seconds`.
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
        let help = "From the arrival of a packet that must wait for a proof to its release";
        let mut hold =
            encoder.encode_descriptor("auth_hold", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        histogram::<NoLabelSet>(&mut hold, &counters.waited)?;
        let help = "Until a pair was proven, from the packet that asked for it, or ahead of any packet";
        let (name, unit) = ("auth_time_to_authenticate", Some(&Unit::Seconds));
        let mut took = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (kind, times) in [("held", &counters.asked), ("ahead", &counters.ahead)] {
            histogram::<NoLabelSet>(&mut took.encode_family(&[("kind", kind)])?, times)?;
        }
        let help = "What was refused apart from handshakes";
        let mut metric = encoder.encode_descriptor("auth_refusals", help, None, MetricType::Counter)?;
        let none = BTreeMap::new();
        for step in Step::ALL {
            let counts = counters.refusals.get(&step).unwrap_or(&none);
            each_reason(&mut metric, ("step", step.name()), counts)?;
        }
        Ok(())
    }
}

/// What the embedded CA has refused, as it said last; a clone shares it. Served where a CA runs.
#[derive(Clone, Default, Debug)]
pub struct CaMetrics(Arc<Mutex<Option<BTreeMap<String, u64>>>>);

impl CaMetrics {
    /// Registers `ferromesh_ca_refused_total{reason}`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_collector(Box::new(metrics.clone()));
        metrics
    }

    /// Repeats this from now on; none: there is no CA that could say so.
    pub fn set(&self, refused: Option<BTreeMap<String, u64>>) {
        *self.0.lock() = refused;
    }
}

impl Collector for CaMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(refused) = self.0.lock().clone() else { return Ok(()) };
        let help = "Requests for certificates that the CA has refused";
        let mut metric = encoder.encode_descriptor("ca_refused", help, None, MetricType::Counter)?;
        for (reason, count) in &refused {
            ConstCounter::new(*count).encode(metric.encode_family(&[("reason", reason.as_str())])?)?;
        }
        Ok(())
    }
}

fn handshakes(encoder: &mut DescriptorEncoder<'_>, counters: &AuthCounters) -> Result<(), Error> {
    let help = "Handshakes of workloads that came to an end, or were not let begin";
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

fn histogram<S: EncodeLabelSet>(metric: &mut MetricEncoder<'_>, times: &Times) -> Result<(), Error> {
    let seconds = |microseconds: u64| match microseconds {
        // What the encoder writes as infinity.
        u64::MAX => f64::INFINITY,
        microseconds => microseconds as f64 / 1e6,
    };
    let mut buckets: Vec<_> = times.counts.iter().map(|(bound, count)| (seconds(*bound), *count)).collect();
    if times.counts.last_key_value().is_none_or(|(bound, _)| *bound != u64::MAX) {
        buckets.push((f64::INFINITY, 0));
    }
    let count = times.counts.values().fold(0u64, |sum, count| sum.saturating_add(*count));
    metric.encode_histogram::<S>(times.sum as f64 / 1e6, count, &buckets, None)
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
            refusals: [(Step::Caller, [(Refusal::Untrusted, 6)].into())].into(),
            waited: Times { counts: [(500, 7), (1000, 1), (u64::MAX, 1)].into(), sum: 2_500_000 },
            asked: Times { counts: [(2_500, 3)].into(), sum: 6_000 },
            ahead: Times { counts: [(50_000, 1), (5_000_000, 1)].into(), sum: 4_000_000 },
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
            r#"ferromesh_auth_time_to_authenticate_seconds_bucket{le="0.0025",kind="held"} 3"#,
            r#"ferromesh_auth_time_to_authenticate_seconds_count{kind="ahead"} 2"#,
            r#"ferromesh_auth_time_to_authenticate_seconds_sum{kind="ahead"} 4.0"#,
            r#"ferromesh_auth_refusals_total{step="caller",reason="the certificate is signed by nobody who is trusted"} 6"#,
            r#"ferromesh_auth_refusals_total{step="pair",reason="it took too long"} 0"#,
            "ferromesh_auth_hold_seconds_count 9",
            "ferromesh_auth_hold_seconds_sum 2.5",
        ] {
            assert!(told.lines().any(|found| found == line), "{line}\nnot in\n{told}");
        }
        metrics.set(None);
        assert!(!text().contains("auth"));
    }

    #[test]
    fn what_the_ca_refuses_is_in_the_text_where_there_is_one() {
        let mut registry = Registry::with_prefix("ferromesh");
        let metrics = CaMetrics::register(&mut registry);
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        assert!(!text().contains("ca_refused"));
        metrics.set(Some([("not-placed".to_owned(), 4)].into()));
        let told = text();
        assert!(told.contains(r#"ferromesh_ca_refused_total{reason="not-placed"} 4"#), "{told}");
    }
}
