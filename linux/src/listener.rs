//! Listening sockets that take connections for any address, and belong to a cgroup that is not their maker's.
//!
//! The kernel notes the cgroup of whoever makes a socket, for good, and passes it on to what the socket accepts. So each is
//! made by a child that is born in that cgroup, lives for these system calls and shares the caller's descriptors.

#![allow(unsafe_code, reason = "clone3(2) and the options of transparent sockets have no safe wrapper")]

use std::io;
use std::mem::size_of_val;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{Backlog, SockaddrStorage, bind, listen};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::error::{Context, Result};

/// Most of one call.
const MOST: usize = 128;
/// Connections that wait to be accepted, of each socket.
const BACKLOG: i32 = 4096;

/// So many listening TCP sockets of each family, IPv4 and IPv6 in turn, on free ports of the loopback addresses: nobody
/// reaches them by address who is not sent there. They do not wait, and close when a program is executed.
///
/// # Errors
/// What the kernel refused; CAP_NET_ADMIN is needed. None stays open then.
pub fn transparent(cgroup: BorrowedFd<'_>, pairs: usize) -> Result<Vec<OwnedFd>> {
    let sockets = made_in(cgroup, pairs * 2)?;
    let families = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].into_iter().cycle();
    for (socket, address) in sockets.iter().zip(families) {
        let (level, option) = match address {
            IpAddr::V4(_) => (libc::SOL_IP, libc::IP_TRANSPARENT),
            IpAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_TRANSPARENT),
        };
        set(socket, level, option).context("make transparent", address)?;
        if address.is_ipv6() {
            set(socket, libc::SOL_IPV6, libc::IPV6_V6ONLY).context("limit to IPv6", address)?;
        }
        let any = SockaddrStorage::from(SocketAddr::new(address, 0));
        bind(socket.as_raw_fd(), &any).context("bind a listening socket to", address)?;
        let backlog = Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN);
        listen(socket, backlog).context("listen on", address)?;
    }
    Ok(sockets)
}

/// Sockets of both families in turn, made by a child in the cgroup.
fn made_in(cgroup: BorrowedFd<'_>, count: usize) -> Result<Vec<OwnedFd>> {
    let count = count.min(MOST);
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make", "a pipe")?;
    // CLONE_INTO_CGROUP of `linux/sched.h`, kernel 5.7; it does not fit the libc crate's type.
    let into_cgroup = 0x2_0000_0000_u64;
    // SAFETY: all zeros is a valid `clone_args`.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_FILES as u64 | into_cgroup;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    let writer_number = writer.as_raw_fd();
    // SAFETY: without CLONE_VM the child is a copy, as of fork(2); whatever lock another thread holds, the child takes none:
    // it makes system calls and exits. `arguments` has the size that is given and lives through the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    match pid {
        ..0 => return Err(io::Error::last_os_error()).context("start", "a process in a cgroup"),
        0 => make(count, writer_number),
        _ => {}
    }
    let mut ended = waitpid(Pid::from_raw(pid as i32), None);
    while ended == Err(nix::Error::EINTR) {
        ended = waitpid(Pid::from_raw(pid as i32), None);
    }
    // Not before: it is the child's descriptor too.
    drop(writer);
    let mut numbers = [-1; MOST + 1];
    let length = size_of_val(&numbers);
    // SAFETY: writes at most `length` bytes into `numbers`, for which any are valid.
    let read = unsafe { libc::read(reader.as_raw_fd(), numbers.as_mut_ptr().cast(), length) };
    ended.context("wait for", "a process in a cgroup")?;
    let told = usize::try_from(read).unwrap_or(0) / size_of::<RawFd>();
    let (error, numbers) = numbers[..told].split_first().unwrap_or((&libc::EIO, &[]));
    // SAFETY: the child has made them in the table of descriptors that it shares, for this alone.
    let sockets: Vec<_> = numbers.iter().map(|number| unsafe { OwnedFd::from_raw_fd(*number) }).collect();
    match *error {
        0 if sockets.len() == count => Ok(sockets),
        error => Err(io::Error::from_raw_os_error(error)).context("make", "sockets in a cgroup"),
    }
}

/// Makes them and tells, first an error number or 0, then descriptors; in the child, without allocation.
fn make(count: usize, writer: RawFd) -> ! {
    let mut told = [0; MOST + 1];
    let mut made = 0;
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    while made < count {
        let family = if made % 2 == 0 { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: takes numbers.
        let socket = unsafe { libc::socket(family, kind, 0) };
        if socket < 0 {
            // SAFETY: the errno of this thread, the only one.
            told[0] = unsafe { *libc::__errno_location() };
            break;
        }
        made += 1;
        told[made] = socket;
    }
    // SAFETY: reads as many of its bytes as are given; then ends without destructors, which are the parent's.
    unsafe {
        libc::write(writer, told.as_ptr().cast(), (made + 1) * size_of::<RawFd>());
        libc::_exit(0)
    }
}

fn set(socket: &OwnedFd, level: i32, option: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: `on` has the length that is given and lives through the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
