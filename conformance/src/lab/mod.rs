//! Nodes as network namespaces: each has its own directories, pins, cgroup and agent, and runs the real binary.

mod command;
mod node;

pub use command::{Outcome, Session, wait_until};
pub use node::{Node, Workload, binary};
