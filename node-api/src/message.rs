//! Requests and replies. The replies are also what `-o json` prints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use mesh::flow::Flow;
use mesh::identity::Identity;
use mesh::labels::LabelSet;
use mesh::policy::{Authentication, PolicyName};
use mesh::service::{Backend, Frontend, ServiceName};
use mesh::spiffe::{SpiffeId, TrustDomain};
use mesh::workload::{Endpoint, WorkloadName};
use serde::{Deserialize, Serialize};

use crate::auth::{AuthQuestion, AuthWhy, CertificateView, NodeView, PairView};
use crate::observation::{DropView, EventView, MetricView, MonitorQuery, ObserveQuery, ProgramView};
use crate::proxy::{ExplainQuery, ProxyBudgets, ProxyConnection, ProxyExplained, ProxyRestarted};
use crate::{EndpointPolicy, PolicyDetails, Prediction, SelectorView, WhatIf};

/// First frame of each side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`] of the sender.
    pub version: u32,
    /// Version and commit of the sender's binary.
    pub build: String,
}

/// What can be asked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// → [`Reply::Status`].
    Status,
    /// → [`Reply::Endpoints`].
    Endpoints,
    /// → [`Reply::Identities`].
    Identities,
    /// → [`Reply::Policies`].
    Policies,
    /// → [`Reply::Plan`].
    Plan,
    /// → [`Reply::Config`].
    Config,
    /// → any number of [`Reply::Services`], then [`Reply::Done`].
    Services,
    /// → any number of [`Reply::LoadBalancer`], then [`Reply::Done`].
    LoadBalancer,
    /// → any number of [`Reply::Connections`], then [`Reply::Done`].
    Connections,
    /// → any number of [`Reply::Addresses`], then [`Reply::Done`].
    Addresses,
    /// → [`Reply::Trace`].
    Trace(TraceQuery),
    /// → any number of [`Reply::Flow`], then [`Reply::Done`] (never, if following).
    Observe(Box<ObserveQuery>),
    /// → [`Reply::Listening`], then any number of [`Reply::Event`], until the asker has had enough.
    Monitor(MonitorQuery),
    /// → any number of [`Reply::Drops`], then [`Reply::Done`].
    Drops,
    /// → any number of [`Reply::Metrics`], then [`Reply::Done`].
    Metrics,
    /// → [`Reply::Enrolled`] or [`Reply::Later`]; the connection then is the lease: if it closes before a process is in the workload's
    /// cgroup, the workload is removed.
    Enrol(Enrol),
    /// The agent takes its programs, maps, devices and routes away and ends. → [`Reply::Done`] when all is undone.
    Down,
    /// What an endpoint (name or number) is judged by, policies of a name, or all of them. → [`Reply::EndpointPolicy`], or
    /// any number of [`Reply::PolicyDetails`], then [`Reply::Done`].
    PolicyGet {
        /// `[endpoint/][NAMESPACE/]NAME`, a number, or `[KIND/][NAMESPACE/]NAME`.
        what: Option<String>,
    },
    /// → any number of [`Reply::Selectors`], then [`Reply::Done`].
    Selectors,
    /// → [`Reply::Prediction`].
    WhatIf(WhatIf),
    /// → any number of [`Reply::Certificates`], [`Reply::Pairs`] or [`Reply::Nodes`], as the question is, then
    /// [`Reply::Done`].
    Auth(AuthQuestion),
    /// Are these two authenticated to each other, and if not, at which step did it end? → [`Reply::AuthWhy`].
    AuthWhy(TraceQuery),
    /// Something by which a node can join this one's CA, once. → [`Reply::Text`].
    JoinToken {
        /// The node's name.
        node: String,
    },
    /// The roots of this node's CA, for others to trust. → [`Reply::Text`].
    TrustBundle,
    /// → any number of [`Reply::ProxyConnections`], then [`Reply::Done`].
    ProxyConnections,
    /// → any number of [`Reply::ProxyBudgets`], then [`Reply::Done`].
    ProxyBudgets,
    /// What would the L7 proxy do with this request, and why? → [`Reply::ProxyExplained`].
    ProxyExplain(Box<ExplainQuery>),
    /// Another process takes the L7 proxy's place, and the one before ends with its connections.
    /// → [`Reply::ProxyRestarted`].
    ProxyRestart,
}

impl Request {
    /// Whether it changes the node; such a request is root's alone.
    pub fn has_effects(&self) -> bool {
        match self {
            Self::Enrol(_) | Self::Down | Self::JoinToken { .. } | Self::ProxyRestart => true,
            Self::Status
            | Self::Endpoints
            | Self::Identities
            | Self::Policies
            | Self::Plan
            | Self::Config
            | Self::Services
            | Self::LoadBalancer
            | Self::Connections
            | Self::Addresses
            | Self::Trace(_)
            | Self::Observe(_)
            | Self::Monitor(_)
            | Self::Drops
            | Self::Metrics
            | Self::PolicyGet { .. }
            | Self::Selectors
            | Self::WhatIf(_)
            | Self::Auth(_)
            | Self::AuthWhy(_)
            | Self::TrustBundle
            | Self::ProxyConnections
            | Self::ProxyBudgets
            | Self::ProxyExplain(_) => false,
        }
    }
}

/// Answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", content = "value", rename_all = "kebab-case")]
pub enum Reply {
    /// The request could not be done; the text names object, field and fix.
    Error(String),
    /// Done, nothing more follows.
    Done,
    /// Answer to [`Request::Status`].
    Status(Box<Status>),
    /// Answer to [`Request::Endpoints`].
    Endpoints(Vec<EndpointView>),
    /// Answer to [`Request::Identities`].
    Identities(Vec<IdentityView>),
    /// Answer to [`Request::Policies`].
    Policies(Vec<PolicyView>),
    /// Answer to [`Request::Plan`]: the plan as JSON.
    Plan(serde_json::Value),
    /// Answer to [`Request::Config`].
    Config(Vec<ConfigEntry>),
    /// Rows of an answer to [`Request::Services`].
    Services(Vec<ServiceView>),
    /// Rows of an answer to [`Request::LoadBalancer`].
    LoadBalancer(Vec<LoadBalancerView>),
    /// Rows of an answer to [`Request::Connections`].
    Connections(Vec<ConnectionView>),
    /// Rows of an answer to [`Request::Addresses`].
    Addresses(Vec<AddressView>),
    /// Answer to [`Request::Trace`].
    Trace(Trace),
    /// One event of an answer to [`Request::Observe`].
    Flow(Box<Flow>),
    /// Events are told from now on.
    Listening,
    /// One event of an answer to [`Request::Monitor`].
    Event(EventView),
    /// Rows of an answer to [`Request::Drops`].
    Drops(Vec<DropView>),
    /// Rows of an answer to [`Request::Metrics`].
    Metrics(Vec<MetricView>),
    /// Events that were overwritten or lost before they could be sent.
    Lost(u64),
    /// Answer to [`Request::Enrol`].
    Enrolled(Enrolled),
    /// Another answer to [`Request::Enrol`]: it cannot be yet, and can be asked for again.
    Later {
        /// After how long.
        milliseconds: u64,
        /// What it waits for.
        why: String,
    },
    /// Answer to [`Request::PolicyGet`] for an endpoint.
    EndpointPolicy(Box<EndpointPolicy>),
    /// Part of an answer to [`Request::PolicyGet`] for policies.
    PolicyDetails(Vec<PolicyDetails>),
    /// Rows of an answer to [`Request::Selectors`].
    Selectors(Vec<SelectorView>),
    /// Answer to [`Request::WhatIf`].
    Prediction(Box<Prediction>),
    /// Rows of an answer to [`Request::Auth`].
    Certificates(Vec<CertificateView>),
    /// Rows of an answer to [`Request::Auth`].
    Pairs(Vec<PairView>),
    /// Rows of an answer to [`Request::Auth`].
    Nodes(Vec<NodeView>),
    /// Answer to [`Request::AuthWhy`].
    AuthWhy(AuthWhy),
    /// What was asked for, to be written into a file as it is.
    Text(String),
    /// Rows of an answer to [`Request::ProxyConnections`].
    ProxyConnections(Vec<ProxyConnection>),
    /// Rows of an answer to [`Request::ProxyBudgets`].
    ProxyBudgets(Vec<ProxyBudgets>),
    /// Answer to [`Request::ProxyExplain`].
    ProxyExplained(Box<ProxyExplained>),
    /// Answer to [`Request::ProxyRestart`].
    ProxyRestarted(ProxyRestarted),
}

/// State of the node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Name of the node.
    pub node: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Version and commit.
    pub build: String,
    /// Layout version of the pinned maps.
    pub schema: u32,
    /// Directory the node runs from.
    pub config: PathBuf,
    /// Number of the snapshot of the directory that is in force; one more for each edit that is understood.
    pub snapshot: u64,
    /// Generation of policy in the kernel; an edit that changes nothing there leaves it.
    pub revision: u64,
    /// Endpoints, and how many of them are enforced in each direction.
    pub endpoints: usize,
    /// Endpoints with ingress enforcement.
    pub ingress_enforced: usize,
    /// Endpoints with egress enforcement.
    pub egress_enforced: usize,
    /// Policy objects in force.
    pub policies: usize,
    /// Objects with an error; their last valid version, if any, is in force.
    pub invalid: usize,
    /// What can be called.
    pub services: ServiceCounts,
    /// How workloads reach what is beyond the node.
    pub masquerading: Masquerading,
    /// Who must authenticate, and how that stands; none where no policy asks for it.
    pub authentication: Option<AuthStatus>,
    /// How the L7 proxy stands; none where no policy with HTTP rules is about an endpoint of this node.
    #[serde(default)]
    pub l7: Option<L7Status>,
    /// Where the node answers for names; empty: it does not.
    pub dns: Vec<SocketAddr>,
    /// Endpoints adopted from an earlier agent at start.
    pub adopted: usize,
    /// What works only in part, a sentence each; empty when all is well.
    pub degraded: Vec<String>,
    /// Each change made to this host, a sentence each, and how it is undone.
    pub host_changes: Vec<String>,
    /// What the kernel offers: capability → what was found.
    pub capabilities: BTreeMap<String, String>,
    /// Map → entries in use and the most it holds.
    pub maps: BTreeMap<String, MapUse>,
    /// Programs in the kernel.
    pub programs: Vec<ProgramView>,
    /// Events lost since the agent started.
    pub lost_events: u64,
}

/// How much can be called.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ServiceCounts {
    /// Services with a name.
    pub services: usize,
    /// Their ports, each of each VIP.
    pub frontends: usize,
    /// Who answers there, each once.
    pub backends: usize,
}

/// Whose packets leave the node under its own address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Masquerading {
    /// Workloads' IPv4.
    pub ipv4: bool,
    /// Workloads' IPv6.
    pub ipv6: bool,
    /// First and last port that stand for workloads' own.
    pub ports: (u16, u16),
    /// Interfaces by which they leave.
    pub devices: Vec<String>,
}

/// How authentication stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuthStatus {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Pairs of identities of which policy requires it.
    pub required: usize,
    /// Pairs of endpoints that are proven.
    pub marks: u64,
    /// Other nodes, and how many of them there is a session with.
    pub nodes: usize,
    /// Sessions.
    pub sessions: u64,
    /// Seconds until the first certificate ends unless it is renewed.
    pub first_expiry: Option<u64>,
    /// Why nobody can be proven now, if so.
    pub problem: Option<String>,
}

/// How the L7 proxy stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct L7Status {
    /// Its workers.
    pub workers: usize,
    /// Endpoints with HTTP rules.
    pub endpoints: usize,
    /// Those of them whose latest rules it does not take.
    pub refused: usize,
    /// Processes that another has followed and that end with their connections.
    #[serde(default)]
    pub draining: usize,
    /// Why no request passes now, if so.
    pub problem: Option<String>,
}

/// How full a map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapUse {
    /// Entries; absent where counting them would cost too much.
    pub used: Option<u64>,
    /// Capacity.
    pub capacity: u64,
    /// Memory, as the kernel accounts for it.
    pub bytes: u64,
}

/// A row of `endpoint list`; `endpoint get` prints all of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EndpointView {
    /// The facts of enrolment.
    pub endpoint: Endpoint,
    /// Labels in force, derived ones included.
    pub labels: LabelSet,
    /// Identity in force.
    pub identity: Identity,
    /// Who its certificate says it is; none where its names make no SPIFFE ID.
    pub spiffe_id: Option<SpiffeId>,
    /// Ingress enforcement.
    pub ingress_enforced: bool,
    /// Egress enforcement.
    pub egress_enforced: bool,
    /// Kernel ruleset of each direction.
    pub ingress_ruleset: u32,
    /// Kernel ruleset of each direction.
    pub egress_ruleset: u32,
    /// Audit mode.
    pub audit: bool,
    /// Policies that select it.
    pub policies: Vec<PolicyName>,
    /// Connections charged to it.
    pub connections: u64,
    /// `ready`, or what it waits for.
    pub state: String,
}

/// A row of `identity list`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct IdentityView {
    /// The number.
    pub identity: Identity,
    /// Its labels.
    pub labels: LabelSet,
    /// Who the certificates of its workloads say they are, as far as this node knows of them.
    pub spiffe_ids: BTreeSet<SpiffeId>,
}

/// A row of `policy list`: one object, or one file that holds none.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PolicyView {
    /// The object; absent where the file does not say.
    pub policy: Option<PolicyName>,
    /// Whether what the file says is in force.
    pub valid: bool,
    /// `file:line` of the object.
    pub location: String,
    /// What is wrong and what is accepted, what is in force instead; or that validation succeeded.
    pub message: String,
    /// Endpoints it selects now.
    pub selected: usize,
}

/// A key of the configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfigEntry {
    /// Dotted key.
    pub key: String,
    /// Value in force.
    pub value: String,
    /// `default`, `file:line`, or a flag.
    pub origin: String,
}

/// May `from` reach `to`?
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TraceQuery {
    /// Workload, address, or `reserved:` name.
    pub from: String,
    /// Likewise.
    pub to: String,
    /// Destination port or ICMP type.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// Answer: the verdict of each end that policy judges, and why.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Trace {
    /// Both directions allow it.
    pub allowed: bool,
    /// If it is allowed: what each end must have proven to the other.
    pub authentication: Authentication,
    /// Explanation, a line each.
    pub lines: Vec<String>,
}

/// Start a workload.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Enrol {
    /// Its name; must not be in use on this node.
    pub workload: WorkloadName,
    /// Its labels, for a node whose directory is its own.
    pub labels: LabelSet,
    /// Its service account.
    pub service_account: String,
}

/// The workload is enrolled: policy is in force; nothing runs in it yet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Enrolled {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// File that is its network namespace.
    pub network_namespace: PathBuf,
    /// Its cgroup (v2) directory.
    pub cgroup: PathBuf,
    /// Directories that must not be visible inside: configuration, run, state.
    pub hidden: Vec<PathBuf>,
    /// Text of its `/etc/resolv.conf`.
    pub resolver: String,
}

/// A row of `service list`: a port of a VIP as the plan has it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ServiceView {
    /// Index in the kernel's `SERVICES`; 0 while it is not there.
    pub id: u32,
    /// Whose port it is.
    pub service: ServiceName,
    /// `ClusterIP`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is called.
    pub frontend: Frontend,
    /// Name of the port; empty if it has none.
    pub port_name: String,
    /// Whom new connections go to.
    pub backends: Vec<Backend>,
    /// Those that only keep what they have.
    pub draining: Vec<Backend>,
    /// Seconds for which a client returns to the same backend.
    pub affinity: Option<u32>,
}

/// A row of `lb list`: a port of a VIP as the kernel has it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LoadBalancerView {
    /// Index in `SERVICES`.
    pub id: u32,
    /// What is called.
    pub frontend: Frontend,
    /// Slots in order: (number of the backend, its address).
    pub slots: Vec<(u32, Backend)>,
    /// Seconds for which a client returns to the same backend; 0: any each time.
    pub affinity: u32,
}

/// A row of `ct list`: a connection as the kernel has it, in the direction in which it was opened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ConnectionView {
    /// IP protocol number.
    pub protocol: u8,
    /// Who opened it. ICMP echo: the port is the identifier.
    pub source: SocketAddr,
    /// Whom it was opened to, after translation.
    pub destination: SocketAddr,
    /// What the opener called, where packets are translated.
    pub called: Option<SocketAddr>,
    /// What the opener is known by beyond the node, where it is masqueraded.
    pub masqueraded: Option<SocketAddr>,
    /// `opening`, `established`, `closing`.
    pub state: String,
    /// Seconds until it is forgotten if no packet comes.
    pub expires: u32,
    /// Generation of the remembered verdict.
    pub generation: u64,
    /// Its verdict is due to audit mode.
    pub audited: bool,
    /// The endpoint whose quota carries it.
    pub charged: Option<u16>,
}

/// A row of `ip list`: who has an address.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AddressView {
    /// The prefix.
    pub prefix: IpNet,
    /// The identity behind it.
    pub identity: Identity,
    /// Labels of the identity.
    pub labels: LabelSet,
    /// `endpoint`, `node`, `remote-node`, `pool`, `policy`, `world`.
    pub source: String,
    /// The workload, for an endpoint.
    pub workload: Option<WorkloadName>,
}
