//! The L7 proxy of this node: its process, what it is told, and what it says.
//!
//! Promise: nothing of it is made before some policy with HTTP rules is about an endpoint of this node. The process outlives
//! the agent and is taken over by the next; its listening sockets are kept here too, so that connections wait while it is
//! started again. What is new or stricter is told to it before the kernel sends anybody there, what goes away after.

mod flows;
mod keeper;
mod listeners;
mod remains;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use l4_datapath::Datapath;
use mesh::l7::L7Plan;
use mesh::plan::NodePlan;
use mesh::policy::PolicyName;
use mesh::workload::{EndpointId, WorkloadName};
use node_api::{L7Status, PolicyView};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub(super) use self::flows::Sink;
use self::keeper::{Askers, Keeper, Surroundings};
pub(crate) use self::remains::{leftovers, undo};
use super::auth::place::{Place, Process};
use super::error::AgentError;
use crate::directories::Directories;

/// How long a plan waits for the proxy to have its rules.
const AHEAD: Duration = Duration::from_secs(1);
/// Workers of a proxy at most; the kernel has room for their listeners.
const MOST_WORKERS: usize = 64;

/// What a proxy was started with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Settings {
    /// Build of the agent that started it: only the same build is talked to.
    build: String,
    workers: usize,
}

/// What the kernel is to be told of the proxy.
pub(super) enum Event {
    /// It has its rules and takes connections: by these sockets, IPv4 and IPv6 in turn, and known by its cgroup.
    Ready {
        /// The cgroup's number.
        cgroup: u64,
        /// Copies.
        listeners: Vec<OwnedFd>,
    },
    /// There has been none for a while.
    Gone,
}

/// Rules that the proxy does not take, and why.
type Refusals = Arc<Mutex<BTreeMap<EndpointId, String>>>;

/// The L7 proxy of this node.
pub(super) struct L7 {
    place: Place,
    cgroup: PathBuf,
    settings: Settings,
    sink: Sink,
    keeper: Option<Keeper>,
    /// What it was told last.
    told: Arc<L7Plan>,
    refusals: Refusals,
    problem: Arc<Mutex<Option<String>>>,
    sender: mpsc::Sender<Event>,
    events: Option<mpsc::Receiver<Event>>,
}

impl L7 {
    /// Makes nothing yet.
    pub(super) fn new(directories: &Directories, endpoints: &endpoint::Config, sink: Sink) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (sender, events) = mpsc::channel(4);
        Self {
            place: Place::new(directories),
            cgroup: remains::cgroup(endpoints),
            settings: Settings { build: crate::BUILD.to_owned(), workers: cores.min(MOST_WORKERS) },
            sink,
            keeper: None,
            told: Arc::default(),
            refusals: Arc::default(),
            problem: Arc::default(),
            sender,
            events: Some(events),
        }
    }

    /// What the kernel is to be told, for who tells it; the second time, nothing.
    pub(super) fn events(&mut self) -> mpsc::Receiver<Event> {
        self.events.take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Before a plan is in force: whoever has rules by it has them when this returns, or the proxy is slow. Whoever has none
    /// any more keeps them until [`L7::follow`].
    pub(super) async fn lead(&mut self, plan: &NodePlan, datapath: &Datapath) {
        let Some(wanted) = &plan.l7 else { return };
        let both = join(wanted, &self.told);
        if let Err(error) = self.tell(both, datapath) {
            // Policy is in force all the same: what must go by the proxy goes nowhere.
            return self.set_problem(format!("no request can be let through: {error}"));
        }
        if let Some(keeper) = &mut self.keeper
            && !keeper.settle(AHEAD).await
        {
            tracing::warn!("the L7 proxy does not have its rules yet; what is to go by it waits");
        }
    }

    /// A plan is in force.
    pub(super) fn follow(&mut self, plan: &NodePlan) {
        let Some(keeper) = &self.keeper else { return };
        let wanted = plan.l7.clone().unwrap_or_default();
        keeper.tell(Arc::clone(&wanted));
        self.refusals.lock().retain(|id, _| wanted.endpoints.contains_key(id));
        self.told = wanted;
    }

    fn tell(&mut self, plan: Arc<L7Plan>, datapath: &Datapath) -> Result<(), AgentError> {
        self.told = Arc::clone(&plan);
        if let Some(keeper) = &self.keeper {
            keeper.tell(plan);
            return Ok(());
        }
        let surroundings = Surroundings {
            place: self.place.clone(),
            cgroup: self.cgroup.clone(),
            settings: self.settings.clone(),
            maps: datapath.proxy_maps()?.into(),
            sink: self.sink.clone(),
            refusals: Arc::clone(&self.refusals),
            problem: Arc::clone(&self.problem),
            events: self.sender.clone(),
        };
        self.keeper = Some(Keeper::start(surroundings, plan));
        Ok(())
    }

    fn set_problem(&self, text: String) {
        tracing::error!("{text}");
        *self.problem.lock() = Some(text);
    }

    /// Asks the proxy, if there is one.
    pub(super) fn askers(&self) -> Option<Askers> {
        self.keeper.as_ref().map(|keeper| keeper.askers.clone())
    }

    /// How it stands; none where no policy needs it.
    pub(super) fn status(&self, plan: &NodePlan) -> Option<L7Status> {
        let endpoints = plan.l7.as_ref()?.endpoints.len();
        let ready = self.keeper.as_ref().is_some_and(Keeper::is_ready);
        let starting = || (!ready).then(|| "it is being started".to_owned());
        let problem = self.problem.lock().clone().or_else(starting);
        Some(L7Status {
            workers: self.settings.workers,
            endpoints,
            refused: self.refusals.lock().len(),
            problem,
        })
    }

    /// What does not work, a sentence each.
    pub(super) fn problems(&self, plan: &NodePlan) -> Vec<String> {
        let problem = self.problem.lock().clone().map(|problem| format!("the L7 proxy: {problem}"));
        let refused = self.refused(plan).into_iter().map(|Refused { workload, policies, why }| {
            let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
            format!("HTTP rules of {} are not in force at {workload}: {why}", names.join(", "))
        });
        problem.into_iter().chain(refused).collect()
    }

    /// Says it of the policies too whose rules the proxy does not take.
    pub(super) fn judge(&self, plan: &NodePlan, policies: &mut [PolicyView]) {
        for Refused { workload, policies: names, why } in self.refused(plan) {
            let of_these = |view: &&mut PolicyView| view.policy.as_ref().is_some_and(|it| names.contains(it));
            for view in policies.iter_mut().filter(of_these) {
                view.valid = false;
                view.message = format!("HTTP rules are not in force at {workload}: {why}");
            }
        }
    }

    fn refused(&self, plan: &NodePlan) -> Vec<Refused> {
        let refusals = self.refusals.lock();
        let known = refusals.iter().filter_map(|(id, why)| Some((plan.endpoints.get(id)?, why)));
        let refused = known.map(|(planned, why)| {
            let rulesets = [&planned.ingress, &planned.egress];
            let outcomes = rulesets.into_iter().flat_map(|ruleset| ruleset.entries.values());
            let mut policies: Vec<PolicyName> =
                outcomes.filter(|outcome| outcome.proxied).flat_map(|it| it.by.iter().cloned()).collect();
            policies.sort();
            policies.dedup();
            Refused { workload: planned.endpoint.workload.clone(), policies, why: why.clone() }
        });
        refused.collect()
    }

    /// Each change to the host that was made for it, a sentence each.
    pub(super) fn host_changes(&self) -> Vec<String> {
        let directory = self.place.directory(Process::Proxy);
        let change = || {
            format!(
                "process ferromesh proxy, its {} and its cgroup {}: `ferromesh down` ends and deletes them",
                directory.display(),
                self.cgroup.display()
            )
        };
        self.keeper.iter().map(|_| change()).collect()
    }

    /// Keeps the process no more; it goes on.
    pub(super) async fn close(self) {
        if let Some(task) = self.keeper.map(Keeper::into_task) {
            task.abort();
            // It has been told to.
            let _ = task.await;
        }
    }
}

/// Rules of one endpoint that are not in force.
struct Refused {
    workload: WorkloadName,
    policies: Vec<PolicyName>,
    why: String,
}

/// A plan, and whoever had rules before and has none by it.
fn join(plan: &Arc<L7Plan>, before: &L7Plan) -> Arc<L7Plan> {
    let gone = || before.endpoints.iter().filter(|(id, _)| !plan.endpoints.contains_key(id));
    if gone().next().is_none() {
        return Arc::clone(plan);
    }
    let mut both = L7Plan::clone(plan);
    both.endpoints.extend(gone().map(|(id, endpoint)| (*id, endpoint.clone())));
    Arc::new(both)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(ids: &[u16]) -> Arc<L7Plan> {
        let endpoint = |number: &u16| {
            let id = EndpointId::new(*number).unwrap();
            let endpoint = mesh::l7::L7Endpoint {
                id,
                instance: 1,
                workload: "default/deathstar".parse().unwrap(),
                ipv4: [10, 0, 0, 1].into(),
                ipv6: std::net::Ipv6Addr::LOCALHOST,
                identity: mesh::identity::Identity::new(300).unwrap(),
                ingress: None,
                egress: None,
                audit: false,
            };
            (id, endpoint)
        };
        Arc::new(L7Plan { endpoints: ids.iter().map(endpoint).collect() })
    }

    #[test]
    fn who_has_no_rules_any_more_keeps_them_until_the_kernel_knows() {
        let (before, after) = (plan(&[1, 2]), plan(&[2, 3]));
        let both: Vec<u16> = join(&after, &before).endpoints.keys().map(|id| id.number()).collect();
        assert_eq!(both, [1, 2, 3]);
        assert!(Arc::ptr_eq(&join(&before, &plan(&[1])), &before), "nobody to keep");
    }
}
