//! Who must prove to whom who it is: the auth-agent's part of the plan, and whom the CA may give certificates.
//!
//! Promise: IDs come from `Workload` objects, and only where nobody else says what runs here from what was run. An
//! endpoint that is about to be removed has no part in it.
//!
//! Made anew when something that it comes from is another one; pairs are looked for in the policies that ask for
//! authentication only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh::auth::{AuthEndpoint, AuthNode, AuthPlan, IdentityPair, InstanceName};
use mesh::identity::Identity;
use mesh::policy::{
    AuthenticatedPairs, Authentication, Enforcement, Policy, Rule, Universe, authenticated_pairs,
};
use mesh::spiffe::{SpiffeId, TrustDomain};
use mesh::workload::Endpoint;
use node_api::auth::Placements;

use super::NodeFacts;
use super::notes::{Notes, of_node, of_policy};
use super::remotes::{self, Remotes};
use super::services::backends::Running;
use crate::authority::admit;
use crate::kind::Node;
use crate::world::World;

/// What authentication came to, kept from plan to plan.
#[derive(Default)]
pub(super) struct Auth {
    /// Policies that ask for it, and what their pairs come from.
    policies: Vec<Arc<Policy>>,
    here: BTreeSet<Identity>,
    enforcement: Enforcement,
    pairs: AuthenticatedPairs,
    inputs: Option<Inputs>,
    endpoints: BTreeMap<u64, AuthEndpoint>,
    pub(super) plan: Option<Arc<AuthPlan>>,
    pub(super) notes: Notes,
}

/// What the plan comes from besides the pairs and the endpoints of this node.
struct Inputs {
    trust_domain: TrustDomain,
    grace: Duration,
    ahead: u32,
    auth_port: u16,
    node: String,
    nodes: Arc<BTreeMap<String, Node>>,
    remotes: Arc<remotes::All>,
}

/// What this step is given.
pub(super) struct Given<'a> {
    pub(super) world: &'a World,
    pub(super) node: &'a NodeFacts,
    pub(super) running: &'a [Running<'a>],
    /// Identities of those who run, in their order.
    pub(super) identities: &'a [Identity],
    pub(super) remotes: &'a Remotes,
    pub(super) policies: &'a [Arc<Policy>],
    pub(super) universe: &'a Universe,
    /// Somebody has come or gone whom policies may mean.
    pub(super) moved: bool,
}

impl Auth {
    /// Brings everything up to date; whether there are other notes.
    pub(super) fn update(&mut self, given: &Given<'_>) -> bool {
        let pairs_changed = self.update_pairs(given);
        // With policies that ask there is a plan also while nobody is here whom they mean: who comes finds everything ready.
        if self.policies.is_empty() {
            self.inputs = None;
            self.endpoints.clear();
            self.plan = None;
            return self.settle(given, pairs_changed);
        }
        let inputs = Inputs::new(given);
        let same = self.inputs.as_ref().is_some_and(|earlier| earlier.are(&inputs));
        let endpoints_changed = self.update_endpoints(given);
        if !pairs_changed && same && !endpoints_changed {
            return false;
        }
        let plan = inputs.plan(&self.endpoints, &self.pairs.pairs);
        if self.plan.as_deref() != Some(&plan) {
            self.plan = Some(Arc::new(plan));
        }
        self.inputs = Some(inputs);
        self.settle(given, true)
    }

    fn settle(&mut self, given: &Given<'_>, changed: bool) -> bool {
        if changed {
            self.notes = self.noted(given);
        }
        changed
    }

    /// Endpoints of this node that can prove who they are; whether they are others.
    fn update_endpoints(&mut self, given: &Given<'_>) -> bool {
        let (world, trust_domain) = (given.world, &given.world.configuration.trust_domain);
        let mut earlier = std::mem::take(&mut self.endpoints);
        if self.inputs.as_ref().is_none_or(|inputs| inputs.trust_domain != *trust_domain) {
            earlier.clear();
        }
        let mut changed = false;
        for (running, identity) in given.running.iter().zip(given.identities) {
            let endpoint = running.endpoint;
            if !identity.is_workload() || running.leaving {
                continue;
            }
            // Of one identity is one service account, and so of one workload one ID.
            let known = earlier.remove(&endpoint.instance).filter(|known| {
                let same = (&known.workload, known.identity, known.ipv4, known.ipv6);
                same == (&endpoint.workload, *identity, endpoint.ipv4, endpoint.ipv6)
            });
            changed |= known.is_none();
            let new = || {
                let id = id_of(world, trust_domain, endpoint)?;
                let (workload, ipv4, ipv6) = (endpoint.workload.clone(), endpoint.ipv4, endpoint.ipv6);
                Some(AuthEndpoint { workload, id, identity: *identity, ipv4, ipv6 })
            };
            if let Some(own) = known.or_else(new) {
                self.endpoints.insert(endpoint.instance, own);
            }
        }
        changed || !earlier.is_empty()
    }

    fn update_pairs(&mut self, given: &Given<'_>) -> bool {
        let policies: Vec<_> = given.policies.iter().filter(|policy| asks(policy)).cloned().collect();
        let here: BTreeSet<_> =
            given.identities.iter().copied().filter(|identity| identity.is_workload()).collect();
        let enforcement = given.world.configuration.enforcement;
        let same_policies = policies.len() == self.policies.len()
            && policies.iter().zip(&self.policies).all(|(a, b)| Arc::ptr_eq(a, b));
        if same_policies && !given.moved && here == self.here && enforcement == self.enforcement {
            return false;
        }
        let pairs =
            authenticated_pairs(policies.iter().map(AsRef::as_ref), given.universe, &here, enforcement);
        let changed = !same_policies || pairs != self.pairs;
        (self.policies, self.here, self.enforcement, self.pairs) = (policies, here, enforcement, pairs);
        changed
    }

    fn noted(&self, given: &Given<'_>) -> Notes {
        let mut notes = Notes::default();
        let (world, this) = (given.world, &given.node.name);
        if self.pairs.truncated {
            for policy in &self.policies {
                let most = self.pairs.pairs.len();
                let message = format!(
                    "asks with others for more than {most} pairs of identities to authenticate: those beyond are refused; name fewer"
                );
                notes.error(of_policy(&policy.name), message);
            }
        }
        let port = world.configuration.auth_port;
        if let Some(own) = world.nodes.get(this).filter(|own| self.plan.is_some() && own.auth_port != port) {
            let message = format!(
                "spec.authPort: other nodes are told {}, and this node listens on {port} (authPort of its Configuration)",
                own.auth_port
            );
            notes.error(of_node(this), message);
        }
        notes
    }
}

/// Whether something in a policy asks for authentication.
fn asks(policy: &Policy) -> bool {
    let asking = |rule: &Rule| {
        let allowing = rule.ingress.allow.iter().chain(&rule.egress.allow);
        let mut asking = allowing.map(|statement| statement.authentication);
        asking.any(|authentication| authentication == Authentication::Required)
    };
    policy.rules.iter().any(asking)
}

impl Inputs {
    fn new(given: &Given<'_>) -> Self {
        let (world, configuration) = (given.world, &given.world.configuration);
        Self {
            trust_domain: configuration.trust_domain.clone(),
            grace: configuration.authentication_grace,
            ahead: configuration.authentication_ahead,
            auth_port: configuration.auth_port,
            node: given.node.name.clone(),
            nodes: Arc::clone(&world.nodes),
            remotes: Arc::clone(&given.remotes.all),
        }
    }

    fn are(&self, now: &Self) -> bool {
        self.trust_domain == now.trust_domain
            && self.grace == now.grace
            && self.ahead == now.ahead
            && self.auth_port == now.auth_port
            && self.node == now.node
            && Arc::ptr_eq(&self.nodes, &now.nodes)
            && Arc::ptr_eq(&self.remotes, &now.remotes)
    }

    fn plan(&self, endpoints: &BTreeMap<u64, AuthEndpoint>, pairs: &BTreeSet<IdentityPair>) -> AuthPlan {
        let trust_domain = &self.trust_domain;
        let other = |node: &Node| {
            let addresses = node.addresses.iter().map(|address| SocketAddr::new(*address, node.auth_port));
            let id = trust_domain.node(&node.name).ok()?;
            Some((node.name.clone(), AuthNode { addresses: addresses.collect(), id }))
        };
        let remote = |(name, remote): (&InstanceName, &Arc<remotes::Remote>)| {
            let workload = &remote.workload;
            let id = trust_domain.workload(&workload.name.namespace, &workload.service_account).ok()?;
            let (identity, ipv4, ipv6) = (remote.identity, remote.ipv4, remote.ipv6);
            let workload = workload.name.clone();
            Some((name.clone(), AuthEndpoint { workload, id, identity, ipv4, ipv6 }))
        };
        AuthPlan {
            trust_domain: trust_domain.clone(),
            node: self.node.clone(),
            grace: u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX),
            ahead: self.ahead,
            nodes: self.nodes.values().filter(|node| node.name != self.node).filter_map(other).collect(),
            endpoints: endpoints.clone(),
            remotes: self.remotes.iter().filter_map(remote).collect(),
            pairs: pairs.clone(),
        }
    }
}

/// The ID of an endpoint's workload, by what the administrator says, else by what it was run with. A name that fits into
/// no ID has none, and proves nothing.
pub(super) fn id_of(world: &World, trust_domain: &TrustDomain, endpoint: &Endpoint) -> Option<SpiffeId> {
    let name = &endpoint.workload;
    let account = match world.workloads.get(name) {
        Some(declared) => &declared.service_account,
        None => &endpoint.service_account,
    };
    trust_domain.workload(&name.namespace, account).ok()
}

/// Whom the CA may give which certificate: each node those of the workloads that the administrator has placed there, and
/// where no directory is shared, this node also those of what runs on it.
pub fn placements(world: &World, node: &NodeFacts, endpoints: &[Endpoint]) -> Placements {
    let trust_domain = &world.configuration.trust_domain;
    let mut nodes: BTreeMap<String, BTreeSet<SpiffeId>> =
        world.nodes.keys().map(|name| (name.clone(), BTreeSet::new())).collect();
    if !world.shared {
        let own = nodes.entry(node.name.clone()).or_default();
        let admitted = endpoints.iter().filter(|it| admit(world, &node.name, &it.workload).is_ok());
        own.extend(admitted.filter_map(|endpoint| id_of(world, trust_domain, endpoint)));
    }
    for workload in world.workloads.values() {
        let placed = workload.node.as_ref().and_then(|placed| nodes.get_mut(placed));
        let id = trust_domain.workload(&workload.name.namespace, &workload.service_account);
        if let (Some(ids), Ok(id)) = (placed, id) {
            ids.insert(id);
        }
    }
    Placements { trust_domain: trust_domain.clone(), nodes }
}

/// What there is to say of authentication wherever it is asked for: of nodes that nobody could reach or believe.
pub(super) fn review(world: &World, notes: &mut Notes) {
    let asking: Vec<_> = world.policies.iter().filter(|policy| asks(policy)).collect();
    if !world.shared || asking.is_empty() {
        return;
    }
    if world.nodes.is_empty() {
        for policy in asking {
            let message = "asks for authentication, and there is no Node object: a workload can be proven on its own node only";
            notes.warn(of_policy(&policy.name), message.to_owned());
        }
    }
    for node in world.nodes.values() {
        if node.addresses.is_empty() {
            let message =
                "spec.addresses: missing: where its auth-agent listens is not known to the other nodes";
            notes.warn(of_node(&node.name), message.to_owned());
        }
    }
}
