//! The plan in the kernel's terms.

use std::collections::BTreeMap;
use std::sync::Arc;

use abi::{Address, Assignment, Assignments, EndpointFlags, RemoteFlags};
use ipnet::IpNet;
use maps::Prefix;
use mesh::plan::{EndpointPlan, NodePlan, Whereabouts};
use mesh::policy::Ruleset;
use mesh::workload::Endpoint;

/// Nobody is charged more connections than this, however few endpoints there are.
const LARGEST_QUOTA: u32 = 1 << 16;

/// What must be in force.
pub(crate) struct Target {
    /// By endpoint id.
    pub(crate) endpoints: BTreeMap<u32, TargetEndpoint>,
    /// `ENDPOINTS` as a whole.
    pub(crate) addresses: BTreeMap<Address, abi::Endpoint>,
    /// Who is where, as planned.
    pub(crate) planned: Arc<BTreeMap<IpNet, Whereabouts>>,
    /// The same in the kernel's terms; `None` if it is in force already, which is most often so.
    pub(crate) ipcache: Option<BTreeMap<Prefix<Address>, There>>,
}

/// Who is behind a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct There {
    pub(crate) identity: u32,
    /// [`RemoteFlags`].
    pub(crate) flags: u32,
}

impl There {
    fn new(planned: Whereabouts) -> Self {
        let flags = if planned.pending { RemoteFlags::PENDING } else { 0 };
        Self { identity: planned.identity.number(), flags }
    }

    /// Whether flags mean anything: what is known is not waited for.
    pub(crate) fn has_flags(self) -> bool {
        self.identity == abi::ReservedIdentity::UNMANAGED
    }
}

/// One endpoint in the kernel's terms, but for the ids of its rulesets.
pub(crate) struct TargetEndpoint {
    pub(crate) identity: u32,
    pub(crate) ingress: Arc<Ruleset>,
    pub(crate) egress: Arc<Ruleset>,
    pub(crate) flags: u32,
    /// What its `Assignments` say whatever policy says.
    pub(crate) facts: Assignments,
}

impl Target {
    /// `connections` is the capacity of one connection map: quotas together are at most half of it, so that the map
    /// never evicts a live connection. `remotes` are the prefixes in force.
    pub(crate) fn new(
        plan: &NodePlan,
        connections: u32,
        remotes: Option<&BTreeMap<IpNet, Whereabouts>>,
    ) -> Self {
        let same = remotes
            .is_some_and(|remotes| std::ptr::eq(remotes, plan.ipcache.as_ref()) || *remotes == *plan.ipcache);
        let ipcache = || plan.ipcache.iter().map(|(net, there)| (prefix(net), There::new(*there))).collect();
        let count = u32::try_from(plan.endpoints.len()).unwrap_or(u32::MAX).max(1);
        let quota = (connections / 2 / count).min(LARGEST_QUOTA);
        let facts = plan.endpoints.values().map(|planned| &planned.endpoint);
        Self {
            endpoints: plan
                .endpoints
                .iter()
                .map(|(id, planned)| (u32::from(id.number()), TargetEndpoint::new(planned, quota)))
                .collect(),
            addresses: facts
                .flat_map(|endpoint| addresses(endpoint).map(|address| (address, kernel(endpoint))))
                .collect(),
            planned: Arc::clone(&plan.ipcache),
            ipcache: (!same).then(ipcache),
        }
    }
}

impl TargetEndpoint {
    fn new(planned: &EndpointPlan, quota: u32) -> Self {
        let endpoint = &planned.endpoint;
        Self {
            identity: planned.identity.number(),
            ingress: planned.ingress.clone(),
            egress: planned.egress.clone(),
            flags: if planned.audit { EndpointFlags::AUDIT } else { 0 },
            facts: Assignments {
                slot: [Assignment::default(); 2],
                endpoint: kernel(endpoint),
                ipv6: endpoint.ipv6.octets(),
                ipv4: endpoint.ipv4.octets(),
                quota,
            },
        }
    }
}

/// The keys an endpoint stands under.
fn addresses(endpoint: &Endpoint) -> [Address; 3] {
    [
        Address::v4(endpoint.ipv4.octets()),
        Address(endpoint.ipv6.octets()),
        Address::interface(endpoint.ifindex),
    ]
}

fn kernel(endpoint: &Endpoint) -> abi::Endpoint {
    abi::Endpoint {
        instance: endpoint.instance,
        id: u32::from(endpoint.id.number()),
        ifindex: endpoint.ifindex,
        mac: endpoint.mac.0,
        gateway_mac: endpoint.gateway_mac.0,
        zero: [0; 4],
    }
}

/// How an address prefix stands in the trie: IPv4 is v4-mapped, so its lengths grow by 96.
pub(crate) fn prefix(net: &IpNet) -> Prefix<Address> {
    match net.trunc() {
        IpNet::V4(net) => {
            Prefix { bits: 96 + u32::from(net.prefix_len()), data: Address::v4(net.addr().octets()) }
        }
        IpNet::V6(net) => Prefix { bits: u32::from(net.prefix_len()), data: Address(net.addr().octets()) },
    }
}

/// What the longest prefix that covers `prefix`, itself left out, says of its addresses.
///
/// `lengths` are the lengths that occur in `table`, longest first: there are few of them, however long the table.
pub(crate) fn covering<'a, V>(
    table: &'a BTreeMap<Prefix<Address>, V>,
    lengths: &[u32],
    prefix: Prefix<Address>,
) -> Option<&'a V> {
    let shorter = lengths.iter().filter(|bits| **bits < prefix.bits);
    let mut found = shorter.map(|bits| Prefix { bits: *bits, data: leading(prefix.data, *bits) });
    found.find_map(|cover| table.get(&cover))
}

/// The prefix lengths that occur, longest first.
pub(crate) fn lengths<V>(table: &BTreeMap<Prefix<Address>, V>) -> Vec<u32> {
    let mut lengths: Vec<u32> = table.keys().map(|prefix| prefix.bits).collect();
    lengths.dedup();
    lengths.reverse();
    lengths
}

fn leading(address: Address, bits: u32) -> Address {
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    Address((u128::from_be_bytes(address.0) & mask).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(nets: &[(&str, u32)]) -> BTreeMap<Prefix<Address>, u32> {
        nets.iter().map(|(net, identity)| (prefix(&net.parse().unwrap()), *identity)).collect()
    }

    #[test]
    fn the_longest_shorter_prefix_covers() {
        let table = table(&[("0.0.0.0/0", 9), ("::/0", 10), ("10.0.0.0/8", 100), ("10.1.0.0/16", 101)]);
        let lengths = lengths(&table);
        for (net, expected) in [
            ("10.1.2.0/24", 101),
            ("10.1.0.0/16", 100),
            ("10.2.3.4/32", 100),
            ("11.0.0.0/8", 9),
            ("0.0.0.0/0", 10),
            ("fd00::1/128", 10),
            ("::/0", 0),
        ] {
            let net = prefix(&net.parse().unwrap());
            assert_eq!(covering(&table, &lengths, net).copied().unwrap_or(0), expected, "{net:?}");
        }
    }

    #[test]
    fn quotas_together_stay_at_or_below_half_of_a_connection_map() {
        for endpoints in [1u32, 2, 3, 1000] {
            let quota = (262_144 / 2 / endpoints).min(LARGEST_QUOTA);
            assert!(quota * endpoints <= 131_072);
        }
    }
}
