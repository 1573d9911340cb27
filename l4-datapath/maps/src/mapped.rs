//! An array whose elements are mapped, so that a field of one is written by a store of its own.
#![allow(unsafe_code, reason = "elements are read and written through a mapping")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use aya::Pod;
use aya::maps::{Array, IterableMap, Map, MapData, MapError};

use crate::Error;

/// The elements of an array made with `BPF_F_MMAPABLE`, since Linux 5.5.
///
/// An update by system call is a plain `memcpy` (`array_map_update_elem`, `bpf_obj_memcpy`), which promises neither
/// the order of the fields nor that a u64 is copied whole. Here each field is one store.
pub(crate) struct Mapped<V: Pod> {
    /// Keeps the map; the mapping alone would do so too.
    array: Array<MapData, V>,
    map: &'static str,
    base: NonNull<u8>,
    entries: u32,
    element: PhantomData<V>,
}

// SAFETY: the pointer is to memory that lives as long as the value; this process writes only by `&mut self`, and what
// programs read at the same time they read by fields, which are stored one by one.
unsafe impl<V: Pod + Send> Send for Mapped<V> {}

impl<V: Pod> Mapped<V> {
    /// The kernel rounds elements up to eight bytes (`array->elem_size`).
    const STRIDE: usize = size_of::<V>().next_multiple_of(8);

    /// The handle over a loaded map.
    pub(crate) fn new(map: &'static str, loaded: Map) -> Result<Self, Error> {
        let Map::Array(data) = &loaded else {
            return Err(Error::of(map, "opening")(MapError::InvalidMapType { map_type: 0 }));
        };
        let entries = data.info().map_err(Error::of(map, "opening"))?.max_entries();
        let base = mapped(data, entries as usize * Self::STRIDE)
            .map_err(|error| Error::of(map, "mapping")(MapError::IoError(error)))?;
        let array = Array::try_from(loaded).map_err(Error::of(map, "opening"))?;
        Ok(Self { array, map, base, entries, element: PhantomData })
    }

    /// The map's own descriptor.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.array.map().fd().as_fd()
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> u32 {
        self.entries
    }

    /// Where an element is.
    pub(crate) fn at(&self, index: u32) -> Result<NonNull<V>, Error> {
        if index >= self.entries {
            let error = MapError::OutOfBounds { index, max_entries: self.entries };
            return Err(Error::of(self.map, "finding an element")(error));
        }
        // SAFETY: within the mapping; elements begin at multiples of eight bytes of a page, and no value of ours is
        // aligned to more.
        Ok(unsafe { self.base.add(index as usize * Self::STRIDE) }.cast())
    }

    /// An element.
    pub(crate) fn get(&self, index: u32) -> Result<V, Error> {
        // SAFETY: a valid element; volatile because it is not this process's memory alone.
        Ok(unsafe { self.at(index)?.read_volatile() })
    }

    /// Writes an element that no program reads yet, in no order.
    pub(crate) fn set(&mut self, index: u32, value: V) -> Result<(), Error> {
        // SAFETY: a valid element.
        unsafe { self.at(index)?.write_volatile(value) };
        Ok(())
    }
}

impl<V: Pod> Drop for Mapped<V> {
    fn drop(&mut self) {
        // SAFETY: what `mapped` made; nothing refers to it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.entries as usize * Self::STRIDE) };
    }
}

fn mapped(data: &MapData, length: usize) -> io::Result<NonNull<u8>> {
    let fd = data.fd().as_fd().as_raw_fd();
    // SAFETY: a new shared mapping at an address of the kernel's choice; the kernel refuses a length beyond the array.
    let address = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, fd, 0)
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(io::Error::last_os_error)
}
