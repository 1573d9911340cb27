//! `Configuration`, `ferromesh.io/v1alpha1`: settings of the node.
//!
//! Every key is optional. An object that has an error leaves the previous settings in force.

mod access_log;
mod authentication;
mod values;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh::policy::Enforcement;
use mesh::spiffe::TrustDomain;

pub use self::access_log::AccessLog;
use super::{metadata, prefix};
use crate::yaml::{At, Fields, Place};

/// TCP port on which auth-agents listen for each other.
pub(crate) const AUTH_PORT: u16 = 4250;

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
    /// Cgroup whose processes, and those of the cgroups below it, can call services; at or above `cgroup_root`. `None`
    /// the mount: every process of the host.
    pub service_cgroup: Option<PathBuf>,
    /// VIPs of services that give none, IPv4.
    pub ipv4_service_pool: Ipv4Net,
    /// VIPs of services that give none, IPv6.
    pub ipv6_service_pool: Ipv6Net,
    /// Workloads' IPv4 leaves the node under the node's address.
    pub ipv4_masquerade: bool,
    /// Workloads' IPv6 leaves the node under the node's address.
    pub ipv6_masquerade: bool,
    /// Ports that stand for workloads' own; the node's own sockets do not use them.
    pub masquerade_ports: RangeInclusive<u16>,
    /// Destinations that see workloads' own addresses.
    pub masquerade_exceptions: Vec<IpNet>,
    /// Interfaces by which packets leave the node; `None` those of the default routes.
    pub devices: Option<Vec<String>>,
    /// Domain below which services have their names.
    pub cluster_domain: String,
    /// Name servers for all other names; empty: those of the host's `/etc/resolv.conf`.
    pub dns_upstreams: Vec<SocketAddr>,
    /// The host's own `/etc/resolv.conf` names the node's DNS, so that the host too calls services by name.
    pub host_resolver: bool,
    /// How programs are attached.
    pub attach: Attach,
    /// Which packets make an event.
    pub trace_level: TraceLevel,
    /// Whose word on labels counts.
    pub workload_labels: WorkloadLabels,
    /// The domain of this mesh's SPIFFE IDs.
    pub trust_domain: TrustDomain,
    /// How long marks outlive the last word of the node that vouches for them.
    pub authentication_grace: Duration,
    /// The most pairs that are proven before a packet asks; 0: none.
    pub authentication_ahead: u32,
    /// TCP port on which this node's auth-agent listens for others.
    pub auth_port: u16,
    /// Where the embedded CA listens for auth-agents.
    pub ca_listen: SocketAddr,
    /// The CA of another node, in the place of an embedded one.
    pub ca_address: Option<SocketAddr>,
    /// File with the token by which this node joins at that CA.
    pub join_token_file: Option<PathBuf>,
    /// File with the roots to trust; given with `ca_address`.
    pub trust_bundle_file: Option<PathBuf>,
    /// How long certificates of the embedded CA are good.
    pub svid_lifetime: Duration,
    /// Where requests are logged; `None`: nowhere.
    pub access_log: Option<AccessLog>,
    /// A request without `x-request-id` is given one.
    pub request_id: bool,
    /// Keys that were given, and their lines.
    pub(crate) given: Vec<(&'static str, Place)>,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            node_name: None,
            ipv4_pool: Ipv4Net::new_assert(Ipv4Addr::new(10, 217, 0, 0), 16),
            ipv6_pool: Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x217, 0, 0, 0, 0, 0, 0), 64),
            enforcement: Enforcement::Default,
            audit: false,
            mtu: None,
            metrics_address: SocketAddr::from(([127, 0, 0, 1], 9962)),
            cgroup_root: None,
            service_cgroup: None,
            ipv4_service_pool: Ipv4Net::new_assert(Ipv4Addr::new(10, 218, 0, 0), 16),
            ipv6_service_pool: Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x218, 0, 0, 0, 0, 0, 0), 108),
            ipv4_masquerade: true,
            ipv6_masquerade: true,
            masquerade_ports: 49_152..=65_535,
            masquerade_exceptions: Vec::new(),
            devices: None,
            cluster_domain: "cluster.local".to_owned(),
            dns_upstreams: Vec::new(),
            host_resolver: false,
            attach: Attach::Auto,
            trace_level: TraceLevel::None,
            workload_labels: WorkloadLabels::Run,
            trust_domain: TrustDomain::default(),
            authentication_grace: Duration::from_secs(10),
            authentication_ahead: 20_000,
            auth_port: AUTH_PORT,
            ca_listen: SocketAddr::from(([127, 0, 0, 1], 4251)),
            ca_address: None,
            join_token_file: None,
            trust_bundle_file: None,
            svid_lifetime: Duration::from_secs(3600),
            access_log: None,
            request_id: false,
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
    set(&mut all.ipv4_pool, key("ipv4Pool").and_then(|at| values::ipv4_pool(&at)));
    set(&mut all.ipv6_pool, key("ipv6Pool").and_then(|at| values::ipv6_pool(&at)));
    set(&mut all.enforcement, key("policyEnforcementMode").and_then(|at| at.one_of(&ENFORCEMENT)));
    set(&mut all.audit, key("policyAuditMode").map(|at| at.boolean()));
    all.mtu = key("mtu").and_then(|at| values::mtu(&at));
    set(
        &mut all.metrics_address,
        key("metricsAddress").and_then(|at| at.parse("address:port such as 127.0.0.1:9962")),
    );
    all.cgroup_root = key("cgroupRoot").and_then(|at| values::directory(&at));
    set(&mut all.attach, key("attach").and_then(|at| at.one_of(&ATTACH)));
    set(&mut all.trace_level, key("traceLevel").and_then(|at| at.one_of(&TRACE)));
    set(&mut all.workload_labels, key("workloadLabels").and_then(|at| at.one_of(&LABELS)));
    services(&mut all, &mut key);
    authentication::settings(&mut all, &mut key);
    access_log::settings(&mut all, &mut key);
    all.given = given;
    values::disjoint(fields, &all);
    all
}

/// Keys about services and the way out.
fn services<'a>(all: &mut Configuration, key: &mut impl FnMut(&'static str) -> Option<At<'a>>) {
    let root = all.cgroup_root.as_deref();
    all.service_cgroup = key("serviceCgroup").and_then(|at| values::service_cgroup(&at, root));
    set(&mut all.ipv4_service_pool, key("ipv4ServicePool").and_then(|at| values::ipv4_pool(&at)));
    set(&mut all.ipv6_service_pool, key("ipv6ServicePool").and_then(|at| values::ipv6_pool(&at)));
    set(&mut all.ipv4_masquerade, key("ipv4Masquerade").map(|at| at.boolean()));
    set(&mut all.ipv6_masquerade, key("ipv6Masquerade").map(|at| at.boolean()));
    set(&mut all.masquerade_ports, key("masqueradePorts").and_then(|at| values::ports(&at)));
    let exceptions = key("masqueradeExceptions").map(|at| at.list()).unwrap_or_default();
    all.masquerade_exceptions = exceptions.iter().filter_map(prefix::prefix_or_address).collect();
    all.devices = key("devices").map(|at| at.list().iter().filter_map(values::interface).collect());
    set(&mut all.cluster_domain, key("clusterDomain").and_then(|at| metadata::name(&at)));
    let upstreams = key("dnsUpstreams").map(|at| at.list()).unwrap_or_default();
    all.dns_upstreams = upstreams.iter().filter_map(values::name_server).collect();
    set(&mut all.host_resolver, key("hostResolver").map(|at| at.boolean()));
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

impl Configuration {
    /// Every key with its value as text, in order, and the line that gave it.
    pub(crate) fn entries(&self) -> Vec<(&'static str, String, Option<Place>)> {
        let node = [
            ("nodeName", or(self.node_name.clone(), "(host name)")),
            ("ipv4Pool", self.ipv4_pool.to_string()),
            ("ipv6Pool", self.ipv6_pool.to_string()),
            ("policyEnforcementMode", name(&ENFORCEMENT, self.enforcement)),
            ("policyAuditMode", self.audit.to_string()),
            ("mtu", or(self.mtu, "(of the default route)")),
            ("metricsAddress", self.metrics_address.to_string()),
            ("cgroupRoot", or(path(self.cgroup_root.as_ref()), "(ferromesh below the cgroup v2 mount)")),
            ("attach", name(&ATTACH, self.attach)),
            ("traceLevel", name(&TRACE, self.trace_level)),
            ("workloadLabels", name(&LABELS, self.workload_labels)),
        ];
        let place = |key: &str| self.given.iter().find(|(given, _)| *given == key).map(|(_, place)| *place);
        node.into_iter()
            .chain(self.services())
            .chain(authentication::entries(self))
            .chain(access_log::entries(self))
            .map(|(key, value)| (key, value, place(key)))
            .collect()
    }

    fn services(&self) -> [(&'static str, String); 11] {
        let ports = &self.masquerade_ports;
        let devices = self.devices.as_ref().map(|devices| list(devices, "(none)"));
        [
            ("serviceCgroup", or(path(self.service_cgroup.as_ref()), "(the cgroup v2 mount)")),
            ("ipv4ServicePool", self.ipv4_service_pool.to_string()),
            ("ipv6ServicePool", self.ipv6_service_pool.to_string()),
            ("ipv4Masquerade", self.ipv4_masquerade.to_string()),
            ("ipv6Masquerade", self.ipv6_masquerade.to_string()),
            ("masqueradePorts", format!("{}-{}", ports.start(), ports.end())),
            ("masqueradeExceptions", list(&self.masquerade_exceptions, "(none)")),
            ("devices", or(devices, "(of the default routes)")),
            ("clusterDomain", self.cluster_domain.clone()),
            ("dnsUpstreams", list(&self.dns_upstreams, "(of the host's resolv.conf)")),
            ("hostResolver", self.host_resolver.to_string()),
        ]
    }
}

fn or(value: Option<impl ToString>, absent: &str) -> String {
    value.map_or_else(|| absent.to_owned(), |value| value.to_string())
}

fn path(path: Option<&PathBuf>) -> Option<String> {
    path.map(|path| path.display().to_string())
}

fn list(values: &[impl ToString], empty: &str) -> String {
    let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
    if texts.is_empty() { empty.to_owned() } else { texts.join(", ") }
}

fn name<T: PartialEq>(names: &[(T, &str)], value: T) -> String {
    names
        .iter()
        .find(|(candidate, _)| *candidate == value)
        .map(|(_, name)| (*name).to_owned())
        .unwrap_or_default()
}
