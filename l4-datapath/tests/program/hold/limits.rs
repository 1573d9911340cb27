//! Bounds before the queue: for each flow, for each endpoint, and in all.

use abi::HoldRate;

use super::*;
use crate::world::Ports;

#[test]
fn eight_packets_of_a_flow_wait_at_a_time() {
    let mut node = waiting_node();
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        let ends = hook.ends(family);
        for sent in [tcp(ends, (4000, 80), SYN), udp(ends, (4000, 53), b"q"), echo(ends, true, 7)] {
            for _ in 0..8 {
                node.waits(hook, &sent);
            }
            node.is_dropped(hook, RECEIVED, &sent, DropReason::HoldFull);
        }
        node.waits(hook, &udp(ends, (4001, 53), b"another flow"));
    }
    // Until the time of the first is over.
    let flows = node.all::<abi::PacketTuple, u64>(map::HOLD_FLOWS);
    assert_eq!(flows.len(), 16);
    for (tuple, count) in flows {
        node.put(map::HOLD_FLOWS, tuple, (count & 0xff) | 0x100);
    }
    node.waits(Hook::FromPod, &udp(Hook::FromPod.ends(Family::V4), (4000, 53), b"q"));
}

#[test]
fn an_endpoint_has_128_at_once_in_each_direction_and_then_as_time_goes() {
    let mut node = waiting_node();
    let ends = Hook::FromPod.ends(Family::V6);
    let mut waited = 0;
    for port in 1..=2000 {
        let sent = udp(ends, (port, 53), b"q");
        if node.run("from_pod", A, RECEIVED, &sent).verdict == REDIRECT {
            waited += 1;
        } else {
            break;
        }
    }
    // How many come meanwhile depends on how fast this machine is.
    assert!((128..2000).contains(&waited), "{waited}");
    for (hook, other, used) in
        [(Hook::FromPod, Hook::ToPod, [0, u64::MAX / 4]), (Hook::ToPod, Hook::FromPod, [u64::MAX / 4, 0])]
    {
        // The rate is stopped: what is used up stays so.
        node.set(map::HOLD_RATES, A.id, HoldRate { used, ..HoldRate::default() });
        let (sent, against) =
            (udp(hook.ends(Family::V4), (3000, 53), b"q"), udp(other.ends(Family::V4), (3000, 53), b"q"));
        node.is_dropped(hook, RECEIVED, &sent, DropReason::HoldFull);
        let rate: HoldRate = node.element(map::HOLD_RATES, A.id);
        assert!(rate.used == used && rate.overflowed > 0, "{rate:?}");
        node.waits(other, &against);
    }
}

/// Marks every element of one kind as one that somebody waits in.
fn fill(node: &mut Node, like: Held, which: u32) {
    for id in (0..HELD).filter(|id| id % 2 == which) {
        node.set(map::HELD, id, Held { id, ..like });
    }
}

/// Packets for who is not known take half of what there is, and never what a proof may need.
#[test]
fn pending_addresses_leave_room_for_who_is_known() {
    let mut node = waiting_node();
    let ends = Hook::FromPod.ends(Family::V4);
    let (first, _) = node.waits(Hook::FromPod, &udp(ends, (1, 53), b"q"));
    assert_eq!(first % 2, 1);
    let like = node.held(first);
    fill(&mut node, like, 1);
    node.is_dropped(Hook::FromPod, RECEIVED, &udp(ends, (2, 53), b"q"), DropReason::HoldFull);
    let hold: Hold = node.element(map::HOLD, 0);
    assert_eq!(hold.overflowed, 0, "what waits for a proof has found room");
    node.pend(false);
    node.require(A, Direction::Egress, PEER, Ports::All);
    let (id, _) = node.waits_as(Hook::FromPod, HoldKind::Egress, &udp(ends, (3, 53), b"q"));
    assert_eq!(id % 2, 0);
}

#[test]
fn as_many_wait_in_all_as_there_are_elements() {
    let mut node = waiting_node();
    let ends = Hook::FromPod.ends(Family::V4);
    let (first, frame) = node.waits(Hook::FromPod, &udp(ends, (1, 53), b"q"));
    let like = node.held(first);
    (0..2).for_each(|which| fill(&mut node, like, which));
    node.pend(false);
    node.require(A, Direction::Egress, PEER, Ports::All);
    let blamed = (DropReason::HoldFull, A, Direction::Egress);
    node.expect_drop("from_pod", A, RECEIVED, &udp(ends, (2, 53), b"q"), blamed);
    let hold: Hold = node.element(map::HOLD, 0);
    assert_ne!(hold.overflowed, 0);
    // Once its time is over, or it has come back, its element is another's; one of either kind does.
    for (which, number) in [(0, 2 * (hold.last[0] + 1)), (1, 2 * (hold.last[1] + 1) + 1)] {
        node.change_held(number as u32, |held| held.state = 2);
        let sent = udp(ends, (10 + which, 53), b"q");
        let (id, _) = node.waits_as(Hook::FromPod, HoldKind::Egress, &sent);
        assert_eq!(u64::from(id), number);
    }
    node.pend(true);
    node.change_held(first, |held| *held = like);
    node.goes_on_from_hold(&frame);
    let last = [0, u64::from(first / 2 + HELD / 2 - 1)];
    node.set(map::HOLD, 0, Hold { key: [3, 5], last, overflowed: 0 });
    let (id, _) = node.waits(Hook::FromPod, &udp(ends, (4, 53), b"q"));
    assert_eq!(id, first + HELD);
    node.is_forged(&frame);
}
