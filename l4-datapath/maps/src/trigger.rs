//! Calls that want a proof: the ring in which programs tell of them, and by which a socket's endpoint is known.
#![allow(unsafe_code, reason = "a record of the ring is read as the type it was written as")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use abi::Trigger;
use aya::maps::{HashMap, Map, MapData, RingBuf};

use crate::{Error, absent_is_fine};

/// `TRIGGERS`: calls that want a proof. Written by the programs; read by the auth-agent, which is handed the descriptor.
///
/// Making it maps the ring; reading needs no right after that, and no system call but to wait for the descriptor.
pub struct Triggers(RingBuf<MapData>);

impl Triggers {
    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        RingBuf::try_from(map).map(Self).map_err(Error::of(abi::map::TRIGGERS, "opening"))
    }

    /// The next one, if there is one. The descriptor is readable while there may be one.
    pub fn read(&mut self) -> Option<Trigger> {
        loop {
            let record = self.0.next()?;
            if record.len() == size_of::<Trigger>() {
                // SAFETY: the length is checked, any bytes are a trigger, and the read may be unaligned.
                return Some(unsafe { record.as_ptr().cast::<Trigger>().read_unaligned() });
            }
        }
    }
}

impl AsRawFd for Triggers {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Triggers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns its descriptor as long as it lives.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// `NAMESPACES`: cookie of a workload's network namespace → endpoint id. Written by the agent; read by the programs of
/// sockets.
pub struct Namespaces(HashMap<MapData, u64, u32>);

impl Namespaces {
    const MAP: &str = abi::map::NAMESPACES;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        HashMap::try_from(map).map(Self).map_err(Error::of(Self::MAP, "opening"))
    }

    /// Says whose namespace it is.
    pub fn insert(&mut self, cookie: u64, endpoint: u32) -> Result<(), Error> {
        self.0.insert(cookie, endpoint, 0).map_err(Error::of(Self::MAP, "writing a namespace"))
    }

    /// Forgets a namespace; one that is not there is fine.
    pub fn remove(&mut self, cookie: u64) -> Result<(), Error> {
        absent_is_fine(self.0.remove(&cookie)).map_err(Error::of(Self::MAP, "removing a namespace"))
    }

    /// Every entry.
    pub fn entries(&self) -> Result<Vec<(u64, u32)>, Error> {
        self.0.iter().collect::<Result<_, _>>().map_err(Error::of(Self::MAP, "reading"))
    }
}
