//! Who must authenticate to whom: the pairs of identities for which some statement requires it.
//!
//! A statement of ingress and one of egress make the same pair, for a proof is of both ends. Ports and protocols are
//! left out of account, denials too: what is here is proven, not allowed. Where a subject is not on this node the pair
//! is here all the same, for its node asks this one for the proof.

use std::collections::BTreeSet;

use super::universe::Audience;
use super::{Authentication, Enforcement, Policy, Rule, Statement, Universe};
use crate::auth::IdentityPair;
use crate::flow::TrafficDirection;
use crate::identity::Identity;

/// Pairs that a node can be told; of more the rest is left out, and those pairs are refused.
const MOST_PAIRS: usize = 1 << 20;

/// The pairs of identities that must authenticate each other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AuthenticatedPairs {
    /// Workloads' identities, at least one of each pair on this node.
    pub pairs: BTreeSet<IdentityPair>,
    /// There were more of them than a node can be told: traffic of the others is refused where it must be
    /// authenticated.
    pub truncated: bool,
}

/// The pairs of workloads' identities for which one of these policies requires authentication, as far as one of the two
/// is `here`: an identity of an endpoint of this node.
///
/// The result for several policies is the union of the results for each, unless there are too many pairs.
pub fn authenticated_pairs<'a>(
    policies: impl IntoIterator<Item = &'a Policy>,
    universe: &Universe,
    here: &BTreeSet<Identity>,
    enforcement: Enforcement,
) -> AuthenticatedPairs {
    let mut found = AuthenticatedPairs::default();
    if enforcement == Enforcement::Never {
        return found;
    }
    let here: Vec<Identity> = here.iter().copied().filter(|identity| identity.is_workload()).collect();
    for rule in policies.into_iter().flat_map(|policy| &policy.rules) {
        for statement in requiring(rule) {
            found.add(rule, statement, universe, &here, MOST_PAIRS);
        }
    }
    found
}

/// The statements of a rule that require authentication.
fn requiring(rule: &Rule) -> impl Iterator<Item = &Statement> {
    let sides = [TrafficDirection::Ingress, TrafficDirection::Egress].map(|direction| rule.side(direction));
    let allowing = sides.into_iter().flat_map(|side| &side.allow);
    allowing.filter(|statement| statement.effect().authentication() == Some(Authentication::Required))
}

impl AuthenticatedPairs {
    fn add(
        &mut self,
        rule: &Rule,
        statement: &Statement,
        universe: &Universe,
        here: &[Identity],
        most: usize,
    ) {
        let subjects = Audience::These(universe.workloads_selected(&rule.subject));
        let peers = match universe.audience(&statement.peers) {
            Audience::Any => universe.workloads(),
            Audience::These(peers) => peers.into_iter().filter(|peer| peer.is_workload()).collect(),
        };
        let peers = Audience::These(peers);
        for (own, others) in [(&subjects, &peers), (&peers, &subjects)] {
            let Audience::These(others) = others else { continue };
            for own in own.among(here) {
                for other in others {
                    let pair = IdentityPair::new(own, *other);
                    if self.pairs.len() >= most && !self.pairs.contains(&pair) {
                        self.truncated = true;
                        return;
                    }
                    self.pairs.insert(pair);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::arbitrary::{Random, World, peer_ports};
    use crate::policy::oracle::{self, Reason};

    fn everybody(world: &World) -> BTreeSet<Identity> {
        world.workloads.iter().map(|workload| workload.identity).collect()
    }

    #[test]
    fn whoever_the_oracle_asks_to_authenticate_is_among_the_pairs() {
        let mut seen = 0;
        for seed in 0..400 {
            let world = World::new(seed);
            let universe = world.universe();
            let found =
                authenticated_pairs(&world.policies, &universe, &everybody(&world), world.enforcement);
            let random = &mut Random::new(seed);
            for _ in 0..40 {
                let (subject, peer) = (random.pick(&world.workloads), random.pick(&world.workloads));
                let direction = random.pick(&[TrafficDirection::Ingress, TrafficDirection::Egress]);
                let ports = peer_ports(&peer.ports);
                let packet = subject.packet(random, direction, &peer, &ports);
                let reason = oracle::judge(&packet, &world.policies, world.enforcement);
                if let Reason::Authenticated(_) = reason {
                    seen += 1;
                    let pair = IdentityPair::new(subject.identity, peer.identity);
                    assert!(found.pairs.contains(&pair), "{reason:?}\nseed {seed}: {packet:#?}");
                }
            }
        }
        assert!(seen > 400, "{seen}");
    }

    #[test]
    fn each_policy_adds_its_own_and_each_pair_has_an_end_here() {
        for seed in 0..400 {
            let world = World::new(seed);
            let universe = world.universe();
            let everybody = everybody(&world);
            let here: BTreeSet<_> = everybody.iter().copied().take(2).collect();
            let of = |policies: &[Policy], here| {
                authenticated_pairs(policies, &universe, here, world.enforcement).pairs
            };
            let whole = of(&world.policies, &everybody);
            let each: BTreeSet<_> = world
                .policies
                .iter()
                .flat_map(|policy| of(std::slice::from_ref(policy), &everybody))
                .collect();
            assert_eq!(whole, each, "seed {seed}");
            let touches = |pair: &IdentityPair| {
                let (one, other) = pair.identities();
                here.contains(&one) || here.contains(&other)
            };
            let local: BTreeSet<_> = whole.into_iter().filter(touches).collect();
            assert_eq!(of(&world.policies, &here), local, "seed {seed}");
        }
    }

    #[test]
    fn with_too_many_pairs_the_rest_is_left_out_and_said_so() {
        let world = (0..).map(World::new).find(|world| {
            let all = everybody(world);
            authenticated_pairs(&world.policies, &world.universe(), &all, world.enforcement).pairs.len() > 3
        });
        let world = world.unwrap();
        let (universe, here): (_, Vec<_>) = (world.universe(), everybody(&world).into_iter().collect());
        let mut found = AuthenticatedPairs::default();
        for rule in world.policies.iter().flat_map(|policy| &policy.rules) {
            for statement in requiring(rule) {
                found.add(rule, statement, &universe, &here, 3);
            }
        }
        assert!(found.truncated && found.pairs.len() == 3, "{found:?}");
    }
}
