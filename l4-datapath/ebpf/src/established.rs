//! The short way: a packet of a known connection whose verdict still stands, with nothing unusual about it.
//!
//! Promise: whatever passes here would pass the long way ([`crate::from_pod`], [`crate::to_pod`]) with the same effect;
//! whatever is unusual in any respect, or would be refused, goes the long way, which alone refuses, asks and reports.
//!
//! One look-up. The entry tells the endpoints at both ends by number, and `ASSIGNMENTS` has their facts in an array. An
//! end that was nobody's here when policy was asked is nobody's here now: a new endpoint comes with a new generation, and
//! with that policy is asked anew; and a VIP is nobody's before it is one (its pool, or its own prefix, is unmanaged).

use core::{mem::offset_of, ptr::read_volatile};

use abi::{Assignments, Endpoint, Memo};
use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_OK, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS},
    helpers::{bpf_check_mtu, bpf_csum_update},
};

use crate::{
    address::Words,
    conntrack::Entry,
    deliver,
    frame::Frame,
    header::{Ethernet, Ipv4, Ipv6, ethertype},
    identity::Moment,
    maps::ASSIGNMENTS,
    plain::{self, Detour, Found, IP, SHORTEST, SHORTEST6},
    skb::Skb,
};

/// Returned for what must go the long way, no verdicts: [`Detour::Unusual`], [`Detour::Unknown`].
const UNUSUAL: i32 = i32::MIN;
const UNKNOWN: i32 = i32::MIN + 1;
const SOURCE_MAC: usize = offset_of!(Ethernet, source);
const ETHERTYPE: usize = offset_of!(Ethernet, ethertype);

/// A packet from a workload. `Ok` is the verdict, and the packet is on its way.
#[inline(always)]
pub(crate) fn from_pod(skb: Skb) -> Result<i32, Detour> {
    verdict(established_from_pod(skb.as_ptr()))
}

/// A packet to a workload through the host's stack. `Ok` is the verdict.
#[inline(always)]
pub(crate) fn to_pod(skb: Skb) -> Result<i32, Detour> {
    verdict(established_to_pod(skb.as_ptr()))
}

#[inline(always)]
fn verdict(returned: i32) -> Result<i32, Detour> {
    match returned {
        UNUSUAL => Err(Detour::Unusual),
        UNKNOWN => Err(Detour::Unknown),
        verdict => Ok(verdict),
    }
}

#[inline(always)]
fn encode(verdict: Result<i32, Detour>) -> i32 {
    match verdict {
        Ok(verdict) => verdict,
        Err(Detour::Unusual) => UNUSUAL,
        Err(Detour::Unknown) => UNKNOWN,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn established_from_pod(skb: *mut __sk_buff) -> i32 {
    encode(leave(Skb::from(skb)))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn established_to_pod(skb: *mut __sk_buff) -> i32 {
    encode(arrive(Skb::from(skb)))
}

#[inline(always)]
fn leave(skb: Skb) -> Result<i32, Detour> {
    let frame = Frame::new(skb).ok_or(Detour::Unusual)?;
    let known = Known::find(skb, frame)?;
    send(skb, frame, &known).ok_or(Detour::Unusual)
}

#[inline(always)]
fn send(skb: Skb, frame: Frame<SHORTEST>, known: &Known) -> Option<i32> {
    let sender = known.endpoint(known.source, known.addresses.0)?;
    // What a workload may send as: its own address, from its own veth, with its own MAC.
    let mac = words(&raw const sender.mac);
    if sender.ifindex != skb.ifindex()
        || frame.word::<SOURCE_MAC>() != mac[0]
        || frame.half::<{ SOURCE_MAC + 4 }>() != mac[1] as u16
    {
        return None;
    }
    if known.destination.id == 0 {
        known.note();
        return Some(TC_ACT_OK);
    }
    let receiver = known.endpoint(known.destination, known.addresses.1)?;
    if !fits(skb, receiver.ifindex) {
        return None;
    }
    if known.v4 {
        age4(frame);
    } else {
        age6(skb)?;
    }
    known.note();
    let macs = words(&raw const receiver.mac);
    frame.set_word::<0>(macs[0]);
    frame.set_word::<4>(macs[1]);
    frame.set_word::<8>(macs[2]);
    Some(deliver::redirect(receiver.ifindex))
}

#[inline(always)]
fn arrive(skb: Skb) -> Result<i32, Detour> {
    let known = Known::find(skb, Frame::new(skb).ok_or(Detour::Unusual)?)?;
    // A workload of this node does not send this way, the node itself only from here, and others only from elsewhere.
    if known.source.id != 0 || known.host == skb.is_received() {
        return Err(Detour::Unusual);
    }
    match known.endpoint(known.destination, known.addresses.1) {
        Some(receiver) if receiver.ifindex == skb.ifindex() => {
            known.note();
            Ok(TC_ACT_OK)
        }
        _ => Err(Detour::Unusual),
    }
}

/// Whether the receiver's device is there and carries the packet, each segment for itself.
#[inline(always)]
fn fits(skb: Skb, ifindex: u32) -> bool {
    let mut mtu = 0;
    let flags = u64::from(BPF_MTU_CHK_SEGS);
    // SAFETY: a valid context and a live local for the result.
    unsafe { bpf_check_mtu(skb.as_ptr().cast(), ifindex, &raw mut mtu, 0, flags) == 0 }
}

/// TTL, one less, and the checksum with it. A device's sum over the packet stays what it was.
#[inline(always)]
fn age4(frame: Frame<SHORTEST>) {
    const TTL: usize = IP + offset_of!(Ipv4, ttl);
    const CHECKSUM: usize = IP + offset_of!(Ipv4, checksum);
    frame.set_half::<CHECKSUM>(deliver::aged(u16::from_be(frame.half::<CHECKSUM>())).to_be());
    frame.set_byte::<TTL>(frame.byte::<TTL>() - 1);
}

/// Hop limit, one less.
#[inline(always)]
fn age6(skb: Skb) -> Option<()> {
    const HOP_LIMIT: usize = IP + offset_of!(Ipv6, hop_limit);
    /// What that adds to a sum over the packet: the complement of one, in the byte where it is taken away.
    const DIFFERENCE: u32 = !(u16::from_ne_bytes([0, 1]) as u32);
    let frame = Frame::<SHORTEST6>::new(skb)?;
    frame.set_byte::<HOP_LIMIT>(frame.byte::<HOP_LIMIT>() - 1);
    // SAFETY: a valid context. It fails if no device has summed the packet up, and then there is nothing to do.
    unsafe { bpf_csum_update(skb.as_ptr(), DIFFERENCE) };
    Some(())
}

/// A MAC and what follows it, as they stand.
#[inline(always)]
fn words(mac: *const [u8; 6]) -> [u32; 3] {
    const { assert!(offset_of!(Endpoint, mac) % 4 == 0) };
    const { assert!(offset_of!(Endpoint, gateway_mac) == offset_of!(Endpoint, mac) + 6) };
    let words: *const u32 = mac.cast();
    // SAFETY: the MAC of an endpoint, aligned and followed by that of its gateway, as asserted.
    unsafe { [read_volatile(words), read_volatile(words.add(1)), read_volatile(words.add(2))] }
}

/// One end of a known connection.
#[derive(Clone, Copy)]
struct End {
    id: u16,
    instance: u32,
}

/// A packet of a connection whose verdict stands.
struct Known {
    entry: Entry,
    source: End,
    destination: End,
    /// Of source and destination.
    addresses: (Words, Words),
    second: u32,
    reply: bool,
    v4: bool,
    /// One end is this node.
    host: bool,
}

impl Known {
    /// A plain packet of a connection that lives and was allowed in this generation.
    #[inline(always)]
    fn find(skb: Skb, frame: Frame<SHORTEST>) -> Result<Self, Detour> {
        let now = Moment::current().map_err(|_| Detour::Unusual)?;
        if now.trace || skb.vlan_present() != 0 {
            return Err(Detour::Unusual);
        }
        let kind = frame.half::<ETHERTYPE>();
        let v4 = kind == u16::from_ne_bytes(ethertype::IPV4);
        let found = if v4 {
            plain::find4(skb, frame)?
        } else if kind == u16::from_ne_bytes(ethertype::IPV6) {
            plain::find6(skb)?
        } else {
            return Err(Detour::Unusual);
        };
        let Found { entry, addresses, source_is_high, protocol } = found;
        let memo = entry.verdict(now.generation).ok_or(Detour::Unusual)?;
        if memo & Memo::MARKED != 0 && !entry.has_proof() {
            return Err(Detour::Unusual);
        }
        let reply = entry.opened_by_high() != source_is_high;
        if !entry.is_midway(reply) || !entry.is_alive(protocol, now.second) {
            return Err(Detour::Unusual);
        }
        let (source, destination) = (entry.end(source_is_high), entry.end(!source_is_high));
        Ok(Self {
            entry,
            source: End { id: source.0, instance: source.1 },
            destination: End { id: destination.0, instance: destination.1 },
            addresses,
            second: now.second,
            reply,
            v4,
            host: memo & Memo::HOST != 0,
        })
    }

    /// As the long way does, once nothing can refuse the packet any more.
    #[inline(always)]
    fn note(&self) {
        self.entry.note(self.second, self.reply, 0);
    }

    /// The facts of an end that is an endpoint of this node, still the one it was, and has the address. That it has is
    /// asked because the entry may have become another connection's since it was found.
    #[inline(always)]
    fn endpoint(&self, end: End, address: Words) -> Option<&'static Endpoint> {
        if end.id == 0 {
            return None;
        }
        let assignments: &'static Assignments = ASSIGNMENTS.get(u32::from(end.id))?;
        const { assert!(offset_of!(Assignments, ipv6) % 8 == 0 && offset_of!(Assignments, ipv4) % 4 == 0) };
        // SAFETY: an array element lives as long as the map; the agent stores to it meanwhile, hence volatile. It zeroes
        // the instance long before it writes another's facts, see `abi::Assignments`. Aligned as asserted.
        let (instance, own) = unsafe {
            let own = if self.v4 {
                (0, u64::from(read_volatile((&raw const assignments.ipv4).cast::<u32>())))
            } else {
                let words = (&raw const assignments.ipv6).cast::<u64>();
                (read_volatile(words), read_volatile(words.add(1)))
            };
            (read_volatile(&raw const assignments.endpoint.instance), own)
        };
        (instance as u32 == end.instance && own == address).then_some(&assignments.endpoint)
    }
}
