//! From an event of the kernel to a flow as people read it. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use abi::{Address, DropReason, Event, EventFlags, EventKind};
use mesh::auth::{Refusal, Side};
use mesh::flow::{Authentication, Drop, Flow, Peer, TrafficDirection, Verdict};
use mesh::identity::Identity;
use mesh::plan::{EndpointPlan, NodePlan};
use mesh::policy::{PolicyName, Ruleset, protocol};
use mesh::spiffe::SpiffeId;
use mesh::workload::{Endpoint, EndpointId};
use node_api::EventView;

use crate::address::ip;

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
    /// SPIFFE IDs of endpoints of all nodes, where they matter.
    spiffe_ids: BTreeMap<IpAddr, SpiffeId>,
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
        let authenticated =
            plan.auth.iter().flat_map(|auth| auth.endpoints.values().chain(auth.remotes.values()));
        let ids = authenticated.flat_map(|end| end.addresses().map(|address| (address, end.id.clone())));
        let spiffe_ids = ids.collect();
        Self { node, by_interface, by_address, spiffe_ids, plan, attribution }
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
            icmp_type: icmp.then_some(event.destination_port as u8),
            is_reply: (kind != EventKind::Drop).then_some(event.flags & EventFlags::REPLY != 0),
            length: event.length,
            interface: interface
                .map_or_else(|| event.ifindex.to_string(), |endpoint| endpoint.interface.clone()),
            authentication: self.authentication(event, kind),
            l7: None,
            trace: kind == EventKind::Trace,
        })
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// An endpoint of this node, as it is in force.
    pub fn endpoint(&self, id: EndpointId) -> Option<&EndpointPlan> {
        self.plan.endpoints.get(&id)
    }

    /// Who is at an address; of its identity somebody else than an event has told.
    pub fn at(&self, socket: SocketAddr, identity: Option<Identity>) -> Peer {
        self.known(Some(socket.ip()), identity, Some(socket.port()))
    }

    /// The event as it was recorded, with the endpoints that it is about.
    pub fn record(&self, event: &Event, offset: i64) -> EventView {
        let address = |address| is_ip(event).then(|| ip(address));
        let [source, destination] = [event.source, event.destination].map(address);
        let judge = self.by_interface.get(&event.ifindex).copied();
        let owner = |address: Option<IpAddr>| self.by_address.get(&address?).copied();
        // Of its own side the judge knows by interface: a packet's address may lie.
        let (from, to) = match direction(event.direction) {
            TrafficDirection::Egress => (judge.or_else(|| owner(source)), owner(destination)),
            TrafficDirection::Ingress => (owner(source), judge.or_else(|| owner(destination))),
        };
        let number = |id: Option<EndpointId>| id.map(EndpointId::number);
        EventView {
            time: i64::try_from(event.time).unwrap_or(i64::MAX).saturating_add(offset),
            kind: event.kind,
            reason: event.reason,
            direction: event.direction,
            flags: event.flags,
            ifindex: event.ifindex,
            endpoint: number(judge),
            from: number(from),
            to: number(to),
            source_identity: event.source_identity,
            destination_identity: event.destination_identity,
            ruleset: event.ruleset,
            cookie: event.cookie,
            ethertype: u16::from_be_bytes(event.ethertype),
            source,
            destination,
            protocol: event.protocol,
            source_port: event.source_port,
            destination_port: event.destination_port,
            tcp_flags: event.tcp_flags,
            length: event.length,
            authentication: event.authentication,
        }
    }

    fn peer(&self, event: &Event, address: Address, identity: u32, port: Option<u16>) -> Peer {
        self.known(is_ip(event).then(|| ip(address)), Identity::new(identity), port)
    }

    fn known(&self, address: Option<IpAddr>, identity: Option<Identity>, port: Option<u16>) -> Peer {
        let endpoint = address.and_then(|address| self.by_address.get(&address));
        let planned = endpoint.and_then(|id| self.plan.endpoints.get(id));
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

    /// The IDs are the plan's: a mark stands for these or does not exist.
    fn authentication(&self, event: &Event, kind: EventKind) -> Option<Authentication> {
        if event.authentication == 0 {
            return None;
        }
        let id = |address| self.spiffe_ids.get(&ip(address)).cloned();
        let (source, destination) = (id(event.source), id(event.destination));
        if kind != EventKind::Drop {
            return Some(Authentication::Proven { source, destination });
        }
        let (reason, side) = Refusal::decode(u8::try_from(event.authentication).ok()?)?;
        let (own, peer) = match direction(event.direction) {
            TrafficDirection::Egress => (source, destination),
            TrafficDirection::Ingress => (destination, source),
        };
        let side = side.or(match reason {
            // Of a certificate, whoever refused it says whose it was.
            Refusal::WrongId
            | Refusal::Untrusted
            | Refusal::Expired
            | Refusal::NotYetValid
            | Refusal::BadCertificate => None,
            Refusal::NoCertificate | Refusal::RefusedByPeer => Some(Side::Own),
            _ => Some(Side::Peer),
        });
        let id = match side {
            Some(Side::Own) => own,
            Some(Side::Peer) => peer,
            None => None,
        };
        Some(Authentication::Refused { reason, id, shown: None })
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use std::collections::BTreeSet;

    use mesh::auth::{AuthEndpoint, AuthPlan, InstanceName};
    use mesh::labels::LabelSet;
    use mesh::policy::PolicyKind;
    use mesh::workload::{Mac, WorkloadName};

    use super::*;

    fn policy(name: &str) -> PolicyName {
        let kind = PolicyKind::CiliumNetworkPolicy;
        PolicyName { kind, namespace: Some("default".to_owned()), name: name.to_owned() }
    }

    fn context() -> Context {
        let id = EndpointId::new(7).unwrap();
        let endpoint = Endpoint {
            id,
            instance: 1,
            workload: WorkloadName { namespace: "default".to_owned(), name: "deathstar".to_owned() },
            labels: LabelSet::new(),
            service_account: "default".to_owned(),
            interface: "fm7".to_owned(),
            ifindex: 70,
            mac: Mac([2; 6]),
            gateway_mac: Mac([4; 6]),
            ipv4: Ipv4Addr::new(10, 0, 0, 7),
            ipv6: "fd00::7".parse().unwrap(),
        };
        let identity = Identity::new(300).unwrap();
        let ruleset = Arc::new(Ruleset {
            enforced: true,
            denied_by_default: vec![policy("rule1")],
            ..Ruleset::default()
        });
        let planned = EndpointPlan {
            endpoint,
            identity,
            ingress: ruleset.clone(),
            egress: ruleset.clone(),
            audit: false,
        };
        let plan = NodePlan {
            endpoints: [(id, planned)].into(),
            identities: Arc::new([(identity, "org=empire".parse().unwrap())].into()),
            ..NodePlan::default()
        };
        let attribution = Attribution {
            cookies: [(4, [policy("deny-all")].into())].into(),
            rulesets: [(9, ruleset)].into(),
        };
        Context::new("node1".to_owned(), Arc::new(plan), Arc::new(attribution))
    }

    /// A SYN from outside to the endpoint's port 80, dropped because nothing in ruleset 9 matched.
    fn dropped() -> Event {
        Event {
            time: 1_000,
            source: Address::v4([203, 0, 113, 5]),
            destination: Address::v4([10, 0, 0, 7]),
            source_identity: 9,
            destination_identity: 300,
            ifindex: 70,
            ruleset: 9,
            cookie: 0,
            length: 74,
            source_port: 49_446,
            destination_port: 80,
            kind: EventKind::Drop as u8,
            reason: DropReason::PolicyDenied as u8,
            direction: abi::Direction::Ingress as u8,
            protocol: protocol::TCP,
            tcp_flags: 2,
            flags: 0,
            ethertype: 0x0800u16.to_be_bytes(),
            authentication: 0,
        }
    }

    #[test]
    fn a_drop_names_both_ends_the_reason_and_the_policy_whose_default_deny_holds() {
        let flow = context().flow(&dropped(), 5_000).unwrap();
        assert_eq!((flow.time, flow.node.as_str(), flow.interface.as_str()), (6_000, "node1", "fm7"));
        assert_eq!(
            (flow.verdict, flow.direction, flow.is_reply),
            (Verdict::Dropped, TrafficDirection::Ingress, None)
        );
        let drop = flow.drop.unwrap();
        assert_eq!(
            (drop.reason, drop.text.as_str(), drop.policies),
            (133, "Policy denied", vec![policy("rule1")])
        );
        assert_eq!(flow.source.labels, LabelSet::reserved("world-ipv4"));
        assert_eq!((flow.source.port, flow.source.workload), (Some(49_446), None));
        assert_eq!(flow.destination.workload.unwrap().to_string(), "default/deathstar");
        assert_eq!(flow.destination.labels.to_string(), "k8s:org=empire");
        assert!(!flow.trace);
    }

    #[test]
    fn an_entry_that_denied_names_its_own_policies() {
        let event = Event { cookie: 4, reason: DropReason::PolicyDeny as u8, ..dropped() };
        let drop = context().flow(&event, 0).unwrap().drop.unwrap();
        assert_eq!(
            (drop.text.as_str(), drop.policies),
            ("Policy denied by denylist", vec![policy("deny-all")])
        );
    }

    #[test]
    fn what_passes_has_no_drop_but_an_audited_packet_says_what_it_would_have_been() {
        let allowed =
            Event { kind: EventKind::Allowed as u8, reason: 0, flags: EventFlags::REPLY, ..dropped() };
        let flow = context().flow(&allowed, 0).unwrap();
        assert_eq!((flow.verdict, flow.drop, flow.is_reply), (Verdict::Forwarded, None, Some(true)));
        let audited = Event { flags: EventFlags::AUDITED, ..allowed };
        let flow = context().flow(&audited, 0).unwrap();
        assert_eq!((flow.verdict, flow.is_reply), (Verdict::Audit, Some(false)));
        assert_eq!(flow.drop.unwrap().policies, [policy("rule1")]);
    }

    #[test]
    fn a_refusal_says_why_and_whose_and_a_mark_who_is_behind_it() {
        let mut plan = NodePlan::clone(&context().plan);
        let end = |name: &str, ipv4: [u8; 4]| AuthEndpoint {
            workload: name.parse().unwrap(),
            id: format!("spiffe://td/ns/default/sa/{name}").parse().unwrap(),
            identity: Identity::new(300).unwrap(),
            ipv4: ipv4.into(),
            ipv6: Ipv6Addr::LOCALHOST,
        };
        plan.auth = Some(Arc::new(AuthPlan {
            trust_domain: "td".parse().unwrap(),
            node: "node1".to_owned(),
            grace: 10_000,
            ahead: 20_000,
            nodes: BTreeMap::new(),
            endpoints: [(1, end("deathstar", [10, 0, 0, 7]))].into(),
            remotes: [(
                InstanceName { node: "node2".to_owned(), instance: 4 },
                end("xwing", [203, 0, 113, 5]),
            )]
            .into(),
            pairs: BTreeSet::new(),
        }));
        let context = Context::new("node1".to_owned(), Arc::new(plan), Arc::default());
        let refused = |reason: Refusal, side| {
            let event = Event {
                reason: DropReason::AuthenticationRefused as u8,
                authentication: reason.encode(side).into(),
                ..dropped()
            };
            context.flow(&event, 0).unwrap().authentication.unwrap().refusal()
        };
        for (reason, side, expected) in [
            (Refusal::Expired, None, "the certificate has expired"),
            (
                Refusal::Expired,
                Some(Side::Peer),
                "the certificate has expired: spiffe://td/ns/default/sa/xwing",
            ),
            (
                Refusal::Expired,
                Some(Side::Own),
                "the certificate has expired: spiffe://td/ns/default/sa/deathstar",
            ),
            (
                Refusal::NoCertificate,
                None,
                "no certificate for our workload: spiffe://td/ns/default/sa/deathstar",
            ),
            (
                Refusal::NotAttested,
                None,
                "the peer's node does not vouch for it: spiffe://td/ns/default/sa/xwing",
            ),
        ] {
            assert_eq!(refused(reason, side).as_deref(), Some(expected));
        }
        let proven = Event { kind: EventKind::Allowed as u8, reason: 0, authentication: 77, ..dropped() };
        let [source, destination] = ["xwing", "deathstar"]
            .map(|name| Some(format!("spiffe://td/ns/default/sa/{name}").parse().unwrap()));
        let flow = context.flow(&proven, 0).unwrap();
        assert_eq!(flow.authentication, Some(Authentication::Proven { source, destination }));
        assert_eq!(context.flow(&dropped(), 0).unwrap().authentication, None);
    }

    #[test]
    fn an_ipv6_echo_has_a_type_and_no_ports() {
        let event = Event {
            source: Address("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets()),
            destination: Address("fd00::7".parse::<Ipv6Addr>().unwrap().octets()),
            source_port: 77,
            destination_port: 128,
            protocol: protocol::ICMPV6,
            ethertype: 0x86ddu16.to_be_bytes(),
            ..dropped()
        };
        let flow = context().flow(&event, 0).unwrap();
        assert_eq!((flow.icmp_type, flow.source.port, flow.destination.port), (Some(128), None, None));
        assert_eq!(flow.source.address.unwrap().to_string(), "2001:db8::1");
        assert!(flow.destination.workload.is_some());
    }

    #[test]
    fn a_record_keeps_the_kernels_numbers_and_names_the_endpoints() {
        let record = context().record(&dropped(), 5_000);
        assert_eq!((record.time, record.kind, record.reason, record.direction), (6_000, 1, 133, 0));
        assert_eq!((record.ifindex, record.ruleset, record.cookie, record.length), (70, 9, 0, 74));
        assert_eq!((record.source_identity, record.destination_identity), (9, 300));
        assert_eq!((record.source_port, record.destination_port, record.ethertype), (49_446, 80, 0x0800));
        assert_eq!(record.source, Some("203.0.113.5".parse().unwrap()));
        assert_eq!((record.endpoint, record.from, record.to), (Some(7), None, Some(7)));
        // On egress the sender is who judged, whatever address it claims.
        let forged = Event { direction: abi::Direction::Egress as u8, ..dropped() };
        let record = context().record(&forged, 0);
        assert_eq!((record.endpoint, record.from, record.to), (Some(7), Some(7), Some(7)));
        let elsewhere = Event { ifindex: 1234, ethertype: 0x8847u16.to_be_bytes(), ..dropped() };
        let record = context().record(&elsewhere, 0);
        assert_eq!((record.endpoint, record.from, record.to, record.source), (None, None, None, None));
    }

    #[test]
    fn a_frame_that_is_not_ip_has_no_addresses_and_an_unknown_number_is_still_reported() {
        let event = Event { ethertype: 0x8847u16.to_be_bytes(), reason: 99, ifindex: 1234, ..dropped() };
        let flow = context().flow(&event, 0).unwrap();
        assert_eq!((flow.source.address, flow.interface.as_str()), (None, "1234"));
        assert_eq!(flow.drop.unwrap().text, "Unknown reason 99");
        assert!(context().flow(&Event { kind: 200, ..dropped() }, 0).is_none());
    }
}
