//! Headers as they stand on the wire. Every field is bytes, so that alignment and byte order never surprise.

use core::mem::offset_of;

/// A protocol header: plain bytes at a fixed offset.
macro_rules! header {
    ($( $(#[$doc:meta])* $name:ident [$size:literal] { $($field:ident: $type:ty),+ $(,)? } )+) => { $(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub(crate) struct $name { $(pub(crate) $field: $type),+ }
        const _: () = assert!(size_of::<$name>() == $size && align_of::<$name>() == 1);
    )+ };
}

header! {
    /// IEEE 802.3.
    Ethernet [14] { destination: [u8; 6], source: [u8; 6], ethertype: [u8; 2] }
    /// Of [`Ethernet`] what follows the destination.
    Link [8] { source: [u8; 6], ethertype: [u8; 2] }
    /// RFC 826, for IPv4 over Ethernet.
    Arp [28] {
        hardware: [u8; 2], protocol: [u8; 2], hardware_length: u8, protocol_length: u8, operation: [u8; 2],
        sender_mac: [u8; 6], sender: [u8; 4], target_mac: [u8; 6], target: [u8; 4],
    }
    /// RFC 791, without options.
    Ipv4 [20] {
        version_ihl: u8, tos: u8, total_length: [u8; 2], id: [u8; 2], fragment: [u8; 2], ttl: u8, protocol: u8,
        checksum: [u8; 2], source: [u8; 4], destination: [u8; 4],
    }
    /// RFC 8200.
    Ipv6 [40] {
        version_class_flow: [u8; 4], payload_length: [u8; 2], next_header: u8, hop_limit: u8,
        source: [u8; 16], destination: [u8; 16],
    }
    /// RFC 8200 section 4: of options and routing headers the start, all of a fragment header.
    Extension [8] { next_header: u8, length: u8, routing_type: u8, segments_left: u8, id: [u8; 4] }
    /// RFC 9293, without options.
    Tcp [20] {
        source: [u8; 2], destination: [u8; 2], sequence: [u8; 4], acknowledgement: [u8; 4], offset: u8, flags: u8,
        window: [u8; 2], checksum: [u8; 2], urgent: [u8; 2],
    }
    /// RFC 768.
    Udp [8] { source: [u8; 2], destination: [u8; 2], length: [u8; 2], checksum: [u8; 2] }
    /// RFC 9260, the common header.
    Sctp [12] { source: [u8; 2], destination: [u8; 2], tag: [u8; 4], checksum: [u8; 4] }
    /// RFC 792 and RFC 4443: `rest` begins with the identifier of an echo.
    Icmp [8] { kind: u8, code: u8, checksum: [u8; 2], rest: [u8; 4] }
    /// RFC 4861 section 4.3 and 4.4 with one link-layer address option.
    Neighbour [32] {
        kind: u8, code: u8, checksum: [u8; 2], flags: [u8; 4], target: [u8; 16],
        option: u8, option_length: u8, mac: [u8; 6],
    }
}

impl Link {
    /// Where it stands in a frame.
    pub(crate) const OFFSET: u32 = offset_of!(Ethernet, source) as u32;
}

/// EtherTypes.
pub(crate) mod ethertype {
    pub(crate) const IPV4: [u8; 2] = [0x08, 0x00];
    pub(crate) const ARP: [u8; 2] = [0x08, 0x06];
    pub(crate) const IPV6: [u8; 2] = [0x86, 0xdd];
}

/// IP protocol numbers and IPv6 next headers.
pub(crate) mod protocol {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const ESP: u8 = 50;
    pub(crate) const AH: u8 = 51;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const DESTINATION_OPTIONS: u8 = 60;
    pub(crate) const SCTP: u8 = 132;
    pub(crate) const MOBILITY: u8 = 135;
    pub(crate) const HIP: u8 = 139;
    pub(crate) const SHIM6: u8 = 140;
}

/// ICMP types.
pub(crate) mod icmp4 {
    pub(crate) const ECHO_REPLY: u8 = 0;
    pub(crate) const UNREACHABLE: u8 = 3;
    pub(crate) const REDIRECT: u8 = 5;
    pub(crate) const ECHO_REQUEST: u8 = 8;
    pub(crate) const TIME_EXCEEDED: u8 = 11;
    pub(crate) const PARAMETER_PROBLEM: u8 = 12;
}

/// ICMPv6 types.
pub(crate) mod icmp6 {
    pub(crate) const UNREACHABLE: u8 = 1;
    pub(crate) const TOO_BIG: u8 = 2;
    pub(crate) const TIME_EXCEEDED: u8 = 3;
    pub(crate) const PARAMETER_PROBLEM: u8 = 4;
    pub(crate) const ECHO_REQUEST: u8 = 128;
    pub(crate) const ECHO_REPLY: u8 = 129;
    pub(crate) const MLD_QUERY: u8 = 130;
    pub(crate) const MLD_REPORT: u8 = 131;
    pub(crate) const MLD_DONE: u8 = 132;
    pub(crate) const ROUTER_SOLICITATION: u8 = 133;
    pub(crate) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(crate) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(crate) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub(crate) const REDIRECT: u8 = 137;
    pub(crate) const MLD2_REPORT: u8 = 143;
}

/// TCP flags.
pub(crate) mod tcp {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
    pub(crate) const ACK: u8 = 16;
    pub(crate) const URG: u8 = 32;
}

pub(crate) const ETHERNET: u32 = size_of::<Ethernet>() as u32;
