//! What the kernel counts, read now.

use std::collections::BTreeMap;

use mesh::workload::EndpointId;
use node_api::MapUse;

/// A snapshot of the kernel's counters.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Counters {
    /// Generation in force.
    pub generation: u64,
    /// Drops since the maps were made.
    pub drops: Vec<DropRow>,
    /// Connections charged to each endpoint.
    pub usage: BTreeMap<EndpointId, u64>,
    /// How full each map is.
    pub maps: BTreeMap<String, MapUse>,
    /// Events lost since the agent started.
    pub lost_events: u64,
    /// Packets that waited for a proof, since the maps were made.
    pub held: u64,
    /// Of those, packets that went on; the others were lost, or still wait.
    pub released: u64,
    /// Calls that asked for a proof before their first packet.
    pub asked: u64,
    /// Connections whose first SYN was sent again soon, because packets found no room to wait.
    pub hastened: u64,
}

/// Drops of one endpoint, reason and direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DropRow {
    /// Host-side veth of the endpoint that judged.
    pub ifindex: u32,
    /// [`abi::DropReason`] as number.
    pub reason: u8,
    /// [`abi::Direction`] as number.
    pub direction: u8,
    /// Packets.
    pub packets: u64,
    /// Bytes, Ethernet header included.
    pub bytes: u64,
}

/// What a collection of dead connections did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GcReport {
    /// IPv4 connections left.
    pub live4: u64,
    /// IPv6 connections left.
    pub live6: u64,
    /// Connections removed.
    pub expired: u64,
    /// Halves of translated connections left.
    pub translations: u64,
    /// Halves removed.
    pub expired_translations: u64,
}
