//! SPIFFE IDs and trust domains, as the SPIFFE ID standard has them (`SPIFFE-ID.md`).
//!
//! Promise: a value of these types is valid and canonical; two that are equal are the same ID. What was read from the
//! wire is parsed first and compared afterwards, never the other way round.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is no SPIFFE ID or trust domain.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("SPIFFE ID {text:?}: {problem}")]
pub struct SpiffeIdError {
    /// The text, cut to what fits a line.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// The name of a trust domain: 1–255 of `[a-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

/// A SPIFFE ID; a trust domain's own has no path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// Empty, or begins with a slash.
    path: String,
}

/// The longest ID an issuer may write, in bytes.
pub const MAX_ID: usize = 2048;
/// The longest name of a trust domain, in bytes.
pub const MAX_TRUST_DOMAIN: usize = 255;

fn error(text: &str, problem: &'static str) -> SpiffeIdError {
    SpiffeIdError { text: text.chars().take(120).collect(), problem }
}

impl TrustDomain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `spiffe://TD/ns/NAMESPACE/sa/SERVICE-ACCOUNT`, as Istio and SPIRE's Kubernetes registrar name workloads.
    pub fn workload(&self, namespace: &str, service_account: &str) -> Result<SpiffeId, SpiffeIdError> {
        format!("spiffe://{}/ns/{namespace}/sa/{service_account}", self.0).parse()
    }

    /// `spiffe://TD/ferromesh/node/NAME`.
    pub fn node(&self, name: &str) -> Result<SpiffeId, SpiffeIdError> {
        format!("spiffe://{}/ferromesh/node/{name}", self.0).parse()
    }
}

impl Default for TrustDomain {
    /// `cluster.local`.
    fn default() -> Self {
        Self("cluster.local".to_owned())
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.is_empty() {
            return Err(error(text, "the trust domain is empty"));
        }
        if text.len() > MAX_TRUST_DOMAIN {
            return Err(error(text, "the trust domain has more than 255 bytes"));
        }
        if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)) {
            return Err(error(
                text,
                "a trust domain holds lower-case letters, digits, dots, dashes and underscores only",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl SpiffeId {
    /// Whose ID it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Empty, or begins with a slash.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_ID {
            return Err(error(text, "it has more than 2048 bytes"));
        }
        let rest =
            text.strip_prefix("spiffe://").ok_or_else(|| error(text, "it does not begin with spiffe://"))?;
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let trust_domain = domain.parse().map_err(|wrong: SpiffeIdError| error(text, wrong.problem))?;
        for segment in path.split('/').skip(1) {
            if segment.is_empty() {
                return Err(error(text, "its path has an empty segment or ends with a slash"));
            }
            if segment == "." || segment == ".." {
                return Err(error(text, "its path has a segment . or .."));
            }
            if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
                return Err(error(text, "a path holds letters, digits, dots, dashes and underscores only"));
            }
        }
        Ok(Self { trust_domain, path: path.to_owned() })
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}", self.trust_domain, self.path)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, SpiffeIdError> {
        text.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, SpiffeIdError> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}
