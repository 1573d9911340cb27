//! What holds of every input, for each of the things that read what strangers send: the fuzz targets of `../../fuzz` are these
//! functions. Here they are asked of the kept inputs, among them all that fuzzing has found, and of mutations of those.
//!
//! Each panics where its property does not hold, and says whether the input was accepted.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test file: they are how a test fails"
)]
#![allow(unreachable_pub, dead_code, reason = "the fuzz targets have these modules, too")]

mod cut;
#[path = "../harness/mod.rs"]
mod harness;
mod hello;
mod http1;
mod http2;
mod path;
mod request;
mod response;
mod run;
mod stream;

use std::path::Path;

use harness::random::Random;
use run::run;

/// The kept inputs of a target, in order.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Asks a property of all kept inputs, and of so many made of them (`MUTATIONS=`: of so many instead).
fn ask(target: &str, rounds: usize, holds: fn(&[u8]) -> bool) {
    let seeds = seeds(target);
    assert!(
        seeds.iter().filter(|seed| holds(seed)).count() * 4 > seeds.len(),
        "{target}: what is kept is of use"
    );
    let inserts: [&[u8]; 10] =
        [b"\r\n", b"\n", b"\0", b" ", b":", b"%2F", b"/../", b"Content-Length: 1\r\n", b"0\r\n\r\n", b"\xff"];
    let mut random = Random(0x5eed);
    let rounds = std::env::var("MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(rounds);
    let mut accepted = 0;
    for _ in 0..rounds {
        let mut input = seeds[random.below(seeds.len())].clone();
        for _ in 0..random.below(4) {
            let at = random.below(input.len().max(1)).min(input.len());
            match random.below(5) {
                0 if at < input.len() => input[at] = random.below(256) as u8,
                1 if at < input.len() => drop(input.remove(at)),
                2 => {
                    let other = &seeds[random.below(seeds.len())];
                    let from = random.below(other.len().max(1)).min(other.len());
                    input.splice(at..at, other[from..].iter().copied());
                }
                3 if at < input.len() => input[at] ^= 1 << random.below(8),
                _ => drop(input.splice(at..at, inserts[random.below(inserts.len())].iter().copied())),
            }
        }
        accepted += usize::from(holds(&input));
    }
    assert!(accepted > rounds / 20, "{target}: {accepted} of {rounds} mutated inputs are accepted");
}

#[test]
fn mutated_requests_have_one_reading() {
    ask("request", 10_000, request::holds);
}

#[test]
fn mutated_answers_have_one_reading() {
    ask("response", 10_000, response::holds);
}

#[test]
fn mutated_hellos_have_one_name() {
    ask("hello", 10_000, hello::holds);
}

#[test]
fn mutated_paths_are_judged_by_all_that_servers_make_of_them() {
    ask("path", 5_000, path::holds);
}

#[test]
fn mutated_streams_reach_the_server_only_as_requests_that_may_pass() {
    ask("stream", 500, stream::holds);
}

#[test]
fn mutated_header_lists_are_the_same_request_in_http1() {
    ask("http2", 500, http2::lists);
}

#[test]
fn mutated_frames_reach_the_server_only_as_requests_that_may_pass() {
    ask("frames", 500, http2::frames);
}
