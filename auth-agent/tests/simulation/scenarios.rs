//! Courses of events that are told, not drawn.

use crate::world::{MS, World};

/// A world of two nodes with two endpoints each, in which everybody has to authenticate, and all is up.
fn world() -> World {
    let mut world = World::new(2);
    world.quiet = true;
    for node in 0..world.nodes.len() {
        for label in 0..2 {
            world.truth.start(world.now, node, label, label);
        }
        world.start(node);
    }
    for a in 0..2 {
        for b in 0..2 {
            let [a, b] = [a, b].map(crate::truth::identity);
            world.truth.required.insert(mesh::auth::IdentityPair::new(a, b));
        }
    }
    world.tell_plans();
    world
}

fn pass(world: &mut World, time: u64) {
    let end = world.now + time * MS;
    while world.step(end) {}
    world.check();
}

#[test]
fn pairs_of_one_node_and_of_two_are_proven_before_any_packet() {
    let mut world = world();
    pass(&mut world, 3_000);
    world.check_all_proven();
}
