//! The few bpf(2) calls that aya does not offer.
#![allow(unsafe_code, reason = "the system call takes a pointer to a command's attributes")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

/// Head of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

/// The same for `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct Pin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The same for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct ObjectInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Head of `struct bpf_link_info`, of a link to a cgroup.
#[repr(C)]
#[derive(Default)]
pub(crate) struct CgroupLink {
    kind: u32,
    id: u32,
    /// Number of the program.
    pub(crate) program: u32,
    zero: u32,
    /// Number of the cgroup, the inode of its directory; 0 once that is gone or the link is detached.
    pub(crate) cgroup: u64,
    attach_type: u32,
    zero2: u32,
}

/// The whole of `union bpf_attr` for `BPF_PROG_QUERY`: into this the kernel writes, `revision` too, whatever size it
/// was told.
#[repr(C)]
struct ProgramQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    zero: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// The same for `BPF_LINK_UPDATE`.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The same for `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// One map of type array of maps with one element, for maps like `inner`. Since Linux 4.12.
pub(crate) fn array_of_maps(inner: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fd = call(
        BPF_MAP_CREATE,
        &MapCreate {
            map_type: BPF_MAP_TYPE_ARRAY_OF_MAPS,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            map_flags: 0,
            inner_map_fd: number(inner),
        },
    )?;
    // SAFETY: the command succeeded, so the result is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes the program of a pinned link off its device, now: removing the pin alone does it some time later (a work
/// queue drops the last reference). A link whose device is gone is fine. Since Linux 5.9, for tcx 6.6.
pub(crate) fn detach_pinned_link(pin: &Path) -> io::Result<()> {
    let link = pinned(pin)?;
    match call(BPF_LINK_DETACH, &LinkDetach { link_fd: number(link.as_fd()) }) {
        Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => Err(error),
        _ => Ok(()),
    }
}

/// The object behind a pin.
pub(crate) fn pinned(pin: &Path) -> io::Result<OwnedFd> {
    opened(pin, 0)
}

/// A pinned map, by a descriptor through which it can be read and not be written.
pub(crate) fn pinned_to_read(pin: &Path) -> io::Result<OwnedFd> {
    /// `BPF_F_RDONLY`.
    const READ_ONLY: u32 = 1 << 3;
    opened(pin, READ_ONLY)
}

fn opened(pin: &Path, file_flags: u32) -> io::Result<OwnedFd> {
    let pathname = CString::new(pin.as_os_str().as_bytes())?;
    let found = call(BPF_OBJ_GET, &Pin { pathname: pathname.as_ptr() as u64, bpf_fd: 0, file_flags })?;
    // SAFETY: the command succeeded, so the result is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(found) })
}

/// Gives an object a name on a BPF file system, by which it outlives its descriptors.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let pathname = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Pin { pathname: pathname.as_ptr() as u64, bpf_fd: number(object), file_flags: 0 };
    call(BPF_OBJ_PIN, &attributes).map(drop)
}

/// Attaches a program to a cgroup, beside others. Since Linux 5.7.
pub(crate) fn link_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let (prog_fd, target_fd) = (number(program), number(cgroup));
    let link = call(BPF_LINK_CREATE, &LinkCreate { prog_fd, target_fd, attach_type, flags: 0 })?;
    // SAFETY: the command succeeded, so the result is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Puts another program in the place of a link's, in one step. Since Linux 5.7.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (link_fd, new_prog_fd) = (number(link), number(program));
    call(BPF_LINK_UPDATE, &LinkUpdate { link_fd, new_prog_fd, flags: 0, old_prog_fd: 0 }).map(drop)
}

/// Where a link to a cgroup stands. Since Linux 5.8.
pub(crate) fn cgroup_link(link: BorrowedFd<'_>) -> io::Result<CgroupLink> {
    let mut info = CgroupLink::default();
    let attributes = ObjectInfo {
        bpf_fd: number(link),
        info_len: size_of::<CgroupLink>() as u32,
        info: (&raw mut info) as u64,
    };
    call(BPF_OBJ_GET_INFO_BY_FD, &attributes)?;
    Ok(info)
}

/// Numbers of the programs attached to a cgroup itself, at most 64: the kernel has no more.
pub(crate) fn programs_of_cgroup(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut numbers = [0_u32; 64];
    let mut query = ProgramQuery {
        target_fd: number(cgroup),
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: numbers.as_mut_ptr() as u64,
        prog_cnt: numbers.len() as u32,
        zero: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    call_mut(BPF_PROG_QUERY, &mut query)?;
    Ok(numbers.into_iter().take(query.prog_cnt as usize).collect())
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn call<A>(command: libc::c_long, attributes: &A) -> io::Result<i32> {
    // SAFETY: the kernel reads at most `size_of::<A>()` bytes of `attributes` and takes the rest of its union for zero;
    // what they point at outlives the call.
    result(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>()) })
}

/// A command that writes its answer over its attributes.
fn call_mut<A>(command: libc::c_long, attributes: &mut A) -> io::Result<i32> {
    // SAFETY: as above; the kernel writes only fields that the caller's `A` has.
    result(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>()) })
}

fn result(returned: libc::c_long) -> io::Result<i32> {
    match i32::try_from(returned) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
