//! TLS that the proxy takes part in, made of what stands in Secrets.
//!
//! Promise: what is made of the same texts is the same one, with its sessions, for as long as somebody has it. What is not
//! there, a Secret or an item of it, is found when a connection wants it, and nothing else suffers. What is there and cannot be
//! used is told; what was made of the same items before, if somebody still has it, stays in its place. Keys are not shown.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Weak};

use mesh::l7::{SecretItems, TlsContext, TlsSecret};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Which versions of HTTP are offered, or accepted, by their names in ALPN (RFC 7301).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer {
    /// Nothing is said of it.
    Nothing,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Either.
    Both,
}

impl Offer {
    const ALL: [Self; 4] = [Self::Nothing, Self::Http1, Self::Http2, Self::Both];

    /// What one that says these names offers of what is known here.
    pub fn of<'a>(names: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut http1, mut http2) = (false, false);
        for name in names {
            http1 |= name == b"http/1.1";
            http2 |= name == b"h2";
        }
        match (http1, http2) {
            (false, false) => Self::Nothing,
            (true, false) => Self::Http1,
            (false, true) => Self::Http2,
            (true, true) => Self::Both,
        }
    }

    fn names(self) -> Vec<Vec<u8>> {
        let names: &[&[u8]] = match self {
            Self::Nothing => &[],
            Self::Http1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
            Self::Both => &[b"h2", b"http/1.1"],
        };
        names.iter().map(|name| name.to_vec()).collect()
    }
}

/// What clients are shown.
pub type Terminating = PerOffer<ServerConfig>;

/// How servers are known.
pub type Originating = PerOffer<ClientConfig>;

/// The same for each offer, in their order.
#[derive(Debug)]
pub struct PerOffer<T>([Arc<T>; 4]);

impl<T: Clone> PerOffer<T> {
    /// `name` has one say the names of its offer.
    fn new(config: &T, name: fn(&mut T, Vec<Vec<u8>>)) -> Self {
        Self(Offer::ALL.map(|offer| {
            let mut config = config.clone();
            name(&mut config, offer.names());
            Arc::new(config)
        }))
    }

    /// That of this offer.
    pub fn config(&self, offer: Offer) -> Arc<T> {
        let [nothing, http1, http2, both] = &self.0;
        Arc::clone(match offer {
            Offer::Nothing => nothing,
            Offer::Http1 => http1,
            Offer::Http2 => http2,
            Offer::Both => both,
        })
    }
}

/// What there is to make one of: authorities, chain, key.
type Texts = [Option<String>; 3];

/// All that have been made and are used.
#[derive(Default)]
pub(super) struct Contexts {
    terminating: Made<Terminating>,
    originating: Made<Originating>,
}

impl fmt::Debug for Contexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Contexts({}, {})", self.terminating.known.len(), self.originating.known.len())
    }
}

/// Those of one kind.
struct Made<T> {
    known: BTreeMap<Texts, Arc<T>>,
    /// By what they were made of last.
    last: BTreeMap<TlsContext, Weak<T>>,
}

impl<T> Default for Made<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), last: BTreeMap::new() }
    }
}

/// What there is of a context, and why it is not what it should be.
type Held<T> = (Option<Arc<T>>, Option<String>);

impl<T> Made<T> {
    fn of(
        &mut self,
        context: &TlsContext,
        secrets: &[TlsSecret],
        make: fn(&TlsContext, &Texts) -> Result<Option<T>, String>,
    ) -> Held<T> {
        let Some(texts) = texts(context, secrets) else { return (None, None) };
        let made = match self.known.get(&texts) {
            Some(known) => Arc::clone(known),
            None => match make(context, &texts) {
                Ok(None) => return (None, None),
                Ok(Some(made)) => Arc::new(made),
                Err(why) => return (self.last.get(context).and_then(Weak::upgrade), Some(why)),
            },
        };
        self.last.insert(context.clone(), Arc::downgrade(&made));
        self.known.insert(texts, Arc::clone(&made));
        (Some(made), None)
    }

    fn collect(&mut self) {
        self.known.retain(|_, made| Arc::strong_count(made) > 1);
        self.last.retain(|_, made| made.strong_count() > 0);
    }
}

impl Contexts {
    /// What clients are shown; nothing: the Secret is not there, or not all that is needed of it. With why it cannot be used.
    pub(super) fn terminating(&mut self, context: &TlsContext, secrets: &[TlsSecret]) -> Held<Terminating> {
        self.terminating.of(context, secrets, terminating)
    }

    /// How servers are known; likewise.
    pub(super) fn originating(&mut self, context: &TlsContext, secrets: &[TlsSecret]) -> Held<Originating> {
        self.originating.of(context, secrets, originating)
    }

    /// Forgets those that nobody has any more.
    pub(super) fn collect(&mut self) {
        self.terminating.collect();
        self.originating.collect();
    }
}

/// `None`: what must be there is not.
fn texts(context: &TlsContext, secrets: &[TlsSecret]) -> Option<Texts> {
    let SecretItems(items) = &secrets.iter().find(|secret| secret.name == context.secret)?.items;
    let all = context.items().map(|(name, is_named)| (items.get(name).cloned(), is_named));
    let is_whole = all.iter().all(|(text, is_named)| text.is_some() || !is_named);
    let [_, (chain, _), (key, _)] = &all;
    (is_whole && chain.is_some() == key.is_some()).then(|| all.map(|(text, _)| text))
}

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

fn terminating(context: &TlsContext, [ca, chain, key]: &Texts) -> Result<Option<Terminating>, String> {
    let unusable = |error: &dyn fmt::Display| format!("Secret {}: {error}", context.secret);
    let Some((chain, key)) = own(context, chain.as_ref(), key.as_ref())? else { return Ok(None) };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| unusable(&error))?;
    let builder = match roots(context, ca.as_ref())? {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&PROVIDER)).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| unusable(&error))?)
        }
    };
    let config = builder.with_single_cert(chain, key).map_err(|error| unusable(&error))?;
    Ok(Some(PerOffer::new(&config, |config, names| config.alpn_protocols = names)))
}

fn originating(context: &TlsContext, [ca, chain, key]: &Texts) -> Result<Option<Originating>, String> {
    let unusable = |error: &dyn fmt::Display| format!("Secret {}: {error}", context.secret);
    let Some(roots) = roots(context, ca.as_ref())? else { return Ok(None) };
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&PROVIDER)).build();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| unusable(&error))?;
    let builder = builder.with_webpki_verifier(verifier.map_err(|error| unusable(&error))?);
    let config = match own(context, chain.as_ref(), key.as_ref())? {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| unusable(&error))?,
    };
    Ok(Some(PerOffer::new(&config, |config, names| config.alpn_protocols = names)))
}

/// The own chain and its key, if both are there.
fn own(
    context: &TlsContext,
    chain: Option<&String>,
    key: Option<&String>,
) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, String> {
    let [_, (chain_name, _), (key_name, _)] = context.items();
    let Some((chain, key)) = chain.zip(key) else { return Ok(None) };
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|_| format!("{key_name} of Secret {} is no private key in PEM", context.secret))?;
    Ok(Some((certificates(context, chain_name, chain)?, key)))
}

fn roots(context: &TlsContext, ca: Option<&String>) -> Result<Option<Arc<RootCertStore>>, String> {
    let Some(ca) = ca else { return Ok(None) };
    let [(name, _), ..] = context.items();
    let mut roots = RootCertStore::empty();
    for certificate in certificates(context, name, ca)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{name} of Secret {} is of no authority: {error}", context.secret))?;
    }
    Ok(Some(Arc::new(roots)))
}

fn certificates(
    context: &TlsContext,
    name: &str,
    text: &str,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!("{name} of Secret {} has no certificate in PEM", context.secret)),
    }
}
