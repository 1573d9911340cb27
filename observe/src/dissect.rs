//! The kernel's events in words, in the shapes of `cilium-dbg monitor`:
//!
//! ```text
//! xx drop (Policy denied) flow 0x9a2be3f1 to endpoint 3, ifindex 103, ruleset 5, identity 13058->17839: 10.1.0.7:49446 -> 10.1.0.3:80 tcp SYN
//! -> endpoint 3 flow 0x9a2be3f1, identity 13058->17839 state new ifindex 103: 10.1.0.7:49446 -> 10.1.0.3:80 tcp SYN
//! Policy verdict log: flow 0x9a2be3f1 local EP ID 3, remote ID 13058, proto 6, ingress, action allow, match cookie 4, 10.1.0.7:49446 -> 10.1.0.3:80 tcp SYN
//! ```
//!
//! Numbers only, as they were recorded. The record holds what was parsed of the packet's headers, not its bytes: that
//! is what [`layers`] shows.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use abi::{Direction, DropReason, EventFlags, EventKind};
use jiff::Timestamp;
use mesh::auth::{Refusal, Side};
use mesh::policy::protocol;
use node_api::{EventType, EventView};

use crate::compact::{TcpFlags, icmp_name};
use crate::monitor::{is_audited, tells};

/// The line, without newline. What is neither a drop nor a trace that was asked for is shown as a verdict.
pub fn line(event: &EventView, types: &[EventType]) -> String {
    let asked = |kind| types.is_empty() || types.contains(&kind);
    let shown = |kind| asked(kind) && tells(event, kind);
    match (shown(EventType::Drop), shown(EventType::Trace)) {
        (true, _) => Drop(event).to_string(),
        (_, true) => Trace(event).to_string(),
        _ => PolicyVerdict(event).to_string(),
    }
}

/// What the record holds of each header, a line each, and what became of the packet.
pub fn layers(event: &EventView) -> String {
    let mut text = format!("{:-<78}\n{}\n", "", Ethernet(event));
    if let (Some(source), Some(destination)) = (event.source, event.destination) {
        let version = if source.is_ipv4() { "IPv4" } else { "IPv6" };
        let name = protocol_name(event.protocol);
        text += &format!("{version}\t{{SrcIP={source} DstIP={destination} Protocol={name}}}\n");
        text += &transport(event);
    }
    text + &format!("{}\n", Outcome(event))
}

struct Drop<'a>(&'a EventView);

impl fmt::Display for Drop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        let EventView { ifindex, ruleset, source_identity, destination_identity, .. } = event;
        write!(
            f,
            "xx drop ({}) {} {}, ifindex {ifindex}",
            reason(event.reason),
            FlowHash(event),
            Judge(event)
        )?;
        if *ruleset != 0 {
            write!(f, ", ruleset {ruleset}")?;
        }
        write!(f, ", identity {source_identity}->{destination_identity}: {}", Connection(event))
    }
}

struct Trace<'a>(&'a EventView);

impl fmt::Display for Trace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        let EventView { ifindex, source_identity, destination_identity, .. } = event;
        let arrow = if is_ingress(event) { "->" } else { "<-" };
        write!(f, "{arrow} {} {}", Endpoint(event.endpoint), FlowHash(event))?;
        write!(f, ", identity {source_identity}->{destination_identity} state {}", state(event))?;
        write!(f, " ifindex {ifindex}: {}", Connection(event))
    }
}

struct PolicyVerdict<'a>(&'a EventView);

impl fmt::Display for PolicyVerdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        let remote = if is_ingress(event) { event.source_identity } else { event.destination_identity };
        let action = match event.kind {
            kind if kind == EventKind::Drop as u8 => "deny",
            _ if is_audited(event) => "audit",
            _ => "allow",
        };
        let matched = if event.cookie == 0 { "none".to_owned() } else { format!("cookie {}", event.cookie) };
        write!(f, "Policy verdict log: {} local EP ID {}", FlowHash(event), event.endpoint.unwrap_or(0))?;
        write!(f, ", remote ID {remote}, proto {}, {}", event.protocol, direction(event))?;
        write!(f, ", action {action}, match {matched}, {}", Connection(event))
    }
}

/// The same for all packets of a conversation, in both directions; not the hash that the kernel gives a packet.
struct FlowHash<'a>(&'a EventView);

impl fmt::Display for FlowHash<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        // Of an echo only the identifier is the conversation's.
        let (here, there) = match event.protocol {
            protocol::ICMP | protocol::ICMPV6 => (event.source_port, event.source_port),
            _ => (event.source_port, event.destination_port),
        };
        let mut ends = [(event.source, here), (event.destination, there)];
        ends.sort_unstable();
        let octets = |address: Option<IpAddr>| match address {
            Some(IpAddr::V4(address)) => address.octets().to_vec(),
            Some(IpAddr::V6(address)) => address.octets().to_vec(),
            None => Vec::new(),
        };
        let bytes = ends
            .into_iter()
            .flat_map(|(address, port)| octets(address).into_iter().chain(port.to_be_bytes()));
        // FNV-1a.
        let hash = bytes
            .chain([event.protocol])
            .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        write!(f, "flow 0x{hash:08x}")
    }
}

struct Endpoint(Option<u16>);

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => write!(f, "endpoint {number}"),
            None => f.write_str("node"),
        }
    }
}

/// Who judged, and on which side of it the packet was.
struct Judge<'a>(&'a EventView);

impl fmt::Display for Judge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if is_ingress(self.0) { "to" } else { "from" };
        write!(f, "{side} {}", Endpoint(self.0.endpoint))
    }
}

/// `source -> destination`, protocol and flags or type.
struct Connection<'a>(&'a EventView);

impl fmt::Display for Connection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        let (Some(source), Some(destination)) = (event.source, event.destination) else {
            return write!(f, "[{}]", ethertype(event.ethertype));
        };
        let name = protocol_name(event.protocol).to_lowercase();
        match event.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => {
                let from = SocketAddr::new(source, event.source_port);
                let to = SocketAddr::new(destination, event.destination_port);
                write!(f, "{from} -> {to} {name}")?;
            }
            protocol::ICMP | protocol::ICMPV6 => {
                let kind = icmp_name(event.protocol, event.destination_port as u8);
                return write!(f, "{source} -> {destination} {name} {kind}");
            }
            _ => return write!(f, "{source} -> {destination} {name}"),
        }
        match event.protocol {
            protocol::TCP => write!(f, " {}", TcpFlags(event.tcp_flags)),
            _ => Ok(()),
        }
    }
}

struct Ethernet<'a>(&'a EventView);

impl fmt::Display for Ethernet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ethernet\t{{EthernetType={} Length={}}}", ethertype(self.0.ethertype), self.0.length)
    }
}

fn transport(event: &EventView) -> String {
    let (source, destination) = (event.source_port, event.destination_port);
    let ports = format!("SrcPort={source} DstPort={destination}");
    match event.protocol {
        protocol::TCP => format!("TCP\t{{{ports} Flags={}}}\n", TcpFlags(event.tcp_flags)),
        protocol::UDP => format!("UDP\t{{{ports}}}\n"),
        protocol::SCTP => format!("SCTP\t{{{ports}}}\n"),
        protocol::ICMP | protocol::ICMPV6 => {
            let kind = icmp_name(event.protocol, destination as u8);
            format!("{}\t{{Type={destination} ({kind}) Id={source}}}\n", protocol_name(event.protocol))
        }
        _ => String::new(),
    }
}

/// What became of the packet, with everything else the record holds.
struct Outcome<'a>(&'a EventView);

impl fmt::Display for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        let EventView { source_identity, destination_identity, ruleset, cookie, ifindex, length, .. } = event;
        match Timestamp::from_nanosecond(event.time.into()) {
            Ok(time) => write!(f, "{time:.6} ")?,
            Err(_) => f.write_str("N/A ")?,
        }
        write!(f, "{} ", Judge(event))?;
        if tells(event, EventType::Drop) {
            write!(f, "DROP: {length} bytes, reason {} ({})", reason(event.reason), event.reason)?;
        } else {
            let audited = if is_audited(event) { " by audit mode" } else { "" };
            write!(f, "PASS{audited}: {length} bytes, state {}", state(event))?;
        }
        write!(f, ", {}, ifindex {ifindex}, ruleset {ruleset}, cookie {cookie}", direction(event))?;
        write!(f, ", identity {source_identity}->{destination_identity}")?;
        match event.authentication {
            0 => Ok(()),
            number if event.kind == EventKind::Drop as u8 => {
                match u8::try_from(number).map(Refusal::decode) {
                    Ok(Some((why, side))) => {
                        let whose = match side {
                            None => "",
                            Some(Side::Own) => " of this end",
                            Some(Side::Peer) => " of the peer",
                        };
                        write!(f, ", refusal {}{whose}", why.number())
                    }
                    _ => write!(f, ", refusal {number}"),
                }
            }
            number => write!(f, ", mark {number}"),
        }
    }
}

fn state(event: &EventView) -> &'static str {
    match event.flags & EventFlags::REPLY {
        0 if event.kind == EventKind::Allowed as u8 => "new",
        0 => "established",
        _ => "reply",
    }
}

fn is_ingress(event: &EventView) -> bool {
    event.direction == Direction::Ingress as u8
}

fn direction(event: &EventView) -> &'static str {
    if is_ingress(event) { "ingress" } else { "egress" }
}

fn reason(number: u8) -> String {
    DropReason::from_number(number).map_or_else(|| number.to_string(), |reason| reason.text().to_owned())
}

fn protocol_name(number: u8) -> String {
    protocol::name(number).map_or_else(|| format!("IP protocol {number}"), str::to_owned)
}

fn ethertype(number: u16) -> String {
    match number {
        0x0800 => "IPv4".to_owned(),
        0x0806 => "ARP".to_owned(),
        0x86dd => "IPv6".to_owned(),
        number => format!("0x{number:04x}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A SYN from endpoint 7 to endpoint 3, which judged.
    pub(crate) fn dropped() -> EventView {
        EventView {
            time: 1_698_333_346_416_000_000,
            kind: EventKind::Drop as u8,
            reason: DropReason::PolicyDenied as u8,
            direction: Direction::Ingress as u8,
            flags: 0,
            ifindex: 103,
            endpoint: Some(3),
            from: Some(7),
            to: Some(3),
            source_identity: 13_058,
            destination_identity: 17_839,
            ruleset: 5,
            cookie: 0,
            ethertype: 0x0800,
            source: Some("10.1.0.7".parse().unwrap()),
            destination: Some("10.1.0.3".parse().unwrap()),
            protocol: protocol::TCP,
            source_port: 49_446,
            destination_port: 80,
            tcp_flags: 2,
            length: 74,
            authentication: 0,
        }
    }

    pub(crate) fn allowed() -> EventView {
        EventView { kind: EventKind::Allowed as u8, reason: 0, cookie: 4, ..dropped() }
    }

    fn echo() -> EventView {
        EventView {
            kind: EventKind::Trace as u8,
            direction: Direction::Egress as u8,
            source: Some("fd00::7".parse().unwrap()),
            destination: Some("2001:db8::1".parse().unwrap()),
            ethertype: 0x86dd,
            protocol: protocol::ICMPV6,
            source_port: 77,
            destination_port: 128,
            ..allowed()
        }
    }

    #[test]
    fn lines_are_in_ciliums_shapes() {
        let verdict = &[EventType::PolicyVerdict][..];
        let not_ip = EventView {
            ethertype: 0x8847,
            source: None,
            destination: None,
            endpoint: None,
            ruleset: 0,
            reason: 139,
            ..dropped()
        };
        let cases = [
            (
                dropped(),
                &[][..],
                "xx drop (Policy denied) flow 0xHASH to endpoint 3, ifindex 103, ruleset 5, identity \
                 13058->17839: 10.1.0.7:49446 -> 10.1.0.3:80 tcp SYN",
            ),
            (
                dropped(),
                verdict,
                "Policy verdict log: flow 0xHASH local EP ID 3, remote ID 13058, proto 6, ingress, action \
                 deny, match none, 10.1.0.7:49446 -> 10.1.0.3:80 tcp SYN",
            ),
            (
                allowed(),
                &[],
                "-> endpoint 3 flow 0xHASH, identity 13058->17839 state new ifindex 103: 10.1.0.7:49446 -> \
                 10.1.0.3:80 tcp SYN",
            ),
            (
                EventView { flags: EventFlags::AUDITED, direction: 1, ..allowed() },
                verdict,
                "Policy verdict log: flow 0xHASH local EP ID 3, remote ID 17839, proto 6, egress, action \
                 audit, match cookie 4, 10.1.0.7:49446 -> 10.1.0.3:80 tcp SYN",
            ),
            (
                echo(),
                &[],
                "<- endpoint 3 flow 0xHASH, identity 13058->17839 state established ifindex 103: fd00::7 -> \
                 2001:db8::1 icmpv6 EchoRequest",
            ),
            (
                not_ip,
                &[],
                "xx drop (Unsupported L3 protocol) flow 0xHASH to node, ifindex 103, identity 13058->17839: \
                 [0x8847]",
            ),
        ];
        for (event, types, expected) in cases {
            let hash = FlowHash(&event).to_string();
            assert_eq!(line(&event, types).replace(&hash, "flow 0xHASH"), expected);
        }
    }

    #[test]
    fn both_directions_of_a_conversation_have_one_hash_and_another_has_another() {
        let hash = |event: &EventView| FlowHash(event).to_string();
        let reply = EventView {
            source: dropped().destination,
            destination: dropped().source,
            source_port: 80,
            destination_port: 49_446,
            ..allowed()
        };
        assert_eq!(hash(&reply), hash(&dropped()));
        assert_ne!(hash(&EventView { source_port: 49_447, ..dropped() }), hash(&dropped()));
        let answer = EventView {
            source: echo().destination,
            destination: echo().source,
            destination_port: 129,
            ..echo()
        };
        assert_eq!(hash(&answer), hash(&echo()));
    }

    #[test]
    fn each_header_is_shown_as_far_as_the_record_holds_it() {
        let rule = "-".repeat(78);
        let expected = format!(
            "{rule}\n\
             Ethernet\t{{EthernetType=IPv4 Length=74}}\n\
             IPv4\t{{SrcIP=10.1.0.7 DstIP=10.1.0.3 Protocol=TCP}}\n\
             TCP\t{{SrcPort=49446 DstPort=80 Flags=SYN}}\n\
             2023-10-26T15:15:46.416000Z to endpoint 3 DROP: 74 bytes, reason Policy denied (133), ingress, \
             ifindex 103, ruleset 5, cookie 0, identity 13058->17839\n"
        );
        assert_eq!(layers(&dropped()), expected);
        assert!(layers(&echo()).contains("ICMPv6\t{Type=128 (EchoRequest) Id=77}\n"), "{}", layers(&echo()));
    }
}
