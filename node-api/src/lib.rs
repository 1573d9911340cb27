//! The node's unix socket: what the command line and `ferromesh run` ask the agent, and how it is framed.
//!
//! Promise: one request, then one or more replies, each a length-delimited JSON frame of at most 4 MiB. The first
//! frame of each side is its [`Hello`]; sides of different [`VERSION`] say so and stop. Who may ask is decided by the
//! peer's credentials (`SO_PEERCRED`) in the kernel, never by what it says. No request leads to a panic of the agent.

pub mod message;

pub use message::*;

/// Version of the messages; raised with any incompatible change.
pub const VERSION: u32 = 1;
