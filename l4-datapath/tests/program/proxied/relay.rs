//! A proxy that judges nothing: it relays bytes, in the caller's name.
//!
//! It runs on threads of the test, in whose cgroup its sockets are.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::{
    socket::{setsockopt, sockopt::SendTimeout},
    time::{TimeVal, TimeValLike as _},
};
use parking_lot::Mutex;

use super::super::{
    live::{PATIENCE, ip, mac},
    node::Node,
    world::{FAMILIES, Pod},
};

/// Runs until its listeners are shut down.
pub(super) struct Relay {
    listeners: [TcpListener; 2],
    /// Connections accepted.
    pub(super) accepted: Arc<AtomicUsize>,
    /// Who called, and whom.
    pub(super) calls: Arc<Mutex<Vec<(SocketAddr, SocketAddr)>>>,
    /// It calls so many ports beyond the one that was called.
    pub(super) astray: Arc<AtomicU16>,
    /// Why its calls failed.
    pub(super) failures: Arc<Mutex<Vec<io::ErrorKind>>>,
    /// It calls nobody while somebody holds this.
    pub(super) hesitation: Arc<Mutex<()>>,
}

impl Relay {
    /// Makes the listeners, in the calling thread's network namespace.
    pub(super) fn new() -> Self {
        let listeners = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), (Ipv6Addr::LOCALHOST, 0).into()]
            .map(|at| listener(at).unwrap());
        Self {
            listeners,
            accepted: Arc::default(),
            calls: Arc::default(),
            astray: Arc::default(),
            failures: Arc::default(),
            hesitation: Arc::default(),
        }
    }

    pub(super) fn listeners(&self) -> [&TcpListener; 2] {
        [&self.listeners[0], &self.listeners[1]]
    }

    /// Begins to accept.
    pub(super) fn start(&self) {
        for listener in &self.listeners {
            let listener = listener.try_clone().unwrap();
            let (accepted, calls) = (self.accepted.clone(), self.calls.clone());
            let (astray, failures) = (self.astray.clone(), self.failures.clone());
            let hesitation = self.hesitation.clone();
            thread::spawn(move || {
                while let Ok((client, from)) = listener.accept() {
                    accepted.fetch_add(1, Ordering::Relaxed);
                    let to = client.local_addr().unwrap();
                    calls.lock().push((from, to));
                    let whom = SocketAddr::new(to.ip(), to.port() + astray.load(Ordering::Relaxed));
                    let (failures, hesitation) = (failures.clone(), hesitation.clone());
                    thread::spawn(move || {
                        drop(hesitation.lock());
                        match call(from, whom) {
                            Ok(server) => relay(client, server),
                            Err(error) => failures.lock().push(error.kind()),
                        }
                    });
                }
            });
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // SAFETY: a descriptor of ours.
            unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
        }
    }
}

fn relay(client: TcpStream, server: TcpStream) {
    let (mut client2, mut server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let back = thread::spawn(move || pass(&mut server2, &mut client2));
    let (mut client, mut server) = (client, server);
    pass(&mut client, &mut server);
    let _ = back.join();
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) {
    let mut bytes = [0; 65536];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(length) if to.write_all(&bytes[..length]).is_ok() => {}
            _ => {
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                return;
            }
        }
    }
}

/// A connection from this very port, whoever had it last.
pub(super) fn connect_from(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    connect_within(from, to, PATIENCE)
}

pub(super) fn connect_within(from: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = plain(to)?;
    let fd = socket.as_raw_fd();
    setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(patience.as_millis() as i64))?;
    set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    with_address(from, |at, length| {
        // SAFETY: an address of this length.
        unsafe { libc::bind(fd, at, length) }
    })?;
    connect(&socket, to)?;
    Ok(socket.into())
}

pub(super) fn connect(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    with_address(to, |at, length| {
        // SAFETY: an address of this length.
        unsafe { libc::connect(socket.as_raw_fd(), at, length) }
    })
}

/// A connection in the caller's name, for the one that he has.
fn call(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = transparent(to)?;
    let fd = socket.as_raw_fd();
    set(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    set(fd, libc::SOL_SOCKET, libc::SO_MARK, abi::MARK_FROM_PROXY.cast_signed())?;
    set(fd, libc::SOL_SOCKET, libc::SO_PRIORITY, from.port().into())?;
    with_address(SocketAddr::new(from.ip(), 0), |at, length| {
        // SAFETY: an address of this length.
        unsafe { libc::bind(fd, at, length) }
    })?;
    connect(&socket, to)?;
    Ok(socket.into())
}

fn listener(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = transparent(at)?;
    with_address(at, |at, length| {
        // SAFETY: an address of this length.
        unsafe { libc::bind(socket.as_raw_fd(), at, length) }
    })?;
    // SAFETY: a descriptor of ours.
    result(unsafe { libc::listen(socket.as_raw_fd(), 1024) })?;
    Ok(socket.into())
}

/// A socket for addresses like this one.
pub(super) fn plain(family: SocketAddr) -> io::Result<OwnedFd> {
    let domain = if family.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: plain numbers; the result is a descriptor of ours.
    unsafe {
        let socket = result(libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(socket))
    }
}

fn transparent(family: SocketAddr) -> io::Result<OwnedFd> {
    let (level, option) = match family {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_TRANSPARENT),
        SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_TRANSPARENT),
    };
    let socket = plain(family)?;
    set(socket.as_raw_fd(), level, option, 1)?;
    Ok(socket)
}

fn set(fd: i32, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: a number, of the length said.
    result(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), 4) }).map(drop)
}

fn with_address(
    address: SocketAddr,
    call: impl FnOnce(*const libc::sockaddr, libc::socklen_t) -> i32,
) -> io::Result<()> {
    let address = nix::sys::socket::SockaddrStorage::from(address);
    use nix::sys::socket::SockaddrLike as _;
    result(call(address.as_ptr(), address.len())).map(drop)
}

fn result(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// Makes the calling thread's network namespace one from which a proxy can work: the rule for what is to reach it, and ways
/// to the pods.
pub(super) fn prepare(pods: &[Pod]) {
    ip(&["link", "set", "lo", "up"]);
    for flag in ["-4", "-6"] {
        ip(&[flag, "rule", "add", "fwmark", "0x200/0xf00", "lookup", "512"]);
        ip(&[flag, "route", "add", "local", "default", "dev", "lo", "table", "512"]);
    }
    for pod in pods {
        let device = format!("host{}", pod.id);
        for setting in ["accept_local=1", "rp_filter=0"] {
            let (key, value) = setting.split_once('=').unwrap();
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/{key}"), value).unwrap();
        }
        for family in FAMILIES {
            let to = family.pool(pod.host).to_string();
            ip(&["route", "replace", &to, "dev", &device]);
            ip(&["neigh", "replace", &to, "lladdr", &mac(pod.mac), "dev", &device, "nud", "permanent"]);
        }
    }
}

/// The node, with the relay's listeners and cgroup.
pub(super) fn ready(node: &mut Node, relay: &Relay) {
    node.listen(0, relay.listeners());
    node.set_proxy(1, super::own_cgroup(), 1);
    relay.start();
}
