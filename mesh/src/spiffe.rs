//! SPIFFE IDs and trust domains, as the SPIFFE ID standard has them (`SPIFFE-ID.md`).
//!
//! Promise: a value of these types is valid and canonical; two that are equal are the same ID. What was read from the
//! wire is parsed first and compared afterwards, never the other way round.
//!
//! The standard has two sentences that do not agree: scheme and trust domain are lower case (2.1), and are compared
//! without regard to case (2.4). An issuer that keeps the first never needs the second, so what is not lower case is
//! refused: there is one spelling of an ID, and no comparison of spellings to get wrong.

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
        self.id(&["ns", namespace, "sa", service_account])
    }

    /// `spiffe://TD/ferromesh/node/NAME`.
    pub fn node(&self, name: &str) -> Result<SpiffeId, SpiffeIdError> {
        self.id(&["ferromesh", "node", name])
    }

    /// The ID whose path has exactly these segments: a name with a slash in it would be several.
    fn id(&self, segments: &[&str]) -> Result<SpiffeId, SpiffeIdError> {
        let text = format!("spiffe://{}/{}", self.0, segments.join("/"));
        match segments.iter().any(|segment| segment.contains('/')) {
            true => Err(error(&text, "a name in its path has a slash")),
            false => text.parse(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> &'static str {
        text.parse::<SpiffeId>().map_or_else(|error| error.problem, |_| "")
    }

    #[test]
    fn ids_are_read_and_written_alike() {
        for text in [
            "spiffe://rebels.example",
            "spiffe://rebels.example/ns/default/sa/luke",
            "spiffe://a/b",
            "spiffe://127.0.0.1/an/IPv4/literal",
            "spiffe://under_score-dash.dot/A-Z.a-z_0-9",
            "spiffe://.../...",
            "spiffe://td/..a/.b/c..",
        ] {
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
        let id: SpiffeId = "spiffe://rebels.example/ns/default/sa/luke".parse().unwrap();
        assert_eq!((id.trust_domain().as_str(), id.path()), ("rebels.example", "/ns/default/sa/luke"));
        assert_eq!("spiffe://td".parse::<SpiffeId>().unwrap().path(), "");
    }

    #[test]
    fn the_scheme_is_spiffe_in_lower_case() {
        let scheme = "it does not begin with spiffe://";
        for text in ["", "spiffe", "spiffe:", "spiffe:/td/a", "spiffe:td/a", "SPIFFE://td/a", "Spiffe://td/a"]
        {
            assert_eq!(problem(text), scheme, "{text}");
        }
        for text in ["http://td/a", "spiffes://td/a", " spiffe://td/a", "//td/a", "td/a"] {
            assert_eq!(problem(text), scheme, "{text}");
        }
    }

    #[test]
    fn the_trust_domain_has_no_userinfo_port_or_characters_of_its_own() {
        let characters = "a trust domain holds lower-case letters, digits, dots, dashes and underscores only";
        for text in [
            "spiffe://user@td/a",
            "spiffe://user:word@td/a",
            "spiffe://td:8080/a",
            "spiffe://td:/a",
            "spiffe://[::1]/a",
            "spiffe://Example.org/a",
            "spiffe://t%64/a",
            "spiffe://t\u{e4}/a",
            "spiffe://t d/a",
            "spiffe://td\0/a",
            "spiffe://td?/a",
            "spiffe://td#a",
            "spiffe://td\\a",
        ] {
            assert_eq!(problem(text), characters, "{text}");
        }
        for text in ["spiffe://", "spiffe:///a"] {
            assert_eq!(problem(text), "the trust domain is empty", "{text}");
        }
    }

    #[test]
    fn a_trust_domain_has_at_most_255_bytes() {
        let longest = "x".repeat(MAX_TRUST_DOMAIN);
        assert!(longest.parse::<TrustDomain>().is_ok());
        assert_eq!(problem(&format!("spiffe://{longest}/a")), "");
        assert_eq!(problem(&format!("spiffe://{longest}x/a")), "the trust domain has more than 255 bytes");
    }

    #[test]
    fn a_trust_domain_alone_is_no_id() {
        for text in ["spiffe://td", "td/path", "td/", "TD", ""] {
            assert!(text.parse::<TrustDomain>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_path_has_no_empty_or_relative_segment() {
        let empty = "its path has an empty segment or ends with a slash";
        for text in ["spiffe://td/", "spiffe://td//", "spiffe://td/a/", "spiffe://td//a", "spiffe://td/a//b"]
        {
            assert_eq!(problem(text), empty, "{text}");
        }
        let relative = "its path has a segment . or ..";
        for text in ["spiffe://td/.", "spiffe://td/..", "spiffe://td/a/./b", "spiffe://td/a/../b"] {
            assert_eq!(problem(text), relative, "{text}");
        }
    }

    #[test]
    fn the_path_has_no_escapes_query_fragment_or_characters_of_its_own() {
        let characters = "a path holds letters, digits, dots, dashes and underscores only";
        for text in [
            "spiffe://td/%61",
            "spiffe://td/a%2fb",
            "spiffe://td/a?b",
            "spiffe://td/a?",
            "spiffe://td/a#b",
            "spiffe://td/a#",
            "spiffe://td/a b",
            "spiffe://td/a;b",
            "spiffe://td/a:b",
            "spiffe://td/a@b",
            "spiffe://td/a+b",
            "spiffe://td/\u{fc}",
            "spiffe://td/a\0",
            "spiffe://td/a\n",
            "spiffe://td/a\\b",
        ] {
            assert_eq!(problem(text), characters, "{text}");
        }
    }

    #[test]
    fn the_path_has_a_case() {
        let [lower, upper] = ["spiffe://td/a", "spiffe://td/A"].map(|text| text.parse::<SpiffeId>().unwrap());
        assert_ne!(lower, upper);
    }

    #[test]
    fn ids_of_2048_bytes_are_read_and_longer_ones_never_made() {
        let text = |length: usize| format!("spiffe://td/{}", "x".repeat(length - "spiffe://td/".len()));
        assert_eq!(problem(&text(MAX_ID)), "");
        assert_eq!(problem(&text(MAX_ID + 1)), "it has more than 2048 bytes");
        let domain: TrustDomain = "td".parse().unwrap();
        assert!(domain.node(&"x".repeat(MAX_ID)).is_err());
    }

    #[test]
    fn what_names_become_cannot_be_chosen_by_a_slash() {
        let domain: TrustDomain = "td".parse().unwrap();
        let luke = domain.workload("default", "luke").unwrap();
        assert_eq!(luke.to_string(), "spiffe://td/ns/default/sa/luke");
        assert_eq!(domain.node("yavin").unwrap().to_string(), "spiffe://td/ferromesh/node/yavin");
        for (namespace, account) in [("default/sa/luke", "x"), ("default", "luke/x"), ("", "x"), ("..", "x")]
        {
            assert!(domain.workload(namespace, account).is_err(), "{namespace} {account}");
        }
        assert!(domain.node("a/b").is_err() && domain.node("").is_err());
    }

    #[test]
    fn a_name_is_letters_and_no_pattern() {
        let domain: TrustDomain = "td".parse().unwrap();
        let dotted = domain.workload("default", "r2.d2").unwrap();
        assert_eq!(dotted.to_string(), "spiffe://td/ns/default/sa/r2.d2");
        for other in ["r2xd2", "r2-d2", "r2", "r2.d2.x", ".*", "*", "r2?d2"] {
            assert_ne!(domain.workload("default", other).ok(), Some(dotted.clone()), "{other}");
        }
        for pattern in [".*", "*", "r2*", "[r]2", "r2|d2", "r2,d2", "$HOME", "%2e"] {
            assert!(domain.workload("default", pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn an_error_names_what_was_read_and_stays_short() {
        let error = format!("spiffe://td/{}", " ".repeat(5000)).parse::<SpiffeId>().unwrap_err();
        assert!(error.to_string().len() < 300);
        let error = "spiffe://td/a\n".parse::<SpiffeId>().unwrap_err().to_string();
        assert!(error.starts_with("SPIFFE ID \"spiffe://td/a\\n\": a path holds"), "{error}");
    }
}
