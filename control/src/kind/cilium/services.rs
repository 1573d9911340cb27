//! Whom: `toServices`, egress only.
//!
//! Who answers for a service is not known here: each item is kept beside the policy, and `plan` finds its peers.

use mesh::labels::LabelSet;
use mesh::policy::Selector;
use mesh::service::ServiceName;

use super::Scope;
use crate::kind::metadata;
use crate::kind::selector::{Keys, selector};
use crate::yaml::At;

/// Services as peers of one statement of a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ToService {
    /// The rule.
    pub rule: usize,
    /// Whether the statement is of `egressDeny`.
    pub denies: bool,
    /// The statement.
    pub statement: usize,
    /// Which services.
    pub which: Which,
}

/// Services by name, by label, or by both.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Which {
    /// `k8sService`.
    pub named: Option<ServiceName>,
    /// `k8sServiceSelector`: namespace (any, if there is none) and labels.
    pub selected: Option<(Option<String>, Selector)>,
}

impl Which {
    /// Whether a service of this name and these labels is meant.
    pub fn means(&self, name: &ServiceName, labels: &LabelSet) -> bool {
        let named = self.named.as_ref().is_none_or(|named| named == name);
        let selected = self.selected.as_ref().is_none_or(|(namespace, selector)| {
            namespace.as_ref().is_none_or(|namespace| *namespace == name.namespace)
                && selector.matches(labels)
        });
        named && selected
    }
}

/// One item of the list.
pub(super) fn which(at: &At<'_>, scope: Scope<'_>) -> Option<Which> {
    at.mapping(|fields| {
        let named_at = fields.get("k8sService");
        let selected_at = fields.get("k8sServiceSelector");
        if named_at.is_none() && selected_at.is_none() {
            fields.whole().expected("k8sService or k8sServiceSelector");
            return None;
        }
        let named = named_at.as_ref().map(|at| named(at, scope));
        let selected = selected_at.as_ref().map(|at| {
            at.mapping(|fields| {
                let namespace = fields.get("namespace").and_then(|at| metadata::name(&at));
                let labels = fields.require("selector", "labels of services ({} is every service)");
                (namespace, labels.map(|at| selector(&at, Keys::Cilium)).unwrap_or_default())
            })
        });
        Some(Which { named: named.map_or(Some(None), |n| n.map(Some))?, selected: selected.flatten() })
    })?
}

/// Without a namespace, the policy's own.
fn named(at: &At<'_>, scope: Scope<'_>) -> Option<ServiceName> {
    at.mapping(|fields| {
        let name = fields.require("serviceName", "the name of a Service").and_then(|at| metadata::name(&at));
        let namespace = match (fields.get("namespace"), scope.namespace) {
            (Some(at), _) => metadata::name(&at),
            (None, Some(own)) => Some(own.to_owned()),
            (None, None) => fields.require("namespace", "the namespace of the Service").and(None),
        };
        Some(ServiceName { namespace: namespace?, name: name? })
    })?
}
