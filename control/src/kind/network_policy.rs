//! `NetworkPolicy`, `networking.k8s.io/v1`.
//!
//! As its documentation has it: between peers OR, between the selectors of one peer AND, peers and ports both; a list
//! that is empty or missing restricts nothing; a direction is isolated when `policyTypes` says so.

use mesh::policy::{Authentication, Peer, Peers, PortMatch, Rule, Selector, Side, Statement, protocol};

use super::selector::{Keys, in_any_namespace, in_namespace, selector};
use super::{ports, prefix};
use crate::yaml::{At, Fields};

/// The one rule of a policy.
pub(super) fn rules(namespace: &str, fields: &Fields<'_>) -> Vec<Rule> {
    let spec = fields.require("spec", "a mapping with podSelector");
    let rule = spec.and_then(|spec| spec.mapping(|fields| rule(namespace, fields)));
    rule.into_iter().collect()
}

fn rule(namespace: &str, fields: &Fields<'_>) -> Rule {
    let subject = fields.require("podSelector", "a selector ({} selects every pod of the namespace)");
    let mut subject = subject.map(|at| selector(&at, Keys::Kubernetes)).unwrap_or_default();
    subject.0.push(in_namespace(namespace));
    let ingress = fields.get("ingress");
    let egress = fields.get("egress");
    let (types_ingress, types_egress) = policy_types(fields, egress.as_ref());
    let side = |list: Option<At<'_>>, isolated: bool, peers: &'static str, kind: &str| {
        let Some(list) = list else { return Side { default_deny: isolated, ..Side::default() } };
        let items = list.list();
        if !isolated && !items.is_empty() {
            list.warn(format_args!("has no effect: policyTypes does not list {kind}"));
        }
        let allow: Vec<_> = items.iter().filter_map(|item| statement(item, namespace, peers)).collect();
        Side { default_deny: isolated, allow: if isolated { allow } else { Vec::new() }, deny: Vec::new() }
    };
    Rule {
        subject,
        ingress: side(ingress, types_ingress, "from", "Ingress"),
        egress: side(egress, types_egress, "to", "Egress"),
    }
}

/// Absent or empty: `Ingress`, and `Egress` if there are egress rules.
fn policy_types(fields: &Fields<'_>, egress: Option<&At<'_>>) -> (bool, bool) {
    let has_egress = egress.is_some_and(|at| !at.list().is_empty());
    let listed = fields.get("policyTypes").map(|at| at.list()).unwrap_or_default();
    let choices = [(true, "Ingress"), (false, "Egress")];
    let types: Vec<_> = listed.iter().filter_map(|at| at.one_of(&choices)).collect();
    match types.is_empty() {
        true => (true, has_egress),
        false => (types.contains(&true), types.contains(&false)),
    }
}

fn statement(at: &At<'_>, namespace: &str, peers: &'static str) -> Option<Statement> {
    at.mapping(|fields| {
        let peers = fields.get(peers).map(|at| at.list()).unwrap_or_default();
        let selected: Vec<_> = peers.iter().filter_map(|at| peer(at, namespace)).collect();
        let ports = fields.get("ports").map(|at| at.list()).unwrap_or_default();
        Statement {
            peers: if peers.is_empty() { Peers::Any } else { Peers::Selected(selected) },
            ports: ports.iter().filter_map(port).collect(),
            authentication: Authentication::None,
            needs: None,
            l7: None,
            field: None,
        }
    })
}

fn peer(at: &At<'_>, namespace: &str) -> Option<Peer> {
    at.mapping(|fields| {
        let pods = fields.get("podSelector");
        let namespaces = fields.get("namespaceSelector");
        let block = fields.get("ipBlock");
        if let Some(block) = &block {
            if pods.is_some() || namespaces.is_some() {
                block.error("stands alone: a peer is an ipBlock or selectors, not both");
            }
            return ip_block(block);
        }
        if pods.is_none() && namespaces.is_none() {
            fields.whole().expected("podSelector, namespaceSelector or ipBlock");
            return None;
        }
        let mut both = pods.map(|at| selector(&at, Keys::Kubernetes)).unwrap_or_default();
        match namespaces {
            None => both.0.push(in_namespace(namespace)),
            Some(at) => {
                let Selector(of_namespace) = selector(&at, Keys::Namespaces);
                both.0.extend(of_namespace);
                both.0.push(in_any_namespace());
            }
        }
        Some(Peer::Endpoints(both))
    })?
}

fn ip_block(at: &At<'_>) -> Option<Peer> {
    at.mapping(|fields| {
        let cidr = fields.require("cidr", "an address prefix")?;
        prefix::without(&cidr, fields.get("except"))
    })?
}

fn port(at: &At<'_>) -> Option<PortMatch> {
    at.mapping(|fields| {
        let protocol = fields.get("protocol").map(|at| at.one_of(&ports::KUBERNETES));
        let given = fields.get("port");
        let port = given.as_ref().map(|at| ports::port(at, false));
        let end = ports::end(fields, port.as_ref().and_then(Option::as_ref));
        let protocol = protocol.unwrap_or(Some(protocol::TCP))?;
        let port = match port {
            Some(None) => return None,
            Some(port) => port,
            None => None,
        };
        Some(ports::matching(Some(protocol), port, end))
    })?
}
