//! Which fields of which policies say what the L7 proxy is told.

use std::collections::BTreeMap;

use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::l7::L7Demand;
use mesh::policy::{PolicyName, PortMatch, Statement, protocol};

use crate::plan::Planned;

/// Of what an endpoint's L7 rules consist of, a part.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct L7Part {
    /// In one direction; `None`: both.
    pub direction: Option<TrafficDirection>,
    /// At these ports, both ends inclusive; `None`: all.
    pub ports: Option<(u16, u16)>,
    /// This very demand; `None`: each.
    pub demand: Option<L7Demand>,
    /// This field of an item that has several for the proxy, such as `rules.http` beside `terminatingTLS`; `None`: its first.
    pub field: Option<&'static str>,
}

/// The fields that say it of workloads with an identity, by policy: `spec.ingress[0].toPorts[0].rules.http`. Of a port that is
/// named, whose number may be any, they are among them.
pub fn l7_fields(planned: &Planned, identity: Identity, part: &L7Part) -> BTreeMap<PolicyName, Vec<String>> {
    let mut found: BTreeMap<PolicyName, Vec<String>> = BTreeMap::new();
    let Some(labels) = planned.plan.identities.get(&identity) else { return found };
    let directions = [TrafficDirection::Ingress, TrafficDirection::Egress];
    for policy in planned.policies.iter() {
        for rule in policy.rules.iter().filter(|rule| rule.subject.matches(labels)) {
            let meant = directions.iter().filter(|it| part.direction.is_none_or(|one| one == **it));
            let statements = meant.flat_map(|direction| &rule.side(*direction).allow);
            let fields = statements.filter_map(|statement| part.field(statement));
            let fields: Vec<String> = fields.collect();
            if !fields.is_empty() {
                found.entry(policy.name.clone()).or_default().extend(fields);
            }
        }
    }
    found
}

impl L7Part {
    fn field(&self, statement: &Statement) -> Option<String> {
        let (demand, field) = (statement.l7.as_ref()?, statement.field.as_ref()?);
        let is_there = self.ports.is_none_or(|ports| {
            statement.ports.is_empty() || statement.ports.iter().any(|it| may_be_among(it, ports))
        });
        let is_meant = is_there && self.demand.as_ref().is_none_or(|one| one == demand);
        let name = match demand {
            L7Demand::Http(_) => "rules.http",
            L7Demand::ServerNames(_) => "serverNames",
            L7Demand::Inspection(inspection) => {
                let first = inspection.contexts().map(|(field, _)| field).next();
                self.field.or(first).unwrap_or("terminatingTLS")
            }
        };
        is_meant.then(|| format!("{field}.{name}"))
    }
}

fn may_be_among(port: &PortMatch, (from, to): (u16, u16)) -> bool {
    match port {
        PortMatch::Range { protocol, first, last } => {
            protocol.is_none_or(|number| number == protocol::TCP) && *first <= to && from <= *last
        }
        PortMatch::Named { .. } => true,
        PortMatch::Icmp { .. } | PortMatch::Protocol(_) => false,
    }
}
