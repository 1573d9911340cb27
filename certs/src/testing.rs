//! Chains made to order, good but for what a test changes about them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh::spiffe::{SpiffeId, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, UnixTime};
use zeroize::Zeroizing;

use crate::Clock;
use crate::bundle::{Bundle, Bundles};
use crate::ca::{leaf_params, signer_params};
use crate::svid::Svid;

/// When everything here was issued.
pub(crate) const NOW: u64 = 1_800_000_000;
/// How long leafs last here.
pub(crate) const HOUR: u64 = 3600;

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub(crate) fn domain(text: &str) -> TrustDomain {
    text.parse().unwrap()
}

/// A clock that a test sets.
#[derive(Debug)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn at(seconds: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(seconds)))
    }

    pub(crate) fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::Relaxed);
    }

    pub(crate) fn clock(self: &Arc<Self>) -> Clock {
        self.clone()
    }
}

impl rustls::time_provider::TimeProvider for TestClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(at(self.0.load(Ordering::Relaxed)))
    }
}

/// Somebody who signs.
pub(crate) struct Signing {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

pub(crate) type Change = fn(&mut CertificateParams);

/// Nothing is changed.
pub(crate) const AS_IS: Change = |_| {};

pub(crate) fn root(domain: &TrustDomain, change: Change) -> Signing {
    let mut params = signer_params(domain, "root", 2, at(NOW), at(NOW + 100 * HOUR)).unwrap();
    change(&mut params);
    let pair = KeyPair::generate().unwrap();
    let der = params.self_signed(&pair).unwrap().der().clone();
    Signing { der, issuer: Issuer::new(params, pair) }
}

impl Signing {
    pub(crate) fn intermediate(&self, domain: &TrustDomain, change: Change) -> Self {
        let mut params = signer_params(domain, "intermediate", 1, at(NOW), at(NOW + 10 * HOUR)).unwrap();
        change(&mut params);
        let pair = KeyPair::generate().unwrap();
        let der = params.signed_by(&pair, &self.issuer).unwrap().der().clone();
        Self { der, issuer: Issuer::new(params, pair) }
    }

    pub(crate) fn leaf(&self, id: &str, change: Change) -> (CertificateDer<'static>, KeyPair) {
        let mut params = leaf_params(id.to_owned(), at(NOW), at(NOW + HOUR)).unwrap();
        change(&mut params);
        let pair = KeyPair::generate().unwrap();
        (params.signed_by(&pair, &self.issuer).unwrap().der().clone(), pair)
    }

    /// A leaf that can itself sign, as far as rcgen is concerned.
    pub(crate) fn signing_leaf(&self, id: &str, change: Change) -> Self {
        let mut params = leaf_params(id.to_owned(), at(NOW), at(NOW + HOUR)).unwrap();
        change(&mut params);
        let pair = KeyPair::generate().unwrap();
        let der = params.signed_by(&pair, &self.issuer).unwrap().der().clone();
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { der, issuer: Issuer::new(params, pair) }
    }
}

/// A trust domain with a root, an intermediate and the bundle of both.
pub(crate) struct World {
    pub(crate) domain: TrustDomain,
    pub(crate) root: Signing,
    pub(crate) intermediate: Signing,
}

impl World {
    pub(crate) fn new(name: &str) -> Self {
        let domain = domain(name);
        let root = root(&domain, AS_IS);
        let intermediate = root.intermediate(&domain, AS_IS);
        Self { domain, root, intermediate }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::new(self.domain.clone(), [self.root.der.clone()]).unwrap()
    }

    pub(crate) fn bundles(&self) -> Arc<Bundles> {
        Arc::new(Bundles::new(self.bundle()))
    }

    /// Leaf and intermediate.
    pub(crate) fn chain(&self, id: &str, change: Change) -> Vec<CertificateDer<'static>> {
        vec![self.intermediate.leaf(id, change).0, self.intermediate.der.clone()]
    }

    pub(crate) fn svid(&self, name: &str) -> Svid {
        let (leaf, pair) = self.intermediate.leaf(name, AS_IS);
        let key = Zeroizing::new(pair.serialize_der());
        Svid::new(&id(name), vec![leaf, self.intermediate.der.clone()], key).unwrap()
    }
}
