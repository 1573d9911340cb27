//! How much rules are: written down, and where several lists hold at several ranges of ports.
//!
//! Promise: who accepts rules and who enforces them measure them by the same functions, at a cost of what they consist of and
//! not of how many ranges share it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    HttpRule, HttpRules, L7Access, L7Inspected, L7Ports, L7Rules, L7Tls, ServerName, ServerNames,
    TlsInspection,
};
use crate::identity::Identity;

/// The most parts ([`Measure`]) that the rules of one object may come to, in all its directions together.
pub const OBJECT_PARTS: usize = 100_000;

/// The most that those of all policies about a workload may come to in one direction.
pub const WORKLOAD_PARTS: usize = 200_000;

/// So many peers are a part.
const PEERS: usize = 64;

/// Where a slice is: what is there twice is meant, not what is equal.
type Place = (usize, usize);

fn place<T>(slice: &[T]) -> Place {
    (slice.as_ptr() as usize, slice.len())
}

/// What holds at ranges of ports, as numbers: each rule counts one, and so does each further alternative of its path, each of
/// its headers, each name of a server, each list, and 64 peers. Knows lists by their places: to be kept no longer than they are.
#[derive(Debug, Default)]
pub struct Measure(BTreeMap<Place, usize>);

impl Measure {
    /// What holds at a range. Costs what is new of it.
    pub fn parts(&mut self, access: &[L7Access], tls: &[L7Tls], inspected: &[L7Inspected]) -> usize {
        let peers = |peers: &Option<Arc<[Identity]>>| peers.as_ref().map_or(0, |peers| peers.len() / PEERS);
        let mut list = |rules: &[HttpRule]| {
            *self.0.entry(place(rules)).or_insert_with(|| rules.iter().map(HttpRule::parts).sum())
        };
        let http = access.iter();
        let http = http.map(|one| 1 + list(one.http.as_deref().unwrap_or_default()) + peers(&one.peers));
        let http = http.sum::<usize>();
        let inside = inspected.iter().map(|one| {
            let names = one.inspection.names.as_ref().map_or(0, |names| names.len());
            let contexts = one.inspection.contexts().count();
            let rules = list(one.inspection.http.as_deref().unwrap_or_default());
            1 + contexts + names + rules + peers(&one.peers)
        });
        let inside = inside.sum::<usize>();
        http + inside + tls.iter().map(|one| 1 + one.names.len() + peers(&one.peers)).sum::<usize>()
    }
}

impl HttpRule {
    /// What it counts for in a [`Measure`].
    pub fn parts(&self) -> usize {
        let alternatives =
            self.path.as_ref().map_or(0, |path| path.0.bytes().filter(|byte| *byte == b'|').count());
        1 + alternatives + self.headers.len()
    }

    /// About how many bytes it takes.
    fn size(&self) -> usize {
        let parts = [&self.path, &self.method, &self.host].into_iter().flatten().map(|part| part.0.len());
        let headers = self.headers.iter();
        let headers = headers.map(|it| 64 + it.name.len() + it.value.as_ref().map_or(0, String::len));
        64 + parts.sum::<usize>() + headers.sum::<usize>()
    }
}

impl L7Ports {
    /// Where what holds there is: ranges share it.
    pub(super) fn places(&self) -> [Place; 3] {
        [place(&self.access), place(&self.tls), place(&self.inspected)]
    }

    /// The same with no requests for anybody whom HTTP rules are for, no names of servers, and no TLS that the proxy ends or
    /// begins: who had only that is somebody to whom nothing is allowed.
    fn closed(&self) -> Held {
        let nothing = |peers: &Option<_>| L7Access { peers: peers.clone(), http: Some(HttpRules::default()) };
        let access = self.access.iter().map(|one| L7Access {
            peers: one.peers.clone(),
            http: one.http.as_ref().map(|_| HttpRules::default()),
        });
        let access = access.chain(self.inspected.iter().map(|one| nothing(&one.peers)));
        let closed = |one: &L7Tls| L7Tls { peers: one.peers.clone(), names: ServerNames::default() };
        (access.collect(), self.tls.iter().map(closed).collect())
    }
}

/// What is left of what holds at a range.
type Held = (Arc<[L7Access]>, Arc<[L7Tls]>);

impl L7Rules {
    /// What holds at its ranges, once however many share it.
    fn kinds(&self) -> BTreeMap<[Place; 3], &L7Ports> {
        self.ports.iter().map(|ports| (ports.places(), ports)).collect()
    }

    /// What they come to at all ranges together ([`Measure`]): where ranges share what holds there it counts once.
    pub fn parts(&self) -> usize {
        let mut measure = Measure::default();
        let kinds = self.kinds();
        kinds.values().map(|ports| measure.parts(&ports.access, &ports.tls, &ports.inspected)).sum()
    }

    /// About how many bytes they take, written down.
    pub(super) fn size(&self) -> usize {
        let kinds = self.kinds();
        let access: Vec<&L7Access> = kinds.values().flat_map(|ports| ports.access.iter()).collect();
        let tls: Vec<&L7Tls> = kinds.values().flat_map(|ports| ports.tls.iter()).collect();
        let inspected: Vec<&L7Inspected> = kinds.values().flat_map(|ports| ports.inspected.iter()).collect();
        let inside = inspected.iter().map(|one| &*one.inspection);
        let lists = access.iter().filter_map(|one| one.http.as_ref());
        let lists = lists.chain(inside.clone().filter_map(|one| one.http.as_ref()));
        let lists: BTreeMap<Place, &HttpRules> = lists.map(|list| (place(list), list)).collect();
        let names = tls.iter().map(|one| &one.names);
        let names = names.chain(inside.clone().filter_map(|one| one.names.as_ref()));
        let names: BTreeMap<Place, &ServerNames> = names.map(|names| (place(names), names)).collect();
        let peers = access.iter().map(|one| &one.peers).chain(tls.iter().map(|one| &one.peers));
        let peers = peers.chain(inspected.iter().map(|one| &one.peers)).flatten();
        let peers: BTreeMap<Place, usize> = peers.map(|peers| (place(peers), peers.len())).collect();
        let of_name = |name: &ServerName| 32 + name.as_str().len();
        lists.values().flat_map(|list| list.iter()).map(HttpRule::size).sum::<usize>()
            + names.values().flat_map(|list| list.iter()).map(of_name).sum::<usize>()
            + peers.values().sum::<usize>() * 12
            + inside.flat_map(TlsInspection::contexts).map(|(_, context)| context.size()).sum::<usize>()
            + (access.len() + tls.len() + inspected.len() + self.ports.len()) * 16
    }

    /// See [`super::L7Endpoint::closed`].
    pub(super) fn closed(&self) -> Self {
        let kinds: BTreeMap<[Place; 3], Held> =
            self.kinds().into_iter().map(|(place, ports)| (place, ports.closed())).collect();
        let ports = self.ports.iter().map(|ports| {
            let (access, tls) = kinds.get(&ports.places()).cloned().unwrap_or_default();
            L7Ports { access, tls, inspected: Arc::default(), ..*ports }
        });
        Self { ports: ports.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::{Expression, HeaderRule, L7Endpoint, Mismatch};
    use crate::workload::EndpointId;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn rule(path: &str) -> HttpRule {
        HttpRule { path: Some(Expression(path.to_owned())), ..HttpRule::default() }
    }

    #[test]
    fn what_ranges_share_counts_once_and_can_be_emptied() {
        let list: HttpRules = [rule(&"a".repeat(4000)), rule("/a|/b")].into();
        let access = [
            L7Access { peers: None, http: Some(Arc::clone(&list)) },
            L7Access { peers: Identity::new(300).map(|peer| [peer].into()), http: None },
        ];
        let (shared, own): (Arc<[L7Access]>, Arc<[L7Access]>) = (access.clone().into(), access.into());
        let ports = |first, access: &Arc<[L7Access]>| L7Ports {
            first,
            last: first,
            access: Arc::clone(access),
            tls: Arc::default(),
            inspected: Arc::default(),
        };
        let mut rules = L7Rules { ports: (1..100).map(|port| ports(port, &shared)).collect() };
        assert!((4000..7000).contains(&rules.size()), "{}", rules.size());
        assert_eq!(rules.parts(), 5, "two accesses, two rules, one further alternative");
        rules.ports.push(ports(200, &own));
        assert_eq!(rules.parts(), 10, "another combination, if of the same list");
        assert!((4000..7000).contains(&rules.size()), "{}", rules.size());
        let endpoint = L7Endpoint {
            id: EndpointId::new(1).unwrap(),
            instance: 1,
            workload: "default/w".parse().unwrap(),
            ipv4: Ipv4Addr::LOCALHOST,
            ipv6: Ipv6Addr::LOCALHOST,
            identity: Identity::new(256).unwrap(),
            ingress: Some(Arc::new(rules)),
            egress: None,
            audit: false,
            secrets: Vec::new(),
        };
        let closed = endpoint.closed();
        assert!(closed.size() < 2500, "{}", closed.size());
        let closed = closed.ingress.unwrap();
        assert_eq!(closed.ports.len(), 100);
        assert!(Arc::ptr_eq(&closed.ports[0].access, &closed.ports[98].access));
        let access = || closed.ports.iter().flat_map(|ports| ports.access.iter());
        assert!(access().all(|access| access.http.as_ref().is_none_or(|rules| rules.is_empty())));
        assert_eq!(
            access().filter(|access| access.http.is_none()).count(),
            100,
            "who needs no rules has none"
        );
    }

    #[test]
    fn all_that_is_looked_at_is_a_part() {
        let header = |name: &str| HeaderRule { name: name.to_owned(), value: None, mismatch: Mismatch::Deny };
        let rule = HttpRule { headers: vec![header("a"), header("b")], ..rule("/a|/b|/c") };
        assert_eq!(rule.parts(), 5);
        let peers: Arc<[Identity]> = (256..512).filter_map(Identity::new).collect();
        let access = [L7Access { peers: Some(Arc::clone(&peers)), http: Some([rule.clone(), rule].into()) }];
        let tls = [L7Tls { peers: Some(peers), names: ["a.b".parse().unwrap()].into() }];
        assert_eq!(Measure::default().parts(&access, &tls, &[]), 1 + 4 + 10 + 1 + 4 + 1);
    }
}
