//! Whom this node trusts: the bundle that the agent keeps in the directory.
//!
//! Promise: a bundle that cannot be read changes nothing, and is told of; one that can is in force for every handshake
//! that begins after, and all that was verified before is judged again by who is told that it changed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use certs::bundle::{Bundle, BundleError, Bundles};
use certs::verify::{Expected, Verified, VerifyError, verify_chain};
use certs::{CertificateDer, Clock};
use mesh::spiffe::TrustDomain;
use tracing::{info, warn};

/// Bytes of the longest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// The bundles in force and where they come from.
pub(super) struct Trust {
    pub(super) bundles: Arc<Bundles>,
    pub(super) clock: Clock,
    file: PathBuf,
    /// What it held last: only what is new in it is news.
    text: Option<String>,
    /// What was wrong with it last, so that it is said once.
    problem: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("cannot read {}: {source}", file.display())]
    Io { file: PathBuf, source: io::Error },
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

impl Trust {
    /// Trusts nobody yet.
    pub(super) fn new(file: PathBuf, clock: Clock) -> Self {
        Self { bundles: Arc::default(), clock, file, text: None, problem: None }
    }

    /// Reads the file again. Whether another bundle is in force now.
    pub(super) fn refresh(&mut self, domain: &TrustDomain) -> bool {
        match self.read(domain) {
            Ok(bundle) => {
                self.problem = None;
                bundle.is_some_and(|bundle| self.trust(bundle))
            }
            Err(error) => {
                let problem = error.to_string();
                if self.problem.as_ref() != Some(&problem) {
                    warn!("{problem}; what was trusted before still is");
                    self.problem = Some(problem);
                }
                false
            }
        }
    }

    /// The CA has told its bundle. Whether it is another; then the file says so, too.
    pub(super) fn learn(&mut self, bundle: Bundle) -> bool {
        let text = bundle.to_pem();
        if !self.trust(bundle) {
            return false;
        }
        match replace(&self.file, &text) {
            Ok(()) => self.text = Some(text),
            Err(error) => warn!("cannot write {}: {error}", self.file.display()),
        }
        true
    }

    fn trust(&self, bundle: Bundle) -> bool {
        let (domain, roots) = (bundle.trust_domain().clone(), bundle.certificates().count());
        let is_new = self.bundles.replace(bundle);
        if is_new {
            info!("trust domain {domain}: {roots} roots are trusted");
        }
        is_new
    }

    fn read(&mut self, domain: &TrustDomain) -> Result<Option<Bundle>, Unreadable> {
        let mut text = String::new();
        File::open(&self.file)
            .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
            .map_err(|source| Unreadable::Io { file: self.file.clone(), source })?;
        let is_known = self.text.as_ref() == Some(&text) && self.bundles.load().bundle(domain).is_some();
        if is_known {
            return Ok(None);
        }
        let bundle = Bundle::from_pem(domain.clone(), &text)?;
        self.text = Some(text);
        Ok(Some(bundle))
    }

    /// Verifies a chain as of now: for handshakes that were made earlier.
    pub(super) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &Expected,
    ) -> Result<Verified, VerifyError> {
        let now = self.clock.current_time().ok_or(VerifyError::Length(0))?;
        verify_chain(chain, expected, &self.bundles.load(), now)
    }
}

/// Puts a file in the place of the one before: whole, or not at all.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut written = File::create(&new)?;
    written.write_all(text.as_bytes())?;
    written.sync_all()?;
    fs::rename(&new, file)
}
