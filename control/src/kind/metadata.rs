//! `metadata`: which object it is.

use super::{Kind, ObjectKey};
use crate::yaml::{At, Fields};

/// Fields that an API server writes and that a file exported from one still carries.
const OF_A_SERVER: [&str; 11] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Reads name and namespace; `None` (with an error noted) if there is no usable name.
pub(super) fn key(kind: Kind, fields: &Fields<'_>) -> Option<ObjectKey> {
    let metadata = fields.require("metadata", "a mapping with the object's name")?;
    let (name, namespace) = metadata.mapping(|fields| {
        fields.ignore(&OF_A_SERVER);
        fields.ignore(&["labels"]);
        let name = fields.require("name", "the object's name").and_then(|at| name(&at));
        (name, namespace(kind, fields))
    })?;
    Some(ObjectKey { kind, namespace, name: name?, node: None })
}

fn namespace(kind: Kind, fields: &Fields<'_>) -> Option<String> {
    let given = fields.get("namespace");
    if !is_namespaced(kind) {
        if let Some(given) = given {
            given.error(format_args!("a {} has no namespace; leave the field out", kind.as_str()));
        }
        return None;
    }
    match given {
        None => Some("default".to_owned()),
        Some(at) => name(&at),
    }
}

fn is_namespaced(kind: Kind) -> bool {
    use mesh::policy::PolicyKind::{CiliumNetworkPolicy, NetworkPolicy};
    match kind {
        Kind::Workload | Kind::WorkloadEndpoint | Kind::Service | Kind::EndpointSlice | Kind::Secret => true,
        Kind::Policy(kind) => matches!(kind, NetworkPolicy | CiliumNetworkPolicy),
        Kind::Configuration | Kind::Namespace | Kind::Node => false,
    }
}

/// A DNS subdomain (RFC 1123), as Kubernetes asks of names.
pub(super) fn name(at: &At<'_>) -> Option<String> {
    let text = at.string();
    if text.is_empty() && !at.is_null() {
        at.expected("a name");
        return None;
    }
    if !is_name(&text) {
        at.expected("a name of lower-case letters, digits, '-' and '.', at most 253 long");
        return None;
    }
    Some(text)
}

/// Whether a text is a DNS subdomain in lower case.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_part)
}

/// Whether a text is one DNS label in lower case.
pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_part(text)
}

fn is_part(part: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(edge) && part.ends_with(edge) && part.chars().all(|c| edge(c) || c == '-')
}

/// `metadata.labels` of objects whose labels mean something.
pub(super) fn labels(fields: &Fields<'_>) -> Vec<(String, String)> {
    let Some(metadata) = fields.get("metadata") else { return Vec::new() };
    let entries = metadata.entries();
    let Some((_, labels)) = entries.iter().find(|(key, _)| *key == "labels") else { return Vec::new() };
    if labels.is_null() {
        return Vec::new();
    }
    let read = |(key, at): (&str, At<'_>)| {
        super::selector::check_key(&at, key);
        let value = at.string();
        super::selector::check_value(&at, &value);
        (key.to_owned(), value)
    };
    labels.entries().into_iter().map(read).collect()
}
