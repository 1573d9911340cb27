//! A CA for tests, in a directory of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use certs::UnixTime;
use certs::ca::{Authority, Files, Lifetimes, SVID_LIFETIME};
use certs::svid::{KeyRequest, Svid};
use mesh::spiffe::{SpiffeId, TrustDomain};
use tempfile::TempDir;

use super::trust::Trust;

pub(super) struct TestCa {
    pub(super) directory: TempDir,
    pub(super) domain: TrustDomain,
    authority: Authority,
}

impl TestCa {
    pub(super) fn new(domain: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let domain: TrustDomain = domain.parse().unwrap();
        let files = Files {
            root: directory.path().join("root"),
            directory: directory.path().join("ca"),
            owner: None,
            trust_domain: domain.clone(),
            lifetimes: Lifetimes::default(),
        };
        files.prepare(UnixTime::now()).unwrap();
        let authority = Authority::open(&files.directory, SVID_LIFETIME).unwrap();
        Self { directory, domain, authority }
    }

    pub(super) fn workload(&self, name: &str) -> SpiffeId {
        self.domain.workload("default", name).unwrap()
    }

    pub(super) fn svid(&self, id: &SpiffeId) -> Arc<Svid> {
        self.issued_at(id, UnixTime::now())
    }

    /// One that has ended, or will be valid: so many seconds from now it is fresh.
    pub(super) fn svid_of(&self, id: &SpiffeId, from_now: i64) -> Arc<Svid> {
        let now = UnixTime::now().as_secs().checked_add_signed(from_now).unwrap();
        self.issued_at(id, UnixTime::since_unix_epoch(Duration::from_secs(now)))
    }

    fn issued_at(&self, id: &SpiffeId, now: UnixTime) -> Arc<Svid> {
        let key = KeyRequest::new().unwrap();
        let chain = self.authority.issue(key.der(), id, now).unwrap();
        Arc::new(key.finish(id, chain).unwrap())
    }

    pub(super) fn bundle_file(&self) -> PathBuf {
        self.directory.path().join("bundle.pem")
    }

    /// Trusts this CA.
    pub(super) fn trust(&self) -> Trust {
        std::fs::write(self.bundle_file(), self.authority.bundle().to_pem()).unwrap();
        let mut trust = Trust::new(self.bundle_file(), certs::system_clock());
        assert!(trust.refresh(&self.domain));
        trust
    }
}
