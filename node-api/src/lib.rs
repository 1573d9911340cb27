//! The node's unix socket: what the command line and `ferromesh run` ask the agent, and how it is framed.
//!
//! Promise: a connection carries one request and its replies, each a JSON document behind a 32-bit length in network
//! order. The first frame of each side is its [`Hello`]; sides of different [`VERSION`] say so and stop. A request is
//! at most [`MAX_REQUEST`] bytes, a reply at most [`MAX_REPLY`]: what strangers send is held in memory, what we send
//! must carry the plan of a large node. Who may ask is decided by the peer's credentials (`SO_PEERCRED`, filled in by
//! the kernel), never by what it says. No request leads to a panic of the agent.
//!
//! One request a connection, not many: the end of the connection then *is* the end of the request, which makes a
//! cancelled `observe` and the lease of an enrolment the same thing, seen by the kernel even when the client is
//! killed.

pub mod auth;
pub mod channel;
pub mod client;
mod frame;
pub mod message;
mod observation;
pub mod policy;
pub mod proxy;
pub mod server;

pub use client::{Client, ClientError, Replies};
pub use message::*;
pub use observation::*;
pub use policy::*;
pub use server::{BindError, PeerCredentials, ReplySink, Server};

/// Version of the messages; raised with any incompatible change.
pub const VERSION: u32 = 3;

/// The longest request, in bytes: files that a what-if carries. Only who may ask at all can make the agent hold one.
pub const MAX_REQUEST: usize = 1024 * 1024;

/// The longest reply, in bytes.
pub const MAX_REPLY: usize = 64 * 1024 * 1024;

/// What to tell a person whose command and agent are different builds; none if they are the same.
///
/// They still understand each other: only [`VERSION`] decides that.
pub fn build_difference(command: &str, agent: &str) -> Option<String> {
    (command != agent).then(|| {
        format!(
            "this command is build {command}, the agent is build {agent}; \
             restart the agent to run what is installed"
        )
    })
}

/// Members of this group of the host, if it exists, may ask what changes nothing.
pub const GROUP: &str = "ferromesh";
