//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`, `cilium.io/v2`.
//!
//! The checks are those of Cilium's own `Sanitize` and of its CRD: what it refuses is refused here. What this version
//! cannot enforce is refused too, unless the model can say "denied until there is an enforcer" (layer 7).

mod authentication;
mod expression;
mod http;
mod icmp;
mod layer7;
mod peers;
mod server_names;
mod services;
mod tls_context;
mod to_ports;

use mesh::flow::TrafficDirection;
use mesh::labels::{NAMESPACE, Source};
use mesh::policy::{
    Authentication, Operator, Peers, PortMatch, Requirement, Rule, Selector, Side, Statement,
};

use self::authentication::Mode;
use self::layer7::Demand;
use super::selector::{Keys, in_namespace, selector};
use crate::yaml::{At, Fields};
pub use services::{ToService, Which};

/// Where selectors of a policy look.
#[derive(Clone, Copy, Debug)]
struct Scope<'a> {
    /// The policy's namespace; none for a clusterwide policy.
    namespace: Option<&'a str>,
    /// The subject is `reserved:init`: peers of a clusterwide policy are then not narrowed to workloads.
    init: bool,
    /// What the HTTP rules of the object may still have.
    taken: &'a http::Taken,
}

/// A direction of traffic, with its spelling in the fields' names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Ingress,
    Egress,
}

impl From<Direction> for TrafficDirection {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}

/// The rules of `spec` and of each of `specs`, and those of their peers that are services.
pub(super) fn rules(namespace: Option<&str>, fields: &Fields<'_>) -> (Vec<Rule>, Vec<ToService>) {
    let (mut rules, mut services, taken) = (Vec::new(), Vec::new(), http::Taken::default());
    let spec = fields.get("spec");
    let specs = fields.get("specs").map(|at| (at.list(), at));
    if spec.is_none() && specs.as_ref().is_none_or(|(list, _)| list.is_empty()) {
        fields.whole().error("expected spec, or specs with at least one rule");
    }
    for at in spec.into_iter().chain(specs.map(|(list, _)| list).unwrap_or_default()) {
        if let Some((one, of_services)) = rule(&at, namespace, &taken) {
            let place = rules.len();
            services.extend(of_services.into_iter().map(|service| ToService { rule: place, ..service }));
            rules.push(one);
        }
    }
    (rules, services)
}

fn rule(at: &At<'_>, namespace: Option<&str>, taken: &http::Taken) -> Option<(Rule, Vec<ToService>)> {
    at.mapping(|fields| {
        if let Some(description) = fields.get("description") {
            description.text("a text");
        }
        fields.ignore(&["labels", "log"]);
        let subject = subject(fields, namespace);
        let init = subject.0.iter().any(|r| r.source == Some(Source::Reserved) && r.key == "init");
        let scope = Scope { namespace, init, taken };
        let (mut ingress, _) = side(fields, scope, Direction::Ingress);
        let (mut egress, services) = side(fields, scope, Direction::Egress);
        let empty = |side: &Side| side.allow.is_empty() && side.deny.is_empty();
        if empty(&ingress) && empty(&egress) && !at.failed() {
            let message = "empty: expected a rule in ingress, ingressDeny, egress or egressDeny (ingress: [{}] denies all)";
            fields.whole().error(message);
        }
        default_deny(fields, &mut ingress, &mut egress);
        (Rule { subject, ingress, egress }, services)
    })
}

/// `endpointSelector`, narrowed to the policy's namespace.
fn subject(fields: &Fields<'_>, namespace: Option<&str>) -> Selector {
    fields.refuse(
        &["nodeSelector"],
        "policy for the host itself is not enforced by this version; use endpointSelector",
    );
    let Some(at) = fields.get("endpointSelector") else {
        fields.whole().error("endpointSelector is missing; {} selects every endpoint in reach");
        return Selector::default();
    };
    let mut subject = selector(&at, Keys::Cilium);
    let Some(namespace) = namespace else { return subject };
    let elsewhere = |requirement: &Requirement| {
        names_namespace(requirement) && requirement.operator != Operator::In(vec![namespace.to_owned()])
    };
    if subject.0.iter().any(elsewhere) {
        let fix = "a CiliumNetworkPolicy selects endpoints of its own namespace; use a CiliumClusterwideNetworkPolicy";
        at.error(format_args!("names another namespace than {namespace}: {fix}"));
    }
    subject.0.push(in_namespace(namespace));
    subject
}

fn names_namespace(requirement: &Requirement) -> bool {
    requirement.key == NAMESPACE && matches!(requirement.source, None | Some(Source::K8s))
}

/// `enableDefaultDeny`; without it a direction denies by default if it has rules of either sign.
fn default_deny(fields: &Fields<'_>, ingress: &mut Side, egress: &mut Side) {
    for side in [&mut *ingress, &mut *egress] {
        side.default_deny = !side.allow.is_empty() || !side.deny.is_empty();
    }
    let Some(at) = fields.get("enableDefaultDeny") else { return };
    at.mapping(|fields| {
        for (name, side) in [("ingress", ingress), ("egress", egress)] {
            let Some(at) = fields.get(name) else { continue };
            side.default_deny = at.boolean();
            if side.default_deny {
                continue;
            }
            let demands = || side.allow.iter().filter_map(|statement| statement.l7.as_ref());
            if demands().any(|demand| demand.http().is_some()) {
                at.warn("rules.http restricts nothing then, unless another policy denies by default: every request is allowed");
            }
            if demands().any(|demand| demand.server_names().is_some()) {
                at.warn("serverNames restrict nothing then, unless another policy denies by default: every connection is allowed");
            }
            if demands().any(|demand| demand.inspection().is_some()) {
                at.warn("terminatingTLS and originatingTLS do nothing then, unless another policy denies by default: connections pass as they are");
            }
        }
    });
}

fn side(fields: &Fields<'_>, scope: Scope<'_>, direction: Direction) -> (Side, Vec<ToService>) {
    let (allow, deny) = match direction {
        Direction::Ingress => ("ingress", "ingressDeny"),
        Direction::Egress => ("egress", "egressDeny"),
    };
    let mut services = Vec::new();
    let mut read = |name: &'static str, denies: bool| -> Vec<Statement> {
        let mut all = Vec::new();
        for item in fields.get(name).map(|at| at.list()).unwrap_or_default() {
            let (statements, of_item) = statements(&item, scope, direction, denies);
            for (statement, which) in (all.len()..all.len() + statements.len())
                .flat_map(|statement| of_item.iter().map(move |which| (statement, which.clone())))
            {
                services.push(ToService { rule: 0, denies, statement, which });
            }
            all.extend(statements);
        }
        all
    };
    let side = Side { default_deny: false, allow: read(allow, false), deny: read(deny, true) };
    if let Some(at) = fields.get(allow) {
        scope.taken.ranges(&at, &side, direction.into());
    }
    (side, services)
}

/// One item of a list of rules, and those of its peers that are services. Each of its `toPorts` becomes a statement of
/// its own, for it may need a proxy where its neighbour does not.
fn statements(
    at: &At<'_>,
    scope: Scope<'_>,
    direction: Direction,
    denies: bool,
) -> (Vec<Statement>, Vec<Which>) {
    let read = at.mapping(|fields| {
        let given = peers::peers(fields, scope, direction);
        let mode = if denies { None } else { authentication::mode(fields) };
        let mut ports = ports(fields, scope, direction, denies);
        let peers = match given.peers {
            Some(peers) => peers,
            // `- {}` selects for default deny and allows nobody; with ports it is about everyone.
            None if ports.is_empty() => {
                if denies {
                    fields.whole().warn("denies nothing: it names neither peers nor ports; fromEntities or toEntities: [all] denies all");
                }
                Peers::Selected(Vec::new())
            }
            None => Peers::Any,
        };
        if direction == Direction::Egress && ports.iter().any(|(_, demand)| demand.l7.is_some()) {
            layer7::warn_of_host(fields, &peers);
        }
        if ports.is_empty() {
            ports.push((Vec::new(), Demand::default()));
        }
        let (peers, services, authentication) = match mode {
            None | Some((Mode::Disabled, _)) => (peers, given.services, Authentication::None),
            Some((Mode::Required, at)) => {
                authentication::warn_of_strangers(&at, &peers, direction);
                (peers, given.services, Authentication::Required)
            }
            Some((Mode::TestAlwaysFail, at)) => {
                at.warn("test-always-fail: authentication of every peer fails, so the rule allows nobody");
                (Peers::Selected(Vec::new()), Vec::new(), Authentication::None)
            }
        };
        let statement = |(ports, Demand { needs, l7, field })| {
            Statement { peers: peers.clone(), ports, authentication, needs, l7, field }
        };
        (ports.into_iter().map(statement).collect(), services)
    });
    read.unwrap_or_default()
}

/// `toPorts` and `icmps` of a rule, each with what else must hold.
fn ports(
    fields: &Fields<'_>,
    scope: Scope<'_>,
    direction: Direction,
    denies: bool,
) -> Vec<(Vec<PortMatch>, Demand)> {
    let icmps = fields.get("icmps");
    let to_ports = fields.get("toPorts");
    if let (Some(icmps), Some(_)) = (&icmps, &to_ports) {
        icmps.error("stands without toPorts; write a rule of its own for the ports");
    }
    let mut ports = Vec::new();
    for item in to_ports.as_ref().map(|at| at.list()).unwrap_or_default() {
        ports.extend(to_ports::to_ports(&item, scope, direction, denies));
    }
    let types = icmps.as_ref().map(icmp::icmps).unwrap_or_default();
    if !types.is_empty() {
        ports.push((types, Demand::default()));
    }
    ports
}
