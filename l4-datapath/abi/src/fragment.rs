//! `FRAGMENTS`: the ports of datagrams that come in pieces; only the first piece has them.

use crate::Address;

/// Key of `FRAGMENTS`: what the pieces of one datagram share (RFC 791, RFC 8200 section 4.5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Identification; IPv4's 16 bits stand in the last two. Network order.
    pub id: [u8; 4],
    /// IP protocol number; IPv6 knows datagrams by the three others alone: 0.
    pub protocol: u8,
    /// Zero.
    pub zero: [u8; 3],
}

/// Value of `FRAGMENTS`. Writers: the programs, when a first piece has passed.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// As in [`crate::PacketTuple`].
    pub source_port: [u8; 2],
    /// As in [`crate::PacketTuple`].
    pub destination_port: [u8; 2],
    /// Bytes of the first piece's payload: a later piece that begins before them overlaps, and is refused.
    pub first_length: u16,
    /// IP protocol number: of IPv6, that of the transport header, which later pieces need not name.
    pub protocol: u8,
    /// Zero.
    pub zero: u8,
    /// Second (CLOCK_MONOTONIC_COARSE) of the first piece.
    pub seen: u32,
}
const _: () = assert!(size_of::<FragmentKey>() == 40 && size_of::<Fragment>() == 12);
