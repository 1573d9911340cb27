//! What things mean: labels, identities, policy, the plan for a node, flows.
//!
//! Promise: pure values and pure functions. No I/O, no clock, no async, no Kubernetes client. Every room imports this
//! crate, so it imports nothing but the kernel's layout ([`abi`]) for the names both sides share.

pub mod access_log;
pub mod auth;
pub mod exchange;
pub mod flow;
pub mod identity;
pub mod l7;
pub mod labels;
pub mod plan;
pub mod policy;
pub mod service;
pub mod spiffe;
pub mod workload;
