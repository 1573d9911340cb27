//! What is answered to packets of every kind.

use super::*;
use crate::dns::zone::{Found, Zone};

fn packet(name: &str, rtype: Rtype, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(7);
    builder.header_mut().set_rd(true);
    change(builder.header_mut());
    let mut section = builder.question();
    section.push((Owner::vec_from_str(name).unwrap(), rtype)).unwrap();
    section.finish()
}

/// The same with an extension record of this version and size, and what follows its type.
fn extended(version: u8, size: u16) -> Vec<u8> {
    let mut packet = packet("a.example", Rtype::A, |_| {});
    packet[11] = 1;
    packet.extend([0, 0, 41]);
    packet.extend(size.to_be_bytes());
    packet.extend([0, version, 0x80, 0, 0, 0]);
    packet
}

fn query(packet: &[u8]) -> Query {
    match receive(packet) {
        Received::Query(query) => query,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_question_gets_its_refusal_or_nothing() {
    let plain = || packet("a.example", Rtype::A, |_| {});
    let with = |change: fn(&mut Vec<u8>)| {
        let mut packet = plain();
        change(&mut packet);
        packet
    };
    let refused: [(&str, Vec<u8>, Rcode); 12] = [
        (
            "another operation",
            packet("a.example", Rtype::A, |header| header.set_opcode(Opcode::UPDATE)),
            Rcode::NOTIMP,
        ),
        ("no question", with(|packet| packet[5] = 0), Rcode::FORMERR),
        ("two questions", with(|packet| packet[5] = 2), Rcode::FORMERR),
        ("a name without an end", with(|packet| packet.truncate(20)), Rcode::FORMERR),
        (
            "a name that is its own tail",
            with(|packet| packet[12..14].copy_from_slice(&[0xc0, 12])),
            Rcode::FORMERR,
        ),
        ("a record that is not there", with(|packet| packet[11] = 1), Rcode::FORMERR),
        ("a label of an unknown kind", with(|packet| packet[12] = 0x80), Rcode::FORMERR),
        ("a transfer", packet("cluster.local", Rtype::AXFR, |_| {}), Rcode::REFUSED),
        ("another class", with(|packet| *packet.last_mut().unwrap() = 3), Rcode::REFUSED),
        ("a version of the future", extended(1, 512), Rcode::NOERROR),
        (
            "two extension records",
            {
                let mut packet = extended(0, 512);
                packet.extend_from_within(packet.len() - 11..);
                packet[11] = 2;
                packet
            },
            Rcode::FORMERR,
        ),
        (
            "an option longer than its record",
            {
                let mut packet = extended(0, 512);
                let end = packet.len();
                packet[end - 1] = 4;
                packet.extend([0, 10, 0, 9]);
                packet
            },
            Rcode::FORMERR,
        ),
    ];
    for (what, packet, expected) in refused {
        let Received::Refused(rcode, answer) = receive(&packet) else {
            panic!("{what}: {:?}", receive(&packet))
        };
        assert_eq!(rcode, expected, "{what}");
        let answer = Message::from_octets(answer).unwrap();
        assert_eq!((answer.header().id(), answer.header().qr()), (7, true), "{what}");
        if what == "a version of the future" {
            assert_eq!(answer.opt_rcode(), OptRcode::BADVERS);
        }
    }
    let dropped = [packet("a.example", Rtype::A, |header| header.set_qr(true)), vec![], vec![0; 11]];
    for packet in dropped {
        assert_eq!(receive(&packet), Received::Dropped, "{packet:?}");
    }
}

#[test]
fn a_client_gets_no_more_than_it_can_take_and_no_more_than_fits_every_path() {
    for (size, expected) in [(0, 512), (511, 512), (700, 700), (1232, 1232), (65535, 1232)] {
        let query = query(&extended(0, size));
        assert_eq!(query.limit(Transport::Udp), expected);
        assert_eq!(query.limit(Transport::Tcp), 65535);
        assert!(query.edns.unwrap().signatures);
    }
    assert_eq!(query(&packet("a.example", Rtype::A, |_| {})).limit(Transport::Udp), 512);
}

#[test]
fn a_question_is_passed_on_with_what_its_answer_depends_on() {
    let mut given = extended(0, 4096);
    given[3] |= 0x10;
    let asked = query(&given).ask(0x1234);
    let passed = Message::from_slice(&asked).unwrap();
    assert_eq!(passed.header().id(), 0x1234);
    assert!(passed.header().rd() && passed.header().cd());
    let opt = passed.opt().unwrap();
    assert_eq!((opt.udp_payload_size(), opt.dnssec_ok()), (DATAGRAM, true));
    let plain = query(&packet("a.example", Rtype::A, |_| {})).ask(1);
    assert!(Message::from_slice(&plain).unwrap().opt().is_none(), "not given, not asked for");
}

#[test]
fn t39_an_answer_has_the_id_and_the_question_that_were_sent() {
    let query = query(&packet("a.example", Rtype::HTTPS, |_| {}));
    let asked = query.ask(9);
    let mut right = asked.clone();
    right[2] |= 0x80;
    assert!(answers(&asked, &right, &query.question));
    let upper = right
        .iter()
        .enumerate()
        .map(|(at, byte)| if (12..23).contains(&at) { byte.to_ascii_uppercase() } else { *byte });
    assert!(
        answers(&asked, &upper.collect::<Vec<_>>(), &query.question),
        "some servers write names their way"
    );
    for at in (0..12).filter(|at| [0, 1, 4, 5].contains(at)).chain(12..asked.len()) {
        for bit in (0..8).filter(|bit| *bit != 5 || at >= 23 || at == 12) {
            let mut wrong = right.clone();
            wrong[at] ^= 1 << bit;
            assert!(!answers(&asked, &wrong, &query.question), "byte {at}, bit {bit}");
        }
    }
    assert!(!answers(&asked, &asked, &query.question), "a question is no answer");
    assert!((0..right.len()).all(|length| !answers(&asked, &right[..length], &query.question)));
}

#[test]
fn no_packet_of_a_client_or_a_server_does_harm() {
    let zone =
        Zone::new("cluster.local".parse().unwrap(), vec!["10.0.0.1".parse().unwrap()], 1, Default::default());
    let mut seeds = vec![
        packet("ns.dns.cluster.local", Rtype::ANY, |_| {}),
        packet("7.0.96.10.in-addr.arpa", Rtype::PTR, |_| {}),
        extended(0, 1232),
    ];
    let ours = query(&packet("a.example", Rtype::A, |_| {}));
    let asked = ours.ask(7);
    let first = query(&seeds[0]);
    let Found::Here(answer) = zone.find(first.question.qname(), Rtype::ANY, 0) else { panic!("ours") };
    seeds.push(write(&first, &answer, Transport::Udp));
    seeds.push(write(&ours, &answer, Transport::Tcp));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..200_000 {
        let mut packet = seeds[random(seeds.len())].clone();
        for _ in 0..=random(4) {
            let at = random(packet.len());
            match random(5) {
                0 => packet[at] ^= 1 << random(8),
                1 => packet[at] = u8::try_from(random(256)).unwrap(),
                2 => packet[at] = 0xc0,
                3 => packet.truncate(at.max(1)),
                _ => packet.extend_from_within(at..),
            }
        }
        if let Received::Query(query) = receive(&packet) {
            let Found::Here(answer) = zone.find(query.question.qname(), query.question.qtype(), 0) else {
                continue;
            };
            assert!(write(&query, &answer, Transport::Udp).len() <= query.limit(Transport::Udp));
        }
        if let Some(answer) = continued(Vec::new(), &packet) {
            write(&ours, &answer, Transport::Udp);
        }
        if answers(&asked, &packet, &ours.question) {
            let told = Told { asked: asked.clone(), packet };
            let passed = pass_on(&ours, told, Transport::Udp);
            assert_eq!(passed[..2], [0, 7]);
        }
    }
}
