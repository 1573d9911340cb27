//! `Namespace` and `Node`: objects that policy knows by name and labels.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::metadata;
use crate::yaml::{At, Fields};

/// A namespace. One that is not declared exists all the same, without labels of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels, as `namespaceSelector` sees them.
    pub labels: BTreeMap<String, String>,
}

/// A node of the mesh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its own addresses, of either family.
    pub addresses: Vec<IpAddr>,
}

pub(super) fn namespace(name: String, fields: &Fields<'_>) -> Namespace {
    fields.ignore(&["spec"]);
    Namespace { name, labels: metadata::labels(fields).into_iter().collect() }
}

/// Addresses stand under `spec.addresses` (ferromesh.io) or `status.addresses` (core), each `{type, address}`. Of the
/// core object all else belongs to Kubernetes.
pub(super) fn node(name: String, fields: &Fields<'_>) -> Node {
    let core = fields.get("apiVersion").and_then(|at| at.text("a version")) == Some("v1");
    let list = if core {
        fields.ignore(&["spec"]);
        let status = fields.get("status").map(|at| at.entries()).unwrap_or_default();
        status.into_iter().find(|(key, _)| *key == "addresses").map(|(_, at)| at)
    } else {
        fields.get("spec").and_then(|at| at.mapping(|fields| fields.get("addresses")).flatten())
    };
    let items = list.map(|at| at.list()).unwrap_or_default();
    let addresses = items.iter().filter_map(address).collect();
    Node { name, labels: metadata::labels(fields).into_iter().collect(), addresses }
}

fn address(at: &At<'_>) -> Option<IpAddr> {
    at.mapping(|fields| {
        let hostname = fields.get("type").is_some_and(|at| {
            let kind = at.string();
            kind == "Hostname" || kind.ends_with("DNS")
        });
        let address = fields.require("address", "an IP address")?;
        if hostname { None } else { address.parse("an IP address") }
    })?
}
