//! Requests, answers and TLS connections that the proxy has seen, as flows.

use std::net::SocketAddr;
use std::sync::Arc;

use abi::DropReason;
use l4_datapath::flow::Context;
use mesh::exchange::End;
use mesh::flow::{Drop, Flow, TrafficDirection, Verdict};
use mesh::l7::{HttpKind, L7Flow};
use mesh::policy::{PolicyName, protocol};
use node_api::proxy::{ProxyFlow, ProxyReport, Record};
use observe::http::HttpMetrics;
use observe::{FlowRing, metrics::FlowMetrics};

use super::access::AccessLog;
use crate::agent::events::Explanation;

/// Where they go.
#[derive(Clone)]
pub(crate) struct Sink {
    pub(crate) explanation: Explanation,
    pub(crate) ring: Arc<FlowRing>,
    pub(crate) flow_metrics: FlowMetrics,
    pub(crate) http_metrics: HttpMetrics,
    pub(crate) access_log: AccessLog,
    /// What the proxy is to record.
    pub(crate) record: Record,
}

impl Sink {
    /// Explains each with what is in force now, counts and keeps it.
    pub(super) fn take(&self, flows: Vec<ProxyFlow>) {
        let context = Arc::clone(&self.explanation.lock());
        for seen in flows {
            let flow = flow(&context, seen);
            self.flow_metrics.count(&flow);
            self.http_metrics.count(&flow);
            self.ring.push(flow);
        }
    }

    /// Counts what has been added, and logs what is over.
    pub(super) fn report(&self, report: ProxyReport) {
        let context = Arc::clone(&self.explanation.lock());
        for counts in &report.counts {
            let peer = |end: End| context.at(SocketAddr::new(end.address, 0), end.identity);
            let ends = counts.ends.map(|ends| ends.map(peer));
            self.http_metrics.add(ends.as_ref().map(|[source, destination]| (source, destination)), counts);
        }
        self.http_metrics.refuse(report.refused);
        self.http_metrics.refuse_untold(report.untold);
        self.access_log.take(&context, report.exchanges, report.lost);
    }
}

fn flow(context: &Context, mut seen: ProxyFlow) -> Flow {
    let is_reply = seen.l7.http().is_some_and(|http| http.kind == HttpKind::Response);
    let drop = (seen.verdict != Verdict::Forwarded).then(|| Drop {
        reason: DropReason::PolicyDenied as u8,
        text: seen.reason.clone().unwrap_or_else(|| DropReason::PolicyDenied.text().to_owned()),
        policies: policies(context, &seen),
    });
    // What is said of what was let pass.
    if let L7Flow::Http(http) = &mut seen.l7 {
        http.note = seen.reason.take().filter(|_| seen.verdict == Verdict::Forwarded);
    }
    let client = context.at(seen.client, seen.client_identity);
    let server = context.at(seen.server, seen.server_identity);
    let (source, destination) = if is_reply { (server, client) } else { (client, server) };
    Flow {
        time: seen.time,
        node: context.node().to_owned(),
        verdict: seen.verdict,
        drop,
        direction: seen.direction,
        source,
        destination,
        protocol: protocol::TCP,
        tcp_flags: 0,
        icmp_type: None,
        is_reply: Some(is_reply),
        length: 0,
        interface: context
            .endpoint(seen.endpoint)
            .map_or_else(String::new, |it| it.endpoint.interface.clone()),
        authentication: None,
        l7: Some(seen.l7),
        trace: false,
    }
}

/// Those whose rules did not let it.
fn policies(context: &Context, seen: &ProxyFlow) -> Vec<PolicyName> {
    let Some(planned) = context.endpoint(seen.endpoint) else { return Vec::new() };
    let (ruleset, peer) = match seen.direction {
        TrafficDirection::Ingress => (&planned.ingress, seen.client_identity),
        TrafficDirection::Egress => (&planned.egress, seen.server_identity),
    };
    let outcome = peer.and_then(|peer| ruleset.judge(peer, protocol::TCP, seen.server.port()).1);
    outcome.map_or_else(|| ruleset.denied_by_default.clone(), |outcome| outcome.by.to_vec())
}
