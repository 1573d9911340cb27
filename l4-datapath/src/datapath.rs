//! The datapath of this node as one object: open it, attach endpoints, apply plans, read what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Map, MapData};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use maps::Sizes;
use mesh::plan::{Device, Masquerade, NodePlan};
use mesh::service::{Frontend, Services};
use mesh::workload::{Endpoint, EndpointId};
use nix::net::if_::if_nametoindex;
use node_api::{MapUse, ProgramView};

use crate::apply::{Kernel, PolicyMaps, Report, ServiceKernel, ServiceMaps, ServiceReport};
use crate::attach::{self, Hook, Place};
use crate::callers::Callers;
use crate::counters::{Counters, DropRow, GcReport};
use crate::event::Events;
use crate::flow::Attribution;
use crate::hold::Holding;
use crate::masquerade::{self, Masquerading};
use crate::pins::{Pins, children};
use crate::view::View;
use crate::{Error, cgroup, memory, probe, programs};

/// The compiled programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ferromesh.bpf.o"));

/// The program that removes dead connections; it is run, not attached.
const COLLECT: &str = "conntrack_gc";

/// How to open the datapath.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Directory of the pins, on a BPF file system.
    pub pin_root: PathBuf,
    /// How programs are attached.
    pub hook: Hook,
    /// Capacities of the maps.
    pub sizes: Sizes,
    /// An event for every packet.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        let pin_root = PathBuf::from("/sys/fs/bpf/ferromesh");
        Self { pin_root, hook: Hook::Auto, sizes: Sizes::default(), trace: false }
    }
}

/// What an earlier agent had left.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Adoption {
    /// Generation in force; 0 if there was nothing.
    pub generation: u64,
    /// Endpoints in the maps.
    pub endpoints: BTreeSet<EndpointId>,
    /// Veths with a program on them.
    pub interfaces: BTreeSet<String>,
    /// Where a BPF file system was mounted, if that was needed: a change to the host, undone by [`crate::remove`].
    pub mounted: Option<PathBuf>,
}

/// The datapath. One agent holds it at a time; dropping it leaves everything in force.
pub struct Datapath {
    ebpf: Ebpf,
    pins: Pins,
    hook: Hook,
    pub(crate) kernel: Kernel,
    pub(crate) listeners: maps::Listeners,
    masquerading: Masquerading,
    holding: Holding,
    callers: Callers,
    services: ServiceKernel,
    view: Arc<View>,
    usage: maps::Usage,
    drops: maps::Drops,
    lost: maps::Lost,
    lost_before: u64,
    /// Until somebody reads it.
    events: Option<Map>,
    /// Name and index of the veth of each endpoint attached by this agent.
    interfaces: BTreeMap<EndpointId, (String, u32)>,
    collected: Option<GcReport>,
    attribution: Arc<Attribution>,
}

impl Datapath {
    /// Loads the programs and adopts what an earlier agent left; changes nothing that is in force.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Schema`], [`Error::IncompatiblePin`], [`Error::NotBpffs`], or what the kernel refused.
    pub fn open(options: &Options) -> Result<(Self, Adoption), Error> {
        let (pins, mounted) = Pins::open(&options.pin_root)?;
        let specs = maps::specs(&options.sizes);
        pins.check(&specs)?;
        let mut ebpf = load(&pins, &specs)?;
        let maps = PolicyMaps {
            node: maps::Node::new(take(&mut ebpf, abi::map::NODE)?)?,
            endpoints: maps::Endpoints::new(take(&mut ebpf, abi::map::ENDPOINTS)?)?,
            assignments: maps::Assignments::new(take(&mut ebpf, abi::map::ASSIGNMENTS)?)?,
            ipcache: maps::Ipcache::new(take(&mut ebpf, abi::map::IPCACHE)?)?,
            rules: maps::Rules::new(take(&mut ebpf, abi::map::RULES)?)?,
        };
        let mut kernel = Kernel::read(maps, options.sizes)?;
        kernel.set_trace(options.trace);
        let adoption = Adoption {
            generation: kernel.node.generation,
            endpoints: kernel.endpoints.values().filter_map(|endpoint| id(endpoint.id)).collect(),
            interfaces: interfaces(&pins, Place::VETH)?,
            mounted,
        };
        let masquerading = Masquerading::read(
            maps::Devices::new(take(&mut ebpf, abi::map::DEVICES)?)?,
            maps::Unmasqueraded::new(take(&mut ebpf, abi::map::UNMASQUERADED)?)?,
        )?;
        let holding = Holding::new(
            maps::Hold::new(take(&mut ebpf, abi::map::HOLD)?)?,
            maps::HoldCounts::new(take(&mut ebpf, abi::map::HOLD_COUNTS)?)?,
        );
        let callers = Callers::read(maps::Namespaces::new(take(&mut ebpf, abi::map::NAMESPACES)?)?)?;
        let service_maps = ServiceMaps::open(|name| take(&mut ebpf, name))?;
        let lost = maps::Lost::new(take(&mut ebpf, abi::map::LOST)?)?;
        let datapath = Self {
            hook: resolve(options.hook),
            masquerading,
            holding,
            callers,
            services: ServiceKernel::read(service_maps, options.sizes)?,
            view: Arc::new(View::open(&pins)?),
            usage: maps::Usage::new(take(&mut ebpf, abi::map::USAGE)?)?,
            drops: maps::Drops::new(take(&mut ebpf, abi::map::DROPS)?)?,
            listeners: maps::Listeners::new(take(&mut ebpf, abi::map::LISTENERS)?)?,
            lost_before: lost.total()?,
            lost,
            events: Some(take(&mut ebpf, abi::map::EVENTS)?),
            interfaces: BTreeMap::new(),
            collected: None,
            attribution: Arc::default(),
            pins,
            kernel,
            ebpf,
        };
        Ok((datapath, adoption))
    }

    /// Puts the programs on the endpoint's veth, replacing an earlier agent's in one step. Apply a plan that holds the
    /// endpoint first, and release the workload after: until it is in the maps everything of it is dropped.
    ///
    /// # Errors
    /// What the kernel refused. Nothing was detached by it.
    pub fn attach(&mut self, endpoint: &Endpoint) -> Result<(), Error> {
        // Behind the programs, which ask it better. What another node, or this one, sends to the workload goes to the L7
        // proxy by this device's ingress, where the stack would not expect its source.
        for (key, value) in [("rp_filter", "0"), ("accept_local", "1")] {
            let key = format!("net/ipv4/conf/{}/{key}", endpoint.interface);
            linux::sysctl::set(&key, value)?;
        }
        self.attach_all(&endpoint.interface, Place::VETH)?;
        self.interfaces.insert(endpoint.id, (endpoint.interface.clone(), endpoint.ifindex));
        Ok(())
    }

    /// Puts the programs of socket load balancing on a cgroup (version 2), for every socket made in it or below, replacing
    /// an earlier agent's in one step. If they were on another, they leave it once they are on this.
    ///
    /// # Errors
    /// What the kernel refused; what was attached before still is, and calling it again continues.
    pub fn attach_cgroup(&mut self, cgroup: &Path) -> Result<(), Error> {
        cgroup::attach(&mut self.ebpf, &self.pins, cgroup)
    }

    /// Says which network namespace is the node's own, by its cookie ([`linux::namespace::cookie`]): ports that its
    /// processes bind are not used for masquerading.
    pub fn set_namespace(&mut self, cookie: u64) {
        self.kernel.set_namespace(cookie);
    }

    /// Says which two TCP ports of this and other nodes no workload may call.
    pub fn set_guarded(&mut self, [one, other]: [u16; 2]) {
        self.kernel.set_guarded(u32::from(one) << 16 | u32::from(other));
    }

    /// Says which network namespace is an endpoint's, by its cookie ([`linux::namespace::cookie`]): by that its calls are known
    /// before they have an address. Forgotten with the endpoint.
    ///
    /// # Errors
    /// What the kernel refused; a proof that the endpoint needs is then asked for by its packets alone.
    pub fn set_endpoint_namespace(&mut self, endpoint: EndpointId, cookie: u64) -> Result<(), Error> {
        self.callers.set(u32::from(endpoint.number()), cookie)
    }

    /// Descriptors of `AUTH`, `MARKS` and `LEASES`, which the auth-agent writes, and of `TRIGGERS`, which it reads, in this
    /// order.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn auth_maps(&self) -> Result<[OwnedFd; 4], Error> {
        let open = |map| {
            let opened = MapData::from_pin(self.pins.maps().join(map));
            let opened = opened.map_err(|source| maps::Error { map, operation: "opening", source })?;
            let copied = opened.fd().as_fd().try_clone_to_owned();
            copied.map_err(|error| Error::path(map, "copying the descriptor of the map")(error))
        };
        let [auth, marks, leases, triggers] =
            [abi::map::AUTH, abi::map::MARKS, abi::map::LEASES, abi::map::TRIGGERS].map(open);
        Ok([auth?, marks?, leases?, triggers?])
    }

    /// Descriptors of `NODE`, `ENDPOINTS`, `ASSIGNMENTS` and `IPCACHE`, in this order, for the L7 proxy to read them by: all
    /// but the first can be read only. That one is to be mapped and closed ([`maps::Identities`]).
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn proxy_maps(&self) -> Result<[OwnedFd; 4], Error> {
        let at = |map| self.pins.maps().join(map);
        let failed = |map| Error::path(map, "opening the map to read it");
        let read = |map| crate::sys::pinned_to_read(&at(map)).map_err(failed(map));
        let node = crate::sys::pinned(&at(abi::map::NODE)).map_err(failed(abi::map::NODE))?;
        Ok([node, read(abi::map::ENDPOINTS)?, read(abi::map::ASSIGNMENTS)?, read(abi::map::IPCACHE)?])
    }

    /// Forgets an endpoint: from now on nothing from it or to it passes; then its programs and counters go. One that is
    /// not there is fine. Its connections expire, and its quota is freed by that.
    ///
    /// # Errors
    /// What the kernel refused; calling it again continues.
    pub fn detach(&mut self, endpoint: EndpointId) -> Result<(), Error> {
        let number = u32::from(endpoint.number());
        self.callers.forget(number)?;
        let entries = self.kernel.endpoints.iter().filter(|(_, found)| found.id == number);
        let (addresses, mut indices): (Vec<_>, BTreeSet<_>) =
            entries.map(|(address, found)| (*address, found.ifindex)).unzip();
        for address in addresses {
            self.kernel.dirty = true;
            self.kernel.remove_endpoint(address)?;
        }
        if let Some((interface, index)) = self.interfaces.get(&endpoint) {
            attach::detach(&self.pins, interface, Place::VETH)?;
            indices.insert(*index);
        }
        indices.into_iter().try_for_each(|index| self.drops.forget(index))?;
        self.interfaces.remove(&endpoint);
        Ok(())
    }

    /// Takes the programs off an interface that no endpoint has: one that [`Adoption::interfaces`] names and no
    /// enrolled endpoint claims.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn detach_interface(&mut self, interface: &str) -> Result<(), Error> {
        attach::detach(&self.pins, interface, Place::VETH)
    }

    /// Makes the plan true in the kernel, or refuses it whole.
    ///
    /// # Errors
    /// [`Error::Full`] before anything is written. After any other error the old state is in force, and the next apply
    /// continues.
    pub fn apply(&mut self, plan: &NodePlan) -> Result<Report, Error> {
        let report = self.kernel.apply(plan);
        self.attribution = Arc::new(Attribution {
            cookies: self.kernel.rulesets.cookies(),
            rulesets: self.kernel.rulesets.contents(),
        });
        report
    }

    /// Makes true whose packets leave the node under its own address, by which devices. A device that has gone since it
    /// was looked for is left out; look again when the node's addresses change.
    ///
    /// # Errors
    /// [`Error::Full`] before anything is written. Of the devices that fail the first one's error; the others are served.
    pub fn apply_masquerade(&mut self, masquerade: &Masquerade, devices: &[Device]) -> Result<(), Error> {
        if self.masquerading.stands(masquerade, devices) {
            return Ok(());
        }
        self.masquerading.unsettle();
        self.masquerading.add(masquerade, devices)?;
        self.kernel.set_masquerade(masquerade::ports(masquerade));
        let present: Vec<_> = devices.iter().filter(|device| masquerade::is_there(device)).collect();
        let attached: Vec<_> =
            present.iter().map(|device| self.attach_all(&device.name, Place::NETDEV)).collect();
        let kept: BTreeSet<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        for left in interfaces(&self.pins, Place::NETDEV)?.iter().filter(|name| !kept.contains(name.as_str()))
        {
            attach::detach(&self.pins, left, Place::NETDEV)?;
        }
        for index in self.masquerading.remove(masquerade, devices)? {
            self.drops.forget(index)?;
        }
        attached.into_iter().collect::<Result<(), _>>()?;
        if present.len() == devices.len() {
            self.masquerading.applied(masquerade, devices);
        }
        Ok(())
    }

    /// Lets packets wait for a proof on this device, a TAP whose other end the auth-agent is to have. Until then keep it
    /// down, or its end to yourself: only once the program stands on it nothing that comes from there goes up the node's
    /// stack. It needs neither addresses nor an MTU of its own, and is better without `addr_gen_mode`.
    ///
    /// # Errors
    /// What the kernel refused; packets then wait where they waited before, or are dropped.
    pub fn attach_hold(&mut self, device: &str) -> Result<(), Error> {
        let index = if_nametoindex(device)
            .map_err(|errno| Error::path(device, "finding the hold device")(errno.into()))?;
        self.holding.prepare()?;
        self.attach_all(device, Place::HOLD)?;
        self.kernel.set_hold(index);
        // Pins of devices that are gone go.
        interfaces(&self.pins, Place::HOLD).map(drop)
    }

    /// Lets no packet wait any more. The program stays on the device until that is deleted: whoever has the other end
    /// must never be able to send to the node's stack.
    ///
    /// # Errors
    /// A pin of a device that is gone cannot be removed.
    pub fn detach_hold(&mut self) -> Result<(), Error> {
        self.kernel.set_hold(0);
        interfaces(&self.pins, Place::HOLD).map(drop)
    }

    fn attach_all(&mut self, interface: &str, places: &[Place]) -> Result<(), Error> {
        places
            .iter()
            .try_for_each(|place| attach::attach(&mut self.ebpf, &self.pins, self.hook, interface, *place))
    }

    /// Makes what services say true in the kernel, or refuses it whole.
    ///
    /// # Errors
    /// [`Error::Full`] before anything is written. After any other error each service is as it was or as it should be, and
    /// the next call continues.
    pub fn apply_services(&mut self, services: &Services) -> Result<ServiceReport, Error> {
        self.services.apply(services)
    }

    /// Lets applies of services fail after this many writes, as if the agent died there.
    #[cfg(feature = "testing")]
    pub fn die_after(&mut self, writes: Option<u64>) {
        self.services.tables.writes_left = writes;
    }

    /// Removes what the last apply left for packets in flight. Call it when there is nothing else to do, so that the
    /// next apply need not wait; it takes some milliseconds.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn settle(&mut self) -> Result<(), Error> {
        self.kernel.settle()?;
        self.services.settle()
    }

    /// Index of a frontend in the kernel's `SERVICES`.
    pub fn service_id(&self, frontend: &Frontend) -> Option<u32> {
        self.services.index(frontend)
    }

    /// What the kernel has, to be read at leisure and on any thread.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    /// Rulesets of an endpoint in force: ingress, egress.
    pub fn ruleset_ids(&self, endpoint: EndpointId) -> Option<(u32, u32)> {
        let assignments = self.kernel.assignments.get(&u32::from(endpoint.number()))?;
        let [even, odd] = assignments.slot;
        let now = if self.kernel.slot() == 0 { even } else { odd };
        Some((now.ingress, now.egress))
    }

    /// Who is behind cookies and ruleset ids since the last apply.
    pub fn attribution(&self) -> Arc<Attribution> {
        self.attribution.clone()
    }

    /// The reader of events; there is one. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::EventsTaken`] the second time; or the ring cannot be mapped.
    pub fn events(&mut self) -> Result<Events, Error> {
        Events::new(self.events.take().ok_or(Error::EventsTaken)?)
    }

    /// Removes dead connections. Call it every few seconds.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn collect_connections(&mut self) -> Result<GcReport, Error> {
        let report = collect(&mut self.ebpf)?;
        self.collected = Some(report);
        Ok(report)
    }

    /// Reads the kernel's counters.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn counters(&self) -> Result<Counters, Error> {
        let rows = self.drops.rows()?;
        let drops = rows.iter().map(|(key, count)| DropRow {
            ifindex: key.ifindex,
            reason: key.reason,
            direction: key.direction,
            packets: count.packets,
            bytes: count.bytes,
        });
        let usage = self.kernel.assignments.keys().filter_map(|number| Some((id(*number)?, *number)));
        Ok(Counters {
            generation: self.kernel.node.generation,
            drops: drops.collect(),
            usage: usage
                .map(|(id, number)| Ok((id, self.usage.get(number)?)))
                .collect::<Result<_, maps::Error>>()?,
            maps: self.map_use(rows.len() as u64)?,
            lost_events: self.lost.total()?.saturating_sub(self.lost_before),
            held: self.holding.counts.total(abi::HoldCount::HELD)?,
            released: self.holding.counts.total(abi::HoldCount::RELEASED)?,
            asked: self.holding.counts.total(abi::HoldCount::ASKED)?,
            hastened: self.holding.counts.total(abi::HoldCount::HASTENED)?,
        })
    }

    /// Every program that this agent loaded.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn programs(&self) -> Result<Vec<ProgramView>, Error> {
        programs::of(&self.ebpf, &self.pins, &[COLLECT])
    }

    /// Every map. Connections are as of the last collection: counting them is walking them.
    fn map_use(&self, drops: u64) -> Result<BTreeMap<String, MapUse>, Error> {
        let policy = [
            (abi::map::ENDPOINTS, Some(self.kernel.endpoints.len() as u64)),
            (abi::map::IPCACHE, Some(self.kernel.ipcache.len() as u64)),
            (abi::map::RULES, Some(self.kernel.rules)),
            (abi::map::CONNECTIONS4, self.collected.map(|report| report.live4)),
            (abi::map::CONNECTIONS6, self.collected.map(|report| report.live6)),
            (abi::map::DROPS, Some(drops)),
            (abi::map::TRANSLATIONS, self.collected.map(|report| report.translations)),
            (abi::map::DEVICES, Some(self.masquerading.devices.len() as u64)),
            (abi::map::UNMASQUERADED, Some(self.masquerading.unmasqueraded.len() as u64)),
        ];
        let services = self.services.tables.used().map(|(map, used, _)| (map, Some(used)));
        let used: BTreeMap<_, _> = policy.into_iter().chain(services).collect();
        let row = |spec: &maps::Spec| {
            let used = used.get(spec.name).copied().flatten();
            let bytes = memory::bytes(&self.pins.maps().join(spec.name))?;
            Ok((spec.name.to_owned(), MapUse { used, capacity: spec.entries.into(), bytes }))
        };
        maps::specs(&self.kernel.sizes).iter().map(row).collect()
    }
}

fn id(number: u32) -> Option<EndpointId> {
    EndpointId::new(u16::try_from(number).ok()?)
}

fn resolve(hook: Hook) -> Hook {
    match hook {
        Hook::Auto if probe::tcx() => Hook::Tcx,
        Hook::Auto => Hook::Clsact,
        chosen => chosen,
    }
}

/// Interfaces with a program in one of these places. A pin whose interface is gone stands for nothing and goes.
fn interfaces(pins: &Pins, places: &[Place]) -> Result<BTreeSet<String>, Error> {
    let mut found = BTreeSet::new();
    for pin in children(&pins.links())?.into_iter().chain(children(&pins.filters())?) {
        let Some((interface, place)) = attach::parse_pin(&pin) else { continue };
        if !places.contains(&place) {
            continue;
        }
        if if_nametoindex(interface).is_ok() {
            found.insert(interface.to_owned());
        } else {
            attach::unpin(&pin)?;
        }
    }
    Ok(found)
}

/// Loads every program against the pinned maps; maps that are not there yet are made and pinned.
fn load(pins: &Pins, specs: &[maps::Spec]) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    for spec in specs {
        loader.map_max_entries(spec.name, spec.entries);
        loader.map_pin_path(spec.name, pins.maps().join(spec.name));
    }
    // What `probe` says below 6.1: a refused call fails with EPERM.
    let can_set_result = u32::from(probe::set_retval());
    let syn_timeout = syn_timeout();
    let mut ebpf = loader
        .override_global("CAN_SET_RESULT", &can_set_result, true)
        .override_global("SYN_TIMEOUT", &syn_timeout, true)
        .load(OBJECT)?;
    cgroup::load(&mut ebpf)?;
    for name in Place::ALL.map(Place::program).into_iter().chain([COLLECT]) {
        load_patiently(program(&mut ebpf, name)?).map_err(Error::program(name, "loading"))?;
    }
    Ok(ebpf)
}

/// The ticks of the kernel in ten milliseconds, at least one. Its coarse clocks move once a tick.
fn syn_timeout() -> u32 {
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    tick.ok().and_then(|tick| u32::try_from(10_000_000 / tick.tv_nsec().max(1)).ok()).unwrap_or(1).max(1)
}

/// The kernel gives up on a program with `EAGAIN` when a signal comes while it is being verified (`do_check`), such as
/// that of a child's end. libbpf tries as often.
fn load_patiently(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    let mut tries = 5;
    loop {
        tries -= 1;
        match program.load() {
            Err(error) if tries > 0 && attach::errno(&error) == Some(libc::EAGAIN) => {}
            loaded => return loaded,
        }
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, Error> {
    let program = ebpf.program_mut(name).ok_or(Error::Object(name))?;
    program.try_into().map_err(Error::program(name, "finding"))
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or(Error::Object(name))
}

fn collect(ebpf: &mut Ebpf) -> Result<GcReport, Error> {
    // The program needs a packet to be run with and writes `abi::Collected` over its head.
    let (packet, mut answer) = ([0u8; 64], [0u8; 64]);
    let options =
        TestRunOptions { data_in: Some(&packet), data_out: Some(&mut answer), ..TestRunOptions::default() };
    program(ebpf, COLLECT)?.test_run(options).map_err(Error::program(COLLECT, "running"))?;
    let mut numbers = answer.as_chunks::<8>().0.iter().map(|number| u64::from_ne_bytes(*number));
    let [live4, live6, expired4, expired6, translations, expired_translations] =
        [(); 6].map(|()| numbers.next().unwrap_or(0));
    Ok(GcReport { live4, live6, expired: expired4 + expired6, translations, expired_translations })
}
