//! The one way the agent's state changes: plan whole, apply the difference.
//!
//! Promise: who is withdrawn by a world is so as soon as the agent hears of that world, also where there can be no plan of
//! it, it cannot be put in force, or it waits ([`super::switching`]).

use std::sync::Arc;
use std::time::SystemTime;

use control::{Planned, Present, World, admit};
use endpoint::Departed;
use mesh::workload::{Endpoint, EndpointId};
use node_api::{Enrol, Enrolled, Reply};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::auth;
use super::error::AgentError;
use super::l7;
use super::node::{Node, context};
use super::switching::{Starting, Switching, Waits};

/// What has become of a world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Policy {
    InForce,
    /// It is as soon as [`Node::switch`] says so.
    Waits,
}

impl Node {
    /// A new world: its policy is in force when this returns, or waits, or `refused` says why not.
    pub(super) async fn edit(&mut self, world: Arc<World>) {
        let start = Instant::now();
        self.bring(world).await;
        match &mut self.switching {
            Some(switching) => switching.edits.push(start),
            None => self.edited(start),
        }
    }

    fn edited(&mut self, start: Instant) {
        self.policy_metrics.observe_edit(start.elapsed());
        self.policy_metrics.set_invalid(self.invalid());
    }

    /// The latest world, which may wait to be in force.
    fn latest(&self) -> Arc<World> {
        Arc::clone(self.switching.as_ref().map_or(&self.world, |switching| &switching.world))
    }

    /// Plans whole and applies the difference: policy first, so that whoever a service leads to is already judged by it.
    /// What cannot be put in force stays as it was, and `refused` says what and why.
    pub(super) async fn reconcile(&mut self) {
        self.bring(self.latest()).await;
    }

    async fn bring(&mut self, world: Arc<World>) {
        match self.apply_policy(world).await {
            Ok(Policy::InForce) => self.apply_services(),
            Ok(Policy::Waits) => {}
            Err(error) => self.refuse(format!("the latest edit is not in force: {error}")),
        }
    }

    /// What the world takes away from authentication is taken away now, whatever becomes of it.
    async fn apply_policy(&mut self, world: Arc<World>) -> Result<Policy, AgentError> {
        let endpoints = self.endpoints.list();
        let planned = match self.plan(&world, &endpoints) {
            Ok(planned) => planned,
            Err(error) => {
                self.abandon(world, &error).await;
                return Err(error);
            }
        };
        self.auth.place(control::placements(&world, &self.facts, &endpoints));
        let (plan, before) = (&planned.plan, &self.planned.plan);
        let waits = Waits {
            proofs: self.auth.lead(plan, before, &mut self.datapath, &self.endpoints).await,
            rules: self.l7.lead(plan, &self.datapath),
        };
        let switching = Switching::next(self.switching.take(), world, planned, waits);
        if waits.any() {
            self.switching = Some(switching);
            return Ok(Policy::Waits);
        }
        self.put_in_force(switching).await.map(|()| Policy::InForce)
    }

    /// Numbers are durable before anybody knows them: after a crash they mean the same.
    fn plan(&mut self, world: &World, endpoints: &[Endpoint]) -> Result<Planned, AgentError> {
        let in_force = Arc::clone(&self.planned.plan);
        let present = Present { endpoints, leaving: &self.leaving, plan: Some(&in_force) };
        let planned = self.planner.plan(world, present, &self.facts, &mut self.allocator);
        let planned = planned.inspect_err(|_| {
            if let Some(still) = control::still(world, &self.facts, present) {
                self.auth.keep(still);
            }
        })?;
        let saved = self.allocator.save(SystemTime::now()).map_err(AgentError::from);
        let kept = saved.and_then(|()| Ok(auth::set_quarantine(&self.endpoints, &planned.plan)?));
        kept.inspect_err(|_| self.auth.fall_back(&in_force, &planned.plan))?;
        Ok(planned)
    }

    /// A world that there is no plan of: one that waits is not put in force either. The world is the one that is tried
    /// again.
    async fn abandon(&mut self, world: Arc<World>, error: &AgentError) {
        self.world = world;
        if let Some(switching) = self.switching.take() {
            self.l7.stay(&self.planned.plan);
            self.complete(switching.starting, switching.ended, Some(&error.to_string())).await;
        }
    }

    /// Whether a plan waits.
    pub(super) fn is_switching(&self) -> bool {
        self.switching.is_some()
    }

    /// When to [`Node::switch`]. Cancel safe.
    pub(super) async fn proven(&self) {
        let Some(Switching { waits, until, .. }) = &self.switching else { return };
        let proofs = waits.proofs.then(|| self.auth.settled(*until));
        let rules = waits.rules.then(|| self.l7.settled(*until));
        if let Some(proofs) = proofs {
            proofs.await;
        }
        if let Some(rules) = rules {
            rules.await;
        }
    }

    /// The plan that waits comes into force.
    pub(super) async fn switch(&mut self) {
        let Some(switching) = self.switching.take() else { return };
        if switching.waits.rules && self.l7.doubts() {
            self.proxied(l7::Event::Gone).await;
        }
        match self.put_in_force(switching).await {
            Ok(()) => self.apply_services(),
            Err(error) => self.refuse(format!("the latest edit is not in force: {error}")),
        }
    }

    async fn put_in_force(&mut self, switching: Switching) -> Result<(), AgentError> {
        let Switching { world, planned, edits, starting, ended, .. } = switching;
        self.world = world;
        let applied = self.datapath.apply(&planned.plan);
        match &applied {
            Ok(_) => {
                self.auth.follow(&planned.plan, &self.leaving);
                self.l7.follow(&planned.plan);
            }
            Err(_) => {
                self.auth.fall_back(&self.planned.plan, &planned.plan);
                self.l7.stay(&self.planned.plan);
            }
        }
        let result = applied.map(|report| {
            self.settle_after(report.changed);
            self.planned = Arc::new(planned);
            *self.explanation.lock() = context(&self.facts, &self.planned, &self.datapath);
        });
        edits.into_iter().for_each(|start| self.edited(start));
        let problem = result.as_ref().err().map(ToString::to_string);
        if !starting.is_empty() || !ended.is_empty() {
            self.complete(starting, ended, problem.as_deref()).await;
        }
        Ok(result?)
    }

    /// Goes on with what has waited for a plan.
    async fn complete(&mut self, starting: Vec<Starting>, ended: Vec<EndpointId>, problem: Option<&str>) {
        for Starting { endpoint, made, reply, .. } in starting {
            let connected = match problem {
                None => self.connect(&endpoint).await.map_err(|error| error.to_string()),
                Some(problem) => Err(problem.to_owned()),
            };
            self.started(endpoint.id, connected.map(|()| made).map_err(Reply::Error), reply).await;
        }
        for id in ended {
            Box::pin(self.remove(id)).await;
        }
    }

    /// Makes a workload's endpoint and puts its policy in force; nothing of it is left after an error, or if who asked is
    /// gone.
    pub(super) async fn enrol(&mut self, request: Enrol, reply: oneshot::Sender<Result<Enrolled, Reply>>) {
        let made = match self.make(&request).await {
            Ok(made) => made,
            // Who asked may be gone.
            Err(refused) => return drop(reply.send(Err(refused))),
        };
        let endpoint = made.endpoint.clone();
        let connected = match self.apply_policy(self.latest()).await {
            Ok(Policy::Waits) => {
                if let Some(switching) = &mut self.switching {
                    switching.starting.push(Starting { endpoint, made, reply });
                }
                return;
            }
            Ok(Policy::InForce) => self.connect(&endpoint).await,
            Err(error) => Err(error),
        };
        self.started(
            endpoint.id,
            connected.map(|()| made).map_err(|error| Reply::Error(error.to_string())),
            reply,
        )
        .await;
    }

    async fn make(&self, request: &Enrol) -> Result<Enrolled, Reply> {
        let admitted = admit(&self.latest(), &self.facts.name, &request.workload);
        admitted.map_err(|error| Reply::Error(error.to_string()))?;
        let prepared = self.endpoints.prepare(request).await.map_err(|error| unprepared(&error))?;
        Ok(Enrolled {
            endpoint: prepared.endpoint,
            network_namespace: prepared.network_namespace,
            cgroup: prepared.cgroup,
            hidden: self.directories.hidden(),
            resolver: self.names.workload_file(&request.workload.namespace),
        })
    }

    async fn started(
        &mut self,
        id: EndpointId,
        made: Result<Enrolled, Reply>,
        reply: oneshot::Sender<Result<Enrolled, Reply>>,
    ) {
        let is_made = made.is_ok();
        if reply.send(made).is_err() || !is_made {
            Box::pin(self.remove(id)).await;
        }
    }

    /// For an endpoint whose policy is in force.
    async fn connect(&mut self, endpoint: &Endpoint) -> Result<(), AgentError> {
        // Without room for its services a workload runs all the same; `status` says what is missing.
        self.apply_services();
        self.datapath.attach(endpoint)?;
        self.datapath.set_endpoint_namespace(endpoint.id, self.endpoints.namespace_cookie(endpoint)?)?;
        // Others hear of it before its first packet.
        self.publish();
        self.endpoints.release(endpoint.id).await?;
        Ok(())
    }

    /// Takes an endpoint away: first from the services that it answers for and from those who can prove who they are, then
    /// its processes and devices, then its place in the kernel's maps.
    pub(super) async fn remove(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get(id) else { return };
        self.leaving.insert(id);
        if !self.planned.plan.services.frontends.is_empty()
            || self.planned.plan.auth.is_some()
            || self.is_switching()
        {
            self.reconcile().await;
        }
        if let Some(switching) = &mut self.switching {
            // Nobody is proven to it any more. It goes when no service leads to it.
            switching.starting.retain(|starting| starting.endpoint.id != id);
            if !switching.ended.contains(&id) {
                switching.ended.push(id);
            }
            return;
        }
        if let Err(error) = self.endpoints.remove(id).await {
            return tracing::error!(endpoint = %id, %error, "not removed; tried again when the agent starts");
        }
        if let Err(error) = self.datapath.detach(id) {
            tracing::error!(endpoint = %id, %error, "its place in the kernel's maps is not cleared");
        }
        self.leaving.remove(&id);
        self.publish();
        self.reconcile().await;
        let addresses = [endpoint.ipv4.into(), endpoint.ipv6.into()].into();
        self.end_sockets(Departed { addresses, ..Departed::default() });
    }
}

/// What is only a matter of time is told as such.
fn unprepared(error: &endpoint::Error) -> Reply {
    let why = error.to_string();
    match error {
        endpoint::Error::PoolRests { left, .. } => Reply::Later {
            milliseconds: u64::try_from(left.as_millis()).unwrap_or(u64::MAX).saturating_add(1),
            why,
        },
        _ => Reply::Error(why),
    }
}
