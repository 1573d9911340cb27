//! A node in miniature: two local endpoints, peers beyond, and the programs.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    process::Command,
    time::Duration,
};

use abi::{
    Address, Assignment, Assignments, Connection, ConnectionKey4, ConnectionKey6, Direction, DropCount,
    DropKey, DropReason, Endpoint, Event, EventKind, Fragment, FragmentKey, Node as NodeValue, Remote,
    RuleKey, RuleValue, RuleVerdict, map,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuHashMap, RingBuf, lpm_trie::Key},
    programs::{ProgramError, SchedClassifier, TcAttachType, links::LinkOrder, tc::TcAttachOptions},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::run;
pub(crate) use super::run::{Context, OBJECT, OK, Outcome, REDIRECT, SHOT};
use super::world::{A, B, FAMILIES, Family, NIC, PEER, Pod, Ports, WORLD, address};

/// Capacity of `TRANSLATIONS` here.
pub(crate) const TRANSLATIONS: u32 = 4096;

fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == ErrorKind::WouldBlock)
}

fn make_veth(name: &str, index: u32, peer: &str) {
    let made = Command::new("ip")
        .args(["link", "add", name, "index", &index.to_string(), "type", "veth", "peer", "name", peer])
        .status()
        .expect("ip");
    assert!(made.success(), "veth {name}");
}

/// The programs and their maps.
pub(crate) struct Node {
    bpf: Ebpf,
    events: RingBuf<MapData>,
}

impl Node {
    /// A node at generation 1, with rules of its own making only: see [`Self::allow`].
    pub(crate) fn new() -> Self {
        let mut node = Self::blank();
        node.set_generation(1);
        node
    }

    /// The same at generation 0: not configured yet.
    pub(crate) fn blank() -> Self {
        Self::of_size(4096)
    }

    /// The same with room for so many connections of each family.
    pub(crate) fn of_size(connections: u32) -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root");
        for pod in [A, B] {
            make_veth(&format!("host{}", pod.id), pod.ifindex, &format!("pod{}", pod.id));
        }
        make_veth("nic", NIC, "wire");
        let mut bpf = EbpfLoader::new()
            .map_max_entries(map::CONNECTIONS4, connections)
            .map_max_entries(map::CONNECTIONS6, connections)
            .map_max_entries(map::TRANSLATIONS, TRANSLATIONS)
            .load(OBJECT)
            .expect("the object loads");
        for name in ["from_pod", "to_pod", "from_netdev", "to_netdev", "from_hold", "conntrack_gc"] {
            let program: &mut SchedClassifier = bpf.program_mut(name).unwrap().try_into().unwrap();
            // `EAGAIN`: a signal came while it was being verified; libbpf tries as often.
            let mut loaded = program.load();
            for _ in 0..4 {
                if loaded.as_ref().err().is_some_and(is_interrupted) {
                    loaded = program.load();
                }
            }
            loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let events = RingBuf::try_from(bpf.take_map(map::EVENTS).unwrap()).unwrap();
        let mut node = Self { bpf, events };
        node.enrol(A);
        node.enrol(B);
        for family in FAMILIES {
            let (pool, all, host) = match family {
                Family::V4 => (96 + 24, 96, 128),
                Family::V6 => (64, 0, 128),
            };
            let any: IpAddr = match family {
                Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            };
            node.identify(family.pool(0), pool, abi::ReservedIdentity::UNMANAGED);
            node.identify(family.host(), host, abi::ReservedIdentity::HOST);
            node.identify(family.peer(), host, PEER);
            node.identify(any, all, WORLD);
        }
        node
    }

    fn enrol(&mut self, pod: Pod) {
        self.enrol_again(pod, pod.id.into());
        let assignment =
            Assignment { identity: pod.identity, ingress: pod.ingress, egress: pod.egress, flags: 0 };
        self.assign(pod, [assignment; 2], 1000);
    }

    /// Another endpoint in the place of the earlier.
    pub(crate) fn enrol_again(&mut self, pod: Pod, instance: u64) {
        let value = Endpoint {
            instance,
            id: pod.id,
            ifindex: pod.ifindex,
            mac: pod.mac,
            gateway_mac: pod.gateway_mac,
            zero: [0; 4],
        };
        let mut endpoints: HashMap<_, Address, Endpoint> =
            HashMap::try_from(self.bpf.map_mut(map::ENDPOINTS).unwrap()).unwrap();
        let names = FAMILIES.map(|family| address(family.pool(pod.host)));
        for name in names.into_iter().chain([Address::interface(pod.ifindex)]) {
            endpoints.insert(name, value, 0).unwrap();
        }
        let [IpAddr::V4(ipv4), IpAddr::V6(ipv6)] = FAMILIES.map(|family| family.pool(pod.host)) else {
            unreachable!("one of each");
        };
        let mut map: Array<_, Assignments> =
            Array::try_from(self.bpf.map_mut(map::ASSIGNMENTS).unwrap()).unwrap();
        let there = map.get(&pod.id, 0).unwrap();
        let facts = Assignments { endpoint: value, ipv4: ipv4.octets(), ipv6: ipv6.octets(), ..there };
        map.set(pod.id, facts, 0).unwrap();
    }

    /// What policy says of a pod, by parity of the generation.
    pub(crate) fn assign(&mut self, pod: Pod, slot: [Assignment; 2], quota: u32) {
        let mut map: Array<_, Assignments> =
            Array::try_from(self.bpf.map_mut(map::ASSIGNMENTS).unwrap()).unwrap();
        let there = map.get(&pod.id, 0).unwrap();
        map.set(pod.id, Assignments { slot, quota, ..there }, 0).unwrap();
    }

    /// The pod with other rulesets, identity or flags in both generations.
    pub(crate) fn assign_both(&mut self, pod: Pod, change: impl FnOnce(&mut Assignment)) {
        let mut assignment =
            Assignment { identity: pod.identity, ingress: pod.ingress, egress: pod.egress, flags: 0 };
        change(&mut assignment);
        self.assign(pod, [assignment; 2], 1000);
    }

    pub(crate) fn set_quota(&mut self, pod: Pod, quota: u32) {
        let assignment =
            Assignment { identity: pod.identity, ingress: pod.ingress, egress: pod.egress, flags: 0 };
        self.assign(pod, [assignment; 2], quota);
    }

    /// Says who has a prefix; IPv4 lengths count from 96.
    pub(crate) fn identify(&mut self, ip: IpAddr, length: u32, identity: u32) {
        self.identify_by_slot(ip, length, [identity; 2]);
    }

    pub(crate) fn identify_by_slot(&mut self, ip: IpAddr, length: u32, identity: [u32; 2]) {
        let mut map: LpmTrie<_, Address, Remote> =
            LpmTrie::try_from(self.bpf.map_mut(map::IPCACHE).unwrap()).unwrap();
        map.insert(&Key::new(length, address(ip)), Remote { identity, node: 0, flags: 0 }, 0).unwrap();
    }

    pub(crate) fn set_generation(&mut self, generation: u64) {
        self.set_node(generation, 0);
    }

    pub(crate) fn set_node(&mut self, generation: u64, trace: u32) {
        let mut map: Array<_, NodeValue> = Array::try_from(self.bpf.map_mut(map::NODE).unwrap()).unwrap();
        map.set(0, NodeValue { generation, trace, ..NodeValue::default() }, 0).unwrap();
    }

    /// Adds an entry to a ruleset. The cookie is the ruleset's number times ten, plus the verdict.
    pub(crate) fn rule(&mut self, ruleset: u32, peer: u32, port: Ports, verdict: RuleVerdict) {
        self.rule_with(ruleset, peer, port, verdict, 0);
    }

    /// The same with what the peer must have proven.
    pub(crate) fn rule_with(
        &mut self,
        ruleset: u32,
        peer: u32,
        port: Ports,
        verdict: RuleVerdict,
        requirement: u8,
    ) {
        let (length, protocol, first) = match port {
            Ports::All => (RuleKey::ANY_PROTOCOL, 0, 0),
            Ports::Of(protocol) => (RuleKey::ANY_PORT, protocol, 0),
            Ports::One(protocol, port) => (RuleKey::EXACT, protocol, port),
            Ports::Prefix(protocol, port, bits) => (RuleKey::ANY_PORT + bits, protocol, port),
        };
        let key = Key::new(length, RuleKey::exact(ruleset, peer, protocol, first));
        let cookie = ruleset * 10 + verdict as u32;
        let value = RuleValue { cookie, verdict: verdict as u8, requirement, zero: [0; 2] };
        let mut map: LpmTrie<_, RuleKey, RuleValue> =
            LpmTrie::try_from(self.bpf.map_mut(map::RULES).unwrap()).unwrap();
        map.insert(&key, value, 0).unwrap();
    }

    pub(crate) fn allow(&mut self, ruleset: u32, peer: u32, port: Ports) {
        self.rule(ruleset, peer, port, RuleVerdict::Allow);
    }

    /// Lets everybody do everything, both directions of both pods.
    pub(crate) fn allow_all(&mut self) {
        for ruleset in [A.ingress, A.egress, B.ingress, B.egress] {
            self.allow(ruleset, 0, Ports::All);
        }
    }

    /// Attaches both programs to the pod's veth, until the node is dropped.
    pub(crate) fn attach(&mut self, pod: Pod) {
        for (name, hook) in [("from_pod", TcAttachType::Ingress), ("to_pod", TcAttachType::Egress)] {
            let program: &mut SchedClassifier = self.bpf.program_mut(name).unwrap().try_into().unwrap();
            let order = TcAttachOptions::TcxOrder(LinkOrder::default());
            program.attach_with_options(&format!("host{}", pod.id), hook, order).expect("tcx, kernel 6.6");
        }
    }

    /// Element `index` of an array becomes `value`.
    pub(crate) fn set<V: aya::Pod>(&mut self, name: &str, index: u32, value: V) {
        let mut map: Array<_, V> = Array::try_from(self.bpf.map_mut(name).unwrap()).unwrap();
        map.set(index, value, 0).unwrap();
    }

    /// An element of an array.
    pub(crate) fn element<V: aya::Pod>(&self, name: &str, index: u32) -> V {
        let map: Array<_, V> = Array::try_from(self.bpf.map(name).unwrap()).unwrap();
        map.get(&index, 0).unwrap()
    }

    /// Puts an element into a hash.
    pub(crate) fn put<K: aya::Pod, V: aya::Pod>(&mut self, name: &str, key: K, value: V) {
        let mut map: HashMap<_, K, V> = HashMap::try_from(self.bpf.map_mut(name).unwrap()).unwrap();
        map.insert(key, value, 0).unwrap();
    }

    /// Takes an element out of a hash.
    pub(crate) fn take<K: aya::Pod, V: aya::Pod>(&mut self, name: &str, key: K) {
        let mut map: HashMap<_, K, V> = HashMap::try_from(self.bpf.map_mut(name).unwrap()).unwrap();
        map.remove(&key).unwrap();
    }

    /// A hash, whole.
    pub(crate) fn all<K: aya::Pod + Ord, V: aya::Pod>(&self, name: &str) -> BTreeMap<K, V> {
        let map: HashMap<_, K, V> = HashMap::try_from(self.bpf.map(name).unwrap()).unwrap();
        map.iter().map(Result::unwrap).collect()
    }

    /// Runs `from_pod` on the pod's veth.
    pub(crate) fn run_from_pod(&self, pod: Pod, frame: &[u8]) -> Outcome {
        self.run("from_pod", pod, Context::default(), frame)
    }

    /// Runs `to_pod` on the pod's veth, for a packet received on another device.
    pub(crate) fn run_to_pod(&self, pod: Pod, frame: &[u8]) -> Outcome {
        self.run("to_pod", pod, Context { ingress_ifindex: 77, ..Context::default() }, frame)
    }

    pub(crate) fn run(&self, program: &str, pod: Pod, context: Context, frame: &[u8]) -> Outcome {
        run::run(self.program(program), pod.ifindex, context, frame)
    }

    /// Every map that the tests of one topic alone know.
    pub(crate) fn bpf(&mut self) -> &mut Ebpf {
        &mut self.bpf
    }

    pub(crate) fn program(&self, name: &str) -> &SchedClassifier {
        self.bpf.program(name).unwrap().try_into().unwrap()
    }

    /// What was reported since the last call.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        run::events(&mut self.events)
    }

    /// The next event, of a packet that is on its way.
    pub(crate) fn wait_for_event(&mut self, patience: Duration) -> Event {
        let milliseconds = PollTimeout::try_from(patience).unwrap();
        let ready = poll(&mut [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)], milliseconds).unwrap();
        assert_eq!(ready, 1, "no event within {patience:?}");
        let [event] = self.events()[..] else { panic!("one event") };
        event
    }

    /// Packets dropped, by (veth, reason, direction).
    pub(crate) fn drops(&self) -> BTreeMap<(u32, u8, u8), u64> {
        let map: PerCpuHashMap<_, DropKey, DropCount> =
            PerCpuHashMap::try_from(self.bpf.map(map::DROPS).unwrap()).unwrap();
        map.iter()
            .map(|entry| {
                let (key, counts) = entry.unwrap();
                ((key.ifindex, key.reason, key.direction), counts.iter().map(|count| count.packets).sum())
            })
            .collect()
    }

    /// Asserts that the frame is dropped for `reason` at the cost of `blamed`: one event, one count, nothing else.
    #[track_caller]
    pub(crate) fn drops_from(&mut self, pod: Pod, frame: &[u8], reason: DropReason) -> Outcome {
        self.expect_drop("from_pod", pod, Context::default(), frame, (reason, pod, Direction::Egress))
    }

    #[track_caller]
    pub(crate) fn drops_to(&mut self, pod: Pod, frame: &[u8], reason: DropReason) -> Outcome {
        let context = Context { ingress_ifindex: 77, ..Context::default() };
        self.expect_drop("to_pod", pod, context, frame, (reason, pod, Direction::Ingress))
    }

    #[track_caller]
    pub(crate) fn expect_drop(
        &mut self,
        program: &str,
        pod: Pod,
        context: Context,
        frame: &[u8],
        (reason, blamed, direction): (DropReason, Pod, Direction),
    ) -> Outcome {
        self.events();
        let before = self.drops();
        let outcome = self.run(program, pod, context, frame);
        let told: Vec<_> = self
            .events()
            .iter()
            .map(|e| (e.kind, DropReason::from_number(e.reason), e.ifindex, e.direction, e.length))
            .collect();
        let expected =
            (EventKind::Drop as u8, Some(reason), blamed.ifindex, direction as u8, frame.len() as u32);
        assert_eq!(told, [expected], "{program} {frame:02x?}");
        let mut counts = before;
        *counts.entry((blamed.ifindex, reason as u8, direction as u8)).or_default() += 1;
        assert_eq!(self.drops(), counts);
        assert_ne!(outcome.verdict, OK, "dropped, yet passed");
        outcome
    }

    /// Asserts that the frame passes, without any drop.
    #[track_caller]
    pub(crate) fn passes(&mut self, program: &str, pod: Pod, frame: &[u8]) -> Outcome {
        let context = Context { ingress_ifindex: 77, ..Context::default() };
        self.events();
        let before = self.drops();
        let outcome = self.run(program, pod, context, frame);
        let drops: Vec<_> = self.events().into_iter().filter(|e| e.kind == EventKind::Drop as u8).collect();
        assert!(drops.is_empty(), "dropped: {:?} {drops:?}", DropReason::from_number(drops[0].reason));
        assert_eq!(self.drops(), before);
        assert_ne!(outcome.verdict, SHOT);
        assert_eq!(outcome.mark, 0, "no mark survives");
        outcome
    }

    /// Connections charged to the pod.
    pub(crate) fn usage(&self, pod: Pod) -> i64 {
        let map: Array<_, u64> = Array::try_from(self.bpf.map(map::USAGE).unwrap()).unwrap();
        map.get(&pod.id, 0).unwrap() as i64
    }

    /// The connections of a family.
    pub(crate) fn connections(&self, family: Family) -> Vec<Connection> {
        match family {
            Family::V4 => {
                let map: HashMap<_, ConnectionKey4, Connection> =
                    HashMap::try_from(self.bpf.map(map::CONNECTIONS4).unwrap()).unwrap();
                map.iter().map(|entry| entry.unwrap().1).collect()
            }
            Family::V6 => {
                let map: HashMap<_, ConnectionKey6, Connection> =
                    HashMap::try_from(self.bpf.map(map::CONNECTIONS6).unwrap()).unwrap();
                map.iter().map(|entry| entry.unwrap().1).collect()
            }
        }
    }

    /// Changes every connection of a family.
    pub(crate) fn change_connections(&mut self, family: Family, change: impl Fn(&mut Connection)) {
        match family {
            Family::V4 => {
                let mut map: HashMap<_, ConnectionKey4, Connection> =
                    HashMap::try_from(self.bpf.map_mut(map::CONNECTIONS4).unwrap()).unwrap();
                let all: Vec<_> = map.iter().map(Result::unwrap).collect();
                for (key, mut value) in all {
                    change(&mut value);
                    map.insert(key, value, 0).unwrap();
                }
            }
            Family::V6 => {
                let mut map: HashMap<_, ConnectionKey6, Connection> =
                    HashMap::try_from(self.bpf.map_mut(map::CONNECTIONS6).unwrap()).unwrap();
                let all: Vec<_> = map.iter().map(Result::unwrap).collect();
                for (key, mut value) in all {
                    change(&mut value);
                    map.insert(key, value, 0).unwrap();
                }
            }
        }
    }

    /// Takes the connections of a family away, as eviction would: their charges stay.
    pub(crate) fn forget_connections(&mut self, family: Family) {
        match family {
            Family::V4 => forget::<ConnectionKey4>(self.bpf.map_mut(map::CONNECTIONS4).unwrap()),
            Family::V6 => forget::<ConnectionKey6>(self.bpf.map_mut(map::CONNECTIONS6).unwrap()),
        }
    }

    /// What is remembered of first fragments.
    pub(crate) fn fragments(&self) -> BTreeMap<FragmentKey, Fragment> {
        let map: HashMap<_, FragmentKey, Fragment> =
            HashMap::try_from(self.bpf.map(map::FRAGMENTS).unwrap()).unwrap();
        map.iter().map(Result::unwrap).collect()
    }

    /// Changes all of it.
    pub(crate) fn change_fragments(&mut self, change: impl Fn(&mut Fragment)) {
        let all = self.fragments();
        let mut map: HashMap<_, FragmentKey, Fragment> =
            HashMap::try_from(self.bpf.map_mut(map::FRAGMENTS).unwrap()).unwrap();
        for (key, mut value) in all {
            change(&mut value);
            map.insert(key, value, 0).unwrap();
        }
    }
}

fn forget<K: aya::Pod>(map: &mut aya::maps::Map) {
    let mut map: HashMap<_, K, Connection> = HashMap::try_from(map).unwrap();
    let keys: Vec<_> = map.keys().map(Result::unwrap).collect();
    for key in keys {
        map.remove(&key).unwrap();
    }
}
