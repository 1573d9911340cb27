//! Addresses, and the `IPCACHE` map: which identity stands behind an address.

/// An IPv6 address in network order, or an IPv4 address written v4-mapped. Key of `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// Prefix of v4-mapped addresses (RFC 4291 section 2.5.5.2).
    pub const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

    /// `octets` in network order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, octets[0], octets[1], octets[2], octets[3]])
    }

    /// The IPv4 address, if this is one: the last four octets.
    #[inline(always)]
    pub const fn last4(&self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    /// The name of an interface, written in `::/96`: no packet may carry such an address, so it cannot be forged.
    ///
    /// Every endpoint stands in `ENDPOINTS` under the `interface` of its veth too, same value: a workload may ask for
    /// its gateway from a link-local address nobody has told us, and its veth is all we then know it by.
    #[inline(always)]
    pub const fn interface(ifindex: u32) -> Self {
        let i = ifindex.to_be_bytes();
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, i[0], i[1], i[2], i[3]])
    }
}

/// Identities the programs treat differently from all others. Their numbers are Cilium's.
pub struct ReservedIdentity;
impl ReservedIdentity {
    /// The node itself; believed only of packets the node itself made.
    pub const HOST: u32 = 1;
    /// An address of the pool that no endpoint has.
    pub const UNMANAGED: u32 = 3;
    /// Another node of this mesh.
    pub const REMOTE_NODE: u32 = 6;
    /// The first identity of workloads. They alone have a SPIFFE ID.
    pub const FIRST_WORKLOAD: u32 = 256;
    /// The last of workloads.
    pub const LAST_WORKLOAD: u32 = 65_535;
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
    /// [`RemoteFlags`].
    pub flags: u32,
}

/// Bits of [`Remote::flags`].
pub struct RemoteFlags;
impl RemoteFlags {
    /// An address of another node's pods of which nothing is known yet: its first packets may wait for that.
    pub const PENDING: u32 = 1;
}
const _: () = assert!(size_of::<Address>() == 16 && size_of::<Remote>() == 16);
