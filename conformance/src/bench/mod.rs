//! Benchmarks: what Ferromesh costs beside what it replaces, on this machine, in the same run.

pub mod edit_to_live;
pub mod observe;
pub mod plan;
pub mod program;
pub mod report;
pub mod run;
pub mod socket_lb;
pub mod tc;
pub mod verifier;
