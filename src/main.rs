//! Ferromesh: one binary, one verb per process or question.

mod agent;
mod cli;
mod directories;
mod teardown;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
