//! IPv6 extension headers: the way from the IPv6 header to what policy can judge.
//!
//! Promise: only headers of the kinds, in the order and as often as RFC 8200 section 4.1 has them, within [`LONGEST`]
//! bytes. Receivers must accept more, but nobody sends it, and each liberty is one more way for two readers to differ.
//! What options say is for the receiver. A routing header that still leads somewhere is refused: it would change the
//! destination behind policy's back. So is type 0 (RFC 5095).

use abi::DropReason;
use aya_ebpf::bindings::__sk_buff;

use crate::{
    fragment::Piece,
    header::{Extension, Ipv6, protocol},
    refusal::Refusal,
    skb::Skb,
    space::Space,
};

/// Hop-by-hop, destination options, routing, fragment, destination options.
const PLACES: u8 = 5;
/// Of all headers together.
const LONGEST: u32 = 256;
const FRAGMENT: u32 = size_of::<Extension>() as u32;

/// How far a walk has come. Plain numbers, see [`crate::refusal`].
#[repr(C, align(8))]
pub(crate) struct Chain {
    /// Offset of the next header.
    pub(crate) at: u32,
    /// Offset behind the last byte that may be read.
    end: u32,
    /// Offset of the fragment header; 0: there is none.
    fragment: u32,
    /// Of the fragment header.
    id: [u8; 4],
    /// Of the fragment header: where its payload stands, in bytes.
    offset: u16,
    /// Of the fragment header: 1 if its payload is not the last.
    more: u8,
    /// What stands at `at`.
    pub(crate) protocol: u8,
    /// In the order of the RFC: which header was the last.
    place: u8,
}

impl Chain {
    #[inline(always)]
    pub(crate) fn new(protocol: u8, at: u32, end: u32) -> Self {
        Self { at, end, fragment: 0, id: [0; 4], offset: 0, more: 0, protocol, place: 0 }
    }

    /// At the payload of a fragment that is not the first.
    #[inline(always)]
    pub(crate) fn is_later(&self) -> bool {
        self.offset != 0
    }

    /// What the packet is of its datagram, whose IP header stands at `network`.
    #[inline(always)]
    pub(crate) fn piece(&self, network: u32) -> Result<Piece, DropReason> {
        if self.fragment == 0 {
            return Ok(Piece::WHOLE);
        }
        if self.offset == 0 && self.more == 0 {
            return Ok(Piece::ATOMIC);
        }
        let length = self.end.wrapping_sub(self.fragment).wrapping_sub(FRAGMENT);
        // What stays before the payload once the datagram is put together: the headers without this one.
        let before = self.fragment.wrapping_sub(network).wrapping_sub(size_of::<Ipv6>() as u32);
        Piece::new(self.id, self.offset.into(), self.more == 1, length, before)
    }

    /// As [`crate::parse::Packet`] has it: RFC 7112 asks for the whole chain in the first fragment.
    #[inline(always)]
    fn cut(&self) -> DropReason {
        if self.more == 1 { DropReason::Fragment } else { DropReason::InvalidPacket }
    }
}

/// Whether this is a header to walk over.
#[inline(always)]
pub(crate) fn is_one(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::DESTINATION_OPTIONS
    )
}

/// Walks to the first header that is none of these, or to the payload of a later fragment.
#[inline(always)]
pub(crate) fn walk(skb: Skb, chain: &mut Chain) -> Result<(), Refusal> {
    Refusal::check(extension_walk(skb.as_ptr(), chain))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn extension_walk(skb: *mut __sk_buff, chain: *mut Chain) -> u32 {
    // SAFETY: the caller passes a reference; the test for null is for the verifier.
    let Some(chain) = (unsafe { chain.as_mut() }) else { return Refusal::ABSURD };
    let (skb, start) = (Skb::from(skb), chain.at);
    for _ in 0..PLACES {
        if !is_one(chain.protocol) || chain.is_later() {
            break;
        }
        if let Err(reason) = step(skb, chain, start) {
            return Refusal::encode(Err(reason));
        }
    }
    0
}

#[inline(always)]
fn step(skb: Skb, chain: &mut Chain, start: u32) -> Result<(), DropReason> {
    chain.place = place(chain.protocol, chain.place).ok_or(DropReason::Ipv6Extension)?;
    let mut space = Space::<Extension>::new();
    let header = skb.read(chain.at, &mut space).ok_or(chain.cut())?;
    let length = match chain.protocol {
        protocol::FRAGMENT => FRAGMENT,
        _ => (u32::from(header.length) + 1) * 8,
    };
    let leads_on = header.segments_left != 0 || header.routing_type == 0;
    if chain.protocol == protocol::ROUTING && leads_on {
        return Err(DropReason::Ipv6Extension);
    }
    let next = chain.at.wrapping_add(length);
    if next > chain.end {
        return Err(chain.cut());
    }
    if next.wrapping_sub(start) > LONGEST {
        return Err(DropReason::Ipv6Extension);
    }
    if chain.protocol == protocol::FRAGMENT {
        let field = u16::from_be_bytes([header.routing_type, header.segments_left]);
        chain.fragment = chain.at;
        chain.id = header.id;
        chain.offset = field & !7;
        chain.more = (field & 1) as u8;
    }
    chain.protocol = header.next_header;
    chain.at = next;
    Ok(())
}

/// The place of a header that follows the one at `last`, if it may.
#[inline(always)]
fn place(protocol: u8, last: u8) -> Option<u8> {
    match protocol {
        protocol::HOP_BY_HOP if last < 1 => Some(1),
        protocol::DESTINATION_OPTIONS if last < 2 => Some(2),
        protocol::ROUTING if last < 3 => Some(3),
        protocol::FRAGMENT if last < 4 => Some(4),
        protocol::DESTINATION_OPTIONS if last < PLACES => Some(PLACES),
        _ => None,
    }
}
