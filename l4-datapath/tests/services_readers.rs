//! Programs that look up services while thousands of plans are applied find, at every moment, a backend that the service
//! has or had, and find a service that every plan has. Needs root and BPF.
//!
//! The program does what the programs of the datapath do, and dawdles after every look-up, so that what it holds goes out
//! of use under it: without a grace before it is used again, or with two stores in the wrong order, it finds a stranger.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows only functions marked as tests to be tests"
)]

mod services;
mod support;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use aya::maps::{Array, IterableMap, MapData};
use l4_datapath::{Datapath, Options, Sizes};
use mesh::service::{Backend, Services};
use services::assembly::{Assembly, Program, condition, helper, operation, size};
use services::random::Random;
use services::{Raw, frontend, key, services};
use support::PinRoot;

/// Services; the first is in every plan, with a backend.
const SERVICES: u8 = 8;
const KEY: i16 = -24;
/// Number of the service, right behind the key.
const TAG: i16 = -4;
const SCRATCH: i16 = -32;

/// What the program counts for each service.
const STRANGER: i32 = 0;
const SERVED: i32 = 1;
const ABSENT: i32 = 2;
const REFUSED: i32 = 3;

/// `r0` = the element of the key in `r7`, or on to `refused`.
fn look_up(assembly: &mut Assembly, map: BorrowedFd<'_>) {
    assembly.store(size::WORD, 10, SCRATCH, 7);
    assembly.map(1, map);
    assembly.with(operation::MOVE, 2, 10);
    assembly.with_number(operation::ADD, 2, SCRATCH.into());
    assembly.call(helper::MAP_LOOKUP_ELEM);
    assembly.jump_if_number(condition::EQUAL, 0, 0, "refused");
}

/// Some ten microseconds.
fn dawdle(assembly: &mut Assembly, label: &'static str) {
    assembly.with_number(operation::MOVE, 9, 400);
    assembly.label(label);
    assembly.call(helper::KTIME_GET_NS);
    assembly.with_number(operation::ADD, 9, -1);
    assembly.jump_if_number(condition::NOT_EQUAL, 9, 0, label);
}

/// The element of `SERVICES` whose index is in `r7`, in `r8`, if it is of the key.
fn find(assembly: &mut Assembly, raw: &Raw) {
    look_up(assembly, fd(&raw.services));
    assembly.with(operation::MOVE, 8, 0);
    for (size, offset) in [(size::DOUBLE, 0), (size::DOUBLE, 8), (size::WORD, 16)] {
        assembly.load(size, 1, 8, 8 + offset);
        assembly.load(size, 2, 10, KEY + offset);
        assembly.jump_if(condition::NOT_EQUAL, 1, 2, "refused");
    }
}

/// The number of a slot that `r7`, [`abi::Service::slots`], has, in `r7`.
fn draw(assembly: &mut Assembly) {
    assembly.with(operation::MOVE, 9, 7);
    assembly.with_number(operation::SHIFT_LEFT, 9, 32);
    assembly.with_number(operation::SHIFT_RIGHT, 9, 32);
    assembly.jump_if_number(condition::EQUAL, 9, 0, "refused");
    assembly.call(helper::GET_PRANDOM_U32);
    assembly.with_number(operation::SHIFT_LEFT, 0, 32);
    assembly.with_number(operation::SHIFT_RIGHT, 0, 32);
    assembly.with(operation::MULTIPLY, 0, 9);
    assembly.with_number(operation::SHIFT_RIGHT, 0, 32);
    assembly.with_number(operation::SHIFT_RIGHT, 7, 32);
    assembly.with(operation::ADD, 7, 0);
}

/// Looks up the service named in the packet and counts what it finds.
fn caller(raw: &Raw, counts: &Array<MapData, u64>) -> Program {
    let mut assembly = Assembly::default();
    let it = &mut assembly;
    it.with_number(operation::MOVE, 2, 14);
    it.with(operation::MOVE, 3, 10);
    it.with_number(operation::ADD, 3, KEY.into());
    it.with_number(operation::MOVE, 4, 24);
    it.call(helper::SKB_LOAD_BYTES);
    it.jump_if_number(condition::NOT_EQUAL, 0, 0, "exit");
    it.map(1, raw.frontends.map().fd().as_fd());
    it.with(operation::MOVE, 2, 10);
    it.with_number(operation::ADD, 2, KEY.into());
    it.call(helper::MAP_LOOKUP_ELEM);
    it.jump_if_number(condition::EQUAL, 0, 0, "absent");
    it.load(size::WORD, 7, 0, 0);
    dawdle(it, "with an index");
    find(it, raw);
    it.load(size::DOUBLE, 7, 8, 0);
    dawdle(it, "with a region");
    draw(it);
    look_up(it, fd(&raw.slots));
    it.load(size::WORD, 7, 0, 0);
    dawdle(it, "with a number");
    look_up(it, fd(&raw.backends));
    it.load(size::BYTE, 7, 0, 14);
    it.load(size::BYTE, 1, 10, TAG);
    it.with_number(operation::MOVE, 9, SERVED);
    it.jump_if(condition::EQUAL, 7, 1, "count");
    it.with_number(operation::MOVE, 9, STRANGER);
    it.jump("count");
    it.label("absent");
    it.with_number(operation::MOVE, 9, ABSENT);
    it.jump("count");
    it.label("refused");
    it.with_number(operation::MOVE, 9, REFUSED);
    it.label("count");
    it.load(size::BYTE, 7, 10, TAG);
    it.with_number(operation::SHIFT_LEFT, 7, 2);
    it.with(operation::ADD, 7, 9);
    it.store(size::WORD, 10, SCRATCH, 7);
    it.map(1, fd(counts));
    it.with(operation::MOVE, 2, 10);
    it.with_number(operation::ADD, 2, SCRATCH.into());
    it.call(helper::MAP_LOOKUP_ELEM);
    it.jump_if_number(condition::EQUAL, 0, 0, "exit");
    it.with_number(operation::MOVE, 1, 1);
    it.count(0, 1);
    it.label("exit");
    it.with_number(operation::MOVE, 0, 0);
    it.exit();
    assembly.load_program()
}

fn fd<V: aya::Pod>(array: &Array<MapData, V>) -> BorrowedFd<'_> {
    IterableMap::<u32, V>::map(array).fd().as_fd()
}

fn name(service: u8) -> String {
    format!("10.96.0.{service}:80/TCP")
}

/// A packet that asks for a service.
fn packet(service: u8) -> [u8; 64] {
    let mut packet = [0; 64];
    let key = key(&frontend(&name(service)));
    packet[14..30].copy_from_slice(&key.address.0);
    packet[30..32].copy_from_slice(&key.port);
    packet[32] = key.protocol;
    packet[34] = service;
    packet
}

/// Backends of a service are told by the third number of their address.
fn plan(random: &mut Random) -> Services {
    let mut plan = services(&[]);
    for service in 0..SERVICES {
        let count = random.below(6) + u64::from(service == 0);
        if count == 0 && random.below(2) == 0 {
            continue;
        }
        let last = |_| Backend::new([10, 0, service, random.below(16) as u8].into(), 80);
        let backends: std::collections::BTreeSet<Backend> = (0..count).map(last).collect();
        let affinity = (random.below(4) == 0).then_some(60);
        let mut row = services(&[(&name(service), &[], affinity)]);
        for planned in row.frontends.values_mut() {
            planned.backends = backends.iter().copied().collect();
        }
        plan.frontends.append(&mut row.frontends);
    }
    plan
}

#[test]
fn a_program_never_finds_a_backend_that_no_version_of_the_service_had() {
    let root = PinRoot::new();
    // So few that everything is used again soon.
    let sizes = Sizes { services: 14, slots: 72, backends: 72, ..root.options().sizes };
    let (mut datapath, _) = Datapath::open(&Options { sizes, ..root.options() }).unwrap();
    let raw = Raw::of(&root);
    let counts: Array<MapData, u64> = Array::create(4 * u32::from(SERVICES), 0).unwrap();
    let program = caller(&raw, &counts);
    let mut random = Random(4);
    datapath.apply_services(&plan(&mut random)).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                (0..SERVICES).for_each(|service| program.run(&packet(service), 10));
            }
        });
        for _ in 0..1500 {
            let plan = plan(&mut random);
            let applied = datapath.apply_services(&plan);
            is_over.fetch_or(applied.is_err(), Ordering::Relaxed);
            applied.unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let count = |service: u8, what: i32| counts.get(&(u32::from(service) * 4 + what as u32), 0).unwrap();
    let total = |what| (0..SERVICES).map(|service| count(service, what)).sum::<u64>();
    assert_eq!(total(STRANGER), 0, "of {} calls", total(SERVED));
    assert_eq!((count(0, ABSENT), count(0, REFUSED)), (0, 0), "a service that every plan has is never away");
    assert!(count(0, SERVED) > 1000 && total(SERVED) > 5000, "{} {}", count(0, SERVED), total(SERVED));
    assert!(total(ABSENT) > 0 && total(REFUSED) > 0, "some plans lack a service, in some it has nobody");
}
