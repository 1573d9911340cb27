//! The administrator's side: makes root and intermediate, renews the one with the other, rotates the root.
//!
//! In the CA's directory (its user's, 0700): [`CA_FILE`], the intermediate's key and certificate, and [`BUNDLE_FILE`],
//! the roots that are trusted. In the root's (the administrator's, 0700): [`ROOT_FILE`], the root's key and certificate,
//! needed for renewal only; it may be kept elsewhere between.

use std::path::PathBuf;
use std::time::Duration;

use mesh::spiffe::TrustDomain;
use rcgen::{Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, UnixTime};
use zeroize::Zeroize;

use super::{CaError, SigningFile, later, signer_params, signing_pem};
use crate::bundle::Bundle;
use crate::file::{self, Access, Owner};
use crate::x509;

/// The intermediate, in the CA's directory.
pub const CA_FILE: &str = "ca.pem";
/// The roots, in the CA's directory.
pub const BUNDLE_FILE: &str = "bundle.pem";
/// The root, in the root's directory.
pub const ROOT_FILE: &str = "root.pem";
/// The next root, while it is made known.
const NEXT_ROOT_FILE: &str = "next-root.pem";

const DAY: u64 = 24 * 60 * 60;

/// How long the CA's own certificates last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    /// The root's.
    pub root: Duration,
    /// The intermediate's; renewal is due in its last third.
    pub intermediate: Duration,
}

impl Default for Lifetimes {
    /// Ten years and one.
    fn default() -> Self {
        Self { root: Duration::from_secs(3650 * DAY), intermediate: Duration::from_secs(365 * DAY) }
    }
}

/// Where the embedded CA keeps what it has.
#[derive(Clone, Debug)]
pub struct Files {
    /// Directory of the root's key.
    pub root: PathBuf,
    /// Directory of the process that issues.
    pub directory: PathBuf,
    /// The user it runs as, whose that directory is; `None`: the caller.
    pub owner: Option<Owner>,
    /// The domain.
    pub trust_domain: TrustDomain,
    /// For what is made.
    pub lifetimes: Lifetimes,
}

/// A CA that can issue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// Whom is trusted.
    pub bundle: Bundle,
    /// When the intermediate ends.
    pub not_after: UnixTime,
    /// What should be seen to before that.
    pub problem: Option<String>,
}

/// What a step of a rotation has done; each is to reach every node before the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rotated {
    /// There is a new root, and it is trusted beside the old one. Next: use it.
    Announced,
    /// A new intermediate of the new root issues. Next: distrust the old root, once what it has signed has ended.
    Switched,
    /// The new root alone is trusted.
    Finished,
}

impl Files {
    /// Makes what is missing and renews what is due. A CA that was killed in the middle of this goes on where it was.
    pub fn prepare(&self, now: UnixTime) -> Result<Prepared, CaError> {
        file::make_directory(&self.root, None)?;
        file::make_directory(&self.directory, self.owner)?;
        let bundle = match self.bundle()? {
            Some(bundle) => bundle,
            None => self.first_bundle(now)?,
        };
        let current = self.intermediate(&bundle, now);
        let (why, usable) = match current {
            Ok((file, due)) if !due => return Ok(self.prepared(bundle, &file, None)),
            Ok((file, _)) => ("the intermediate certificate ends soon".to_owned(), Some(file)),
            Err(why) => (why, None),
        };
        match (self.renew(&why, &bundle, now), usable) {
            (Ok(file), _) => Ok(self.prepared(bundle, &file, None)),
            (Err(error), Some(file)) => Ok(self.prepared(bundle, &file, Some(error.to_string()))),
            (Err(error), None) => Err(error),
        }
    }

    fn prepared(&self, bundle: Bundle, file: &SigningFile, problem: Option<String>) -> Prepared {
        Prepared { bundle, not_after: file.signer.not_after, problem }
    }

    /// The next step towards another root; the old one's key is not needed. The caller sees to the time between the steps.
    pub fn rotate(&self, now: UnixTime) -> Result<Rotated, CaError> {
        let Some(bundle) = self.bundle()? else {
            return Err(CaError::Rotation("there is no CA yet".to_owned()));
        };
        let (current, next) = (self.root.join(ROOT_FILE), self.root.join(NEXT_ROOT_FILE));
        if next.exists() {
            let root = SigningFile::read(&next)?;
            if !bundle.certificates().any(|trusted| *trusted == root.certificate) {
                return self.announce(&bundle, root.certificate);
            }
            self.write_intermediate(&root, now)?;
            std::fs::rename(&next, &current)
                .map_err(|error| CaError::Rotation(format!("{}: {error}", next.display())))?;
            return Ok(Rotated::Switched);
        }
        if bundle.certificates().count() > 1 {
            let issuing = SigningFile::read(&self.directory.join(CA_FILE))?;
            let signs = |root: &&CertificateDer<'_>| x509::is_signed_by(&issuing.certificate, root);
            let kept: Vec<_> = bundle.certificates().filter(signs).cloned().collect();
            if kept.is_empty() {
                let why = "none of the roots that are trusted has signed the intermediate".to_owned();
                return Err(CaError::Rotation(why));
            }
            self.write_bundle(&Bundle::new(self.trust_domain.clone(), kept)?)?;
            return Ok(Rotated::Finished);
        }
        let certificate = self.make_root(&next, now)?;
        self.announce(&bundle, certificate)
    }

    fn announce(&self, bundle: &Bundle, root: CertificateDer<'static>) -> Result<Rotated, CaError> {
        let both = bundle.certificates().cloned().chain([root]);
        self.write_bundle(&Bundle::new(self.trust_domain.clone(), both)?)?;
        Ok(Rotated::Announced)
    }

    fn bundle(&self) -> Result<Option<Bundle>, CaError> {
        match file::read(&self.directory.join(BUNDLE_FILE)) {
            Ok(pem) => Ok(Some(Bundle::from_pem(self.trust_domain.clone(), &pem)?)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn write_bundle(&self, bundle: &Bundle) -> Result<(), CaError> {
        let path = self.directory.join(BUNDLE_FILE);
        Ok(file::replace(&path, bundle.to_pem().as_bytes(), Access::Everybody, self.owner)?)
    }

    /// There is no bundle: there is nothing yet, or only a root.
    fn first_bundle(&self, now: UnixTime) -> Result<Bundle, CaError> {
        let (root, ca) = (self.root.join(ROOT_FILE), self.directory.join(CA_FILE));
        let certificate = match SigningFile::read(&root) {
            Ok(file) => file.certificate,
            Err(CaError::File(error)) if error.is_absent() && ca.exists() => {
                let why = format!("{} is gone", self.directory.join(BUNDLE_FILE).display());
                return Err(CaError::RootNeeded { why, root });
            }
            Err(CaError::File(error)) if error.is_absent() => self.make_root(&root, now)?,
            Err(error) => return Err(error),
        };
        let bundle = Bundle::new(self.trust_domain.clone(), [certificate])?;
        self.write_bundle(&bundle)?;
        Ok(bundle)
    }

    fn make_root(&self, path: &std::path::Path, now: UnixTime) -> Result<CertificateDer<'static>, CaError> {
        let end = later(now, self.lifetimes.root);
        let params = signer_params(&self.trust_domain, "Ferromesh root CA", 1, now, end)?;
        let mut pair = KeyPair::generate()?;
        let certificate = params.self_signed(&pair)?.der().clone();
        let content = signing_pem(&pair, &certificate);
        pair.zeroize();
        file::replace(path, content.as_bytes(), Access::Owner, None)?;
        Ok(certificate)
    }

    /// The intermediate there is, and whether its renewal is due; else why it is of no use.
    fn intermediate(&self, bundle: &Bundle, now: UnixTime) -> Result<(SigningFile, bool), String> {
        let path = self.directory.join(CA_FILE);
        let file = SigningFile::read(&path).map_err(|error| error.to_string())?;
        let what = path.display();
        if file.trust_domain != self.trust_domain {
            return Err(format!(
                "{what}: it is of trust domain {}, not {}",
                file.trust_domain, self.trust_domain
            ));
        }
        if !bundle.certificates().any(|root| x509::is_signed_by(&file.certificate, root)) {
            return Err(format!("{what}: none of the roots that are trusted has signed it"));
        }
        let (begin, end) = (file.signer.not_before.as_secs(), file.signer.not_after.as_secs());
        if end <= now.as_secs() {
            return Err(format!("{what}: the intermediate certificate has ended"));
        }
        let due = end - now.as_secs() < end.saturating_sub(begin) / 3;
        Ok((file, due))
    }

    /// Makes a new intermediate with the root key, if that is at hand.
    fn renew(&self, why: &str, bundle: &Bundle, now: UnixTime) -> Result<SigningFile, CaError> {
        let path = self.root.join(ROOT_FILE);
        let root = match SigningFile::read(&path) {
            Err(CaError::File(error)) if error.is_absent() => {
                return Err(CaError::RootNeeded { why: why.to_owned(), root: path });
            }
            root => root?,
        };
        if !bundle.certificates().any(|trusted| *trusted == root.certificate) {
            return Err(CaError::RootNotTrusted { root: path, bundle: self.directory.join(BUNDLE_FILE) });
        }
        self.write_intermediate(&root, now)?;
        SigningFile::read(&self.directory.join(CA_FILE))
    }

    fn write_intermediate(&self, root: &SigningFile, now: UnixTime) -> Result<(), CaError> {
        let end = later(now, self.lifetimes.intermediate).min(root.signer.not_after);
        if end <= now {
            let problem = "the root has ended; a rotation is the way to another".to_owned();
            return Err(CaError::Content { path: self.root.join(ROOT_FILE), problem });
        }
        let issuer: &Issuer<'_, KeyPair> = &root.issuer;
        let params = signer_params(&self.trust_domain, "Ferromesh intermediate CA", 0, now, end)?;
        let mut pair = KeyPair::generate()?;
        let certificate = params.signed_by(&pair, issuer)?.der().clone();
        let content = signing_pem(&pair, &certificate);
        pair.zeroize();
        Ok(file::replace(&self.directory.join(CA_FILE), content.as_bytes(), Access::Owner, self.owner)?)
    }
}
