//! What masquerading is told: `DEVICES`, `UNMASQUERADED` and the ports in `NODE`.
//!
//! Promise: level-based, by diff, and in an order in which no packet leaves under an address that it should not have:
//! a device is known before a program stands on it, and a destination that needs no masquerading before the device that
//! would masquerade. The copy in memory always says what the kernel says.

use std::collections::{BTreeMap, BTreeSet};

use abi::{Address, DeviceFlags};
use maps::Prefix;
use mesh::plan::{Device, Masquerade};
use nix::net::if_::if_nametoindex;

use crate::apply::prefix;
use crate::{Error, Sizes};

/// Maps and copy.
pub(crate) struct Masquerading {
    devices_map: maps::Devices,
    unmasqueraded_map: maps::Unmasqueraded,
    pub(crate) devices: BTreeMap<u32, abi::Device>,
    pub(crate) unmasqueraded: BTreeSet<Prefix<Address>>,
    /// What is in force, programs on their devices included.
    applied: Option<(Masquerade, Vec<Device>)>,
}

impl Masquerading {
    /// Reads what an earlier agent left.
    pub(crate) fn read(
        devices_map: maps::Devices,
        unmasqueraded_map: maps::Unmasqueraded,
    ) -> Result<Self, Error> {
        Ok(Self {
            devices: devices_map.entries()?.into_iter().collect(),
            unmasqueraded: unmasqueraded_map.entries()?.into_iter().map(|(prefix, _)| prefix).collect(),
            devices_map,
            unmasqueraded_map,
            applied: None,
        })
    }

    /// Whether all of this is in force already.
    pub(crate) fn stands(&self, masquerade: &Masquerade, devices: &[Device]) -> bool {
        self.applied.as_ref().is_some_and(|(known, there)| known == masquerade && there == devices)
    }

    /// All of this is in force from now on.
    pub(crate) fn applied(&mut self, masquerade: &Masquerade, devices: &[Device]) {
        self.applied = Some((masquerade.clone(), devices.to_vec()));
    }

    /// Nobody knows what of it is in force.
    pub(crate) fn unsettle(&mut self) {
        self.applied = None;
    }

    /// Adds what is new; refuses it before if there is no room.
    pub(crate) fn add(&mut self, masquerade: &Masquerade, devices: &[Device]) -> Result<(), Error> {
        let wanted = exceptions(masquerade);
        let fresh: Vec<_> = wanted.difference(&self.unmasqueraded).copied().collect();
        fits(abi::map::UNMASQUERADED, self.unmasqueraded.len(), fresh.len(), Sizes::UNMASQUERADED)?;
        let unknown = devices.iter().filter(|device| !self.devices.contains_key(&device.ifindex)).count();
        fits(abi::map::DEVICES, self.devices.len(), unknown, Sizes::DEVICES)?;
        for prefix in fresh {
            self.unmasqueraded_map.insert(prefix, 1)?;
            self.unmasqueraded.insert(prefix);
        }
        for device in devices {
            let value = element(masquerade, device);
            if self.devices.get(&device.ifindex) != Some(&value) {
                self.devices_map.insert(device.ifindex, value)?;
                self.devices.insert(device.ifindex, value);
            }
        }
        Ok(())
    }

    /// Removes what is no longer wanted; its programs have gone before. Returns the indices of devices that are gone.
    pub(crate) fn remove(&mut self, masquerade: &Masquerade, devices: &[Device]) -> Result<Vec<u32>, Error> {
        let kept: BTreeSet<u32> = devices.iter().map(|device| device.ifindex).collect();
        let gone: Vec<u32> = self.devices.keys().filter(|index| !kept.contains(index)).copied().collect();
        for index in &gone {
            self.devices_map.remove(*index)?;
            self.devices.remove(index);
        }
        let wanted = exceptions(masquerade);
        let obsolete: Vec<_> = self.unmasqueraded.difference(&wanted).copied().collect();
        for prefix in obsolete {
            self.unmasqueraded_map.remove(prefix)?;
            self.unmasqueraded.remove(&prefix);
        }
        Ok(gone)
    }
}

/// [`abi::Node::masquerade`]; 0 if nobody is masqueraded.
pub(crate) fn ports(masquerade: &Masquerade) -> u32 {
    let (first, last) = (u32::from(*masquerade.ports.start()), u32::from(*masquerade.ports.end()));
    if (masquerade.ipv4 || masquerade.ipv6) && first <= last { first << 16 | last } else { 0 }
}

/// Whether the device is still the one that was found under its name.
pub(crate) fn is_there(device: &Device) -> bool {
    if_nametoindex(device.name.as_str()).is_ok_and(|index| index == device.ifindex)
}

fn exceptions(masquerade: &Masquerade) -> BTreeSet<Prefix<Address>> {
    masquerade.exceptions.iter().map(prefix).collect()
}

fn element(masquerade: &Masquerade, device: &Device) -> abi::Device {
    let flag = |wanted: bool, flag: u32| if wanted { flag } else { 0 };
    abi::Device {
        ipv4: device.ipv4.map_or([0; 4], |address| address.octets()),
        ipv6: device.ipv6.map_or([0; 16], |address| address.octets()),
        flags: flag(masquerade.ipv4, DeviceFlags::MASQUERADE4)
            | flag(masquerade.ipv6, DeviceFlags::MASQUERADE6),
    }
}

fn fits(map: &'static str, held: usize, fresh: usize, capacity: u32) -> Result<(), Error> {
    let (held, needed, capacity) = (held as u64, (held + fresh) as u64, u64::from(capacity));
    if needed > capacity { Err(Error::Full { map, needed, held, capacity }) } else { Ok(()) }
}
