//! The cgroup programs on real sockets: there is no test run for their hooks.
//!
//! Each test has a network namespace, a cgroup, a pin directory and maps of its own. The maps are filled by hand, the
//! sockets are made by a process in that cgroup, this binary again, which hands them over; servers stand outside of it.
//! Needs root and BPF.
#![allow(unsafe_code, reason = "descriptors that come out of a message")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: what fails here fails the test"
)]

mod affinity;
mod attach;
mod binding;
mod calls;
mod client;
mod refusals;
#[path = "../support/mod.rs"]
mod support;
mod tables;
mod timers;
mod triggers;
mod world;
