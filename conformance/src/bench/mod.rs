//! Benchmarks: what Ferromesh costs beside what it replaces, on this machine, in the same run.

pub mod report;
