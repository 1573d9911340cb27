//! Root and intermediate of the embedded CA.

use certs::ca::{BUNDLE_FILE, Files, Lifetimes};
use certs::{Owner, UnixTime};

use super::place::{Place, Process};
use super::settings::Settings;

/// Makes what is missing of them, and renews what is due; the root key is needed for that alone.
pub(super) fn make(place: &Place, settings: &Settings) -> Result<(), String> {
    let (uid, gid) = Process::Ca.owner().map_err(|error| error.to_string())?;
    let files = Files {
        root: place.root(),
        directory: place.directory(Process::Ca),
        owner: Some(Owner { uid, gid }),
        trust_domain: settings.trust_domain.clone(),
        lifetimes: Lifetimes::default(),
    };
    let prepared = files.prepare(UnixTime::now()).map_err(|error| error.to_string())?;
    if let Some(problem) = prepared.problem {
        tracing::warn!("the embedded CA: {problem}");
    }
    Ok(())
}

/// The roots, for who is to trust this CA.
pub(in crate::agent) struct Bundle(pub(super) Place);

impl Bundle {
    /// As PEM.
    pub(in crate::agent) fn read(&self) -> Result<String, String> {
        let path = self.0.directory(Process::Ca).join(BUNDLE_FILE);
        std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    }
}
