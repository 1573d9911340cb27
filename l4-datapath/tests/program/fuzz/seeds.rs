//! The corpus: frames as the builder makes them, of every kind a parser branches on, and those kept in `tests/corpus`
//! because they once got through, or would have.

use std::{fs, net::IpAddr, path::Path};

use super::Hook;
use crate::{
    frame::{
        ACK, Ends, FIN, ICMPV6, LINK, PSH, RST, SCTP, SYN, TCP, UDP, arp, checksum, echo, extended, icmp, ip,
        piece, pieces, sctp, tcp, tcp_with, udp, unreachable,
    },
    world::{A, B, FAMILIES, Family},
};

/// A frame and the hook that meets it.
pub(super) struct Seed {
    pub(super) name: String,
    pub(super) hook: Hook,
    pub(super) frame: Vec<u8>,
}

/// In an order in which each connection is opened before anything else of it.
pub(super) fn seeds() -> Vec<Seed> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let mut add = |name: &str, hook, frame| {
            all.push(Seed { name: format!("{name} {family:?}"), hook, frame });
        };
        conversations(family, &mut add);
        errors(family, &mut add);
        refused(family, &mut add);
        fragments(family, &mut add);
    }
    let mut add =
        |name: &str, hook, frame| all.push(Seed { name: format!("{name} behind headers"), hook, frame });
    extensions(&mut add);
    neighbours(&mut |name: &str, frame| all.push(Seed { name: name.into(), hook: Hook::FromPod(A), frame }));
    all.extend(kept());
    all
}

type Add<'a> = &'a mut dyn FnMut(&str, Hook, Vec<u8>);

fn conversations(family: Family, add: Add<'_>) {
    let (near, back) = (family.between(A, B), family.between(B, A));
    let (far, into) = (family.from(A, family.peer()), family.to(family.peer(), A));
    add("SYN", Hook::FromPod(A), tcp(near, (4000, 80), SYN));
    add("SYN+ACK", Hook::FromPod(B), tcp(back, (80, 4000), SYN | ACK));
    add("data", Hook::FromPod(A), tcp_with(near, (4000, 80), ACK | PSH, 64, b"GET / HTTP/1.1\r\n"));
    add("SYN beyond", Hook::FromPod(A), tcp(far, (4001, 443), SYN));
    add("SYN+ACK from beyond", Hook::ToPod(A), tcp(into, (443, 4001), SYN | ACK));
    add("SYN from beyond", Hook::ToPod(A), tcp(into, (4002, 80), SYN));
    add("data to beyond", Hook::FromPod(A), tcp_with(far, (80, 4002), ACK, 64, b"HTTP/1.1 200 OK\r\n"));
    add("SYN with options", Hook::FromPod(A), with_options(near));
    add("datagram", Hook::FromPod(A), udp(near, (4000, 53), b"question"));
    add("answer", Hook::FromPod(B), udp(back, (53, 4000), b"answer"));
    add("datagram beyond", Hook::FromPod(A), udp(far, (4000, 53), b"question"));
    add("answer from beyond", Hook::ToPod(A), udp(into, (53, 4000), b"answer"));
    add("datagram at the MTU", Hook::FromPod(A), udp(near, (4000, 53), &[7; 1444]));
    add("datagram above the MTU", Hook::FromPod(A), udp(near, (4000, 53), &[7; 1600]));
    add("SCTP", Hook::FromPod(A), sctp(near, (4000, 5000)));
    add("SCTP back", Hook::FromPod(B), sctp(back, (5000, 4000)));
    add("echo", Hook::FromPod(A), echo(near, true, 7));
    add("echo reply", Hook::FromPod(B), echo(back, false, 7));
    add("echo beyond", Hook::FromPod(A), echo(far, true, 8));
    add("echo from beyond", Hook::ToPod(A), echo(into, true, 9));
    add("SYN about to die", Hook::FromPod(A), tcp_with(near, (4000, 80), SYN, 1, b""));
    add("padded to 60 bytes", Hook::FromPod(A), padded(tcp(near, (4000, 80), ACK)));
}

fn errors(family: Family, add: Add<'_>) {
    let (near, back) = (family.between(A, B), family.between(B, A));
    let (far, into) = (family.from(A, family.peer()), family.to(family.peer(), A));
    let abouts = [
        ("SYN", tcp(near, (4000, 80), SYN), tcp(far, (4001, 443), SYN)),
        ("datagram", udp(near, (4000, 53), b"question"), udp(far, (4000, 53), b"question")),
        ("echo", echo(near, true, 7), echo(far, true, 8)),
    ];
    for (name, near, far) in abouts {
        add(&format!("error about a {name}"), Hook::FromPod(B), unreachable(back, &near));
        add(&format!("error from beyond about a {name}"), Hook::ToPod(A), unreachable(into, &far));
    }
}

/// What is refused, and edges that are not.
fn refused(family: Family, add: Add<'_>) {
    let (near, back) = (family.between(A, B), family.between(B, A));
    let into = family.to(family.peer(), A);
    let syn = tcp(near, (4000, 80), SYN);
    add("denied", Hook::FromPod(A), tcp(near, (4000, 81), SYN));
    add("denied back", Hook::FromPod(B), tcp(back, (4000, 80), SYN));
    add("mid-stream", Hook::FromPod(A), tcp(near, (5000, 80), ACK));
    add("mid-stream from beyond", Hook::ToPod(A), tcp(into, (5000, 80), FIN | ACK));
    add("stray reset", Hook::FromPod(A), tcp(near, (5001, 80), RST));
    add("VLAN", Hook::FromPod(A), tagged(&syn));
    let group = match family {
        Family::V4 => "224.0.0.251",
        Family::V6 => "ff02::fb",
    };
    add("multicast", Hook::FromPod(A), udp(family.from(A, group.parse().unwrap()), (5353, 5353), b"?"));
    if family == Family::V4 {
        for sum in [[0xfe, 0xff], [0xff, 0x00], [0xff, 0xfe]] {
            add("checksum about to carry", Hook::FromPod(A), with_header_checksum(syn.clone(), sum));
        }
        let mut options = syn.clone();
        options[LINK] = 0x46;
        options.splice(LINK + 20..LINK + 20, [148, 4, 0, 0]);
        options[LINK + 3] += 4;
        add("options", Hook::FromPod(A), options);
        add("GRE", Hook::FromPod(A), ip(near, 47, 64, &syn[LINK..]));
        return;
    }
    add("MLD report", Hook::FromPod(A), {
        let ends = Ends { addresses: ("fe80::a".parse().unwrap(), "ff02::16".parse().unwrap()), ..near };
        ip(ends, 0, 1, &[ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0])
    });
    let hidden = extended(&syn, &[(51, &[0; 7])]);
    add("AH", Hook::FromPod(A), hidden);
    add(
        "IPv4 in IPv6",
        Hook::FromPod(A),
        ip(near, 4, 64, &tcp(Family::V4.between(A, B), (1, 80), SYN)[LINK..]),
    );
}

/// Each datagram under an id of its own: some pieces end theirs.
fn fragments(family: Family, add: Add<'_>) {
    let (near, back) = (family.between(A, B), family.between(B, A));
    let (far, into) = (family.from(A, family.peer()), family.to(family.peer(), A));
    let question = udp(near, (4000, 53), &[7; 120]);
    for frame in pieces(near, 1, &question, 64) {
        add("piece of a datagram", Hook::FromPod(A), frame);
    }
    for frame in pieces(back, 1, &udp(back, (53, 4000), &[7; 120]), 64) {
        add("piece of an answer", Hook::FromPod(B), frame);
    }
    for frame in pieces(into, 1, &udp(into, (4000, 53), &[7; 120]), 64) {
        add("piece from beyond", Hook::ToPod(A), frame);
    }
    for frame in pieces(near, 2, &tcp_with(near, (4000, 80), ACK, 64, &[7; 40]), 32) {
        add("piece of a segment", Hook::FromPod(A), frame);
    }
    for frame in pieces(near, 3, &echo(near, true, 7), 8) {
        add("piece of an echo", Hook::FromPod(A), frame);
    }
    add("stray piece", Hook::FromPod(A), piece(near, UDP, 4, (64, false), &[7; 32]));
    add(
        "tiny first piece",
        Hook::FromPod(A),
        piece(near, TCP, 5, (0, true), &[0x0f, 0xa0, 0, 80, 0, 0, 0, 0]),
    );
    add("first piece, overlapped", Hook::FromPod(A), pieces(near, 6, &question, 64).remove(0));
    add("overlapping piece", Hook::FromPod(A), piece(near, UDP, 6, (56, false), &[7; 32]));
    let large = pieces(far, 7, &udp(far, (4000, 53), &[7; 120]), 64).remove(0);
    add("first piece to beyond", Hook::FromPod(A), large.clone());
    let kind = if near.is_v4() { 3 } else { 1 };
    let error = icmp(into, kind, 4, 64, &[&[0; 4], &large[LINK..]].concat());
    add("error about a first piece", Hook::ToPod(A), error);
}

fn extensions(add: Add<'_>) {
    let (near, into) = (Family::V6.between(A, B), Family::V6.to(Family::V6.peer(), A));
    let hop_by_hop: (u8, &[u8]) = (0, &[0, 5, 2, 0, 0, 1, 0]);
    let options: (u8, &[u8]) = (60, &[0, 1, 4, 0, 0, 0, 0]);
    let routing: (u8, &[u8]) = (43, &[0, 3, 0, 0, 0, 0, 0]);
    let atomic: (u8, &[u8]) = (44, &[0, 0, 0, 0, 0, 0, 9]);
    let source_route: (u8, &[u8]) = (43, &[0, 0, 1, 0, 0, 0, 0]);
    let first: (u8, &[u8]) = (44, &[0, 0, 1, 0, 0, 0, 8]);
    let later: (u8, &[u8]) = (44, &[0, 0, 64, 0, 0, 0, 8]);
    let segment = tcp(near, (4000, 80), ACK);
    let question = udp(near, (4000, 53), &[7; 40]);
    add("segment", Hook::FromPod(A), extended(&segment, &[hop_by_hop]));
    add("segment at length", Hook::FromPod(A), extended(&segment, &[hop_by_hop, options, routing, options]));
    add("atomic fragment", Hook::FromPod(A), extended(&question, &[atomic]));
    add("source route", Hook::FromPod(A), extended(&segment, &[source_route]));
    add("first piece", Hook::FromPod(A), extended(&question, &[options, first]));
    add("later piece", Hook::FromPod(A), extended(&question, &[options, later]));
    add("options in pieces", Hook::FromPod(A), extended(&question, &[first, options]));
    add("mid-stream", Hook::FromPod(A), extended(&tcp(near, (5000, 80), ACK), &[options]));
    let asked = extended(&udp(into.reversed(), (4000, 53), b"question"), &[options]);
    let error = icmp(into, 1, 4, 64, &[&[0; 4], &asked[LINK..]].concat());
    add("error about a datagram", Hook::ToPod(A), extended(&error, &[hop_by_hop]));
    let solicited = Ends {
        macs: (A.mac, [0x33, 0x33, 0xff, 0, 0, 1]),
        addresses: (Family::V6.pool(A.host), "ff02::1:ff00:1".parse().unwrap()),
    };
    let asked = [&[0; 4][..], &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[1, 1], &A.mac].concat();
    add("solicitation", Hook::FromPod(A), extended(&icmp(solicited, 135, 0, 255, &asked), &[options]));
    add("solicitation, atomic", Hook::FromPod(A), extended(&icmp(solicited, 135, 0, 255, &asked), &[atomic]));
}

fn neighbours(add: &mut dyn FnMut(&str, Vec<u8>)) {
    let (all, own) = ([0xff; 6], (A.mac, [10, 0, 0, 2]));
    add("ARP request", arp((A.mac, all), 1, own, ([0; 6], [10, 0, 0, 1])));
    add("ARP request, padded", padded(arp((A.mac, all), 1, own, ([0; 6], [10, 0, 0, 3]))));
    add("ARP probe", arp((A.mac, all), 1, (A.mac, [0; 4]), ([0; 6], [10, 0, 0, 2])));
    add("ARP reply", arp((A.mac, A.gateway_mac), 2, own, (A.gateway_mac, [10, 0, 0, 1])));
    let (own, local): (IpAddr, IpAddr) = (Family::V6.pool(A.host), "fe80::a".parse().unwrap());
    let solicited: IpAddr = "ff02::1:ff00:1".parse().unwrap();
    let ask = |source, rest: &[u8]| {
        let ends = Ends { macs: (A.mac, [0x33, 0x33, 0xff, 0, 0, 1]), addresses: (source, solicited) };
        icmp(ends, 135, 0, 255, rest)
    };
    let target = |last: u8| [&[0; 4][..], &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]].concat();
    let mac = [&[1, 1][..], &A.mac].concat();
    add("solicitation", ask(own, &[target(1), mac.clone()].concat()));
    add("solicitation from link-local", ask(local, &[target(1), mac].concat()));
    add("duplicate address detection", ask("::".parse().unwrap(), &target(2)));
    let ends =
        Ends { macs: (A.mac, [0x33, 0x33, 0, 0, 0, 2]), addresses: (local, "ff02::2".parse().unwrap()) };
    add("router solicitation", icmp(ends, 133, 0, 255, &[0; 4]));
    add("router advertisement", icmp(ends, 134, 0, 255, &[0; 12]));
    add("advertisement", icmp(ends, 136, 0, 255, &target(1)));
}

/// MSS, SACK permitted, timestamps, window scale: a SYN as Linux sends it.
fn with_options(ends: Ends) -> Vec<u8> {
    let options = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    let mut frame = tcp_with(ends, (4003, 80), SYN, 64, &options);
    frame[ends.transport() + 12] = 0xa0;
    frame
}

/// The IPv4 identification is what makes the checksum come out.
fn with_header_checksum(mut frame: Vec<u8>, sum: [u8; 2]) -> Vec<u8> {
    frame[LINK + 10..LINK + 12].copy_from_slice(&sum);
    frame[LINK + 4..LINK + 6].fill(0);
    let identification = checksum(&frame[LINK..LINK + 20]);
    frame[LINK + 4..LINK + 6].copy_from_slice(&identification);
    frame
}

/// Zeros behind the packet, as network cards add them.
fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(60) + 6, 0);
    frame
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat()
}

/// Pairs of frames that differ only in the family: what is behind the IP header, and where it goes.
pub(super) fn twins() -> Vec<(u8, Vec<u8>)> {
    let ends = Family::V4.between(A, B);
    let bodies = [
        (TCP, tcp_with(ends, (4000, 80), SYN, 64, b"early")),
        (TCP, with_options(ends)),
        (TCP, tcp(ends, (4000, 80), ACK)),
        (UDP, udp(ends, (4000, 53), b"question")),
        (SCTP, sctp(ends, (4000, 5000))),
    ];
    bodies.into_iter().map(|(protocol, frame)| (protocol, frame[ends.transport()..].to_vec())).collect()
}

/// The files of `tests/corpus`: what the frame is, the hook, the bytes; each on a line, the last on as many as it likes.
fn kept() -> Vec<Seed> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| parse(&fs::read_to_string(path).unwrap())).collect()
}

fn parse(text: &str) -> Seed {
    let (name, rest) = text.split_once('\n').expect("a line that says what it is");
    let (hook, hex) = rest.split_once('\n').expect("a line that names the hook");
    let hook = *Hook::ALL.iter().find(|known| known.to_string() == hook).expect("a hook");
    let digits: Vec<_> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex");
    Seed { name: name.trim_start_matches("# ").into(), hook, frame: digits.chunks(2).map(byte).collect() }
}
