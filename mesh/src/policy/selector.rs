//! Label selectors: `matchLabels` and `matchExpressions`, with Cilium's label sources.

use serde::Serialize;

use crate::labels::{LabelSet, Source};

/// All requirements must hold; none at all matches every label set.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize)]
pub struct Selector(pub Vec<Requirement>);

/// One requirement on one label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Requirement {
    /// Which source may vouch; `None` is `any:`.
    #[serde(skip)]
    pub source: Option<Source>,
    /// The label's key.
    pub key: String,
    /// What must hold of it.
    pub operator: Operator,
}

/// What must hold of a label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub enum Operator {
    /// Present, with one of these values.
    In(Vec<String>),
    /// Absent, or with none of these values.
    NotIn(Vec<String>),
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
}

impl Selector {
    /// Whether it names a reserved label. A selector of peers that does not is about workloads only: Cilium adds "has
    /// a namespace" to each (`getEndpointSelector`), so `{}` means all workloads and `env notin (prod)` not the world.
    /// One that does is held against everyone.
    pub fn names_reserved(&self) -> bool {
        self.0.iter().any(|requirement| requirement.source == Some(Source::Reserved))
    }

    /// Whether the labels satisfy every requirement.
    pub fn matches(&self, labels: &LabelSet) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &LabelSet) -> bool {
        let value = match self.source {
            Some(source) => labels.get(source, &self.key),
            None => labels.get_any(&self.key),
        };
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
            Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|v| v != value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}
