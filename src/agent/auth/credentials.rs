//! What the auth-agent is given to begin with: whom to trust, and a token where it has no certificate.

use std::path::Path;

use certs::UnixTime;
use certs::bundle::{Bundle as TrustBundle, Bundles};
use certs::svid::Svid;
use certs::verify::{Expected, verify_chain};
use mesh::spiffe::TrustDomain;

use super::hierarchy::Bundle;
use super::place::{Process, remove_file};
use super::prover::Surroundings;
use super::roots::{PATROL, Roots, RootsFile};
use super::settings::{Ca, Settings};

/// Files in its directory: the roots it trusts, its own certificate, what it shows to get one.
const BUNDLE: &str = "bundle.pem";
const CERTIFICATE: &str = "node.pem";
const TOKEN: &str = "join-token";

impl Surroundings {
    /// The roots to trust and, if it has no certificate of its own that is of use, what it can get one with.
    pub(super) async fn leave_credentials(&self) -> Result<(), String> {
        let bundle = match (&self.settings.ca, &self.authority) {
            (Ca::Elsewhere { bundle: Some(path), .. }, _) => {
                let text = read(path, "trustBundleFile")?;
                (self.told_bundle().as_ref() != Some(&text)).then_some(text)
            }
            (Ca::Here { .. }, Some(authority)) => {
                authority.ready().await?;
                Some(Bundle(self.place.clone()).read()?)
            }
            (Ca::Elsewhere { bundle: None, .. }, _) | (Ca::Here { .. }, None) => None,
        };
        if let Some(text) = bundle {
            self.place.put(Process::AuthAgent, BUNDLE, text.trim_end())?;
            self.remember(&text)?;
        }
        self.leave_token().await
    }

    /// What it can get a certificate of its own with, unless it has one. That of a node which was off for longer than
    /// its certificate lasts is none.
    pub(super) async fn leave_token(&self) -> Result<(), String> {
        let Settings { trust_domain, node, .. } = &self.settings;
        let directory = self.place.directory(Process::AuthAgent);
        if has_certificate(&directory, trust_domain, node, UnixTime::now()) {
            return Ok(());
        }
        let token = match (&self.settings.ca, &self.authority) {
            (Ca::Elsewhere { join_token: Some(path), .. }, _) => read(path, "joinTokenFile")?,
            (Ca::Here { .. }, Some(authority)) => authority.token(&self.settings.node).await?,
            (Ca::Elsewhere { join_token: None, .. }, _) | (Ca::Here { .. }, None) => return Ok(()),
        };
        // One that the CA has refused, or that was used, is not shown to it again and again.
        if self.left_token.lock().replace(token.clone()).as_ref() == Some(&token) {
            return Ok(());
        }
        self.place.put(Process::AuthAgent, TOKEN, token.trim_end())
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

/// A file of the administrator's.
fn read(path: &Path, key: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{key} {}: {error}", path.display()))
}

/// Whether the auth-agent has a certificate of its own that those whom it trusts accept. Its directory is not ours: what
/// is there is read as any stranger's.
fn has_certificate(directory: &Path, trust_domain: &TrustDomain, node: &str, now: UnixTime) -> bool {
    let roots = RootsFile { path: directory.join(BUNDLE), may_link: false };
    let bundle = roots.read().ok().and_then(|text| TrustBundle::from_pem(trust_domain.clone(), &text).ok());
    let (Some(bundle), Ok(id)) = (bundle, trust_domain.node(node)) else { return false };
    let Ok(Some(svid)) = Svid::load(&id, &directory.join(CERTIFICATE)) else { return false };
    verify_chain(svid.chain(), &Expected::Id(id), &Bundles::new(bundle).load(), now).is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use certs::ca::{Authority, BUNDLE_FILE, Files, Lifetimes};
    use certs::svid::KeyRequest;

    use super::*;

    #[test]
    fn a_certificate_that_has_ended_or_whose_root_is_gone_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let trust_domain: TrustDomain = "mesh".parse().unwrap();
        let files = Files {
            root: directory.path().join("root"),
            directory: directory.path().join("ca"),
            owner: None,
            trust_domain: trust_domain.clone(),
            lifetimes: Lifetimes::default(),
        };
        let now = UnixTime::now();
        files.prepare(now).unwrap();
        let authority = Authority::open(&files.directory, Duration::from_secs(3600)).unwrap();
        let has = |node, later| {
            let then = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + later));
            has_certificate(directory.path(), &trust_domain, node, then)
        };
        std::fs::copy(files.directory.join(BUNDLE_FILE), directory.path().join(BUNDLE)).unwrap();
        assert!(!has("yavin", 0), "there is none");
        let (key, id) = (KeyRequest::new().unwrap(), trust_domain.node("yavin").unwrap());
        let chain = authority.issue(key.der(), &id, now).unwrap();
        key.finish(&id, chain).unwrap().save(&directory.path().join(CERTIFICATE)).unwrap();
        assert!(has("yavin", 0) && !has("hoth", 0));
        assert!(!has("yavin", 3601), "the node was off for longer");
        std::fs::write(directory.path().join(BUNDLE), "").unwrap();
        assert!(!has("yavin", 0), "nobody trusts it");
    }
}
