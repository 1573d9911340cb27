//! The arrays: what policy says of each endpoint, quotas in use, lost events.

use aya::maps::{Array, Map, MapData, PerCpuArray};

use crate::Error;

/// `ASSIGNMENTS`: what policy says of an endpoint, by endpoint id, two slots. Written in place by the agent.
pub struct Assignments(Array<MapData, abi::Assignments>);

impl Assignments {
    const MAP: &str = abi::map::ASSIGNMENTS;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        Array::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// The element of an endpoint; all zero (denies) where there is none.
    pub fn get(&self, endpoint: u32) -> Result<abi::Assignments, Error> {
        self.0.get(&endpoint, 0).map_err(Error::of(Self::MAP, "reading"))
    }

    /// Stores the element of an endpoint in place.
    pub fn set(&mut self, endpoint: u32, assignments: abi::Assignments) -> Result<(), Error> {
        self.0.set(endpoint, assignments, 0).map_err(Error::of(Self::MAP, "writing"))
    }
}

/// `USAGE`: connections charged to each endpoint, by id. Written by the programs.
pub struct Usage(Array<MapData, u64>);

impl Usage {
    const MAP: &str = abi::map::USAGE;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        Array::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// Connections charged to the endpoint now.
    pub fn get(&self, endpoint: u32) -> Result<u64, Error> {
        self.0.get(&endpoint, 0).map_err(Error::of(Self::MAP, "reading"))
    }
}

/// `LOST`: events that found the ring full. Written by the programs.
pub struct Lost(PerCpuArray<MapData, u64>);

impl Lost {
    const MAP: &str = abi::map::LOST;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        PerCpuArray::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// Events lost since the map was made, over all CPUs.
    pub fn total(&self) -> Result<u64, Error> {
        let per_cpu = self.0.get(&0, 0).map_err(Error::of(Self::MAP, "reading"))?;
        Ok(per_cpu.iter().sum())
    }
}
