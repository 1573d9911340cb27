//! Secrets that TLS inspections name: what of them the proxy is told, and what is to be said where they do not suffice.
//!
//! Promise: with an endpoint go the items that its own rules name and no others. What is not there does not go: the proxy refuses
//! what it would need for it, and the policy's status says which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::l7::{L7Rules, SecretItems, SecretName, TlsContext, TlsSecret};
use mesh::policy::{Policy, Rule};

use super::notes::{Notes, of_policy};
use crate::kind::Secret;
use crate::world::World;

type Secrets = BTreeMap<SecretName, Arc<Secret>>;

/// Names of items by Secret.
pub(super) type Needed = BTreeMap<SecretName, BTreeSet<String>>;

/// What rules name. Looks once at what ranges of ports share.
pub(super) fn needed(rules: &[Option<Arc<L7Rules>>; 2]) -> Needed {
    let (mut met, mut needed) = (BTreeSet::new(), Needed::new());
    for ports in rules.iter().flatten().flat_map(|rules| &rules.ports) {
        if ports.inspected.is_empty() || !met.insert(ports.inspected.as_ptr()) {
            continue;
        }
        for (_, context) in ports.inspected.iter().flat_map(|one| one.inspection.contexts()) {
            let items = context.items().map(|(item, _)| item.to_owned());
            needed.entry(context.secret.clone()).or_default().extend(items);
        }
    }
    needed
}

/// What of it is there, during one plan: endpoints that need the same share it.
#[derive(Default)]
pub(super) struct Told(BTreeMap<Arc<Needed>, Vec<TlsSecret>>);

impl Told {
    pub(super) fn of(&mut self, needed: &Arc<Needed>, secrets: &Secrets) -> Vec<TlsSecret> {
        if needed.is_empty() {
            return Vec::new();
        }
        let found =
            || needed.iter().filter_map(|(name, items)| Some(told(secrets.get(name)?, items))).collect();
        self.0.entry(Arc::clone(needed)).or_insert_with(found).clone()
    }
}

fn told(secret: &Secret, items: &BTreeSet<String>) -> TlsSecret {
    let all = secret.items.0.iter().filter(|(item, _)| items.contains(*item));
    let items = all.map(|(item, text)| (item.clone(), text.clone())).collect();
    TlsSecret { name: secret.name.clone(), items: SecretItems(Arc::new(items)) }
}

/// What there is to say of them, kept from plan to plan.
#[derive(Default)]
pub(super) struct Memo {
    policies: Arc<Vec<Arc<Policy>>>,
    secrets: Arc<Secrets>,
    pub(super) notes: Notes,
}

impl Memo {
    /// Brings it up to date; whether there are other notes.
    pub(super) fn update(&mut self, world: &World) -> bool {
        if Arc::ptr_eq(&self.policies, &world.policies) && Arc::ptr_eq(&self.secrets, &world.secrets) {
            return false;
        }
        (self.policies, self.secrets) = (Arc::clone(&world.policies), Arc::clone(&world.secrets));
        let mut notes = Notes::default();
        review(world, &mut notes);
        let changed = self.notes != notes;
        self.notes = notes;
        changed
    }
}

/// Says of policies which Secrets, and which items of them, are missing.
pub(super) fn review(world: &World, notes: &mut Notes) {
    for policy in world.policies.iter() {
        for (field, context) in contexts(policy) {
            for fault in faults(field, context, &world.secrets) {
                notes.warn(of_policy(&policy.name), format!("{field}: Secret {} {fault}", context.secret));
            }
        }
    }
}

/// Those of all statements, each once.
fn contexts<'a>(policy: &'a Policy) -> BTreeSet<(&'static str, &'a TlsContext)> {
    let allowing = |rule: &'a Rule| rule.ingress.allow.iter().chain(&rule.egress.allow);
    let demands = policy.rules.iter().flat_map(allowing).filter_map(|statement| statement.l7.as_ref());
    demands.filter_map(|demand| demand.inspection()).flat_map(|inspection| inspection.contexts()).collect()
}

/// To clients a chain is shown, with its key; a server is known by its authorities, and shown a chain only with its key.
fn faults(field: &str, context: &TlsContext, secrets: &Secrets) -> Vec<String> {
    let refused = "connections by it are refused";
    let Some(secret) = secrets.get(&context.secret) else {
        return vec![format!("is not there: {refused}")];
    };
    let is_there = |item: &str| secret.items.0.contains_key(item) || secret.others.contains(item);
    let items = context.items();
    let [(_, authorities), (chain, is_chain_named), (key, is_key_named)] = items;
    let needed = match field {
        "originatingTLS" => [true, is_chain_named || is_there(key), is_key_named || is_there(chain)],
        _ => [authorities, true, true],
    };
    let fault = |((item, _), is_needed): ((&str, bool), bool)| {
        let is_other = secret.others.contains(item);
        match (is_other, is_needed) {
            (true, true) => Some(format!("has {item}, which is no text, as PEM is: {refused}")),
            (true, false) => Some(format!("has {item}, which is no text, as PEM is: it is left out")),
            (false, true) if !is_there(item) => Some(format!("has no item {item}: {refused}")),
            (false, _) => None,
        }
    };
    items.into_iter().zip(needed).filter_map(fault).collect()
}
