//! What the tests of services share: plans in short, and the tables read raw as a program reads them.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "clippy knows only functions marked as tests to be tests")]

pub(crate) mod assembly;
pub(crate) mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use abi::{Address, Member, Service};
use aya::maps::{Array, HashMap, MapData};
use mesh::service::{Backend, Frontend, FrontendPlan, ServiceName, Services};

use crate::support::{PinRoot, Pinned};

pub(crate) fn frontend(text: &str) -> Frontend {
    text.parse().unwrap()
}

pub(crate) fn backend(address: &str, port: u16) -> Backend {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Backends of the frontend's family, one for each number.
pub(crate) fn backends(of: &str, numbers: &[u8]) -> Vec<Backend> {
    let address = if frontend(of).address.is_ipv4() { "10.0.0.1" } else { "fd00::1" };
    let numbers: BTreeSet<u8> = numbers.iter().copied().collect();
    numbers.into_iter().map(|number| backend(address, u16::from(number))).collect()
}

/// Frontend, numbers of its backends, affinity.
pub(crate) type Row<'a> = (&'a str, &'a [u8], Option<u32>);

pub(crate) fn services(rows: &[Row<'_>]) -> Services {
    let planned = |(name, numbers, affinity): &Row<'_>| {
        let plan = FrontendPlan {
            service: ServiceName { namespace: "default".to_owned(), name: "service".to_owned() },
            port_name: String::new(),
            backends: backends(name, numbers).into(),
            draining: [].into(),
            affinity: *affinity,
        };
        (frontend(name), plan)
    };
    Services { frontends: rows.iter().map(planned).collect(), names: BTreeMap::new() }
}

pub(crate) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(four) => Address(four.to_ipv6_mapped().octets()),
        IpAddr::V6(six) => Address(six.octets()),
    }
}

pub(crate) fn key(frontend: &Frontend) -> abi::Frontend {
    abi::Frontend::new(address(frontend.address), frontend.port, frontend.protocol)
}

/// Handles of the tables by aya alone.
pub(crate) struct Raw {
    pub(crate) frontends: HashMap<MapData, abi::Frontend, u32>,
    pub(crate) services: Array<MapData, Service>,
    pub(crate) slots: Array<MapData, u32>,
    pub(crate) backends: Array<MapData, abi::Backend>,
    pub(crate) members: HashMap<MapData, Member, u32>,
}

/// Everything that is in force.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Dump {
    pub(crate) frontends: BTreeMap<abi::Frontend, u32>,
    pub(crate) services: BTreeMap<u32, (u64, u32)>,
    pub(crate) members: BTreeSet<Member>,
}

impl Raw {
    pub(crate) fn of(root: &PinRoot) -> Self {
        let pinned = Pinned::of(root);
        Self {
            frontends: pinned.map(abi::map::FRONTENDS).try_into().unwrap(),
            services: pinned.map(abi::map::SERVICES).try_into().unwrap(),
            slots: pinned.map(abi::map::SLOTS).try_into().unwrap(),
            backends: pinned.map(abi::map::BACKENDS).try_into().unwrap(),
            members: pinned.map(abi::map::MEMBERS).try_into().unwrap(),
        }
    }

    /// The element a program comes by; none if it is another's.
    pub(crate) fn service(&self, name: &str) -> Option<Service> {
        let key = key(&frontend(name));
        let index = self.frontends.get(&key, 0).ok()?;
        self.services.get(&index, 0).ok().filter(|service| service.frontend == key)
    }

    /// The backends in a region, in order.
    pub(crate) fn region(&self, slots: u64) -> Vec<Backend> {
        let (first, count) = (Service::first(slots), Service::count(slots));
        (first..first + count).map(|slot| self.backend(self.slots.get(&slot, 0).unwrap())).collect()
    }

    pub(crate) fn backend(&self, number: u32) -> Backend {
        let element = self.backends.get(&number, 0).unwrap();
        SocketAddr::new(IpAddr::from(element.address.0).to_canonical(), u16::from_be_bytes(element.port))
    }

    /// Backends and affinity of a frontend.
    pub(crate) fn look_up(&self, name: &str) -> Option<(Vec<Backend>, u32)> {
        self.service(name).map(|service| (self.region(service.slots), service.affinity))
    }

    pub(crate) fn is_vip(&self, ip: &str) -> bool {
        let key = abi::Frontend::address_only(address(ip.parse().unwrap()));
        self.frontends.get(&key, 0).is_ok_and(|index| index == 0)
    }

    pub(crate) fn dump(&self) -> Dump {
        let frontends: BTreeMap<_, _> = self.frontends.iter().map(Result::unwrap).collect();
        let service = |index: &u32| {
            let service = self.services.get(index, 0).unwrap();
            (*index, (service.slots, service.affinity))
        };
        let services = frontends.values().filter(|index| **index != 0).map(service).collect();
        Dump { frontends, services, members: self.members.keys().map(Result::unwrap).collect() }
    }

    /// Protocol and address of everyone that slots of services in force name.
    pub(crate) fn listed(&self) -> BTreeSet<(u8, Backend)> {
        let dump = self.dump();
        let ports = dump.frontends.iter().filter(|(_, index)| **index != 0);
        let backends = ports.flat_map(|(key, index)| {
            let backends = self.region(dump.services[index].0).into_iter();
            backends.map(|backend| (key.protocol, backend))
        });
        backends.collect()
    }

    /// Numbers that slots of services in force name.
    pub(crate) fn backends_in_use(&self) -> BTreeSet<u32> {
        let regions = self.dump().services.into_values().map(|(slots, _)| slots);
        let slots = regions.flat_map(|slots| {
            let first = Service::first(slots);
            first..first + Service::count(slots)
        });
        slots.map(|slot| self.slots.get(&slot, 0).unwrap()).collect()
    }

    /// The tables say the plan, and nothing that the plan does not.
    pub(crate) fn check(&self, plan: &Services) {
        let dump = self.dump();
        let vips =
            plan.frontends.keys().map(|frontend| abi::Frontend::address_only(address(frontend.address)));
        let expected: BTreeSet<_> = plan.frontends.keys().map(key).chain(vips).collect();
        assert_eq!(dump.frontends.keys().copied().collect::<BTreeSet<_>>(), expected);
        let mut members = BTreeSet::new();
        for (frontend, planned) in &plan.frontends {
            let service = dump.frontends[&key(frontend)];
            let (backends, affinity) = self.look_up(&frontend.to_string()).unwrap();
            assert_eq!(backends, planned.backends.to_vec(), "{frontend}");
            assert_eq!(affinity, planned.affinity.unwrap_or(0), "{frontend}");
            let slots = dump.services[&service].0;
            let numbers =
                (Service::first(slots)..).take(backends.len()).map(|slot| self.slots.get(&slot, 0).unwrap());
            members.extend(numbers.filter(|_| affinity != 0).map(|backend| Member { service, backend }));
        }
        assert_eq!(dump.members, members);
        self.check_shared_nothing(&dump);
    }

    /// Indices and slots belong to one service each, a backend has one number, and none of them is element 0.
    pub(crate) fn check_shared_nothing(&self, dump: &Dump) {
        let indices: Vec<u32> = dump.frontends.values().copied().filter(|index| *index != 0).collect();
        assert_eq!(indices.iter().collect::<BTreeSet<_>>().len(), indices.len());
        let regions =
            dump.services.values().map(|(slots, _)| (Service::first(*slots), Service::count(*slots)));
        let slots: Vec<u32> = regions.flat_map(|(first, count)| first..first + count).collect();
        assert_eq!(slots.iter().collect::<BTreeSet<_>>().len(), slots.len());
        let numbers = self.backends_in_use();
        assert!(!numbers.contains(&0));
        let addresses: BTreeSet<Backend> = numbers.iter().map(|number| self.backend(*number)).collect();
        assert_eq!(addresses.len(), numbers.len(), "one number for each backend");
    }
}
