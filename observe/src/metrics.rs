//! The registry that `/metrics` serves, and the metrics that are about the node rather than one crate.
//!
//! Every crate's own `metrics.rs` fills the registry it is handed; names begin with `ferromesh_`. Labels have few values:
//! no address or policy ever becomes one, and a workload only where it is told whose packets were dropped.

use std::time::Duration;

use mesh::flow::{Flow, TrafficDirection, Verdict};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// A registry that knows which build it speaks for: `ferromesh_build_info`.
pub fn registry(version: &str, commit: &str, schema: u32) -> Registry {
    let mut registry = Registry::with_prefix("ferromesh");
    let build = Info::new(vec![
        ("version", version.to_owned()),
        ("commit", commit.to_owned()),
        ("schema", schema.to_string()),
    ]);
    registry.register("build", "The agent's build", build);
    registry
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct FlowLabels {
    verdict: &'static str,
    direction: &'static str,
}

/// Counts of flow events; a clone counts into the same series.
#[derive(Clone, Debug)]
pub struct FlowMetrics {
    processed: Family<FlowLabels, Counter>,
}

impl FlowMetrics {
    /// Registers `ferromesh_flows_processed_total{verdict,direction}`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self { processed: Family::default() };
        registry.register(
            "flows_processed",
            "Flow events, by verdict and direction",
            metrics.processed.clone(),
        );
        metrics
    }

    /// Counts one flow.
    pub fn count(&self, flow: &Flow) {
        let verdict = match flow.verdict {
            Verdict::Forwarded => "FORWARDED",
            Verdict::Dropped => "DROPPED",
            Verdict::Audit => "AUDIT",
        };
        let direction = match flow.direction {
            TrafficDirection::Ingress => "INGRESS",
            TrafficDirection::Egress => "EGRESS",
        };
        self.processed.get_or_create(&FlowLabels { verdict, direction }).inc();
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// How much of everything this node has; a clone sets the same series.
#[derive(Clone, Debug)]
pub struct NodeMetrics {
    endpoints: Family<StateLabels, Gauge>,
    identities: Gauge,
    policies: Gauge,
}

impl NodeMetrics {
    /// Registers `ferromesh_endpoint_state{state}`, `ferromesh_identity` and `ferromesh_policy`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics =
            Self { endpoints: Family::default(), identities: Gauge::default(), policies: Gauge::default() };
        registry.register("endpoint_state", "Endpoints, by state", metrics.endpoints.clone());
        registry.register("identity", "Identities known on this node", metrics.identities.clone());
        registry.register("policy", "Policy objects in force", metrics.policies.clone());
        metrics
    }

    /// So many endpoints are in force, so many are being removed.
    pub fn set_endpoints(&self, ready: usize, leaving: usize) {
        for (state, count) in [("ready", ready), ("leaving", leaving)] {
            self.endpoints.get_or_create(&StateLabels { state }).set(number(count));
        }
    }

    /// So many identities are known.
    pub fn set_identities(&self, count: usize) {
        self.identities.set(number(count));
    }

    /// So many policies are in force.
    pub fn set_policies(&self, count: usize) {
        self.policies.set(number(count));
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// How policy gets into the kernel; a clone records into the same series.
#[derive(Clone, Debug)]
pub struct PolicyMetrics {
    edit_to_live: Histogram,
    invalid: Gauge,
}

impl PolicyMetrics {
    /// Registers `ferromesh_policy_edit_to_live_seconds` and `ferromesh_invalid_objects`.
    pub fn register(registry: &mut Registry) -> Self {
        // Around the promise, 50 ms, the steps are finer.
        let bounds = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5];
        let metrics = Self { edit_to_live: Histogram::new(bounds), invalid: Gauge::default() };
        registry.register(
            "invalid_objects",
            "Objects with an error, see policy list",
            metrics.invalid.clone(),
        );
        registry.register_with_unit(
            "policy_edit_to_live",
            "From the change of a file to its policy in the kernel",
            Unit::Seconds,
            metrics.edit_to_live.clone(),
        );
        metrics
    }

    /// So many objects have an error.
    pub fn set_invalid(&self, objects: usize) {
        self.invalid.set(number(objects));
    }

    /// An edit took so long to be in force.
    pub fn observe_edit(&self, took: Duration) {
        self.edit_to_live.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compact::tests::{dropped, forwarded};

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn what_happened_is_in_the_text() {
        let mut registry = registry("0.1.0", "abc", 1);
        let node = NodeMetrics::register(&mut registry);
        node.set_endpoints(4, 1);
        node.set_identities(12);
        node.set_policies(3);
        let (flows, policy) = (FlowMetrics::register(&mut registry), PolicyMetrics::register(&mut registry));
        flows.count(&dropped());
        flows.count(&dropped());
        flows.count(&forwarded());
        policy.observe_edit(Duration::from_millis(8));
        policy.set_invalid(2);
        let text = text(&registry);
        for line in [
            r#"ferromesh_build_info{version="0.1.0",commit="abc",schema="1"} 1"#,
            r#"ferromesh_flows_processed_total{verdict="DROPPED",direction="INGRESS"} 2"#,
            r#"ferromesh_flows_processed_total{verdict="FORWARDED",direction="INGRESS"} 1"#,
            "ferromesh_invalid_objects 2",
            r#"ferromesh_endpoint_state{state="ready"} 4"#,
            r#"ferromesh_endpoint_state{state="leaving"} 1"#,
            "ferromesh_identity 12",
            "ferromesh_policy 3",
            r#"ferromesh_policy_edit_to_live_seconds_bucket{le="0.005"} 0"#,
            r#"ferromesh_policy_edit_to_live_seconds_bucket{le="0.01"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
        }
    }
}
