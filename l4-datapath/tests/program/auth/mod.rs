//! Marks: who needs one, when a connection that depends on one ends, and what both ends hear of that.

mod answers;
mod ending;
mod guard;
mod live;
mod opening;
mod pending;

use std::net::IpAddr;

use abi::{Address, Connection, Event, Mark, Pair, PairKey, REQUIRED, RuleKey, RuleValue, RuleVerdict, map};
use aya::maps::{Array, LpmTrie, lpm_trie::Key};
use nix::time::{ClockId, clock_gettime};

use super::{
    frame::{ACK, Ends, RST, SYN, echo, sctp, tcp, udp},
    node::{Context, Node, Outcome},
    world::{A, B, FAMILIES, Family, PEER, Pod, Ports, address},
};

/// Later than anything here takes.
const FAR: u64 = u64::MAX;
/// The mark of these tests, and its first epoch.
const MARK: u32 = 7;
const EPOCH: u64 = 70;
/// Node of the peer beyond, in `LEASES`.
const BEYOND: u32 = 3;
/// Of every connection: the opener's port, and the one called.
const PORTS: (u16, u16) = (4000, 80);

/// Nanoseconds of CLOCK_BOOTTIME.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// What a pod's peer is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Peer {
    Pod(Pod),
    Beyond,
}

impl Peer {
    fn address(self, family: Family) -> IpAddr {
        match self {
            Self::Pod(pod) => family.pool(pod.host),
            Self::Beyond => family.peer(),
        }
    }

    fn identity(self) -> u32 {
        match self {
            Self::Pod(pod) => pod.identity,
            Self::Beyond => PEER,
        }
    }
}

/// A connection by where it begins and ends, and whose policy asks for a proof.
#[derive(Clone, Copy, Debug)]
struct Way {
    opener: Peer,
    other: Peer,
    /// Who asks, in that direction.
    asks: &'static [(Pod, abi::Direction)],
}

const EGRESS: abi::Direction = abi::Direction::Egress;
const INGRESS: abi::Direction = abi::Direction::Ingress;

const WAYS: [Way; 5] = [
    Way { opener: Peer::Pod(A), other: Peer::Pod(B), asks: &[(A, EGRESS)] },
    Way { opener: Peer::Pod(A), other: Peer::Pod(B), asks: &[(B, INGRESS)] },
    Way { opener: Peer::Pod(A), other: Peer::Pod(B), asks: &[(A, EGRESS), (B, INGRESS)] },
    Way { opener: Peer::Pod(A), other: Peer::Beyond, asks: &[(A, EGRESS)] },
    Way { opener: Peer::Beyond, other: Peer::Pod(A), asks: &[(A, INGRESS)] },
];

impl Way {
    /// The peer of a pod.
    fn peer_of(self, pod: Pod) -> Peer {
        match self.opener {
            Peer::Pod(opener) if opener.id == pod.id => self.other,
            _ => self.opener,
        }
    }

    /// A node where everything is allowed, and this way wants a proof that is not there.
    fn node(self) -> Node {
        let mut node = Node::new();
        node.allow_all();
        for (pod, direction) in self.asks {
            node.require(*pod, *direction, self.peer_of(*pod).identity(), Ports::All);
        }
        node
    }

    /// The same with a proof.
    fn proven(self) -> Node {
        let mut node = self.node();
        self.prove(&mut node, MARK, EPOCH);
        node
    }

    fn prove(self, node: &mut Node, number: u32, epoch: u64) {
        match (self.opener, self.other) {
            (Peer::Pod(pod), peer) | (peer, Peer::Pod(pod)) => node.prove(pod, peer, number, epoch),
            _ => unreachable!("one end is here"),
        }
    }

    /// Who sends a packet of that direction, and to whom.
    fn ends(self, family: Family, reply: bool) -> (Peer, Ends) {
        let (from, to) = if reply { (self.other, self.opener) } else { (self.opener, self.other) };
        let ends = match (from, to) {
            (Peer::Pod(pod), _) => family.from(pod, to.address(family)),
            (Peer::Beyond, Peer::Pod(pod)) => family.to(family.peer(), pod),
            _ => unreachable!("one end is here"),
        };
        (from, ends)
    }

    /// The program that sees it, and on whose veth.
    fn hook(self, reply: bool) -> (&'static str, Pod) {
        match if reply { (self.other, self.opener) } else { (self.opener, self.other) } {
            (Peer::Pod(pod), _) => ("from_pod", pod),
            (_, Peer::Pod(pod)) => ("to_pod", pod),
            _ => unreachable!("one end is here"),
        }
    }

    fn run(self, node: &Node, reply: bool, frame: &[u8]) -> Outcome {
        let (program, pod) = self.hook(reply);
        node.run(program, pod, Context { ingress_ifindex: 77, ..Context::default() }, frame)
    }

    #[track_caller]
    fn passes(self, node: &mut Node, reply: bool, frame: &[u8]) -> Outcome {
        let (program, pod) = self.hook(reply);
        node.passes(program, pod, frame)
    }

    /// Asserts that the frame is dropped at the cost of that pod.
    #[track_caller]
    fn drops(
        self,
        node: &mut Node,
        reply: bool,
        frame: &[u8],
        blamed: (abi::DropReason, Pod, abi::Direction),
    ) -> Outcome {
        let (program, pod) = self.hook(reply);
        node.expect_drop(program, pod, Context { ingress_ifindex: 77, ..Context::default() }, frame, blamed)
    }

    /// Asserts that the frame finds its connection ended: known there without asking anybody.
    #[track_caller]
    fn ends_with(self, node: &mut Node, reply: bool, frame: &[u8]) -> Outcome {
        let (program, pod) = self.hook(reply);
        let direction = if program == "from_pod" { EGRESS } else { INGRESS };
        self.drops(node, reply, frame, (abi::DropReason::AuthenticationEnded, pod, direction))
    }
}

/// What is said over a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Talk {
    Tcp,
    Udp,
    Sctp,
    Echo,
}

const TALKS: [Talk; 4] = [Talk::Tcp, Talk::Udp, Talk::Sctp, Talk::Echo];

impl Talk {
    /// The packet that opens.
    fn first(self, way: Way, family: Family) -> Vec<u8> {
        let ends = way.ends(family, false).1;
        match self {
            Self::Tcp => tcp(ends, PORTS, SYN),
            _ => self.next(way, family, false),
        }
    }

    /// The first answer.
    fn answer(self, way: Way, family: Family) -> Vec<u8> {
        let ends = way.ends(family, true).1;
        match self {
            Self::Tcp => tcp(ends, (PORTS.1, PORTS.0), SYN | ACK),
            _ => self.next(way, family, true),
        }
    }

    /// One of those that follow.
    fn next(self, way: Way, family: Family, reply: bool) -> Vec<u8> {
        let ends = way.ends(family, reply).1;
        let ports = if reply { (PORTS.1, PORTS.0) } else { PORTS };
        match self {
            Self::Tcp => tcp(ends, ports, ACK),
            Self::Udp => udp(ends, ports, b"data"),
            Self::Sctp => sctp(ends, ports),
            Self::Echo => echo(ends, !reply, 9),
        }
    }

    /// Opens a connection and answers once.
    #[track_caller]
    fn open(self, node: &mut Node, way: Way, family: Family) {
        way.passes(node, false, &self.first(way, family));
        way.passes(node, true, &self.answer(way, family));
    }
}

/// Every way, talk and family; each way with a node of its own.
fn each(with: fn(Way) -> Node, test: impl Fn(&mut Node, Way, Talk, Family)) {
    for way in WAYS {
        let mut node = with(way);
        for talk in TALKS {
            for family in FAMILIES {
                test(&mut node, way, talk, family);
                node.forget_connections(family);
            }
        }
    }
}

impl Node {
    /// Lets the peer through to those ports if it has proven who it is.
    pub(crate) fn require(&mut self, pod: Pod, direction: abi::Direction, peer: u32, ports: Ports) {
        self.demand(pod, direction, peer, ports, REQUIRED);
    }

    /// An entry with this requirement.
    fn demand(&mut self, pod: Pod, direction: abi::Direction, peer: u32, ports: Ports, requirement: u8) {
        let ruleset = if direction == EGRESS { pod.egress } else { pod.ingress };
        let (length, protocol, port) = match ports {
            Ports::All => (RuleKey::ANY_PROTOCOL, 0, 0),
            Ports::Of(protocol) => (RuleKey::ANY_PORT, protocol, 0),
            Ports::One(protocol, port) => (RuleKey::EXACT, protocol, port),
            Ports::Prefix(protocol, port, bits) => (RuleKey::ANY_PORT + bits, protocol, port),
        };
        let key = Key::new(length, RuleKey::exact(ruleset, peer, protocol, port));
        let value = RuleValue {
            cookie: ruleset * 10 + 5,
            verdict: RuleVerdict::Allow as u8,
            requirement,
            zero: [0; 2],
        };
        let mut map: LpmTrie<_, RuleKey, RuleValue> =
            LpmTrie::try_from(self.bpf().map_mut(map::RULES).unwrap()).unwrap();
        map.insert(&key, value, 0).unwrap();
    }

    /// Gives a pair this mark, which nothing ends but withdrawal.
    pub(crate) fn prove(&mut self, pod: Pod, peer: Peer, number: u32, epoch: u64) {
        self.set(map::LEASES, 0, FAR);
        self.set(map::LEASES, BEYOND, FAR);
        let value = Mark { epoch, expiry: FAR, ..mark_of(pod, peer) };
        self.set(map::MARKS, number, value);
        let pair = Pair { mark: number, ..Pair::default() };
        for family in FAMILIES {
            self.put(map::AUTH, key_of(pod, peer, family), pair);
            if let Peer::Pod(other) = peer {
                self.put(map::AUTH, key_of(other, Peer::Pod(pod), family), pair);
            }
        }
    }

    /// Refuses a pair until then.
    pub(crate) fn refuse(&mut self, pod: Pod, peer: Peer, refusal: u8, until: u64) {
        for family in FAMILIES {
            let pair = Pair { refusal, until, ..Pair::default() };
            self.put(map::AUTH, key_of(pod, peer, family), pair);
        }
    }

    fn withdraw(&mut self, number: u32) {
        self.change_mark(number, |mark| mark.epoch = 0);
    }

    fn change_mark(&mut self, number: u32, change: impl FnOnce(&mut Mark)) {
        let mut marks: Array<_, Mark> = Array::try_from(self.bpf().map_mut(map::MARKS).unwrap()).unwrap();
        let mut mark = marks.get(&number, 0).unwrap();
        change(&mut mark);
        marks.set(number, mark, 0).unwrap();
    }

    /// What the connections of a family depend on.
    fn proofs(&self, family: Family) -> Vec<(u32, u64)> {
        self.connections(family).iter().map(|Connection { mark, epoch, .. }| (*mark, *epoch)).collect()
    }

    /// The authentication that the events since the last call carry.
    fn told(&mut self) -> Vec<(u8, u32)> {
        self.events().iter().map(|Event { kind, authentication, .. }| (*kind, *authentication)).collect()
    }
}

/// Whose a mark is.
fn mark_of(pod: Pod, peer: Peer) -> Mark {
    match peer {
        Peer::Pod(other) => Mark { instances: [other.id, pod.id], ..Mark::default() },
        Peer::Beyond => {
            let [IpAddr::V4(ipv4), IpAddr::V6(ipv6)] = FAMILIES.map(Family::peer) else {
                unreachable!("one of each");
            };
            Mark {
                lease: BEYOND,
                instances: [pod.id, 0],
                ipv4: ipv4.octets(),
                ipv6: ipv6.octets(),
                ..Mark::default()
            }
        }
    }
}

fn key_of(pod: Pod, peer: Peer, family: Family) -> PairKey {
    let remote: Address = address(peer.address(family));
    PairKey { remote, identity: peer.identity(), instance: pod.id }
}
