//! The state machines of several nodes against each other, with a clock, a network, kernels and a CA of their own, and
//! with everything that can go wrong. One seed is one course of events, always the same.
//!
//! `SEEDS=N` runs so many, from `FIRST_SEED` on; those of `failed-seeds` are always run first. `SIMULATION_LOG=1`
//! prints what happened in a run that fails.
#![allow(clippy::expect_used, clippy::panic, reason = "what must not be is found by a panic, with its seed")]

mod chaos;
mod checks;
mod course;
mod driver;
mod kernel;
mod random;
mod scenarios;
mod tls;
mod truth;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::{Event, MS, World};

/// One run: a minute of trouble, then peace.
fn run(world: &mut World, seed: u64) {
    let nodes = world.nodes.len();
    for node in 0..nodes {
        world.start_endpoint(node);
        world.start_endpoint(node);
        world.start(node);
    }
    for _ in 0..3 {
        world.toggle_policy();
    }
    world.traitor = (seed % 4 == 3).then_some(0);
    world.later(2_000 * MS, Event::Chaos);
    world.later(10 * MS, Event::Traffic);
    let end = world.now + 40_000 * MS;
    while world.step(end) {}
    world.heal();
    let end = world.now + 40_000 * MS;
    while world.step(end) {}
    world.check();
    world.check_all_proven();
}

/// Runs one seed; what went wrong, if something did.
fn fails(seed: u64) -> Option<String> {
    let mut world = World::new(seed);
    let result = catch_unwind(AssertUnwindSafe(|| run(&mut world, seed)));
    let problem = result.err()?;
    let text = problem.downcast_ref::<String>().cloned();
    let text = text.or_else(|| problem.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    for line in &world.log {
        eprintln!("{line}");
    }
    Some(format!("seed {seed} at {} ms: {}", world.now / MS, text.unwrap_or_default()))
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn every_promise_holds_whatever_happens() {
    let kept = include_str!("failed-seeds").lines().filter(|line| !line.starts_with('#'));
    let kept = kept.filter_map(|line| line.split_whitespace().next()?.parse().ok());
    let first = number("FIRST_SEED", 0);
    let seeds: Vec<u64> = kept.chain(first..first + number("SEEDS", 24)).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let problems: Vec<String> = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|part| {
                let mine = seeds.iter().skip(part).step_by(threads);
                scope.spawn(move || mine.filter_map(|seed| fails(*seed)).collect::<Vec<_>>())
            })
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("a part ends")).collect()
    });
    assert!(problems.is_empty(), "{} of {} seeds:\n{}", problems.len(), seeds.len(), problems.join("\n"));
}
