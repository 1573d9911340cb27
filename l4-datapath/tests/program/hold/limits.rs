//! Bounds before the queue: for each flow, for each endpoint, and in all.

use super::*;

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
fn an_endpoint_has_256_at_once_and_then_as_time_goes() {
    let mut node = waiting_node();
    let ends = Hook::FromPod.ends(Family::V6);
    // The rate is stopped: what is used up stays so.
    let full = |node: &mut Node| node.set(map::HOLD_RATES, A.id, u64::MAX / 4);
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
    assert!((256..2000).contains(&waited), "{waited}");
    full(&mut node);
    node.is_dropped(Hook::FromPod, RECEIVED, &udp(ends, (3000, 53), b"q"), DropReason::HoldFull);
    let inward = Hook::ToPod.ends(Family::V4);
    node.is_dropped(Hook::ToPod, RECEIVED, &udp(inward, (3000, 53), b"q"), DropReason::HoldFull);
    node.set(map::HOLD_RATES, A.id, 0_u64);
    node.waits(Hook::FromPod, &udp(ends, (3001, 53), b"q"));
}

#[test]
fn as_many_wait_in_all_as_there_are_elements() {
    let mut node = waiting_node();
    let ends = Hook::FromPod.ends(Family::V4);
    let (first, frame) = node.waits(Hook::FromPod, &udp(ends, (1, 53), b"q"));
    let held = node.held(first);
    for id in (0..HELD).filter(|id| *id != first % HELD) {
        node.set(map::HELD, id, Held { id, ..held });
    }
    node.is_dropped(Hook::FromPod, RECEIVED, &udp(ends, (2, 53), b"q"), DropReason::HoldFull);
    // Once its time is over, or it has come back, its element is another's.
    node.change_held(3, |held| held.state = 2);
    let (id, _) = node.waits(Hook::FromPod, &udp(ends, (3, 53), b"q"));
    assert_eq!(id, 3);
    node.goes_on_from_hold(&frame);
    node.set(map::HOLD, 0, Hold { key: [3, 5], last: u64::from(first + HELD - 1) });
    let (id, _) = node.waits(Hook::FromPod, &udp(ends, (4, 53), b"q"));
    assert_eq!(id, first + HELD);
    node.is_forged(&frame);
}
