//! Rulesets of the workloads that run here.
//!
//! Kept from plan to plan. One is compiled again only if a policy about its subject is another one, or if someone has
//! come or gone whom such a policy may mean.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::labels::LabelSet;
use mesh::policy::universe::concerns;
use mesh::policy::{Enforcement, Policy, Ruleset, Universe, compile};
use mesh::workload::NamedPorts;

use super::subjects::Subjects;
use crate::authority::Standing;
use crate::status::selects;

/// With more changes at once than this, to compile everything again is cheaper than to find what they touch.
const MANY: usize = 64;

/// Someone who has come, gone, or given other names to his ports: an identity, and the prefix of one that is outside.
pub(super) struct Mover {
    pub(super) identity: Identity,
    pub(super) labels: LabelSet,
    pub(super) prefix: Option<IpNet>,
}

/// Rulesets by subject.
#[derive(Default)]
pub(super) struct Rulesets {
    enforcement: Enforcement,
    /// By identity, which stands for the labels, and by the subject's own named ports.
    known: BTreeMap<(Identity, NamedPorts), Known>,
    /// Different labels often come to the same rules: by digest.
    shared: BTreeMap<u64, Vec<Arc<Ruleset>>>,
}

struct Known {
    labels: LabelSet,
    /// Those that select it.
    policies: Vec<Arc<Policy>>,
    /// Ingress and egress.
    rulesets: [Arc<Ruleset>; 2],
    /// They must be compiled again.
    stale: bool,
}

impl Rulesets {
    /// Marks what these changes touch: policies that are new or were there, and those who moved.
    pub(super) fn touch(&mut self, policies: &[Arc<Policy>], movers: &[Mover], enforcement: Enforcement) {
        if self.enforcement != enforcement || policies.len() + movers.len() > MANY {
            self.enforcement = enforcement;
            return self.known.values_mut().for_each(|known| known.stale = true);
        }
        let concerned = self.concerned(movers);
        for known in self.known.values_mut() {
            known.stale |= policies.iter().any(|policy| selects(policy, &known.labels))
                || known.policies.iter().any(|policy| concerned.contains(&Arc::as_ptr(policy)));
        }
    }

    /// Policies about workloads of this node that may mean one of these.
    fn concerned(&self, movers: &[Mover]) -> BTreeSet<*const Policy> {
        if movers.is_empty() {
            return BTreeSet::new();
        }
        let all: BTreeMap<_, _> =
            self.known.values().flat_map(|known| &known.policies).map(|it| (Arc::as_ptr(it), it)).collect();
        let concerned = |(_, policy): &(*const Policy, &Arc<Policy>)| {
            movers.iter().any(|it| concerns(policy, it.identity, &it.labels, it.prefix.as_ref()))
        };
        all.into_iter().filter(concerned).map(|(address, _)| address).collect()
    }

    /// Ingress and egress of each of these subjects; what belongs to no subject is forgotten.
    pub(super) fn of(
        &mut self,
        subjects: &[(Identity, Standing)],
        policies: &Subjects,
        universe: &Universe,
    ) -> Vec<[Arc<Ruleset>; 2]> {
        let mut earlier = std::mem::take(&mut self.known);
        let mut all = Vec::with_capacity(subjects.len());
        for (identity, standing) in subjects {
            let key = (*identity, standing.ports.clone());
            if let Some(known) = self.known.get(&key) {
                all.push(known.rulesets.clone());
                continue;
            }
            let known = match earlier.remove(&key) {
                Some(known) if !known.stale => known,
                known => self.compile(standing, known.map(|known| known.rulesets), policies, universe),
            };
            all.push(known.rulesets.clone());
            self.known.insert(key, known);
        }
        self.forget();
        all
    }

    fn compile(
        &mut self,
        standing: &Standing,
        earlier: Option<[Arc<Ruleset>; 2]>,
        subjects: &Subjects,
        universe: &Universe,
    ) -> Known {
        let policies: Vec<_> = subjects
            .candidates(&standing.labels)
            .filter(|it| selects(it, &standing.labels))
            .cloned()
            .collect();
        let mut earlier = earlier.into_iter().flatten();
        let rulesets = [TrafficDirection::Ingress, TrafficDirection::Egress].map(|direction| {
            let ruleset = compile::ruleset(
                &standing.labels,
                &standing.ports,
                direction,
                policies.iter().map(AsRef::as_ref),
                universe,
                self.enforcement,
            );
            match earlier.next().filter(|earlier| **earlier == ruleset) {
                Some(earlier) => earlier,
                None => self.share(ruleset),
            }
        });
        Known { labels: standing.labels.clone(), policies, rulesets, stale: false }
    }

    fn share(&mut self, ruleset: Ruleset) -> Arc<Ruleset> {
        let alike = self.shared.entry(ruleset.digest()).or_default();
        if let Some(known) = alike.iter().find(|known| ***known == ruleset) {
            return Arc::clone(known);
        }
        let ruleset = Arc::new(ruleset);
        alike.push(Arc::clone(&ruleset));
        ruleset
    }

    /// Lets go of rulesets that are in force nowhere, when they are many.
    fn forget(&mut self) {
        if self.shared.len() > 4 * self.known.len() + MANY {
            self.shared.retain(|_, alike| {
                alike.retain(|ruleset| Arc::strong_count(ruleset) > 1);
                !alike.is_empty()
            });
        }
    }
}
