//! The node's port 53, or who has it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, UdpSocket};

use super::upstreams::PORT;

/// Why there is no DNS on this node.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody has the port.
    #[error(
        "{transport} port {PORT} of {address}, for the workloads' DNS: taken by {holder}; stop that, or have it listen \
         on addresses of its own only (dnsmasq: bind-interfaces; unbound: interface; BIND: listen-on)"
    )]
    Taken {
        /// The node's own address.
        address: IpAddr,
        /// `UDP` or `TCP`.
        transport: &'static str,
        /// Its name, process and address, as far as they are known.
        holder: String,
    },
    /// The system refused.
    #[error("{transport} port {PORT} of {address}, for the workloads' DNS: {error}")]
    Refused {
        /// The node's own address.
        address: IpAddr,
        /// `UDP` or `TCP`.
        transport: &'static str,
        /// What it said.
        error: io::Error,
    },
    /// The cluster domain is no domain name.
    #[error("clusterDomain {0:?}: not a domain name; expected one such as cluster.local")]
    Domain(String),
}

/// Both sockets of an address.
pub(super) async fn bind(address: IpAddr) -> Result<(UdpSocket, TcpListener), BindError> {
    let at = SocketAddr::new(address, PORT);
    let udp = UdpSocket::bind(at).await.map_err(|error| refused(address, "UDP", error))?;
    let tcp = TcpListener::bind(at).await.map_err(|error| refused(address, "TCP", error))?;
    Ok((udp, tcp))
}

fn refused(address: IpAddr, transport: &'static str, error: io::Error) -> BindError {
    if error.kind() == io::ErrorKind::AddrInUse {
        let holder = holder(address, transport).unwrap_or_else(|| "a process that cannot be seen".to_owned());
        return BindError::Taken { address, transport, holder };
    }
    BindError::Refused { address, transport, error }
}

/// Who listens on the port, at this address or at all.
fn holder(address: IpAddr, transport: &str) -> Option<String> {
    for (file, width) in [("", 8), ("6", 32)] {
        let path = format!("/proc/thread-self/net/{}{file}", transport.to_lowercase());
        let table = fs::read_to_string(path).unwrap_or_default();
        for (found, inode) in table.lines().filter_map(|line| socket(line, width)) {
            let there = found == address || found.is_unspecified();
            if there && let Some(process) = process(inode) {
                return Some(format!("{process} on {}", SocketAddr::new(found, PORT)));
            }
        }
    }
    None
}

/// Address and inode of a line of `/proc/net/{tcp,udp}{,6}` (proc_net_tcp), if it is about the port.
fn socket(line: &str, width: usize) -> Option<(IpAddr, u64)> {
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let inode = fields.nth(7)?.parse().ok()?;
    if address.len() != width || u16::from_str_radix(port, 16).ok()? != PORT {
        return None;
    }
    // Words of 32 bits in network order, printed as the machine's own numbers.
    let mut bytes = Vec::new();
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(|bytes| Ipv4Addr::from(bytes).into());
    let address =
        v4.or_else(|_| bytes.try_into().map(|bytes: [u8; 16]| Ipv6Addr::from(bytes).into())).ok()?;
    Some((address, inode))
}

/// The process that has a socket open: `dnsmasq (process 4711)`.
fn process(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        let links = descriptors.flatten().filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        if links.into_iter().any(|link| link.as_os_str() == wanted.as_str()) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {number})", name.trim_end()));
        }
    }
    None
}
