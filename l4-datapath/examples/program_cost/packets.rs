//! The cost of a packet by program, family and what is known of its connection.
//!
//! *Hot*: one after the other, in batches; the figure is the median of their averages. *Cold*: one at a time, with as
//! many bytes touched between as the second-level cache holds several times; the median. *Floor*: the same for a program that
//! returns at once. A figure is whole, floor included.

use std::os::fd::AsFd;

use abi::{Mark, Memo, map};
use aya::programs::{SchedClassifier, loaded_programs};
use aya::sys::{Stats, enable_stats};

use crate::carrier::{Carrier, Port, empty};
use crate::frame::{ACK, Ends, SYN, tcp};
use crate::node::{Context, Node, OK, REDIRECT};
use crate::raw;
use crate::run::skb;
use crate::world::{A, B, FAMILIES, Family};

/// Capacity of a connection map, as an agent makes it.
const CONNECTIONS: u32 = 262_144;
/// Port the connection is opened to, and that of its client.
const PORTS: (u16, u16) = (4000, 80);
/// Swept between two cold packets.
const SWEPT: usize = 8 << 20;

/// How much is run.
pub(crate) struct Extent {
    batches: u16,
    /// Packets of known connections in a batch.
    repeat: u32,
    /// Connections opened in a batch. All batches together stay within half of a connection map, as quotas do, and what
    /// they report within the ring.
    opened: u32,
    cold: u16,
}

/// A measurement.
pub(crate) const WHOLE: Extent = Extent { batches: 15, repeat: 200_000, opened: 8192, cold: 301 };
/// A look whether it works.
pub(crate) const QUICK: Extent = Extent { batches: 3, repeat: 1000, opened: 256, cold: 11 };

/// A way through a program.
struct Way {
    program: &'static str,
    what: &'static str,
    ends: Ends,
    verdict: u32,
}

impl Way {
    fn all(family: Family) -> [Self; 3] {
        let peer = family.peer();
        [
            Self {
                program: "from_pod",
                what: "to a workload of this node",
                ends: family.between(A, B),
                verdict: REDIRECT,
            },
            Self { program: "from_pod", what: "to beyond the node", ends: family.from(A, peer), verdict: OK },
            Self { program: "to_pod", what: "from beyond the node", ends: family.to(peer, A), verdict: OK },
        ]
    }

    /// Opens the connection as its ends would.
    fn open(&self, node: &Node) {
        let back = self.ends.reversed();
        let (there, here) = (tcp(self.ends, PORTS, SYN), tcp(back, (PORTS.1, PORTS.0), SYN | ACK));
        let last = tcp(self.ends, PORTS, ACK);
        match (self.program, self.verdict) {
            ("from_pod", REDIRECT) => {
                node.run_from_pod(A, &there);
                let macs = (B.mac, B.gateway_mac);
                node.run_from_pod(B, &tcp(Ends { macs, ..back }, (PORTS.1, PORTS.0), SYN | ACK));
                node.run_from_pod(A, &last);
            }
            ("from_pod", _) => {
                node.run_from_pod(A, &there);
                node.run_to_pod(A, &here);
                node.run_from_pod(A, &last);
            }
            _ => {
                node.run_to_pod(A, &there);
                node.run_from_pod(A, &here);
                node.run_to_pod(A, &last);
            }
        }
    }
}

/// Prints everything: what is known of the connection, which packet, nanoseconds.
pub(crate) fn measure(extent: &Extent) {
    let mut node = Node::of_size(CONNECTIONS);
    node.set_generation(1);
    node.allow_all();
    for pod in [A, B] {
        // Charges outlive connections that user space takes away.
        node.set_quota(pod, u32::MAX);
    }
    floors(extent);
    for family in FAMILIES {
        for way in Way::all(family) {
            way.open(&node);
            for known in [true, false] {
                let [hot, cold] = one(&mut node, &way, known, extent);
                let kind = if known { "established" } else { "new" };
                let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
                println!("{kind}\t{name}, {} {}, hot\t{hot}", way.program, way.what);
                println!("{kind}\t{name}, {} {}, cold\t{cold}", way.program, way.what);
            }
            authenticate(&mut node, family);
            let [hot, cold] = one(&mut node, &way, true, extent);
            let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
            println!("authenticated\t{name}, {} {}, hot\t{hot}", way.program, way.what);
            println!("authenticated\t{name}, {} {}, cold\t{cold}", way.program, way.what);
            assert_eq!(node.drops(), Default::default(), "dropped packets cost something else");
            node.forget_connections(family);
        }
    }
}

/// Makes every connection one that depends on a mark, as if policy had asked for a proof.
fn authenticate(node: &mut Node, family: Family) {
    node.set(map::LEASES, 0, u64::MAX);
    node.set(map::MARKS, 1, Mark { epoch: 1, expiry: u64::MAX, ..Mark::default() });
    node.change_connections(family, |connection| {
        (connection.mark, connection.epoch) = (1, 1);
        connection.memo |= Memo::MARKED;
    });
}

/// Hot and cold.
fn one(node: &mut Node, way: &Way, known: bool, extent: &Extent) -> [u32; 2] {
    let context = skb(
        A.ifindex,
        Context { ingress_ifindex: if way.program == "to_pod" { 77 } else { 0 }, ..Context::default() },
    );
    let frame = |port, to| if known { tcp(way.ends, PORTS, ACK) } else { tcp(way.ends, (port, to), SYN) };
    let headers = frame(0, 0)[..way.ends.transport()].to_vec();
    let port = if known { Port::Stays } else { Port::CountsUp };
    let carrier =
        Carrier::new(descriptor(node.program(way.program)), &headers, port).expect("the carrier loads");
    let repeat = if known { extent.repeat } else { extent.opened };
    let hot = median((0..extent.batches).map(|batch| {
        let ran = carrier.run(&frame(1024, 2000 + batch), &context, repeat);
        assert_eq!(ran.result, way.verdict, "{} {}", way.program, way.what);
        node.events();
        ran.nanoseconds
    }));
    let mut sweep = Sweep::new();
    let cold = median((0..extent.cold).map(|packet| {
        sweep.run();
        let ran =
            raw::run(descriptor(node.program(way.program)), &frame(1024 + packet, 1), &context, 1).unwrap();
        assert_eq!(ran.result, way.verdict, "{} {}", way.program, way.what);
        ran.nanoseconds
    }));
    [hot, cold]
}

fn floors(extent: &Extent) {
    let name = format!("floor{}", std::process::id());
    let empty = empty(&name).unwrap();
    let frame = tcp(Family::V4.between(A, B), PORTS, ACK);
    let headers = &frame[..Family::V4.between(A, B).transport()];
    let carrier = Carrier::new(&empty, headers, Port::Stays).unwrap();
    println!(
        "floor\thot\t{}",
        median((0..extent.batches).map(|_| carrier.run(&frame, &[], extent.repeat).nanoseconds))
    );
    let mut sweep = Sweep::new();
    let cold = median((0..extent.cold).map(|_| {
        sweep.run();
        raw::run(&empty, &frame, &[], 1).unwrap().nanoseconds
    }));
    println!("floor\tcold\t{cold}");
    let _counted = enable_stats(Stats::RunTime).unwrap();
    raw::run(&empty, &frame, &[], extent.repeat).unwrap();
    let mut programs = loaded_programs().filter_map(Result::ok);
    let info = programs.find(|info| info.name_as_str() == Some(&name)).expect("it is loaded");
    println!("floor\trun statistics\t{}", info.run_time().as_nanos() / u128::from(info.run_count().max(1)));
}

fn descriptor(program: &SchedClassifier) -> impl AsFd + '_ {
    program.fd().unwrap().as_fd()
}

fn median(values: impl Iterator<Item = u32>) -> u32 {
    let mut all: Vec<_> = values.collect();
    all.sort_unstable();
    all[all.len() / 2]
}

/// Takes everything else out of the caches nearest to the CPU.
struct Sweep(Vec<u8>);

impl Sweep {
    fn new() -> Self {
        Self(vec![0; SWEPT])
    }

    fn run(&mut self) {
        for byte in self.0.iter_mut().step_by(64) {
            *byte = byte.wrapping_add(1);
        }
        std::hint::black_box(&self.0);
    }
}
