//! On which ports: `toPorts`.

use mesh::policy::{PortMatch, protocol};

use super::layer7::{self, Demand};
use super::{Direction, Scope};
use crate::kind::ports::{self, Port};
use crate::yaml::At;

/// Cilium's limit per rule.
const MOST_PORTS: usize = 40;

/// How a protocol goes with ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    /// TCP, UDP and SCTP.
    Any,
    /// One that has ports.
    Ports(u8),
    /// The port is a type.
    Icmp(u8),
    /// One without ports.
    Whole(u8),
}

const PROTOCOLS: [(Protocol, &str); 13] = [
    (Protocol::Any, "ANY"),
    (Protocol::Ports(protocol::TCP), "TCP"),
    (Protocol::Ports(protocol::UDP), "UDP"),
    (Protocol::Ports(protocol::SCTP), "SCTP"),
    (Protocol::Icmp(protocol::ICMP), "ICMP"),
    (Protocol::Icmp(protocol::ICMPV6), "ICMPV6"),
    (Protocol::Whole(2), "IGMP"),
    (Protocol::Whole(4), "IPIP"),
    (Protocol::Whole(41), "IPV6"),
    (Protocol::Whole(47), "GRE"),
    (Protocol::Whole(50), "ESP"),
    (Protocol::Whole(51), "AH"),
    (Protocol::Whole(112), "VRRP"),
];

/// One item of `toPorts`: its ports, and what else must hold.
pub(super) fn to_ports(
    at: &At<'_>,
    scope: Scope<'_>,
    direction: Direction,
    denies: bool,
) -> Option<(Vec<PortMatch>, Demand)> {
    at.mapping(|fields| {
        let list = fields.require("ports", "at least one port (port \"0\" is every port)")?;
        let items = list.list();
        if items.is_empty() {
            list.error("found an empty list, expected at least one port (port \"0\" is every port)");
        }
        if items.len() > MOST_PORTS {
            list.error(format_args!(
                "found {} ports, at most {MOST_PORTS} fit one rule; write two",
                items.len()
            ));
        }
        let ports: Vec<_> = items.iter().filter_map(port).collect();
        let demand =
            if denies { Demand::default() } else { layer7::demand(fields, scope, direction, &ports) };
        Some((ports, demand))
    })?
}

fn port(at: &At<'_>) -> Option<PortMatch> {
    at.mapping(|fields| {
        let protocol_at = fields.get("protocol");
        let protocol = protocol_at.as_ref().map_or(Some(Protocol::Any), protocol_of);
        let port_at = fields.require("port", "1-65535, a port name, or \"0\" for every port")?;
        let port = ports::port(&port_at, true);
        let end = ports::end(fields, port.as_ref());
        let (protocol, port) = (protocol?, port?);
        match (protocol, &port) {
            (Protocol::Any, _) => Some(ports::matching(None, Some(port), end)),
            (Protocol::Ports(number), _) => Some(ports::matching(Some(number), Some(port), end)),
            (Protocol::Icmp(number), Port::Number(0)) => {
                Some(PortMatch::Icmp { protocol: number, icmp_type: None })
            }
            (Protocol::Icmp(number), Port::Number(kind)) if *kind <= 255 && end.is_none() => {
                Some(PortMatch::Icmp { protocol: number, icmp_type: u8::try_from(*kind).ok() })
            }
            (Protocol::Icmp(_), _) => {
                port_at
                    .expected("an ICMP type from 1 to 255, or \"0\" for every type; icmps can name type 0");
                None
            }
            (Protocol::Whole(number), Port::Number(0)) => Some(PortMatch::Protocol(number)),
            (Protocol::Whole(_), _) => {
                port_at.expected("\"0\": the protocol has no ports");
                None
            }
        }
    })?
}

/// Cilium reads protocols in any case.
fn protocol_of(at: &At<'_>) -> Option<Protocol> {
    let text = at.text("a protocol")?;
    let exact = PROTOCOLS.iter().find(|(_, name)| name.eq_ignore_ascii_case(text));
    match exact {
        Some((protocol, _)) => Some(*protocol),
        None => at.one_of(&PROTOCOLS),
    }
}
