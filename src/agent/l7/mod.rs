//! The L7 proxy of this node: its process, what it is told, and what it says.
//!
//! Promise: nothing of it is made before some policy with HTTP rules, server names or TLS of the proxy's own is about an endpoint
//! of this node. The process outlives the agent and is taken over by the next, even if that has no such policy any more; its
//! listening sockets are kept here too, so that connections wait while it is started again, and another process takes its place
//! without one of them being lost. What is new or stricter is told to it before the kernel sends anybody there, what goes away
//! after. The agent's loop never waits for it: a plan that tells it something new waits for its answer, a second at most
//! ([`super::switching`]).

mod access;
mod digest;
mod escort;
mod explain;
mod flows;
mod house;
mod incarnations;
mod keeper;
mod listeners;
mod questions;
mod refusals;
mod remains;
mod standing;
mod talk;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use control::Planned;
use l4_datapath::Datapath;
use mesh::l7::{L7Plan, L7Ports, L7Rules, SecretItems, SecretName, TlsSecret, left_of};
use mesh::plan::NodePlan;
use mesh::workload::EndpointId;
use node_api::{L7Status, PolicyView};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub(super) use self::access::AccessLog;
pub(super) use self::explain::{Asked, SILENT, name};
pub(super) use self::flows::Sink;
use self::keeper::{Askers, Keeper, Surroundings};
use self::refusals::{Refusals, Refused, refused};
pub(crate) use self::remains::{leftovers, undo};
use super::auth::place::{Place, Process};
use super::auth::process::running;
use super::error::AgentError;
use crate::directories::Directories;

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

/// The L7 proxy of this node.
pub(super) struct L7 {
    place: Place,
    cgroup: PathBuf,
    settings: Settings,
    sink: Sink,
    keeper: Option<Keeper>,
    /// What it was told last.
    told: Arc<L7Plan>,
    /// Rules of the plan that is in force; `None`: of none of this agent's, but what an earlier one has left.
    in_force: Option<Arc<L7Plan>>,
    refusals: Refusals,
    problem: Arc<Mutex<Option<String>>>,
    shortage: Arc<Mutex<Option<String>>>,
    sender: mpsc::Sender<Event>,
    events: Option<mpsc::Receiver<Event>>,
    /// See [`L7::doubts`].
    doubted: Arc<AtomicBool>,
    /// Whether it is known that no proxy of an earlier agent runs, or that it is talked to.
    is_alone: bool,
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
            in_force: None,
            refusals: Arc::default(),
            problem: Arc::default(),
            shortage: Arc::default(),
            sender,
            events: Some(events),
            doubted: Arc::default(),
            is_alone: false,
        }
    }

    /// What the kernel is to be told, for who tells it; the second time, nothing.
    pub(super) fn events(&mut self) -> mpsc::Receiver<Event> {
        self.events.take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Before a plan is in force: whoever has rules by it is to have them. What is about nothing any more by it (an endpoint,
    /// a direction, a range of ports) keeps its rules until [`L7::follow`]. Whether to wait for [`L7::settled`]: the proxy has not answered, and is told what is not in force.
    pub(super) fn lead(&mut self, plan: &NodePlan, datapath: &Datapath) -> bool {
        let nothing = Arc::default();
        let wanted = match &plan.l7 {
            Some(wanted) => wanted,
            // What it has open it has by rules that are no more.
            None if self.is_left() => &nothing,
            None => return false,
        };
        if let Err(error) = self.tell(join(wanted, &self.told), datapath) {
            // Policy is in force all the same: what must go by the proxy goes nowhere.
            self.set_problem(format!("no request can be let through: {error}"));
            return true;
        }
        self.waits(wanted)
    }

    /// Whether a proxy of an earlier agent runs that nobody talks to.
    fn is_left(&mut self) -> bool {
        let is_known = std::mem::replace(&mut self.is_alone, true) || self.keeper.is_some();
        // If that cannot be said it is looked for by the keeper, who says why.
        !is_known && running(Process::Proxy, &self.place).map_or(true, |pids| !pids.is_empty())
    }

    fn waits(&self, wanted: &Arc<L7Plan>) -> bool {
        self.in_force.as_ref() != Some(wanted)
            && self.keeper.as_ref().is_some_and(|keeper| !keeper.is_settled())
    }

    /// Whether the proxy is told what it has not answered. Then the kernel may send nobody there: it could let somebody pass
    /// by rules that are no more. When it has answered there is [`Event::Ready`] once more.
    pub(super) fn doubts(&self) -> bool {
        // First, so that an answer in between is not missed.
        self.doubted.store(true, Ordering::SeqCst);
        let is_settled = match &self.keeper {
            Some(keeper) => keeper.is_settled(),
            // One of an earlier agent may run that nobody talks to.
            None => self.told.endpoints.is_empty(),
        };
        if is_settled {
            self.doubted.store(false, Ordering::SeqCst);
        }
        !is_settled
    }

    /// Waits until the proxy has answered all that it was told last, but no longer than until then.
    pub(super) fn settled(&self, until: Instant) -> impl Future<Output = ()> + use<> {
        let settled = self.keeper.as_ref().map(|keeper| keeper.settle(until));
        async move {
            if let Some(settled) = settled
                && !settled.await
            {
                tracing::warn!("the L7 proxy has not answered; until it has, what is to go by it waits");
            }
        }
    }

    /// A plan was refused. This one, the latest that was not, stays in force; or, where none of this agent's ever was, what an
    /// earlier one has left in the kernel, with the rules that it has told the proxy.
    pub(super) fn stay(&mut self, plan: &NodePlan) {
        match (&self.in_force, &self.keeper) {
            (Some(_), _) => self.follow(plan),
            (None, Some(keeper)) => keeper.stay(),
            (None, None) => {}
        }
    }

    /// This plan is in force.
    pub(super) fn follow(&mut self, plan: &NodePlan) {
        let wanted = plan.l7.clone().unwrap_or_default();
        self.in_force = Some(Arc::clone(&wanted));
        let Some(keeper) = &self.keeper else { return };
        keeper.tell(Arc::clone(&wanted));
        keeper.follow();
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
            shortage: Arc::clone(&self.shortage),
            events: self.sender.clone(),
            doubted: Arc::clone(&self.doubted),
            patience: keeper::PATIENCE,
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

    /// Why the latest rules of endpoints are not in force.
    pub(super) fn refusals(&self) -> BTreeMap<EndpointId, String> {
        self.refusals.lock().iter().map(|(id, refusal)| (*id, refusal.why().to_owned())).collect()
    }

    /// Whether a request without a number is given one.
    pub(super) fn gives_request_ids(&self) -> bool {
        self.sink.record.request_id
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
            draining: self.keeper.as_ref().map_or(0, Keeper::draining),
            problem,
        })
    }

    /// What does not work, a sentence each.
    pub(super) fn problems(&self, planned: &Planned) -> Vec<String> {
        let texts = [self.problem.lock().clone(), self.shortage.lock().clone()];
        let problem = texts.into_iter().flatten().map(|problem| format!("the L7 proxy: {problem}"));
        let refused = refused(&self.refusals, planned);
        let refused = refused.iter().map(Refused::sentence);
        problem.chain(self.sink.access_log.problem()).chain(refused).collect()
    }

    /// Says it of the policies too whose rules the proxy does not take.
    pub(super) fn judge(&self, planned: &Planned, policies: &mut [PolicyView]) {
        refused(&self.refusals, planned).iter().for_each(|refused| refused.note(policies));
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
        if let Some(task) = self.keeper.map(Keeper::close) {
            // It has been told to.
            let _ = task.await;
        }
    }
}

/// A plan, and beside it what was enforced before and is not by it: whoever has no rules any more, and directions and ranges
/// of ports that those who have rules had before. The kernel sends connections by these until it has switched.
fn join(plan: &Arc<L7Plan>, before: &L7Plan) -> Arc<L7Plan> {
    let mut both = L7Plan::clone(plan);
    for (id, earlier) in &before.endpoints {
        let Some(endpoint) = both.endpoints.get_mut(id) else {
            both.endpoints.insert(*id, earlier.clone());
            continue;
        };
        // Of another creation nothing holds any more.
        if endpoint.instance == earlier.instance {
            endpoint.ingress = beside(endpoint.ingress.take(), earlier.ingress.as_ref());
            endpoint.egress = beside(endpoint.egress.take(), earlier.egress.as_ref());
            let own = plan.endpoints.get(id).map(|own| (&own.ingress, &own.egress));
            if own != Some((&endpoint.ingress, &endpoint.egress)) {
                endpoint.secrets = secrets_beside(&endpoint.secrets, &earlier.secrets);
            }
        }
    }
    if both == **plan { Arc::clone(plan) } else { Arc::new(both) }
}

/// Rules, and those of before for the ports that they do not name.
fn beside(rules: Option<Arc<L7Rules>>, before: Option<&Arc<L7Rules>>) -> Option<Arc<L7Rules>> {
    let Some(before) = before else { return rules };
    let Some(rules) = rules else { return Some(Arc::clone(before)) };
    let parts = before.ports.iter().flat_map(|ports| {
        let left = left_of((ports.first, ports.last), &rules.ports, |named| (named.first, named.last));
        left.into_iter().map(|(first, last)| L7Ports { first, last, ..ports.clone() })
    });
    let mut ports: Vec<L7Ports> = parts.collect();
    if ports.is_empty() {
        return Some(rules);
    }
    ports.extend(rules.ports.iter().cloned());
    ports.sort_by_key(|ports| ports.first);
    Some(Arc::new(L7Rules { ports }))
}

/// Items of Secrets, and those of before that are not among them: rules of before are made of these.
fn secrets_beside(secrets: &[TlsSecret], before: &[TlsSecret]) -> Vec<TlsSecret> {
    let mut all: BTreeMap<&SecretName, BTreeMap<String, String>> = BTreeMap::new();
    for secret in before.iter().chain(secrets) {
        let items = secret.items.0.iter().map(|(item, text)| (item.clone(), text.clone()));
        all.entry(&secret.name).or_default().extend(items);
    }
    let one = |(name, items): (&SecretName, _)| TlsSecret {
        name: name.clone(),
        items: SecretItems(Arc::new(items)),
    };
    all.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use mesh::workload::EndpointId;

    use super::talk::Kernel;
    use super::*;

    pub(super) fn plan(ids: &[u16]) -> Arc<L7Plan> {
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
                secrets: Vec::new(),
            };
            (id, endpoint)
        };
        Arc::new(L7Plan { endpoints: ids.iter().map(endpoint).collect() })
    }

    fn node_plan(ids: &[u16]) -> NodePlan {
        NodePlan { l7: Some(plan(ids)), ..NodePlan::default() }
    }

    pub(super) fn directories(path: &std::path::Path) -> Directories {
        let path = path.to_owned();
        Directories {
            config: path.clone(),
            shared: None,
            state: path.clone(),
            run_dir: path.clone(),
            pins: path,
        }
    }

    pub(super) fn sink() -> Sink {
        let mut registry = prometheus_client::registry::Registry::default();
        let context = l4_datapath::flow::Context::new("node".to_owned(), Arc::default(), Arc::default());
        Sink {
            explanation: Arc::new(Mutex::new(Arc::new(context))),
            ring: observe::FlowRing::new(observe::ring::CAPACITY),
            flow_metrics: observe::metrics::FlowMetrics::register(&mut registry),
            http_metrics: observe::http::HttpMetrics::register(&mut registry),
            access_log: AccessLog::start(None, &mut registry).unwrap(),
            record: node_api::proxy::Record::default(),
        }
    }

    fn l7() -> L7 {
        let directories = directories(std::path::Path::new("/nonexistent"));
        let endpoints = directories.endpoints(&control::World::default()).unwrap();
        L7::new(&directories, &endpoints, sink())
    }

    #[test]
    fn a_proxy_that_nobody_talks_to_may_have_other_rules() {
        let mut l7 = l7();
        assert!(!l7.doubts(), "nothing is to go by it");
        l7.told = plan(&[1]);
        assert!(l7.doubts());
    }

    #[tokio::test]
    async fn a_plan_waits_for_an_answer_to_what_is_new_in_it() {
        let mut l7 = l7();
        l7.follow(&node_plan(&[1]));
        let (keeper, told, settles) = Keeper::silent(plan(&[1]));
        l7.keeper = Some(keeper);
        assert!(!l7.waits(&plan(&[1])), "it is in force, whether or not the proxy has answered");
        let wanted = plan(&[1, 2]);
        l7.keeper.as_ref().unwrap().tell(Arc::clone(&wanted));
        assert!(l7.waits(&wanted));
        let until = Instant::now() + std::time::Duration::from_secs(1 << 20);
        let mut waited = Box::pin(l7.settled(until));
        tokio::select! {
            biased;
            () = &mut waited => panic!("it has not answered"),
            () = std::future::ready(()) => {}
        }
        assert!(l7.doubts(), "nobody may be sent there");
        assert!(l7.doubted.load(Ordering::SeqCst), "the kernel is to be told when it has answered");
        let plan = told.borrow().0;
        let answered = standing::Answered { plan, synced: true, takes: true };
        settles.send_modify(|standing| {
            standing.answered.insert(1, answered);
        });
        waited.await;
        assert!(!l7.waits(&wanted));
        assert!(!l7.doubts());
        assert!(!l7.doubted.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_plan_that_was_refused_leaves_the_proxy_the_rules_before() {
        let mut l7 = l7();
        let (keeper, told, _settles) = Keeper::silent(plan(&[1]));
        l7.keeper = Some(keeper);
        l7.keeper.as_ref().unwrap().tell(plan(&[1, 2]));
        l7.follow(&node_plan(&[1]));
        assert_eq!(told.borrow().1.endpoints.keys().map(|id| id.number()).collect::<Vec<_>>(), [1]);
    }

    /// The kernel goes by what an earlier agent has put there, and the proxy needs what that one has told it.
    #[tokio::test]
    async fn a_plan_that_is_refused_before_any_was_in_force_leaves_what_an_earlier_agent_has_left() {
        let mut l7 = l7();
        let (keeper, told, _settles) = Keeper::silent(plan(&[1]));
        let goes_by = keeper.kernel.subscribe();
        l7.keeper = Some(keeper);
        l7.keeper.as_ref().unwrap().tell(plan(&[1, 2]));
        l7.stay(&node_plan(&[7]));
        assert_eq!(*goes_by.borrow(), Kernel::Earlier);
        assert_eq!(told.borrow().1.endpoints.len(), 2, "and what is wanted is to be told all the same");
        l7.follow(&node_plan(&[1, 2]));
        assert_eq!(*goes_by.borrow(), Kernel::Latest);
        l7.keeper.as_ref().unwrap().tell(plan(&[1, 2, 3]));
        l7.stay(&node_plan(&[1, 2]));
        assert_eq!(*goes_by.borrow(), Kernel::Latest);
        assert_eq!(told.borrow().1.endpoints.len(), 2);
    }

    #[test]
    fn who_has_no_rules_any_more_keeps_them_until_the_kernel_knows() {
        let (before, after) = (plan(&[1, 2]), plan(&[2, 3]));
        let both: Vec<u16> = join(&after, &before).endpoints.keys().map(|id| id.number()).collect();
        assert_eq!(both, [1, 2, 3]);
        assert!(Arc::ptr_eq(&join(&before, &plan(&[1])), &before), "nobody to keep");
    }

    /// Ranges of ports; the peer tells by which plan.
    fn rules(peer: u32, ranges: &[(u16, u16)]) -> Option<Arc<L7Rules>> {
        let peers = Some([mesh::identity::Identity::new(peer).unwrap()].into());
        let access = vec![mesh::l7::L7Access { peers, http: None }];
        let ports = ranges.iter().map(|&(first, last)| L7Ports {
            first,
            last,
            access: access.clone().into(),
            tls: Arc::default(),
            inspected: Arc::default(),
        });
        Some(Arc::new(L7Rules { ports: ports.collect() }))
    }

    #[test]
    fn ports_and_directions_without_rules_keep_those_of_before_until_the_kernel_knows() {
        let of = |ingress, egress| {
            let mut plan = L7Plan::clone(&plan(&[1]));
            let endpoint = plan.endpoints.values_mut().next().unwrap();
            (endpoint.ingress, endpoint.egress) = (ingress, egress);
            Arc::new(plan)
        };
        let before = of(rules(300, &[(80, 90), (8080, 8080)]), rules(300, &[(443, 443)]));
        let after = of(rules(301, &[(79, 80), (85, 86), (8080, 8080)]), None);
        let both = join(&after, &before);
        let endpoint = both.endpoints.values().next().unwrap();
        let told = endpoint.ingress.as_ref().unwrap().ports.iter().map(|ports| {
            let peer = ports.access[0].peers.as_ref().unwrap()[0].number();
            (ports.first, ports.last, peer)
        });
        let expected = [(79, 80, 301), (81, 84, 300), (85, 86, 301), (87, 90, 300), (8080, 8080, 301)];
        assert_eq!(told.collect::<Vec<_>>(), expected);
        assert_eq!(endpoint.egress, rules(300, &[(443, 443)]));
        let mut reborn = L7Plan::clone(&after);
        reborn.endpoints.values_mut().for_each(|endpoint| endpoint.instance = 2);
        assert_eq!(*join(&Arc::new(reborn.clone()), &before), reborn, "the address may be another");
        assert!(Arc::ptr_eq(&join(&before, &before), &before));
    }

    #[test]
    fn rules_of_before_keep_the_secrets_that_they_are_made_of() {
        let of = |ranges: &[(u16, u16)], secrets: &[(&str, &str, &str)]| {
            let mut plan = L7Plan::clone(&plan(&[1]));
            let endpoint = plan.endpoints.values_mut().next().unwrap();
            endpoint.ingress = rules(300, ranges);
            let secret = |(name, item, text): &(&str, &str, &str)| TlsSecret {
                name: SecretName { namespace: "default".to_owned(), name: (*name).to_owned() },
                items: SecretItems(Arc::new([((*item).to_owned(), (*text).to_owned())].into())),
            };
            endpoint.secrets = secrets.iter().map(secret).collect();
            Arc::new(plan)
        };
        let told = |plan: &L7Plan| plan.endpoints.values().next().unwrap().secrets.clone();
        let before = of(&[(443, 443)], &[("a", "tls.crt", "1"), ("b", "tls.crt", "1")]);
        let after = of(&[(8443, 8443)], &[("b", "tls.crt", "2"), ("c", "tls.crt", "2")]);
        let all = of(&[], &[("a", "tls.crt", "1"), ("b", "tls.crt", "2"), ("c", "tls.crt", "2")]);
        assert_eq!(told(&join(&after, &before)), told(&all));
        let rotated = of(&[(443, 443)], &[("b", "tls.crt", "2")]);
        assert!(Arc::ptr_eq(&join(&rotated, &before), &rotated), "nothing of before is left");
    }
}
