//! Which service has which VIP.
//!
//! The one that had an address keeps it; else an explicit claim goes before allocation, and the first by name before
//! the others. A service gets all of its addresses or is not served.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use mesh::service::ServiceName;

use crate::allocate::Vips;
use crate::kind::{Family, Reach};
use crate::plan::NodeFacts;
use crate::plan::notes::{Notes, of_service};
use crate::world::World;

/// The addresses of each service that is served, in the order in which it asks for families.
pub(crate) type Granted<'a> = BTreeMap<&'a ServiceName, Vec<IpAddr>>;

/// What a service asks for: of each family this address, or any.
type Wanted<'a> = (&'a ServiceName, &'a [(Family, Option<IpAddr>)]);

/// Settles who has what.
pub(crate) fn settle<'a>(
    world: &'a World,
    node: &NodeFacts,
    vips: &mut Vips,
    notes: &mut Notes,
) -> Granted<'a> {
    let mut claims = Claims {
        pools: [world.configuration.ipv4_service_pool.into(), world.configuration.ipv6_service_pool.into()],
        foreign: Foreign::new(world, node),
        taken: BTreeMap::new(),
        granted: BTreeMap::new(),
    };
    let (settled, new): (Vec<_>, Vec<_>) = wanted(world).partition(|wanted| claims.is_settled(*wanted, vips));
    for wanted in settled {
        claims.keep(wanted, vips);
    }
    for wanted in new {
        claims.claim(wanted, vips, notes);
    }
    let granted = claims.allocate(vips, notes);
    for (service, addresses) in &granted {
        addresses.iter().for_each(|address| vips.give(service, *address));
    }
    granted
}

fn wanted(world: &World) -> impl Iterator<Item = Wanted<'_>> {
    world.services.values().filter_map(|service| match &service.reach {
        Reach::Cluster(families) => Some((&service.name, families.as_slice())),
        Reach::Headless(_) | Reach::External(_) => None,
    })
}

/// Addresses that cannot be a service's.
struct Foreign {
    /// Of this node and of the others.
    workloads: Vec<IpNet>,
    own: Vec<IpNet>,
    nodes: BTreeSet<IpAddr>,
}

impl Foreign {
    fn new(world: &World, node: &NodeFacts) -> Self {
        let nodes = world.nodes.values().flat_map(|node| node.addresses.iter().copied());
        let pools: [IpNet; 2] = [node.ipv4_pool.into(), node.ipv6_pool.into()];
        Self {
            workloads: pools.into_iter().chain(world.other_pod_cidrs(&node.name)).collect(),
            own: node.addresses.clone(),
            nodes: nodes.collect(),
        }
    }

    /// Whose an address is.
    fn whose(&self, address: IpAddr) -> Option<String> {
        if let Some(pool) = self.workloads.iter().find(|pool| pool.contains(&address)) {
            return Some(format!("is in the pool of workloads, {pool}"));
        }
        let own = self.own.iter().any(|own| own.contains(&address)) || self.nodes.contains(&address);
        own.then(|| "is a node's".to_owned())
    }
}

struct Claims<'a> {
    /// IPv4, IPv6.
    pools: [IpNet; 2],
    foreign: Foreign,
    taken: BTreeMap<IpAddr, &'a ServiceName>,
    /// What is still to be allocated is `None`.
    granted: BTreeMap<&'a ServiceName, Vec<(Family, Option<IpAddr>)>>,
}

impl<'a> Claims<'a> {
    /// Whether it has everything that it names.
    fn is_settled(&self, (service, families): Wanted<'a>, vips: &Vips) -> bool {
        let has = |(family, named): &(Family, Option<IpAddr>)| {
            named.is_none_or(|named| vips.had(service, *family) == Some(named) && self.fits(named))
        };
        families.iter().all(has)
    }

    fn fits(&self, address: IpAddr) -> bool {
        self.foreign.whose(address).is_none()
    }

    /// What it had of a family and may keep.
    fn kept(&self, service: &ServiceName, family: Family, vips: &Vips) -> Option<IpAddr> {
        let pool = self.pool(family);
        let fits = |address: &IpAddr| {
            pool.contains(address) && !self.taken.contains_key(address) && self.fits(*address)
        };
        vips.had(service, family).filter(fits)
    }

    fn keep(&mut self, (service, families): Wanted<'a>, vips: &Vips) {
        let keep = |(family, named): &(Family, Option<IpAddr>)| {
            (*family, named.or_else(|| self.kept(service, *family, vips)))
        };
        let addresses: Vec<_> = families.iter().map(keep).collect();
        self.taken.extend(addresses.iter().filter_map(|(_, address)| Some(((*address)?, service))));
        self.granted.insert(service, addresses);
    }

    /// It names an address that it did not have.
    fn claim(&mut self, wanted: Wanted<'a>, vips: &Vips, notes: &mut Notes) {
        let (service, families) = wanted;
        for named in families.iter().filter_map(|(_, named)| *named) {
            let fault = match self.taken.get(&named) {
                Some(other) => Some(format!("is {other}'s, which keeps it")),
                None => self.foreign.whose(named),
            };
            if let Some(fault) = fault {
                let message = format!(
                    "spec.clusterIP: {named} {fault}; name another, or leave the field out; not served"
                );
                return notes.error(of_service(service), message);
            }
        }
        self.keep(wanted, vips);
    }

    /// Gives addresses of the pools to those who lack one.
    fn allocate(mut self, vips: &mut Vips, notes: &mut Notes) -> Granted<'a> {
        let mut all = Granted::new();
        // A pool in which nothing was found is not searched again for each of ten thousand services.
        let mut exhausted = BTreeSet::new();
        for (service, wanted) in std::mem::take(&mut self.granted) {
            let find = |(family, address): (Family, Option<IpAddr>)| match address {
                None if exhausted.contains(&family) => Err(family),
                None => self.search(family, service, vips).ok_or(family),
                Some(address) => Ok(address),
            };
            match wanted.into_iter().map(find).collect::<Result<Vec<_>, _>>() {
                Ok(addresses) => drop(all.insert(service, addresses)),
                Err(family) => {
                    exhausted.insert(family);
                    notes.error(of_service(service), self.exhaustion(family));
                }
            }
        }
        all
    }

    fn pool(&self, family: Family) -> IpNet {
        let [v4, v6] = self.pools;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    fn search(&mut self, family: Family, service: &'a ServiceName, vips: &mut Vips) -> Option<IpAddr> {
        let pool = self.pool(family);
        // Some hosts call whole networks their own; then there is nothing to search.
        if self.foreign.own.iter().any(|own| own.contains(&pool)) {
            return None;
        }
        let fits = |address| !self.taken.contains_key(&address) && self.fits(address);
        let found = vips.free(pool, fits)?;
        self.taken.insert(found, service);
        Some(found)
    }

    fn exhaustion(&self, family: Family) -> String {
        let pool = self.pool(family);
        format!(
            "spec.clusterIP: every address of ipv{}ServicePool {pool} is in use; enlarge it, or name an address; not served",
            if family == Family::V4 { 4 } else { 6 }
        )
    }
}
