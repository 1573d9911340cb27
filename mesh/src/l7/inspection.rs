//! TLS that the proxy takes part in: it ends the client's, begins one of its own to the server, or both, and sees what is inside.
//!
//! Rules name Secrets; what stands in these goes beside the rules ([`TlsSecret`]) to whom it is for, and is never shown.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{HttpRules, ServerNames};

/// One item of `toPorts` with `terminatingTLS`, `originatingTLS` or both.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsInspection {
    /// The names of which a client must say one; `None`: it may say any, and none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<ServerNames>,
    /// What the proxy shows to clients; `None`: these speak no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating: Option<TlsContext>,
    /// By what the proxy knows the server, to which it speaks TLS; `None`: it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub originating: Option<TlsContext>,
    /// What may be requested inside; `None`: anything, also what is not HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRules>,
}

impl TlsInspection {
    /// Both contexts, by the names of their fields.
    pub fn contexts(&self) -> impl Iterator<Item = (&'static str, &TlsContext)> {
        let both = [("terminatingTLS", &self.terminating), ("originatingTLS", &self.originating)];
        both.into_iter().filter_map(|(field, context)| Some((field, context.as_ref()?)))
    }
}

/// Which items of a Secret one end of TLS is made of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsContext {
    /// The Secret.
    pub secret: SecretName,
    /// The item with certificates of authorities, PEM; `None`: [`TlsContext::TRUSTED_CA`], if that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_ca: Option<String>,
    /// The item with the own chain, PEM, the own certificate first; `None`: [`TlsContext::CERTIFICATE`], if that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The item with the key to that, PEM; `None`: [`TlsContext::PRIVATE_KEY`], if that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key: Option<String>,
}

impl TlsContext {
    /// The item that is meant where none is named.
    pub const TRUSTED_CA: &str = "ca.crt";
    /// Likewise.
    pub const CERTIFICATE: &str = "tls.crt";
    /// Likewise.
    pub const PRIVATE_KEY: &str = "tls.key";

    /// The items: authorities, chain, key; each with whether it is named, and so must be there.
    pub fn items(&self) -> [(&str, bool); 3] {
        fn item<'a>(named: Option<&'a String>, default: &'a str) -> (&'a str, bool) {
            named.map_or((default, false), |name| (name, true))
        }
        [
            item(self.trusted_ca.as_ref(), Self::TRUSTED_CA),
            item(self.certificate.as_ref(), Self::CERTIFICATE),
            item(self.private_key.as_ref(), Self::PRIVATE_KEY),
        ]
    }

    /// About how many bytes it takes, written down.
    pub(super) fn size(&self) -> usize {
        let items = [&self.trusted_ca, &self.certificate, &self.private_key].into_iter().flatten();
        128 + self.secret.name.len() + self.secret.namespace.len() + items.map(String::len).sum::<usize>()
    }
}

/// Name of a Secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SecretName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for SecretName {
    /// `namespace/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Items of a Secret that rules name, for who enforces these.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TlsSecret {
    /// Which.
    pub name: SecretName,
    /// The items.
    pub items: SecretItems,
}

/// Texts by the names of their items. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretItems(pub Arc<BTreeMap<String, String>>);

impl fmt::Debug for SecretItems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_what_kubernetes_names() {
        let secret = SecretName { namespace: "default".to_owned(), name: "web".to_owned() };
        let mut context = TlsContext {
            secret,
            trusted_ca: None,
            certificate: None,
            private_key: Some("key.pem".to_owned()),
        };
        assert_eq!(context.items(), [("ca.crt", false), ("tls.crt", false), ("key.pem", true)]);
        context.trusted_ca = Some("root".to_owned());
        assert_eq!(context.items()[0], ("root", true));
        assert_eq!(context.secret.to_string(), "default/web");
    }

    #[test]
    fn what_is_secret_is_not_shown() {
        let items = SecretItems(Arc::new([("tls.key".to_owned(), "hush".to_owned())].into()));
        assert_eq!(format!("{items:?}"), r#"{"tls.key"}"#);
    }
}
