//! Certificates: who verifies them, who issues them, who holds them.
//!
//! Promise: a chain is accepted only as the SPIFFE standard has it (`X509-SVID.md`), for the ID that was expected,
//! against the bundle of that ID's trust domain alone. What decides is a function of values; the one thing here that
//! talks to others is [`enrol`], by which a node gets certificates of a CA.

pub mod bundle;
pub mod ca;
pub mod enrol;
mod file;
pub mod svid;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod verify;
mod x509;

pub use file::{FileError, Owner};
pub use rustls::pki_types::{CertificateDer, UnixTime};

/// Where the time comes from; tests bring their own.
pub type Clock = std::sync::Arc<dyn rustls::time_provider::TimeProvider>;

/// The machine's.
pub fn system_clock() -> Clock {
    std::sync::Arc::new(rustls::time_provider::DefaultTimeProvider)
}
