//! Whatever bytes a file holds, reading it ends, says something, and never panics.
//!
//! Every file of `tests/corpus` and of `examples` is mutated in ways that keep it close to YAML: bytes changed, pieces
//! cut, doubled, swapped and taken from other files. Seeds are fixed, so a failure is repeated by running it again.
//! `MUTATIONS=n` runs n per file. An input that once failed is kept in the corpus.

use std::fs;
use std::path::Path;

use crate::analyze::analyze_text;
use crate::yaml::Severity;

/// SplitMix64: small, seeded, the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bound = u64::try_from(below.max(1)).unwrap_or(1);
        usize::try_from((z ^ (z >> 31)) % bound).unwrap_or(0)
    }

    fn range(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.roll(bytes.len() + 1);
        start..start + self.roll((bytes.len() - start).min(40) + 1)
    }
}

/// What YAML and the decoders find interesting.
const TOKENS: [&str; 24] = [
    "---\n",
    "- ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
    "\"",
    "'",
    "|\n",
    "\n  ",
    "\t",
    "~",
    "\u{0}",
    "\u{feff}",
    "4294967296",
    "-1",
    "65536",
    "0.0.0.0/0",
    "::/0",
];

fn mutate(seed: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.roll(4) {
        match dice.roll(6) {
            0 if !bytes.is_empty() => {
                let at = dice.roll(bytes.len());
                bytes[at] = u8::try_from(dice.roll(256)).unwrap_or(0);
            }
            1 => drop(bytes.drain(dice.range(&bytes))),
            2 => {
                let piece = bytes[dice.range(&bytes)].to_vec();
                let at = dice.roll(bytes.len() + 1);
                bytes.splice(at..at, piece);
            }
            3 => {
                let piece = other[dice.range(other)].to_vec();
                let at = dice.range(&bytes);
                bytes.splice(at, piece);
            }
            _ => {
                let at = dice.roll(bytes.len() + 1);
                bytes.splice(at..at, TOKENS[dice.roll(TOKENS.len())].bytes());
            }
        }
    }
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directories = [
        root.join("tests/corpus"),
        root.join("../examples/star-wars"),
        root.join("../examples/star-wars/two-nodes"),
        root.join("../examples/network-policy"),
    ];
    let mut paths: Vec<_> =
        directories.iter().flat_map(|d| fs::read_dir(d).unwrap()).map(|e| e.unwrap().path()).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn mutated_files_are_read_or_refused_but_never_break_anything() {
    let rounds = std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let seeds = seeds();
    assert!(seeds.len() > 10, "the corpus is missing");
    let (mut refused, mut read) = (0, 0);
    for (number, seed) in seeds.iter().enumerate() {
        let mut dice = Dice(number as u64);
        for _ in 0..rounds {
            let other = &seeds[dice.roll(seeds.len())];
            let bytes = mutate(seed, other, &mut dice);
            let Ok(text) = String::from_utf8(bytes) else { continue };
            let analysis = analyze_text(&text);
            match analysis.worst() {
                Some(Severity::Error) => refused += 1,
                _ => read += 1,
            }
            for located in &analysis.findings {
                assert!(located.finding.line > 0 && !located.finding.message.is_empty(), "{located:?}");
            }
        }
    }
    assert!(refused > 0 && read > 0, "mutations are neither all harmless nor all fatal");
}

#[test]
fn files_made_to_be_costly_are_refused_in_time() {
    let deep = "[".repeat(100_000);
    let wide = format!("{{{}}}", (0..150_000).map(|n| format!("k{n}: ")).collect::<Vec<_>>().join(", "));
    let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (inner, outer) in "abcdefgh".chars().zip("bcdefghi".chars()) {
        laughs.push_str(&format!("{outer}: &{outer} [{}]\n", format!("*{inner}, ").repeat(9)));
    }
    let documents = "---\na: ]\n".repeat(20_000);
    for (name, text) in [("deep", deep), ("wide", wide), ("laughs", laughs), ("documents", documents)] {
        let start = std::time::Instant::now();
        let analysis = analyze_text(&text);
        assert_eq!(analysis.worst(), Some(Severity::Error), "{name}");
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "{name} took {:?}", start.elapsed());
    }
}
