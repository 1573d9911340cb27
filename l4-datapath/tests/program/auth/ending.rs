//! Connections that depend on a mark: as long as it holds, and no longer.

use abi::{DropReason, map};

use super::{super::frame::unreachable, *};
use crate::{
    frame::{FIN, PSH, RST, piece, tcp_with},
    node::{REDIRECT, SHOT},
    service::{node_with_backend, vip},
};

/// What ends a mark.
const ENDS: [fn(&mut Node); 6] = [
    |node| node.withdraw(MARK),
    // The slot is another pair's by now.
    |node| {
        let other = Mark { epoch: EPOCH + 1, expiry: FAR, instances: [77, 78], ..Mark::default() };
        node.set(map::MARKS, MARK, other);
    },
    // Proven again: another mark, if only by its epoch.
    |node| node.change_mark(MARK, |mark| mark.epoch = EPOCH + 1),
    |node| node.change_mark(MARK, |mark| mark.expiry = now()),
    |node| {
        node.set(map::LEASES, 0, now());
        node.set(map::LEASES, BEYOND, now());
    },
    |node| {
        node.set(map::LEASES, 0, 0_u64);
        node.set(map::LEASES, BEYOND, 0_u64);
    },
];

/// T42, and what else ends a mark: the next packet of either direction is the last.
#[test]
fn packets_of_both_directions_find_a_dead_mark_dead() {
    each(Way::proven, |node, way, talk, family| {
        for end in ENDS {
            for reply in [false, true] {
                way.prove(node, MARK, EPOCH);
                talk.open(node, way, family);
                for reply in [false, true] {
                    way.passes(node, reply, &talk.next(way, family, reply));
                }
                end(node);
                way.ends_with(node, reply, &talk.next(way, family, reply));
                node.forget_connections(family);
            }
        }
    });
}

/// The short way is not taken where every packet is to be reported: what it does must be the same.
#[test]
fn both_ways_through_the_programs_do_the_same() {
    for way in WAYS {
        let [short, long] = [0, 1].map(|trace| {
            let mut node = way.proven();
            let mut seen = Vec::new();
            for (family, end) in FAMILIES.into_iter().flat_map(|family| ENDS.map(|end| (family, end))) {
                way.prove(&mut node, MARK, EPOCH);
                for talk in [Talk::Tcp, Talk::Udp] {
                    talk.open(&mut node, way, family);
                }
                node.set_node(1, trace);
                for dead in [false, true] {
                    if dead {
                        end(&mut node);
                    }
                    for (talk, reply) in [Talk::Tcp, Talk::Udp]
                        .into_iter()
                        .flat_map(|talk| [false, true].map(|reply| (talk, reply)))
                    {
                        let ran = way.run(&node, reply, &talk.next(way, family, reply));
                        let mut entries = node.connections(family);
                        entries.iter_mut().for_each(|entry| entry.seen = 0);
                        entries.sort_by_key(|entry| (entry.memo, entry.ended));
                        seen.push((ran.verdict, ran.frame, ran.mark, entries, node.drops()));
                    }
                }
                node.set_node(1, 0);
                node.forget_connections(family);
                node.events();
            }
            seen
        });
        assert_eq!(short.len(), 2 * ENDS.len() * 8);
        for (short, long) in short.iter().zip(&long) {
            assert_eq!(short, long);
        }
    }
}

/// The names that only the long way looks for are taken away: who passes all the same has taken the short one.
#[test]
fn connections_with_a_mark_take_the_short_way() {
    for way in WAYS {
        let mut node = way.proven();
        for family in FAMILIES {
            for talk in [Talk::Tcp, Talk::Udp] {
                talk.open(&mut node, way, family);
            }
            for pod in [A, B] {
                node.take::<Address, abi::Endpoint>(map::ENDPOINTS, address(family.pool(pod.host)));
            }
            for talk in [Talk::Tcp, Talk::Udp] {
                for reply in [false, true] {
                    way.passes(&mut node, reply, &talk.next(way, family, reply));
                }
            }
        }
    }
}

/// Renewal is one store, and costs no packet.
#[test]
fn a_renewed_mark_goes_on() {
    for way in WAYS {
        let mut node = way.proven();
        for family in FAMILIES {
            Talk::Tcp.open(&mut node, way, family);
            node.change_mark(MARK, |mark| mark.expiry = FAR - 1);
            node.set(map::LEASES, BEYOND, FAR - 1);
            way.passes(&mut node, false, &Talk::Tcp.next(way, family, false));
        }
    }
}

/// What a packet has found dead stays dead, even where the mark comes back: a node is heard of again, a mark renewed.
#[test]
fn what_was_found_dead_is_never_revived() {
    for way in WAYS {
        let mut node = way.proven();
        for family in FAMILIES {
            for revived_by_policy in [false, true] {
                way.prove(&mut node, MARK, EPOCH);
                Talk::Tcp.open(&mut node, way, family);
                node.change_mark(MARK, |mark| mark.expiry = now());
                way.ends_with(&mut node, true, &Talk::Tcp.next(way, family, true));
                node.change_mark(MARK, |mark| mark.expiry = FAR);
                if revived_by_policy {
                    node.set_generation(2);
                }
                for reply in [false, true, false] {
                    for flags in [ACK, ACK | PSH, ACK | FIN] {
                        let ports = if reply { (PORTS.1, PORTS.0) } else { PORTS };
                        let frame = tcp(way.ends(family, reply).1, ports, flags);
                        way.ends_with(&mut node, reply, &frame);
                    }
                }
                node.set_generation(1);
                node.forget_connections(family);
            }
        }
    }
}

#[test]
fn a_syn_opens_anew_where_the_proof_has_ended_if_there_is_another() {
    for way in WAYS {
        let mut node = way.proven();
        let mut opened = 0;
        for noticed in [false, true] {
            for family in FAMILIES {
                way.prove(&mut node, MARK, EPOCH);
                Talk::Tcp.open(&mut node, way, family);
                node.withdraw(MARK);
                if noticed {
                    way.ends_with(&mut node, false, &Talk::Tcp.next(way, family, false));
                }
                let first = Talk::Tcp.first(way, family);
                let (pod, direction) = way.asks[0];
                way.drops(&mut node, false, &first, (DropReason::AuthenticationRequired, pod, direction));
                way.prove(&mut node, MARK, EPOCH + 1);
                way.passes(&mut node, false, &first);
                way.passes(&mut node, true, &Talk::Tcp.answer(way, family));
                way.passes(&mut node, false, &Talk::Tcp.next(way, family, false));
                assert_eq!(node.proofs(family), [(MARK, EPOCH + 1)]);
                // Charged once.
                opened += 1;
                assert_eq!(node.usage(A) + node.usage(B), opened);
                node.forget_connections(family);
            }
        }
    }
}

/// UDP and its like have no handshake to begin again with.
#[test]
fn without_a_handshake_the_openers_packets_go_on_with_another_proof_and_the_others_do_not_begin() {
    for way in WAYS {
        let mut node = way.proven();
        for talk in [Talk::Udp, Talk::Sctp, Talk::Echo] {
            for family in FAMILIES {
                way.prove(&mut node, MARK, EPOCH);
                talk.open(&mut node, way, family);
                node.withdraw(MARK);
                let (there, back) = (talk.next(way, family, false), talk.next(way, family, true));
                way.ends_with(&mut node, false, &there);
                let (pod, direction) = way.asks[0];
                way.drops(&mut node, false, &there, (DropReason::AuthenticationRequired, pod, direction));
                way.prove(&mut node, MARK, EPOCH + 1);
                way.ends_with(&mut node, true, &back);
                way.passes(&mut node, false, &there);
                way.passes(&mut node, true, &back);
                assert_eq!(node.proofs(family), [(MARK, EPOCH + 1)]);
                node.forget_connections(family);
            }
        }
    }
}

/// Policy begins to ask: who has been proven meanwhile goes on, all others end.
#[test]
fn switching_on_keeps_those_that_are_proven_and_ends_the_others() {
    for way in WAYS {
        let mut node = Node::new();
        node.allow_all();
        let mut generation = 1;
        for (talk, reply) in TALKS.into_iter().flat_map(|talk| [false, true].map(|reply| (talk, reply))) {
            for (pod, direction) in way.asks {
                node.demand(*pod, *direction, way.peer_of(*pod).identity(), Ports::All, 0);
            }
            for family in FAMILIES {
                talk.open(&mut node, way, family);
            }
            way.prove(&mut node, MARK, EPOCH);
            for (pod, direction) in way.asks {
                node.require(*pod, *direction, way.peer_of(*pod).identity(), Ports::All);
            }
            generation += 1;
            node.set_generation(generation);
            let [kept, lost] = FAMILIES;
            way.passes(&mut node, reply, &talk.next(way, kept, reply));
            assert_eq!(node.proofs(kept), [(MARK, EPOCH)]);
            node.withdraw(MARK);
            node.events();
            way.run(&node, reply, &talk.next(way, lost, reply));
            let [event] = node.events()[..] else { panic!("one event") };
            assert_eq!(event.reason, DropReason::AuthenticationEnded as u8);
            way.ends_with(&mut node, reply, &talk.next(way, kept, reply));
            for family in FAMILIES {
                node.forget_connections(family);
            }
        }
    }
}

#[test]
fn switching_on_ends_what_was_refused_or_can_prove_nothing() {
    for way in [WAYS[3], WAYS[4]] {
        for refused in [false, true] {
            let mut node = Node::new();
            node.allow_all();
            for family in FAMILIES {
                if !refused {
                    node.identify(family.peer(), 128, 2);
                }
                Talk::Tcp.open(&mut node, way, family);
            }
            let (pod, direction) = way.asks[0];
            node.refuse(pod, Peer::Beyond, 3, FAR);
            node.require(pod, direction, 0, Ports::All);
            node.require(pod, direction, PEER, Ports::All);
            node.set_generation(2);
            for family in FAMILIES {
                way.run(&node, false, &Talk::Tcp.next(way, family, false));
                let [event] = node.events()[..] else { panic!("one event") };
                assert_eq!(event.reason, DropReason::AuthenticationEnded as u8);
            }
        }
    }
}

/// No connection comes back to life, or goes on, with a later mark.
#[test]
fn a_generation_later_the_proof_must_be_the_same() {
    for way in WAYS {
        let mut node = way.proven();
        let mut generation = 1;
        for family in FAMILIES {
            for (number, epoch, same) in [(MARK, EPOCH, true), (MARK, EPOCH + 1, false), (8, EPOCH, false)] {
                way.prove(&mut node, MARK, EPOCH);
                Talk::Tcp.open(&mut node, way, family);
                generation += 1;
                node.set_generation(generation);
                way.prove(&mut node, number, epoch);
                let data = Talk::Tcp.next(way, family, false);
                if same {
                    way.passes(&mut node, false, &data);
                    assert_eq!(node.proofs(family), [(number, epoch)]);
                } else {
                    way.ends_with(&mut node, false, &data);
                }
                node.forget_connections(family);
            }
        }
    }
}

#[test]
fn what_policy_asks_no_more_a_connection_depends_on_no_more() {
    for way in WAYS {
        let mut node = way.proven();
        for family in FAMILIES {
            Talk::Tcp.open(&mut node, way, family);
        }
        for (pod, direction) in way.asks {
            node.demand(*pod, *direction, way.peer_of(*pod).identity(), Ports::All, 0);
        }
        node.set_generation(2);
        for family in FAMILIES {
            way.passes(&mut node, false, &Talk::Tcp.next(way, family, false));
            assert!(node.proofs(family).iter().all(|(mark, _)| *mark == 0), "of no mark");
        }
        node.withdraw(MARK);
        for family in FAMILIES {
            for reply in [false, true] {
                way.passes(&mut node, reply, &Talk::Tcp.next(way, family, reply));
            }
        }
    }
}

/// A quoted packet's connection may be over.
#[test]
fn an_icmp_error_about_what_has_ended_passes_no_more() {
    for way in WAYS {
        for noticed in [false, true] {
            let mut node = way.proven();
            for family in FAMILIES {
                Talk::Udp.open(&mut node, way, family);
                let about = Talk::Udp.next(way, family, false);
                let error = unreachable(way.ends(family, true).1, &about);
                way.passes(&mut node, true, &error);
                node.withdraw(MARK);
                if noticed {
                    way.ends_with(&mut node, false, &about);
                }
                let (program, pod) = way.hook(true);
                let direction = if program == "from_pod" { EGRESS } else { INGRESS };
                way.drops(&mut node, true, &error, (DropReason::UnrelatedIcmp, pod, direction));
                way.prove(&mut node, MARK, EPOCH);
            }
        }
    }
}

/// A later piece has no ports; its connection counts, and whoever sent it is not answered.
#[test]
fn pieces_of_a_datagram_depend_on_the_mark_too() {
    let way = WAYS[3];
    let mut node = way.proven();
    for family in FAMILIES {
        let ends = way.ends(family, false).1;
        let whole = udp(ends, PORTS, &[7; 64]);
        let payload = &whole[ends.transport()..];
        let first = piece(ends, 17, 5, (0, true), &payload[..32]);
        let later = piece(ends, 17, 5, (32, false), &payload[32..]);
        way.passes(&mut node, false, &first);
        way.passes(&mut node, false, &later);
        node.withdraw(MARK);
        assert_eq!(way.ends_with(&mut node, false, &later).verdict, SHOT);
        way.prove(&mut node, MARK, EPOCH);
    }
}

/// What is left of a connection is no longer than that of one that was reset.
#[test]
fn what_has_ended_is_collected_as_what_was_reset() {
    let way = WAYS[3];
    let mut node = way.proven();
    for family in FAMILIES {
        Talk::Tcp.open(&mut node, way, family);
    }
    node.withdraw(MARK);
    for family in FAMILIES {
        way.ends_with(&mut node, false, &Talk::Tcp.next(way, family, false));
        node.change_connections(family, |entry| entry.seen -= abi::timeout::CLOSING);
        node.drops_from(A, &Talk::Tcp.next(way, family, false), DropReason::NoConnection);
    }
}

/// A connection by a service depends on the mark of its backend; a call after its end chooses anew.
#[test]
fn a_call_to_a_service_depends_on_its_backends_mark() {
    let mut node = node_with_backend(|family| family.pool(B.host));
    node.allow_all();
    node.require(A, EGRESS, B.identity, Ports::All);
    for family in FAMILIES {
        let (call, back) = (family.from(A, vip(family)), family.between(B, A));
        node.withdraw(MARK);
        node.drops_from(A, &tcp(call, (4000, 80), SYN), DropReason::AuthenticationRequired);
        node.prove(A, Peer::Pod(B), MARK, EPOCH);
        node.passes("from_pod", A, &tcp(call, (4000, 80), SYN));
        node.passes("from_pod", B, &tcp(back, (8080, 4000), SYN | ACK));
        node.passes("from_pod", A, &tcp(call, (4000, 80), ACK));
        assert_eq!(node.proofs(family), [(MARK, EPOCH)]);
        node.withdraw(MARK);
        node.drops_from(A, &tcp(call, (4000, 80), ACK), DropReason::AuthenticationEnded);
        node.drops_from(B, &tcp(back, (8080, 4000), ACK), DropReason::AuthenticationEnded);
        node.prove(A, Peer::Pod(B), MARK, EPOCH + 1);
        node.passes("from_pod", A, &tcp(call, (4000, 80), SYN));
        node.passes("from_pod", B, &tcp(back, (8080, 4000), SYN | ACK));
        assert_eq!(node.proofs(family), [(MARK, EPOCH + 1)]);
    }
}

/// What the other end hears of it: [`super::live`].
#[test]
fn the_sender_of_a_reset_is_not_answered() {
    for way in WAYS {
        let mut node = way.proven();
        for family in FAMILIES {
            for (reply, flags) in
                [false, true].into_iter().flat_map(|reply| [(reply, RST), (reply, RST | ACK)])
            {
                way.prove(&mut node, MARK, EPOCH);
                Talk::Tcp.open(&mut node, way, family);
                node.withdraw(MARK);
                let ports = if reply { (PORTS.1, PORTS.0) } else { PORTS };
                let frame = tcp_with(way.ends(family, reply).1, ports, flags, 64, b"");
                // The one that finds the mark dead, and the next.
                for _ in 0..2 {
                    assert_eq!(way.ends_with(&mut node, reply, &frame).verdict, SHOT);
                }
                node.forget_connections(family);
            }
        }
    }
}

/// Policy takes the right to call away, and with it what called for the proof: which of the two a packet hears first is
/// chance, and only the end of the proof tells both ends.
#[test]
fn where_policy_denies_as_well_the_end_of_the_proof_is_what_counts() {
    const DENIES: [(Denial, DropReason); 2] =
        [(Node::forget_rules, DropReason::PolicyDenied), (Node::deny_all, DropReason::PolicyDeny)];
    for (way, reply) in WAYS.into_iter().flat_map(|way| [false, true].map(|reply| (way, reply))) {
        for (deny, reason) in DENIES {
            let mut node = way.proven();
            for talk in TALKS {
                for family in FAMILIES {
                    talk.open(&mut node, way, family);
                }
            }
            deny(&mut node);
            node.set_generation(2);
            let (asked, direction) = match (way.opener, way.other) {
                (Peer::Pod(pod), _) => (pod, EGRESS),
                (_, Peer::Pod(pod)) => (pod, INGRESS),
                _ => unreachable!("one end is here"),
            };
            for (talk, family) in TALKS.into_iter().flat_map(|talk| FAMILIES.map(|family| (talk, family))) {
                let next = talk.next(way, family, reply);
                let blamed = (reason, asked, direction);
                assert_eq!(way.drops(&mut node, reply, &next, blamed).verdict, SHOT);
            }
            node.withdraw(MARK);
            for (talk, family) in TALKS.into_iter().flat_map(|talk| FAMILIES.map(|family| (talk, family))) {
                let next = talk.next(way, family, reply);
                let blamed = (DropReason::AuthenticationEnded, asked, direction);
                assert_eq!(way.drops(&mut node, reply, &next, blamed).verdict, REDIRECT, "{talk:?}: told");
                // From now on without asking, even where the mark is another's by then.
                way.prove(&mut node, MARK, EPOCH + 1);
                way.ends_with(&mut node, true, &talk.next(way, family, true));
                if talk == Talk::Tcp {
                    way.ends_with(&mut node, false, &talk.next(way, family, false));
                }
                node.withdraw(MARK);
            }
        }
    }
}

type Denial = fn(&mut Node);

impl Node {
    fn forget_rules(&mut self) {
        let mut map: LpmTrie<_, RuleKey, RuleValue> =
            LpmTrie::try_from(self.bpf().map_mut(map::RULES).unwrap()).unwrap();
        let keys: Vec<_> = map.keys().map(Result::unwrap).collect();
        for key in keys {
            map.remove(&key).unwrap();
        }
    }

    fn deny_all(&mut self) {
        for ruleset in [A.ingress, A.egress, B.ingress, B.egress] {
            self.rule(ruleset, 0, Ports::All, RuleVerdict::Deny);
        }
    }
}

/// No epoch is none, not even that of a mark that is none.
#[test]
fn without_an_epoch_a_connection_depends_on_nothing_that_holds() {
    let way = WAYS[3];
    let mut node = way.proven();
    for family in FAMILIES {
        way.prove(&mut node, MARK, EPOCH);
        Talk::Tcp.open(&mut node, way, family);
        node.change_connections(family, |entry| entry.epoch = 0);
        node.withdraw(MARK);
        way.ends_with(&mut node, false, &Talk::Tcp.next(way, family, false));
    }
}
