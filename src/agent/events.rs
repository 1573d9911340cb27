//! From the kernel's ring to the flow ring and to whoever monitors: every event is explained once, with what was in
//! force when it is read.

use std::sync::Arc;

use l4_datapath::event::{Events, wall_clock_offset};
use l4_datapath::flow::Context;
use observe::{FlowRing, Monitor, metrics::FlowMetrics};
use parking_lot::Mutex;

use super::auth::Reasons;

/// What explains an event; replaced whole after each plan.
pub(super) type Explanation = Arc<Mutex<Arc<Context>>>;

/// Reads until dropped.
pub(super) async fn read(
    mut events: Events,
    explanation: Explanation,
    ring: Arc<FlowRing>,
    monitor: Arc<Monitor>,
    metrics: FlowMetrics,
    reasons: Reasons,
) {
    let mut batch = Vec::new();
    while events
        .read(&mut batch)
        .await
        .inspect_err(|error| tracing::error!(%error, "flow events have ended"))
        .is_ok()
    {
        let context = Arc::clone(&explanation.lock());
        // Asked again for each batch: the wall clock can be set.
        let offset = wall_clock_offset();
        let monitored = monitor.is_read();
        let mut flows = Vec::new();
        for event in batch.drain(..) {
            if monitored {
                monitor.push(context.record(&event, offset));
            }
            flows.extend(context.flow(&event, offset));
        }
        reasons.catch_up(&flows).await;
        for mut flow in flows {
            reasons.explain(&mut flow);
            metrics.count(&flow);
            ring.push(flow);
        }
        // A flood of events must not keep the agent from anything else.
        tokio::task::yield_now().await;
    }
}
