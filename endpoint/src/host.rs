//! What the host needs so that workloads can be reached: a device pair that holds the node's own pool addresses,
//! forwarding, and no way out for addresses of the pools that no workload has.
//!
//! Promise: each change is on record, with what was before, *before* it is made; [`Host::undo`] needs only the record
//! and so works when the agent is dead. A setting that someone else has changed since is left as it is.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use linux::cgroup::Cgroup;
use linux::netlink::{Netlink, Route, VethEnd, Via};
use linux::sysctl;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::conflict;
use crate::device::{HOST_DEVICE, NET_DEVICE, id_of};
use crate::enrolment::check_pools;
use crate::error::{AtFile, Error, Result};
use crate::host_file::{self, HostFile};
use crate::ports;
use crate::record::{self, Allocation};
use crate::wiring;

/// Locally administered; nothing is ever asked for these, the devices do no ARP.
const MACS: [[u8; 6]; 2] = [[0x02, 0xfe, 0, 0, 0, 1], [0x02, 0xfe, 0, 0, 0, 2]];

/// Settings whose write changes others: forwarding of each device, redirects. In this order.
const SWITCHES: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// Whether the kernel looks for a socket before it routes a TCP segment, of either family. What the L7 proxy leaves of a
/// connection in a workload's name (TIME_WAIT) is such a socket, and what is to be forwarded but has found one is dropped
/// (`ip_forward`, `ip6_forward`): another connection by the same ports would get no answer from beyond for a minute.
const EARLY_DEMUX: &str = "net/ipv4/tcp_early_demux";

/// A change made to the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// A veth pair in the node's network namespace.
    Devices {
        /// First end, which holds the addresses.
        name: String,
        /// Other end.
        peer: String,
        /// The node's own addresses.
        addresses: Vec<IpNet>,
    },
    /// An unreachable route.
    Unreachable {
        /// The pool.
        pool: IpNet,
    },
    /// A kernel setting.
    Sysctl {
        /// Its path below `/proc/sys`.
        key: String,
        /// What it was.
        old: String,
        /// What it is now.
        new: String,
    },
    /// Ports that the kernel does not give out by itself.
    ReservedPorts {
        /// Which.
        ports: RangeInclusive<u16>,
        /// What others had reserved before.
        others: String,
    },
    /// Whom the host asks for names.
    Resolver {
        /// The file that says so.
        path: PathBuf,
        /// What was there.
        old: HostFile,
        /// What it says now.
        new: String,
    },
    /// A cgroup.
    Cgroup {
        /// Its directory.
        path: PathBuf,
    },
}

impl Change {
    /// A setting that was as wanted; on record only because undoing another overwrites it.
    fn is_idle(&self) -> bool {
        matches!(self, Self::Sysctl { old, new, .. } if old == new)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices { name, peer, addresses } => {
                write!(f, "devices {name} and {peer} with")?;
                for address in addresses {
                    write!(f, " {}", address.addr())?;
                }
                f.write_str(": `ferromesh down` deletes them")
            }
            Self::Unreachable { pool } => {
                write!(f, "route unreachable {pool}: `ferromesh down` deletes it")
            }
            Self::Sysctl { key, old, new } => {
                write!(f, "sysctl {} = {new}: `ferromesh down` restores {old}", key.replace('/', "."))
            }
            Self::ReservedPorts { ports, .. } => write!(
                f,
                "sysctl net.ipv4.ip_local_reserved_ports holds {}-{}: `ferromesh down` takes them out",
                ports.start(),
                ports.end()
            ),
            Self::Resolver { path, .. } => {
                write!(f, "file {} names this node's DNS: `ferromesh down` restores it", path.display())
            }
            Self::Cgroup { path } => write!(f, "cgroup {}: `ferromesh down` removes it", path.display()),
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Record {
    changes: Vec<Change>,
}

/// The host's part of a node.
#[derive(Debug)]
pub struct Host;

impl Host {
    /// Makes the host ready, from whatever state it is in; returns every change that is in force, also earlier ones.
    ///
    /// # Errors
    /// [`Error::PoolChanged`], [`Error::NoPortsLeft`] or a place that is no cgroup's, before anything is changed; [`Error::PoolOverlaps`], before anything is added.
    pub async fn ensure(config: &Config) -> Result<Vec<Change>> {
        config.validate()?;
        Cgroup::check(&config.cgroup)?;
        let netlink = Netlink::open()?;
        check_pools(config, &netlink).await?;
        let path = record_path(config);
        let old = record::read::<Record>(&path)?.unwrap_or_default().changes;
        let reserved = reserved_by_others(&old)?;
        if let Some(ports) = &config.masquerade_ports {
            ports::check(ports, &reserved)?;
        }
        let mut topology = topology(config, &reserved);
        topology.extend(host_file::change(config, &old)?);
        let wanted = |change: &Change| topology.iter().any(|wanted| same_object(wanted, change));
        let (obsolete, mut changes): (Vec<_>, Vec<_>) =
            (old.into_iter()).partition(|change| !matches!(change, Change::Sysctl { .. }) && !wanted(change));
        for change in obsolete.iter().rev() {
            take_back(&netlink, change).await?;
        }
        if let Some(overlap) = conflict::overlaps(config, &netlink).await?.into_iter().next() {
            return Err(Error::PoolOverlaps { pool: overlap.pool, with: overlap.with });
        }
        for change in topology.into_iter().chain(settings()?) {
            let known = changes.iter().any(|old| same_object(old, &change));
            if !known {
                changes.push(change);
            }
        }
        record::write(&path, &Record { changes: changes.clone() })?;
        for change in &changes {
            make(&netlink, change).await?;
        }
        changes.retain(|change| !change.is_idle());
        Ok(changes)
    }

    /// Takes back every change on record, and whatever is left of endpoints, workloads included. Needs no agent.
    pub async fn undo(config: &Config) -> Result<()> {
        let netlink = Netlink::open()?;
        for interface in remains(config, &netlink).await? {
            Cgroup::remove(&config.cgroup.join(&interface)).await?;
            wiring::tear(&netlink, &interface, &config.namespaces().join(&interface)).await?;
            record::delete(&record::endpoint_path(config, &interface))?;
        }
        let path = record_path(config);
        let changes = record::read::<Record>(&path)?.unwrap_or_default().changes;
        // Switches first, for they overwrite others.
        let (switches, others): (Vec<_>, Vec<_>) =
            changes.into_iter().filter(is_unchanged).partition(is_switch);
        for change in switches.iter().chain(others.iter().rev()) {
            take_back(&netlink, change).await?;
        }
        Cgroup::remove_empty(&config.cgroup)?;
        for directory in [config.namespaces(), config.records()] {
            delete_directory(&directory)?;
        }
        record::delete(&Allocation::path(config))?;
        record::delete(&path)
    }

    /// What of us is on this host, a sentence each; empty after [`Host::undo`].
    pub async fn leftovers(config: &Config) -> Result<Vec<String>> {
        let netlink = Netlink::open()?;
        let mut found: Vec<_> = (remains(config, &netlink).await?.iter())
            .map(|interface| format!("endpoint {interface}: device, namespace, cgroup or record"))
            .collect();
        for link in netlink.links().await? {
            if [HOST_DEVICE, NET_DEVICE].contains(&link.name.as_str()) {
                found.push(format!("device {}", link.name));
            }
        }
        let claimed: Vec<_> = config.claimed().collect();
        for route in netlink.routes().await? {
            if route.unreachable && claimed.contains(&route.destination) {
                found.push(format!("route unreachable {}", route.destination));
            }
        }
        let changes = record::read::<Record>(&record_path(config))?.unwrap_or_default().changes;
        let settings = changes.iter().filter(|change| {
            matches!(change, Change::Sysctl { .. } | Change::ReservedPorts { .. } | Change::Resolver { .. })
                && !change.is_idle()
        });
        found.extend(settings.map(Change::to_string));
        let directories = [config.namespaces(), config.records(), config.cgroup.clone()];
        let files = [Allocation::path(config), record_path(config)];
        for path in directories.into_iter().chain(files).filter(|path| path.exists()) {
            found.push(path.display().to_string());
        }
        Ok(found)
    }

    /// What on this host disturbs us or will be disturbed, a sentence each.
    pub async fn conflicts(config: &Config) -> Result<Vec<String>> {
        conflict::all(config, &Netlink::open()?).await
    }
}

fn record_path(config: &Config) -> PathBuf {
    config.state_dir.join("host.json")
}

/// Devices, routes, cgroup and ports of this configuration.
fn topology(config: &Config, reserved: &str) -> Vec<Change> {
    let devices = Change::Devices {
        name: HOST_DEVICE.to_owned(),
        peer: NET_DEVICE.to_owned(),
        addresses: config.gateways().to_vec(),
    };
    let mut changes = vec![devices, Change::Cgroup { path: config.cgroup.clone() }];
    changes.extend(config.claimed().map(|pool| Change::Unreachable { pool }));
    if let Some(ports) = config.masquerade_ports.clone() {
        changes.push(Change::ReservedPorts { ports, others: reserved.to_owned() });
    }
    changes
}

/// Ports that were reserved before us.
fn reserved_by_others(old: &[Change]) -> Result<String> {
    let found = old.iter().find_map(|change| match change {
        Change::ReservedPorts { others, .. } => Some(others.clone()),
        _ => None,
    });
    found.map_or_else(ports::reserved, Ok)
}

/// The settings that are not yet as we need them.
///
/// Each switch sets forwarding of every device, `ip_forward` also `accept_redirects`, and does so again when it is
/// switched back (`inet_forward_change`, `addrconf_fixup_forwarding`): all that it will overwrite goes on record, also
/// what is as wanted already. A host that forwards no longer listens to router advertisements and forgets the routes
/// it learned from them, unless `accept_ra` is 2 *before*.
fn settings() -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    if sysctl::get(SWITCHES[1])? != "1" {
        for device in sysctl::list("net/ipv6/conf")?.iter().filter(|device| *device != "all") {
            let key = format!("net/ipv6/conf/{device}/accept_ra");
            if sysctl::get(&key)? == "1" {
                changes.push(setting(key, "2")?);
            }
        }
    }
    if sysctl::get(SWITCHES[0])? != "1" {
        changes.push(setting("net/ipv4/conf/all/accept_redirects".to_owned(), "0")?);
    }
    for (family, switch) in ["ipv4", "ipv6"].into_iter().zip(SWITCHES) {
        let switched = sysctl::get(switch)? != "1";
        for device in sysctl::list(&format!("net/{family}/conf"))?.iter().filter(|device| *device != "all") {
            let change = setting(format!("net/{family}/conf/{device}/forwarding"), "1")?;
            changes.extend(Some(change).filter(|change| switched || !change.is_idle()));
        }
    }
    for (key, wanted) in [(SWITCHES[0], "1"), (SWITCHES[1], "1"), (EARLY_DEMUX, "0")] {
        changes.extend(Some(setting(key.to_owned(), wanted)?).filter(|change| !change.is_idle()));
    }
    Ok(changes)
}

fn setting(key: String, new: &str) -> Result<Change> {
    let old = sysctl::get(&key)?;
    Ok(Change::Sysctl { key, old, new: new.to_owned() })
}

fn same_object(a: &Change, b: &Change) -> bool {
    match (a, b) {
        (Change::Sysctl { key: a, .. }, Change::Sysctl { key: b, .. }) => a == b,
        (Change::ReservedPorts { ports: a, .. }, Change::ReservedPorts { ports: b, .. }) => a == b,
        _ => a == b,
    }
}

/// A setting that is not as we left it is someone else's now.
fn is_unchanged(change: &Change) -> bool {
    match change {
        Change::Sysctl { key, new, .. } => sysctl::get(key).is_ok_and(|value| value == *new),
        Change::Resolver { path, new, .. } => host_file::says(path, new),
        _ => true,
    }
}

fn is_switch(change: &Change) -> bool {
    matches!(change, Change::Sysctl { key, .. } if SWITCHES.contains(&key.as_str()))
}

async fn make(netlink: &Netlink, change: &Change) -> Result<()> {
    match change {
        Change::Devices { name, peer, addresses } => make_devices(netlink, name, peer, addresses).await,
        Change::Unreachable { pool } => unless(
            linux::Error::is_present,
            netlink.add_route(Route { destination: *pool, via: Via::Unreachable, source: None }).await,
        ),
        Change::Sysctl { key, new, .. } => {
            // A device on record may be gone.
            unless(linux::Error::is_absent, sysctl::set(key, new).map(drop))
        }
        Change::ReservedPorts { ports, .. } => ports::reserve(ports.clone()),
        Change::Resolver { path, old, new } => host_file::write(path, old, new),
        Change::Cgroup { path } => Ok(Cgroup::create(path).map(drop)?),
    }
}

async fn make_devices(netlink: &Netlink, name: &str, peer: &str, addresses: &[IpNet]) -> Result<()> {
    let [mac, peer_mac] = MACS;
    let end = VethEnd { name, mac, arp: false, mtu: wiring::MTU };
    let ends = (end, VethEnd { name: peer, mac: peer_mac, ..end });
    unless(linux::Error::is_present, netlink.add_veth(ends.0, ends.1, None).await)?;
    for end in [name, peer] {
        if let Some(link) = netlink.link(end).await? {
            netlink.disable_link_local(link.index).await?;
            netlink.set_up(link.index, true).await?;
            for address in addresses.iter().filter(|_| end == name) {
                unless(linux::Error::is_present, netlink.add_address(link.index, *address).await)?;
            }
        }
    }
    Ok(())
}

async fn take_back(netlink: &Netlink, change: &Change) -> Result<()> {
    match change {
        Change::Devices { name, .. } => match netlink.link(name).await? {
            Some(link) => unless(linux::Error::is_absent, netlink.delete_link(link.index).await),
            None => Ok(()),
        },
        Change::Unreachable { pool } => unless(
            linux::Error::is_absent,
            netlink.delete_route(Route { destination: *pool, via: Via::Unreachable, source: None }).await,
        ),
        Change::Sysctl { key, old, .. } => unless(linux::Error::is_absent, sysctl::set(key, old).map(drop)),
        Change::ReservedPorts { ports, others } => ports::release(ports.clone(), others),
        Change::Resolver { path, old, new } => host_file::restore(path, old, new),
        // It may have been there before us, with processes in it.
        Change::Cgroup { path } => Ok(Cgroup::remove_empty(path)?),
    }
}

fn unless(harmless: fn(&linux::Error) -> bool, result: linux::Result<()>) -> Result<()> {
    match result {
        Err(error) if !harmless(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Names of endpoints of which anything is there.
async fn remains(config: &Config, netlink: &Netlink) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for directory in [config.namespaces(), config.cgroup.clone(), config.records()] {
        for path in record::files(&directory)? {
            names.extend(path.file_stem().and_then(|name| Some(name.to_str()?.to_owned())));
        }
    }
    names.extend(netlink.links().await?.into_iter().filter(|link| link.veth).map(|link| link.name));
    names.retain(|name| id_of(name).is_some());
    Ok(names)
}

fn delete_directory(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("delete", path),
        _ => Ok(()),
    }
}
