//! The maps that hold the plan, and a copy of them in memory.
//!
//! Promise: the copy always says what the kernel says: every write goes to the map first and into the copy only if it
//! succeeded. Nothing is written that already stands there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use abi::{Address, Assignments, Endpoint, Remote};
use ipnet::IpNet;
use maps::Prefix;
use mesh::plan::Whereabouts;
use mesh::policy::Ruleset;

use super::ruleset::Rulesets;
use crate::grace::Grace;
use crate::{Error, Sizes};

/// The handles of the maps that an apply writes.
pub(crate) struct PolicyMaps {
    pub(crate) node: maps::Node,
    pub(crate) endpoints: maps::Endpoints,
    pub(crate) assignments: maps::Assignments,
    pub(crate) ipcache: maps::Ipcache,
    pub(crate) rules: maps::Rules,
}

/// Maps and copy.
pub(crate) struct Kernel {
    maps: PolicyMaps,
    grace: Grace,
    pub(crate) sizes: Sizes,
    pub(crate) node: abi::Node,
    pub(crate) endpoints: BTreeMap<Address, Endpoint>,
    pub(crate) assignments: BTreeMap<u32, Assignments>,
    pub(crate) ipcache: BTreeMap<Prefix<Address>, Remote>,
    /// Prefixes whose two slots differ: those that the last change was about.
    pub(crate) uneven: BTreeSet<Prefix<Address>>,
    /// The planned prefixes that are in force, as far as that is known without comparing each.
    pub(crate) remotes: Option<Arc<BTreeMap<IpNet, Whereabouts>>>,
    /// Prefixes that no program needs once a grace has passed.
    pub(crate) doomed: BTreeSet<Prefix<Address>>,
    pub(crate) rulesets: Rulesets,
    /// Entries in `RULES`.
    pub(crate) rules: u64,
    /// A program may still run that began before the last switch or removal.
    pub(crate) pending: bool,
    /// Something was taken away outside an apply: the next one must bump the generation.
    pub(crate) dirty: bool,
    /// Entries written and removed since the last [`Kernel::counted`].
    written: u64,
    removed: u64,
}

impl Kernel {
    /// Reads what an earlier agent left.
    pub(crate) fn read(maps: PolicyMaps, sizes: Sizes) -> Result<Self, Error> {
        let endpoints: BTreeMap<_, _> = maps.endpoints.entries()?.into_iter().collect();
        let ids: BTreeSet<u32> = endpoints.values().map(|endpoint| endpoint.id).collect();
        let assignments = ids
            .into_iter()
            .map(|id| maps.assignments.get(id).map(|assignments| (id, assignments)))
            .collect::<Result<BTreeMap<_, _>, _>>()?;
        let assigned = assignments.values().flat_map(|a| a.slot).flat_map(|slot| [slot.ingress, slot.egress]);
        let rules = maps.rules.entries()?;
        let ipcache: BTreeMap<Prefix<Address>, Remote> = maps.ipcache.entries()?.into_iter().collect();
        let uneven = ipcache.iter().filter(|(_, remote)| is_uneven(remote)).map(|(prefix, _)| *prefix);
        Ok(Self {
            grace: Grace::new()?,
            sizes,
            node: maps.node.get(),
            uneven: uneven.collect(),
            remotes: None,
            ipcache,
            doomed: BTreeSet::new(),
            rules: rules.len() as u64,
            rulesets: Rulesets::found(rules, assigned),
            assignments,
            endpoints,
            maps,
            // The earlier agent may have died right after a switch.
            pending: true,
            dirty: false,
            written: 0,
            removed: 0,
        })
    }

    /// The slot in force.
    pub(crate) fn slot(&self) -> usize {
        usize::from(self.node.generation & 1 == 1)
    }

    /// Waits, if need be, until no program runs that could use what is no longer in force, then removes it.
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        if !self.pending {
            return Ok(());
        }
        self.grace.wait()?;
        while let Some(prefix) = self.doomed.first().copied() {
            self.maps.ipcache.remove(prefix)?;
            self.doomed.remove(&prefix);
            self.ipcache.remove(&prefix);
            self.uneven.remove(&prefix);
            self.removed += 1;
        }
        self.collect_rulesets()?;
        self.pending = false;
        Ok(())
    }

    /// Waits for running programs and removes nothing: what was taken out now can be put in anew.
    pub(crate) fn wait(&mut self) -> Result<(), Error> {
        self.grace.wait()
    }

    fn collect_rulesets(&mut self) -> Result<(), Error> {
        let slot = self.slot();
        let assigned = self.assignments.values().map(|assignments| assignments.slot[slot]);
        let used = assigned.flat_map(|assignment| [assignment.ingress, assignment.egress]).collect();
        let unused = self.rulesets.unused(&used);
        for prefix in unused.iter().flat_map(|(_, prefixes)| prefixes) {
            self.maps.rules.remove(*prefix)?;
            self.rules = self.rules.saturating_sub(1);
            self.removed += 1;
        }
        self.rulesets.removed(unused.iter().map(|(id, _)| *id));
        Ok(())
    }

    /// Writes a whole ruleset under a fresh id.
    pub(crate) fn write_ruleset(&mut self, id: u32, content: &Arc<Ruleset>) -> Result<(), Error> {
        self.rulesets.begin(id, content);
        for (prefix, value) in self.rulesets.entries(id, content) {
            self.maps.rules.insert(prefix, value)?;
            self.rules += 1;
            self.written += 1;
        }
        self.rulesets.publish(id, content);
        Ok(())
    }

    pub(crate) fn write_remote(&mut self, prefix: Prefix<Address>, remote: Remote) -> Result<(), Error> {
        if self.ipcache.get(&prefix) != Some(&remote) {
            self.maps.ipcache.insert(prefix, remote)?;
            self.ipcache.insert(prefix, remote);
            match is_uneven(&remote) {
                true => self.uneven.insert(prefix),
                false => self.uneven.remove(&prefix),
            };
            self.written += 1;
        }
        Ok(())
    }

    pub(crate) fn write_assignments(&mut self, id: u32, assignments: Assignments) -> Result<(), Error> {
        if self.assignments.get(&id) != Some(&assignments) {
            self.maps.assignments.set(id, assignments)?;
            self.assignments.insert(id, assignments);
            self.written += 1;
        }
        Ok(())
    }

    pub(crate) fn add_endpoint(&mut self, address: Address, endpoint: Endpoint) -> Result<(), Error> {
        self.maps.endpoints.insert(address, endpoint)?;
        self.endpoints.insert(address, endpoint);
        self.written += 1;
        Ok(())
    }

    /// Takes an address out of `ENDPOINTS`, and before the first of an endpoint all that `ASSIGNMENTS` says of it: packets
    /// of known connections go by that alone. From then on nothing from it or to it is allowed.
    pub(crate) fn remove_endpoint(&mut self, address: Address) -> Result<(), Error> {
        let Some(endpoint) = self.endpoints.get(&address).copied() else { return Ok(()) };
        self.pending = true;
        if self.assignments.contains_key(&endpoint.id) {
            self.maps.assignments.set(endpoint.id, Assignments::default())?;
            self.assignments.remove(&endpoint.id);
        }
        self.maps.endpoints.remove(address)?;
        self.endpoints.remove(&address);
        self.removed += 1;
        Ok(())
    }

    /// The switch: from this store on packets are judged by the other slot.
    pub(crate) fn switch(&mut self) {
        self.node.generation += 1;
        self.maps.node.set_generation(self.node.generation);
        self.pending = true;
        self.dirty = false;
    }

    /// Whether every packet is reported.
    pub(crate) fn set_trace(&mut self, trace: bool) {
        self.node.trace = u32::from(trace);
        self.maps.node.set_trace(self.node.trace);
    }

    /// See [`abi::Node::masquerade`].
    pub(crate) fn set_masquerade(&mut self, ports: u32) {
        self.node.masquerade = ports;
        self.maps.node.set_masquerade(ports);
    }

    /// See [`abi::Node::hold`].
    pub(crate) fn set_hold(&mut self, ifindex: u32) {
        self.node.hold = ifindex;
        self.maps.node.set_hold(ifindex);
    }

    /// See [`abi::Node::proxy`] and [`abi::Node::listeners`].
    pub(crate) fn set_proxy(&mut self, cgroup: u64, listeners: u32) {
        self.node.proxy = cgroup;
        self.maps.node.set_proxy(cgroup);
        self.set_listeners(listeners);
    }

    /// See [`abi::Node::listeners`].
    pub(crate) fn set_listeners(&mut self, listeners: u32) {
        self.node.listeners = listeners;
        self.maps.node.set_listeners(listeners);
    }

    /// See [`abi::Node::guarded`].
    pub(crate) fn set_guarded(&mut self, ports: u32) {
        self.node.guarded = ports;
        self.maps.node.set_guarded(ports);
    }

    /// [`abi::Node::namespace`].
    pub(crate) fn set_namespace(&mut self, cookie: u64) {
        self.node.namespace = cookie;
        self.maps.node.set_namespace(cookie);
    }

    /// Entries written and removed since the last call.
    pub(crate) fn counted(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.written), std::mem::take(&mut self.removed))
    }
}

fn is_uneven(remote: &Remote) -> bool {
    let [one, other] = remote.identity;
    one != other
}
