//! The `ENDPOINTS` and `ASSIGNMENTS` maps: workloads of this node by address, and what policy says of each.
//!
//! Why two maps: a hash map replaces a value by a fresh element and hands the old one to the next update at once
//! (`pcpu_freelist`, and `bpf_mem_alloc` since 6.1), so a program still reading the old one could see another
//! endpoint's policy. What changes while packets flow therefore stands in an array, which is written in place; the
//! hash holds only facts that never change while the endpoint lives. A copy of them stands in the array, too: a packet of
//! a known connection finds its endpoints there by number, without hashing an address.

/// What policy says of an endpoint. Two stand in each [`Assignments`]; the one in force is at
/// `Node::generation & 1`, so one store of the generation switches every endpoint of the node at once and no packet
/// is judged by a mixture of two revisions.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Assignment {
    /// Security identity. Zero denies.
    pub identity: u32,
    /// Ruleset for packets to the endpoint. An id without entries in `RULES` denies everything.
    pub ingress: u32,
    /// Ruleset for packets from the endpoint.
    pub egress: u32,
    /// [`EndpointFlags`].
    pub flags: u32,
}

/// Bits of [`Assignment::flags`].
pub struct EndpointFlags;
impl EndpointFlags {
    /// Policy audit mode: what policy denies passes and is reported as audited.
    pub const AUDIT: u32 = 1;
}

/// Value of `ASSIGNMENTS` (key [`Endpoint::id`]).
///
/// Writer: the agent, which of a living endpoint touches only the slot not in force and the quota. It is zeroed when the
/// endpoint goes, and a grace passes before its number becomes another's: a reader that has seen the instance reads that
/// instance's facts.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Assignments {
    /// By parity of the generation.
    pub slot: [Assignment; 2],
    /// Whose they are, as `ENDPOINTS` has it.
    pub endpoint: Endpoint,
    /// Its IPv6 address, network order.
    pub ipv6: [u8; 16],
    /// Its IPv4 address, network order.
    pub ipv4: [u8; 4],
    /// Connections that may be charged to this endpoint at once.
    pub quota: u32,
}

/// Value of `ENDPOINTS` (key [`crate::Address`]; an endpoint with two addresses stands there twice, alike).
///
/// Writer: the agent, once when the endpoint is made and once when it goes. Read by every hook.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint {
    /// Number of this creation of the endpoint, never reused on this node; [`crate::Connection::instances`].
    pub instance: u64,
    /// Endpoint id, 1–65535; index into `ASSIGNMENTS` and `USAGE`.
    pub id: u32,
    /// Index of the host-side veth, in the node's namespace.
    pub ifindex: u32,
    /// MAC of the workload's own end.
    pub mac: [u8; 6],
    /// MAC of the host-side veth: what the workload sees as its gateway.
    pub gateway_mac: [u8; 6],
    /// Zero.
    pub zero: [u8; 4],
}
const _: () = assert!(size_of::<Assignment>() == 16 && size_of::<Assignments>() == 88);
const _: () = assert!(size_of::<Endpoint>() == 32);
