//! Benchmarks: what Ferromesh costs beside what it replaces, on this machine, in the same run.

mod compare;
pub mod load;
pub mod observe;
mod path;
pub mod plan;
pub mod report;
pub mod socket_lb;
pub mod tc;
