//! What happens on a connection, from its first byte to its end: one future for both sides.
//!
//! Promise: nothing is passed on before it has been judged by the rules and identities of now; both directions make
//! progress at the same time, neither reads more than its buffer while the other side does not take it; what breaks off does
//! not look whole at its other end; every wait has an end.

mod buffer;
mod connection;
mod deadline;
mod ends;
mod exchange;
mod explain;
mod http2;
mod inspection;
mod log;
mod open;
mod relay;
mod reply;
mod request;
mod rewrite;
mod set;
mod stream;
mod tenants;
mod tls;
mod transfer;
pub(crate) mod turn;
mod verdict;
mod waiting;
mod wire;
mod worker;

pub use connection::{Called, ConnectError, serve, serve_admitted};
pub use ends::{Found, Identities};
pub use explain::explain;
pub use log::{FlowLog, Log};
pub use stream::Stream;
pub use tenants::{Spawner, Tenants};
pub use worker::{BOUNDS, Connection, Published, Snapshot, Worker};
