//! The issuing side: the intermediate, without any way to the root key.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use mesh::spiffe::{SpiffeId, TrustDomain};
use rcgen::{CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, UnixTime};

use super::{BUNDLE_FILE, CA_FILE, CaError, SigningFile, later, leaf_params};
use crate::bundle::Bundle;
use crate::enrol::ca_id;
use crate::file;
use crate::svid::{KeyRequest, Svid};

/// How long an SVID lasts unless said otherwise.
pub const SVID_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The longest certificate request, in bytes: one of a P-256 key has some 200.
const MAX_REQUEST: usize = 4096;
/// An uncompressed point of P-256 (SEC 1, 2.3.3).
const P256_POINT: usize = 65;

/// The CA as its process holds it.
pub struct Authority {
    file: SigningFile,
    bundle: Bundle,
    lifetime: Duration,
}

impl Authority {
    /// Reads its directory: [`CA_FILE`] and [`BUNDLE_FILE`].
    pub fn open(directory: &Path, lifetime: Duration) -> Result<Self, CaError> {
        let file = SigningFile::read(&directory.join(CA_FILE))?;
        let pem = file::read(&directory.join(BUNDLE_FILE))?;
        let bundle = Bundle::from_pem(file.trust_domain.clone(), &pem)?;
        Ok(Self { file, bundle, lifetime })
    }

    /// The domain it issues for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.file.trust_domain
    }

    /// The roots that its trust domain trusts.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// When the intermediate ends, and everything that it has issued.
    pub fn not_after(&self) -> UnixTime {
        self.file.signer.not_after
    }

    /// The chain of a certificate for `id` and the key that has signed the request. Whether the key's owner may have
    /// that ID has been decided before.
    pub fn issue(
        &self,
        request: &[u8],
        id: &SpiffeId,
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        if id.trust_domain() != self.trust_domain() || id.path().is_empty() {
            return Err(CaError::Id(id.to_string(), self.trust_domain().clone()));
        }
        let end = later(now, self.lifetime).min(self.not_after());
        if end <= now {
            return Err(CaError::Ended);
        }
        let key = request_key(request)?;
        let certificate = leaf_params(id.to_string(), now, end)?.signed_by(&key, &self.file.issuer)?;
        Ok(vec![certificate.der().clone(), self.file.certificate.clone()])
    }

    /// The certificate that its own server shows.
    pub fn own(&self, now: UnixTime) -> Result<Svid, CaError> {
        let id = ca_id(self.trust_domain())
            .map_err(|error| CaError::Id(error.text, self.trust_domain().clone()))?;
        let key = KeyRequest::new()?;
        let chain = self.issue(key.der(), &id, now)?;
        Ok(key.finish(&id, chain)?)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", self.trust_domain()).finish_non_exhaustive()
    }
}

/// The key of a request that its owner has signed. Everything else it asks for is passed over.
fn request_key(request: &[u8]) -> Result<impl PublicKeyData, CaError> {
    let refused = |why: &str| CaError::Request(why.to_owned());
    if request.len() > MAX_REQUEST {
        return Err(refused("it is too long"));
    }
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
        .map_err(|error| CaError::Request(error.to_string()))?;
    let key = request.public_key;
    // The algorithm is the signature's; the curve shows in the length of the point.
    if *key.algorithm() != PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
        return Err(refused("its key is not on the curve P-256"));
    }
    Ok(key)
}
