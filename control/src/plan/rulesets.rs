//! Rulesets of the workloads that run here, and the HTTP rules beside them.
//!
//! Kept from plan to plan. One is compiled again only if a policy about its subject is another one, or if someone has
//! come or gone whom such a policy may mean.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::l7::L7Rules;
use mesh::labels::LabelSet;
use mesh::policy::universe::concerns;
use mesh::policy::{Enforcement, Policy, Ruleset, Universe, compile, l7};
use mesh::workload::NamedPorts;

use super::secrets;
use super::subjects::Subjects;
use crate::authority::Standing;
use crate::status::selects;

/// With more changes at once than this, to compile everything again is cheaper than to find what they touch.
const MANY: usize = 64;

const BOTH: [TrafficDirection; 2] = [TrafficDirection::Ingress, TrafficDirection::Egress];

/// Someone who has come, gone, or given other names to his ports: an identity, and the prefix of one that is outside.
pub(super) struct Mover {
    pub(super) identity: Identity,
    pub(super) labels: LabelSet,
    pub(super) prefix: Option<IpNet>,
}

/// What a subject is judged by, ingress and egress.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) rulesets: [Arc<Ruleset>; 2],
    /// By the L7 proxy; `None` where nothing goes by it.
    pub(super) l7: [Option<Arc<L7Rules>>; 2],
    /// The Secrets that these name.
    pub(super) secrets: Arc<secrets::Needed>,
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
    rules: Rules,
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
    ) -> Vec<Rules> {
        let mut earlier = std::mem::take(&mut self.known);
        let mut all = Vec::with_capacity(subjects.len());
        for (identity, standing) in subjects {
            let key = (*identity, standing.ports.clone());
            if let Some(known) = self.known.get(&key) {
                all.push(known.rules.clone());
                continue;
            }
            let known = match earlier.remove(&key) {
                Some(known) if !known.stale => known,
                known => self.compile(standing, known.map(|known| known.rules), policies, universe),
            };
            all.push(known.rules.clone());
            self.known.insert(key, known);
        }
        self.forget();
        all
    }

    fn compile(
        &mut self,
        standing: &Standing,
        earlier: Option<Rules>,
        subjects: &Subjects,
        universe: &Universe,
    ) -> Known {
        let policies: Vec<_> = subjects
            .candidates(&standing.labels)
            .filter(|it| selects(it, &standing.labels))
            .cloned()
            .collect();
        let (rulesets, l7) = earlier.map(|it| (it.rulesets, it.l7)).unzip();
        let (mut rulesets, l7) = (rulesets.into_iter().flatten(), l7.unwrap_or_default());
        let (labels, ports, enforcement) = (&standing.labels, &standing.ports, self.enforcement);
        let all = || policies.iter().map(AsRef::as_ref);
        let rulesets = BOTH.map(|direction| {
            let ruleset = compile::ruleset(labels, ports, direction, all(), universe, enforcement);
            match rulesets.next().filter(|earlier| **earlier == ruleset) {
                Some(earlier) => earlier,
                None => self.share(ruleset),
            }
        });
        let [ingress, egress] = l7;
        let l7 = [(BOTH[0], ingress), (BOTH[1], egress)].map(|(direction, earlier)| {
            let rules = l7::rules(labels, ports, direction, all(), universe, enforcement)?;
            Some(earlier.filter(|earlier| **earlier == rules).unwrap_or_else(|| Arc::new(rules)))
        });
        let rules = Rules { secrets: Arc::new(secrets::needed(&l7)), rulesets, l7 };
        Known { labels: standing.labels.clone(), policies, rules, stale: false }
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
