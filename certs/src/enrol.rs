//! How a node gets certificates of its CA: TLS 1.3 on TCP, one request and one answer per connection, but for
//! a node that waits for another bundle, which keeps asking on one.
//!
//! The client always verifies that the server is `spiffe://TD/ferromesh/ca`. A node shows its own certificate, except
//! when it joins: then its token says who it is, once.

pub mod client;
pub mod message;
pub mod server;
pub mod token;

pub use client::{Client, EnrolError, Watch};
pub use message::Denied;

use mesh::spiffe::{SpiffeId, SpiffeIdError, TrustDomain};

/// `spiffe://TD/ferromesh/ca`: the ID of the CA's own server.
pub fn ca_id(trust_domain: &TrustDomain) -> Result<SpiffeId, SpiffeIdError> {
    format!("spiffe://{trust_domain}/ferromesh/ca").parse()
}
