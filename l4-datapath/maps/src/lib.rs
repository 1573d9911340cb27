//! Typed handles over the kernel maps, and the one table of what each map must be.
//!
//! Promise: a handle exists only for a map whose key and value have the sizes that [`abi`] says; each handle names the
//! map's one writer; every error names the map and what was being done. No policy, no ordering, no caching: what is
//! written when is decided by `l4-datapath`.

mod array;
mod auth;
mod batch;
mod connection;
mod device;
mod hash;
mod hold;
mod listener;
mod mapped;
mod node;
mod reader;
pub mod scratch;
mod service;
mod spec;
mod trie;
mod trigger;

pub use array::{Assignments, Lost, Usage};
pub use auth::{Leases, Marks, Pairs, handed_over};
pub use connection::{Connections4, Connections6, Sockets, Translations};
pub use device::Devices;
pub use hash::{Drops, Endpoints};
pub use hold::{Hold, HoldCounts};
pub use listener::Listeners;
pub use node::Node;
pub use reader::{Identities, Owner};
pub use service::{Backends, Frontends, Members, Services, Slots};
pub use spec::{Difference, Sizes, Spec, specs};
pub use trie::{Ipcache, Prefix, Rules, Unmasqueraded};
pub use trigger::{Namespaces, Triggers};

/// A map operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {operation}: {source}")]
pub struct Error {
    /// Name of the map, one of [`abi::map`].
    pub map: &'static str,
    /// What was being done.
    pub operation: &'static str,
    /// What the kernel or aya said.
    pub source: aya::maps::MapError,
}

impl Error {
    fn of(map: &'static str, operation: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self { map, operation, source }
    }
}

/// Removing what is not there is done already: makes removal repeatable after a crash half-way.
fn absent_is_fine(result: Result<(), aya::maps::MapError>) -> Result<(), aya::maps::MapError> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}
