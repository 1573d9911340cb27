//! Reading a whole hash map by `BPF_MAP_LOOKUP_BATCH`, since Linux 5.6.
//!
//! Two reasons besides speed: a walk from key to key begins anew where its key has vanished, so that under traffic it
//! repeats itself and may never end; this one goes from bucket to bucket and comes by each once.
#![allow(unsafe_code, reason = "the system call takes a pointer to a command's attributes")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::Pod;
use aya::maps::{HashMap, IterableMap, MapData, MapError};

use crate::Error;

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries asked for at once: less than a MiB of any of our maps. A bucket that holds more makes it grow.
const ENTRIES: usize = 4096;

/// `union bpf_attr` for the command.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Every entry.
pub(crate) fn entries<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<Vec<(K, V)>, Error> {
    let fd = map.map().fd().as_fd().as_raw_fd().cast_unsigned();
    let mut entries = Vec::new();
    let mut room = ENTRIES;
    let (mut keys, mut values) = (Vec::<K>::with_capacity(room), Vec::<V>::with_capacity(room));
    let (mut place, mut next, mut is_first) = (0u32, 0u32, true);
    loop {
        let mut batch = Batch {
            in_batch: if is_first { 0 } else { (&raw const place) as u64 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map: fd,
            element_flags: 0,
            flags: 0,
        };
        let result = look_up(&mut batch);
        let error = result.as_ref().err().and_then(io::Error::raw_os_error);
        if error == Some(libc::ENOSPC) {
            room *= 2;
            (keys, values) = (Vec::with_capacity(room), Vec::with_capacity(room));
            continue;
        }
        if error != Some(libc::ENOENT) {
            result.map_err(|error| Error::of(name, "reading")(MapError::IoError(error)))?;
        }
        // SAFETY: the kernel has written that many of both, and any bytes are a value of either type.
        unsafe {
            keys.set_len(batch.count as usize);
            values.set_len(batch.count as usize);
        }
        entries.extend(keys.drain(..).zip(values.drain(..)));
        if error == Some(libc::ENOENT) {
            return Ok(entries);
        }
        (place, is_first) = (next, false);
    }
}

fn look_up(batch: &mut Batch) -> io::Result<()> {
    // SAFETY: the kernel reads and writes `batch` alone, and through it at most `count` keys and values, for which there
    // is room, and a place, which for a hash map is a u32; all of it outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, std::ptr::from_mut(batch), size_of::<Batch>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
