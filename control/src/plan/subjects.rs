//! Which policies can be about a workload, without holding each against it.
//!
//! Thousands of policies name a label of their subject; only those whose label the workload carries are looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::labels::{LabelSet, NAMESPACE, Source};
use mesh::policy::{Operator, Policy, PolicyName, Requirement, Selector};

/// An index of policies by one label that their subjects must carry.
#[derive(Default)]
pub(super) struct Subjects {
    /// By their numbers here.
    policies: BTreeMap<u64, Arc<Policy>>,
    numbers: BTreeMap<PolicyName, u64>,
    next: u64,
    /// By the namespace that a subject must be in; those that may be in several stand under the empty name.
    namespaces: BTreeMap<String, Carrying>,
}

/// Policies about one namespace, or about all.
#[derive(Default)]
struct Carrying {
    /// Label key → value → policies.
    labels: BTreeMap<String, BTreeMap<String, BTreeSet<u64>>>,
    /// Policies with a rule whose subject names no value.
    anyone: BTreeSet<u64>,
}

impl Subjects {
    /// Adds a policy whose name is not there yet.
    pub(super) fn insert(&mut self, policy: &Arc<Policy>) {
        let number = self.next;
        self.next += 1;
        for rule in &policy.rules {
            let (namespace, label) = place(&rule.subject);
            let carrying = self.namespaces.entry(namespace.to_owned()).or_default();
            let Some((key, values)) = label else {
                carrying.anyone.insert(number);
                continue;
            };
            let of_key = carrying.labels.entry(key.to_owned()).or_default();
            for value in values {
                of_key.entry(value.clone()).or_default().insert(number);
            }
        }
        self.numbers.insert(policy.name.clone(), number);
        self.policies.insert(number, Arc::clone(policy));
    }

    /// Takes a policy out.
    pub(super) fn remove(&mut self, name: &PolicyName) {
        let Some(number) = self.numbers.remove(name) else { return };
        let Some(policy) = self.policies.remove(&number) else { return };
        for (namespace, label) in policy.rules.iter().map(|rule| place(&rule.subject)) {
            let Some(carrying) = self.namespaces.get_mut(namespace) else { continue };
            carrying.anyone.remove(&number);
            if let Some((key, values)) = label
                && let Some(of_key) = carrying.labels.get_mut(key)
            {
                of_key.retain(|value, numbers| {
                    let _ = values.contains(value) && numbers.remove(&number);
                    !numbers.is_empty()
                });
            }
            carrying.labels.retain(|_, values| !values.is_empty());
            if carrying.anyone.is_empty() && carrying.labels.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
    }

    /// A superset of the policies that select these labels.
    pub(super) fn candidates(&self, labels: &LabelSet) -> impl Iterator<Item = &Arc<Policy>> {
        let namespaces = [Some(""), labels.namespace()].into_iter().flatten();
        let mut found = BTreeSet::new();
        for carrying in namespaces.filter_map(|namespace| self.namespaces.get(namespace)) {
            found.extend(&carrying.anyone);
            for (key, value) in labels.iter() {
                let numbers = carrying.labels.get(key.key.as_str()).and_then(|values| values.get(value));
                found.extend(numbers.into_iter().flatten());
            }
        }
        found.into_iter().filter_map(|number| self.policies.get(&number))
    }
}

/// Where a subject stands: the only namespace that it can be in, else the empty name, and the label that tells most of
/// it with the values of which it must carry one.
fn place(subject: &Selector) -> (&str, Option<(&str, &[String])>) {
    let namespace = subject.0.iter().find_map(|requirement| match values(requirement) {
        Some((NAMESPACE, [namespace])) if requirement.source == Some(Source::K8s) => Some(namespace.as_str()),
        _ => None,
    });
    let label = subject.0.iter().filter_map(values).find(|(key, _)| *key != NAMESPACE);
    (namespace.unwrap_or_default(), label)
}

/// The values of which a subject must carry one. The source of the label is left to the selector itself.
fn values(requirement: &Requirement) -> Option<(&str, &[String])> {
    match &requirement.operator {
        Operator::In(values) => Some((&requirement.key, values)),
        Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
    }
}
