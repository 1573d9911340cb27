//! `Configuration`, `ferromesh.io/v1alpha1`: settings of the node.
//!
//! Every key is optional. An object that has an error leaves the previous settings in force.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use mesh::policy::Enforcement;

use super::metadata;
use crate::yaml::{At, Fields, Place};

/// How programs are attached to interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attach {
    /// tcx where the kernel has it, else clsact.
    Auto,
    /// tcx, or fail.
    Tcx,
    /// clsact filters.
    Clsact,
}

/// Which packets make an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceLevel {
    /// Drops and new connections.
    None,
    /// Every packet.
    Trace,
}

/// Whose word on a workload's labels counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkloadLabels {
    /// The administrator's `Workload` object; where there is none, `ferromesh run`.
    Run,
    /// The administrator's `Workload` object alone.
    Declared,
}

/// Settings in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Configuration {
    /// Name of this node; `None` the host's name.
    pub node_name: Option<String>,
    /// Addresses of workloads, IPv4.
    pub ipv4_pool: Ipv4Net,
    /// Addresses of workloads, IPv6.
    pub ipv6_pool: Ipv6Net,
    /// When policy is enforced.
    pub enforcement: Enforcement,
    /// Report denials, let them pass.
    pub audit: bool,
    /// MTU of workloads' interfaces; `None` that of the default route's device.
    pub mtu: Option<u32>,
    /// Where `/metrics` is served.
    pub metrics_address: SocketAddr,
    /// Cgroup (v2) directory that holds those of the workloads; `None` `ferromesh` below the mount.
    pub cgroup_root: Option<PathBuf>,
    /// How programs are attached.
    pub attach: Attach,
    /// Which packets make an event.
    pub trace_level: TraceLevel,
    /// Whose word on labels counts.
    pub workload_labels: WorkloadLabels,
    /// Keys that were given, and their lines.
    pub(crate) given: Vec<(&'static str, Place)>,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            node_name: None,
            ipv4_pool: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 217, 0, 0), 16),
            ipv6_pool: Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfd00, 0x217, 0, 0, 0, 0, 0, 0), 64),
            enforcement: Enforcement::Default,
            audit: false,
            mtu: None,
            metrics_address: SocketAddr::from(([127, 0, 0, 1], 9962)),
            cgroup_root: None,
            attach: Attach::Auto,
            trace_level: TraceLevel::None,
            workload_labels: WorkloadLabels::Run,
            given: Vec::new(),
        }
    }
}

const ENFORCEMENT: [(Enforcement, &str); 3] =
    [(Enforcement::Default, "default"), (Enforcement::Always, "always"), (Enforcement::Never, "never")];
const ATTACH: [(Attach, &str); 3] =
    [(Attach::Auto, "auto"), (Attach::Tcx, "tcx"), (Attach::Clsact, "clsact")];
const TRACE: [(TraceLevel, &str); 2] = [(TraceLevel::None, "none"), (TraceLevel::Trace, "trace")];
const LABELS: [(WorkloadLabels, &str); 2] =
    [(WorkloadLabels::Run, "run"), (WorkloadLabels::Declared, "declared")];

pub(super) fn decode(at: &At<'_>) -> Option<Configuration> {
    at.mapping(|fields| {
        fields.ignore(&["apiVersion", "kind", "metadata"]);
        let spec = fields.get("spec");
        spec.and_then(|spec| spec.mapping(settings)).unwrap_or_default()
    })
}

fn settings(fields: &Fields<'_>) -> Configuration {
    let mut all = Configuration::default();
    let mut given = Vec::new();
    let mut key = |name: &'static str| {
        let at = fields.get(name)?;
        given.push((name, at.place()));
        Some(at)
    };
    all.node_name = key("nodeName").and_then(|at| metadata::name(&at));
    set(&mut all.ipv4_pool, key("ipv4Pool").and_then(|at| ipv4_pool(&at)));
    set(&mut all.ipv6_pool, key("ipv6Pool").and_then(|at| ipv6_pool(&at)));
    set(&mut all.enforcement, key("policyEnforcementMode").and_then(|at| at.one_of(&ENFORCEMENT)));
    set(&mut all.audit, key("policyAuditMode").map(|at| at.boolean()));
    all.mtu = key("mtu").and_then(|at| mtu(&at));
    set(
        &mut all.metrics_address,
        key("metricsAddress").and_then(|at| at.parse("address:port such as 127.0.0.1:9962")),
    );
    all.cgroup_root = key("cgroupRoot").and_then(|at| directory(&at));
    set(&mut all.attach, key("attach").and_then(|at| at.one_of(&ATTACH)));
    set(&mut all.trace_level, key("traceLevel").and_then(|at| at.one_of(&TRACE)));
    set(&mut all.workload_labels, key("workloadLabels").and_then(|at| at.one_of(&LABELS)));
    all.given = given;
    all
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn ipv4_pool(at: &At<'_>) -> Option<Ipv4Net> {
    let net: Ipv4Net = at.parse("an IPv4 prefix such as 10.217.0.0/16")?;
    if net.trunc() != net || !(8..=29).contains(&net.prefix_len()) {
        at.error(format_args!("found {net}, expected a prefix of length 8 to 29 without host bits"));
        return None;
    }
    if net.addr().is_loopback() || net.addr().is_multicast() || net.addr().is_unspecified() {
        at.error(format_args!("found {net}, expected addresses that can be routed"));
        return None;
    }
    Some(net)
}

fn ipv6_pool(at: &At<'_>) -> Option<Ipv6Net> {
    let net: Ipv6Net = at.parse("an IPv6 prefix such as fd00:217::/64")?;
    if net.trunc() != net || !(32..=124).contains(&net.prefix_len()) {
        at.error(format_args!("found {net}, expected a prefix of length 32 to 124 without host bits"));
        return None;
    }
    let address = net.addr();
    if address.is_loopback()
        || address.is_multicast()
        || address.is_unspecified()
        || address.is_unicast_link_local()
    {
        at.error(format_args!("found {net}, expected addresses that can be routed"));
        return None;
    }
    Some(net)
}

/// 1280 is IPv6's least (RFC 8200 section 5).
fn mtu(at: &At<'_>) -> Option<u32> {
    let mtu = at.text("1280-65535")?.parse().ok().filter(|mtu| (1280..=65_535).contains(mtu));
    if mtu.is_none() {
        at.expected("1280-65535");
    }
    mtu
}

fn directory(at: &At<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(at.string());
    if !path.is_absolute() {
        at.expected("an absolute path");
        return None;
    }
    Some(path)
}

impl Configuration {
    /// Every key with its value as text, in order, and the line that gave it.
    pub(crate) fn entries(&self) -> Vec<(&'static str, String, Option<Place>)> {
        let or = |value: Option<String>, absent: &str| value.unwrap_or_else(|| absent.to_owned());
        let values = [
            ("nodeName", or(self.node_name.clone(), "(host name)")),
            ("ipv4Pool", self.ipv4_pool.to_string()),
            ("ipv6Pool", self.ipv6_pool.to_string()),
            ("policyEnforcementMode", name(&ENFORCEMENT, self.enforcement)),
            ("policyAuditMode", self.audit.to_string()),
            ("mtu", or(self.mtu.map(|mtu| mtu.to_string()), "(of the default route)")),
            ("metricsAddress", self.metrics_address.to_string()),
            (
                "cgroupRoot",
                or(
                    self.cgroup_root.as_ref().map(|path| path.display().to_string()),
                    "(ferromesh below the cgroup v2 mount)",
                ),
            ),
            ("attach", name(&ATTACH, self.attach)),
            ("traceLevel", name(&TRACE, self.trace_level)),
            ("workloadLabels", name(&LABELS, self.workload_labels)),
        ];
        let place = |key: &str| self.given.iter().find(|(given, _)| *given == key).map(|(_, place)| *place);
        values.into_iter().map(|(key, value)| (key, value, place(key))).collect()
    }
}

fn name<T: PartialEq>(names: &[(T, &str)], value: T) -> String {
    names
        .iter()
        .find(|(candidate, _)| *candidate == value)
        .map(|(_, name)| (*name).to_owned())
        .unwrap_or_default()
}
