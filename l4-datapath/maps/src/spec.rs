//! What each pinned map must be: type, key, value, flags, capacity.
//!
//! A pinned map is reused by name, and neither kernel nor aya compares it with what the program expects. So the loader
//! compares it with this table first, and sizes fresh maps by it.

use std::fmt;

use aya::maps::{MapInfo, MapType};

/// Endpoint ids are 16 bits; the arrays they index have an element for each.
const ENDPOINT_IDS: u32 = 1 << 16;
/// Clients that are remembered by services with affinity.
const AFFINITIES: u32 = 1 << 16;
/// Pairs of an endpoint of this node and an address of a peer that are proven, or were refused a moment ago.
const PAIRS: u32 = 1 << 19;
/// Network namespaces of workloads: one for each endpoint id.
const NAMESPACES: u32 = 1 << 16;
/// Datagrams in pieces under way at once.
const FRAGMENTS: u32 = 1 << 16;
/// `BPF_F_NO_PREALLOC`; the kernel insists on it for tries.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;

/// Capacities that can be chosen. They are fixed while the maps are pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Keys of local endpoints (three for each: both addresses and the interface).
    pub endpoints: u32,
    /// Address prefixes.
    pub ipcache: u32,
    /// Entries of all rulesets together; a change needs room for the old and the new ones at once.
    pub rules: u32,
    /// Connections, for each family.
    pub connections: u32,
    /// Rows of drop counters: interface × reason × direction.
    pub drops: u32,
    /// Ports of VIPs, each VIP once more besides.
    pub frontends: u32,
    /// Services: ports of VIPs.
    pub services: u32,
    /// Backends of all services together; a change needs room for the old and the new ones at once.
    pub slots: u32,
    /// Distinct backends.
    pub backends: u32,
    /// Sockets whose owner called a VIP.
    pub sockets: u32,
    /// Halves of translated connections.
    pub translations: u32,
    /// Bytes of the event ring, a power of two and a multiple of the page size.
    pub events: u32,
}

impl Sizes {
    /// Devices that lead out of the node.
    pub const DEVICES: u32 = 1 << 8;
    /// Prefixes that see workloads' own addresses.
    pub const UNMASQUERADED: u32 = 1 << 14;
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            endpoints: 1 << 14,
            ipcache: 1 << 19,
            rules: 1 << 20,
            connections: 1 << 18,
            drops: 1 << 14,
            frontends: 1 << 18,
            services: 1 << 17,
            slots: 1 << 20,
            backends: 1 << 17,
            sockets: 1 << 17,
            translations: 1 << 19,
            events: 1 << 22,
        }
    }
}

/// One map as it must be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spec {
    /// One of [`abi::map`].
    pub name: &'static str,
    /// Map type.
    pub kind: MapType,
    /// Key size in bytes.
    pub key: u32,
    /// Value size in bytes.
    pub value: u32,
    /// Capacity: elements, or bytes for the ring.
    pub entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

/// How a pinned map differs from its [`Spec`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Which property.
    pub property: &'static str,
    /// What the pinned map has.
    pub found: String,
    /// What this version wants.
    pub expected: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, expected {}", self.property, self.found, self.expected)
    }
}

impl Spec {
    fn of<K, V>(name: &'static str, kind: MapType, entries: u32) -> Self {
        Self { name, kind, key: size_of::<K>() as u32, value: size_of::<V>() as u32, entries, flags: 0 }
    }

    fn trie<K, V>(name: &'static str, entries: u32) -> Self {
        let key = size_of::<aya::maps::lpm_trie::Key<K>>() as u32;
        Self { key, flags: NO_PREALLOC, ..Self::of::<K, V>(name, MapType::LpmTrie, entries) }
    }

    fn mapped<V>(name: &'static str, entries: u32) -> Self {
        Self { flags: MMAPABLE, ..Self::of::<u32, V>(name, MapType::Array, entries) }
    }

    /// The first property in which a map differs; `None` if it can be used.
    pub fn difference(&self, found: &MapInfo) -> Option<Difference> {
        let kind = found.map_type().map_or_else(|_| "unknown".to_owned(), |kind| format!("{kind:?}"));
        let properties = [
            ("type", kind, format!("{:?}", self.kind)),
            ("key size", found.key_size().to_string(), self.key.to_string()),
            ("value size", found.value_size().to_string(), self.value.to_string()),
            ("capacity", found.max_entries().to_string(), self.entries.to_string()),
            ("flags", found.map_flags().to_string(), self.flags.to_string()),
        ];
        properties
            .into_iter()
            .find(|(_, found, expected)| found != expected)
            .map(|(property, found, expected)| Difference { property, found, expected })
    }
}

/// Every map that is pinned.
pub fn specs(sizes: &Sizes) -> [Spec; 34] {
    use abi::map;
    [
        Spec::mapped::<abi::Node>(map::NODE, 1),
        Spec {
            flags: NO_PREALLOC,
            ..Spec::of::<abi::Address, abi::Endpoint>(map::ENDPOINTS, MapType::Hash, sizes.endpoints)
        },
        Spec::of::<u32, abi::Assignments>(map::ASSIGNMENTS, MapType::Array, ENDPOINT_IDS),
        Spec::trie::<abi::AddressKey, abi::Remote>(map::IPCACHE, sizes.ipcache),
        Spec::trie::<abi::RuleKey, abi::RuleValue>(map::RULES, sizes.rules),
        Spec::of::<abi::ConnectionKey4, abi::Connection>(
            map::CONNECTIONS4,
            MapType::LruHash,
            sizes.connections,
        ),
        Spec::of::<abi::ConnectionKey6, abi::Connection>(
            map::CONNECTIONS6,
            MapType::LruHash,
            sizes.connections,
        ),
        Spec::of::<u32, u64>(map::USAGE, MapType::Array, ENDPOINT_IDS),
        Spec::of::<abi::DropKey, abi::DropCount>(map::DROPS, MapType::PerCpuHash, sizes.drops),
        Spec::of::<(), ()>(map::EVENTS, MapType::RingBuf, sizes.events),
        Spec::of::<u32, u64>(map::LOST, MapType::PerCpuArray, 1),
        Spec::of::<u32, abi::Held>(map::HELD, MapType::Array, abi::HELD),
        Spec::of::<u32, abi::Hold>(map::HOLD, MapType::Array, 1),
        Spec::of::<u32, abi::HoldRate>(map::HOLD_RATES, MapType::Array, ENDPOINT_IDS),
        Spec::of::<abi::PacketTuple, u64>(map::HOLD_FLOWS, MapType::LruHash, abi::HOLD_FLOWS),
        Spec::of::<u32, u64>(map::HOLD_COUNTS, MapType::PerCpuArray, abi::HoldCount::ALL),
        Spec {
            flags: NO_PREALLOC,
            ..Spec::of::<abi::Frontend, u32>(map::FRONTENDS, MapType::Hash, sizes.frontends)
        },
        Spec::mapped::<abi::Service>(map::SERVICES, sizes.services),
        Spec::mapped::<u32>(map::SLOTS, sizes.slots),
        Spec::mapped::<abi::Backend>(map::BACKENDS, sizes.backends),
        Spec {
            flags: NO_PREALLOC,
            ..Spec::of::<abi::Member, u32>(map::MEMBERS, MapType::Hash, sizes.backends)
        },
        Spec::of::<abi::AffinityKey, abi::Affinity>(map::AFFINITIES, MapType::LruHash, AFFINITIES),
        Spec::of::<abi::SocketKey, abi::Called>(map::SOCKETS, MapType::LruHash, sizes.sockets),
        Spec {
            flags: NO_PREALLOC,
            ..Spec::of::<abi::PacketTuple, abi::Translation>(
                map::TRANSLATIONS,
                MapType::Hash,
                sizes.translations,
            )
        },
        Spec::of::<u32, abi::Device>(map::DEVICES, MapType::Hash, Sizes::DEVICES),
        Spec::trie::<abi::AddressKey, u32>(map::UNMASQUERADED, Sizes::UNMASQUERADED),
        Spec::of::<u32, u64>(map::BOUND, MapType::Array, abi::BOUND_WORDS),
        Spec::of::<abi::FragmentKey, abi::Fragment>(map::FRAGMENTS, MapType::LruHash, FRAGMENTS),
        Spec { flags: NO_PREALLOC, ..Spec::of::<abi::PairKey, abi::Pair>(map::AUTH, MapType::Hash, PAIRS) },
        Spec::mapped::<abi::Mark>(map::MARKS, abi::MARKS),
        Spec::mapped::<u64>(map::LEASES, abi::LEASES),
        Spec::of::<u32, u32>(map::LISTENERS, MapType::SockMap, abi::LISTENERS),
        Spec::of::<(), ()>(map::TRIGGERS, MapType::RingBuf, abi::TRIGGERS),
        Spec { flags: NO_PREALLOC, ..Spec::of::<u64, u32>(map::NAMESPACES, MapType::Hash, NAMESPACES) },
    ]
}
