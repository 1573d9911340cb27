//! The IP header and what stands between it and the transport header, as `etherparse` reads each, in a strict order.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice,
};

/// Hop-by-hop, destination options, routing, fragment, destination options (RFC 8200 section 4.1).
const ORDER: [u8; 5] = [0, 60, 43, 44, 60];
/// Bytes of extension headers that are let in.
const LONGEST: usize = 256;

/// An IP packet that may be judged, as far as its network layer goes.
#[derive(Debug)]
pub(super) struct Network<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) ttl: u8,
    /// Of what is behind the extension headers; of a later piece, as its fragment header says.
    pub(super) protocol: u8,
    /// Behind the extension headers, by the word of the IP header.
    pub(super) payload: &'a [u8],
    /// The same, to the end of the frame.
    pub(super) rest: &'a [u8],
    /// Bytes by the word of the IP header, with it.
    pub(super) length: usize,
    /// Of the IPv4 header.
    pub(super) checksum: bool,
    /// If it has a fragment header that says anything.
    pub(super) piece: Option<Piece>,
    /// It has a fragment header, whatever that says.
    pub(super) fragment_header: bool,
}

/// A fragment: its payload stands from `start` to `end` in the datagram's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) id: u32,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Piece {
    /// `before`: bytes of headers that count in the length of the whole.
    fn new(id: u32, start: usize, more: bool, length: usize, before: usize) -> Option<Self> {
        let end = start + length;
        let possible = length > 0 && (!more || length.is_multiple_of(8)) && before + end <= 65_535;
        possible.then_some(Self { id, start, end })
    }

    /// What stands before `piece`, without a byte in common.
    pub(super) fn is_before(self, piece: Self) -> bool {
        self.end <= piece.start
    }
}

/// `None` for whatever must not pass.
pub(super) fn network(ether_type: EtherType, bytes: &[u8]) -> Option<Network<'_>> {
    match ether_type.0 {
        0x0800 => ipv4(bytes),
        0x86dd => ipv6(bytes),
        _ => None,
    }
}

fn ipv4(bytes: &[u8]) -> Option<Network<'_>> {
    let header = Ipv4HeaderSlice::from_slice(bytes).ok().filter(|header| header.options().is_empty())?;
    let (length, start) =
        (usize::from(header.total_len()), usize::from(header.fragments_offset().value()) * 8);
    let payload = bytes.get(20..length)?;
    let fragment = start != 0 || header.more_fragments();
    let id = header.identification().into();
    let piece = if fragment {
        Some(Piece::new(id, start, header.more_fragments(), payload.len(), 20)?)
    } else {
        None
    };
    Some(Network {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        ttl: header.ttl(),
        protocol: header.protocol().0,
        payload,
        rest: &bytes[20..],
        length,
        checksum: header.to_header().calc_header_checksum() == header.header_checksum(),
        piece,
        fragment_header: fragment,
    })
}

fn ipv6(bytes: &[u8]) -> Option<Network<'_>> {
    let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
    let length = 40 + usize::from(header.payload_length());
    let chain = chain(header.next_header().0, bytes.get(40..length)?)?;
    let piece = match chain.fragment {
        Some(Fragment { start: 0, more: false, .. }) | None => None,
        Some(Fragment { id, start, more, before, length }) => {
            Some(Piece::new(id, start, more, length, before)?)
        }
    };
    Some(Network {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        ttl: header.hop_limit(),
        protocol: chain.protocol,
        payload: &bytes[40 + chain.length..length],
        rest: &bytes[40 + chain.length..],
        length,
        checksum: true,
        piece,
        fragment_header: chain.fragment.is_some(),
    })
}

/// What a fragment header says; what is before it without the IPv6 header, and how much behind.
struct Fragment {
    id: u32,
    start: usize,
    more: bool,
    before: usize,
    length: usize,
}

/// Extension headers, walked.
pub(super) struct Chain {
    fragment: Option<Fragment>,
    /// Of what is behind them.
    pub(super) protocol: u8,
    /// Bytes of all.
    pub(super) length: usize,
}

impl Chain {
    /// Of a fragment that has no transport header.
    pub(super) fn is_later(&self) -> bool {
        self.fragment.as_ref().is_some_and(|fragment| fragment.start > 0)
    }
}

/// Walks the extension headers at the start of `bytes`.
pub(super) fn chain(first: u8, bytes: &[u8]) -> Option<Chain> {
    let mut chain = Chain { fragment: None, protocol: first, length: 0 };
    let mut allowed = ORDER.iter();
    while ORDER.contains(&chain.protocol) && !chain.is_later() {
        allowed.find(|number| **number == chain.protocol)?;
        let at = bytes.get(chain.length..)?;
        if chain.protocol == 44 {
            let header = Ipv6FragmentHeaderSlice::from_slice(at).ok()?;
            chain.fragment = Some(Fragment {
                id: header.identification(),
                start: usize::from(header.fragment_offset().value()) * 8,
                more: header.more_fragments(),
                before: chain.length,
                length: at.len() - 8,
            });
            chain.protocol = header.next_header().0;
            chain.length += 8;
        } else {
            let header = Ipv6RawExtHeaderSlice::from_slice(at).ok()?;
            let goes_on = header.payload()[0] == 0 || header.payload()[1] != 0;
            if chain.protocol == 43 && goes_on {
                return None;
            }
            chain.protocol = header.next_header().0;
            chain.length += header.slice().len();
        }
    }
    (chain.length <= LONGEST).then_some(chain)
}
