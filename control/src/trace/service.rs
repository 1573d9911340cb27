//! To a service: policy is asked about each of those who answer, on the port on which they do.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use mesh::plan::NodePlan;
use mesh::policy::{Authentication, protocol};
use mesh::service::{Frontend, FrontendPlan, NamePlan, ServiceName};

use super::{Asked, Found, Judged, TraceError, at_address};
use crate::world::World;

/// The service that a text names, by `name.namespace.svc` or by a VIP.
pub(super) fn named(world: &World, plan: &NodePlan, text: &str) -> Option<(ServiceName, Option<IpAddr>)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let service = |(frontend, plan): (&Frontend, &FrontendPlan)| {
            (frontend.address == address).then(|| plan.service.clone())
        };
        return plan.services.frontends.iter().find_map(service).map(|service| (service, Some(address)));
    }
    let short = text.strip_suffix(&world.configuration.cluster_domain);
    let short = short.and_then(|text| text.strip_suffix('.')).unwrap_or(text);
    let (name, namespace) = short.strip_suffix(".svc")?.split_once('.')?;
    Some((ServiceName { namespace: namespace.to_owned(), name: name.to_owned() }, None))
}

/// Judges a call of a service.
pub(super) fn judge(
    asked: Asked<'_>,
    from: &Found,
    service: &ServiceName,
    vip: Option<IpAddr>,
) -> Result<(Judged, Vec<String>), TraceError> {
    let targets = targets(asked, service, vip)?;
    let refused = Judged { allowed: false, authentication: Reverse(Authentication::None) };
    if targets.is_empty() {
        return Ok((
            refused,
            vec![format!("denied: nobody answers for Service {service}: calls are refused")],
        ));
    }
    // Those who answer are mostly alike: each explanation once.
    let mut alike: BTreeMap<(Judged, Vec<String>), Vec<SocketAddr>> = BTreeMap::new();
    for target in &targets {
        let to = at_address(asked.world, &asked.planned.plan, target.ip());
        let judged = asked.judge(from, &to, target.port()).ok_or_else(|| asked.no_subject())?;
        alike.entry(judged).or_default().push(*target);
    }
    let strictest = alike.keys().map(|(judged, _)| *judged).min().unwrap_or(refused);
    let several = alike.len() > 1;
    let mut lines = Vec::new();
    for ((_, of_these), targets) in alike {
        lines.extend(of_these);
        if several {
            lines.push(format!("  so it is at {}", list(&targets)));
        }
    }
    lines.push(format!("Service {service} is judged where it is answered: {}", list(&targets)));
    Ok((strictest, lines))
}

fn list(targets: &[SocketAddr]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = targets.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = targets.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &more
}

/// Who answers, each once.
pub(super) fn targets(
    asked: Asked<'_>,
    service: &ServiceName,
    vip: Option<IpAddr>,
) -> Result<Vec<SocketAddr>, TraceError> {
    let query = asked.query;
    let error = |why: String| TraceError::Service { to: query.to.clone(), service: service.clone(), why };
    let plan = &asked.planned.plan.services;
    let mut targets: Vec<_> = match plan.names.get(service) {
        None if asked.world.services.contains_key(service) => {
            return Err(error("is not served; `ferromesh policy list` says why".to_owned()));
        }
        None => return Err(error("does not exist".to_owned())),
        Some(NamePlan::External { name }) => {
            return Err(error(format!("leads to the name {name}; trace to an address of it")));
        }
        Some(NamePlan::Headless { endpoints }) => {
            let addresses = endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
            addresses.map(|address| SocketAddr::new(*address, query.port)).collect()
        }
        Some(NamePlan::Cluster { .. }) => {
            let own = plan.frontends.iter().filter(|(frontend, plan)| {
                plan.service == *service && vip.is_none_or(|vip| frontend.address == vip)
            });
            let own: Vec<_> = own.collect();
            let called: Vec<_> = own
                .iter()
                .filter(|(called, _)| called.port == query.port && called.protocol == query.protocol)
                .collect();
            if called.is_empty() {
                return Err(error(format!(
                    "has no port {}; it has {}",
                    wanted(query.port, query.protocol),
                    ports(&own)
                )));
            }
            called.into_iter().flat_map(|(_, plan)| plan.backends.iter().copied()).collect()
        }
    };
    targets.sort();
    targets.dedup();
    Ok(targets)
}

fn wanted(port: u16, number: u8) -> String {
    format!("{port}/{}", protocol::name(number).unwrap_or("?"))
}

fn ports(frontends: &[(&Frontend, &FrontendPlan)]) -> String {
    let mut all: Vec<_> =
        frontends.iter().map(|(frontend, _)| wanted(frontend.port, frontend.protocol)).collect();
    all.sort();
    all.dedup();
    all.join(", ")
}
