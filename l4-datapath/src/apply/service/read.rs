//! Adopting the tables as an earlier agent left them, whole or killed at any write.
//!
//! `FRONTENDS` is the truth: what it names is in use, and everything that is not reached from there is free. A key that
//! does not lead to a service of its own is taken out at the next apply; no order of writing leaves one.

use std::collections::{BTreeMap, BTreeSet};

use abi::Member;
use mesh::service::Backend;

use super::number::{Backends, Numbers};
use super::slots::{Region, Slots};
use super::tables::{Held, Strays, Tables};
use crate::Error;
use crate::address::{frontend, socket};

/// What has been read so far.
#[derive(Default)]
struct Found {
    indices: BTreeSet<u32>,
    slots: Slots,
    numbers: BTreeMap<u32, Backend>,
    by_backend: BTreeMap<Backend, u32>,
    /// Each backend as often as a service names it.
    named: Vec<(u32, Backend)>,
    wanted: BTreeSet<Member>,
}

impl Tables {
    /// Reads all tables anew.
    pub(super) fn read(&mut self) -> Result<(), Error> {
        let mut found = Found { slots: Slots::new(self.sizes.slots), ..Found::default() };
        self.held.clear();
        self.vips.clear();
        self.strays = Strays::default();
        for (key, index) in self.maps.frontends.entries()? {
            if key == abi::Frontend::address_only(key.address) {
                self.vips.insert(key.address);
            } else if let Some(held) = self.adopt(&mut found, key, index)? {
                self.held.insert(frontend(&key), held);
            } else {
                self.strays.frontends.insert(key);
            }
        }
        self.members = self.maps.members.entries()?.into_iter().collect();
        self.strays.members = self.members.difference(&found.wanted).copied().collect();
        self.strays.lacking = found.wanted.difference(&self.members).copied().collect();
        self.indices = Numbers::new(self.sizes.services, &found.indices);
        self.backends = Backends::found(self.sizes.backends, found.named.into_iter());
        self.slots = found.slots;
        self.forget_retired();
        Ok(())
    }

    /// The service behind a key, if it is one and shares nothing that services do not share.
    fn adopt(&self, found: &mut Found, key: abi::Frontend, index: u32) -> Result<Option<Held>, Error> {
        if index == 0 || index >= self.sizes.services || found.indices.contains(&index) {
            return Ok(None);
        }
        let service = self.maps.services.get(index)?;
        let region = Region::of(service.slots);
        if service.frontend != key
            || u64::from(region.first) + u64::from(region.count) > u64::from(self.sizes.slots)
        {
            return Ok(None);
        }
        let Some(named) = self.backends_of(found, region)? else { return Ok(None) };
        if !found.slots.take_at(region) {
            return Ok(None);
        }
        found.indices.insert(index);
        if service.affinity != 0 {
            found
                .wanted
                .extend(named.iter().map(|(backend, _)| Member { service: index, backend: *backend }));
        }
        let backends = named.iter().map(|(_, backend)| *backend).collect();
        found.numbers.extend(named.iter().copied());
        found.by_backend.extend(named.iter().map(|(number, backend)| (*backend, *number)));
        found.named.extend(named);
        Ok(Some(Held { index, region, backends, affinity: service.affinity }))
    }

    /// What the slots name; none if a number is nobody's, or two stand for one backend.
    fn backends_of(&self, found: &Found, region: Region) -> Result<Option<Vec<(u32, Backend)>>, Error> {
        let mut named = Vec::with_capacity(region.count as usize);
        for slot in region.slots() {
            let number = self.maps.slots.get(slot)?;
            if number == 0 || number >= self.sizes.backends {
                return Ok(None);
            }
            let element = self.maps.backends.get(number)?;
            let backend = socket(element.address, element.port);
            if found.by_backend.get(&backend).is_some_and(|known| *known != number) {
                return Ok(None);
            }
            named.push((number, backend));
        }
        Ok(Some(named))
    }
}
