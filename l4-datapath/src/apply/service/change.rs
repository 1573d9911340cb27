//! The difference between the services in force and those of a plan, with everything taken that it needs.

use std::collections::{BTreeMap, BTreeSet};

use abi::{Member, map};
use mesh::service::{Backend, Frontend, FrontendPlan};

use super::slots::Region;
use super::tables::{Held, Tables};
use crate::Error;
use crate::address::address;

/// A frontend on which tables and plan differ, and what the plan says of it.
pub(super) type Difference<'a> = (Frontend, Option<&'a FrontendPlan>);

/// A service to be written.
pub(super) struct Write {
    pub(super) frontend: Frontend,
    pub(super) next: Held,
    /// For the slots, in order; none if they stand already.
    pub(super) numbers: Vec<u32>,
    pub(super) members: BTreeSet<Member>,
    pub(super) is_new: bool,
}

/// What to write and remove.
#[derive(Default)]
pub(super) struct Change {
    pub(super) backends: Vec<(u32, Backend)>,
    pub(super) writes: Vec<Write>,
    pub(super) removed: Vec<Frontend>,
}

/// Walks two tables side by side, in the order of their keys.
pub(super) fn side_by_side<'a, 'b, A, B>(
    old: &'a BTreeMap<Frontend, A>,
    new: &'b BTreeMap<Frontend, B>,
) -> impl Iterator<Item = (Frontend, Option<&'a A>, Option<&'b B>)> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        let keys = [old.peek().map(|(key, _)| **key), new.peek().map(|(key, _)| **key)];
        let key = keys.into_iter().flatten().min()?;
        let left = old.next_if(|(other, _)| **other == key).map(|(_, value)| value);
        let right = new.next_if(|(other, _)| **other == key).map(|(_, value)| value);
        Some((key, left, right))
    })
}

/// As `SERVICES` has it.
fn affinity(plan: &FrontendPlan) -> u32 {
    plan.affinity.unwrap_or(0)
}

impl Tables {
    /// The frontends on which tables and plan differ.
    pub(super) fn differences<'a>(&self, plan: &'a BTreeMap<Frontend, FrontendPlan>) -> Vec<Difference<'a>> {
        let differs = |held: Option<&Held>, plan: Option<&FrontendPlan>| match (held, plan) {
            (Some(held), Some(plan)) => held.backends != plan.backends || held.affinity != affinity(plan),
            _ => true,
        };
        let mut differences = Vec::new();
        for (frontend, held, plan) in side_by_side(&self.held, plan) {
            if differs(held, plan) {
                differences.push((frontend, plan));
            }
        }
        differences
    }

    /// Takes numbers and regions for the whole change, or refuses it and takes nothing.
    pub(super) fn change(&mut self, differences: &[Difference<'_>]) -> Result<Change, Error> {
        self.fits(differences)?;
        let mut regions = self.regions(differences)?.into_iter();
        let mut change = Change::default();
        for (frontend, plan) in differences {
            match plan {
                None => change.removed.push(*frontend),
                Some(plan) => {
                    let region = regions.next().flatten();
                    let write = self.write(&mut change, *frontend, plan, region)?;
                    change.writes.push(write);
                }
            }
        }
        Ok(change)
    }

    /// Refuses what would not fit, counting old and new side by side.
    fn fits(&self, differences: &[Difference<'_>]) -> Result<(), Error> {
        let new: Vec<&Frontend> = differences
            .iter()
            .filter(|(frontend, plan)| plan.is_some() && !self.held.contains_key(frontend))
            .map(|(frontend, _)| frontend)
            .collect();
        let vips: BTreeSet<_> = new.iter().map(|frontend| address(frontend.address)).collect();
        let keys = new.len() + vips.difference(&self.vips).count();
        let sizes = &self.sizes;
        let rows = [
            (map::FRONTENDS, self.frontends(), keys, sizes.frontends),
            (map::SERVICES, self.indices.held(), new.len(), sizes.services),
            (map::BACKENDS, self.backends.held(), self.new_backends(differences), sizes.backends),
            (map::MEMBERS, self.members.len() as u64, self.new_members(differences), sizes.backends),
        ];
        for (map, held, more, capacity) in rows {
            let (needed, capacity) = (held + more as u64, u64::from(capacity));
            if needed > capacity {
                return Err(Error::Full { map, needed, held, capacity });
            }
        }
        Ok(())
    }

    fn new_backends(&self, differences: &[Difference<'_>]) -> usize {
        let wanted = differences.iter().filter_map(|(_, plan)| *plan).flat_map(|plan| plan.backends.iter());
        wanted.filter(|backend| self.backends.number(backend).is_none()).collect::<BTreeSet<_>>().len()
    }

    fn new_members(&self, differences: &[Difference<'_>]) -> usize {
        let more = |(frontend, plan): &Difference<'_>| {
            let Some(plan) = plan.filter(|plan| affinity(plan) != 0) else { return 0 };
            let now = self.held.get(frontend).filter(|held| held.affinity != 0);
            let now: BTreeSet<&Backend> = now.iter().flat_map(|held| held.backends.iter()).collect();
            plan.backends.iter().filter(|backend| !now.contains(backend)).count()
        };
        differences.iter().map(more).sum()
    }

    /// A fresh region for each service of the plan whose backends differ, in order, or none at all.
    fn regions(&mut self, differences: &[Difference<'_>]) -> Result<Vec<Option<Region>>, Error> {
        let mut regions: Vec<Option<Region>> = Vec::new();
        for (frontend, plan) in differences {
            let Some(plan) = plan else { continue };
            if self.held.get(frontend).is_some_and(|held| held.backends == plan.backends) {
                regions.push(None);
                continue;
            }
            let count = u32::try_from(plan.backends.len()).unwrap_or(u32::MAX);
            let Some(region) = self.slots.take(count) else {
                // What is free in pieces too small counts as held.
                let (held, capacity) = (u64::from(self.slots.unusable()), u64::from(self.sizes.slots));
                regions.into_iter().flatten().for_each(|region| self.slots.give_back(region));
                return Err(Error::Full { map: map::SLOTS, needed: held + u64::from(count), held, capacity });
            };
            regions.push(Some(region));
        }
        Ok(regions)
    }

    /// `region` is none where the backends in force are those of the plan.
    fn write(
        &mut self,
        change: &mut Change,
        frontend: Frontend,
        plan: &FrontendPlan,
        region: Option<Region>,
    ) -> Result<Write, Error> {
        let held = self.held.get(&frontend).map(|held| (held.index, held.region));
        let index = match held {
            Some((index, _)) => index,
            None => self.indices.take().ok_or_else(|| self.full(map::SERVICES))?,
        };
        let mut numbers = Vec::with_capacity(plan.backends.len());
        for backend in plan.backends.iter() {
            numbers.push(match region {
                Some(_) => self.name(change, *backend)?,
                None => self.backends.number(backend).ok_or_else(|| self.full(map::BACKENDS))?,
            });
        }
        let affinity = affinity(plan);
        let members = numbers.iter().map(|backend| Member { service: index, backend: *backend });
        let members = members.filter(|_| affinity != 0).collect();
        if region.is_none() {
            numbers.clear();
        }
        let region = region.or(held.map(|(_, region)| region)).unwrap_or_default();
        let next = Held { index, region, backends: plan.backends.clone(), affinity };
        Ok(Write { frontend, next, numbers, members, is_new: held.is_none() })
    }

    fn name(&mut self, change: &mut Change, backend: Backend) -> Result<u32, Error> {
        let (number, is_new) = self.backends.name(backend).ok_or_else(|| self.full(map::BACKENDS))?;
        if is_new {
            change.backends.push((number, backend));
        }
        Ok(number)
    }

    /// Numbers ran out although they had been counted.
    fn full(&self, map: &'static str) -> Error {
        let (held, capacity) = self
            .used()
            .into_iter()
            .find(|(name, ..)| *name == map)
            .map_or((0, 0), |(_, held, capacity)| (held, u64::from(capacity)));
        Error::Full { map, needed: held + 1, held, capacity }
    }
}
