//! The difference between what is in force and what should be, as a value: computed whole before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use abi::{Address, Assignment, Assignments, Endpoint, Remote};
use maps::Prefix;
use mesh::policy::Ruleset;

use super::kernel::Kernel;
use super::target::{Target, TargetEndpoint, There, covering, lengths};
use crate::Error;

/// What to write and remove, in the order of the fields, with the switch before `gone`.
#[derive(Default)]
pub(crate) struct Change {
    /// Addresses under which another endpoint stands: they go first, and a grace passes.
    pub(crate) replaced: Vec<Address>,
    /// Rulesets that are not in the kernel yet.
    pub(crate) rulesets: Vec<(u32, Arc<Ruleset>)>,
    /// Endpoint directions that use a ruleset which another direction uses, too.
    pub(crate) shared: usize,
    pub(crate) remotes: Vec<(Prefix<Address>, Remote)>,
    pub(crate) assignments: Vec<(u32, Assignments)>,
    pub(crate) added: Vec<(Address, Endpoint)>,
    /// Addresses of endpoints that are no more.
    pub(crate) gone: Vec<Address>,
    /// Prefixes that are no more.
    pub(crate) doomed: BTreeSet<Prefix<Address>>,
}

impl Kernel {
    /// Whether the plan is in force already.
    pub(crate) fn stands(&mut self, target: &Target) -> bool {
        self.node.generation != 0
            && !self.dirty
            && self.endpoints == target.addresses
            && self.remotes_stand(target)
            && target.endpoints.iter().all(|(id, endpoint)| self.endpoint_stands(*id, endpoint))
    }

    fn remotes_stand(&self, target: &Target) -> bool {
        let slot = self.slot();
        let Some(ipcache) = &target.ipcache else { return true };
        self.ipcache.len() == ipcache.len() + self.doomed.len()
            && ipcache.iter().all(|(prefix, there)| {
                self.ipcache.get(prefix).is_some_and(|remote| {
                    remote.identity[slot] == there.identity && flags(*there, *remote) == remote.flags
                }) && !self.doomed.contains(prefix)
            })
    }

    fn endpoint_stands(&mut self, id: u32, endpoint: &TargetEndpoint) -> bool {
        let Some(assignments) = self.assignments.get(&id).copied() else { return false };
        let now = assignments.slot[self.slot()];
        assignments == Assignments { slot: assignments.slot, ..endpoint.facts }
            && now.identity == endpoint.identity
            && now.flags == endpoint.flags
            && self.rulesets.holds(now.ingress, &endpoint.ingress)
            && self.rulesets.holds(now.egress, &endpoint.egress)
    }

    /// What must change. The kernel must be settled: nothing unused is left to confuse with what is in force.
    pub(crate) fn change(&mut self, target: &Target) -> Change {
        let mut change = Change { replaced: self.replaced(target), ..Change::default() };
        self.change_endpoints(target, &mut change);
        self.change_remotes(target, &mut change);
        change
    }

    /// An id or an address that passes to another endpoint.
    fn replaced(&self, target: &Target) -> Vec<Address> {
        let wanted: BTreeMap<u32, &Endpoint> =
            target.addresses.values().map(|endpoint| (endpoint.id, endpoint)).collect();
        let stands = |(address, endpoint): &(&Address, &Endpoint)| {
            let there = target.addresses.get(address);
            let same_address = there.is_none_or(|wanted| wanted == *endpoint);
            let same_id = wanted.get(&endpoint.id).is_none_or(|wanted| *wanted == *endpoint);
            // An endpoint keeps its addresses; one that lost some is another.
            same_address && same_id && (there.is_some() || !wanted.contains_key(&endpoint.id))
        };
        self.endpoints.iter().filter(|entry| !stands(entry)).map(|(address, _)| *address).collect()
    }

    fn change_endpoints(&mut self, target: &Target, change: &mut Change) {
        let replaced: BTreeSet<Address> = change.replaced.iter().copied().collect();
        let mut kept = self.endpoints.clone();
        kept.retain(|address, _| !replaced.contains(address));
        let living: BTreeSet<u32> = kept.values().map(|endpoint| endpoint.id).collect();
        let slot = self.slot();
        let mut resolver = Resolver::default();
        for (id, endpoint) in &target.endpoints {
            let now = self.assignments.get(id).filter(|_| living.contains(id)).copied();
            let current = now.unwrap_or_default().slot[slot];
            let next = Assignment {
                identity: endpoint.identity,
                ingress: resolver.id(self, current.ingress, &endpoint.ingress),
                egress: resolver.id(self, current.egress, &endpoint.egress),
                flags: endpoint.flags,
            };
            let mut slots = [next; 2];
            if now.is_some() {
                slots[slot] = current;
            }
            change.assignments.push((*id, Assignments { slot: slots, ..endpoint.facts }));
        }
        change.shared = 2 * target.endpoints.len() - resolver.used.len();
        change.rulesets = resolver.fresh.into_iter().map(|((_, content), id)| (id, content)).collect();
        let added = target.addresses.iter().filter(|(address, _)| !kept.contains_key(address));
        change.added = added.map(|(address, endpoint)| (*address, *endpoint)).collect();
        change.gone = kept.into_keys().filter(|address| !target.addresses.contains_key(address)).collect();
    }

    /// Only what the slot that is not in force says otherwise than it should: `write_remote` would write nothing else,
    /// and most prefixes say the same in both slots.
    fn change_remotes(&self, target: &Target, change: &mut Change) {
        let slot = self.slot();
        let Some(ipcache) = &target.ipcache else {
            // What is in force stays so, in the other slot too.
            let uneven = self.uneven.iter().filter_map(|prefix| Some((*prefix, *self.ipcache.get(prefix)?)));
            change.remotes.extend(
                uneven.map(|(prefix, remote)| {
                    (prefix, Remote { identity: [remote.identity[slot]; 2], ..remote })
                }),
            );
            return;
        };
        let now_lengths = lengths(&self.ipcache);
        let then_lengths = lengths(ipcache);
        // Both tables are in order: they are walked side by side.
        let mut held = self.ipcache.iter().peekable();
        for (prefix, there) in ipcache {
            while let Some((gone, remote)) = held.next_if(|(held, _)| *held < prefix) {
                self.doom(*gone, *remote, covering(ipcache, &then_lengths, *gone), change);
            }
            // To packets that began before the switch a new prefix must mean what its cover means.
            let known = held.next_if(|(held, _)| *held == prefix).map(|(_, remote)| *remote);
            let mut remote = known.unwrap_or_else(|| {
                let now = covering(&self.ipcache, &now_lengths, *prefix).copied().unwrap_or_default();
                Remote { identity: [now.identity[slot]; 2], flags: now.flags, ..Remote::default() }
            });
            let flags = flags(*there, remote);
            if known.is_none() || remote.identity[1 - slot] != there.identity || remote.flags != flags {
                remote.identity[1 - slot] = there.identity;
                remote.flags = flags;
                change.remotes.push((*prefix, remote));
            }
        }
        for (gone, remote) in held {
            self.doom(*gone, *remote, covering(ipcache, &then_lengths, *gone), change);
        }
    }

    /// To packets that begin after the switch an old prefix means what its cover means, and can go unseen.
    fn doom(&self, prefix: Prefix<Address>, mut remote: Remote, cover: Option<&There>, change: &mut Change) {
        remote.identity[1 - self.slot()] = cover.map_or(0, |cover| cover.identity);
        remote.flags = cover.map_or(remote.flags, |cover| flags(*cover, remote));
        change.remotes.push((prefix, remote));
        change.doomed.insert(prefix);
    }
}

/// The flags of a prefix: where none are meant, those that it has stay for packets of the generation before.
fn flags(there: There, remote: Remote) -> u32 {
    if there.has_flags() { there.flags } else { remote.flags }
}

impl Change {
    /// Refuses what would not fit, counting old and new side by side.
    pub(crate) fn fits(&self, kernel: &Kernel) -> Result<(), Error> {
        let sizes = &kernel.sizes;
        let rules: usize = self.rulesets.iter().map(|(_, content)| content.entries.len()).sum();
        let remotes = self.remotes.iter().filter(|(prefix, _)| !kernel.ipcache.contains_key(prefix)).count();
        let endpoints = kernel.endpoints.len() - self.replaced.len();
        let rows = [
            (abi::map::RULES, kernel.rules, rules, sizes.rules),
            (abi::map::IPCACHE, kernel.ipcache.len() as u64, remotes, sizes.ipcache),
            (abi::map::ENDPOINTS, endpoints as u64, self.added.len(), sizes.endpoints),
        ];
        for (map, held, more, capacity) in rows {
            let (needed, capacity) = (held + more as u64, u64::from(capacity));
            if needed > capacity {
                return Err(Error::Full { map, needed, held, capacity });
            }
        }
        Ok(())
    }
}

/// Finds the id for each ruleset of a plan; plans share rulesets, so each is compared once.
#[derive(Default)]
struct Resolver {
    /// (id in force, address of the content) → id.
    known: BTreeMap<(u32, *const Ruleset), u32>,
    /// By digest: large rulesets differ late.
    fresh: BTreeMap<(u64, Arc<Ruleset>), u32>,
    used: BTreeSet<u32>,
}

impl Resolver {
    fn id(&mut self, kernel: &mut Kernel, current: u32, content: &Arc<Ruleset>) -> u32 {
        let key = (current, Arc::as_ptr(content));
        let id = self.known.get(&key).copied().unwrap_or_else(|| self.look_up(kernel, current, content));
        self.known.insert(key, id);
        self.used.insert(id);
        id
    }

    fn look_up(&mut self, kernel: &mut Kernel, current: u32, content: &Arc<Ruleset>) -> u32 {
        if kernel.rulesets.holds(current, content) {
            return current;
        }
        let key = (content.digest(), content.clone());
        if let Some(id) = kernel.rulesets.id(&key).or_else(|| self.fresh.get(&key).copied()) {
            return id;
        }
        let id = kernel.rulesets.fresh();
        self.fresh.insert(key, id);
        id
    }
}
