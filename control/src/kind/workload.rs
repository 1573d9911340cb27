//! `Workload`: what an administrator declares of a workload before anything runs.

use std::collections::BTreeMap;

use mesh::policy::protocol;
use mesh::workload::{NamedPorts, WorkloadName};

use super::{metadata, ports};
use crate::yaml::{At, Fields};

/// A declared workload. Its labels go before those given to `ferromesh run`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Its name.
    pub name: WorkloadName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The only node it may run on; `None` any.
    pub node: Option<String>,
    /// Its service account.
    pub service_account: String,
    /// The ports that policies may name.
    pub ports: NamedPorts,
}

/// Label keys that are derived from where and as whom a workload runs; nobody sets them.
pub(crate) fn is_derived(key: &str) -> bool {
    key.starts_with("io.kubernetes.pod.") || key.starts_with("io.cilium.k8s.")
}

pub(super) fn decode(namespace: String, name: String, fields: &Fields<'_>) -> Workload {
    let labels: BTreeMap<_, _> = metadata::labels(fields).into_iter().collect();
    if let (Some(key), Some(at)) = (labels.keys().find(|key| is_derived(key)), fields.get("metadata")) {
        at.error(format_args!("label {key}: derived from namespace and service account; leave it out"));
    }
    let spec = fields.get("spec").and_then(|spec| {
        spec.mapping(|fields| {
            let node = fields.get("node").and_then(|at| metadata::name(&at));
            let account = fields.get("serviceAccountName").and_then(|at| metadata::name(&at));
            let ports = fields.get("ports").map(|at| named_ports(&at)).unwrap_or_default();
            (node, account, ports)
        })
    });
    let (node, account, ports) = spec.unwrap_or_default();
    Workload {
        name: WorkloadName { namespace, name },
        labels,
        node,
        service_account: account.unwrap_or_else(|| "default".to_owned()),
        ports,
    }
}

fn named_ports(list: &At<'_>) -> NamedPorts {
    let mut all = NamedPorts::new();
    for item in list.list() {
        let read = item.mapping(|fields| {
            let name = fields.require("name", "a port name").and_then(|at| ports::name(&at));
            let port = fields.require("port", "1-65535").and_then(|at| ports::number(&at));
            let choices = [(protocol::TCP, "TCP"), (protocol::UDP, "UDP"), (protocol::SCTP, "SCTP")];
            let protocol = fields.get("protocol").and_then(|at| at.one_of(&choices));
            Some(((name?, protocol.unwrap_or(protocol::TCP)), port?))
        });
        if let Some((key, port)) = read.flatten()
            && let Some(earlier) = all.insert(key.clone(), port)
        {
            item.error(format_args!("port name {:?} is given twice, first as {earlier}", key.0));
        }
    }
    all
}
