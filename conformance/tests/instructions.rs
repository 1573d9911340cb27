//! The proxy's path of a request grows only on purpose.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

use conformance::instructions;

/// Instructions of a request of 1 KB in the build of the tests, which hardly optimises; and how much more or less they may
/// be: another compiler or another C library counts a little otherwise. Whoever makes the path longer says so here; whoever
/// makes it a good deal shorter too, or the next one could make it longer unseen.
const EXPECTED: u64 = 37_000;
const TOLERANCE: u64 = EXPECTED * 15 / 100;

#[test]
#[cfg(debug_assertions)]
fn a_request_takes_no_more_instructions_than_it_did() {
    let count = instructions::of_a_request(1024).unwrap();
    let range = EXPECTED - TOLERANCE..=EXPECTED + TOLERANCE;
    assert!(range.contains(&count), "{count} instructions of a request, expected {range:?}");
}
