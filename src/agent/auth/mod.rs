//! Authentication on this node: its processes, what they are told, and what is done at their word.
//!
//! Promise: nothing of it is made before some policy of the mesh asks for it (or this node's CA serves others). The
//! processes outlive the agent and are taken over by the next. The agent's loop never waits for them. Before pairs that
//! need not authenticate until now must, those in use have a second to be proven; whoever is withdrawn meanwhile is so at
//! once.

mod authority;
mod credentials;
mod ending;
mod hierarchy;
mod hold;
mod listen;
pub(super) mod place;
pub(super) mod process;
mod prover;
mod reasons;
mod remains;
mod roots;
mod settings;
#[cfg(test)]
mod tests;
mod told;
mod why;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control::World;
use endpoint::Endpoints;
use l4_datapath::Datapath;
use mesh::auth::{AuthPlan, IdentityPair};
use mesh::plan::NodePlan;
use mesh::workload::EndpointId;
use node_api::AuthStatus;
use node_api::auth::{AuthCounters, Placements};
use observe::auth::{AuthMetrics, CaMetrics};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use self::authority::{Authority, Keeper};
use self::place::Place;
use self::prover::{Askers, Prover, Surroundings};
pub(super) use self::reasons::Reasons;
pub(crate) use self::remains::{UndoError, leftovers, undo};
use self::settings::{Ca, Settings};
use self::told::{common, join, may_be_cut, nobody};
pub(super) use self::why::Asked;
use super::error::AgentError;
use crate::directories::Directories;

/// What keeps authentication from working, if anything does; a clone shares it.
#[derive(Clone, Default, Debug)]
struct Problem(Arc<Mutex<Option<String>>>);

impl Problem {
    /// Said once, however often it happens.
    fn set(&self, text: String) {
        let mut problem = self.0.lock();
        if problem.as_ref() != Some(&text) {
            tracing::error!("{text}");
            *problem = Some(text);
        }
    }

    fn clear(&self) {
        *self.0.lock() = None;
    }

    fn get(&self) -> Option<String> {
        self.0.lock().clone()
    }
}

/// Authentication on this node.
pub(super) struct Auth {
    place: Place,
    settings: Settings,
    /// Who may have certificates, as long as no CA has been told.
    placements: Placements,
    authority: Option<Keeper>,
    prover: Option<Prover>,
    /// What the auth-agent was told last.
    told: Option<Arc<AuthPlan>>,
    /// Pairs that must authenticate by the plan that is in force.
    in_force: BTreeSet<IdentityPair>,
    metrics: AuthMetrics,
    ca_metrics: CaMetrics,
    counters: Arc<Mutex<Option<AuthCounters>>>,
    reasons: Reasons,
    authority_problem: Problem,
    prover_problem: Problem,
}

impl Auth {
    /// Makes nothing yet.
    pub(super) fn new(directories: &Directories, world: &World, node: &str, registry: &mut Registry) -> Self {
        Self {
            place: Place::new(directories),
            settings: Settings::of(world, node),
            placements: Placements {
                trust_domain: world.configuration.trust_domain.clone(),
                nodes: BTreeMap::new(),
            },
            authority: None,
            prover: None,
            told: None,
            in_force: BTreeSet::new(),
            metrics: AuthMetrics::register(registry),
            ca_metrics: CaMetrics::register(registry),
            counters: Arc::default(),
            reasons: Reasons::default(),
            authority_problem: Problem::default(),
            prover_problem: Problem::default(),
        }
    }

    /// Keeps workloads from the ports of auth-agents and CAs, before anybody listens there, and also where it is another
    /// node's.
    pub(super) fn guard(&self, datapath: &mut Datapath) {
        datapath.set_guarded(self.settings.guarded());
    }

    /// Who may have certificates now: the CA is told. It runs where others need it, and where somebody here does.
    pub(super) fn place(&mut self, placements: Placements) {
        match &self.authority {
            Some(keeper) => keeper.authority.place(placements),
            None if matches!(self.settings.ca, Ca::Here { shared: true, .. }) => {
                self.placements = placements;
                self.authority();
            }
            None => self.placements = placements,
        }
    }

    /// The embedded CA, started if need be; none where it is elsewhere.
    pub(super) fn authority(&mut self) -> Option<Authority> {
        let Ca::Here { listen, .. } = self.settings.ca else { return None };
        let keeper = self.authority.get_or_insert_with(|| {
            let (place, settings) = (self.place.clone(), self.settings.clone());
            let (metrics, problem) = (self.ca_metrics.clone(), self.authority_problem.clone());
            Keeper::start(place, settings, listen, self.placements.clone(), metrics, problem)
        });
        Some(keeper.authority.clone())
    }

    /// Before a plan is in force, in the place of `before`. Whoever must authenticate by it is to be proven now, and who is
    /// withdrawn by it is at once. Until [`Auth::follow`] who need not authenticate any more stays proven: in force is still
    /// what was. Whether to wait for [`Auth::settled`]: somebody may be talking already and must authenticate for the
    /// first time. What is not proven when the plan comes into force is cut.
    pub(super) async fn lead(
        &mut self,
        plan: &NodePlan,
        before: &NodePlan,
        datapath: &mut Datapath,
        endpoints: &Arc<Endpoints>,
    ) -> bool {
        if plan.auth.is_some()
            && self.prover.is_none()
            && let Err(error) = self.start(plan, datapath, endpoints).await
        {
            // Policy is in force all the same: whoever must authenticate is denied.
            self.prover_problem.set(format!("nobody can be authenticated: {error}"));
        }
        self.announce(plan, before)
    }

    /// The same, to an auth-agent that is there.
    fn announce(&mut self, plan: &NodePlan, before: &NodePlan) -> bool {
        let (Some(wanted), Some(prover)) = (&plan.auth, &self.prover) else { return false };
        let both = join(wanted, &self.in_force);
        prover.tell(Arc::clone(&both));
        self.told = Some(both);
        may_be_cut(wanted.pairs.difference(&self.in_force), before)
    }

    /// Waits until all who must authenticate by the latest plan have tried to, but no longer than until then.
    pub(super) fn settled(&self, until: Instant) -> impl Future<Output = ()> + use<> {
        let settled = self.prover.as_ref().map(|prover| prover.settle(until));
        async move {
            if let Some(settled) = settled
                && !settled.await
            {
                tracing::warn!(
                    "not all who must authenticate from now on have done so in time; what they had open is cut"
                );
            }
        }
    }

    /// A plan is in force; some endpoints in it are about to go. For one that was refused: [`Auth::fall_back`].
    pub(super) fn follow(&mut self, plan: &NodePlan, leaving: &BTreeSet<EndpointId>) {
        let Some(prover) = &self.prover else { return };
        let wanted = match (&plan.auth, &self.told) {
            (Some(wanted), _) => Arc::clone(wanted),
            (None, Some(told)) => nobody(told, plan, leaving),
            (None, None) => return,
        };
        prover.tell(Arc::clone(&wanted));
        self.in_force.clone_from(&wanted.pairs);
        self.told = Some(wanted);
    }

    /// A plan was refused, the one before is still in force. Permissions may stay as they were, proofs may not: whoever the
    /// refused plan has no more, or has as somebody else, is proven to nobody.
    pub(super) fn fall_back(&mut self, in_force: &NodePlan, refused: &NodePlan) {
        let (Some(old), Some(new)) = (&in_force.auth, &refused.auth) else { return };
        self.keep(common(old, new));
    }

    /// There is no plan of the latest world, or it was refused: nobody but these is proven.
    pub(super) fn keep(&mut self, still: AuthPlan) {
        let Some(prover) = &self.prover else { return };
        let still = Arc::new(still);
        prover.tell(Arc::clone(&still));
        self.told = Some(still);
    }

    /// Starts the auth-agent.
    async fn start(
        &mut self,
        plan: &NodePlan,
        datapath: &mut Datapath,
        endpoints: &Arc<Endpoints>,
    ) -> Result<(), AgentError> {
        let Some(plan) = &plan.auth else { return Ok(()) };
        let hold = hold::make(datapath).await?;
        let surroundings = Surroundings {
            place: self.place.clone(),
            settings: self.settings.clone(),
            authority: self.authority(),
            hold,
            maps: datapath.auth_maps()?,
            endpoints: Arc::clone(endpoints),
            view: datapath.view(),
            metrics: self.metrics.clone(),
            counters: Arc::clone(&self.counters),
            reasons: self.reasons.clone(),
            problem: self.prover_problem.clone(),
            left_token: Mutex::default(),
        };
        self.prover = Some(Prover::start(surroundings, Arc::clone(plan)));
        Ok(())
    }

    /// Asks the auth-agent, if there is one.
    pub(super) fn askers(&self) -> Option<Askers> {
        self.prover.as_ref().map(|prover| prover.askers.clone())
    }

    /// Why pairs are not proven, for whoever explains drops.
    pub(super) fn reasons(&self) -> Reasons {
        self.reasons.clone()
    }

    /// How it stands; none where nobody must authenticate.
    pub(super) fn status(&self, plan: &NodePlan) -> Option<AuthStatus> {
        let auth = plan.auth.as_ref()?;
        let counters = self.counters.lock().clone();
        let starting = || counters.is_none().then(|| "the auth-agent is being started".to_owned());
        Some(AuthStatus {
            trust_domain: auth.trust_domain.clone(),
            required: auth.pairs.len(),
            nodes: auth.nodes.len(),
            problem: self.problems().into_iter().next().or_else(starting),
            marks: counters.as_ref().map_or(0, |counters| counters.marks),
            sessions: counters.as_ref().map_or(0, |counters| counters.sessions),
            first_expiry: counters.and_then(|counters| counters.first_expiry),
        })
    }

    /// What does not work, a sentence each.
    pub(super) fn problems(&self) -> Vec<String> {
        [&self.authority_problem, &self.prover_problem].into_iter().filter_map(Problem::get).collect()
    }

    /// Each change to the host that was made for it, a sentence each.
    pub(super) fn host_changes(&self) -> Vec<String> {
        let directory = |process| self.place.directory(process).display().to_string();
        let mut changes = Vec::new();
        if self.prover.is_some() {
            let device = place::HOLD_DEVICE;
            changes.push(format!(
                "device {device}, where packets wait for a proof: `ferromesh down` deletes it"
            ));
            let directory = directory(place::Process::AuthAgent);
            changes
                .push(format!("process ferromesh auth-agent and its {directory}: `ferromesh down` ends it"));
        }
        if self.authority.is_some() {
            let (directory, root) = (directory(place::Process::Ca), self.place.root());
            changes.push(format!(
                "process ferromesh ca, its {directory} and the root key in {}: `ferromesh down` ends and deletes them",
                root.display()
            ));
        }
        changes
    }

    /// The roots that sign here, for who is to trust them.
    pub(super) fn bundle(&self) -> hierarchy::Bundle {
        hierarchy::Bundle(self.place.clone())
    }

    /// Keeps the processes no more; they go on.
    pub(super) async fn close(self) {
        for task in
            [self.prover.map(Prover::into_task), self.authority.map(Keeper::into_task)].into_iter().flatten()
        {
            task.abort();
            // It has been told to.
            let _ = task.await;
        }
    }
}

/// Addresses that other nodes may have marks for are kept back for longer than any can live.
pub(super) fn set_quarantine(endpoints: &Endpoints, plan: &NodePlan) -> endpoint::Result<()> {
    let has_peers = plan.auth.as_ref().is_some_and(|auth| !auth.nodes.is_empty());
    endpoints.set_quarantine(quarantine(plan), has_peers)
}

fn quarantine(plan: &NodePlan) -> Option<Duration> {
    let grace = plan.auth.as_ref()?.grace;
    Some(Duration::from_millis(grace.saturating_mul(11) / 10) + Duration::from_secs(1))
}
