//! Translations live and die with their connections.

use abi::{Collected, Connection, ConnectionKey4, ConnectionKey6, PacketTuple, Translation, map};
use aya::{TestRun as _, TestRunOptions};

use super::{
    super::{
        frame::{RST, tcp},
        node::Node,
        world::{A, B, FAMILIES, Family},
    },
    Talk, gate, inward,
};

impl Node {
    /// What `conntrack_gc` says of translations: left and deleted.
    fn collects(&self) -> (u64, u64) {
        let (packet, mut answer) = ([0u8; 64], [0u8; 64]);
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut answer),
            ..TestRunOptions::default()
        };
        self.program("conntrack_gc").test_run(options).unwrap();
        // SAFETY: longer than the record, of which any bytes are one.
        let said: Collected = unsafe { std::ptr::read_unaligned(answer.as_ptr().cast()) };
        (said.translations, said.expired_translations)
    }

    fn remove_half(&mut self, is_forward: u8) {
        for (key, _) in self.halves().into_iter().filter(|(_, half)| half.is_forward == is_forward) {
            self.take::<PacketTuple, Translation>(map::TRANSLATIONS, key);
        }
    }

    /// Lets every connection of a family be long ago.
    fn age(&mut self, family: Family) {
        self.change_connections(family, |connection| (connection.reset, connection.seen) = (1, 0));
    }
}

#[test]
fn both_halves_go_with_their_connection_and_not_before() {
    let mut node = gate();
    for talk in Talk::ALL {
        for family in FAMILIES {
            talk.ask(&mut node, A, family, 4000);
            talk.ask(&mut node, B, family, 4000);
        }
        assert_eq!(node.collects(), (8, 0));
        node.expire(Family::V4);
        assert_eq!(node.collects(), (4, 4), "{talk:?}");
        let sources: Vec<_> = node.halves().keys().map(|key| key.source.0[..2].to_vec()).collect();
        assert!(sources.iter().all(|source| source[0] != 0), "IPv6 is left");
        node.expire(Family::V6);
        assert_eq!(node.collects(), (0, 4));
        assert!(node.halves().is_empty());
    }
}

impl Node {
    /// Takes all connections of a family away.
    fn expire(&mut self, family: Family) {
        match family {
            Family::V4 => self.clear::<ConnectionKey4>(map::CONNECTIONS4),
            Family::V6 => self.clear::<ConnectionKey6>(map::CONNECTIONS6),
        }
    }

    fn clear<K: aya::Pod + Ord>(&mut self, name: &str) {
        for key in self.all::<K, Connection>(name).into_keys() {
            self.take::<K, Connection>(name, key);
        }
    }
}

/// A dead connection that is still in its table counts as gone.
#[test]
fn a_connection_that_has_ended_takes_its_port_along() {
    let mut node = gate();
    node.set_ports(50_000..=50_000);
    for family in FAMILIES {
        let port = Talk::Tcp.ask(&mut node, A, family, 4000);
        let rst = tcp(inward(family, A), (80, port), RST | super::super::frame::ACK);
        let arrived = node.arrives(&rst);
        node.passes("to_pod", A, &arrived);
        assert_eq!(node.collects().1, 0, "for some seconds it may still be spoken of");
        node.age(family);
        assert_eq!(node.collects().1, 2);
        assert_eq!(Talk::Tcp.ask(&mut node, B, family, 4000), 50_000);
        node.expire(family);
        node.collects();
    }
}

/// A reverse half alone may be one that another CPU is just entering.
#[test]
fn a_reverse_half_without_its_forward_half_goes_the_second_time() {
    let mut node = gate();
    for family in FAMILIES {
        Talk::Udp.ask(&mut node, A, family, 4000);
    }
    node.remove_half(1);
    assert_eq!(node.collects(), (2, 0));
    assert_eq!(node.collects(), (0, 2));
}

#[test]
fn a_forward_half_alone_lives_as_long_as_its_connection() {
    let mut node = gate();
    Talk::Udp.ask(&mut node, A, Family::V4, 4000);
    node.remove_half(0);
    assert_eq!(node.collects(), (1, 0));
    node.expire(Family::V4);
    assert_eq!(node.collects(), (0, 1));
}
