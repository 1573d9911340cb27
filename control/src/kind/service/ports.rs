//! `spec.ports`.

use std::collections::BTreeSet;

use mesh::policy::protocol;

use super::super::ports as numbers;
use super::port_name;
use crate::yaml::{At, Fields};

/// A port of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Empty if it has none.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// What clients call.
    pub port: u16,
    /// Where those whom the selector finds listen.
    pub target: Target,
}

/// Where a workload listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// At this port.
    Number(u16),
    /// At the port to which the workload gives this name.
    Name(String),
}

/// Reads the ports. `needed`: there must be one. `translated`: clients call an address of the service's, not of the
/// endpoint's.
pub(super) fn ports(fields: &Fields<'_>, needed: bool, translated: bool) -> Vec<Port> {
    const NEEDED: &str = "at least one port";
    let list = if needed { fields.require("ports", NEEDED) } else { fields.get("ports") };
    let Some(list) = list else { return Vec::new() };
    let items = list.list();
    if needed && items.is_empty() {
        list.error(format_args!("found an empty list, expected {NEEDED}"));
    }
    let (mut names, mut called) = (BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::new();
    for item in &items {
        let Some(port) = item.mapping(|fields| port(fields, items.len() > 1, translated)).flatten() else {
            continue;
        };
        if !port.name.is_empty() && !names.insert(port.name.clone()) {
            item.error(format_args!("port name {:?} is given twice", port.name));
        }
        if !called.insert((port.protocol, port.port)) {
            let protocol = protocol::name(port.protocol).unwrap_or_default();
            item.error(format_args!("port {}/{protocol} is given twice", port.port));
        }
        ports.push(port);
    }
    ports
}

fn port(fields: &Fields<'_>, several: bool, translated: bool) -> Option<Port> {
    // The node's port belongs to types that are warned of; what is spoken on a port is none of the kernel's business.
    fields.ignore(&["nodePort", "appProtocol"]);
    let name_at = if several {
        fields.require("name", "a name, for there are several ports")
    } else {
        fields.get("name").filter(|at| !at.is_empty())
    };
    let name = name_at.map_or(Some(String::new()), |at| port_name(&at));
    let protocol = fields.get("protocol").map(|at| at.one_of(&numbers::KUBERNETES));
    let protocol = protocol.unwrap_or(Some(protocol::TCP));
    let port = fields.require("port", "1-65535").and_then(|at| numbers::number(&at));
    let target_at = fields.get("targetPort");
    let target = target_at.as_ref().map(|at| numbers::port(at, false));
    let (name, protocol, port) = (name?, protocol?, port?);
    let target = match target {
        None => Target::Number(port),
        Some(target) => match target? {
            numbers::Port::Number(number) => Target::Number(number),
            numbers::Port::Name(name) => Target::Name(name),
        },
    };
    if let Some(at) = target_at.filter(|_| translated) {
        same_for_sctp(&at, protocol, port, &target);
    }
    Some(Port { name, protocol, port, target })
}

/// SCTP's checksum covers its ports, and nothing computes it anew.
fn same_for_sctp(at: &At<'_>, protocol: u8, port: u16, target: &Target) {
    if protocol == protocol::SCTP && *target != Target::Number(port) {
        at.error(format_args!(
            "SCTP is served on one port only: expected {port}, as in port, or a headless service"
        ));
    }
}
