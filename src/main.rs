//! Ferromesh: one binary, one verb per process or question.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
