//! What the L7 proxy judges by: the HTTP rules and names of TLS servers of all policies that select a subject, and who need
//! not keep to them.
//!
//! The second pure function over the same policies as [`super::compile`]: peers and ports are found by the same means, so
//! what the kernel sends to the proxy the proxy has rules for. A range of ports is here if a statement with such a demand
//! holds in it; statements without, which the kernel answers itself at other ports, stand beside them as access to
//! anything. Denials are not here: the kernel knows them, and lets nobody come this far.
//!
//! Cost: (statement with rules, peer) pairs, and the ranges that their boundaries make.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::compile::Selecting;
use super::compile::ports::{Cell, Effect};
use super::protocol::TCP;
use super::universe::Audience;
use super::{Enforcement, Policy, Statement, Universe};
use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::l7::{L7Access, L7Demand, L7Ports, L7Rules, L7Tls};
use crate::labels::LabelSet;
use crate::workload::NamedPorts;

/// What the proxy judges one direction of a subject by; `None`: nothing of it goes by the proxy.
///
/// Where nothing denies by default everything is allowed directly, and demands of L7 say nothing.
pub fn rules<'a>(
    subject: &LabelSet,
    subject_ports: &NamedPorts,
    direction: TrafficDirection,
    policies: impl IntoIterator<Item = &'a Policy>,
    universe: &Universe,
    enforcement: Enforcement,
) -> Option<L7Rules> {
    let selecting = Selecting::new(subject, direction, policies, enforcement);
    let statements = || selecting.sides.iter().flat_map(|(_, side)| &side.allow);
    let has_rules = |statement: &Statement| matches!(statement.effect(), Effect::Proxy(_));
    if !selecting.enforced || !statements().any(has_rules) {
        return None;
    }
    let mut claims = Vec::new();
    if direction == TrafficDirection::Ingress {
        let node = Audience::These(vec![Identity::HOST]);
        claims.push(Claim { audience: node, demand: None, cells: vec![Cell::EVERYTHING] });
    }
    for statement in statements().filter(|statement| statement.effect().authentication().is_some()) {
        claim(statement, direction, subject_ports, universe, &mut claims);
    }
    let ports = ranges(&claims);
    (!ports.is_empty()).then_some(L7Rules { ports })
}

/// Who may do what, and where.
struct Claim<'a> {
    audience: Audience,
    /// `None`: anything.
    demand: Option<&'a L7Demand>,
    /// Of TCP.
    cells: Vec<Cell>,
}

fn claim<'a>(
    statement: &'a Statement,
    direction: TrafficDirection,
    subject_ports: &NamedPorts,
    universe: &Universe,
    claims: &mut Vec<Claim<'a>>,
) {
    let demand = statement.l7.as_ref();
    let audience = universe.audience(&statement.peers);
    if direction == TrafficDirection::Egress {
        for (cell, peers) in statement.peers_cells(universe) {
            let cells: Vec<_> = cell.of_tcp().into_iter().collect();
            claims.push(Claim { audience: Audience::These(audience.among(peers)), demand, cells });
        }
    }
    let fixed = statement.fixed_cells(direction, subject_ports);
    claims.push(Claim { audience, demand, cells: fixed.into_iter().filter_map(Cell::of_tcp).collect() });
}

/// The ranges in which somebody is held to rules, least first; equal neighbours are one.
fn ranges(claims: &[Claim<'_>]) -> Vec<L7Ports> {
    let nobody = |claim: &Claim<'_>| matches!(&claim.audience, Audience::These(peers) if peers.is_empty());
    let claims: Vec<_> = claims.iter().filter(|claim| !nobody(claim)).collect();
    let with_rules = || claims.iter().filter(|claim| claim.demand.is_some()).flat_map(|claim| &claim.cells);
    let mut edges: BTreeSet<u32> = BTreeSet::new();
    for cell in claims.iter().flat_map(|claim| &claim.cells) {
        edges.extend([u32::from(cell.first), u32::from(cell.last) + 1]);
    }
    let edges: Vec<u32> = edges.into_iter().collect();
    let mut ranges: Vec<L7Ports> = Vec::new();
    for (first, after) in edges.iter().zip(edges.iter().skip(1)) {
        let (Ok(first), Ok(last)) = (u16::try_from(*first), u16::try_from(after - 1)) else { continue };
        if !with_rules().any(|cell| cell.holds(TCP, first)) {
            continue;
        }
        let Some((access, tls)) = access(claims.iter().copied().filter(|it| it.holds(first))) else {
            continue;
        };
        match ranges.last_mut().filter(|before| before.last.checked_add(1) == Some(first)) {
            Some(before) if before.access == access && before.tls == tls => before.last = last,
            _ => ranges.push(L7Ports { first, last, access, tls }),
        }
    }
    ranges
}

impl Claim<'_> {
    fn holds(&self, port: u16) -> bool {
        self.cells.iter().any(|cell| cell.holds(TCP, port))
    }
}

/// What these claims come to at one port; `None` if anybody may do anything. Whoever may do anything is not named again
/// among those who may do something.
fn access<'a>(claims: impl Iterator<Item = &'a Claim<'a>>) -> Option<(Vec<L7Access>, Vec<L7Tls>)> {
    /// `None`: anybody.
    type Peers = Option<BTreeSet<Identity>>;
    let mut by_demand: BTreeMap<Option<&L7Demand>, Peers> = BTreeMap::new();
    for claim in claims {
        let peers = by_demand.entry(claim.demand).or_insert_with(|| Some(BTreeSet::new()));
        match &claim.audience {
            Audience::Any => *peers = None,
            Audience::These(these) => {
                if let Some(peers) = peers {
                    peers.extend(these);
                }
            }
        }
    }
    let free = match by_demand.get(&None) {
        Some(None) => return None,
        Some(Some(free)) => free.clone(),
        None => BTreeSet::new(),
    };
    let (mut access, mut tls) = (Vec::new(), Vec::new());
    let mut is_judged = false;
    for (demand, peers) in by_demand {
        let peers: Option<Arc<[Identity]>> = match (demand, peers) {
            (_, None) => None,
            (None, Some(peers)) => Some(peers.into_iter().collect()),
            (Some(_), Some(peers)) => Some(peers.difference(&free).copied().collect()),
        };
        if peers.as_ref().is_some_and(|peers| peers.is_empty()) {
            continue;
        }
        is_judged |= demand.is_some();
        match demand {
            None => access.push(L7Access { peers, http: None }),
            Some(L7Demand::Http(rules)) => access.push(L7Access { peers, http: Some(rules.clone()) }),
            Some(L7Demand::ServerNames(names)) => tls.push(L7Tls { peers, names: names.clone() }),
        }
    }
    is_judged.then_some((access, tls))
}
