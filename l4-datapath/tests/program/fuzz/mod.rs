//! Whatever bytes a frame holds, the programs say no to it, or know why not.
//!
//! Each frame of the corpus ([`seeds`]) is mutated ([`mutation`]) and given to the programs; an independent reader
//! ([`reader`], `etherparse`, strict) and an obvious model of the connection table say what may come of it:
//! - A packet passes only if the reader takes it for one plain packet, of a connection that is open or allowed by a
//!   rule for exactly these ends, protocol and port; and only what a router changes is changed.
//! - Every drop is one event and one count with a known reason, but for the noise that is documented as quiet.
//! - Everything else that leaves is an answer of ours, to the sender alone, and well-formed.
//!
//! Seeds are fixed, so a failure is repeated by running it again. `MUTATIONS=n` runs n per frame. A frame that once
//! failed is kept in `tests/corpus`; the message of the failure is what goes into the file.

mod answer;
mod mutation;
mod reader;
mod seeds;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use abi::{Direction, DropReason, EventKind};

use self::{
    mutation::{Dice, mutate},
    reader::{Body, Read, Silence, quoted, read, silence},
    seeds::{seeds, twins},
};
use crate::{
    frame::{ICMP, ICMPV6, LINK, SCTP, TCP, UDP, ip},
    node::{Node, OK, Outcome, REDIRECT, SHOT},
    world::{A, B, FAMILIES, PEER, Pod, Ports},
};

/// A program on a pod's veth.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook {
    FromPod(Pod),
    ToPod(Pod),
}

impl Hook {
    const ALL: [Self; 3] = [Self::FromPod(A), Self::FromPod(B), Self::ToPod(A)];

    fn pod(self) -> Pod {
        match self {
            Self::FromPod(pod) | Self::ToPod(pod) => pod,
        }
    }

    fn is_from_pod(self) -> bool {
        matches!(self, Self::FromPod(_))
    }

    fn run(self, node: &Node, frame: &[u8]) -> Outcome {
        match self {
            Self::FromPod(pod) => node.run_from_pod(pod, frame),
            Self::ToPod(pod) => node.run_to_pod(pod, frame),
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = if self.is_from_pod() { "from_pod" } else { "to_pod" };
        write!(f, "{program} {}", if self.pod().id == A.id { "A" } else { "B" })
    }
}

/// Who may stand at the end of a packet that passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Local(u32),
    Peer,
}

const HERE: Who = Who::Local(A.id);
const THERE: Who = Who::Local(B.id);

/// Who may open what to whom: (opener, other, protocol, port or ICMP type).
const RULES: [(Who, Who, u8, u16); 13] = [
    (HERE, THERE, TCP, 80),
    (HERE, THERE, UDP, 53),
    (HERE, THERE, SCTP, 5000),
    (HERE, THERE, ICMP, 8),
    (HERE, THERE, ICMPV6, 128),
    (HERE, Who::Peer, TCP, 443),
    (HERE, Who::Peer, UDP, 53),
    (HERE, Who::Peer, ICMP, 8),
    (HERE, Who::Peer, ICMPV6, 128),
    (Who::Peer, HERE, TCP, 80),
    (Who::Peer, HERE, UDP, 53),
    (Who::Peer, HERE, ICMP, 8),
    (Who::Peer, HERE, ICMPV6, 128),
];

impl Who {
    fn identity(self) -> u32 {
        match self {
            Self::Peer => PEER,
            Self::Local(id) => {
                if id == A.id {
                    A.identity
                } else {
                    B.identity
                }
            }
        }
    }

    fn of(address: IpAddr) -> Option<Self> {
        FAMILIES.into_iter().find_map(|family| match address {
            a if a == family.pool(A.host) => Some(HERE),
            a if a == family.pool(B.host) => Some(THERE),
            a if a == family.peer() => Some(Self::Peer),
            _ => None,
        })
    }
}

fn obey(node: &mut Node, rules: &[(Who, Who, u8, u16)]) {
    for &(opener, other, protocol, port) in rules {
        for (end, peer, egress) in [(opener, other, true), (other, opener, false)] {
            let Who::Local(id) = end else { continue };
            let pod = if id == A.id { A } else { B };
            let ruleset = if egress { pod.egress } else { pod.ingress };
            node.allow(ruleset, peer.identity(), Ports::One(protocol, port));
        }
    }
}

/// Opener, other end, protocol, ports as the opener sends them.
type Tuple = (IpAddr, IpAddr, u8, (u16, u16));

fn reversed((source, destination, protocol, ports): Tuple) -> Tuple {
    (destination, source, protocol, (ports.1, ports.0))
}

/// What came of one frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fate {
    Passed,
    Dropped,
    Answered,
    Silent,
}

/// A node, and what must hold of it.
struct Lab {
    node: Node,
    rules: &'static [(Who, Who, u8, u16)],
    /// Whatever was ever opened: more than is open now, which a frame closes by chance.
    opened: BTreeSet<Tuple>,
    drops: BTreeMap<(u32, u8, u8), u64>,
    fates: BTreeMap<Fate, u64>,
}

impl Lab {
    fn new(rules: &'static [(Who, Who, u8, u16)]) -> Self {
        let mut node = Node::new();
        obey(&mut node, rules);
        for pod in [A, B] {
            node.set_quota(pod, 1_000_000);
        }
        Self { node, rules, opened: BTreeSet::new(), drops: BTreeMap::new(), fates: BTreeMap::new() }
    }

    /// Runs the frame and says what it broke.
    fn try_frame(&mut self, hook: Hook, frame: &[u8]) -> Result<Fate, String> {
        let outcome = hook.run(&self.node, frame);
        let told: Vec<_> =
            self.node.events().into_iter().filter(|event| event.kind == EventKind::Drop as u8).collect();
        let fate = match (told.as_slice(), outcome.verdict) {
            ([event], SHOT | REDIRECT) => {
                let reason = DropReason::from_number(event.reason).ok_or("an unknown reason")?;
                *self.drops.entry((event.ifindex, event.reason, event.direction)).or_default() += 1;
                if event.length as usize != frame.len() {
                    return Err(format!("told {} bytes", event.length));
                }
                if matches!(reason, DropReason::TtlExceeded | DropReason::TooBig) {
                    // Found on delivery: it has been judged, and may have opened a connection.
                    self.allowed(hook, frame)?;
                }
                if outcome.verdict == REDIRECT {
                    answer::check_refusal(hook, reason, frame, &outcome)?;
                    Fate::Answered
                } else {
                    Fate::Dropped
                }
            }
            ([], SHOT) => {
                let silence = silence(hook.pod(), hook.is_from_pod(), frame).ok_or("dropped in silence")?;
                if silence == Silence::Noise {
                    let direction = if hook.is_from_pod() { Direction::Egress } else { Direction::Ingress };
                    let key = (hook.pod().ifindex, DropReason::Multicast as u8, direction as u8);
                    *self.drops.entry(key).or_default() += 1;
                }
                Fate::Silent
            }
            ([], REDIRECT) if answer::check_neighbour(hook, frame, &outcome)? => Fate::Answered,
            ([], OK | REDIRECT) => {
                self.check_passed(hook, frame, &outcome)?;
                Fate::Passed
            }
            (told, verdict) => return Err(format!("verdict {verdict} with {} drops told", told.len())),
        };
        *self.fates.entry(fate).or_default() += 1;
        Ok(fate)
    }

    #[track_caller]
    fn frame(&mut self, name: &str, hook: Hook, frame: &[u8]) -> Fate {
        self.try_frame(hook, frame).unwrap_or_else(|broken| {
            let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("# {name}: {broken}\n{hook}\n{hex}\n")
        })
    }

    /// What the reader finds in a packet that connection table and policy let pass.
    fn allowed(&mut self, hook: Hook, frame: &[u8]) -> Result<Read, String> {
        let read = read(frame).ok_or("passed, yet no packet that can be judged")?;
        let (from, to) = (Who::of(read.source), Who::of(read.destination));
        let own = Some(Who::Local(hook.pod().id));
        let stands = match hook {
            Hook::FromPod(pod) => from == own && read.macs.0 == pod.mac,
            Hook::ToPod(_) => to == own && (from == Some(Who::Peer) || is_routers(&read)),
        };
        if !stands {
            return Err(format!("passed in another's name: {read:?}"));
        }
        if !self.permits(&read, from, to, hook.is_from_pod()) {
            return Err(format!("passed without permission: {read:?}"));
        }
        Ok(read)
    }

    fn check_passed(&mut self, hook: Hook, frame: &[u8], outcome: &Outcome) -> Result<(), String> {
        let read = self.allowed(hook, frame)?;
        let mut expected = frame.to_vec();
        let verdict = match Who::of(read.destination) {
            Some(Who::Local(id)) if hook.is_from_pod() => {
                let pod = if id == A.id { A } else { B };
                expect_routed(&mut expected, pod, &read, &outcome.frame)?;
                REDIRECT
            }
            _ => OK,
        };
        if outcome.frame != expected || outcome.verdict != verdict || outcome.mark != 0 {
            return Err(format!("passed changed: {outcome:02x?}"));
        }
        Ok(())
    }

    /// Whether a packet that passed was allowed to, by rule or connection.
    fn permits(&mut self, read: &Read, from: Option<Who>, to: Option<Who>, from_pod: bool) -> bool {
        let ports = match &read.body {
            Body::Tcp { ports, .. } | Body::Ports(ports) => *ports,
            Body::Echo { identifier, .. } => (*identifier, *identifier),
            Body::OtherIcmp { kind, .. } => return self.allows(from, to, read.protocol, u16::from(*kind)),
            Body::Error { quoted: about, .. } => {
                let Some(about) = quoted(about) else { return false };
                let beyond = !matches!(Who::of(about.1), Some(Who::Local(_)));
                let seen = if from_pod { about.1 == read.source } else { beyond };
                return seen && about.0 == read.destination && self.knows(about);
            }
        };
        let tuple = (read.source, read.destination, read.protocol, ports);
        let (forth, back) = (self.opened.contains(&tuple), self.opened.contains(&reversed(tuple)));
        let (opens, answers, called) = match &read.body {
            Body::Tcp { flags, .. } if flags.contradict() => return false,
            Body::Tcp { flags, .. } => (flags.is_first(), !flags.is_first(), ports.1),
            Body::Echo { request, .. } => {
                let kind = if read.protocol == ICMP { 8 } else { 128 };
                (*request, !request, kind)
            }
            _ => (true, true, ports.1),
        };
        let opens = opens && self.allows(from, to, read.protocol, called);
        if opens && !back {
            self.opened.insert(tuple);
        }
        // An echo reply never goes the way of its request.
        let forth = forth && !matches!(read.body, Body::Echo { request: false, .. });
        opens || forth || (back && answers)
    }

    fn allows(&self, from: Option<Who>, to: Option<Who>, protocol: u8, port: u16) -> bool {
        let (Some(from), Some(to)) = (from, to) else { return false };
        self.rules.contains(&(from, to, protocol, port))
    }

    fn knows(&self, tuple: Tuple) -> bool {
        self.opened.contains(&tuple) || self.opened.contains(&reversed(tuple))
    }

    /// Mutates every frame of the corpus, each after the corpus itself, which opens the connections again.
    fn run(&mut self) {
        let rounds = std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(1500);
        let seeds = seeds();
        for (number, seed) in seeds.iter().enumerate() {
            for seed in &seeds {
                self.frame(&seed.name, seed.hook, &seed.frame);
            }
            let mut dice = Dice(number as u64);
            for _ in 0..rounds {
                let other = &seeds[dice.roll(seeds.len())];
                let hook = if dice.roll(4) == 0 { Hook::ALL[dice.roll(3)] } else { seed.hook };
                let frame = mutate(&seed.frame, &other.frame, &mut dice);
                self.frame(&format!("made of {} and {}", seed.name, other.name), hook, &frame);
            }
        }
        assert_eq!(self.node.drops(), self.drops, "every drop told is counted once, under the same name");
    }

    fn reasons(&self) -> BTreeSet<DropReason> {
        self.drops.keys().filter_map(|key| DropReason::from_number(key.1)).collect()
    }
}

/// Any router beyond may send an error, under an address nobody knows; not under one of this node's pool.
fn is_routers(read: &Read) -> bool {
    let pool = match read.source {
        IpAddr::V4(source) => source.octets().starts_with(&[10, 0, 0]),
        IpAddr::V6(source) => source.octets().starts_with(&[0xfd, 0, 0, 0, 0, 0, 0, 0]),
    };
    matches!(read.body, Body::Error { .. }) && !pool
}

/// Makes of `expected` what a router delivers; the IPv4 checksum must be right if it was.
fn expect_routed(expected: &mut [u8], pod: Pod, read: &Read, delivered: &[u8]) -> Result<(), String> {
    expected[..6].copy_from_slice(&pod.mac);
    expected[6..12].copy_from_slice(&pod.gateway_mac);
    if read.ttl < 2 {
        return Err("passed at the end of its life".into());
    }
    let at = if read.source.is_ipv4() { LINK + 8 } else { LINK + 7 };
    expected[at] -= 1;
    if read.source.is_ipv4() && delivered.len() == expected.len() {
        expected[LINK + 10..LINK + 12].copy_from_slice(&delivered[LINK + 10..LINK + 12]);
        let right = reader::read(delivered).is_some_and(|read| read.checksums.0);
        if right != read.checksums.0 {
            return Err("the header checksum does not follow the TTL".into());
        }
    }
    Ok(())
}

#[test]
fn a_mutated_frame_passes_only_as_what_a_strict_reader_finds_allowed() {
    let mut lab = Lab::new(&RULES);
    lab.run();
    let all = [Fate::Passed, Fate::Dropped, Fate::Answered, Fate::Silent];
    assert!(all.iter().all(|fate| lab.fates.contains_key(fate)), "{:?}", lab.fates);
    // These need faults of the node, not of the frame.
    let others = [
        DropReason::ConnectionMapFull,
        DropReason::ConnectionQuota,
        DropReason::NotReady,
        DropReason::PolicyDeny,
        DropReason::NoIdentity,
    ];
    let expected = DropReason::ALL.iter().copied().filter(|reason| !others.contains(reason)).collect();
    assert_eq!(lab.reasons(), expected, "the corpus meets every check of the programs");
}

#[test]
fn where_nothing_is_allowed_no_mutated_frame_passes() {
    let mut lab = Lab::new(&[]);
    lab.run();
    assert!(!lab.fates.contains_key(&Fate::Passed), "{:?}", lab.fates);
    assert!(lab.fates.contains_key(&Fate::Answered), "{:?}", lab.fates);
}

/// The same bytes behind an IPv4 and an IPv6 header.
#[test]
fn both_families_judge_alike_what_is_behind_the_ip_header() {
    let mut lab = Lab::new(&RULES);
    let mut dice = Dice(0);
    for (protocol, body) in twins() {
        for round in 0..2000 {
            let mut body = body.clone();
            for _ in 0..dice.roll(4) {
                let at = dice.roll(body.len());
                body[at] ^= 1 << dice.roll(8);
            }
            body.truncate(if dice.roll(4) == 0 { dice.roll(body.len()) } else { body.len() });
            let [v4, v6] = FAMILIES.map(|family| {
                let before = lab.drops.clone();
                let frame = ip(family.between(A, B), protocol, 64, &body);
                let fate = lab.frame(&format!("twin {round} {family:?}"), Hook::FromPod(A), &frame);
                let counted = lab.drops.iter().find(|(key, count)| before.get(*key) != Some(*count));
                (fate, counted.map(|(key, _)| *key))
            });
            assert_eq!(v4, v6, "protocol {protocol} {body:02x?}");
        }
    }
}
