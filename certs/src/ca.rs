//! The embedded CA: a root that can be kept elsewhere, an intermediate, and what is issued with it.
//!
//! Promise: a certificate is issued for a key whose owner has signed the request, says one SPIFFE ID of this trust
//! domain and nothing else, and ends before its issuer. Files are whole at any moment ([`crate::file`]), and each holds
//! what belongs together: a key and its certificate are one file.
//!
//! [`Files`] is the administrator's side (root key at hand or not), [`Authority`] the issuing process's, which sees its
//! own directory alone.

mod files;
mod issue;

pub use files::{BUNDLE_FILE, CA_FILE, Files, Lifetimes, Prepared, ROOT_FILE, Rotated};
pub use issue::{Authority, SVID_LIFETIME};

use std::path::PathBuf;

use mesh::spiffe::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use time::OffsetDateTime;
use zeroize::{Zeroize, Zeroizing};

use crate::bundle::{BundleError, certificate_pem, pem};
use crate::file::{self, FileError};
use crate::svid::{SvidError, key_and_chain};
use crate::x509::{self, Flaw, Signer};

/// How far certificates begin in the past, for clocks that are behind.
pub(crate) const BACKDATED: u64 = 60;

/// Why the CA cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file or directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A file that should hold a key and its certificate.
    #[error("{}: {problem}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no intermediate that is of use, and no root key to make one.
    #[error("{why}; {} is needed to make one: put the root key back, then take it away again", root.display())]
    RootNeeded {
        /// What is wrong with the intermediate.
        why: String,
        /// Where the root key belongs.
        root: PathBuf,
    },
    /// The root key at hand is not one of the bundle's.
    #[error("{}: its certificate is not in {}: nobody would trust what it signs; add it there or remove the file",
        root.display(), bundle.display())]
    RootNotTrusted {
        /// The root's file.
        root: PathBuf,
        /// The bundle's.
        bundle: PathBuf,
    },
    /// A step of a rotation that would come too early.
    #[error("root rotation: {0}")]
    Rotation(String),
    /// A certificate request.
    #[error("the certificate request is refused: {0}")]
    Request(String),
    /// Only IDs of the trust domain with a path.
    #[error("{0}: the CA of trust domain {1} issues for workloads and nodes of that domain alone")]
    Id(String, TrustDomain),
    /// The intermediate has ended.
    #[error("the intermediate certificate has ended; it must be renewed with the root key")]
    Ended,
    /// Our own material.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// Cryptography.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The clock tells nothing.
    #[error("there is no time")]
    NoTime,
    /// TLS could not be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// There are no random numbers.
    #[error("cannot get random numbers: {0}")]
    Random(String),
}

/// A signing key and its certificate, as one file holds them.
struct SigningFile {
    /// The signing certificate, first of the chain.
    certificate: CertificateDer<'static>,
    /// What it says.
    signer: Signer,
    /// Its trust domain, which ours always name.
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
}

impl SigningFile {
    /// Reads and checks it.
    fn read(path: &std::path::Path) -> Result<Self, CaError> {
        let text = file::read(path)?;
        let content = |problem: String| CaError::Content { path: path.to_owned(), problem };
        let (key, chain) = key_and_chain(&text).map_err(|error| content(error.to_string()))?;
        let [certificate] = <[CertificateDer<'static>; 1]>::try_from(chain)
            .map_err(|chain| content(format!("{} certificates instead of one", chain.len())))?;
        let bad = |flaw: Flaw| content(format!("the certificate is not a CA's: {flaw}"));
        let signer = x509::signer(&certificate).map_err(bad)?;
        let Some(trust_domain) = signer.trust_domain.clone() else {
            return Err(content("the certificate does not name its trust domain".to_owned()));
        };
        let mut pair = key_pair(&key).map_err(|error| content(error.to_string()))?;
        let own = x509::public_key(&certificate).map_err(bad)?;
        if own != pair.subject_public_key_info() {
            return Err(content("the key is not that of the certificate".to_owned()));
        }
        // What is left of the key is what signs.
        pair.zeroize();
        let issuer = Issuer::from_ca_cert_der(&certificate, pair)?;
        Ok(Self { certificate, signer, trust_domain, issuer })
    }
}

fn key_pair(key: &Zeroizing<Vec<u8>>) -> Result<KeyPair, rcgen::Error> {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(key.as_slice()), &PKCS_ECDSA_P256_SHA256)
}

/// Key and certificate as a file has them.
fn signing_pem(pair: &KeyPair, certificate: &CertificateDer<'_>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(pem("PRIVATE KEY", pair.serialized_der()));
    text.push_str(&certificate_pem(certificate));
    text
}

/// A certificate that signs others, `below` CAs under it.
pub(crate) fn signer_params(
    trust_domain: &TrustDomain,
    name: &str,
    below: u8,
    now: UnixTime,
    end: UnixTime,
) -> Result<CertificateParams, CaError> {
    let mut params = params(now, end, format!("spiffe://{trust_domain}"))?;
    let serial = params.serial_number.as_ref().map(SerialNumber::to_string).unwrap_or_default();
    params.distinguished_name.push(DnType::CommonName, name);
    // serialNumber (2.5.4.5): no two of ours have one name, or validation would have to try each.
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), serial.replace(':', ""));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A certificate that authenticates.
pub(crate) fn leaf_params(id: String, now: UnixTime, end: UnixTime) -> Result<CertificateParams, CaError> {
    let mut params = params(now, end, id)?;
    // `NoCa` would leave the extension out, and "not said" is not "no".
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn params(now: UnixTime, end: UnixTime, id: String) -> Result<CertificateParams, CaError> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|error| CaError::Random(error.to_string()))?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date(now.as_secs().saturating_sub(BACKDATED))?;
    params.not_after = date(end.as_secs())?;
    params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn date(seconds: u64) -> Result<OffsetDateTime, CaError> {
    let seconds = i64::try_from(seconds).map_err(|_| rcgen::Error::Time)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| rcgen::Error::Time.into())
}

fn later(now: UnixTime, by: std::time::Duration) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_secs().saturating_add(by.as_secs())))
}

#[cfg(test)]
mod tests;
