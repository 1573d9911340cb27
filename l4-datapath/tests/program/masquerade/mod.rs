//! `to_netdev` and `from_netdev`: workloads' packets under the node's address, and back.

mod allocation;
mod arriving;
mod errors;
mod expiry;
mod leaving;
pub(crate) mod live;
mod pieces;

use std::{net::IpAddr, ops::RangeInclusive};

use abi::{Address, Device, DeviceFlags, DropReason, Node as NodeValue, map};
use aya::maps::{LpmTrie, lpm_trie::Key};
use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

use super::{
    frame::{ACK, Ends, SYN, echo, is_sound, tcp, udp},
    node::Node,
    run::{self, Context, Outcome, SHOT},
    world::{FAMILIES, Family, NIC, Pod, address},
};

/// On to the next program.
pub(crate) const UNSPEC: u32 = u32::MAX;
/// Ports of the tests; workloads' own are beyond, unless a test says otherwise.
const PORTS: RangeInclusive<u16> = 50_000..=60_000;

/// A node whose pods may do all, and whose device masquerades both families.
pub(crate) fn gate() -> Node {
    let mut node = Node::new();
    node.allow_all();
    node.set_ports(PORTS);
    node.set_device(Some(FAMILIES.map(Family::outside)), DeviceFlags::MASQUERADE4 | DeviceFlags::MASQUERADE6);
    for family in FAMILIES {
        node.identify(family.outside(), 128, abi::ReservedIdentity::HOST);
    }
    node
}

impl Node {
    fn set_ports(&mut self, ports: RangeInclusive<u16>) {
        let masquerade = u32::from(*ports.start()) << 16 | u32::from(*ports.end());
        self.set(map::NODE, 0, NodeValue { generation: 1, masquerade, ..NodeValue::default() });
    }

    fn set_device(&mut self, addresses: Option<[IpAddr; 2]>, flags: u32) {
        let mut device = Device { flags, ..Device::default() };
        for address in addresses.into_iter().flatten() {
            match address {
                IpAddr::V4(v4) => device.ipv4 = v4.octets(),
                IpAddr::V6(v6) => device.ipv6 = v6.octets(),
            }
        }
        self.put(map::DEVICES, NIC, device);
    }

    /// Lets the destination see workloads' own addresses.
    pub(crate) fn except(&mut self, ip: IpAddr) {
        let mut map: LpmTrie<_, Address, u32> =
            LpmTrie::try_from(self.bpf().map_mut(map::UNMASQUERADED).unwrap()).unwrap();
        map.insert(&Key::new(128, address(ip)), 1, 0).unwrap();
    }

    /// What `from_pod` lets pass, as it leaves the device.
    #[track_caller]
    fn leaves(&mut self, pod: Pod, frame: &[u8]) -> Vec<u8> {
        self.passes("from_pod", pod, frame);
        self.goes_on("to_netdev", by(pod), frame)
    }

    /// What comes to the device, as it goes on.
    #[track_caller]
    fn arrives(&mut self, frame: &[u8]) -> Vec<u8> {
        self.goes_on("from_netdev", Context { ingress_ifindex: NIC, ..Context::default() }, frame)
    }

    #[track_caller]
    fn goes_on(&mut self, program: &str, context: Context, frame: &[u8]) -> Vec<u8> {
        let outcome = self.on_device(program, context, frame);
        let events: Vec<_> =
            self.events().iter().map(|event| DropReason::from_number(event.reason)).collect();
        assert_eq!((outcome.verdict, events), (UNSPEC, vec![]), "{program} {frame:02x?}");
        outcome.frame
    }

    /// Asserts that the device's program drops the frame, at the cost of this interface.
    #[track_caller]
    fn stops(&mut self, program: &str, context: Context, frame: &[u8], expected: (DropReason, u32)) {
        self.events();
        let (before, held) = (self.drops(), self.halves().len());
        let outcome = self.on_device(program, context, frame);
        let told: Vec<_> =
            self.events().iter().map(|e| (DropReason::from_number(e.reason), e.ifindex)).collect();
        assert_eq!((outcome.verdict, told), (SHOT, vec![(Some(expected.0), expected.1)]), "{frame:02x?}");
        let direction = u8::from(program == "to_netdev");
        let mut counts = before;
        let direction = if direction == 1 { abi::Direction::Egress } else { abi::Direction::Ingress };
        *counts.entry((expected.1, expected.0 as u8, direction as u8)).or_default() += 1;
        assert_eq!(self.drops(), counts);
        assert_eq!(self.halves().len(), held, "who is refused leaves nothing behind");
    }

    fn on_device(&mut self, program: &str, context: Context, frame: &[u8]) -> Outcome {
        self.events();
        run::run(self.program(program), NIC, context, frame)
    }
}

/// A packet that came in by the pod's veth.
fn by(pod: Pod) -> Context {
    Context { ingress_ifindex: pod.ifindex, ..Context::default() }
}

/// What is masqueraded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Talk {
    Tcp,
    Udp,
    Echo,
}

impl Talk {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Echo];

    /// The first packet, from this port or under this identifier.
    fn question(self, ends: Ends, port: u16) -> Vec<u8> {
        match self {
            Self::Tcp => tcp(ends, (port, 80), SYN),
            Self::Udp => udp(ends, (port, 53), b"question"),
            Self::Echo => echo(ends, true, port),
        }
    }

    /// What is answered.
    fn answer(self, ends: Ends, port: u16) -> Vec<u8> {
        match self {
            Self::Tcp => tcp(ends, (80, port), SYN | ACK),
            Self::Udp => udp(ends, (53, port), b"answers"),
            Self::Echo => echo(ends, false, port),
        }
    }

    /// The port or identifier that stands in a question.
    fn port(self, ends: Ends, frame: &[u8]) -> u16 {
        let at = ends.transport() + if self == Self::Echo { 4 } else { 0 };
        u16::from_be_bytes([frame[at], frame[at + 1]])
    }

    /// The port the question leaves under.
    #[track_caller]
    fn ask(self, node: &mut Node, pod: Pod, family: Family, port: u16) -> u16 {
        let ends = family.from(pod, family.peer());
        self.port(ends, &node.leaves(pod, &self.question(ends, port)))
    }
}

/// From the node to the peer, between the MACs that `ends` has.
fn outward(family: Family, ends: Ends) -> Ends {
    Ends { addresses: (family.outside(), family.peer()), ..ends }
}

/// From the peer to the node.
fn inward(family: Family, pod: Pod) -> Ends {
    Ends { addresses: (family.peer(), family.outside()), ..family.to(family.peer(), pod) }
}

/// Asserts that every checksum is right, by our reckoning and by etherparse's.
#[track_caller]
fn assert_sound(ends: Ends, frame: &[u8]) {
    assert!(is_sound(ends, frame), "{frame:02x?}");
    let packet = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let payload = packet.payload.slice();
    let (stated, right) = match (packet.net.unwrap(), packet.transport.unwrap()) {
        (NetHeaders::Ipv4(ip, _), transport) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            match transport {
                TransportHeader::Tcp(tcp) => (tcp.checksum, tcp.calc_checksum_ipv4(&ip, payload).unwrap()),
                TransportHeader::Udp(udp) => (udp.checksum, udp.calc_checksum_ipv4(&ip, payload).unwrap()),
                TransportHeader::Icmpv4(icmp) => (icmp.checksum, icmp.icmp_type.calc_checksum(payload)),
                other => panic!("{other:?} over IPv4"),
            }
        }
        (NetHeaders::Ipv6(ip, _), transport) => match transport {
            TransportHeader::Tcp(tcp) => (tcp.checksum, tcp.calc_checksum_ipv6(&ip, payload).unwrap()),
            TransportHeader::Udp(udp) => (udp.checksum, udp.calc_checksum_ipv6(&ip, payload).unwrap()),
            TransportHeader::Icmpv6(icmp) => {
                (icmp.checksum, icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload).unwrap())
            }
            other => panic!("{other:?} over IPv6"),
        },
        (NetHeaders::Arp(_), _) => panic!("ARP has no transport header"),
    };
    assert_eq!(stated, right, "{frame:02x?}");
}
