//! Ferromesh: one binary, one verb per process or question.

mod cli;
mod workload;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
