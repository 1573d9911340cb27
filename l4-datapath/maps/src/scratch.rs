//! Maps for tests of those that are handed some: pinned nowhere, gone with their last descriptor; and what such a one may
//! ask of bpf(2). Needs root.
#![allow(unsafe_code, reason = "the system call takes a pointer to a command's attributes")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use abi::{Address, Assignments, Endpoint, LEASES, MARKS, Mark, Node, Pair, PairKey, Remote, TRIGGERS};

const BPF_MAP_CREATE: libc::c_long = 0;
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const TRIE: u32 = 11;
const RING: u32 = 27;
const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;
/// Keys of `AUTH` that a test may fill.
const PAIRS: u32 = 1 << 12;

/// The first fields of `union bpf_attr` for the command; the kernel takes the rest for zero.
#[repr(C)]
struct Create {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

/// `AUTH`, `MARKS` and `LEASES` of their own.
pub fn auth() -> io::Result<[OwnedFd; 3]> {
    let [key, pair, mark, lease] =
        [size_of::<PairKey>(), size_of::<Pair>(), size_of::<Mark>(), size_of::<u64>()]
            .map(|size| size as u32);
    Ok([
        create(&Create { kind: HASH, key, value: pair, entries: PAIRS, flags: NO_PREALLOC })?,
        create(&Create { kind: ARRAY, key: 4, value: mark, entries: MARKS, flags: MMAPABLE })?,
        create(&Create { kind: ARRAY, key: 4, value: lease, entries: LEASES, flags: MMAPABLE })?,
    ])
}

/// `NODE`, `ENDPOINTS`, `ASSIGNMENTS` and `IPCACHE` of their own, as who writes them has them.
pub fn identities() -> io::Result<[OwnedFd; 4]> {
    let [address, node, endpoint, assignments, remote] = [
        size_of::<Address>(),
        size_of::<Node>(),
        size_of::<Endpoint>(),
        size_of::<Assignments>(),
        size_of::<Remote>(),
    ]
    .map(|size| size as u32);
    Ok([
        create(&Create { kind: ARRAY, key: 4, value: node, entries: 1, flags: MMAPABLE })?,
        create(&Create { kind: HASH, key: address, value: endpoint, entries: 64, flags: NO_PREALLOC })?,
        create(&Create { kind: ARRAY, key: 4, value: assignments, entries: 64, flags: 0 })?,
        create(&Create { kind: TRIE, key: address + 4, value: remote, entries: 64, flags: NO_PREALLOC })?,
    ])
}

/// `TRIGGERS` of its own, in which nobody writes.
pub fn triggers() -> io::Result<OwnedFd> {
    create(&Create { kind: RING, key: 0, value: 0, entries: TRIGGERS, flags: 0 })
}

fn create(attributes: &Create) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told.
    let fd = unsafe {
        let attributes = std::ptr::from_ref(attributes);
        libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, attributes, size_of::<Create>())
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just made and nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The kernel's word on a command of bpf(2) that comes without attributes: it fails for who may give it too.
pub fn command(number: u32) -> io::Error {
    // SAFETY: a null pointer to no bytes; nothing is read.
    let result = unsafe { libc::syscall(libc::SYS_bpf, number, std::ptr::null::<u8>(), 0) };
    match result {
        0.. => io::Error::other("done, without being told what to do"),
        _ => io::Error::last_os_error(),
    }
}
