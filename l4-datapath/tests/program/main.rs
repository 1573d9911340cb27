//! The kernel programs, run by the real kernel on crafted frames (`BPF_PROG_TEST_RUN`), IPv4 and IPv6 alike.
//!
//! Needs root. Each test loads its own copy of the programs with maps of its own, in a network namespace of its own;
//! nothing is pinned, and only the `live` ones attach anything. Numbers like T27 are the cases of the adversary list.
#![allow(unsafe_code, reason = "entering a namespace of the test's own and reading kernel records as bytes")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: what fails here fails the test"
)]

mod answers;
mod auth;
mod connections;
mod established;
mod extensions;
mod fragments;
mod frame;
mod from_pod;
mod fuzz;
mod hold;
mod lifetimes;
mod live;
mod masquerade;
mod neighbours;
mod node;
mod policy;
mod proxied;
mod run;
mod service;
mod service_edges;
mod service_errors;
mod to_pod;
mod world;
