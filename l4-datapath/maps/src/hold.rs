//! What packets that wait for a proof need of user space: a key, and somebody who reads how many they are.

use aya::maps::{Array, Map, MapData, PerCpuArray};

use crate::Error;

/// `HOLD`: the key by which a packet that waited is known again. Written by the agent, once, before packets wait.
pub struct Hold(Array<MapData, abi::Hold>);

impl Hold {
    const MAP: &str = abi::map::HOLD;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        Array::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// The element; with a key of zeros no packet may wait yet.
    pub fn get(&self) -> Result<abi::Hold, Error> {
        self.0.get(&0, 0).map_err(Error::of(Self::MAP, "reading"))
    }

    /// Stores the key.
    pub fn set_key(&mut self, key: [u64; 2]) -> Result<(), Error> {
        self.0
            .set(0, abi::Hold { key, ..abi::Hold::default() }, 0)
            .map_err(Error::of(Self::MAP, "writing the key"))
    }
}

/// `HOLD_COUNTS`: packets that waited for a proof, and calls that asked for one. Written by the programs.
pub struct HoldCounts(PerCpuArray<MapData, u64>);

impl HoldCounts {
    const MAP: &str = abi::map::HOLD_COUNTS;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        PerCpuArray::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// One of [`abi::HoldCount`], since the map was made, over all CPUs.
    pub fn total(&self, what: u32) -> Result<u64, Error> {
        let per_cpu = self.0.get(&what, 0).map_err(Error::of(Self::MAP, "reading"))?;
        Ok(per_cpu.iter().sum())
    }
}
