//! Root and intermediate of the embedded CA.
//!
//! Promise: as long as the root key is at hand the intermediate is renewed well before it ends, however long the CA runs;
//! where it is not, that is said.

use std::time::Duration;

use certs::ca::{BUNDLE_FILE, Files, Lifetimes};
use certs::{Owner, UnixTime};

use super::place::{Place, Process};
use super::roots::RootsFile;
use super::settings::Settings;

/// How often they are looked after. Renewal is due in the last third of a year.
const PERIOD: Duration = Duration::from_secs(60 * 60);
/// The same while something is wrong, for whoever puts the root key back.
const SOON: Duration = Duration::from_secs(60);

/// Looks after both.
#[derive(Default)]
pub(super) struct Hierarchy {
    /// What is wrong, said once.
    problem: Option<String>,
}

impl Hierarchy {
    /// Makes what is missing of them, and renews what is due; the root key is needed for that alone. A CA that runs takes
    /// another intermediate over when it is asked next. Returns after how long to do this again.
    pub(super) fn make(&mut self, place: &Place, settings: &Settings) -> Result<Duration, String> {
        let (uid, gid) = Process::Ca.owner().map_err(|error| error.to_string())?;
        let files = Files {
            root: place.root(),
            directory: place.directory(Process::Ca),
            owner: Some(Owner { uid, gid }),
            trust_domain: settings.trust_domain.clone(),
            lifetimes: Lifetimes::default(),
        };
        self.prepare(&files, UnixTime::now())
    }

    fn prepare(&mut self, files: &Files, now: UnixTime) -> Result<Duration, String> {
        let problem = files.prepare(now).map_err(|error| error.to_string())?.problem;
        if self.problem != problem {
            if let Some(problem) = &problem {
                tracing::warn!("the embedded CA: {problem}");
            }
            self.problem = problem;
        }
        Ok(if self.problem.is_none() { PERIOD } else { SOON })
    }

    /// After an error of [`Hierarchy::make`].
    pub(super) fn again() -> Duration {
        SOON
    }
}

/// The roots, for who is to trust this CA.
pub(in crate::agent) struct Bundle(pub(super) Place);

impl Bundle {
    /// As PEM.
    pub(in crate::agent) fn read(&self) -> Result<String, String> {
        self.file().read()
    }

    /// Where they are.
    pub(super) fn file(&self) -> RootsFile {
        RootsFile { path: self.0.directory(Process::Ca).join(BUNDLE_FILE), may_link: false }
    }
}

#[cfg(test)]
mod tests {
    use certs::ca::{CA_FILE, ROOT_FILE};

    use super::*;

    const DAY: u64 = 24 * 60 * 60;

    fn at(day: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000 + day * DAY))
    }

    #[test]
    fn an_intermediate_is_renewed_while_the_ca_runs_and_asked_for_where_the_root_key_is_away() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files {
            root: directory.path().join("root"),
            directory: directory.path().join("ca"),
            owner: None,
            trust_domain: "mesh".parse().unwrap(),
            lifetimes: Lifetimes::default(),
        };
        let intermediate = || std::fs::read_to_string(files.directory.join(CA_FILE)).unwrap();
        let mut hierarchy = Hierarchy::default();
        assert_eq!(hierarchy.prepare(&files, at(0)), Ok(PERIOD));
        let first = intermediate();
        assert_eq!(hierarchy.prepare(&files, at(200)), Ok(PERIOD));
        assert_eq!(intermediate(), first, "not due");
        assert_eq!(hierarchy.prepare(&files, at(300)), Ok(PERIOD));
        assert_ne!(intermediate(), first, "due");

        let (key, away) = (files.root.join(ROOT_FILE), directory.path().join("away"));
        std::fs::rename(&key, &away).unwrap();
        assert_eq!(hierarchy.prepare(&files, at(600)), Ok(SOON));
        assert!(hierarchy.problem.as_ref().unwrap().contains("ends soon"), "{:?}", hierarchy.problem);
        assert!(hierarchy.prepare(&files, at(700)).unwrap_err().contains("has ended"));
        std::fs::rename(&away, &key).unwrap();
        assert_eq!(hierarchy.prepare(&files, at(700)), Ok(PERIOD));
        assert_eq!(hierarchy.problem, None);
    }
}
