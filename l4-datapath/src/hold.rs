//! What packets that wait for a proof need beside the program on their device: a key, and a reader of their counters.
//!
//! Promise: the key is random, never leaves the kernel and this process, and stays the same as long as the maps do, so
//! that packets which wait survive a change of agents.

use std::io;

use crate::Error;

/// Maps of the hold.
pub(crate) struct Holding {
    map: maps::Hold,
    pub(crate) counts: maps::HoldCounts,
}

impl Holding {
    pub(crate) fn new(map: maps::Hold, counts: maps::HoldCounts) -> Self {
        Self { map, counts }
    }

    /// Makes the key, unless an earlier agent did.
    pub(crate) fn prepare(&mut self) -> Result<(), Error> {
        if self.map.get()?.key != [0; 2] {
            return Ok(());
        }
        let mut key = [0; 16];
        getrandom::fill(&mut key)
            .map_err(|error| Error::path("getrandom", "drawing a key")(io::Error::other(error)))?;
        let key = u128::from_ne_bytes(key);
        Ok(self.map.set_key([key as u64, (key >> 64) as u64])?)
    }
}
