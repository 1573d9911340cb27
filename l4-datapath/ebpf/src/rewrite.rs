//! Packets with other ends: what services and masquerading do to a packet once it may pass.
//!
//! The decision is made on [`Packet`], in memory; then the bytes are made to say the same, and only what differs is
//! touched. Every checksum is carried along by difference (RFC 1624), never computed anew: it stays as right or wrong
//! as its sender made it, whoever was to finish it (`CHECKSUM_PARTIAL`) or has summed the packet up already
//! (`CHECKSUM_COMPLETE`). A UDP checksum of zero, which is none, stays zero.
//!
//! SCTP's ports never change: its checksum is a CRC of the whole packet, which no helper carries along, while the
//! addresses are not in it.
//!
//! Whoever fails half way has spoilt the packet, and drops it.

use core::mem::offset_of;

use abi::{DropReason, PacketTuple};
use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};

use crate::{
    checksum,
    header::{ETHERNET, Icmp, Ipv4, Ipv6, Tcp, Udp, icmp4, icmp6, protocol},
    parse::Packet,
    refusal::Refusal,
    related::Quote,
    skb::Skb,
    space::Space,
};

/// Source and destination, as they stand in a header.
type Ends4 = [[u8; 4]; 2];
type Ends6 = [[u8; 16]; 2];
/// Source and destination port; any other two halves of a word.
type Halves = [[u8; 2]; 2];

const ENDS4: u32 = offset_of!(Ipv4, source) as u32;
const ENDS6: u32 = offset_of!(Ipv6, source) as u32;
const HEADER_CHECKSUM: u32 = offset_of!(Ipv4, checksum) as u32;
const TCP_CHECKSUM: u32 = offset_of!(Tcp, checksum) as u32;
const UDP_CHECKSUM: u32 = offset_of!(Udp, checksum) as u32;
const ICMP_CHECKSUM: u32 = offset_of!(Icmp, checksum) as u32;
const IDENTIFIER: u32 = offset_of!(Icmp, rest) as u32;

/// Makes the bytes say what `packet` says: addresses, ports, the identifier of an echo.
///
/// `has_transport` is false for a later fragment: what stands where the ports would be is payload, and the first one's
/// checksum covers the whole datagram.
#[inline(always)]
pub(crate) fn packet(skb: Skb, packet: &Packet, has_transport: bool) -> Result<(), Refusal> {
    Refusal::check(rewrite_packet(skb.as_ptr(), packet, has_transport.into()))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rewrite_packet(skb: *mut __sk_buff, packet: *const Packet, has_transport: u32) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return Refusal::ABSURD };
    let skb = Skb::from(skb);
    let written = ends(skb, packet).and_then(|difference| {
        if has_transport == 0 { Some(()) } else { transport(skb, packet, difference) }
    });
    Refusal::encode(written.ok_or(DropReason::InvalidPacket))
}

/// Writes the addresses; returns the difference they make to a pseudo-header.
#[inline(always)]
fn ends(skb: Skb, packet: &Packet) -> Option<u32> {
    if packet.is_v4() {
        let new: Ends4 = [packet.source.last4(), packet.destination.last4()];
        let mut space = Space::<Ends4>::new();
        let difference = checksum::difference(0, skb.read(ETHERNET + ENDS4, &mut space)?, &new);
        // The header's own checksum makes up for the addresses: the sum of the packet stays what it was.
        skb.adjust_header_checksum(ETHERNET + HEADER_CHECKSUM, difference)?;
        skb.store_balanced(ETHERNET + ENDS4, &new)?;
        return Some(difference);
    }
    let new: Ends6 = [packet.source.0, packet.destination.0];
    let mut space = Space::<Ends6>::new();
    let difference = checksum::difference(0, skb.read(ETHERNET + ENDS6, &mut space)?, &new);
    // Nothing in this header does: the sum grows, and what `BPF_F_PSEUDO_HDR` asks for takes the same out of it again.
    // BPF_F_IPV6, which would do without both, is of kernel 6.16.
    skb.store_network(ETHERNET + ENDS6, &new)?;
    Some(difference)
}

/// Writes the ports; sets the checksum right for them and for the `difference` of the addresses.
#[inline(always)]
fn transport(skb: Skb, packet: &Packet, difference: u32) -> Option<()> {
    let at = packet.transport();
    let ports = [packet.source_port.to_be_bytes(), packet.destination_port.to_be_bytes()];
    match packet.protocol {
        protocol::TCP => {
            skb.adjust_transport_checksum(at + TCP_CHECKSUM, difference, BPF_F_PSEUDO_HDR)?;
            halves(skb, at, ports, at + TCP_CHECKSUM, 0)
        }
        protocol::UDP => {
            let mut space = Space::<[u8; 2]>::new();
            if *skb.read(at + UDP_CHECKSUM, &mut space)? == [0; 2] {
                return skb.store_network(at, &ports);
            }
            let flags = BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0;
            skb.adjust_transport_checksum(at + UDP_CHECKSUM, difference, flags)?;
            halves(skb, at, ports, at + UDP_CHECKSUM, BPF_F_MARK_MANGLED_0)
        }
        protocol::SCTP => {
            let mut space = Space::<Halves>::new();
            (*skb.read(at, &mut space)? == ports).then_some(())
        }
        protocol::ICMP => identifier(skb, packet),
        protocol::ICMPV6 => {
            skb.adjust_transport_checksum(at + ICMP_CHECKSUM, difference, BPF_F_PSEUDO_HDR)?;
            identifier(skb, packet)
        }
        _ => None,
    }
}

/// Writes the identifier, if the packet is an echo.
#[inline(always)]
fn identifier(skb: Skb, packet: &Packet) -> Option<()> {
    if !is_echo(packet.protocol, packet.icmp_type()) {
        return Some(());
    }
    let at = packet.transport() + IDENTIFIER;
    let mut space = Space::<Halves>::new();
    let sequence = skb.read(at, &mut space)?[1];
    let new = [packet.source_port.to_be_bytes(), sequence];
    halves(skb, at, new, packet.transport() + ICMP_CHECKSUM, 0)
}

/// Writes a word of the transport header, which its checksum covers whatever the device is to do.
#[inline(always)]
fn halves(skb: Skb, at: u32, new: Halves, checksum: u32, flags: u32) -> Option<()> {
    let mut space = Space::<Halves>::new();
    let difference = checksum::difference(0, skb.read(at, &mut space)?, &new);
    skb.adjust_transport_checksum(checksum, difference, flags)?;
    skb.store_balanced(at, &new)
}

#[inline(always)]
fn is_echo(protocol: u8, kind: u8) -> bool {
    match protocol {
        protocol::ICMP => matches!(kind, icmp4::ECHO_REQUEST | icmp4::ECHO_REPLY),
        _ => matches!(kind, icmp6::ECHO_REQUEST | icmp6::ECHO_REPLY),
    }
}

/// Makes the packet that an ICMP error quotes one whose answer would have the tuple `quote.answer`: [`crate::related::quoted`] has
/// read it, and the caller has put another answer there. The error's own addresses are for [`packet()`].
#[inline(always)]
pub(crate) fn quote(skb: Skb, packet: &Packet, quote: &Quote) -> Result<(), Refusal> {
    Refusal::check(rewrite_quote(skb.as_ptr(), packet, quote))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rewrite_quote(skb: *mut __sk_buff, packet: *const Packet, quote: *const Quote) -> u32 {
    // SAFETY: the caller passes references; the tests for null are for the verifier.
    let (Some(packet), Some(quote)) = (unsafe { (packet.as_ref(), quote.as_ref()) }) else {
        return Refusal::ABSURD;
    };
    let skb = Skb::from(skb);
    let network = packet.transport() + size_of::<Icmp>() as u32;
    let end = packet.transport().wrapping_add(packet.transport_length);
    let place = Quoted { skb, v4: packet.is_v4(), network, transport: quote.transport, end };
    let written = place.write(&quote.answer).and_then(|difference| {
        // All of the quote is under the error's checksum, its checksums included.
        skb.adjust_transport_checksum(packet.transport() + ICMP_CHECKSUM, difference, 0)
    });
    Refusal::encode(written.ok_or(DropReason::InvalidPacket))
}

/// The quoted packet within an error, by offsets.
struct Quoted {
    skb: Skb,
    v4: bool,
    network: u32,
    transport: u32,
    end: u32,
}

impl Quoted {
    /// Returns the difference all of it makes.
    #[inline(always)]
    fn write(&self, answer: &PacketTuple) -> Option<u32> {
        let (ends, total) = if self.v4 { self.ends4(answer)? } else { self.ends6(answer)? };
        self.transport(answer, ends, total)
    }

    /// Writes the addresses; returns the difference they make to a pseudo-header, and to the quote.
    #[inline(always)]
    fn ends4(&self, answer: &PacketTuple) -> Option<(u32, u32)> {
        let new: Ends4 = [answer.destination.last4(), answer.source.last4()];
        let mut space = Space::<Ends4>::new();
        let old = self.skb.read(self.network + ENDS4, &mut space)?;
        let ends = checksum::difference(0, old, &new);
        self.skb.store_balanced(self.network + ENDS4, &new)?;
        let total = self.adjust(self.network + HEADER_CHECKSUM - 2, 1, ends, ends)?;
        Some((ends, total))
    }

    #[inline(always)]
    fn ends6(&self, answer: &PacketTuple) -> Option<(u32, u32)> {
        let new: Ends6 = [answer.destination.0, answer.source.0];
        let mut space = Space::<Ends6>::new();
        let old = self.skb.read(self.network + ENDS6, &mut space)?;
        let ends = checksum::difference(0, old, &new);
        self.skb.store_balanced(self.network + ENDS6, &new)?;
        Some((ends, ends))
    }

    /// Writes the ports, or the identifier, and the checksum if the quote goes as far.
    #[inline(always)]
    fn transport(&self, answer: &PacketTuple, ends: u32, total: u32) -> Option<u32> {
        let at = self.transport;
        let ports = [answer.destination_port, answer.source_port];
        match answer.protocol {
            protocol::TCP => {
                let (change, total) = self.halves(at, ports, total)?;
                let covered = checksum::sum(ends, change);
                if at + size_of::<Tcp>() as u32 > self.end {
                    return Some(total);
                }
                self.adjust(at + TCP_CHECKSUM, 0, covered, total)
            }
            protocol::UDP => {
                let (change, total) = self.halves(at, ports, total)?;
                self.adjust_if_any(at + UDP_CHECKSUM - 2, checksum::sum(ends, change), total)
            }
            protocol::SCTP => {
                let mut space = Space::<Halves>::new();
                (*self.skb.read(at, &mut space)? == ports).then_some(total)
            }
            protocol::ICMP | protocol::ICMPV6 => {
                let mut space = Space::<Halves>::new();
                let sequence = self.skb.read(at + IDENTIFIER, &mut space)?[1];
                let (change, total) =
                    self.halves(at + IDENTIFIER, [answer.destination_port, sequence], total)?;
                let pseudo = if self.v4 { 0 } else { ends };
                self.adjust(at, 1, checksum::sum(pseudo, change), total)
            }
            _ => None,
        }
    }

    /// Writes a word; returns the difference it makes, and `total` with it.
    #[inline(always)]
    fn halves(&self, at: u32, new: Halves, total: u32) -> Option<(u32, u32)> {
        let mut space = Space::<Halves>::new();
        let difference = checksum::difference(0, self.skb.read(at, &mut space)?, &new);
        self.skb.store_balanced(at, &new)?;
        Some((difference, checksum::sum(total, difference)))
    }

    /// Sets right the checksum in one half of the word at `at`; returns `total` with the difference it makes.
    #[inline(always)]
    fn adjust(&self, at: u32, half: usize, difference: u32, total: u32) -> Option<u32> {
        let mut space = Space::<Halves>::new();
        let old = *self.skb.read(at, &mut space)?;
        let mut new = old;
        new[half] = checksum::adjust(old[half], difference);
        self.skb.store_balanced(at, &new)?;
        Some(checksum::difference(total, &old, &new))
    }

    /// The same for UDP: zero is no checksum, and no checksum becomes zero.
    #[inline(always)]
    fn adjust_if_any(&self, at: u32, difference: u32, total: u32) -> Option<u32> {
        let mut space = Space::<Halves>::new();
        let old = *self.skb.read(at, &mut space)?;
        if old[1] == [0; 2] {
            return Some(total);
        }
        let adjusted = checksum::adjust(old[1], difference);
        let new = [old[0], if adjusted == [0; 2] { [0xff; 2] } else { adjusted }];
        self.skb.store_balanced(at, &new)?;
        Some(checksum::difference(total, &old, &new))
    }
}
