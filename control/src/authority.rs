//! Whose word on a workload counts: its labels, its service account, its place.
//!
//! An administrator's `Workload` object goes before what `ferromesh run` was told, and where the configuration says
//! `workloadLabels: declared`, nothing else counts. Labels that say where and as whom something runs are derived here
//! and nowhere else; nobody can set them.

use mesh::labels::{LabelSet, NAMESPACE, NAMESPACE_LABELS, SERVICE_ACCOUNT, Source};
use mesh::workload::{Endpoint, NamedPorts, WorkloadName};

use crate::kind::configuration::WorkloadLabels;
use crate::kind::{Workload, is_derived};
use crate::world::World;

/// Why a workload may not start here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AdmitError {
    /// Another node has it.
    #[error("workload {workload}: its Workload object places it on node {placed}, this is {node}")]
    Elsewhere {
        /// Which workload.
        workload: WorkloadName,
        /// Where it belongs.
        placed: String,
        /// This node.
        node: String,
    },
    /// No node has it, where several share a directory.
    #[error(
        "workload {workload}: its Workload object places it on no node, this is {node}; add spec.node to it"
    )]
    Nowhere {
        /// Which workload.
        workload: WorkloadName,
        /// This node.
        node: String,
    },
    /// It is unknown, and only what is declared may run.
    #[error(
        "workload {0}: not declared, and workloadLabels is \"declared\"; add a Workload object of that name"
    )]
    Undeclared(WorkloadName),
}

/// What policy is told of a workload.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Standing {
    pub(crate) labels: LabelSet,
    pub(crate) ports: NamedPorts,
}

/// Whether a workload of this name may start on this node. Asked before anything of it is made.
pub fn admit(world: &World, node: &str, workload: &WorkloadName) -> Result<(), AdmitError> {
    match world.workloads.get(workload) {
        Some(declared) => match &declared.node {
            Some(placed) if placed != node => Err(AdmitError::Elsewhere {
                workload: workload.clone(),
                placed: placed.clone(),
                node: node.to_owned(),
            }),
            None if world.shared => {
                Err(AdmitError::Nowhere { workload: workload.clone(), node: node.to_owned() })
            }
            _ => Ok(()),
        },
        None if world.configuration.workload_labels == WorkloadLabels::Declared => {
            Err(AdmitError::Undeclared(workload.clone()))
        }
        None => Ok(()),
    }
}

/// A declared workload, wherever it runs.
pub(crate) fn declared(world: &World, workload: &Workload) -> Standing {
    let own = workload.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let labels = labels(world, &workload.name.namespace, &workload.service_account, own);
    Standing { labels, ports: workload.ports.clone() }
}

/// An endpoint of this node. One that could not be admitted now (its object was moved or removed after it started)
/// is `reserved:init`: nothing is known of it, so nothing is allowed that is not allowed to such.
pub(crate) fn running(world: &World, node: &str, endpoint: &Endpoint) -> Standing {
    if admit(world, node, &endpoint.workload).is_err() {
        return Standing { labels: LabelSet::reserved("init"), ports: NamedPorts::new() };
    }
    if let Some(workload) = world.workloads.get(&endpoint.workload) {
        return declared(world, workload);
    }
    let own = endpoint.labels.iter().filter(|(key, _)| key.source == Source::K8s && !is_derived(&key.key));
    let own = own.map(|(key, value)| (key.key.as_str(), value));
    let labels = labels(world, &endpoint.workload.namespace, &endpoint.service_account, own);
    Standing { labels, ports: NamedPorts::new() }
}

fn labels<'a>(
    world: &World,
    namespace: &str,
    service_account: &str,
    own: impl Iterator<Item = (&'a str, &'a str)>,
) -> LabelSet {
    let mut labels = own.fold(LabelSet::new(), |labels, (key, value)| labels.with(Source::K8s, key, value));
    labels =
        labels.with(Source::K8s, NAMESPACE, namespace).with(Source::K8s, SERVICE_ACCOUNT, service_account);
    for (key, value) in world.namespaces.get(namespace).iter().flat_map(|namespace| &namespace.labels) {
        labels = labels.with(Source::K8s, &format!("{NAMESPACE_LABELS}{key}"), value);
    }
    // The API server gives every namespace this label; recipes of the Kubernetes documentation use it.
    labels.with(Source::K8s, &format!("{NAMESPACE_LABELS}kubernetes.io/metadata.name"), namespace)
}
