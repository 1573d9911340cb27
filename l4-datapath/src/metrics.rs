//! The metrics of this crate, in a registry that is handed in.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::counters::{Counters, GcReport};
use crate::flow::Context;

/// Handles of the metrics. The kernel counts; these only repeat what was read.
#[derive(Default)]
pub struct Metrics {
    drops: Family<DropLabels, Counter>,
    dropped_bytes: Family<DropLabels, Counter>,
    entries: Family<MapLabels, Gauge>,
    capacity: Family<MapLabels, Gauge>,
    bytes: Family<MapLabels, Gauge>,
    pressure: Family<MapLabels, Gauge<f64, AtomicU64>>,
    connections: Family<ConnectionLabels, Gauge>,
    expired: Counter,
    revision: Gauge,
    lost: Counter,
    held: Counter,
    released: Counter,
    asked: Counter,
    hastened: Counter,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct DropLabels {
    reason: String,
    direction: &'static str,
    endpoint: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct MapLabels {
    map: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ConnectionLabels {
    family: &'static str,
}

impl Metrics {
    /// Registers them; the registry adds the prefix `ferromesh_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { drops, dropped_bytes, entries, capacity, bytes, pressure, .. } = &metrics;
        let Self { connections, expired, revision, lost, held, released, asked, hastened, .. } = &metrics;
        registry.register("drop", "Packets dropped", drops.clone());
        registry.register("drop_bytes", "Bytes of packets dropped", dropped_bytes.clone());
        registry.register("map_entries", "Entries in a kernel map", entries.clone());
        registry.register("map_capacity", "Entries a kernel map can hold", capacity.clone());
        registry.register("map_bytes", "Memory of a kernel map", bytes.clone());
        registry.register(
            "map_pressure",
            "Entries in a kernel map by what it can hold, 0 to 1",
            pressure.clone(),
        );
        registry.register(
            "connections",
            "Connections that were alive at the last collection",
            connections.clone(),
        );
        registry.register("connections_expired", "Dead connections that were collected", expired.clone());
        registry.register("policy_revision", "Generation of policy in force", revision.clone());
        registry.register("lost_events", "Flow events that found the ring full", lost.clone());
        registry.register("held_packets", "Packets that waited for authentication", held.clone());
        registry.register("released_packets", "Packets that waited and went on", released.clone());
        registry.register(
            "asking_calls",
            "Calls that asked for authentication before their first packet",
            asked.clone(),
        );
        registry.register(
            "hastened_connections",
            "Connections whose first SYN is sent again soon: packets found no room to wait for authentication",
            hastened.clone(),
        );
        metrics
    }

    /// Repeats a snapshot; rows of endpoints that are gone go with them.
    pub fn set(&self, counters: &Counters, context: &Context) {
        self.drops.clear();
        self.dropped_bytes.clear();
        for row in &counters.drops {
            let labels = DropLabels {
                reason: abi::DropReason::from_number(row.reason)
                    .map_or_else(|| row.reason.to_string(), |reason| reason.text().to_owned()),
                direction: if row.direction == abi::Direction::Ingress as u8 { "ingress" } else { "egress" },
                endpoint: context
                    .endpoint_of_interface(row.ifindex)
                    .map_or_else(|| format!("interface {}", row.ifindex), |found| found.workload.to_string()),
            };
            self.drops.get_or_create(&labels).inc_by(row.packets);
            self.dropped_bytes.get_or_create(&labels).inc_by(row.bytes);
        }
        for (map, found) in &counters.maps {
            let labels = MapLabels { map: map.clone() };
            let number = |entries: u64| i64::try_from(entries).unwrap_or(i64::MAX);
            self.capacity.get_or_create(&labels).set(number(found.capacity));
            self.bytes.get_or_create(&labels).set(number(found.bytes));
            if let Some(used) = found.used {
                self.entries.get_or_create(&labels).set(number(used));
                self.pressure.get_or_create(&labels).set(used as f64 / found.capacity.max(1) as f64);
            }
        }
        self.revision.set(i64::try_from(counters.generation).unwrap_or(i64::MAX));
        let repeated = [
            (&self.lost, counters.lost_events),
            (&self.held, counters.held),
            (&self.released, counters.released),
            (&self.asked, counters.asked),
            (&self.hastened, counters.hastened),
        ];
        for (counter, total) in repeated {
            counter.inner().store(total, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Repeats what a collection found.
    pub fn collected(&self, report: &GcReport) {
        for (family, live) in [("ipv4", report.live4), ("ipv6", report.live6)] {
            let live = i64::try_from(live).unwrap_or(i64::MAX);
            self.connections.get_or_create(&ConnectionLabels { family }).set(live);
        }
        self.expired.inc_by(report.expired);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use node_api::MapUse;

    use super::*;
    use crate::counters::DropRow;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn what_the_kernel_counts_is_in_the_text_and_goes_with_its_endpoint() {
        let mut registry = Registry::with_prefix("ferromesh");
        let metrics = Metrics::register(&mut registry);
        let context = Context::new("n".to_owned(), Arc::default(), Arc::default());
        let drop = DropRow { ifindex: 7, reason: 133, direction: 0, packets: 2, bytes: 148 };
        let map = |used| MapUse { used, capacity: 8, bytes: 4096 };
        let counters = Counters {
            generation: 9,
            drops: vec![drop],
            maps: [("RULES".to_owned(), map(Some(2))), ("SLOTS".to_owned(), map(None))].into(),
            lost_events: 3,
            held: 5,
            released: 4,
            asked: 6,
            hastened: 2,
            ..Counters::default()
        };
        metrics.set(&counters, &context);
        metrics.collected(&GcReport { live4: 5, expired: 4, ..GcReport::default() });
        metrics.collected(&GcReport { live4: 6, expired: 1, ..GcReport::default() });
        let told = text(&registry);
        let drops =
            r#"ferromesh_drop_total{reason="Policy denied",direction="ingress",endpoint="interface 7"}"#;
        for line in [
            &format!("{drops} 2"),
            r#"ferromesh_map_pressure{map="RULES"} 0.25"#,
            r#"ferromesh_map_bytes{map="SLOTS"} 4096"#,
            r#"ferromesh_connections{family="ipv4"} 6"#,
            "ferromesh_connections_expired_total 5",
            "ferromesh_policy_revision 9",
            "ferromesh_lost_events_total 3",
            "ferromesh_held_packets_total 5",
            "ferromesh_released_packets_total 4",
            "ferromesh_asking_calls_total 6",
            "ferromesh_hastened_connections_total 2",
        ] {
            assert!(told.lines().any(|found| found == line), "{line}\nnot in\n{told}");
        }
        assert!(!told.contains(r#"map_pressure{map="SLOTS"}"#), "not known is not zero: {told}");
        metrics.set(&Counters::default(), &context);
        assert!(!text(&registry).contains(drops));
    }
}
