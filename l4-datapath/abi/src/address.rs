//! Addresses, and the `IPCACHE` map: which identity stands behind an address.

/// An IPv6 address in network order, or an IPv4 address written v4-mapped. Key of `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// Prefix of v4-mapped addresses (RFC 4291 section 2.5.5.2).
    pub const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

    /// `octets` in network order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, octets[0], octets[1], octets[2], octets[3]])
    }
}

/// Data part of an `IPCACHE` key (aya's `lpm_trie::Key` adds the prefix length in bits: 0–128, IPv4 lengths + 96).
pub type AddressKey = Address;

/// Value of `IPCACHE`: who is behind an address that is not an endpoint of this node.
///
/// Writer: the agent. Two identities, like [`crate::Assignment`]: the one in force is at `generation & 1`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Remote {
    /// Security identity by parity of [`crate::Node::generation`]. Zero is never an identity: it denies.
    pub identity: [u32; 2],
    /// Node that owns the address, 0 unknown. Room for leases and overlay; nothing reads it in schema 1.
    pub node: u32,
    /// Room (pending, encrypted). Zero in schema 1.
    pub flags: u32,
}
const _: () = assert!(size_of::<Address>() == 16 && size_of::<Remote>() == 16);
