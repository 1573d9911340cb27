//! What the auth-agent is given to begin with: whom to trust, and a token where it has no certificate.

use std::path::Path;

use super::hierarchy::Bundle;
use super::place::{Process, remove_file};
use super::prover::Surroundings;
use super::roots::{PATROL, Roots, RootsFile};
use super::settings::Ca;

/// Files in its directory: the roots it trusts, its own certificate, what it shows to get one.
const BUNDLE: &str = "bundle.pem";
const CERTIFICATE: &str = "node.pem";
const TOKEN: &str = "join-token";

impl Surroundings {
    /// The roots to trust and, if it has no certificate of its own, what it can get one with.
    pub(super) async fn leave_credentials(&self) -> Result<(), String> {
        let read = |path: &Path, key: &str| {
            std::fs::read_to_string(path).map_err(|error| format!("{key} {}: {error}", path.display()))
        };
        let has_certificate = self.place.directory(Process::AuthAgent).join(CERTIFICATE).exists();
        let (bundle, token) = match (&self.settings.ca, &self.authority) {
            (Ca::Elsewhere { join_token, bundle, .. }, _) => {
                let token = match join_token {
                    Some(path) if !has_certificate => Some(read(path, "joinTokenFile")?),
                    _ => None,
                };
                let bundle = match bundle {
                    Some(path) => Some(read(path, "trustBundleFile")?),
                    None => None,
                };
                let bundle = bundle.filter(|text| self.told_bundle().as_ref() != Some(text));
                (bundle, token)
            }
            (Ca::Here { .. }, Some(authority)) => {
                let token =
                    if has_certificate { None } else { Some(authority.token(&self.settings.node).await?) };
                (Some(Bundle(self.place.clone()).read()?), token)
            }
            (Ca::Here { .. }, None) => (None, None),
        };
        for (name, text) in [(BUNDLE, bundle), (TOKEN, token)] {
            if let Some(text) = text {
                self.place.put(Process::AuthAgent, name, text.trim_end())?;
                if name == BUNDLE {
                    self.remember(&text)?;
                }
            }
        }
        Ok(())
    }

    /// What the auth-agent has been told of `trustBundleFile`. The CA may have told it of other roots since: the same
    /// text again would be older than those.
    fn told_bundle(&self) -> Option<String> {
        let has_any = self.place.directory(Process::AuthAgent).join(BUNDLE).exists();
        has_any.then(|| std::fs::read_to_string(self.place.told_bundle()).ok()).flatten()
    }

    /// For [`Surroundings::told_bundle`]; the embedded CA's is told always.
    pub(super) fn remember(&self, bundle: &str) -> Result<(), String> {
        let path = self.place.told_bundle();
        let written = match self.settings.ca {
            Ca::Here { .. } => remove_file(&path),
            Ca::Elsewhere { .. } => {
                let new = path.with_extension("new");
                std::fs::write(&new, bundle).and_then(|()| std::fs::rename(&new, &path))
            }
        };
        written.map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Where it is said whom to trust, besides what the CA says.
    pub(super) fn roots(&self) -> Option<Roots> {
        let (file, known) = match &self.settings.ca {
            Ca::Here { .. } => (Bundle(self.place.clone()).file(), None),
            Ca::Elsewhere { bundle, .. } => {
                let file = RootsFile { path: bundle.clone()?, may_link: true };
                (file, self.told_bundle())
            }
        };
        Some(Roots::watch(file, self.settings.trust_domain.clone(), PATROL, known))
    }
}
