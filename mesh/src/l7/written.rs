//! [`L7Rules`] as they are written down: each list, and what holds at a range of ports, once, however many share it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    HttpRule, HttpRules, L7Access, L7Inspected, L7Ports, L7Rules, L7Tls, ServerName, ServerNames,
    TlsInspection,
};
use crate::identity::Identity;

/// The rules, in tables that name each other by places.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Written {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    http: Vec<HttpRules>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<ServerNames>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    peers: Vec<Arc<[Identity]>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inspections: Vec<Arc<TlsInspection>>,
    kinds: Vec<Kind>,
    /// First port, last port, what holds there.
    ports: Vec<(u16, u16, usize)>,
}

/// What holds at a range.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Kind {
    /// Peers (none: anybody) and HTTP rules (none: anything).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    access: Vec<(Option<usize>, Option<usize>)>,
    /// Peers and names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tls: Vec<(Option<usize>, usize)>,
    /// Peers and what the proxy does about TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inspected: Vec<(Option<usize>, usize)>,
}

/// The same, read.
type Held = (Arc<[L7Access]>, Arc<[L7Tls]>, Arc<[L7Inspected]>);

/// Why what is written down is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum WrittenError {
    #[error("place {0} in a list that does not go so far")]
    Place(usize),
    #[error("ports {0}-{1} overlap others, or stand out of their order")]
    Order(u16, u16),
}

/// Lists in the order in which they were met, each once. Those that are shared are found without looking at them.
struct Table<T> {
    met: BTreeMap<(usize, usize), usize>,
    places: BTreeMap<Arc<[T]>, usize>,
    all: Vec<Arc<[T]>>,
}

impl<T: Ord> Table<T> {
    fn new() -> Self {
        Self { met: BTreeMap::new(), places: BTreeMap::new(), all: Vec::new() }
    }

    fn place(&mut self, list: &Arc<[T]>) -> usize {
        let Self { met, places, all } = self;
        *met.entry((list.as_ptr() as usize, list.len())).or_insert_with(|| {
            *places.entry(Arc::clone(list)).or_insert_with(|| {
                all.push(Arc::clone(list));
                all.len() - 1
            })
        })
    }
}

impl From<L7Rules> for Written {
    fn from(rules: L7Rules) -> Self {
        let (mut http, mut names, mut peers) =
            (Table::<HttpRule>::new(), Table::<ServerName>::new(), Table::<Identity>::new());
        let (mut inspections, mut inspection_places) = (Vec::new(), BTreeMap::new());
        let mut inspection = |one: &Arc<TlsInspection>| {
            *inspection_places.entry(Arc::clone(one)).or_insert_with(|| {
                inspections.push(Arc::clone(one));
                inspections.len() - 1
            })
        };
        let (mut met, mut places, mut kinds) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut ports = Vec::with_capacity(rules.ports.len());
        for range in &rules.ports {
            let at = range.places();
            let place = *met.entry(at).or_insert_with(|| {
                let mut peers = |list: &Option<_>| list.as_ref().map(|list| peers.place(list));
                let access = range
                    .access
                    .iter()
                    .map(|one| (peers(&one.peers), one.http.as_ref().map(|list| http.place(list))));
                let access = access.collect();
                let tls = range.tls.iter().map(|one| (peers(&one.peers), names.place(&one.names)));
                let tls = tls.collect();
                let inspected = range.inspected.iter();
                let inspected = inspected.map(|one| (peers(&one.peers), inspection(&one.inspection)));
                let kind = Kind { access, tls, inspected: inspected.collect() };
                *places.entry(kind).or_insert_with_key(|kind| {
                    kinds.push(kind.clone());
                    kinds.len() - 1
                })
            });
            ports.push((range.first, range.last, place));
        }
        Self { http: http.all, names: names.all, peers: peers.all, inspections, kinds, ports }
    }
}

impl TryFrom<Written> for L7Rules {
    type Error = WrittenError;

    fn try_from(written: Written) -> Result<Self, WrittenError> {
        fn at<T: Clone>(list: &[T], place: usize) -> Result<T, WrittenError> {
            list.get(place).cloned().ok_or(WrittenError::Place(place))
        }
        let Written { http, names, peers, inspections, kinds, ports } = &written;
        let peers = |place: &Option<usize>| place.map(|place| at(peers, place)).transpose();
        let access = |(who, what): &(_, Option<usize>)| {
            let http = what.map(|place| at(http, place)).transpose()?;
            Ok(L7Access { peers: peers(who)?, http })
        };
        let tls = |(who, what): &(_, usize)| Ok(L7Tls { peers: peers(who)?, names: at(names, *what)? });
        let inspected = |(who, what): &(_, usize)| {
            Ok(L7Inspected { peers: peers(who)?, inspection: at(inspections, *what)? })
        };
        let kinds = kinds.iter().map(|kind| {
            let access = kind.access.iter().map(access).collect::<Result<Arc<[_]>, _>>()?;
            let tls = kind.tls.iter().map(tls).collect::<Result<Arc<[_]>, _>>()?;
            Ok((access, tls, kind.inspected.iter().map(inspected).collect::<Result<Arc<[_]>, _>>()?))
        });
        let kinds: Vec<Held> = kinds.collect::<Result<_, WrittenError>>()?;
        let mut after = Some(0);
        let ports = ports.iter().map(|&(first, last, place)| {
            let follows = first <= last && after.is_some_and(|after| after <= first);
            after = last.checked_add(1);
            let (access, tls, inspected) = at(&kinds, place)?;
            if follows {
                Ok(L7Ports { first, last, access, tls, inspected })
            } else {
                Err(WrittenError::Order(first, last))
            }
        });
        Ok(Self { ports: ports.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::Expression;

    fn list(path: &str) -> HttpRules {
        [HttpRule { path: Some(Expression(path.to_owned())), ..HttpRule::default() }].into()
    }

    #[test]
    fn what_ranges_share_is_written_down_once() {
        let peers = || (256..258).filter_map(Identity::new).collect();
        let ports = |first, paths: &[&str]| {
            let access = paths.iter().map(|path| L7Access { peers: Some(peers()), http: Some(list(path)) });
            let tls = [L7Tls { peers: None, names: ["a.b".parse().unwrap()].into() }];
            let inspection =
                Arc::new(TlsInspection { http: Some(list(paths[0])), ..TlsInspection::default() });
            let inspected = [L7Inspected { peers: Some(peers()), inspection }].into();
            L7Ports { first, last: first + 1, access: access.collect(), tls: tls.into(), inspected }
        };
        let rules = L7Rules {
            ports: vec![
                ports(80, &["/a"]),
                ports(90, &["/a", "/b"]),
                ports(100, &["/a"]),
                ports(443, &["/a"]),
            ],
        };
        let written = Written::from(rules.clone());
        assert_eq!(written.http, [list("/a"), list("/b")]);
        assert_eq!((written.names.len(), written.peers.len(), written.kinds.len()), (1, 1, 2));
        assert_eq!(written.inspections.len(), 1);
        assert_eq!(written.ports, [(80, 81, 0), (90, 91, 1), (100, 101, 0), (443, 444, 0)]);
        let back = L7Rules::try_from(written).unwrap();
        assert_eq!(back, rules);
        assert!(Arc::ptr_eq(&back.ports[0].access, &back.ports[3].access), "and is shared again");
        let http = |at: usize| back.ports[at].access[0].http.clone().unwrap();
        assert!(Arc::ptr_eq(&http(0), &http(1)));
    }

    /// Of 20 000 ranges none is held against another: each list is looked at once.
    #[test]
    fn it_costs_what_there_is_and_not_what_ranges_have_in_common() {
        let access: Vec<Arc<[L7Access]>> = (0..2)
            .map(|number| [L7Access { peers: None, http: Some(list(&format!("/{number}"))) }].into())
            .collect();
        let range = |port: u16| L7Ports {
            first: port,
            last: port,
            access: Arc::clone(&access[usize::from(port % 2)]),
            tls: Arc::default(),
            inspected: Arc::default(),
        };
        let rules = L7Rules { ports: (1..20_000).map(range).collect() };
        let written = Written::from(rules.clone());
        assert_eq!((written.http.len(), written.kinds.len(), written.ports.len()), (2, 2, 19_999));
        assert_eq!(L7Rules::try_from(written), Ok(rules));
    }

    #[test]
    fn what_names_what_is_not_there_is_refused() {
        let kinds = vec![Kind { access: vec![(None, Some(0))], tls: Vec::new(), inspected: Vec::new() }];
        let written = |http, ports| Written { http, ports, kinds: kinds.clone(), ..Written::default() };
        let read = |written: Written| L7Rules::try_from(written).map(|rules| rules.ports.len());
        assert_eq!(read(written(vec![list("/a")], vec![(80, 80, 0), (81, 90, 0)])), Ok(2));
        assert_eq!(read(written(Vec::new(), vec![(80, 80, 0)])), Err(WrittenError::Place(0)));
        assert_eq!(read(written(vec![list("/a")], vec![(80, 80, 1)])), Err(WrittenError::Place(1)));
        for ports in [[(80, 85, 0), (85, 90, 0)], [(90, 90, 0), (80, 80, 0)], [(80, 79, 0), (90, 90, 0)]] {
            assert!(matches!(read(written(vec![list("/a")], ports.into())), Err(WrittenError::Order(..))));
        }
    }
}
