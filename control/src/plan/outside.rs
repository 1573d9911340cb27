//! Address prefixes that policies name, and those that they never match.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use mesh::identity::Identity;
use mesh::plan::Whereabouts;
use mesh::policy::{Policy, compile};

use super::NodeFacts;
use crate::allocate::{AllocateError, Allocator};
use crate::world::World;

/// Prefixes of policies, kept from plan to plan.
#[derive(Default)]
pub(super) struct Outside {
    /// How many policies name each.
    named: BTreeMap<IpNet, usize>,
    /// Addresses that policy never matches by prefix: the pools, the node's own, the other nodes' and those of their
    /// workloads.
    pub(super) taken: BTreeMap<IpNet, Whereabouts>,
    /// Those that have an identity.
    pub(super) prefixes: BTreeMap<IpNet, Identity>,
    /// Those that policies have come to name or named no more.
    changed: BTreeSet<IpNet>,
}

/// A prefix that has got an identity or lost it.
pub(super) struct Moved {
    pub(super) prefix: IpNet,
    pub(super) identity: Identity,
    pub(super) is_named: bool,
}

impl Outside {
    pub(super) fn insert(&mut self, policy: &Policy) {
        for prefix in compile::prefixes([policy]) {
            *self.named.entry(prefix).or_default() += 1;
            self.changed.insert(prefix);
        }
    }

    pub(super) fn remove(&mut self, policy: &Policy) {
        for prefix in compile::prefixes([policy]) {
            if let Some(count) = self.named.get_mut(&prefix) {
                *count -= 1;
                if *count == 0 {
                    self.named.remove(&prefix);
                }
            }
            self.changed.insert(prefix);
        }
    }

    /// Gives identities to those that need one; what has changed in that, in order, and whether `taken` is another.
    pub(super) fn update(
        &mut self,
        world: &World,
        node: &NodeFacts,
        allocator: &mut Allocator,
    ) -> Result<(Vec<Moved>, bool), AllocateError> {
        let mut changed = std::mem::take(&mut self.changed);
        let taken = taken_addresses(world, node);
        let is_other = taken != self.taken;
        if is_other {
            self.taken = taken;
            changed.extend(self.named.keys());
        }
        // An identity for one inside a pool, or for a node's very address, would take addresses of workloads and nodes
        // out of their identities.
        let around = Around::new(self.taken.keys());
        let mut moved = Vec::new();
        for prefix in changed {
            let is_named = self.named.contains_key(&prefix) && !around.contains(&prefix);
            match (is_named, self.prefixes.get(&prefix).copied()) {
                (true, None) => {
                    let identity = allocator.prefix(prefix)?;
                    self.prefixes.insert(prefix, identity);
                    moved.push(Moved { prefix, identity, is_named });
                }
                (false, Some(identity)) => {
                    self.prefixes.remove(&prefix);
                    allocator.let_prefix_go(&prefix);
                    moved.push(Moved { prefix, identity, is_named });
                }
                (true, Some(_)) | (false, None) => {}
            }
        }
        Ok((moved, is_other))
    }
}

/// Networks, for asking whether one of them contains a prefix without asking each.
struct Around {
    networks: BTreeSet<IpNet>,
    /// Lengths that occur, of each family.
    lengths: BTreeSet<(bool, u8)>,
}

impl Around {
    fn new<'a>(networks: impl Iterator<Item = &'a IpNet>) -> Self {
        let networks: BTreeSet<_> = networks.map(IpNet::trunc).collect();
        let lengths =
            networks.iter().map(|network| (network.addr().is_ipv4(), network.prefix_len())).collect();
        Self { networks, lengths }
    }

    fn contains(&self, prefix: &IpNet) -> bool {
        let family = prefix.addr().is_ipv4();
        let mut wider = self.lengths.range((family, 0)..=(family, prefix.prefix_len()));
        wider.any(|(_, length)| {
            IpNet::new(prefix.addr(), *length).is_ok_and(|around| self.networks.contains(&around.trunc()))
        })
    }
}

fn taken_addresses(world: &World, node: &NodeFacts) -> BTreeMap<IpNet, Whereabouts> {
    let pending = Whereabouts { identity: Identity::UNMANAGED, pending: true };
    let remote = world.other_pod_cidrs(&node.name).map(|range| (range, pending));
    let others = world.other_nodes(&node.name).map(|address| (address.into(), Identity::REMOTE_NODE.into()));
    let mut taken: BTreeMap<IpNet, Whereabouts> = remote.chain(others).collect();
    // What of these the node does not give out is nobody's.
    let declared = world.nodes.get(&node.name).into_iter().flat_map(|node| &node.pod_cidrs);
    taken.extend(declared.map(|range| (*range, Identity::UNMANAGED.into())));
    taken.insert(node.ipv4_pool.into(), Identity::UNMANAGED.into());
    taken.insert(node.ipv6_pool.into(), Identity::UNMANAGED.into());
    // A policy about a part of them would make of an address somebody who may be called, until it is a VIP.
    taken.insert(world.configuration.ipv4_service_pool.into(), Identity::UNMANAGED.into());
    taken.insert(world.configuration.ipv6_service_pool.into(), Identity::UNMANAGED.into());
    let declared = world.nodes.get(&node.name).into_iter().flat_map(|node| &node.addresses);
    let own = node.addresses.iter().copied().chain(declared.map(|address| IpNet::from(*address)));
    taken.extend(own.map(|prefix| (prefix, Identity::HOST.into())));
    taken
}
