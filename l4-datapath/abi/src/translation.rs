//! `TRANSLATIONS`: packets that leave with other addresses than they came with; and what masquerading needs to know.
//!
//! Two uses, one table: services for what the cgroup hooks do not see, and masquerading. Each translated connection has
//! two entries, one for each direction. They live as long as the connection's entry in `CONNECTIONS4` or `CONNECTIONS6`
//! does: `conntrack_gc` removes both when that is gone.

use crate::Address;

/// Addresses and ports of a packet, in the order of the packet. Key of `TRANSLATIONS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PacketTuple {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, network order. For ICMP echo both ports are the identifier.
    pub source_port: [u8; 2],
    /// Destination port, network order.
    pub destination_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub zero: [u8; 3],
}

impl PacketTuple {
    /// The tuple of an answer.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..*self
        }
    }
}

/// What a packet with the key's tuple becomes. Value of `TRANSLATIONS`. Writers: the programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The tuple it has from then on.
    pub tuple: PacketTuple,
    /// [`TranslationKind`] as u8.
    pub kind: u8,
    /// 1 if the key is the direction in which the connection was opened.
    pub is_forward: u8,
    /// 1 once `conntrack_gc` has found a reverse half without its forward half: the next time it goes. Not the first
    /// time, for the reverse half is entered first.
    pub orphaned: u8,
    /// Zero.
    pub zero: u8,
}

/// Why a packet is translated.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TranslationKind {
    /// A VIP stands for a backend.
    Service = 1,
    /// The node's address stands for a workload's.
    Masquerade = 2,
}

/// Value of `DEVICES` (key: interface index): a device that leads out of the node. Writer: the agent.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// What workloads are masqueraded by; zero: the device has none, and what would need it is dropped.
    pub ipv4: [u8; 4],
    /// Likewise.
    pub ipv6: [u8; 16],
    /// [`DeviceFlags`].
    pub flags: u32,
}

/// Bits of [`Device::flags`].
pub struct DeviceFlags;
impl DeviceFlags {
    /// What workloads send out by IPv4 is masqueraded.
    pub const MASQUERADE4: u32 = 1;
    /// What workloads send out by IPv6 is masqueraded.
    pub const MASQUERADE6: u32 = 2;
}

/// `BOUND`, an array of 1024 words: bit `port % 64` of word `port / 64` is set once a process of the node has bound
/// the port itself; it is not used for masquerading then. Writer: `post_bind`.
pub const BOUND_WORDS: u32 = 1024;

const _: () = assert!(size_of::<PacketTuple>() == 40 && size_of::<Translation>() == 44);
const _: () = assert!(size_of::<Device>() == 24);
