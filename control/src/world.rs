//! Everything that is in force, as one immutable value.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh::policy::{Policy, PolicyName};
use mesh::service::ServiceName;
use mesh::workload::WorkloadName;
use node_api::ConfigEntry;

use crate::kind::{
    Configuration, EndpointSlice, Kind, Namespace, Node, Object, Service, ToService, Workload,
};
use crate::objects::{ObjectStatus, Objects};

/// A snapshot. Two that compare equal but for their generation ask for the same.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct World {
    /// Number of this snapshot; each later one has a higher number.
    pub generation: u64,
    /// Settings in force.
    pub configuration: Configuration,
    /// The file that set each key: key → `file:line`.
    pub origins: BTreeMap<&'static str, String>,
    /// Declared namespaces.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Declared nodes.
    pub nodes: BTreeMap<String, Node>,
    /// Declared workloads, of every node.
    pub workloads: BTreeMap<WorkloadName, Workload>,
    /// Services in force.
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// Slices of services' endpoints in force, by their own names.
    pub slices: BTreeMap<ServiceName, Arc<EndpointSlice>>,
    /// Policies in force, in order of their names, without those peers that are services.
    pub policies: Vec<Arc<Policy>>,
    /// Peers that are services, of the policies that have such.
    pub to_services: BTreeMap<PolicyName, Arc<[ToService]>>,
    /// What became of every object and of what could not be read, in order of files and lines.
    pub statuses: Vec<ObjectStatus>,
    /// What is wrong with the source as a whole, a sentence each.
    pub degraded: Vec<String>,
}

impl World {
    pub(crate) fn new(objects: &Objects, generation: u64) -> Self {
        let mut world = Self { generation, statuses: objects.statuses.clone(), ..Self::default() };
        for accepted in objects.accepted.values() {
            match &accepted.object {
                Object::Configuration(configuration) => {
                    world.configuration = configuration.clone();
                    let origin = |(key, place): &(&'static str, crate::yaml::Place)| {
                        (*key, format!("{}:{}", accepted.file, place.line))
                    };
                    world.origins = configuration.given.iter().map(origin).collect();
                }
                Object::Namespace(namespace) => {
                    world.namespaces.insert(namespace.name.clone(), namespace.clone());
                }
                Object::Node(node) => {
                    world.nodes.insert(node.name.clone(), node.clone());
                }
                Object::Workload(workload) => {
                    world.workloads.insert(workload.name.clone(), workload.clone());
                }
                Object::Service(service) => {
                    world.services.insert(service.name.clone(), Arc::clone(service));
                }
                Object::EndpointSlice(slice) => {
                    world.slices.insert(slice.name.clone(), Arc::clone(slice));
                }
                Object::Policy(written) => {
                    let policy = Arc::clone(&written.policy);
                    if !written.services.is_empty() {
                        world.to_services.insert(policy.name.clone(), Arc::clone(&written.services));
                    }
                    world.policies.push(policy);
                }
            }
        }
        world
    }

    /// The world of one file, which must be faultless.
    #[cfg(test)]
    pub(crate) fn of(yaml: &str) -> Self {
        let documents: Vec<_> = crate::yaml::documents(yaml)
            .iter()
            .map(|document| (document.position, crate::kind::decode(document)))
            .collect();
        let file = crate::objects::File { name: "world.yaml".to_owned(), text: yaml.into(), documents };
        let mut objects = Objects::default();
        objects.update(&[file], None);
        let world = Self::new(&objects, 1);
        assert_eq!(world.invalid(), 0, "{:#?}", world.statuses);
        world
    }

    /// Rows of `config view`.
    pub fn config_entries(&self) -> Vec<ConfigEntry> {
        let origin = |key: &str| self.origins.get(key).cloned().unwrap_or_else(|| "default".to_owned());
        let entry = |(key, value, _): (&'static str, String, _)| ConfigEntry {
            key: key.to_owned(),
            value,
            origin: origin(key),
        };
        self.configuration.entries().into_iter().map(entry).collect()
    }

    /// Objects that have an error of their own; [`crate::status::invalid`] counts what planning refuses too.
    pub fn invalid(&self) -> usize {
        self.statuses.iter().filter(|status| !status.valid).count()
    }

    /// Addresses of nodes other than the named one.
    pub(crate) fn other_nodes(&self, this: &str) -> impl Iterator<Item = IpAddr> {
        self.nodes
            .values()
            .filter(move |node| node.name != this)
            .flat_map(|node| node.addresses.iter().copied())
    }

    /// The policy of a status, if the status is a policy's or could be one's.
    pub(crate) fn policy_of(status: &ObjectStatus) -> Option<PolicyName> {
        status.key.as_ref().and_then(crate::kind::ObjectKey::policy)
    }

    /// Whether `policy list` shows a status: policies always, other objects when there is something to say of them.
    pub(crate) fn is_listed(status: &ObjectStatus) -> bool {
        status.remarkable || status.key.as_ref().is_some_and(|key| matches!(key.kind, Kind::Policy(_)))
    }
}
