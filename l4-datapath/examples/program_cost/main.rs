//! What a packet costs in `from_pod` and `to_pod`, and what the verifier says of all programs. Needs root.
//!
//! `cargo run -p l4-datapath --example program_cost -- packets [quick]`, or `-- verifier`. Lines of fields with a tab
//! between, for people and for the benchmark (`make bench-l4`), which runs it. The programs are loaded anew, with maps of
//! their own, in a network namespace of the process's own: what runs on this machine is not touched.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what cannot be measured has no result"
)]

mod carrier;
#[path = "../../tests/program/frame.rs"]
#[allow(dead_code, reason = "the tests need more kinds of frames")]
mod frame;
#[path = "../../tests/verifier/measure.rs"]
mod measure;
#[path = "../../tests/program/node.rs"]
#[allow(dead_code, reason = "the tests look at more of a node")]
mod node;
mod packets;
#[path = "../raw/mod.rs"]
mod raw;
#[path = "../../tests/program/run.rs"]
#[allow(dead_code, unsafe_code, reason = "the tests look at more of what comes out, as bytes")]
mod run;
#[path = "../../tests/program/world.rs"]
#[allow(dead_code, reason = "the tests meet more of the world")]
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["packets"] => packets::measure(&packets::WHOLE),
        ["packets", "quick"] => packets::measure(&packets::QUICK),
        ["verifier"] => verifier(),
        _ => {
            eprintln!("usage: program_cost packets [quick] | verifier");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Program, then instructions, own stack and largest function's stack, each measured and allowed.
fn verifier() {
    for (took, may) in measure::measure().iter().zip(measure::budgets()) {
        let columns =
            [[took.instructions, may.instructions], [took.stack, may.stack], [took.function, may.function]];
        let columns: Vec<_> = columns.as_flattened().iter().map(u32::to_string).collect();
        println!("{}\t{}", took.program, columns.join("\t"));
    }
}
