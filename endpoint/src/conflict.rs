//! What on this host disturbs a node, or would be disturbed by it. Only looks, never changes.

use std::path::Path;

use ipnet::IpNet;
use linux::netlink::Netlink;
use linux::sysctl;

use crate::config::Config;
use crate::device;
use crate::error::Result;

/// Devices that tell of others who route and filter here.
const ENGINES: [(&str, &str); 8] = [
    ("docker0", "Docker"),
    ("podman0", "Podman"),
    ("cni0", "a Kubernetes network plugin"),
    ("flannel.1", "Flannel"),
    ("cilium_host", "Cilium"),
    ("kube-ipvs0", "kube-proxy"),
    ("virbr0", "libvirt"),
    ("lxcbr0", "LXC"),
];

/// A pool and what of the host is in it.
pub(crate) struct Overlap {
    pub(crate) pool: IpNet,
    pub(crate) with: String,
}

/// Addresses and routes of the host that lie in a pool and are not ours. Workloads' traffic could not be told from
/// theirs, so no node starts with one.
pub(crate) async fn overlaps(config: &Config, netlink: &Netlink) -> Result<Vec<Overlap>> {
    let links = netlink.links().await?;
    let name =
        |index: u32| links.iter().find(|link| link.index == index).map_or("?", |link| link.name.as_str());
    let mut overlaps = Vec::new();
    for pool in config.claimed() {
        for address in netlink.addresses().await? {
            let device = name(address.device);
            if pool.contains(&address.address.addr()) && !device::is_own(device) {
                overlaps.push(Overlap { pool, with: format!("address {} on {device}", address.address) });
            }
        }
        for route in netlink.routes().await?.into_iter().filter(|route| route.unicast) {
            let device = route.device.map_or("?", name);
            if pool.contains(&route.destination) && !device::is_own(device) {
                overlaps.push(Overlap { pool, with: format!("route {} on {device}", route.destination) });
            }
        }
    }
    Ok(overlaps)
}

/// All of it, a sentence each.
pub(crate) async fn all(config: &Config, netlink: &Netlink) -> Result<Vec<String>> {
    let mut found: Vec<_> = (overlaps(config, netlink).await?.into_iter())
        .map(|Overlap { pool, with }| format!("pool {pool} overlaps {with}: choose another pool"))
        .collect();
    found.extend(shadowed(config, netlink).await?);
    found.extend(engines(netlink).await?);
    found.extend(settings()?);
    Ok(found)
}

/// A route that contains a pool: hosts behind it become unreachable where the pool covers them.
async fn shadowed(config: &Config, netlink: &Netlink) -> Result<Vec<String>> {
    let routes = netlink.routes().await?;
    let pools: Vec<_> = config.claimed().collect();
    let contains =
        |route: &IpNet, pool: &IpNet| route.prefix_len() > 0 && route != pool && route.contains(pool);
    Ok(routes
        .iter()
        .filter(|route| route.unicast)
        .flat_map(|route| pools.iter().map(move |pool| (route.destination, *pool)))
        .filter(|(route, pool)| contains(route, pool))
        .map(|(route, pool)| {
            format!("pool {pool} lies within route {route}: hosts of that network with such addresses cannot be reached")
        })
        .collect())
}

async fn engines(netlink: &Netlink) -> Result<Vec<String>> {
    let links = netlink.links().await?;
    let mut found: Vec<_> = ENGINES
        .iter()
        .filter(|(device, _)| links.iter().any(|link| link.name == *device))
        .map(|(device, engine)| {
            format!("device {device}: {engine} runs here; its netfilter rules can drop what this host forwards for workloads")
        })
        .collect();
    if ["/run/firewalld", "/run/firewalld.pid"].iter().any(|path| Path::new(path).exists()) {
        found.push("firewalld runs here: it drops what this host forwards for workloads unless their devices are in a trusted zone".to_owned());
    }
    Ok(found)
}

fn settings() -> Result<Vec<String>> {
    let mut found = Vec::new();
    if sysctl::get("net/ipv4/conf/all/rp_filter")? == "1" {
        found.push(
            "net.ipv4.conf.all.rp_filter is 1 (strict): the kernel drops, uncounted by us, what comes in by another \
             device than answers leave by; 2 (loose) is enough"
                .to_owned(),
        );
    }
    if sysctl::get("net/ipv4/conf/all/src_valid_mark")? == "1" {
        found.push(
            "net.ipv4.conf.all.src_valid_mark is 1: packet marks take part in reverse-path checks; set it to 0 unless \
             a VPN needs it"
                .to_owned(),
        );
    }
    Ok(found)
}
