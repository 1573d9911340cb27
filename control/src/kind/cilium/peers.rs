//! Who: `fromEndpoints`, `toCIDRSet` and their kin.

use mesh::labels::{NAMESPACE_LABELS, Source};
use mesh::policy::{Entity, Peer, Peers, Selector};

use super::services::{self, Which};
use super::{Direction, Scope, names_namespace};
use crate::kind::prefix::{prefix_or_address, without};
use crate::kind::selector::{Keys, in_any_namespace, in_namespace, selector};
use crate::yaml::{At, Fields};

/// The peers of a rule.
#[derive(Default)]
pub(super) struct Given {
    /// `None` if it says nothing about them. A list that is empty names nobody.
    pub(super) peers: Option<Peers>,
    /// Peers that are services.
    pub(super) services: Vec<Which>,
}

pub(super) fn peers(fields: &Fields<'_>, scope: Scope<'_>, direction: Direction) -> Given {
    let [endpoints, entities, cidr, cidr_set, nodes, groups, requires] = match direction {
        Direction::Ingress => [
            "fromEndpoints",
            "fromEntities",
            "fromCIDR",
            "fromCIDRSet",
            "fromNodes",
            "fromGroups",
            "fromRequires",
        ],
        Direction::Egress => {
            ["toEndpoints", "toEntities", "toCIDR", "toCIDRSet", "toNodes", "toGroups", "toRequires"]
        }
    };
    fields.refuse(&[nodes], "not enforced by this version; use the entities host and remote-node");
    fields.refuse(&[groups], "not enforced by this version; use a CIDRSet");
    fields.refuse(&[requires], "withdrawn by Cilium; add the labels to each selector");
    if direction == Direction::Egress {
        fields.refuse(&["toFQDNs"], "names are not enforced by this version; use toCIDR or toEndpoints");
    }
    let services = (direction == Direction::Egress).then_some("toServices");
    let given: Vec<_> = [endpoints, entities, cidr, cidr_set]
        .into_iter()
        .chain(services)
        .filter_map(|name| Some((name, fields.get(name)?)))
        .map(|(name, at)| (name, at.list(), at))
        .collect();
    let mut used = given.iter().filter(|(_, items, _)| !items.is_empty());
    if let (Some((first, ..)), Some((.., second))) = (used.next(), used.next()) {
        second.error(format_args!("cannot stand beside {first} in one rule; write two rules"));
    }
    if given.is_empty() {
        return Given::default();
    }
    let (of_services, given): (Vec<_>, Vec<_>) =
        given.into_iter().partition(|(name, ..)| Some(*name) == services);
    let read = |name: &str, item: &At<'_>| match name {
        name if name == endpoints => Some(Peer::Endpoints(of_endpoints(item, scope))),
        name if name == entities => item.one_of(&Entity::ALL).map(Peer::Entity),
        name if name == cidr => Some(Peer::Cidr { cidr: prefix_or_address(item)?, except: Vec::new() }),
        _ => of_cidr_set(item),
    };
    let selected = given.iter().flat_map(|(name, items, _)| items.iter().filter_map(|item| read(name, item)));
    let services = of_services.iter().flat_map(|(_, items, _)| items);
    Given {
        peers: Some(Peers::Selected(selected.collect())),
        services: services.filter_map(|item| services::which(item, scope)).collect(),
    }
}

/// A selector that names no namespace means the policy's own; in a clusterwide policy, any workload. Reserved labels
/// stand for what has no namespace.
fn of_endpoints(at: &At<'_>, scope: Scope<'_>) -> Selector {
    let mut peers = selector(at, Keys::Cilium);
    let reserved = peers.0.iter().any(|requirement| requirement.source == Some(Source::Reserved));
    if reserved || peers.0.iter().any(names_namespace) {
        return peers;
    }
    let by_namespace_labels = peers.0.iter().any(|requirement| {
        requirement.key.starts_with(NAMESPACE_LABELS)
            && matches!(requirement.source, None | Some(Source::K8s))
    });
    match scope.namespace {
        Some(namespace) if !by_namespace_labels => peers.0.push(in_namespace(namespace)),
        None if scope.init => {}
        // Namespace labels stand on workloads alone, but `DoesNotExist` would hold for the world too.
        _ => peers.0.push(in_any_namespace()),
    }
    peers
}

fn of_cidr_set(at: &At<'_>) -> Option<Peer> {
    at.mapping(|fields| {
        let why = "CIDR groups are not read by this version; write the prefixes out";
        fields.refuse(&["cidrGroupRef", "cidrGroupSelector"], why);
        let except = fields.get("except");
        if fields.get("cidrGroupRef").is_some() || fields.get("cidrGroupSelector").is_some() {
            return None;
        }
        without(&fields.require("cidr", "an address prefix")?, except)
    })?
}
