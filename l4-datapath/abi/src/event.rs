//! The record the programs put into the `EVENTS` ring buffer.

/// What happened.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A packet was dropped; `reason` says why.
    Drop = 1,
    /// A new connection was allowed.
    Allowed = 2,
    /// A packet passed; only at trace level 1.
    Trace = 3,
}

/// Bits of [`Event::flags`].
pub struct EventFlags;
impl EventFlags {
    /// The packet runs against the direction in which its connection was opened.
    pub const REPLY: u8 = 1;
    /// Policy denies it; it passed because of audit mode.
    pub const AUDITED: u8 = 2;
}

/// One event. Addresses and ports are the packet's own.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// CLOCK_BOOTTIME, nanoseconds.
    pub time: u64,
    /// Source address, see [`crate::Address`].
    pub source: crate::Address,
    /// Destination address.
    pub destination: crate::Address,
    /// Identity of the source, 0 unknown.
    pub source_identity: u32,
    /// Identity of the destination, 0 unknown.
    pub destination_identity: u32,
    /// Host-side veth of the endpoint that judged.
    pub ifindex: u32,
    /// Ruleset that decided; 0 where none was asked.
    pub ruleset: u32,
    /// [`crate::RuleValue::cookie`] of the entry that decided; 0 where none matched.
    pub cookie: u32,
    /// Length of the packet in bytes, Ethernet header included.
    pub length: u32,
    /// Source port, machine order; ICMP: identifier.
    pub source_port: u16,
    /// Destination port, machine order; ICMP: type.
    pub destination_port: u16,
    /// [`EventKind`] as u8.
    pub kind: u8,
    /// [`crate::DropReason`] as u8, 0 unless dropped.
    pub reason: u8,
    /// [`crate::Direction`] as u8.
    pub direction: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags byte (FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32), else 0.
    pub tcp_flags: u8,
    /// [`EventFlags`].
    pub flags: u8,
    /// EtherType, network order: what the packet was when it was not IP.
    pub ethertype: [u8; 2],
    /// Of an allowed connection: number of the mark it depends on. Of one whose proof was refused: why, a number that
    /// `mesh::auth::Refusal` has. Else 0.
    pub authentication: u32,
}
const _: () = assert!(size_of::<Event>() == 80);
