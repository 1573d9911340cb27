//! Which policies can be about a workload, without holding each against it.
//!
//! Thousands of policies name a label of their subject; only those whose label the workload carries are looked at.

use std::collections::{BTreeMap, BTreeSet};

use mesh::labels::{LabelSet, NAMESPACE};
use mesh::policy::{Operator, Policy, Requirement, Selector};

/// An index of policies by one label that their subjects must carry.
pub(super) struct Subjects<'a> {
    policies: Vec<&'a Policy>,
    /// Label key → value → policies, by position.
    carrying: BTreeMap<&'a str, BTreeMap<&'a str, BTreeSet<usize>>>,
    /// Policies with a rule whose subject names no value.
    anyone: BTreeSet<usize>,
}

impl<'a> Subjects<'a> {
    pub(super) fn new(policies: impl Iterator<Item = &'a Policy>) -> Self {
        let policies: Vec<_> = policies.collect();
        let mut index = Self { policies: Vec::new(), carrying: BTreeMap::new(), anyone: BTreeSet::new() };
        for (position, policy) in policies.iter().enumerate() {
            for rule in &policy.rules {
                index.add(position, &rule.subject);
            }
        }
        Self { policies, ..index }
    }

    fn add(&mut self, position: usize, subject: &'a Selector) {
        let Some((key, values)) =
            subject.0.iter().filter_map(values).min_by_key(|(key, _)| *key == NAMESPACE)
        else {
            self.anyone.insert(position);
            return;
        };
        for value in values {
            self.carrying.entry(key).or_default().entry(value).or_default().insert(position);
        }
    }

    /// A superset of the policies that select these labels, in their order.
    pub(super) fn candidates(&self, labels: &LabelSet) -> impl Iterator<Item = &'a Policy> {
        let mut found = self.anyone.clone();
        for (key, value) in labels.iter() {
            let carrying = self.carrying.get(key.key.as_str()).and_then(|values| values.get(value));
            found.extend(carrying.into_iter().flatten());
        }
        found.into_iter().filter_map(|position| self.policies.get(position).copied())
    }
}

/// The values of which a subject must carry one. The source of the label is left to the selector itself.
fn values(requirement: &Requirement) -> Option<(&str, &[String])> {
    match &requirement.operator {
        Operator::In(values) => Some((&requirement.key, values)),
        Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
    }
}
