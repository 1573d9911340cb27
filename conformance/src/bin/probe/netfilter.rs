//! Whether anyone has written a rule for netfilter here, asked of the kernel itself: neither `iptables` nor `nft` need be
//! installed.

use std::fs;
use std::io::{self, Read};

use socket2::{Domain, Protocol, Socket, Type};

/// `AF_NETLINK`, and the bus of netfilter on it.
const NETLINK: i32 = 16;
const NETFILTER: i32 = 12;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE` and `…GETTABLE` (linux/netfilter/nf_tables.h).
const NEW_TABLE: u16 = 10 << 8;
const GET_TABLE: u16 = 10 << 8 | 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const LIST: u16 = 0x301;

/// `none`, or how many of which kind.
pub(crate) fn tables() -> io::Result<()> {
    let mut found = Vec::new();
    for file in ["ip_tables_names", "ip6_tables_names", "arp_tables_names"] {
        // There is no file where the kernel has no such tables.
        let names = fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default();
        found.extend(names.lines().map(|name| format!("{file}:{name}")));
    }
    match nft()? {
        0 => {}
        count => found.push(format!("nft:{count}")),
    }
    println!("{}", if found.is_empty() { "none".to_owned() } else { found.join(" ") });
    Ok(())
}

/// Number of nft tables.
fn nft() -> io::Result<usize> {
    let opened = Socket::new(Domain::from(NETLINK), Type::RAW, Some(Protocol::from(NETFILTER)));
    // A kernel without the bus has no tables on it.
    let Ok(mut socket) = opened else { return Ok(0) };
    let mut request = Vec::new();
    request.extend(20u32.to_ne_bytes());
    request.extend(GET_TABLE.to_ne_bytes());
    request.extend(LIST.to_ne_bytes());
    // Sequence, port; then `struct nfgenmsg`: every family, version 0, no resource.
    request.extend([0; 12]);
    socket.send(&request)?;
    let mut count = 0;
    loop {
        let mut answer = [0; 16384];
        let length = socket.read(&mut answer)?;
        let mut rest = &answer[..length];
        while let Some((size, kind)) = header(rest) {
            match kind {
                NEW_TABLE => count += 1,
                NLMSG_DONE | NLMSG_ERROR => return Ok(count),
                _ => {}
            }
            rest = rest.get(size..).unwrap_or_default();
        }
    }
}

/// Size, padded, and kind of the first message.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let size = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    Some((usize::try_from(size).ok()?.next_multiple_of(4).max(16), kind))
}
