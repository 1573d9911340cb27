//! The kernel datapath of this node: what it offers, loading, pinning, attaching, applying plans, reading events and
//! counters.
//!
//! Promise: what is in force stays in force whatever happens to this process; a plan becomes true whole or not at all;
//! a restart with an unchanged plan disturbs no packet; [`remove`] leaves nothing. Nothing here decides who may talk to
//! whom: that is `mesh::policy`, and the programs ask its tables.

mod address;
mod apply;
mod attach;
mod callers;
mod cgroup;
pub mod counters;
mod datapath;
mod error;
pub mod event;
pub mod flow;
pub mod foreign;
mod grace;
mod hold;
mod masquerade;
mod memory;
pub mod metrics;
mod pins;
pub mod probe;
mod programs;
pub mod redirect;
mod sys;
mod view;

pub use apply::{Report, ServiceReport};
pub use attach::Hook;
pub use datapath::{Adoption, Datapath, Options};
pub use error::Error;
pub use maps::Sizes;
pub use pins::{leftovers, remove};
pub use view::View;
