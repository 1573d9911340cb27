//! The node's DNS: names of services, for workloads and the host, and a way on for all other names.
//!
//! Promise: names of the cluster domain are answered here, at once, whatever becomes of other servers ([`zone`]); all
//! other names are asked of the upstream servers ([`forward`]). Only workloads and this node get answers. New services
//! are visible to the next question after [`Names::set`] returns. It runs in the agent's runtime and waits for nothing
//! but its sockets; each loop, queue and wait in it is bounded.
//!
//! The wire format is the `domain` crate's: it parses without panicking and brings three crates along, where
//! hickory-proto brings forty. Of hickory-server and -resolver nothing would be left to use: who may ask, which answers
//! are believed and what is bounded is the point here.

mod bind;
mod forward;
mod message;
mod metrics;
mod places;
pub(crate) mod resolver;
mod reverse;
mod server;
mod upstreams;
mod zone;

pub use bind::BindError;
pub use metrics::Metrics;
pub use server::{Names, Server, Settings};
