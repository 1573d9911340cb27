//! The corpus: frames as the builder makes them, of every kind a parser branches on, and those kept in `tests/corpus`
//! because they once got through, or would have.

use std::{fs, net::IpAddr, path::Path};

use super::Hook;
use crate::{
    frame::{
        ACK, Ends, FIN, ICMPV6, LINK, PSH, RST, SCTP, SYN, TCP, UDP, arp, checksum, echo, icmp, ip, sctp,
        tcp, tcp_with, udp, unreachable,
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
    }
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
    let transport = &syn[near.transport()..];
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
        let mut fragment = syn.clone();
        fragment[LINK + 6] = 0x20;
        add("first fragment", Hook::FromPod(A), fragment);
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
    // Eight bytes each; what follows is the segment that would pass by itself.
    for (name, protocol) in
        [("hop-by-hop", 0), ("routing", 43), ("fragment", 44), ("destination options", 60), ("AH", 51)]
    {
        let mut chain = vec![TCP, 0, 0, 0, 0, 0, 0, 0];
        chain.extend(transport);
        add(name, Hook::FromPod(A), ip(near, protocol, 64, &chain));
    }
    add(
        "IPv4 in IPv6",
        Hook::FromPod(A),
        ip(near, 4, 64, &tcp(Family::V4.between(A, B), (1, 80), SYN)[LINK..]),
    );
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
