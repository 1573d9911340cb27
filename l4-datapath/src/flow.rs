//! From an event of the kernel to a flow as people read it. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use abi::{Address, DropReason, Event, EventFlags, EventKind};
use mesh::flow::{Drop, Flow, Peer, TrafficDirection, Verdict};
use mesh::identity::Identity;
use mesh::plan::NodePlan;
use mesh::policy::{PolicyName, Ruleset, protocol};
use mesh::workload::{Endpoint, EndpointId};

/// Who is behind the numbers that rules carry; a copy of what was in force when it was taken.
#[derive(Clone, Default, Debug)]
pub struct Attribution {
    /// Policies by cookie.
    pub(crate) cookies: BTreeMap<u32, Arc<[PolicyName]>>,
    /// Content by ruleset id.
    pub(crate) rulesets: BTreeMap<u32, Arc<Ruleset>>,
}

impl Attribution {
    /// The policies behind an entry; none for 0 or what is long gone.
    pub fn policies_of_cookie(&self, cookie: u32) -> &[PolicyName] {
        self.cookies.get(&cookie).map_or(&[], |names| names)
    }

    /// The policies whose default deny holds in a ruleset.
    pub fn denied_by_default(&self, ruleset: u32) -> &[PolicyName] {
        self.rulesets.get(&ruleset).map_or(&[], |content| &content.denied_by_default)
    }
}

/// All that is needed to explain an event. Made once for each plan that is applied.
pub struct Context {
    node: String,
    plan: Arc<NodePlan>,
    attribution: Arc<Attribution>,
    by_interface: BTreeMap<u32, EndpointId>,
    by_address: BTreeMap<IpAddr, EndpointId>,
}

impl Context {
    /// `node` is the node's name.
    pub fn new(node: String, plan: Arc<NodePlan>, attribution: Arc<Attribution>) -> Self {
        let endpoints = || plan.endpoints.iter().map(|(id, planned)| (*id, &planned.endpoint));
        let by_interface = endpoints().map(|(id, endpoint)| (endpoint.ifindex, id)).collect();
        let both = |(id, endpoint): (EndpointId, &Endpoint)| {
            [(IpAddr::V4(endpoint.ipv4), id), (IpAddr::V6(endpoint.ipv6), id)]
        };
        let by_address = endpoints().flat_map(both).collect();
        Self { node, by_interface, by_address, plan, attribution }
    }

    /// The endpoint behind a host-side veth.
    pub fn endpoint_of_interface(&self, ifindex: u32) -> Option<&Endpoint> {
        let id = self.by_interface.get(&ifindex)?;
        self.plan.endpoints.get(id).map(|planned| &planned.endpoint)
    }

    /// The event as a flow; `offset` is [`crate::event::wall_clock_offset`]. None for an event of unknown kind.
    pub fn flow(&self, event: &Event, offset: i64) -> Option<Flow> {
        let kind = kind(event.kind)?;
        let verdict = match kind {
            EventKind::Drop => Verdict::Dropped,
            _ if event.flags & EventFlags::AUDITED != 0 => Verdict::Audit,
            _ => Verdict::Forwarded,
        };
        let icmp = matches!(event.protocol, protocol::ICMP | protocol::ICMPV6);
        let ports = matches!(event.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
        let port = |number: u16| ports.then_some(number);
        let interface = self.endpoint_of_interface(event.ifindex);
        Some(Flow {
            time: i64::try_from(event.time).unwrap_or(i64::MAX).saturating_add(offset),
            node: self.node.clone(),
            verdict,
            drop: (verdict != Verdict::Forwarded).then(|| self.drop(event)),
            direction: direction(event.direction),
            source: self.peer(event, event.source, event.source_identity, port(event.source_port)),
            destination: self.peer(
                event,
                event.destination,
                event.destination_identity,
                port(event.destination_port),
            ),
            protocol: event.protocol,
            tcp_flags: event.tcp_flags,
            icmp_type: icmp.then(|| event.destination_port as u8),
            is_reply: (kind != EventKind::Drop).then(|| event.flags & EventFlags::REPLY != 0),
            length: event.length,
            interface: interface
                .map_or_else(|| event.ifindex.to_string(), |endpoint| endpoint.interface.clone()),
            trace: kind == EventKind::Trace,
        })
    }

    fn peer(&self, event: &Event, address: Address, identity: u32, port: Option<u16>) -> Peer {
        let address = is_ip(event).then(|| ip(address));
        let endpoint = address.and_then(|address| self.by_address.get(&address));
        let planned = endpoint.and_then(|id| self.plan.endpoints.get(id));
        let identity = Identity::new(identity);
        let labels = identity.and_then(|identity| {
            self.plan.identities.get(&identity).cloned().or_else(|| identity.reserved_labels())
        });
        Peer {
            address,
            port,
            identity,
            workload: planned.map(|planned| planned.endpoint.workload.clone()),
            labels: labels.unwrap_or_default(),
        }
    }

    /// Why, and which policies: those of the entry that decided, else those whose default deny nothing lifted.
    fn drop(&self, event: &Event) -> Drop {
        let reason = match event.reason {
            // Audited: what the verdict would have been.
            0 => DropReason::PolicyDenied as u8,
            reason => reason,
        };
        let text = DropReason::from_number(reason)
            .map_or_else(|| format!("Unknown reason {reason}"), |reason| reason.text().to_owned());
        let policies = match event.cookie {
            0 => self.attribution.denied_by_default(event.ruleset),
            cookie => self.attribution.policies_of_cookie(cookie),
        };
        Drop { reason, text, policies: policies.to_vec() }
    }
}

fn kind(number: u8) -> Option<EventKind> {
    [EventKind::Drop, EventKind::Allowed, EventKind::Trace].into_iter().find(|kind| *kind as u8 == number)
}

fn direction(number: u8) -> TrafficDirection {
    if number == abi::Direction::Ingress as u8 { TrafficDirection::Ingress } else { TrafficDirection::Egress }
}

fn is_ip(event: &Event) -> bool {
    matches!(u16::from_be_bytes(event.ethertype), 0x0800 | 0x86dd)
}

/// IPv4 where it is v4-mapped.
fn ip(address: Address) -> IpAddr {
    IpAddr::from(address.0).to_canonical()
}
