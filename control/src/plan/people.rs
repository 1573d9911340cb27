//! Who there is: workloads, declared and running, by identity.
//!
//! Kept from plan to plan. A workload is looked at again only if its object, its namespace or what runs is another one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::identity::Identity;
use mesh::labels::LabelSet;
use mesh::policy::PeerPorts;
use mesh::workload::{NamedPorts, WorkloadName};

use super::services::backends::Running;
use crate::allocate::{AllocateError, Allocator};
use crate::authority::{self, Standing};
use crate::kind::{Namespace, Workload};
use crate::world::World;

type Workloads = BTreeMap<Arc<WorkloadName>, Arc<Workload>>;

/// Workloads by identity.
#[derive(Default)]
pub(super) struct People {
    workloads: Arc<Workloads>,
    namespaces: Arc<BTreeMap<String, Namespace>>,
    /// Of declared workloads.
    declared: BTreeMap<Arc<WorkloadName>, Identity>,
    /// Of running ones.
    running: Vec<(Identity, NamedPorts)>,
    by_identity: BTreeMap<Identity, Group>,
}

/// The workloads of one identity.
#[derive(Default)]
struct Group {
    labels: LabelSet,
    size: usize,
    /// How many give a name to a port.
    ports: BTreeMap<(String, u8), BTreeMap<u16, usize>>,
}

/// An identity whose workloads have come, gone, or given other names to their ports.
pub(super) struct Moved {
    pub(super) identity: Identity,
    pub(super) labels: LabelSet,
    /// Its named ports; `None` if nobody has it any more.
    pub(super) ports: Option<PeerPorts>,
}

impl Group {
    fn peer_ports(&self) -> PeerPorts {
        let numbers = |by_number: &BTreeMap<u16, usize>| by_number.keys().copied().collect::<BTreeSet<_>>();
        self.ports.iter().map(|(name, by_number)| (name.clone(), numbers(by_number))).collect()
    }
}

impl People {
    /// The identity of a declared workload.
    pub(super) fn declared(&self, name: &WorkloadName) -> Option<Identity> {
        self.declared.get(name).copied()
    }

    /// Brings everyone up to date. Gives the identities of the running workloads, in their order, and what has moved.
    pub(super) fn update(
        &mut self,
        world: &World,
        running: &[Running<'_>],
        allocator: &mut Allocator,
    ) -> Result<(Vec<Identity>, Vec<Moved>), AllocateError> {
        let mut moved = BTreeMap::new();
        let mut leaving = Vec::new();
        for (name, workload) in self.changed(world) {
            if let (Some(identity), Some(earlier)) = (self.declared.remove(&name), self.workloads.get(&name))
            {
                leaving.push((identity, earlier.ports.clone()));
            }
            if let Some(workload) = workload {
                let standing = authority::declared(world, &workload);
                let identity = self.add(&standing, allocator, &mut moved)?;
                self.declared.insert(name, identity);
            }
        }
        self.workloads = Arc::clone(&world.workloads);
        self.namespaces = Arc::clone(&world.namespaces);
        let mut identities = Vec::with_capacity(running.len());
        let earlier = std::mem::take(&mut self.running);
        for workload in running {
            let identity = self.add(&workload.standing, allocator, &mut moved)?;
            self.running.push((identity, workload.standing.ports.clone()));
            identities.push(identity);
        }
        // Whoever has only moved has its number still.
        for (identity, ports) in leaving.into_iter().chain(earlier) {
            self.remove(identity, &ports, &mut moved);
        }
        Ok((identities, self.settle(moved, allocator)))
    }

    /// Declared workloads that are not what they were, in order of their names.
    fn changed(&self, world: &World) -> BTreeMap<Arc<WorkloadName>, Option<Arc<Workload>>> {
        let mut changed = BTreeMap::new();
        if !Arc::ptr_eq(&self.workloads, &world.workloads) {
            differences(&self.workloads, &world.workloads, Arc::ptr_eq, |name, workload| {
                changed.insert(Arc::clone(name), workload.cloned());
            });
        }
        if !Arc::ptr_eq(&self.namespaces, &world.namespaces) {
            let mut namespaces = BTreeSet::new();
            differences(&self.namespaces, &world.namespaces, PartialEq::eq, |name, _| {
                namespaces.insert(name.as_str());
            });
            let inside =
                world.workloads.iter().filter(|(name, _)| namespaces.contains(name.namespace.as_str()));
            changed.extend(inside.map(|(name, workload)| (Arc::clone(name), Some(Arc::clone(workload)))));
        }
        changed
    }

    fn add(
        &mut self,
        standing: &Standing,
        allocator: &mut Allocator,
        moved: &mut BTreeMap<Identity, Option<PeerPorts>>,
    ) -> Result<Identity, AllocateError> {
        let reserved =
            Identity::RESERVED.iter().find(|(_, name)| standing.labels == LabelSet::reserved(name));
        let identity = match reserved {
            Some((identity, _)) => *identity,
            None => allocator.workload(&standing.labels)?,
        };
        let group = self.before(identity, moved);
        if group.size == 0 {
            group.labels = standing.labels.clone();
        }
        group.size += 1;
        for (name, port) in &standing.ports {
            *group.ports.entry(name.clone()).or_default().entry(*port).or_default() += 1;
        }
        Ok(identity)
    }

    fn remove(
        &mut self,
        identity: Identity,
        ports: &NamedPorts,
        moved: &mut BTreeMap<Identity, Option<PeerPorts>>,
    ) {
        let group = self.before(identity, moved);
        group.size = group.size.saturating_sub(1);
        for (name, port) in ports {
            let Some(by_number) = group.ports.get_mut(name) else { continue };
            if let Some(count) = by_number.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    by_number.remove(port);
                }
            }
            if by_number.is_empty() {
                group.ports.remove(name);
            }
        }
    }

    /// The group, after noting what it was before this update.
    fn before(
        &mut self,
        identity: Identity,
        moved: &mut BTreeMap<Identity, Option<PeerPorts>>,
    ) -> &mut Group {
        let group = self.by_identity.entry(identity).or_default();
        moved.entry(identity).or_insert_with(|| (group.size > 0).then(|| group.peer_ports()));
        group
    }

    /// What is really other than before.
    fn settle(
        &mut self,
        moved: BTreeMap<Identity, Option<PeerPorts>>,
        allocator: &mut Allocator,
    ) -> Vec<Moved> {
        let mut all = Vec::new();
        for (identity, before) in moved {
            let Some(group) = self.by_identity.get(&identity) else { continue };
            let ports = (group.size > 0).then(|| group.peer_ports());
            let labels = group.labels.clone();
            if ports.is_none() {
                self.by_identity.remove(&identity);
                allocator.let_workload_go(&labels);
            }
            if ports != before {
                all.push(Moved { identity, labels, ports });
            }
        }
        all
    }
}

/// Tells of every key whose value is another one, with the new value.
pub(super) fn differences<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
    mut tell: impl FnMut(&'a K, Option<&'a V>),
) {
    let mut before = old.iter().peekable();
    for (key, value) in new {
        while let Some((gone, _)) = before.next_if(|(earlier, _)| *earlier < key) {
            tell(gone, None);
        }
        match before.next_if(|(earlier, _)| *earlier == key) {
            Some((_, earlier)) if same(earlier, value) => {}
            _ => tell(key, Some(value)),
        }
    }
    before.for_each(|(gone, _)| tell(gone, None));
}
