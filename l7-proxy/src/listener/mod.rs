//! The process around the connections: listening sockets, workers, calls to servers, what the agent says.
//!
//! Promise: each worker is a thread with listeners of its own; it takes no connection beyond its bound; a call to a server
//! goes out in the client's name; what the agent is told as accepted is in force on every worker.

mod budgets;
mod call;
mod control;
mod kernel;
mod orders;
mod reports;
mod rules;
mod seldom;
mod workers;

pub use control::run;
pub use workers::{Listeners, Workers, descriptors, start};
