//! Compiled rulesets and the oracle agree on random worlds.

use crate::flow::TrafficDirection;
use crate::policy::arbitrary::{Party, Random, World, peer_ports};
use crate::policy::explain::{End, Question, explain};
use crate::policy::oracle::{self, Packet, Reason};
use crate::policy::{Asked, Outcome, PolicyName, Ruleset, Universe};

const WORLDS: u64 = 1_500;
const PACKETS: usize = 60;

/// Calls `check` with random packets of random worlds, and the world's seed.
fn for_packets(mut check: impl FnMut(&World, &Universe, &Party, &Ruleset, &Packet<'_>, u64)) {
    for seed in 0..WORLDS {
        let world = World::new(seed);
        let universe = world.universe();
        let parties = world.parties(&universe);
        let mut random = Random::new(seed);
        for direction in [TrafficDirection::Ingress, TrafficDirection::Egress] {
            let subject = random.pick(&world.workloads);
            let ruleset = world.ruleset(&subject, direction, &universe);
            for _ in 0..PACKETS {
                let peer = random.pick(&parties);
                let ports = peer_ports(&peer.ports);
                let packet = subject.packet(&mut random, direction, &peer, &ports);
                check(&world, &universe, &subject, &ruleset, &packet, seed);
            }
        }
    }
}

fn asked(outcome: Option<&Outcome>, packet: &Packet<'_>) -> Asked {
    outcome.map_or(Asked::Nothing, |it| it.authentication.of(packet.peer, packet.direction))
}

#[test]
fn compiled_rulesets_say_what_the_oracle_says() {
    for_packets(|world, _, _, ruleset, packet, seed| {
        let expected = oracle::judge(packet, &world.policies, world.enforcement);
        let (allowed, outcome) = ruleset.judge(packet.peer, packet.protocol, packet.port);
        let asked = asked(outcome, packet);
        let same = match &expected {
            Reason::Authenticated(_) => allowed && asked == Asked::Proof,
            Reason::NoPrincipal(_) => allowed && asked == Asked::NoPrincipal,
            other => allowed == other.allowed() && asked == Asked::Nothing,
        };
        assert!(same, "{expected:?}, compiled: {outcome:?}\nseed {seed}: {packet:#?}");
        let proxied = ruleset.is_proxied(packet.peer, packet.protocol, packet.port);
        let by_oracle = oracle::is_proxied(packet, &world.policies, world.enforcement);
        assert_eq!(proxied, by_oracle, "compiled: {outcome:?}\nseed {seed}: {packet:#?}");
    });
}

#[test]
fn the_worlds_are_varied_enough_to_mean_something() {
    let mut counts = [0_u32; 9];
    for_packets(|world, _, _, _, packet, _| {
        let at = match oracle::judge(packet, &world.policies, world.enforcement) {
            Reason::DenyRule(_) => 0,
            Reason::NotEnforced => 1,
            Reason::Node => 2,
            Reason::AllowRule(_) => 3,
            Reason::Unmet(_) => 4,
            Reason::Default => 5,
            Reason::Authenticated(_) => 6,
            Reason::NoPrincipal(_) => 7,
        };
        counts[at] += 1;
        counts[8] += u32::from(oracle::is_proxied(packet, &world.policies, world.enforcement));
    });
    let packets = WORLDS as u32 * 2 * PACKETS as u32;
    assert!(counts.iter().all(|count| *count > packets / 200), "of {packets} packets: {counts:?}");
}

#[test]
fn the_entry_that_decides_names_policies_that_the_oracle_names() {
    for_packets(|world, _, _, ruleset, packet, seed| {
        let expected = oracle::judge(packet, &world.policies, world.enforcement);
        let (_, outcome) = ruleset.judge(packet.peer, packet.protocol, packet.port);
        let named: Option<&[PolicyName]> = outcome.map(|outcome| &*outcome.by);
        let among = |policies: &std::collections::BTreeSet<PolicyName>| {
            named.is_some_and(|named| !named.is_empty() && named.iter().all(|name| policies.contains(name)))
        };
        let right = match &expected {
            Reason::DenyRule(policies) => among(policies) && outcome.is_some_and(|it| it.needs.is_none()),
            // The node's own way may be the entry found first.
            Reason::AllowRule(policies) => among(policies) || named == Some(&[]),
            Reason::Authenticated(policies) | Reason::NoPrincipal(policies) => among(policies),
            Reason::Unmet(policies) => among(policies) && outcome.is_some_and(|it| it.needs.is_some()),
            Reason::NotEnforced | Reason::Node => named == Some(&[]),
            Reason::Default => outcome.is_none(),
        };
        assert!(right, "expected {expected:?}, found {outcome:?}\nseed {seed}: {packet:#?}");
    });
}

#[test]
fn explanations_tell_what_the_ruleset_does() {
    for_packets(|world, universe, subject, ruleset, packet, seed| {
        let (allowed, outcome) = ruleset.judge(packet.peer, packet.protocol, packet.port);
        let subject = End {
            name: "subject",
            identity: subject.identity,
            labels: &subject.labels,
            ports: &subject.ports,
        };
        let peer =
            End { name: "peer", identity: packet.peer, labels: packet.peer_labels, ports: subject.ports };
        let Packet { direction, protocol, port, .. } = *packet;
        let question = Question { subject, direction, peer, protocol, port };
        let answer = explain(&question, &world.policies, universe, world.enforcement);
        let by = outcome.map(|outcome| &*outcome.by).unwrap_or_default();
        let unmet = outcome.is_some_and(|outcome| outcome.needs.is_some());
        let asked = asked(outcome, packet);
        let same = answer.allowed == (allowed && asked != Asked::NoPrincipal)
            && answer.asked == asked
            && answer.proxied
                == (answer.allowed && ruleset.is_proxied(packet.peer, packet.protocol, packet.port))
            && (unmet || by.iter().all(|name| answer.by.contains(name)));
        assert!(same, "ruleset: {outcome:?}, {answer:#?}\nseed {seed}: {packet:#?}");
    });
}

#[test]
fn the_order_of_policies_changes_nothing() {
    for seed in 0..WORLDS / 10 {
        let mut world = World::new(seed);
        let universe = world.universe();
        let subject = world.workloads[0].clone();
        for direction in [TrafficDirection::Ingress, TrafficDirection::Egress] {
            let before = world.ruleset(&subject, direction, &universe);
            world.policies.reverse();
            for rule in world.policies.iter_mut().flat_map(|policy| &mut policy.rules) {
                rule.ingress.allow.reverse();
                rule.egress.allow.reverse();
            }
            assert_eq!(world.ruleset(&subject, direction, &universe), before, "seed {seed}");
        }
    }
}
