//! Address prefixes and their exceptions.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh::policy::Peer;

use crate::yaml::At;

/// `address/length`. Host bits are dropped, as Kubernetes and Cilium do; a hint says so.
pub(super) fn prefix(at: &At<'_>) -> Option<IpNet> {
    let net: IpNet = at.parse("an address prefix such as 10.0.0.0/8 or fd00::/8")?;
    if net.trunc() != net {
        at.hint(format_args!("{net} is read as {}", net.trunc()));
    }
    Some(net.trunc())
}

/// A prefix, or an address that stands for itself alone (`fromCIDR`, `toCIDR`).
pub(super) fn prefix_or_address(at: &At<'_>) -> Option<IpNet> {
    match at.text("an address prefix or an address")?.parse::<IpAddr>() {
        Ok(address) => Some(address.into()),
        Err(_) => prefix(at),
    }
}

/// A prefix without some prefixes inside it.
pub(super) fn without(cidr: &At<'_>, except: Option<At<'_>>) -> Option<Peer> {
    let net = prefix(cidr)?;
    let mut left_out = Vec::new();
    for item in except.map(|at| at.list()).unwrap_or_default() {
        let Some(inner) = prefix(&item) else { continue };
        match net.contains(&inner) && net != inner {
            true => left_out.push(inner),
            false => item.error(format_args!("found {inner}, expected a smaller prefix inside {net}")),
        }
    }
    Some(Peer::Cidr { cidr: net, except: left_out })
}
