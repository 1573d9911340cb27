//! The maps of services, written by hand.

use std::net::SocketAddr;

use abi::{Address, Affinity, AffinityKey, Backend, Called, Frontend, Member, Service, SocketKey, map};
use aya::maps::{Array, HashMap, MapData};

use crate::support::{PinRoot, Pinned};
use crate::world::address;

/// IP protocol numbers.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// The tables as the agent would write them.
pub(crate) struct Tables {
    frontends: HashMap<MapData, Frontend, u32>,
    services: Array<MapData, Service>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Backend>,
    members: HashMap<MapData, Member, u32>,
    affinities: HashMap<MapData, AffinityKey, Affinity>,
    sockets: HashMap<MapData, SocketKey, Called>,
    bound: Array<MapData, u64>,
    node: maps::Node,
}

/// What is called: a port of a VIP.
pub(crate) fn frontend(vip: SocketAddr, protocol: u8) -> Frontend {
    Frontend::new(address(vip.ip()), vip.port(), protocol)
}

impl Tables {
    pub(crate) fn of(root: &PinRoot) -> Self {
        let maps = Pinned::of(root);
        Self {
            frontends: maps.map(map::FRONTENDS).try_into().unwrap(),
            services: maps.map(map::SERVICES).try_into().unwrap(),
            slots: maps.map(map::SLOTS).try_into().unwrap(),
            backends: maps.map(map::BACKENDS).try_into().unwrap(),
            members: maps.map(map::MEMBERS).try_into().unwrap(),
            affinities: maps.map(map::AFFINITIES).try_into().unwrap(),
            sockets: maps.map(map::SOCKETS).try_into().unwrap(),
            bound: maps.map(map::BOUND).try_into().unwrap(),
            node: maps::Node::new(maps.map(map::NODE)).unwrap(),
        }
    }

    /// Element `number` of `BACKENDS`.
    pub(crate) fn set_backend(&mut self, number: u32, at: SocketAddr) {
        let (address, port) = (address(at.ip()), at.port().to_be_bytes());
        self.backends.set(number, Backend { address, port, zero: [0; 2], reserved: 0 }, 0).unwrap();
    }

    /// Service `index` as it is called by `frontend`, with these slots, which stand from `16 * index` on.
    pub(crate) fn set_service(&mut self, index: u32, frontend: Frontend, slots: &[u32], affinity: u32) {
        let first = 16 * index;
        for (slot, number) in (first..).zip(slots) {
            self.slots.set(slot, number, 0).unwrap();
        }
        let slots = Service::region(first, slots.len() as u32);
        self.services.set(index, Service { slots, frontend, affinity, flags: 0, zero: 0 }, 0).unwrap();
        self.point(frontend, index);
    }

    /// `FRONTENDS` says that the frontend is service `index`.
    pub(crate) fn point(&mut self, frontend: Frontend, index: u32) {
        self.frontends.insert(frontend, index, 0).unwrap();
        self.frontends.insert(Frontend::address_only(frontend.address), 0, 0).unwrap();
    }

    pub(crate) fn set_member(&mut self, service: u32, backend: u32, is_one: bool) {
        let member = Member { service, backend };
        if is_one {
            self.members.insert(member, 1, 0).unwrap();
        } else {
            self.members.remove(&member).unwrap();
        }
    }

    /// The one client that is remembered.
    pub(crate) fn affinity(&self) -> Option<(AffinityKey, Affinity)> {
        let all: Vec<_> = self.affinities.iter().map(Result::unwrap).collect();
        assert!(all.len() <= 1, "{all:?}");
        all.first().copied()
    }

    pub(crate) fn set_affinity(&mut self, client: Address, service: u32, affinity: Affinity) {
        self.affinities.insert(AffinityKey { client, service, zero: 0 }, affinity, 0).unwrap();
    }

    /// What sockets called, by whom they talk with.
    pub(crate) fn called(&self) -> Vec<(SocketKey, Called)> {
        self.sockets.iter().map(Result::unwrap).collect()
    }

    /// Ports with a bit in `BOUND`.
    pub(crate) fn bound(&self) -> Vec<u16> {
        let words = self.bound.iter().map(Result::unwrap).enumerate();
        let bits = |(word, bits): (usize, u64)| {
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| (64 * word + bit) as u16)
        };
        words.flat_map(bits).collect()
    }

    /// The cgroup of the L7 proxy.
    pub(crate) fn set_proxy(&mut self, cgroup: u64) {
        self.node.set_proxy(cgroup);
    }

    /// The ports of masquerading.
    pub(crate) fn set_masquerade(&mut self, first: u16, last: u16) {
        self.node.set_masquerade(u32::from(first) << 16 | u32::from(last));
    }
}
