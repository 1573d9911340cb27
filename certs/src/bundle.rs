//! Whom is trusted: the roots of each trust domain, apart from those of every other.
//!
//! Promise: a verification sees one immutable [`Snapshot`]; domains are never merged; a domain without usable roots
//! trusts nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh::spiffe::TrustDomain;
use rustls::RootCertStore;
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};

use crate::tls;
use crate::x509::{self, Flaw};

/// The most roots a bundle may have; more is a mistake or an attack.
pub const MAX_ROOTS: usize = 32;

/// Why a text is no bundle.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BundleError {
    /// It is no PEM.
    #[error("bundle of trust domain {domain}: not readable as PEM: {problem}")]
    Pem {
        /// Whose.
        domain: TrustDomain,
        /// What is wrong.
        problem: String,
    },
    /// It holds something else than certificates.
    #[error("bundle of trust domain {domain}: entry {number} is a {kind}; a bundle holds certificates only")]
    Kind {
        /// Whose.
        domain: TrustDomain,
        /// Which entry, from 1.
        number: usize,
        /// What it is.
        kind: String,
    },
    /// A certificate that cannot be a root.
    #[error("bundle of trust domain {domain}: certificate {number} cannot be a root: {flaw}")]
    Root {
        /// Whose.
        domain: TrustDomain,
        /// Which entry, from 1.
        number: usize,
        /// Why.
        flaw: Flaw,
    },
    /// Too many.
    #[error("bundle of trust domain {0}: more than {MAX_ROOTS} certificates")]
    TooMany(TrustDomain),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Root {
    der: CertificateDer<'static>,
    not_before: UnixTime,
    not_after: UnixTime,
}

/// Tells one bundle from another: SHA-256 of its domain and its roots in their order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Fingerprint([u8; 32]);

/// The roots of one trust domain; none: nobody is trusted.
#[derive(Clone, Debug)]
pub struct Bundle {
    trust_domain: TrustDomain,
    roots: Vec<Root>,
    /// All roots, as webpki wants them.
    store: Arc<RootCertStore>,
}

impl Bundle {
    /// Of these certificates; the same one twice is one.
    pub fn new(
        trust_domain: TrustDomain,
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let mut roots: Vec<Root> = Vec::new();
        for (index, der) in certificates.into_iter().enumerate() {
            let bad = |flaw| BundleError::Root { domain: trust_domain.clone(), number: index + 1, flaw };
            let signer = x509::signer_of(&der, &trust_domain).map_err(bad)?;
            if roots.iter().all(|root| root.der != der) {
                roots.push(Root { der, not_before: signer.not_before, not_after: signer.not_after });
            }
            if roots.len() > MAX_ROOTS {
                return Err(BundleError::TooMany(trust_domain));
            }
        }
        let store = store(roots.iter()).map_err(|(index, error)| BundleError::Root {
            domain: trust_domain.clone(),
            number: index + 1,
            flaw: Flaw::Malformed(error.to_string()),
        })?;
        Ok(Self { trust_domain, roots, store: Arc::new(store) })
    }

    /// Reads PEM. A text without any certificate is a bundle that trusts nobody.
    pub fn from_pem(trust_domain: TrustDomain, pem: &str) -> Result<Self, BundleError> {
        let mut certificates = Vec::new();
        for (index, section) in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()).enumerate() {
            let domain = trust_domain.clone();
            match section {
                Ok((SectionKind::Certificate, der)) => certificates.push(CertificateDer::from(der)),
                Ok((kind, _)) => {
                    return Err(BundleError::Kind { domain, number: index + 1, kind: format!("{kind:?}") });
                }
                Err(error) => return Err(BundleError::Pem { domain, problem: error.to_string() }),
            }
        }
        Self::new(trust_domain, certificates)
    }

    /// As PEM, in the order given.
    pub fn to_pem(&self) -> String {
        self.roots.iter().map(|root| certificate_pem(&root.der)).collect()
    }

    /// Whose.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots.
    pub fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.der)
    }

    /// What it has in common with no other.
    pub fn fingerprint(&self) -> Fingerprint {
        let parts = std::iter::once(self.trust_domain.as_str().as_bytes());
        let parts = parts.chain(self.roots.iter().map(|root| root.der.as_ref()));
        let bytes: Vec<u8> =
            parts.flat_map(|part| [&(part.len() as u64).to_be_bytes()[..], part].concat()).collect();
        // Where there is no SHA-256 there is no TLS, and nobody to tell a fingerprint to.
        Fingerprint(tls::sha256(&bytes).unwrap_or_default())
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The roots that are valid at that time. A root is trusted by being here, yet not beyond its own end, which path
    /// validation does not look at.
    pub(crate) fn store(&self, now: UnixTime) -> Arc<RootCertStore> {
        let valid = |root: &&Root| root.not_before <= now && now <= root.not_after;
        if self.roots.iter().all(|root| valid(&root)) {
            return self.store.clone();
        }
        // Those that could not be read would have been refused by `new`.
        Arc::new(store(self.roots.iter().filter(valid)).unwrap_or_else(|_| RootCertStore::empty()))
    }
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.roots == other.roots
    }
}

impl Eq for Bundle {}

fn store<'a>(roots: impl Iterator<Item = &'a Root>) -> Result<RootCertStore, (usize, rustls::Error)> {
    let mut store = RootCertStore::empty();
    for (index, root) in roots.enumerate() {
        store.add(root.der.clone()).map_err(|error| (index, error))?;
    }
    Ok(store)
}

/// One certificate as PEM.
pub(crate) fn certificate_pem(der: &[u8]) -> String {
    pem("CERTIFICATE", der)
}

/// RFC 7468.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    // 48 bytes are a line of 64 characters.
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits =
                (0..3).fold(0u32, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
            for at in 0..4 {
                let index = (bits >> (18 - 6 * at) & 63) as usize;
                text.push(if at <= group.len() { ALPHABET[index] as char } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// All bundles at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    revision: u64,
    domains: BTreeMap<TrustDomain, Arc<Bundle>>,
}

impl Snapshot {
    /// One more after each change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// That domain's bundle; `None` as an empty one: nobody of it is trusted.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        self.domains.get(trust_domain)
    }
}

/// The bundles in force. Cheap to read from anywhere; who reads keeps what he has read.
#[derive(Debug, Default)]
pub struct Bundles {
    current: ArcSwap<Snapshot>,
}

impl Bundles {
    /// With one bundle.
    pub fn new(bundle: Bundle) -> Self {
        let bundles = Self::default();
        bundles.replace(bundle);
        bundles
    }

    /// What is in force now.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Puts a domain's bundle in the place of the one before. Whether that changed anything; only then is there a new
    /// revision.
    pub fn replace(&self, bundle: Bundle) -> bool {
        let bundle = Arc::new(bundle);
        let same = |snapshot: &Snapshot| snapshot.bundle(bundle.trust_domain()) == Some(&bundle);
        let before = self.current.rcu(|snapshot| {
            if same(snapshot) {
                return snapshot.clone();
            }
            let mut next = Snapshot::clone(snapshot);
            next.revision += 1;
            next.domains.insert(bundle.trust_domain().clone(), bundle.clone());
            Arc::new(next)
        });
        !same(&before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{AS_IS, World, domain};

    #[test]
    fn pem_is_written_as_it_is_read() {
        let (old, new) = (World::new("rebels.example"), World::new("rebels.example"));
        let both = [old.root.der.clone(), new.root.der.clone()];
        let bundle = Bundle::new(domain("rebels.example"), both.clone()).unwrap();
        let pem = bundle.to_pem();
        assert!(pem.lines().all(|line| line.len() <= 64), "{pem}");
        let read = Bundle::from_pem(domain("rebels.example"), &pem).unwrap();
        assert_eq!(read, bundle);
        assert!(read.certificates().eq(&both));
        for length in 0..100 {
            let bytes: Vec<u8> = (0..length).collect();
            let text = super::pem("CERTIFICATE", &bytes);
            let (_, back) = <(SectionKind, Vec<u8>)>::from_pem_slice(text.as_bytes()).unwrap();
            assert_eq!(back, bytes);
        }
    }

    #[test]
    fn a_text_without_certificates_trusts_nobody() {
        for text in ["", "\n", "# no roots any more\n"] {
            assert!(Bundle::from_pem(domain("rebels.example"), text).unwrap().is_empty(), "{text:?}");
        }
    }

    #[test]
    fn what_cannot_be_a_root_is_refused_by_its_number() {
        let (rebels, empire) = (World::new("rebels.example"), World::new("empire.example"));
        let leaf = rebels.intermediate.leaf("spiffe://rebels.example/a", AS_IS).0;
        let good = rebels.bundle().to_pem();
        let key = pem("PRIVATE KEY", b"secret");
        let cases = [
            (good.clone() + &certificate_pem(&leaf), "certificate 2 cannot be a root: it is not a CA's"),
            (
                good.clone() + &empire.bundle().to_pem(),
                "certificate 2 cannot be a root: it is of trust domain empire",
            ),
            (certificate_pem(b"nothing"), "certificate 1 cannot be a root: it cannot be read"),
            (good.clone() + &key, "entry 2 is a PrivateKey; a bundle holds certificates only"),
            (
                "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n".to_owned(),
                "not readable as PEM",
            ),
            (good[..good.len() / 2].to_owned(), "not readable as PEM"),
        ];
        for (text, told) in cases {
            let error = Bundle::from_pem(domain("rebels.example"), &text).unwrap_err().to_string();
            assert!(error.starts_with("bundle of trust domain rebels.example: "), "{error}");
            assert!(error.contains(told), "{error}, expected {told}");
        }
    }

    #[test]
    fn roots_are_bounded_and_the_same_one_twice_is_one() {
        let world = World::new("rebels.example");
        let same = vec![world.root.der.clone(); 2 * MAX_ROOTS];
        assert_eq!(Bundle::new(domain("rebels.example"), same).unwrap().certificates().count(), 1);
        let many = (0..=MAX_ROOTS).map(|_| World::new("rebels.example").root.der);
        assert_eq!(
            Bundle::new(domain("rebels.example"), many).unwrap_err(),
            BundleError::TooMany(domain("rebels.example"))
        );
    }

    #[test]
    fn a_snapshot_stays_and_only_changes_are_revisions() {
        let (rebels, empire) = (World::new("rebels.example"), World::new("empire.example"));
        let bundles = rebels.bundles();
        let before = bundles.load();
        assert!(!bundles.replace(rebels.bundle()), "the same again");
        assert_eq!(bundles.load().revision(), before.revision());
        assert!(bundles.replace(empire.bundle()));
        let after = bundles.load();
        assert_eq!(after.revision(), before.revision() + 1);
        assert!(before.bundle(&domain("empire.example")).is_none(), "what was read stays");
        let roots = |name| after.bundle(&domain(name)).unwrap().certificates().cloned().collect::<Vec<_>>();
        assert_eq!(roots("rebels.example"), [rebels.root.der], "domains are apart");
        assert_eq!(roots("empire.example"), [empire.root.der]);
    }
}
