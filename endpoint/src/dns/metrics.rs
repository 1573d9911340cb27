//! `ferromesh_dns_…`: what is asked, and how it went.

use std::time::Duration;

use domain::base::iana::Rcode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Who knew the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// We.
    Cluster,
    /// Another server, or none.
    Upstream,
}

/// Why a packet got no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dropped {
    /// It came from no workload and not from this node.
    Stranger,
    /// It was no question.
    Malformed,
    /// Too many connections.
    Overload,
}

/// Why an exchange with an upstream server failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// It did not answer in time, or not at all.
    Silent,
    /// It answered that it cannot say.
    Unable,
    /// A packet came that answers something else: late, or forged.
    Mismatched,
    /// Too many questions are under way.
    Overload,
    /// There is no server to ask.
    None,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct AnswerLabels {
    source: &'static str,
    answer: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Counts of the node's DNS; a clone counts into the same series.
#[derive(Clone, Debug)]
pub struct Metrics {
    queries: Family<AnswerLabels, Counter>,
    latency: Family<SourceLabel, Histogram, fn() -> Histogram>,
    dropped: Family<ReasonLabel, Counter>,
    upstream: Family<ReasonLabel, Counter>,
}

impl Metrics {
    /// Registers `ferromesh_dns_queries_total{source,answer}`, `ferromesh_dns_latency_seconds{source}`,
    /// `ferromesh_dns_dropped_total{reason}` and `ferromesh_dns_upstream_failures_total{reason}`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            queries: Family::default(),
            latency: Family::new_with_constructor(latency),
            dropped: Family::default(),
            upstream: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("dns");
        registry.register(
            "queries",
            "Questions, by who knew the answer and what it was",
            metrics.queries.clone(),
        );
        registry.register_with_unit(
            "latency",
            "From a question to its answer, by who knew it",
            Unit::Seconds,
            metrics.latency.clone(),
        );
        registry.register("dropped", "Packets and connections without an answer", metrics.dropped.clone());
        registry.register(
            "upstream_failures",
            "Exchanges with upstream servers that failed",
            metrics.upstream.clone(),
        );
        metrics
    }

    pub(super) fn answered(&self, source: Source, rcode: Rcode, took: Duration) {
        let labels = SourceLabel { source: source.name() };
        self.latency.get_or_create(&labels).observe(took.as_secs_f64());
        self.queries.get_or_create(&AnswerLabels { source: source.name(), answer: answer(rcode) }).inc();
    }

    pub(super) fn dropped(&self, why: Dropped) {
        let reason = match why {
            Dropped::Stranger => "stranger",
            Dropped::Malformed => "malformed",
            Dropped::Overload => "overload",
        };
        self.dropped.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn trouble(&self, what: Trouble) {
        let reason = match what {
            Trouble::Silent => "silent",
            Trouble::Unable => "unable",
            Trouble::Mismatched => "mismatched",
            Trouble::Overload => "overload",
            Trouble::None => "no-server",
        };
        self.upstream.get_or_create(&ReasonLabel { reason }).inc();
    }
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Upstream => "upstream",
        }
    }
}

fn latency() -> Histogram {
    Histogram::new([0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.5, 5.0])
}

fn answer(rcode: Rcode) -> &'static str {
    match rcode {
        Rcode::NOERROR => "noerror",
        Rcode::FORMERR => "formerr",
        Rcode::SERVFAIL => "servfail",
        Rcode::NXDOMAIN => "nxdomain",
        Rcode::NOTIMP => "notimp",
        Rcode::REFUSED => "refused",
        _ => "other",
    }
}
