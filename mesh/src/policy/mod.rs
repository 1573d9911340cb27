//! Policy: the model that NetworkPolicy, CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy are all read into, and
//! its compilation into rulesets.
//!
//! [`Policy`] says what a person wrote, in one vocabulary. A [`Universe`] says who there is. [`compile::ruleset`] turns
//! all policies that select a subject into one [`Ruleset`]: a flat table that the kernel answers with two look-ups.
//! [`explain`] says in words why a packet passes or not. [`oracle`] answers the same questions by reading the policies
//! directly; property tests hold all three together.

#[cfg(any(test, feature = "testing"))]
pub mod arbitrary;
pub mod compile;
mod describe;
pub mod explain;
pub mod l7;
pub mod model;
pub mod oracle;
mod pairs;
pub mod ruleset;
pub mod selector;
pub mod universe;

pub use model::*;
pub use pairs::{AuthenticatedPairs, authenticated_pairs};
pub use ruleset::*;
pub use selector::*;
pub use universe::{PeerPorts, Universe};

#[cfg(test)]
mod tests;
