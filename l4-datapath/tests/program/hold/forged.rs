//! What the reader of the device cannot do: whatever it writes that is not a packet that waits is dropped.

use super::*;
use crate::frame::ip;

/// A frame that waits, of each hook and family.
fn waiting(node: &mut Node) -> Vec<(Vec<u8>, Vec<u8>, usize)> {
    let mut all = Vec::new();
    for (family, hook) in FAMILIES.into_iter().flat_map(|family| HOOKS.map(|hook| (family, hook))) {
        let ends = hook.ends(family);
        let sent = udp(ends, (4000, 53), &[7; 70]);
        let (_, frame) = node.waits(hook, &sent);
        all.push((sent, frame, ends.transport() + 6));
    }
    all
}

#[test]
fn no_byte_may_be_another_but_the_checksum() {
    let mut node = waiting_node();
    for (sent, frame, checksum) in waiting(&mut node) {
        for at in (0..6).chain(12..frame.len()).filter(|at| !(checksum..checksum + 2).contains(at)) {
            for bit in [1, 0x80] {
                let mut changed = frame.clone();
                changed[at] ^= bit;
                node.is_forged(&changed);
            }
        }
        assert_eq!(node.goes_on_from_hold(&frame), sent, "nothing of that used it up");
    }
}

#[test]
fn no_length_may_be_another() {
    let mut node = waiting_node();
    for (sent, frame, _) in waiting(&mut node) {
        for cut in [frame.len() - 1, frame.len() - 64, 60, 54] {
            node.is_forged(&frame[..cut]);
        }
        for more in [1, 2, 64, 1000] {
            node.is_forged(&[&frame[..], &vec![0; more]].concat());
        }
        assert_eq!(node.goes_on_from_hold(&frame), sent);
    }
}

#[test]
fn a_packet_comes_back_once() {
    let mut node = waiting_node();
    for (sent, frame, _) in waiting(&mut node) {
        assert_eq!(node.goes_on_from_hold(&frame), sent);
        node.is_forged(&frame);
        node.is_forged(&frame);
    }
}

#[test]
fn a_packet_comes_back_in_time_or_not_at_all() {
    let mut node = waiting_node();
    for (_, frame, _) in waiting(&mut node) {
        let id = u32::from_be_bytes(frame[2..6].try_into().unwrap());
        let now = boot_time();
        let until = node.held(id).state;
        assert!(until > now && until <= now + abi::HOLD_TIME && until.is_multiple_of(2));
        node.change_held(id, |held| held.state = now & !1);
        node.is_forged(&frame);
        // Nor while it is being written.
        node.change_held(id, |held| held.state = until | 1);
        node.is_forged(&frame);
    }
}

/// As if the auth-agent had put together a packet of its own, under a number that waits.
#[test]
fn a_packet_of_its_own_making_does_not_pass() {
    let mut node = waiting_node();
    for (_, frame, _) in waiting(&mut node) {
        let ends = Hook::FromPod.ends(Family::V4);
        let mut own = ip(ends, UDP, 64, &vec![0; frame.len() - 34]);
        own[..6].copy_from_slice(&frame[..6]);
        assert_eq!(own.len(), frame.len());
        node.is_forged(&own);
    }
}

/// The payload of one under the number of another, all else alike.
#[test]
fn two_that_wait_cannot_be_exchanged() {
    let mut node = waiting_node();
    let ends = Hook::FromPod.ends(Family::V4);
    let sent = udp(ends, (4000, 53), b"the same");
    let (_, one) = node.waits(Hook::FromPod, &sent);
    let (_, other) = node.waits(Hook::FromPod, &sent);
    let exchanged = [&one[..6], &other[6..]].concat();
    assert_eq!(exchanged, one, "only the number tells them apart");
    let (_, different) = node.waits(Hook::FromPod, &udp(ends, (4000, 53), b"not same"));
    node.is_forged(&[&one[..6], &different[6..]].concat());
    node.is_forged(&[&different[..6], &one[6..]].concat());
}

#[test]
fn other_frames_on_the_device_go_nowhere() {
    let mut node = waiting_node();
    let _ = waiting(&mut node);
    for family in FAMILIES {
        let ends = Hook::ToPod.ends(family);
        node.is_forged(&tcp(ends, (4000, 80), SYN));
        node.is_forged(&echo(ends, true, 7));
    }
    let arp = [&[0xff; 6][..], &A.mac, &[0x08, 0x06], &[0; 46]].concat();
    node.is_forged(&arp);
    // Numbers that nobody has: not yet, and that of an element that waits under another number.
    for id in [0, 1, 2, 4096, 4099, u32::MAX] {
        let tag = HoldTag { id, kind: HoldKind::PendingEgress };
        let sent = udp(Hook::FromPod.ends(Family::V4), (4000, 53), &[7; 70]);
        node.is_forged(&[&tag.to_mac()[..], &sent[6..]].concat());
    }
}

/// Another key is another hash: without it none can be made.
#[test]
fn the_hash_depends_on_the_key() {
    let mut node = waiting_node();
    let (_, frame) = node.waits(Hook::FromPod, &udp(Hook::FromPod.ends(Family::V4), (4000, 53), b"x"));
    for key in [[3, 4], [2, 5], [0, 0]] {
        node.set(map::HOLD, 0, Hold { key, ..Hold::default() });
        node.is_forged(&frame);
    }
    node.set(map::HOLD, 0, Hold { key: [3, 5], ..Hold::default() });
    node.goes_on_from_hold(&frame);
}

fn boot_time() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    std::time::Duration::from(time).as_nanos() as u64
}
