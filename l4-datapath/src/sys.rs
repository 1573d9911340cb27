//! The few bpf(2) calls that aya does not offer.
#![allow(unsafe_code, reason = "the system call takes a pointer to a command's attributes")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_OBJ_GET: libc::c_long = 7;
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

/// The same for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjectGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
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
    use std::os::fd::AsFd;
    let pathname = CString::new(pin.as_os_str().as_bytes())?;
    let found =
        call(BPF_OBJ_GET, &ObjectGet { pathname: pathname.as_ptr() as u64, bpf_fd: 0, file_flags: 0 })?;
    // SAFETY: the command succeeded, so the result is a new descriptor that nobody else owns.
    let link = unsafe { OwnedFd::from_raw_fd(found) };
    match call(BPF_LINK_DETACH, &LinkDetach { link_fd: number(link.as_fd()) }) {
        Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => Err(error),
        _ => Ok(()),
    }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn call<A>(command: libc::c_long, attributes: &A) -> io::Result<i32> {
    // SAFETY: the kernel reads at most `size_of::<A>()` bytes of `attributes` and takes the rest of its union for zero;
    // what they point at outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
