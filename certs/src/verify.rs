//! Whether a chain proves an ID.
//!
//! Promise: the ID is read from the end-entity certificate alone (the one whose key signs the handshake), and it is
//! accepted only if it is the expected one, by a path of valid certificates to a root of its own trust domain, every
//! issuer of which may sign certificates. Rejected alternatives: the ID of any other certificate of the chain (who
//! appends a victim's certificate would be the victim), and one pool of roots for all domains.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use mesh::auth::Refusal;
use mesh::spiffe::{SpiffeId, TrustDomain};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, OtherError};

use crate::bundle::Snapshot;
use crate::tls;
use crate::x509::{self, Flaw};

/// The longest chain, in certificates: a leaf and a few intermediates.
pub const MAX_CHAIN: usize = 8;

/// Whom the other side must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expected {
    /// Exactly this.
    Id(SpiffeId),
    /// One of these; [`Verified::id`] tells which.
    AnyOf(Arc<BTreeSet<SpiffeId>>),
    /// Any node of the trust domain: `spiffe://TD/ferromesh/node/NAME`.
    Node(TrustDomain),
}

impl Expected {
    /// Whether this ID is it.
    pub fn admits(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Id(expected) => id == expected,
            Self::AnyOf(expected) => expected.contains(id),
            Self::Node(domain) => id.trust_domain() == domain && node_name(id).is_some(),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::AnyOf(ids) => write!(f, "one of {} IDs", ids.len()),
            Self::Node(domain) => write!(f, "a node of {domain}"),
        }
    }
}

/// NAME of `spiffe://TD/ferromesh/node/NAME`.
pub fn node_name(id: &SpiffeId) -> Option<&str> {
    id.path().strip_prefix("/ferromesh/node/").filter(|name| !name.contains('/'))
}

/// What a chain proves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    /// Whose it is.
    pub id: SpiffeId,
    /// The leaf's serial number, in hexadecimal.
    pub serial: String,
    /// The earliest end of any certificate in it.
    pub not_after: UnixTime,
}

/// Why a chain proves nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is no certificate, or there are too many.
    #[error("the chain has {0} certificates; 1 to {MAX_CHAIN} are accepted")]
    Length(usize),
    /// The leaf is none.
    #[error("the certificate is refused: {0}")]
    Flaw(#[from] Flaw),
    /// It is somebody else's.
    #[error("the certificate is {found}'s, expected was {expected}")]
    WrongId {
        /// Whose it is.
        found: SpiffeId,
        /// Whose it had to be.
        expected: String,
    },
    /// There are no roots for its trust domain.
    #[error("the certificate of {id} is not trusted: there is no root for trust domain {domain}", domain = id.trust_domain())]
    NoBundle {
        /// Whose it says it is.
        id: SpiffeId,
    },
    /// No path leads to a root.
    #[error("the certificate of {id} is not trusted: no root of its trust domain has signed it")]
    Untrusted {
        /// Whose it says it is.
        id: SpiffeId,
    },
    /// One of the chain has ended.
    #[error("the certificate of {id} has expired, or one that signed it")]
    Expired {
        /// Whose it is.
        id: SpiffeId,
    },
    /// One of the chain is not valid yet.
    #[error("the certificate of {id} is not valid yet, or one that signed it; are the clocks right?")]
    NotYetValid {
        /// Whose it is.
        id: SpiffeId,
    },
    /// Path validation refuses it for another reason.
    #[error("the certificate of {id} is refused: {problem}")]
    Path {
        /// Whose it says it is.
        id: SpiffeId,
        /// Why.
        problem: String,
    },
}

impl VerifyError {
    /// As events, metrics and peers are told.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::WrongId { .. } => Refusal::WrongId,
            Self::NoBundle { .. } | Self::Untrusted { .. } => Refusal::Untrusted,
            Self::Expired { .. } => Refusal::Expired,
            Self::NotYetValid { .. } => Refusal::NotYetValid,
            Self::Length(_) | Self::Flaw(_) | Self::Path { .. } => Refusal::BadCertificate,
        }
    }

    /// The ID that the certificate shows, if it shows one.
    pub fn shown(&self) -> Option<&SpiffeId> {
        match self {
            Self::Length(_) | Self::Flaw(_) => None,
            Self::WrongId { found: id, .. }
            | Self::NoBundle { id }
            | Self::Untrusted { id }
            | Self::Expired { id }
            | Self::NotYetValid { id }
            | Self::Path { id, .. } => Some(id),
        }
    }

    /// The error a handshake of ours failed with, if its verifier said so.
    pub fn of(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
                cause.downcast_ref()
            }
            _ => None,
        }
    }
}

impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// Why a handshake failed, as events and metrics have it.
pub fn refusal(error: &rustls::Error) -> Refusal {
    match (VerifyError::of(error), error) {
        (Some(error), _) => error.refusal(),
        (None, rustls::Error::AlertReceived(_)) => Refusal::RefusedByPeer,
        (None, rustls::Error::NoCertificatesPresented) => Refusal::PeerNoCertificate,
        // A signature that the certificate's key did not make.
        (None, rustls::Error::InvalidCertificate(_)) => Refusal::BadCertificate,
        _ => Refusal::Protocol,
    }
}

/// The same of the errors of a TLS stream.
pub fn refusal_of_io(error: &std::io::Error) -> Refusal {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => refusal(error),
        None if error.kind() == std::io::ErrorKind::TimedOut => Refusal::TimedOut,
        None => Refusal::NodeUnreachable,
    }
}

/// The same in a sentence: a verifier's own words where it has any.
pub fn problem_of_io(error: &std::io::Error) -> String {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    cause.and_then(VerifyError::of).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Verifies a chain, leaf first: in a handshake, and again whenever the bundles change.
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    expected: &Expected,
    bundles: &Snapshot,
    now: UnixTime,
) -> Result<Verified, VerifyError> {
    let (end_entity, issuers) = match chain {
        [leaf, issuers @ ..] if chain.len() <= MAX_CHAIN => (leaf, issuers),
        _ => return Err(VerifyError::Length(chain.len())),
    };
    let leaf = x509::leaf(end_entity)?;
    let id = leaf.id;
    verify_path(end_entity, issuers, &id, bundles, now)?;
    if !expected.admits(&id) {
        return Err(VerifyError::WrongId { found: id, expected: expected.to_string() });
    }
    Ok(Verified { id, serial: leaf.serial, not_after: earliest_end(chain)? })
}

/// RFC 5280, against the roots of the ID's own domain.
fn verify_path(
    end_entity: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    id: &SpiffeId,
    bundles: &Snapshot,
    now: UnixTime,
) -> Result<(), VerifyError> {
    let domain = id.trust_domain();
    let roots = match bundles.bundle(domain) {
        Some(bundle) if !bundle.is_empty() => bundle.store(now),
        _ => return Err(VerifyError::NoBundle { id: id.clone() }),
    };
    // Path validation would take an issuer without keyCertSign, or a workload of another domain.
    let signers: Vec<CertificateDer<'_>> =
        issuers.iter().filter(|issuer| x509::signer_of(issuer, domain).is_ok()).cloned().collect();
    let parsed = ParsedCertificate::try_from(end_entity).map_err(|error| path_error(error, id))?;
    let algorithms = tls::provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &signers, now, algorithms)
        .map_err(|error| path_error(error, id))
}

fn path_error(error: rustls::Error, id: &SpiffeId) -> VerifyError {
    let id = id.clone();
    let rustls::Error::InvalidCertificate(error) = error else {
        return VerifyError::Path { id, problem: error.to_string() };
    };
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => VerifyError::Expired { id },
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            VerifyError::NotYetValid { id }
        }
        // A root of the right name and the wrong key is no root of this certificate.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => VerifyError::Untrusted { id },
        other => VerifyError::Path { id, problem: rustls::Error::InvalidCertificate(other).to_string() },
    }
}

/// The earliest NotAfter of a whole chain.
pub fn earliest_end(chain: &[CertificateDer<'_>]) -> Result<UnixTime, VerifyError> {
    let ends: Vec<UnixTime> = chain.iter().map(|der| x509::not_after(der)).collect::<Result<_, _>>()?;
    ends.into_iter().min().ok_or(VerifyError::Length(0))
}

#[cfg(test)]
mod tests;
