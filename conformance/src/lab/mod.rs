//! Nodes as network namespaces: each has its own directories, pins, cgroup and agent, and runs the real binary.
//!
//! The node's own processes run in its cgroup, the workloads' cgroups are below it: what the agent attaches there sees
//! both and nothing else of the machine.

mod authority;
mod command;
mod empire;
mod mesh;
mod namespace;
mod node;
mod outside;
mod proof;

pub(crate) use command::wait_within;
pub(crate) use namespace::Namespace;

pub use authority::{Authority, Leaf, secret, tls_secret};
pub use command::{Outcome, Session, wait_until};
pub use empire::{ALLIANCE, DEATHSTAR, EMPIRE, RULE1, RULE1_TLS, at, rule1_with};
pub use mesh::{Mesh, placed_on};
pub use node::{Node, Workload, binary};
pub use outside::{Outside, UPLINK};
pub use proof::{HASTY, REQUIRED, REQUIRED_BY_CALLER, is_dead, policy};
