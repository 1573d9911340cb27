//! What only planning can say of an object: how it gets on with the others, with the node and with what runs there.
//!
//! Level-based: made anew with each plan, so a note goes when its reason does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::policy::PolicyName;
use mesh::service::ServiceName;
use mesh::workload::WorkloadName;

use crate::kind::{Kind, ObjectKey};
use crate::objects::ObjectStatus;
use crate::world::ClaimName;
use crate::yaml::Severity;

/// Notes on objects.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Notes(BTreeMap<ObjectKey, Vec<(Severity, String)>>);

impl Notes {
    /// It is not in force, wholly or in part.
    pub(crate) fn error(&mut self, key: ObjectKey, message: String) {
        self.0.entry(key).or_default().push((Severity::Error, message));
    }

    /// It is in force, but not as it may look.
    pub(crate) fn warn(&mut self, key: ObjectKey, message: String) {
        self.0.entry(key).or_default().push((Severity::Warning, message));
    }

    /// Adds what another says.
    pub(crate) fn add(&mut self, other: &Self) {
        for (key, notes) in &other.0 {
            self.0.entry(key.clone()).or_default().extend_from_slice(notes);
        }
    }

    /// Everything there is.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, Severity, &str)> {
        self.0.iter().flat_map(|(key, notes)| {
            notes.iter().map(move |(severity, text)| (key, *severity, text.as_str()))
        })
    }

    /// A status with what is noted of its object.
    pub(crate) fn add_to(&self, status: &ObjectStatus) -> ObjectStatus {
        /// Of an object with a thousand faulty parts the first tell enough.
        const SHOWN: usize = 4;
        let mut status = status.clone();
        let Some(notes) = status.key.as_ref().and_then(|key| self.0.get(key)) else { return status };
        let errors: Vec<_> = notes.iter().filter(|(severity, _)| *severity == Severity::Error).collect();
        if status.valid && !errors.is_empty() {
            status.valid = false;
            status.message.clear();
        }
        let warnings = notes.iter().filter(|(severity, _)| *severity != Severity::Error);
        for (_, text) in errors.iter().copied().chain(warnings).take(SHOWN) {
            let joint = if status.message.is_empty() { "" } else { "; " };
            status.message.push_str(&format!("{joint}{text}"));
        }
        if notes.len() > SHOWN {
            status.message.push_str(&format!("; and {} more", notes.len() - SHOWN));
        }
        status.remarkable = true;
        status
    }

    /// Objects that have an error here, but none of their own.
    pub(crate) fn refused(&self, statuses: &[Arc<ObjectStatus>]) -> usize {
        let is_error = |(severity, _): &(Severity, String)| *severity == Severity::Error;
        let refused = self.0.iter().filter(|(_, notes)| notes.iter().any(is_error));
        let refused: BTreeSet<_> = refused.map(|(key, _)| key).collect();
        if refused.is_empty() {
            return 0;
        }
        let is_refused = |key: &ObjectKey| refused.contains(key);
        statuses.iter().filter(|status| status.valid && status.key.as_ref().is_some_and(is_refused)).count()
    }
}

/// The key of a service.
pub(crate) fn of_service(name: &ServiceName) -> ObjectKey {
    let namespace = Some(name.namespace.clone());
    ObjectKey { kind: Kind::Service, namespace, name: name.name.clone(), node: None }
}

/// The key of a slice.
pub(crate) fn of_slice(name: &ServiceName) -> ObjectKey {
    ObjectKey { kind: Kind::EndpointSlice, ..of_service(name) }
}

/// The key of what a node says of an endpoint.
pub(crate) fn of_claim((node, namespace, name): &ClaimName) -> ObjectKey {
    let (kind, namespace) = (Kind::WorkloadEndpoint, Some(namespace.clone()));
    ObjectKey { kind, namespace, name: name.clone(), node: Some(node.clone()) }
}

/// The key of a node.
pub(crate) fn of_node(name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::Node, namespace: None, name: name.to_owned(), node: None }
}

/// The key of a workload.
pub(crate) fn of_workload(name: &WorkloadName) -> ObjectKey {
    let (kind, namespace) = (Kind::Workload, Some(name.namespace.clone()));
    ObjectKey { kind, namespace, name: name.name.clone(), node: None }
}

/// The key of a policy.
pub(crate) fn of_policy(name: &PolicyName) -> ObjectKey {
    let namespace = name.namespace.clone();
    ObjectKey { kind: Kind::Policy(name.kind), namespace, name: name.name.clone(), node: None }
}
