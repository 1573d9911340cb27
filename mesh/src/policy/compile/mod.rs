//! Compilation: all policies that select a subject, into one flat ruleset.
//!
//! Pure functions. The order of policies, rules and statements changes nothing, and equal meaning gives equal rulesets
//! as far as one identity's entries go, so that endpoints can share them.
//!
//! Each statement claims ports for an effect (`ports::Effect`) at some peers. Claims at an identity and claims at
//! *any* identity stay in tables of their own and need not know of each other: the kernel asks both, deny wins over
//! allow, allow over the way by the proxy, that over unmet, and of all that admit the stricter authentication counts ([`Ruleset::judge`]). Copying the claims of *any* into every identity's table was rejected:
//! ten thousand identities would pay for one "any peer, port 80", and peers not known yet would be missed.
//! Within one table everything is resolved here (`ports`).
//!
//! Identities with the same claims get their table computed once. The cost is the number of (statement, peer) pairs
//! plus the size of the result; no step compares policies, prefixes or ports with each other pairwise.

pub(super) mod ports;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use self::ports::{Cell, Claimant, Effect, Said, Slot};
use super::universe::Audience;
use super::{
    Authentication, Enforcement, Match, Outcome, Peer, Peers, Policy, PolicyName, PortMatch, Ruleset, Side,
    Statement, Universe, protocol,
};
use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::labels::{LabelSet, Source};
use crate::workload::NamedPorts;

/// Every address prefix, exceptions included, that needs an identity of its own in the ipcache. The two default routes
/// have theirs already ([`Identity::WORLD_IPV4`], [`Identity::WORLD_IPV6`]).
pub fn prefixes<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> BTreeSet<IpNet> {
    let rules = policies.into_iter().flat_map(|policy| &policy.rules);
    let sides = rules.flat_map(|rule| [&rule.ingress, &rule.egress]);
    let statements = sides.flat_map(|side| side.allow.iter().chain(&side.deny));
    let peers = statements.flat_map(|statement| match &statement.peers {
        Peers::Any => &[],
        Peers::Selected(peers) => peers.as_slice(),
    });
    let named = peers.flat_map(|peer| match peer {
        Peer::Cidr { cidr, except } => [cidr].into_iter().chain(except).collect(),
        Peer::Endpoints(_) | Peer::Entity(_) => Vec::new(),
    });
    named.map(IpNet::trunc).filter(|prefix| prefix.prefix_len() != 0).collect()
}

/// What one direction of a subject is judged by.
///
/// `universe` must know an identity for each of [`prefixes`] of *all* policies; an address inside a prefix that it does
/// not know counts as part of the next wider one.
pub fn ruleset<'a>(
    subject: &LabelSet,
    subject_ports: &NamedPorts,
    direction: TrafficDirection,
    policies: impl IntoIterator<Item = &'a Policy>,
    universe: &Universe,
    enforcement: Enforcement,
) -> Ruleset {
    let selecting = Selecting::new(subject, direction, policies, enforcement);
    let mut draft = Draft::new(universe, direction, subject_ports, selecting.names());
    draft.claim_what_needs_no_policy(selecting.enforced);
    for (name, side) in &selecting.sides {
        for statement in &side.deny {
            draft.claim(name, Effect::Deny, statement);
        }
        for statement in side.allow.iter().filter(|statement| selecting.counts(statement)) {
            draft.claim(name, statement.effect(), statement);
        }
    }
    let entries = draft.entries();
    Ruleset { enforced: selecting.enforced, denied_by_default: selecting.denied_by_default(), entries }
}

/// The sides of all rules that select a subject.
pub(super) struct Selecting<'a> {
    pub(super) enforced: bool,
    pub(super) sides: Vec<(&'a PolicyName, &'a Side)>,
}

impl<'a> Selecting<'a> {
    pub(super) fn new(
        subject: &LabelSet,
        direction: TrafficDirection,
        policies: impl IntoIterator<Item = &'a Policy>,
        enforcement: Enforcement,
    ) -> Self {
        if enforcement == Enforcement::Never {
            return Self { enforced: false, sides: Vec::new() };
        }
        let rules =
            policies.into_iter().flat_map(|policy| policy.rules.iter().map(|rule| (&policy.name, rule)));
        let selecting = rules.filter(|(_, rule)| rule.subject.matches(subject));
        let sides: Vec<_> = selecting.map(|(name, rule)| (name, rule.side(direction))).collect();
        // Like Cilium: whose labels are not known yet is not open to all until they are.
        let unlabelled = subject.get(Source::Reserved, "init").is_some();
        let enforced = unlabelled
            || enforcement == Enforcement::Always
            || sides.iter().any(|(_, side)| side.default_deny);
        Self { enforced, sides }
    }

    /// Whether an allow statement says anything: where all is allowed anyway it can only ask for authentication.
    pub(super) fn counts(&self, statement: &Statement) -> bool {
        self.enforced || statement.effect().authentication() == Some(Authentication::Required)
    }

    fn names(&self) -> BTreeSet<&'a PolicyName> {
        self.sides.iter().map(|(name, _)| *name).collect()
    }

    pub(super) fn denied_by_default(&self) -> Vec<PolicyName> {
        let denying = self.sides.iter().filter(|(_, side)| side.default_deny);
        denying.map(|(name, _)| *name).collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }
}

impl Statement {
    /// What it does as an allow statement.
    pub(super) fn effect(&self) -> Effect {
        match (self.needs, &self.l7) {
            (Some(needs), _) => Effect::Unmet(needs),
            (None, Some(_)) => Effect::proxy(self.authentication),
            (None, None) => Effect::allow(self.authentication),
        }
    }

    /// The ports it names that are the same for every peer: all but, for egress, those named by name.
    pub(super) fn fixed_cells(&self, direction: TrafficDirection, subject_ports: &NamedPorts) -> Vec<Cell> {
        if self.ports.is_empty() {
            return vec![Cell::EVERYTHING];
        }
        let mut cells = Vec::new();
        for port in &self.ports {
            match port {
                PortMatch::Range { protocol, first, last } => {
                    cells.extend(carriers(*protocol).map(|protocol| Cell::of(protocol, *first, *last)));
                }
                PortMatch::Named { protocol, name } if direction == TrafficDirection::Ingress => {
                    cells.extend(carriers(*protocol).filter_map(|protocol| {
                        let port = subject_ports.get(&(name.clone(), protocol))?;
                        Some(Cell::of(protocol, *port, *port))
                    }));
                }
                PortMatch::Named { .. } => {}
                PortMatch::Icmp { protocol, icmp_type } => {
                    let (first, last) = icmp_type.map_or((0, u16::MAX), |kind| (kind.into(), kind.into()));
                    cells.push(Cell::of(*protocol, first, last));
                }
                PortMatch::Protocol(protocol) => cells.push(Cell::of(*protocol, 0, u16::MAX)),
            }
        }
        cells
    }

    /// The ports it names by name, each with the peers that give it this name.
    pub(super) fn peers_cells<'a>(
        &'a self,
        universe: &'a Universe,
    ) -> impl Iterator<Item = (Cell, &'a [Identity])> {
        let named = self.ports.iter().filter_map(|port| match port {
            PortMatch::Named { protocol, name } => Some((*protocol, name)),
            PortMatch::Range { .. } | PortMatch::Icmp { .. } | PortMatch::Protocol(_) => None,
        });
        let by_protocol =
            named.flat_map(|(protocol, name)| carriers(protocol).map(move |carrier| (carrier, name)));
        by_protocol.flat_map(|(protocol, name)| {
            let ports = universe.ports_named(name, protocol);
            ports.map(move |(port, peers)| (Cell::of(protocol, port, port), peers))
        })
    }
}

/// The protocols a port match is about.
fn carriers(protocol: Option<u8>) -> impl Iterator<Item = u8> {
    let unnamed = protocol.is_none().then_some(protocol::WITH_PORTS);
    unnamed.into_iter().flatten().chain(protocol)
}

/// The entries of those with the same claims.
type Table = Vec<(Slot, Outcome)>;

/// A claim on some ports.
struct Claim {
    claimant: Claimant,
    cells: Vec<Cell>,
}

/// A ruleset in the making: claims, and who they are about.
struct Draft<'a> {
    universe: &'a Universe,
    direction: TrafficDirection,
    subject_ports: &'a NamedPorts,
    /// In order; a policy's rank is its index.
    names: Vec<&'a PolicyName>,
    claims: Vec<Claim>,
    /// Indices of the claims at any identity.
    at_any: Vec<u32>,
    /// Who is claimed at, and the index of the claim.
    at: Vec<(Identity, u32)>,
}

impl<'a> Draft<'a> {
    fn new(
        universe: &'a Universe,
        direction: TrafficDirection,
        subject_ports: &'a NamedPorts,
        names: BTreeSet<&'a PolicyName>,
    ) -> Self {
        let names = names.into_iter().collect();
        let (claims, at_any, at) = (Vec::new(), Vec::new(), Vec::new());
        Self { universe, direction, subject_ports, names, claims, at_any, at }
    }

    /// Everything, where nothing restricts the direction; else the node's own way to its workloads: the kubelet's
    /// probes come that way, and Cilium keeps it open too (`allow-localhost`).
    fn claim_what_needs_no_policy(&mut self, enforced: bool) {
        let audience = match (enforced, self.direction) {
            (false, _) => Audience::Any,
            (true, TrafficDirection::Ingress) => Audience::These(vec![Identity::HOST]),
            (true, TrafficDirection::Egress) => return,
        };
        self.add(&audience, (Effect::allow(Authentication::None), None), vec![Cell::EVERYTHING]);
    }

    fn claim(&mut self, name: &PolicyName, effect: Effect, statement: &Statement) {
        let rank = self.names.binary_search(&name).ok().and_then(|rank| u32::try_from(rank).ok());
        let audience = self.universe.audience(&statement.peers);
        let fixed = statement.fixed_cells(self.direction, self.subject_ports);
        self.add(&audience, (effect, rank), effect.cells(fixed));
        if self.direction == TrafficDirection::Egress {
            for (cell, peers) in statement.peers_cells(self.universe) {
                let peers = Audience::These(audience.among(peers));
                self.add(&peers, (effect, rank), effect.cells(vec![cell]));
            }
        }
    }

    fn add(&mut self, audience: &Audience, claimant: Claimant, cells: Vec<Cell>) {
        let Ok(index) = u32::try_from(self.claims.len()) else { return };
        if cells.is_empty() {
            return;
        }
        self.claims.push(Claim { claimant, cells });
        match audience {
            Audience::Any => self.at_any.push(index),
            Audience::These(peers) => self.at.extend(peers.iter().map(|peer| (*peer, index))),
        }
    }

    fn entries(mut self) -> BTreeMap<Match, Outcome> {
        let mut at = std::mem::take(&mut self.at);
        at.sort_unstable();
        let claims: Vec<u32> = at.iter().map(|(_, claim)| *claim).collect();
        let mut tables: BTreeMap<&[u32], Table> = BTreeMap::new();
        let mut outcomes = BTreeMap::new();
        let mut entries = Vec::new();
        let any = (None, self.at_any.as_slice());
        let mut begin = 0;
        let each = at.chunk_by(|(one, _), (other, _)| one == other).map(|of_one| {
            let end = begin + of_one.len();
            let of_one =
                (of_one.first().map(|(identity, _)| *identity), claims.get(begin..end).unwrap_or_default());
            begin = end;
            of_one
        });
        for (identity, claims) in std::iter::once(any).chain(each) {
            let table = tables.entry(claims).or_insert_with(|| self.table(claims, &mut outcomes));
            entries.extend(table.iter().map(|(slot, outcome)| {
                let Slot { protocol, port, port_bits } = *slot;
                (Match { identity, protocol, port, port_bits }, outcome.clone())
            }));
        }
        entries.into_iter().collect()
    }

    fn table(&self, claims: &[u32], outcomes: &mut BTreeMap<Said, Outcome>) -> Table {
        let claims = claims.iter().filter_map(|claim| self.claims.get(*claim as usize));
        let cells = claims.flat_map(|claim| claim.cells.iter().map(|cell| (claim.claimant, cell)));
        let entries = ports::entries(cells).into_iter();
        entries.map(|(slot, said)| (slot, self.outcome(said, outcomes))).collect()
    }

    /// Equal outcomes share their list of policies.
    fn outcome(&self, said: Said, outcomes: &mut BTreeMap<Said, Outcome>) -> Outcome {
        if let Some(known) = outcomes.get(&said) {
            return known.clone();
        }
        let by: Arc<[PolicyName]> = said
            .by
            .iter()
            .filter_map(|rank| self.names.get(*rank as usize).map(|name| (*name).clone()))
            .collect();
        let authentication = said.effect.authentication();
        let needs = match said.effect {
            Effect::Unmet(needs) => Some(needs),
            Effect::Deny | Effect::Allow(_) | Effect::Proxy(_) => None,
        };
        let outcome = Outcome {
            allow: authentication.is_some(),
            by,
            needs,
            authentication: authentication.unwrap_or_default(),
            proxied: matches!(said.effect, Effect::Proxy(_)),
        };
        outcomes.insert(said, outcome.clone());
        outcome
    }
}
