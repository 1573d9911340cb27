//! A connection between two ends, for who asks what the L7 proxy makes of it: `proxy explain`.
//!
//! Who the ends are and what the kernel does is found as `policy trace` finds it.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use mesh::flow::TrafficDirection;
use mesh::identity::Identity;
use mesh::l7::HttpRule;
use mesh::plan::{EndpointPlan, NodePlan};
use mesh::policy::explain::{Question, http_rules};
use mesh::policy::protocol::TCP;
use mesh::workload::EndpointId;
use node_api::proxy::{KernelSays, KernelWay, RulePlace};
use node_api::{Trace, TraceQuery};

use super::{Asked, Found, Named, TraceError, at_address, find, named, service, trace};
use crate::plan::Planned;
use crate::world::World;

/// Who is at one end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedEnd {
    /// `default/tiefighter`, `192.0.2.1`, `reserved:world`.
    pub name: String,
    /// Its identity.
    pub identity: Identity,
    /// Its address, where it is known.
    pub address: Option<IpAddr>,
    /// Its number, if it is an endpoint of this node.
    pub endpoint: Option<EndpointId>,
    /// It is a workload, of whichever node.
    pub is_workload: bool,
}

/// A TCP connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    /// Who calls, and whom.
    pub ends: [NamedEnd; 2],
    /// Destination port.
    pub port: u16,
    /// What the kernel does with it.
    pub kernel: KernelSays,
    /// What else there is to know, a sentence each.
    pub notes: Vec<String>,
}

impl Connection {
    /// Finds who is meant, and which way a connection between them goes.
    pub fn find(
        world: &World,
        planned: &Planned,
        from: &str,
        to: &str,
        port: u16,
    ) -> Result<Self, TraceError> {
        let query = TraceQuery { from: from.to_owned(), to: to.to_owned(), port, protocol: TCP };
        // What cannot be traced is said as there.
        let traced = trace(world, planned, &query)?;
        let plan = &planned.plan;
        let mut client = end(world, plan, from, None)?;
        let mut notes = Vec::new();
        let (server, port, trace) = match service::named(world, plan, to) {
            None => (end(world, plan, to, client.address)?, port, traced),
            Some((name, vip)) => {
                let asked = Asked { world, planned, query: &query };
                let targets = service::targets(asked, &name, vip)?;
                let is_here = |address: IpAddr| local(plan, address).is_some();
                let here = targets.iter().find(|target| is_here(target.ip())).or(targets.first());
                let Some(target) = here else {
                    let why = "is answered by nobody; start a workload that it selects".to_owned();
                    return Err(TraceError::Service { to: to.to_owned(), service: name, why });
                };
                notes.push(format!(
                    "Service {name} is judged where it is answered: this is about {target}, one of {}",
                    targets.len()
                ));
                let (to, port) = (target.ip().to_string(), target.port());
                let query = TraceQuery { to: to.clone(), port, ..query };
                (end(world, plan, &to, None)?, port, self::trace(world, planned, &query)?)
            }
        };
        // Of one family.
        if let Some(address) = server.address {
            client = end(world, plan, from, Some(address))?;
        }
        if client.endpoint.is_none() && server.endpoint.is_none() {
            return Err(TraceError::Elsewhere { from: from.to_owned(), to: to.to_owned() });
        }
        for end in [&client, &server] {
            if end.is_workload && end.endpoint.is_none() {
                let name = &end.name;
                notes.push(format!(
                    "{name} is not on this node: its own rules are judged where it is, ask `ferromesh proxy explain` there"
                ));
            }
        }
        let way = way(plan, [&client, &server], port, &trace);
        let kernel = KernelSays { way, lines: trace.lines };
        Ok(Self { ends: [client, server], port, kernel, notes })
    }

    /// Where a rule stands by which the proxy judges for one of the ends: in every policy that has one like it for the other.
    pub fn places(
        &self,
        world: &World,
        planned: &Planned,
        direction: TrafficDirection,
        rule: &HttpRule,
    ) -> Vec<RulePlace> {
        let [client, server] = self.ends.each_ref().map(|end| found(world, planned, end));
        let (subject, peer) = match direction {
            TrafficDirection::Egress => (&client, &server),
            TrafficDirection::Ingress => (&server, &client),
        };
        let (subject, peer) = (subject.end(), peer.end());
        let question = Question { subject, direction, peer, protocol: TCP, port: self.port };
        let policies = planned.policies.iter().map(AsRef::as_ref);
        let lists = http_rules(&question, policies, &planned.universe, world.configuration.enforcement);
        let places = lists.into_iter().flat_map(|(policy, rules)| {
            let same = rules.iter().enumerate().filter(|(_, other)| is_same(other, rule));
            same.map(|(http, _)| RulePlace { policy: policy.clone(), http })
        });
        let mut places: Vec<_> = places.collect();
        places.sort();
        places.dedup();
        places
    }
}

/// Whether two rules are written alike; names of headers have no case.
fn is_same(one: &HttpRule, other: &HttpRule) -> bool {
    let headers = |rule: &HttpRule| {
        let mut headers = rule.headers.clone();
        headers.iter_mut().for_each(|header| header.name.make_ascii_lowercase());
        headers
    };
    (&one.path, &one.method, &one.host) == (&other.path, &other.method, &other.host)
        && headers(one) == headers(other)
}

fn found(world: &World, planned: &Planned, end: &NamedEnd) -> Found {
    let by = |what: &str| find(world, &planned.plan, what).ok();
    let found = by(&end.name).or_else(|| by(&end.address?.to_string()));
    found.unwrap_or_else(|| at_address(world, &planned.plan, Ipv4Addr::UNSPECIFIED.into()))
}

/// Who is meant, by an address of the family of `other`, if there is one.
fn end(world: &World, plan: &NodePlan, what: &str, other: Option<IpAddr>) -> Result<NamedEnd, TraceError> {
    let wants_ipv6 = other.is_some_and(|address| address.is_ipv6());
    let here = |planned: &EndpointPlan, address: Option<IpAddr>| {
        let endpoint = &planned.endpoint;
        let own = if wants_ipv6 { endpoint.ipv6.into() } else { endpoint.ipv4.into() };
        NamedEnd {
            name: endpoint.workload.to_string(),
            identity: planned.identity,
            address: Some(address.unwrap_or(own)),
            endpoint: Some(endpoint.id),
            is_workload: true,
        }
    };
    Ok(match named(world, plan, what)? {
        Named::Reserved(identity) => {
            NamedEnd { name: what.to_owned(), identity, address: None, endpoint: None, is_workload: false }
        }
        Named::Address(address) => match local(plan, address) {
            Some(planned) => here(planned, Some(address)),
            None => {
                let found = at_address(world, plan, address);
                let is_workload = found.identity.is_workload();
                let (name, identity) = (address.to_string(), found.identity);
                NamedEnd { name, identity, address: Some(address), endpoint: None, is_workload }
            }
        },
        Named::Workload(workload, identity) => {
            match plan.endpoints.values().find(|planned| planned.endpoint.workload == workload) {
                Some(planned) => here(planned, None),
                None => NamedEnd {
                    name: workload.to_string(),
                    identity,
                    address: elsewhere(plan, identity, wants_ipv6),
                    endpoint: None,
                    is_workload: true,
                },
            }
        }
    })
}

fn local(plan: &NodePlan, address: IpAddr) -> Option<&EndpointPlan> {
    plan.endpoints.values().find(|planned| match address {
        IpAddr::V4(address) => planned.endpoint.ipv4 == address,
        IpAddr::V6(address) => planned.endpoint.ipv6 == address,
    })
}

/// An address of somebody of that identity, on another node: to policy they are all alike.
fn elsewhere(plan: &NodePlan, identity: Identity, wants_ipv6: bool) -> Option<IpAddr> {
    let is_one = |prefix: &IpNet| {
        prefix.prefix_len() == prefix.max_prefix_len() && prefix.addr().is_ipv6() == wants_ipv6
    };
    let all = plan.ipcache.iter().filter(|(prefix, there)| there.identity == identity && is_one(prefix));
    all.map(|(prefix, _)| prefix.addr()).next()
}

/// By the rulesets that the kernel has.
fn way(plan: &NodePlan, [client, server]: [&NamedEnd; 2], port: u16, trace: &Trace) -> KernelWay {
    let of = |end: &NamedEnd| plan.endpoints.get(&end.endpoint?);
    let audited = [of(client), of(server)].into_iter().flatten().any(|planned| planned.audit);
    if !trace.allowed && !audited {
        return KernelWay::Dropped;
    }
    let egress = of(client).is_some_and(|it| it.egress.is_proxied(server.identity, TCP, port));
    let ingress = of(server).is_some_and(|it| it.ingress.is_proxied(client.identity, TCP, port));
    if egress || ingress { KernelWay::Proxy } else { KernelWay::Direct }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{Bench, SHIPS};

    const RULE1: &str = include_str!("../../../examples/star-wars/rule1-l7.yaml");
    const SERVICE: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: deathstar}
spec: {selector: {class: deathstar}, ipFamilyPolicy: PreferDualStack, ports: [{port: 8000, targetPort: 80}]}
";

    fn find(bench: &Bench, from: &str, to: &str, port: u16) -> Result<Connection, String> {
        Connection::find(&bench.world, &bench.planned, from, to, port).map_err(|error| error.to_string())
    }

    #[test]
    fn it_is_known_which_way_a_connection_goes_and_who_its_ends_are() {
        let bench = Bench::new(&[RULE1, SERVICE].concat(), &SHIPS);
        for (from, to, port, way) in [
            ("tiefighter", "deathstar-1", 80, KernelWay::Proxy),
            ("tiefighter", "deathstar", 80, KernelWay::Proxy),
            ("fd00:217::3", "deathstar-1", 80, KernelWay::Proxy),
            ("tiefighter", "10.218.0.1", 8000, KernelWay::Proxy),
            ("tiefighter", "fd00:218::1", 8000, KernelWay::Proxy),
            ("tiefighter", "deathstar-1", 81, KernelWay::Dropped),
            ("xwing", "deathstar-1", 80, KernelWay::Dropped),
            ("reserved:world", "deathstar-1", 80, KernelWay::Dropped),
            ("reserved:host", "deathstar-1", 80, KernelWay::Direct),
            ("xwing", "tiefighter", 80, KernelWay::Direct),
            ("tiefighter", "192.0.2.1", 80, KernelWay::Direct),
        ] {
            let found = find(&bench, from, to, port).unwrap();
            assert_eq!(found.kernel.way, way, "{from} {to} {port}: {found:?}");
            assert!(!found.kernel.lines.is_empty());
            let [client, server] = found.ends.each_ref().map(|end| end.address);
            let is_one_family =
                client.zip(server).is_none_or(|(one, other)| one.is_ipv4() == other.is_ipv4());
            assert!(is_one_family, "{from} {to}: {client:?} {server:?}");
        }
        let service = find(&bench, "tiefighter", "deathstar.default.svc", 8000).unwrap();
        assert_eq!((service.port, service.ends[1].name.as_str()), (80, "default/deathstar-1"));
        assert!(service.notes[0].starts_with("Service default/deathstar is judged where it is answered"));
        let world = find(&bench, "reserved:world", "deathstar-1", 80).unwrap();
        assert_eq!((world.ends[0].address, world.ends[0].identity), (None, Identity::WORLD));
    }

    #[test]
    fn a_rule_is_named_by_its_policy_and_its_number() {
        let bench = Bench::new(RULE1, &SHIPS);
        let found = find(&bench, "tiefighter", "deathstar-1", 80).unwrap();
        let l7 = bench.planned.plan.l7.as_ref().unwrap();
        let rules = l7.endpoints[&found.ends[1].endpoint.unwrap()].ingress.clone().unwrap();
        let mut lists =
            rules.ports.iter().flat_map(|ports| ports.access.iter()).filter_map(|it| it.http.as_ref());
        let rule = &lists.next().unwrap()[0];
        let places =
            |found: &Connection, direction, rule| found.places(&bench.world, &bench.planned, direction, rule);
        let named = places(&found, TrafficDirection::Ingress, rule);
        assert_eq!(
            named.iter().map(|it| (it.policy.to_string(), it.http)).collect::<Vec<_>>(),
            [("default/rule1".to_owned(), 0)]
        );
        assert!(places(&found, TrafficDirection::Egress, rule).is_empty());
        let unsaid = HttpRule::default();
        assert!(places(&found, TrafficDirection::Ingress, &unsaid).is_empty());
        let other = find(&bench, "xwing", "deathstar-1", 80).unwrap();
        assert!(places(&other, TrafficDirection::Ingress, rule).is_empty(), "it is not about that peer");
    }

    #[test]
    fn who_cannot_be_asked_about_is_named() {
        let bench = Bench::new(&[RULE1, SERVICE].concat(), &SHIPS);
        let error = |from: &str, to: &str| find(&bench, from, to, 80).unwrap_err();
        assert!(error("xwng", "deathstar").ends_with("did you mean default/xwing"));
        assert!(error("xwing", "10.218.0.1").contains("has no port 80/TCP"));
        let none = Bench::new(&SERVICE.replace("class: deathstar", "class: none"), &SHIPS);
        let nobody = find(&none, "xwing", "10.218.0.1", 8000).unwrap_err();
        assert!(nobody.contains("is answered by nobody; start a workload that it selects"), "{nobody}");
    }
}
