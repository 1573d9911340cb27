//! The tables of services, and a copy of them in memory.
//!
//! Promise: as [`crate::apply::Kernel`]'s: every write goes to the kernel first and into the copy only if it succeeded;
//! what may still be read by a program is given out again only after a grace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use abi::{Member, Service};
use aya::maps::Map;
use mesh::service::{Backend, Frontend};

use super::number::{Backends, Numbers};
use super::slots::{Region, Slots};
use crate::address::{address, backend_element, frontend_key};
use crate::grace::Grace;
use crate::{Error, Sizes};

/// The handles of the maps.
pub(crate) struct ServiceMaps {
    pub(crate) frontends: maps::Frontends,
    pub(crate) services: maps::Services,
    pub(crate) slots: maps::Slots,
    pub(crate) backends: maps::Backends,
    pub(crate) members: maps::Members,
}

impl ServiceMaps {
    /// `take` gives a loaded map by its name.
    pub(crate) fn open(mut take: impl FnMut(&'static str) -> Result<Map, Error>) -> Result<Self, Error> {
        Ok(Self {
            frontends: maps::Frontends::new(take(abi::map::FRONTENDS)?)?,
            services: maps::Services::new(take(abi::map::SERVICES)?)?,
            slots: maps::Slots::new(take(abi::map::SLOTS)?)?,
            backends: maps::Backends::new(take(abi::map::BACKENDS)?)?,
            members: maps::Members::new(take(abi::map::MEMBERS)?)?,
        })
    }
}

/// A frontend in force.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(super) index: u32,
    pub(super) region: Region,
    /// In the order of the slots.
    pub(super) backends: Arc<[Backend]>,
    pub(super) affinity: u32,
}

/// What an earlier agent left that no order of writing explains, or did not come to remove.
#[derive(Default)]
pub(super) struct Strays {
    /// Keys that lead to no service of theirs.
    pub(super) frontends: BTreeSet<abi::Frontend>,
    pub(super) members: BTreeSet<Member>,
    /// Members that services with affinity lack.
    pub(super) lacking: BTreeSet<Member>,
}

/// Maps and copy.
pub(crate) struct Tables {
    pub(crate) maps: ServiceMaps,
    grace: Grace,
    pub(super) sizes: Sizes,
    pub(super) held: BTreeMap<Frontend, Held>,
    /// Addresses with their own key in `FRONTENDS`.
    pub(super) vips: BTreeSet<abi::Address>,
    pub(super) members: BTreeSet<Member>,
    pub(super) strays: Strays,
    pub(super) indices: Numbers,
    pub(super) backends: Backends,
    pub(super) slots: Slots,
    retired_indices: Vec<u32>,
    retired_regions: Vec<Region>,
    /// A program may still run that found what is in use no more.
    pub(super) pending: bool,
    /// Since when what is free is free, nobody knows: it was read, not written.
    pub(super) is_unsure: bool,
    written: u64,
    removed: u64,
    #[cfg(feature = "testing")]
    pub(crate) writes_left: Option<u64>,
}

impl Tables {
    /// Nothing known yet of what the maps hold: [`Tables::read`] must follow.
    pub(super) fn new(maps: ServiceMaps, sizes: Sizes) -> Result<Self, Error> {
        Ok(Self {
            maps,
            grace: Grace::new()?,
            sizes,
            held: BTreeMap::new(),
            vips: BTreeSet::new(),
            members: BTreeSet::new(),
            strays: Strays::default(),
            indices: Numbers::default(),
            backends: Backends::default(),
            slots: Slots::default(),
            retired_indices: Vec::new(),
            retired_regions: Vec::new(),
            pending: true,
            is_unsure: true,
            written: 0,
            removed: 0,
            #[cfg(feature = "testing")]
            writes_left: None,
        })
    }

    /// Waits, if need be, until no program runs that found what is in use no more; then that is free.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        if !self.pending {
            return Ok(());
        }
        self.grace.wait()?;
        self.backends.retire();
        self.retired_indices.drain(..).for_each(|index| self.indices.give_back(index));
        self.retired_regions.drain(..).for_each(|region| self.slots.give_back(region));
        (self.pending, self.is_unsure) = (false, false);
        Ok(())
    }

    /// What was waiting for a grace is known no more: all that is not held is free after one.
    pub(super) fn forget_retired(&mut self) {
        self.retired_indices.clear();
        self.retired_regions.clear();
        (self.pending, self.is_unsure) = (true, true);
    }

    /// Elements of `FRONTENDS`.
    pub(super) fn frontends(&self) -> u64 {
        (self.held.len() + self.vips.len() + self.strays.frontends.len()) as u64
    }

    /// Elements in use of each map, by name, with the capacity.
    pub(crate) fn used(&self) -> [(&'static str, u64, u32); 5] {
        use abi::map;
        let slots: u64 = self.held.values().map(|held| u64::from(held.region.count)).sum();
        [
            (map::FRONTENDS, self.frontends(), self.sizes.frontends),
            (map::SERVICES, self.indices.held(), self.sizes.services),
            (map::SLOTS, slots, self.sizes.slots),
            (map::BACKENDS, self.backends.held(), self.sizes.backends),
            (map::MEMBERS, self.members.len() as u64, self.sizes.backends),
        ]
    }

    /// The service's members now.
    pub(super) fn members_of(&self, service: u32) -> BTreeSet<Member> {
        let all = Member { service, backend: 0 }..=Member { service, backend: u32::MAX };
        self.members.range(all).copied().collect()
    }

    pub(super) fn write_backend(&mut self, number: u32, backend: &Backend) -> Result<(), Error> {
        self.about_to_write()?;
        self.written += 1;
        Ok(self.maps.backends.set(number, backend_element(backend))?)
    }

    pub(super) fn write_slot(&mut self, slot: u32, backend: u32) -> Result<(), Error> {
        self.about_to_write()?;
        self.written += 1;
        Ok(self.maps.slots.set(slot, backend)?)
    }

    pub(super) fn add_member(&mut self, member: Member) -> Result<(), Error> {
        if !self.members.contains(&member) {
            self.about_to_write()?;
            self.maps.members.insert(member)?;
            self.members.insert(member);
            self.written += 1;
        }
        Ok(())
    }

    pub(super) fn remove_member(&mut self, member: Member) -> Result<(), Error> {
        self.about_to_write()?;
        self.maps.members.remove(member)?;
        self.members.remove(&member);
        self.pending = true;
        self.removed += 1;
        Ok(())
    }

    /// Writes a service that `FRONTENDS` does not name yet, then names it.
    pub(super) fn add_service(&mut self, frontend: Frontend, held: Held) -> Result<(), Error> {
        let key = frontend_key(&frontend);
        let slots = held.region.word();
        let service = Service { slots, frontend: key, affinity: held.affinity, flags: 0, zero: 0 };
        self.about_to_write()?;
        self.maps.services.set(held.index, service)?;
        self.add_vip(key.address)?;
        self.about_to_write()?;
        self.maps.frontends.insert(key, held.index)?;
        self.held.insert(frontend, held);
        self.written += 2;
        Ok(())
    }

    fn add_vip(&mut self, vip: abi::Address) -> Result<(), Error> {
        if !self.vips.contains(&vip) {
            self.about_to_write()?;
            self.maps.frontends.insert(abi::Frontend::address_only(vip), 0)?;
            self.vips.insert(vip);
            self.written += 1;
        }
        Ok(())
    }

    /// Changes a service in force: affinity and slots, each by one store. What it has no more is free after a grace.
    pub(super) fn change_service(&mut self, frontend: Frontend, next: Held) -> Result<(), Error> {
        let Some(now) = self.held.get(&frontend).cloned() else { return Ok(()) };
        if now.affinity != next.affinity {
            self.about_to_write()?;
            self.maps.services.set_affinity(now.index, next.affinity)?;
            self.written += 1;
        }
        if now.region != next.region {
            self.about_to_write()?;
            self.maps.services.set_slots(now.index, next.region.word())?;
            self.written += 1;
            self.retire(&now);
        }
        self.held.insert(frontend, next);
        Ok(())
    }

    /// Takes a service out of `FRONTENDS`, with its address if that has no other; its index stays as it is.
    pub(super) fn remove_service(&mut self, frontend: Frontend) -> Result<(), Error> {
        let Some(held) = self.held.get(&frontend).cloned() else { return Ok(()) };
        self.about_to_write()?;
        self.maps.frontends.remove(frontend_key(&frontend))?;
        self.held.remove(&frontend);
        self.removed += 1;
        self.retire(&held);
        self.retired_indices.push(held.index);
        self.members_of(held.index).into_iter().try_for_each(|member| self.remove_member(member))
    }

    /// Takes out the key of an address that no service has any more.
    pub(super) fn remove_vip_if_unused(&mut self, vip: abi::Address) -> Result<(), Error> {
        let ip = crate::address::ip(vip);
        let first = Frontend { address: ip, port: 0, protocol: 0 };
        let last = Frontend { address: ip, port: u16::MAX, protocol: u8::MAX };
        if self.held.range(first..=last).next().is_none() && self.vips.contains(&vip) {
            self.remove_key(abi::Frontend::address_only(vip))?;
            self.vips.remove(&vip);
        }
        Ok(())
    }

    fn remove_key(&mut self, key: abi::Frontend) -> Result<(), Error> {
        self.about_to_write()?;
        self.maps.frontends.remove(key)?;
        self.removed += 1;
        Ok(())
    }

    fn retire(&mut self, held: &Held) {
        held.backends.iter().for_each(|backend| self.backends.unname(*backend));
        self.retired_regions.push(held.region);
        self.pending = true;
    }

    /// Removes what should not be there, and adds what should: after that the tables are whole.
    pub(super) fn mend(&mut self) -> Result<(), Error> {
        while let Some(key) = self.strays.frontends.first().copied() {
            self.remove_key(key)?;
            self.strays.frontends.remove(&key);
            self.pending = true;
        }
        while let Some(member) = self.strays.members.first().copied() {
            self.remove_member(member)?;
            self.strays.members.remove(&member);
        }
        while let Some(member) = self.strays.lacking.first().copied() {
            self.add_member(member)?;
            self.strays.lacking.remove(&member);
        }
        let addresses: BTreeSet<_> = self.held.keys().map(|frontend| address(frontend.address)).collect();
        addresses.into_iter().try_for_each(|vip| self.add_vip(vip))
    }

    /// Elements written and removed since the last call.
    pub(super) fn counted(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.written), std::mem::take(&mut self.removed))
    }

    /// Where a test lets the agent die.
    #[cfg(feature = "testing")]
    fn about_to_write(&mut self) -> Result<(), Error> {
        match &mut self.writes_left {
            Some(0) => Err(Error::Grace("killed by a test".to_owned())),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    #[cfg(not(feature = "testing"))]
    #[inline(always)]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests let it fail")]
    fn about_to_write(&mut self) -> Result<(), Error> {
        Ok(())
    }
}
