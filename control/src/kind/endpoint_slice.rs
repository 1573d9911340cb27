//! `EndpointSlice`, `discovery.k8s.io/v1`: who answers for a service, in an administrator's or an API server's words.
//!
//! An address may be anybody's, also a workload's: whoever writes slices decides where a service's clients go.

use std::net::IpAddr;

use mesh::service::ServiceName;

use super::metadata;
use super::service::{Family, address, slice_port};
use crate::yaml::{At, Fields};

/// As the API server has them.
const MOST_ENDPOINTS: usize = 1000;
const MOST_PORTS: usize = 100;
const MOST_ADDRESSES: usize = 100;
/// The label that says whose slice it is.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A slice as it is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Its namespace and name.
    pub name: ServiceName,
    /// Whose it is; `None` serves nobody.
    pub service: Option<ServiceName>,
    /// Who answers.
    pub endpoints: Vec<SliceEndpoint>,
    /// At which ports: of one service port by its name and protocol each.
    pub ports: Vec<SlicePort>,
}

/// An endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// New connections may go to it.
    pub ready: bool,
    /// It answers, whether terminating or not.
    pub serving: bool,
    /// It is about to end.
    pub terminating: bool,
    /// Its own name below that of a headless service.
    pub hostname: Option<String>,
    /// The node it is on.
    pub node: Option<String>,
}

/// A port of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// Name of the service's port; empty if it has none.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Where the endpoints listen.
    pub port: u16,
}

pub(super) fn decode(namespace: String, name: String, fields: &Fields<'_>) -> EndpointSlice {
    let labels = metadata::labels(fields);
    let service = labels.into_iter().find(|(key, _)| key == SERVICE_NAME).map(|(_, value)| value);
    let service = service.filter(|service| !service.is_empty());
    if service.is_none() {
        let message = format_args!("serves nobody: the label {SERVICE_NAME} names the Service");
        fields.get("metadata").unwrap_or_else(|| fields.whole().clone()).warn(message);
    }
    let kinds = [(Some(Family::V4), "IPv4"), (Some(Family::V6), "IPv6"), (None, "FQDN")];
    let kind_at = fields.require("addressType", "IPv4 or IPv6");
    let kind = kind_at.as_ref().and_then(|at| at.one_of(&kinds));
    let endpoints = fields.nullable("endpoints");
    let endpoints = match kind.flatten() {
        Some(family) => endpoints.map(|at| endpoints_of(&at, family)).unwrap_or_default(),
        None => {
            if let (Some(at), Some(None)) = (&kind_at, kind) {
                at.hint("names are passed over; an ExternalName service leads to a name");
            }
            Vec::new()
        }
    };
    let ports = fields.nullable("ports").map(|at| ports(&at)).unwrap_or_default();
    let service = service.map(|name| ServiceName { namespace: namespace.clone(), name });
    EndpointSlice { name: ServiceName { namespace, name }, service, endpoints, ports }
}

fn at_most<'a>(at: &At<'a>, most: usize, what: &str) -> Vec<At<'a>> {
    let items = at.list();
    if items.len() > most {
        at.error(format_args!("found {} {what}, at most {most} fit one slice; write two", items.len()));
    }
    items
}

fn endpoints_of(at: &At<'_>, family: Family) -> Vec<SliceEndpoint> {
    let items = at_most(at, MOST_ENDPOINTS, "endpoints");
    items.iter().filter_map(|item| item.mapping(|fields| endpoint(fields, family))?).collect()
}

fn endpoint(fields: &Fields<'_>, family: Family) -> Option<SliceEndpoint> {
    fields.ignore(&["targetRef", "hints", "zone", "deprecatedTopology"]);
    let hostname = fields.nullable("hostname").filter(|at| !at.is_empty()).and_then(|at| {
        let text = at.string();
        if !metadata::is_label(&text) {
            at.expected("one DNS label of lower-case letters, digits and '-'");
        }
        Some(text).filter(|text| metadata::is_label(text))
    });
    let node = fields.nullable("nodeName").and_then(|at| metadata::name(&at));
    let [ready, serving, terminating] = conditions(fields);
    let ready = ready.unwrap_or(true);
    Some(SliceEndpoint {
        address: one_address(fields, family)?,
        ready,
        serving: serving.unwrap_or(ready),
        terminating: terminating.unwrap_or(false),
        hostname,
        node,
    })
}

fn conditions(fields: &Fields<'_>) -> [Option<bool>; 3] {
    let read = fields.nullable("conditions").and_then(|at| {
        at.mapping(|fields| {
            let condition = |name| fields.nullable(name).map(|at| at.boolean());
            [condition("ready"), condition("serving"), condition("terminating")]
        })
    });
    read.unwrap_or_default()
}

/// The first: "no semantics are defined for additional addresses", says the API, and kube-proxy looks at no other.
fn one_address(fields: &Fields<'_>, family: Family) -> Option<IpAddr> {
    let at = fields.require("addresses", "one address")?;
    let items = at_most(&at, MOST_ADDRESSES, "addresses");
    if items.is_empty() {
        at.error("found an empty list, expected one address");
    }
    if items.len() > 1 {
        at.warn("only the first is used; write an endpoint for each");
    }
    let expected = format!("an {family} address, as addressType says");
    let read = |item: &At<'_>| {
        let address = address(item, &expected)?;
        if Family::of(address) != family {
            item.expected(&expected);
        }
        Some(address)
    };
    let all: Vec<_> = items.iter().map(read).collect();
    all.into_iter().next().flatten()
}

fn ports(at: &At<'_>) -> Vec<SlicePort> {
    let mut ports: Vec<SlicePort> = Vec::new();
    for item in at_most(at, MOST_PORTS, "ports") {
        let Some((name, protocol, Some(port))) = item.mapping(slice_port).flatten() else { continue };
        if ports.iter().any(|known| known.name == name && known.protocol == protocol) {
            item.error(format_args!("port name {name:?} is given twice"));
        }
        ports.push(SlicePort { name, protocol, port });
    }
    ports
}
