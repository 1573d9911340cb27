//! Waiting until no program runs any more that could still use what was replaced.
//!
//! tc programs run inside an RCU read-side section, and the kernel promises that an update of a map of maps returns
//! only after every such program that was running has ended (`maybe_wait_bpf_programs`, since 4.20). So a map of maps
//! of our own, seen by no program, is the wait. Rejected: `membarrier(MEMBARRIER_CMD_GLOBAL)` does nothing on a machine
//! with one CPU and is refused under `nohz_full`.

use std::os::fd::AsFd;

use aya::maps::{Array, ArrayOfMaps, IterableMap, Map, MapData, MapError};

use crate::{Error, sys};

/// The wait; some milliseconds each.
pub(crate) struct Grace {
    outer: ArrayOfMaps<MapData, Array<MapData, u32>>,
    inner: Array<MapData, u32>,
}

impl Grace {
    /// Makes the pair of maps.
    pub(crate) fn new() -> Result<Self, Error> {
        let create = || -> Result<Self, MapError> {
            let inner = Array::create(1, 0)?;
            let outer = sys::array_of_maps(inner.map().fd().as_fd())?;
            Ok(Self { outer: ArrayOfMaps::try_from(Map::from_map_data(MapData::from_fd(outer)?)?)?, inner })
        };
        create().map_err(|error| Error::Grace(error.to_string()))
    }

    /// Returns when every program that runs now has ended.
    pub(crate) fn wait(&mut self) -> Result<(), Error> {
        self.outer.set(0, &self.inner, 0).map_err(|error| Error::Grace(error.to_string()))
    }
}
