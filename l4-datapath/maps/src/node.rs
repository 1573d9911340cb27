//! `NODE`: one element, read by every hook before anything else. Written by the agent.
#![allow(unsafe_code, reason = "the element is mapped, so that the switch is one atomic store")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::{Array, Map, MapData, MapError};

use crate::Error;

/// The element, mapped. An update by system call copies bytes and promises no order: a program could read half of a
/// generation, and remember a verdict under a number that comes true later.
pub struct Node {
    /// Keeps the map; the mapping alone would do so too.
    _map: Array<MapData, abi::Node>,
    element: NonNull<abi::Node>,
}

// SAFETY: the pointer is to memory that lives as long as the value, and all access to it is atomic.
unsafe impl Send for Node {}

impl Node {
    const MAP: &str = abi::map::NODE;

    /// The handle over a loaded map.
    pub fn new(map: Map) -> Result<Self, Error> {
        let Map::Array(data) = &map else {
            let kind = MapError::InvalidMapType { map_type: 0 };
            return Err(Error::of(Self::MAP, "opening")(kind));
        };
        let element =
            mapped(data).map_err(|error| Error::of(Self::MAP, "mapping")(MapError::IoError(error)))?;
        let map = Array::try_from(map).map_err(Error::of(Self::MAP, "opening"))?;
        Ok(Self { _map: map, element })
    }

    /// The element. Generation 0: no agent has ever finished an apply.
    pub fn get(&self) -> abi::Node {
        let generation = self.generation().load(Ordering::Acquire);
        abi::Node {
            generation,
            trace: self.trace().load(Ordering::Relaxed),
            masquerade: self.masquerade().load(Ordering::Relaxed),
            namespace: self.namespace().load(Ordering::Relaxed),
            hold: self.hold().load(Ordering::Relaxed),
            guarded: self.guarded().load(Ordering::Relaxed),
            proxy: self.proxy().load(Ordering::Relaxed),
            listeners: self.listeners().load(Ordering::Acquire),
            zero: 0,
        }
    }

    /// The switch to another revision: one store, after all that it switches to has been written.
    pub fn set_generation(&mut self, generation: u64) {
        self.generation().store(generation, Ordering::Release);
    }

    /// Stores the trace level.
    pub fn set_trace(&mut self, trace: u32) {
        self.trace().store(trace, Ordering::Relaxed);
    }

    /// Stores [`abi::Node::masquerade`].
    pub fn set_masquerade(&mut self, ports: u32) {
        self.masquerade().store(ports, Ordering::Relaxed);
    }

    /// Stores [`abi::Node::namespace`].
    pub fn set_namespace(&mut self, cookie: u64) {
        self.namespace().store(cookie, Ordering::Relaxed);
    }

    /// Stores [`abi::Node::hold`].
    pub fn set_hold(&mut self, ifindex: u32) {
        self.hold().store(ifindex, Ordering::Relaxed);
    }

    /// Stores [`abi::Node::guarded`].
    pub fn set_guarded(&mut self, ports: u32) {
        self.guarded().store(ports, Ordering::Relaxed);
    }

    /// Stores [`abi::Node::proxy`].
    pub fn set_proxy(&mut self, cgroup: u64) {
        self.proxy().store(cgroup, Ordering::Relaxed);
    }

    /// Stores [`abi::Node::listeners`], after the listeners themselves and the proxy's cgroup.
    pub fn set_listeners(&mut self, count: u32) {
        self.listeners().store(count, Ordering::Release);
    }

    fn generation(&self) -> &AtomicU64 {
        // SAFETY: mapped for the life of `self`, aligned to a page, written atomically by this process alone and read
        // by programs.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.element.as_ptr()).generation) }
    }

    fn trace(&self) -> &AtomicU32 {
        // SAFETY: as above; `trace` is aligned by `repr(C)`.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.element.as_ptr()).trace) }
    }

    fn masquerade(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.element.as_ptr()).masquerade) }
    }

    fn hold(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.element.as_ptr()).hold) }
    }

    fn guarded(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.element.as_ptr()).guarded) }
    }

    fn proxy(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.element.as_ptr()).proxy) }
    }

    fn listeners(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.element.as_ptr()).listeners) }
    }

    fn namespace(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.element.as_ptr()).namespace) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // SAFETY: what `mapped` made; nothing refers to it any more.
        unsafe { libc::munmap(self.element.as_ptr().cast(), size_of::<abi::Node>()) };
    }
}

fn mapped(data: &MapData) -> io::Result<NonNull<abi::Node>> {
    let fd = data.fd().as_fd().as_raw_fd();
    // SAFETY: a new shared mapping at an address of the kernel's choice; the length is rounded up to a page, which is
    // what an array of one takes.
    let address = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), size_of::<abi::Node>(), access, libc::MAP_SHARED, fd, 0)
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(io::Error::last_os_error)
}
