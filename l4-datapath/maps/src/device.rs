//! `DEVICES`: devices that lead out of the node.

use aya::maps::{HashMap, Map, MapData};

use crate::{Error, absent_is_fine};

/// `DEVICES`: interface index → what workloads are masqueraded by there. Written by the agent; read by `from_netdev`
/// and `to_netdev`.
pub struct Devices(HashMap<MapData, u32, abi::Device>);

impl Devices {
    const MAP: &str = abi::map::DEVICES;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        HashMap::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// Writes what is true of a device. A reader sees the old value or the new one: both are of that device.
    pub fn insert(&mut self, ifindex: u32, device: abi::Device) -> Result<(), Error> {
        self.0.insert(ifindex, device, 0).map_err(Error::of(Self::MAP, "writing a device"))
    }

    /// Removes a device; one that is not there is fine.
    pub fn remove(&mut self, ifindex: u32) -> Result<(), Error> {
        absent_is_fine(self.0.remove(&ifindex)).map_err(Error::of(Self::MAP, "removing a device"))
    }

    /// Every entry.
    pub fn entries(&self) -> Result<Vec<(u32, abi::Device)>, Error> {
        self.0.iter().collect::<Result<_, _>>().map_err(Error::of(Self::MAP, "reading"))
    }
}
