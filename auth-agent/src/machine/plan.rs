//! Plans: told whole, applied by difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh::auth::{AuthEndpoint, AuthPlan, InstanceName, Refusal};
use mesh::identity::Identity;
use mesh::spiffe::SpiffeId;
use node_api::auth::FromAuthAgent;

use super::Machine;
use super::pairs::{Ends, PairName};
use crate::event::Output;

/// The plan, found by other things than its own keys.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Instances of this node by address.
    pub(super) locals: BTreeMap<IpAddr, u64>,
    /// Instances of other nodes by address.
    pub(super) remotes: BTreeMap<IpAddr, InstanceName>,
    /// Instances of this node by ID.
    pub(super) local_ids: BTreeMap<SpiffeId, Vec<u64>>,
    /// Instances of other nodes by node and ID.
    pub(super) remote_ids: BTreeMap<(String, SpiffeId), Vec<InstanceName>>,
    /// Instances of this node by identity.
    pub(super) local_identities: BTreeMap<Identity, Vec<u64>>,
    /// Instances of other nodes by identity.
    pub(super) remote_identities: BTreeMap<Identity, Vec<InstanceName>>,
}

impl Index {
    fn new(plan: &AuthPlan) -> Self {
        let mut index = Self::default();
        for (&instance, endpoint) in &plan.endpoints {
            index.locals.extend(endpoint.addresses().map(|address| (address, instance)));
            index.local_ids.entry(endpoint.id.clone()).or_default().push(instance);
            index.local_identities.entry(endpoint.identity).or_default().push(instance);
        }
        for (name, endpoint) in &plan.remotes {
            index.remotes.extend(endpoint.addresses().map(|address| (address, name.clone())));
            let by_id = index.remote_ids.entry((name.node.clone(), endpoint.id.clone()));
            by_id.or_default().push(name.clone());
            index.remote_identities.entry(endpoint.identity).or_default().push(name.clone());
        }
        index
    }
}

impl Machine {
    /// Makes a plan the one in force.
    pub(super) fn apply(&mut self, number: u64, plan: Arc<AuthPlan>) {
        let old = self.plan.replace(plan.clone());
        self.index = Index::new(&plan);
        if old.as_ref().is_none_or(|old| old.grace != plan.grace) {
            self.extend_own_lease();
        }
        self.adopt();
        self.drop_pairs();
        let (gone, changed) = old.as_deref().map_or_else(Default::default, |old| differences(old, &plan));
        self.withdraw_all(&gone, &changed);
        self.want(old.as_deref(), &plan);
        self.attest_new(old.as_deref(), &changed);
        self.apply_nodes(old.as_deref());
        self.tell_ended();
        self.out.push(Output::Tell(FromAuthAgent::Applied { number }));
        self.prove_ahead(number);
        self.resolve_again();
    }

    /// Ends what the plan no longer has, or has otherwise.
    fn drop_pairs(&mut self) {
        let wrong: Vec<_> = self
            .pairs
            .iter()
            .filter(|(name, pair)| self.ends(name).as_ref() != Ok(&pair.ends))
            .map(|(name, _)| name.clone())
            .collect();
        for name in wrong {
            self.clear(&name, Refusal::Withdrawn);
            self.forget(&name);
        }
    }

    /// Both ends of a pair that the plan wants authenticated; in a name of two instances here the lower is `local`.
    pub(super) fn ends(&self, name: &PairName) -> Result<Ends, Refusal> {
        let plan = self.plan.as_ref().ok_or(Refusal::UnknownPeer)?;
        let local = plan.endpoints.get(&name.local).ok_or(Refusal::Withdrawn)?;
        let remote = self.remote_end(plan, &name.peer).ok_or(Refusal::UnknownPeer)?;
        if !plan.requires(local.identity, remote.identity) {
            return Err(Refusal::NotRequired);
        }
        Ok(Ends { local: local.clone(), remote: remote.clone() })
    }

    fn remote_end<'p>(&self, plan: &'p AuthPlan, peer: &InstanceName) -> Option<&'p AuthEndpoint> {
        if peer.node == plan.node {
            return plan.endpoints.get(&peer.instance);
        }
        plan.remotes.get(peer).filter(|_| plan.nodes.contains_key(&peer.node))
    }

    /// Asks for the certificates of what runs here, and for no other.
    fn want(&mut self, old: Option<&AuthPlan>, plan: &AuthPlan) {
        let ids = |plan: &AuthPlan| -> BTreeSet<SpiffeId> {
            plan.endpoints.values().map(|endpoint| endpoint.id.clone()).collect()
        };
        let (before, now) = (old.map(ids).unwrap_or_default(), ids(plan));
        for id in before.difference(&now) {
            self.certificates.remove(id);
            self.out.push(Output::Unwant(id.clone()));
        }
        for id in now.difference(&before) {
            self.out.push(Output::Want(id.clone()));
        }
        self.marks.keep_principals(plan);
    }
}

/// Instances of this node that are no more, and those whose attestation is another now.
fn differences(old: &AuthPlan, new: &AuthPlan) -> (Vec<u64>, Vec<u64>) {
    let (mut gone, mut changed) = (Vec::new(), Vec::new());
    for (&instance, before) in &old.endpoints {
        match new.endpoints.get(&instance) {
            None => gone.push(instance),
            Some(now) if now != before => changed.push(instance),
            Some(_) => {}
        }
    }
    (gone, changed)
}
