//! Everything that is in force, as one immutable value.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh::l7::SecretName;
use mesh::policy::{Policy, PolicyName};
use mesh::service::ServiceName;
use mesh::workload::WorkloadName;
use node_api::ConfigEntry;

use crate::kind::configuration::WorkloadLabels;
use crate::kind::{
    Configuration, EndpointSlice, Kind, Namespace, Node, Object, ObjectKey, Secret, Service, ToService,
    Workload, WorkloadEndpoint,
};
use crate::objects::{Accepted, ObjectStatus, Objects};

/// A snapshot. Two that compare equal but for their generation ask for the same; what one shares with the one before
/// has not changed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct World {
    /// Number of this snapshot; each later one has a higher number.
    pub generation: u64,
    /// Settings in force.
    pub configuration: Configuration,
    /// The file that set each key: key → `file:line`.
    pub origins: BTreeMap<&'static str, String>,
    /// Declared namespaces.
    pub namespaces: Arc<BTreeMap<String, Namespace>>,
    /// Declared nodes.
    pub nodes: Arc<BTreeMap<String, Node>>,
    /// Declared workloads, of every node.
    pub workloads: Arc<BTreeMap<Arc<WorkloadName>, Arc<Workload>>>,
    /// Several nodes share a directory: what a workload is and where it runs is declared there and nowhere else.
    pub shared: bool,
    /// What nodes say of their endpoints, this node included.
    pub endpoints: Arc<BTreeMap<ClaimName, Claim>>,
    /// Services in force.
    pub services: Arc<BTreeMap<ServiceName, Arc<Service>>>,
    /// Slices of services' endpoints in force, by their own names.
    pub slices: Arc<BTreeMap<ServiceName, Arc<EndpointSlice>>>,
    /// Secrets in force.
    pub secrets: Arc<BTreeMap<SecretName, Arc<Secret>>>,
    /// Policies in force, in order of their names, without those peers that are services.
    pub policies: Arc<Vec<Arc<Policy>>>,
    /// Peers that are services, of the policies that have such.
    pub to_services: Arc<BTreeMap<PolicyName, Arc<[ToService]>>>,
    /// What became of every object and of what could not be read, in order of files and lines.
    pub statuses: Arc<Vec<Arc<ObjectStatus>>>,
    /// What is wrong with the source as a whole, a sentence each.
    pub degraded: Vec<String>,
}

/// Whose word on an endpoint, and which object of that node says it: (node, namespace, name).
pub type ClaimName = (String, String, String);

/// What a node says of an endpoint, and where.
#[derive(Clone, PartialEq, Debug)]
pub struct Claim {
    /// What it says.
    pub endpoint: Arc<WorkloadEndpoint>,
    /// `file:line`.
    pub place: String,
}

/// The object of a kind, if it is of that kind.
macro_rules! match_object {
    ($object:expr, $kind:path) => {
        match $object {
            $kind(value) => Some(value.clone()),
            _ => None,
        }
    };
}

fn set<K: Ord + Clone, V: Clone>(map: &mut Arc<BTreeMap<K, V>>, key: K, value: Option<V>) {
    let map = Arc::make_mut(map);
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

impl World {
    pub(crate) fn new(objects: &Objects, generation: u64, shared: bool) -> Self {
        let mut world =
            Self { generation, shared, statuses: Arc::clone(&objects.statuses), ..Self::default() };
        world.configure(None);
        for (key, accepted) in &objects.accepted {
            world.put(key, Some(accepted));
        }
        world
    }

    /// Brings one object to what is in force now.
    pub(crate) fn put(&mut self, key: &ObjectKey, accepted: Option<&Arc<Accepted>>) {
        let object = accepted.map(|accepted| &accepted.object);
        let named =
            || ServiceName { namespace: key.namespace.clone().unwrap_or_default(), name: key.name.clone() };
        match key.kind {
            Kind::Configuration => self.configure(accepted),
            Kind::Namespace => {
                let namespace = object.and_then(|object| match_object!(object, Object::Namespace));
                set(&mut self.namespaces, key.name.clone(), namespace);
            }
            Kind::Node => {
                let node = object.and_then(|object| match_object!(object, Object::Node));
                set(&mut self.nodes, key.name.clone(), node);
            }
            Kind::Workload => {
                let ServiceName { namespace, name } = named();
                let workload = object.and_then(|object| match_object!(object, Object::Workload));
                set(&mut self.workloads, Arc::new(WorkloadName { namespace, name }), workload);
            }
            Kind::WorkloadEndpoint => {
                let ServiceName { namespace, name } = named();
                let endpoint = object.and_then(|object| match_object!(object, Object::WorkloadEndpoint));
                let place = accepted.map(|accepted| format!("{}:{}", accepted.file, accepted.line));
                let claim = endpoint.zip(place).map(|(endpoint, place)| Claim { endpoint, place });
                set(&mut self.endpoints, (key.node.clone().unwrap_or_default(), namespace, name), claim);
            }
            Kind::Service => {
                let service = object.and_then(|object| match_object!(object, Object::Service));
                set(&mut self.services, named(), service);
            }
            Kind::EndpointSlice => {
                let slice = object.and_then(|object| match_object!(object, Object::EndpointSlice));
                set(&mut self.slices, named(), slice);
            }
            Kind::Secret => {
                let ServiceName { namespace, name } = named();
                let secret = object.and_then(|object| match_object!(object, Object::Secret));
                set(&mut self.secrets, SecretName { namespace, name }, secret);
            }
            Kind::Policy(_) => self.put_policy(key, object),
        }
    }

    fn configure(&mut self, accepted: Option<&Arc<Accepted>>) {
        let given = accepted.and_then(|accepted| match &accepted.object {
            Object::Configuration(configuration) => Some((accepted, configuration)),
            _ => None,
        });
        self.set_configuration(
            given.map(|(_, configuration)| configuration.as_ref().clone()).unwrap_or_default(),
        );
        let Some((accepted, configuration)) = given else { return };
        for (key, place) in &configuration.given {
            let origin = format!("{}:{}", accepted.file, place.line);
            self.origins.entry(*key).or_insert(origin);
        }
    }

    /// Puts settings in force, of which nobody knows yet where they are from.
    pub(crate) fn set_configuration(&mut self, configuration: Configuration) {
        self.configuration = configuration;
        self.origins = BTreeMap::new();
        if self.shared {
            self.configuration.workload_labels = WorkloadLabels::Declared;
            self.origins.insert("workloadLabels", "--shared".to_owned());
        }
    }

    fn put_policy(&mut self, key: &ObjectKey, object: Option<&Object>) {
        let Some(name) = key.policy() else { return };
        let written = object.and_then(|object| match_object!(object, Object::Policy));
        let services =
            written.as_ref().map(|written| &written.services).filter(|services| !services.is_empty());
        if services.is_some() || self.to_services.contains_key(&name) {
            set(&mut self.to_services, name.clone(), services.cloned());
        }
        let policies = Arc::make_mut(&mut self.policies);
        match (policies.binary_search_by(|policy| policy.name.cmp(&name)), written) {
            (Ok(at), Some(written)) => policies[at] = written.policy,
            (Ok(at), None) => drop(policies.remove(at)),
            (Err(at), Some(written)) => policies.insert(at, written.policy),
            (Err(_), None) => {}
        }
    }

    /// The world of one file, which must be faultless.
    #[cfg(test)]
    pub(crate) fn of(yaml: &str) -> Self {
        Self::of_files(&crate::source::layout::Layout::default(), &[("world.yaml", yaml)])
    }

    /// The world of a shared directory, whose files must be faultless: `admin/…` and `nodes/NAME/…`.
    #[cfg(test)]
    pub(crate) fn of_shared(files: &[(&str, &str)]) -> Self {
        let shared = std::path::Path::new("/shared");
        let layout =
            crate::source::layout::Layout::new(std::path::Path::new("/config"), Some(shared)).unwrap();
        let files: Vec<_> = files.iter().map(|(name, yaml)| (format!("/shared/{name}"), *yaml)).collect();
        let files: Vec<_> = files.iter().map(|(name, yaml)| (name.as_str(), *yaml)).collect();
        Self::of_files(&layout, &files)
    }

    #[cfg(test)]
    fn of_files(layout: &crate::source::layout::Layout, files: &[(&str, &str)]) -> Self {
        let file = |(name, yaml): &(&str, &str)| {
            let documents = crate::yaml::documents(yaml);
            let decode = |it: &crate::yaml::Document| (it.position, layout.writer(name).decode(it));
            let documents = documents.iter().map(decode).collect();
            crate::objects::File { name: (*name).to_owned(), text: (*yaml).into(), documents }
        };
        let world = Self::new(&Objects::of(files.iter().map(file)), 1, layout.is_shared());
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

    /// Ranges of workloads' addresses of nodes other than the named one.
    pub(crate) fn other_pod_cidrs(&self, this: &str) -> impl Iterator<Item = IpNet> {
        self.nodes
            .values()
            .filter(move |node| node.name != this)
            .flat_map(|node| node.pod_cidrs.iter().copied())
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
