//! Ferromesh: one binary, one verb per process or question.

mod agent;
mod auth_agent;
mod ca;
mod cli;
mod confine;
mod directories;
mod proxy;
mod teardown;
mod workload;

use std::process::ExitCode;

/// Version and commit, as both sides of the node socket greet with.
const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("FERROMESH_COMMIT"), ")");

/// Commit this binary was built from.
const COMMIT: &str = env!("FERROMESH_COMMIT");

fn main() -> ExitCode {
    cli::main()
}
