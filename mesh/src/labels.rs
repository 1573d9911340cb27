//! Labels with a source, as Cilium writes them: `k8s:org=empire`, `reserved:host`, `cidr:10.0.0.0/8`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Label that carries a workload's namespace; every namespaced selector is narrowed by it.
pub const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Prefix under which a namespace's own labels stand on its workloads.
pub const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// Label that carries a workload's service account.
pub const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";

/// Who vouches for a label.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// An administrator's or the API server's object.
    K8s,
    /// Ferromesh itself: host, world, ingress …
    Reserved,
    /// Derived from an address prefix.
    Cidr,
}

impl Source {
    /// As it stands before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::K8s => "k8s",
            Self::Reserved => "reserved",
            Self::Cidr => "cidr",
        }
    }
}

/// A label's name: source and key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    /// Who vouches for it.
    pub source: Source,
    /// The key, without the source.
    pub key: String,
}

impl Key {
    /// For comparing without owning: in the order of keys.
    fn parts(&self) -> (Source, &str) {
        (self.source, &self.key)
    }
}

/// The labels of one workload or reserved entity, in canonical order. Two equal sets are one identity.
///
/// A clone shares: plans, universes and flows carry the same ten thousand sets about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct LabelSet(Arc<Vec<(Key, String)>>);

impl LabelSet {
    /// The set with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// The single label `reserved:name`.
    pub fn reserved(name: &str) -> Self {
        Self::new().with(Source::Reserved, name, "")
    }

    /// This set with one more label; an earlier value of the same name is replaced.
    #[must_use]
    pub fn with(mut self, source: Source, key: &str, value: &str) -> Self {
        let labels = Arc::make_mut(&mut self.0);
        match labels.binary_search_by(|(known, _)| known.parts().cmp(&(source, key))) {
            Ok(at) => value.clone_into(&mut labels[at].1),
            Err(at) => labels.insert(at, (Key { source, key: key.to_owned() }, value.to_owned())),
        }
        self
    }

    /// The value under this exact source and key.
    pub fn get(&self, source: Source, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| known.parts().cmp(&(source, key))).ok()?;
        self.0.get(at).map(|(_, value)| value.as_str())
    }

    /// The value under this key whatever its source (`any:`); Kubernetes' before reserved before cidr.
    pub fn get_any(&self, key: &str) -> Option<&str> {
        [Source::K8s, Source::Reserved, Source::Cidr].into_iter().find_map(|source| self.get(source, key))
    }

    /// All labels in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &str)> {
        self.0.iter().map(|(key, value)| (key, value.as_str()))
    }

    /// The namespace, where the set is a workload's.
    pub fn namespace(&self) -> Option<&str> {
        self.get(Source::K8s, NAMESPACE)
    }
}

impl fmt::Display for LabelSet {
    /// Comma-separated, `source:key[=value]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (key, value)) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}", key.source.as_str(), key.key)?;
            if !value.is_empty() {
                write!(f, "={value}")?;
            }
        }
        Ok(())
    }
}

/// A label that is not `[source:]key[=value]`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("label {0:?}: expected [k8s:|reserved:|cidr:]key[=value]")]
pub struct LabelError(pub String);

impl FromStr for LabelSet {
    type Err = LabelError;

    /// Reads what [`fmt::Display`] writes. A label without source is Kubernetes'.
    fn from_str(text: &str) -> Result<Self, LabelError> {
        let mut set = Self::new();
        for label in text.split(',').filter(|label| !label.is_empty()) {
            let (source, rest) = match label.split_once(':') {
                Some(("k8s", rest)) => (Source::K8s, rest),
                Some(("reserved", rest)) => (Source::Reserved, rest),
                Some(("cidr", rest)) => (Source::Cidr, rest),
                _ => (Source::K8s, label),
            };
            let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
            if key.is_empty() {
                return Err(LabelError(label.to_owned()));
            }
            set = set.with(source, key, value);
        }
        Ok(set)
    }
}

impl Serialize for LabelSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(key, value)| {
            let equals = if value.is_empty() { "" } else { "=" };
            format!("{}:{}{equals}{value}", key.source.as_str(), key.key)
        }))
    }
}

impl<'de> Deserialize<'de> for LabelSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut set = Self::new();
        for label in Vec::<String>::deserialize(deserializer)? {
            let read = label.parse::<Self>().map_err(serde::de::Error::custom)?;
            set = read.iter().fold(set, |set, (key, value)| set.with(key.source, &key.key, value));
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_canonical_and_reads_back() {
        let set: LabelSet = "org=empire,k8s:class=deathstar,reserved:host".parse().unwrap();
        assert_eq!(set.to_string(), "k8s:class=deathstar,k8s:org=empire,reserved:host");
        assert_eq!(set.to_string().parse::<LabelSet>().unwrap(), set);
    }

    #[test]
    fn a_label_without_key_is_refused() {
        assert!("k8s:=x".parse::<LabelSet>().is_err());
    }

    #[test]
    fn any_finds_the_key_under_each_source() {
        assert_eq!(LabelSet::reserved("host").get_any("host"), Some(""));
    }
}
