//! What the node has seen: flows kept in a ring, filtered, printed; counters served as `/metrics`.
//!
//! Promise: observing never slows what is observed. Memory is bounded, a reader that falls behind loses events and is
//! told how many, nothing is lost silently. Flows are made elsewhere (by the reader of the kernel's ring buffer, later
//! by the proxy) and are not changed here.

pub mod access_log;
pub mod advice;
pub mod auth;
pub mod compact;
pub mod dissect;
pub mod filter;
pub mod http;
pub mod jsonpb;
pub mod metrics;
pub mod monitor;
pub mod ring;
pub mod samples;
pub mod serve;

pub use filter::{Filter, FilterError};
pub use monitor::{Monitor, Monitored};
pub use ring::{FlowRing, Observed, Reader};
