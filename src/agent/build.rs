//! From nothing, or from what an earlier agent left, to a node that is in line with its directory.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use control::allocate::Allocator;
use control::kind::configuration::{Attach, Configuration, TraceLevel};
use control::source::files::Directory;
use control::source::published::Published;
use control::{NodeFacts, Planned, Planner, Present, World};
use endpoint::{Departed, Emptied, Endpoints, Host, Outward, dns};
use ipnet::IpNet;
use l4_datapath::metrics::Metrics as DatapathMetrics;
use l4_datapath::{Adoption, Datapath, Hook, Options};
use mesh::access_log::Headers;
use mesh::workload::Endpoint;
use node_api::proxy::Record;
use observe::http::HttpMetrics;
use observe::metrics::{self, FlowMetrics, NodeMetrics, PolicyMetrics};
use observe::{FlowRing, Monitor};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::auth::{self, Auth};
use super::error::AgentError;
use super::events::Explanation;
use super::l7::{AccessLog, L7, Sink};
use super::node::{Node, context, own_addresses};
use super::switching::AHEAD;
use crate::directories::{Directories, RESOLVER};

impl Node {
    /// Brings host, kernel and endpoints in line with the directory; adopts what an earlier agent left.
    pub(super) async fn build(
        directories: &Directories,
    ) -> Result<(Self, Directory, Emptied, dns::Server), AgentError> {
        make_directory(&directories.run_dir)?;
        make_directory(&directories.state)?;
        let source = Directory::open(&directories.config, &directories.state, directories.shared.as_deref())?;
        let world = source.world();
        let endpoint_config = directories.endpoints(&world)?;
        let capabilities = l4_datapath::probe::capabilities();
        capabilities.check()?;
        // Before anything is changed: it holds the lock that keeps a second agent out.
        let (mut datapath, adoption) = Datapath::open(&options(directories, &world.configuration))?;
        let host = Host::ensure(&endpoint_config).await?;
        let opened = Endpoints::open(endpoint_config.clone()).await?;
        let facts = facts(&world, &endpoint_config).await?;
        let outward = Outward::find(world.configuration.devices.as_deref()).await?;
        let mut allocator = Allocator::open(&directories.state)?;
        let present = Present { endpoints: &opened.adopted, leaving: &BTreeSet::new(), plan: None };
        let mut planner = Planner::default();
        let planned = planner.plan(&world, present, &facts, &mut allocator)?;
        allocator.save(SystemTime::now())?;
        let mut registry = metrics::registry(env!("CARGO_PKG_VERSION"), crate::COMMIT, abi::SCHEMA);
        let endpoints = Arc::new(opened.endpoints);
        auth::set_quarantine(&endpoints, &planned.plan)?;
        let mut auth = Auth::new(directories, &world, &facts.name, &mut registry);
        auth.guard(&mut datapath);
        auth.place(control::placements(&world, &facts, &opened.adopted));
        // Those who lived on may be talking to each other.
        if auth.lead(&planned.plan, &planned.plan, &mut datapath, &endpoints).await {
            auth.settled(Instant::now() + AHEAD).await;
        }
        let explanation = explanation(&facts, &planned, &datapath);
        let (ring, flow_metrics) =
            (FlowRing::new(observe::ring::CAPACITY), FlowMetrics::register(&mut registry));
        let sink = Sink {
            explanation: Arc::clone(&explanation),
            ring: Arc::clone(&ring),
            flow_metrics: flow_metrics.clone(),
            http_metrics: HttpMetrics::register(&mut registry),
            access_log: access_log(&world.configuration, &mut registry)?,
            record: record(&world.configuration),
        };
        let mut l7 = L7::new(directories, &endpoint_config, sink);
        if l7.lead(&planned.plan, &datapath) {
            l7.settled(Instant::now() + AHEAD).await;
        }
        if l7.doubts() {
            // One that an earlier agent has left has rules for another plan than the one that comes now.
            datapath.proxy_gone()?;
        }
        let mut unlisted = BTreeSet::new();
        let mut refused = refusal("the latest edit is", datapath.apply(&planned.plan))?;
        auth.follow(&planned.plan, &BTreeSet::new());
        match refused {
            None => l7.follow(&planned.plan),
            Some(_) => l7.stay(&planned.plan),
        }
        adopt(&mut datapath, &endpoints, &opened.adopted, &adoption)?;
        datapath.apply_masquerade(&planned.plan.masquerade, &outward.devices)?;
        let mut called = Arc::default();
        // Nobody is led to where this plan's policy does not judge.
        if refused.is_none() {
            let tables = datapath.apply_services(&planned.plan.services);
            refused =
                refusal("services of the latest edit are", tables.map(|report| unlisted = report.gone))?;
        }
        if refused.is_none() {
            called = Arc::clone(&planned.plan.services);
        }
        datapath.set_namespace(linux::namespace::cookie()?);
        datapath.attach_cgroup(&Directories::service_cgroup(&world)?)?;
        let settings = dns_settings(&world.configuration);
        let dns =
            dns::Server::bind(&endpoint_config, &settings, dns::Metrics::register(&mut registry)).await?;
        let names = dns.names();
        names.set(&called);
        names.set_own_addresses(facts.addresses.iter().map(IpNet::addr));
        let name = facts.name.clone();
        let mounted = adoption.mounted.map(|path| format!("BPF file system mounted at {}", path.display()));
        let mut node = Self {
            flow_metrics,
            policy_metrics: PolicyMetrics::register(&mut registry),
            datapath_metrics: DatapathMetrics::register(&mut registry),
            node_metrics: NodeMetrics::register(&mut registry),
            names,
            explanation,
            directories: directories.clone(),
            facts,
            built_with: world.configuration.clone(),
            world,
            planner,
            called,
            planned: Arc::new(planned),
            endpoints,
            published: match &directories.shared {
                Some(shared) => Some(Published::open(shared, &name)?),
                None => None,
            },
            unpublished: None,
            auth,
            l7,
            endpoint_config,
            adopted: opened.adopted.len(),
            outward,
            dns: dns.addresses(),
            host_changes: host.iter().map(ToString::to_string).chain(mounted).collect(),
            refused,
            capabilities: capabilities
                .0
                .iter()
                .map(|row| (row.capability.to_owned(), row.text.clone()))
                .collect(),
            allocator,
            prediction: Arc::default(),
            leaving: BTreeSet::new(),
            lost_events: 0,
            settle_at: Some(Instant::now()),
            switching: None,
            ring,
            monitor: Arc::new(Monitor::default()),
            registry: Arc::new(registry),
            datapath,
        };
        // Attribution is that of what was applied.
        *node.explanation.lock() = context(&node.facts, &node.planned, &node.datapath);
        // Backends that left while no agent ran.
        node.end_sockets(Departed { unlisted, ..Departed::default() });
        node.publish();
        node.count();
        node.policy_metrics.set_invalid(node.invalid());
        Ok((node, source, opened.emptied, dns))
    }
}

/// What did not fit before does not fit now: what is pinned stays in force, as it did while the last agent ran.
fn refusal<T>(what: &str, applied: Result<T, l4_datapath::Error>) -> Result<Option<String>, AgentError> {
    match applied {
        Err(error @ l4_datapath::Error::Full { .. }) => Ok(Some(format!("{what} not in force: {error}"))),
        applied => Ok(applied.map(|_| None)?),
    }
}

fn make_directory(path: &std::path::Path) -> Result<(), AgentError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|error| AgentError::Io { what: format!("directory {}", path.display()), error })
}

/// What the node itself knows: its name and the addresses that are its own.
async fn facts(world: &World, endpoints: &endpoint::Config) -> Result<NodeFacts, AgentError> {
    let name = match &world.configuration.node_name {
        Some(name) => name.clone(),
        None => linux::host::name()?,
    };
    Ok(NodeFacts {
        name,
        addresses: own_addresses().await?,
        ipv4_pool: endpoints.ipv4_pool,
        ipv6_pool: endpoints.ipv6_pool,
        masquerade_ports: world.configuration.masquerade_ports.clone(),
    })
}

fn options(directories: &Directories, configuration: &Configuration) -> Options {
    let hook = match configuration.attach {
        Attach::Auto => Hook::Auto,
        Attach::Tcx => Hook::Tcx,
        Attach::Clsact => Hook::Clsact,
    };
    let trace = configuration.trace_level == TraceLevel::Trace;
    Options { pin_root: directories.pins.clone(), hook, trace, ..Options::default() }
}

fn access_log(configuration: &Configuration, registry: &mut Registry) -> Result<AccessLog, AgentError> {
    let started = AccessLog::start(configuration.access_log.as_ref(), registry);
    started.map_err(|error| AgentError::Io { what: "thread of the access log".to_owned(), error })
}

fn record(configuration: &Configuration) -> Record {
    let log = configuration.access_log.as_ref();
    Record {
        exchanges: log.map(|log| Headers::of(log.layout.formats())),
        request_id: configuration.request_id,
    }
}

fn dns_settings(configuration: &Configuration) -> dns::Settings {
    dns::Settings {
        domain: configuration.cluster_domain.clone(),
        upstreams: configuration.dns_upstreams.clone(),
        host_file: PathBuf::from(RESOLVER),
    }
}

/// Puts this agent's programs in the place of the earlier one's, and takes those of ended workloads away.
fn adopt(
    datapath: &mut Datapath,
    endpoints: &Endpoints,
    adopted: &[Endpoint],
    adoption: &Adoption,
) -> Result<(), AgentError> {
    for endpoint in adopted {
        datapath.attach(endpoint)?;
        datapath.set_endpoint_namespace(endpoint.id, endpoints.namespace_cookie(endpoint)?)?;
    }
    let live: BTreeSet<&str> = adopted.iter().map(|endpoint| endpoint.interface.as_str()).collect();
    for interface in adoption.interfaces.iter().filter(|interface| !live.contains(interface.as_str())) {
        datapath.detach_interface(interface)?;
    }
    Ok(())
}

fn explanation(facts: &NodeFacts, planned: &Planned, datapath: &Datapath) -> Explanation {
    Arc::new(Mutex::new(context(facts, planned, datapath)))
}
