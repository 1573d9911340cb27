//! Who has which address, for a process that was handed the maps to read: the L7 proxy.
//!
//! The descriptors may be read-only, and the process without capabilities: look-ups by descriptor need none since Linux
//! 5.19. But for that of `NODE`, which is only mapped, and then closed: the kernel maps no BPF map shared by a descriptor that
//! is read-only (`do_mmap` takes VM_SHARED away, `bpf_map_mmap` asks for it). A mapping made to be read stays so.
#![allow(unsafe_code, reason = "the generation is read through a mapping; descriptors are lent by number")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use abi::{Address, AddressKey, Endpoint, Node, Remote};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError};

use crate::{Error, handed_over};

/// Reads `NODE`, `ENDPOINTS`, `ASSIGNMENTS` and `IPCACHE`; writes none.
pub struct Identities {
    generation: NonNull<u64>,
    endpoints: HashMap<MapData, Address, Endpoint>,
    assignments: Array<MapData, abi::Assignments>,
    ipcache: LpmTrie<MapData, AddressKey, Remote>,
    descriptors: [RawFd; 3],
}

// SAFETY: the pointer is to memory that lives as long as the value and is read atomically; look-ups are system calls.
unsafe impl Send for Identities {}
// SAFETY: as above.
unsafe impl Sync for Identities {}

/// Who has an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Security identity; 0: none.
    pub identity: u32,
    /// Number of the creation of the endpoint of this node that has it; `None`: none of this node.
    pub instance: Option<u64>,
}

impl Identities {
    /// Over descriptors of the four maps, in the order above; that of `NODE` is closed.
    pub fn open([node, endpoints, assignments, ipcache]: [OwnedFd; 4]) -> Result<Self, Error> {
        use abi::map::{ASSIGNMENTS, ENDPOINTS, IPCACHE, NODE};
        let descriptors = [&endpoints, &assignments, &ipcache].map(AsRawFd::as_raw_fd);
        let generation =
            mapped(node.as_fd()).map_err(|error| Error::of(NODE, "mapping")(MapError::IoError(error)))?;
        let opening = |map| Error::of(map, "opening");
        // Only to see that it is what it is said to be.
        drop(Array::<_, Node>::try_from(handed_over(NODE, node)?).map_err(opening(NODE))?);
        Ok(Self {
            generation,
            endpoints: HashMap::try_from(handed_over(ENDPOINTS, endpoints)?).map_err(opening(ENDPOINTS))?,
            assignments: Array::try_from(handed_over(ASSIGNMENTS, assignments)?)
                .map_err(opening(ASSIGNMENTS))?,
            ipcache: LpmTrie::try_from(handed_over(IPCACHE, ipcache)?).map_err(opening(IPCACHE))?,
            descriptors,
        })
    }

    /// Descriptors of all but `NODE`, in the order above.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        // SAFETY: they are open for as long as the maps that own them, which `self` does.
        self.descriptors.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// [`abi::Node::generation`]: to be read before anything is looked up. A load, no system call.
    pub fn generation(&self) -> u64 {
        // SAFETY: mapped for the life of `self`, aligned to a page; written atomically by the agent alone.
        unsafe { AtomicU64::from_ptr(self.generation.as_ptr()) }.load(Ordering::Acquire)
    }

    /// Who has an address, as of a generation.
    pub fn owner(&self, address: Address, generation: u64) -> Result<Owner, Error> {
        use abi::map::{ASSIGNMENTS, ENDPOINTS, IPCACHE};
        let slot = (generation & 1) as usize;
        match self.endpoints.get(&address, 0) {
            Ok(endpoint) => {
                let assignments =
                    self.assignments.get(&endpoint.id, 0).map_err(Error::of(ASSIGNMENTS, "reading"))?;
                // The number may be another endpoint's by now.
                let is_same = assignments.endpoint.instance == endpoint.instance;
                let identity = if is_same { assignments.slot[slot].identity } else { 0 };
                return Ok(Owner { identity, instance: Some(endpoint.instance) });
            }
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(Error::of(ENDPOINTS, "reading")(error)),
        }
        match self.ipcache.get(&Key::new(128, address), 0) {
            Ok(remote) => Ok(Owner { identity: remote.identity[slot], instance: None }),
            Err(MapError::KeyNotFound) => Ok(Owner { identity: 0, instance: None }),
            Err(error) => Err(Error::of(IPCACHE, "reading")(error)),
        }
    }
}

impl Drop for Identities {
    fn drop(&mut self) {
        // SAFETY: what `mapped` made; nothing refers to it any more.
        unsafe { libc::munmap(self.generation.as_ptr().cast(), size_of::<Node>()) };
    }
}

const _: () = assert!(std::mem::offset_of!(Node, generation) == 0);

fn mapped(node: BorrowedFd<'_>) -> io::Result<NonNull<u64>> {
    // SAFETY: a new shared mapping at an address of the kernel's choice, only to be read; the length is rounded up to a
    // page, which is what an array of one takes.
    let address = unsafe {
        let (access, length) = (libc::PROT_READ, size_of::<Node>());
        libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, node.as_raw_fd(), 0)
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(io::Error::last_os_error)
}

#[cfg(test)]
mod tests {
    //! Needs root: it makes maps.

    use super::*;
    use crate::{Assignments, Endpoints, Ipcache, Prefix, scratch};

    /// Whoever takes over the process cannot write the node's element through what it has mapped.
    #[test]
    fn the_mapping_can_only_be_read() {
        let identities = Identities::open(scratch::identities().unwrap()).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a mapping of this size; where the call does nothing, nothing changes.
        let changed =
            unsafe { libc::mprotect(identities.generation.as_ptr().cast(), size_of::<Node>(), access) };
        assert_eq!((changed, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EACCES)));
    }

    #[test]
    fn an_address_is_an_endpoints_or_its_longest_prefixs_as_of_a_generation() {
        let maps = scratch::identities().unwrap();
        let copy = |number: usize| handed_over("test", maps[number].try_clone().unwrap()).unwrap();
        let (own, other) = (Address::v4([10, 0, 0, 1]), Address::v4([10, 0, 0, 2]));
        let endpoint = Endpoint { instance: 9, id: 5, ..Endpoint::default() };
        Endpoints::new(copy(1)).unwrap().insert(own, endpoint).unwrap();
        let slot = [256, 257].map(|identity| abi::Assignment { identity, ..abi::Assignment::default() });
        let mut assignments = Assignments::new(copy(2)).unwrap();
        let facts = |endpoint| abi::Assignments { slot, endpoint, ..abi::Assignments::default() };
        assignments.set(5, facts(endpoint)).unwrap();
        let remote = |identity| Remote { identity: [identity, identity + 1], ..Remote::default() };
        let mut ipcache = Ipcache::new(copy(3)).unwrap();
        ipcache.insert(Prefix { bits: 96, data: Address::v4([0; 4]) }, remote(9)).unwrap();
        ipcache.insert(Prefix { bits: 128, data: other }, remote(300)).unwrap();

        let identities = Identities::open(maps.each_ref().map(|map| map.try_clone().unwrap())).unwrap();
        assert_eq!(identities.generation(), 0);
        let owner = |address, generation| identities.owner(address, generation).unwrap();
        assert_eq!(owner(own, 0), Owner { identity: 256, instance: Some(9) });
        assert_eq!(owner(own, 3), Owner { identity: 257, instance: Some(9) });
        assert_eq!(owner(other, 0), Owner { identity: 300, instance: None });
        assert_eq!(owner(Address::v4([1, 1, 1, 1]), 1), Owner { identity: 10, instance: None });
        assert_eq!(owner(Address([0x20; 16]), 0), Owner { identity: 0, instance: None });
        // Its number is another endpoint's by now.
        assignments.set(5, facts(Endpoint { instance: 10, ..endpoint })).unwrap();
        assert_eq!(owner(own, 0), Owner { identity: 0, instance: Some(9) });
    }
}
