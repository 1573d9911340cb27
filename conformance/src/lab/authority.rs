//! An authority, and Secrets with what it has signed.

use std::fmt::Write;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// An authority of its own making.
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

/// A certificate and its key, PEM.
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "each is another")]
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Self { certificate, key: key.serialize_pem() }
    }

    /// A certificate for these names of DNS and addresses, by an authority of this certificate and key.
    #[must_use]
    pub fn sign(certificate: &str, key: &str, names: &[String]) -> Leaf {
        let signing = KeyPair::from_pem(key).expect("a key");
        let issuer = Issuer::from_ca_cert_pem(certificate, signing).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names.to_vec()).expect("names");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate").pem();
        Leaf { certificate, key: key.serialize_pem() }
    }

    /// The same by this one.
    #[must_use]
    pub fn leaf(&self, name: &str) -> Leaf {
        Self::sign(&self.certificate, &self.key, &[name.to_owned()])
    }
}

/// A Secret of the namespace `default`, as YAML.
#[must_use]
pub fn secret(name: &str, items: &[(&str, &str)]) -> String {
    let head = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: default}}\nstringData:\n"
    );
    items.iter().fold(head, |mut yaml, (item, text)| {
        let text = text.replace('\n', "\n    ");
        let _ = writeln!(yaml, "  {item}: |\n    {}", text.trim_end());
        yaml
    })
}

/// One with a chain and its key.
#[must_use]
pub fn tls_secret(name: &str, leaf: &Leaf) -> String {
    secret(name, &[("tls.crt", &leaf.certificate), ("tls.key", &leaf.key)])
}
