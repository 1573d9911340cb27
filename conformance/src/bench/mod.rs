//! Benchmarks: what Ferromesh costs beside what it replaces, on this machine, in the same run.

pub mod load;
pub mod observe;
pub mod plan;
pub mod report;
pub mod socket_lb;
pub mod tc;
