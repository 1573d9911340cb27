//! `WorkloadEndpoint`, `ferromesh.io/v1alpha1`: what a node says of one of its endpoints to the others.
//!
//! It says where a workload is and nothing of what it is: labels and service account are the administrator's.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesh::workload::WorkloadName;

use super::metadata;
use crate::yaml::Fields;

/// An endpoint of a node, as that node has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkloadEndpoint {
    /// The node: the name of the directory it was read from. Empty before that is known.
    pub node: String,
    /// The workload it carries.
    pub workload: WorkloadName,
    /// Its [`mesh::workload::Endpoint::instance`] there.
    pub instance: u64,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
}

pub(super) fn decode(namespace: String, fields: &Fields<'_>) -> Option<WorkloadEndpoint> {
    if let (false, Some(at)) = (metadata::labels(fields).is_empty(), fields.get("metadata")) {
        at.error("labels of a workload are its Workload object's; leave labels out");
    }
    let spec = fields.require("spec", "a mapping with workload, instance, ipv4 and ipv6")?;
    spec.mapping(|fields| {
        let name = fields.require("workload", "the workload's name").and_then(|at| metadata::name(&at));
        let instance = fields.require("instance", "a number").and_then(|at| at.parse("a number"));
        let ipv4 = fields.require("ipv4", "an IPv4 address").and_then(|at| at.parse("an IPv4 address"));
        let ipv6 = fields.require("ipv6", "an IPv6 address").and_then(|at| at.parse("an IPv6 address"));
        let workload = WorkloadName { namespace, name: name? };
        Some(WorkloadEndpoint {
            node: String::new(),
            workload,
            instance: instance?,
            ipv4: ipv4?,
            ipv6: ipv6?,
        })
    })?
}
