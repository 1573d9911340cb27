//! One file per YAML kind: decode, default, check, into `mesh` types.
//!
//! Promise: strict. A field that is not known, a value that is not accepted, a demand that cannot be kept: the object
//! is refused with every reason, each with path and line. What is accepted means exactly what the kind's upstream
//! documentation says, or denies more and says so.

mod cilium;
pub mod configuration;
mod endpoint_slice;
mod metadata;
mod named;
mod network_policy;
mod ports;
mod prefix;
mod secret;
mod selector;
mod service;
mod workload;
mod workload_endpoint;

use std::fmt;
use std::sync::Arc;

use mesh::policy::{Policy, PolicyKind, PolicyName};

pub use cilium::{ToService, Which};
pub use configuration::Configuration;
pub use endpoint_slice::{EndpointSlice, SliceEndpoint, SlicePort};
pub(crate) use metadata::{is_label, is_name};
pub use named::{Namespace, Node};
pub use secret::Secret;
pub use service::{Family, Port, Reach, Service, Target};
pub use workload::Workload;
pub(crate) use workload::is_derived;
pub use workload_endpoint::WorkloadEndpoint;

use crate::yaml::{At, Document, Finding, Findings, Severity, nearest};

/// The kinds that are read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Settings of the node.
    Configuration,
    /// A namespace and its labels.
    Namespace,
    /// A node and its addresses.
    Node,
    /// A workload as its administrator declares it.
    Workload,
    /// An endpoint as its node has it.
    WorkloadEndpoint,
    /// What is called by an address or a name.
    Service,
    /// Who answers for a service.
    EndpointSlice,
    /// Certificates and keys.
    Secret,
    /// Any kind of policy.
    Policy(PolicyKind),
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Configuration,
        Self::Namespace,
        Self::Node,
        Self::Workload,
        Self::WorkloadEndpoint,
        Self::Service,
        Self::EndpointSlice,
        Self::Secret,
        Self::Policy(PolicyKind::NetworkPolicy),
        Self::Policy(PolicyKind::CiliumNetworkPolicy),
        Self::Policy(PolicyKind::CiliumClusterwideNetworkPolicy),
    ];

    /// As in YAML.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "Configuration",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Workload => "Workload",
            Self::WorkloadEndpoint => "WorkloadEndpoint",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Secret => "Secret",
            Self::Policy(kind) => kind.as_str(),
        }
    }

    fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Configuration | Self::Workload | Self::WorkloadEndpoint => &["ferromesh.io/v1alpha1"],
            Self::Namespace | Self::Service | Self::Secret => &["v1"],
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::Node => &["v1", "ferromesh.io/v1alpha1"],
            Self::Policy(PolicyKind::NetworkPolicy) => &["networking.k8s.io/v1"],
            Self::Policy(_) => &["cilium.io/v2"],
        }
    }
}

/// Which object: no two of a directory have the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, for the kinds that have one.
    pub namespace: Option<String>,
    /// Its name; empty for the one [`Kind::Configuration`].
    pub name: String,
    /// The node whose word it is, for [`Kind::WorkloadEndpoint`].
    pub node: Option<String>,
}

impl ObjectKey {
    /// The one of a node's settings.
    pub(crate) const CONFIGURATION: Self =
        Self { kind: Kind::Configuration, namespace: None, name: String::new(), node: None };

    /// The name as policies are known by, if it is one.
    pub fn policy(&self) -> Option<PolicyName> {
        let Kind::Policy(kind) = self.kind else { return None };
        Some(PolicyName { kind, namespace: self.namespace.clone(), name: self.name.clone() })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        match (&self.namespace, self.name.as_str()) {
            (_, "") => Ok(()),
            (Some(namespace), name) => write!(f, " {namespace}/{name}"),
            (None, name) => write!(f, " {name}"),
        }?;
        self.node.iter().try_for_each(|node| write!(f, " of {node}"))
    }
}

/// An object, understood.
#[derive(Clone, PartialEq, Debug)]
pub enum Object {
    /// Settings.
    Configuration(Arc<Configuration>),
    /// A namespace.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A workload.
    Workload(Arc<Workload>),
    /// An endpoint of some node.
    WorkloadEndpoint(Arc<WorkloadEndpoint>),
    /// A service.
    Service(Arc<Service>),
    /// A slice of a service's endpoints.
    EndpointSlice(Arc<EndpointSlice>),
    /// Certificates and keys.
    Secret(Arc<Secret>),
    /// A policy of any kind.
    Policy(Written),
}

/// A policy as it is written: peers that are services are still to be found.
#[derive(Clone, PartialEq, Debug)]
pub struct Written {
    /// Complete but for `services`; a statement with one of them lacks its peers.
    pub policy: Arc<Policy>,
    /// The peers that are missing.
    pub services: Arc<[ToService]>,
}

/// What one document came to.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Decoded {
    /// Which object it is, as far as it says so in a readable way.
    pub(crate) key: Option<ObjectKey>,
    /// The object; `None` if a finding is an error, or if the kind is none of ours.
    pub(crate) object: Option<Object>,
    /// First line.
    pub(crate) line: usize,
    /// Everything there is to say, in order of lines.
    pub(crate) findings: Vec<Finding>,
}

impl Decoded {
    /// Whether the document is of a kind that means nothing here, such as a Deployment or an Ingress.
    pub(crate) fn is_foreign(&self) -> bool {
        self.object.is_none() && !self.findings.iter().any(|f| f.severity == Severity::Error)
    }
}

/// Reads one document.
pub(crate) fn decode(document: &Document) -> Decoded {
    let root = match &document.root {
        Ok(root) => root,
        Err(finding) => {
            return Decoded { key: None, object: None, line: finding.line, findings: vec![finding.clone()] };
        }
    };
    let findings = Findings::default();
    let at = At::root(root, &findings);
    let (key, object) = object(&at);
    let object = object.filter(|_| !findings.failed());
    Decoded { key, object, line: root.place.line, findings: findings.into_vec() }
}

fn object(at: &At<'_>) -> (Option<ObjectKey>, Option<Object>) {
    // The kind decides which fields are known, so it is looked up before the strict pass.
    let Some(kind) = kind_of(at) else { return (None, None) };
    if kind == Kind::Configuration {
        let key = ObjectKey::CONFIGURATION;
        return (Some(key), configuration::decode(at).map(|it| Object::Configuration(Arc::new(it))));
    }
    let decoded = at.mapping(|fields| {
        fields.ignore(&["apiVersion", "kind", "status"]);
        let key = metadata::key(kind, fields);
        let name = key.as_ref().map(|key| key.name.clone()).unwrap_or_default();
        let namespace = key.as_ref().and_then(|key| key.namespace.clone()).unwrap_or_default();
        let object = match kind {
            Kind::Configuration => None,
            Kind::Namespace => Some(Object::Namespace(named::namespace(name, fields))),
            Kind::Node => Some(Object::Node(named::node(name, fields))),
            Kind::Workload => Some(Object::Workload(Arc::new(workload::decode(namespace, name, fields)))),
            Kind::WorkloadEndpoint => workload_endpoint::decode(namespace, fields)
                .map(|endpoint| Object::WorkloadEndpoint(Arc::new(endpoint))),
            Kind::Service => service::decode(namespace, name, fields).map(|s| Object::Service(Arc::new(s))),
            Kind::EndpointSlice => {
                Some(Object::EndpointSlice(Arc::new(endpoint_slice::decode(namespace, name, fields))))
            }
            Kind::Secret => Some(Object::Secret(Arc::new(secret::decode(namespace, name, fields)))),
            Kind::Policy(policy_kind) => {
                let (rules, services) = match policy_kind {
                    PolicyKind::NetworkPolicy => (network_policy::rules(&namespace, fields), Vec::new()),
                    PolicyKind::CiliumNetworkPolicy => cilium::rules(Some(&namespace), fields),
                    PolicyKind::CiliumClusterwideNetworkPolicy => cilium::rules(None, fields),
                };
                let name = key.as_ref().and_then(ObjectKey::policy);
                name.map(|name| {
                    let policy = Arc::new(Policy { name, rules });
                    Object::Policy(Written { policy, services: services.into() })
                })
            }
        };
        (key, object)
    });
    decoded.unwrap_or_default()
}

/// What does here what an object of Envoy's is for elsewhere.
fn instead_of(kind: &str) -> Option<&'static str> {
    match kind {
        "CiliumEnvoyConfig" => {
            Some("write rules.http in a CiliumNetworkPolicy, which the node's L7 proxy enforces")
        }
        "CiliumClusterwideEnvoyConfig" => {
            Some("write rules.http in a CiliumClusterwideNetworkPolicy, which the node's L7 proxy enforces")
        }
        _ => None,
    }
}

/// The kind of a document. A kind that is none of ours is a hint, unless it looks like a slip of the pen for one.
fn kind_of(at: &At<'_>) -> Option<Kind> {
    let entries = at.entries();
    let field = |name: &str| entries.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
    let (Some(version), Some(kind)) = (field("apiVersion"), field("kind")) else {
        if !entries.is_empty() {
            at.error("expected an object with apiVersion and kind");
        }
        return None;
    };
    let version_text = version.text("a version")?;
    let kind_text = kind.text("a kind")?;
    let Some(found) = Kind::ALL.into_iter().find(|known| known.as_str() == kind_text) else {
        if let Some(instead) = instead_of(kind_text).filter(|_| version_text.starts_with("cilium.io/")) {
            kind.error(format_args!("there is no Envoy to configure; {instead}"));
            return None;
        }
        let ours = ["ferromesh.io/", "cilium.io/"].iter().any(|group| version_text.starts_with(group));
        match nearest(kind_text, Kind::ALL.iter().map(|kind| kind.as_str())) {
            Some(near) => kind.error(format_args!("found {kind_text:?}, did you mean {near}")),
            None if ours => kind.error(format_args!("found {kind_text:?}, which this version does not read")),
            None if kind_text == "List" => {
                kind.error("a List is not read; write its items as documents of their own")
            }
            None => kind.hint(format_args!("{kind_text} means nothing to this version; passed over")),
        }
        return None;
    };
    if !found.api_versions().contains(&version_text) {
        let accepted = found.api_versions().join(" or ");
        version.error(format_args!("found {version_text:?}, expected {accepted} for {kind_text}"));
    }
    Some(found)
}
