//! What the L7 proxy judges by: the HTTP rules, names of TLS servers and inspections of TLS of all policies that select a
//! subject, and who need not keep to them.
//!
//! The second pure function over the same policies as [`super::compile`]: peers and ports are found by the same means, so
//! what the kernel sends to the proxy the proxy has rules for. A range of ports is here if a statement with such a demand
//! holds in it; statements without, which the kernel answers itself at other ports, stand beside them as access to
//! anything. Denials are not here: the kernel knows them, and lets nobody come this far.
//!
//! Cost: (statement with rules, peer) pairs, the boundaries of their ports, and what differs between the ranges that these make
//! (`ranges`), which has a bound.

mod ranges;

use self::ranges::ranges;
use super::compile::Selecting;
use super::compile::ports::{Cell, Effect};
use super::universe::Audience;
use super::{Enforcement, Peers, Policy, Side, Statement, Universe};
use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::l7::{L7Demand, L7Rules, WORKLOAD_PARTS};
use crate::labels::LabelSet;
use crate::workload::NamedPorts;

/// What the proxy judges one direction of a subject by; `None`: nothing of it goes by the proxy.
///
/// Where nothing denies by default everything is allowed directly, and demands of L7 say nothing. Rules that come to more than
/// [`WORKLOAD_PARTS`] are given as far as that, and a little beyond, so that whoever enforces them refuses them: from there on
/// they let nothing pass.
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
    let ports = ranges(&claims, WORKLOAD_PARTS).0;
    (!ports.is_empty()).then_some(L7Rules { ports })
}

/// What the rules of one side come to ([`Measure`](crate::l7::Measure)) with no other policy beside them, ports by name left out; it is not
/// counted further than `most`. Peers are taken to be others in each statement.
pub fn parts(side: &Side, direction: TrafficDirection, most: usize) -> usize {
    let mut claims = Vec::new();
    let allow = side.allow.iter().filter(|statement| statement.effect().authentication().is_some());
    for (statement, number) in allow.zip(Identity::FIRST_WORKLOAD..) {
        let audience = match &statement.peers {
            Peers::Any => Audience::Any,
            Peers::Selected(_) => Audience::These(Identity::new(number).into_iter().collect()),
        };
        let fixed = statement.fixed_cells(direction, &NamedPorts::new());
        let cells = fixed.into_iter().filter_map(Cell::of_tcp).collect();
        claims.push(Claim { audience, demand: statement.l7.as_ref(), cells });
    }
    ranges(&claims, most).1
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
