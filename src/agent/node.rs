//! The agent's state. How it changes: [`super::change`].

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use control::allocate::Allocator;
use control::kind::configuration::Configuration;
use control::source::published::Published;
use control::{NodeFacts, Planned, Planner, World};
use endpoint::{Departed, Endpoints, Outward, dns};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use l4_datapath::Datapath;
use l4_datapath::flow::Context;
use l4_datapath::metrics::Metrics as DatapathMetrics;
use mesh::service::Services;
use mesh::workload::EndpointId;
use observe::metrics::{FlowMetrics, NodeMetrics, PolicyMetrics};
use observe::{FlowRing, Monitor};
use prometheus_client::registry::Registry;

use super::auth::Auth;
use super::error::AgentError;
use super::events::Explanation;
use super::l7::{self, L7};
use super::switching::Switching;
use crate::directories::Directories;

/// How long after a change its leavings are removed; a burst of edits comes faster than that.
const SETTLE: Duration = Duration::from_millis(5);

/// Everything an agent holds.
pub(super) struct Node {
    pub(super) directories: Directories,
    pub(super) facts: NodeFacts,
    pub(super) world: Arc<World>,
    pub(super) planner: Planner,
    pub(super) planned: Arc<Planned>,
    /// Services that can be called now: those of the plan, unless they did not fit.
    pub(super) called: Arc<Services>,
    pub(super) endpoints: Arc<Endpoints>,
    /// Where this node says which endpoints it has, if it shares a directory with others.
    pub(super) published: Option<Published>,
    /// Why it could not say so.
    pub(super) unpublished: Option<String>,
    pub(super) auth: Auth,
    pub(super) l7: L7,
    pub(super) endpoint_config: endpoint::Config,
    pub(super) datapath: Datapath,
    pub(super) adopted: usize,
    pub(super) host_changes: Vec<String>,
    /// Where packets leave the node.
    pub(super) outward: Outward,
    /// Where names are answered.
    pub(super) dns: Vec<SocketAddr>,
    /// What of the latest edit is not in force, and why, if not all of it is.
    pub(super) refused: Option<String>,
    /// What the kernel offers.
    pub(super) capabilities: BTreeMap<String, String>,
    /// Settings the node was built with; some cannot change while it runs.
    pub(super) built_with: Configuration,
    pub(super) allocator: Allocator,
    /// A plan that is not in force yet.
    pub(super) switching: Option<Switching>,
    /// Held while a prediction is made.
    pub(super) prediction: Arc<tokio::sync::Mutex<()>>,
    /// Endpoints that are being removed: no service sends anybody new to them.
    pub(super) leaving: BTreeSet<EndpointId>,
    pub(super) explanation: Explanation,
    pub(super) ring: Arc<FlowRing>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) registry: Arc<Registry>,
    /// Set after a change, until its leavings are removed.
    pub(super) settle_at: Option<tokio::time::Instant>,
    /// Events lost when the counters were last read.
    pub(super) lost_events: u64,
    pub(super) names: dns::Names,
    pub(super) policy_metrics: PolicyMetrics,
    pub(super) datapath_metrics: DatapathMetrics,
    pub(super) node_metrics: NodeMetrics,
    pub(super) flow_metrics: FlowMetrics,
}

impl Node {
    pub(super) fn name(&self) -> &str {
        &self.facts.name
    }

    pub(super) fn adopted(&self) -> usize {
        self.adopted
    }

    pub(super) fn ring(&self) -> Arc<FlowRing> {
        Arc::clone(&self.ring)
    }

    pub(super) fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.monitor)
    }

    /// Opens the metrics listener.
    pub(super) async fn serve_metrics(&self) -> Result<impl Future<Output = ()> + use<>, AgentError> {
        let listener = observe::serve::bind(self.world.configuration.metrics_address).await?;
        Ok(observe::serve::serve(listener, Arc::clone(&self.registry)))
    }

    /// Reads the kernel's events until dropped.
    pub(super) fn read_events(&mut self) -> Result<impl Future<Output = ()> + use<>, AgentError> {
        let events = self.datapath.events()?;
        let explanation = Arc::clone(&self.explanation);
        let metrics = self.flow_metrics.clone();
        let reasons = self.auth.reasons();
        Ok(super::events::read(events, explanation, self.ring(), self.monitor(), metrics, reasons))
    }

    /// Masquerading and services of the plan whose policy is in force.
    pub(super) fn apply_services(&mut self) {
        match self.try_services() {
            Ok(()) => self.refused = None,
            Err(error) => self.refuse(format!(
                "policy of the latest edit is in force, its services and masquerading are not: {error}"
            )),
        }
    }

    fn try_services(&mut self) -> Result<(), AgentError> {
        let plan = Arc::clone(&self.planned.plan);
        self.datapath.apply_masquerade(&plan.masquerade, &self.outward.devices)?;
        let report = self.datapath.apply_services(&plan.services)?;
        self.settle_after(report.changed);
        // What has a name can be called.
        self.names.set(&plan.services);
        let earlier = std::mem::replace(&mut self.called, Arc::clone(&plan.services));
        self.end_sockets(Departed { backends: earlier.departed(&plan.services), ..Departed::default() });
        Ok(())
    }

    pub(super) fn refuse(&mut self, why: String) {
        if self.refused.as_ref() != Some(&why) {
            tracing::error!("{why}");
            self.refused = Some(why);
        }
    }

    pub(super) fn settle_after(&mut self, changed: bool) {
        if changed {
            self.settle_at = Some(tokio::time::Instant::now() + SETTLE);
        }
    }

    /// Addresses of the host have come or gone: who has them is a matter of policy, and of what workloads leave by.
    pub(super) async fn readdress(&mut self) {
        if let Err(error) = self.look_around().await {
            tracing::error!(%error, "the host's addresses cannot be read");
        }
    }

    async fn look_around(&mut self) -> Result<(), AgentError> {
        let own = own_addresses().await?;
        let outward = Outward::find(self.built_with.devices.as_deref()).await?;
        if own == self.facts.addresses && outward == self.outward {
            return Ok(());
        }
        self.facts.addresses = own;
        self.outward = outward;
        self.names.set_own_addresses(self.facts.addresses.iter().map(IpNet::addr));
        self.reconcile().await;
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

    /// Objects that have an error.
    pub(super) fn invalid(&self) -> usize {
        control::status::invalid(&self.world, &self.planned)
    }

    /// Says to the other nodes which endpoints this one has; what cannot be written is tried again.
    pub(super) fn publish(&mut self) {
        let Some(published) = &mut self.published else { return };
        let endpoints: Vec<_> = self
            .endpoints
            .list()
            .into_iter()
            .filter(|endpoint| !self.leaving.contains(&endpoint.id))
            .collect();
        self.unpublished = published.publish(&endpoints).err().map(|error| error.to_string());
        if let Some(error) = &self.unpublished {
            tracing::error!("other nodes do not hear of this one's endpoints: {error}");
        }
    }

    /// The proxy has come or gone: the kernel is told.
    pub(super) async fn proxied(&mut self, event: l7::Event) {
        if let Err(error) = self.tell_of_proxy(event).await {
            tracing::error!(%error, "the kernel cannot be told of the L7 proxy");
        }
    }

    async fn tell_of_proxy(&mut self, event: l7::Event) -> Result<(), AgentError> {
        let l7::Event::Ready { cgroup, listeners } = event else { return Ok(self.datapath.proxy_gone()?) };
        l4_datapath::redirect::add_route().await?;
        let workers: Vec<_> =
            listeners.as_chunks::<2>().0.iter().map(|pair| pair.each_ref().map(AsFd::as_fd)).collect();
        Ok(self.datapath.proxy_ready(&workers, cgroup)?)
    }

    /// What can wait: connections that have expired, and what could not be put in force when it was asked for.
    pub(super) async fn housekeeping(&mut self) {
        if self.refused.is_some() {
            self.reconcile().await;
        }
        self.publish();
        match self.datapath.collect_connections() {
            Ok(report) => self.datapath_metrics.collected(&report),
            Err(error) => tracing::error!(%error, "expired connections are not collected"),
        }
    }

    /// When to [`Node::settle`].
    pub(super) fn settle_at(&self) -> tokio::time::Instant {
        self.settle_at.unwrap_or_else(tokio::time::Instant::now)
    }

    /// Whether something waits for it.
    pub(super) fn is_unsettled(&self) -> bool {
        self.settle_at.is_some()
    }

    /// Removes what the last change left for packets in flight, so that the next change need not wait for them.
    pub(super) fn settle(&mut self) {
        self.settle_at = None;
        if let Err(error) = self.datapath.settle() {
            tracing::error!(%error, "old rulesets are not removed");
        }
    }

    /// Brings `/metrics` up to date with the kernel's counters.
    pub(super) fn count(&mut self) {
        match self.datapath.counters() {
            Ok(counters) => {
                let lost = counters.lost_events.saturating_sub(self.lost_events);
                self.ring.push_lost(lost);
                self.monitor.push_lost(lost);
                self.lost_events = counters.lost_events;
                self.datapath_metrics.set(&counters, &self.explanation.lock());
            }
            Err(error) => tracing::error!(%error, "the kernel's counters cannot be read"),
        }
        let plan = &self.planned.plan;
        let leaving = plan.endpoints.keys().filter(|id| self.leaving.contains(id)).count();
        self.node_metrics.set_endpoints(plan.endpoints.len().saturating_sub(leaving), leaving);
        self.node_metrics.set_identities(plan.identities.len());
        self.node_metrics.set_policies(self.world.policies.len());
    }

    /// Pools that endpoints have addresses of.
    pub(super) fn pools_in_use(&self) -> Option<(Ipv4Net, Ipv6Net)> {
        let pools = (self.endpoint_config.ipv4_pool, self.endpoint_config.ipv6_pool);
        (!self.planned.plan.endpoints.is_empty()).then_some(pools)
    }

    /// Lets go of everything without changing it.
    pub(super) async fn close(self) -> endpoint::Config {
        self.auth.close().await;
        self.l7.close().await;
        self.endpoint_config
    }
}

/// Everything whose packets this node receives itself.
pub(super) async fn own_addresses() -> Result<Vec<IpNet>, AgentError> {
    let routes = linux::netlink::Netlink::open()?.routes().await?;
    let own: BTreeSet<_> =
        routes.into_iter().filter(|route| route.own).map(|route| route.destination).collect();
    Ok(own.into_iter().collect())
}

pub(super) fn context(facts: &NodeFacts, planned: &Planned, datapath: &Datapath) -> Arc<Context> {
    Arc::new(Context::new(facts.name.clone(), Arc::clone(&planned.plan), datapath.attribution()))
}
