//! A call that wants a proof is told before its first packet, and no other is.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use abi::{Address, HoldKind, HoldRate, Mark, Pair, PairKey, Trigger, map};
use aya::maps::{Array, MapData};
use mesh::policy::{Authentication, Match, Outcome, Ruleset};
use nix::sys::socket::connect;

use crate::support::{Pinned, endpoint, id, identity, net, open, plan};
use crate::tables::{TCP, UDP, frontend};
use crate::world::{FAMILIES, Family, World, address, storage};

/// Identities: the client's, that of the servers here, and that of another workload of this node.
pub(crate) const OWN: u32 = 300;
pub(crate) const PEER: u32 = 301;
const BESIDE: u32 = 302;

/// Everything to this identity, with a proof.
fn with_proof(peer: u32) -> Arc<Ruleset> {
    let all = Match { identity: Some(identity(peer)), protocol: None, port: 0, port_bits: 0 };
    let authentication = Authentication::Required;
    let outcome = Outcome { allow: true, by: [].into(), needs: None, authentication, proxied: false };
    Arc::new(Ruleset {
        enforced: true,
        denied_by_default: Vec::new(),
        entries: BTreeMap::from([(all, outcome)]),
    })
}

/// A node on which the client is endpoint 1, and endpoint 2 is beside it; loopback addresses are another node's workload.
pub(crate) struct Callers {
    pub(crate) world: World,
    triggers: maps::Triggers,
    maps: Pinned,
    node: maps::Node,
}

impl Callers {
    pub(crate) fn new(egress: Arc<Ruleset>, beside: Arc<Ruleset>) -> Self {
        let mut world = World::new();
        let maps = Pinned::of(&world.root);
        let mut plan = plan(vec![(1, OWN, open(), egress), (2, BESIDE, beside, open())]);
        Arc::make_mut(&mut plan.ipcache)
            .extend(["127.0.0.1/32", "::1/128"].map(|here| (net(here), identity(PEER).into())));
        let cookie = world.namespace.namespace().inside(linux::namespace::cookie).unwrap().unwrap();
        let datapath = world.datapath.as_mut().unwrap();
        datapath.apply(&plan).unwrap();
        datapath.set_endpoint_namespace(id(1), cookie).unwrap();
        let mut node = maps::Node::new(maps.map(map::NODE)).unwrap();
        node.set_hold(1);
        let triggers = maps::Triggers::new(maps.map(map::TRIGGERS)).unwrap();
        Self { world, triggers, maps, node }
    }

    /// Where every call wants a proof.
    pub(crate) fn required() -> Self {
        Self::new(with_proof(PEER), open())
    }

    fn told(&mut self) -> Vec<Trigger> {
        std::iter::from_fn(|| self.triggers.read()).collect()
    }

    pub(crate) fn set_rate(&self, rate: HoldRate) {
        let mut rates: Array<MapData, HoldRate> = self.maps.map(map::HOLD_RATES).try_into().unwrap();
        rates.set(1, rate, 0).unwrap();
    }

    /// Says of the pair what an auth-agent would.
    pub(crate) fn know(&self, family: Family, pair: Pair) {
        let mut pairs = maps::Pairs::new(self.maps.map(map::AUTH)).unwrap();
        let instance = endpoint(1).instance as u32;
        pairs.insert(PairKey { remote: address(family.local()), identity: PEER, instance }, pair).unwrap();
    }

    fn mark(&self) {
        let mut marks = maps::Marks::new(self.maps.map(map::MARKS)).unwrap();
        let mut leases = maps::Leases::new(self.maps.map(map::LEASES)).unwrap();
        leases.set(0, u64::MAX).unwrap();
        let instances = [endpoint(1).instance as u32, 0];
        let ipv6 = std::net::Ipv6Addr::LOCALHOST.octets();
        let mark =
            Mark { epoch: 1, expiry: u64::MAX, instances, ipv4: [127, 0, 0, 1], ipv6, ..Mark::default() };
        marks.set(7, mark).unwrap();
    }

    /// All ways to call: none needs an answer.
    fn call(&self, family: Family, to: SocketAddr) {
        let _ = self.world.tcp(family, to);
        let datagrams = self.world.udp_client(family);
        let _ = connect(datagrams.as_raw_fd(), &storage(family.seen(to)));
        let _ = self.world.udp_client(family).send_to(b"question", family.seen(to));
    }
}

/// The client's address of that family.
fn own(family: Family) -> Address {
    match family {
        Family::V6 => Address(endpoint(1).ipv6.octets()),
        Family::V4 | Family::Mapped => Address::v4(endpoint(1).ipv4.octets()),
    }
}

fn trigger(family: Family, to: IpAddr, kind: HoldKind) -> Trigger {
    Trigger { source: own(family), destination: address(to), kind: kind as u8, zero: [0; 7] }
}

#[test]
fn a_call_that_wants_a_proof_is_told_with_the_address_that_it_goes_to() {
    let mut callers = Callers::required();
    for family in FAMILIES {
        let at = SocketAddr::from((family.local(), 9));
        callers.call(family, family.seen(at));
        let expected = trigger(family, family.local(), HoldKind::Egress);
        assert_eq!(callers.told(), [expected; 3], "{family:?}");
        // Behind a service it is the backend that must prove who it is.
        callers.world.tables.set_backend(1, at);
        for (index, protocol) in [(1, TCP), (2, UDP)] {
            callers.world.tables.set_service(index, frontend(family.vip(1, 80), protocol), &[1], 0);
        }
        callers.call(family, family.vip(1, 80));
        assert_eq!(callers.told(), [expected; 3], "{family:?}");
    }
    let counters = callers.world.datapath.as_ref().unwrap().counters().unwrap();
    assert_eq!((counters.asked, counters.hastened), (18, 0));
}

#[test]
fn the_policy_of_a_workload_beside_is_asked_too() {
    let mut callers = Callers::new(open(), with_proof(OWN));
    for (family, beside) in
        [(Family::V4, endpoint(2).ipv4.into()), (Family::V6, IpAddr::from(endpoint(2).ipv6))]
    {
        callers.call(family, (beside, 80).into());
        assert_eq!(callers.told(), [trigger(family, beside, HoldKind::Ingress); 3], "{family:?}");
    }
}

#[test]
fn nothing_is_told_where_no_proof_is_wanted_or_it_is_there_or_was_refused() {
    let silent = |callers: &mut Callers, why: &str| {
        for family in FAMILIES {
            callers.call(family, family.seen((family.local(), 9).into()));
            assert_eq!(callers.told(), [], "{why}, {family:?}");
        }
    };
    silent(&mut Callers::new(open(), open()), "allowed without");
    silent(&mut Callers::new(with_proof(BESIDE), open()), "denied");
    let mut callers = Callers::required();
    callers.mark();
    let refused = Pair { refusal: 1, until: u64::MAX, ..Pair::default() };
    for (why, pair) in [("proven", Pair { mark: 7, ..Pair::default() }), ("refused a moment ago", refused)] {
        FAMILIES.iter().for_each(|family| callers.know(*family, pair));
        silent(&mut callers, why);
    }
    FAMILIES.iter().for_each(|family| callers.know(*family, Pair { until: 1, ..refused }));
    callers.call(Family::V4, (Family::V4.local(), 9).into());
    assert_eq!(callers.told().len(), 3, "that was long ago");
    callers.node.set_hold(0);
    silent(&mut callers, "nobody proves anything here");
    callers.node.set_hold(1);
    callers.world.datapath.as_mut().unwrap().detach(id(1)).unwrap();
    silent(&mut callers, "of no endpoint");
}

#[test]
fn so_many_a_second_are_told_of_each_endpoint() {
    let mut callers = Callers::required();
    let at = SocketAddr::from((Family::V4.local(), 9));
    callers.set_rate(HoldRate { asked: u64::MAX / 4, ..HoldRate::default() });
    callers.call(Family::V4, at);
    assert_eq!(callers.told(), []);
    // What packets have used up is not what calls may.
    callers.set_rate(HoldRate { used: [u64::MAX / 4; 2], ..HoldRate::default() });
    callers.call(Family::V4, at);
    assert_eq!(callers.told().len(), 3);
}

/// A ring that nobody reads holds nobody up.
#[test]
fn calls_go_on_when_the_ring_is_full() {
    let mut callers = Callers::required();
    let datagrams = callers.world.udp_client(Family::V4);
    let size = usize::try_from(abi::TRIGGERS).unwrap() / (size_of::<Trigger>() + 8);
    for _ in 0..size + 10 {
        callers.set_rate(HoldRate::default());
        datagrams.send_to(b"question", (Family::V4.local(), 9)).ok();
    }
    assert!((size - 1..=size).contains(&callers.told().len()));
}
