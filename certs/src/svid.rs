//! SVIDs of our own: a chain, its key, and how one comes by them.
//!
//! Promise: a value is consistent: the key is the leaf's, the ID the one it was asked for. Keys are wiped from memory when
//! they are dropped, and never printed.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use mesh::spiffe::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use zeroize::{Zeroize, Zeroizing};

use crate::bundle::{certificate_pem, pem};
use crate::file::{self, Access, FileError};
use crate::verify::{MAX_CHAIN, earliest_end};
use crate::x509::{self, Flaw};

/// Why material is no SVID.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// Length of the chain.
    #[error("an SVID has 1 to {MAX_CHAIN} certificates, this one {0}")]
    Length(usize),
    /// The leaf.
    #[error("the certificate is no SVID: {0}")]
    Leaf(Flaw),
    /// An issuer.
    #[error("certificate {0} of the chain cannot have signed the one before: {1}")]
    Issuer(usize, Flaw),
    /// It is another's.
    #[error("the certificate is {found}'s, not {expected}'s")]
    WrongId {
        /// Whose it is.
        found: SpiffeId,
        /// Whose it should be.
        expected: SpiffeId,
    },
    /// The key.
    #[error("the key is of no use: {0}")]
    Key(String),
    /// The key is another's.
    #[error("the key is not that of the certificate")]
    OtherKey,
    /// The text that should hold both.
    #[error("not readable as PEM with one PKCS#8 key and a chain: {0}")]
    Pem(String),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A chain, leaf first, without the root, and its key.
#[derive(Clone)]
pub struct Svid {
    id: SpiffeId,
    serial: String,
    not_before: UnixTime,
    not_after: UnixTime,
    /// PKCS#8.
    key: Arc<Zeroizing<Vec<u8>>>,
    certified: Arc<CertifiedKey>,
}

impl Svid {
    /// Checks that they belong together and are `expected`'s. Whether anybody trusts it is not looked at.
    pub fn new(
        expected: &SpiffeId,
        chain: Vec<CertificateDer<'static>>,
        key: Zeroizing<Vec<u8>>,
    ) -> Result<Self, SvidError> {
        let (first, issuers) = match chain.as_slice() {
            [leaf, issuers @ ..] if chain.len() <= MAX_CHAIN => (leaf, issuers),
            _ => return Err(SvidError::Length(chain.len())),
        };
        let leaf = x509::leaf(first).map_err(SvidError::Leaf)?;
        if leaf.id != *expected {
            return Err(SvidError::WrongId { found: leaf.id, expected: expected.clone() });
        }
        for (index, issuer) in issuers.iter().enumerate() {
            x509::signer_of(issuer, expected.trust_domain())
                .map_err(|flaw| SvidError::Issuer(index + 2, flaw))?;
        }
        let not_after = earliest_end(&chain).map_err(|_| SvidError::Length(0))?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.as_slice()));
        let signing = any_ecdsa_type(&der).map_err(|error| SvidError::Key(error.to_string()))?;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|_| SvidError::OtherKey)?;
        Ok(Self {
            id: leaf.id,
            serial: leaf.serial,
            not_before: leaf.not_before,
            not_after,
            key: Arc::new(key),
            certified: Arc::new(certified),
        })
    }

    /// Whose.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The leaf's serial number, in hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// From when the leaf is valid.
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// The earliest end of any certificate of the chain.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// For rustls.
    pub(crate) fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// Key and chain as PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(pem("PRIVATE KEY", &self.key));
        for certificate in self.chain() {
            text.push_str(&certificate_pem(certificate));
        }
        text
    }

    /// Reads what [`Self::to_pem`] wrote.
    pub fn from_pem(expected: &SpiffeId, text: &str) -> Result<Self, SvidError> {
        let (key, chain) = key_and_chain(text)?;
        Self::new(expected, chain, key)
    }

    /// Puts it into a file, for its owner alone, in the place of what was there.
    pub fn save(&self, path: &Path) -> Result<(), SvidError> {
        Ok(file::replace(path, self.to_pem().as_bytes(), Access::Owner, None)?)
    }

    /// Reads a file that [`Self::save`] wrote; `None` if there is none.
    pub fn load(expected: &SpiffeId, path: &Path) -> Result<Option<Self>, SvidError> {
        match file::read(path) {
            Ok(text) => Self::from_pem(expected, &text).map(Some),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("id", &self.id).field("serial", &self.serial).finish_non_exhaustive()
    }
}

/// One PKCS#8 key and certificates.
pub(crate) fn key_and_chain(
    text: &str,
) -> Result<(Zeroizing<Vec<u8>>, Vec<CertificateDer<'static>>), SvidError> {
    let mut key = None;
    let mut chain = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
        match section.map_err(|error| SvidError::Pem(error.to_string()))? {
            (SectionKind::Certificate, der) => chain.push(CertificateDer::from(der)),
            (SectionKind::PrivateKey, der) if key.is_none() => key = Some(Zeroizing::new(der)),
            (kind, mut secret) => {
                secret.zeroize();
                return Err(SvidError::Pem(format!("there is a {kind:?} too much")));
            }
        }
    }
    let key = key.ok_or_else(|| SvidError::Pem("there is no key".to_owned()))?;
    Ok((key, chain))
}

/// A fresh key, and the request for a certificate of it.
pub struct KeyRequest {
    key: Zeroizing<Vec<u8>>,
    request: Vec<u8>,
}

impl KeyRequest {
    /// With a P-256 key.
    pub fn new() -> Result<Self, SvidError> {
        let error = |error: rcgen::Error| SvidError::Key(error.to_string());
        let mut pair = KeyPair::generate().map_err(error)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&pair).map(|request| request.der().to_vec());
        let key = Zeroizing::new(pair.serialized_der().to_vec());
        pair.zeroize();
        Ok(Self { key, request: request.map_err(error)? })
    }

    /// The PKCS#10 request, DER. Its signature proves that we have the key; what the certificate says is the CA's.
    pub fn der(&self) -> &[u8] {
        &self.request
    }

    /// Takes the chain that came of it.
    pub fn finish(self, expected: &SpiffeId, chain: Vec<CertificateDer<'static>>) -> Result<Svid, SvidError> {
        Svid::new(expected, chain, self.key)
    }
}

impl fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRequest").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::{AS_IS, World, id};

    const LUKE: &str = "spiffe://rebels.example/ns/default/sa/luke";
    const VADER: &str = "spiffe://rebels.example/ns/default/sa/vader";

    #[test]
    fn a_file_holds_it_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.pem");
        assert!(Svid::load(&id(LUKE), &path).unwrap().is_none());
        let svid = World::new("rebels.example").svid(LUKE);
        svid.save(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Svid::load(&id(LUKE), &path).unwrap().unwrap();
        assert_eq!((read.serial(), read.chain()), (svid.serial(), svid.chain()));
        assert_eq!(read.to_pem(), svid.to_pem());
        std::fs::write(&path, &svid.to_pem()[..600]).unwrap();
        assert!(Svid::load(&id(LUKE), &path).is_err(), "half a file is none");
    }

    #[test]
    fn key_certificate_and_id_belong_together() {
        let world = World::new("rebels.example");
        let (luke, vader) = (world.svid(LUKE), world.svid(VADER));
        let take = |expected, chain: &[CertificateDer<'static>], key: &Svid| {
            Svid::new(&id(expected), chain.to_vec(), Zeroizing::new(key.key.to_vec()))
        };
        assert!(take(LUKE, luke.chain(), &luke).is_ok());
        assert!(matches!(take(LUKE, luke.chain(), &vader), Err(SvidError::OtherKey)));
        assert!(matches!(take(VADER, luke.chain(), &luke), Err(SvidError::WrongId { .. })));
        assert!(matches!(take(LUKE, &[], &luke), Err(SvidError::Length(0))));
        let signers = [luke.chain(), vader.chain()].concat();
        assert!(matches!(take(LUKE, &signers, &luke), Err(SvidError::Issuer(3, Flaw::IsNoCa))));
        assert!(matches!(take(LUKE, &signers[1..2], &luke), Err(SvidError::Leaf(Flaw::IsCa))));
        let key = Svid::new(&id(LUKE), luke.chain().to_vec(), Zeroizing::new(vec![1, 2, 3]));
        assert!(matches!(key, Err(SvidError::Key(_))));
    }

    #[test]
    fn pem_has_one_key() {
        let world = World::new("rebels.example");
        let (luke, vader) = (world.svid(LUKE), world.svid(VADER));
        let read = |text: &str| Svid::from_pem(&id(LUKE), text).map(drop).unwrap_err().to_string();
        let two = format!("{}{}", luke.to_pem().as_str(), vader.to_pem().as_str());
        assert!(read(&two).contains("a PrivateKey too much"));
        let none: String = luke.chain().iter().map(|der| certificate_pem(der)).collect();
        assert!(read(&none).contains("there is no key"));
    }

    #[test]
    fn nothing_that_is_printed_shows_a_key() {
        let (leaf, pair) = World::new("rebels.example").intermediate.leaf(LUKE, AS_IS);
        let key = Zeroizing::new(pair.serialize_der());
        let secret = format!("{:?}", &key[40..48]);
        let svid = Svid::new(&id(LUKE), vec![leaf], key).unwrap();
        for shown in [format!("{svid:?}"), format!("{:?}", KeyRequest::new().unwrap())] {
            assert!(!shown.contains(secret.trim_matches(['[', ']'])) && shown.len() < 300, "{shown}");
        }
    }
}
