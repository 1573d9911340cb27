//! Names of our devices on the host's side.

use mesh::workload::EndpointId;

/// The device that holds the node's own addresses.
pub(crate) const HOST_DEVICE: &str = "ferromesh_host";
/// Its peer, which keeps it up.
pub(crate) const NET_DEVICE: &str = "ferromesh_net";

/// Device, namespace file and cgroup of an endpoint have this name.
pub(crate) fn interface(id: EndpointId) -> String {
    format!("fm{:04x}", id.number())
}

/// The reverse of [`interface`].
pub(crate) fn id_of(interface: &str) -> Option<EndpointId> {
    let number = u16::from_str_radix(interface.strip_prefix("fm")?, 16).ok()?;
    EndpointId::new(number).filter(|id| self::interface(*id) == interface)
}

/// Whether a device of this name is one that we made.
pub(crate) fn is_own(name: &str) -> bool {
    [HOST_DEVICE, NET_DEVICE].contains(&name) || id_of(name).is_some()
}
