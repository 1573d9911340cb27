//! `Service`, `v1`.
//!
//! Checks are those of the API server; its defaults too, on a cluster whose first family is IPv4. What an API server
//! writes beside is read past, so that `kubectl get -o yaml` can be fed in. Served are cluster addresses, headless
//! services and external names; what else a `Service` asks for is warned of, and the rest of it stands.

mod addresses;
mod ports;

use std::net::IpAddr;

use mesh::labels::{LabelSet, Source};
use mesh::policy::{Operator, Requirement, Selector};
use mesh::service::ServiceName;

use super::selector::{check_key, check_value, in_namespace};
use super::{metadata, ports as numbers};
use crate::yaml::{At, Fields};
pub use addresses::Family;
pub(super) use addresses::address;
pub use ports::{Port, Target};

/// A service as it is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its own labels, which `toServices` selects by.
    pub labels: LabelSet,
    /// Workloads that answer, of its own namespace; `None` those of its slices alone.
    pub selector: Option<Selector>,
    /// How it is reached.
    pub reach: Reach,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Seconds for which a client returns to the backend it had.
    pub affinity: Option<u32>,
    /// Endpoints count as ready from the beginning.
    pub publish_not_ready: bool,
    /// `internalTrafficPolicy: Local`: only backends of the client's node answer.
    pub local: bool,
}

/// How a service is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reach {
    /// By an address for each family, in order: the one that is asked for, or any of the pool.
    Cluster(Vec<(Family, Option<IpAddr>)>),
    /// By the addresses of its endpoints, of these families.
    Headless(Vec<Family>),
    /// By another name.
    External(String),
}

impl Service {
    /// The addresses that it names.
    pub(crate) fn explicit(&self) -> impl Iterator<Item = IpAddr> {
        let families: &[_] = match &self.reach {
            Reach::Cluster(families) => families,
            Reach::Headless(_) | Reach::External(_) => &[],
        };
        families.iter().filter_map(|(_, address)| *address)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Type {
    Cluster,
    Node,
    LoadBalancer,
    External,
}

const TYPES: [(Type, &str); 4] = [
    (Type::Cluster, "ClusterIP"),
    (Type::Node, "NodePort"),
    (Type::LoadBalancer, "LoadBalancer"),
    (Type::External, "ExternalName"),
];

/// Belongs to node ports and load balancers, which are warned of as a whole.
const OF_THE_OUTSIDE: [&str; 5] = [
    "allocateLoadBalancerNodePorts",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "loadBalancerClass",
    "loadBalancerSourceRanges",
];

pub(super) fn decode(namespace: String, name: String, fields: &Fields<'_>) -> Option<Service> {
    for (field, text) in [("name", &name), ("namespace", &namespace)] {
        if let (false, false, Some(at)) = (text.is_empty(), metadata::is_label(text), fields.get("metadata"))
        {
            at.error(format_args!(
                "{field} {text:?}: a Service is called by it, so it is one DNS label: no dots, at most 63 long"
            ));
        }
    }
    let labels = metadata::labels(fields);
    let labels =
        labels.iter().fold(LabelSet::new(), |labels, (key, value)| labels.with(Source::K8s, key, value));
    let name = ServiceName { namespace, name };
    let spec = fields.require("spec", "a mapping with ports")?;
    spec.mapping(|fields| service(name, labels, fields))?
}

fn service(name: ServiceName, labels: LabelSet, fields: &Fields<'_>) -> Option<Service> {
    let kind = service_type(fields);
    let selector = fields.get("selector").and_then(|at| selector(&at, &name.namespace));
    let reach = match kind {
        Type::External => external(fields).map(Reach::External),
        Type::Cluster | Type::Node | Type::LoadBalancer => {
            fields.refuse(&["externalName"], "goes with type: ExternalName");
            addresses::reach(fields, kind != Type::Cluster, selector.is_some())
        }
    };
    let is_headless = matches!(reach, Some(Reach::Headless(_)));
    let needed = kind != Type::External && !is_headless;
    let ports = ports::ports(fields, needed, kind != Type::External && !is_headless);
    let affinity = affinity(fields);
    unserved(fields);
    Some(Service {
        publish_not_ready: fields.get("publishNotReadyAddresses").is_some_and(|at| at.boolean()),
        local: fields
            .get("internalTrafficPolicy")
            .and_then(|at| at.one_of(&[(true, "Local"), (false, "Cluster")]))
            .unwrap_or(false),
        name,
        labels,
        selector,
        reach: reach?,
        ports,
        affinity,
    })
}

fn service_type(fields: &Fields<'_>) -> Type {
    let Some(at) = fields.get("type") else { return Type::Cluster };
    let kind = at.one_of(&TYPES).unwrap_or(Type::Cluster);
    match kind {
        Type::Node => at.warn("node ports are not opened by this version; the cluster address is served"),
        Type::LoadBalancer => {
            at.warn("load balancers are not served by this version; the cluster address is");
        }
        Type::Cluster | Type::External => {}
    }
    kind
}

/// Labels that all must be carried; none at all selects nobody, as if the field were left out.
fn selector(at: &At<'_>, namespace: &str) -> Option<Selector> {
    let requirement = |(key, at): (&str, At<'_>)| {
        check_key(&at, key);
        let value = at.string();
        check_value(&at, &value);
        let operator = Operator::In(vec![value]);
        Requirement { source: Some(Source::K8s), key: key.to_owned(), operator }
    };
    let mut requirements: Vec<_> = at.entries().into_iter().map(requirement).collect();
    if requirements.is_empty() {
        return None;
    }
    requirements.push(in_namespace(namespace));
    Some(Selector(requirements))
}

/// The name that `type: ExternalName` stands for. Addresses and selectors mean nothing beside it.
fn external(fields: &Fields<'_>) -> Option<String> {
    fields.ignore(&["ipFamilies", "ipFamilyPolicy"]);
    for field in ["clusterIP", "clusterIPs"] {
        if let Some(at) = fields.get(field).filter(|at| !at.is_empty()) {
            at.error("an ExternalName has no address; leave the field out");
        }
    }
    let at = fields.require("externalName", "the DNS name that this one stands for")?;
    let text = at.string();
    let name = text.strip_suffix('.').unwrap_or(&text);
    if !metadata::is_name(name) {
        at.expected("a DNS name of lower-case letters, digits, '-' and '.'");
        return None;
    }
    if name.parse::<IpAddr>().is_ok() {
        at.warn("is read as a name, though it looks like an address; a Service without selector and an EndpointSlice lead to an address");
    }
    Some(name.to_owned())
}

/// `sessionAffinity`, in seconds.
fn affinity(fields: &Fields<'_>) -> Option<u32> {
    const DEFAULT: u32 = 10_800;
    const MOST: u32 = 86_400;
    let wanted = fields.get("sessionAffinity");
    let wanted = wanted.and_then(|at| at.one_of(&[(true, "ClientIP"), (false, "None")])).unwrap_or(false);
    let config = fields.get("sessionAffinityConfig");
    if let (false, Some(config)) = (wanted, &config) {
        config.error("goes with sessionAffinity: ClientIP");
    }
    let timeout = config.and_then(|at| {
        at.mapping(|fields| {
            fields.get("clientIP")?.mapping(|fields| {
                let at = fields.get("timeoutSeconds")?;
                let seconds = at.text("1-86400")?.parse().ok().filter(|n| (1..=MOST).contains(n));
                if seconds.is_none() {
                    at.expected("1-86400 seconds");
                }
                seconds
            })?
        })?
    });
    wanted.then(|| timeout.unwrap_or(DEFAULT))
}

/// What is asked for and not done.
fn unserved(fields: &Fields<'_>) {
    fields.ignore(&OF_THE_OUTSIDE);
    if let Some(at) = fields.get("externalIPs").filter(|at| !at.list().is_empty()) {
        at.warn("external addresses are not served by this version");
    }
    if let Some(at) = fields.get("loadBalancerIP").filter(|at| !at.string().is_empty()) {
        at.warn("load balancers are not served by this version");
    }
    if let Some(at) = fields.get("trafficDistribution") {
        at.text("a preference such as PreferClose");
        at.hint("passed over: every backend is as near as any other");
    }
}

/// Whether a text is a port's name in a service: a DNS label.
fn port_name(at: &At<'_>) -> Option<String> {
    let name = at.string();
    if !metadata::is_label(&name) {
        at.expected("a name of lower-case letters, digits and '-', at most 63 long");
        return None;
    }
    Some(name)
}

/// Ports of slices are those of services, by their names.
pub(super) fn slice_port(fields: &Fields<'_>) -> Option<(String, u8, Option<u16>)> {
    fields.ignore(&["appProtocol"]);
    let name = fields.nullable("name").filter(|at| !at.is_empty());
    let name = name.map_or(Some(String::new()), |at| port_name(&at));
    let protocol = fields.nullable("protocol").map(|at| at.one_of(&numbers::KUBERNETES));
    let port_at = fields.nullable("port");
    let port = port_at.as_ref().and_then(numbers::number);
    if port_at.is_none() {
        fields.whole().hint("without a number it leads nowhere; passed over");
    }
    Some((name?, protocol.unwrap_or(Some(mesh::policy::protocol::TCP))?, port))
}
