//! Whatever bytes a frame holds, the programs say no to it, or know why not.
//!
//! Each frame of the corpus ([`seeds`]) is mutated ([`mutation`]) and given to the programs; an independent reader
//! ([`reader`], `etherparse`, strict) and an obvious [`model`] of policy and connections say what may come of it:
//! - A packet passes only if the reader takes it for one packet, of a connection that is open or allowed by a rule for
//!   exactly these ends, protocol and port, or for a later piece of one; and only what a router changes is changed.
//! - Every drop is one event and one count with a known reason, but for the noise that is documented as quiet.
//! - Everything else that leaves is an answer of ours, to the sender alone, and well-formed.
//!
//! Seeds are fixed, so a failure is repeated by running it again. `MUTATIONS=n` runs n per frame. A frame that once
//! failed is kept in `tests/corpus`; the message of the failure is what goes into the file.

mod answer;
mod model;
mod mutation;
mod network;
mod reader;
mod seeds;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use abi::{Direction, DropReason, EventKind};

use self::{
    model::{Model, RULES, Rule, Who, obey, pod},
    mutation::{Dice, mutate},
    reader::{Read, Silence, silence},
    seeds::{seeds, twins},
};
use crate::{
    frame::{LINK, ip},
    node::{Node, OK, Outcome, REDIRECT, SHOT},
    world::{A, B, FAMILIES, Pod},
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
    model: Model,
    drops: BTreeMap<(u32, u8, u8), u64>,
    fates: BTreeMap<Fate, u64>,
}

impl Lab {
    fn new(rules: &'static [Rule]) -> Self {
        let mut node = Node::new();
        obey(&mut node, rules);
        for pod in [A, B] {
            node.set_quota(pod, 1_000_000);
        }
        let model = Model { rules, opened: BTreeSet::new(), firsts: BTreeMap::new() };
        Self { node, model, drops: BTreeMap::new(), fates: BTreeMap::new() }
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

    fn check_passed(&mut self, hook: Hook, frame: &[u8], outcome: &Outcome) -> Result<(), String> {
        let read = self.model.allowed(hook, frame)?;
        let mut expected = frame.to_vec();
        let verdict = match Who::of(read.destination) {
            Some(Who::Local(id)) if hook.is_from_pod() => {
                let pod = pod(id);
                expect_routed(&mut expected, pod, &read, &outcome.frame)?;
                REDIRECT
            }
            _ => OK,
        };
        if outcome.frame != expected || outcome.verdict != verdict || outcome.mark != 0 {
            return Err(format!("passed changed: {outcome:02x?}"));
        }
        self.compare_ways(hook, frame)
    }

    /// What has passed once is known: whether it then goes the short way or, because every packet is reported, the long
    /// one must make no difference.
    fn compare_ways(&mut self, hook: Hook, frame: &[u8]) -> Result<(), String> {
        let short = hook.run(&self.node, frame);
        self.node.set_node(1, 1);
        let long = hook.run(&self.node, frame);
        self.node.set_node(1, 0);
        self.node.events();
        if (short.verdict, &short.frame, short.mark) != (long.verdict, &long.frame, long.mark) {
            return Err(format!("the short way: {short:02x?}, the long way: {long:02x?}"));
        }
        Ok(())
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
    // These need faults of the node, not of the frame, or services, masquerading, authentication and the proxy.
    let others = [
        DropReason::ConnectionMapFull,
        DropReason::ConnectionQuota,
        DropReason::NotReady,
        DropReason::PolicyDeny,
        DropReason::NoIdentity,
        DropReason::NoBackend,
        DropReason::NoMapping,
        DropReason::UnsupportedMasquerade,
        DropReason::TranslationConflict,
        DropReason::TranslationMapFull,
        DropReason::AuthenticationRequired,
        DropReason::AuthenticationRefused,
        DropReason::AuthenticationEnded,
        DropReason::NoPrincipal,
        DropReason::HoldFull,
        DropReason::HoldForged,
        DropReason::PendingAddress,
        DropReason::NotProxied,
        DropReason::NoProxy,
        DropReason::ProxyForged,
        DropReason::ProxyPorts,
        DropReason::ProxyToHost,
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
