//! What the SPIFFE standard asks of a certificate beyond RFC 5280's path validation (`X509-SVID.md` sections 2 to 5).
//!
//! Promise: everything webpki does not look at is looked at here: key usage, basic constraints, the number of URI names,
//! who may sign. What cannot be read is refused, never passed over.

use mesh::spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
use rustls::pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// General name of a URI, as a context tag (RFC 5280, 4.2.1.6).
const URI_TAG: u32 = 6;

/// Why a certificate is not what it is shown as.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Flaw {
    /// It is no X.509 certificate, or has an extension that cannot be read.
    #[error("it cannot be read: {0}")]
    Malformed(String),
    /// A workload's has exactly one.
    #[error("it has {0} URI names instead of one")]
    UriNames(usize),
    /// The one it has is not of the characters that a URI has.
    #[error("its URI name is not ASCII")]
    UriIsNoText,
    /// The URI is no SPIFFE ID.
    #[error(transparent)]
    Id(#[from] SpiffeIdError),
    /// A workload's ID has a path.
    #[error("its {0} is a trust domain's own, not a workload's")]
    NoPath(SpiffeId),
    /// A signing certificate's ID has none.
    #[error("it signs others, yet its {0} is a workload's")]
    SignerWithPath(SpiffeId),
    /// It belongs to another trust domain.
    #[error("it is of trust domain {0}")]
    Foreign(TrustDomain),
    /// Basic constraints are missing.
    #[error("it does not say that it is no CA (basic constraints are missing)")]
    NoBasicConstraints,
    /// A CA's certificate authenticates nobody.
    #[error("it is a CA's")]
    IsCa,
    /// Not a CA's.
    #[error("it is not a CA's")]
    IsNoCa,
    /// Key usage is missing.
    #[error("it has no key usage")]
    NoKeyUsage,
    /// digitalSignature is missing.
    #[error("its key usage lacks digitalSignature")]
    NoDigitalSignature,
    /// keyCertSign where none belongs.
    #[error("its key may sign certificates")]
    SignsCertificates,
    /// cRLSign where none belongs.
    #[error("its key may sign revocation lists")]
    SignsRevocations,
    /// keyCertSign is missing.
    #[error("its key may not sign certificates")]
    NoCertificateSigning,
    /// Extended key usage, but not both.
    #[error("its extended key usage lacks server or client authentication")]
    OnePurpose,
}

/// A workload's or node's certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    /// In hexadecimal.
    pub(crate) serial: String,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

/// Reads an end-entity certificate by every rule for an X509-SVID that a single certificate can break.
pub(crate) fn leaf(der: &[u8]) -> Result<Leaf, Flaw> {
    let certificate = parse(der)?;
    match basic_constraints(&certificate)? {
        None => return Err(Flaw::NoBasicConstraints),
        Some(true) => return Err(Flaw::IsCa),
        Some(false) => {}
    }
    let usage = certificate.key_usage().map_err(malformed)?.ok_or(Flaw::NoKeyUsage)?.value;
    if usage.key_cert_sign() {
        return Err(Flaw::SignsCertificates);
    }
    if usage.crl_sign() {
        return Err(Flaw::SignsRevocations);
    }
    if !usage.digital_signature() {
        return Err(Flaw::NoDigitalSignature);
    }
    both_purposes(&certificate)?;
    let id = match uri_names(&certificate)?.as_slice() {
        [Some(name)] => name.parse::<SpiffeId>()?,
        [None] => return Err(Flaw::UriIsNoText),
        names => return Err(Flaw::UriNames(names.len())),
    };
    if id.path().is_empty() {
        return Err(Flaw::NoPath(id));
    }
    let validity = certificate.validity();
    Ok(Leaf {
        id,
        serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        not_before: seconds(validity.not_before),
        not_after: seconds(validity.not_after),
    })
}

/// A certificate that signs others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Signer {
    /// Whose it says it is, if it says so.
    pub(crate) trust_domain: Option<TrustDomain>,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

/// Reads a signing certificate: a root's or an intermediate's.
pub(crate) fn signer(der: &[u8]) -> Result<Signer, Flaw> {
    let certificate = parse(der)?;
    if basic_constraints(&certificate)? != Some(true) {
        return Err(Flaw::IsNoCa);
    }
    let usage = certificate.key_usage().map_err(malformed)?.ok_or(Flaw::NoKeyUsage)?.value;
    if !usage.key_cert_sign() {
        return Err(Flaw::NoCertificateSigning);
    }
    both_purposes(&certificate)?;
    let trust_domain = match uri_names(&certificate)?.as_slice() {
        [] => None,
        [Some(name)] => {
            let id: SpiffeId = name.parse()?;
            if !id.path().is_empty() {
                return Err(Flaw::SignerWithPath(id));
            }
            Some(id.trust_domain().clone())
        }
        [None] => return Err(Flaw::UriIsNoText),
        names => return Err(Flaw::UriNames(names.len())),
    };
    let validity = certificate.validity();
    Ok(Signer {
        trust_domain,
        not_before: seconds(validity.not_before),
        not_after: seconds(validity.not_after),
    })
}

/// Reads a signing certificate that must not say it is of another trust domain.
pub(crate) fn signer_of(der: &[u8], trust_domain: &TrustDomain) -> Result<Signer, Flaw> {
    let signer = signer(der)?;
    match &signer.trust_domain {
        Some(other) if other != trust_domain => Err(Flaw::Foreign(other.clone())),
        _ => Ok(signer),
    }
}

/// When any certificate ends.
pub(crate) fn not_after(der: &[u8]) -> Result<UnixTime, Flaw> {
    Ok(seconds(parse(der)?.validity().not_after))
}

/// The SubjectPublicKeyInfo, DER.
pub(crate) fn public_key(der: &[u8]) -> Result<Vec<u8>, Flaw> {
    Ok(parse(der)?.public_key().raw.to_vec())
}

/// Whether the key of `issuer` has made the signature of `der`.
pub(crate) fn is_signed_by(der: &[u8], issuer: &[u8]) -> bool {
    let (Ok(certificate), Ok(issuer)) = (parse(der), parse(issuer)) else { return false };
    certificate.issuer() == issuer.subject()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Flaw> {
    match X509Certificate::from_der(der) {
        Ok((&[], certificate)) => Ok(certificate),
        Ok(_) => Err(Flaw::Malformed("there are bytes after its end".to_owned())),
        Err(error) => Err(malformed(error)),
    }
}

fn malformed(error: impl std::fmt::Display) -> Flaw {
    Flaw::Malformed(error.to_string())
}

/// cA, where there is such an extension.
fn basic_constraints(certificate: &X509Certificate<'_>) -> Result<Option<bool>, Flaw> {
    Ok(certificate.basic_constraints().map_err(malformed)?.map(|extension| extension.value.ca))
}

/// If it is restricted to purposes, both ends of a connection must be among them.
fn both_purposes(certificate: &X509Certificate<'_>) -> Result<(), Flaw> {
    match certificate.extended_key_usage().map_err(malformed)? {
        Some(purposes) if !(purposes.value.server_auth && purposes.value.client_auth) => {
            Err(Flaw::OnePurpose)
        }
        _ => Ok(()),
    }
}

/// All URI names, whatever their scheme; `None` for one that is no text.
fn uri_names<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<Option<&'a str>>, Flaw> {
    let Some(names) = certificate.subject_alternative_name().map_err(malformed)? else {
        return Ok(Vec::new());
    };
    let uri = |name: &'a GeneralName<'_>| match name {
        GeneralName::URI(text) => Some(Some(*text)),
        GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(None),
        _ => None,
    };
    Ok(names.value.general_names.iter().filter_map(uri).collect())
}

/// Nothing of ours began before 1970.
fn seconds(time: ASN1Time) -> UnixTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}
