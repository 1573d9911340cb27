//! Which kind of map should hold rulesets: an LPM trie, or a hash that is asked for each wildcard in turn?
//!
//! `cargo run -p l4-datapath --release --example ruleset_map` prints a table; it takes half a minute and needs root.
//! Look-ups are made by a small program run in the kernel on random keys that are there; the cost of the same program
//! without its look-up is taken off. *Decision* is what a packet pays: two look-ups in the trie (the peer, any peer),
//! six in the hash (each with port, without, without protocol). *Update* and *delete* are system calls from user space.
//! *Stall* is the longest time that a thread busy on any CPU was kept from running within two seconds after the map was
//! let go of; *quiet* is the same without. Each look-up is the best of five runs: the machine has other work.

mod raw;

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use abi::{RuleKey, RuleValue};
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, IterableMap, LpmTrie, MapData, MapError};
use raw::Instruction;

const NO_PREALLOC: u32 = 1;
const RUNS: u32 = 1_000_000;
const PEERS: u32 = 100;
/// Spreads ports (Knuth's multiplicative hash).
const SPREAD: u32 = 2_654_435_761;

/// Either kind of map, by the same key.
enum Table {
    Trie(LpmTrie<MapData, RuleKey, RuleValue>),
    Hash(HashMap<MapData, RuleKey, RuleValue>),
}

impl Table {
    fn name(&self) -> &'static str {
        match self {
            Self::Trie(_) => "LPM trie",
            Self::Hash(_) => "hash",
        }
    }

    /// Look-ups a decision needs.
    fn probes(&self) -> u32 {
        match self {
            Self::Trie(_) => 2,
            Self::Hash(_) => 6,
        }
    }

    fn insert(&mut self, number: u32) -> Result<(), MapError> {
        let value = RuleValue {
            cookie: number,
            verdict: abi::RuleVerdict::Allow as u8,
            requirement: 0,
            zero: [0; 2],
        };
        match self {
            Self::Trie(map) => map.insert(&Key::new(RuleKey::EXACT, key(number)), value, 0),
            Self::Hash(map) => map.insert(key(number), value, 0),
        }
    }

    fn remove(&mut self, number: u32) -> Result<(), MapError> {
        match self {
            Self::Trie(map) => map.remove(&Key::new(RuleKey::EXACT, key(number))),
            Self::Hash(map) => map.remove(&key(number)),
        }
    }

    /// Its descriptor, and where its key begins below the frame pointer.
    fn place(&self) -> (i32, i32) {
        match self {
            Self::Trie(map) => (IterableMap::map(map).fd().as_fd().as_raw_fd(), -16),
            Self::Hash(map) => (IterableMap::map(map).fd().as_fd().as_raw_fd(), -12),
        }
    }
}

/// Entry `number`: a hundred peers to a ruleset, ports spread.
fn key(number: u32) -> RuleKey {
    let port = (number.wrapping_mul(SPREAD) >> 16) as u16;
    RuleKey::exact(1 + number / PEERS, 256 + number % PEERS, 6, port)
}

/// A program that builds `key(random & mask)` and, if a map is given, looks it up: 0 found, 1 not.
fn instructions(mask: u32, place: Option<(i32, i32)>) -> Vec<Instruction> {
    let i = Instruction;
    let mut program = vec![
        i(0x85, 0, 0, 7),                                 // r0 = bpf_get_prandom_u32()
        i(0x57, 0, 0, mask.cast_signed()),                // r0 &= mask
        i(0xbf, 0x06, 0, 0),                              // r6 = r0
        i(0xbf, 0x61, 0, 0),                              // r1 = r6
        i(0x37, 0x01, 0, PEERS.cast_signed()),            // r1 /= PEERS
        i(0x07, 0x01, 0, 1),                              // r1 += 1
        i(0xdc, 0x01, 0, 32),                             // r1 = be32
        i(0x63, 0x1a, -12, 0),                            // key.ruleset
        i(0xbf, 0x62, 0, 0),                              // r2 = r6
        i(0x97, 0x02, 0, PEERS.cast_signed()),            // r2 %= PEERS
        i(0x07, 0x02, 0, 256),                            // r2 += 256
        i(0xdc, 0x02, 0, 32),                             // r2 = be32
        i(0x63, 0x2a, -8, 0),                             // key.identity
        i(0x72, 0x0a, -4, 6),                             // key.protocol
        i(0x72, 0x0a, -3, 0),                             // key.zero
        i(0xbc, 0x63, 0, 0),                              // w3 = w6
        i(0x24, 0x03, 0, SPREAD.cast_signed()),           // w3 *= SPREAD
        i(0x74, 0x03, 0, 16),                             // w3 >>= 16
        i(0xdc, 0x03, 0, 16),                             // r3 = be16
        i(0x6b, 0x3a, -2, 0),                             // key.port
        i(0x62, 0x0a, -16, RuleKey::EXACT.cast_signed()), // prefix length
    ];
    if let Some((map, key)) = place {
        program.extend([
            i(0x18, 0x11, 0, map), // r1 = map
            i(0, 0, 0, 0),
            i(0xbf, 0xa2, 0, 0),   // r2 = fp
            i(0x07, 0x02, 0, key), // r2 += key
            i(0x85, 0, 0, 1),      // r0 = bpf_map_lookup_elem()
            i(0x55, 0x00, 2, 0),   // if r0 != 0 skip two
            i(0xb7, 0x00, 0, 1),   // r0 = 1
            i(0x95, 0, 0, 0),      // exit
        ]);
    }
    program.extend([i(0xb7, 0x00, 0, 0), i(0x95, 0, 0, 0)]); // r0 = 0; exit
    program
}

/// Nanoseconds a run of this program takes, the best of five averages.
fn measure(program: &[Instruction]) -> io::Result<u32> {
    let loaded = raw::load("look_up", program)?;
    let mut best = u32::MAX;
    for _ in 0..5 {
        let ran = raw::run(&loaded, &[0; 64], &[], RUNS)?;
        if ran.result != 0 {
            return Err(io::Error::other("an entry that was written is not found"));
        }
        best = best.min(ran.nanoseconds);
    }
    Ok(best)
}

/// The longest time a busy thread was kept from running on any CPU, from before `work` until two seconds after.
fn stall(work: impl FnOnce()) -> Duration {
    let over = AtomicBool::new(false);
    let watch = || {
        let (mut longest, mut last) = (Duration::ZERO, Instant::now());
        while !over.load(Ordering::Relaxed) {
            let now = Instant::now();
            longest = longest.max(now - last);
            last = now;
        }
        longest
    };
    std::thread::scope(|scope| {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let watchers: Vec<_> = (0..cpus).map(|_| scope.spawn(watch)).collect();
        work();
        std::thread::park_timeout(Duration::from_secs(2));
        over.store(true, Ordering::Relaxed);
        watchers.into_iter().filter_map(|watcher| watcher.join().ok()).max().unwrap_or_default()
    })
}

/// Nanoseconds for each of `numbers`.
fn each(numbers: u32, mut work: impl FnMut(u32) -> Result<(), MapError>) -> Result<u128, MapError> {
    let begin = Instant::now();
    (0..numbers).try_for_each(&mut work)?;
    Ok(begin.elapsed().as_nanos() / u128::from(numbers))
}

fn row(mut table: Table, entries: u32) -> Result<(), Box<dyn Error>> {
    let update = each(entries, |number| table.insert(number))?;
    let mask = entries - 1;
    let empty = measure(&instructions(mask, None))?;
    let look_up = measure(&instructions(mask, Some(table.place())))?.saturating_sub(empty);
    let delete = each(entries / 8, |number| table.remove(number))?;
    let (name, decision) = (table.name(), look_up * table.probes());
    let stalled = stall(|| drop(table)).as_secs_f64() * 1e3;
    println!("{name:8} {entries:>9} {look_up:>10} {decision:>12} {update:>10} {delete:>10} {stalled:>9.1}");
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let quiet = stall(|| ()).as_secs_f64() * 1e3;
    println!("quiet stall {quiet:.1} ms");
    println!("map        entries  look-up ns  decision ns  update ns  delete ns  stall ms");
    for entries in [1 << 17, 1 << 20] {
        row(Table::Trie(LpmTrie::create(entries, NO_PREALLOC)?), entries)?;
        row(Table::Hash(HashMap::create(entries, NO_PREALLOC)?), entries)?;
    }
    Ok(())
}
