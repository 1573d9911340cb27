//! The two hash maps: endpoints by address, and drop counters.

use abi::{Address, DropCount, DropKey, Endpoint};
use aya::maps::{HashMap, Map, MapData, PerCpuHashMap};

use crate::{Error, absent_is_fine};

/// `ENDPOINTS`: address → facts of the endpoint. Written by the agent; read by every hook.
///
/// There is no overwriting: the kernel would hand the replaced element to the next insertion while a program may still
/// read it. Remove, wait for an RCU grace, insert.
pub struct Endpoints(HashMap<MapData, Address, Endpoint>);

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

impl Endpoints {
    const MAP: &str = abi::map::ENDPOINTS;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        HashMap::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// Adds an address that is not there.
    pub fn insert(&mut self, address: Address, endpoint: Endpoint) -> Result<(), Error> {
        self.0.insert(address, endpoint, NO_EXIST).map_err(Error::of(Self::MAP, "adding an address"))
    }

    /// Removes an address; one that is not there is fine.
    pub fn remove(&mut self, address: Address) -> Result<(), Error> {
        absent_is_fine(self.0.remove(&address)).map_err(Error::of(Self::MAP, "removing an address"))
    }

    /// Every entry.
    pub fn entries(&self) -> Result<Vec<(Address, Endpoint)>, Error> {
        self.0.iter().collect::<Result<_, _>>().map_err(Error::of(Self::MAP, "reading"))
    }
}

/// `DROPS`: packets and bytes dropped by interface, reason and direction. Written by the programs; the agent reads,
/// and removes the rows of interfaces that are gone.
pub struct Drops(PerCpuHashMap<MapData, DropKey, DropCount>);

impl Drops {
    const MAP: &str = abi::map::DROPS;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        PerCpuHashMap::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// Every row, summed over the CPUs.
    pub fn rows(&self) -> Result<Vec<(DropKey, DropCount)>, Error> {
        self.0
            .iter()
            .map(|row| {
                let (key, per_cpu) = row.map_err(Error::of(Self::MAP, "reading"))?;
                let sum = per_cpu.iter().fold(DropCount::default(), |sum, cpu| DropCount {
                    packets: sum.packets + cpu.packets,
                    bytes: sum.bytes + cpu.bytes,
                });
                Ok((key, sum))
            })
            .collect()
    }

    /// Removes the rows of an interface.
    pub fn forget(&mut self, ifindex: u32) -> Result<(), Error> {
        let keys: Vec<DropKey> = self
            .0
            .keys()
            .filter(|key| key.as_ref().map_or(true, |key| key.ifindex == ifindex))
            .collect::<Result<_, _>>()
            .map_err(Error::of(Self::MAP, "reading"))?;
        keys.iter().try_for_each(|key| {
            absent_is_fine(self.0.remove(key)).map_err(Error::of(Self::MAP, "removing a row"))
        })
    }
}
