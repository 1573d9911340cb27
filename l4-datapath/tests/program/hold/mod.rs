//! Packets that wait for a proof: `from_pod` and `to_pod` let them wait, `from_hold` lets them go on.
//!
//! But for [`proofs`] they wait here for an address of another node of which nothing is known yet: to the hold that is the
//! same.

mod forged;
mod limits;
mod live;
mod proofs;
mod services;

use abi::{
    Address, Direction, DropReason, EventKind, HELD, Held, Hold, HoldCount, HoldKind, HoldTag, MARK_RELEASED,
    Node as NodeValue, Remote, RemoteFlags, ReservedIdentity, map,
};
use aya::maps::{Array, LpmTrie, PerCpuArray, lpm_trie::Key};

use super::{
    frame::{ACK, Ends, LINK, SYN, UDP, echo, piece, sctp, tcp, udp},
    node::{Context, Node, Outcome, REDIRECT, SHOT},
    run,
    world::{A, FAMILIES, Family, NIC, PEER, Pod, address},
};

/// A packet that came in by another device.
const RECEIVED: Context = Context { mark: 0, ingress_ifindex: 77, gso_size: 0, priority: 0 };

/// Where a packet is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hook {
    FromPod,
    ToPod,
}
const HOOKS: [Hook; 2] = [Hook::FromPod, Hook::ToPod];

impl Hook {
    fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
        }
    }

    /// From the workload to the peer beyond, or back.
    fn ends(self, family: Family) -> Ends {
        match self {
            Self::FromPod => family.from(A, family.peer()),
            Self::ToPod => family.to(family.peer(), A),
        }
    }

    fn kind(self) -> HoldKind {
        match self {
            Self::FromPod => HoldKind::PendingEgress,
            Self::ToPod => HoldKind::PendingIngress,
        }
    }

    fn direction(self) -> Direction {
        match self {
            Self::FromPod => Direction::Egress,
            Self::ToPod => Direction::Ingress,
        }
    }
}

/// A node that lets all pass, but knows nothing yet of the peer beyond. Its hold device is the one that leads out.
fn waiting_node() -> Node {
    let mut node = Node::new();
    node.allow_all();
    node.set_hold(NIC);
    node.set(map::HOLD, 0, Hold { key: [3, 5], ..Hold::default() });
    node.pend(true);
    node
}

impl Node {
    fn set_hold(&mut self, hold: u32) {
        self.set(map::NODE, 0, NodeValue { generation: 1, hold, ..NodeValue::default() });
    }

    /// Whether the peer's address is pending.
    fn pend(&mut self, pending: bool) {
        for family in FAMILIES {
            self.pend_address(address(family.peer()), pending);
        }
    }

    fn pend_address(&mut self, of: Address, pending: bool) {
        let mut map: LpmTrie<_, Address, Remote> =
            LpmTrie::try_from(self.bpf().map_mut(map::IPCACHE).unwrap()).unwrap();
        let remote = Remote {
            identity: [if pending { ReservedIdentity::UNMANAGED } else { PEER }; 2],
            node: 0,
            flags: if pending { RemoteFlags::PENDING } else { 0 },
        };
        map.insert(&Key::new(128, of), remote, 0).unwrap();
    }

    fn held(&mut self, id: u32) -> Held {
        let map: Array<_, Held> = Array::try_from(self.bpf().map_mut(map::HELD).unwrap()).unwrap();
        map.get(&(id % HELD), 0).unwrap()
    }

    fn change_held(&mut self, id: u32, change: impl FnOnce(&mut Held)) {
        let mut held = self.held(id);
        change(&mut held);
        self.set(map::HELD, id % HELD, held);
    }

    /// Packets held, and released.
    fn hold_counts(&mut self) -> [u64; 2] {
        let map: PerCpuArray<_, u64> =
            PerCpuArray::try_from(self.bpf().map_mut(map::HOLD_COUNTS).unwrap()).unwrap();
        [HoldCount::HELD, HoldCount::RELEASED].map(|what| map.get(&what, 0).unwrap().iter().sum())
    }

    /// Asserts that the frame waits for its peer's address, without any drop; returns its number and what stands on the
    /// device.
    #[track_caller]
    fn waits(&mut self, hook: Hook, frame: &[u8]) -> (u32, Vec<u8>) {
        self.waits_as(hook, hook.kind(), frame)
    }

    #[track_caller]
    fn waits_as(&mut self, hook: Hook, kind: HoldKind, frame: &[u8]) -> (u32, Vec<u8>) {
        let before = (self.drops(), self.hold_counts());
        self.events();
        let outcome = self.run(hook.program(), A, RECEIVED, frame);
        let drops: Vec<_> = self.events().into_iter().filter(|e| e.kind == EventKind::Drop as u8).collect();
        assert!(drops.is_empty(), "dropped: {:?}", DropReason::from_number(drops[0].reason));
        assert_eq!((outcome.verdict, self.drops()), (REDIRECT, before.0));
        assert_eq!(self.hold_counts(), [before.1[0] + 1, before.1[1]]);
        let mac = <[u8; 6]>::try_from(&outcome.frame[..6]).unwrap();
        let tag = HoldTag::from_mac(mac).expect("a tag");
        assert_eq!(tag.kind, kind);
        (tag.id, outcome.frame)
    }

    /// Runs `from_hold` on what the reader of the device wrote.
    fn write_back(&self, frame: &[u8]) -> Outcome {
        run::run(self.program("from_hold"), NIC, Context::default(), frame)
    }

    /// Asserts that it goes on; returns it as it is then.
    #[track_caller]
    fn goes_on_from_hold(&mut self, frame: &[u8]) -> Vec<u8> {
        let before = (self.drops(), self.hold_counts());
        let outcome = self.write_back(frame);
        assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, MARK_RELEASED));
        assert_eq!((self.drops(), self.hold_counts()), (before.0, [before.1[0], before.1[1] + 1]));
        outcome.frame
    }

    /// Asserts that it is dropped as forged.
    #[track_caller]
    fn is_forged(&mut self, frame: &[u8]) {
        let (mut drops, counts) = (self.drops(), self.hold_counts());
        self.events();
        let outcome = self.write_back(frame);
        let key = (NIC, DropReason::HoldForged as u8, Direction::Ingress as u8);
        *drops.entry(key).or_default() += 1;
        assert_eq!((outcome.verdict, self.drops(), self.hold_counts()), (SHOT, drops, counts));
        let told: Vec<_> = self.events().iter().map(|e| (e.kind, e.reason, e.ifindex)).collect();
        assert_eq!(told, [(EventKind::Drop as u8, DropReason::HoldForged as u8, NIC)]);
    }

    /// Asserts that the frame does not wait, but is dropped for `reason`.
    #[track_caller]
    fn is_dropped(&mut self, hook: Hook, context: Context, frame: &[u8], reason: DropReason) {
        let counts = self.hold_counts();
        self.expect_drop(hook.program(), A, context, frame, (reason, A, hook.direction()));
        assert_eq!(self.hold_counts(), counts);
    }
}

/// What may wait.
fn first_packets(ends: Ends) -> [Vec<u8>; 4] {
    let mut without_checksum = udp(ends, (4000, 54), b"none");
    without_checksum[ends.transport() + 6..ends.transport() + 8].fill(0);
    [tcp(ends, (4000, 80), SYN), udp(ends, (4000, 53), b"question"), without_checksum, echo(ends, true, 7)]
}

#[test]
fn a_first_packet_waits_and_goes_on_as_it_was_once_its_peer_is_known() {
    let mut node = waiting_node();
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        for sent in first_packets(hook.ends(family)) {
            node.pend(true);
            let (id, frame) = node.waits(hook, &sent);
            assert_eq!(frame[6..], sent[6..], "but for the tag it is what it was");
            let held = node.held(id);
            assert_eq!((held.ifindex, held.hook), (A.ifindex, hook.direction() as u8));
            assert_eq!(node.goes_on_from_hold(&frame), sent);
            node.pend(false);
            let context = Context { mark: MARK_RELEASED, ..RECEIVED };
            let outcome = node.run(hook.program(), A, context, &sent);
            assert_eq!((outcome.verdict, outcome.mark), (run::OK, 0), "{family:?} {hook:?}");
        }
        node.forget_connections(family);
    }
}

#[test]
fn what_has_waited_never_waits_again() {
    let mut node = waiting_node();
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        for sent in first_packets(hook.ends(family)) {
            let context = Context { mark: MARK_RELEASED, ..RECEIVED };
            node.is_dropped(hook, context, &sent, DropReason::PendingAddress);
        }
    }
}

/// The source MAC says nothing, and a device may complete a checksum on the way.
#[test]
fn a_packet_is_known_again_whatever_became_of_its_checksum() {
    let mut node = waiting_node();
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        let ends = hook.ends(family);
        for (sent, at) in first_packets(ends).into_iter().zip([16, 6, 6, 2]) {
            let (_, mut frame) = node.waits(hook, &sent);
            let at = ends.transport() + at;
            frame[at..at + 2].copy_from_slice(&[0xab, 0xcd]);
            frame[6..12].fill(0x11);
            let mut expected = sent;
            expected[at..at + 2].copy_from_slice(&[0xab, 0xcd]);
            assert_eq!(node.goes_on_from_hold(&frame), expected);
        }
    }
}

#[test]
fn only_whole_first_packets_wait() {
    let mut node = waiting_node();
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        let ends = hook.ends(family);
        let datagram = udp(ends, (4000, 53), b"question");
        let segments = Context { gso_size: 500, ..RECEIVED };
        node.is_dropped(hook, segments, &datagram, DropReason::PendingAddress);
        node.is_dropped(hook, RECEIVED, &sctp(ends, (4000, 80)), DropReason::PendingAddress);
        let first = piece(ends, UDP, 9, (0, true), &datagram[ends.transport()..]);
        node.is_dropped(hook, RECEIVED, &first, DropReason::PendingAddress);
        for (sent, reason) in [
            (tcp(ends, (4000, 80), SYN | ACK), DropReason::NoConnection),
            (tcp(ends, (4000, 80), ACK), DropReason::NoConnection),
            (echo(ends, false, 7), DropReason::NoConnection),
        ] {
            node.is_dropped(hook, RECEIVED, &sent, reason);
        }
    }
}

#[test]
fn nothing_waits_without_a_device() {
    let mut node = waiting_node();
    node.set_hold(0);
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        for sent in first_packets(hook.ends(family)) {
            node.is_dropped(hook, RECEIVED, &sent, DropReason::PendingAddress);
        }
    }
}

/// It would come back as one that the node received, and not be believed.
#[test]
fn what_the_node_made_itself_is_no_other_nodes_workload() {
    let mut node = waiting_node();
    for family in FAMILIES {
        let sent = tcp(Hook::ToPod.ends(family), (4000, 80), SYN);
        node.is_dropped(Hook::ToPod, Context::default(), &sent, DropReason::InvalidSourceIp);
    }
}

#[test]
fn what_is_denied_does_not_wait() {
    let mut node = Node::new();
    node.set_hold(NIC);
    node.set(map::HOLD, 0, Hold { key: [3, 5], ..Hold::default() });
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        let sent = tcp(hook.ends(family), (4000, 80), SYN);
        node.is_dropped(hook, RECEIVED, &sent, DropReason::PolicyDenied);
    }
}

/// A pod's own padding is part of what is kept.
#[test]
fn bytes_behind_the_packet_come_back_too() {
    let mut node = waiting_node();
    let mut sent = udp(Hook::FromPod.ends(Family::V4), (4000, 53), b"");
    for size in [60, 61, 75, 76, 77, 140, 1000, 1514, 3000] {
        let behind = (sent.len()..size).map(|byte| byte as u8).collect::<Vec<_>>();
        sent.extend(behind);
        // Another flow each time.
        let port = (size as u16).to_be_bytes();
        sent[LINK + 20..LINK + 22].copy_from_slice(&port);
        let (_, frame) = node.waits(Hook::FromPod, &sent);
        let mut changed = frame.clone();
        *changed.last_mut().unwrap() ^= 1;
        node.is_forged(&changed);
        assert_eq!(node.goes_on_from_hold(&frame), sent);
    }
}

#[test]
fn a_pod_that_is_gone_gets_nothing_back() {
    let mut node = waiting_node();
    let (_, frame) = node.waits(Hook::FromPod, &tcp(Hook::FromPod.ends(Family::V4), (4000, 80), SYN));
    node.take::<Address, abi::Endpoint>(map::ENDPOINTS, Address::interface(A.ifindex));
    node.is_forged(&frame);
}
