//! The agent's state, and the one way it changes: plan whole, apply the difference.

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use control::allocate::Allocator;
use control::{NodeFacts, Planned, World, admit, plan};
use control::source::files::Directory;
use endpoint::{Emptied, Endpoints, Host};
use l4_datapath::{Datapath, Options};
use mesh::workload::{Endpoint, EndpointId};
use node_api::{Enrol, Enrolled};
use observe::{FlowMetrics, FlowRing, PolicyMetrics};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use super::error::AgentError;
use super::events::Attribution;
use crate::directories::Directories;

/// Everything an agent holds.
pub(super) struct Node {
    pub(super) directories: Directories,
    pub(super) facts: NodeFacts,
    pub(super) world: Arc<World>,
    pub(super) planned: Planned,
    pub(super) endpoints: Endpoints,
    pub(super) endpoint_config: endpoint::Config,
    pub(super) datapath: Datapath,
    pub(super) adopted: usize,
    pub(super) host_changes: Vec<String>,
    /// Why the latest edit is not in force, if it is not.
    pub(super) refused: Option<String>,
    /// Settings that need a restart and differ from those in use, a sentence each.
    pub(super) source_problem: Option<String>,
    allocator: Allocator,
    /// Endpoints in whose namespace a process has been; for the others the enrolment's connection is the lease.
    attribution: Arc<Mutex<Attribution>>,
    ring: Arc<FlowRing>,
    registry: Arc<Registry>,
    pub(super) flow_metrics: FlowMetrics,
    policy_metrics: PolicyMetrics,
}

impl Node {
    /// Brings host, kernel and endpoints in line with the directory; adopts what an earlier agent left.
    pub(super) async fn build(directories: &Directories) -> Result<(Self, Directory, Emptied), AgentError> {
        private_directory(&directories.run_dir)?;
        private_directory(&directories.state)?;
        // First of all: it holds the lock that keeps a second agent out.
        let (mut datapath, adoption) = Datapath::open(&Options::new(&directories.pins, &directories.run_dir))?;
        let mut source = Directory::open(&directories.config, &directories.state, None)?;
        let world = source.world();
        let endpoint_config = directories.endpoints(&world)?;
        let host_changes = Host::ensure(&endpoint_config).await?;
        let opened = Endpoints::open(endpoint_config.clone()).await?;
        for gone in &opened.removed {
            datapath.detach(gone)?;
        }
        let facts = facts(&world, &endpoint_config).await?;
        let mut allocator = Allocator::open(&directories.state)?;
        let planned = plan(&world, &opened.adopted, &facts, &mut allocator)?;
        allocator.save(SystemTime::now())?;
        let report = datapath.apply(&planned.plan)?;
        for endpoint in &opened.adopted {
            datapath.attach(endpoint)?;
        }
        source.set_pools_in_use(pools_in_use(&opened.adopted, &endpoint_config));

        let mut registry = observe::registry(env!("CARGO_PKG_VERSION"), crate::COMMIT, abi::SCHEMA);
        let flow_metrics = FlowMetrics::register(&mut registry);
        let policy_metrics = PolicyMetrics::register(&mut registry);
        datapath.register_metrics(&mut registry);
        policy_metrics.set_revision(report.generation);
        let mut changes: Vec<String> = host_changes.iter().map(ToString::to_string).collect();
        changes.extend(adoption.host_changes.iter().cloned());
        let node = Self {
            directories: directories.clone(),
            facts,
            world,
            planned,
            endpoints: opened.endpoints,
            endpoint_config,
            adopted: opened.adopted.len(),
            host_changes: changes,
            refused: None,
            source_problem: None,
            allocator,
            attribution: Arc::default(),
            ring: FlowRing::new(observe::CAPACITY),
            registry: Arc::new(registry),
            flow_metrics,
            policy_metrics,
            datapath,
        };
        node.attribute();
        Ok((node, source, opened.emptied))
    }

    pub(super) fn name(&self) -> &str {
        &self.facts.name
    }

    pub(super) fn adopted(&self) -> usize {
        self.adopted
    }

    pub(super) fn ring(&self) -> Arc<FlowRing> {
        Arc::clone(&self.ring)
    }

    /// Opens the metrics listener.
    pub(super) async fn serve_metrics(&self) -> Result<impl Future<Output = ()> + use<>, AgentError> {
        let listener = observe::bind(self.world.configuration.metrics_address).await?;
        Ok(observe::serve(listener, Arc::clone(&self.registry)))
    }

    /// Reads the kernel's events until dropped.
    pub(super) fn read_events(&mut self) -> Result<impl Future<Output = ()> + use<>, AgentError> {
        let events = self.datapath.events()?;
        let (ring, attribution) = (self.ring(), Arc::clone(&self.attribution));
        Ok(super::events::read(events, attribution, ring, self.flow_metrics.clone()))
    }

    /// A new world: its policy is in force when this returns, or `refused` says why not.
    pub(super) async fn edit(&mut self, world: Arc<World>) {
        let start = Instant::now();
        self.world = world;
        self.reconcile();
        self.policy_metrics.observe_edit(start.elapsed());
    }

    /// Plans whole and applies the difference. On an error the earlier plan stays in force.
    pub(super) fn reconcile(&mut self) {
        let endpoints = self.endpoints.list();
        let outcome = self.plan_and_apply(&endpoints);
        if let Err(error) = &outcome {
            tracing::error!("not in force: {error}");
        }
        self.refused = outcome.err().map(|error| error.to_string());
    }

    fn plan_and_apply(&mut self, endpoints: &[Endpoint]) -> Result<(), AgentError> {
        let planned = plan(&self.world, endpoints, &self.facts, &mut self.allocator)?;
        // Numbers are durable before the kernel knows them: after a crash they mean the same.
        self.allocator.save(SystemTime::now())?;
        let report = self.datapath.apply(&planned.plan)?;
        self.planned = planned;
        self.policy_metrics.set_revision(report.generation);
        self.attribute();
        Ok(())
    }

    /// What the event reader needs to name who and why.
    fn attribute(&self) {
        *self.attribution.lock() = Attribution::new(&self.facts.name, &self.planned.plan, &self.datapath);
    }

    /// Makes a workload's endpoint and puts its policy in force; nothing of it is left after an error.
    pub(super) async fn enrol(&mut self, request: &Enrol) -> Result<Enrolled, String> {
        admit(&self.world, &self.facts.name, &request.workload).map_err(|error| error.to_string())?;
        let prepared = self.endpoints.prepare(request).await.map_err(|error| error.to_string())?;
        let endpoint = prepared.endpoint;
        if let Err(error) = self.put_in_force(&endpoint).await {
            self.remove(endpoint.id).await;
            return Err(error.to_string());
        }
        Ok(Enrolled {
            endpoint,
            network_namespace: prepared.network_namespace,
            cgroup: prepared.cgroup,
            hidden: self.directories.hidden(),
        })
    }

    async fn put_in_force(&mut self, endpoint: &Endpoint) -> Result<(), AgentError> {
        let endpoints = self.endpoints.list();
        self.plan_and_apply(&endpoints)?;
        self.datapath.attach(endpoint)?;
        self.endpoints.release(endpoint.id).await?;
        Ok(())
    }

    /// The connection of an enrolment is closed: without a process in it, the workload never was.
    pub(super) async fn lease_ended(&mut self, id: EndpointId) {
        match self.endpoints.is_populated(id) {
            Ok(true) => {}
            Ok(false) => self.remove(id).await,
            Err(error) => tracing::warn!(endpoint = %id, %error, "whether a process is in it cannot be told"),
        }
    }

    /// Takes an endpoint away: first its processes and devices, then its place in the kernel's maps.
    pub(super) async fn remove(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get(id) else { return };
        if let Err(error) = self.endpoints.remove(id).await {
            return tracing::error!(endpoint = %id, %error, "not removed; tried again when the agent starts");
        }
        self.reconcile();
        if let Err(error) = self.datapath.detach(&endpoint) {
            tracing::error!(endpoint = %id, %error, "its place in the kernel's maps is not cleared");
        }
    }

    /// Expired connections, counters.
    pub(super) fn housekeeping(&mut self) {
        if let Err(error) = self.datapath.collect_connections() {
            tracing::error!(%error, "expired connections are not collected");
        }
        self.datapath.update_metrics();
    }

    /// Lets go of everything without changing it.
    pub(super) fn close(self) -> endpoint::Config {
        self.endpoint_config
    }
}

fn private_directory(path: &std::path::Path) -> Result<(), AgentError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|error| AgentError::Io { what: format!("directory {}", path.display()), error })
}

/// What the node itself knows: its name and the addresses that are its own.
async fn facts(world: &World, endpoints: &endpoint::Config) -> Result<NodeFacts, AgentError> {
    let name = match &world.configuration.node_name {
        Some(name) => name.clone(),
        None => linux::hostname()?,
    };
    let addresses = linux::netlink::Netlink::open()?.addresses().await?;
    let addresses: BTreeSet<_> = addresses.into_iter().map(|address| address.address.addr()).collect();
    Ok(NodeFacts {
        name,
        addresses: addresses.into_iter().collect(),
        ipv4_pool: endpoints.ipv4_pool,
        ipv6_pool: endpoints.ipv6_pool,
    })
}

fn pools_in_use(endpoints: &[Endpoint], config: &endpoint::Config) -> Option<(ipnet::Ipv4Net, ipnet::Ipv6Net)> {
    (!endpoints.is_empty()).then_some((config.ipv4_pool, config.ipv6_pool))
}
