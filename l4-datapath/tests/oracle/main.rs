//! Oracle = compiled rulesets = the real programs, on random worlds and packets, IPv4 and IPv6 alike.
//!
//! For each packet three are asked: `mesh::policy::oracle`, which reads the policies as a person would; the rulesets,
//! through the longest prefix around the peer's address; and the program that would meet the packet, run by the kernel
//! (`BPF_PROG_TEST_RUN`) on maps that `Datapath::apply` wrote. All must agree on whether it passes, at whose veth and
//! in which direction it is refused, and whether by a deny rule, for want of a proof (nobody has any here), because
//! the peer can prove nothing, or because it would go by the L7 proxy (there is none here); rulesets and program also on the identities, the ruleset and the policies that the event
//! names.
//!
//! Needs root. One datapath serves all worlds of a test, so each plan is also applied as a change of another one.
//! `ORACLE_WORLDS=5000` takes more worlds than the default; `ORACLE_SEED=17` begins with that seed.
#![allow(unsafe_code, reason = "reading kernel records as bytes")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: what fails here fails the test"
)]

mod answer;
#[path = "../program/frame.rs"]
#[allow(dead_code, reason = "the tests of single programs need more kinds of frames")]
mod frame;
mod kernel;
#[path = "../program/run.rs"]
#[allow(dead_code, reason = "the tests of single programs look at more of what comes out")]
mod run;
mod scene;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use abi::DropReason;
use answer::{Refusal, Told, by_oracle, by_rulesets, ends, expected};
use kernel::{Kernel, Which, verdict};
use l4_datapath::flow::Attribution;
use mesh::policy::arbitrary::Random;
use scene::{Call, Scene};

/// First packets in each world.
const PACKETS: u16 = 80;
/// Source ports, or identifiers: a fresh one for each call, and none that a policy names.
const OWN_PORTS: u16 = 10_000;
/// Changes of policy under load, in each world.
const CHANGES: usize = 20;

/// The seeds of a run.
fn seeds(worlds: u64) -> std::ops::Range<u64> {
    let number = |name| Some(std::env::var(name).ok()?.parse::<u64>().expect("a number"));
    let first = number("ORACLE_SEED").unwrap_or(0);
    first..first + number("ORACLE_WORLDS").unwrap_or(worlds)
}

/// Sends a packet and holds the three answers against each other. Returns whether it passed.
#[track_caller]
fn compare(kernel: &mut Kernel, scene: &Scene, call: &Call, which: Which, seed: u64) -> bool {
    let (oracle, rulesets) = (by_oracle(scene, call), by_rulesets(scene, call));
    let later = (which != Which::First).then_some(which == Which::Reply);
    let expected_events = expected(scene, call, later, |endpoint| kernel.ruleset_ids(endpoint));
    let (found_verdict, found_events) = kernel.send(scene, call, which);
    let program = found_events.iter().find_map(Told::refusal).map_or(Ok(()), Err);
    let agree = oracle == rulesets
        && oracle == program
        && found_events == expected_events
        && found_verdict == verdict(scene, call, oracle);
    assert!(
        agree,
        "\nthe oracle:   {oracle:?}\nthe rulesets: {rulesets:?}\nthe program:  {program:?}, verdict {found_verdict}\n\
         told:     {found_events:?}\nexpected: {expected_events:?}\n{}\nagain: ORACLE_SEED={seed} ORACLE_WORLDS=1",
        describe(scene, call, which)
    );
    oracle.is_ok()
}

fn is_for_want_of_more(refusal: &Refusal) -> bool {
    use DropReason::{AuthenticationRequired, NoPrincipal, NoProxy, ProxyToHost};
    matches!(refusal.reason, AuthenticationRequired | NoPrincipal | NoProxy | ProxyToHost)
}

/// The packet, both ends, and what the oracle thinks of it.
fn describe(scene: &Scene, call: &Call, which: Which) -> String {
    let end = |actor, address, port| {
        let party = scene.party(actor);
        let place =
            scene.endpoint(actor).map_or_else(|| "beyond".to_owned(), |it| format!("endpoint {}", it.id));
        let known = scene.identity(actor, address);
        format!(
            "{address} port {port}, {place}, identity {known} [{}], ports {:?}",
            party.labels, party.ports
        )
    };
    let reasons: Vec<_> = ends(scene, call).into_iter().map(|end| end.oracle(scene, call)).collect();
    let policies: Vec<_> = scene.world.policies.iter().map(|policy| format!("  {policy:?}\n")).collect();
    format!(
        "{which:?} packet, protocol {}\n  of {}\n  to {}\nthe oracle's reasons: {reasons:?}\n{:?}, policies:\n{}",
        call.protocol,
        end(call.from, call.addresses.0, call.own_port),
        end(call.to, call.addresses.1, call.port),
        scene.world.enforcement,
        policies.concat()
    )
}

#[test]
fn oracle_rulesets_and_programs_agree_on_every_first_packet() {
    let mut kernel = Kernel::new();
    let mut seen = BTreeMap::new();
    let mut unproven = BTreeSet::new();
    for seed in seeds(100) {
        let scene = Scene::new(seed);
        kernel.forget_connections();
        kernel.apply(&scene);
        let mut random = Random::new(seed);
        for number in 0..PACKETS {
            let call = scene.call(&mut random, OWN_PORTS + number);
            let passed = compare(&mut kernel, &scene, &call, Which::First, seed);
            let local = [call.from, call.to].map(|actor| scene.endpoint(actor).is_some());
            unproven
                .extend(by_oracle(&scene, &call).err().filter(is_for_want_of_more).map(|it| it.reason as u8));
            *seen.entry((local, call.protocol, call.addresses.0.is_ipv4(), passed)).or_insert(0) += 1;
        }
    }
    // Out, in and between; TCP, UDP, SCTP and echo; both families; passed and refused.
    let all = seen.len() == 3 * 4 * 2 * 2 && unproven.len() == 3;
    assert!(all || seeds(100).count() < 100, "not everything was tried: {seen:#?} {unproven:?}");
}

#[test]
fn an_established_connection_follows_the_policies_in_force_in_both_directions() {
    let mut kernel = Kernel::new();
    let mut seen = BTreeSet::new();
    for seed in seeds(40) {
        let first = Scene::new(seed).with_plain_rules();
        kernel.forget_connections();
        kernel.apply(&first);
        let mut random = Random::new(seed);
        let mut calls: Vec<_> =
            (0..PACKETS).map(|number| first.call(&mut random, OWN_PORTS + number)).collect();
        calls.retain(|call| compare(&mut kernel, &first, call, Which::First, seed));
        let others = [1, 2, 3].map(|edit| first.amended(seed + edit * 1_000_003).with_plain_rules());
        // The last edit takes all others back: what was cut off meanwhile goes on.
        for scene in others.iter().chain([&first]) {
            // Sometimes the old rulesets and prefixes are gone, mostly they still stand in the maps.
            if random.chance(30) {
                kernel.datapath.settle().unwrap();
            }
            kernel.apply(scene);
            for call in &calls {
                // Whoever comes first finds a verdict of the old policies, the others one that was just made.
                let ways = random.pick(&[[Which::Later, Which::Reply], [Which::Reply, Which::Later]]);
                for which in ways.into_iter().chain(ways) {
                    let passed = compare(&mut kernel, scene, call, which, seed);
                    seen.insert((which, call.protocol, call.addresses.0.is_ipv4(), passed));
                }
            }
        }
    }
    // Both directions; TCP, UDP, SCTP and echo; both families; passed and cut off.
    assert!(seen.len() == 2 * 4 * 2 * 2 || seeds(40).count() < 40, "not everything was tried: {seen:#?}");
}

/// Whether the call reaches a pod from another pod.
fn delivers(scene: &Scene, call: &Call) -> bool {
    by_oracle(scene, call).is_ok() && verdict(scene, call, Ok(())) == run::REDIRECT
}

/// Another thread changes the policies to and fro while programs run nearly all of the time: whatever they report must
/// be what one of the two says *as a whole*: its identities with its verdict.
#[test]
fn a_packet_that_meets_a_change_is_judged_by_the_old_or_by_the_new() {
    let mut kernel = Kernel::new();
    for seed in seeds(12) {
        let scenes = {
            let old = Scene::new(seed).with_plain_rules();
            [old.amended(seed + 1_000_003).with_plain_rules(), old]
        };
        kernel.forget_connections();
        kernel.apply(&scenes[1]);
        let mut random = Random::new(seed);
        let mut calls: Vec<_> =
            (0..PACKETS).map(|number| scenes[0].call(&mut random, OWN_PORTS + number)).collect();
        // What is delivered to a pod has got other MACs, and cannot be sent once more.
        calls.retain(|call| !scenes.iter().any(|scene| delivers(scene, call)));
        let Kernel { datapath, programs, .. } = &mut kernel;
        let running = AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for scene in scenes.iter().cycle().take(CHANGES) {
                    datapath.apply(&scene.plan).unwrap();
                }
                running.store(false, Ordering::Relaxed);
            });
            for call in calls.iter().cycle().take_while(|_| running.load(Ordering::Relaxed)) {
                let known: Vec<_> =
                    scenes.iter().flat_map(|scene| expected(scene, call, None, |_| (0, 0))).collect();
                let known: Vec<_> = known.into_iter().map(Told::timeless).collect();
                for event in programs.send_often(&scenes[0], call) {
                    let told = Told::by(&event, &Attribution::default()).timeless();
                    assert!(
                        known.contains(&told),
                        "\n{told:?}\nis none of {known:#?}\nnew: {}\nold: {}\nagain: ORACLE_SEED={seed}",
                        describe(&scenes[0], call, Which::First),
                        describe(&scenes[1], call, Which::First)
                    );
                }
            }
        });
    }
}
