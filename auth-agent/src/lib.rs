//! The auth-agent: proves workloads to one another by SPIFFE mTLS and keeps the kernel's marks true.
//!
//! Promise: a mark stands in the map only while both ends are attested by the nodes that own their addresses, both have
//! proven the SPIFFE IDs that the authority gives them, policy asks for it, and both nodes' words are fresh; and no
//! withdrawal is older than the design allows. Every failure is a missing mark.
//!
//! Two halves. [`machine`] decides: a state machine without I/O, clock or TLS, to which everything that happens is an
//! [`Input`](event::Input) and which wants everything as an [`Output`](event::Output); the simulation drives it with a
//! clock, a network and a kernel of its own. `driver` acts: sockets, handshakes, certificates, maps, the hold device.

pub mod driver;
pub mod event;
pub mod machine;
pub mod message;
