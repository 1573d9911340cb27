//! Auth-agents as they run, in one process: real sockets, certificates of a real CA, maps of the kernel. Need root: they
//! make maps and network namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test file: they are how a test fails"
)]

mod clock;
mod door;
mod mesh_of_two;
mod world;
