//! A connection whose first SYN may have found no room to wait asks again soon; no other does, and none gives up sooner.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use abi::{HoldRate, Pair};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, bind, connect, listen, socket};

use crate::triggers::Callers;
use crate::world::{FAMILIES, Family, storage};

/// Overflowed at a time that is not long ago for as long as a test may take.
const FULL: HoldRate = HoldRate { used: [0; 2], asked: 0, overflowed: u64::MAX / 2 };

/// `TCP_SYNCNT` of a socket, and its retransmission timer in microseconds.
fn patience(socket: &OwnedFd) -> (i32, u32) {
    // SAFETY: numbers, of which zero is a value.
    let mut info = unsafe { std::mem::zeroed::<libc::tcp_info>() };
    let mut count = 0_i32;
    read(socket, libc::TCP_SYNCNT, &mut count);
    read(socket, libc::TCP_INFO, &mut info);
    (count, info.tcpi_rto)
}

fn read<T>(socket: &OwnedFd, option: libc::c_int, value: &mut T) {
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes no more than `size` bytes over the value, of which any bytes are one.
    let result = unsafe {
        let place = std::ptr::from_mut(value).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, place, &raw mut size)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// A server that takes one connection and hears no other until that has been accepted.
fn busy_server(callers: &Callers, family: Family) -> (TcpListener, SocketAddr) {
    let server = callers.world.namespace.namespace().inside(|| {
        let of = if family == Family::V6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let server = socket(of, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(server.as_raw_fd(), &storage((family.local(), 0).into())).unwrap();
        listen(&server, Backlog::new(0).unwrap()).unwrap();
        TcpListener::from(server)
    });
    let server = server.unwrap();
    let at = server.local_addr().unwrap();
    // Outside of the cgroup.
    let fill = callers.world.namespace.namespace().inside(|| std::net::TcpStream::connect(at).unwrap());
    std::mem::forget(fill.unwrap());
    (server, family.seen(at))
}

/// A socket of the client that has begun to connect.
fn begin(callers: &Callers, family: Family, to: SocketAddr) -> OwnedFd {
    let socket = callers.world.client.socket(family.tcp());
    let nonblocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&socket, nonblocking).unwrap();
    let _ = connect(socket.as_raw_fd(), &storage(to));
    socket
}

fn hastened(callers: &Callers) -> u64 {
    callers.world.datapath.as_ref().unwrap().counters().unwrap().hastened
}

#[test]
fn who_may_have_found_no_room_asks_again_soon_and_is_as_patient_as_any() {
    let callers = Callers::required();
    let mut expected = 0;
    for family in FAMILIES {
        let (server, at) = busy_server(&callers, family);
        callers.set_rate(HoldRate::default());
        let (usual, second) = patience(&begin(&callers, family, at));
        assert!(second >= 1_000_000, "the kernel's own timer: {second}");
        callers.set_rate(FULL);
        let socket = begin(&callers, family, at);
        let (count, soon) = patience(&socket);
        // It doubles from its fifth time on.
        assert!(soon < second, "{family:?}: {soon} µs");
        // Many short waits, each twice the one before, are as long in all as few that begin with a second.
        assert_eq!(count, usual + if usual < 6 { 8 } else { 7 }, "{family:?}");
        expected += 1;
        drop(server.accept().unwrap());
        let mut poll = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        assert_eq!(nix::poll::poll(&mut poll, PollTimeout::from(10_000_u16)), Ok(1), "it is heard");
        let after = (patience(&socket).0, hastened(&callers));
        assert_eq!(after, (count, expected), "it is not asked for twice");
        // Nor where the first SYN is heard.
        let server = callers.world.tcp_server(family);
        let stream = callers.world.tcp(family, family.seen(server.local_addr().unwrap())).unwrap();
        expected += 1;
        assert_eq!((patience(&stream.into()).0, hastened(&callers)), (count, expected));
    }
}

#[test]
fn who_is_proven_or_refused_or_needs_no_proof_keeps_the_kernels_timer() {
    let callers = Callers::required();
    callers.set_rate(FULL);
    let refused = Pair { refusal: 1, until: u64::MAX, ..Pair::default() };
    callers.know(Family::V4, refused);
    let (_server, at) = busy_server(&callers, Family::V4);
    let (_, timer) = patience(&begin(&callers, Family::V4, at));
    assert!(timer >= 1_000_000, "{timer}");
    let callers = Callers::new(crate::support::open(), crate::support::open());
    callers.set_rate(FULL);
    let (_server, at) = busy_server(&callers, Family::V4);
    let (_, timer) = patience(&begin(&callers, Family::V4, at));
    assert!(timer >= 1_000_000, "{timer}");
    assert_eq!(hastened(&callers), 0);
}
