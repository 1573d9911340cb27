//! The cables of one workload: its namespace and the veth pair that leads out of it.
//!
//! Promise: the host's end stays down, without routes or neighbours, until [`connect`]; then the workload's addresses
//! are reached through it alone. Nothing is left to discovery: neighbours are permanent at both ends, addresses need no
//! duplicate detection, and no link-local address exists that policy would know nothing of.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use linux::namespace::NetworkNamespace;
use linux::netlink::{LOOPBACK, Link, Netlink, Route, VethEnd, Via};
use linux::sysctl;
use mesh::workload::{Endpoint, Mac};

use crate::config::Config;
use crate::error::{AtFile, Error, Result};

/// Name of the workload's own device.
const INSIDE: &str = "eth0";
/// Ethernet's.
pub(crate) const MTU: u32 = 1500;
/// How long the kernel may take to notice that a cable is plugged in.
const READY: Duration = Duration::from_secs(2);

/// Settings of a workload's namespace, made before its device exists, which inherits `default`.
const SETTINGS: [(&str, &str); 6] = [
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    // IN6_ADDR_GEN_MODE_NONE: no link-local address.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv6/conf/default/autoconf", "0"),
    // As container runtimes do: a low port of one's own needs no capability.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
];

/// Addresses and MACs of a pair to be made.
pub(crate) struct Pair<'a> {
    pub(crate) interface: &'a str,
    pub(crate) mac: Mac,
    pub(crate) gateway_mac: Mac,
    pub(crate) addresses: [IpAddr; 2],
    pub(crate) mtu: u32,
}

/// Makes the namespace, mounted on `path`, and the pair; returns the index of the host's end, which is down.
pub(crate) async fn lay(config: &Config, host: &Netlink, path: &Path, pair: Pair<'_>) -> Result<u32> {
    let file = path.to_owned();
    let (namespace, inside) =
        tokio::task::spawn_blocking(move || open_namespace(&file)).await.at("prepare", path)??;
    let near = VethEnd { name: pair.interface, mac: pair.gateway_mac.0, arp: true, mtu: pair.mtu };
    let far = VethEnd { name: INSIDE, mac: pair.mac.0, ..near };
    host.add_veth(near, far, Some(namespace.as_fd())).await?;
    let (near, far) = tokio::try_join!(device(host, pair.interface), device(&inside, INSIDE))?;
    tokio::try_join!(furnish(config, &inside, far.index, &pair), close(host, &near))?;
    Ok(near.index)
}

fn open_namespace(path: &Path) -> Result<(NetworkNamespace, Netlink)> {
    let namespace = NetworkNamespace::create(path)?;
    let runtime = tokio::runtime::Handle::current();
    let inside = namespace.inside(|| {
        let _entered = runtime.enter();
        for (key, value) in SETTINGS {
            sysctl::set(key, value)?;
        }
        Netlink::open()
    })??;
    Ok((namespace, inside))
}

async fn device(netlink: &Netlink, name: &str) -> Result<Link> {
    let absent = || std::io::Error::from(std::io::ErrorKind::NotFound);
    netlink.link(name).await?.ok_or_else(absent).at("look up device", name)
}

/// The workload's side: loopback, addresses, the way out.
async fn furnish(config: &Config, inside: &Netlink, device: u32, pair: &Pair<'_>) -> Result<()> {
    tokio::try_join!(inside.set_up(LOOPBACK, true), inside.set_up(device, true))?;
    let [v4, v6] = pair.addresses;
    tokio::try_join!(inside.add_address(device, v4.into()), inside.add_address(device, v6.into()))?;
    for gateway in config.gateways() {
        let gateway = gateway.addr();
        inside.add_neighbour(device, gateway, pair.gateway_mac.0).await?;
        let route =
            Route { destination: everywhere(gateway), via: Via::Gateway(device, gateway), source: None };
        inside.add_route(route).await?;
    }
    Ok(())
}

/// The host's side believes nothing that comes out of the workload.
async fn close(host: &Netlink, near: &Link) -> Result<()> {
    sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", near.name), "0")?;
    Ok(host.disable_link_local(near.index).await?)
}

/// Plugs the cable in and returns when packets can pass both ways.
pub(crate) async fn connect(config: &Config, host: &Netlink, path: &Path, endpoint: &Endpoint) -> Result<()> {
    host.set_up(endpoint.ifindex, true).await?;
    let addresses = [IpAddr::V4(endpoint.ipv4), IpAddr::V6(endpoint.ipv6)];
    for (address, node) in addresses.into_iter().zip(config.gateways()) {
        host.add_neighbour(endpoint.ifindex, address, endpoint.mac.0).await?;
        let route = Route {
            destination: address.into(),
            via: Via::Link(endpoint.ifindex),
            source: Some(node.addr()),
        };
        host.add_route(route).await?;
    }
    let file = path.to_owned();
    let inside = tokio::task::spawn_blocking(move || NetworkNamespace::open(&file)?.netlink());
    let inside = inside.await.at("open", path)??;
    ready(host, &endpoint.interface, endpoint).await?;
    ready(&inside, INSIDE, endpoint).await
}

/// A veth end that came up second is activated by deferred work (`linkwatch_run_queue`); until then it drops what is
/// sent. Since 6.8 the look-up itself does that work.
async fn ready(netlink: &Netlink, name: &str, endpoint: &Endpoint) -> Result<()> {
    let started = Instant::now();
    while !device(netlink, name).await?.running {
        if started.elapsed() > READY {
            return Err(Error::NotReady(endpoint.id, READY.as_millis()));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Takes the pair and the namespace's file away; what is gone already is no error.
pub(crate) async fn tear(host: &Netlink, interface: &str, path: &Path) -> Result<()> {
    if let Some(link) = host.link(interface).await? {
        match host.delete_link(link.index).await {
            Err(error) if !error.is_absent() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(NetworkNamespace::delete(path)?)
}

/// The smaller of the default routes' MTUs, so that a workload's packets need not be cut on their way out.
pub(crate) async fn default_mtu(host: &Netlink) -> Result<u32> {
    let routes = host.routes().await?;
    let out: Vec<_> = (routes.iter())
        .filter(|route| route.unicast && route.destination.prefix_len() == 0)
        .filter_map(|route| route.device)
        .collect();
    let links = host.links().await?;
    let mtus = links.iter().filter(|link| out.contains(&link.index)).map(|link| link.mtu);
    Ok(mtus.min().unwrap_or(MTU))
}

fn everywhere(family: IpAddr) -> IpNet {
    match family {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}
