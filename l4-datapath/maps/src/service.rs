//! The tables of services: what is called, where its slots are, who answers.
#![allow(unsafe_code, reason = "what changes in force is stored by fields")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use abi::{Backend, Frontend, Member, Service};
use aya::maps::{HashMap, Map, MapData};

use crate::mapped::Mapped;
use crate::{Error, absent_is_fine, batch};

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// `FRONTENDS`: what is called → index in `SERVICES`. Written by the agent; read by the cgroup programs and `from_pod`.
///
/// The kernel hands a removed element to the next insertion while a program may still read it: who comes by one compares
/// [`Service::frontend`].
pub struct Frontends(HashMap<MapData, Frontend, u32>);

impl Frontends {
    const MAP: &str = abi::map::FRONTENDS;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        HashMap::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// Adds a key that is not there.
    pub fn insert(&mut self, frontend: Frontend, index: u32) -> Result<(), Error> {
        self.0.insert(frontend, index, NO_EXIST).map_err(Error::of(Self::MAP, "adding a frontend"))
    }

    /// Removes a key; one that is not there is fine.
    pub fn remove(&mut self, frontend: Frontend) -> Result<(), Error> {
        absent_is_fine(self.0.remove(&frontend)).map_err(Error::of(Self::MAP, "removing a frontend"))
    }

    /// Every entry.
    pub fn entries(&self) -> Result<Vec<(Frontend, u32)>, Error> {
        batch::entries(&self.0, Self::MAP)
    }
}

/// `SERVICES`: index → service. Written by the agent; read by whoever reads `FRONTENDS`.
///
/// Of an element in force only [`Service::slots`] and [`Service::affinity`] change, each by one store.
pub struct Services(Mapped<Service>);

impl Services {
    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        Mapped::new(abi::map::SERVICES, map).map(Self)
    }

    /// The element; all zero where there never was one.
    pub fn get(&self, index: u32) -> Result<Service, Error> {
        self.0.get(index)
    }

    /// Writes an element that no entry of `FRONTENDS` names.
    pub fn set(&mut self, index: u32, service: Service) -> Result<(), Error> {
        self.0.set(index, service)
    }

    /// The switch of a service to another region of `SLOTS`, after that has been written.
    pub fn set_slots(&mut self, index: u32, slots: u64) -> Result<(), Error> {
        // SAFETY: a valid element, aligned to eight bytes; programs read the field at once, too.
        let field = unsafe { AtomicU64::from_ptr(&raw mut (*self.0.at(index)?.as_ptr()).slots) };
        field.store(slots, Ordering::Release);
        Ok(())
    }

    /// Stores [`Service::affinity`].
    pub fn set_affinity(&mut self, index: u32, seconds: u32) -> Result<(), Error> {
        // SAFETY: as above; aligned by `repr(C)`.
        let field = unsafe { AtomicU32::from_ptr(&raw mut (*self.0.at(index)?.as_ptr()).affinity) };
        field.store(seconds, Ordering::Release);
        Ok(())
    }
}

/// `SLOTS`: slot → index in `BACKENDS`. Written by the agent, in regions that no service names.
pub struct Slots(Mapped<u32>);

impl Slots {
    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        Mapped::new(abi::map::SLOTS, map).map(Self)
    }

    /// The number of the backend in a slot.
    pub fn get(&self, slot: u32) -> Result<u32, Error> {
        self.0.get(slot)
    }

    /// Writes a slot of a region that no service names.
    pub fn set(&mut self, slot: u32, backend: u32) -> Result<(), Error> {
        self.0.set(slot, backend)
    }
}

/// `BACKENDS`: number → backend. Written by the agent, under numbers that no slot names.
pub struct Backends(Mapped<Backend>);

impl Backends {
    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        Mapped::new(abi::map::BACKENDS, map).map(Self)
    }

    /// The backend of a number; all zero where there never was one.
    pub fn get(&self, number: u32) -> Result<Backend, Error> {
        self.0.get(number)
    }

    /// Writes a backend under a number that no slot names.
    pub fn set(&mut self, number: u32, backend: Backend) -> Result<(), Error> {
        self.0.set(number, backend)
    }
}

/// `MEMBERS`: which backends may be chosen for a service with affinity. Written by the agent; read by whoever reads
/// `AFFINITIES`.
pub struct Members(HashMap<MapData, Member, u32>);

impl Members {
    const MAP: &str = abi::map::MEMBERS;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        HashMap::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// Adds a member; one that is there is fine.
    pub fn insert(&mut self, member: Member) -> Result<(), Error> {
        self.0.insert(member, 1, 0).map_err(Error::of(Self::MAP, "adding a member"))
    }

    /// Removes a member; one that is not there is fine.
    pub fn remove(&mut self, member: Member) -> Result<(), Error> {
        absent_is_fine(self.0.remove(&member)).map_err(Error::of(Self::MAP, "removing a member"))
    }

    /// Every member.
    pub fn entries(&self) -> Result<Vec<Member>, Error> {
        Ok(batch::entries(&self.0, Self::MAP)?.into_iter().map(|(member, _)| member).collect())
    }
}
