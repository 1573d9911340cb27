//! Which kind of map should hold rulesets: an LPM trie, or a hash that is asked for each wildcard in turn?
//!
//! `cargo run -p l4-datapath --release --example ruleset_map` prints a table; it takes about half a minute and needs
//! root. Look-ups are made from user space, so the cost of the same system call on a one-element array is measured in
//! the same run and taken off. *Decision* is what a packet pays: two look-ups in the trie (the peer, any peer), six in
//! the hash (each with port, without, without protocol). *Stall* is the longest time that a thread busy on any CPU was
//! kept from running within two seconds after the map was let go of; *quiet* is the same without.

use std::error::Error;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use abi::{RuleKey, RuleValue};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError};

const NO_PREALLOC: u32 = 1;
const LOOKUPS: u32 = 300_000;
const PEERS: u32 = 100;

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
    fn probes(&self) -> f64 {
        match self {
            Self::Trie(_) => 2.0,
            Self::Hash(_) => 6.0,
        }
    }

    fn insert(&mut self, key: RuleKey, value: RuleValue) -> Result<(), MapError> {
        match self {
            Self::Trie(map) => map.insert(&Key::new(RuleKey::EXACT, key), value, 0),
            Self::Hash(map) => map.insert(key, value, 0),
        }
    }

    fn get(&self, key: RuleKey) -> Result<RuleValue, MapError> {
        match self {
            Self::Trie(map) => map.get(&Key::new(RuleKey::EXACT, key), 0),
            Self::Hash(map) => map.get(&key, 0),
        }
    }

    fn remove(&mut self, key: RuleKey) -> Result<(), MapError> {
        match self {
            Self::Trie(map) => map.remove(&Key::new(RuleKey::EXACT, key)),
            Self::Hash(map) => map.remove(&key),
        }
    }
}

/// Entry `number`: a hundred peers to a ruleset, ports spread.
fn key(number: u32) -> RuleKey {
    let port = (number.wrapping_mul(2_654_435_761) >> 16) as u16;
    RuleKey::exact(1 + number / PEERS, 256 + number % PEERS, 6, port)
}

fn nanoseconds(begin: Instant, count: u32) -> f64 {
    begin.elapsed().as_secs_f64() * 1e9 / f64::from(count)
}

/// The system call alone.
fn system_call() -> Result<f64, MapError> {
    let mut array: Array<MapData, RuleValue> = Array::create(1, 0)?;
    array.set(0, value(0), 0)?;
    let begin = Instant::now();
    for _ in 0..LOOKUPS {
        black_box(array.get(&0, 0)?);
    }
    Ok(nanoseconds(begin, LOOKUPS))
}

fn value(cookie: u32) -> RuleValue {
    RuleValue { cookie, verdict: abi::RuleVerdict::Allow as u8, requirement: 0, listener: [0; 2] }
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

fn row(mut table: Table, entries: u32, call: f64) -> Result<(), MapError> {
    let begin = Instant::now();
    for number in 0..entries {
        table.insert(key(number), value(number))?;
    }
    let fill = nanoseconds(begin, entries) - call;

    let mut random = 0x2545_f491_u32;
    let begin = Instant::now();
    for _ in 0..LOOKUPS {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        black_box(table.get(key(random % entries))?);
    }
    let look_up = nanoseconds(begin, LOOKUPS) - call;

    let tenth = entries / 10;
    let begin = Instant::now();
    for number in 0..tenth {
        table.remove(key(number))?;
    }
    let remove = nanoseconds(begin, tenth) - call;

    let (name, decision) = (table.name(), look_up * table.probes());
    let stalled = stall(|| drop(table)).as_secs_f64() * 1e3;
    println!(
        "{name:8} {entries:>9} {look_up:>10.0} {decision:>12.0} {fill:>10.0} {remove:>10.0} {stalled:>10.1}"
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let call = system_call()?;
    let quiet = stall(|| ()).as_secs_f64() * 1e3;
    println!("system call {call:.0} ns (taken off below), quiet stall {quiet:.1} ms");
    println!("map        entries  look-up ns  decision ns  update ns  delete ns   stall ms");
    for entries in [100_000, 1_000_000] {
        row(Table::Trie(LpmTrie::create(entries, NO_PREALLOC)?), entries, call)?;
        row(Table::Hash(HashMap::create(entries, NO_PREALLOC)?), entries, call)?;
    }
    Ok(())
}
