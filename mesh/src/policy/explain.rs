//! Explanation: why a packet passes or not, in words.
//!
//! Pure. It finds peers and ports by the very functions that compile rulesets, so it cannot tell another story than the
//! kernel; a property test holds it to that. One direction at a time: a flow between two workloads is judged at both.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::compile::Selecting;
use super::compile::ports::{Cell, Effect};
use super::protocol::{ICMP, ICMPV6, TCP, WITH_PORTS};
use super::{
    Asked, Authentication, Enforcement, Needs, Operator, Peer, Peers, Policy, PolicyName, PortMatch,
    Requirement, Selector, Statement, Universe,
};
use crate::flow::TrafficDirection;
use crate::identity::Identity;
use crate::l7::{HttpRules, L7Demand};
use crate::labels::{LabelSet, NAMESPACE};
use crate::workload::NamedPorts;

/// One end of the flow that is asked about.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// What the answer is to call it: `deathstar`, `192.0.2.1`.
    pub name: &'a str,
    /// Its identity; [`Universe::outside`] knows that of an address outside.
    pub identity: Identity,
    /// Its labels.
    pub labels: &'a LabelSet,
    /// Its named ports; of the peer those in the universe count.
    pub ports: &'a NamedPorts,
}

/// What is asked: may this first packet pass at the subject?
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Whose policies are asked.
    pub subject: End<'a>,
    /// To or from the subject.
    pub direction: TrafficDirection,
    /// The other end.
    pub peer: End<'a>,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, or ICMP type.
    pub port: u16,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The verdict: that of the compiled ruleset, but for whoever is asked to authenticate and cannot: he is denied.
    pub allowed: bool,
    /// What the peer must prove before it is allowed.
    pub asked: Asked,
    /// It goes by way of the L7 proxy, which judges each request.
    pub proxied: bool,
    /// The policies whose statements decide; empty where none does.
    pub by: BTreeSet<PolicyName>,
    /// The verdict and its reason in one line, then one for each statement of each policy that selects the subject.
    pub lines: Vec<String>,
}

/// Answers the question.
pub fn explain<'a>(
    question: &Question<'_>,
    policies: impl IntoIterator<Item = &'a Policy>,
    universe: &Universe,
    enforcement: Enforcement,
) -> Explanation {
    let selecting = Selecting::new(question.subject.labels, question.direction, policies, enforcement);
    let findings = question.findings(&selecting, universe);
    let decision = question.decide(&selecting, &findings);
    let by = findings.iter().filter(|finding| {
        finding.fit == Fit::Both && decision.effect().is_some_and(|effect| finding.effect.decides(effect))
    });
    let by: BTreeSet<PolicyName> = by.map(|finding| finding.policy.clone()).collect();
    let first = question.summary(&decision, &by, &selecting, &findings);
    let namespace = question.subject.labels.namespace();
    let lines =
        std::iter::once(first).chain(findings.iter().map(|finding| finding.line(namespace))).collect();
    let asked = question.asked(&decision);
    let allowed = decision.allows() && asked != Asked::NoPrincipal;
    let proxied = allowed && matches!(decision.effect(), Some(Effect::Proxy(_)));
    Explanation { allowed, asked, proxied, by, lines }
}

/// The lists of HTTP rules that the subject's proxy holds this peer to, and whose they are: of statements that admit it.
pub fn http_rules<'a>(
    question: &Question<'_>,
    policies: impl IntoIterator<Item = &'a Policy>,
    universe: &Universe,
    enforcement: Enforcement,
) -> Vec<(&'a PolicyName, &'a HttpRules)> {
    let selecting = Selecting::new(question.subject.labels, question.direction, policies, enforcement);
    let findings = question.findings(&selecting, universe).into_iter();
    let admitting = findings.filter(|finding| finding.fit == Fit::Both);
    admitting.filter_map(|finding| Some((finding.policy, finding.statement.l7.as_ref()?.http()?))).collect()
}

/// What decides.
enum Decision {
    NotEnforced,
    Statements(Effect),
    /// The node's own way to its workloads.
    Node,
    Default,
}

impl Decision {
    fn allows(&self) -> bool {
        matches!(self, Self::NotEnforced | Self::Node | Self::Statements(Effect::Allow(_) | Effect::Proxy(_)))
    }

    fn effect(&self) -> Option<Effect> {
        match self {
            Self::Statements(effect) => Some(*effect),
            Self::NotEnforced | Self::Node | Self::Default => None,
        }
    }
}

/// How a statement fits the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    Both,
    OtherPorts,
    OtherPeers,
}

/// A statement of a policy that selects the subject, and how it fits.
struct Finding<'a> {
    policy: &'a PolicyName,
    effect: Effect,
    statement: &'a Statement,
    fit: Fit,
}

impl Finding<'_> {
    fn line(&self, namespace: Option<&str>) -> String {
        let by = self.statement.l7.as_ref().map(by).unwrap_or_default();
        let does = match self.effect {
            Effect::Deny => "denies".to_owned(),
            Effect::Allow(Reverse(Authentication::None)) => "allows".to_owned(),
            Effect::Allow(Reverse(Authentication::Required)) => "allows, once authenticated,".to_owned(),
            Effect::Proxy(Reverse(Authentication::None)) => format!("allows, by {by},"),
            Effect::Proxy(Reverse(Authentication::Required)) => {
                format!("allows, once authenticated, by {by},")
            }
            Effect::Unmet(Needs::L7Proxy) => "would allow, by L7 rules,".to_owned(),
        };
        let ports = match self.statement.ports.as_slice() {
            [] => "any port".to_owned(),
            ports => joined(ports, ", "),
        };
        let fit = match self.fit {
            Fit::Both => "matches",
            Fit::OtherPorts => "other port",
            Fit::OtherPeers => "other peer",
        };
        let peers = without_namespace(&self.statement.peers, namespace);
        let what = self.statement.l7.as_ref().map(what).unwrap_or_default();
        format!("  {} {does} {peers} at {ports}{what}: {fit}", short(self.policy, namespace))
    }
}

impl Question<'_> {
    fn findings<'a>(&self, selecting: &Selecting<'a>, universe: &Universe) -> Vec<Finding<'a>> {
        let of_side = |(policy, side): &(&'a PolicyName, &'a super::Side)| {
            let denies = side.deny.iter().map(|statement| (Effect::Deny, statement));
            let allows = side.allow.iter().map(|statement| (statement.effect(), statement));
            let policy = *policy;
            denies
                .chain(allows)
                .map(move |(effect, statement)| (policy, effect, statement))
                .collect::<Vec<_>>()
        };
        let statements = selecting.sides.iter().flat_map(of_side);
        let found = statements.map(|(policy, effect, statement)| {
            let fit = self.fit(effect, statement, universe);
            Finding { policy, effect, statement, fit }
        });
        found.collect()
    }

    fn fit(&self, effect: Effect, statement: &Statement, universe: &Universe) -> Fit {
        let peer = self.peer.identity;
        if !universe.audience(&statement.peers).holds(peer) {
            return Fit::OtherPeers;
        }
        let here = |cell: &Cell| cell.holds(self.protocol, self.port);
        let named_here =
            |(cell, peers): (Cell, &[Identity])| here(&cell) && peers.binary_search(&peer).is_ok();
        // The proxy takes nothing but TCP.
        let can_be = !matches!(effect, Effect::Proxy(_)) || self.protocol == TCP;
        let named =
            || self.direction == TrafficDirection::Egress && statement.peers_cells(universe).any(named_here);
        let fixed = || statement.fixed_cells(self.direction, self.subject.ports).iter().any(here);
        let fits = can_be && (fixed() || named());
        if fits { Fit::Both } else { Fit::OtherPorts }
    }

    fn decide(&self, selecting: &Selecting<'_>, findings: &[Finding<'_>]) -> Decision {
        let fitting = findings.iter().filter(|finding| finding.fit == Fit::Both);
        let mut effects: Vec<Effect> = fitting.map(|finding| finding.effect).collect();
        effects.sort_unstable();
        let from_node = self.direction == TrafficDirection::Ingress && self.peer.identity == Identity::HOST;
        match Effect::of_all(effects.into_iter()) {
            Some(Effect::Deny) => Decision::Statements(Effect::Deny),
            // What needs no policy allows directly: beside it a statement can only ask for authentication.
            Some(Effect::Proxy(Reverse(required @ Authentication::Required)))
                if from_node || !selecting.enforced =>
            {
                Decision::Statements(Effect::allow(required))
            }
            Some(required) if required.authentication() == Some(Authentication::Required) => {
                Decision::Statements(required)
            }
            _ if !selecting.enforced => Decision::NotEnforced,
            Some(allow @ Effect::Allow(_)) => Decision::Statements(allow),
            _ if from_node => Decision::Node,
            Some(other) => Decision::Statements(other),
            None => Decision::Default,
        }
    }

    fn asked(&self, decision: &Decision) -> Asked {
        match decision.effect() {
            Some(effect) => {
                effect.authentication().map_or(Asked::Nothing, |it| it.of(self.peer.identity, self.direction))
            }
            None => Asked::Nothing,
        }
    }

    /// The first line.
    fn summary(
        &self,
        decision: &Decision,
        by: &BTreeSet<PolicyName>,
        selecting: &Selecting<'_>,
        findings: &[Finding<'_>],
    ) -> String {
        let (subject, peer, port) = (self.subject.name, self.peer.name, self.port_text());
        let policies = names(by, self.subject.labels.namespace());
        let direction = match self.direction {
            TrafficDirection::Ingress => "ingress",
            TrafficDirection::Egress => "egress",
        };
        match decision {
            Decision::NotEnforced => format!("allowed: no policy restricts {direction} of {subject}"),
            Decision::Node => format!("allowed: the node may always reach its own {subject}"),
            Decision::Statements(
                effect @ (Effect::Allow(Reverse(authentication)) | Effect::Proxy(Reverse(authentication))),
            ) => match self.asked(decision) {
                Asked::Nothing if *authentication == Authentication::None => {
                    format!("allowed{}: by {policies}, for {peer} at {port}", way(*effect, findings))
                }
                Asked::Nothing => {
                    format!(
                        "allowed: by {policies}, for {peer} at {port}; the node itself need not authenticate"
                    )
                }
                Asked::Proof => {
                    let way = way(*effect, findings);
                    format!("allowed{way}, authentication required: by {policies}, for {peer} at {port}")
                }
                Asked::NoPrincipal => {
                    format!(
                        "denied: {policies} allows {peer} at {port} only if authenticated, and only workloads can be"
                    )
                }
            },
            Decision::Statements(Effect::Deny) => {
                format!("denied: by a deny rule of {policies}, for {peer} at {port}")
            }
            Decision::Statements(Effect::Unmet(Needs::L7Proxy)) => {
                format!(
                    "denied: {policies} allows {peer} at {port} only by L7 rules, which nothing enforces yet"
                )
            }
            Decision::Default => format!("denied: {}", self.unmatched(direction, selecting, findings)),
        }
    }

    /// Who selects the subject, and what of the packet no rule matches.
    fn unmatched(&self, direction: &str, selecting: &Selecting<'_>, findings: &[Finding<'_>]) -> String {
        let subject = self.subject.name;
        let selecting: BTreeSet<PolicyName> = selecting.denied_by_default().into_iter().collect();
        if selecting.is_empty() {
            return format!("policy is always enforced, and none allows {direction} of {subject}");
        }
        let select = if selecting.len() == 1 { "selects" } else { "select" };
        let selecting = names(&selecting, self.subject.labels.namespace());
        let allows = findings.iter().filter(|finding| finding.effect != Effect::Deny);
        let mut right_peer = allows.clone().filter(|finding| finding.fit == Fit::OtherPorts);
        if right_peer.next().is_some() {
            return format!(
                "{selecting} {select} {subject}, no rule for {} matches {}",
                self.peer.name,
                self.port_text()
            );
        }
        let asked = allows.flat_map(|finding| selectors(&finding.statement.peers));
        format!("{selecting} {select} {subject}, no rule matches {}", self.peer_text(asked))
    }

    /// The peer by those of its labels that somebody asked for; by its name where there are none.
    fn peer_text<'a>(&self, asked: impl Iterator<Item = &'a Selector>) -> String {
        let peer_namespace = self.peer.labels.namespace();
        let same_namespace = peer_namespace == self.subject.labels.namespace();
        let keys: BTreeSet<&str> = asked.flat_map(|selector| &selector.0).map(|it| it.key.as_str()).collect();
        let keys = keys.into_iter().filter(|key| !(same_namespace && *key == NAMESPACE));
        let labels: Vec<String> =
            keys.filter_map(|key| Some(format!("{key}={}", self.peer.labels.get_any(key)?))).collect();
        if labels.is_empty() { self.peer.name.to_owned() } else { labels.join(",") }
    }

    fn port_text(&self) -> String {
        let protocol = self.protocol;
        let here = match protocol {
            ICMP | ICMPV6 => PortMatch::Icmp { protocol, icmp_type: u8::try_from(self.port).ok() },
            _ if WITH_PORTS.contains(&protocol) => {
                PortMatch::Range { protocol: Some(protocol), first: self.port, last: self.port }
            }
            _ => PortMatch::Protocol(protocol),
        };
        here.to_string()
    }
}

/// What the proxy judges by.
fn by(demand: &L7Demand) -> &'static str {
    match demand {
        L7Demand::Http(_) => "HTTP rules",
        L7Demand::ServerNames(_) => "server names",
        L7Demand::Inspection(_) => "TLS inspection",
    }
}

/// What may be requested or called, the first few.
fn what(demand: &L7Demand) -> String {
    const SHOWN: usize = 3;
    fn first<T: ToString>(items: &[T]) -> String {
        let more = match items.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" or {more} more"),
        };
        let first: Vec<String> =
            items.iter().take(SHOWN).map(|item| format!("[{}]", item.to_string())).collect();
        format!(" for {}{more}", first.join(" or "))
    }
    match demand {
        L7Demand::Http(rules) => first(rules),
        L7Demand::ServerNames(names) => first(names),
        L7Demand::Inspection(inspection) => {
            let names = inspection.names.as_ref().map(|names| first(names)).unwrap_or_default();
            names + &inspection.http.as_ref().map(|rules| first(rules)).unwrap_or_default()
        }
    }
}

/// How it gets there, where that is not directly.
fn way(effect: Effect, findings: &[Finding<'_>]) -> String {
    let Effect::Proxy(_) = effect else { return String::new() };
    let fitting = findings.iter().filter(|finding| finding.fit == Fit::Both);
    let by: BTreeSet<&str> = fitting.filter_map(|finding| finding.statement.l7.as_ref()).map(by).collect();
    format!(" by {}, through the L7 proxy", by.into_iter().collect::<Vec<_>>().join(" or "))
}

fn selectors(peers: &Peers) -> impl Iterator<Item = &Selector> {
    let peers = match peers {
        Peers::Any => &[],
        Peers::Selected(peers) => peers.as_slice(),
    };
    peers.iter().filter_map(|peer| match peer {
        Peer::Endpoints(selector) => Some(selector),
        Peer::Entity(_) | Peer::Cidr { .. } => None,
    })
}

/// The peers without what goes without saying: that they are of the subject's namespace, where more is asked of them.
fn without_namespace(peers: &Peers, namespace: Option<&str>) -> Peers {
    let is_own = |requirement: &Requirement| match &requirement.operator {
        Operator::In(values) => {
            requirement.key == NAMESPACE && values.iter().map(String::as_str).eq(namespace)
        }
        Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => false,
    };
    let Peers::Selected(peers) = peers else { return Peers::Any };
    let shorter = peers.iter().cloned().map(|peer| match peer {
        Peer::Endpoints(mut selector) if !selector.0.iter().all(is_own) => {
            selector.0.retain(|requirement| !is_own(requirement));
            Peer::Endpoints(selector)
        }
        other => other,
    });
    Peers::Selected(shorter.collect())
}

/// A policy of the subject's namespace by its name alone.
fn short(policy: &PolicyName, namespace: Option<&str>) -> String {
    if policy.namespace.as_deref() == namespace { policy.name.clone() } else { policy.to_string() }
}

fn names(policies: &BTreeSet<PolicyName>, namespace: Option<&str>) -> String {
    let names: Vec<_> = policies.iter().map(|policy| short(policy, namespace)).collect();
    joined(&names, ", ")
}

fn joined<T: ToString>(items: &[T], between: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(between)
}
