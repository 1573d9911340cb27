//! Waiting until no program runs any more that could still use what was replaced.
//!
//! tc programs run inside an RCU read-side section, and the kernel promises that an update of a map of maps returns
//! only after every such program that was running has ended (`maybe_wait_bpf_programs`, since 4.20). So a map of maps
//! of our own, seen by no program, is the wait. Rejected: `membarrier(MEMBARRIER_CMD_GLOBAL)` does nothing on a machine
//! with one CPU and is refused under `nohz_full`.
#![allow(unsafe_code, reason = "aya cannot create a map of maps; one bpf(2) call here does")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use aya::maps::{Array, ArrayOfMaps, IterableMap, Map, MapData, MapError};

use crate::Error;

/// The wait; 5–20 ms each.
pub(crate) struct Grace {
    outer: ArrayOfMaps<MapData, Array<MapData, u32>>,
    inner: Array<MapData, u32>,
}

/// The head of `union bpf_attr` for `BPF_MAP_CREATE`, up to `inner_map_fd`.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

impl Grace {
    /// Makes the pair of maps.
    pub(crate) fn new() -> Result<Self, Error> {
        let create = || -> Result<Self, MapError> {
            let inner = Array::create(1, 0)?;
            let outer = array_of_maps(&inner)?;
            Ok(Self { outer: ArrayOfMaps::try_from(Map::from_map_data(MapData::from_fd(outer)?)?)?, inner })
        };
        create().map_err(|error| Error::Grace(error.to_string()))
    }

    /// Returns when every program that runs now has ended.
    pub(crate) fn wait(&mut self) -> Result<(), Error> {
        self.outer.set(0, &self.inner, 0).map_err(|error| Error::Grace(error.to_string()))
    }
}

fn array_of_maps(inner: &Array<MapData, u32>) -> io::Result<OwnedFd> {
    let inner_map_fd = inner.map().fd().as_fd().as_raw_fd().cast_unsigned();
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_ARRAY_OF_MAPS,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
        inner_map_fd,
    };
    // SAFETY: the kernel reads exactly the given number of bytes from `attributes`, which outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const attributes, size_of::<MapCreate>())
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a non-negative result is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
