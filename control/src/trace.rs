//! May this reach that, and why: `policy trace`.
//!
//! A flow between two workloads is judged twice, by the sender's egress and the receiver's ingress; both must allow
//! it. Addresses and reserved entities judge nothing themselves. A service is never judged, but those who answer for it.

pub(crate) mod connection;
mod service;

use std::cmp::Reverse;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::labels::LabelSet;
use mesh::plan::NodePlan;
use mesh::policy::explain::{End, Explanation, Question, explain};
use mesh::policy::{self, Authentication};
use mesh::service::ServiceName;
use mesh::workload::{NamedPorts, WorkloadName};
use node_api::{Trace, TraceQuery};

use crate::authority;
use crate::plan::Planned;
use crate::world::World;
use crate::yaml::nearest;

/// Why a question has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TraceError {
    /// It names nobody.
    #[error("{what}: no workload of this node, no Workload object, no address and no reserved: name{near}")]
    Unknown {
        /// As it was given.
        what: String,
        /// `, did you mean …`, or nothing.
        near: String,
    },
    /// A name that stands for workloads of different labels.
    #[error("{what}: several workloads begin with this name and their labels differ; name one of {all}")]
    Ambiguous {
        /// As it was given.
        what: String,
        /// The workloads.
        all: String,
    },
    /// Nothing is sent from a VIP.
    #[error("{from}: is Service {service}, and nothing is sent from a service; name the workload that calls")]
    FromService {
        /// As it was given.
        from: String,
        /// The service.
        service: ServiceName,
    },
    /// The service is not served, or leads elsewhere.
    #[error("{to}: Service {service} {why}")]
    Service {
        /// As it was given.
        to: String,
        /// The service.
        service: ServiceName,
        /// What is the matter, and what to do.
        why: String,
    },
    /// The proxy of this node sees nothing of it.
    #[error("neither {from} nor {to} is an endpoint of this node: ask on the node of one of them")]
    Elsewhere {
        /// As it was given.
        from: String,
        /// As it was given.
        to: String,
    },
    /// No policy is asked.
    #[error("neither {from} nor {to} is a workload: policy judges nothing between them")]
    NoSubject {
        /// As it was given.
        from: String,
        /// As it was given.
        to: String,
    },
}

/// Who was found under a name.
struct Found {
    /// What to call it.
    name: String,
    identity: Identity,
    labels: LabelSet,
    ports: NamedPorts,
    /// A workload, so that its policy is asked.
    judges: bool,
}

/// A verdict, the strictest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Judged {
    allowed: bool,
    authentication: Reverse<Authentication>,
}

impl Judged {
    fn of(explanation: &Explanation) -> Self {
        let authentication = match explanation.asked {
            policy::Asked::Proof => Authentication::Required,
            policy::Asked::Nothing | policy::Asked::NoPrincipal => Authentication::None,
        };
        Self { allowed: explanation.allowed, authentication: Reverse(authentication) }
    }
}

/// Answers from the policies in force.
pub fn trace(world: &World, planned: &Planned, query: &TraceQuery) -> Result<Trace, TraceError> {
    let asked = Asked { world, planned, query };
    if let Some((service, _)) = service::named(world, &planned.plan, &query.from) {
        return Err(TraceError::FromService { from: query.from.clone(), service });
    }
    let from = find(world, &planned.plan, &query.from)?;
    let (Judged { allowed, authentication: Reverse(authentication) }, mut lines) =
        match service::named(world, &planned.plan, &query.to) {
            Some((name, vip)) => service::judge(asked, &from, &name, vip)?,
            None => {
                let to = find(world, &planned.plan, &query.to)?;
                asked.judge(&from, &to, query.port).ok_or_else(|| asked.no_subject())?
            }
        };
    if !allowed && world.configuration.audit {
        lines.push("audit mode: the denial is reported, and the packet passes".to_owned());
    }
    Ok(Trace { allowed, authentication, lines })
}

/// A question and what it is answered from.
#[derive(Clone, Copy)]
struct Asked<'a> {
    world: &'a World,
    planned: &'a Planned,
    query: &'a TraceQuery,
}

impl Asked<'_> {
    /// The verdict and its explanation, the denial first, for that is what was asked for. `None`: neither end judges.
    fn judge(self, from: &Found, to: &Found, port: u16) -> Option<(Judged, Vec<String>)> {
        let mut judged = Vec::new();
        let sides = [(from, to, TrafficDirection::Egress), (to, from, TrafficDirection::Ingress)];
        for (subject, peer, direction) in sides.into_iter().filter(|(subject, ..)| subject.judges) {
            let (subject, peer) = (subject.end(), peer.end());
            let question = Question { subject, direction, peer, protocol: self.query.protocol, port };
            let policies = self.planned.policies.iter().map(AsRef::as_ref);
            let enforcement = self.world.configuration.enforcement;
            judged.push(explain(&question, policies, &self.planned.universe, enforcement));
        }
        judged.sort_by_key(Judged::of);
        let strictest = judged.iter().map(Judged::of).min()?;
        Some((strictest, judged.into_iter().flat_map(|Explanation { lines, .. }| lines).collect()))
    }

    fn no_subject(self) -> TraceError {
        TraceError::NoSubject { from: self.query.from.clone(), to: self.query.to.clone() }
    }
}

impl Found {
    fn end(&self) -> End<'_> {
        End { name: &self.name, identity: self.identity, labels: &self.labels, ports: &self.ports }
    }
}

/// Whom a text names.
enum Named {
    Reserved(Identity),
    Address(IpAddr),
    Workload(WorkloadName, Identity),
}

fn find(world: &World, plan: &NodePlan, what: &str) -> Result<Found, TraceError> {
    Ok(match named(world, plan, what)? {
        Named::Reserved(identity) => not_a_workload(plan, what, identity),
        Named::Address(address) => at_address(world, plan, address),
        Named::Workload(found, identity) => {
            let asked = what.parse().map_or(found.name.clone(), |asked: WorkloadName| asked.name);
            Found { name: asked, ..of_workload(world, plan, &found, identity) }
        }
    })
}

fn named(world: &World, plan: &NodePlan, what: &str) -> Result<Named, TraceError> {
    if let Some(name) = what.strip_prefix("reserved:") {
        let reserved = Identity::RESERVED.iter().find(|(_, reserved)| *reserved == name);
        let names = Identity::RESERVED.iter().map(|(_, reserved)| *reserved);
        let (identity, _) =
            reserved.ok_or_else(|| unknown(what, nearest(name, names).map(|n| format!("reserved:{n}"))))?;
        return Ok(Named::Reserved(*identity));
    }
    if let Ok(address) = what.parse::<IpAddr>() {
        return Ok(Named::Address(address));
    }
    let workload: WorkloadName = what.parse().map_err(|_| unknown(what, None))?;
    let is_it = |name: &WorkloadName| *name == workload;
    // The pods of a deployment are named after it: `deathstar-2` answers for `deathstar`.
    let stem = format!("{}-", workload.name);
    let begins = |name: &WorkloadName| name.namespace == workload.namespace && name.name.starts_with(&stem);
    let all = workloads(world, plan);
    let exact: Vec<_> = all.iter().filter(|(name, _)| is_it(name)).collect();
    let found = if exact.is_empty() { all.iter().filter(|(name, _)| begins(name)).collect() } else { exact };
    let Some((first, identity)) = found.first() else {
        let names: Vec<String> = all.iter().map(|(name, _)| name.to_string()).collect();
        let near = nearest(&workload.to_string(), names.iter().map(String::as_str)).map(str::to_owned);
        return Err(unknown(what, near));
    };
    if found.iter().any(|(_, other)| other != identity) {
        let all: Vec<String> = found.iter().map(|(name, _)| name.to_string()).collect();
        return Err(TraceError::Ambiguous { what: what.to_owned(), all: all.join(", ") });
    }
    Ok(Named::Workload(first.clone(), *identity))
}

/// Workloads that are known: endpoints here, and declared ones of any node.
fn workloads(world: &World, plan: &NodePlan) -> Vec<(WorkloadName, Identity)> {
    let here = plan.endpoints.values().map(|planned| (planned.endpoint.workload.clone(), planned.identity));
    let mut all: Vec<_> = here.collect();
    for workload in world.workloads.values() {
        let labels = authority::declared(world, workload).labels;
        let identity =
            plan.identities.iter().find(|(_, known)| **known == labels).map(|(identity, _)| *identity);
        if let Some(identity) = identity
            && !all.iter().any(|(name, _)| *name == workload.name)
        {
            all.push((workload.name.clone(), identity));
        }
    }
    all.sort();
    all
}

fn of_workload(world: &World, plan: &NodePlan, name: &WorkloadName, identity: Identity) -> Found {
    let ports = world.workloads.get(name).map(|workload| workload.ports.clone()).unwrap_or_default();
    Found { name: name.name.clone(), identity, labels: labels(plan, identity), ports, judges: true }
}

/// An endpoint's address is the endpoint; any other is what the longest prefix says.
fn at_address(world: &World, plan: &NodePlan, address: IpAddr) -> Found {
    let holds = |endpoint: &mesh::workload::Endpoint| match address {
        IpAddr::V4(address) => endpoint.ipv4 == address,
        IpAddr::V6(address) => endpoint.ipv6 == address,
    };
    if let Some(planned) = plan.endpoints.values().find(|planned| holds(&planned.endpoint)) {
        return of_workload(world, plan, &planned.endpoint.workload, planned.identity);
    }
    let longest =
        (0..=IpNet::from(address).prefix_len()).rev().filter_map(|length| IpNet::new(address, length).ok());
    let identity = longest.into_iter().find_map(|prefix| plan.ipcache.get(&prefix.trunc()));
    not_a_workload(plan, &address.to_string(), identity.map_or(Identity::WORLD, |there| there.identity))
}

fn not_a_workload(plan: &NodePlan, name: &str, identity: Identity) -> Found {
    let labels = labels(plan, identity);
    Found { name: name.to_owned(), identity, labels, ports: NamedPorts::new(), judges: false }
}

fn labels(plan: &NodePlan, identity: Identity) -> LabelSet {
    plan.identities.get(&identity).cloned().unwrap_or_default()
}

fn unknown(what: &str, near: Option<String>) -> TraceError {
    let near = near.map(|near| format!(", did you mean {near}")).unwrap_or_default();
    TraceError::Unknown { what: what.to_owned(), near }
}

#[cfg(test)]
mod tests {
    use mesh::policy::protocol::TCP;

    use super::*;
    use crate::plan::tests::{Bench, SHIPS};

    const RULE1: &str = include_str!("../../examples/star-wars/rule1.yaml");

    fn ask(bench: &Bench, from: &str, to: &str, port: u16) -> Result<Trace, String> {
        let query = TraceQuery { from: from.to_owned(), to: to.to_owned(), port, protocol: TCP };
        trace(&bench.world, &bench.planned, &query).map_err(|error| error.to_string())
    }

    #[test]
    fn the_answer_names_the_policy_and_what_it_missed() {
        let bench = Bench::new(RULE1, &SHIPS);
        let denied = ask(&bench, "default/xwing", "default/deathstar", 80).unwrap();
        assert!(!denied.allowed);
        assert_eq!(denied.lines[0], "denied: rule1 selects deathstar, no rule matches org=alliance");
        let allowed = ask(&bench, "tiefighter", "deathstar-2", 80).unwrap();
        assert!(allowed.allowed, "{allowed:?}");
    }

    #[test]
    fn addresses_of_either_family_and_reserved_names_are_understood() {
        let bench = Bench::new(RULE1, &SHIPS);
        for (from, allowed) in [
            ("198.51.100.1", false),
            ("2001:db8:f::1", false),
            ("reserved:world", false),
            ("reserved:host", true),
            ("192.0.2.1", true),
            ("2001:db8::1", true),
            ("10.217.0.3", true),
            ("fd00:217::3", true),
            ("10.217.0.4", false),
            ("fd00:217::4", false),
        ] {
            assert_eq!(ask(&bench, from, "default/deathstar-1", 80).unwrap().allowed, allowed, "{from}");
        }
    }

    #[test]
    fn a_question_without_an_answer_says_why() {
        let bench = Bench::new(RULE1, &SHIPS);
        let error = |from: &str, to: &str| ask(&bench, from, to, 80).unwrap_err();
        let nobody = "no workload of this node, no Workload object, no address and no reserved: name";
        assert_eq!(error("xwng", "deathstar"), format!("xwng: {nobody}, did you mean default/xwing"));
        assert_eq!(
            error("reserved:hots", "xwing"),
            format!("reserved:hots: {nobody}, did you mean reserved:host")
        );
        assert_eq!(error("10.0.0.300", "xwing"), format!("10.0.0.300: {nobody}"));
        assert_eq!(
            error("reserved:world", "192.0.2.1"),
            "neither reserved:world nor 192.0.2.1 is a workload: policy judges nothing between them"
        );
        let mixed = Bench::new("", &["default/ship-1=org=empire", "default/ship-2=org=alliance"]);
        assert_eq!(
            ask(&mixed, "ship", "192.0.2.1", 80).unwrap_err(),
            "ship: several workloads begin with this name and their labels differ; name one of default/ship-1, default/ship-2"
        );
    }

    const SERVICES: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: deathstar}
spec: {selector: {class: deathstar}, ipFamilyPolicy: PreferDualStack, ports: [{port: 8000, targetPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: mixed}
spec: {selector: {org: empire}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: fleet}
spec: {clusterIP: None, selector: {class: deathstar}}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {class: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: away}
spec: {type: ExternalName, externalName: example.org}
---
apiVersion: v1
kind: Service
metadata: {name: stolen}
spec: {clusterIP: 10.217.0.9, ports: [{port: 80}]}
";

    #[test]
    fn a_service_is_judged_where_it_is_answered() {
        let bench = Bench::new(&[RULE1, SERVICES].concat(), &SHIPS);
        let where_at = "Service default/deathstar is judged where it is answered: ";
        for to in
            ["deathstar.default.svc", "deathstar.default.svc.cluster.local", "10.218.0.1", "fd00:218::1"]
        {
            let denied = ask(&bench, "xwing", to, 8000).unwrap();
            assert!(!denied.allowed, "{to}");
            assert!(denied.lines[0].starts_with("denied: rule1 selects deathstar-1"), "{denied:?}");
            assert!(denied.lines.last().unwrap().starts_with(where_at), "{denied:?}");
            assert!(ask(&bench, "tiefighter", to, 8000).unwrap().allowed, "{to}");
        }
        let six = ask(&bench, "tiefighter", "fd00:218::1", 8000).unwrap();
        assert_eq!(*six.lines.last().unwrap(), format!("{where_at}[fd00:217::1]:80, [fd00:217::2]:80"));
        let fleet = ask(&bench, "tiefighter", "fleet.default.svc", 80).unwrap();
        assert!(fleet.allowed, "{fleet:?}");
    }

    #[test]
    fn one_who_answers_and_is_out_of_reach_is_a_denial() {
        let bench = Bench::new(&[RULE1, SERVICES].concat(), &SHIPS);
        let mixed = ask(&bench, "xwing", "mixed.default.svc", 80).unwrap();
        assert!(!mixed.allowed);
        assert!(mixed.lines[0].starts_with("denied: "), "{mixed:?}");
        assert!(mixed.lines.contains(&"  so it is at 10.217.0.3:80".to_owned()), "{mixed:?}");
        let nobody = ask(&bench, "xwing", "nobody.default.svc", 80).unwrap();
        assert_eq!((nobody.allowed, nobody.lines.len()), (false, 1));
        assert_eq!(nobody.lines[0], "denied: nobody answers for Service default/nobody: calls are refused");
    }

    #[test]
    fn a_service_that_cannot_be_traced_says_why() {
        let bench = Bench::new(&[RULE1, SERVICES].concat(), &SHIPS);
        let error = |to: &str, port: u16| ask(&bench, "xwing", to, port).unwrap_err();
        assert_eq!(
            error("10.218.0.1", 80),
            "10.218.0.1: Service default/deathstar has no port 80/TCP; it has 8000/TCP"
        );
        assert_eq!(
            error("away.default.svc", 80),
            "away.default.svc: Service default/away leads to the name example.org; trace to an address of it"
        );
        assert_eq!(
            error("stolen.default.svc", 80),
            "stolen.default.svc: Service default/stolen is not served; `ferromesh policy list` says why"
        );
        assert_eq!(error("none.x.svc", 80), "none.x.svc: Service x/none does not exist");
        assert_eq!(
            ask(&bench, "10.218.0.1", "xwing", 80).unwrap_err(),
            "10.218.0.1: is Service default/deathstar, and nothing is sent from a service; name the workload that calls"
        );
    }

    #[test]
    fn who_must_authenticate_is_told_for_both_ends_and_by_which_policy() {
        let required = RULE1.replace("    toPorts:", "    authentication: {mode: required}\n    toPorts:");
        assert_ne!(required, RULE1);
        let bench = Bench::new(&[&required, SERVICES].concat(), &SHIPS);
        for to in ["deathstar-1", "deathstar.default.svc"] {
            let port = if to == "deathstar-1" { 80 } else { 8000 };
            let trace = ask(&bench, "tiefighter", to, port).unwrap();
            assert!(trace.allowed && trace.authentication == Authentication::Required, "{trace:?}");
            let first = "allowed, authentication required: by rule1, for tiefighter at 80/TCP";
            assert!(trace.lines[0].starts_with(first), "{trace:?}");
        }
        let node = ask(&bench, "reserved:host", "deathstar-1", 80).unwrap();
        assert!(node.allowed && node.authentication == Authentication::None, "{node:?}");
        let denied = ask(&bench, "xwing", "deathstar-1", 80).unwrap();
        assert!(!denied.allowed && denied.authentication == Authentication::None, "{denied:?}");
    }
}
