//! The endpoints of this node, from enrolment to removal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use linux::cgroup::{Cgroup, Events};
use linux::namespace::NetworkNamespace;
use linux::netlink::Netlink;
use mesh::workload::{Endpoint, EndpointId, Mac, WorkloadName};
use node_api::Enrol;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::address;
use crate::config::Config;
use crate::device::{id_of, interface};
use crate::error::{AtFile, Error, Result};
use crate::record::{self, Allocation};
use crate::wiring;

/// The endpoints of this node. Calls on different endpoints may overlap.
#[derive(Debug)]
pub struct Endpoints {
    config: Config,
    host: Netlink,
    mtu: u32,
    state: Mutex<State>,
    emptied: mpsc::UnboundedSender<EndpointId>,
}

/// What was found when the endpoints were opened.
#[derive(Debug)]
pub struct Opened {
    /// The endpoints of this node.
    pub endpoints: Endpoints,
    /// Live workloads of an earlier agent.
    pub adopted: Vec<Endpoint>,
    /// Endpoints of an earlier agent whose workloads have ended since; nothing of them is left here.
    pub removed: Vec<Endpoint>,
    /// Who ends from now on.
    pub emptied: Emptied,
}

/// An endpoint that is there but not connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// The facts.
    pub endpoint: Endpoint,
    /// File that is its network namespace.
    pub network_namespace: PathBuf,
    /// Its cgroup directory.
    pub cgroup: PathBuf,
}

/// Endpoints whose last process has ended.
#[derive(Debug)]
pub struct Emptied(mpsc::UnboundedReceiver<EndpointId>);

impl Emptied {
    /// The next endpoint whose cgroup became empty after a process had been in it. Each is told once; it is the
    /// caller's to remove. Cancel safe.
    pub async fn next(&mut self) -> Option<EndpointId> {
        self.0.recv().await
    }
}

#[derive(Debug)]
struct State {
    allocation: Allocation,
    slots: BTreeMap<EndpointId, Slot>,
    /// Instances that are being removed and whose addresses nobody knows any more: they need not wait.
    free: BTreeSet<u64>,
}

/// What an endpoint occupies, from the moment its numbers are chosen.
#[derive(Debug)]
struct Slot {
    workload: WorkloadName,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    /// Set when all of it has been made.
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    endpoint: Endpoint,
    watch: AbortHandle,
}

impl Endpoints {
    /// Takes over the endpoints of an earlier agent: those whose namespace, device and processes are still there are
    /// adopted, the remains of others removed.
    ///
    /// # Errors
    /// [`Error::PoolChanged`] where a live one has an address of another pool.
    pub async fn open(config: Config) -> Result<Opened> {
        config.validate()?;
        let namespaces = config.namespaces();
        fs::create_dir_all(&namespaces).at("create", &namespaces)?;
        Cgroup::create(&config.cgroup)?;

        let host = Netlink::open()?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let (adopted, removed) = on_record(&config, &host).await?;
        let allocation = allocation(&config, &adopted)?;
        record::write(&Allocation::path(&config), &allocation)?;
        let state = Mutex::new(State { allocation, slots: BTreeMap::new(), free: BTreeSet::new() });
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => wiring::default_mtu(&host).await?,
        };
        let endpoints = Self { config, host, mtu, state, emptied: sender };
        for endpoint in &adopted {
            let events = Cgroup::open(&endpoints.cgroup(&endpoint.interface))?.events()?;
            endpoints.keep(endpoint.clone(), events);
        }
        endpoints.sweep().await?;
        Ok(Opened { endpoints, adopted, removed, emptied: Emptied(receiver) })
    }

    /// Makes namespace, cgroup, devices and addresses. The host's end stays down. The name of a workload whose last
    /// process has ended is free at once, so two endpoints may bear it until the earlier one is removed.
    ///
    /// # Errors
    /// [`Error::NameInUse`], [`Error::PoolExhausted`], [`Error::PoolRests`]; after any error nothing is left behind.
    pub async fn prepare(&self, request: &Enrol) -> Result<Prepared> {
        let reserved = self.reserve(&request.workload)?;
        let made = self.make(&reserved, request).await;
        if made.is_err()
            && let Err(error) = self.remove(reserved.id).await
        {
            tracing::warn!(endpoint = %reserved.id, %error, "remains of a failed enrolment");
        }
        made
    }

    /// Connects a prepared endpoint; returns when packets can pass. To be called when its programs are attached.
    pub async fn release(&self, id: EndpointId) -> Result<()> {
        let endpoint = self.get(id).ok_or(Error::Unknown(id))?;
        wiring::connect(&self.config, &self.host, &self.namespace(&endpoint.interface), &endpoint).await
    }

    /// Ends an endpoint: kills what still runs in it, removes all that was made for it, and only then gives its name
    /// and addresses back. That there is none is no error.
    pub async fn remove(&self, id: EndpointId) -> Result<()> {
        let interface = interface(id);
        if let Some(slot) = self.state.lock().slots.get(&id)
            && let Some(live) = &slot.live
        {
            live.watch.abort();
        }
        Cgroup::remove(&self.cgroup(&interface)).await?;
        wiring::tear(&self.host, &interface, &self.namespace(&interface)).await?;
        let path = record::endpoint_path(&self.config, &interface);
        // Before it is forgotten, so that after a crash it is removed again.
        if let Some(endpoint) = record::read::<Endpoint>(&path)? {
            self.keep_addresses(&endpoint)?;
        }
        record::delete(&path)?;
        self.state.lock().slots.remove(&id);
        Ok(())
    }

    fn keep_addresses(&self, endpoint: &Endpoint) -> Result<()> {
        let mut state = self.state.lock();
        let Endpoint { instance, ipv4, ipv6, .. } = *endpoint;
        if state.free.remove(&instance) {
            return Ok(());
        }
        state.allocation.quarantine.begin(instance, ipv4, ipv6);
        record::write(&Allocation::path(&self.config), &state.allocation)
    }

    /// How long addresses of endpoints that end from now on wait before they are given out again, unless
    /// [`Endpoints::free`] comes first; none: not at all. Where other nodes authenticate with this one, the first address
    /// of a pool that this node did not have before waits as long. Outlives a restart.
    pub fn set_quarantine(&self, time: Option<Duration>, has_peers: bool) -> Result<()> {
        let mut state = self.state.lock();
        if state.allocation.quarantine.set(time, has_peers) {
            record::write(&Allocation::path(&self.config), &state.allocation)?;
        }
        Ok(())
    }

    /// A pool of which nothing is given out yet, as another node's workloads may have had its addresses just now, and for
    /// how long.
    pub fn resting(&self) -> Option<(IpNet, Duration)> {
        self.state.lock().allocation.quarantine.rests(&self.config.pools())
    }

    /// Nobody takes the addresses of this instance, which is gone or about to go, for it any more.
    pub fn free(&self, instance: u64) -> Result<()> {
        let mut state = self.state.lock();
        let is_here = |slot: &Slot| slot.live.as_ref().is_some_and(|live| live.endpoint.instance == instance);
        if state.slots.values().any(is_here) {
            state.free.insert(instance);
        }
        if state.allocation.quarantine.free(instance) {
            record::write(&Allocation::path(&self.config), &state.allocation)?;
        }
        Ok(())
    }

    /// Whether a process is in it now.
    pub fn is_populated(&self, id: EndpointId) -> Result<bool> {
        match Cgroup::open(&self.cgroup(&interface(id))).and_then(|cgroup| cgroup.is_populated()) {
            Err(error) if error.is_absent() => Ok(false),
            populated => Ok(populated?),
        }
    }

    /// An endpoint that has been prepared or adopted.
    pub fn get(&self, id: EndpointId) -> Option<Endpoint> {
        Some(self.state.lock().slots.get(&id)?.live.as_ref()?.endpoint.clone())
    }

    /// All that have been prepared or adopted.
    pub fn list(&self) -> Vec<Endpoint> {
        let state = self.state.lock();
        state.slots.values().filter_map(|slot| Some(slot.live.as_ref()?.endpoint.clone())).collect()
    }

    /// The kernel's number of an endpoint's network namespace ([`linux::namespace::cookie`]).
    pub fn namespace_cookie(&self, endpoint: &Endpoint) -> linux::Result<u64> {
        NetworkNamespace::open(&self.namespace(&endpoint.interface))?.inside(linux::namespace::cookie)?
    }

    /// Network namespaces of all that have been prepared or adopted.
    pub(crate) fn network_namespaces(&self) -> Vec<PathBuf> {
        self.list().iter().map(|endpoint| self.namespace(&endpoint.interface)).collect()
    }

    /// The same by instance.
    pub(crate) fn network_namespaces_of_instances(&self) -> BTreeMap<u64, PathBuf> {
        let endpoints = self.list().into_iter();
        endpoints.map(|endpoint| (endpoint.instance, self.namespace(&endpoint.interface))).collect()
    }

    fn reserve(&self, workload: &WorkloadName) -> Result<Reserved> {
        let mut state = self.state.lock();
        state.allocation.quarantine.expire();
        for (id, _) in state.slots.iter().filter(|(_, slot)| slot.workload == *workload) {
            if !self.has_ended(*id)? {
                return Err(Error::NameInUse { workload: workload.clone(), id: *id });
            }
        }
        let reserved = state.choose(&self.config)?;
        let slot = Slot { workload: workload.clone(), ipv4: reserved.ipv4, ipv6: reserved.ipv6, live: None };
        state.slots.insert(reserved.id, slot);
        state.allocation.ipv4 = reserved.ipv4;
        state.allocation.ipv6 = reserved.ipv6;
        state.allocation.id = reserved.id.number();
        state.allocation.instance = reserved.instance;
        state.allocation.quarantine.take();
        // Under the lock, so that an older state never replaces a newer one.
        record::write(&Allocation::path(&self.config), &state.allocation)?;
        Ok(reserved)
    }

    /// Its last process has ended, whether or not that has been told yet: the kernel takes 10 ms for it, too long for
    /// who starts the same workload again.
    fn has_ended(&self, id: EndpointId) -> Result<bool> {
        let ended = Cgroup::open(&self.cgroup(&interface(id)))
            .and_then(|cgroup| Ok(!cgroup.is_populated()? && cgroup.was_used()?));
        match ended {
            // About to be made.
            Err(error) if error.is_absent() => Ok(false),
            ended => Ok(ended?),
        }
    }

    async fn make(&self, reserved: &Reserved, request: &Enrol) -> Result<Prepared> {
        let interface = interface(reserved.id);
        let (network_namespace, path) = (self.namespace(&interface), self.cgroup(&interface));
        let events = Cgroup::create(&path)?.events()?;
        let (mac, gateway_mac) = (random_mac()?, random_mac()?);
        let addresses = [IpAddr::V4(reserved.ipv4), IpAddr::V6(reserved.ipv6)];
        let pair = wiring::Pair { interface: &interface, mac, gateway_mac, addresses, mtu: self.mtu };
        let ifindex = wiring::lay(&self.config, &self.host, &network_namespace, pair).await?;
        let endpoint = Endpoint {
            id: reserved.id,
            instance: reserved.instance,
            workload: request.workload.clone(),
            labels: request.labels.clone(),
            service_account: request.service_account.clone(),
            interface,
            ifindex,
            mac,
            gateway_mac,
            ipv4: reserved.ipv4,
            ipv6: reserved.ipv6,
        };
        record::write(&record::endpoint_path(&self.config, &endpoint.interface), &endpoint)?;
        self.keep(endpoint.clone(), events);
        Ok(Prepared { endpoint, network_namespace, cgroup: path })
    }

    /// Holds a live endpoint's slot and watches for its end.
    fn keep(&self, endpoint: Endpoint, events: Events) {
        let (id, emptied) = (endpoint.id, self.emptied.clone());
        let watch = tokio::spawn(async move {
            if let Err(error) = until_empty(events).await {
                tracing::warn!(endpoint = %id, %error, "its processes can no longer be watched; taken as ended");
            }
            // Without a receiver the agent is ending.
            let _ = emptied.send(id);
        });
        let slot = Slot {
            workload: endpoint.workload.clone(),
            ipv4: endpoint.ipv4,
            ipv6: endpoint.ipv6,
            live: Some(Live { endpoint, watch: watch.abort_handle() }),
        };
        self.state.lock().slots.insert(id, slot);
    }

    /// Removes what has our names but belongs to no endpoint: left by an agent that died between two steps.
    async fn sweep(&self) -> Result<()> {
        let mut orphans = BTreeSet::new();
        let directories = [self.config.namespaces(), self.config.cgroup.clone(), self.config.records()];
        for directory in directories {
            for path in record::files(&directory)? {
                orphans.extend(path.file_stem().and_then(|name| id_of(name.to_str()?)));
            }
        }
        let links = self.host.links().await?;
        orphans.extend(links.iter().filter(|link| link.veth).filter_map(|link| id_of(&link.name)));
        for id in orphans {
            if self.get(id).is_none() {
                tracing::info!(endpoint = %id, "removing the remains of an endpoint that has ended");
                self.remove(id).await?;
            }
        }
        Ok(())
    }

    fn namespace(&self, interface: &str) -> PathBuf {
        self.config.namespaces().join(interface)
    }

    fn cgroup(&self, interface: &str) -> PathBuf {
        self.config.cgroup.join(interface)
    }
}

/// Numbers chosen for an endpoint.
#[derive(Clone, Copy, Debug)]
struct Reserved {
    id: EndpointId,
    instance: u64,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl State {
    fn choose(&self, config: &Config) -> Result<Reserved> {
        let (slots, last) = (&self.slots, &self.allocation);
        if let Some((pool, left)) = last.quarantine.rests(&config.pools()) {
            return Err(Error::PoolRests { pool, left });
        }
        let waiting = last.quarantine.len();
        let exhausted = |pool: IpNet| Error::PoolExhausted { pool, endpoints: slots.len(), waiting };
        let kept: Vec<_> =
            slots.values().map(|slot| (slot.ipv4, slot.ipv6)).chain(last.quarantine.addresses()).collect();
        let taken = kept.iter().map(|(ipv4, _)| address::number_v4(*ipv4)).collect();
        let ipv4 =
            address::next_free(address::ipv4_range(config.ipv4_pool), address::number_v4(last.ipv4), &taken)
                .ok_or_else(|| exhausted(config.ipv4_pool.into()))?;
        let taken = kept.iter().map(|(_, ipv6)| ipv6.to_bits()).collect();
        let ipv6 = address::next_free(address::ipv6_range(config.ipv6_pool), last.ipv6.to_bits(), &taken)
            .ok_or_else(|| exhausted(config.ipv6_pool.into()))?;
        let taken = slots.keys().map(|id| u128::from(id.number())).collect();
        let id = address::next_free(1..=u128::from(u16::MAX), u128::from(last.id), &taken)
            .and_then(|number| EndpointId::new(u16::try_from(number).ok()?))
            .ok_or(Error::TooManyEndpoints)?;
        let (ipv4, ipv6) = (address::address_v4(ipv4), address::address_v6(ipv6));
        Ok(Reserved { id, instance: last.instance.saturating_add(1), ipv4, ipv6 })
    }
}

/// Endpoints on record: the living, and those of which a part or every process is gone.
async fn on_record(config: &Config, host: &Netlink) -> Result<(Vec<Endpoint>, Vec<Endpoint>)> {
    let (mut living, mut ended) = (Vec::new(), Vec::new());
    for endpoint in record::endpoints(config)? {
        match is_live(config, host, &endpoint).await? {
            true => living.push(endpoint),
            false => ended.push(endpoint),
        }
    }
    Ok((living, ended))
}

/// Refuses a pool that is not the one live endpoints have their addresses from.
pub(crate) async fn check_pools(config: &Config, host: &Netlink) -> Result<()> {
    let (living, _) = on_record(config, host).await?;
    allocation(config, &living).map(drop)
}

/// The one on record, unless its pools are no longer the configuration's.
fn allocation(config: &Config, adopted: &[Endpoint]) -> Result<Allocation> {
    let Some(old) = record::read::<Allocation>(&Allocation::path(config))? else {
        // Other nodes may remember instances from before `down`: these numbers are none of those.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let instance = adopted.iter().map(|endpoint| endpoint.instance).max().unwrap_or(now);
        let mut first = Allocation::new(config, instance);
        config.pools().into_iter().for_each(|pool| first.quarantine.give(pool));
        return Ok(first);
    };
    let pairs: [(IpNet, IpNet); 2] =
        [(old.ipv4_pool.into(), config.ipv4_pool.into()), (old.ipv6_pool.into(), config.ipv6_pool.into())];
    let changed: Vec<_> = pairs.into_iter().filter(|(old, new)| old != new).collect();
    match changed.first() {
        None => Ok(old),
        Some(_) if adopted.is_empty() => {
            let mut quarantine = old.quarantine;
            changed.iter().for_each(|(_, new)| quarantine.give(new.trunc()));
            Ok(Allocation { quarantine, ..Allocation::new(config, old.instance) })
        }
        Some((old, new)) => Err(Error::PoolChanged { old: *old, new: *new, endpoints: adopted.len() }),
    }
}

async fn is_live(config: &Config, host: &Netlink, endpoint: &Endpoint) -> Result<bool> {
    if NetworkNamespace::open(&config.namespaces().join(&endpoint.interface)).is_err() {
        return Ok(false);
    }
    let link = host.link(&endpoint.interface).await?;
    let same = |link: &linux::netlink::Link| {
        link.index == endpoint.ifindex && link.mac == Some(endpoint.gateway_mac.0) && link.up
    };
    if !link.is_some_and(|link| same(&link)) {
        return Ok(false);
    }
    match Cgroup::open(&config.cgroup.join(&endpoint.interface)) {
        Ok(cgroup) => Ok(cgroup.events()?.populated()?),
        Err(_) => Ok(false),
    }
}

/// Any event after which the cgroup is empty means that someone was in it, however briefly.
async fn until_empty(mut events: Events) -> linux::Result<()> {
    loop {
        events.changed().await?;
        if !events.populated()? {
            return Ok(());
        }
    }
}

/// Unicast and locally administered (IEEE 802).
fn random_mac() -> Result<Mac> {
    let source = "/dev/urandom";
    let mut bytes = [0; 6];
    File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).at("read", source)?;
    let [first, ..] = &mut bytes;
    *first = (*first & 0b1111_1100) | 0b10;
    Ok(Mac(bytes))
}
