//! Mutual authentication and those who would get around it, played with real nodes. Needs root and the kernel.
#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

mod compromise;
mod faults;
mod flows;
mod scene;
mod wire;
