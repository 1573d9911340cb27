//! The operating system as typed calls: links, addresses and routes by netlink, namespaces, cgroups, sysctls, mounts,
//! capabilities, seccomp, sockets, TAP devices,
//! clocks, processes.
//!
//! Promise: mechanism only. Nothing here knows of workloads or policy, nothing starts another program (`ip`, `nft`,
//! `mount`), and nothing assumes the machine's first network namespace. Each error names the object and the call.
//! This crate and `l4-datapath` are the only ones with `unsafe`.

pub mod capability;
pub mod cgroup;
pub mod child;
pub mod clock;
mod error;
pub mod host;
pub mod listener;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod process;
pub mod scratch;
pub mod seccomp;
pub mod sock_diag;
pub mod sysctl;
pub mod tap;
pub mod transparent;
pub mod user;
pub mod vanished;

pub use error::{Error, Result};
