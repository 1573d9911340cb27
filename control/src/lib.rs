//! The control plane of a node: from a directory of YAML files to what the kernel shall do.
//!
//! Promise: files → objects ([`kind`]) → what is in force ([`World`]) → what this node does ([`plan()`]). Reading is
//! strict and says everything that is wrong; nothing that was accepted is lost by a later mistake; planning is a
//! function of values. It never touches the kernel and never talks to the network.

pub mod allocate;
mod analyze;
mod authority;
mod durable;
mod fields;
mod inspect;
pub mod kind;
#[cfg(test)]
mod mutation;
mod objects;
mod plan;
pub mod source;
pub mod status;
mod trace;
mod what_if;
mod world;
mod yaml;

pub use analyze::{Analysis, Located, analyze};
pub use authority::{AdmitError, admit};
pub use fields::{L7Part, l7_fields};
pub use inspect::{Found, InspectError, inspect, selectors};
pub use objects::ObjectStatus;
pub use plan::{NodeFacts, PlanError, Planned, Planner, Present, placements, plan, still};
pub use trace::connection::{Connection, NamedEnd};
pub use trace::{TraceError, trace};
pub use what_if::{Snapshot, WhatIfError, what_if};
pub use world::{Claim, ClaimName, World};
pub use yaml::{Finding, Severity};
