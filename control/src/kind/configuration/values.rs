//! The values of settings, each checked on its own, and those that must fit together.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Configuration;
use crate::yaml::{At, Fields};

pub(super) fn ipv4_pool(at: &At<'_>) -> Option<Ipv4Net> {
    let net: Ipv4Net = at.parse("an IPv4 prefix such as 10.217.0.0/16")?;
    if net.trunc() != net || !(8..=29).contains(&net.prefix_len()) {
        at.error(format_args!("found {net}, expected a prefix of length 8 to 29 without host bits"));
        return None;
    }
    if net.addr().is_loopback() || net.addr().is_multicast() || net.addr().is_unspecified() {
        at.error(format_args!("found {net}, expected addresses that can be routed"));
        return None;
    }
    Some(net)
}

pub(super) fn ipv6_pool(at: &At<'_>) -> Option<Ipv6Net> {
    let net: Ipv6Net = at.parse("an IPv6 prefix such as fd00:217::/64")?;
    if net.trunc() != net || !(32..=124).contains(&net.prefix_len()) {
        at.error(format_args!("found {net}, expected a prefix of length 32 to 124 without host bits"));
        return None;
    }
    let address = net.addr();
    if address.is_loopback()
        || address.is_multicast()
        || address.is_unspecified()
        || address.is_unicast_link_local()
    {
        at.error(format_args!("found {net}, expected addresses that can be routed"));
        return None;
    }
    Some(net)
}

/// 1280 is IPv6's least (RFC 8200 section 5).
pub(super) fn mtu(at: &At<'_>) -> Option<u32> {
    let mtu = at.text("1280-65535")?.parse().ok().filter(|mtu| (1280..=65_535).contains(mtu));
    if mtu.is_none() {
        at.expected("1280-65535");
    }
    mtu
}

pub(super) fn directory(at: &At<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(at.string());
    if !path.is_absolute() {
        at.expected("an absolute path");
        return None;
    }
    if path.components().any(|part| part == Component::ParentDir) {
        at.expected("a path without ..");
        return None;
    }
    Some(path)
}

/// Workloads call services too, so their cgroups must be in it.
pub(super) fn service_cgroup(at: &At<'_>, root: Option<&Path>) -> Option<PathBuf> {
    let path = directory(at)?;
    match root {
        Some(root) if root.starts_with(&path) => return Some(path),
        Some(root) => at.error(format_args!(
            "found {}, expected cgroupRoot ({}) or a directory above it",
            path.display(),
            root.display()
        )),
        None => at.error("goes with cgroupRoot, which is missing: write the directory of the workloads' cgroups, at this or below it"),
    }
    None
}

/// `first-last`, or one port.
pub(super) fn ports(at: &At<'_>) -> Option<RangeInclusive<u16>> {
    const EXPECTED: &str = "first-last within 1024-65535, such as 49152-65535";
    let text = at.text(EXPECTED)?;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port >= 1024);
    let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
    if range.is_none() {
        at.expected(EXPECTED);
    }
    range.map(|(first, last)| first..=last)
}

/// As the kernel accepts names of interfaces (`dev_valid_name`).
pub(super) fn interface(at: &At<'_>) -> Option<String> {
    let name = at.string();
    let fits = (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if !fits {
        at.expected("the name of an interface, such as eth0");
    }
    fits.then_some(name)
}

/// `address` or `address:port`.
pub(super) fn name_server(at: &At<'_>) -> Option<SocketAddr> {
    const EXPECTED: &str = "an address or address:port, such as 192.0.2.53 or [2001:db8::53]:53";
    let text = at.text(EXPECTED)?;
    let server = text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, 53)));
    let usable = server.filter(|server: &SocketAddr| {
        server.port() != 0 && !server.ip().is_unspecified() && !server.ip().is_multicast()
    });
    if usable.is_none() {
        at.expected(EXPECTED);
    }
    usable
}

/// An address is a workload's or a service's, never both.
pub(super) fn disjoint(fields: &Fields<'_>, all: &Configuration) {
    let pairs: [(IpNet, IpNet, &'static str, &'static str); 2] = [
        (all.ipv4_pool.into(), all.ipv4_service_pool.into(), "ipv4Pool", "ipv4ServicePool"),
        (all.ipv6_pool.into(), all.ipv6_service_pool.into(), "ipv6Pool", "ipv6ServicePool"),
    ];
    for (workloads, services, of_workloads, of_services) in pairs {
        if !workloads.contains(&services) && !services.contains(&workloads) {
            continue;
        }
        match (fields.get(of_services), fields.get(of_workloads)) {
            (Some(at), _) => at.error(format_args!(
                "found {services}, which overlaps {of_workloads} {workloads}; choose another prefix"
            )),
            (None, Some(at)) => at.error(format_args!(
                "found {workloads}, which overlaps {of_services} {services}; set {of_services} to another prefix"
            )),
            (None, None) => {}
        }
    }
}
