//! Benchmarks: what Ferromesh costs beside what it replaces, on this machine, in the same run.

pub mod auth;
mod compare;
pub mod edit_to_live;
pub mod l7;
pub mod load;
pub mod observe;
mod path;
pub mod plan;
pub mod program;
pub mod report;
pub mod run;
pub mod socket_lb;
pub mod tc;
pub mod verifier;
