//! A node in miniature: programs on a cgroup, a client in it, servers on loopback addresses, VIPs that no route leads to.

use std::io;
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use abi::Address;
use l4_datapath::Datapath;
use linux::cgroup::{Cgroup, hierarchy};
use linux::scratch::Namespace;
use nix::sys::socket::{SockaddrStorage, connect};

use crate::client::{self, Client, Kind};
use crate::support::PinRoot;
use crate::tables::Tables;

/// The compiled programs, as the library embeds them.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ferromesh.bpf.o"));

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a client speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    V4,
    V6,
    /// IPv4 on a socket of IPv6.
    Mapped,
}

pub(crate) const FAMILIES: [Family; 3] = [Family::V4, Family::V6, Family::Mapped];

impl Family {
    /// A VIP that no route leads to, as the client writes it.
    pub(crate) fn vip(self, host: u8, port: u16) -> SocketAddr {
        let ip: IpAddr = match self {
            Self::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, host.into()).into(),
            Self::V4 | Self::Mapped => Ipv4Addr::new(10, 96, 0, host).into(),
        };
        self.seen((ip, port).into())
    }

    /// Where servers stand.
    pub(crate) fn local(self) -> IpAddr {
        match self {
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
            Self::V4 | Self::Mapped => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// An address as the client's sockets show it.
    pub(crate) fn seen(self, at: SocketAddr) -> SocketAddr {
        match (self, at.ip()) {
            (Self::Mapped, IpAddr::V4(ip)) => (ip.to_ipv6_mapped(), at.port()).into(),
            _ => at,
        }
    }

    pub(crate) fn tcp(self) -> Kind {
        if self == Self::V4 { Kind::Tcp4 } else { Kind::Tcp6 }
    }

    pub(crate) fn udp(self) -> Kind {
        if self == Self::V4 { Kind::Udp4 } else { Kind::Udp6 }
    }
}

/// As the maps have it.
pub(crate) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => Address::v4(ip.octets()),
        IpAddr::V6(ip) => Address(ip.octets()),
    }
}

/// A cgroup below the mount, gone on drop; nothing may be in it then.
pub(crate) struct ScratchCgroup(PathBuf);

impl ScratchCgroup {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ferromesh-sockets-{}-{number}", std::process::id());
        let path = hierarchy().unwrap().join(name);
        Cgroup::create(&path).unwrap();
        Self(path)
    }

    pub(crate) fn below(above: &Path) -> Self {
        let path = above.join("below");
        Cgroup::create(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchCgroup {
    fn drop(&mut self) {
        let removed = std::fs::remove_dir(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{}: {removed:?}", self.0.display());
    }
}

/// The node. Fields are in the order in which they must go.
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) tables: Tables,
    /// `None`: the agent is dead.
    pub(crate) datapath: Option<Datapath>,
    pub(crate) namespace: Namespace,
    pub(crate) cgroup: ScratchCgroup,
    pub(crate) root: PinRoot,
}

impl World {
    /// One with the programs attached.
    pub(crate) fn new() -> Self {
        let mut world = Self::detached();
        world.attach_own();
        world
    }

    pub(crate) fn attach(&mut self, cgroup: &Path) {
        self.datapath.as_mut().unwrap().attach_cgroup(cgroup).unwrap();
    }

    /// To the cgroup of the client.
    pub(crate) fn attach_own(&mut self) {
        self.datapath.as_mut().unwrap().attach_cgroup(self.cgroup.path()).unwrap();
    }

    pub(crate) fn detached() -> Self {
        let root = PinRoot::new();
        let (datapath, _) = Datapath::open(&root.options()).unwrap();
        let cgroup = ScratchCgroup::new();
        let namespace = Namespace::new("sockets").unwrap();
        let client = namespace.namespace().inside(|| Client::start(cgroup.path())).unwrap();
        Self { client, tables: Tables::of(&root), datapath: Some(datapath), namespace, cgroup, root }
    }

    /// A server for connections, outside of the cgroup.
    pub(crate) fn tcp_server(&self, family: Family) -> TcpListener {
        self.namespace.namespace().inside(|| TcpListener::bind((family.local(), 0))).unwrap().unwrap()
    }

    /// A server for datagrams, outside of the cgroup.
    pub(crate) fn udp_server(&self, family: Family) -> UdpSocket {
        let socket = self.namespace.namespace().inside(|| UdpSocket::bind((family.local(), 0)));
        patient(socket.unwrap().unwrap())
    }

    /// A socket for datagrams in the cgroup.
    pub(crate) fn udp_client(&self, family: Family) -> UdpSocket {
        patient(self.client.socket(family.udp()).into())
    }

    /// Calls, with a new socket in the cgroup.
    pub(crate) fn tcp(&self, family: Family, to: SocketAddr) -> io::Result<TcpStream> {
        call(self.client.socket(family.tcp()), to)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        stop(&mut self.datapath);
    }
}

/// Ends the agent; its lock is free then, and its pins are nobody's.
pub(crate) fn stop(datapath: &mut Option<Datapath>) {
    *datapath = None;
    drop(client::settle());
}

fn patient(socket: UdpSocket) -> UdpSocket {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Connects a socket for connections.
pub(crate) fn call(socket: OwnedFd, to: SocketAddr) -> io::Result<TcpStream> {
    connect(socket.as_raw_fd(), &storage(to))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

/// Without the flow label and scope that nobody here has.
pub(crate) fn storage(at: SocketAddr) -> SockaddrStorage {
    match at {
        SocketAddr::V4(at) => SocketAddrV4::new(*at.ip(), at.port()).into(),
        SocketAddr::V6(at) => SocketAddrV6::new(*at.ip(), at.port(), 0, 0).into(),
    }
}
