//! The metrics of this crate, in a registry that is handed in.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::counters::Counters;
use crate::flow::Context;

/// Handles of the metrics. The kernel counts; these only repeat what was read.
#[derive(Default)]
pub struct Metrics {
    drops: Family<DropLabels, Counter>,
    dropped_bytes: Family<DropLabels, Counter>,
    entries: Family<MapLabels, Gauge>,
    capacity: Family<MapLabels, Gauge>,
    bytes: Family<MapLabels, Gauge>,
    revision: Gauge,
    lost: Counter,
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

impl Metrics {
    /// Registers them; the registry adds the prefix `ferromesh_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { drops, dropped_bytes, entries, capacity, bytes, revision, lost } = &metrics;
        registry.register("drop", "Packets dropped", drops.clone());
        registry.register("drop_bytes", "Bytes of packets dropped", dropped_bytes.clone());
        registry.register("map_entries", "Entries in a kernel map", entries.clone());
        registry.register("map_capacity", "Entries a kernel map can hold", capacity.clone());
        registry.register("map_bytes", "Memory of a kernel map", bytes.clone());
        registry.register("policy_revision", "Generation of policy in force", revision.clone());
        registry.register("lost_events", "Flow events that found the ring full", lost.clone());
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
            }
        }
        self.revision.set(i64::try_from(counters.generation).unwrap_or(i64::MAX));
        self.lost.inner().store(counters.lost_events, std::sync::atomic::Ordering::Relaxed);
    }
}
