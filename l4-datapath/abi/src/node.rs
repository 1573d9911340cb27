//! The `NODE` map: what is true for the whole node, read once per packet.

/// The one element of `NODE`. Writer: the agent.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Policy generation, monotonic, from 1. Stored last after every change of rulesets, identities or endpoints; its
    /// lowest bit chooses the [`crate::Assignment`] in force. Read *before* any look-up of a packet.
    pub generation: u64,
    /// 0: events for drops and new flows; 1: an event for every packet.
    pub trace: u32,
    /// Ports that stand for workloads' own when they are masqueraded, machine order: first `<< 16 |` last. 0: none do.
    pub masquerade: u32,
    /// `SO_NETNS_COOKIE` of the node's network namespace: tells its own sockets from workloads'. 0: unknown.
    pub namespace: u64,
    /// Interface index of the device on which packets wait for a proof; 0: there is none, they are dropped.
    pub hold: u32,
    /// Two TCP ports of this and other nodes that no workload may call, machine order: one `<< 16 |` the other. 0: none.
    /// There auth-agents and the CA listen.
    pub guarded: u32,
    /// Number of the cgroup of the L7 proxy's process: tells its sockets from all others. 0: there is none.
    pub proxy: u64,
    /// How many of `LISTENERS` are in use per family; 0: nobody listens, what needs the proxy is dropped.
    pub listeners: u32,
    /// Zero.
    pub zero: u32,
}
const _: () = assert!(size_of::<Node>() == 48);
