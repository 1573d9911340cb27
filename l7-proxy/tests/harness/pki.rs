//! Authorities, certificates and Secrets for tests.
#![allow(dead_code, unreachable_pub, reason = "each test binary has it as a module and uses a part")]

use std::sync::Arc;

use mesh::l7::{SecretItems, SecretName, TlsContext, TlsSecret};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// An authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate of an authority, and its key, PEM.
pub struct Leaf {
    pub chain: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// For a name of DNS or an address.
    pub fn leaf(&self, name: &str) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Leaf { chain, key: key.serialize_pem() }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        Arc::new(roots)
    }

    /// A client that knows servers by it, and offers these protocols.
    pub fn client(&self, own: Option<&Leaf>, protocols: &[&str]) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let (chain, key) = own.read();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// A server that shows this, asks clients for a certificate of this authority if `asks`, and speaks these protocols.
    pub fn server(&self, own: &Leaf, asks: bool, protocols: &[&str]) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let provider = Arc::new(default_provider());
        let builder = match asks {
            false => builder.with_no_client_auth(),
            true => {
                let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let (chain, key) = own.read();
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

impl Leaf {
    fn read(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        (chain.map(Result::unwrap).collect(), key)
    }
}

pub fn name(name: &str) -> SecretName {
    SecretName { namespace: "default".to_owned(), name: name.to_owned() }
}

/// All items as Kubernetes names them.
pub fn context(secret: &str) -> TlsContext {
    TlsContext { secret: name(secret), trusted_ca: None, certificate: None, private_key: None }
}

pub fn secret(secret: &str, items: &[(&str, &str)]) -> TlsSecret {
    let items = items.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    TlsSecret { name: name(secret), items: SecretItems(Arc::new(items)) }
}

/// One with a chain and its key.
pub fn pair(of: &str, leaf: &Leaf) -> TlsSecret {
    secret(of, &[("tls.crt", &leaf.chain), ("tls.key", &leaf.key)])
}
