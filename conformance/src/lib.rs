//! What needs two processes: the lab, in which real agents run real workloads in namespaces of their own.
//!
//! Promise: a lab leaves nothing behind, and touches nothing of the machine but what it names `fmlab…`; only a BPF file
//! system stays mounted where there was none. Nothing imports this crate. Scenarios are in `tests/`; all of them need
//! root and a kernel, and run.
#![allow(clippy::expect_used, clippy::panic, reason = "a lab that cannot be built is a failed test")]

pub mod bench;
pub mod credulous;
pub mod forge;
pub mod instructions;
pub mod lab;
pub mod pulse;
