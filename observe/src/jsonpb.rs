//! A flow as JSON with the field names of Hubble's protobuf messages, for what was written to read `hubble observe -o jsonpb`.
//!
//! Fields for which this version has no value are absent, as protobuf's JSON leaves out what is not set.

use jiff::Timestamp;
use mesh::flow::{Flow, Peer, TrafficDirection, Verdict};
use mesh::l7::{HttpKind, L7Flow};
use mesh::policy::{PolicyName, protocol};
use serde_json::{Map, Value, json};

use crate::compact::summary;
use crate::filter::{TCP_FLAGS, VERDICTS, reason_name};

/// `flow.MessageType` of the monitor: drop, policy verdict, trace.
const MESSAGE_TYPES: [(Verdict, u8); 3] =
    [(Verdict::Dropped, 1), (Verdict::Audit, 5), (Verdict::Forwarded, 4)];

/// Number of the monitor's message that an access log is.
const ACCESS_LOG: u8 = 129;

/// The flow as an answer of Hubble's observer, `GetFlowsResponse`.
pub fn response(flow: &Flow) -> Value {
    let time = Timestamp::from_nanosecond(flow.time.into()).unwrap_or_default().to_string();
    let name = VERDICTS.iter().find(|(_, verdict)| *verdict == flow.verdict).map(|(name, _)| *name);
    let kind = MESSAGE_TYPES.iter().find(|(verdict, _)| *verdict == flow.verdict).map(|(_, number)| *number);
    let (direction, ingress) = match flow.direction {
        TrafficDirection::Ingress => ("INGRESS", true),
        TrafficDirection::Egress => ("EGRESS", false),
    };
    let mut fields = json!({
        "time": time,
        "verdict": name,
        "source": end(&flow.source),
        "destination": end(&flow.destination),
        "Type": "L3_L4",
        "node_name": flow.node,
        "event_type": {"type": kind},
        "traffic_direction": direction,
        "is_reply": flow.is_reply,
        "interface": {"name": flow.interface},
        "Summary": summary(flow),
    });
    if let (Some(source), Some(destination)) = (flow.source.address, flow.destination.address) {
        let version = if source.is_ipv4() { "IPv4" } else { "IPv6" };
        fields["IP"] = json!({"source": source, "destination": destination, "ipVersion": version});
        if let Some((name, transport)) = transport(flow) {
            fields["l4"] = json!({ name: transport });
        }
    }
    if let Some(L7Flow::Http(http)) = &flow.l7 {
        let kind = match http.kind {
            HttpKind::Request => "REQUEST",
            HttpKind::Response => "RESPONSE",
        };
        fields["Type"] = "L7".into();
        fields["event_type"] = json!({"type": ACCESS_LOG, "sub_type": 0});
        fields["l7"] = json!({
            "type": kind,
            "latency_ns": http.latency,
            "http": {"code": http.code, "method": http.method, "url": http.url, "protocol": http.protocol},
        });
    }
    if let Some(drop) = &flow.drop {
        if flow.verdict == Verdict::Dropped && flow.l7.as_ref().is_none_or(|l7| l7.tls().is_some()) {
            fields["event_type"]["sub_type"] = drop.reason.into();
            fields["drop_reason"] = drop.reason.into();
            let known = abi::DropReason::from_number(drop.reason);
            fields["drop_reason_desc"] = known.map_or("DROP_REASON_UNKNOWN".to_owned(), reason_name).into();
        }
        let field = if ingress { "ingress_denied_by" } else { "egress_denied_by" };
        fields[field] = drop.policies.iter().map(policy).collect();
    }
    json!({"flow": fields, "node_name": flow.node, "time": time})
}

fn end(peer: &Peer) -> Value {
    let mut fields = Map::new();
    if let Some(identity) = peer.identity {
        fields.insert("identity".to_owned(), identity.number().into());
    }
    if let Some(workload) = &peer.workload {
        fields.insert("namespace".to_owned(), workload.namespace.as_str().into());
        fields.insert("pod_name".to_owned(), workload.name.as_str().into());
    }
    let labels: Vec<_> =
        peer.labels.to_string().split(',').filter(|label| !label.is_empty()).map(Value::from).collect();
    fields.insert("labels".to_owned(), labels.into());
    fields.into()
}

/// Name and fields of the header behind IP.
fn transport(flow: &Flow) -> Option<(&'static str, Value)> {
    let ports = json!({"source_port": flow.source.port, "destination_port": flow.destination.port});
    Some(match flow.protocol {
        protocol::TCP => {
            let set = TCP_FLAGS.iter().filter(|(_, bit)| flow.tcp_flags & bit != 0);
            let flags: Map<String, Value> = set.map(|(name, _)| ((*name).to_owned(), true.into())).collect();
            (
                "TCP",
                json!({"source_port": flow.source.port, "destination_port": flow.destination.port, "flags": flags}),
            )
        }
        protocol::UDP => ("UDP", ports),
        protocol::SCTP => ("SCTP", ports),
        protocol::ICMP => ("ICMPv4", json!({"type": flow.icmp_type})),
        protocol::ICMPV6 => ("ICMPv6", json!({"type": flow.icmp_type})),
        _ => return None,
    })
}

fn policy(policy: &PolicyName) -> Value {
    json!({"name": policy.name, "namespace": policy.namespace, "kind": policy.kind.as_str()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compact::tests::{dropped, forwarded, hello, request};

    #[test]
    fn a_request_is_of_layer_7() {
        let value = response(&request());
        let flow = &value["flow"];
        assert_eq!((&flow["Type"], &flow["event_type"]["type"]), (&json!("L7"), &json!(129)));
        assert_eq!((&flow["verdict"], flow.get("drop_reason")), (&json!("DROPPED"), None));
        assert_eq!((&flow["l7"]["type"], &flow["l7"]["http"]["method"]), (&json!("REQUEST"), &json!("PUT")));
        assert_eq!(flow["ingress_denied_by"][0]["name"], "rule1");
    }

    /// Hubble has no message for them: they are of layer 4, as what Cilium makes of such a rule.
    #[test]
    fn a_tls_connection_is_of_layer_4_and_its_summary_says_the_name() {
        let value = response(&hello(Some("a.example")));
        let flow = &value["flow"];
        assert_eq!((&flow["Type"], &flow["verdict"]), (&json!("L3_L4"), &json!("DROPPED")));
        assert_eq!((&flow["drop_reason"], flow.get("l7")), (&json!(133), None));
        assert_eq!(flow["Summary"], json!("TLS a.example: no rule names this server"));
    }

    #[test]
    fn a_drop_has_hubbles_fields() {
        let value = response(&dropped());
        let flow = &value["flow"];
        assert_eq!(
            (&value["node_name"], &value["time"]),
            (&json!("node-1"), &json!("2023-10-26T15:15:46.416Z"))
        );
        assert_eq!((&flow["verdict"], &flow["drop_reason"]), (&json!("DROPPED"), &json!(133)));
        assert_eq!(
            (&flow["drop_reason_desc"], &flow["event_type"]),
            (&json!("POLICY_DENIED"), &json!({"type": 1, "sub_type": 133}))
        );
        assert_eq!(flow["IP"], json!({"source": "10.1.0.3", "destination": "10.1.0.1", "ipVersion": "IPv4"}));
        let tcp = json!({"TCP": {"source_port": 49_446, "destination_port": 80, "flags": {"SYN": true}}});
        assert_eq!((&flow["l4"], &flow["Summary"]), (&tcp, &json!("TCP Flags: SYN")));
        let source = json!({"identity": 13_058, "namespace": "default", "pod_name": "xwing",
            "labels": ["k8s:class=xwing", "k8s:org=alliance"]});
        assert_eq!(flow["source"], source);
        let rule1 = json!([{"name": "rule1", "namespace": "default", "kind": "CiliumNetworkPolicy"}]);
        assert_eq!((&flow["ingress_denied_by"], &flow["traffic_direction"]), (&rule1, &json!("INGRESS")));
    }

    #[test]
    fn what_passes_has_no_reason_and_what_is_not_ip_no_addresses() {
        let value = response(&forwarded());
        assert_eq!(
            (&value["flow"]["verdict"], &value["flow"]["is_reply"]),
            (&json!("FORWARDED"), &json!(false))
        );
        assert_eq!(value["flow"].get("drop_reason"), None);
        let mut flow = dropped();
        (flow.source.address, flow.destination.address) = (None, None);
        let value = response(&flow);
        assert_eq!((value["flow"].get("IP"), value["flow"].get("l4")), (None, None));
    }
}
