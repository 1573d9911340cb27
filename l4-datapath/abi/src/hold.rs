//! Packets that wait for a proof: how they stand in a frame of the hold device, and what is kept of them meanwhile.
//!
//! The device is a TAP whose other end the auth-agent has. It may send a packet on or lose it, nothing else: what comes
//! back must be, but for its transport checksum, bit for bit what went, by a hash whose key the auth-agent never sees.

use crate::Address;

/// What a packet waits for, in the frame that the hold device hands to the auth-agent.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldKind {
    /// The sender is an endpoint of this node whose policy requires the receiver to be authenticated.
    Egress = 1,
    /// The receiver is an endpoint of this node whose policy requires the sender to be authenticated.
    Ingress = 2,
    /// The other node's address is not known yet: the sender (egress) or the receiver (ingress) is an endpoint here.
    PendingEgress = 3,
    /// See [`Self::PendingEgress`].
    PendingIngress = 4,
}

impl HoldKind {
    /// The one with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Egress,
            2 => Self::Ingress,
            3 => Self::PendingEgress,
            4 => Self::PendingIngress,
            _ => return None,
        })
    }
}

/// A held packet's number and kind, as they stand in the destination MAC of its frame. The source MAC says nothing.
///
/// The rest is the packet as it was, but that one called by a VIP shows the address of the backend chosen for it, whose
/// proof it waits for. Checksums are complete, and still those of the VIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldTag {
    /// Number of the packet.
    pub id: u32,
    /// What it waits for.
    pub kind: HoldKind,
}

impl HoldTag {
    /// First byte: unicast, locally administered.
    const PREFIX: u8 = 0x06;

    /// As a MAC.
    #[inline(always)]
    pub const fn to_mac(self) -> [u8; 6] {
        let [a, b, c, d] = self.id.to_be_bytes();
        [Self::PREFIX, self.kind as u8, a, b, c, d]
    }

    /// From a MAC; `None` if it is none.
    #[inline(always)]
    pub const fn from_mac(mac: [u8; 6]) -> Option<Self> {
        match (mac[0], HoldKind::from_number(mac[1])) {
            (Self::PREFIX, Some(kind)) => {
                Some(Self { id: u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]), kind })
            }
            _ => None,
        }
    }
}

/// Packets that can wait at once, and elements of `HELD`; a power of two. Those with odd numbers are all that packets to
/// and from pending addresses can have; the others may have them, too.
pub const HELD: u32 = 1 << 12;
/// For how long a packet waits, nanoseconds. One that comes later is refused.
pub const HOLD_TIME: u64 = 1_100_000_000;
/// The longest frame that is held, Ethernet header included: whoever reads the device needs no larger buffer.
pub const HOLD_LENGTH: u32 = 9216;
/// Flows whose packets are counted.
pub const HOLD_FLOWS: u32 = 1 << 13;

/// Element of `HELD`: what is kept of the packet with number `id`, at `id % HELD`. Writers: the programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Until when it may come back (CLOCK_BOOTTIME, nanoseconds), an even number; 0: nobody waits. Odd while the element
    /// is being written. Changed by compare-and-exchange alone: so a packet comes back once.
    pub state: u64,
    /// SipHash-1-3 of the frame from the EtherType on, without the transport checksum.
    pub hash: u64,
    /// Number of the packet.
    pub id: u32,
    /// Length of the frame.
    pub length: u32,
    /// The device at whose hook it was stopped.
    pub ifindex: u32,
    /// Offset in the frame of the transport checksum.
    pub checksum: u16,
    /// Which hook of the device: [`crate::Direction`], egress for `from_pod`, ingress for `to_pod`.
    pub hook: u8,
    /// [`HoldKind`].
    pub kind: u8,
    /// Its own destination and source MAC.
    pub macs: [[u8; 6]; 2],
    /// Zero.
    pub zero: [u8; 4],
    /// The VIP it came to; all zero if to none.
    pub called: Address,
}

/// The one element of `HOLD`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hold {
    /// Key of [`Held::hash`], random. Writer: the agent, once, before [`crate::Node::hold`] is first set.
    pub key: [u64; 2],
    /// How many numbers of each kind were given out, even ones and odd ones: number `n` of a kind is `2n`, or `2n + 1`.
    /// Writers: the programs.
    pub last: [u64; 2],
    /// When a packet last found no room in all (CLOCK_BOOTTIME, nanoseconds). Writers: the programs.
    pub overflowed: u64,
}

/// Element of `HOLD_RATES`: what an endpoint has used up of what it may. Times are CLOCK_BOOTTIME in nanoseconds.
/// Writers: the programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HoldRate {
    /// Until when its share of waiting packets is used up, by [`crate::Direction`]: what others send to it takes nothing of
    /// what it can send itself.
    pub used: [u64; 2],
    /// The same of the pairs that its calls ask for.
    pub asked: u64,
    /// When a packet of it, or to it, last found its share used up.
    pub overflowed: u64,
}

/// Record of `TRIGGERS`: a call of a workload wants a proof that is not there. Writers: the programs; reader: the
/// auth-agent, which believes it no more than a packet that waits.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trigger {
    /// The workload's address, of the called one's family.
    pub source: Address,
    /// Whom it calls; behind a service, the backend chosen for it.
    pub destination: Address,
    /// [`HoldKind`]: which end's policy wants the proof.
    pub kind: u8,
    /// Zero.
    pub zero: [u8; 7],
}

/// Bytes of `TRIGGERS`. What finds it full is lost: the packet itself asks again.
pub const TRIGGERS: u32 = 1 << 16;

/// Elements of `HOLD_COUNTS`.
pub struct HoldCount;
impl HoldCount {
    /// Packets that were held.
    pub const HELD: u32 = 0;
    /// Packets that came back and went on.
    pub const RELEASED: u32 = 1;
    /// Calls that asked for a proof before their first packet.
    pub const ASKED: u32 = 2;
    /// Connections whose first SYN is sent again soon, because packets found no room.
    pub const HASTENED: u32 = 3;
    /// How many elements there are.
    pub const ALL: u32 = 4;
}

const _: () = assert!(size_of::<Held>() == 64 && size_of::<Hold>() == 40 && HELD.is_power_of_two());
const _: () = assert!(size_of::<HoldRate>() == 32 && size_of::<Trigger>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_a_unicast_mac_and_comes_back_from_it() {
        for number in 1..=4 {
            let tag = HoldTag { id: 0x0102_0304, kind: HoldKind::from_number(number).unwrap() };
            let mac = tag.to_mac();
            assert_eq!((mac[0] & 3, HoldTag::from_mac(mac)), (2, Some(tag)));
        }
    }

    #[test]
    fn a_mac_that_is_no_tag_is_none() {
        for mac in [[0xff; 6], [0; 6], [6, 0, 0, 0, 0, 1], [6, 5, 0, 0, 0, 1], [2, 1, 0, 0, 0, 1]] {
            assert_eq!(HoldTag::from_mac(mac), None, "{mac:02x?}");
        }
    }
}
