//! Courses of events that are told, not drawn.

use std::collections::{BTreeMap, BTreeSet};

use auth_agent::event::Input;
use mesh::auth::{InstanceName, Refusal};

use crate::kernel::Memory;
use crate::truth::{GRACE, identity};
use crate::world::{MS, World};

/// A world of `nodes` nodes with two endpoints each, in which everybody has to authenticate, and all is up.
fn world(nodes: usize) -> World {
    let mut world =
        (0..).map(World::new).find(|world| world.nodes.len() == nodes).expect("some seed has so many");
    world.quiet = true;
    (world.delay, world.lag) = (2 * MS, MS);
    for node in 0..nodes {
        for label in 0..2 {
            world.truth.start(world.now, node, label, label).expect("an address is free");
        }
        world.start(node);
    }
    for (a, b) in [(0, 0), (0, 1), (1, 1)] {
        world.truth.required.insert(mesh::auth::IdentityPair::new(identity(a), identity(b)));
    }
    world.tell_plans();
    pass(&mut world, 3_000);
    world.check_all_proven();
    world
}

#[test]
fn a_clock_that_is_set_past_the_end_of_certificates_ends_what_rests_on_them_and_back_brings_it_back() {
    let mut world = world(2);
    let before = alive(&world, 0);
    for offset in [300_000, -300_000] {
        world.set_wall(0, offset * MS as i64);
        pass(&mut world, 2_100);
        assert!(alive(&world, 0).is_empty(), "by its clock no certificate is valid, its own or others'");
        world.set_wall(0, 0);
        pass(&mut world, 12_000);
        world.check_all_proven();
    }
    assert!(alive(&world, 0).values().all(|epoch| !before.values().any(|old| old == epoch)), "made anew");
}

#[test]
fn a_clock_that_is_set_a_little_disturbs_nobody() {
    let mut world = world(2);
    let before = [0, 1].map(|node| alive(&world, node));
    for offset in [1_000, -1_000, 0] {
        world.set_wall(0, offset * MS as i64);
        pass(&mut world, 1_500);
    }
    assert_eq!([0, 1].map(|node| alive(&world, node)), before);
}

#[test]
fn where_one_end_alone_asks_its_mark_alone_lets_pass_and_stops() {
    let mut world = world(2);
    let ends: Vec<_> = world.truth.endpoints.keys().cloned().collect();
    let across = ends.iter().flat_map(|from| ends.iter().map(move |to| (from.clone(), to.clone())));
    let one_sided = |(from, to): &(InstanceName, InstanceName)| {
        from.node != to.node && world.truth.asks(from, to) == [false, true]
    };
    let (from, to) = across.into_iter().find(one_sided).expect("the usual rule");
    let delivered = world.delivered;
    world.send(&from, &to, false);
    assert_eq!(world.delivered, delivered + 1, "by the mark of the end that asks");
    assert!(world.connections.last().is_some_and(|it| it.memory[0].is_none() && it.memory[1].is_some()));
    world.truth.stop(world.now, &from);
    world.tell_plans();
    pass(&mut world, 10);
    assert!(!ends_of(&world, &to).contains(&from));
}

/// Ends of live marks of the node of an instance.
fn ends_of(world: &World, name: &InstanceName) -> BTreeSet<InstanceName> {
    ends(world, world.truth.index(&name.node))
}

fn pass(world: &mut World, time: u64) {
    let end = world.now + time * MS;
    while world.step(end) {}
    world.check();
}

/// Live marks of a node, by number.
fn alive(world: &World, node: usize) -> BTreeMap<u32, u64> {
    let (now, kernel) = (world.clock(node, world.now), &world.nodes[node].kernel);
    let marks = kernel.marks.iter().map(|(number, mark)| (*number, mark.epoch));
    marks.filter(|(mark, epoch)| kernel.alive(now, Memory { mark: *mark, epoch: *epoch })).collect()
}

fn first(world: &World, node: usize) -> InstanceName {
    let own = &world.truth.names[node];
    world.truth.endpoints.keys().find(|name| name.node == *own).expect("it has endpoints").clone()
}

/// Ends of live marks of a node.
fn ends(world: &World, node: usize) -> BTreeSet<InstanceName> {
    let meant =
        alive(world, node).into_values().flat_map(|epoch| world.nodes[node].meant[&epoch].ends.clone());
    meant.collect()
}

#[test]
fn pairs_of_one_node_and_of_several_are_proven_before_any_packet() {
    // On each of three nodes one pair of its own, and two of its endpoints with four others.
    let world = world(3);
    assert_eq!([0, 1, 2].map(|node| alive(&world, node).len()), [9; 3]);
    assert_eq!(world.released, 0);
}

#[test]
fn what_is_stopped_has_no_mark_anywhere_when_its_message_has_come_and_its_address_is_free_at_once() {
    let mut world = world(2);
    let gone = first(&world, 0);
    world.truth.stop(world.now, &gone);
    world.tell_plan(0);
    pass(&mut world, 10);
    assert!(!ends(&world, 0).contains(&gone) && !ends(&world, 1).contains(&gone));
    assert!(world.truth.waiting.is_empty(), "the only other node has acknowledged it");
}

#[test]
fn an_address_waits_for_the_quarantine_if_a_peer_cannot_acknowledge() {
    let mut world = world(2);
    let gone = first(&world, 0);
    world.cut.insert([0, 1]);
    world.truth.stop(world.now, &gone);
    world.tell_plan(0);
    pass(&mut world, GRACE / MS);
    assert!(!world.truth.waiting.is_empty(), "a peer may still believe in it");
    pass(&mut world, GRACE / MS / 10 + 1_200);
    assert!(world.truth.waiting.is_empty());
}

#[test]
fn marks_do_not_outlive_the_grace_of_a_partition_and_come_back_after_it() {
    let mut world = world(2);
    world.cut.insert([0, 1]);
    pass(&mut world, GRACE / MS - 1_200);
    assert_eq!(alive(&world, 0).len(), 5, "a short partition disturbs nobody");
    pass(&mut world, 1_300);
    assert_eq!(alive(&world, 0).len(), 1, "only the pair of the node itself is left");
    world.cut.clear();
    pass(&mut world, 12_000);
    world.check_all_proven();
}

#[test]
fn a_restart_within_the_grace_keeps_every_mark_and_one_after_it_none() {
    let mut world = world(2);
    let before = [alive(&world, 0), alive(&world, 1)];
    world.kill(0);
    pass(&mut world, 1_000);
    world.start(0);
    pass(&mut world, 2 * GRACE / MS);
    assert_eq!([alive(&world, 0), alive(&world, 1)], before, "and they were renewed");
    world.kill(0);
    pass(&mut world, 2 * GRACE / MS);
    assert!(alive(&world, 0).is_empty());
    world.start(0);
    pass(&mut world, 5_000);
    world.check_all_proven();
    let latest = before[0].values().max();
    assert!(alive(&world, 0).values().all(|epoch| Some(epoch) > latest), "no epoch comes back");
}

#[test]
fn certificates_and_sessions_are_renewed_without_a_mark_lost() {
    let mut world = world(3);
    let before = [0, 1, 2].map(|node| alive(&world, node));
    for _ in 0..30 {
        pass(&mut world, 4_000);
        assert_eq!([0, 1, 2].map(|node| alive(&world, node)), before, "certificates live 30 s at most");
    }
}

#[test]
fn after_a_suspend_longer_than_the_grace_everything_is_proven_anew_without_a_packet_or_a_plan() {
    let mut world = world(2);
    let before = alive(&world, 1);
    world.nodes[1].asleep = world.now + 3 * GRACE;
    pass(&mut world, 3 * GRACE / MS);
    pass(&mut world, 12_000);
    world.check_all_proven();
    let after = alive(&world, 1);
    assert!(after.values().all(|epoch| !before.values().any(|old| old == epoch)));
}

#[test]
fn a_certificate_that_is_taken_away_ends_the_marks_of_both_ends() {
    let mut world = world(2);
    let ids: Vec<_> = world.nodes[0].certificates.keys().cloned().collect();
    world.no_ca = true;
    for id in ids {
        world.nodes[0].certificates.remove(&id);
        world.give(0, Input::Certificate(id, Err(Refusal::NoCertificate)));
    }
    pass(&mut world, 10);
    assert_eq!(alive(&world, 0).len() + alive(&world, 1).len(), 1, "only the other node's own pair is left");
}

#[test]
fn a_root_that_is_taken_away_ends_what_rests_on_it() {
    let mut world = world(2);
    world.no_ca = true;
    world.remove_root(0, 0);
    pass(&mut world, 10);
    assert!(alive(&world, 0).is_empty());
}

#[test]
fn another_label_ends_the_marks_of_both_ends_at_once_even_if_the_peer_has_not_heard() {
    let mut world = world(2);
    let name = first(&world, 0);
    world.truth.change(world.now, &name, |end| end.identity = identity(7));
    world.tell_plan(0);
    pass(&mut world, 10);
    assert!(!ends(&world, 0).contains(&name) && !ends(&world, 1).contains(&name));
}

#[test]
fn a_packet_that_comes_before_its_proof_waits_for_it() {
    let mut world = world(2);
    let (from, to) = (first(&world, 0), first(&world, 1));
    let started = world.truth.start(world.now, 1, 1, 1).expect("an address is free");
    world.tell_plans();
    pass(&mut world, 2);
    let delivered = world.delivered;
    world.send(&from, &started, true);
    world.send(&started, &from, false);
    world.send(&from, &to, false);
    pass(&mut world, 500);
    assert_eq!(world.delivered, delivered + 3);
    assert!(world.released >= 1, "at least one of them had to wait");
}
