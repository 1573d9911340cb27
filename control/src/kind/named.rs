//! `Namespace` and `Node`: objects that policy knows by name and labels.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::configuration::AUTH_PORT;
use super::{metadata, ports, prefix};
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
    /// Its workloads have addresses of these ranges, of either family.
    pub pod_cidrs: Vec<IpNet>,
    /// TCP port of its auth-agent.
    pub auth_port: u16,
}

pub(super) fn namespace(name: String, fields: &Fields<'_>) -> Namespace {
    fields.ignore(&["spec"]);
    Namespace { name, labels: metadata::labels(fields).into_iter().collect() }
}

/// Addresses stand under `spec.addresses` (ferromesh.io) or `status.addresses` (core), each `{type, address}`. Of the
/// core object all else but `spec.podCIDRs` belongs to Kubernetes.
pub(super) fn node(name: String, fields: &Fields<'_>) -> Node {
    let core = fields.get("apiVersion").and_then(|at| at.text("a version")) == Some("v1");
    let (list, pod_cidrs, auth_port) = if core {
        (entry(fields.get("status"), "addresses"), entry(fields.nullable("spec"), "podCIDRs"), None)
    } else {
        let spec = fields.get("spec").and_then(|at| {
            at.mapping(|fields| (fields.get("addresses"), fields.get("podCIDRs"), fields.get("authPort")))
        });
        spec.unwrap_or_default()
    };
    let items = list.map(|at| at.list()).unwrap_or_default();
    let ranges = pod_cidrs.map(|at| at.list()).unwrap_or_default();
    Node {
        name,
        labels: metadata::labels(fields).into_iter().collect(),
        addresses: items.iter().filter_map(address).collect(),
        pod_cidrs: ranges.iter().filter_map(pod_cidr).collect(),
        auth_port: auth_port.and_then(|at| ports::number(&at)).unwrap_or(AUTH_PORT),
    }
}

/// Of an object of which most belongs to somebody else, one field.
fn entry<'a>(of: Option<At<'a>>, name: &str) -> Option<At<'a>> {
    let entries = of.map(|at| at.entries()).unwrap_or_default();
    entries.into_iter().find(|(key, at)| *key == name && !at.is_null()).map(|(_, at)| at)
}

/// A range that is a node's. One so wide that it holds much of the world is a slip of the pen.
fn pod_cidr(at: &At<'_>) -> Option<IpNet> {
    let range = prefix::prefix(at)?;
    let least = if range.addr().is_ipv4() { 8 } else { 16 };
    if range.prefix_len() < least {
        at.error(format_args!("found {range}, expected a prefix of length {least} or more"));
        return None;
    }
    Some(range)
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
